// hopper.cu -- NT products of bf16, e4m3 or int8 on Hopper's tensor cores, with scales.
//
// The pipeline of gemm/hopper.cu: a block per multiprocessor, one warp of four that loads through
// the copy engine, 2 x 4 warps that multiply 64 rows each out of a ring in shared memory. A stage
// is a line of 128 bytes of each row: 64 terms of bf16, 128 of e4m3 or int8.
//
//   one factor per row   tiles of 128 x 256; sums stay in the tensor cores' registers to the end,
//                        where each is multiplied by the factors of its row and column
//   blocks of columns    tiles of 128 x 128, so that a thread has room for two sets of sums: those
//   of
//                        the block, and the total that they are added to with their factors
//
// Every row runs through the same instructions in the same order of terms, wherever it lies.
// int8 sums are exact, which makes them the CPU's; e4m3 sums keep some 13 bits (a block's, where
// there are blocks). Limits: the tensor cores under the power cap; with blocks, the arithmetic of
// one set of four warps hides behind the multiplications of the other.
//
// Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions"; DeepSeek-V3 report, 3.3.2.
#include "kernels/quant_gemm/hopper.cuh"

#include "kernels/gemm/ring.cuh"
#include "kernels/gemm/store.cuh"

enum {
    TILE_ROWS = 128,
    HALF_ROWS = 64, // of the tile: one warpgroup's
    LOAD_WARPS = 4,
    LOAD_THREADS = 32 * LOAD_WARPS,
    MULTIPLY_WARPS = 8,
    THREADS = LOAD_THREADS + 32 * MULTIPLY_WARPS,
    LOAD_REGISTERS = 40,
    MULTIPLY_REGISTERS = 232, // 128 * 40 + 256 * 232 registers fill the multiprocessor
    STEPS = 4,                // wgmma of 32 bytes of terms in a line
};

// FORM: GEMM_NT, or GEMM_TN for sums over the columns of groups, which begin at multiples of 128.
template <QuantUnit UNIT, bool BLOCKS, bool B_PER_ROW, GemmForm FORM = GEMM_NT> struct Variant {
    static constexpr QuantUnit unit = UNIT;
    static constexpr GemmForm form = FORM;
    static constexpr bool blocks = BLOCKS, b_per_row = B_PER_ROW;
    static constexpr int columns = BLOCKS ? 128 : 256, sums = columns / 2;
    static constexpr int terms = UNIT == QUANT_UNIT_BF16 ? 64 : 128; // of a stage
    static constexpr int stages = BLOCKS ? 6 : 4;
    static constexpr int a_bytes = TILE_ROWS * LINE_BYTES, b_bytes = columns * LINE_BYTES;
    static constexpr int out_at = stages * (a_bytes + b_bytes) + RING_BARRIER_BYTES;
    static constexpr int shared_bytes = out_at + MULTIPLY_WARPS * STORE_BUFFER_BYTES;
    static_assert(shared_bytes <= 227 * 1024, "what a block of compute capability 9.0 can have");
    typedef GemmRing<stages, a_bytes, b_bytes> Ring;
};

template <QuantUnit UNIT> struct SumOf {
    typedef float type;
};
template <> struct SumOf<QUANT_UNIT_S8> {
    typedef int32_t type;
};

template <typename V> static __device__ __forceinline__ uint32_t chunks_of(const GemmTile &tile)
{
    return (uint32_t)(tile.sum_length + V::terms - 1) / V::terms; // past the end lie zeros
}

// Where the tile's terms and its rows of a begin.
template <typename V> static __device__ __forceinline__ int first_term(const GemmTile &tile)
{
    return V::form == GEMM_TN ? tile.group_first : 0;
}
template <typename V> static __device__ __forceinline__ int a_row(const GemmTile &tile)
{
    return (V::form == GEMM_TN ? 0 : tile.group_first) + tile.row;
}

// One thread: the copy engine fills stage after stage.
template <typename V>
static __device__ __forceinline__ void load(const QuantHopper &args, const typename V::Ring &ring,
                                            const CUtensorMap *map_a, const CUtensorMap *map_b)
{
    if (threadIdx.x != 0)
        return;
    GemmWalk walk = gemm_walk_begin();
    GemmTile tile;
    uint32_t number = 0;
    while (gemm_walk_next<V::form, TILE_ROWS, V::columns, true>(args.frame, &walk, &tile)) {
        const uint32_t chunks = chunks_of<V>(tile);
        for (uint32_t chunk = 0; chunk < chunks; chunk++, number++) {
            const uint32_t stage = number % V::stages, full = ring.full(stage);
            const int term = first_term<V>(tile) + (int)chunk * V::terms;
            const int matrix = V::form == GEMM_TN ? 0 : tile.group;
            ptx_barrier_wait(ring.empty(stage), (number / V::stages & 1) ^ 1);
            ptx_barrier_arrive_expect(full, V::a_bytes + V::b_bytes);
            ptx_tensor_load_2d(ring.a(stage), map_a, term, a_row<V>(tile), full);
            ptx_tensor_load_3d(ring.b(stage), map_b, term, tile.column, matrix, full);
        }
    }
}

// ---- multiply ----

// One stage. add 0: the sums begin anew.
template <QuantUnit UNIT, int COLUMNS, typename Sum>
static __device__ __forceinline__ void multiply_stage(Sum *sum, uint64_t a, uint64_t b, int add)
{
    ptx_mma_fence();
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        const uint64_t left = a + 2 * step, right = b + 2 * step; // 32 bytes on
        if constexpr (UNIT == QUANT_UNIT_BF16)
            ptx_mma<COLUMNS, 0, 0>(sum, left, right);
        else if constexpr (UNIT == QUANT_UNIT_E4M3)
            ptx_mma_e4m3<COLUMNS>(sum, left, right, step > 0 ? 1 : add);
        else
            ptx_mma_s8<COLUMNS>(sum, left, right, step > 0 ? 1 : add);
    }
    ptx_mma_commit();
}

// sum = the product of the warpgroup's 64 rows with all terms; COLUMNS of the tile.
template <typename V, int COLUMNS, typename Sum>
static __device__ __forceinline__ void multiply(const typename V::Ring &ring, int half,
                                                uint32_t chunks, uint32_t *number, Sum *sum)
{
    const bool elected = threadIdx.x % 32 == 0;
    const uint32_t first = *number, end = first + chunks;
    for (uint32_t at = first; at < end; at++) {
        const uint32_t stage = at % V::stages;
        ptx_barrier_wait(ring.full(stage), at / V::stages & 1);
        multiply_stage<V::unit, COLUMNS>(sum,
                                         operand_words<false>(ring.a(stage) + half * PANEL_BYTES),
                                         operand_words<false>(ring.b(stage)), 1);
        ptx_mma_wait<1>(); // the chunk before this one has been read
        if (elected && at != first)
            ptx_barrier_arrive(ring.empty((at - 1) % V::stages));
    }
    ptx_mma_wait<0>();
    ptx_sums_ready<COLUMNS / 2>(sum);
    if (elected && end != first)
        ptx_barrier_arrive(ring.empty((end - 1) % V::stages));
    *number = end;
}

static __device__ __forceinline__ float factor_at(const QuantFactors &f, int64_t at)
{
    return f.of ? __ldg(f.of + at) : 1.0f;
}

// Where the factors of the thread's two rows, 8 apart, and of the tile's first column lie.
struct FactorPlaces {
    int64_t a[2], b;
    bool real[2]; // the row exists
};

template <GemmForm FORM>
static __device__ __forceinline__ FactorPlaces factor_places(const QuantHopper &args,
                                                             const GemmTile &tile, int warp_row)
{
    FactorPlaces p;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = warp_row + (int)threadIdx.x % 32 / 4 + 8 * i;
        p.real[i] = row < tile.rows_left;
        const int64_t first = FORM == GEMM_TN ? tile.row : (int64_t)tile.group_first + tile.row;
        p.a[i] = (FORM == GEMM_TN ? tile.group * args.fa.matrix : 0) +
                 (first + (p.real[i] ? row : 0)) * args.fa.row;
    }
    const int64_t b_row = args.block == 0 || args.b_per_row ? tile.column : tile.column / 128;
    p.b = tile.group * args.fb.matrix + b_row * args.fb.row;
    return p;
}

// The factors of one block: of the thread's two rows, and of the columns of its sums. Set out
// before the block's product is, so that their way from memory is not waited for.
template <typename V> struct BlockFactors {
    static constexpr int columns = V::b_per_row ? V::sums / 2 : 1;
    float a[2], b[columns];
};

// Where a warp lays the factors of its columns: those of one thread's side by side, the four sets
// in different banks.
enum {
    COLUMN_SET = 32 + 4, // of 128 columns a thread has sums of 32
    COLUMN_SETS = 4 * COLUMN_SET,
};

static __device__ __forceinline__ float4 column_factors(const QuantFactors &f, int64_t at, int left)
{
    const int column = 4 * ((int)threadIdx.x % 32);
    const float4 ones = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
    return f.of && column < left ? __ldg((const float4 *)(f.of + at + column)) : ones;
}

static __device__ __forceinline__ void column_factors_lay(float *sets, float4 factors)
{
    float *to = sets + (int)threadIdx.x % 2 * 2 * COLUMN_SET + (int)threadIdx.x % 32 / 2 * 2;
    *(float2 *)to = make_float2(factors.x, factors.y);
    *(float2 *)(to + COLUMN_SET) = make_float2(factors.z, factors.w);
}

template <int COUNT>
static __device__ __forceinline__ void column_factors_take(const float *sets, float (&b)[COUNT])
{
    const float *from = sets + (int)threadIdx.x % 4 * COLUMN_SET;
#pragma unroll
    for (int i = 0; i < COUNT; i += 4)
        *(float4 *)(b + i) = *(const float4 *)(from + i);
}

// total += the sums of a block times the factors of their rows.
template <typename V, typename Sum>
static __device__ __forceinline__ void add_block(const BlockFactors<V> &f, const Sum *sum,
                                                 float *total)
{
#pragma unroll
    for (int i = 0; i < V::sums; i++) {
        const float b = f.b[V::b_per_row ? i / 4 * 2 + i % 2 : 0];
        const float x = (float)sum[i], scale = __fmul_rn(f.a[i % 4 / 2], b);
        total[i] = V::unit == QUANT_UNIT_S8 ? __fadd_rn(total[i], __fmul_rn(x, scale))
                                            : __fmaf_rn(x, scale, total[i]);
    }
}

template <typename V, typename Sum>
static __device__ __forceinline__ void
multiply_blocks(const QuantHopper &args, const typename V::Ring &ring, const GemmTile &tile,
                int warp, float *buffer, uint32_t *number, float *total)
{
    const uint32_t chunks = chunks_of<V>(tile);
    const uint32_t per_block = (uint32_t)args.block / V::terms;
    const FactorPlaces places = factor_places<V::form>(args, tile, warp * 16);
    const int half = warp / 4, columns_left = (int)args.frame.n - tile.column;
    Sum sum[V::sums];
#pragma unroll
    for (int i = 0; i < V::sums; i++)
        sum[i] = 0;
    int64_t block = first_term<V>(tile) / args.block;
    BlockFactors<V> factors;
    float4 columns = {};
    for (uint32_t chunk = 0, in_block = 0; chunk < chunks; chunk++, ++*number) {
        const uint32_t stage = *number % V::stages;
        if (in_block == 0) {
            const int64_t b_at = places.b + block * args.fb.block;
            factors.a[0] = factor_at(args.fa, places.a[0] + block * args.fa.block);
            factors.a[1] = factor_at(args.fa, places.a[1] + block * args.fa.block);
            if constexpr (V::b_per_row)
                columns = column_factors(args.fb, b_at, columns_left);
            else
                factors.b[0] = factor_at(args.fb, b_at);
        }
        ptx_barrier_wait(ring.full(stage), *number / V::stages & 1);
        multiply_stage<V::unit, V::columns>(
            sum, operand_words<false>(ring.a(stage) + half * PANEL_BYTES),
            operand_words<false>(ring.b(stage)), in_block > 0);
        const bool last = ++in_block == per_block || chunk + 1 == chunks;
        if constexpr (V::b_per_row) {
            if (last) { // of two places in turn: nobody still reads this one
                float *sets = buffer + block % 2 * COLUMN_SETS;
                column_factors_lay(sets, columns);
                __syncwarp();
                column_factors_take(sets, factors.b);
            }
        }
        ptx_mma_wait<0>();
        ptx_sums_ready<V::sums>(sum);
        if (threadIdx.x % 32 == 0)
            ptx_barrier_arrive(ring.empty(stage));
        if (!last)
            continue;
        add_block<V>(factors, sum, total);
        block++;
        in_block = 0;
    }
    if (V::b_per_row)
        __syncwarp(); // the buffer is the store's again
}

// Factors set out before a tile's first sum does: those of the thread's two rows to registers,
// those of the columns to the warp's buffer, which the store needs only later.
template <int COLUMNS, GemmForm FORM>
static __device__ __forceinline__ void factors_begin(const QuantHopper &args, const GemmTile &tile,
                                                     int warp_row, float *buffer, float (&a)[2])
{
    const FactorPlaces p = factor_places<FORM>(args, tile, warp_row);
    const int lane = (int)threadIdx.x % 32;
    const int columns = min(COLUMNS, (int)args.frame.n - tile.column);
    const float *b = args.fb.of + p.b;
    a[0] = factor_at(args.fa, p.a[0]);
    a[1] = factor_at(args.fa, p.a[1]);
    if (args.fb.of && args.fb.row == 1 && (uintptr_t)b % 16 == 0) { // 8 divides n
        for (int column = lane * 4; column < columns; column += 128)
            ptx_copy_16(ptx_shared_address(buffer + column), b + column, 16);
        ptx_copy_commit();
        return;
    }
    for (int column = lane; column < columns; column += 32)
        buffer[column] = factor_at(args.fb, p.b + column * args.fb.row);
}

// A sum under the factors of its row and its column; values are bf16's where they are rounded.
template <QuantFinish FINISH>
static __device__ __forceinline__ float finished(float sum, float fa, float fb)
{
    if (FINISH == QUANT_FINISH_TIMES)
        return __fmul_rn(sum, __fmul_rn(fa, fb));
    if (FINISH == QUANT_FINISH_ROUNDED)
        return __fmul_rn(quant_round(DTYPE_BF16, __fmul_rn(sum, fa)), quant_round(DTYPE_BF16, fb));
    return __fmul_rn(quant_round(DTYPE_BF16, sum), quant_round(DTYPE_BF16, __fmul_rn(fa, fb)));
}

// All of a thread's. The kind is a constant here: asked for at every sum, it made the code so long
// that fetching it took as long as the sums.
template <QuantFinish FINISH, int SUMS>
static __device__ __forceinline__ void finish_sums(int columns_left, const float *buffer,
                                                   const float (&a)[2], float *sum)
{
#pragma unroll
    for (int i = 0; i < SUMS; i += 4) {
        const int column = 2 * i + 2 * ((int)threadIdx.x % 4);
        if (column >= columns_left)
            break;
        const float2 b = *(const float2 *)(buffer + column);
        sum[i] = finished<FINISH>(sum[i], a[0], b.x);
        sum[i + 1] = finished<FINISH>(sum[i + 1], a[0], b.y);
        sum[i + 2] = finished<FINISH>(sum[i + 2], a[1], b.x);
        sum[i + 3] = finished<FINISH>(sum[i + 3], a[1], b.y);
    }
}

// The factors of rows and columns onto finished sums.
template <int SUMS>
static __device__ __forceinline__ void factors_apply(QuantFinish finish, int columns_left,
                                                     const float *buffer, const float (&a)[2],
                                                     float *sum)
{
    ptx_copy_wait<0>();
    __syncwarp();
    if (finish == QUANT_FINISH_TIMES)
        finish_sums<QUANT_FINISH_TIMES, SUMS>(columns_left, buffer, a, sum);
    else if (finish == QUANT_FINISH_ROUNDED)
        finish_sums<QUANT_FINISH_ROUNDED, SUMS>(columns_left, buffer, a, sum);
    else
        finish_sums<QUANT_FINISH_TENSORS, SUMS>(columns_left, buffer, a, sum);
    __syncwarp(); // the buffer is the store's again
}

template <typename V, typename Sum>
static __device__ __forceinline__ void
tile_sums(const QuantHopper &args, const typename V::Ring &ring, const GemmTile &tile, int warp,
          float *buffer, uint32_t *number, float *total)
{
    const uint32_t chunks = chunks_of<V>(tile);
    float row_factors[2] = {1.0f, 1.0f};
    if (args.finish != QUANT_FINISH_NONE)
        factors_begin<V::columns, V::form>(args, tile, warp * 16, buffer, row_factors);
    Sum sum[V::sums];
#pragma unroll
    for (int i = 0; i < V::sums; i++)
        sum[i] = 0;
    if (args.frame.n - tile.column > V::columns / 2)
        multiply<V, V::columns>(ring, warp / 4, chunks, number, sum);
    else
        multiply<V, V::columns / 2>(ring, warp / 4, chunks, number, sum);
#pragma unroll
    for (int i = 0; i < V::sums; i++)
        total[i] = (float)sum[i];
    if (args.finish != QUANT_FINISH_NONE)
        factors_apply<V::sums>(args.finish, (int)args.frame.n - tile.column, buffer, row_factors,
                               total);
}

template <typename V>
static __device__ __forceinline__ void compute(const QuantHopper &args,
                                               const typename V::Ring &ring, uint8_t *shared)
{
    typedef typename SumOf<V::unit>::type Sum;
    const int warp = threadIdx.x / 32 - LOAD_WARPS;
    uint8_t *buffer = shared + V::out_at + warp * STORE_BUFFER_BYTES;
    GemmWalk walk = gemm_walk_begin();
    GemmTile tile;
    uint32_t number = 0;
    while (gemm_walk_next<V::form, TILE_ROWS, V::columns, true>(args.frame, &walk, &tile)) {
        if (warp / 4 * HALF_ROWS >= tile.rows_left) {
            ring_skip(ring, chunks_of<V>(tile), &number);
            continue;
        }
        float total[V::sums];
        if constexpr (V::blocks) {
#pragma unroll
            for (int i = 0; i < V::sums; i++)
                total[i] = 0.0f;
            multiply_blocks<V, Sum>(args, ring, tile, warp, (float *)buffer, &number, total);
        } else {
            tile_sums<V, Sum>(args, ring, tile, warp, (float *)buffer, &number, total);
        }
        if (args.frame.out_dtype == DTYPE_BF16)
            store_tile<V::form, Bf16, V::columns>(args.frame, tile, warp * 16, buffer, total);
        else
            store_tile<V::form, float, V::columns>(args.frame, tile, warp * 16, buffer, total);
    }
}

template <typename V>
__global__ void __launch_bounds__(THREADS, 1)
    quant_hopper_kernel(const __grid_constant__ QuantHopper args,
                        const __grid_constant__ CUtensorMap map_a,
                        const __grid_constant__ CUtensorMap map_b)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) uint8_t shared[];
    const typename V::Ring ring = {ptx_shared_address(shared)};
    if (threadIdx.x == 0) {
        ring_init(ring, 1, MULTIPLY_WARPS);
        ptx_tensor_prefetch(&map_a);
        ptx_tensor_prefetch(&map_b);
    }
    __syncthreads();
    if (threadIdx.x < LOAD_THREADS) {
        ptx_registers_give<LOAD_REGISTERS>();
        load<V>(args, ring, &map_a, &map_b);
    } else {
        ptx_registers_take<MULTIPLY_REGISTERS>();
        compute<V>(args, ring, shared);
    }
#else
    __trap(); // built without sm_90a: quant_hopper_suits must have said no
#endif
}

// ---- host ----

template <typename V> static void launch(const QuantHopper *args, cudaStream_t stream)
{
    const GroupedGemm *g = &args->frame;
    const DType type = V::unit == QUANT_UNIT_BF16 ? DTYPE_BF16 : DTYPE_U8;
    const int b_matrices = V::form == GEMM_TN ? 1 : g->groups;
    const RingOperand a = {args->a, type, g->k, g->rows_max, 0, g->k, TILE_ROWS};
    const RingOperand b = {args->b, type, g->k, g->n, b_matrices, g->k, V::columns};
    const CUtensorMap map_a = ring_map(&a), map_b = ring_map(&b);
    CHECK_CUDA(cudaFuncSetAttribute((const void *)quant_hopper_kernel<V>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, V::shared_bytes));
    const unsigned grid = gemm_grid(g, TILE_ROWS, V::columns, cuda_processors());
    quant_hopper_kernel<V><<<grid, THREADS, V::shared_bytes, stream>>>(*args, map_a, map_b);
    CHECK_CUDA(cudaGetLastError());
}

static void launch_over_groups(const QuantHopper *args, cudaStream_t stream)
{
    if (args->unit == QUANT_UNIT_BF16)
        launch<Variant<QUANT_UNIT_BF16, false, false, GEMM_TN>>(args, stream);
    else if (args->block == 0)
        launch<Variant<QUANT_UNIT_E4M3, false, false, GEMM_TN>>(args, stream);
    else
        launch<Variant<QUANT_UNIT_E4M3, true, true, GEMM_TN>>(args, stream);
}

bool quant_hopper_suits(const QuantHopper *args)
{
    const GroupedGemm *g = &args->frame;
    const int64_t unit_bytes = args->unit == QUANT_UNIT_BF16 ? 2 : 1;
    const uintptr_t addresses = (uintptr_t)args->a | (uintptr_t)args->b | (uintptr_t)g->c;
    return g->k > 0 && g->k * unit_bytes % 16 == 0 && g->n % 8 == 0 && addresses % 16 == 0 &&
           (args->unit != QUANT_UNIT_S8 || g->k < 1 << 17) && cuda_is_hopper();
}

void quant_hopper(const QuantHopper *args, cudaStream_t stream)
{
    const QuantUnit unit = args->unit;
    CHECK_RULE(args->block % 128 == 0 && (args->block == 0 || unit != QUANT_UNIT_BF16));
    CHECK_RULE(args->block == 0 || args->finish == QUANT_FINISH_NONE);
    CHECK_RULE(!args->b_per_row || args->fb.of == NULL || args->fb.row == 1);
    if (args->frame.form == GEMM_TN)
        launch_over_groups(args, stream);
    else if (args->block == 0 && unit == QUANT_UNIT_BF16)
        launch<Variant<QUANT_UNIT_BF16, false, false>>(args, stream);
    else if (args->block == 0 && unit == QUANT_UNIT_E4M3)
        launch<Variant<QUANT_UNIT_E4M3, false, false>>(args, stream);
    else if (args->block == 0)
        launch<Variant<QUANT_UNIT_S8, false, false>>(args, stream);
    else if (unit == QUANT_UNIT_S8)
        launch<Variant<QUANT_UNIT_S8, true, true>>(args, stream);
    else if (args->b_per_row)
        launch<Variant<QUANT_UNIT_E4M3, true, true>>(args, stream);
    else
        launch<Variant<QUANT_UNIT_E4M3, true, false>>(args, stream);
}
