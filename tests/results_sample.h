// results_sample.h -- random Results for the tests of results/, and their comparison bit for bit.
//
// The seed comes from MESHWORK_SEED or the clock and is printed, so that a failure can be repeated.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "results/lines.h"
#include "results/result.h"

typedef struct Sample {
    uint64_t state;
} Sample;

static inline Sample sample_create(void)
{
    const char *given = getenv("MESHWORK_SEED");
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t seed =
        given ? strtoull(given, NULL, 10) : (uint64_t)now.tv_nsec ^ ((uint64_t)getpid() << 32);
    printf("MESHWORK_SEED=%llu\n", (unsigned long long)seed);
    return (Sample){seed};
}

// splitmix64 (Steele, Lea & Flood 2014).
static inline uint64_t sample_bits(Sample *sample)
{
    uint64_t z = sample->state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static inline int sample_below(Sample *sample, int limit)
{
    return (int)(sample_bits(sample) % (uint64_t)limit);
}

static inline double sample_uniform(Sample *sample)
{
    return (double)(sample_bits(sample) >> 11) * 0x1p-53;
}

// Mostly durations of some milliseconds, now and then a value at the edge of what a double holds.
static inline double sample_seconds(Sample *sample)
{
    static const double edges[] = {NAN, 0.0, 5e-324, 1e-300, 1.7976931348623157e308, 0.1};
    if (sample_below(sample, 8) == 0)
        return edges[sample_below(sample, (int)COUNT_OF(edges))];
    return 1e-3 * (1 + sample_uniform(sample));
}

static inline DeviceState sample_state(Sample *sample)
{
    DeviceState state = {.sm_clock_mhz = 1000 + 980 * sample_uniform(sample),
                         .memory_clock_mhz = NAN,
                         .power_w = 700 * sample_uniform(sample),
                         .temperature_c = 20 + 60 * sample_uniform(sample),
                         .throttle_mask = sample_bits(sample)};
    snprintf(state.reason, sizeof state.reason, "no memory clock: \"quoted\" \xC3\xA9");
    return state;
}

// Spans whose names meet after '/' became '.', and one that meets a dimension's name.
static inline void sample_push_measurement(Sample *sample, Result *result, int ranks, int samples)
{
    static const char *const names[] = {"step", "forward/dispatch",    "forward.dispatch",
                                        "rank", "caf\xC3\xA9 au lait", "iteration"};
    MeasurementSpan spans[COUNT_OF(names)] = {0};
    Measurement measurement = {.ranks = ranks,
                               .samples = samples,
                               .warmups = sample_below(sample, 5),
                               .span_count = 1 + sample_below(sample, (int)COUNT_OF(names)),
                               .spans = spans,
                               .state_before = sample_state(sample),
                               .state_after = sample_state(sample)};
    snprintf(measurement.name, sizeof measurement.name, "measurement/%d",
             result->measurement_count);
    snprintf(measurement.stop_reason, sizeof measurement.stop_reason, "noise");
    for (int i = 0; i < measurement.span_count; i++) {
        double *seconds = calloc((size_t)samples * (size_t)ranks + 1, sizeof *seconds);
        for (int j = 0; j < samples * ranks; j++)
            seconds[j] = sample_seconds(sample);
        snprintf(spans[i].name, sizeof spans[i].name, "%s", names[i]);
        spans[i].cost = (SpanCost){.memory_bytes = floor(1e9 * sample_uniform(sample)),
                                   .flops = 1e12 * sample_uniform(sample),
                                   .wire_bytes = sample_below(sample, 1 << 20),
                                   .logical_bytes = sample_below(sample, 1 << 20)};
        spans[i].floor_s = 1e-6 * sample_uniform(sample);
        spans[i].seconds = seconds;
    }
    Error error = {0};
    bool pushed = result_push_measurement(result, &measurement, &error);
    for (int i = 0; i < measurement.span_count; i++)
        free((void *)(uintptr_t)spans[i].seconds);
    if (!pushed)
        fail_msg("%s", error.what);
}

static inline void sample_push_check(Sample *sample, Result *result)
{
    bool bitwise = sample_below(sample, 2) == 0;
    ResultCheck check = {.error = bitwise ? NAN : sample_uniform(sample),
                         .bound = bitwise ? NAN : 0.02,
                         .good = sample_below(sample, 3) > 0};
    if (sample_below(sample, 6) == 0)
        check.error = INFINITY;
    snprintf(check.name, sizeof check.name, "y against %d ranks", result->check_count);
    snprintf(check.verdict, sizeof check.verdict, bitwise ? "equal" : "within bound");
    if (sample_below(sample, 2) == 0)
        snprintf(check.detail, sizeof check.detail,
                 "w1[3, 5, 7]: 0.125 is not 0.25;\ttab, newline\n, quote \", \xE2\x89\xA0");
    Error error = {0};
    if (!result_push_check(result, &check, &error))
        fail_msg("%s", error.what);
}

static inline Json *sample_header(Sample *sample)
{
    Json *header = json_object(), *ranks = json_array(), *options = json_object();
    json_set(header, "schema_name", json_text(RESULT_SCHEMA_NAME));
    json_set(header, "schema_version", json_text(RESULT_SCHEMA_VERSION));
    json_set(header, "command", json_text("dp2ep"));
    json_set(header, "uuid", json_text("6ba7b810-9dad-41d1-80b4-00c04fd430c8"));
    json_set(header, "created_utc", json_text("2026-11-23T06:00:00Z"));
    json_set(header, "seed", json_integer((int64_t)sample_bits(sample)));
    json_set(header, "restart_count", json_integer(sample_below(sample, 3)));
    json_set(header, "note", json_text("a member that the file has an attribute of, too"));
    json_set(header, "unknown", json_null());
    json_set(options, "mesh", json_text("dp=2,ep=2"));
    json_set(options, "text", json_text("\xE2\x82\xAC \"quoted\"\n"));
    json_set(options, "nested", json_set(json_object(), "deeper", json_real(0.1)));
    json_set(header, "options", options);
    for (int rank = 0; rank < 3; rank++) {
        Json *row = json_set(json_object(), "rank", json_integer(rank));
        json_set(row, "host", json_text(rank ? "node-b" : "node-a"));
        json_append(ranks, json_set(row, "threads", json_integer(1 + rank)));
    }
    return json_set(header, "ranks", ranks);
}

static inline Result sample_result(Sample *sample, int measurements, int checks)
{
    Result result = {.header = sample_header(sample), .complete = true};
    for (int i = 0; i < measurements; i++)
        sample_push_measurement(sample, &result, 1 + sample_below(sample, 4),
                                sample_below(sample, 30));
    for (int i = 0; i < checks; i++)
        sample_push_check(sample, &result);
    return result;
}

// The same double, bit for bit; any NaN equals any other.
static inline void assert_same_double(double left, double right)
{
    uint64_t a, b;
    memcpy(&a, &left, sizeof a);
    memcpy(&b, &right, sizeof b);
    if (!(isnan(left) && isnan(right)) && a != b)
        fail_msg("%.17g is not %.17g", left, right);
}

// cmocka's assert_float_equal compares as float, which hides what a double holds.
static inline void assert_near(double value, double expected, double bound)
{
    if (!(fabs(value - expected) <= bound))
        fail_msg("%.17g is not within %g of %.17g", value, bound, expected);
}

static inline void assert_same_state(const DeviceState *a, const DeviceState *b)
{
    assert_same_double(a->sm_clock_mhz, b->sm_clock_mhz);
    assert_same_double(a->memory_clock_mhz, b->memory_clock_mhz);
    assert_same_double(a->power_w, b->power_w);
    assert_same_double(a->temperature_c, b->temperature_c);
    assert_int_equal(a->throttle_mask, b->throttle_mask);
    assert_string_equal(a->reason, b->reason);
}

static inline void assert_same_measurement(const Measurement *a, const Measurement *b)
{
    assert_string_equal(a->name, b->name);
    assert_int_equal(a->ranks, b->ranks);
    assert_int_equal(a->samples, b->samples);
    assert_int_equal(a->warmups, b->warmups);
    assert_string_equal(a->stop_reason, b->stop_reason);
    assert_int_equal(a->span_count, b->span_count);
    assert_same_state(&a->state_before, &b->state_before);
    assert_same_state(&a->state_after, &b->state_after);
    for (int i = 0; i < a->span_count; i++) {
        const MeasurementSpan *x = &a->spans[i], *y = &b->spans[i];
        assert_string_equal(x->name, y->name);
        assert_same_double(x->cost.memory_bytes, y->cost.memory_bytes);
        assert_same_double(x->cost.flops, y->cost.flops);
        assert_same_double(x->cost.wire_bytes, y->cost.wire_bytes);
        assert_same_double(x->cost.logical_bytes, y->cost.logical_bytes);
        assert_same_double(x->floor_s, y->floor_s);
        for (int j = 0; j < a->samples * a->ranks; j++)
            assert_same_double(x->seconds[j], y->seconds[j]);
    }
}

static inline void assert_same_check(const ResultCheck *a, const ResultCheck *b)
{
    assert_string_equal(a->name, b->name);
    assert_string_equal(a->verdict, b->verdict);
    assert_string_equal(a->detail, b->detail);
    assert_same_double(a->error, b->error);
    assert_same_double(a->bound, b->bound);
    assert_int_equal(a->good, b->good);
}

static inline void assert_same_json(const Json *left, const Json *right)
{
    char *a = json_print(left, false), *b = json_print(right, false);
    assert_string_equal(a, b);
    free(a);
    free(b);
}

static inline void assert_same_result(const Result *a, const Result *b)
{
    assert_same_json(a->header, b->header);
    assert_int_equal(a->measurement_count, b->measurement_count);
    assert_int_equal(a->check_count, b->check_count);
    assert_int_equal(a->complete, b->complete);
    for (int i = 0; i < a->measurement_count; i++)
        assert_same_measurement(&a->measurements[i], &b->measurements[i]);
    for (int i = 0; i < a->check_count; i++)
        assert_same_check(&a->checks[i], &b->checks[i]);
}

// The exit code, with the message where it is another.
#define assert_error(error, code)                                                                  \
    do {                                                                                           \
        if ((error).exit_code != (code))                                                           \
            fail_msg("exit code %d, expected %d: %s", (error).exit_code, (int)(code),              \
                     (error).what);                                                                \
    } while (0)

// The text of an error names what it must.
#define assert_text_has(text, part)                                                                \
    do {                                                                                           \
        if (!strstr((text), (part)))                                                               \
            fail_msg("no \"%s\" in \"%s\"", (part), (text));                                       \
    } while (0)

// A folder of its own for a test; the caller removes it with sample_folder_destroy.
static inline void sample_folder_create(char *path, size_t bytes)
{
    const char *base = getenv("TMPDIR");
    snprintf(path, bytes, "%s/meshwork-results-XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(path))
        fail_msg("no folder %s can be made", path);
}

static inline void sample_folder_destroy(const char *path)
{
    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    if (system(command) != 0)
        fail_msg("%s failed", command);
}
