// hopper.cu -- the grouped product on Hopper's tensor cores: bf16 in, f32 sums.
//
// One block per multiprocessor stays for the whole product and takes tile after tile of c, 128 rows
// x 256 columns (gemm/walk.cuh). Its 12 warps have two jobs:
//
//   load      4 warps keep a ring of 4 stages in shared memory full; a stage holds the next
//             64 terms of a and b (16 + 32 KiB). What lies dense in memory comes through the copy
//             engine (TMA tensor maps, one thread). Rows gathered through an index come as 16-byte
//             cp.async by all 128 threads.
//   multiply  2 x 4 warps own 64 rows x 256 columns of the tile each: wgmma m64n256k16 right
//             from shared memory into 128 registers a thread. A half without rows only keeps the
//             ring moving; a tile of at most 128 columns uses m64n128k16. Sums leave through a
//             small buffer per warp: global stores are 256 bytes in a row (gemm/store.cuh).
//
// A stage passes from one job to the other by two mbarriers: `full` (bytes have come, gatherers
// have arrived) and `empty` (8 warps have read it).
//
// Both operands lie in shared memory as the tensor core wants them: in lines of 64 elements (128
// bytes) with the 128-byte swizzle, 16-byte piece p of line l at place p ^ (l % 8). Where terms are
// contiguous in memory (a and b of NT, a of NN) a line is a row with 64 terms, "K-major". Elsewhere
// a line is a term with 64 rows or columns of c, "MN-major", and one such panel of 64 lines (8 KiB)
// follows the other (gemm/ring.cuh has the descriptors). The next 16 terms are 32 bytes on
// (K-major) or 16 lines on (MN-major).
//
// Every row runs through the same instructions in the same order of terms, whichever tile, half or
// group it lies in. Limit: the tensor cores under the power cap; they take 80 of the 128 bytes a
// cycle that shared memory delivers. Gathered rows: cp.async brought about 20 bytes a cycle on an
// H200, more than a needs (16), less than b of TN (32). Large f32 tiles: the stores at their end.
//
// Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions" and "Tensor maps".
#include "kernels/gemm/hopper.cuh"
#include "kernels/gemm/ring.cuh"
#include "kernels/gemm/store.cuh"
#include "kernels/gemm/walk.cuh"

enum {
    TILE_ROWS = 128,
    TILE_COLUMNS = 256,
    HALF_ROWS = 64,  // of the tile: one warpgroup's
    TERMS = 64,      // per stage: one line of 128 bytes
    STEP_TERMS = 16, // per wgmma
    STAGES = 4,
    A_BYTES = TILE_ROWS * LINE_BYTES,
    B_BYTES = TILE_COLUMNS * LINE_BYTES,
    STAGE_BYTES = A_BYTES + B_BYTES,
    LOAD_WARPS = 4,
    LOAD_THREADS = 32 * LOAD_WARPS,
    MULTIPLY_WARPS = 8,
    THREADS = LOAD_THREADS + 32 * MULTIPLY_WARPS,
    LOAD_REGISTERS = 56,
    MULTIPLY_REGISTERS = 224, // 128 * 56 + 256 * 224 registers fill the multiprocessor
    COPY_LAG = 1, // chunks whose copies may be under way before the oldest is waited for
    OUT_AT = STAGES * STAGE_BYTES + RING_BARRIER_BYTES,
    SHARED_BYTES = OUT_AT + MULTIPLY_WARPS * STORE_BUFFER_BYTES,
};
static_assert(SHARED_BYTES <= 227 * 1024, "what a block of compute capability 9.0 can have");
static_assert(LOAD_THREADS * LOAD_REGISTERS + 32 * MULTIPLY_WARPS * MULTIPLY_REGISTERS <= 65536,
              "registers of a multiprocessor");

typedef GemmRing<STAGES, A_BYTES, B_BYTES> Ring;

// The parity of a stage's phase when chunk `number` is in it.
static __device__ __forceinline__ uint32_t parity_of(uint32_t number)
{
    return number / STAGES & 1;
}

template <GemmForm FORM, bool GATHER_A, bool GATHER_B> struct Variant {
    static constexpr bool a_is_mn_major = FORM == GEMM_TN;
    static constexpr bool b_is_mn_major = FORM != GEMM_NT;
    static constexpr bool zeros_a = FORM == GEMM_TN && !GATHER_A; // see zero_lines
    static constexpr bool zeros_b = FORM == GEMM_TN && !GATHER_B;
    static constexpr bool threads_copy = GATHER_A || GATHER_B;
    static constexpr bool engine_copies = FORM != GEMM_TN || !GATHER_A || !GATHER_B;
    static constexpr uint32_t full_arrivals =
        (engine_copies ? 1 : 0) + (threads_copy ? LOAD_WARPS : 0);
};

// ---- load ----

// An operand gathered by the loading warps: each copies its quarter of a chunk's lines, and its
// lane l knows in which row of the matrix the quarter's line l lies. The lines are the `lines_left`
// rows of the row space from first_row on.
template <int LINES>
static __device__ __forceinline__ uint32_t row_of_line(const int32_t *index, int first_row,
                                                       int lines_left)
{
    constexpr int QUARTER = LINES / LOAD_WARPS;
    const int line = threadIdx.x / 32 * QUARTER + threadIdx.x % QUARTER;
    return line < lines_left ? (uint32_t)__ldg(index + first_row + line) : 0;
}

// The rows that one thread copies 16-byte pieces of: PANELS panels of 8 pieces make up a line.
template <int LINES, int PANELS> struct LinePieces {
    static constexpr int QUARTER = LINES / LOAD_WARPS, PIECES = 8 * PANELS, AT_ONCE = 32 / PIECES;
    static constexpr int COUNT = QUARTER / AT_ONCE;
    uint32_t row[COUNT];
};

template <int LINES, int PANELS>
static __device__ __forceinline__ LinePieces<LINES, PANELS> pieces_find(uint32_t row_of_line)
{
    typedef LinePieces<LINES, PANELS> P;
    P pieces;
#pragma unroll
    for (int i = 0; i < P::COUNT; i++)
        pieces.row[i] =
            __shfl_sync(~0u, row_of_line, i * P::AT_ONCE + threadIdx.x % 32 / P::PIECES);
    return pieces;
}

// 64 PANELS elements of each line, from `column` on; zeros after the last line and the last column.
template <int LINES, int PANELS>
static __device__ __forceinline__ void
pieces_copy(const LinePieces<LINES, PANELS> &pieces, uint32_t to, const void *matrix,
            uint32_t stride_bytes, int column, int columns, int lines_left)
{
    typedef LinePieces<LINES, PANELS> P;
    const int lane = threadIdx.x % 32, piece = lane % P::PIECES;
    const int first_line = threadIdx.x / 32 * P::QUARTER;
    const bool column_real = column + 8 * piece < columns;
    const uint8_t *source =
        (const uint8_t *)matrix + (column_real ? 2 * (int64_t)(column + 8 * piece) : 0);
    const int lines = column_real ? lines_left - first_line : 0;
    to += piece / 8 * PANEL_BYTES + first_line * LINE_BYTES;
#pragma unroll
    for (int i = 0; i < P::COUNT; i++) {
        const int line = i * P::AT_ONCE + lane / P::PIECES;
        ptx_copy_16(to + line * LINE_BYTES + (piece ^ line) % 8 * 16,
                    source + (uint64_t)pieces.row[i] * stride_bytes, line < lines ? 16 : 0);
    }
}

// The warp's copies of chunk `number` have landed: makes them visible and says so.
static __device__ __forceinline__ void lines_landed(const Ring &ring, uint32_t number)
{
    ptx_proxy_fence();
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        ptx_barrier_arrive(ring.full(number % STAGES));
}

// One thread: the copy engine brings what lies dense.
template <GemmForm FORM, bool LOAD_A, bool LOAD_B>
static __device__ __forceinline__ void
engine_load(const Ring &ring, uint32_t stage, const CUtensorMap *map_a, const CUtensorMap *map_b,
            const GemmTile &tile, int term)
{
    const uint32_t full = ring.full(stage);
    ptx_barrier_arrive_expect(full, (LOAD_A ? A_BYTES : 0) + (LOAD_B ? B_BYTES : 0));
    const int first_row = tile.group_first + (FORM == GEMM_TN ? term : tile.row);
    if (LOAD_A && FORM != GEMM_TN)
        ptx_tensor_load_2d(ring.a(stage), map_a, term, first_row, full);
    if (LOAD_A && FORM == GEMM_TN) {
#pragma unroll
        for (int i = 0; i < TILE_ROWS / 64; i++)
            ptx_tensor_load_2d(ring.a(stage) + i * PANEL_BYTES, map_a, tile.row + 64 * i, first_row,
                               full);
    }
#pragma unroll
    for (int i = 0; LOAD_B && i < (FORM == GEMM_NT ? 1 : TILE_COLUMNS / 64); i++) {
        const uint32_t to = ring.b(stage) + i * PANEL_BYTES;
        const int column = tile.column + 64 * i;
        if (FORM == GEMM_NT)
            ptx_tensor_load_3d(to, map_b, term, column, tile.group, full);
        else if (FORM == GEMM_NN)
            ptx_tensor_load_3d(to, map_b, column, term, tile.group, full);
        else
            ptx_tensor_load_2d(to, map_b, column, first_row, full);
    }
}

template <GemmForm FORM, bool GATHER_A, bool GATHER_B>
static __device__ __forceinline__ void load(const GroupedGemm &args, const Ring &ring,
                                            const CUtensorMap *map_a, const CUtensorMap *map_b)
{
    typedef Variant<FORM, GATHER_A, GATHER_B> V;
    constexpr bool TN = FORM == GEMM_TN; // lines are terms, else rows of the tile
    constexpr int A_LINES = TN ? TERMS : TILE_ROWS, A_PANELS = TN ? TILE_ROWS / 64 : 1;
    constexpr int B_PANELS = TILE_COLUMNS / 64;
    if (!V::threads_copy && threadIdx.x != 0)
        return;
    const uint32_t a_stride_bytes = (uint32_t)(2 * args.a_stride);
    const uint32_t b_stride_bytes = (uint32_t)(2 * args.b_stride);
    GemmWalk walk = gemm_walk_begin();
    GemmTile tile;
    uint32_t number = 0; // of the chunk, over all tiles of this block
    while (gemm_walk_next<FORM, TILE_ROWS, TILE_COLUMNS>(args, &walk, &tile)) {
        const int a_row = tile.group_first + (TN ? 0 : tile.row);
        const int a_lines = TN ? tile.sum_length : tile.rows_left;
        uint32_t row_a = 0, row_b = 0; // of the lane's line in the next chunk
        LinePieces<A_LINES, A_PANELS> pieces_a;
        LinePieces<TERMS, B_PANELS> pieces_b;
        if (GATHER_A)
            row_a = row_of_line<A_LINES>(args.a_index, a_row, a_lines);
        if (GATHER_B)
            row_b = row_of_line<TERMS>(args.b_index, tile.group_first, tile.sum_length);
        if (GATHER_A && !TN)
            pieces_a = pieces_find<A_LINES, A_PANELS>(row_a);
        for (int term = 0; term < tile.sum_length; term += TERMS, number++) {
            const uint32_t stage = number % STAGES;
            const int left = tile.sum_length - term;
            if (GATHER_A && TN) {
                pieces_a = pieces_find<A_LINES, A_PANELS>(row_a);
                row_a = row_of_line<A_LINES>(args.a_index, a_row + term + TERMS, left - TERMS);
            }
            if (GATHER_B) {
                pieces_b = pieces_find<TERMS, B_PANELS>(row_b);
                row_b =
                    row_of_line<TERMS>(args.b_index, tile.group_first + term + TERMS, left - TERMS);
            }
            ptx_barrier_wait(ring.empty(stage), parity_of(number) ^ 1);
            if (V::engine_copies && threadIdx.x == 0)
                engine_load<FORM, !GATHER_A, !GATHER_B>(ring, stage, map_a, map_b, tile, term);
            if (!V::threads_copy)
                continue;
            __syncwarp();
            if (GATHER_A)
                pieces_copy(pieces_a, ring.a(stage), args.a, a_stride_bytes, TN ? tile.row : term,
                            TN ? (int)args.m : (int)args.k, TN ? left : a_lines);
            if (GATHER_B)
                pieces_copy(pieces_b, ring.b(stage), args.b, b_stride_bytes, tile.column,
                            (int)args.n, left);
            ptx_copy_commit();
            ptx_copy_wait<COPY_LAG>();
            if (number >= COPY_LAG)
                lines_landed(ring, number - COPY_LAG);
        }
    }
    ptx_copy_wait<0>();
    for (uint32_t late = V::threads_copy ? min(number, (uint32_t)COPY_LAG) : 0; late > 0; late--)
        lines_landed(ring, number - late);
}

// ---- multiply ----

// From 16 terms to the next, in shared memory.
static __host__ __device__ constexpr int step_bytes(bool mn_major)
{
    return mn_major ? STEP_TERMS * LINE_BYTES : STEP_TERMS * 2;
}

// STEPS times 16 terms of one stage.
template <int COLUMNS, bool A_MN_MAJOR, bool B_MN_MAJOR, int STEPS>
static __device__ __forceinline__ void multiply_steps(uint64_t a, uint64_t b, float *sum)
{
    constexpr int A_STEP = step_bytes(A_MN_MAJOR) / 16, B_STEP = step_bytes(B_MN_MAJOR) / 16;
    ptx_mma_fence();
#pragma unroll
    for (int step = 0; step < STEPS; step++)
        ptx_mma<COLUMNS, A_MN_MAJOR, B_MN_MAJOR>(sum, a + step * A_STEP, b + step * B_STEP);
    ptx_mma_commit();
}

// TN: after the group's last row the copy engine read on, into padding or the next group (gathered
// lines end in zeros already). The warpgroup overwrites the rest of the last step, in its panel of
// a and in b, with zeros (the other warpgroup may be writing the same zeros to b).
template <bool ZERO_A, bool ZERO_B>
static __device__ __forceinline__ void zero_lines(const Ring &ring, uint32_t stage, int half,
                                                  int first)
{
    const int lines = (STEP_TERMS - first % STEP_TERMS) % STEP_TERMS;
    constexpr int PIECES_A = ZERO_A ? 8 : 0; // of a line, 16 bytes each
    constexpr int PIECES = PIECES_A + (ZERO_B ? B_BYTES / PANEL_BYTES * 8 : 0);
    for (int i = threadIdx.x % 128; i < lines * PIECES; i += 128) {
        const int line = first + i / PIECES, piece = i % PIECES;
        const uint32_t panel = piece < PIECES_A
                                   ? ring.a(stage) + half * PANEL_BYTES
                                   : ring.b(stage) + (piece - PIECES_A) / 8 * PANEL_BYTES;
        ptx_store_zeros(panel + line * LINE_BYTES + piece % 8 * 16);
    }
    ptx_proxy_fence();
    ptx_warpgroup_wait(1 + half);
}

// sum = the product of the warpgroup's 64 rows with all terms of the tile; the chunk counter goes
// on.
template <int COLUMNS, typename V>
static __device__ __forceinline__ void multiply(const Ring &ring, int half, int terms,
                                                uint32_t *number, float *sum)
{
    constexpr bool A_MN_MAJOR = V::a_is_mn_major, B_MN_MAJOR = V::b_is_mn_major;
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
    const int rest = terms % TERMS; // in whole steps of 16: what lies behind it is zeros
    if (rest != 0) {
        const uint32_t stage = at % STAGES;
        ptx_barrier_wait(ring.full(stage), parity_of(at));
        if constexpr (V::zeros_a || V::zeros_b)
            zero_lines<V::zeros_a, V::zeros_b>(ring, stage, half, rest);
        for (int step = 0; step * STEP_TERMS < rest; step++) {
            multiply_steps<COLUMNS, A_MN_MAJOR, B_MN_MAJOR, 1>(
                operand_words<A_MN_MAJOR>(ring.a(stage) + half * PANEL_BYTES +
                                          step * step_bytes(A_MN_MAJOR)),
                operand_words<B_MN_MAJOR>(ring.b(stage) + step * step_bytes(B_MN_MAJOR)), sum);
            ptx_mma_wait<0>();
            ptx_sums_ready<COLUMNS / 2>(sum);
        }
        if (elected)
            ptx_barrier_arrive(ring.empty(stage));
        at++;
    }
    *number = at;
}

// ---- blocks ----

template <GemmForm FORM, bool GATHER_A, bool GATHER_B>
static __device__ __forceinline__ void compute(const GroupedGemm &args, const Ring &ring,
                                               uint8_t *shared)
{
    typedef Variant<FORM, GATHER_A, GATHER_B> V;
    const int warp = threadIdx.x / 32 - LOAD_THREADS / 32, half = warp / 4;
    uint8_t *buffer = shared + OUT_AT + warp * STORE_BUFFER_BYTES;
    GemmWalk walk = gemm_walk_begin();
    GemmTile tile;
    uint32_t number = 0;
    while (gemm_walk_next<FORM, TILE_ROWS, TILE_COLUMNS>(args, &walk, &tile)) {
        if (half * HALF_ROWS >= tile.rows_left) {
            ring_skip(ring, (uint32_t)((tile.sum_length + TERMS - 1) / TERMS), &number);
            continue;
        }
        if (args.accumulate)
            prefetch_c<FORM>(args, tile, warp * 16);
        float sum[TILE_COLUMNS / 2];
#pragma unroll
        for (int i = 0; i < TILE_COLUMNS / 2; i++)
            sum[i] = 0.0f;
        if (args.n - tile.column > TILE_COLUMNS / 2) {
            multiply<TILE_COLUMNS, V>(ring, half, tile.sum_length, &number, sum);
        } else {
            multiply<TILE_COLUMNS / 2, V>(ring, half, tile.sum_length, &number, sum);
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
        ring_init(ring, V::full_arrivals, MULTIPLY_WARPS);
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

// ---- host ----

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
    const int64_t all_lengths =
        args->n | args->a_stride | (transposed ? args->m | args->b_stride : args->k);
    const uintptr_t all_addresses = (uintptr_t)args->a | (uintptr_t)args->b | (uintptr_t)args->c;
    if (args->dtype != DTYPE_BF16 || all_lengths % 8 != 0 || all_addresses % 16 != 0 ||
        args->a_stride > INT32_MAX / 2 || (transposed && args->b_stride > INT32_MAX / 2) ||
        args->rows_max == 0 || (!transposed && args->k == 0))
        return false;
    return cuda_is_hopper();
}

void gemm_hopper(const GroupedGemm *args, cudaStream_t stream)
{
    const bool transposed = args->form == GEMM_TN;
    const bool gather_a = args->a_index, gather_b = transposed && args->b_index;
    // The maps of gathered operands go unused.
    const RingOperand a = {.data = args->a,
                           .type = DTYPE_BF16,
                           .columns = transposed ? args->m : args->k,
                           .rows = args->rows_max,
                           .planes = 0,
                           .stride = args->a_stride,
                           .box_rows = transposed ? TERMS : TILE_ROWS};
    RingOperand b = {.data = args->b,
                     .type = DTYPE_BF16,
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
    const CUtensorMap map_a = ring_map(&a), map_b = ring_map(&b);
    const HopperKernel kernel = kernel_of_variant[args->form][gather_a][gather_b];
    CHECK_CUDA(cudaFuncSetAttribute((const void *)kernel,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES));
    const unsigned grid = gemm_grid(args, TILE_ROWS, TILE_COLUMNS, cuda_processors());
    kernel<<<grid, THREADS, SHARED_BYTES, stream>>>(*args, map_a, map_b);
    CHECK_CUDA(cudaGetLastError());
}
