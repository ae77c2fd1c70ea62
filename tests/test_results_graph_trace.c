// What trace_merge recognises in real and made-up traces, and that it changes nothing else.
#include "harness/file.h"
#include "results/graph/json_scan.h"
#include "results/graph/source.h"
#include "results/graph/trace_merge.h"
#include "tests/capture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static char folder[64]; // of this test's files
static const char *golden_path(const char *name, char *path, size_t bytes)
{
    const char *golden = getenv("MESHWORK_GOLDEN");
    snprintf(path, bytes, "%s/torch_logs/%s", golden ? golden : "tests/golden", name);
    return path;
}

static const char *own_path(const char *name, char *path, size_t bytes)
{
    snprintf(path, bytes, "%s/%s", folder, name);
    return path;
}

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/meshwork-trace-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    return system(command);
}

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static char *read_text(const char *path, uint64_t *bytes)
{
    Error error = {0};
    char *text = file_read(path, UINT64_C(1) << 30, bytes, &error);
    if (!text)
        fail_msg("%s", error.what);
    return text;
}

static TorchLog *log_of_text(const char *text)
{
    TorchLog *log = torch_log_create();
    torch_log_begin_file(log, "text", 0);
    torch_log_feed(log, text, strlen(text));
    torch_log_end_file(log);
    torch_log_finish(log);
    return log;
}

static TorchLog *log_of_golden(const char *name)
{
    char path[1024];
    Error error = {0};
    TorchLog *log = torch_log_create();
    if (!torch_log_read(log, golden_path(name, path, sizeof(path)), 0, &error))
        fail_msg("%s", error.what);
    torch_log_finish(log);
    return log;
}

// The merged text with every args.inductor taken out again, as bytes.
static char *without_additions(const char *merged, uint64_t bytes)
{
    char *text = malloc(bytes + 1), *out = text;
    for (const char *at = merged;;) {
        const char *found = strstr(at, "\"inductor\": {");
        size_t kept = found ? (size_t)(found - at) : strlen(at);
        memcpy(out, at, kept);
        out += kept;
        if (!found)
            break;
        JsonScan scan = {found + strlen("\"inductor\": "), merged + bytes, NULL};
        assert_int_equal(json_scan_value(&scan), JSON_GOOD);
        at = scan.at;
        if (out - text >= 2 && memcmp(out - 2, ", ", 2) == 0)
            out -= 2;
    }
    *out = '\0';
    return text;
}

// Counted by hand: events of category "kernel", those named triton_, those within a compiled
// region.
static const struct {
    const char *trace, *log;
    int kernel_events, generated, merged, cpu_ops;
} counts[] = {
    {"fp8.trace.json", "fp8.short.txt", 8, 4, 6, 0},
    {"fp8.trace.json", "fp8.prefix.txt", 8, 4, 6, 0},
    {"infer.trace.json", "infer.short.txt", 18, 4, 16, 0},
    {"infer.trace.json", "infer.prefix.txt", 18, 4, 16, 0},
    {"layernorm.trace.json", "layernorm.short.txt", 36, 12, 20, 0},
    {"layernorm.trace.json", "layernorm.prefix.txt", 36, 12, 20, 0},
    {"train.trace.json", "train.short.txt", 100, 16, 76, 0},
    {"train.trace.json", "train.prefix.txt", 100, 16, 76, 0},
    {"infercpu.trace.json", "infercpu.short.txt", 0, 0, 0, 6},
    {"cpu-train.trace.json", "cpu-train.prefix.txt", 0, 0, 0, 12},
    {"cpu-profiled.trace.json", "cpu-profiled.prefix.txt", 2, 2, 2, 2}, // cpp.enable_kernel_profile
};

static void real_traces_are_merged_and_else_unchanged(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        char trace[1024], out[128];
        TorchLog *log = log_of_golden(counts[i].log);
        TraceCounts got;
        Error error = {0};
        golden_path(counts[i].trace, trace, sizeof(trace));
        own_path("merged.json", out, sizeof(out));
        if (!trace_merge(&(TraceMerge){.trace = trace, .out = out, .log = log, .force = true}, &got,
                         &error))
            fail_msg("%s", error.what);
        assert_int_equal(got.kernel_events, counts[i].kernel_events);
        assert_int_equal(got.generated_kernel_events, counts[i].generated);
        assert_int_equal(got.merged_generated, counts[i].generated);
        assert_int_equal(got.merged, counts[i].merged);
        assert_int_equal(got.cpu_ops_merged, counts[i].cpu_ops);
        assert_int_equal(got.unmatched, got.kernel_events - got.merged);
        uint64_t merged_bytes, bytes;
        char *merged = read_text(out, &merged_bytes), *original = read_text(trace, &bytes);
        char *restored = without_additions(merged, merged_bytes);
        assert_string_equal(restored, original);
        assert_int_equal(capture_count(merged, "\"inductor\": {"),
                         counts[i].merged + counts[i].cpu_ops);
        json_destroy(json_parse(merged, merged_bytes, &error));
        assert_int_equal(error.exit_code, 0);
        free(merged);
        free(original);
        free(restored);
        trace_counts_destroy(&got);
        torch_log_destroy(log);
    }
}

#define KERNEL(name, hash, text)                                                                   \
    "# kernel path: /c/" hash ".py\n"                                                              \
    "# Topologically Sorted Source Nodes: [x], Original ATen: [aten.add]\n" name                   \
    " = async_compile.triton('" name "', '''\n@triton_heuristics.pointwise(\n)\n"                  \
    "def " name "(in_ptr0, out_ptr0, xnumel, XBLOCK : tl.constexpr):\n    " text "\n''')\n"
#define CALLS(...)                                                                                 \
    "def call(args):\n    buf0 = empty_strided_cuda((1000, ), (1, ), torch.float32)\n"             \
    "    buf1 = empty_strided_cuda((1000, ), (1, ), torch.float32)\n" __VA_ARGS__                  \
    "    return (buf1, )\n"
#define RUN(name) "    " name ".run(buf0, buf1, 1000, stream=stream0)\n"
#define HEAD(id)  "DEBUG:torch._inductor.graph.__output_code:Output code:\n# AOT ID: ['" id "']\n"

// One name in two modules with different code, as forward and backward passes have it.
static const char twice[] = HEAD("0_forward") KERNEL("triton_k_0", "cfwd", "forward_code")
    CALLS(RUN("triton_k_0")) HEAD("0_backward") KERNEL("triton_k_0", "cbwd", "backward_code")
        CALLS("    extern_kernels.mm(buf0, buf0, out=buf1)\n" RUN("triton_k_0"));

#define OP(name, id, ts, duration, more)                                                           \
    "{\"ph\":\"X\",\"cat\":\"cpu_op\",\"name\":\"" name "\",\"pid\":1,\"tid\":2,\"ts\":" ts        \
    ",\"dur\":" duration ",\"args\":{\"External id\":" id more "}}"
#define GPU(name, ts, arguments)                                                                   \
    "{\"ph\":\"X\",\"cat\":\"kernel\",\"name\":\"" name "\",\"pid\":0,\"tid\":7,\"ts\":" ts        \
    ",\"dur\":2.000,\"args\":{" arguments "}}"
#define LAUNCH(correlation, ts)                                                                    \
    "{\"ph\":\"X\",\"cat\":\"cuda_driver\",\"name\":\"cuLaunchKernel\",\"pid\":1,\"tid\":2,"       \
    "\"ts\":" ts ",\"dur\":1,\"args\":{\"correlation\":" correlation "}}"
#define TRACE(events) "{\"schemaVersion\":1,\"traceEvents\":[" events "],\"big\":1e400}"

static char *merge_text(const char *trace_text, const char *log_text, TraceCounts *got)
{
    char trace[128], out[128];
    Error error = {0};
    TorchLog *log = log_of_text(log_text);
    write_text(own_path("in.json", trace, sizeof(trace)), trace_text);
    own_path("out.json", out, sizeof(out));
    if (!trace_merge(&(TraceMerge){.trace = trace, .out = out, .log = log, .force = true}, got,
                     &error))
        fail_msg("%s", error.what);
    torch_log_destroy(log);
    return read_text(out, NULL);
}

static const struct {
    const char *what, *trace, *part, *also;
    MatchWay way;
} joins[] = {
    {"by hash, which decides against the name's other kernel",
     TRACE(OP("triton_k_0", "5", "10", "4",
              ",\"kernel_hash\":\"cbwd\"") "," GPU("triton_k_0", "20", "\"External id\":5")),
     "backward_code", "\"matched_by\": \"kernel_hash\", \"sure\": true", MATCH_HASH},
    {"by launch order: only one module has this sequence",
     TRACE(OP("## Call CompiledFxGraph f1 ##", "1", "9", "50",
              "") "," OP("aten::mm", "2", "10", "4", "") "," OP("triton_k_0", "3", "20", "4",
                                                                "") "," GPU("triton_k_0", "30",
                                                                            "\"External id\":3")),
     "backward_code", "\"matched_by\": \"launch order\", \"sure\": true", MATCH_ORDER},
    {"a library's kernel is described by the call that ran it",
     TRACE(OP("Call CompiledFxGraph f1", "1", "9", "50", "") "," OP(
         "aten::mm", "2", "10", "4", "") "," OP("triton_k_0", "3", "20", "4",
                                                "") "," GPU("gemm_64", "30", "\"External id\":2")),
     "\"kernel\": \"extern_kernels.mm\"", "\"kind\": \"extern\"", MATCH_ORDER},
    {"by correlation, where the kernel has no External id",
     TRACE(OP("## Call CompiledFxGraph f1 ##", "1", "9", "50", "") "," OP(
         "triton_k_0", "3", "20", "4", "") "," LAUNCH("77", "21") "," GPU("triton_k_0", "30",
                                                                          "\"correlation\":77")),
     "forward_code", "\"sure\": true", MATCH_ORDER},
    {"the kernel stands before its op",
     TRACE(GPU("triton_k_0", "30",
               "\"External id\":3") "," OP("## Call CompiledFxGraph f1 ##", "1", "9", "50",
                                           "") "," OP("triton_k_0", "3", "20", "4", "")),
     "forward_code", "\"sure\": true", MATCH_ORDER},
    {"only a name, and two kernels have it: both", TRACE(GPU("triton_k_0", "30", "")),
     "\"candidate_count\": 2", "\"sure\": false", MATCH_AMBIGUOUS},
    {"an id that occurs twice: the op that came last before the kernel",
     TRACE(OP("triton_k_0", "5", "10", "4", ",\"kernel_hash\":\"cfwd\"") "," OP(
         "triton_k_0", "5", "100", "4", ",\"kernel_hash\":\"cbwd\"") "," GPU("triton_k_0", "20",
                                                                             "\"External id\":5")),
     "forward_code", "kernel_hash", MATCH_HASH},
};

static void every_way_to_join_is_used(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(joins); i++) {
        TraceCounts got;
        char *merged = merge_text(joins[i].trace, twice, &got);
        if (got.merged != 1 || got.merged_by[joins[i].way] != 1)
            fail_msg("%s: merged %lld, that way %lld\n%s", joins[i].what, (long long)got.merged,
                     (long long)got.merged_by[joins[i].way], merged);
        ASSERT_CONTAINS(merged, joins[i].part);
        ASSERT_CONTAINS(merged, joins[i].also);
        ASSERT_CONTAINS(merged, "],\"big\":1e400}");
        free(merged);
        trace_counts_destroy(&got);
    }
}

static void bytes_and_bandwidth_follow_from_the_shapes(void **state)
{
    (void)state;
    TraceCounts got;
    char *merged = merge_text(
        TRACE(GPU("triton_k_0", "30", "")),
        HEAD("0_inference") KERNEL("triton_k_0", "c", "pass") CALLS(RUN("triton_k_0")), &got);
    // 4000 bytes in and out in 2 us.
    ASSERT_CONTAINS(merged, "\"estimated_bytes\": 8000");
    ASSERT_CONTAINS(merged, "\"estimated_gbps\": 4,");
    ASSERT_CONTAINS(merged, "\"graph\": \"0_inference\"");
    ASSERT_CONTAINS(merged, "\"matched_by\": \"name\", \"sure\": true");
    free(merged);
    trace_counts_destroy(&got);
}

// Odd events: without args, with empty ones, merged before, of names nobody knows; values that a
// number type would change.
static void odd_events_pass_unchanged(void **state)
{
    (void)state;
    static const char events[] =
        "{\"cat\":\"kernel\",\"name\":\"triton_k_0\",\"ts\":0.10000000000000000001,\"dur\":1} ,\n"
        "{\"cat\":\"kernel\",\"args\":{},\"name\":\"triton_k_0\",\"odd\":[NaN,1e999,\"\\u0041\"]},"
        "{\"cat\":\"kernel\",\"name\":\"triton_k_0\",\"args\":{\"inductor\":{\"mine\":1}}},"
        "{\"cat\":\"kernel\",\"name\":\"triton_new_9\",\"args\":{\"x\" : 007e}},"
        "7, null, {}, {\"name\":3,\"cat\":[],\"args\":4}";
    char trace[1024];
    snprintf(trace, sizeof(trace), "{\"traceEvents\":[%s]}", events);
    char *wrong = strstr(trace, "007e");
    memcpy(wrong, "7e00", 4);
    TraceCounts got;
    char *merged = merge_text(trace, twice, &got);
    assert_int_equal(got.kernel_events, 4);
    assert_int_equal(got.merged, 2);
    assert_int_equal(got.listed.count, 2);
    assert_string_equal(got.listed.items[0].why, "args.inductor is there already");
    assert_string_equal(got.listed.items[1].name, "triton_new_9");
    ASSERT_CONTAINS(got.listed.items[1].why, "no kernel of this name");
    ASSERT_CONTAINS(merged, "\"ts\":0.10000000000000000001,\"dur\":1, \"args\": {\"inductor\": {");
    ASSERT_CONTAINS(merged, "\"args\":{\"inductor\": {");
    ASSERT_CONTAINS(merged, "[NaN,1e999,\"\\u0041\"]");
    ASSERT_CONTAINS(merged, "7, null, {}, {\"name\":3,\"cat\":[],\"args\":4}");
    free(merged);
    trace_counts_destroy(&got);
}

static bool merge_file(const char *path, const char *out, Error *error)
{
    TraceCounts got;
    TorchLog *log = log_of_text(twice);
    bool good = trace_merge(&(TraceMerge){.trace = path, .out = out, .log = log}, &got, error);
    trace_counts_destroy(&got);
    torch_log_destroy(log);
    return good;
}

static void bad_traces_are_refused_and_leave_no_file(void **state)
{
    (void)state;
    static const struct {
        const char *text, *part;
    } bad[] = {
        {"", "ends too early"},
        {"not json", "at byte 0"},
        {"{\"a\":1}", "no list \"traceEvents\""},
        {"{\"traceEvents\":7}", "no list \"traceEvents\""},
        {"{\"traceEvents\":[{\"cat\":\"kernel\",}]}", "at byte 32"},
        {"{\"traceEvents\":[1,]}", "at byte 18"},
        {"{\"traceEvents\":[]} x", "behind the end"},
        {"{\"traceEvents\":[] \"x\":1}", "expected ',' or '}'"},
    };
    char path[128], out[128];
    own_path("bad.json", path, sizeof(path));
    own_path("never.json", out, sizeof(out));
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        Error error = {0};
        write_text(path, bad[i].text);
        assert_false(merge_file(path, out, &error));
        assert_int_equal(error.exit_code, EXIT_CODE_DATA);
        ASSERT_CONTAINS(error.what, bad[i].part);
        assert_false(file_exists(out));
    }
    // Cut off anywhere.
    const char *whole = joins[1].trace;
    for (size_t bytes = 0; bytes < strlen(whole); bytes += 3) {
        char cut[2048];
        Error error = {0};
        snprintf(cut, sizeof(cut), "%.*s", (int)bytes, whole);
        write_text(path, cut);
        assert_false(merge_file(path, out, &error));
        assert_int_equal(error.exit_code, EXIT_CODE_DATA);
        ASSERT_CONTAINS(error.what, "ends too early");
        assert_false(file_exists(out));
    }
    Error error = {0};
    assert_false(merge_file("/no/such/trace.json", out, &error));
    assert_int_equal(error.exit_code, EXIT_CODE_NO_INPUT);
    error = (Error){0};
    assert_false(merge_file(folder, out, &error));
    assert_int_equal(error.exit_code, EXIT_CODE_NO_INPUT);
}

// gzip in, gzip out; what comes out is what plain files give. A gzip file that is cut off: 65.
static void gzip_is_read_and_written(void **state)
{
    (void)state;
    char plain[1024], packed[128], out[128], command[2400], path[128];
    golden_path("train.trace.json", plain, sizeof(plain));
    own_path("t.json.gz", packed, sizeof(packed));
    own_path("m.json.gz", out, sizeof(out));
    snprintf(command, sizeof(command), "gzip -c %s >%s", plain, packed);
    assert_int_equal(system(command), 0);
    TorchLog *log = log_of_golden("train.short.txt");
    TraceCounts got;
    Error error = {0};
    assert_true(trace_merge(&(TraceMerge){.trace = packed, .out = out, .log = log}, &got, &error));
    assert_int_equal(got.merged, 76);
    trace_counts_destroy(&got);
    own_path("m2.json", path, sizeof(path));
    assert_true(trace_merge(&(TraceMerge){.trace = plain, .out = path, .log = log}, &got, &error));
    trace_counts_destroy(&got);
    snprintf(command, sizeof(command), "gzip -dc %s | cmp - %s", out, path);
    assert_int_equal(system(command), 0);
    snprintf(command, sizeof(command), "head -c 9000 %s >%s/cut.gz", packed, folder);
    assert_int_equal(system(command), 0);
    own_path("cut.gz", path, sizeof(path));
    own_path("never.json", out, sizeof(out));
    assert_false(trace_merge(&(TraceMerge){.trace = path, .out = out, .log = log}, &got, &error));
    assert_int_equal(error.exit_code, EXIT_CODE_DATA);
    assert_false(file_exists(out));
    trace_counts_destroy(&got);
    torch_log_destroy(log);
}

// An event longer than the window, and one that lies across its end.
static void events_of_any_length_pass(void **state)
{
    (void)state;
    enum { BYTES = 6 << 20 };
    char *text = malloc(BYTES + 4096);
    int length = sprintf(text, "{\"traceEvents\":[{\"name\":\"");
    memset(text + length, 'x', BYTES);
    strcpy(text + length + BYTES, "\"},\n" GPU("triton_k_0", "30", "") "]}\n");
    TraceCounts got;
    char *merged = merge_text(text, twice, &got);
    assert_int_equal(got.events, 2);
    assert_int_equal(got.merged, 1);
    char *restored = without_additions(merged, strlen(merged));
    assert_true(strcmp(restored, text) == 0);
    free(restored);
    free(merged);
    free(text);
    trace_counts_destroy(&got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(real_traces_are_merged_and_else_unchanged),
        cmocka_unit_test(every_way_to_join_is_used),
        cmocka_unit_test(bytes_and_bandwidth_follow_from_the_shapes),
        cmocka_unit_test(odd_events_pass_unchanged),
        cmocka_unit_test(bad_traces_are_refused_and_leave_no_file),
        cmocka_unit_test(gzip_is_read_and_written),
        cmocka_unit_test(events_of_any_length_pass),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
