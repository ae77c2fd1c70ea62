// cast.cu -- casts on the GPU: which kernel an operand takes, amaxes of whole tensors, and the
// plain kernel, which takes any operand of any shape.
//
// Largest magnitudes are found by atomic maxima of their bits, whose order matters to nothing, in
// the place where the scale that they decide will stand; a launch of a few threads turns one into
// the other.
#include "kernels/cast/launch.cuh"

enum { PLAIN_THREADS = 128, PLAIN_WARP_ELEMENTS = 4096, GRID_MAX = 1 << 30 };

// ---- the work as kernels see it ----

CastWork cast_work_of(const void *values, const QTensor *q)
{
    CastWork work = {};
    work.context.rule = q->rule;
    work.context.rule.code_layout = q->code_layout;
    work.context.input = q->input;
    work.context.tensor_scale = 1.0f;
    work.values = values;
    work.codes = (uint8_t *)q->codes;
    work.scales = q->scales;
    work.zeros = q->zeros;
    work.tensor_scales = q->rule.two_level ? q->tensor_scales : NULL;
    work.rows = q->rows;
    work.columns = q->columns;
    work.padded_rows = qtensor_padded_rows(q);
    work.padded_columns = qtensor_padded_columns(q);
    work.all_rows = q->matrices * work.padded_rows;
    work.block_rows = qtensor_block_rows(q);
    work.block_columns = qtensor_block_columns(q);
    work.grid = {q->scale_layout, qtensor_grid_rows(q), qtensor_grid_columns(q)};
    work.scale_stride = quant_scale_stride(work.grid);
    while ((int64_t)1 << work.group_bits < work.block_columns)
        work.group_bits++;
    return work;
}

unsigned cast_grid(int64_t blocks)
{
    CHECK(blocks <= GRID_MAX, EXIT_CODE_DATA, "cast it in parts",
          "a cast would take %lld thread blocks, %d are possible", (long long)blocks, GRID_MAX);
    return (unsigned)blocks;
}

// ---- amaxes ----

// Thread block: 8 units a thread of one matrix, or 64 single elements.
template <typename Element, bool VECTOR>
__global__ void __launch_bounds__(CAST_THREADS)
    cast_measure_kernel(const void *values, int64_t count, int64_t pieces, uint32_t *amax)
{
    enum { UNITS = 8, PIECE = CAST_THREADS * UNITS * GROUP_ELEMENTS };
    typedef Peak<false, sizeof(Element) == 2 ? DTYPE_BF16 : DTYPE_F32> P;
    const int64_t matrix = blockIdx.x / pieces, first = blockIdx.x % pieces * PIECE;
    const Element *from = (const Element *)values + matrix * count;
    Group<Element> unit[UNITS];
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        const int64_t element = first + (u * CAST_THREADS + threadIdx.x) * GROUP_ELEMENTS;
        unit_clear(&unit[u]);
        if (VECTOR && element < count)
            unit[u] = unit_load(from + element);
        if (!VECTOR && element < count)
            unit[u] = group_load<false>(from + element, count - element);
    }
    P peak = P::none();
#pragma unroll
    for (int u = 0; u < UNITS; u++)
        peak = peak.joined(P::of(unit[u]));
    peak = team_peak<P, false>(peak);
    if (threadIdx.x == 0)
        atomicMax(amax + matrix, peak.bits);
}

// Where the amaxes of quantise_amaxes are measured, and later what they become.
static float *place_of_amaxes(const QTensor *q)
{
    return q->rule.two_level ? q->tensor_scales : (float *)q->scales;
}

// Joins the largest magnitude of each matrix of `count` values with what `amax` holds.
static void measure(const void *values, DType dtype, int64_t matrices, int64_t count,
                    uint32_t *amax, Stream stream)
{
    const int64_t piece = CAST_THREADS * 8 * GROUP_ELEMENTS, pieces = (count + piece - 1) / piece;
    const bool vector = count % GROUP_ELEMENTS == 0 && cuda_aligned(values);
    typedef void (*MeasureKernel)(const void *, int64_t, int64_t, uint32_t *);
    static const MeasureKernel kernels[2][2] = {
        {cast_measure_kernel<float, false>, cast_measure_kernel<float, true>},
        {cast_measure_kernel<Bf16, false>, cast_measure_kernel<Bf16, true>},
    };
    if (matrices * pieces == 0)
        return;
    const MeasureKernel kernel = kernels[dtype == DTYPE_BF16][vector];
    kernel<<<cast_grid(matrices * pieces), CAST_THREADS, 0, cuda_stream(stream)>>>(values, count,
                                                                                   pieces, amax);
    CHECK_CUDA(cudaGetLastError());
}

const float *cast_measure(const void *values, const QTensor *q, Stream stream)
{
    const int64_t matrices = quantise_amaxes(q);
    float *amax = place_of_amaxes(q);
    device_fill(amax, 0, (uint64_t)matrices * sizeof(*amax), stream);
    measure(values, q->input, matrices, q->rows * q->columns, (uint32_t *)amax, stream);
    return amax;
}

void cast_largest_cuda(const CastLargest *args, Stream stream)
{
    measure(args->values, args->dtype, 1, args->count, (uint32_t *)args->amax, stream);
}

// Amaxes become what is stored: second scales, or the one scale with its zero point.
__global__ void cast_settle_kernel(const __grid_constant__ CastWork work, const float *amax,
                                   float *tensor_scales, int64_t count)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count)
        return;
    const float most = quant_is_nan(amax[i]) ? quant_nan() : amax[i];
    const QuantContext context = work.context;
    if (!context.rule.two_level)
        block_put(work, context.rule, {0, 0, 0, true}, cast_choose(&context, {most, -most, most}));
    else
        tensor_scales[i] = context.rule.method == QUANT_NVFP4
                               ? quant_nvfp4_tensor_scale(most)
                               : quant_nvfp4_ct_tensor_scale(context.input, most);
}

// Amaxes at every row's scale become the scales.
__global__ void __launch_bounds__(CAST_THREADS)
    cast_settle_rows_kernel(const __grid_constant__ CastWork work)
{
    const int64_t i = (int64_t)blockIdx.x * CAST_THREADS + threadIdx.x;
    if (i >= work.all_rows)
        return;
    float most = ((const float *)work.scales)[i];
    most = quant_is_nan(most) ? quant_nan() : most;
    const QuantContext context = work.context;
    block_put(work, context.rule, {i / work.rows, i % work.rows, 0, true},
              cast_choose(&context, {most, -most, most}));
}

void cast_settle_rows(const CastWork *work, Stream stream)
{
    const int64_t blocks = (work->all_rows + CAST_THREADS - 1) / CAST_THREADS;
    cast_settle_rows_kernel<<<cast_grid(blocks), CAST_THREADS, 0, cuda_stream(stream)>>>(*work);
    CHECK_CUDA(cudaGetLastError());
}

void cast_prepare(const CastWork *work, const float *amax, const QTensor *q, Stream stream)
{
    const int64_t count = quantise_amaxes(q);
    const QuantGrid grid = work->grid;
    if (grid.layout == SCALES_SWIZZLED &&
        (grid.rows % SWIZZLE_ROWS != 0 || grid.columns % SWIZZLE_COLUMNS != 0))
        device_fill(q->scales, 0, qtensor_bytes(q).scales, stream);
    if (count == 0)
        return;
    CHECK_RULE(q->rule.two_level ||
               (q->rule.scale_dtype == DTYPE_F32 && q->rule.method == QUANT_SYMMETRIC));
    if (!amax)
        amax = cast_measure(work->values, q, stream);
    cast_settle_kernel<<<cast_grid((count + WARP_LANES - 1) / WARP_LANES), WARP_LANES, 0,
                         cuda_stream(stream)>>>(*work, amax, q->tensor_scales, count);
    CHECK_CUDA(cudaGetLastError());
}

// Of scales.
static int64_t blocks_of(const CastWork *work)
{
    return work->all_rows / work->padded_rows * work->grid.rows * work->grid.columns;
}

// ---- any operand ----

// The walk of quantise.h, transposed or not: rows of what is quantised are `view_rows` to a matrix
// of the values (more matrices than one may lie under one block).
struct CastPlain {
    CastWork work;
    bool transposed;
    int64_t view_rows;
};

__device__ __forceinline__ float plain_value(const CastPlain &plain, int64_t matrix, int64_t row,
                                             int64_t column)
{
    const CastWork &work = plain.work;
    if (row >= work.rows || column >= work.columns)
        return 0.0f; // padding
    matrix = matrix * (work.rows / plain.view_rows) + row / plain.view_rows;
    row %= plain.view_rows;
    const int64_t index = plain.transposed
                              ? (matrix * work.columns + column) * plain.view_rows + row
                              : (matrix * plain.view_rows + row) * work.columns + column;
    return work.context.input == DTYPE_BF16 ? widen(((const Bf16 *)work.values)[index])
                                            : ((const float *)work.values)[index];
}

// Codes that lie together: one byte, or a word of eight nibbles.
__device__ __forceinline__ void plain_cell(const CastPlain &plain, const QuantContext &context,
                                           const QuantBlock &block, int64_t matrix, int64_t row,
                                           int64_t column)
{
    const CastWork &work = plain.work;
    const int64_t first = matrix * work.padded_rows * work.padded_columns;
    const int64_t element = first + row * work.padded_columns + column;
    uint32_t word = 0;
    const CodeLayout layout = context.rule.code_layout;
    const int codes = layout == CODES_BYTES ? 1 : layout == CODES_PAIRS ? 2 : 8;
    for (int i = 0; i < codes; i++) {
        const int64_t at = layout == CODES_TILED ? column + i % 4 * 8 + i / 4 : column + i;
        const float value = plain_value(plain, matrix, row, at);
        word |= cast_byte(&context.rule, cast_encode(&context, &block, value)) << 4 * i;
    }
    if (layout == CODES_BYTES)
        work.codes[element] = (uint8_t)word;
    else if (layout == CODES_PAIRS)
        work.codes[element / 2] = (uint8_t)word;
    else
        ((uint32_t *)
             work.codes)[first / 8 + quant_tiled_bit(work.padded_columns, row, column) / 32] = word;
}

// Team (a warp, or the thread block): one block of values after the other, each read twice.
template <bool WARP>
__global__ void __launch_bounds__(PLAIN_THREADS)
    cast_plain_kernel(const __grid_constant__ CastPlain plain, int64_t blocks)
{
    typedef Peak<true, DTYPE_F32> P;
    const CastWork &work = plain.work;
    const int thread = WARP ? lane_index() : (int)threadIdx.x;
    const int threads = WARP ? WARP_LANES : PLAIN_THREADS;
    const int64_t teams = WARP ? warp_count() : gridDim.x;
    const int64_t in_matrix = work.grid.rows * work.grid.columns;
    for (int64_t index = WARP ? warp_index() : blockIdx.x; index < blocks; index += teams) {
        const int64_t matrix = index / in_matrix;
        const int64_t block_row = index % in_matrix / work.grid.columns;
        const int64_t block_column = index % in_matrix % work.grid.columns;
        const int64_t row = block_row * work.block_rows, column = block_column * work.block_columns;
        const int64_t rows = min(work.block_rows, work.padded_rows - row);
        const int64_t columns = min(work.block_columns, work.padded_columns - column);
        QuantContext context = work.context;
        context.tensor_scale = work.tensor_scales ? work.tensor_scales[matrix] : 1.0f;
        P peak = rows * columns == 0 ? P({0.0f, 0.0f}) : P::none();
        for (int64_t i = thread; i < rows * columns && !work.given; i += threads) {
            const float value = plain_value(plain, matrix, row + i / columns, column + i % columns);
            peak = peak.joined({value, -value});
        }
        QuantBlock block;
        if (work.given) {
            block = block_of_scale(context, *(const float *)work.scales);
        } else {
            peak = team_peak<P, WARP>(peak);
            block = cast_choose(&context, peak.statistics());
            if (thread == 0)
                block_put(work, context.rule, {matrix, block_row, block_column, true}, block);
        }
        const CodeLayout layout = context.rule.code_layout;
        const int64_t cells = layout == CODES_BYTES   ? columns
                              : layout == CODES_PAIRS ? columns / 2
                                                      : columns / 8;
        for (int64_t i = thread; i < rows * cells; i += threads) {
            const int64_t cell = i % cells;
            const int64_t at = layout == CODES_BYTES   ? cell
                               : layout == CODES_PAIRS ? cell * 2
                                                       : cell / 4 * 32 + cell % 4 * 2;
            plain_cell(plain, context, block, matrix, row + i / cells, column + at);
        }
        if (!WARP)
            __syncthreads(); // before the next block's peaks take the place of this one's
    }
}

void cast_plain(const CastWork *prepared, const QTensor *q, bool transposed, Stream stream)
{
    CastPlain plain = {*prepared, transposed, q->rank > 1 ? q->shape[q->rank - 2] : 1};
    CastWork *work = &plain.work;
    if (work->all_rows == 0)
        return;
    if (work->given) { // any cut will do
        work->block_rows = 1;
        work->block_columns = work->columns;
        work->grid = {SCALES_PLAIN, work->rows, 1};
    }
    const int64_t blocks = blocks_of(work);
    const bool by_warp = work->block_rows * work->block_columns <= PLAIN_WARP_ELEMENTS;
    const int64_t warps = PLAIN_THREADS / WARP_LANES;
    const int64_t wanted = by_warp ? (blocks + warps - 1) / warps : blocks;
    const unsigned grid = (unsigned)min(wanted, (int64_t)GRID_MAX);
    if (blocks == 0)
        return;
    if (by_warp)
        cast_plain_kernel<true><<<grid, PLAIN_THREADS, 0, cuda_stream(stream)>>>(plain, blocks);
    else
        cast_plain_kernel<false><<<grid, PLAIN_THREADS, 0, cuda_stream(stream)>>>(plain, blocks);
    CHECK_CUDA(cudaGetLastError());
}

// ---- which kernel ----

#define COUNT_ONE(...) +1
const CastKernels *cast_kernels_for(const QTensor *q)
{
    static const struct {
        const CastKernels (*kernels)[2];
        int variants;
    } families[] = {
        {cast_kernels_fp8, CAST_VARIANTS_FP8(COUNT_ONE)},
        {cast_kernels_fp4, CAST_VARIANTS_FP4(COUNT_ONE)},
        {cast_kernels_int8, CAST_VARIANTS_INT8(COUNT_ONE)},
        {cast_kernels_int4, CAST_VARIANTS_INT4(COUNT_ONE)},
    };
    int variant = cast_variant_of(q);
    for (size_t i = 0; variant >= 0 && i < COUNT_OF(families); i++) {
        if (variant < families[i].variants)
            return &families[i].kernels[variant][q->input == DTYPE_F32];
        variant -= families[i].variants;
    }
    return NULL;
}

static bool fits_groups(const CastWork *work, const CastKernels *kernels)
{
    const QuantRule *rule = &work->context.rule;
    const int64_t group = work->block_columns;
    const bool small = rule->method == QUANT_NVFP4 || rule->method == QUANT_NVFP4_CT;
    const bool sized = small ? group == 16
                       : rule->method == QUANT_MX
                           ? group == 32
                           : group >= 32 && group <= CAST_SPAN && (group & (group - 1)) == 0;
    const bool tiled = rule->code_layout == CODES_TILED;
    const bool padded = work->padded_rows != work->rows || work->padded_columns != work->columns;
    const bool short_groups = work->columns % group != 0;
    return kernels->groups && rule->block_columns > 0 && work->block_rows == 1 && sized &&
           work->all_rows * work->padded_columns / group < INT32_MAX &&
           (tiled ? rule->pad_rows % CODE_TILE_ROWS == 0 && rule->pad_columns % CAST_SPAN == 0 &&
                        rule->scale_dtype == DTYPE_BF16 && rule->zero_dtype == DTYPE_BF16 &&
                        work->grid.layout == SCALES_PAIRED && cuda_aligned(work->scales)
                  : !padded && (!short_groups || kernels->rows));
}

static int64_t parts(int64_t all, int64_t part)
{
    return (all + part - 1) / part;
}

void cast_launch_rows(const CastWork *work, const CastKernels *kernels, Stream stream)
{
    const int64_t blocks = parts(work->all_rows, CAST_WARPS) * parts(work->columns, CAST_REACH);
    kernels->rows<<<cast_grid(blocks), CAST_THREADS, 0, cuda_stream(stream)>>>(*work);
    CHECK_CUDA(cudaGetLastError());
}

// Whether thread blocks can take eight rows, so that scales are stored 16 bytes at a time.
static bool can_gather(const CastWork *work)
{
    const QuantRule *rule = &work->context.rule;
    const ScaleLayout layout = work->grid.layout;
    const bool swizzled = layout == SCALES_SWIZZLED && work->rows % SWIZZLE_ROWS == 0;
    const bool transposed = layout == SCALES_TRANSPOSED && work->rows % CAST_WARPS == 0 &&
                            rule->scale_dtype == DTYPE_BF16 && rule->zero_dtype == DTYPE_BF16 &&
                            work->zeros && cuda_aligned(work->zeros);
    const bool plain = layout == SCALES_PLAIN && work->all_rows % CAST_WARPS == 0;
    return (swizzled || transposed || plain) && work->columns % CAST_REACH == 0 &&
           cuda_aligned(work->scales) &&
           layout == cast_gathered(rule->method, rule->code, rule->code_layout, rule->quotient);
}

static void launch_groups(CastWork work, const CastKernels *kernels, Stream stream)
{
    CastKernel kernel = kernels->groups;
    work.count = work.all_rows * work.padded_columns;
    work.by_grid_columns = cast_divisor(work.grid.columns);
    work.by_rows = cast_divisor(work.rows);
    work.gathers = can_gather(&work);
    work.by_across = cast_divisor(work.columns / CAST_REACH);
    int64_t warps = parts(work.count, CAST_REACH);
    if (work.context.rule.code_layout == CODES_TILED) {
        work.by_grid_columns = cast_divisor(work.padded_columns / CAST_SPAN);
        work.by_rows = cast_divisor(work.padded_rows / CODE_TILE_ROWS);
        warps = parts(work.count, CODE_TILE_ROWS * CAST_SPAN);
    } else if (work.columns % work.block_columns != 0) {
        cast_launch_rows(&work, kernels, stream);
        return;
    }
    kernel<<<cast_grid(parts(warps, CAST_WARPS)), CAST_THREADS, 0, cuda_stream(stream)>>>(work);
    CHECK_CUDA(cudaGetLastError());
}

// Enough threads to hold the block, a power of two.
void cast_launch_blocks(const CastWork *args, const CastKernels *kernels, Stream stream)
{
    CastWork numbered = *args, *work = &numbered;
    const int64_t bytes =
        work->block_rows * work->block_columns * (work->context.input == DTYPE_F32 ? 4 : 2);
    int threads = WARP_LANES;
    while (threads < 1024 && (int64_t)threads * CAST_BLOCK_BYTES < bytes)
        threads *= 2;
    const int64_t blocks = blocks_of(work);
    work->count = blocks;
    work->by_grid_columns = cast_divisor(work->grid.columns);
    work->by_rows = cast_divisor(work->grid.rows);
    const bool by_warp = threads == WARP_LANES && !work->given;
    if (by_warp)
        kernels->warps<<<cast_grid((blocks + CAST_WARPS - 1) / CAST_WARPS), CAST_THREADS, 0,
                         cuda_stream(stream)>>>(*work);
    else
        kernels->blocks<<<cast_grid(blocks), threads, 0, cuda_stream(stream)>>>(*work);
    CHECK_CUDA(cudaGetLastError());
}

// Whole rows, squares that a thread block can hold, or everything under one scale.
static bool fits_blocks(const CastWork *work, const CastKernels *kernels)
{
    const QuantRule *rule = &work->context.rule;
    const bool padded = work->padded_rows != work->rows || work->padded_columns != work->columns;
    const bool row = rule->block_rows == 1 && rule->block_columns == 0;
    const bool square = rule->block_rows == CAST_TILE_SIDE && rule->block_columns == CAST_TILE_SIDE;
    return kernels->blocks && !padded && (row || square || work->given) &&
           (work->given || blocks_of(work) < INT32_MAX);
}

// Everything under one scale, as one row of blocks.
static CastWork flattened(CastWork work)
{
    work.columns *= work.rows;
    work.rows = work.padded_rows = work.all_rows = 1;
    work.padded_columns = work.columns;
    work.block_rows = 1;
    work.block_columns =
        CAST_THREADS * CAST_BLOCK_BYTES / (work.context.input == DTYPE_F32 ? 4 : 2);
    work.grid = {SCALES_PLAIN, 1, (work.columns + work.block_columns - 1) / work.block_columns};
    return work;
}

static void cast_forward(const Cast *args, Stream stream)
{
    const QTensor *q = &args->to;
    const CastKernels *kernels = cast_kernels_for(q);
    CastWork work = cast_work_of(args->values, q);
    cast_prepare(&work, args->amax, q, stream);
    if (work.all_rows == 0)
        return;
    work.given = cast_is_one_block(q);
    const bool vector = kernels && q->columns > 0 && cuda_aligned(args->values) &&
                        cuda_aligned(q->codes) &&
                        (work.given ? q->rows * q->columns : q->columns) % GROUP_ELEMENTS == 0;
    if (vector && fits_groups(&work, kernels)) {
        launch_groups(work, kernels, stream);
    } else if (vector && fits_blocks(&work, kernels)) {
        if (work.given)
            work = flattened(work);
        cast_launch_blocks(&work, kernels, stream);
    } else {
        cast_plain(&work, q, false, stream);
    }
}

void cast_cuda(const Cast *args, Stream stream)
{
    bool done = false;
    if (args->transposed.rule.method != QUANT_NONE)
        done = cast_transposed(args, stream);
    if (args->to.rule.method != QUANT_NONE && !done)
        cast_forward(args, stream);
}
