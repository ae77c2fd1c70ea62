// Checkpoints made from tests/golden/checkpoints/source are, tensor by tensor and byte by byte,
// those that torchao, transformers and llm-compressor made of it, whatever the number of ranks;
// converted to another library's files and back they are the same again.
//
// ranks: 1 2 7
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "experiments/rewrite/rewrite.h"
#include "quant/digest.h"

enum { PATH_BYTES = 1024, FOLDERS_MIN = 37 };

static Run *run;
static char work[PATH_BYTES]; // the same on all ranks
static Json *expected;

static const char *golden(void)
{
    const char *folder = getenv("MESHWORK_GOLDEN");
    return folder ? folder : "tests/golden";
}

static void in_work(const char *name, char path[PATH_BYTES])
{
    snprintf(path, PATH_BYTES, "%.600s/%.200s", work, name);
}

// ---- what was made ----

static void check_tensor(const char *folder, const RawTensor *raw, const Json *wanted)
{
    char text[DIGEST_TEXT_BYTES], shape[96];
    if (!wanted)
        fail_msg("%s: tensor %s is not in the reference", folder, raw->name);
    const char *tag = json_text_of(json_at(wanted, 0)), *digest = json_text_of(json_at(wanted, 2));
    const Json *extents = json_at(wanted, 1);
    bool same = strcmp(tag, dtype_row(raw->tensor.dtype)->tag) == 0 &&
                (int)json_count(extents) == raw->tensor.rank;
    for (int d = 0; same && d < raw->tensor.rank; d++)
        same = json_integer_of(json_at(extents, (uint64_t)d)) == raw->tensor.shape[d];
    if (!same)
        fail_msg("%s: tensor %s is %s, the reference has another type or shape", folder, raw->name,
                 tensor_describe(&raw->tensor, shape, sizeof(shape)));
    if (!digest) // where the reference is known to differ
        return;
    Digest *sum = digest_create();
    digest_add(sum, raw->tensor.data, tensor_bytes(&raw->tensor));
    digest_finish(sum, text);
    if (strcmp(text, digest) != 0)
        fail_msg("%s: the bytes of tensor %s differ", folder, raw->name);
}

static void check_folder(const char *folder, const char *path, const Json *row)
{
    Checkpoint made;
    Error error = {0};
    if (!checkpoint_open(path, &made, &error))
        fail_msg("%s: %s", folder, error.what);
    const Json *tensors = json_find(row, "tensors");
    for (int64_t i = 0; i < made.raws; i++)
        check_tensor(folder, &made.raw[i], json_find(tensors, made.raw[i].name));
    if (made.raws != (int64_t)json_count(tensors))
        fail_msg("%s: %lld tensors, the reference has %lld", folder, (long long)made.raws,
                 (long long)json_count(tensors));
    checkpoint_close(&made);
}

// Key order does not matter: both are printed sorted by the program's own writer when made.
static bool same_json(const Json *a, const Json *b);

typedef struct Twin {
    const Json *other;
    bool same;
} Twin;

static bool visit_twin(const char *key, const Json *value, void *context)
{
    Twin *twin = context;
    twin->same = same_json(value, json_find(twin->other, key));
    return twin->same;
}

static bool same_json(const Json *a, const Json *b)
{
    if (!a || !b)
        return false;
    if (json_is_object(a)) {
        Twin twin = {b, json_is_object(b) && json_count(a) == json_count(b)};
        if (twin.same)
            json_each(a, visit_twin, &twin);
        return twin.same;
    }
    if (json_is_array(a)) {
        bool same = json_is_array(b) && json_count(a) == json_count(b);
        for (uint64_t i = 0; same && i < json_count(a); i++)
            same = same_json(json_at(a, i), json_at(b, i));
        return same;
    }
    char *x = json_print(a, false), *y = json_print(b, false);
    bool same = strcmp(x, y) == 0;
    free(x);
    free(y);
    return same;
}

static void check_config(const char *folder, const char *path, const Json *row)
{
    char name[PATH_BYTES + 32];
    uint64_t bytes;
    Error error = {0};
    snprintf(name, sizeof(name), "%s/config.json", path);
    char *text = file_read(name, 1 << 20, &bytes, &error);
    assert_non_null(text);
    Json *config = json_parse(text, bytes, &error);
    assert_non_null(config);
    if (!same_json(config, json_find(row, "config")))
        fail_msg("%s: config.json says something else than the reference", folder);
    json_destroy(config);
    free(text);
}

// ---- making ----

static void make(const char *what, const RewriteRequest *request)
{
    Rewrite rewrite;
    Error error = {0};
    if (!rewrite_plan(request, &rewrite, &error))
        fail_msg("%s: %s", what, error.what);
    rewrite_run(run, &rewrite);
    rewrite_release(&rewrite);
}

static void add_rules(NameRules *rules, const Json *patterns, const Recipe *recipe)
{
    Error error = {0};
    for (uint64_t i = 0; i < json_count(patterns); i++)
        assert_true(name_rules_add(rules, json_text_of(json_at(patterns, i)), recipe,
                                   EXIT_CODE_USAGE, &error));
}

static Layout layout_of(const char *folder)
{
    return strncmp(folder, "ct-", 3) == 0 ? LAYOUT_COMPRESSED : LAYOUT_TORCHAO;
}

// There and back again: the first file's tensors.
static void check_round_trip(const char *folder, const char *path, const Json *row, Layout via)
{
    char there[PATH_BYTES], back[PATH_BYTES];
    bool fused = strcmp(json_text_of(json_find(row, "experts")), "fused") == 0;
    in_work("there", there);
    in_work("back", back);
    RewriteRequest request = {
        .model = path, .out = there, .layout = via, .shard_bytes_max = 100000, .force = true};
    make(folder, &request);
    request = (RewriteRequest){.model = there,
                               .out = back,
                               .layout = layout_of(folder),
                               .experts = fused ? EXPERTS_FUSED : EXPERTS_SEPARATE,
                               .shard_bytes_max = 5000000000,
                               .force = true};
    make(folder, &request);
    if (run->rank == 0)
        check_folder(folder, back, row);
    run_barrier(run);
}

// Those that the other library can keep, and where going there and back is exact.
static bool has_twin(const char *folder)
{
    static const char *const without[] = {"v4-int4_tile", "hf-int4_tile", "ct-MXFP4A16",
                                          "ct-MXFP8A16",  "ct-W8A16",     "ct-W4A16_ASYM",
                                          "ct-NVFP4A16"};
    for (size_t i = 0; i < COUNT_OF(without); i++)
        if (strcmp(folder, without[i]) == 0)
            return false;
    return true;
}

static int folders;

static bool visit_folder(const char *folder, const Json *row, void *context)
{
    (void)context;
    NameRules rules = {0};
    Recipe recipe;
    Error error = {0};
    char source[PATH_BYTES], path[PATH_BYTES];
    // Several ranks differ in how work is dealt, which a few folders show.
    if (run->ranks > 1 && folders++ % (run->ranks == 2 ? 4 : 6) != 0)
        return true;
    folders += run->ranks == 1;
    snprintf(source, sizeof(source), "%s/checkpoints/source", golden());
    in_work("made", path);
    assert_true(recipe_parse(json_text_of(json_find(row, "recipe")), &recipe, &error));
    add_rules(&rules, json_find(row, "skip"), NULL);
    add_rules(&rules, json_find(row, "match"), &recipe);
    if (json_count(json_find(row, "match")) == 0)
        assert_true(name_rules_add(&rules, "_default", &recipe, EXIT_CODE_USAGE, &error));
    bool fused = strcmp(json_text_of(json_find(row, "experts")), "fused") == 0;
    RewriteRequest request = {.model = source,
                              .out = path,
                              .layout = layout_of(folder),
                              .experts = fused ? EXPERTS_FUSED : EXPERTS_SEPARATE,
                              .rules = &rules,
                              .shard_bytes_max = 5000000000,
                              .force = true,
                              .unit_bytes = run->ranks > 1 ? 4096 : 0};
    make(folder, &request);
    if (run->rank == 0) {
        check_folder(folder, path, row);
        check_config(folder, path, row);
    }
    run_barrier(run);
    if (run->ranks == 1 && has_twin(folder))
        check_round_trip(folder, path, row,
                         layout_of(folder) == LAYOUT_TORCHAO ? LAYOUT_COMPRESSED : LAYOUT_TORCHAO);
    if (layout_of(folder) == LAYOUT_TORCHAO && !strstr(folder, "int8"))
        check_round_trip(folder, path, row, LAYOUT_TORCHAO_BIN);
    name_rules_release(&rules);
    return true;
}

static void every_folder(void **state)
{
    (void)state;
    folders = 0;
    json_each(expected, visit_folder, NULL);
    assert_true(folders >= FOLDERS_MIN);
}

// torchao's own pytorch_model.bin, as torch.save wrote it.
static void reads_torch_files(void **state)
{
    (void)state;
    static const char *const recipes[] = {"nvfp4", "mxfp8"};
    for (size_t i = 0; i < COUNT_OF(recipes); i++) {
        char source[PATH_BYTES], path[PATH_BYTES], folder[64];
        snprintf(source, sizeof(source), "%s/checkpoints/bin-%s", golden(), recipes[i]);
        snprintf(folder, sizeof(folder), "v4-%s", recipes[i]);
        in_work("made", path);
        RewriteRequest request = {.model = source,
                                  .out = path,
                                  .layout = LAYOUT_TORCHAO,
                                  .shard_bytes_max = 5000000000,
                                  .force = true,
                                  .hash = true};
        make(folder, &request);
        if (run->rank == 0)
            check_folder(folder, path, json_find(expected, folder));
        run_barrier(run);
    }
}

int main(int argc, char **argv)
{
    char text[PATH_BYTES];
    uint64_t bytes;
    Error error = {0};
    setenv("CMOCKA_TEST_ABORT", "1", 1);
    run = run_create(argc, argv, "test", true);
    // In memory where there is room for it: nothing here is about disks.
    snprintf(work, sizeof(work), "%s/meshwork_rewrite_XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (run->rank == 0 && !mkdtemp(work))
        return EXIT_CODE_CANT_CREATE;
    run_broadcast(run, work, sizeof(work));
    snprintf(text, sizeof(text), "%s/checkpoints/expected.json", golden());
    char *json = file_read(text, 64 << 20, &bytes, &error);
    expected = json ? json_parse(json, bytes, &error) : NULL;
    CHECK(expected, EXIT_CODE_DATA, "make it again with make_checkpoints.py", "%s", error.what);
    free(json);
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_folder),
                                       cmocka_unit_test(reads_torch_files)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_destroy(expected);
    snprintf(text, sizeof(text), "rm -rf '%.900s'", work);
    run_barrier(run);
    if (run->rank == 0 && system(text) != 0)
        failed++;
    run_destroy(run);
    return failed;
}
