// cast.c -- the CPU's casts: which loops fit an operand, its bands shared out over threads, and the
// table of instruction sets.
//
// Limits: instructions, of which 32 elements take 60 (int8) to 150 (RANGE, TILE); memory where
// several threads share it.
#include "kernels/cast/isa.h"

#include <omp.h>
#include <string.h>

KERNEL_DEFINE(cast, Cast)
KERNEL_DEFINE(cast_largest, CastLargest)

enum {
    GROUP_MAX = 256,
    BAND_ROWS = 8,
    STACKED_ROWS = 32,
    PARALLEL_MIN = 1 << 16, // elements below which threads are not woken
};

#define AMAX(isa, target)                                                                          \
    target static float isa##_amax(DType input, const void *values, int64_t count)                 \
    {                                                                                              \
        const int32_t key = input == DTYPE_F32                                                     \
                                ? cast_largest_f32(false, CAST_HIGH, values, count)                \
                                : cast_largest_bf16(false, CAST_HIGH, values, count);              \
        return cast_statistics(input, false, key, 0).amax;                                         \
    }

// For other processors: one copy, which asks at every element what the rule is.
static bool portable_supported(void)
{
    return true;
}

static void portable_band(const CastBand *band)
{
    cast_band_run(band, &cast_variants[band->variant], band->context.input, false);
}

AMAX(portable, )
static const CastLoops portable_loops = {"portable", portable_supported, portable_band,
                                         portable_amax};

#if defined(__x86_64__)
#define CAST_COUNT_ONE(...) +1
// In the order of CAST_VARIANTS.
static const struct CastFamily {
    const CastBandTable *bands;
    int variants;
} cast_families[] = {
    {cast_bands_fp8, CAST_VARIANTS_FP8(CAST_COUNT_ONE)},
    {cast_bands_fp4, CAST_VARIANTS_FP4(CAST_COUNT_ONE)},
    {cast_bands_int8, CAST_VARIANTS_INT8(CAST_COUNT_ONE)},
    {cast_bands_int4, CAST_VARIANTS_INT4(CAST_COUNT_ONE)},
};

static CastBandRun band_of_family(CastIsa isa, const CastBand *band)
{
    int variant = band->variant;
    for (const struct CastFamily *family = cast_families;
         family < cast_families + COUNT_OF(cast_families); variant -= family->variants, family++)
        if (variant < family->variants)
            return family->bands[variant][isa][band->context.input == DTYPE_F32];
    CHECK_RULE(false);
    return NULL;
}

static bool avx2_supported(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool avx512_supported(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

static void avx2_band(const CastBand *band)
{
    band_of_family(CAST_AVX2, band)(band);
}

static void avx512_band(const CastBand *band)
{
    band_of_family(CAST_AVX512, band)(band);
}

AMAX(avx2, CAST_TARGET_AVX2)
AMAX(avx512, CAST_TARGET_AVX512)
static const CastLoops avx2_loops = {"avx2", avx2_supported, avx2_band, avx2_amax};
static const CastLoops avx512_loops = {"avx512", avx512_supported, avx512_band, avx512_amax};
#define X86_LOOPS &avx512_loops, &avx2_loops,
#else
#define X86_LOOPS
#endif

const CastLoops *cast_loops_row(int index)
{
    static const CastLoops *const rows[] = {X86_LOOPS & portable_loops, NULL};
    return rows[index];
}

const CastLoops *cast_loops_best(void)
{
    int index = 0;
    while (!cast_loops_row(index)->supported())
        index++;
    return cast_loops_row(index);
}

// ---- which loops fit ----

bool cast_is_fast(const QTensor *to)
{
    int group = to->rule.block_columns;
    bool power_of_two = group >= 16 && group <= GROUP_MAX && (group & (group - 1)) == 0;
    bool whole = group == 0 && to->rule.block_rows <= 1;
    bool plain = to->rule.pad_rows == 1 && to->rule.pad_columns == 1;
    bool tiled = to->code_layout == CODES_TILED && to->scale_layout == SCALES_PAIRED &&
                 to->rule.pad_rows == CAST_TILE_ROWS && to->rule.pad_columns == CAST_TILE_CHUNK;
    return cast_variant_of(to) >= 0 && to->columns % 2 == 0 && (power_of_two || whole) &&
           (plain || tiled);
}

// ---- bands ----

static bool one_block(const QTensor *q)
{
    return q->rule.block_rows == 0 && q->rule.block_columns == 0;
}

// Rows [row, row + rows) of a matrix, which are whole rows of blocks or lie under one block.
static CastBand band_of(const Cast *args, int64_t matrix, int64_t row, int64_t rows)
{
    const QTensor *q = &args->to;
    int64_t columns = qtensor_padded_columns(q), block_row = row / qtensor_block_rows(q);
    CastBand band = {
        .context = {.rule = q->rule,
                    .input = q->input,
                    .tensor_scale = q->rule.two_level ? q->tensor_scales[matrix] : 1.0f},
        .variant = cast_variant_of(q),
        .rows = rows < q->rows - row ? rows : q->rows - row,
        .columns = q->columns,
        .group = q->rule.block_columns,
        .block_rows = qtensor_block_rows(q),
        .stacked = q->scale_layout == SCALES_TRANSPOSED,
        .row_bytes = cast_value_bytes(q->input, q->columns),
        .codes = (uint8_t *)q->codes + qtensor_code_bit(q, matrix, row, 0) / 8,
        .code_bytes = q->code_layout == CODES_PAIRS ? columns / 2 : columns,
        .scales = q->scales,
        .zeros = q->zeros,
        .scale_first = qtensor_scale_index(q, matrix, block_row, 0),
        .scale_bytes = (int)dtype_bytes(q->rule.scale_dtype, 1),
        .zero_bytes = q->rule.has_zeros ? (int)dtype_bytes(q->rule.zero_dtype, 1) : 0,
        .zeros_beside = q->scale_layout == SCALES_PAIRED,
        .tile_columns = columns,
    };
    band.values = (const char *)args->values + (matrix * q->rows + row) * band.row_bytes;
    band.scale_by_row = qtensor_scale_index(q, matrix, block_row + 1, 0) - band.scale_first;
    band.scale_by_1 = qtensor_scale_index(q, matrix, block_row, 1) - band.scale_first;
    band.scale_by_4 = qtensor_scale_index(q, matrix, block_row, 4) - band.scale_first;
    return band;
}

// NaN bits are above all others, so the largest bits are the amax.
static float measure(const Cast *args, const CastLoops *loops, int64_t matrix, int threads)
{
    const QTensor *q = &args->to;
    int64_t row_bytes = cast_value_bytes(q->input, q->columns);
    const char *values = (const char *)args->values + matrix * q->rows * row_bytes;
    uint32_t most = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(max : most)
    for (int64_t row = 0; row < q->rows; row++) {
        float amax = loops->amax(q->input, values + row * row_bytes, q->columns);
        uint32_t bits = format_f32_bits(amax);
        most = bits > most ? bits : most;
    }
    return format_f32_value(most);
}

// One scale for everything: chosen here, then any rows in any order.
static void cast_whole(const Cast *args, const CastLoops *loops, float amax, int threads)
{
    QTensor q = args->to;
    QuantContext context = {.rule = q.rule, .input = q.input, .tensor_scale = 1.0f};
    QuantStatistics statistics = {amax, -amax, amax};
    QuantBlock block = quant_method(q.rule.method)->choose(&context, statistics);
    qtensor_store_block(&q, 0, 0, 0, &block);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < q.rows; row += BAND_ROWS) {
        CastBand band = band_of(args, 0, row, BAND_ROWS);
        band.given = &statistics;
        loops->band(&band);
    }
}

// A band's setting out is shared by several rows. Transposed scales of neighbouring ones share a
// cache line, too.
static int64_t rows_of_band(const QTensor *q)
{
    return q->code_layout == CODES_TILED          ? CAST_TILE_ROWS
           : qtensor_block_rows(q) > 1            ? qtensor_block_rows(q)
           : q->scale_layout == SCALES_TRANSPOSED ? STACKED_ROWS
                                                  : BAND_ROWS;
}

static void cast_bands(const Cast *args, const CastLoops *loops, int threads)
{
    const QTensor *q = &args->to;
    int64_t rows = rows_of_band(q);
    int64_t bands = (qtensor_padded_rows(q) + rows - 1) / rows;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < q->matrices * bands; i++) {
        CastBand band = band_of(args, i / bands, i % bands * rows, rows);
        loops->band(&band);
    }
}

void cast_with_loops(const Cast *args, const CastLoops *loops)
{
    QTensor q = args->to;
    int threads = args->threads > 0 ? args->threads : omp_get_max_threads();
    if (!loops || !cast_is_fast(&q)) {
        quantise(args->values, args->amax, &q);
        return;
    }
    if (q.matrices * q.rows * q.columns < PARALLEL_MIN)
        threads = 1;
    qtensor_clear_padding(&q);
    float whole = args->amax && one_block(&q) ? args->amax[0] : 0;
    if (!args->amax && one_block(&q))
        whole = measure(args, loops, 0, threads);
    for (int64_t i = 0; i < qtensor_tensor_scales(&q); i++)
        q.tensor_scales[i] = args->amax ? args->amax[i] : measure(args, loops, i, threads);
    quantise_tensor_scales(q.tensor_scales, &q);
    if (one_block(&q))
        cast_whole(args, loops, whole, threads);
    else
        cast_bands(args, loops, threads);
}

void cast_cpu(const Cast *args, Stream stream)
{
    (void)stream;
    QTensor transposed = args->transposed;
    if (args->to.rule.method != QUANT_NONE)
        cast_with_loops(args, cast_loops_best());
    if (transposed.rule.method != QUANT_NONE)
        quantise_transposed(args->values, args->amax, &transposed);
}

// Loops read values by twos; the last of an odd count stands twice for them.
static float last_of_odd(const CastLoops *loops, const CastLargest *args)
{
    char twice[2 * sizeof(float)];
    size_t bytes = (size_t)cast_value_bytes(args->dtype, 1);
    const char *last = (const char *)args->values + cast_value_bytes(args->dtype, args->count - 1);
    memcpy(twice, last, bytes);
    memcpy(twice + bytes, last, bytes);
    return loops->amax(args->dtype, twice, 2);
}

void cast_largest_cpu(const CastLargest *args, Stream stream)
{
    (void)stream;
    enum { PIECE = 1 << 16 };
    const CastLoops *loops = cast_loops_best();
    const int64_t count = args->count / 2 * 2;
    uint32_t most = format_f32_bits(*args->amax);
    uint32_t last = count < args->count ? format_f32_bits(last_of_odd(loops, args)) : 0;
#pragma omp parallel for schedule(static) reduction(max : most)
    for (int64_t first = 0; first < count; first += PIECE) {
        const char *piece = (const char *)args->values + cast_value_bytes(args->dtype, first);
        int64_t left = count - first;
        uint32_t bits =
            format_f32_bits(loops->amax(args->dtype, piece, left < PIECE ? left : PIECE));
        most = bits > most ? bits : most;
    }
    *args->amax = format_f32_value(last > most ? last : most);
}

KernelCost cast_largest_cost(const CastLargest *args)
{
    return (KernelCost){.bytes = (double)cast_value_bytes(args->dtype, args->count) + 4,
                        .flops = (double)args->count};
}

int64_t cast_marks(const QTensor *transposed, int64_t owners, DeviceKind device)
{
    bool cuda = device == DEVICE_CUDA && cast_marks_cuda;
    return cuda ? cast_marks_cuda(transposed, owners) : 0;
}

// Whether scales are known only when the whole tensor, or whole columns of it, were read.
static bool reads_twice(const QTensor *q, const float *amax, bool transposed)
{
    bool known = amax && quantise_amaxes(q) > 0;
    return !known && (quantise_amaxes(q) > 0 || (transposed && q->rule.block_columns == 0));
}

KernelCost cast_cost(const Cast *args)
{
    KernelCost cost = {0};
    bool twice = false;
    const bool in_strips = args->marks && args->to.rule.method == QUANT_NONE;
    for (int transposed = 0; transposed < 2; transposed++) {
        const QTensor *q = transposed ? &args->transposed : &args->to;
        if (q->rule.method == QUANT_NONE)
            continue;
        double elements = (double)(q->matrices * q->rows) * (double)q->columns;
        double read = elements * (double)dtype_bytes(q->input, 1);
        bool again = reads_twice(q, args->amax, transposed) && !twice && !(transposed && in_strips);
        cost.bytes += (double)qtensor_bytes(q).total + (again ? read : 0);
        cost.bytes += cost.flops == 0 ? read : 0;
        cost.flops += 3 * elements;
        twice = twice || again;
    }
    return cost;
}
