// torch_legacy.c -- old classes by the names of new ones; no value changes.
#include "quant/torch_legacy.h"
#include "quant/message.h"

#include <stdio.h>
#include <string.h>

#define REFUSE(...) bad_tensor(error, path, tensor->name, __VA_ARGS__)

static bool is_dynamic(const TorchTensor *tensor)
{
    return strcmp(tensor->class_name, "LinearActivationQuantizedTensor") == 0;
}

bool torch_legacy_is(const char *class_name)
{
    return strcmp(class_name, "AffineQuantizedTensor") == 0 ||
           strcmp(class_name, "LinearActivationQuantizedTensor") == 0;
}

// What an attribute that is a class or a function is called; "" where it is neither.
static const char *name_of(const TorchTensor *tensor, const char *attribute, const char *member)
{
    const Json *about = json_find(tensor->attributes, attribute);
    const Json *name = about && json_is_object(about) ? json_find(about, member) : NULL;
    return name && json_is_text(name) ? json_text_of(name) : "";
}

static TorchPart *part_named(TorchTensor *tensor, const char *name)
{
    for (int i = 0; i < tensor->parts; i++)
        if (strcmp(tensor->part[i].name, name) == 0)
            return &tensor->part[i];
    return NULL;
}

static void become(TorchTensor *tensor, const char *class_name, TorchPart *codes)
{
    snprintf(tensor->class_name, sizeof(tensor->class_name), "%s", class_name);
    snprintf(codes->name, sizeof(codes->name), "qdata");
}

// Zero points of symmetric codes are stored as zeros of some type; today's class does without.
static bool drop_zeros(const char *path, TorchTensor *tensor, Error *error)
{
    TorchPart *zeros = part_named(tensor, "zero_point");
    if (!zeros)
        return true;
    const uint8_t *data = zeros->tensor.data;
    for (uint64_t i = 0; i < tensor_bytes(&zeros->tensor); i++)
        if (data[i] != 0)
            return REFUSE("int8 with zero points that are not 0: no recipe has them");
    *zeros = tensor->part[--tensor->parts];
    return true;
}

// int8 codes, a scale per row: [N, K] and [N].
static bool translate_plain(const char *path, TorchTensor *tensor, Error *error)
{
    const Tensor *outer = &tensor->tensor;
    const Json *block = json_find(tensor->attributes, "block_size");
    TorchPart *codes = part_named(tensor, "int_data"), *scale = part_named(tensor, "scale");
    bool rows = block && json_is_array(block) && json_count(block) == 2 && outer->rank == 2 &&
                json_integer_of(json_at(block, 0)) == 1 &&
                json_integer_of(json_at(block, 1)) == outer->shape[1];
    if (!codes || !scale || codes->tensor.dtype != DTYPE_I8 || !rows)
        return REFUSE("%s: PlainLayout of other than int8 codes under a scale per row",
                      tensor->class_name);
    const char *function = name_of(tensor, "input_quant_func", "_data");
    bool dynamic = is_dynamic(tensor);
    if (dynamic && strncmp(function, "_int8_symm_per_token", 20) != 0)
        return REFUSE("activations are quantised by %.60s, which no recipe does", function);
    if (scale->tensor.rank == 1) {
        scale->tensor.rank = 2;
        scale->tensor.shape[1] = 1;
    }
    become(tensor, "Int8Tensor", codes);
    json_set(tensor->attributes, "act_quant_kwargs", dynamic ? json_object() : json_null());
    return drop_zeros(path, tensor, error);
}

bool torch_legacy_translate(const char *path, TorchTensor *tensor, Error *error)
{
    const char *impl = name_of(tensor, "tensor_impl", "_type");
    if (strcmp(impl, "PlainAQTTensorImpl") == 0)
        return translate_plain(path, tensor, error);
    TorchPart *codes = part_named(tensor, "packed_weight");
    if (strcmp(impl, "TensorCoreTiledAQTTensorImpl") == 0 && codes && !is_dynamic(tensor)) {
        become(tensor, "Int4TilePackedTo4dTensor", codes);
        return true;
    }
    return REFUSE("%s around %.60s: no class of today has its layout", tensor->class_name,
                  impl[0] ? impl : "nothing");
}
