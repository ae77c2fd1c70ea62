// store.cuh -- from a warp's sums in tensor core order to rows of c in memory.
//
// A warp owns 16 rows x 256 (or 128) columns of the tile. wgmma leaves two neighbouring sums of a
// row with each thread; the warp's buffer in shared memory turns 256 bytes of every row at a time
// into pieces of 16 bytes, so that half a warp writes one row's 256 bytes. Rows and columns that c
// has not got in this group are not touched. Limited by the way from a multiprocessor to the L2.
#pragma once

#include "kernels/cuda_common.cuh"
#include "kernels/gemm/ptx.cuh"
#include "kernels/gemm/walk.cuh"

enum {
    STORE_LINE_BYTES = 256,                    // of c, per row and pass
    STORE_PITCH_BYTES = STORE_LINE_BYTES + 16, // neighbouring rows start in different banks
    STORE_BUFFER_BYTES = 16 * STORE_PITCH_BYTES,
};

// A warp's 16 rows x 128 columns, starting with sum[0], into its buffer.
static __device__ __forceinline__ void stage_bf16(uint8_t *buffer, const float *sum)
{
    const int lane = threadIdx.x % 32, block = lane / 8;
    const uint32_t to = ptx_shared_address(buffer) +
                        (lane % 8 + block % 2 * 8) * STORE_PITCH_BYTES + block / 2 * 16;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float *s = sum + 8 * i;
        ptx_store_blocks(to + i * 32, bf16_pair(s[0], s[1]), bf16_pair(s[2], s[3]),
                         bf16_pair(s[4], s[5]), bf16_pair(s[6], s[7]));
    }
}

// The same with 64 columns of f32.
static __device__ __forceinline__ void stage_f32(uint8_t *buffer, const float *sum)
{
    const int lane = threadIdx.x % 32;
    uint8_t *to = buffer + lane / 4 * STORE_PITCH_BYTES + lane % 4 * 8;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        *(float2 *)(to + i * 32) = make_float2(sum[4 * i], sum[4 * i + 1]);
        *(float2 *)(to + 8 * STORE_PITCH_BYTES + i * 32) =
            make_float2(sum[4 * i + 2], sum[4 * i + 3]);
    }
}

// 16 bytes each of the buffer's rows 2 i + lane / 16: half a warp holds one row.
struct Lines {
    float4 piece[8];
};

static __device__ __forceinline__ Lines lines_read(const uint8_t *from, int64_t pitch_bytes,
                                                   int rows)
{
    const int piece = threadIdx.x % 16, first = threadIdx.x % 32 / 16;
    Lines lines;
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (first + 2 * i < rows)
            lines.piece[i] = *(const float4 *)(from + (first + 2 * i) * pitch_bytes + piece * 16);
    return lines;
}

static __device__ __forceinline__ void lines_write(const Lines &lines, uint8_t *to,
                                                   int64_t pitch_bytes, int rows)
{
    const int piece = threadIdx.x % 16, first = threadIdx.x % 32 / 16;
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (first + 2 * i < rows)
            *(float4 *)(to + (first + 2 * i) * pitch_bytes + piece * 16) = lines.piece[i];
}

static __device__ __forceinline__ void lines_add(Lines *lines, const Lines &old)
{
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float4 *x = &lines->piece[i];
        const float4 y = old.piece[i];
        *x = make_float4(y.x + x->x, y.y + x->y, y.z + x->z, y.w + x->w);
    }
}

// The warp's first row in c, at the tile's first column.
template <GemmForm FORM, typename Out>
static __device__ __forceinline__ uint8_t *tile_in_c(const GroupedGemm &args, const GemmTile &tile,
                                                     int warp_row)
{
    const int64_t row = gemm_c_row<FORM>(args, tile) + warp_row;
    return (uint8_t *)((Out *)args.c + row * args.n + tile.column);
}

template <GemmForm FORM, typename Out, int STORE_COLUMNS = 256>
static __device__ __forceinline__ void store_tile(const GroupedGemm &args, const GemmTile &tile,
                                                  int warp_row, uint8_t *buffer, const float *sum)
{
    constexpr int COLUMNS = STORE_LINE_BYTES / sizeof(Out); // per pass
    constexpr bool MAY_ADD = sizeof(Out) == 4;
    const int rows_left = max(min(tile.rows_left - warp_row, 16), 0);
    const int first_column = threadIdx.x % 16 * (16 / (int)sizeof(Out)); // of the thread's pieces
    const int columns_left = (int)args.n - tile.column;
    uint8_t *c = tile_in_c<FORM, Out>(args, tile, warp_row);
    const int64_t pitch_bytes = args.n * (int64_t)sizeof(Out);
    Lines old;
    if (MAY_ADD && args.accumulate)
        old = lines_read(c, pitch_bytes, first_column < columns_left ? rows_left : 0);
#pragma unroll
    for (int column = 0; column < STORE_COLUMNS; column += COLUMNS) {
        if (column >= columns_left)
            return;
        if (sizeof(Out) == 2)
            stage_bf16(buffer, sum + column / 2);
        else
            stage_f32(buffer, sum + column / 2);
        __syncwarp();
        Lines lines = lines_read(buffer, STORE_PITCH_BYTES, 16);
        const int rows = column + first_column < columns_left ? rows_left : 0;
        if (MAY_ADD && args.accumulate) {
            lines_add(&lines, old);
            const int next = column + COLUMNS; // one pass ahead: the way to memory is long
            if (next < STORE_COLUMNS)
                old = lines_read(c + STORE_LINE_BYTES, pitch_bytes,
                                 next + first_column < columns_left ? rows_left : 0);
        }
        lines_write(lines, c, pitch_bytes, rows);
        __syncwarp();
        c += STORE_LINE_BYTES;
    }
}

// What will be added to starts on its way to the L2.
template <GemmForm FORM>
static __device__ __forceinline__ void prefetch_c(const GroupedGemm &args, const GemmTile &tile,
                                                  int warp_row)
{
    const int lane = threadIdx.x % 32, line = lane % 8; // 128 bytes = 32 columns
    const uint8_t *c = tile_in_c<FORM, float>(args, tile, warp_row);
#pragma unroll
    for (int row = lane / 8; row < 16; row += 4)
        if (warp_row + row < tile.rows_left && tile.column + 32 * line < args.n)
            ptx_prefetch(c + row * args.n * 4 + 128 * line);
}
