// The recorder on the CPU: one sample per span and iteration, NaN where a span did not run, the
// span's name in errors.
#include "harness/check.h"
#include "harness/record.h"
#include "tests/capture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

static Recorder *make_recorder(int iterations_max, bool detail)
{
    return recorder_create(stream_create(DEVICE_CPU), iterations_max, detail);
}

static void sleep_ms(int milliseconds)
{
    struct timespec left = {.tv_nsec = milliseconds * 1000000L};
    while (nanosleep(&left, &left) != 0) {
    }
}

static void samples_are_durations_in_order(void **state)
{
    (void)state;
    Recorder *recorder = make_recorder(8, true);
    int step = recorder_span(recorder, "step");
    int forward = recorder_span(recorder, "forward");
    int never = recorder_span(recorder, "never");
    assert_int_equal(recorder_span(recorder, "forward"), forward);
    assert_int_equal(recorder_spans(recorder), 3);
    assert_string_equal(recorder_span_name(recorder, forward), "forward");
    static const int sleeps[4] = {12, 3, 9, 1};
    for (int i = 0; i < 4; i++) {
        record_begin(recorder, step);
        record_begin(recorder, forward);
        sleep_ms(sleeps[i]);
        record_end(recorder, forward);
        sleep_ms(2);
        record_end(recorder, step);
        recorder_iteration(recorder, i != 1); // the second is a warm-up
    }
    assert_int_equal(recorder_samples(recorder), 3);
    static const int kept[3] = {12, 9, 1};
    for (int i = 0; i < 3; i++) {
        double inner = recorder_seconds(recorder, forward)[i];
        double outer = recorder_seconds(recorder, step)[i];
        if (inner < kept[i] * 1e-3 || outer < inner + 2e-3 || outer > 10)
            fail_msg("sample %d: forward %g s, step %g s after %d + 2 ms", i, inner, outer,
                     kept[i]);
        assert_true(isnan(recorder_seconds(recorder, never)[i]));
    }
    recorder_destroy(recorder);
}

static void without_detail_only_the_outermost_is_timed(void **state)
{
    (void)state;
    Recorder *recorder = make_recorder(2, false);
    int step = recorder_span(recorder, "step"), inner = recorder_span(recorder, "step/inner");
    for (int i = 0; i < 2; i++) {
        record_begin(recorder, step);
        record_begin(recorder, inner);
        assert_string_equal(check_context()->span, "step/inner"); // named all the same
        record_end(recorder, inner);
        record_end(recorder, step);
        recorder_iteration(recorder, true);
        assert_false(isnan(recorder_seconds(recorder, step)[i]));
        assert_true(isnan(recorder_seconds(recorder, inner)[i]));
    }
    recorder_destroy(recorder);
}

static void errors_know_the_innermost_span(void **state)
{
    (void)state;
    Recorder *recorder = make_recorder(1, true);
    int a = recorder_span(recorder, "a"), b = recorder_span(recorder, "a/b");
    snprintf(check_context()->span, CHECK_SPAN_BYTES, "set-up");
    record_begin(recorder, a);
    assert_string_equal(check_context()->span, "a");
    record_begin(recorder, b);
    assert_string_equal(check_context()->span, "a/b");
    record_end(recorder, b);
    assert_string_equal(check_context()->span, "a");
    record_end(recorder, a);
    assert_string_equal(check_context()->span, "set-up");
    check_context()->span[0] = '\0';
    recorder_destroy(recorder);
}

static void a_span_that_runs_sometimes_has_gaps(void **state)
{
    (void)state;
    Recorder *recorder = make_recorder(50, true);
    int always = recorder_span(recorder, "always"),
        sometimes = recorder_span(recorder, "sometimes");
    bool ran[50];
    for (int i = 0; i < 50; i++) {
        ran[i] = random() % 2;
        record_begin(recorder, always);
        record_end(recorder, always);
        if (ran[i]) {
            record_begin(recorder, sometimes);
            record_end(recorder, sometimes);
        }
        recorder_iteration(recorder, true);
    }
    int late = recorder_span(recorder, "late");
    for (int i = 0; i < 50; i++) {
        double seconds = recorder_seconds(recorder, sometimes)[i];
        if (isnan(seconds) == ran[i] || isnan(recorder_seconds(recorder, always)[i]))
            fail_msg("iteration %d: ran %d, sample %g", i, ran[i], seconds);
        assert_true(isnan(recorder_seconds(recorder, late)[i]));
    }
    recorder_destroy(recorder);
}

static void no_recorder_records_nothing(void **state)
{
    (void)state;
    record_begin(NULL, 3);
    record_end(NULL, 3);
    recorder_iteration(NULL, true);
    recorder_destroy(NULL);
    assert_string_equal(check_context()->span, "");
}

// Every misuse, with the words its message must have.
typedef struct Misuse {
    void (*body)(void *context);
    const char *words;
} Misuse;

static Recorder *two_spans(int iterations_max)
{
    Recorder *recorder = make_recorder(iterations_max, true);
    recorder_span(recorder, "first");
    recorder_span(recorder, "second");
    return recorder;
}

static void die_twice(void *context)
{
    (void)context;
    Recorder *recorder = two_spans(1);
    record_begin(recorder, 0);
    record_end(recorder, 0);
    record_begin(recorder, 0);
}

static void die_crossed(void *context)
{
    (void)context;
    Recorder *recorder = two_spans(1);
    record_begin(recorder, 0);
    record_begin(recorder, 1);
    record_end(recorder, 0);
}

static void die_unopened(void *context)
{
    (void)context;
    record_end(two_spans(1), 1);
}

static void die_open_iteration(void *context)
{
    (void)context;
    Recorder *recorder = two_spans(1);
    record_begin(recorder, 1);
    recorder_iteration(recorder, true);
}

static void die_full(void *context)
{
    (void)context;
    Recorder *recorder = two_spans(2);
    for (int i = 0; i < 3; i++)
        recorder_iteration(recorder, true);
}

static void die_unknown_span(void *context)
{
    (void)context;
    record_begin(two_spans(1), 2);
}

static void die_too_many_spans(void *context)
{
    (void)context;
    Recorder *recorder = make_recorder(1, true);
    for (int i = 0; i <= RECORD_SPANS_MAX; i++) {
        char name[16];
        snprintf(name, sizeof(name), "span %d", i);
        recorder_span(recorder, name);
    }
}

static void die_long_name(void *context)
{
    (void)context;
    recorder_span(make_recorder(1, true), "a name that is longer than any span may be called here");
}

static void misuse_is_named(void **state)
{
    (void)state;
    static const Misuse misuses[] = {
        {die_twice, "span first is begun twice in one iteration"},
        {die_crossed, "span first is ended, but second is the innermost open one"},
        {die_unopened, "span second is ended, but none is the innermost open one"},
        {die_open_iteration, "while span second is open"},
        {die_full, "the recorder is full: 2 samples"},
        {die_unknown_span, "span 2 of 2"},
        {die_too_many_spans, "64 spans there, at most 64"},
        {die_long_name, "at most 47"},
    };
    for (size_t i = 0; i < COUNT_OF(misuses); i++) {
        Captured end = capture(misuses[i].body, NULL);
        assert_int_equal(end.exit_code, EXIT_CODE_INTERNAL);
        ASSERT_CONTAINS(end.text, misuses[i].words);
    }
}

int main(void)
{
    srandom((unsigned)time(NULL));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(samples_are_durations_in_order),
        cmocka_unit_test(without_detail_only_the_outermost_is_timed),
        cmocka_unit_test(errors_know_the_innermost_span),
        cmocka_unit_test(a_span_that_runs_sometimes_has_gaps),
        cmocka_unit_test(no_recorder_records_nothing),
        cmocka_unit_test(misuse_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
