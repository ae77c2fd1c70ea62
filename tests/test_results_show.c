// What `results show` prints: the table for people, the JSON object for machines, and the command
// around both.
#include "tests/results_folder.h"

#include <sys/wait.h>

#include "harness/command.h"
#include "results/journal.h"
#include "results/statistics.h"
#include "results/store.h"

enum { TEXT_BYTES = 1 << 20 };

// What result_show prints; the caller frees it.
static char *shown(const Folder *folder, const Result *result, bool as_json)
{
    uint64_t bytes;
    show_into(folder->out, result, as_json);
    return read_bytes(folder->out, &bytes);
}

// Two ranks, eight samples: rank 0 takes 1 ms, rank 1 takes 2 ms and 8 us more each time.
static Result known_result(Sample *sample)
{
    Result result = {.header = sample_header(sample), .complete = true};
    double seconds[16], never[16];
    MeasurementSpan spans[] = {{.name = "step", .seconds = seconds, .floor_s = 1e-3},
                               {.name = "forward/dispatch", .seconds = never}};
    Measurement measurement = {.name = "exact",
                               .ranks = 2,
                               .samples = 8,
                               .warmups = 3,
                               .stop_reason = "noise",
                               .span_count = 2};
    Json *ceilings = json_set(json_object(), "copy_bytes_per_s", json_real(4e12));
    json_set(ceilings, "matmul_flops_per_s", json_real(765e12));
    json_set(ceilings, "link_bytes_per_s", json_real(0)); // not measured
    json_set(result.header, "ceilings", ceilings);
    for (int i = 0; i < 8; i++) {
        seconds[2 * i] = 1e-3;
        seconds[2 * i + 1] = 2e-3 + 8e-6 * i;
        never[2 * i] = never[2 * i + 1] = NAN;
    }
    spans[0].cost = (SpanCost){.memory_bytes = 2.028e9,
                               .flops = 1.014e12,
                               .wire_bytes = 4.056e6,
                               .logical_bytes = 8.112e6};
    measurement.spans = spans;
    measurement.state_before.sm_clock_mhz = 1980;
    measurement.state_after.sm_clock_mhz = measurement.state_after.power_w = NAN;
    snprintf(measurement.state_after.reason, DEVICE_TEXT_BYTES, "no NVML");
    Error error = {0};
    if (!result_push_measurement(&result, &measurement, &error))
        fail_msg("%s", error.what);
    ResultCheck good = {.name = "y", .verdict = "equal", .error = NAN, .bound = NAN, .good = true};
    ResultCheck bad = {.name = "dx",
                       .verdict = "differs",
                       .error = 0.5,
                       .bound = 0.02,
                       .detail = "dx[1, 2]: 1.5 is not\x1B[2J 1"};
    assert_true(result_push_check(&result, &good, &error));
    assert_true(result_push_check(&result, &bad, &error));
    return result;
}

static void test_table(void **state)
{
    Folder *folder = *state;
    Result result = known_result(folder->sample);
    snprintf(result.note, sizeof result.note, "dropped a torn last line");
    char *text = shown(folder, &result, false);
    static const char *const parts[] = {
        "dp2ep, 2026-11-23T06:00:00Z",
        "note      dropped a torn last line",
        "exact: 8 samples after 3 warm-ups, ended by noise",
        "1980 MHz",
        "after     clocks unknown: no NVML",
        "copy 4.0 TB/s, matmul 765 TFLOP/s, link -",
        // The median of 2.000 .. 2.056 ms is 2.028 ms; with 8 samples the interval is ranks 1 to 8.
        "2.03 ms",
        "2.00 ms .. 2.06 ms",
        "2.03x",
        // 2.028e9 bytes in 2.028 ms are 1.0 TB/s, a quarter of the ceiling; 500 of 765 TFLOP/s are
        // 65 %.
        "1.0 TB/s, 25 %",
        "500 TFLOP/s, 65 %",
        "2.0 GB/s  4.0 GB/s",
        "not run",
        "FAILED",
        "5.00e-01",
        "2.00e-02",
        "dx[1, 2]: 1.5 is not?[2J 1",
        "2 checks, 1 failed",
    };
    for (size_t i = 0; i < COUNT_OF(parts); i++)
        assert_text_has(text, parts[i]);
    assert_null(strchr(text, '\x1B'));
    assert_null(strstr(text, "nan"));
    free(text);
    result.complete = false;
    text = shown(folder, &result, false);
    assert_text_has(text, "did not finish");
    free(text);
    result_destroy(&result);
}

static Json *shown_json(const Folder *folder, const Result *result)
{
    Error error = {0};
    char *text = shown(folder, result, true);
    Json *json = json_parse(text, strlen(text), &error);
    if (!json)
        fail_msg("%s in: %.200s", error.what, text);
    free(text);
    return json;
}

static double number(const Json *json, const char *key)
{
    const Json *value = json_find(json, key);
    if (!value)
        fail_msg("there is no key \"%s\"", key);
    return json_real_of(value);
}

static void test_json(void **state)
{
    Folder *folder = *state;
    Result result = known_result(folder->sample);
    Json *json = shown_json(folder, &result);
    assert_string_equal(json_text_of(json_find(json, "schema_name")), "meshwork-show");
    assert_string_equal(json_text_of(json_find(json, "schema_version")), "1.0.0");
    assert_true(json_boolean_of(json_find(json, "complete")));
    assert_same_json(json_find(json, "run"), result.header);
    const Json *measurement = json_at(json_find(json, "measurements"), 0);
    const Json *step = json_at(json_find(measurement, "spans"), 0);
    const Json *statistics = json_find(step, "statistics");
    assert_string_equal(json_text_of(json_find(measurement, "name")), "exact");
    assert_string_equal(json_text_of(json_find(step, "name")), "step");
    assert_near(number(statistics, "median"), 2.028e-3, 1e-15);
    assert_same_double(number(statistics, "ci95_low"), 2e-3);
    assert_near(number(statistics, "rank_spread"), 2.028, 1e-12);
    assert_near(json_real_of(json_at(json_find(statistics, "rank_medians"), 1)), 2.028e-3, 1e-15);
    assert_int_equal(json_integer_of(json_at(json_find(statistics, "slowest_rank_counts"), 0)), 0);
    assert_int_equal(json_integer_of(json_at(json_find(statistics, "slowest_rank_counts"), 1)), 8);
    assert_near(number(step, "memory_bytes_per_s"), 1e12, 1);
    assert_near(number(step, "memory_share"), 0.25, 1e-12);
    assert_near(number(step, "flops_share"), 500.0 / 765, 1e-12);
    assert_near(number(step, "logical_bytes_per_s"), 4e9, 1);
    assert_true(json_is_null(json_find(step, "wire_share"))); // that ceiling was not measured
    const Json *never = json_at(json_find(measurement, "spans"), 1);
    assert_true(json_is_null(json_find(json_find(never, "statistics"), "median")));
    assert_int_equal(json_integer_of(json_find(json_find(never, "statistics"), "count")), 0);
    json_destroy(json);
    result_destroy(&result);
}

// Random results: the keys are always the same, the samples are all there, the statistics are those
// of statistics_of.
static void test_json_random(void **state)
{
    static const char *const keys[] = {"count",
                                       "minimum",
                                       "q1",
                                       "median",
                                       "q3",
                                       "maximum",
                                       "mean",
                                       "deviation",
                                       "mad",
                                       "ci95_low",
                                       "ci95_high",
                                       "p95",
                                       "p99",
                                       "noise",
                                       "rank_medians",
                                       "rank_spread",
                                       "slowest_rank_counts"};
    Folder *folder = *state;
    for (int round = 0; round < 10; round++) {
        Result result = sample_result(folder->sample, 2, 3);
        Json *json = shown_json(folder, &result);
        assert_int_equal(json_count(json_find(json, "checks")), 3);
        for (int i = 0; i < 2; i++) {
            const Measurement *m = &result.measurements[i];
            const Json *spans =
                json_find(json_at(json_find(json, "measurements"), (uint64_t)i), "spans");
            assert_int_equal(json_count(spans), m->span_count);
            for (int j = 0; j < m->span_count; j++) {
                const Json *span = json_at(spans, (uint64_t)j);
                const Json *statistics = json_find(span, "statistics"),
                           *rows = json_find(span, "seconds");
                double *longest = calloc((size_t)m->samples + 1, sizeof *longest);
                statistics_max_over_ranks(m->spans[j].seconds, m->samples, m->ranks, longest);
                assert_same_double(number(statistics, "median"),
                                   statistics_of(longest, m->samples).median);
                free(longest);
                for (size_t k = 0; k < COUNT_OF(keys); k++)
                    assert_non_null(json_find(statistics, keys[k]));
                assert_int_equal(json_count(rows), m->samples);
                for (int k = 0; k < m->samples * m->ranks; k++)
                    assert_same_double(json_real_of(json_at(json_at(rows, (uint64_t)(k / m->ranks)),
                                                            (uint64_t)(k % m->ranks))),
                                       m->spans[j].seconds[k]);
            }
        }
        json_destroy(json);
        result_destroy(&result);
    }
}

// A header with nothing in it, and one where everything has the wrong type, are shown too.
static void test_odd_headers(void **state)
{
    Folder *folder = *state;
    static const char *const headers[] = {
        "{}",
        "{\"command\": 1, \"ranks\": {}, \"mesh\": [1], \"ceilings\": 3, \"build\": [], "
        "\"options\": 0}",
        "{\"ranks\": [], \"ceilings\": {\"copy_bytes_per_s\": -1}, \"rank_count\": \"many\"}",
        "{\"ranks\": [7, {}], \"mesh\": {\"dp\": \"x\", \"ep\": 2}, \"created_utc\": null}",
    };
    for (size_t i = 0; i < COUNT_OF(headers); i++) {
        Error error = {0};
        Result result = {.header = json_parse(headers[i], strlen(headers[i]), &error)};
        assert_error(error, 0);
        sample_push_measurement(folder->sample, &result, 3, 7);
        char *text = shown(folder, &result, false);
        assert_text_has(text, "measurement/0");
        free(text);
        json_destroy(shown_json(folder, &result));
        Result read;
        if (!store_write(&result, folder->file, true, &error))
            fail_msg("%s", error.what);
        // Without the schema's name the file is not ours when it is read.
        assert_false(store_read(folder->file, &read, &error));
        assert_error(error, EXIT_CODE_DATA);
        result_destroy(&result);
    }
}

// `meshwork results WORD...` in a process of its own; its exit code, and both outputs in
// folder->out.
static int run_command(const Folder *folder, int words, const char *const *word)
{
    char *argv[16] = {(char *)(uintptr_t) "meshwork", (char *)(uintptr_t) "results"};
    for (int i = 0; i < words; i++)
        argv[2 + i] = (char *)(uintptr_t)word[i];
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (!freopen(folder->out, "w", stdout) || dup2(STDOUT_FILENO, STDERR_FILENO) < 0)
            _exit(99);
        int code = command_main(2 + words, argv);
        fflush(stdout);
        _exit(code);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void expect_command(const Folder *folder, const char *const *words, int exit_code,
                           const char *part)
{
    int count = 0;
    uint64_t bytes;
    Error error = {0};
    while (words[count])
        count++;
    int code = run_command(folder, count, words);
    char *text = file_read(folder->out, TEXT_BYTES, &bytes, &error);
    assert_error(error, 0);
    if (code != exit_code)
        fail_msg("exit code %d, expected %d: %s", code, exit_code, text);
    assert_text_has(text, part);
    free(text);
}
#define EXPECT_COMMAND(folder, exit_code, part, ...)                                               \
    expect_command(folder, (const char *const[]){__VA_ARGS__, NULL}, exit_code, part)

static void test_command(void **state)
{
    Folder *folder = *state;
    Result result = known_result(folder->sample);
    Error error = {0};
    Journal *journal = journal_create(folder->journal, false, &error);
    assert_true(journal_append(journal, line_of_header(result.header), &error));
    assert_true(journal_append(journal, line_of_measurement(&result.measurements[0]), &error));
    journal_destroy(journal);
    const char *file = folder->file, *from = folder->journal;
    EXPECT_COMMAND(folder, 66, "results recover", "show", file); // the journal is there: it says so
    EXPECT_COMMAND(folder, 0, "did not finish", "show", from);
    EXPECT_COMMAND(folder, 2, "-o FILE.h5", "recover", from);
    EXPECT_COMMAND(folder, 0, "1 measurements, 0 checks, not finished", "recover", from, "-o",
                   file);
    EXPECT_COMMAND(folder, 73, "--force", "recover", from, "-o", file);
    EXPECT_COMMAND(folder, 0, "not finished", "recover", from, "--out", file, "--force");
    EXPECT_COMMAND(folder, 0, "exact: 8 samples", "show", file);
    EXPECT_COMMAND(folder, 0, "\"meshwork-show\"", "show", file, "--json");
    EXPECT_COMMAND(folder, 65, "no journal", "recover", file, "-o", "x.h5");
    EXPECT_COMMAND(folder, 65, folder->path, "show", folder->path);
    EXPECT_COMMAND(folder, 2, "did you mean recover?", "recovr", file);
    EXPECT_COMMAND(folder, 2, "a verb and one file", "show");
    EXPECT_COMMAND(folder, 2, "--jsn", "show", file, "--jsn");
    result_destroy(&result);
}

int main(void)
{
    Sample sample = sample_create();
    const struct CMUnitTest tests[] = {
        FOLDER_TEST(test_table, &sample),       FOLDER_TEST(test_json, &sample),
        FOLDER_TEST(test_json_random, &sample), FOLDER_TEST(test_odd_headers, &sample),
        FOLDER_TEST(test_command, &sample),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
