// compressed.c -- schemes of compressed-tensors, both ways.
//
// Source: compressed-tensors 0.20, quantization/quant_args.py, quant_scheme.py, quant_config.py.
// Targets and ignores that are expressions match a name's beginning (Python's re.match).
#include "quant/compressed.h"

#include "quant/message.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TARGETS_MAX = 1 << 16 };

// ---- args of a rule ----

static const char *strategy_of(const QuantRule *rule, bool inputs)
{
    if (rule->method == QUANT_NVFP4 || rule->method == QUANT_NVFP4_CT)
        return "tensor_group";
    if (rule->block_rows == 0)
        return "tensor";
    if (rule->block_rows > 1)
        return "block";
    if (rule->block_columns > 0)
        return "group";
    return inputs ? "token" : "channel";
}

static CompressedArgs args_of(const QuantRule *rule, bool inputs)
{
    CompressedArgs args = {.present = rule->method != QUANT_NONE};
    if (!args.present)
        return args;
    bool four = rule->code == CODE_INT4 || rule->code == CODE_E2M1;
    const char *strategy = strategy_of(rule, inputs);
    args.num_bits = four ? 4 : 8;
    args.is_float = rule->code == CODE_E4M3 || rule->code == CODE_E2M1;
    args.symmetric = rule->method != QUANT_ZERO_POINT_CT;
    snprintf(args.strategy, sizeof(args.strategy), "%s", strategy);
    bool local = inputs && strcmp(strategy, "tensor_group") == 0;
    snprintf(args.dynamic, sizeof(args.dynamic), local ? "local" : inputs ? "true" : "false");
    if (strcmp(strategy, "block") == 0) {
        args.block_rows = rule->block_rows;
        args.block_columns = rule->block_columns;
    } else if (strcmp(strategy, "group") == 0 || strcmp(strategy, "tensor_group") == 0) {
        args.group_size = rule->block_columns;
    }
    return args;
}

// Scales of these types are named in the config.
static const char *scale_dtype_of(const QuantRule *rule)
{
    if (rule->method == QUANT_MX)
        return "torch.uint8";
    bool nvfp4 = rule->method == QUANT_NVFP4 || rule->method == QUANT_NVFP4_CT;
    return nvfp4 ? "torch.float8_e4m3fn" : NULL;
}

static Json *args_json(const QuantRule *rule, bool inputs)
{
    CompressedArgs args = args_of(rule, inputs);
    if (!args.present)
        return json_null();
    Json *json = json_object();
    if (args.block_rows > 0) {
        Json *block = json_append(json_array(), json_integer(args.block_rows));
        json_set(json, "block_structure", json_append(block, json_integer(args.block_columns)));
    }
    bool local = strcmp(args.dynamic, "local") == 0;
    json_set(json, "dynamic",
             local ? json_text("local") : json_boolean(strcmp(args.dynamic, "true") == 0));
    json_set(json, "group_size", args.group_size ? json_integer(args.group_size) : json_null());
    json_set(json, "num_bits", json_integer(args.num_bits));
    if (local)
        json_set(json, "observer", json_text("static_minmax"));
    if (scale_dtype_of(rule))
        json_set(json, "scale_dtype", json_text(scale_dtype_of(rule)));
    json_set(json, "strategy", json_text(args.strategy));
    json_set(json, "symmetric", json_boolean(args.symmetric));
    return json_set(json, "type", json_text(args.is_float ? "float" : "int"));
}

Json *compressed_group_json(const Stored *stored, Json *targets)
{
    Json *group = json_object();
    json_set(group, "format", json_text(pack_format_name(scheme_format(&stored->recipe))));
    json_set(group, "input_activations", args_json(&stored->recipe.activations, true));
    json_set(group, "output_activations", json_null());
    json_set(group, "targets", targets);
    return json_set(group, "weights", args_json(&stored->recipe.weights, false));
}

typedef struct FormatOfGroups {
    char text[32];
} FormatOfGroups;

static bool visit_format(const char *key, const Json *value, void *context)
{
    (void)key;
    FormatOfGroups *format = context;
    const char *text = json_text_of(json_find(value, "format"));
    bool other = format->text[0] && strcmp(format->text, text) != 0;
    snprintf(format->text, sizeof(format->text), "%s", other ? "mixed-precision" : text);
    return !other;
}

Json *compressed_config_json(Json *groups, Json *ignore)
{
    FormatOfGroups format = {""};
    json_each(groups, visit_format, &format);
    Json *config = json_set(json_object(), "config_groups", groups);
    json_set(config, "format", json_text(format.text[0] ? format.text : "dense"));
    json_set(config, "global_compression_ratio", json_null());
    json_set(config, "ignore", ignore);
    json_set(config, "kv_cache_scheme", json_null());
    json_set(config, "moe_sparsity_config", json_null());
    json_set(config, "quant_method", json_text("compressed-tensors"));
    json_set(config, "quantization_status", json_text("compressed"));
    json_set(config, "transform_config", json_object());
    return json_set(config, "version", json_text("0.20.0")); // of the form, not of a program
}

// ---- reading the config ----

typedef struct Reader {
    const char *path;
    CompressedConfig *out;
    PackFormat format; // of the whole config
    bool has_format;
    Error *error;
} Reader;

#define BAD(reader, ...) bad_file((reader)->error, (reader)->path, __VA_ARGS__)

static bool find_format(const char *text, PackFormat *format)
{
    for (int i = 0; text && i < PACK_FORMATS; i++)
        if (strcmp(text, pack_format_name((PackFormat)i)) == 0) {
            *format = (PackFormat)i;
            return true;
        }
    return false;
}

static bool read_patterns(Reader *reader, const Json *list, const char *what, Pattern ***patterns,
                          int *count)
{
    *count = 0;
    if (!list || json_is_null(list))
        return true;
    if (!json_is_array(list) || json_count(list) > TARGETS_MAX)
        return BAD(reader, "%s is no list of at most %d names", what, TARGETS_MAX);
    *patterns = calloc(json_count(list) + 1, sizeof(**patterns));
    CHECK(*patterns, EXIT_CODE_HARDWARE, "free host memory", "no host memory for names");
    for (uint64_t i = 0; i < json_count(list); i++) {
        const char *text = json_text_of(json_at(list, i));
        if (!text)
            return BAD(reader, "%s has an item that is no text", what);
        Pattern *pattern = pattern_create(text, EXIT_CODE_DATA, reader->error);
        if (!pattern)
            return false;
        (*patterns)[(*count)++] = pattern;
    }
    return true;
}

static int64_t integer_or(const Json *object, const char *key, int64_t otherwise)
{
    const Json *value = json_find(object, key);
    return value && json_is_integer(value) ? json_integer_of(value) : otherwise;
}

static bool boolean_or(const Json *object, const char *key, bool otherwise)
{
    const Json *value = json_find(object, key);
    return value && json_is_boolean(value) ? json_boolean_of(value) : otherwise;
}

static void read_block(const Json *args, CompressedArgs *out)
{
    const Json *block = json_find(args, "block_structure");
    long rows = 0, columns = 0;
    if (block && json_is_array(block) && json_count(block) == 2) {
        out->block_rows = json_integer_of(json_at(block, 0));
        out->block_columns = json_integer_of(json_at(block, 1));
    } else if (block && json_is_text(block) &&
               sscanf(json_text_of(block), "%6ldx%6ld", &rows, &columns) == 2) {
        out->block_rows = rows;
        out->block_columns = columns;
    }
}

static bool read_args(Reader *reader, const Json *args, const char *group, CompressedArgs *out)
{
    *out = (CompressedArgs){.present = args && !json_is_null(args)};
    if (!out->present)
        return true;
    char shown[QUOTED_BYTES];
    if (!json_is_object(args))
        return BAD(reader, "config group \"%s\": its args are no object",
                   quoted_name(group, shown));
    const char *type = json_text_of(json_find(args, "type"));
    const char *strategy = json_text_of(json_find(args, "strategy"));
    const Json *dynamic = json_find(args, "dynamic");
    bool local = dynamic && json_is_text(dynamic);
    out->num_bits = integer_or(args, "num_bits", 8);
    out->group_size = integer_or(args, "group_size", 0);
    out->is_float = type && strcmp(type, "float") == 0;
    out->symmetric = boolean_or(args, "symmetric", true);
    if (!strategy) // as compressed-tensors infers it
        strategy = out->group_size > 0 ? "group" : out->group_size == -1 ? "channel" : "tensor";
    if (out->group_size < 0)
        out->group_size = 0;
    snprintf(out->strategy, sizeof(out->strategy), "%.15s", strategy);
    snprintf(out->dynamic, sizeof(out->dynamic), "%s",
             local                                ? "local"
             : boolean_or(args, "dynamic", false) ? "true"
                                                  : "false");
    read_block(args, out);
    if (out->num_bits < 1 || out->num_bits > 32)
        return BAD(reader, "config group \"%s\": num_bits is %lld", quoted_name(group, shown),
                   (long long)out->num_bits);
    return true;
}

static bool visit_group(const char *key, const Json *value, void *context)
{
    Reader *reader = context;
    CompressedConfig *out = reader->out;
    char shown[QUOTED_BYTES];
    quoted_name(key, shown);
    if (out->groups == COMPRESSED_GROUPS_MAX)
        return BAD(reader, "more than %d config groups", COMPRESSED_GROUPS_MAX);
    if (!json_is_object(value))
        return BAD(reader, "config group \"%s\" is no object", shown);
    CompressedGroup *group = &out->group[out->groups++];
    *group = (CompressedGroup){.format = reader->format};
    snprintf(group->name, sizeof(group->name), "%.60s", key);
    const char *format = json_text_of(json_find(value, "format"));
    if (format && !find_format(format, &group->format))
        return BAD(reader, "config group \"%s\" has a format that we do not read", shown);
    if (!format && !reader->has_format)
        return BAD(reader, "neither the config nor group \"%s\" has a format that we read", shown);
    return read_args(reader, json_find(value, "weights"), key, &group->weights) &&
           read_args(reader, json_find(value, "input_activations"), key, &group->inputs) &&
           read_patterns(reader, json_find(value, "targets"), "a list of targets", &group->target,
                         &group->targets);
}

bool compressed_config_read(const char *path, const Json *config, CompressedConfig *out,
                            Error *error)
{
    *out = (CompressedConfig){.groups = 0};
    Error first = {0};
    Reader reader = {.path = path, .out = out, .error = &first};
    reader.has_format = find_format(json_text_of(json_find(config, "format")), &reader.format);
    const Json *groups = json_find(config, "config_groups");
    bool good = groups && json_is_object(groups);
    if (!good)
        BAD(&reader, "quantization_config has no config_groups");
    else
        json_each(groups, visit_group, &reader);
    good = first.exit_code == 0 && read_patterns(&reader, json_find(config, "ignore"), "ignore",
                                                 &out->ignore, &out->ignores);
    if (!good && error->exit_code == 0)
        *error = first;
    return good;
}

static void release_patterns(Pattern **patterns, int count)
{
    for (int i = 0; i < count; i++)
        pattern_destroy(patterns[i]);
    free(patterns);
}

void compressed_config_release(CompressedConfig *config)
{
    for (int i = 0; i < config->groups; i++)
        release_patterns(config->group[i].target, config->group[i].targets);
    release_patterns(config->ignore, config->ignores);
    *config = (CompressedConfig){.groups = 0};
}

static bool any_match(Pattern *const *patterns, int count, const char *module, bool classes,
                      bool *found, Error *error)
{
    *found = false;
    for (int i = 0; i < count && !*found; i++) {
        if (!pattern_match(patterns[i], module, PATTERN_PREFIX, found, error))
            return false;
        if (classes && !pattern_is_expression(patterns[i]))
            *found = *found || !strchr(pattern_text(patterns[i]), '.');
    }
    return true;
}

bool compressed_group_of(const CompressedConfig *config, const char *module,
                         const CompressedGroup **group, Error *error)
{
    bool found = false;
    *group = NULL;
    if (!any_match(config->ignore, config->ignores, module, false, &found, error))
        return false;
    for (int i = 0; !found && i < config->groups; i++) {
        const CompressedGroup *row = &config->group[i];
        if (!any_match(row->target, row->targets, module, true, &found, error))
            return false;
        if (found)
            *group = row;
    }
    return true;
}

// ---- reading a module ----

bool compressed_role(const char *suffix, StoredRole *role)
{
    static const struct {
        const char *suffix;
        StoredRole role;
    } names[] = {
        {"weight_packed", STORED_CODES},
        {"weight_scale", STORED_SCALES},
        {"weight_zero_point", STORED_ZEROS},
        {"weight_global_scale", STORED_TENSOR_SCALE},
        {"input_global_scale", STORED_INPUT_SCALE},
        {"weight_shape", STORED_SHAPE},
    };
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (strcmp(suffix, names[i].suffix) == 0) {
            *role = names[i].role;
            return true;
        }
    return false;
}

static bool same_args(const CompressedArgs *a, const CompressedArgs *b)
{
    return a->present == b->present &&
           (!a->present || (a->num_bits == b->num_bits && a->is_float == b->is_float &&
                            a->symmetric == b->symmetric && strcmp(a->strategy, b->strategy) == 0 &&
                            a->group_size == b->group_size && a->block_rows == b->block_rows &&
                            a->block_columns == b->block_columns));
}

// Whole-number weights take any group; blocks of fp8 any extent.
static void take_extents(const CompressedArgs *args, QuantRule *rule)
{
    bool group = strcmp(args->strategy, "group") == 0 && rule->method != QUANT_MX;
    if (group && args->group_size > 0 && args->group_size <= 1 << 20 && rule->block_rows == 1)
        rule->block_columns = (int)args->group_size;
    if (strcmp(args->strategy, "channel") == 0 && rule->block_rows == 1 &&
        rule->method != QUANT_MX && rule->method != QUANT_NVFP4_CT) {
        rule->block_columns = 0;
        rule->blocks_exact = false;
    }
}

// The scheme with these args: first one whose activations are alike too, then any. Rows that only
// compressed-tensors has come first, since its rules are what its files mean.
static bool find_recipe(const CompressedGroup *group, Recipe *recipe)
{
    for (int pass = 0; pass < 8; pass++) {
        bool own = pass % 2 == 0, exact = pass < 4, inputs_too = pass / 2 % 2 == 0;
        for (const Scheme *row = scheme_table; row->recipe; row++) {
            Error error = {0};
            if (!row->scheme || (row->class_name == NULL) != own || row->format != group->format ||
                !recipe_parse(row->recipe, recipe, &error))
                continue;
            if (!exact)
                take_extents(&group->weights, &recipe->weights);
            CompressedArgs weights = args_of(&recipe->weights, false);
            CompressedArgs inputs = args_of(&recipe->activations, true);
            if (same_args(&weights, &group->weights) &&
                (inputs_too ? same_args(&inputs, &group->inputs)
                            : inputs.present == group->inputs.present))
                return true;
        }
    }
    return false;
}

#define BAD_TENSOR(...) bad_tensor(error, path, parameter, __VA_ARGS__)

static bool read_shape(const char *path, const char *parameter, const CompressedGroup *group,
                       const CompressedParts *parts, int64_t *shape, Error *error)
{
    const Tensor *codes = parts->part[STORED_CODES], *given = parts->part[STORED_SHAPE];
    if (!codes)
        return BAD_TENSOR("it has scales but no weight");
    if (codes->rank != 2)
        return BAD_TENSOR("its weight has rank %d, not 2", codes->rank);
    memcpy(shape, codes->shape, 2 * sizeof(*shape));
    if (group->format == PACK_WORDS) {
        if (!given || given->dtype != DTYPE_I64 || tensor_elements(given) != 2)
            return BAD_TENSOR("it has no weight_shape of two i64");
        memcpy(shape, given->data, 2 * sizeof(*shape));
        if (shape[0] < 0 || shape[1] < 0)
            return BAD_TENSOR("its weight_shape is negative");
    } else if (codes->dtype == DTYPE_U8 && __builtin_mul_overflow(shape[1], 2, &shape[1])) {
        return BAD_TENSOR("its shape does not fit 63 bits");
    }
    return true;
}

// Scales are compared by their count: [1], [] and [1, 1] are one scale.
static bool check_part(const char *path, const char *parameter, const Tensor *found,
                       StoredPart *part, bool exactly, Error *error)
{
    char wanted[96], got[96];
    if (!found)
        return BAD_TENSOR("it has no %s", part->suffix);
    bool same = found->dtype == part->tensor.dtype &&
                tensor_elements(found) == tensor_elements(&part->tensor);
    for (int dim = 0; same && exactly && dim < part->tensor.rank; dim++)
        same = found->rank == part->tensor.rank && found->shape[dim] == part->tensor.shape[dim];
    if (!same)
        return BAD_TENSOR("its %s is %s, not %s", part->suffix,
                          tensor_describe(found, got, sizeof(got)),
                          tensor_describe(&part->tensor, wanted, sizeof(wanted)));
    part->tensor.data = found->data;
    return true;
}

bool compressed_read(const char *path, const char *parameter, const CompressedGroup *group,
                     const CompressedParts *parts, Stored *stored, Error *error)
{
    Recipe recipe;
    char shown[QUOTED_BYTES];
    int64_t shape[2];
    if (!find_recipe(group, &recipe))
        return BAD_TENSOR("no recipe of ours has the args of config group \"%s\"",
                          quoted_name(group->name, shown));
    if (!read_shape(path, parameter, group, parts, shape, error))
        return false;
    StoredPlan plan = {&recipe, LAYOUT_COMPRESSED, 2, shape, DTYPES};
    const Tensor *scale = parts->part[STORED_SCALES];
    bool free_dtype =
        recipe.weights.method == QUANT_SYMMETRIC || recipe.weights.method == QUANT_ZERO_POINT_CT;
    if (scale && free_dtype &&
        (scale->dtype == DTYPE_F32 || scale->dtype == DTYPE_BF16 || scale->dtype == DTYPE_F16))
        plan.scale_dtype = scale->dtype;
    Error cause = {0};
    if (!stored_plan(&plan, stored, &cause))
        return BAD_TENSOR("%.200s", cause.what);
    for (int role = 0; role < STORED_ROLES; role++)
        if (stored->part[role].present &&
            !check_part(path, parameter, parts->part[role], &stored->part[role],
                        role == STORED_CODES, error))
            return false;
    if (stored->part[STORED_INPUT_SCALE].present)
        memcpy(&stored->input_scale, stored->part[STORED_INPUT_SCALE].tensor.data, sizeof(float));
    return true;
}
