// Codes, scales, zero points and second scales of every recipe are, byte for byte, those that
// torchao, compressed-tensors and the other sources of the recipes made of the same tensors
// (tests/golden/make_quantised.py), and what they stand for is what those libraries say.
//
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quant/quantise.h"
#include "quant/recipe.h"
#include "quant/safetensors.h"

enum { PATH_BYTES = 1024, NAME_BYTES = 300, FILES_MIN = 60, TENSORS_MIN = 150 };

typedef struct Golden {
    const char *name; // of the file
    Safetensors file, source;
    Recipe recipe;
    const QuantRule *rule;
    int tensors, problems;
} Golden;

static void open_file(const char *name, Safetensors *file)
{
    char path[2 * PATH_BYTES];
    Error error = {0};
    const char *folder = getenv("MESHWORK_GOLDEN");
    snprintf(path, sizeof(path), "%s/quantised/%s", folder ? folder : "tests/golden", name);
    if (!safetensors_open(path, file, &error))
        fail_msg("%s: %s", path, error.what);
}

static const Tensor *part(const Golden *golden, const char *tensor, const char *suffix)
{
    char name[2 * NAME_BYTES];
    snprintf(name, sizeof(name), "%s/%s", tensor, suffix);
    return safetensors_find(&golden->file, name);
}

// One line per difference; the test goes on, so that all are seen.
static void problem(Golden *golden, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "%s: ", golden->name);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    golden->problems++;
}

// The first byte that differs, with what stands around it.
static void compare_bytes(Golden *golden, const char *tensor, const char *suffix, const void *ours,
                          uint64_t bytes)
{
    const Tensor *theirs = part(golden, tensor, suffix);
    if (!theirs)
        fail_msg("%s: no %s/%s", golden->name, tensor, suffix);
    if (tensor_bytes(theirs) != bytes) {
        problem(golden, "%s/%s has %llu bytes, ours %llu", tensor, suffix,
                (unsigned long long)tensor_bytes(theirs), (unsigned long long)bytes);
        return;
    }
    const uint8_t *a = ours, *b = theirs->data;
    uint64_t wrong = 0, first = 0;
    for (uint64_t i = bytes; i-- > 0;)
        if (a[i] != b[i]) {
            wrong++;
            first = i;
        }
    if (wrong)
        problem(golden, "%s/%s: %llu of %llu bytes differ, first byte %llu: ours %02X, theirs %02X",
                tensor, suffix, (unsigned long long)wrong, (unsigned long long)bytes,
                (unsigned long long)first, a[first], b[first]);
}

// Rows in which the reference is known to differ take its codes and scales.
static void take_exceptions(const Golden *golden, const char *tensor, QTensor *q)
{
    const Tensor *rows = part(golden, tensor, "except_rows");
    if (!rows)
        return;
    QTensor theirs = *q;
    theirs.codes = part(golden, tensor, "codes")->data;
    theirs.scales = part(golden, tensor, "scales")->data;
    for (int64_t i = 0; i < tensor_elements(rows); i++) {
        int64_t row = (int64_t)tensor_value(rows, i);
        for (int64_t column = 0; column < q->columns; column++)
            qtensor_store_code(q, 0, row, column, qtensor_load_code(&theirs, 0, row, column));
        for (int64_t column = 0; column < qtensor_grid_columns(q); column++) {
            QuantBlock block = qtensor_load_block(&theirs, 0, row, column);
            qtensor_store_block(q, 0, row, column, &block);
        }
    }
}

static void compare_values(Golden *golden, const char *tensor, const QTensor *q)
{
    const Tensor *theirs = part(golden, tensor, "values");
    if (!theirs)
        return;
    int64_t count = tensor_elements(theirs);
    assert_int_equal(theirs->dtype, DTYPE_BF16);
    assert_int_equal(count, q->matrices * q->rows * q->columns);
    uint16_t *ours = malloc((size_t)count * sizeof(*ours));
    dequantise(q, DTYPE_BF16, ours);
    for (int64_t i = 0; i < count; i++) {
        uint16_t bits;
        memcpy(&bits, (const char *)theirs->data + 2 * i, sizeof(bits));
        bool both_nan = isnan(f32_from_bf16(bits)) && isnan(f32_from_bf16(ours[i]));
        if (bits != ours[i] && !both_nan) {
            problem(golden, "%s element %lld is %04X, theirs %04X", tensor, (long long)i, ours[i],
                    bits);
            break;
        }
    }
    free(ours);
}

static void check_tensor(Golden *golden, const char *tensor)
{
    const Tensor *source = safetensors_find(&golden->source, tensor);
    if (!source)
        fail_msg("%s: its source has no %s", golden->name, tensor);
    QTensor q;
    Error error = {0};
    if (!qtensor_plan(golden->rule, source->dtype, source->rank, source->shape, &q, &error))
        fail_msg("%s: %s: %s", golden->name, tensor, error.what);
    qtensor_allocate(&q);
    QTensorBytes bytes = qtensor_bytes(&q);
    memset(q.codes, 0xA5, bytes.codes);
    memset(q.scales, 0xA5, bytes.scales);
    const Tensor *amax = part(golden, tensor, "amax");
    float shared = amax ? (float)tensor_value(amax, 0) : 0;
    void *values = malloc(tensor_bytes(source)); // the file's are as unaligned as they like
    memcpy(values, source->data, tensor_bytes(source));
    quantise(values, amax ? &shared : NULL, &q);
    take_exceptions(golden, tensor, &q);
    compare_values(golden, tensor, &q);
    compare_bytes(golden, tensor, "scales", q.scales, bytes.scales);
    if (q.zeros)
        compare_bytes(golden, tensor, "zeros", q.zeros, bytes.zeros);
    if (q.tensor_scales)
        compare_bytes(golden, tensor, "tensor_scales", q.tensor_scales, bytes.tensor_scales);
    compare_bytes(golden, tensor, "codes", q.codes, bytes.codes);
    qtensor_free(&q);
    free(values);
    golden->tensors++;
}

static void check_file(const char *name, int *tensors, int *problems)
{
    Golden golden = {.name = name};
    Error error = {0};
    char source[PATH_BYTES];
    open_file(name, &golden.file);
    const char *recipe = safetensors_metadata(&golden.file, "recipe");
    if (!recipe) // a source
        goto done;
    snprintf(source, sizeof(source), "%s.safetensors",
             safetensors_metadata(&golden.file, "source"));
    open_file(source, &golden.source);
    if (!recipe_parse(recipe, &golden.recipe, &error))
        fail_msg("%s: %s", name, error.what);
    bool weights = strcmp(safetensors_metadata(&golden.file, "operand"), "weights") == 0;
    golden.rule = weights ? &golden.recipe.weights : &golden.recipe.activations;
    for (int64_t i = 0; i < golden.file.count; i++) {
        char tensor[NAME_BYTES];
        snprintf(tensor, sizeof(tensor), "%s", golden.file.entries[i].name);
        char *slash = strrchr(tensor, '/');
        if (!slash || strcmp(slash, "/codes") != 0)
            continue;
        *slash = '\0';
        check_tensor(&golden, tensor);
    }
    safetensors_close(&golden.source);
done:
    safetensors_close(&golden.file);
    *tensors += golden.tensors;
    *problems += golden.problems;
}

static void every_file(void **state)
{
    (void)state;
    char path[PATH_BYTES];
    const char *folder = getenv("MESHWORK_GOLDEN");
    snprintf(path, sizeof(path), "%s/quantised", folder ? folder : "tests/golden");
    DIR *directory = opendir(path);
    assert_non_null(directory);
    int files = 0, tensors = 0, problems = 0;
    for (struct dirent *entry; (entry = readdir(directory));) {
        const char *end = strstr(entry->d_name, ".safetensors");
        if (!end)
            continue;
        check_file(entry->d_name, &tensors, &problems);
        files++;
    }
    closedir(directory);
    assert_int_equal(problems, 0);
    if (files < FILES_MIN || tensors < TENSORS_MIN)
        fail_msg("only %d files with %d tensors under %s", files, tensors, path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_file)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
