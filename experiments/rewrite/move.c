// move.c -- convert: which codes and scales can change their layout as they are, and which
// would have to be made again.
//
// A move keeps every code and every scale. What it needs is found here, before anything is written:
// scales that bf16 holds, zero points that are all zero where the new layout has none, one second
// scale where several weights become one array.
#include "experiments/rewrite/rewrite.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- second scales that are shared ----

enum { FAMILY_BYTES = 4096 };

// "model.layers.0.self_attn." + "qkv", "model.layers.0.mlp." + "gate_up"; false if in no family.
static bool family_of(const char *parameter, bool mlp, char text[FAMILY_BYTES])
{
    static const struct {
        const char *tail, *family;
        bool mlp;
    } rows[] = {
        {"q_proj.weight", "qkv", false},     {"k_proj.weight", "qkv", false},
        {"v_proj.weight", "qkv", false},     {"gate_proj.weight", "gate_up", true},
        {"up_proj.weight", "gate_up", true},
    };
    size_t length = strlen(parameter);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        size_t bytes = strlen(rows[i].tail);
        if ((rows[i].mlp && !mlp) || length <= bytes || length >= FAMILY_BYTES - 16 ||
            strcmp(parameter + length - bytes, rows[i].tail) != 0 ||
            parameter[length - bytes - 1] != '.')
            continue;
        snprintf(text, FAMILY_BYTES, "%.*s%s", (int)(length - bytes), parameter, rows[i].family);
        return true;
    }
    return false;
}

// Members of a family stand near each other in the order of names.
static int find_family(const Rewrite *rewrite, int index, bool mlp)
{
    enum { NEAR = 16 };
    char wanted[FAMILY_BYTES], text[FAMILY_BYTES];
    if (!family_of(rewrite->tensor[index].name, mlp, wanted))
        return -1;
    for (int i = index > NEAR ? index - NEAR : 0; i < index; i++)
        if (rewrite_is_quantised(&rewrite->tensor[i]) &&
            family_of(rewrite->tensor[i].name, mlp, text) && strcmp(text, wanted) == 0)
            return i;
    return index;
}

void rewrite_group_amaxes(Rewrite *rewrite, bool mlp)
{
    for (int i = 0; i < rewrite->count; i++) {
        RewriteTensor *tensor = &rewrite->tensor[i];
        QuantMethod method = tensor->stored.recipe.weights.method;
        bool shares = method == QUANT_NVFP4_CT || (method == QUANT_NVFP4 && mlp);
        if (tensor->action == REWRITE_QUANTISE && shares && tensor->tensor.rank == 2)
            tensor->amax_group = find_family(rewrite, i, mlp);
    }
}

// ---- what a move needs ----

static uint32_t bits_at(const Tensor *tensor, int64_t index)
{
    uint32_t bits;
    memcpy(&bits, (const char *)tensor->data + index * 4, sizeof(bits));
    return bits;
}

static bool fits_bf16(const Tensor *scales)
{
    bool wide = scales->dtype == DTYPE_F32, half = scales->dtype == DTYPE_F16;
    int64_t count = wide || half ? tensor_elements(scales) : 0;
    for (int64_t i = 0; i < count; i++) {
        uint16_t bits;
        memcpy(&bits, (const char *)scales->data + i * 2, sizeof(bits));
        float value = half ? f32_from_f16(bits) : 0;
        uint32_t exact = 0;
        memcpy(&exact, &value, sizeof(exact));
        if ((half ? exact : bits_at(scales, i)) & 0xFFFFu)
            return false;
    }
    return true;
}

static bool all_zero(const Tensor *tensor)
{
    const uint8_t *data = tensor->data;
    uint64_t bytes = tensor_bytes(tensor);
    for (uint64_t i = 0; i < bytes; i++)
        if (data[i] != 0)
            return false;
    return true;
}

static const Stored *source_of(const RewriteTensor *tensor, int segment)
{
    return &tensor->segment[segment].weight->stored;
}

static int64_t matrix_of(const RewriteTensor *tensor, int segment)
{
    const Stored *stored = source_of(tensor, segment);
    return stored->q.rows > 0 ? tensor->segment[segment].first / stored->q.rows : 0;
}

// The one scale over a segment's matrix; 1 where there is none. As torchao has it, or G.
static float second_scale(const RewriteTensor *tensor, int segment)
{
    const Stored *stored = source_of(tensor, segment);
    float scale = 1.0f;
    if (!stored->part[STORED_TENSOR_SCALE].present)
        return scale;
    uint32_t bits = bits_at(&stored->part[STORED_TENSOR_SCALE].tensor, matrix_of(tensor, segment));
    memcpy(&scale, &bits, sizeof(scale));
    return scale;
}

static bool one_second_scale(const RewriteTensor *tensor)
{
    const QTensor *q = &tensor->stored.q;
    int64_t row = 0;
    int first = 0;
    for (int i = 0; i < tensor->segments; i++) {
        const Stored *stored = source_of(tensor, i);
        bool starts = q->rows > 0 && row % q->rows == 0;
        first = starts ? i : first;
        float a = second_scale(tensor, i), b = second_scale(tensor, first);
        if (memcmp(&a, &b, sizeof(a)) != 0)
            return false;
        if (stored->q.rule.block_rows == 0 && q->rule.block_rows == 0 &&
            memcmp(stored->part[STORED_SCALES].tensor.data,
                   source_of(tensor, 0)->part[STORED_SCALES].tensor.data,
                   dtype_bytes(stored->q.rule.scale_dtype, 1)) != 0)
            return false;
        row += tensor->segment[i].rows;
    }
    return true;
}

// Blocks of rows must not be cut.
static bool blocks_stay_whole(const RewriteTensor *tensor)
{
    const int64_t step = tensor->stored.q.rule.block_rows;
    int64_t row = 0;
    for (int i = 0; step > 1 && i < tensor->segments; i++) {
        const RewriteSegment *segment = &tensor->segment[i];
        if (segment->first % step != 0 || row % step != 0 ||
            (segment->rows % step != 0 && i + 1 < tensor->segments))
            return false;
        row += segment->rows;
    }
    return true;
}

static bool same_family(const QuantRule *a, const QuantRule *b)
{
    bool nvfp4 = a->method == QUANT_NVFP4 || a->method == QUANT_NVFP4_CT;
    if (nvfp4)
        return b->method == QUANT_NVFP4 || b->method == QUANT_NVFP4_CT;
    // Whole zero points of 0 and offsets of 0 say the same.
    if ((a->method == QUANT_SYMMETRIC && b->method == QUANT_RANGE) ||
        (a->method == QUANT_RANGE && b->method == QUANT_SYMMETRIC))
        return a->code == CODE_INT4;
    return a->method == b->method;
}

// Why codes and scales cannot move as they are; NULL if they can.
static const char *why_not_move(const RewriteTensor *tensor)
{
    const QuantRule *to = &tensor->stored.q.rule;
    for (int i = 0; i < tensor->segments; i++) {
        const Stored *source = source_of(tensor, i);
        const QuantRule *from = &source->q.rule;
        bool tiled =
            source->q.code_layout == CODES_TILED || tensor->stored.q.code_layout == CODES_TILED;
        if (source->group_of_column)
            return "its groups are no runs of columns (actorder)";
        if (!same_family(from, to) || from->code != to->code ||
            from->block_columns != to->block_columns ||
            (from->block_rows != to->block_rows && from->block_rows != 0))
            return "the new layout has no place for these numbers";
        if (tiled && (tensor->segments != 1 || source->q.rows != tensor->stored.q.rows ||
                      source->q.matrices != tensor->stored.q.matrices))
            return "packed tiles cannot be joined or cut";
        if (source->part[STORED_ZEROS].present && !tensor->stored.part[STORED_ZEROS].present &&
            tensor->stored.q.code_layout != CODES_TILED &&
            !all_zero(&source->part[STORED_ZEROS].tensor))
            return "it has zero points, for which the new layout has no place";
    }
    if (!blocks_stay_whole(tensor))
        return "blocks of scales would be cut";
    return one_second_scale(tensor) ? NULL : "its parts have different second scales";
}

// Whether torchao's T can be had from G so that 1 / T is G again.
static bool reproduces(float g)
{
    float amax = f32_from_bf16(bf16_from_f32(2688.0f / g)), t = amax * (1.0f / 2688.0f);
    return 1.0f / t == g;
}

// ---- recipes of the new layout ----

static DType scale_dtype_for(const RewriteTensor *tensor, const Recipe *recipe, Layout layout)
{
    DType wide = DTYPES;
    bool free_dtype =
        recipe->weights.method == QUANT_SYMMETRIC || recipe->weights.method == QUANT_ZERO_POINT_CT;
    if (!free_dtype || layout == LAYOUT_DEEPSEEK)
        return wide;
    bool usual_is_bf16 = layout == LAYOUT_COMPRESSED || recipe->weights.scale_dtype == DTYPE_BF16;
    for (int i = 0; usual_is_bf16 && i < tensor->segments; i++)
        if (!fits_bf16(&source_of(tensor, i)->part[STORED_SCALES].tensor))
            wide = DTYPE_F32;
    return wide;
}

// Whether every second scale of the model is 1: then it was made with one level only.
static bool has_one_level(const Checkpoint *source)
{
    for (int64_t i = 0; i < source->count; i++) {
        const StoredPart *part = &source->weights[i].stored.part[STORED_TENSOR_SCALE];
        int64_t count =
            source->weights[i].quantised && part->present ? tensor_elements(&part->tensor) : 0;
        for (int64_t k = 0; k < count; k++)
            if (bits_at(&part->tensor, k) != 0x3F800000u)
                return false;
    }
    return true;
}

static const char *target_name(const Rewrite *rewrite, const Stored *source)
{
    Layout layout = rewrite->request->layout;
    const Scheme *row = scheme_find(source->recipe.name);
    if (layout == LAYOUT_DEEPSEEK)
        return strcmp(source->recipe.name, "deepseek_block") == 0 ? "deepseek_block" : NULL;
    if (row && scheme_has(row, layout))
        return row->recipe;
    bool centred = strcmp(source->recipe.name, "int4_weight_only") == 0 &&
                   all_zero(&source->part[STORED_ZEROS].tensor);
    if (!row || layout == LAYOUT_COMPRESSED)
        return centred ? "W4A16" : NULL;
    bool nvfp4 = strcmp(source->recipe.name, "NVFP4") == 0;
    return nvfp4 && rewrite->one_level ? "nvfp4_one_level" : row->as_torchao;
}

// What codes are made anew as, where they cannot move.
static const char *nearest_name(const Rewrite *rewrite, const Stored *source)
{
    Layout layout = rewrite->request->layout;
    const char *name = source->recipe.name;
    bool four = source->q.rule.code == CODE_INT4;
    if (layout == LAYOUT_DEEPSEEK)
        return "deepseek_block";
    if (target_name(rewrite, source))
        return target_name(rewrite, source);
    if (layout == LAYOUT_COMPRESSED)
        return four ? "W4A16_ASYM" : "FP8_BLOCK";
    if (four)
        return "int4_weight_only";
    if (strcmp(name, "deepseek_block") == 0)
        return "fp8_block";
    if (source->q.rule.method == QUANT_MX)
        return source->q.rule.code == CODE_E2M1 ? "mxfp4" : "mxfp8";
    return "int8_weight_only";
}

// The source's options go along: group size, mode, bound.
static void take_options(const Recipe *from, Recipe *to)
{
    for (int i = 0; i < RECIPE_GROUPS_MAX; i++)
        if (to->groups[i] > 0 && to->groups[i] == from->weights.block_columns)
            to->weights.block_columns = to->groups[i];
    bool centred = to->weights.code == CODE_INT4 && to->activations.method == QUANT_NONE &&
                   to->weights.method == QUANT_SYMMETRIC && from->weights.code == CODE_INT4;
    if (centred)
        to->weights.block_columns = from->weights.block_columns;
    if (strcmp(from->name, to->name) == 0)
        *to = *from;
    if (to->weights.method == QUANT_MX && from->has_modes)
        to->weights.mx_mode = to->activations.mx_mode = from->weights.mx_mode;
}

static bool plan_as(RewriteTensor *tensor, const char *name, Layout layout, bool moving,
                    Error *error)
{
    Recipe recipe;
    if (!recipe_parse(name, &recipe, error))
        return false;
    take_options(&source_of(tensor, 0)->recipe, &recipe);
    bool torchao = layout == LAYOUT_TORCHAO || layout == LAYOUT_TORCHAO_BIN;
    if (torchao && recipe.weights.scale_layout == SCALES_PLAIN &&
        (recipe.weights.method == QUANT_MX || recipe.weights.method == QUANT_NVFP4))
        recipe.weights.scale_layout = SCALES_SWIZZLED;
    StoredPlan plan = {&recipe, layout, tensor->tensor.rank, tensor->tensor.shape, DTYPES};
    if (moving)
        plan.scale_dtype = scale_dtype_for(tensor, &recipe, layout);
    return stored_plan(&plan, &tensor->stored, error);
}

static void set_move(Rewrite *rewrite, RewriteTensor *tensor)
{
    const Stored *source = source_of(tensor, 0);
    tensor->action = REWRITE_MOVE;
    bool inverts = source->q.rule.method == QUANT_NVFP4_CT &&
                   tensor->stored.q.rule.method == QUANT_NVFP4 && tensor->stored.q.rule.two_level;
    for (int i = 0; inverts && i < tensor->segments; i++)
        tensor->lossless = tensor->lossless && reproduces(second_scale(tensor, i));
    if (source->part[STORED_INPUT_SCALE].present)
        tensor->stored.input_scale = source->input_scale;
    snprintf(tensor->why, sizeof(tensor->why), "%s, %s", tensor->stored.recipe.name,
             tensor->lossless ? "lossless" : "not lossless: 1 / G as the second scale");
    rewrite->quantised++;
}

static bool choose_quantised(Rewrite *rewrite, RewriteTensor *tensor, Error *error)
{
    const RewriteRequest *request = rewrite->request;
    const Stored *source = source_of(tensor, 0);
    tensor->tensor.dtype = DTYPE_BF16;
    if (request->layout == LAYOUT_PLAIN) {
        tensor->action = REWRITE_DEQUANTISE;
        tensor->lossless = false;
        snprintf(tensor->why, sizeof(tensor->why), "%s to bf16", source->recipe.name);
        return true;
    }
    const char *name = target_name(rewrite, source), *why = NULL;
    Error cause = {0};
    if (!name)
        why = "the new layout has no class for this recipe";
    else if (!plan_as(tensor, name, request->layout, true, &cause))
        why = cause.what;
    else if (!(why = why_not_move(tensor))) {
        set_move(rewrite, tensor);
        return true;
    }
    if (!request->requantize)
        return error_set(error, EXIT_CODE_USAGE,
                         "--requantize makes its codes again (not lossless), or another --layout",
                         "%.150s (%.60s) cannot become %s as it is: %.150s", tensor->name,
                         source->recipe.name, layout_name(request->layout), why);
    const char *nearest = nearest_name(rewrite, source);
    if (!plan_as(tensor, nearest, request->layout, false, error))
        return error_prefix(error, "%.150s as %s", tensor->name, nearest);
    tensor->action = REWRITE_QUANTISE;
    tensor->lossless = false;
    snprintf(tensor->why, sizeof(tensor->why), "made again as %s", nearest);
    rewrite->quantised++;
    return true;
}

// ---- second scales of layers that are run as one ----

static bool differs_from_family(const Rewrite *rewrite, int index, int first)
{
    const RewriteTensor *a = &rewrite->tensor[index], *b = &rewrite->tensor[first];
    float x = second_scale(a, 0), y = second_scale(b, 0);
    return memcmp(&x, &y, sizeof(x)) != 0;
}

// vLLM runs q, k, v as one layer, and gate and up: it takes one second scale for all.
static void check_families(Rewrite *rewrite)
{
    int differing = 0;
    const char *example = "";
    bool *shared = calloc((size_t)rewrite->count + 1, sizeof(*shared));
    CHECK(shared, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a plan");
    for (int i = 0; i < rewrite->count; i++) {
        const RewriteTensor *tensor = &rewrite->tensor[i];
        bool nvfp4 = tensor->action == REWRITE_MOVE && tensor->tensor.rank == 2 &&
                     tensor->stored.part[STORED_TENSOR_SCALE].present;
        int first = nvfp4 ? find_family(rewrite, i, true) : -1;
        if (first < 0 || first == i || rewrite->tensor[first].action != REWRITE_MOVE ||
            !differs_from_family(rewrite, i, first))
            continue;
        shared[i] = shared[first] = true;
        example = tensor->name;
        differing++;
    }
    for (int i = 0; rewrite->request->share_scales && i < rewrite->count; i++) {
        RewriteTensor *tensor = &rewrite->tensor[i];
        int first = tensor->action == REWRITE_MOVE || tensor->action == REWRITE_QUANTISE
                        ? find_family(rewrite, i, true)
                        : -1;
        if (first < 0 || (!shared[i] && !shared[first]))
            continue;
        tensor->action = REWRITE_QUANTISE;
        tensor->lossless = false;
        tensor->amax_group = first;
        snprintf(tensor->why, sizeof(tensor->why), "%s, made again with a shared second scale",
                 tensor->stored.recipe.name);
    }
    if (differing > 0 && !rewrite->request->share_scales)
        rewrite_note(rewrite,
                     "%d weights have another second scale than those they are run "
                     "together with, such as %.100s: vLLM takes one for all; "
                     "--share_scales makes them again with one",
                     differing, example);
    free(shared);
}

bool rewrite_choose_moves(Rewrite *rewrite, Error *error)
{
    bool all_lossless = true;
    rewrite->one_level = has_one_level(&rewrite->source);
    for (int i = 0; i < rewrite->count; i++) {
        RewriteTensor *tensor = &rewrite->tensor[i];
        const Weight *weight = tensor->segments > 0 ? tensor->segment[0].weight : NULL;
        if (!weight || !weight->quantised) {
            snprintf(tensor->why, sizeof(tensor->why), "not quantised");
            continue;
        }
        if (!choose_quantised(rewrite, tensor, error))
            return false;
    }
    if (rewrite->request->layout == LAYOUT_COMPRESSED)
        check_families(rewrite);
    for (int i = 0; i < rewrite->count; i++)
        all_lossless = all_lossless && rewrite->tensor[i].lossless;
    rewrite_note(rewrite, all_lossless ? "lossless: every code and scale is kept"
                                       : "not lossless: --dry_run says which weights change");
    return true;
}
