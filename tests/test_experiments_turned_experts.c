// Arrays of experts with their inputs first, [experts, inputs, outputs], as Llama 4 has them:
// written one by one they are what the same experts in the usual order give, byte for byte; as
// arrays no recipe takes them.
//
// ranks: 1 3
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "experiments/rewrite/rewrite.h"

enum { PATH_BYTES = 512, EXPERTS = 3, INNER = 80, HIDDEN = 96 };

#define PREFIX "model.layers.0.feed_forward.experts."

static Run *run;
static char work[64]; // the same on all ranks

static uint32_t value_bits(int64_t expert, int64_t row, int64_t column, int64_t salt)
{
    uint64_t x = (uint64_t)(((expert * 1000 + row) * 1000 + column) * 2 + salt);
    x = (x + 1) * 0x9E3779B97F4A7C15u;
    return (uint32_t)(x >> 32 & 0x83FFFFFFu) + 0x3C000000u; // below 1, either sign
}

// [EXPERTS, rows, columns], or turned [EXPERTS, columns, rows].
static Tensor array_of(int64_t rows, int64_t columns, bool turned, DType dtype)
{
    Tensor tensor = {.dtype = dtype, .rank = 3, .shape = {EXPERTS, rows, columns}};
    int64_t width = dtype_row(dtype)->bits / 8;
    char *data = calloc((size_t)(EXPERTS * rows * columns), (size_t)width);
    assert_non_null(data);
    for (int64_t expert = 0; expert < EXPERTS; expert++)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t column = 0; column < columns; column++) {
                int64_t at = turned ? column * rows + row : row * columns + column;
                uint32_t bits = value_bits(expert, row, column, rows > columns);
                memcpy(data + (expert * rows * columns + at) * width, (char *)&bits + 4 - width,
                       (size_t)width);
            }
    if (turned)
        tensor.shape[1] = columns, tensor.shape[2] = rows;
    tensor.data = data;
    return tensor;
}

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

typedef struct Model {
    const char *name;
    bool turned, biased;
    DType dtype;
} Model;

static void write_model(const Model *model, char folder[PATH_BYTES])
{
    char path[PATH_BYTES + 32];
    Error error = {0};
    snprintf(folder, PATH_BYTES, "%s/%s", work, model->name);
    if (run->rank == 0) {
        SafetensorsOutput output[] = {
            {PREFIX "down_proj", array_of(HIDDEN, INNER, model->turned, model->dtype)},
            {PREFIX "gate_up_proj", array_of(2 * INNER, HIDDEN, model->turned, model->dtype)},
            {PREFIX "gate_up_proj_bias", {.dtype = DTYPE_BF16, .rank = 1, .shape = {0}}},
        };
        assert_int_equal(mkdir(folder, 0777), 0);
        snprintf(path, sizeof(path), "%s/model.safetensors", folder);
        if (!safetensors_write(path, output, model->biased ? 3 : 2, NULL, true, &error))
            fail_msg("%s", error.what);
        snprintf(path, sizeof(path), "%s/config.json", folder);
        write_text(path, "{\"model_type\": \"llama4_text\", \"dtype\": \"bfloat16\"}");
        free(output[0].tensor.data);
        free(output[1].tensor.data);
    }
    run_barrier(run);
}

static NameRules rules_of(const char *recipe_name)
{
    NameRules rules = {0};
    Recipe recipe;
    Error error = {0};
    assert_true(recipe_parse(recipe_name, &recipe, &error));
    assert_true(name_rules_add(&rules, "re:.*experts.*", &recipe, EXIT_CODE_USAGE, &error));
    return rules;
}

static char *made_of(const Model *model, RewriteRequest request, uint64_t *bytes)
{
    char folder[PATH_BYTES], out[PATH_BYTES + 8], path[PATH_BYTES + 64];
    Rewrite rewrite;
    Error error = {0};
    write_model(model, folder);
    snprintf(out, sizeof(out), "%s.out", folder);
    request.model = folder;
    request.out = out;
    if (!rewrite_plan(&request, &rewrite, &error))
        fail_msg("%s: %s", model->name, error.what);
    rewrite_run(run, &rewrite);
    rewrite_release(&rewrite);
    snprintf(path, sizeof(path), "%s/model.safetensors", out);
    char *data = file_read(path, 1 << 20, bytes, &error);
    if (!data)
        fail_msg("%s: %s", model->name, error.what);
    return data;
}

static void same_one_by_one(void **state)
{
    static const struct {
        const char *recipe; // NULL: convert
        Layout layout;
        DType dtype;
    } cases[] = {
        {"FP8_DYNAMIC", LAYOUT_COMPRESSED, DTYPE_BF16},
        {"NVFP4A16", LAYOUT_COMPRESSED, DTYPE_BF16},
        {"int8_weight_only", LAYOUT_TORCHAO, DTYPE_F32},
        {NULL, LAYOUT_PLAIN, DTYPE_BF16},
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char upright_name[16], turned_name[16];
        uint64_t upright_bytes, turned_bytes;
        NameRules rules = cases[i].recipe ? rules_of(cases[i].recipe) : (NameRules){0};
        RewriteRequest request = {.layout = cases[i].layout,
                                  .experts = EXPERTS_SEPARATE,
                                  .rules = cases[i].recipe ? &rules : NULL,
                                  .shard_bytes_max = 5000000000,
                                  .unit_bytes = 4096, // of one expert several
                                  .device = DEVICE_CHOICE_CPU};
        snprintf(upright_name, sizeof(upright_name), "upright%zu", i);
        snprintf(turned_name, sizeof(turned_name), "turned%zu", i);
        char *upright =
            made_of(&(Model){upright_name, false, false, cases[i].dtype}, request, &upright_bytes);
        char *turned =
            made_of(&(Model){turned_name, true, false, cases[i].dtype}, request, &turned_bytes);
        assert_int_equal(upright_bytes, turned_bytes);
        assert_memory_equal(upright, turned, upright_bytes);
        free(upright);
        free(turned);
        name_rules_release(&rules);
    }
}

static void refuses(const Model *model, ExpertsChoice experts, const char *text)
{
    char folder[PATH_BYTES];
    Rewrite rewrite;
    Error error = {0};
    NameRules rules = rules_of("fp8_row");
    write_model(model, folder);
    RewriteRequest request = {.model = folder,
                              .out = "nowhere",
                              .layout = LAYOUT_TORCHAO,
                              .experts = experts,
                              .rules = &rules,
                              .shard_bytes_max = 5000000000};
    if (rewrite_plan(&request, &rewrite, &error))
        fail_msg("%s was not refused", model->name);
    assert_int_equal(error.exit_code, EXIT_CODE_USAGE);
    if (!strstr(error.what, text))
        fail_msg("\"%s\" does not say \"%s\"", error.what, text);
    rewrite_release(&rewrite);
    name_rules_release(&rules);
}

static void refused_as_arrays(void **state)
{
    (void)state;
    refuses(&(Model){"array", true, false, DTYPE_BF16}, EXPERTS_AS_SOURCE,
            "is [experts, inputs, outputs]");
    refuses(&(Model){"fused", true, false, DTYPE_BF16}, EXPERTS_FUSED,
            "is [experts, inputs, outputs]");
    refuses(&(Model){"biased", true, true, DTYPE_BF16}, EXPERTS_SEPARATE, "gate and up alternate");
}

int main(int argc, char **argv)
{
    char text[128];
    setenv("CMOCKA_TEST_ABORT", "1", 1);
    run = run_create(argc, argv, "test", true);
    snprintf(work, sizeof(work), "%s/meshwork_turned_XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (run->rank == 0 && !mkdtemp(work))
        return EXIT_CODE_CANT_CREATE;
    run_broadcast(run, work, sizeof(work));
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_one_by_one),
                                       cmocka_unit_test(refused_as_arrays)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    snprintf(text, sizeof(text), "rm -rf '%s'", work);
    run_barrier(run);
    if (run->rank == 0 && system(text) != 0)
        failed++;
    run_destroy(run);
    return failed;
}
