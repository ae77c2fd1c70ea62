// checkpoint_weights.c -- from the tensors of files to the weights of a model.
//
// torchao says in the metadata which tensors belong together, compressed-tensors in config.json and
// by names, DeepSeek by names. Tensors that belong to nothing quantised are weights as they are.
#include "quant/checkpoint.h"

#include "quant/message.h"
#include "quant/torchao.h"
#include "quant/torchao_rules.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES = 4096 };

typedef struct Builder {
    Checkpoint *checkpoint;
    int64_t capacity;
    CompressedConfig config;
    const Json *metadata; // torchao: of the first file that has it
    Error *error;
} Builder;

static Weight *add_weight(Builder *builder, const char *name)
{
    Checkpoint *checkpoint = builder->checkpoint;
    if (checkpoint->count == builder->capacity) {
        builder->capacity = builder->capacity ? 2 * builder->capacity : 256;
        checkpoint->weights =
            realloc(checkpoint->weights, (size_t)builder->capacity * sizeof(*checkpoint->weights));
        CHECK(checkpoint->weights, EXIT_CODE_HARDWARE, "free host memory",
              "no host memory for weights");
    }
    Weight *weight = &checkpoint->weights[checkpoint->count++];
    *weight = (Weight){.name = strdup(name)};
    CHECK(weight->name, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a name");
    return weight;
}

static void set_quantised(Weight *weight)
{
    const QTensor *q = &weight->stored.q;
    weight->quantised = true;
    weight->tensor = (Tensor){.dtype = DTYPE_BF16, .rank = q->rank};
    memcpy(weight->tensor.shape, q->shape, sizeof(q->shape));
}

static RawTensor *find_raw(Builder *builder, const char *name)
{
    return (RawTensor *)(uintptr_t)checkpoint_find_raw(builder->checkpoint, name);
}

static void add_plain_weights(Builder *builder)
{
    Checkpoint *checkpoint = builder->checkpoint;
    for (int64_t i = 0; i < checkpoint->raws; i++) {
        const RawTensor *raw = &checkpoint->raw[i];
        if (raw->used)
            continue;
        Weight *weight = add_weight(builder, raw->name);
        weight->tensor = raw->tensor;
        weight->file = raw->file;
    }
}

// ---- torchao, safetensors ----

static bool collect_parts(Builder *builder, const char *parameter, const Json *names,
                          TorchPart *parts, int *count, int *file)
{
    const char *dot = strrchr(parameter, '.');
    int module = dot ? (int)(dot - parameter) + 1 : 0;
    const char *path = builder->checkpoint->folder;
    char name[NAME_BYTES];
    if (!names || !json_is_array(names) || json_count(names) > TORCH_PARTS_MAX)
        return bad_tensor(builder->error, path, parameter,
                          "its metadata have no list of at most %d _tensor_data_names",
                          TORCH_PARTS_MAX);
    *count = 0;
    for (uint64_t i = 0; i < json_count(names); i++) {
        const char *part = json_text_of(json_at(names, i));
        if (!part || strlen(part) >= TORCH_NAME_BYTES || strlen(parameter) > NAME_BYTES / 2)
            return bad_tensor(builder->error, path, parameter, "a part without a short name");
        snprintf(name, sizeof(name), "%.*s_%s_%s", module, parameter, parameter + module, part);
        RawTensor *raw = find_raw(builder, name);
        if (!raw)
            return bad_tensor(builder->error, path, parameter, "no file has its part %.60s", part);
        if (raw->used)
            return bad_tensor(builder->error, path, parameter, "part %.60s is named twice", part);
        raw->used = true;
        *file = raw->file;
        snprintf(parts[*count].name, sizeof(parts[*count].name), "%s", part);
        parts[(*count)++].tensor = raw->tensor;
    }
    return true;
}

static bool add_torchao_tensor(Builder *builder, const char *parameter, const Json *about)
{
    const char *path = builder->checkpoint->folder;
    const char *type = json_text_of(json_find(about, "_type"));
    if (!type)
        return bad_tensor(builder->error, path, parameter, "its metadata have no _type");
    if (strcmp(type, "Tensor") == 0)
        return true;
    TorchPart parts[TORCH_PARTS_MAX];
    TorchaoTensor tensor = {path, parameter, type, json_find(about, "_data"), parts, 0, NULL};
    int file = 0;
    Stored stored;
    if (!tensor.attributes || !json_is_object(tensor.attributes))
        return bad_tensor(builder->error, path, parameter, "its metadata have no _data");
    if (!collect_parts(builder, parameter, json_find(about, "_tensor_data_names"), parts,
                       &tensor.parts, &file) ||
        !torchao_read(&tensor, &stored, builder->error))
        return false;
    Weight *weight = add_weight(builder, parameter);
    weight->stored = stored;
    weight->file = file;
    set_quantised(weight);
    return true;
}

static bool add_torchao(Builder *builder)
{
    const char *path = builder->checkpoint->folder;
    Error cause = {0};
    const char *list = json_text_of(json_find(builder->metadata, "tensor_names"));
    Json *names = json_parse(list, strlen(list), &cause);
    bool good = (names && json_is_array(names)) ||
                bad_file(builder->error, path, "tensor_names of its metadata is no JSON list");
    for (uint64_t i = 0; good && i < json_count(names); i++) {
        const char *name = json_text_of(json_at(names, i));
        const char *text = name ? json_text_of(json_find(builder->metadata, name)) : NULL;
        Json *about = text ? json_parse(text, strlen(text), &cause) : NULL;
        good = about && json_is_object(about)
                   ? add_torchao_tensor(builder, name, about)
                   : bad_tensor(builder->error, path, name ? name : "", "its metadata are no JSON");
        if (about)
            json_destroy(about);
    }
    if (names)
        json_destroy(names);
    return good;
}

// ---- torchao, pytorch_model.bin ----

static bool add_torch_file(Builder *builder, int index)
{
    const CheckpointFile *file = &builder->checkpoint->file[index];
    for (int64_t i = 0; i < file->torch.count; i++) {
        const TorchTensor *tensor = &file->torch.tensors[i];
        Stored stored = {0};
        if (tensor->class_name[0]) {
            TorchaoTensor about = {file->name,         tensor->name, tensor->class_name,
                                   tensor->attributes, tensor->part, tensor->parts,
                                   &tensor->tensor};
            if (!torchao_read(&about, &stored, builder->error))
                return false;
        }
        Weight *weight = add_weight(builder, tensor->name);
        weight->tensor = tensor->tensor;
        weight->stored = stored;
        weight->file = index;
        builder->checkpoint->bytes += tensor->class_name[0] ? 0 : tensor_bytes(&tensor->tensor);
        for (int k = 0; k < tensor->parts; k++)
            builder->checkpoint->bytes += tensor_bytes(&tensor->part[k].tensor);
        if (!tensor->class_name[0])
            continue;
        set_quantised(weight);
        builder->checkpoint->layout = LAYOUT_TORCHAO_BIN;
    }
    return true;
}

// ---- compressed-tensors ----

// actorder: which group each column belongs to.
static bool read_groups(Builder *builder, const char *parameter, RawTensor *raw, Stored *stored)
{
    const char *path = builder->checkpoint->folder;
    const QTensor *q = &stored->q;
    bool grouped = q->rule.block_rows == 1 && q->rule.block_columns > 0 &&
                   q->scale_layout == SCALES_PLAIN && q->rule.method != QUANT_MX &&
                   q->rule.method != QUANT_NVFP4_CT;
    if (!grouped || raw->tensor.dtype != DTYPE_I32 || raw->tensor.rank != 1 ||
        raw->tensor.shape[0] != q->columns)
        return bad_tensor(builder->error, path, parameter,
                          "its weight_g_idx is no group for each of %lld columns",
                          (long long)q->columns);
    for (int64_t i = 0; i < q->columns; i++) {
        int32_t group;
        memcpy(&group, (const char *)raw->tensor.data + i * (int64_t)sizeof(group), sizeof(group));
        if (group < 0 || group >= qtensor_grid_columns(q))
            return bad_tensor(builder->error, path, parameter,
                              "its weight_g_idx has group %d of %lld at column %lld", group,
                              (long long)qtensor_grid_columns(q), (long long)i);
    }
    raw->used = true;
    stored->group_of_column = raw->tensor.data;
    return true;
}

static bool add_compressed_module(Builder *builder, RawTensor *scale, size_t module_bytes)
{
    char name[NAME_BYTES], parameter[NAME_BYTES], module[NAME_BYTES];
    const char *path = builder->checkpoint->folder;
    const CompressedGroup *group = NULL;
    CompressedParts parts = {{NULL}};
    static const char *const suffixes[] = {
        "weight_packed",       "weight",       "weight_scale",      "weight_zero_point",
        "weight_global_scale", "weight_shape", "input_global_scale"};
    snprintf(parameter, sizeof(parameter), "%.*sweight", (int)module_bytes, scale->name);
    snprintf(module, sizeof(module), "%.*s", module_bytes ? (int)module_bytes - 1 : 0, scale->name);
    if (!compressed_group_of(&builder->config, module, &group, builder->error))
        return false;
    if (!group || !group->weights.present)
        return bad_tensor(builder->error, path, scale->name,
                          "config.json has no group for its module, or ignores it");
    int file = scale->file;
    for (size_t i = 0; i < COUNT_OF(suffixes); i++) {
        StoredRole role = STORED_CODES;
        snprintf(name, sizeof(name), "%.*s%s", (int)module_bytes, scale->name, suffixes[i]);
        RawTensor *raw = find_raw(builder, name);
        if (!raw || (strcmp(suffixes[i], "weight") != 0 && !compressed_role(suffixes[i], &role)))
            continue;
        if (parts.part[role])
            return bad_tensor(builder->error, path, parameter, "it has weight and weight_packed");
        parts.part[role] = &raw->tensor;
        raw->used = true;
        if (role == STORED_CODES)
            file = raw->file;
    }
    snprintf(name, sizeof(name), "%.*sweight_g_idx", (int)module_bytes, scale->name);
    RawTensor *groups = find_raw(builder, name);
    Stored stored;
    if (!compressed_read(path, parameter, group, &parts, &stored, builder->error))
        return false;
    if (groups && !read_groups(builder, parameter, groups, &stored))
        return false;
    Weight *weight = add_weight(builder, parameter);
    weight->stored = stored;
    weight->file = file;
    set_quantised(weight);
    return true;
}

// ---- DeepSeek ----

static bool add_deepseek_module(Builder *builder, RawTensor *scale, size_t module_bytes)
{
    char parameter[NAME_BYTES], shown[96], wanted[96];
    const char *path = builder->checkpoint->folder;
    Recipe recipe;
    Error cause = {0};
    snprintf(parameter, sizeof(parameter), "%.*sweight", (int)module_bytes, scale->name);
    RawTensor *codes = find_raw(builder, parameter);
    if (!codes || codes->tensor.dtype != DTYPE_F8_E4M3 || codes->tensor.rank != 2)
        return bad_tensor(builder->error, path, parameter,
                          "it has a weight_scale_inv but is no matrix of F8_E4M3");
    CHECK_RULE(recipe_parse("deepseek_block", &recipe, &cause));
    StoredPlan plan = {&recipe, LAYOUT_DEEPSEEK, 2, codes->tensor.shape, DTYPES};
    Stored stored;
    if (!stored_plan(&plan, &stored, &cause))
        return bad_tensor(builder->error, path, parameter, "%.200s", cause.what);
    const Tensor *want = &stored.part[STORED_SCALES].tensor;
    if (scale->tensor.dtype != DTYPE_F32 || scale->tensor.rank != 2 ||
        scale->tensor.shape[0] != want->shape[0] || scale->tensor.shape[1] != want->shape[1])
        return bad_tensor(builder->error, path, parameter, "its weight_scale_inv is %s, not %s",
                          tensor_describe(&scale->tensor, shown, sizeof(shown)),
                          tensor_describe(want, wanted, sizeof(wanted)));
    stored.part[STORED_CODES].tensor.data = codes->tensor.data;
    stored.part[STORED_SCALES].tensor.data = scale->tensor.data;
    scale->used = codes->used = true;
    Weight *weight = add_weight(builder, parameter);
    weight->stored = stored;
    weight->file = codes->file;
    set_quantised(weight);
    return true;
}

// Every module that has a tensor of this suffix.
static bool add_modules(Builder *builder, const char *suffix,
                        bool (*add)(Builder *, RawTensor *, size_t))
{
    Checkpoint *checkpoint = builder->checkpoint;
    size_t tail = strlen(suffix);
    for (int64_t i = 0; i < checkpoint->raws; i++) {
        RawTensor *raw = &checkpoint->raw[i];
        size_t length = strlen(raw->name);
        bool ends = length > tail && strcmp(raw->name + length - tail, suffix) == 0 &&
                    raw->name[length - tail - 1] == '.';
        if (!ends || raw->used)
            continue;
        if (length > NAME_BYTES / 2)
            return bad_tensor(builder->error, checkpoint->folder, raw->name, "a name of %zu bytes",
                              length);
        if (!add(builder, raw, length - tail))
            return false;
    }
    return true;
}

// ---- which layout ----

static const Json *find_metadata(const Checkpoint *checkpoint)
{
    for (int i = 0; i < checkpoint->files; i++) {
        const Json *header = checkpoint->file[i].safetensors.header;
        const Json *metadata = header ? json_find(header, "__metadata__") : NULL;
        if (metadata && json_find(metadata, "tensor_names"))
            return metadata;
    }
    return NULL;
}

static bool read_compressed(Builder *builder, const Json *config)
{
    char path[CHECKPOINT_PATH_BYTES + 64];
    snprintf(path, sizeof(path), "%s/config.json", builder->checkpoint->folder);
    builder->checkpoint->layout = LAYOUT_COMPRESSED;
    bool good = compressed_config_read(path, config, &builder->config, builder->error) &&
                add_modules(builder, "weight_scale", add_compressed_module);
    compressed_config_release(&builder->config);
    return good;
}

static bool read_layout(Builder *builder)
{
    Checkpoint *checkpoint = builder->checkpoint;
    const Json *config =
        checkpoint->config ? json_find(checkpoint->config, "quantization_config") : NULL;
    const char *method =
        config && json_is_object(config) ? json_text_of(json_find(config, "quant_method")) : NULL;
    for (int i = 0; i < checkpoint->files; i++)
        if (checkpoint->file[i].is_torch && !add_torch_file(builder, i))
            return false;
    builder->metadata = find_metadata(checkpoint);
    if (builder->metadata) {
        checkpoint->layout = LAYOUT_TORCHAO;
        return add_torchao(builder);
    }
    if (method && strcmp(method, "compressed-tensors") == 0)
        return read_compressed(builder, config);
    if (method && strcmp(method, "fp8") == 0) {
        checkpoint->layout = LAYOUT_DEEPSEEK;
        return add_modules(builder, "weight_scale_inv", add_deepseek_module);
    }
    return true;
}

// torchao's tensors say themselves what they are; config.json must not say otherwise.
static bool check_torchao_config(const Builder *builder)
{
    Checkpoint *checkpoint = builder->checkpoint;
    const Json *config =
        checkpoint->config ? json_find(checkpoint->config, "quantization_config") : NULL;
    const char *method =
        config && json_is_object(config) ? json_text_of(json_find(config, "quant_method")) : NULL;
    bool torchao = checkpoint->layout == LAYOUT_TORCHAO || checkpoint->layout == LAYOUT_TORCHAO_BIN;
    if (!torchao || !method)
        return true; // weights alone can be read, too
    if (strcmp(method, "torchao") != 0)
        return bad_file(builder->error, checkpoint->folder,
                        "its weights are torchao's, its config.json is of another library");
    return torchao_rules_check(checkpoint, config, checkpoint->note, sizeof(checkpoint->note),
                               builder->error);
}

static int compare_weights(const void *a, const void *b)
{
    return checkpoint_compare_names(((const Weight *)a)->name, ((const Weight *)b)->name);
}

static bool check_twins(Builder *builder)
{
    const Checkpoint *checkpoint = builder->checkpoint;
    for (int64_t i = 1; i < checkpoint->count; i++)
        if (strcmp(checkpoint->weights[i - 1].name, checkpoint->weights[i].name) == 0)
            return bad_tensor(builder->error, checkpoint->folder, checkpoint->weights[i].name,
                              "two weights have this name");
    return true;
}

bool checkpoint_read_weights(Checkpoint *checkpoint, Error *error)
{
    Builder builder = {.checkpoint = checkpoint, .error = error};
    if (!read_layout(&builder))
        return false;
    add_plain_weights(&builder);
    if (checkpoint->count > 0)
        qsort(checkpoint->weights, (size_t)checkpoint->count, sizeof(*checkpoint->weights),
              compare_weights);
    return check_twins(&builder) && check_torchao_config(&builder);
}

const Weight *checkpoint_find(const Checkpoint *checkpoint, const char *name)
{
    Weight key = {.name = (char *)(uintptr_t)name};
    if (checkpoint->count == 0)
        return NULL;
    return bsearch(&key, checkpoint->weights, (size_t)checkpoint->count, sizeof(key),
                   compare_weights);
}
