// safetensors.c -- reading the container, with nothing believed before it is checked.
//
// Source of the rules: huggingface/safetensors, safetensors/src/tensor.rs. Order of the checks: the
// length of the header; its shape as text (nesting, array lengths, number of members), which bounds
// the memory that parsing may take; JSON with duplicate keys refused; every entry by itself; then
// all entries together, which must cover the rest of the file without hole or overlap. Every
// message names the file, the byte and the rule. Text from the file is escaped before it is shown.
//
// We are stricter than the reference in one point: an entry with a key that we do not know is
// refused, not skipped.
#include "quant/safetensors.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LENGTH_BYTES = 8,
    HEADER_BYTES_MAX = 100000000,
    MARKS_MAX = 7 << 20, // brackets and colons: seven per tensor
    NESTING_MAX = 3,     // the header, an entry, an array
    QUOTED_BYTES = 96,
};

static const char *const metadata_name = "__metadata__";
static const char *const write_again = "copy or write the file again; it is damaged or hostile";

typedef struct Reader {
    const char *path;
    const uint8_t *image;
    uint64_t image_bytes, header_bytes, data_bytes;
    int64_t entries_max;
    Safetensors *file;
    Error *error;
} Reader;

// A name as it may be shown: control characters and quotes as \xNN, long ones cut.
static const char *quoted(const char *name, char text[QUOTED_BYTES])
{
    size_t length = 0;
    for (const unsigned char *c = (const unsigned char *)name; *c; c++) {
        if (length > QUOTED_BYTES - 10) {
            memcpy(text + length, "...", 3);
            length += 3;
            break;
        }
        bool plain = *c >= 0x20 && *c != 0x7F && *c != '"' && *c != '\\';
        length += (size_t)snprintf(text + length, QUOTED_BYTES - length, plain ? "%c" : "\\x%02X",
                                   (unsigned)*c);
    }
    text[length] = '\0';
    return text;
}

// Byte of the file at which the entry `name` begins; the header's start when its key is written
// with escapes or is long.
static uint64_t entry_offset(const Reader *reader, const char *name)
{
    const uint8_t *at = reader->image + LENGTH_BYTES, *end = at + reader->header_bytes;
    char key[256];
    int length = snprintf(key, sizeof(key), "\"%s\"", name);
    if (length >= (int)sizeof(key))
        return LENGTH_BYTES;
    while ((at = memmem(at, (size_t)(end - at), key, (size_t)length)) != NULL) {
        const uint8_t *after = at + length;
        while (after < end && memchr(" \t\r\n", *after, 4))
            after++;
        if (after < end && *after == ':')
            return (uint64_t)(at - reader->image);
        at = after;
    }
    return LENGTH_BYTES;
}

PRINTF_LIKE(3, 4)
static bool entry_error(const Reader *reader, const char *name, const char *format, ...)
{
    char rule[320], shown[QUOTED_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(rule, sizeof(rule), format, arguments);
    va_end(arguments);
    return error_set(reader->error, EXIT_CODE_DATA, write_again,
                     "%.90s: byte %llu: tensor \"%s\": %s", reader->path,
                     (unsigned long long)entry_offset(reader, name), quoted(name, shown), rule);
}

PRINTF_LIKE(3, 4)
static bool byte_error(const Reader *reader, uint64_t byte, const char *format, ...)
{
    char rule[320];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(rule, sizeof(rule), format, arguments);
    va_end(arguments);
    return error_set(reader->error, EXIT_CODE_DATA, write_again, "%.90s: byte %llu: %s",
                     reader->path, (unsigned long long)byte, rule);
}

static bool read_length(Reader *reader)
{
    if (reader->image_bytes < LENGTH_BYTES)
        return byte_error(reader, 0, "the file has %llu bytes, the header length alone takes %d",
                          (unsigned long long)reader->image_bytes, LENGTH_BYTES);
    uint64_t length = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--)
        length = length << 8 | reader->image[i];
    if (length > HEADER_BYTES_MAX)
        return byte_error(reader, 0, "the header length is %llu bytes, at most %d are allowed",
                          (unsigned long long)length, HEADER_BYTES_MAX);
    if (length > reader->image_bytes - LENGTH_BYTES)
        return byte_error(
            reader, 0, "the header length is %llu bytes, but only %llu bytes follow it",
            (unsigned long long)length, (unsigned long long)(reader->image_bytes - LENGTH_BYTES));
    if (length == 0 || reader->image[LENGTH_BYTES] != '{')
        return byte_error(reader, LENGTH_BYTES, "the header does not begin with '{'");
    reader->header_bytes = length;
    reader->data_bytes = reader->image_bytes - LENGTH_BYTES - length;
    return true;
}

// What a header that keeps the rules cannot contain, found before memory is spent on it.
static bool check_extent(Reader *reader)
{
    const uint8_t *header = reader->image + LENGTH_BYTES;
    bool in_string = false, in_array[NESTING_MAX + 1] = {false};
    int nesting = 0, elements[NESTING_MAX + 1] = {0};
    int64_t marks = 0;
    for (uint64_t i = 0; i < reader->header_bytes; i++) {
        uint8_t c = header[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else
                in_string = c != '"';
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++nesting > NESTING_MAX)
                return byte_error(reader, LENGTH_BYTES + i,
                                  "the header is nested deeper than %d levels", NESTING_MAX);
            in_array[nesting] = c == '[';
            elements[nesting] = 1;
        } else if (c == '}' || c == ']') {
            if (--nesting < 0)
                return byte_error(reader, LENGTH_BYTES + i, "'%c' closes nothing", c);
        } else if (c == ',' && in_array[nesting] && ++elements[nesting] > TENSOR_RANK_MAX) {
            return byte_error(reader, LENGTH_BYTES + i,
                              "an array has more than %d elements, the highest rank of a tensor",
                              TENSOR_RANK_MAX);
        }
        if (!in_string && memchr("{[:", c, 3) && ++marks > MARKS_MAX)
            return byte_error(reader, LENGTH_BYTES + i,
                              "the header has more than %d brackets and colons, enough for %d "
                              "tensors",
                              MARKS_MAX, MARKS_MAX / 7);
    }
    return true;
}

static bool visit_metadata(const char *key, const Json *value, void *context)
{
    Reader *reader = context;
    char shown[QUOTED_BYTES];
    if (json_is_text(value))
        return true;
    return byte_error(reader, entry_offset(reader, key),
                      "__metadata__ may only hold texts, and its \"%s\" is something else",
                      quoted(key, shown));
}

static bool read_metadata(Reader *reader, const Json *value)
{
    if (!json_is_object(value))
        return byte_error(reader, entry_offset(reader, metadata_name),
                          "__metadata__ is no JSON object");
    json_each(value, visit_metadata, reader);
    return reader->error->exit_code == EXIT_CODE_GOOD;
}

// A JSON integer from 0 up. What it is not is said in the message, since that tells liars from
// accidents.
static bool read_size(Reader *reader, const char *name, const char *what, const Json *value,
                      int64_t *size)
{
    if (!json_is_integer(value))
        return entry_error(reader, name, "%s is %s, not an integer", what,
                           json_is_number(value) ? "a fraction" : "no number");
    *size = json_integer_of(value);
    if (*size < 0)
        return entry_error(reader, name, "%s is negative (%lld)", what, (long long)*size);
    return true;
}

static bool read_shape(Reader *reader, const char *name, const Json *shape, Tensor *tensor,
                       uint64_t *bytes)
{
    if (!json_is_array(shape))
        return entry_error(reader, name, "shape is no JSON array");
    uint64_t rank = json_count(shape), elements = 1, bits;
    if (rank > TENSOR_RANK_MAX)
        return entry_error(reader, name, "%llu dimensions (rank), at most %d are supported",
                           (unsigned long long)rank, TENSOR_RANK_MAX);
    tensor->rank = (int)rank;
    for (uint64_t i = 0; i < rank; i++) {
        if (!read_size(reader, name, "an extent in shape", json_at(shape, i), &tensor->shape[i]))
            return false;
        if (__builtin_mul_overflow(elements, (uint64_t)tensor->shape[i], &elements) ||
            elements > INT64_MAX)
            return entry_error(reader, name, "the product of its shape does not fit 63 bits");
    }
    const DTypeRow *row = dtype_row(tensor->dtype);
    if (__builtin_mul_overflow(elements, (uint64_t)row->bits, &bits))
        return entry_error(reader, name, "%llu elements of %d bits do not fit 64 bits",
                           (unsigned long long)elements, row->bits);
    if (bits % 8 != 0)
        return entry_error(reader, name, "%llu elements of %d bits are no whole number of bytes",
                           (unsigned long long)elements, row->bits);
    *bytes = bits / 8;
    return true;
}

static bool read_offsets(Reader *reader, const char *name, const Json *offsets, int64_t *begin,
                         int64_t *end)
{
    if (!json_is_array(offsets) || json_count(offsets) != 2)
        return entry_error(reader, name, "data_offsets is no JSON array of two numbers");
    if (!read_size(reader, name, "data_offsets[0]", json_at(offsets, 0), begin) ||
        !read_size(reader, name, "data_offsets[1]", json_at(offsets, 1), end))
        return false;
    if (*end < *begin)
        return entry_error(reader, name, "data_offsets [%lld, %lld] end before they begin",
                           (long long)*begin, (long long)*end);
    if ((uint64_t)*end > reader->data_bytes)
        return entry_error(reader, name,
                           "data_offsets [%lld, %lld] reach beyond the %llu bytes of data in the "
                           "file (truncated?)",
                           (long long)*begin, (long long)*end,
                           (unsigned long long)reader->data_bytes);
    return true;
}

static bool read_entry(Reader *reader, const char *name, const Json *value, Tensor *tensor)
{
    char shown[QUOTED_BYTES];
    if (!json_is_object(value))
        return entry_error(reader, name, "its entry is no JSON object");
    const char *const keys[] = {"dtype", "shape", "data_offsets"};
    for (size_t i = 0; i < COUNT_OF(keys); i++)
        if (!json_find(value, keys[i]))
            return entry_error(reader, name, "its entry has no %s", keys[i]);
    if (json_count(value) != COUNT_OF(keys))
        return entry_error(reader, name,
                           "its entry has %llu members, not just dtype, shape and "
                           "data_offsets",
                           (unsigned long long)json_count(value));
    const char *tag = json_text_of(json_find(value, "dtype"));
    if (!tag)
        return entry_error(reader, name, "dtype is no text");
    if (!dtype_find_tag(tag, &tensor->dtype))
        return entry_error(reader, name, "there is no dtype \"%s\"", quoted(tag, shown));
    uint64_t bytes = 0;
    int64_t begin = 0, end = 0;
    if (!read_shape(reader, name, json_find(value, "shape"), tensor, &bytes) ||
        !read_offsets(reader, name, json_find(value, "data_offsets"), &begin, &end))
        return false;
    if ((uint64_t)(end - begin) != bytes)
        return entry_error(reader, name,
                           "its shape and dtype (%s) need %llu bytes, data_offsets hold %lld", tag,
                           (unsigned long long)bytes, (long long)(end - begin));
    // The map is read-only; a Tensor has no const twin, so whoever writes through it is stopped by
    // the processor.
    const uint8_t *data = reader->image + LENGTH_BYTES + reader->header_bytes + begin;
    tensor->data = (void *)(uintptr_t)data;
    return true;
}

static bool visit_entry(const char *key, const Json *value, void *context)
{
    Reader *reader = context;
    Safetensors *file = reader->file;
    if (strcmp(key, metadata_name) == 0)
        return read_metadata(reader, value);
    Tensor tensor = {.rank = 0};
    if (!read_entry(reader, key, value, &tensor))
        return false;
    char *name = strdup(key);
    CHECK(name && file->count < reader->entries_max, EXIT_CODE_HARDWARE, "free host memory",
          "no host memory for the name of tensor %lld", (long long)file->count);
    file->entries[file->count++] = (SafetensorsEntry){.name = name, .tensor = tensor};
    return true;
}

// By place in the file; empty tensors before the one that begins where they are.
static int compare_places(const void *a, const void *b)
{
    const Tensor *x = &((const SafetensorsEntry *)a)->tensor;
    const Tensor *y = &((const SafetensorsEntry *)b)->tensor;
    uintptr_t x_begin = (uintptr_t)x->data, y_begin = (uintptr_t)y->data;
    if (x_begin != y_begin)
        return x_begin < y_begin ? -1 : 1;
    uint64_t x_bytes = tensor_bytes(x), y_bytes = tensor_bytes(y);
    return x_bytes < y_bytes ? -1 : x_bytes > y_bytes;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const SafetensorsEntry *)a)->name, ((const SafetensorsEntry *)b)->name);
}

// All tensors together are the rest of the file, in one piece.
static bool check_cover(Reader *reader)
{
    Safetensors *file = reader->file;
    uint64_t data_start = LENGTH_BYTES + reader->header_bytes, covered = 0;
    const char *before = "";
    char shown[QUOTED_BYTES];
    if (file->count > 0)
        qsort(file->entries, (size_t)file->count, sizeof(*file->entries), compare_places);
    for (int64_t i = 0; i < file->count; i++) {
        const SafetensorsEntry *entry = &file->entries[i];
        uint64_t begin =
            (uint64_t)((const uint8_t *)entry->tensor.data - reader->image) - data_start;
        if (begin < covered)
            return entry_error(reader, entry->name,
                               "its data begin at %llu, inside those of tensor \"%s\", which end "
                               "at %llu (overlap)",
                               (unsigned long long)begin, quoted(before, shown),
                               (unsigned long long)covered);
        if (begin > covered)
            return entry_error(reader, entry->name,
                               "its data begin at %llu, but those before end at %llu (hole)",
                               (unsigned long long)begin, (unsigned long long)covered);
        covered = begin + tensor_bytes(&entry->tensor);
        before = entry->name;
    }
    if (covered != reader->data_bytes)
        return byte_error(reader, data_start + covered,
                          "%llu bytes at the end of the file belong to no tensor",
                          (unsigned long long)(reader->data_bytes - covered));
    return true;
}

static bool parse_header(Reader *reader)
{
    Safetensors *file = reader->file;
    Error cause = {.exit_code = EXIT_CODE_GOOD};
    file->header =
        json_parse((const char *)reader->image + LENGTH_BYTES, reader->header_bytes, &cause);
    if (!file->header)
        return byte_error(reader, LENGTH_BYTES, "the header, counted from here: %.240s",
                          cause.what);
    if (!json_is_object(file->header))
        return byte_error(reader, LENGTH_BYTES, "the header is no JSON object");
    reader->entries_max = (int64_t)json_count(file->header);
    if (reader->entries_max > 0) {
        file->entries = calloc((size_t)reader->entries_max, sizeof(*file->entries));
        CHECK(file->entries, EXIT_CODE_HARDWARE, "free host memory",
              "no host memory for %lld tensor entries", (long long)reader->entries_max);
    }
    json_each(file->header, visit_entry, reader);
    return reader->error->exit_code == EXIT_CODE_GOOD;
}

static bool read_image(const char *path, const uint8_t *data, uint64_t bytes, Safetensors *file,
                       Error *error)
{
    Error first = {.exit_code = EXIT_CODE_GOOD};
    Reader reader = {
        .path = path, .image = data, .image_bytes = bytes, .file = file, .error = &first};
    if (read_length(&reader) && check_extent(&reader) && parse_header(&reader) &&
        check_cover(&reader)) {
        if (file->count > 0)
            qsort(file->entries, (size_t)file->count, sizeof(*file->entries), compare_names);
        return true;
    }
    safetensors_close(file);
    if (error && error->exit_code == EXIT_CODE_GOOD)
        *error = first;
    return false;
}

bool safetensors_parse(const uint8_t *data, uint64_t bytes, Safetensors *file, Error *error)
{
    *file = (Safetensors){.count = 0};
    return read_image("(memory)", data, bytes, file, error);
}

bool safetensors_open(const char *path, Safetensors *file, Error *error)
{
    *file = (Safetensors){.count = 0};
    FileMap map;
    if (!file_map(path, &map, error))
        return false;
    file->map = map;
    return read_image(path, map.data, map.bytes, file, error);
}

void safetensors_close(Safetensors *file)
{
    for (int64_t i = 0; i < file->count; i++)
        free(file->entries[i].name);
    free(file->entries);
    if (file->header)
        json_destroy(file->header);
    if (file->map.data)
        file_unmap(&file->map);
    *file = (Safetensors){.count = 0};
}

static int compare_key(const void *name, const void *entry)
{
    return strcmp(name, ((const SafetensorsEntry *)entry)->name);
}

const Tensor *safetensors_find(const Safetensors *file, const char *name)
{
    if (file->count == 0)
        return NULL;
    const SafetensorsEntry *entry =
        bsearch(name, file->entries, (size_t)file->count, sizeof(*file->entries), compare_key);
    return entry ? &entry->tensor : NULL;
}

const char *safetensors_metadata(const Safetensors *file, const char *key)
{
    const Json *metadata = file->header ? json_find(file->header, metadata_name) : NULL;
    const Json *value = metadata ? json_find(metadata, key) : NULL;
    return value ? json_text_of(value) : NULL;
}
