// The safetensors writer: the reference library's own file comes out byte for byte, what is written
// is read back, and what could not be read is not written.
#include "tests/capture.h"
#include "tests/safetensors_fixture.h"

#include <sys/stat.h>
#include <time.h>

static void writes_what_the_reference_writes(void **state)
{
    (void)state;
    char folder[PATH_BYTES], path[PATH_BYTES];
    make_folder(folder);
    Image golden = read_golden();
    Safetensors file;
    Error error = {0};
    expect_good(safetensors_parse(golden.bytes, golden.count, &file, &error), &error);
    SafetensorsOutput *outputs = calloc((size_t)file.count, sizeof(*outputs));
    for (int64_t i = 0; i < file.count; i++) // from last to first: the writer has its own order
        outputs[i] = (SafetensorsOutput){.name = file.entries[file.count - 1 - i].name,
                                         .tensor = file.entries[file.count - 1 - i].tensor};
    const char *const metadata[] = {"made by", safetensors_metadata(&file, "made by"), NULL};
    join(path, folder, "again.safetensors");
    expect_good(safetensors_write(path, outputs, file.count, metadata, false, &error), &error);
    uint64_t bytes = 0;
    char *written = file_read(path, 1 << 20, &bytes, &error);
    expect_good(written != NULL, &error);
    assert_int_equal(bytes, golden.count);
    assert_memory_equal(written, golden.bytes, bytes);
    free(written);
    free(outputs);
    safetensors_close(&file);
    free(golden.bytes);
    remove(path);
    remove(folder);
}

enum { RANDOM_TENSORS = 40 };

static Tensor random_tensor(void)
{
    Tensor tensor = {.dtype = (DType)(random() % DTYPES), .rank = (int)(random() % 5)};
    for (int d = 0; d < tensor.rank; d++)
        tensor.shape[d] = random() % 6;
    if (tensor.rank > 0 && dtype_row(tensor.dtype)->bits < 8)
        tensor.shape[0] *= 4; // whole bytes
    else if (dtype_row(tensor.dtype)->bits < 8)
        tensor.dtype = DTYPE_U8;
    uint64_t bytes = tensor_bytes(&tensor);
    uint8_t *data = malloc(bytes + 1);
    for (uint64_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)random();
    tensor.data = data;
    return tensor;
}

static void what_is_written_is_read_back(void **state)
{
    (void)state;
    char folder[PATH_BYTES], path[PATH_BYTES], names[RANDOM_TENSORS][32];
    make_folder(folder);
    join(path, folder, "round.safetensors");
    SafetensorsOutput outputs[RANDOM_TENSORS];
    for (int i = 0; i < RANDOM_TENSORS; i++) {
        snprintf(names[i], sizeof(names[i]), "%lx.%d\"\n\\", random() % 100, i);
        outputs[i] = (SafetensorsOutput){.name = names[i], .tensor = random_tensor()};
    }
    const char *const metadata[] = {"a", "1", "b\n", "\"two\"", "", "", NULL};
    Error error = {0};
    expect_good(safetensors_write(path, outputs, RANDOM_TENSORS, metadata, false, &error), &error);
    Safetensors file;
    expect_good(safetensors_open(path, &file, &error), &error);
    assert_int_equal(file.count, RANDOM_TENSORS);
    for (int i = 0; i < RANDOM_TENSORS; i++) {
        const Tensor *wrote = &outputs[i].tensor, *read = safetensors_find(&file, names[i]);
        assert_non_null(read);
        assert_int_equal(read->dtype, wrote->dtype);
        assert_int_equal(read->rank, wrote->rank);
        assert_memory_equal(read->shape, wrote->shape, sizeof(read->shape));
        assert_int_equal((uintptr_t)read->data % (dtype_row(read->dtype)->bits >= 8
                                                      ? (uintptr_t)dtype_row(read->dtype)->bits / 8
                                                      : 1),
                         0); // widest types first: everything is aligned
        if (tensor_bytes(wrote) > 0)
            assert_memory_equal(read->data, wrote->data, tensor_bytes(wrote));
        free(wrote->data);
    }
    for (int i = 0; metadata[i]; i += 2)
        assert_string_equal(safetensors_metadata(&file, metadata[i]), metadata[i + 1]);
    safetensors_close(&file);
    expect_good(safetensors_write(path, NULL, 0, NULL, true, &error), &error); // overwritten
    expect_good(safetensors_open(path, &file, &error), &error);
    assert_int_equal(file.count, 0);
    safetensors_close(&file);
    remove(path);
    remove(folder);
}

static void expect_write_error(const char *path, const SafetensorsOutput *outputs, int64_t count,
                               int exit_code, const char *words)
{
    Error error = {0};
    assert_false(safetensors_write(path, outputs, count, NULL, false, &error));
    assert_int_equal(error.exit_code, exit_code);
    ASSERT_CONTAINS(error.what, words);
}

static void what_cannot_be_written_is_refused(void **state)
{
    (void)state;
    char folder[PATH_BYTES], path[PATH_BYTES], below[PATH_BYTES];
    uint8_t byte = 0;
    make_folder(folder);
    join(path, folder, "x.safetensors");
    join(below, folder, "no/such/folder.safetensors");
    Tensor one = {.data = &byte, .dtype = DTYPE_U8, .rank = 1, .shape = {1}};
    Tensor wide = one; // the same name with another dtype stands elsewhere in the file's order
    wide.dtype = DTYPE_I8;
    Tensor half = {.data = &byte, .dtype = DTYPE_F4, .rank = 1, .shape = {1}};
    Tensor negative = {.data = &byte, .dtype = DTYPE_U8, .rank = 1, .shape = {-1}};
    const SafetensorsOutput twice[] = {{"a", one}, {"b", one}, {"a", wide}};
    expect_write_error(path, twice, 3, EXIT_CODE_INTERNAL, "two tensors are called \"a\"");
    const SafetensorsOutput reserved = {"__metadata__", one}, foreign = {"\xff", one};
    expect_write_error(path, &reserved, 1, EXIT_CODE_INTERNAL, "__metadata__");
    expect_write_error(path, &foreign, 1, EXIT_CODE_DATA, "not UTF-8");
    const SafetensorsOutput nibble = {"a", half}, minus = {"a", negative}, good = {"a", one};
    expect_write_error(path, &nibble, 1, EXIT_CODE_DATA, "no whole number of bytes");
    expect_write_error(path, &minus, 1, EXIT_CODE_INTERNAL, "cannot be written");
    expect_write_error(below, &good, 1, EXIT_CODE_CANT_CREATE, "folder");
    struct stat status;
    assert_int_not_equal(stat(path, &status), 0); // nothing was left behind
    Error error = {0};
    expect_good(safetensors_write(path, &good, 1, NULL, false, &error), &error);
    expect_write_error(path, &good, 1, EXIT_CODE_CANT_CREATE, "exists already");
    remove(path);
    assert_int_equal(remove(folder), 0); // no temporary file either
}

// MESHWORK_ORACLE_PYTHON names a Python with torch and safetensors; the reference reader must agree
// with ours.
static void the_reference_reads_ours(void **state)
{
    (void)state;
    const char *python = getenv("MESHWORK_ORACLE_PYTHON"),
               *golden_folder = getenv("MESHWORK_GOLDEN");
    if (!python || !golden_folder) {
        print_message("skipped: MESHWORK_ORACLE_PYTHON names no Python with safetensors\n");
        skip();
    }
    char folder[PATH_BYTES], path[PATH_BYTES], golden[PATH_BYTES], command[4 * PATH_BYTES];
    make_folder(folder);
    join(path, folder, "ours.safetensors");
    Safetensors file;
    Error error = {0};
    expect_good(safetensors_open(golden_path(golden), &file, &error), &error);
    SafetensorsOutput *outputs = calloc((size_t)file.count, sizeof(*outputs));
    for (int64_t i = 0; i < file.count; i++)
        outputs[i] = (SafetensorsOutput){file.entries[i].name, file.entries[i].tensor};
    const char *const metadata[] = {"made by", safetensors_metadata(&file, "made by"), NULL};
    expect_good(safetensors_write(path, outputs, file.count, metadata, false, &error), &error);
    snprintf(command, sizeof(command),
             "PYTHONDONTWRITEBYTECODE=1 '%s' '%s/safetensors/make_every_dtype.py' same '%s' '%s'",
             python, golden_folder, path, golden);
    assert_int_equal(system(command), 0);
    free(outputs);
    safetensors_close(&file);
    remove(path);
    remove(folder);
}

int main(void)
{
    srandom((unsigned)time(NULL));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_what_the_reference_writes),
        cmocka_unit_test(what_is_written_is_read_back),
        cmocka_unit_test(what_cannot_be_written_is_refused),
        cmocka_unit_test(the_reference_reads_ours),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
