// torchao.c -- torchao's own descriptions, as templates: one row per recipe.
//
// In a template ' stands for ", and $ and a letter for what depends on recipe or shape: $B the
// block_size, $S the shape, $L the activations' lower bound, $G the group, $M the mode. Texts of
// the metadata have Python's separators. Sources: torchao 0.18, core/config.py and
// prototype/safetensors/safetensors_utils.py.
#include "quant/torchao.h"

#include "quant/message.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DTYPE_TEXT(name)       "{'_type': 'torch.dtype', '_data': '" name "'}"
#define ENUM_TEXT(type, value) "{'_type': '" type "', '_data': '" value "'}"
#define AUTO                   ENUM_TEXT("KernelPreference", "AUTO")
#define BFLOAT16               DTYPE_TEXT("bfloat16")

// ---- metadata: attributes of the tensor ----
#define FLOAT8_MM(fast)                                                                            \
    "{'_type': 'Float8MMConfig', '_data': {'emulate': false, 'use_fast_accum': " fast              \
    ", 'pad_inner_dim': false}}"
#define FLOAT8_ACTIVATIONS(granularity)                                                            \
    "{'_type': 'QuantizeTensorToFloat8Kwargs', '_data': {'float8_dtype': " DTYPE_TEXT(             \
        "float8_e4m3fn") ", 'granularity': " granularity                                           \
                         ", 'mm_config': null, 'hp_value_lb': $L, 'hp_value_ub': null, "           \
                         "'kernel_preference': " AUTO "}}"
#define FLOAT8_TENSOR(mm, activations)                                                             \
    "{'_type': 'Float8Tensor', '_data': {'block_size': $B, 'mm_config': " mm                       \
    ", 'act_quant_kwargs': " activations ", 'kernel_preference': " AUTO ", 'dtype': " BFLOAT16     \
    "}, '_tensor_data_names': ['qdata', 'scale']}"
#define INT8_TENSOR(activations)                                                                   \
    "{'_type': 'Int8Tensor', '_data': {'act_quant_kwargs': " activations                           \
    ", 'reduce_range': false, 'block_size': $B, 'dtype': " BFLOAT16                                \
    "}, '_tensor_data_names': ['zero_point', 'qdata', 'scale']}"
#define INT8_ACTIVATIONS                                                                           \
    "{'_type': 'QuantizeTensorToInt8Kwargs', '_data': {'granularity': {'_type': 'PerRow', "        \
    "'_data': {'dim': -1}}, 'mapping_type': " ENUM_TEXT("MappingType",                             \
                                                        "SYMMETRIC") ", 'reduce_range': false}}"
#define INT4_TENSOR(activations)                                                                   \
    "{'_type': 'Int4Tensor', '_data': {'activation_dtype': " DTYPE_TEXT(                           \
        activations) ", 'block_size': $B, 'shape': $S}, '_tensor_data_names': ['qdata', 'scale', " \
                     "'zero_point']}"
#define TILE_TENSOR                                                                                \
    "{'_type': 'Int4TilePackedTo4dTensor', '_data': {'block_size': $B, 'shape': $S}, "             \
    "'_tensor_data_names': ['qdata', 'scale_and_zero']}"
#define INTX_TENSOR                                                                                \
    "{'_type': 'IntxUnpackedToInt8Tensor', '_data': {'target_dtype': " DTYPE_TEXT(                 \
        "int4") ", 'block_size': $B, 'dtype': " BFLOAT16 ", 'activation_quantization': "           \
                "'int8_asym_per_token'}, '_tensor_data_names': ['qdata', 'scale', 'zero_point']}"
#define MX_TENSOR(element)                                                                         \
    "{'_type': 'MXTensor', '_data': {'elem_dtype': " DTYPE_TEXT(                                   \
        element) ", 'block_size': 32, 'orig_dtype': " BFLOAT16 ", 'kernel_preference': " AUTO      \
                 ", 'act_quant_kwargs': {'_type': 'QuantizeTensorToMXKwargs', '_data': "           \
                 "{'elem_dtype': " DTYPE_TEXT(                                                     \
                     element) ", 'block_size': 32, 'scaling_mode': "                               \
                              "{'_type': 'ScaleCalculationMode', "                                 \
                              "'_data': '$M'}, 'kernel_preference': " AUTO                         \
                              ", 'is_swizzled_scales': true}}, "                                   \
                              "'is_swizzled_scales': true}, "                                      \
                              "'_tensor_data_names': ['qdata', 'scale']}"
#define NVFP4_ACTIVATIONS(two_level)                                                               \
    "{'_type': 'QuantizeTensorToNVFP4Kwargs', '_data': {'block_size': 16, 'is_swizzled_scales': "  \
    "true, 'use_triton_kernel': false, 'use_dynamic_per_tensor_scale': " two_level "}}"
#define NVFP4_TENSOR(activations, parts)                                                           \
    "{'_type': 'NVFP4Tensor', '_data': {'is_swizzled_scales': true, 'use_triton_kernel': false, "  \
    "'act_quant_kwargs': " activations ", 'block_size': 16, 'orig_dtype': " BFLOAT16               \
    "}, '_tensor_data_names': [" parts "'qdata', 'scale']}"

// ---- config.json: what a user asked for ----
#define GRANULARITY(type, data) "{'_type': '" type "', '_version': 1, '_data': " data "}"
#define PER_ROW                 GRANULARITY("PerRow", "{'dim': -1}")
#define PER_TENSOR              GRANULARITY("PerTensor", "{}")
#define FLOAT8_CONFIG(activations, weights, fast)                                                  \
    "{'_type': 'Float8DynamicActivationFloat8WeightConfig', '_version': 2, '_data': "              \
    "{'activation_dtype': " DTYPE_TEXT(                                                            \
        "float8_e4m3fn") ", 'activation_value_lb': $L, 'activation_value_ub': null, 'alg_id': 0, " \
                         "'granularity': [" activations ", " weights                               \
                         "], 'kernel_preference': " AUTO                                           \
                         ", 'mm_config': {'_type': 'Float8MMConfig', '_version': 1, '_data': "     \
                         "{'emulate': false, 'pad_inner_dim': false, 'use_fast_accum': " fast      \
                         "}}, 'packing_format': " ENUM_TEXT(                                       \
                             "Float8PackingFormat",                                                \
                             "PLAIN") ", 'set_inductor_config': true, "                            \
                                      "'weight_dtype': " DTYPE_TEXT("float8_e4m3fn") "}}"
#define INT4_CONFIG(packing)                                                                       \
    "{'_type': 'Int4WeightOnlyConfig', '_version': 2, '_data': {'group_size': $G, "                \
    "'int4_choose_qparams_algorithm': " ENUM_TEXT(                                                 \
        "Int4ChooseQParamsAlgorithm",                                                              \
        "TINYGEMM") ", 'int4_packing_format': " packing                                            \
                    ", 'int4_tile_packed_ntile': 8, 'set_inductor_config': true}}"
#define MX_CONFIG(element)                                                                         \
    "{'_type': 'MXDynamicActivationMXWeightConfig', '_version': 1, '_data': "                      \
    "{'activation_dtype': " DTYPE_TEXT(                                                            \
        element) ", 'block_size': 32, 'kernel_preference': " AUTO                                  \
                 ", 'scaling_mode': {'_type': 'ScaleCalculationMode', '_data': '$M'}, "            \
                 "'weight_dtype': " DTYPE_TEXT(element) "}}"
#define NVFP4_CONFIG(two_level)                                                                    \
    "{'_type': 'NVFP4DynamicActivationNVFP4WeightConfig', '_version': 1, '_data': {'step': null, " \
    "'use_dynamic_per_tensor_scale': " two_level ", 'use_triton_kernel': false}}"

typedef struct TorchaoRow {
    const char *recipe, *metadata, *config;
} TorchaoRow;

static const TorchaoRow rows[] = {
    {"fp8_row",
     FLOAT8_TENSOR(FLOAT8_MM("true"),
                   FLOAT8_ACTIVATIONS("{'_type': 'PerRow', '_data': {'dim': -1}}")),
     FLOAT8_CONFIG(PER_ROW, PER_ROW, "true")},
    {"fp8_tensor",
     FLOAT8_TENSOR(FLOAT8_MM("true"), FLOAT8_ACTIVATIONS("{'_type': 'PerTensor', '_data': {}}")),
     FLOAT8_CONFIG(PER_TENSOR, PER_TENSOR, "true")},
    {"fp8_block",
     FLOAT8_TENSOR(FLOAT8_MM("false"),
                   FLOAT8_ACTIVATIONS("{'_type': 'PerBlock', '_data': {'block_size': [1, 128]}}")),
     FLOAT8_CONFIG(GRANULARITY("PerBlock", "{'block_size': [1, 128]}"),
                   GRANULARITY("PerBlock", "{'block_size': [128, 128]}"), "false")},
    {"fp8_weight_only", FLOAT8_TENSOR("null", "null"),
     "{'_type': 'Float8WeightOnlyConfig', '_version': 2, '_data': {'granularity': " PER_ROW
     ", 'set_inductor_config': true, 'weight_dtype': " DTYPE_TEXT("float8_e4m3fn") "}}"},
    {"int8_weight_only", INT8_TENSOR("null"),
     "{'_type': 'Int8WeightOnlyConfig', '_version': 2, '_data': {'granularity': " PER_ROW
     ", 'group_size': null, 'set_inductor_config': true}}"},
    {"int8_dynamic", INT8_TENSOR(INT8_ACTIVATIONS),
     "{'_type': 'Int8DynamicActivationInt8WeightConfig', '_version': 2, '_data': "
     "{'act_mapping_type': " ENUM_TEXT(
         "MappingType", "SYMMETRIC") ", 'granularity': " PER_ROW
                                     ", 'reduce_range': false, 'set_inductor_config': true, "
                                     "'weight_only_decode': false}}"},
    {"int4_weight_only", INT4_TENSOR("bfloat16"),
     INT4_CONFIG(ENUM_TEXT("Int4PackingFormat", "PLAIN"))},
    {"int4_tile", TILE_TENSOR, INT4_CONFIG("'tile_packed_to_4d'")},
    {"int8_int4", INTX_TENSOR,
     "{'_type': 'Int8DynamicActivationIntxWeightConfig', '_version': 2, '_data': "
     "{'act_mapping_type': " ENUM_TEXT(
         "MappingType",
         "ASYMMETRIC") ", 'intx_choose_qparams_algorithm': " ENUM_TEXT("IntxChooseQParamsAlgorithm",
                                                                       "AFFINE") ", "
                                                                                 "'intx_packing_"
                                                                                 "format':"
                                                                                 " " ENUM_TEXT(
                                                                                     "Int"
                                                                                     "xPa"
                                                                                     "cki"
                                                                                     "ngF"
                                                                                     "orm"
                                                                                     "at",
                                                                                     "UNP"
                                                                                     "ACK"
                                                                                     "ED_"
                                                                                     "TO_"
                                                                                     "INT"
                                                                                     "8") ", "
                                                                                          "'weight_"
                                                                                          "dtype':"
                                                                                          " " DTYPE_TEXT(
                                                                                              "int"
                                                                                              "4") ", 'weight_granularity': {'_type': 'PerGroup', '_version': 1, '_data': {'group_size': $G}}, "
                                                                                                   "'weight_mapping_type': " ENUM_TEXT(
                                                                                                       "MappingType",
                                                                                                       "SYMMETRIC") ", 'weight_scale_dtype': null}}"},
    {"mxfp8", MX_TENSOR("float8_e4m3fn"), MX_CONFIG("float8_e4m3fn")},
    {"mxfp4", MX_TENSOR("float4_e2m1fn_x2"), MX_CONFIG("float4_e2m1fn_x2")},
    {"nvfp4", NVFP4_TENSOR(NVFP4_ACTIVATIONS("true"), "'per_tensor_scale', "),
     NVFP4_CONFIG("true")},
    {"nvfp4_one_level", NVFP4_TENSOR(NVFP4_ACTIVATIONS("false"), ""), NVFP4_CONFIG("false")},
    {"nvfp4_weight_only", NVFP4_TENSOR("null", "'per_tensor_scale', "),
     "{'_type': 'NVFP4WeightOnlyConfig', '_version': 1, '_data': "
     "{'use_dynamic_per_tensor_scale': true}}"},
    {"fp8_int4", INT4_TENSOR("float8_e4m3fn"),
     "{'_type': 'Float8DynamicActivationInt4WeightConfig', '_version': 1, '_data': "
     "{'int4_packing_format': " ENUM_TEXT("Int4PackingFormat", "PLAIN") "}}"},
};

static const TorchaoRow *row_of(const char *recipe)
{
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        if (strcmp(rows[i].recipe, recipe) == 0)
            return &rows[i];
    return NULL;
}

// ---- filling templates ----

static int64_t block_extent(const Stored *stored, int dim)
{
    const QTensor *q = &stored->q;
    int from_end = q->rank - 1 - dim;
    if (q->rule.block_rows == 0)
        return q->shape[dim];
    if (from_end == 0)
        return q->rule.block_columns ? q->rule.block_columns : q->shape[dim];
    return from_end == 1 ? q->rule.block_rows : 1;
}

// The shortest digits that read back to the same float.
static void print_bound(FILE *out, float bound)
{
    char text[32];
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, (double)bound);
        if (strtof(text, NULL) == bound)
            break;
    }
    fputs(bound > 0 ? text : "null", out);
}

static void print_mode(FILE *out, MxMode mode)
{
    for (const char *c = quant_mode_name(mode); *c; c++)
        fputc(*c - 'a' + 'A', out);
}

// stored: NULL where the template does not depend on a shape.
static char *fill(const char *template, const Recipe *recipe, const Stored *stored)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    CHECK(out, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a text");
    for (const char *c = template; *c; c++) {
        if (*c != '$') {
            fputc(*c == '\'' ? '"' : *c, out);
            continue;
        }
        c++;
        if (*c == 'L')
            print_bound(out, recipe->activations.amax_minimum);
        if (*c == 'G')
            fprintf(out, "%d", recipe->weights.block_columns);
        if (*c == 'M')
            print_mode(out, recipe->weights.mx_mode);
        for (int dim = 0; (*c == 'B' || *c == 'S') && dim < stored->q.rank; dim++)
            fprintf(out, "%s%lld%s", dim ? ", " : "[",
                    (long long)(*c == 'B' ? block_extent(stored, dim) : stored->q.shape[dim]),
                    dim == stored->q.rank - 1 ? "]" : "");
    }
    CHECK(fclose(out) == 0, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a text");
    return text;
}

char *torchao_metadata(const Stored *stored)
{
    const TorchaoRow *row = row_of(stored->recipe.name);
    CHECK_RULE(row);
    return fill(row->metadata, &stored->recipe, stored);
}

Json *torchao_config(const Recipe *recipe)
{
    const TorchaoRow *row = row_of(recipe->name);
    if (!row)
        return NULL;
    char *text = fill(row->config, recipe, NULL);
    Error error = {0};
    Json *json = json_parse(text, strlen(text), &error);
    CHECK(json, EXIT_CODE_INTERNAL, "correct the template", "%s: %s", row->recipe, error.what);
    free(text);
    return json;
}

// ---- reading a tensor ----

static const Json *data_of(const Json *attributes, const char *key)
{
    const Json *value = json_find(attributes, key);
    return value && json_is_object(value) ? json_find(value, "_data") : NULL;
}

static const char *text_data(const Json *attributes, const char *key)
{
    const Json *data = data_of(attributes, key);
    return data && json_is_text(data) ? json_text_of(data) : "";
}

// Older files have other names for two parts.
static const Tensor *find_part(const TorchaoTensor *tensor, const char *name)
{
    static const char *const older[][2] = {{"qdata", "data"}, {"scale", "scale_e4m3"}};
    for (int i = 0; i < tensor->parts; i++)
        if (strcmp(tensor->part[i].name, name) == 0)
            return &tensor->part[i].tensor;
    for (size_t k = 0; k < COUNT_OF(older); k++)
        for (int i = 0; strcmp(older[k][0], name) == 0 && i < tensor->parts; i++)
            if (strcmp(tensor->part[i].name, older[k][1]) == 0)
                return &tensor->part[i].tensor;
    return NULL;
}

static bool read_list(const Json *json, int64_t *values, int *count)
{
    if (!json || !json_is_array(json) || json_count(json) > QTENSOR_RANK_MAX)
        return false;
    *count = (int)json_count(json);
    for (int i = 0; i < *count; i++) {
        const Json *item = json_at(json, (uint64_t)i);
        if (!json_is_integer(item) || json_integer_of(item) < 0)
            return false;
        values[i] = json_integer_of(item);
    }
    return *count > 0;
}

static bool bad(const TorchaoTensor *tensor, Error *error, const char *what)
{
    return bad_tensor(error, tensor->path, tensor->parameter, "%s: %s", tensor->class_name, what);
}

// The shape that the codes stand for.
static bool read_shape(const TorchaoTensor *tensor, int *rank, int64_t *shape, Error *error)
{
    const Json *given = json_find(tensor->attributes, "shape");
    const Tensor *codes = find_part(tensor, "qdata");
    if (!codes)
        return bad(tensor, error, "it has no part qdata");
    if (given && !json_is_null(given))
        return read_list(given, shape, rank) || bad(tensor, error, "its shape is no list of sizes");
    if (tensor->outer && strncmp(tensor->class_name, "Int4", 4) == 0) {
        if (tensor->outer->rank < 1 || tensor->outer->rank > QTENSOR_RANK_MAX)
            return bad(tensor, error, "it has no rank from 1 to 3");
        *rank = tensor->outer->rank;
        memcpy(shape, tensor->outer->shape, (size_t)*rank * sizeof(*shape));
        return true;
    }
    if (codes->rank < 1 || codes->rank > QTENSOR_RANK_MAX)
        return bad(tensor, error, "its qdata have no rank from 1 to 3");
    *rank = codes->rank;
    memcpy(shape, codes->shape, (size_t)codes->rank * sizeof(*shape));
    if (codes->dtype == DTYPE_U8 &&
        __builtin_mul_overflow(shape[codes->rank - 1], 2, &shape[codes->rank - 1]))
        return bad(tensor, error, "its shape does not fit 63 bits");
    return true;
}

// A tensor of 128 x 128 is one block and one tensor: the activations' granularity tells which.
static bool same_granularity_type(const Json *kwargs, const QuantRule *rule)
{
    const Json *data = json_find(kwargs, "_data");
    const Json *granularity = data ? json_find(data, "granularity") : NULL;
    const char *type = granularity ? json_text_of(json_find(granularity, "_type")) : NULL;
    const char *ours = rule->block_rows == 0   ? "PerTensor"
                       : rule->block_rows == 1 ? "PerRow"
                                               : "PerBlock";
    return !type || strcmp(type, ours) == 0;
}

// What tells the recipes of a class apart, beside the block.
static bool same_kind(const TorchaoTensor *tensor, const Recipe *recipe)
{
    const Json *attributes = tensor->attributes,
               *kwargs = json_find(attributes, "act_quant_kwargs");
    const char *class_name = tensor->class_name;
    bool quantises = kwargs && !json_is_null(kwargs);
    bool wants = recipe->activations.method != QUANT_NONE;
    if (strcmp(class_name, "Int4Tensor") == 0)
        return wants == (strncmp(text_data(attributes, "activation_dtype"), "float8", 6) == 0);
    if (strcmp(class_name, "Int4TilePackedTo4dTensor") == 0 ||
        strcmp(class_name, "IntxUnpackedToInt8Tensor") == 0)
        return true;
    if (wants != quantises)
        return false;
    if (strcmp(class_name, "MXTensor") == 0)
        return (strncmp(text_data(attributes, "elem_dtype"), "float4", 6) == 0) ==
               (recipe->weights.code == CODE_E2M1);
    if (strcmp(class_name, "Float8Tensor") == 0 && quantises)
        return same_granularity_type(kwargs, &recipe->weights);
    if (strcmp(class_name, "NVFP4Tensor") == 0)
        return recipe->weights.two_level == (find_part(tensor, "per_tensor_scale") != NULL);
    return true;
}

// Options of the recipe, from the attributes.
static void take_options(const TorchaoTensor *tensor, const int64_t *block, int rank,
                         Recipe *recipe)
{
    int64_t columns = rank > 0 ? block[rank - 1] : 0;
    for (int i = 0; i < RECIPE_GROUPS_MAX; i++)
        if (recipe->groups[i] > 0 && recipe->groups[i] == columns)
            recipe->weights.block_columns = recipe->groups[i];
    const Json *kwargs = data_of(tensor->attributes, "act_quant_kwargs");
    const char *mode = kwargs ? text_data(kwargs, "scaling_mode") : "";
    for (int m = 0; recipe->has_modes && m < MX_MODES; m++)
        if (strcasecmp(quant_mode_name((MxMode)m), mode) == 0)
            recipe->weights.mx_mode = recipe->activations.mx_mode = (MxMode)m;
    const Json *bound = kwargs ? json_find(kwargs, "hp_value_lb") : NULL;
    if (recipe->has_lower_bound)
        recipe->activations.amax_minimum =
            bound && json_is_number(bound) ? (float)json_real_of(bound) : 0.0f;
    const Json *swizzled = json_find(tensor->attributes, "is_swizzled_scales");
    if (swizzled && json_is_boolean(swizzled) && !json_boolean_of(swizzled))
        recipe->weights.scale_layout = SCALES_PLAIN;
}

static bool same_block(const Stored *stored, const int64_t *block, int rank)
{
    if (rank != stored->q.rank)
        return false;
    for (int dim = 0; dim < rank; dim++)
        if (block[dim] != block_extent(stored, dim))
            return false;
    return true;
}

static bool check_part(const TorchaoTensor *tensor, Stored *stored, StoredRole role, Error *error)
{
    StoredPart *part = &stored->part[role];
    const Tensor *found = find_part(tensor, part->suffix + 1);
    char wanted[96], got[96];
    if (!found && role == STORED_ZEROS && strcmp(tensor->class_name, "Int8Tensor") == 0) {
        part->present = false; // optional there
        stored->q.rule.has_zeros = false;
        return true;
    }
    if (!found)
        return bad_tensor(error, tensor->path, tensor->parameter, "%s: it has no part %s",
                          tensor->class_name, part->suffix + 1);
    bool same = found->dtype == part->tensor.dtype && found->rank == part->tensor.rank;
    for (int dim = 0; same && dim < found->rank; dim++)
        same = found->shape[dim] == part->tensor.shape[dim];
    if (!same)
        return bad_tensor(error, tensor->path, tensor->parameter, "%s: part %s is %s, not %s",
                          tensor->class_name, part->suffix + 1,
                          tensor_describe(found, got, sizeof(got)),
                          tensor_describe(&part->tensor, wanted, sizeof(wanted)));
    part->tensor.data = found->data;
    return true;
}

static bool check_parts(const TorchaoTensor *tensor, Stored *stored, Error *error)
{
    for (int role = 0; role < STORED_ROLES; role++)
        if (stored->part[role].present && !check_part(tensor, stored, (StoredRole)role, error))
            return false;
    return true;
}

bool torchao_read(const TorchaoTensor *tensor, Stored *stored, Error *error)
{
    int rank = 0, block_rank = 0;
    int64_t shape[QTENSOR_RANK_MAX], block[QTENSOR_RANK_MAX];
    Error first = {0};
    if (!read_shape(tensor, &rank, shape, error))
        return false;
    bool has_block = read_list(json_find(tensor->attributes, "block_size"), block, &block_rank);
    const Tensor *scale = find_part(tensor, "scale");
    for (const Scheme *scheme = scheme_table; scheme->recipe; scheme++) {
        Recipe recipe;
        Error cause = {0};
        if (!scheme->class_name || strcmp(scheme->class_name, tensor->class_name) != 0 ||
            !recipe_parse(scheme->recipe, &recipe, &cause) || !same_kind(tensor, &recipe))
            continue;
        take_options(tensor, block, has_block ? block_rank : 0, &recipe);
        StoredPlan plan = {&recipe, LAYOUT_TORCHAO, rank, shape, DTYPES};
        if (scale && recipe.weights.method == QUANT_SYMMETRIC &&
            (scale->dtype == DTYPE_F32 || scale->dtype == DTYPE_BF16))
            plan.scale_dtype = scale->dtype;
        if (!stored_plan(&plan, stored, &cause)) {
            first = first.exit_code ? first : cause;
            continue;
        }
        if (has_block && !same_block(stored, block, block_rank))
            continue;
        return check_parts(tensor, stored, error);
    }
    return bad_tensor(error, tensor->path, tensor->parameter,
                      "class %.60s with these attributes is none that we read%s%.120s",
                      tensor->class_name, first.exit_code ? ": " : "", first.what);
}

// ---- reading a configuration ----

static bool same_json(const Json *a, const Json *b)
{
    char *x = a ? json_print(a, false) : NULL, *y = b ? json_print(b, false) : NULL;
    bool same = x && y ? strcmp(x, y) == 0 : x == y;
    free(x);
    free(y);
    return same;
}

// An enum's member as text or as an object.
static const char *packing_of(const Json *data)
{
    const Json *value = json_find(data, "int4_packing_format");
    const char *text = value && json_is_text(value) ? json_text_of(value) : NULL;
    return text ? text : text_data(data, "int4_packing_format");
}

static bool same_granularity(const Json *a, const Json *b)
{
    static const char *const keys[] = {"_type", "_data"};
    if (a && b && json_is_array(a) && json_is_array(b)) {
        bool same = json_count(a) == json_count(b);
        for (uint64_t i = 0; same && i < json_count(a); i++)
            same = same_granularity(json_at(a, i), json_at(b, i));
        return same;
    }
    bool same = a && b && json_is_object(a) && json_is_object(b);
    for (size_t i = 0; same && i < COUNT_OF(keys); i++)
        same = same_json(json_find(a, keys[i]), json_find(b, keys[i]));
    return same || (!a && !b);
}

static bool same_config(const Json *given, const Json *ours)
{
    const Json *a = json_find(given, "_data"), *b = json_find(ours, "_data");
    const char *x = json_text_of(json_find(given, "_type"));
    if (!x || !a || !json_is_object(a) || strcmp(x, json_text_of(json_find(ours, "_type"))) != 0)
        return false;
    const Json *level = json_find(a, "use_dynamic_per_tensor_scale");
    const Json *element = json_find(a, "weight_dtype");
    return same_granularity(json_find(a, "granularity"), json_find(b, "granularity")) &&
           (!level || same_json(level, json_find(b, "use_dynamic_per_tensor_scale"))) &&
           (!element || strcmp(text_data(a, "weight_dtype"), text_data(b, "weight_dtype")) == 0) &&
           strcasecmp(packing_of(a), packing_of(b)) == 0;
}

bool torchao_config_read(const Json *config, Recipe *recipe)
{
    bool found = false;
    for (size_t i = 0; !found && config && json_is_object(config) && i < COUNT_OF(rows); i++) {
        Error error = {0};
        recipe_parse(rows[i].recipe, recipe, &error);
        Json *ours = torchao_config(recipe);
        found = same_config(config, ours);
        json_destroy(ours);
    }
    return found;
}
