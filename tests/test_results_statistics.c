// Statistics of samples and the stop rule, against values from numpy, exact integer sums and a
// simulation.
#include "tests/results_sample.h"

#include "results/statistics.h"

static const int random_rounds = 200;

// numpy.quantile(x, q), x.mean(), x.std(ddof=1) of the ten values below, printed with 17 digits.
static void test_known_values(void **state)
{
    (void)state;
    const double samples[] = {3.5, 1.25, 9.0, 2.75, 4.125, 7.5, 0.5, 6.0, 5.25, 8.875};
    Statistics s = statistics_of(samples, (int)COUNT_OF(samples));
    assert_int_equal(s.count, 10);
    assert_same_double(s.minimum, 0.5);
    assert_same_double(s.q1, 2.9375);
    assert_same_double(s.median, 4.6875);
    assert_same_double(s.q3, 7.125);
    assert_same_double(s.maximum, 9.0);
    assert_same_double(s.mean, 4.875);
    assert_near(s.deviation, 2.991887178502707, 1e-14);
    assert_same_double(s.mad, 2.375);
    assert_same_double(s.ci95_low, 1.25); // ranks 2 and 9 of 10
    assert_same_double(s.ci95_high, 8.875);
    assert_true(isnan(s.p95) && isnan(s.p99));
    assert_near(s.noise, 2.991887178502707 / 4.875, 1e-14);
}

static void test_few_samples(void **state)
{
    (void)state;
    const double one[] = {2.0, NAN};
    Statistics none = statistics_of(one + 1, 1), single = statistics_of(one, 2);
    assert_int_equal(none.count, 0);
    assert_true(isnan(none.median) && isnan(none.mean) && isnan(none.noise) && isnan(none.minimum));
    assert_int_equal(single.count, 1);
    assert_same_double(single.median, 2.0);
    assert_true(isnan(single.deviation) && isnan(single.ci95_low));
    const double six[] = {6, 5, 4, 3, 2, 1};
    assert_true(isnan(statistics_of(six, 5).ci95_low));
    assert_same_double(statistics_of(six, 6).ci95_low, 1);
    assert_same_double(statistics_of(six, 6).ci95_high, 6);
    assert_int_equal(statistics_of(NULL, 0).count, 0);
}

// Samples 1 .. n make the interval's ranks visible.
static void ranks_of_interval(int count, int *low, int *high)
{
    double *samples = calloc((size_t)count, sizeof *samples);
    for (int i = 0; i < count; i++)
        samples[i] = count - i;
    Statistics s = statistics_of(samples, count);
    *low = isnan(s.ci95_low) ? 0 : (int)s.ci95_low;
    *high = isnan(s.ci95_high) ? 0 : (int)s.ci95_high;
    free(samples);
}

// For n <= 56 the tail of the binomial is an integer over 2^n: no rounding anywhere.
static void test_interval_exact(void **state)
{
    (void)state;
    for (int n = 1; n <= 56; n++) {
        int low, high, rank = 0;
        uint64_t tail = 0, term = 1;
        while (rank <= n / 2) {
            tail += term;
            if (40 * tail > (uint64_t)1 << n)
                break;
            term = term * (uint64_t)(n - rank) / (uint64_t)(rank + 1);
            rank++;
        }
        ranks_of_interval(n, &low, &high);
        assert_int_equal(low, rank);
        assert_int_equal(high, rank ? n - rank + 1 : 0);
    }
}

// Large n: the whole tail summed from its first term, which a long double holds down to 2^-16445.
static void test_interval_large(void **state)
{
    (void)state;
    static const int counts[] = {63, 100, 101, 999, 1000, 4096, 12345};
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        int n = counts[i], low, high, rank = 0;
        long double term = powl(2, -n), tail = 0;
        for (;;) {
            tail += term;
            if (tail > 0.025L)
                break;
            term *= (long double)(n - rank) / (rank + 1);
            rank++;
        }
        ranks_of_interval(n, &low, &high);
        assert_int_equal(low, rank);
        assert_int_equal(high, n - rank + 1);
    }
}

// The claim itself: of many intervals from a skewed distribution, at least 95 % hold its median
// (log 2).
static void test_coverage(void **state)
{
    Sample *sample = *state;
    enum { TRIALS = 4000, COUNT = 17 };
    int held = 0;
    for (int trial = 0; trial < TRIALS; trial++) {
        double samples[COUNT];
        for (int i = 0; i < COUNT; i++)
            samples[i] = -log(1 - sample_uniform(sample));
        Statistics s = statistics_of(samples, COUNT);
        held += s.ci95_low <= log(2) && log(2) <= s.ci95_high;
    }
    // 17 samples: ranks 5 and 13, exact probability 0.9510; four standard deviations of the count
    // are 55.
    assert_in_range(held, (int)(0.9510 * TRIALS) - 55, (int)(0.9510 * TRIALS) + 55);
}

static int double_ascending(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

// The definition, read backwards: a share q of the n - 1 steps lies below the quantile.
static double plain_quantile(const double *sorted, int count, long double share)
{
    long double position = share * (count - 1);
    int below = (int)floorl(position);
    int above = below + 1 < count ? below + 1 : below;
    return (double)(sorted[below] +
                    (position - below) * ((long double)sorted[above] - sorted[below]));
}

static void test_random_data(void **state)
{
    Sample *sample = *state;
    for (int round = 0; round < random_rounds; round++) {
        int count = 1 + sample_below(sample, 250), kept = 0;
        double samples[256], sorted[256];
        for (int i = 0; i < count; i++) {
            samples[i] = sample_below(sample, 5) ? 1e-3 + 1e-4 * sample_uniform(sample) : NAN;
            if (!isnan(samples[i]))
                sorted[kept++] = samples[i];
        }
        qsort(sorted, (size_t)kept, sizeof *sorted, double_ascending);
        Statistics s = statistics_of(samples, count);
        assert_int_equal(s.count, kept);
        if (kept < 2)
            continue;
        long double sum = 0, squares = 0;
        for (int i = 0; i < kept; i++)
            sum += sorted[i];
        for (int i = 0; i < kept; i++)
            squares += (sorted[i] - sum / kept) * (sorted[i] - sum / kept);
        assert_near(s.mean, (double)(sum / kept), 1e-17);
        assert_near(s.deviation, (double)sqrtl(squares / (kept - 1)), 1e-16);
        assert_near(s.q1, plain_quantile(sorted, kept, 0.25L), 1e-17);
        assert_near(s.median, plain_quantile(sorted, kept, 0.5L), 1e-17);
        assert_near(s.q3, plain_quantile(sorted, kept, 0.75L), 1e-17);
        assert_int_equal(isnan(s.p95), kept < 20);
        assert_int_equal(isnan(s.p99), kept < 100);
        if (kept >= 20)
            assert_near(s.p95, plain_quantile(sorted, kept, 0.95L), 1e-17);
        if (kept >= 100)
            assert_near(s.p99, plain_quantile(sorted, kept, 0.99L), 1e-17);
    }
}

static void test_max_over_ranks(void **state)
{
    (void)state;
    const double samples[] = {1, 3, 2, NAN, 5, NAN, NAN, NAN, NAN};
    double out[3];
    statistics_max_over_ranks(samples, 3, 3, out);
    assert_same_double(out[0], 3);
    assert_same_double(out[1], 5);
    assert_same_double(out[2], NAN);
}

static void test_stop(void **state)
{
    (void)state;
    double steady[40], wild[40];
    for (int i = 0; i < 40; i++) {
        steady[i] = 1.0 + 0.001 * (i % 3);
        wild[i] = 1.0 + (i % 7);
    }
    const StopRule rule = {.samples_min = 8, .samples_max = 32, .noise_max = 0.01, .timeout_s = 5};
    const StopRule patient = {.samples_min = 1, .samples_max = 32};
    static const StopRule odd = {.samples_min = 10, .samples_max = 4, .noise_max = 0.01};
    const struct {
        const StopRule *rule;
        const double *samples;
        int count;
        double elapsed_s;
        const char *reason;
    } cases[] = {
        {&rule, steady, 7, 0, "-"},
        {&rule, steady, 7, 100, "-"}, // the minimum comes first
        {&rule, steady, 8, 0, "noise"},
        {&rule, steady, 32, 100, "noise"},
        {&rule, wild, 31, 4.9, "-"},
        {&rule, wild, 32, 100, "count"},
        {&rule, wild, 12, 5, "timeout"},
        {&patient, steady, 31, 1e9, "-"}, // neither noise nor time is a rule here
        {&patient, steady, 32, 0, "count"},
        {&odd, wild, 3, 0, "-"},
        {&odd, wild, 4, 0, "count"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const char *reason =
            statistics_stop(cases[i].rule, cases[i].samples, cases[i].count, cases[i].elapsed_s);
        if (strcmp(reason ? reason : "-", cases[i].reason) != 0)
            fail_msg("case %zu: \"%s\", expected \"%s\"", i, reason ? reason : "-",
                     cases[i].reason);
    }
    // Below six samples there is no interval, so noise cannot stop it.
    const StopRule eager = {.samples_min = 1, .samples_max = 100, .noise_max = 1e9};
    assert_null(statistics_stop(&eager, steady, 5, 0));
    assert_string_equal(statistics_stop(&eager, steady, 6, 0), "noise");
}

int main(void)
{
    Sample sample = sample_create();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_values),
        cmocka_unit_test(test_few_samples),
        cmocka_unit_test(test_interval_exact),
        cmocka_unit_test(test_interval_large),
        cmocka_unit_test_prestate(test_coverage, &sample),
        cmocka_unit_test_prestate(test_random_data, &sample),
        cmocka_unit_test(test_max_over_ranks),
        cmocka_unit_test(test_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
