// torch_file.c -- what the values of a pickle mean: tensors in storages, and torchao's classes.
//
// Every size is checked against the bytes of the storage it lies in. The tree is walked to a fixed
// depth and with a budget of nodes, since a pickle may refer to itself.
#include "quant/torch_file.h"

#include "quant/message.h"
#include "quant/torch_legacy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    ATTRIBUTE_DEPTH_MAX = 6,
    ATTRIBUTE_NODES_MAX = 256,
    SUBCLASS_LEVELS_MAX = 3,
    TENSORS_MAX = 1 << 20
};

typedef struct Reader {
    const char *path, *name; // of the file and of the parameter at hand
    TorchFile *file;
    char folder[TORCH_NAME_BYTES * 4]; // "pytorch_model/"
    int nodes;
    Error *error;
} Reader;

#define BAD(reader, ...) bad_tensor((reader)->error, (reader)->path, (reader)->name, __VA_ARGS__)

typedef struct TorchDType {
    const char *global;  // "torch bfloat16"
    const char *storage; // its class of storages; NULL = untyped
    DType dtype;
} TorchDType;

static const TorchDType dtypes[] = {
    {"torch bfloat16", "torch BFloat16Storage", DTYPE_BF16},
    {"torch float32", "torch FloatStorage", DTYPE_F32},
    {"torch float16", "torch HalfStorage", DTYPE_F16},
    {"torch float64", "torch DoubleStorage", DTYPE_F64},
    {"torch int64", "torch LongStorage", DTYPE_I64},
    {"torch int32", "torch IntStorage", DTYPE_I32},
    {"torch int16", "torch ShortStorage", DTYPE_I16},
    {"torch int8", "torch CharStorage", DTYPE_I8},
    {"torch uint8", "torch ByteStorage", DTYPE_U8},
    {"torch bool", "torch BoolStorage", DTYPE_BOOL},
    {"torch uint16", NULL, DTYPE_U16},
    {"torch uint32", NULL, DTYPE_U32},
    {"torch uint64", NULL, DTYPE_U64},
    {"torch float8_e4m3fn", NULL, DTYPE_F8_E4M3},
    {"torch float8_e5m2", NULL, DTYPE_F8_E5M2},
    {"torch float8_e4m3fnuz", NULL, DTYPE_F8_E4M3FNUZ},
    {"torch float8_e5m2fnuz", NULL, DTYPE_F8_E5M2FNUZ},
    {"torch float8_e8m0fnu", NULL, DTYPE_F8_E8M0},
    {"torch float4_e2m1fn_x2", NULL, DTYPE_U8}, // a byte holds two
};

static const TorchDType *find_dtype(const PickleValue *value, bool storage)
{
    for (size_t i = 0; i < COUNT_OF(dtypes); i++) {
        const char *name = storage ? dtypes[i].storage : dtypes[i].global;
        if (name && pickle_is_global(value, name))
            return &dtypes[i];
    }
    return NULL;
}

// ---- tensors ----

typedef struct Storage {
    const uint8_t *data;
    uint64_t bytes;
    const TorchDType *dtype; // NULL = untyped
} Storage;

static bool read_storage(Reader *reader, const PickleValue *value, Storage *storage)
{
    if (!value || value->kind != PICKLE_STORAGE)
        return BAD(reader, "its storage is no persistent id");
    const PickleValue *id = value->items[0], *key = pickle_item(id, 2);
    const PickleValue *word = pickle_item(id, 0), *count = pickle_item(id, 4);
    if (id->kind != PICKLE_TUPLE || !word || word->kind != PICKLE_TEXT ||
        strcmp(word->text, "storage") != 0 || !key || key->kind != PICKLE_TEXT || !count ||
        count->kind != PICKLE_INTEGER || count->integer < 0)
        return BAD(reader, "its persistent id is no ('storage', class, key, location, count)");
    storage->dtype = find_dtype(pickle_item(id, 1), true);
    if (!storage->dtype && !pickle_is_global(pickle_item(id, 1), "torch.storage UntypedStorage"))
        return BAD(reader, "its storage has a class that is none of PyTorch's");
    char name[TORCH_NAME_BYTES * 8], shown[QUOTED_BYTES];
    snprintf(name, sizeof(name), "%sdata/%.200s", reader->folder, key->text);
    const ZipEntry *entry = zip_find(&reader->file->zip, name);
    if (!entry)
        return BAD(reader, "the archive has no member \"%s\"", quoted_name(name, shown));
    uint64_t size = storage->dtype ? (uint64_t)dtype_row(storage->dtype->dtype)->bits / 8 : 1;
    if ((uint64_t)count->integer > entry->bytes / size)
        return BAD(reader, "its storage of %lld elements of %llu bytes is a member of %llu bytes",
                   (long long)count->integer, (unsigned long long)size,
                   (unsigned long long)entry->bytes);
    storage->data = entry->data;
    storage->bytes = (uint64_t)count->integer * size;
    return true;
}

static bool read_sizes(Reader *reader, const PickleValue *value, const char *what, int64_t *sizes,
                       int *rank)
{
    const PickleValue *inner = pickle_arguments(value, "torch Size");
    if (inner)
        value = pickle_item(inner, 0);
    if (!value || (value->kind != PICKLE_TUPLE && value->kind != PICKLE_LIST) ||
        value->count > TENSOR_RANK_MAX)
        return BAD(reader, "its %s is no tuple of at most %d numbers", what, TENSOR_RANK_MAX);
    *rank = (int)value->count;
    for (uint32_t i = 0; i < value->count; i++) {
        const PickleValue *item = value->items[i];
        if (item->kind != PICKLE_INTEGER || item->integer < 0)
            return BAD(reader, "its %s has an item that is no size", what);
        sizes[i] = item->integer;
    }
    return true;
}

// Elements in the order of the shape, where strides are others than a plain array's.
static void *copy_strided(Reader *reader, const Tensor *tensor, const uint8_t *first,
                          const int64_t *strides)
{
    TorchFile *file = reader->file;
    uint64_t size = (uint64_t)dtype_row(tensor->dtype)->bits / 8;
    uint8_t *copy = malloc(tensor_bytes(tensor) + 1);
    file->copy = realloc(file->copy, (size_t)(file->copies + 1) * sizeof(*file->copy));
    CHECK(copy && file->copy, EXIT_CODE_HARDWARE, "free host memory",
          "no host memory for the %llu bytes of a tensor",
          (unsigned long long)tensor_bytes(tensor));
    file->copy[file->copies++] = copy;
    int64_t elements = tensor_elements(tensor);
    for (int64_t i = 0; i < elements; i++) {
        int64_t rest = i, at = 0;
        for (int d = tensor->rank - 1; d >= 0; d--) {
            at += rest % tensor->shape[d] * strides[d];
            rest /= tensor->shape[d];
        }
        memcpy(copy + (uint64_t)i * size, first + (uint64_t)at * size, size);
    }
    return copy;
}

// The last element that shape and strides reach, in elements; false if that does not fit 63 bits.
static bool find_reach(const Tensor *tensor, const int64_t *strides, int64_t *elements,
                       int64_t *reach, bool *plain)
{
    int64_t product = 1, last = 0;
    *plain = true;
    for (int d = tensor->rank - 1; d >= 0; d--) {
        int64_t span;
        if (tensor->shape[d] > 1 && strides[d] != product)
            *plain = false;
        if (__builtin_mul_overflow(product, tensor->shape[d], &product) ||
            (tensor->shape[d] > 0 &&
             (__builtin_mul_overflow(tensor->shape[d] - 1, strides[d], &span) ||
              __builtin_add_overflow(last, span, &last))))
            return false;
    }
    *elements = product;
    *reach = product > 0 ? last + 1 : 0;
    return true;
}

static bool read_array(Reader *reader, const PickleValue *arguments, bool typed, Tensor *tensor)
{
    Storage storage = {0};
    if (!read_storage(reader, pickle_item(arguments, 0), &storage))
        return false;
    const PickleValue *offset = pickle_item(arguments, 1);
    const TorchDType *dtype = typed ? find_dtype(pickle_item(arguments, 6), false) : storage.dtype;
    if (!dtype)
        return BAD(reader, "its dtype is none that tensors of files have");
    if (!offset || offset->kind != PICKLE_INTEGER || offset->integer < 0)
        return BAD(reader, "its offset in the storage is no size");
    int64_t strides[TENSOR_RANK_MAX], elements, reach;
    int stride_count;
    bool plain;
    *tensor = (Tensor){.dtype = dtype->dtype};
    if (!read_sizes(reader, pickle_item(arguments, 2), "shape", tensor->shape, &tensor->rank) ||
        !read_sizes(reader, pickle_item(arguments, 3), "stride", strides, &stride_count))
        return false;
    if (stride_count != tensor->rank)
        return BAD(reader, "it has %d sizes and %d strides", tensor->rank, stride_count);
    uint64_t size = (uint64_t)dtype_row(dtype->dtype)->bits / 8;
    uint64_t room = storage.bytes / size;
    if (!find_reach(tensor, strides, &elements, &reach, &plain) || (uint64_t)elements > room ||
        (uint64_t)offset->integer > room || (uint64_t)reach > room - (uint64_t)offset->integer)
        return BAD(reader, "its shape, strides and offset reach beyond its storage of %llu bytes",
                   (unsigned long long)storage.bytes);
    const uint8_t *first = storage.data + (uint64_t)offset->integer * size;
    tensor->data = (void *)(uintptr_t)first;
    if (!plain && elements > 0)
        tensor->data = copy_strided(reader, tensor, first, strides);
    return true;
}

static bool read_tensor(Reader *reader, const PickleValue *value, Tensor *tensor)
{
    const PickleValue *parameter = pickle_arguments(value, "torch._utils _rebuild_parameter");
    if (parameter)
        value = pickle_item(parameter, 0);
    const PickleValue *two = pickle_arguments(value, "torch._utils _rebuild_tensor_v2");
    const PickleValue *three = pickle_arguments(value, "torch._utils _rebuild_tensor_v3");
    if (!two && !three)
        return BAD(reader, "it is no tensor");
    return read_array(reader, two ? two : three, three != NULL, tensor);
}

// ---- attributes of torchao's classes ----

static Json *attribute(Reader *reader, const PickleValue *value, int depth);

static Json *typed(const char *type, Json *data)
{
    return json_set(json_set(json_object(), "_type", json_text(type)), "_data", data);
}

static const char *class_of(const PickleValue *global)
{
    return strchr(global->text, ' ') + 1;
}

static Json *attribute_array(Reader *reader, const PickleValue *value, int depth)
{
    Json *array = json_array();
    for (uint32_t i = 0; value && i < value->count && reader->nodes > 0; i++)
        json_append(array, attribute(reader, value->items[i], depth));
    return array;
}

static Json *attribute_dict(Reader *reader, const PickleValue *value, int depth)
{
    Json *object = json_object();
    for (uint32_t i = 0; value->kind == PICKLE_DICT && i + 1 < value->count && reader->nodes > 0;
         i += 2)
        if (value->items[i]->kind == PICKLE_TEXT)
            json_set(object, value->items[i]->text, attribute(reader, value->items[i + 1], depth));
    return object;
}

// A dataclass has a state; an enum one argument; a named tuple several.
static Json *attribute_call(Reader *reader, const PickleValue *value, int depth)
{
    const PickleValue *callee = value->items[0], *arguments = value->items[1];
    if (pickle_is_global(callee, "torch Size"))
        return attribute(reader, pickle_item(arguments, 0), depth);
    if (pickle_is_global(callee, "__builtin__ getattr") ||
        pickle_is_global(callee, "builtins getattr")) {
        const PickleValue *type = pickle_item(arguments, 0);
        bool enumeration = type && type->kind == PICKLE_GLOBAL;
        return enumeration
                   ? typed(class_of(type), attribute(reader, pickle_item(arguments, 1), depth))
                   : json_null();
    }
    if (value->state)
        return typed(class_of(callee), attribute_dict(reader, value->state, depth));
    if (arguments->count == 1)
        return typed(class_of(callee), attribute(reader, arguments->items[0], depth));
    return typed(class_of(callee),
                 arguments->count == 0 ? json_object() : attribute_array(reader, arguments, depth));
}

static Json *attribute(Reader *reader, const PickleValue *value, int depth)
{
    if (!value || --reader->nodes < 0 || depth == ATTRIBUTE_DEPTH_MAX)
        return json_null();
    switch (value->kind) {
    case PICKLE_BOOLEAN:
        return json_boolean(value->integer != 0);
    case PICKLE_INTEGER:
        return json_integer(value->integer);
    case PICKLE_REAL:
        return json_real(value->real);
    case PICKLE_TEXT:
        return json_text(value->text);
    case PICKLE_TUPLE:
    case PICKLE_LIST:
        return attribute_array(reader, value, depth + 1);
    case PICKLE_DICT:
        return attribute_dict(reader, value, depth + 1);
    case PICKLE_GLOBAL:
        return typed("torch.dtype", json_text(class_of(value)));
    case PICKLE_CALL:
        return attribute_call(reader, value, depth + 1);
    default:
        return json_null();
    }
}

// ---- the classes ----

static bool is_tensor(const PickleValue *value)
{
    return pickle_arguments(value, "torch._utils _rebuild_tensor_v2") ||
           pickle_arguments(value, "torch._utils _rebuild_tensor_v3") ||
           pickle_arguments(value, "torch._utils _rebuild_parameter");
}

// The class of torchao's and the state of _rebuild_from_type_v2(function, class, (class, dtype,
// shape, ...), state).
static bool find_subclass(Reader *reader, const PickleValue *arguments, const PickleValue **type,
                          const PickleValue **state)
{
    *type = pickle_item(arguments, 1);
    *state = pickle_item(arguments, 3);
    if (!pickle_is_global(pickle_item(arguments, 0), "torch._utils _rebuild_wrapper_subclass") ||
        !*type || (*type)->kind != PICKLE_GLOBAL || strncmp((*type)->text, "torchao", 7) != 0)
        return BAD(reader, "it is no tensor class of torchao");
    if (!*state || (*state)->kind != PICKLE_DICT)
        return BAD(reader, "its state is no dict");
    return true;
}

static bool read_state(Reader *reader, const PickleValue *state, int level, TorchTensor *tensor);

// A class within a class: its parts and attributes join the outer one's.
static bool read_inner(Reader *reader, const char *key, const PickleValue *arguments, int level,
                       TorchTensor *tensor)
{
    const PickleValue *type, *state;
    if (level == SUBCLASS_LEVELS_MAX || --reader->nodes < 0)
        return BAD(reader, "more than %d classes within each other", SUBCLASS_LEVELS_MAX);
    if (!find_subclass(reader, arguments, &type, &state))
        return false;
    json_set(tensor->attributes, key, typed(class_of(type), json_object()));
    return read_state(reader, state, level + 1, tensor);
}

static bool read_state(Reader *reader, const PickleValue *state, int level, TorchTensor *tensor)
{
    for (uint32_t i = 0; i + 1 < state->count; i += 2) {
        const PickleValue *key = state->items[i], *value = state->items[i + 1];
        if (key->kind != PICKLE_TEXT || key->count >= TORCH_NAME_BYTES)
            return BAD(reader, "an attribute whose name is no short text");
        const PickleValue *inner = pickle_arguments(value, "torch._tensor _rebuild_from_type_v2");
        if (inner) {
            if (!read_inner(reader, key->text, inner, level, tensor))
                return false;
            continue;
        }
        if (!is_tensor(value)) {
            json_set(tensor->attributes, key->text, attribute(reader, value, 0));
            continue;
        }
        if (tensor->parts == TORCH_PARTS_MAX)
            return BAD(reader, "more than %d tensors in it", TORCH_PARTS_MAX);
        TorchPart *part = &tensor->part[tensor->parts++];
        snprintf(part->name, sizeof(part->name), "%s", key->text);
        if (!read_tensor(reader, value, &part->tensor))
            return false;
    }
    return true;
}

static bool read_subclass(Reader *reader, const PickleValue *arguments, TorchTensor *tensor)
{
    const PickleValue *type, *inner = pickle_item(arguments, 2), *state;
    if (!find_subclass(reader, arguments, &type, &state))
        return false;
    const TorchDType *dtype = find_dtype(pickle_item(inner, 1), false);
    if (!dtype)
        return BAD(reader, "its dtype is none that tensors of files have");
    tensor->tensor.dtype = dtype->dtype;
    snprintf(tensor->class_name, sizeof(tensor->class_name), "%.60s", class_of(type));
    tensor->attributes = json_object();
    reader->nodes = ATTRIBUTE_NODES_MAX;
    return read_sizes(reader, pickle_item(inner, 2), "shape", tensor->tensor.shape,
                      &tensor->tensor.rank) &&
           read_state(reader, state, 1, tensor) &&
           (!torch_legacy_is(tensor->class_name) ||
            torch_legacy_translate(reader->path, tensor, reader->error));
}

static bool read_value(Reader *reader, const PickleValue *value, TorchTensor *tensor)
{
    const PickleValue *parameter = pickle_arguments(value, "torch._utils _rebuild_parameter");
    if (parameter)
        value = pickle_item(parameter, 0);
    const PickleValue *subclass = pickle_arguments(value, "torch._tensor _rebuild_from_type_v2");
    return subclass ? read_subclass(reader, subclass, tensor)
                    : read_tensor(reader, value, &tensor->tensor);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bool check_names(Reader *reader)
{
    TorchFile *file = reader->file;
    const char **names = malloc((size_t)(file->count + 1) * sizeof(*names));
    CHECK(names, EXIT_CODE_HARDWARE, "free host memory", "no host memory for names");
    for (int64_t i = 0; i < file->count; i++)
        names[i] = file->tensors[i].name;
    qsort(names, (size_t)file->count, sizeof(*names), compare_names);
    bool good = true;
    for (int64_t i = 1; good && i < file->count; i++)
        if (strcmp(names[i - 1], names[i]) == 0) {
            reader->name = names[i];
            good = BAD(reader, "two tensors have this name");
        }
    free(names);
    return good;
}

static bool read_root(Reader *reader, const PickleValue *root)
{
    TorchFile *file = reader->file;
    const PickleValue *ordered = pickle_arguments(root, "collections OrderedDict");
    if (ordered) // an OrderedDict gets its items, and perhaps a __dict__ with _metadata
        root = root->state;
    if (!root || root->kind != PICKLE_DICT || root->count / 2 > TENSORS_MAX)
        return bad_file(reader->error, reader->path, "the pickle is no dict of tensors");
    file->tensors = calloc(root->count / 2 + 1, sizeof(*file->tensors));
    CHECK(file->tensors, EXIT_CODE_HARDWARE, "free host memory", "no host memory for %u tensors",
          root->count / 2);
    for (uint32_t i = 0; i + 1 < root->count; i += 2) {
        const PickleValue *key = root->items[i];
        if (key->kind != PICKLE_TEXT)
            return bad_byte(reader->error, reader->path, key->byte,
                            "of the pickle: a key that is no text");
        TorchTensor *tensor = &file->tensors[file->count++];
        tensor->name = reader->name = key->text;
        if (!read_value(reader, root->items[i + 1], tensor))
            return false;
    }
    return check_names(reader);
}

static bool read_archive(Reader *reader)
{
    Zip *zip = &reader->file->zip;
    static const char *const tail = "/data.pkl";
    const ZipEntry *entry = zip_find_tail(zip, tail);
    if (!entry)
        return bad_file(reader->error, reader->path,
                        "the archive has no member data.pkl (or several): not from torch.save");
    size_t length = strlen(entry->name) - strlen(tail) + 1;
    if (length >= sizeof(reader->folder))
        return bad_file(reader->error, reader->path, "its folder has a name of %zu bytes", length);
    memcpy(reader->folder, entry->name, length);
    reader->folder[length] = '\0';
    char name[sizeof(reader->folder) + 16];
    snprintf(name, sizeof(name), "%sbyteorder", reader->folder);
    const ZipEntry *order = zip_find(zip, name);
    if (order && (order->bytes != 6 || memcmp(order->data, "little", 6) != 0))
        return bad_file(reader->error, reader->path, "its byte order is not little");
    reader->file->pickle = pickle_parse(reader->path, entry->data, entry->bytes, reader->error);
    return reader->file->pickle && read_root(reader, pickle_root(reader->file->pickle));
}

static bool read_file(const char *path, TorchFile *file, Error *error)
{
    Reader reader = {.path = path, .name = "", .file = file, .error = error};
    bool good = read_archive(&reader);
    if (!good)
        torch_file_close(file);
    return good;
}

bool torch_file_parse(const char *path, const uint8_t *data, uint64_t bytes, TorchFile *file,
                      Error *error)
{
    *file = (TorchFile){.count = 0};
    return zip_parse(path, data, bytes, &file->zip, error) && read_file(path, file, error);
}

bool torch_file_open(const char *path, TorchFile *file, Error *error)
{
    *file = (TorchFile){.count = 0};
    return zip_open(path, &file->zip, error) && read_file(path, file, error);
}

void torch_file_close(TorchFile *file)
{
    for (int64_t i = 0; i < file->count; i++)
        if (file->tensors[i].attributes)
            json_destroy(file->tensors[i].attributes);
    for (int64_t i = 0; i < file->copies; i++)
        free(file->copy[i]);
    free(file->copy);
    free(file->tensors);
    if (file->pickle)
        pickle_destroy(file->pickle);
    zip_close(&file->zip);
    *file = (TorchFile){.count = 0};
}
