// safetensors_write.c -- writing the container so that it is the file the reference writer would
// have written.
//
// Order of tensors (huggingface/safetensors, safetensors/src/tensor.rs): by dtype in the order
// below, widest alignment first, then by name in byte order. The header is compact JSON, metadata
// first, padded with spaces so that the data begin at a multiple of eight.
#include "quant/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTH_BYTES = 8, HEADER_BYTES_MAX = 100000000 };

static const DType dtype_order[] = {
    DTYPE_U64,         DTYPE_I64,     DTYPE_F64,     DTYPE_C64,     DTYPE_F32, DTYPE_U32,
    DTYPE_I32,         DTYPE_BF16,    DTYPE_F16,     DTYPE_U16,     DTYPE_I16, DTYPE_F8_E5M2FNUZ,
    DTYPE_F8_E4M3FNUZ, DTYPE_F8_E8M0, DTYPE_F8_E4M3, DTYPE_F8_E5M2, DTYPE_I8,  DTYPE_U8,
    DTYPE_F6_E3M2,     DTYPE_F6_E2M3, DTYPE_F4,      DTYPE_BOOL,
};
_Static_assert(COUNT_OF(dtype_order) == DTYPES, "every dtype has its place in the order");

static int dtype_place(DType dtype)
{
    int place = 0;
    while (dtype_order[place] != dtype)
        place++;
    return place;
}

static int compare_names(const void *a, const void *b)
{
    const SafetensorsOutput *x = *(const SafetensorsOutput *const *)a;
    const SafetensorsOutput *y = *(const SafetensorsOutput *const *)b;
    return strcmp(x->name, y->name);
}

static int compare_outputs(const void *a, const void *b)
{
    const SafetensorsOutput *x = *(const SafetensorsOutput *const *)a;
    const SafetensorsOutput *y = *(const SafetensorsOutput *const *)b;
    int x_place = dtype_place(x->tensor.dtype), y_place = dtype_place(y->tensor.dtype);
    return x_place != y_place ? x_place - y_place : strcmp(x->name, y->name);
}

// Appends the text as JSON writes it. False if it is not UTF-8: then it could not be read back as
// it is.
static bool print_text(FILE *header, const char *text, Error *error)
{
    Json *json = json_text(text);
    bool same = strcmp(json_text_of(json), text) == 0;
    char *printed = json_print(json, false);
    fputs(printed, header);
    free(printed);
    json_destroy(json);
    return same ||
           error_set(error, EXIT_CODE_DATA, "give it a name in UTF-8",
                     "\"%.80s\" cannot be written to a safetensors file: it is not UTF-8", text);
}

static bool print_metadata(FILE *header, const char *const *metadata, Error *error)
{
    fputs("\"__metadata__\":{", header);
    for (int i = 0; metadata[i]; i += 2) {
        fputs(i > 0 ? "," : "", header);
        if (!print_text(header, metadata[i], error) || fputc(':', header) == EOF ||
            !print_text(header, metadata[i + 1], error))
            return false;
    }
    fputc('}', header);
    return true;
}

static bool check_output(const SafetensorsOutput *output, Error *error)
{
    const Tensor *tensor = &output->tensor;
    bool good = strcmp(output->name, "__metadata__") != 0 && tensor->rank >= 0 &&
                tensor->rank <= TENSOR_RANK_MAX;
    for (int i = 0; good && i < tensor->rank; i++)
        good = tensor->shape[i] >= 0;
    if (!good)
        return error_set(error, EXIT_CODE_INTERNAL, "this is a bug of meshwork: please report it",
                         "tensor \"%.80s\" of rank %d has a name or shape that cannot be written",
                         output->name, tensor->rank);
    uint64_t bits = (uint64_t)tensor_elements(tensor) * (uint64_t)dtype_row(tensor->dtype)->bits;
    if (bits % 8 != 0)
        return error_set(error, EXIT_CODE_DATA, "pad its last dimension",
                         "tensor \"%.80s\" has %llu bits, no whole number of bytes", output->name,
                         (unsigned long long)bits);
    return true;
}

static bool print_entries(FILE *header, const SafetensorsOutput *const *sorted, int64_t count,
                          bool first, Error *error)
{
    uint64_t begin = 0;
    for (int64_t i = 0; i < count; i++) {
        const Tensor *tensor = &sorted[i]->tensor;
        fputs(first && i == 0 ? "" : ",", header);
        if (!check_output(sorted[i], error) || !print_text(header, sorted[i]->name, error))
            return false;
        fprintf(header, ":{\"dtype\":\"%s\",\"shape\":[", dtype_row(tensor->dtype)->tag);
        for (int d = 0; d < tensor->rank; d++)
            fprintf(header, "%s%lld", d > 0 ? "," : "", (long long)tensor->shape[d]);
        uint64_t end = begin + tensor_bytes(tensor);
        fprintf(header, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)begin,
                (unsigned long long)end);
        begin = end;
    }
    return true;
}

// The whole header with its length in front and its padding behind; the caller frees it. NULL and
// an error otherwise.
static char *make_header(const SafetensorsOutput *const *sorted, int64_t count,
                         const char *const *metadata, size_t *bytes, Error *error)
{
    char *text = NULL;
    FILE *header = open_memstream(&text, bytes);
    CHECK(header, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a header");
    bool has_metadata = metadata && metadata[0];
    fwrite("\0\0\0\0\0\0\0\0{", 1, LENGTH_BYTES + 1, header);
    bool good = (!has_metadata || print_metadata(header, metadata, error)) &&
                print_entries(header, sorted, count, !has_metadata, error);
    fputc('}', header);
    fflush(header);
    for (size_t length = *bytes; length % 8 != 0; length++)
        fputc(' ', header);
    CHECK(fclose(header) == 0, EXIT_CODE_HARDWARE, "free host memory",
          "no host memory for a header of %zu bytes", *bytes);
    if (good && *bytes - LENGTH_BYTES > HEADER_BYTES_MAX)
        good = error_set(error, EXIT_CODE_DATA, "write the tensors to several files",
                         "the header of %lld tensors takes %zu bytes, at most %d are allowed",
                         (long long)count, *bytes - LENGTH_BYTES, HEADER_BYTES_MAX);
    if (!good) {
        free(text);
        return NULL;
    }
    for (int i = 0; i < LENGTH_BYTES; i++)
        text[i] = (char)((uint64_t)(*bytes - LENGTH_BYTES) >> (8 * i));
    return text;
}

static bool write_file(const char *path, const char *header, size_t header_bytes,
                       const SafetensorsOutput *const *sorted, int64_t count, bool force,
                       Error *error)
{
    FileWriter writer;
    if (!file_writer_open(&writer, path, force, error))
        return false;
    bool good = file_writer_write(&writer, header, header_bytes, error);
    for (int64_t i = 0; good && i < count; i++)
        good = file_writer_write(&writer, sorted[i]->tensor.data, tensor_bytes(&sorted[i]->tensor),
                                 error);
    if (good)
        return file_writer_commit(&writer, error);
    file_writer_abandon(&writer);
    return false;
}

// Pointers to the outputs in the order of the file. NULL and an error if two have one name.
static const SafetensorsOutput **sort_outputs(const SafetensorsOutput *tensors, int64_t count,
                                              Error *error)
{
    const SafetensorsOutput **sorted = malloc((size_t)(count > 0 ? count : 1) * sizeof(*sorted));
    CHECK(sorted, EXIT_CODE_HARDWARE, "free host memory", "no host memory for %lld tensors",
          (long long)count);
    for (int64_t i = 0; i < count; i++)
        sorted[i] = &tensors[i];
    bool good = true;
    qsort(sorted, (size_t)count, sizeof(*sorted), compare_names);
    for (int64_t i = 1; good && i < count; i++)
        if (strcmp(sorted[i - 1]->name, sorted[i]->name) == 0)
            good =
                error_set(error, EXIT_CODE_INTERNAL, "this is a bug of meshwork: please report it",
                          "two tensors are called \"%.80s\"", sorted[i]->name);
    qsort(sorted, (size_t)count, sizeof(*sorted), compare_outputs);
    if (good)
        return sorted;
    free(sorted);
    return NULL;
}

bool safetensors_write(const char *path, const SafetensorsOutput *tensors, int64_t count,
                       const char *const *metadata, bool force, Error *error)
{
    const SafetensorsOutput **sorted = sort_outputs(tensors, count, error);
    size_t header_bytes = 0;
    char *header = sorted ? make_header(sorted, count, metadata, &header_bytes, error) : NULL;
    bool good = header && write_file(path, header, header_bytes, sorted, count, force, error);
    free(header);
    free(sorted);
    return good;
}

char *safetensors_header(const SafetensorsOutput *tensors, int64_t count,
                         const char *const *metadata, uint64_t *bytes, uint64_t *place,
                         Error *error)
{
    const SafetensorsOutput **sorted = sort_outputs(tensors, count, error);
    size_t header_bytes = 0;
    char *header = sorted ? make_header(sorted, count, metadata, &header_bytes, error) : NULL;
    uint64_t at = header_bytes;
    for (int64_t i = 0; header && i < count; i++) {
        place[sorted[i] - tensors] = at;
        at += tensor_bytes(&sorted[i]->tensor);
    }
    *bytes = header_bytes;
    free(sorted);
    return header;
}
