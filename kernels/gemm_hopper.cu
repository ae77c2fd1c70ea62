// gemm_hopper.cu -- the grouped product on Hopper's tensor cores: bf16 in, f32 sums, bf16 or f32 out.
//
// One block per multiprocessor stays for the whole product and takes tile after tile of c, 128 rows x 256 columns
// (gemm_walk.cuh). Its 12 warps have two jobs:
//
//   load      4 warps fill a ring of 4 stages in shared memory, each the 64 next terms of a and b (16 + 32 KiB). What lies
//             dense in memory comes through the copy engine (TMA tensor maps, one thread); rows gathered through an index,
//             and the last rows of a weight gradient's sum, which must end in zeros and not in the next group's rows, come
//             as 16-byte cp.async by all 128 threads.
//   multiply  2 x 4 warps each own 64 rows x 256 columns of the tile: wgmma m64n256k16 straight from shared memory into
//             128 registers a thread. A half without rows only keeps the ring moving; a tile of at most 128 columns uses
//             m64n128k16. Sums leave through a small buffer per warp, so that global stores are whole 256-byte lines.
//
// A stage passes from one job to the other by two mbarriers: `full` (bytes have come, gatherers have arrived) and `empty`
// (8 warps have read it).
//
// Both operands lie in shared memory as the tensor core wants them, in blocks of 64 elements (128 bytes) a line with the
// 128-byte swizzle: 16-byte piece p of line l stands at place p ^ (l % 8). Where terms are contiguous in memory (a and b
// of NT, a of NN) a line is a row with 64 terms, "K-major"; elsewhere a line is a term with 64 rows or columns of c,
// "MN-major", and one such panel of 64 lines (8 KiB) follows the other. The descriptor's fields for that are: start / 16;
// distance between panels / 16 at bit 16 (MN-major only); distance between groups of 8 lines = 1024 / 16 at bit 32; 1 at
// bit 62 = 128-byte swizzle. The next 16 terms are 32 bytes on (K-major) or 16 lines = 2048 bytes on (MN-major).
//
// Every row runs through the same instructions in the same order of terms, whichever tile, half or group it lies in.
// Limit: the tensor cores (and the power cap); shared memory serves them 80 of its 128 bytes a cycle.
//
// Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions" and "Tensor maps".
#include "kernels/gemm_hopper.cuh"
#include "kernels/cuda_common.cuh"
#include "kernels/gemm_ptx.cuh"
#include "kernels/gemm_walk.cuh"

enum {
    TILE_ROWS = 128,
    TILE_COLUMNS = 256,
    HALF_ROWS = 64, // of the tile: one warpgroup's
    TERMS = 64,     // per stage: one line of 128 bytes
    STEP_TERMS = 16, // per wgmma
    STAGES = 4,
    LINE_BYTES = 128,
    PANEL_BYTES = 64 * LINE_BYTES,
    A_BYTES = TILE_ROWS * LINE_BYTES,
    B_BYTES = TILE_COLUMNS * LINE_BYTES,
    STAGE_BYTES = A_BYTES + B_BYTES,
    LOAD_THREADS = 128,
    MULTIPLY_WARPS = 8,
    THREADS = LOAD_THREADS + 32 * MULTIPLY_WARPS,
    LOAD_REGISTERS = 56,
    MULTIPLY_REGISTERS = 224, // 128 * 56 + 256 * 224 registers fill the multiprocessor
    COPY_LAG = 2,             // stages whose cp.async may be under way before the oldest is waited for
    OUT_LINE_BYTES = 256,     // of c, per row and pass of the epilogue
    OUT_PITCH_BYTES = OUT_LINE_BYTES + 16, // neighbouring rows start in different banks
    OUT_WARP_BYTES = 16 * OUT_PITCH_BYTES,
    BARRIERS_AT = STAGES * STAGE_BYTES,
    OUT_AT = BARRIERS_AT + 128,
    SHARED_BYTES = OUT_AT + MULTIPLY_WARPS * OUT_WARP_BYTES,
};
static_assert(SHARED_BYTES <= 227 * 1024, "what a block of compute capability 9.0 can have");
static_assert(LOAD_THREADS * LOAD_REGISTERS + 32 * MULTIPLY_WARPS * MULTIPLY_REGISTERS <= 65536,
              "registers of a multiprocessor");

// Addresses in shared memory.
struct Ring {
    uint32_t base;
    __device__ uint32_t a(uint32_t stage) const { return base + stage * STAGE_BYTES; }
    __device__ uint32_t b(uint32_t stage) const { return a(stage) + A_BYTES; }
    __device__ uint32_t full(uint32_t stage) const { return base + BARRIERS_AT + stage * 16; }
    __device__ uint32_t empty(uint32_t stage) const { return full(stage) + 8; }
};

// How many times the ring has gone round when chunk `number` is due decides the parity to wait for.
static __device__ __forceinline__ uint32_t parity_of(uint32_t number)
{
    return number / STAGES & 1;
}

template <GemmForm FORM, bool GATHER_A, bool GATHER_B> struct Variant {
    static constexpr bool a_is_mn_major = FORM == GEMM_TN;
    static constexpr bool b_is_mn_major = FORM != GEMM_NT;
    // The 128 threads copy rows themselves: gathered ones, or the zeros after the end of a weight gradient's sum.
    static constexpr bool threads_copy = GATHER_A || GATHER_B || FORM == GEMM_TN;
    static constexpr bool engine_copies = FORM != GEMM_TN || !GATHER_A || !GATHER_B;
    static constexpr uint32_t full_arrivals = (engine_copies ? 1 : 0) + (threads_copy ? 4 : 0);
};

// ---- load ------------------------------------------------------------------------------------------------------------

// K-major a with gathered rows: thread t copies piece t % 8 of rows t / 8 + 16 i.
struct RowGather {
    const Bf16 *row[8]; // NULL: past the group's end
    int piece;
};

static __device__ __forceinline__ RowGather row_gather_begin(const GroupedGemm &args,
                                                             const GemmTile &tile)
{
    RowGather gather;
    gather.piece = threadIdx.x % 8;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int r = threadIdx.x / 8 + 16 * i;
        gather.row[i] = NULL;
        if (r < tile.rows_left) {
            const int64_t source = __ldg(args.a_index + tile.group_first + tile.row + r);
            gather.row[i] = (const Bf16 *)args.a + source * args.a_stride;
        }
    }
    return gather;
}

static __device__ __forceinline__ void row_gather_copy(const RowGather &gather, uint32_t to,
                                                       const void *somewhere, int64_t term,
                                                       int64_t terms)
{
    const int64_t at = term + 8 * gather.piece;
    const int line = threadIdx.x / 8;
    to += line * LINE_BYTES + ((gather.piece ^ (line % 8)) * 16);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const bool real = gather.row[i] && at < terms;
        ptx_copy_16(to + i * 16 * LINE_BYTES, real ? gather.row[i] + at : somewhere, real ? 16 : 0);
    }
}

// MN-major operand of TN: which rows the next 64 terms are. Lane l of every warp knows terms l and l + 32.
struct TermRows {
    int row[2];
};

static __device__ __forceinline__ TermRows term_rows(const int32_t *index, const GemmTile &tile,
                                                     int64_t term)
{
    TermRows rows;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int64_t at = term + threadIdx.x % 32 + 32 * i;
        const int64_t row = tile.group_first + at;
        rows.row[i] = at >= tile.sum_length ? 0 : index ? __ldg(index + row) : (int)row;
    }
    return rows;
}

// Copies 64 terms x 64 PANELS columns; zeros past the last term and the last column.
template <int PANELS>
static __device__ __forceinline__ void term_rows_copy(const TermRows &rows, uint32_t to,
                                                      const void *matrix, int64_t stride,
                                                      int64_t column, int64_t columns,
                                                      int64_t terms_left)
{
    constexpr int PIECES = 8 * PANELS, LINES_AT_ONCE = LOAD_THREADS / PIECES;
    const int piece = threadIdx.x % PIECES;
    const Bf16 *source = (const Bf16 *)matrix + column + 8 * piece;
    const bool column_real = column + 8 * piece < columns;
    to += piece / 8 * PANEL_BYTES;
#pragma unroll 4
    for (int i = 0; i < 64 / LINES_AT_ONCE; i++) {
        const int line = threadIdx.x / PIECES + i * LINES_AT_ONCE;
        const int row = __shfl_sync(~0u, 
                                   i * LINES_AT_ONCE < 32 ? rows.row[0] : rows.row[1], line % 32);
        const bool real = column_real && line < terms_left;
        ptx_copy_16(to + line * LINE_BYTES + ((piece ^ line) % 8) * 16,
                    real ? (const void *)(source + row * stride) : matrix, real ? 16 : 0);
    }
}

// One thread: the copy engine brings what lies dense.
template <GemmForm FORM, bool LOAD_A, bool LOAD_B>
static __device__ __forceinline__ void engine_load(const Ring &ring, uint32_t stage,
                                                   const CUtensorMap *map_a,
                                                   const CUtensorMap *map_b, const GemmTile &tile,
                                                   int64_t term)
{
    const uint32_t full = ring.full(stage);
    ptx_barrier_arrive_expect(full, (LOAD_A ? A_BYTES : 0) + (LOAD_B ? B_BYTES : 0));
    const int first_row = (int)(tile.group_first + (FORM == GEMM_TN ? term : tile.row));
    if (LOAD_A && FORM != GEMM_TN)
        ptx_tensor_load_2d(ring.a(stage), map_a, (int)term, first_row, full);
    if (LOAD_A && FORM == GEMM_TN) {
#pragma unroll
        for (int i = 0; i < TILE_ROWS / 64; i++)
            ptx_tensor_load_2d(ring.a(stage) + i * PANEL_BYTES, map_a, (int)tile.row + 64 * i,
                               first_row, full);
    }
#pragma unroll
    for (int i = 0; LOAD_B && i < (FORM == GEMM_NT ? 1 : TILE_COLUMNS / 64); i++) {
        const uint32_t to = ring.b(stage) + i * PANEL_BYTES;
        const int column = (int)tile.column + 64 * i;
        if (FORM == GEMM_NT)
            ptx_tensor_load_3d(to, map_b, (int)term, column, tile.group, full);
        else if (FORM == GEMM_NN)
            ptx_tensor_load_3d(to, map_b, column, (int)term, tile.group, full);
        else
            ptx_tensor_load_2d(to, map_b, column, first_row, full);
    }
}

// The copies of chunk `number` and earlier have landed: makes them visible and says so.
static __device__ __forceinline__ void copies_landed(const Ring &ring, uint32_t number)
{
    ptx_proxy_fence();
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        ptx_barrier_arrive(ring.full(number % STAGES));
}

template <GemmForm FORM, bool GATHER_A, bool GATHER_B>
static __device__ __forceinline__ void load(const GroupedGemm &args, const Ring &ring,
                                            const CUtensorMap *map_a, const CUtensorMap *map_b)
{
    typedef Variant<FORM, GATHER_A, GATHER_B> V;
    if (!V::threads_copy && threadIdx.x != 0)
        return;
    GemmWalk walk = gemm_walk_begin();
    GemmTile tile;
    uint32_t number = 0; // of the chunk, over all tiles of this block
    while (gemm_walk_next<FORM, TILE_ROWS, TILE_COLUMNS>(args, &walk, &tile)) {
        RowGather gather;
        TermRows next_a, next_b;
        if (FORM != GEMM_TN && GATHER_A)
            gather = row_gather_begin(args, tile);
        if (FORM == GEMM_TN) {
            next_a = term_rows(args.a_index, tile, 0);
            next_b = term_rows(args.b_index, tile, 0);
        }
        for (int64_t term = 0; term < tile.sum_length; term += TERMS, number++) {
            const uint32_t stage = number % STAGES;
            const int64_t terms_left = tile.sum_length - term;
            const bool tail = FORM == GEMM_TN && terms_left < TERMS;
            const TermRows rows_a = next_a, rows_b = next_b;
            if (FORM == GEMM_TN && terms_left > TERMS) {
                next_a = term_rows(args.a_index, tile, term + TERMS);
                next_b = term_rows(args.b_index, tile, term + TERMS);
            }
            ptx_barrier_wait(ring.empty(stage), parity_of(number) ^ 1);
            if (V::engine_copies && threadIdx.x == 0) {
                if (tail)
                    ptx_barrier_arrive(ring.full(stage));
                else
                    engine_load<FORM, !GATHER_A, FORM != GEMM_TN || !GATHER_B>(
                        ring, stage, map_a, map_b, tile, term);
            }
            if (FORM != GEMM_TN && GATHER_A)
                row_gather_copy(gather, ring.a(stage), args.a, term, args.k);
            if (FORM == GEMM_TN && (GATHER_A || tail))
                term_rows_copy<TILE_ROWS / 64>(rows_a, ring.a(stage), args.a, args.a_stride,
                                               tile.row, args.m, terms_left);
            if (FORM == GEMM_TN && (GATHER_B || tail))
                term_rows_copy<TILE_COLUMNS / 64>(rows_b, ring.b(stage), args.b, args.b_stride,
                                                  tile.column, args.n, terms_left);
            if (V::threads_copy) {
                ptx_copy_commit();
                ptx_copy_wait<COPY_LAG>();
                if (number >= COPY_LAG)
                    copies_landed(ring, number - COPY_LAG);
            }
        }
    }
    if (V::threads_copy) {
        ptx_copy_wait<0>();
        for (uint32_t late = number < COPY_LAG ? number : COPY_LAG; late > 0; late--)
            copies_landed(ring, number - late);
    }
}

// ---- multiply --------------------------------------------------------------------------------------------------------

template <bool MN_MAJOR> static __device__ __forceinline__ uint64_t operand_words(uint32_t address)
{
    const uint64_t swizzle_128 = 1ull << 62, eight_lines = (uint64_t)(8 * LINE_BYTES / 16) << 32;
    const uint64_t panel = (uint64_t)(MN_MAJOR ? PANEL_BYTES / 16 : 1) << 16;
    return swizzle_128 | eight_lines | panel | (address & 0x3ffff) / 16;
}

// STEPS times 16 terms of one stage.
template <int COLUMNS, bool A_MN_MAJOR, bool B_MN_MAJOR, int STEPS>
static __device__ __forceinline__ void multiply_steps(uint64_t a, uint64_t b, float *sum)
{
    constexpr int A_STEP = (A_MN_MAJOR ? STEP_TERMS * LINE_BYTES : STEP_TERMS * 2) / 16;
    constexpr int B_STEP = (B_MN_MAJOR ? STEP_TERMS * LINE_BYTES : STEP_TERMS * 2) / 16;
    ptx_mma_fence();
#pragma unroll
    for (int step = 0; step < STEPS; step++)
        ptx_mma<COLUMNS, A_MN_MAJOR, B_MN_MAJOR>(sum, a + step * A_STEP, b + step * B_STEP);
    ptx_mma_commit();
}

// sum = the product of the warpgroup's 64 rows with all terms of the tile; the chunk counter goes on.
template <int COLUMNS, bool A_MN_MAJOR, bool B_MN_MAJOR>
static __device__ __forceinline__ void multiply(const Ring &ring, int half, int64_t terms,
                                                uint32_t *number, float *sum)
{
    const bool elected = threadIdx.x % 32 == 0;
    const uint32_t first = *number, end = first + (uint32_t)(terms / TERMS);
    uint32_t at = first;
    for (; at < end; at++) {
        const uint32_t stage = at % STAGES;
        ptx_barrier_wait(ring.full(stage), parity_of(at));
        const uint64_t a = operand_words<A_MN_MAJOR>(ring.a(stage) + half * PANEL_BYTES);
        const uint64_t b = operand_words<B_MN_MAJOR>(ring.b(stage));
        multiply_steps<COLUMNS, A_MN_MAJOR, B_MN_MAJOR, 4>(a, b, sum);
        ptx_mma_wait<1>(); // the chunk before this one has been read
        if (elected && at != first)
            ptx_barrier_arrive(ring.empty((at - 1) % STAGES));
    }
    ptx_mma_wait<0>();
    ptx_sums_ready<COLUMNS / 2>(sum);
    if (elected && at != first)
        ptx_barrier_arrive(ring.empty((at - 1) % STAGES));
    const int rest = (int)(terms % TERMS);
    if (rest != 0) {
        const uint32_t stage = at % STAGES;
        ptx_barrier_wait(ring.full(stage), parity_of(at));
        for (int step = 0; step * STEP_TERMS < rest; step++) {
            multiply_steps<COLUMNS, A_MN_MAJOR, B_MN_MAJOR, 1>(
                operand_words<A_MN_MAJOR>(ring.a(stage) + half * PANEL_BYTES +
                                          step * (A_MN_MAJOR ? 2048 : 32)),
                operand_words<B_MN_MAJOR>(ring.b(stage) + step * (B_MN_MAJOR ? 2048 : 32)), sum);
            ptx_mma_wait<0>();
            ptx_sums_ready<COLUMNS / 2>(sum);
        }
        if (elected)
            ptx_barrier_arrive(ring.empty(stage));
        at++;
    }
    *number = at;
}

// A half of the tile without rows: keeps the ring moving.
static __device__ __forceinline__ void skip(const Ring &ring, int64_t terms, uint32_t *number)
{
    for (int64_t term = 0; term < terms; term += TERMS, ++*number) {
        ptx_barrier_wait(ring.full(*number % STAGES), parity_of(*number));
        if (threadIdx.x % 32 == 0)
            ptx_barrier_arrive(ring.empty(*number % STAGES));
    }
}

// ---- store -----------------------------------------------------------------------------------------------------------

// A warp's 16 rows x 128 columns, starting with sum[0], into its buffer.
static __device__ __forceinline__ void stage_bf16(uint8_t *buffer, const float *sum)
{
    const int lane = threadIdx.x % 32, block = lane / 8;
    const uint32_t to = ptx_shared_address(buffer) + (lane % 8 + block % 2 * 8) * OUT_PITCH_BYTES +
                        block / 2 * 16;
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
    uint8_t *to = buffer + lane / 4 * OUT_PITCH_BYTES + lane % 4 * 8;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        *(float2 *)(to + i * 32) = make_float2(sum[4 * i], sum[4 * i + 1]);
        *(float2 *)(to + 8 * OUT_PITCH_BYTES + i * 32) =
            make_float2(sum[4 * i + 2], sum[4 * i + 3]);
    }
}

// The buffer's rows to c: half a warp writes one row's 256 bytes.
template <typename Out>
static __device__ __forceinline__ void store_lines(const uint8_t *buffer, Out *c, int64_t c_stride,
                                                   int rows_left, int64_t columns_left,
                                                   bool accumulate)
{
    constexpr int PER_PIECE = 16 / sizeof(Out);
    const int piece = threadIdx.x % 16, first = threadIdx.x % 32 / 16;
    if (piece * PER_PIECE >= columns_left)
        return;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int row = first + 2 * i;
        if (row >= rows_left)
            return;
        float4 value = *(const float4 *)(buffer + row * OUT_PITCH_BYTES + piece * 16);
        float4 *to = (float4 *)(c + row * c_stride + piece * PER_PIECE);
        if (sizeof(Out) == 4 && accumulate) {
            const float4 old = *to;
            value = make_float4(old.x + value.x, old.y + value.y, old.z + value.z, old.w + value.w);
        }
        *to = value;
    }
}

template <GemmForm FORM, typename Out>
static __device__ __forceinline__ void store_tile(const GroupedGemm &args, const GemmTile &tile,
                                                  int warp_row, uint8_t *buffer, const float *sum)
{
    constexpr int COLUMNS = OUT_LINE_BYTES / sizeof(Out); // per pass
    const int rows_left = (int)min(tile.rows_left - warp_row, (int64_t)16);
    const int64_t columns_left = args.n - tile.column;
    Out *c = (Out *)args.c + (gemm_c_row<FORM>(args, tile) + warp_row) * args.n + tile.column;
#pragma unroll
    for (int column = 0; column < TILE_COLUMNS; column += COLUMNS) {
        if (column >= columns_left)
            return;
        if (sizeof(Out) == 2)
            stage_bf16(buffer, sum + column / 2);
        else
            stage_f32(buffer, sum + column / 2);
        __syncwarp();
        store_lines(buffer, c + column, args.n, rows_left, columns_left - column, args.accumulate);
        __syncwarp();
    }
}

template <GemmForm FORM, bool GATHER_A, bool GATHER_B>
static __device__ __forceinline__ void compute(const GroupedGemm &args, const Ring &ring,
                                               uint8_t *shared)
{
    typedef Variant<FORM, GATHER_A, GATHER_B> V;
    const int warp = threadIdx.x / 32 - LOAD_THREADS / 32, half = warp / 4;
    uint8_t *buffer = shared + OUT_AT + warp * OUT_WARP_BYTES;
    GemmWalk walk = gemm_walk_begin();
    GemmTile tile;
    uint32_t number = 0;
    while (gemm_walk_next<FORM, TILE_ROWS, TILE_COLUMNS>(args, &walk, &tile)) {
        if (half * HALF_ROWS >= tile.rows_left) {
            skip(ring, tile.sum_length, &number);
            continue;
        }
        float sum[TILE_COLUMNS / 2];
#pragma unroll
        for (int i = 0; i < TILE_COLUMNS / 2; i++)
            sum[i] = 0.0f;
        if (args.n - tile.column > TILE_COLUMNS / 2) {
            multiply<TILE_COLUMNS, V::a_is_mn_major, V::b_is_mn_major>(
                ring, half, tile.sum_length, &number, sum);
        } else {
            multiply<TILE_COLUMNS / 2, V::a_is_mn_major, V::b_is_mn_major>(
                ring, half, tile.sum_length, &number, sum);
        }
        if (args.out_dtype == DTYPE_BF16)
            store_tile<FORM, Bf16>(args, tile, warp * 16, buffer, sum);
        else
            store_tile<FORM, float>(args, tile, warp * 16, buffer, sum);
    }
}

template <GemmForm FORM, bool GATHER_A, bool GATHER_B>
__global__ void __launch_bounds__(THREADS, 1)
    gemm_hopper_kernel(const GroupedGemm args, const __grid_constant__ CUtensorMap map_a,
                       const __grid_constant__ CUtensorMap map_b)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    typedef Variant<FORM, GATHER_A, GATHER_B> V;
    extern __shared__ __align__(1024) uint8_t shared[];
    const Ring ring = {ptx_shared_address(shared)};
    if (threadIdx.x == 0) {
        if (ring.base % 1024 != 0)
            __trap(); // the swizzle counts lines from addresses that are multiples of 1024
        for (uint32_t stage = 0; stage < STAGES; stage++) {
            ptx_barrier_init(ring.full(stage), V::full_arrivals);
            ptx_barrier_init(ring.empty(stage), MULTIPLY_WARPS);
        }
        ptx_barrier_init_done();
        if (V::engine_copies) {
            ptx_tensor_prefetch(&map_a);
            ptx_tensor_prefetch(&map_b);
        }
    }
    __syncthreads();
    if (threadIdx.x < LOAD_THREADS) {
        ptx_registers_give<LOAD_REGISTERS>();
        load<FORM, GATHER_A, GATHER_B>(args, ring, &map_a, &map_b);
    } else {
        ptx_registers_take<MULTIPLY_REGISTERS>();
        compute<FORM, GATHER_A, GATHER_B>(args, ring, shared);
    }
#else
    __trap(); // built without sm_90a: gemm_hopper_suits must have said no
#endif
}

// ---- host ------------------------------------------------------------------------------------------------------------

typedef void (*HopperKernel)(GroupedGemm, CUtensorMap, CUtensorMap);

// [form][a gathered][b gathered]
static const HopperKernel kernel_of_variant[3][2][2] = {
    {{gemm_hopper_kernel<GEMM_NT, false, false>}, {gemm_hopper_kernel<GEMM_NT, true, false>}},
    {{gemm_hopper_kernel<GEMM_NN, false, false>}, {gemm_hopper_kernel<GEMM_NN, true, false>}},
    {{gemm_hopper_kernel<GEMM_TN, false, false>, gemm_hopper_kernel<GEMM_TN, false, true>},
     {gemm_hopper_kernel<GEMM_TN, true, false>, gemm_hopper_kernel<GEMM_TN, true, true>}},
};

bool gemm_hopper_suits(const GroupedGemm *args)
{
    const bool transposed = args->form == GEMM_TN;
    const int64_t all_lengths = args->n | args->a_stride | (transposed ? args->m | args->b_stride
                                                                       : args->k);
    const uintptr_t all_addresses = (uintptr_t)args->a | (uintptr_t)args->b | (uintptr_t)args->c;
    if (args->dtype != DTYPE_BF16 || all_lengths % 8 != 0 || all_addresses % 16 != 0 ||
        args->rows_max == 0 || (!transposed && args->k == 0))
        return false;
    int device = 0, major = 0, minor = 0;
    CHECK_CUDA(cudaGetDevice(&device));
    CHECK_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    CHECK_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    return major == 9 && minor == 0;
}

typedef decltype(&cuTensorMapEncodeTiled) EncodeTensorMap;

// The driver's function, found at run time so that the program needs no libcuda to start.
static EncodeTensorMap find_encode(void)
{
    void *function = NULL;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    CHECK_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                cudaEnableDefault, &result));
    CHECK(result == cudaDriverEntryPointSuccess && function, EXIT_CODE_HARDWARE,
          "install an NVIDIA driver for CUDA 12 or later",
          "the driver has no cuTensorMapEncodeTiled (query result %d)", (int)result);
    return (EncodeTensorMap)function;
}

// A matrix [planes, rows, columns] of bf16 from which boxes of box_rows x 64 columns are taken, zeros outside.
typedef struct Operand {
    const void *data;
    int64_t columns, rows, planes; // planes 0: two dimensions
    int64_t stride;                // elements between rows
    int box_rows;
} Operand;

static CUtensorMap encode_operand(EncodeTensorMap encode, const Operand *operand)
{
    CUtensorMap map;
    const cuuint64_t extents[3] = {(cuuint64_t)operand->columns, (cuuint64_t)operand->rows,
                                   (cuuint64_t)operand->planes};
    const cuuint64_t stride_bytes[2] = {(cuuint64_t)operand->stride * 2,
                                        (cuuint64_t)(operand->rows * operand->stride) * 2};
    const cuuint32_t box[3] = {64, (cuuint32_t)operand->box_rows, 1}, steps[3] = {1, 1, 1};
    const CUresult result =
        encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, operand->planes ? 3 : 2,
               (void *)(uintptr_t)operand->data, extents, stride_bytes, box, steps,
               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    CHECK(result == CUDA_SUCCESS, EXIT_CODE_INTERNAL,
          "this is a bug of meshwork: please report it",
          "cuTensorMapEncodeTiled refused [%lld, %lld, %lld] bf16, rows %lld apart: CUresult %d",
          (long long)operand->planes, (long long)operand->rows, (long long)operand->columns,
          (long long)operand->stride, (int)result);
    return map;
}

void gemm_hopper(const GroupedGemm *args, cudaStream_t stream)
{
    const EncodeTensorMap encode = find_encode();
    const bool transposed = args->form == GEMM_TN;
    const bool gather_a = args->a_index, gather_b = transposed && args->b_index;
    // The maps of gathered operands go unused.
    const Operand a = {.data = args->a,
                       .columns = transposed ? args->m : args->k,
                       .rows = args->rows_max,
                       .planes = 0,
                       .stride = args->a_stride,
                       .box_rows = transposed ? TERMS : TILE_ROWS};
    Operand b = {.data = args->b,
                 .columns = args->n,
                 .rows = args->k,
                 .planes = args->groups,
                 .stride = args->n,
                 .box_rows = TERMS};
    if (args->form == GEMM_NT) {
        b.columns = b.stride = args->k;
        b.rows = args->n;
        b.box_rows = TILE_COLUMNS;
    } else if (transposed) {
        b.rows = args->rows_max;
        b.planes = 0;
        b.stride = args->b_stride;
    }
    const CUtensorMap map_a = encode_operand(encode, &a), map_b = encode_operand(encode, &b);
    const HopperKernel kernel = kernel_of_variant[args->form][gather_a][gather_b];
    CHECK_CUDA(cudaFuncSetAttribute((const void *)kernel,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES));
    const unsigned grid = gemm_grid(args, TILE_ROWS, TILE_COLUMNS, cuda_processors());
    kernel<<<grid, THREADS, SHARED_BYTES, stream>>>(*args, map_a, map_b);
    CHECK_CUDA(cudaGetLastError());
}
