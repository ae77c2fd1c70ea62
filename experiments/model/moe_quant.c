// moe_quant.c -- operands of the experts' products become codes: rows as they stand, weights and
// gradients transposed where the sum runs the other way.
#include "experiments/model/moe_quant.h"
#include "experiments/model/moe_state.h"
#include "kernels/cast.h"
#include "kernels/quant_gemm.h"

#include <stdlib.h>
#include <string.h>

struct MoeQuant {
    Recipe recipe;
    QuantRule transposed_weights;
    // Operands, planned for the most rows; without memory where the recipe leaves values alone.
    QTensor left[MOE_PRODUCTS], right[MOE_PRODUCTS];
    char *rows;       // [expert_rows_max, hidden]: rows that an index names, side by side
    char *transposed; // weights, or both operands of a weight gradient
    void *workspace;
};

// What a product's operands look like: left [rows, k] or [m, rows], right [experts, n, k] or
// [n, rows].
typedef struct Shape {
    int64_t m, n, k; // m: weight gradients only; k: 0 there
} Shape;

static bool is_forward(MoeProduct which)
{
    return which <= MOE_PRODUCT_SECOND;
}

static bool is_gradient(MoeProduct which) // of the weights
{
    return which >= MOE_PRODUCT_WEIGHTS_SECOND;
}

static Shape shape_of(const MoeConfig *c, MoeProduct which)
{
    const Shape shapes[MOE_PRODUCTS] = {
        [MOE_PRODUCT_FIRST] = {0, 2 * c->inner, c->hidden},
        [MOE_PRODUCT_SECOND] = {0, c->hidden, c->inner},
        [MOE_PRODUCT_BACK_SECOND] = {0, c->inner, c->hidden},
        [MOE_PRODUCT_BACK_FIRST] = {0, c->hidden, 2 * c->inner},
        [MOE_PRODUCT_WEIGHTS_SECOND] = {c->hidden, c->inner, 0},
        [MOE_PRODUCT_WEIGHTS_FIRST] = {2 * c->inner, c->hidden, 0},
    };
    return shapes[which];
}

static int64_t round_up(int64_t value, int64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

// Rows of an expert as columns of a weight gradient's operands.
static int64_t padded(const MoeQuant *quant, int64_t rows)
{
    int block = quant->recipe.activations.block_columns;
    return round_up(rows, block ? block : 1);
}

static QuantRule transposed_rule(const Recipe *recipe)
{
    QuantRule rule = recipe->weights;
    rule.amax_minimum = recipe->activations.amax_minimum;
    return rule;
}

static const QuantRule *right_rule(const MoeQuant *quant, MoeProduct which)
{
    return is_gradient(which)  ? &quant->recipe.activations
           : is_forward(which) ? &quant->recipe.weights
                               : &quant->transposed_weights;
}

// Plans both operands for `rows` rows of all experts. A plain operand has an empty plan.
static bool plan(const MoeConfig *c, MoeQuant *quant, MoeProduct which, int64_t experts,
                 int64_t rows, Error *error)
{
    Shape s = shape_of(c, which);
    bool gradient = is_gradient(which);
    const QuantRule *left = &quant->recipe.activations, *right = right_rule(quant, which);
    int64_t sum = gradient ? padded(quant, rows) : s.k;
    int64_t left_shape[] = {gradient ? s.m : rows, sum};
    int64_t right_shape[] = {experts, s.n, sum};
    quant->left[which] = quant->right[which] = (QTensor){0};
    if (left->method != QUANT_NONE &&
        !qtensor_plan(left, c->dtype, 2, left_shape, &quant->left[which], error))
        return false;
    if (right->method != QUANT_NONE &&
        !qtensor_plan(right, c->dtype, gradient ? 2 : 3, right_shape + gradient,
                      &quant->right[which], error))
        return false;
    quant->left[which].scale_layout = SCALES_PLAIN; // groups of rows are parts of it
    return true;
}

static MoeQuant with_recipe(const Recipe *recipe)
{
    return (MoeQuant){.recipe = *recipe, .transposed_weights = transposed_rule(recipe)};
}

static bool has_recipe(const MoeConfig *config)
{
    return config->recipe && (config->recipe->weights.method != QUANT_NONE);
}

bool moe_quant_check(const MoeConfig *config, bool forward_only, Error *error)
{
    if (!has_recipe(config))
        return true;
    if (!config->recipe->trains && !forward_only)
        return error_set(error, EXIT_CODE_USAGE,
                         "add --forward_only, or take fp8_row, fp8_block or mxfp8",
                         "recipe %s has no backward", config->recipe->name);
    MoeQuant quant = with_recipe(config->recipe);
    int products = forward_only ? MOE_PRODUCT_BACK_SECOND : MOE_PRODUCTS;
    for (int which = 0; which < products; which++)
        if (!plan(config, &quant, (MoeProduct)which, 1, 0, error)) {
            error_prefix(error, "recipe %s, experts of %lld x %lld", config->recipe->name,
                         (long long)config->inner, (long long)config->hidden);
            return false;
        }
    return true;
}

bool moe_quant_spans_replicas(const MoeConfig *config)
{
    const QuantRule *rule = has_recipe(config) ? &config->recipe->activations : NULL;
    return rule && rule->method != QUANT_NONE && (rule->two_level || rule->block_rows == 0);
}

// ---- buffers ----

static QuantGemm gemm_of(const Moe *moe, MoeProduct which)
{
    const MoeConfig *c = &moe->settings.config;
    const EpRows *rows = ep_rows(moe->ep);
    const MoeQuant *quant = moe->quant;
    Shape s = shape_of(c, which);
    bool gradient = is_gradient(which);
    return (QuantGemm){
        .product = quant->recipe.form,
        .dtype = c->dtype,
        .out_dtype = c->dtype,
        .groups = gradient ? 1 : rows->experts_local,
        .group_first = rows->group_first,
        .group_rows = rows->group_rows,
        .rows_max = gradient ? s.m : rows->expert_rows_max,
        .n = s.n,
        .k = gradient ? padded(quant, rows->expert_rows_max) : s.k,
        .a = {.quantised = quant->left[which].rule.method != QUANT_NONE, .q = quant->left[which]},
        .b = {.quantised = quant->right[which].rule.method != QUANT_NONE, .q = quant->right[which]},
        .threads = moe->settings.threads};
}

static void push_operand(QTensor *q, Arena *arena)
{
    if (q->rule.method != QUANT_NONE)
        qtensor_push(q, arena, MEMORY_ACTIVATIONS);
}

MoeQuant *moe_quant_create(const Moe *moe)
{
    const MoeSettings *s = &moe->settings;
    const MoeConfig *c = &s->config;
    if (!has_recipe(c))
        return NULL;
    if (s->device != DEVICE_CPU)
        kernel_missing("quant_gemm", s->device);
    MoeQuant *quant = calloc(1, sizeof(*quant));
    CHECK(quant != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for a recipe");
    *quant = with_recipe(c->recipe);
    const EpRows *rows = ep_rows(moe->ep);
    Moe with = *moe; // so that gemm_of finds the plans
    with.quant = quant;
    uint64_t workspace = 0, transposed = 0;
    for (int i = 0; i < (s->forward_only ? MOE_PRODUCT_BACK_SECOND : MOE_PRODUCTS); i++) {
        MoeProduct which = (MoeProduct)i;
        Shape shape = shape_of(c, which);
        Error error = {0};
        CHECK_RULE(plan(c, quant, which, rows->experts_local, rows->expert_rows_max, &error));
        push_operand(&quant->left[which], s->arena);
        push_operand(&quant->right[which], s->arena);
        QuantGemm gemm = gemm_of(&with, which);
        uint64_t bytes = quant_gemm_workspace_bytes(&gemm, s->device);
        workspace = bytes > workspace ? bytes : workspace;
        int64_t values = is_gradient(which) ? (shape.m + shape.n) * gemm.k
                                            : rows->experts_local * shape.n * shape.k;
        bytes = is_forward(which) ? 0 : dtype_bytes(c->dtype, (uint64_t)values);
        transposed = bytes > transposed ? bytes : transposed;
    }
    quant->workspace = arena_push(s->arena, workspace, MEMORY_SCRATCH);
    quant->transposed = arena_push(s->arena, transposed, MEMORY_SCRATCH);
    uint64_t row_bytes = dtype_bytes(c->dtype, (uint64_t)c->hidden);
    quant->rows = arena_push(s->arena, (uint64_t)rows->expert_rows_max * row_bytes, MEMORY_SCRATCH);
    return quant;
}

void moe_quant_destroy(MoeQuant *quant)
{
    free(quant);
}

// ---- values ----

// The rows of the experts side by side; row r of the result is that of expert row r.
static const char *gather(const Moe *moe, const GroupedGemm *product)
{
    if (!product->a_index)
        return product->a;
    uint64_t bytes = dtype_bytes(product->dtype, (uint64_t)product->a_stride);
    for (int group = 0; group < product->groups; group++)
        for (int64_t i = 0; i < product->group_rows[group]; i++) {
            int64_t row = product->group_first[group] + i;
            memcpy(moe->quant->rows + (uint64_t)row * bytes,
                   (const char *)product->a + (uint64_t)product->a_index[row] * bytes, bytes);
        }
    return moe->quant->rows;
}

// A matrix to be transposed: row i of `from` is row index[i] where there is an index.
typedef struct Transpose {
    const char *from;
    const int32_t *index;
    int64_t rows, columns; // of from
    int64_t rows_padded;   // columns of to: the rest are zeros
    DType dtype;
    char *to; // [columns, rows_padded]
} Transpose;

enum { TRANSPOSE_TILE = 32 };

static void transpose_tile(const Transpose *t, int64_t first_column)
{
    int64_t end = first_column + TRANSPOSE_TILE;
    uint64_t bytes = dtype_bytes(t->dtype, 1);
    end = end < t->columns ? end : t->columns;
    for (int64_t i = 0; i < t->rows; i++) {
        int64_t row = t->index ? t->index[i] : i;
        for (int64_t c = first_column; c < end; c++)
            memcpy(t->to + (uint64_t)(c * t->rows_padded + i) * bytes,
                   t->from + (uint64_t)(row * t->columns + c) * bytes, bytes);
    }
    for (int64_t c = first_column; c < end; c++)
        memset(t->to + (uint64_t)(c * t->rows_padded + t->rows) * bytes, 0,
               (uint64_t)(t->rows_padded - t->rows) * bytes);
}

static void transpose(const Transpose *t, int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t c = 0; c < t->columns; c += TRANSPOSE_TILE)
        transpose_tile(t, c);
}

// ---- scales that span ranks ----

static uint32_t larger_bits(uint32_t a, float b)
{
    uint32_t bits = format_f32_bits(b); // of a magnitude: in its order, NaN above all
    return bits > a ? bits : a;
}

// Collective(comm). The largest on all ranks; NaN if any is.
static float largest(Comm comm, float amax, Stream stream)
{
    int32_t bits = (int32_t)format_f32_bits(amax);
    comm_all_reduce(comm, &bits, &bits, 1, DTYPE_I32, COMM_MAX, stream);
    return format_f32_value((uint32_t)bits);
}

static bool one_scale(const QTensor *q)
{
    return q->rule.two_level || (q->rule.block_rows == 0 && q->rule.block_columns == 0);
}

// Of the experts' rows on all ranks, and of what a reference saw before.
static float activations_amax(Moe *moe, MoeProduct which, const GroupedGemm *product,
                              const char *values, Stream stream)
{
    uint64_t bytes = dtype_bytes(product->dtype, (uint64_t)product->k);
    uint32_t most = 0;
    for (int group = 0; group < product->groups; group++)
        most = larger_bits(
            most, cast_loops_best()->amax(product->dtype,
                                          values + (uint64_t)product->group_first[group] * bytes,
                                          product->group_rows[group] * product->k));
    const MoeSettings *s = &moe->settings;
    float amax = largest(s->experts_comm, format_f32_value(most), stream);
    amax = largest(s->replicas_comm, amax, stream);
    if (s->amax) {
        CHECK_RULE(is_forward(which));
        amax = format_f32_value(larger_bits(format_f32_bits(s->amax[which]), amax));
        s->amax[which] = amax;
    }
    return amax;
}

// ---- casts ----

// Rows [first, first + rows) of a plain layout.
static QTensor part_of(const QTensor *q, int64_t first, int64_t rows)
{
    QTensor part;
    Error error = {0};
    int64_t shape[] = {rows, q->columns};
    CHECK_RULE(qtensor_plan(&q->rule, q->input, 2, shape, &part, &error));
    int64_t scale = q->rule.block_rows ? qtensor_scale_index(q, 0, first, 0) : 0;
    part.scale_layout = q->scale_layout;
    part.codes = (char *)q->codes + qtensor_code_bit(q, 0, first, 0) / 8;
    part.scales = (char *)q->scales + dtype_bytes(q->rule.scale_dtype, (uint64_t)scale);
    part.zeros =
        q->zeros ? (char *)q->zeros + dtype_bytes(q->rule.zero_dtype, (uint64_t)scale) : NULL;
    part.tensor_scales = q->tensor_scales;
    return part;
}

static void cast_rows(Moe *moe, MoeProduct which, const GroupedGemm *product, const char *values,
                      Stream stream)
{
    const QTensor *q = &moe->quant->left[which];
    uint64_t bytes = dtype_bytes(product->dtype, (uint64_t)product->k);
    float amax = 0;
    if (one_scale(q))
        amax = activations_amax(moe, which, product, values, stream);
    for (int group = 0; group < product->groups; group++) {
        int64_t first = product->group_first[group];
        cast(&(Cast){.values = values + (uint64_t)first * bytes,
                     .amax = one_scale(q) ? &amax : NULL,
                     .to = part_of(q, first, product->group_rows[group]),
                     .threads = moe->settings.threads},
             stream);
    }
}

// Weights as they are (forward), or transposed.
static void cast_weights(Moe *moe, MoeProduct which, const void *weights, Stream stream)
{
    MoeQuant *quant = moe->quant;
    const MoeConfig *c = &moe->settings.config;
    const QTensor *q = &quant->right[which];
    Shape s = shape_of(c, which);
    int64_t experts = q->shape[0];
    uint64_t bytes = dtype_bytes(c->dtype, (uint64_t)(s.n * s.k));
    for (int64_t e = 0; e < experts && !is_forward(which); e++)
        transpose(&(Transpose){.from = (const char *)weights + (uint64_t)e * bytes,
                               .rows = s.k,
                               .columns = s.n,
                               .rows_padded = s.k,
                               .dtype = c->dtype,
                               .to = quant->transposed + (uint64_t)e * bytes},
                  moe->settings.threads);
    const void *values = is_forward(which) ? weights : quant->transposed;
    Cast args = {.values = values, .to = *q, .threads = moe->settings.threads};
    float amax = 0;
    if (q->rule.block_rows == 0) { // one scale for all experts
        amax = cast_loops_best()->amax(c->dtype, values, experts * s.n * s.k);
        amax = largest(moe->settings.experts_comm, amax, stream);
        args.amax = &amax;
    }
    cast(&args, stream);
}

// ---- products ----

static void rows_product(Moe *moe, MoeProduct which, const GroupedGemm *product, Stream stream)
{
    MoeQuant *quant = moe->quant;
    QuantGemm gemm = gemm_of(moe, which);
    const char *values = gather(moe, product);
    gemm.a.values = values;
    gemm.b.values = product->b;
    gemm.c = product->c;
    gemm.workspace = quant->workspace;
    gemm.rows_expected = product->rows_expected;
    if (gemm.a.quantised)
        cast_rows(moe, which, product, values, stream);
    if (gemm.b.quantised)
        cast_weights(moe, which, product->b, stream);
    quant_gemm(&gemm, stream);
}

// One side of a weight gradient: the rows of one expert, transposed and quantised along them.
typedef struct Side {
    const void *values;
    const int32_t *index;
    int64_t first, rows, columns; // of the expert; its width
    char *transposed;             // [columns, rows padded]
    QTensor q;                    // planned for the most rows
} Side;

static QuantOperand make_side(Moe *moe, const Side *side, Stream stream)
{
    const MoeConfig *c = &moe->settings.config;
    QuantOperand operand = {.quantised = true};
    int64_t shape[] = {side->columns, padded(moe->quant, side->rows)};
    uint64_t skipped = side->index ? 0 : (uint64_t)(side->first * side->columns);
    Error error = {0};
    transpose(&(Transpose){.from = (const char *)side->values + dtype_bytes(c->dtype, skipped),
                           .index = side->index ? side->index + side->first : NULL,
                           .rows = side->rows,
                           .columns = side->columns,
                           .rows_padded = shape[1],
                           .dtype = c->dtype,
                           .to = side->transposed},
              moe->settings.threads);
    CHECK_RULE(qtensor_plan(&side->q.rule, c->dtype, 2, shape, &operand.q, &error));
    operand.q.codes = side->q.codes;
    operand.q.scales = side->q.scales;
    operand.q.scale_layout = SCALES_PLAIN;
    cast(&(Cast){.values = side->transposed, .to = operand.q, .threads = moe->settings.threads},
         stream);
    return operand;
}

static void gradient_product(Moe *moe, MoeProduct which, const GroupedGemm *product, Stream stream)
{
    MoeQuant *quant = moe->quant;
    Shape s = shape_of(&moe->settings.config, which);
    uint64_t out_bytes = dtype_bytes(product->out_dtype, (uint64_t)(s.m * s.n));
    for (int group = 0; group < product->groups; group++) {
        int64_t rows = product->group_rows[group], first = product->group_first[group];
        uint64_t left_bytes = dtype_bytes(product->dtype, (uint64_t)(s.m * padded(quant, rows)));
        int32_t zero = 0, all = (int32_t)s.m;
        Side left = {.values = product->a,
                     .index = product->a_index,
                     .first = first,
                     .rows = rows,
                     .columns = s.m,
                     .transposed = quant->transposed,
                     .q = quant->left[which]};
        Side right = {.values = product->b,
                      .index = product->b_index,
                      .first = first,
                      .rows = rows,
                      .columns = s.n,
                      .transposed = quant->transposed + left_bytes,
                      .q = quant->right[which]};
        QuantGemm gemm = gemm_of(moe, which);
        gemm.k = padded(quant, rows);
        gemm.a = make_side(moe, &left, stream);
        gemm.b = make_side(moe, &right, stream);
        gemm.group_first = &zero;
        gemm.group_rows = &all;
        gemm.out_dtype = product->out_dtype;
        gemm.accumulate = product->accumulate;
        gemm.c = (char *)product->c + (uint64_t)group * out_bytes;
        gemm.workspace = quant->workspace;
        quant_gemm(&gemm, stream);
    }
}

void moe_product(Moe *moe, MoeProduct which, const GroupedGemm *product, Stream stream)
{
    if (!moe->quant)
        grouped_gemm(product, stream);
    else if (is_gradient(which))
        gradient_product(moe, which, product, stream);
    else
        rows_product(moe, which, product, stream);
}
