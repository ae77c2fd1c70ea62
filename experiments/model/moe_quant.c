// moe_quant.c -- operands of the experts' products become codes: rows as they stand, weights and
// gradients transposed where the sum runs the other way.
#include "experiments/model/moe_quant.h"
#include "experiments/model/moe_state.h"
#include "kernels/cast.h"
#include "kernels/expert_operand.h"
#include "kernels/quant_gemm.h"
#include "kernels/swiglu.h"

#include <stdlib.h>

struct MoeQuant {
    Recipe recipe;
    QuantRule transposed_weights;
    // Operands, planned for the most rows; without memory where the recipe leaves values alone.
    QTensor left[MOE_PRODUCTS], right[MOE_PRODUCTS];
    float *amax;      // [1] device: where one scale is made from the rows of all ranks
    char *rows;       // [expert_rows_max, hidden]: rows that an index names, side by side
    char *transposed; // CPU: weights, or both operands of a weight gradient
    uint32_t *marks;  // GPU, of casts along columns (cast.h); or NULL
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

static bool has_recipe(const MoeConfig *config)
{
    return config->recipe && (config->recipe->weights.method != QUANT_NONE);
}

// Weight gradients of all experts in one product, for which the host need not know their rows.
static bool all_at_once(const MoeSettings *s)
{
    return s->device != DEVICE_CPU;
}

int moe_quant_align(const MoeSettings *settings)
{
    int align = settings->align;
    if (!has_recipe(&settings->config) || settings->forward_only || !all_at_once(settings))
        return align;
    return (int)round_up(align, EXPERT_TERMS_ALIGN);
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

// Columns of a weight gradient's operands at most.
static int64_t terms_max(const Moe *moe)
{
    int64_t rows = ep_rows(moe->ep)->expert_rows_max;
    return all_at_once(&moe->settings) ? round_up(rows, EXPERT_TERMS_ALIGN)
                                       : padded(moe->quant, rows);
}

static QuantGemm gemm_of(const Moe *moe, MoeProduct which)
{
    const MoeConfig *c = &moe->settings.config;
    const EpRows *rows = ep_rows(moe->ep);
    const MoeQuant *quant = moe->quant;
    Shape s = shape_of(c, which);
    bool gradient = is_gradient(which), together = gradient && all_at_once(&moe->settings);
    return (QuantGemm){
        .product = quant->recipe.form,
        .dtype = c->dtype,
        .out_dtype = c->dtype,
        .bits_of_cpu = moe->settings.exact,
        .sums_over_groups = together,
        .groups = gradient && !together ? 1 : rows->experts_local,
        .group_first = rows->group_first,
        .group_rows = rows->group_rows,
        .rows_max = gradient ? s.m : rows->expert_rows_max,
        .n = s.n,
        .k = gradient ? terms_max(moe) : s.k,
        .a = {.quantised = quant->left[which].rule.method != QUANT_NONE, .q = quant->left[which]},
        .b = {.quantised = quant->right[which].rule.method != QUANT_NONE, .q = quant->right[which]},
        .threads = moe->settings.threads};
}

// groups: of scales, where a block is a whole row of a group.
static void push_operand(QTensor *q, int groups, Arena *arena)
{
    if (q->rule.method == QUANT_NONE)
        return;
    qtensor_push(q, arena, MEMORY_ACTIVATIONS);
    if (groups > 1 && q->rule.block_columns == 0)
        q->scales =
            arena_push(arena, (uint64_t)groups * qtensor_bytes(q).scales, MEMORY_ACTIVATIONS);
}

MoeQuant *moe_quant_create(const Moe *moe)
{
    const MoeSettings *s = &moe->settings;
    const MoeConfig *c = &s->config;
    if (!has_recipe(c))
        return NULL;
    MoeQuant *quant = calloc(1, sizeof(*quant));
    CHECK(quant != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for a recipe");
    *quant = with_recipe(c->recipe);
    const EpRows *rows = ep_rows(moe->ep);
    Moe with = *moe; // so that gemm_of finds the plans
    with.quant = quant;
    uint64_t workspace = 0, transposed = 0;
    int64_t marks = 0;
    for (int i = 0; i < (s->forward_only ? MOE_PRODUCT_BACK_SECOND : MOE_PRODUCTS); i++) {
        MoeProduct which = (MoeProduct)i;
        Shape shape = shape_of(c, which);
        Error error = {0};
        bool together = is_gradient(which) && all_at_once(s);
        int64_t rows_max = is_gradient(which) ? terms_max(&with) : rows->expert_rows_max;
        CHECK_RULE(plan(c, quant, which, rows->experts_local, rows_max, &error));
        quant->right[which].scale_layout =
            together ? SCALES_PLAIN : quant->right[which].scale_layout;
        push_operand(&quant->left[which], together ? rows->experts_local : 1, s->arena);
        push_operand(&quant->right[which], together ? rows->experts_local : 1, s->arena);
        QuantGemm gemm = gemm_of(&with, which);
        uint64_t bytes = quant_gemm_workspace_bytes(&gemm, s->device);
        workspace = bytes > workspace ? bytes : workspace;
        int64_t values = is_gradient(which) ? (shape.m + shape.n) * gemm.k
                                            : rows->experts_local * shape.n * shape.k;
        bytes = is_forward(which) || s->device != DEVICE_CPU
                    ? 0
                    : dtype_bytes(c->dtype, (uint64_t)values);
        transposed = bytes > transposed ? bytes : transposed;
        const QTensor *along[] = {&quant->right[which],
                                  is_gradient(which) ? &quant->left[which] : NULL};
        for (int side = 0; side < 2 && !is_forward(which) && along[side]; side++) {
            int64_t count = cast_marks(along[side], rows->experts_local, s->device);
            marks = count > marks ? count : marks;
        }
    }
    quant->workspace = arena_push(s->arena, workspace, MEMORY_SCRATCH);
    quant->transposed = arena_push(s->arena, transposed, MEMORY_SCRATCH);
    if (marks > 0)
        quant->marks = ARENA_PUSH(s->arena, uint32_t, marks, MEMORY_SCRATCH);
    uint64_t row_bytes = dtype_bytes(c->dtype, (uint64_t)c->hidden);
    quant->amax = ARENA_PUSH(s->arena, float, 1, MEMORY_SCRATCH);
    quant->rows = arena_push(s->arena, (uint64_t)rows->expert_rows_max * row_bytes, MEMORY_SCRATCH);
    return quant;
}

void moe_quant_destroy(MoeQuant *quant)
{
    free(quant);
}

// ---- values ----

// The rows of the experts side by side; row r of the result is that of expert row r.
static const char *gather(const Moe *moe, const GroupedGemm *product, Stream stream)
{
    const EpRows *rows = ep_rows(moe->ep);
    if (!product->a_index)
        return product->a;
    moe_scale_rows(&(MoeScaleRows){.hidden = product->a_stride,
                                   .rows_max = rows->expert_rows_max,
                                   .dtype = product->dtype,
                                   .x = product->a,
                                   .row_of_expert_row = rows->row_of_expert_row,
                                   .rows_total = rows->rows_total,
                                   .out = moe->quant->rows},
                   stream);
    return moe->quant->rows;
}

// ---- scales that span ranks ----

// Collective(comm). The largest on all ranks, NaN if any is: magnitudes order as their bits do.
static void largest(Comm comm, float *amax, Stream stream)
{
    comm_all_reduce(comm, amax, amax, 1, DTYPE_I32, COMM_MAX, stream);
}

static bool one_scale(const QTensor *q)
{
    return q->rule.two_level || (q->rule.block_rows == 0 && q->rule.block_columns == 0);
}

// Of the experts' rows on all ranks, and of what a reference saw before.
static void activations_amax(Moe *moe, MoeProduct which, const GroupedGemm *product,
                             const char *values, Stream stream)
{
    const MoeSettings *s = &moe->settings;
    const EpRows *rows = ep_rows(moe->ep);
    float *amax = moe->quant->amax;
    CHECK_RULE(is_forward(which) || !s->amax);
    if (s->amax)
        device_copy(amax, s->amax + which, sizeof(float), stream);
    else
        device_fill(amax, 0, sizeof(float), stream);
    rows_amax(&(RowsAmax){.rows = rows->expert_rows_max,
                          .columns = product->k,
                          .dtype = product->dtype,
                          .values = values,
                          .row_map = rows->row_of_expert_row,
                          .rows_total = rows->rows_total,
                          .amax = amax},
              stream);
    largest(s->experts_comm, amax, stream);
    largest(s->replicas_comm, amax, stream);
    if (s->amax)
        device_copy(s->amax + which, amax, sizeof(float), stream);
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

// Where the host knows the groups, only their rows; else all that there can be, each by itself.
static void cast_rows(Moe *moe, MoeProduct which, const GroupedGemm *product, const char *values,
                      Stream stream)
{
    const QTensor *q = &moe->quant->left[which];
    uint64_t bytes = dtype_bytes(product->dtype, (uint64_t)product->k);
    Cast args = {.values = values, .to = *q, .threads = moe->settings.threads};
    if (one_scale(q)) {
        activations_amax(moe, which, product, values, stream);
        args.amax = moe->quant->amax;
    }
    if (stream.device != DEVICE_CPU) {
        cast(&args, stream);
        return;
    }
    for (int group = 0; group < product->groups; group++) {
        int64_t first = product->group_first[group];
        args.values = values + (uint64_t)first * bytes;
        args.to = part_of(q, first, product->group_rows[group]);
        cast(&args, stream);
    }
}

// Weights as they are (forward), or transposed: on the CPU as values, whose casts are then fast.
static void cast_weights(Moe *moe, MoeProduct which, const void *weights, Stream stream)
{
    MoeQuant *quant = moe->quant;
    const MoeConfig *c = &moe->settings.config;
    const QTensor *q = &quant->right[which];
    Shape s = shape_of(c, which);
    int64_t experts = q->shape[0];
    Cast args = {.values = weights, .threads = moe->settings.threads};
    if (!is_forward(which) && stream.device != DEVICE_CPU) {
        args.transposed = *q;
        args.marks = quant->marks;
        cast(&args, stream);
        return;
    }
    args.to = *q;
    if (!is_forward(which)) {
        rows_transpose(&(RowsTranspose){.matrices = experts,
                                        .rows = s.k,
                                        .columns = s.n,
                                        .dtype = c->dtype,
                                        .from = weights,
                                        .to_columns = s.k,
                                        .to = quant->transposed},
                       stream);
        args.values = quant->transposed;
    }
    if (q->rule.block_rows == 0) { // one scale for all experts
        device_fill(quant->amax, 0, sizeof(float), stream);
        cast_largest(&(CastLargest){.values = args.values,
                                    .dtype = c->dtype,
                                    .count = experts * s.n * s.k,
                                    .amax = quant->amax},
                     stream);
        largest(moe->settings.experts_comm, quant->amax, stream);
        args.amax = quant->amax;
    }
    cast(&args, stream);
}

const QTensor *moe_activation_cast(const Moe *moe, MoeProduct which)
{
    bool follows = which == MOE_PRODUCT_SECOND || which == MOE_PRODUCT_BACK_FIRST;
    if (!moe->quant || !follows || moe->quant->left[which].rule.method == QUANT_NONE)
        return NULL;
    const QTensor *q = &moe->quant->left[which];
    const MoeSettings *s = &moe->settings;
    return swiglu_casts(q, s->config.inner, s->device) ? q : NULL;
}

// ---- products ----

static void rows_product(Moe *moe, MoeProduct which, const GroupedGemm *product, Stream stream)
{
    MoeQuant *quant = moe->quant;
    QuantGemm gemm = gemm_of(moe, which);
    const EpRows *rows = ep_rows(moe->ep);
    CHECK_RULE(!product->a_index || product->a_index == rows->row_of_expert_row);
    const RowsCast direct = {.values = product->a,
                             .row_map = rows->row_of_expert_row,
                             .mapped = product->a_index != NULL,
                             .rows_total = rows->rows_total,
                             .to = gemm.a.q};
    const bool at_once =
        gemm.a.quantised && stream.device != DEVICE_CPU && rows_cast_suits(&direct, stream.device);
    const char *values = at_once ? NULL : gather(moe, product, stream);
    gemm.a.values = values;
    gemm.b.values = product->b;
    gemm.c = product->c;
    gemm.workspace = quant->workspace;
    gemm.rows_expected = product->rows_expected;
    if (moe_activation_cast(moe, which))
        CHECK_RULE(at_once && product->a_index == NULL);
    else if (at_once)
        rows_cast(&direct, stream);
    else if (gemm.a.quantised)
        cast_rows(moe, which, product, values, stream);
    if (gemm.b.quantised)
        cast_weights(moe, which, product->b, stream);
    quant_gemm(&gemm, stream);
}

// One side of a weight gradient: expert rows, transposed and quantised along them.
typedef struct Side {
    const void *values;
    const int32_t *index; // the expert rows' own, or NULL
    int64_t columns;      // its width
    char *transposed;     // [columns, terms]
    QTensor q;            // planned for the most rows
} Side;

// Rows [first, first + rows) alone.
static void transpose_side(const Moe *moe, const Side *side, int64_t first, int32_t rows,
                           int64_t terms, Stream stream)
{
    const DType dtype = moe->settings.config.dtype;
    const int32_t *map = ep_rows(moe->ep)->row_of_expert_row;
    CHECK_RULE(!side->index || side->index == map);
    uint64_t skipped = side->index ? 0 : (uint64_t)(first * side->columns);
    rows_transpose(
        &(RowsTranspose){.matrices = 1,
                         .rows = rows,
                         .columns = side->columns,
                         .dtype = dtype,
                         .from = (const char *)side->values + dtype_bytes(dtype, skipped),
                         .row_map = map + first,
                         .mapped = side->index != NULL,
                         .rows_total = &rows,
                         .to_columns = terms,
                         .to = side->transposed},
        stream);
}

static QuantOperand side_of_expert(const Moe *moe, const Side *side, int64_t first, int32_t rows,
                                   Stream stream)
{
    QuantOperand operand = {.quantised = true};
    int64_t shape[] = {side->columns, padded(moe->quant, rows)};
    Error error = {0};
    transpose_side(moe, side, first, rows, shape[1], stream);
    CHECK_RULE(qtensor_plan(&side->q.rule, side->q.input, 2, shape, &operand.q, &error));
    operand.q.codes = side->q.codes;
    operand.q.scales = side->q.scales;
    operand.q.scale_layout = SCALES_PLAIN;
    cast(&(Cast){.values = side->transposed, .to = operand.q, .threads = moe->settings.threads},
         stream);
    return operand;
}

static QuantOperand side_of_all(const Moe *moe, const Side *side, Stream stream)
{
    const EpRows *rows = ep_rows(moe->ep);
    CHECK_RULE(!side->index || side->index == rows->row_of_expert_row);
    group_cast(&(GroupCast){.values = side->values,
                            .row_map = rows->row_of_expert_row,
                            .mapped = side->index != NULL,
                            .rows_total = rows->rows_total,
                            .groups = rows->experts_local,
                            .group_first = rows->group_first,
                            .group_rows = rows->group_rows,
                            .marks = moe->quant->marks,
                            .to = side->q},
               stream);
    return (QuantOperand){.quantised = true, .q = side->q};
}

// One expert after the other, as the host knows their rows.
static void gradients_of_experts(Moe *moe, MoeProduct which, const GroupedGemm *product,
                                 const Side sides[2], Stream stream)
{
    Shape s = shape_of(&moe->settings.config, which);
    uint64_t out_bytes = dtype_bytes(product->out_dtype, (uint64_t)(s.m * s.n));
    for (int group = 0; group < product->groups; group++) {
        int32_t rows = product->group_rows[group], zero = 0, all = (int32_t)s.m;
        int64_t first = product->group_first[group];
        QuantGemm gemm = gemm_of(moe, which);
        gemm.k = padded(moe->quant, rows);
        gemm.a = side_of_expert(moe, &sides[0], first, rows, stream);
        gemm.b = side_of_expert(moe, &sides[1], first, rows, stream);
        gemm.group_first = &zero;
        gemm.group_rows = &all;
        gemm.out_dtype = product->out_dtype;
        gemm.accumulate = product->accumulate;
        gemm.c = (char *)product->c + (uint64_t)group * out_bytes;
        gemm.workspace = moe->quant->workspace;
        quant_gemm(&gemm, stream);
    }
}

static void gradient_product(Moe *moe, MoeProduct which, const GroupedGemm *product, Stream stream)
{
    MoeQuant *quant = moe->quant;
    const MoeConfig *c = &moe->settings.config;
    Shape s = shape_of(c, which);
    uint64_t left_bytes = dtype_bytes(c->dtype, (uint64_t)(s.m * terms_max(moe)));
    const Side sides[2] = {
        {product->a, product->a_index, s.m, quant->transposed, quant->left[which]},
        {product->b, product->b_index, s.n, quant->transposed + left_bytes, quant->right[which]}};
    if (!all_at_once(&moe->settings)) {
        gradients_of_experts(moe, which, product, sides, stream);
        return;
    }
    QuantGemm gemm = gemm_of(moe, which);
    gemm.a = side_of_all(moe, &sides[0], stream);
    gemm.b = side_of_all(moe, &sides[1], stream);
    gemm.out_dtype = product->out_dtype;
    gemm.accumulate = product->accumulate;
    gemm.c = product->c;
    gemm.workspace = quant->workspace;
    gemm.rows_expected = product->rows_expected;
    quant_gemm(&gemm, stream);
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
