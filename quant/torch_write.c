// torch_write.c -- pickles of protocol 2, opcode by opcode, without a memo: values are repeated,
// which every reader takes.
//
// Attributes of torchao's classes are those of the metadata (torchao.c), as the objects that they
// stand for. Source: PyTorch, torch/_utils.py; torchao 0.18's own files.
#include "quant/torch_write.h"

#include "harness/json.h"
#include "quant/torchao.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct ClassRow {
    const char *name, *module;
    char how; // 'd' dataclass, 'e' enum of lower-case texts, 'm' enum of numbers, 't' named tuple
} ClassRow;

static const ClassRow classes[] = {
    {"Float8Tensor", "torchao.quantization", 0},
    {"Int8Tensor", "torchao.quantization", 0},
    {"Int4Tensor", "torchao.quantization", 0},
    {"Int4TilePackedTo4dTensor", "torchao.quantization", 0},
    {"IntxUnpackedToInt8Tensor", "torchao.quantization", 0},
    {"MXTensor", "torchao.prototype.mx_formats.mx_tensor", 0},
    {"NVFP4Tensor", "torchao.prototype.mx_formats.nvfp4_tensor", 0},
    {"Float8MMConfig", "torchao.float8.inference", 't'},
    {"QuantizeTensorToFloat8Kwargs",
     "torchao.quantization.quantize_.workflows.float8.float8_tensor", 'd'},
    {"QuantizeTensorToInt8Kwargs", "torchao.quantization.quantize_.workflows.int8.int8_tensor",
     'd'},
    {"QuantizeTensorToMXKwargs", "torchao.prototype.mx_formats.mx_tensor", 'd'},
    {"QuantizeTensorToNVFP4Kwargs", "torchao.prototype.mx_formats.nvfp4_tensor", 'd'},
    {"PerRow", "torchao.quantization.granularity", 'd'},
    {"PerTensor", "torchao.quantization.granularity", 'd'},
    {"PerBlock", "torchao.quantization.granularity", 'd'},
    {"KernelPreference", "torchao.quantization.quantize_.common.kernel_preference", 'e'},
    {"ScaleCalculationMode", "torchao.prototype.mx_formats.config", 'e'},
    {"MappingType", "torchao.quantization.quant_primitives", 'm'},
};

// Attributes that the classes have beside those of the metadata: None.
static const struct {
    const char *class_name, *attribute;
} nones[] = {
    {"Int8Tensor", "act_quant_scale"},
    {"Int8Tensor", "act_quant_zero_point"},
    {"Int8Tensor", "act_pre_scale"},
    {"Int4Tensor", "act_pre_scale"},
    {"Int4TilePackedTo4dTensor", "act_pre_scale"},
    {"NVFP4Tensor", "act_per_tensor_scale"},
    {"NVFP4Tensor", "per_tensor_scale"},
};

static const struct {
    DType dtype;
    const char *name, *storage; // storage NULL: untyped, counted in bytes
} dtypes[] = {
    {DTYPE_BF16, "bfloat16", "BFloat16Storage"},
    {DTYPE_F32, "float32", "FloatStorage"},
    {DTYPE_F16, "float16", "HalfStorage"},
    {DTYPE_F64, "float64", "DoubleStorage"},
    {DTYPE_I64, "int64", "LongStorage"},
    {DTYPE_I32, "int32", "IntStorage"},
    {DTYPE_I16, "int16", "ShortStorage"},
    {DTYPE_I8, "int8", "CharStorage"},
    {DTYPE_U8, "uint8", "ByteStorage"},
    {DTYPE_BOOL, "bool", "BoolStorage"},
    {DTYPE_U16, "uint16", NULL},
    {DTYPE_U32, "uint32", NULL},
    {DTYPE_U64, "uint64", NULL},
    {DTYPE_F8_E4M3, "float8_e4m3fn", NULL},
    {DTYPE_F8_E5M2, "float8_e5m2", NULL},
    {DTYPE_F8_E8M0, "float8_e8m0fnu", NULL},
};

static const ClassRow *class_of(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(classes); i++)
        if (strcmp(classes[i].name, name) == 0)
            return &classes[i];
    return NULL;
}

// ---- opcodes ----

static void put_number(FILE *out, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        fputc((int)(value >> (8 * i) & 0xFF), out);
}

static void put_text(FILE *out, const char *text)
{
    fputc('X', out);
    put_number(out, strlen(text), 4);
    fputs(text, out);
}

static void put_integer(FILE *out, int64_t value)
{
    if (value >= INT32_MIN && value <= INT32_MAX) {
        fputc('J', out);
        put_number(out, (uint64_t)value, 4);
    } else {
        fputs("\x8A\x08", out);
        put_number(out, (uint64_t)value, 8);
    }
}

static void put_global(FILE *out, const char *module, const char *name)
{
    fprintf(out, "c%s\n%s\n", module, name);
}

static void put_sizes(FILE *out, const int64_t *sizes, int count)
{
    fputc('(', out);
    for (int i = 0; i < count; i++)
        put_integer(out, sizes[i]);
    fputc('t', out);
}

static void put_real(FILE *out, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    fputc('G', out);
    for (int i = 7; i >= 0; i--)
        fputc((int)(bits >> (8 * i) & 0xFF), out);
}

// ---- tensors ----

static void put_strides(FILE *out, const Tensor *tensor)
{
    int64_t strides[TENSOR_RANK_MAX], stride = 1;
    for (int d = tensor->rank - 1; d >= 0; d--) {
        strides[d] = stride;
        stride *= tensor->shape[d] > 0 ? tensor->shape[d] : 1;
    }
    put_sizes(out, strides, tensor->rank);
}

static void put_tensor(FILE *out, const Tensor *tensor, int key)
{
    size_t row = 0;
    char text[16];
    while (row < COUNT_OF(dtypes) && dtypes[row].dtype != tensor->dtype)
        row++;
    CHECK(row < COUNT_OF(dtypes), EXIT_CODE_USAGE, "write --layout torchao",
          "torch.save has no place for type %s", dtype_row(tensor->dtype)->name);
    const char *storage = dtypes[row].storage;
    put_global(out, "torch._utils", storage ? "_rebuild_tensor_v2" : "_rebuild_tensor_v3");
    fputs("((", out);
    put_text(out, "storage");
    put_global(out, storage ? "torch" : "torch.storage", storage ? storage : "UntypedStorage");
    snprintf(text, sizeof(text), "%d", key);
    put_text(out, text);
    put_text(out, "cpu");
    put_integer(out, storage ? tensor_elements(tensor) : (int64_t)tensor_bytes(tensor));
    fputs("tQ", out);
    put_integer(out, 0);
    put_sizes(out, tensor->shape, tensor->rank);
    put_strides(out, tensor);
    fputs("\x89", out);
    put_global(out, "collections", "OrderedDict");
    fputs(")R", out);
    if (!storage)
        put_global(out, "torch", dtypes[row].name);
    fputs("tR", out);
}

// ---- attributes ----

static void put_json(FILE *out, const Json *json);

typedef struct Members {
    FILE *out;
    bool tensor; // of a tensor class: its dtype and shape are said elsewhere
    bool tuple;  // only the values
} Members;

static bool visit_member(const char *key, const Json *value, void *context)
{
    const Members *members = context;
    if (members->tensor && (strcmp(key, "dtype") == 0 || strcmp(key, "shape") == 0))
        return true;
    if (!members->tuple)
        put_text(members->out, key);
    put_json(members->out, value);
    return true;
}

static void put_object(FILE *out, const char *type, const Json *data)
{
    if (strcmp(type, "torch.dtype") == 0) {
        put_global(out, "torch", json_text_of(data));
        return;
    }
    const ClassRow *row = class_of(type);
    CHECK_RULE(row);
    put_global(out, row->module, row->name);
    if (row->how == 't') {
        fputc('(', out);
        json_each(data, visit_member, &(Members){out, false, true});
        fputs("t\x81", out);
    } else if (row->how == 'd') {
        fputs(")\x81}(", out);
        json_each(data, visit_member, &(Members){out, false, false});
        fputs("ub", out);
    } else if (row->how == 'm') { // SYMMETRIC is the first
        put_integer(out, 1);
        fputs("\x85R", out);
    } else {
        char *lower = strdup(json_text_of(data));
        CHECK(lower, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a text");
        for (char *c = lower; *c; c++)
            *c = *c >= 'A' && *c <= 'Z' ? (char)(*c - 'A' + 'a') : *c;
        put_text(out, lower);
        fputs("\x85R", out);
        free(lower);
    }
}

static void put_json(FILE *out, const Json *json)
{
    if (json_is_object(json)) {
        put_object(out, json_text_of(json_find(json, "_type")), json_find(json, "_data"));
    } else if (json_is_array(json)) {
        fputs("](", out);
        for (uint64_t i = 0; i < json_count(json); i++)
            put_json(out, json_at(json, i));
        fputc('e', out);
    } else if (json_is_text(json)) {
        put_text(out, json_text_of(json));
    } else if (json_is_boolean(json)) {
        fputs(json_boolean_of(json) ? "\x88" : "\x89", out);
    } else if (json_is_integer(json)) {
        put_integer(out, json_integer_of(json));
    } else if (json_is_number(json)) {
        put_real(out, json_real_of(json));
    } else {
        fputc('N', out);
    }
}

// ---- a quantised tensor ----

static void put_state(FILE *out, const Stored *stored, const char *class_name, const Json *data,
                      int *key)
{
    fputs("}(", out);
    for (int role = 0; role < STORED_ROLES; role++)
        if (stored->part[role].present) {
            put_text(out, stored->part[role].suffix + 1);
            put_tensor(out, &stored->part[role].tensor, (*key)++);
        }
    json_each(data, visit_member, &(Members){out, true, false});
    for (size_t i = 0; i < COUNT_OF(nones); i++) {
        bool there = strcmp(nones[i].attribute, "per_tensor_scale") == 0 &&
                     stored->part[STORED_TENSOR_SCALE].present;
        if (strcmp(nones[i].class_name, class_name) != 0 || there)
            continue;
        put_text(out, nones[i].attribute);
        fputc('N', out);
    }
    fputc('u', out);
}

static void put_quantised(FILE *out, const TorchOutput *output, int *key)
{
    Error error = {0};
    char *text = torchao_metadata(output->stored);
    Json *about = json_parse(text, strlen(text), &error);
    CHECK(about, EXIT_CODE_INTERNAL, "correct the template", "%s", error.what);
    const char *class_name = json_text_of(json_find(about, "_type"));
    const char *module = class_of(class_name)->module;
    put_global(out, "torch._tensor", "_rebuild_from_type_v2");
    fputc('(', out);
    put_global(out, "torch._utils", "_rebuild_wrapper_subclass");
    put_global(out, module, class_name);
    fputc('(', out);
    put_global(out, module, class_name);
    put_global(out, "torch", "bfloat16");
    put_sizes(out, output->tensor.shape, output->tensor.rank);
    put_strides(out, &output->tensor);
    put_integer(out, 0);
    put_global(out, "torch.serialization", "_get_layout");
    put_text(out, "torch.strided");
    fputs("\x85R", out);
    put_global(out, "torch", "device");
    put_text(out, "cpu");
    fputs("\x85R\x89t", out);
    put_state(out, output->stored, class_name, json_find(about, "_data"), key);
    fputs("tR", out);
    json_destroy(about);
    free(text);
}

char *torch_pickle(const TorchOutput *outputs, int count, uint64_t *bytes)
{
    char *text = NULL;
    size_t length = 0;
    int key = 0;
    FILE *out = open_memstream(&text, &length);
    CHECK(out, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a pickle");
    fputs("\x80\x02}(", out);
    for (int i = 0; i < count; i++) {
        put_text(out, outputs[i].name);
        if (outputs[i].stored)
            put_quantised(out, &outputs[i], &key);
        else
            put_tensor(out, &outputs[i].tensor, key++);
    }
    fputs("u.", out);
    CHECK(fclose(out) == 0, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a pickle");
    *bytes = length;
    return text;
}
