// compressed-tensors' rarer tensors: scales of f16, and weight_g_idx, which gives every column a
// group of its own choice (actorder); groups that are not there are refused.
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "harness/bf16.h"
#include "quant/checkpoint.h"

enum { ROWS = 3, COLUMNS = 256, GROUP = 128, WORDS = COLUMNS / 8, TENSORS = 4 };

static const char config[] =
    "{\"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"config_groups\": "
    "{\"group_0\": {\"targets\": [\"Linear\"], \"weights\": {\"num_bits\": 4, \"type\": \"int\", "
    "\"symmetric\": true, \"strategy\": \"group\", \"group_size\": 128, \"actorder\": \"group\"}}},"
    " \"format\": \"pack-quantized\", \"ignore\": []}}";

typedef struct Module {
    uint32_t packed[ROWS][WORDS];
    uint16_t scales[ROWS][COLUMNS / GROUP]; // f16
    int32_t groups[COLUMNS];
    int64_t shape[2];
} Module;

static Module make_module(void)
{
    static const uint16_t halves[] = {0x3C00, 0x2E66, 0x0001, 0xB555, 0x1234, 0x7BFF};
    Module module = {.shape = {ROWS, COLUMNS}};
    for (int row = 0; row < ROWS; row++) {
        for (int word = 0; word < WORDS; word++)
            module.packed[row][word] = 0x9E3779B9u * (uint32_t)(row * WORDS + word + 1);
        for (int group = 0; group < COLUMNS / GROUP; group++)
            module.scales[row][group] = halves[row * (COLUMNS / GROUP) + group];
    }
    for (int column = 0; column < COLUMNS; column++)
        module.groups[column] = column * 7 % 3 == 1;
    return module;
}

static Tensor tensor_of(DType dtype, int rank, int64_t rows, int64_t columns, void *data)
{
    return (Tensor){.dtype = dtype, .rank = rank, .shape = {rows, columns}, .data = data};
}

// A file in memory; the caller frees it.
static uint8_t *make_file(Module *module, uint64_t *bytes)
{
    SafetensorsOutput outputs[TENSORS] = {
        {"a.weight_packed", tensor_of(DTYPE_I32, 2, ROWS, WORDS, module->packed)},
        {"a.weight_scale", tensor_of(DTYPE_F16, 2, ROWS, COLUMNS / GROUP, module->scales)},
        {"a.weight_g_idx", tensor_of(DTYPE_I32, 1, COLUMNS, 0, module->groups)},
        {"a.weight_shape", tensor_of(DTYPE_I64, 1, 2, 0, module->shape)},
    };
    uint64_t place[TENSORS];
    Error error = {0};
    char *header = safetensors_header(outputs, TENSORS, NULL, bytes, place, &error);
    assert_non_null(header);
    uint64_t head = *bytes;
    for (int i = 0; i < TENSORS; i++)
        *bytes += tensor_bytes(&outputs[i].tensor);
    uint8_t *file = malloc(*bytes);
    assert_non_null(file);
    memcpy(file, header, head);
    for (int i = 0; i < TENSORS; i++)
        memcpy(file + place[i], outputs[i].tensor.data, tensor_bytes(&outputs[i].tensor));
    free(header);
    return file;
}

static bool parse(const uint8_t *file, uint64_t bytes, Checkpoint *checkpoint, Error *error)
{
    CheckpointImage image = {file, bytes, false, config, strlen(config)};
    return checkpoint_parse(&image, checkpoint, error);
}

static void columns_in_any_order(void **state)
{
    (void)state;
    Module module = make_module();
    uint64_t bytes;
    uint8_t *file = make_file(&module, &bytes);
    Checkpoint checkpoint;
    Error error = {0};
    if (!parse(file, bytes, &checkpoint, &error))
        fail_msg("%s", error.what);
    assert_int_equal(checkpoint.count, 1);
    assert_string_equal(checkpoint.weights[0].stored.recipe.name, "W4A16");
    uint16_t values[ROWS * COLUMNS];
    Arena *arena = arena_create(MEMORY_HOST, DEVICE_CPU);
    stored_read_values(&checkpoint.weights[0].stored, 0, 0, ROWS, arena, values);
    for (int row = 0; row < ROWS; row++)
        for (int column = 0; column < COLUMNS; column++) {
            int code = (int)(module.packed[row][column / 8] >> (column % 8 * 4) & 15u) - 8;
            float scale = f32_from_f16(module.scales[row][module.groups[column]]);
            uint16_t wanted = bf16_bits_from_f32((float)code * scale);
            if (values[row * COLUMNS + column] != wanted)
                fail_msg("row %d, column %d: %04X, expected %04X", row, column,
                         values[row * COLUMNS + column], wanted);
        }
    arena_destroy(arena);
    checkpoint_close(&checkpoint);
    free(file);
}

static void groups_that_are_not_there(void **state)
{
    (void)state;
    static const int32_t wrong[] = {2, -1, INT32_MAX};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        Module module = make_module();
        module.groups[COLUMNS - 1] = wrong[i];
        uint64_t bytes;
        uint8_t *file = make_file(&module, &bytes);
        Checkpoint checkpoint;
        Error error = {0};
        assert_false(parse(file, bytes, &checkpoint, &error));
        assert_int_equal(error.exit_code, EXIT_CODE_DATA);
        assert_non_null(strstr(error.what, "weight_g_idx has group"));
        free(file);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(columns_in_any_order),
        cmocka_unit_test(groups_that_are_not_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
