// cast.c -- the CPU's casts: which loops fit an operand, its bands shared out over threads, and the
// table of instruction sets.
//
// Limits: memory for most; the divisions of the rules that divide (a vector division each 8 to 10
// cycles) for fp8 and RANGE.
#include "kernels/cast_loop.h"

#include <omp.h>

KERNEL_DEFINE(cast, Cast)

enum {
    GROUP_MAX = 256,
    UNIFORM_ROWS = 8,
    STACKED_ROWS = 32,
    PARALLEL_MIN = 1 << 16, // elements below which threads are not woken
};

// The choices of a rule that are constants in a copy of the loops.
typedef struct CastVariant {
    QuantMethod method;
    QuantCode code;
    CodeLayout layout;
    QuantQuotient quotient;
    bool ranged; // needs minimum and maximum
} CastVariant;

// X(name, method, code, layout, quotient, ranged)
#define CAST_VARIANTS(X)                                                                           \
    X(fp8_divide, QUANT_SYMMETRIC, CODE_E4M3, CODES_BYTES, QUOTIENT_DIVIDE, 0)                     \
    X(fp8_multiply, QUANT_SYMMETRIC, CODE_E4M3, CODES_BYTES, QUOTIENT_RECIPROCAL, 0)               \
    X(fp8_input, QUANT_SYMMETRIC, CODE_E4M3, CODES_BYTES, QUOTIENT_DIVIDE_INPUT, 0)                \
    X(int8_multiply, QUANT_SYMMETRIC, CODE_INT8, CODES_BYTES, QUOTIENT_RECIPROCAL, 0)              \
    X(int8_input, QUANT_SYMMETRIC, CODE_INT8, CODES_BYTES, QUOTIENT_DIVIDE_INPUT, 0)               \
    X(int4_multiply, QUANT_SYMMETRIC, CODE_INT4, CODES_PAIRS, QUOTIENT_RECIPROCAL, 0)              \
    X(int4_divide, QUANT_SYMMETRIC, CODE_INT4, CODES_PAIRS, QUOTIENT_DIVIDE, 0)                    \
    X(int4_input, QUANT_SYMMETRIC, CODE_INT4, CODES_BYTES, QUOTIENT_DIVIDE_INPUT, 0)               \
    X(int4_inputs, QUANT_SYMMETRIC, CODE_INT4, CODES_BYTES, QUOTIENT_RECIPROCAL_INPUT, 0)          \
    X(range, QUANT_RANGE, CODE_INT4, CODES_PAIRS, 0, 1)                                            \
    X(tile, QUANT_TILE, CODE_INT4, CODES_TILED, 0, 1)                                              \
    X(zero_point, QUANT_ZERO_POINT, CODE_INT8, CODES_BYTES, 0, 1)                                  \
    X(zero_point_ct, QUANT_ZERO_POINT_CT, CODE_INT4, CODES_BYTES, 0, 1)                            \
    X(mxfp8, QUANT_MX, CODE_E4M3, CODES_BYTES, 0, 0)                                               \
    X(mxfp4, QUANT_MX, CODE_E2M1, CODES_PAIRS, 0, 0)                                               \
    X(nvfp4, QUANT_NVFP4, CODE_E2M1, CODES_PAIRS, 0, 0)                                            \
    X(nvfp4_ct, QUANT_NVFP4_CT, CODE_E2M1, CODES_PAIRS, 0, 0)

#define VARIANT_KEY(name, ...) {__VA_ARGS__},
static const CastVariant variants[] = {CAST_VARIANTS(VARIANT_KEY)};
enum { VARIANTS = COUNT_OF(variants) };

FORMAT_INLINE void band_run(const CastBand *band, const CastVariant *constant, DType input)
{
    QuantContext context = band->context;
    context.input = input;
    context.rule.method = constant->method;
    context.rule.code = constant->code;
    context.rule.code_layout = constant->layout;
    context.rule.quotient = constant->quotient;
    if (constant->layout == CODES_TILED)
        cast_tile(band, &context);
    else if (band->group)
        cast_groups(band, &context, constant->ranged);
    else
        cast_uniform(band, &context, constant->ranged);
}

#define AMAX(isa, target)                                                                          \
    target static float isa##_amax(DType input, const void *values, int64_t count)                 \
    {                                                                                              \
        return input == DTYPE_F32 ? cast_amax(DTYPE_F32, values, count)                            \
                                  : cast_amax(DTYPE_BF16, values, count);                          \
    }

// For other processors: one copy, which asks at every element what the rule is.
static bool portable_supported(void)
{
    return true;
}

static void portable_band(const CastBand *band)
{
    band_run(band, &variants[band->variant], band->context.input);
}

AMAX(portable, )
static const CastLoops portable_loops = {"portable", portable_supported, portable_band,
                                         portable_amax};

#if defined(__x86_64__)
// One instruction set: a function per variant and input type, and the row of the table.
#define VARIANT_BODY(name, target, input, ...)                                                     \
    target static void name(const CastBand *band)                                                  \
    {                                                                                              \
        band_run(band, &(const CastVariant){__VA_ARGS__}, input);                                  \
    }
#define ISA(isa, target)                                                                           \
    CAST_VARIANTS(isa##_VARIANT)                                                                   \
    static void (*const isa##_bands[VARIANTS][2])(const CastBand *) = {                            \
        CAST_VARIANTS(isa##_ENTRY)};                                                               \
    static void isa##_band(const CastBand *band)                                                   \
    {                                                                                              \
        isa##_bands[band->variant][band->context.input == DTYPE_F32](band);                        \
    }                                                                                              \
    AMAX(isa, target)                                                                              \
    static const CastLoops isa##_loops = {#isa, isa##_supported, isa##_band, isa##_amax};

#define TARGET_AVX2 __attribute__((target("avx2")))
#define TARGET_AVX512                                                                              \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")))

static bool avx2_supported(void)
{
    return __builtin_cpu_supports("avx2");
}

static bool avx512_supported(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

#define avx2_VARIANT(name, ...)                                                                    \
    VARIANT_BODY(avx2_##name##_bf16, TARGET_AVX2, DTYPE_BF16, __VA_ARGS__)                         \
    VARIANT_BODY(avx2_##name##_f32, TARGET_AVX2, DTYPE_F32, __VA_ARGS__)
#define avx2_ENTRY(name, ...) {avx2_##name##_bf16, avx2_##name##_f32},
ISA(avx2, TARGET_AVX2)
#define avx512_VARIANT(name, ...)                                                                  \
    VARIANT_BODY(avx512_##name##_bf16, TARGET_AVX512, DTYPE_BF16, __VA_ARGS__)                     \
    VARIANT_BODY(avx512_##name##_f32, TARGET_AVX512, DTYPE_F32, __VA_ARGS__)
#define avx512_ENTRY(name, ...) {avx512_##name##_bf16, avx512_##name##_f32},
ISA(avx512, TARGET_AVX512)
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

static int variant_of(const QTensor *to)
{
    const QuantRule *rule = &to->rule;
    for (int i = 0; i < VARIANTS; i++) {
        const CastVariant *v = &variants[i];
        bool quotient_matters = v->method == QUANT_SYMMETRIC;
        if (v->method == rule->method && v->code == rule->code && v->layout == to->code_layout &&
            (!quotient_matters || v->quotient == rule->quotient))
            return i;
    }
    return -1;
}

bool cast_is_fast(const QTensor *to)
{
    int group = to->rule.block_columns;
    bool power_of_two = group >= 16 && group <= GROUP_MAX && (group & (group - 1)) == 0;
    bool whole = group == 0 && to->rule.block_rows <= 1;
    bool plain = to->rule.pad_rows == 1 && to->rule.pad_columns == 1;
    bool tiled = to->code_layout == CODES_TILED && to->scale_layout == SCALES_PAIRED &&
                 to->rule.pad_rows == CAST_TILE_ROWS && to->rule.pad_columns == CAST_CHUNK;
    return variant_of(to) >= 0 && to->columns % 2 == 0 && (power_of_two || whole) &&
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
        .variant = variant_of(q),
        .rows = rows < q->rows - row ? rows : q->rows - row,
        .columns = q->columns,
        .group = q->rule.block_columns,
        .block_rows = qtensor_block_rows(q),
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
    QuantBlock block =
        quant_method(q.rule.method)->choose(&context, (QuantStatistics){amax, -amax, amax});
    qtensor_store_block(&q, 0, 0, 0, &block);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < q.rows; row += UNIFORM_ROWS) {
        CastBand band = band_of(args, 0, row, UNIFORM_ROWS);
        band.given = &block;
        loops->band(&band);
    }
}

// Transposed scales of neighbouring rows share a cache line, so a band has several such rows. Other
// layouts gain nothing by it, and reading row after row is what hardware foresees.
static int64_t rows_of_band(const QTensor *q)
{
    bool stacked = q->rule.block_columns > 0 && q->rule.block_rows == 1 &&
                   q->scale_layout == SCALES_TRANSPOSED;
    return q->code_layout == CODES_TILED ? CAST_TILE_ROWS
           : stacked                     ? STACKED_ROWS
                                         : qtensor_block_rows(q);
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
    cast_with_loops(args, cast_loops_best());
}

KernelCost cast_cost(const Cast *args)
{
    const QTensor *q = &args->to;
    double elements = (double)(q->matrices * q->rows) * (double)q->columns;
    double read = elements * (double)dtype_bytes(q->input, 1);
    bool twice = !args->amax && quantise_amaxes(q) > 0;
    return (KernelCost){.bytes = (twice ? 2 : 1) * read + (double)qtensor_bytes(q).total,
                        .flops = 3 * elements};
}
