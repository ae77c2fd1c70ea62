// rows_tiles.cuh -- how quant_gemm/rows.cu divides its work: tiles among clusters, the columns of
// a tile among the blocks of a cluster and the warps of a block; and how blocks of a cluster meet.
//
// Source: PTX ISA, mapa, barrier.cluster.
#pragma once

#include "kernels/quant_gemm/decode.cuh"
#include "kernels/quant_gemm/rows.cuh"

enum {
    ROWS_THREADS = 256,
    ROWS_WARPS = ROWS_THREADS / WARP_LANES,
    ROWS_TILE = 16,     // rows of b
    ROWS_PARTS_MAX = 8, // blocks of a cluster
    ROWS_SHARED_MAX = 227 * 1024,
    ROWS_SHARED_HALF = 113 * 1024, // two blocks on a multiprocessor
    ROWS_LINE_EXTRA = 64,          // bytes from one row of a to the next, beyond its terms
};

struct RowsArgs {
    QuantRows given;
    int slices, parts;
    int stages, part_stages; // of k, and of a part of it
    int line_words;          // from one row of a in shared memory to the next
    int tile_sets, set_rows; // of ROWS_WARPS / slices tiles each, in one group
    int64_t zero_words;      // bytes from the word of a bf16 scale to that of its zero point
    uint32_t zero_keep,
        zero_flip;             // selector of a scale in its word & keep ^ flip: of its zero point
    int block_shift;           // columns of b's blocks; 31: one block
    int code_rows, scale_rows; // bytes from a row of b to the one 8 further
    // Bytes of scales from a lane's first to those of a stage:
    // (stage >> far_shift) * far + (stage & near_mask) * near, near only where kinds have it
    int far_shift, far, near_mask, near;
};

// ---- which tiles ----

// Tile sets are counted group by group, for every chunk of rows of a.
struct RowsPlace {
    int group, first_row, rows; // of a; rows 0: past the end
    int set;
};

static __device__ __forceinline__ int chunks_of_group(const GroupedGemm &g, int group, int rows_max)
{
    const int rows = group >= g.groups ? 0
                     : g.group_rows    ? __ldg(g.group_rows + group)
                                       : (int)g.rows_max;
    return (rows + rows_max - 1) / rows_max;
}

// Warp: all chunks of rows.
static __device__ __forceinline__ int count_chunks(const GroupedGemm &g, int rows_max)
{
    int chunks = 0;
    for (int group = lane_index(); group < g.groups; group += WARP_LANES)
        chunks += chunks_of_group(g, group, rows_max);
    return __reduce_add_sync(WARP_ALL, chunks);
}

// Warp: the group that chunk `*number` lies in; *number becomes its number there.
static __device__ __forceinline__ int find_chunk(const GroupedGemm &g, int rows_max, int *number)
{
    for (int first = 0; first < g.groups; first += WARP_LANES) {
        const int chunks = chunks_of_group(g, first + lane_index(), rows_max);
        int sum = chunks; // of this lane and those below
#pragma unroll
        for (int apart = 1; apart < WARP_LANES; apart *= 2) {
            const int below = __shfl_up_sync(WARP_ALL, sum, apart);
            sum += lane_index() >= apart ? below : 0;
        }
        const unsigned found = __ballot_sync(WARP_ALL, sum > *number);
        if (found) {
            const int lane = __ffs(found) - 1;
            *number -= __shfl_sync(WARP_ALL, sum - chunks, lane);
            return first + lane;
        }
        *number -= __shfl_sync(WARP_ALL, sum, WARP_LANES - 1);
    }
    return g.groups;
}

static __device__ __forceinline__ RowsPlace place_of(const RowsArgs &args, int rows_max, int index)
{
    const GroupedGemm &g = args.given.work.frame;
    RowsPlace p = {};
    int chunk = index / args.tile_sets;
    p.set = index - chunk * args.tile_sets;
    p.group = find_chunk(g, rows_max, &chunk);
    const int rows = g.group_rows ? __ldg(g.group_rows + p.group) : (int)g.rows_max;
    p.first_row = (g.group_first ? __ldg(g.group_first + p.group) : 0) + chunk * rows_max;
    p.rows = min(rows - chunk * rows_max, rows_max);
    return p;
}

static __device__ __forceinline__ RowsPlace next_place(const RowsArgs &args, int rows_max,
                                                       int index, RowsPlace p)
{
    if (++p.set == args.tile_sets)
        p = place_of(args, rows_max, index);
    return p;
}

// What a warp takes of a set: of one tile, stages first, first + slices, ... below end.
struct RowsShare {
    int part, first, end;
    int row; // g of its tile, in the set
};

static __device__ __forceinline__ RowsShare share_of(const RowsArgs &args, int warp, uint32_t part)
{
    RowsShare share;
    share.part = (int)part;
    share.row = warp / args.slices * ROWS_TILE + lane_index() / 4;
    share.first = share.part * args.part_stages + warp % args.slices;
    share.end = min((share.part + 1) * args.part_stages, args.stages);
    return share;
}

// ---- clusters ----

static __device__ __forceinline__ uint32_t cluster_part(void)
{
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// What all blocks of the cluster wrote to shared memory before is visible to all of them after.
static __device__ __forceinline__ void cluster_wait(int parts)
{
    if (parts == 1)
        __syncthreads();
    else
        asm volatile("barrier.cluster.arrive.release;\n\t"
                     "barrier.cluster.wait.acquire;" ::
                         : "memory");
}

static __device__ __forceinline__ float cluster_read(const float *mine, int part)
{
    float value;
    asm volatile("{ .reg .b32 there; mapa.shared::cluster.u32 there, %1, %2; "
                 "ld.shared::cluster.f32 %0, [there]; }"
                 : "=f"(value)
                 : "r"(ptx_shared_address(mine)), "r"(part)
                 : "memory");
    return value;
}
