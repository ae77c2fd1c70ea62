// statistics.c -- order statistics of raw samples, and the rule that ends sampling.
//
// Quantiles interpolate between neighbours (type 7 of Hyndman & Fan 1996, what numpy and R do
// unasked). The interval of the median needs no distribution: the number of samples below the true
// median is Binomial(n, 1/2), so the k-th smallest and the k-th largest sample enclose it with
// probability 1 - 2 P(B < k) (Hoefler & Belli, SC'15, section 3.1.3). k is the largest rank that
// still gives 95 %, found by summing the exact probabilities for every n.
#include "results/statistics.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness/check.h"

enum { P95_SAMPLES_MIN = 20, P99_SAMPLES_MIN = 100 };

static int ascending(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static double quantile(const double *sorted, int count, double share)
{
    double position = share * (count - 1);
    int below = (int)position;
    double part = position - below;
    if (part == 0)
        return sorted[below];
    return sorted[below] + part * (sorted[below + 1] - sorted[below]);
}

// The largest k with P(Binomial(count, 1/2) < k) <= 0.025; 0 when there is none. Terms far below
// the median are smaller than the rounding of the sum and are skipped, so that a million samples
// cost a few thousand steps.
static int interval_rank(int count)
{
    double deviation = sqrt(count) / 2;
    int first = (int)fmax(0, count / 2.0 - 10 * deviation - 1);
    double logarithm = lgamma(count + 1.0) - lgamma(first + 1.0) - lgamma(count - first + 1.0);
    double term = exp(logarithm - count * log(2));
    double sum = 0;
    int rank = first;
    while (rank <= count / 2) {
        sum += term;
        if (sum > 0.025)
            break;
        term *= (double)(count - rank) / (rank + 1);
        rank++;
    }
    return rank;
}

static double median_absolute_deviation(const double *sorted, int count, double median,
                                        double *work)
{
    for (int i = 0; i < count; i++)
        work[i] = fabs(sorted[i] - median);
    qsort(work, (size_t)count, sizeof *work, ascending);
    return quantile(work, count, 0.5);
}

// Two passes: the squares are of differences from the mean, which keeps small spreads of large
// values exact.
static void set_moments(Statistics *statistics, const double *sorted, int count)
{
    double sum = 0, squares = 0;
    for (int i = 0; i < count; i++)
        sum += sorted[i];
    statistics->mean = sum / count;
    for (int i = 0; i < count; i++)
        squares += (sorted[i] - statistics->mean) * (sorted[i] - statistics->mean);
    if (count > 1)
        statistics->deviation = sqrt(squares / (count - 1));
    statistics->noise = statistics->deviation / statistics->mean;
}

Statistics statistics_of(const double *samples, int count)
{
    Statistics result = {.minimum = NAN, .q1 = NAN, .median = NAN, .q3 = NAN, .maximum = NAN};
    result.mean = result.deviation = result.mad = result.noise = NAN;
    result.ci95_low = result.ci95_high = result.p95 = result.p99 = NAN;
    size_t bytes = (size_t)(count > 0 ? count : 1) * sizeof(double);
    double *sorted = malloc(bytes), *work = malloc(bytes);
    CHECK(sorted && work, EXIT_CODE_HARDWARE, "free some memory", "no memory for %d samples",
          count);
    for (int i = 0; i < count; i++)
        if (!isnan(samples[i]))
            sorted[result.count++] = samples[i];
    int kept = result.count;
    if (kept > 0) {
        qsort(sorted, (size_t)kept, sizeof *sorted, ascending);
        result.minimum = sorted[0];
        result.q1 = quantile(sorted, kept, 0.25);
        result.median = quantile(sorted, kept, 0.5);
        result.q3 = quantile(sorted, kept, 0.75);
        result.maximum = sorted[kept - 1];
        set_moments(&result, sorted, kept);
        result.mad = median_absolute_deviation(sorted, kept, result.median, work);
        int rank = interval_rank(kept);
        if (rank > 0) {
            result.ci95_low = sorted[rank - 1];
            result.ci95_high = sorted[kept - rank];
        }
        if (kept >= P95_SAMPLES_MIN)
            result.p95 = quantile(sorted, kept, 0.95);
        if (kept >= P99_SAMPLES_MIN)
            result.p99 = quantile(sorted, kept, 0.99);
    }
    free(sorted);
    free(work);
    return result;
}

void statistics_max_over_ranks(const double *samples, int count, int ranks, double *out)
{
    for (int i = 0; i < count; i++) {
        double maximum = NAN; // fmax leaves NaN out: a rank that did not run the span has no time
        for (int rank = 0; rank < ranks; rank++)
            maximum = fmax(maximum, samples[(int64_t)i * ranks + rank]);
        out[i] = maximum;
    }
}

const char *statistics_stop(const StopRule *rule, const double *samples, int count,
                            double elapsed_s)
{
    if (count < rule->samples_min && count < rule->samples_max)
        return NULL;
    if (rule->noise_max > 0) {
        Statistics now = statistics_of(samples, count);
        // A comparison with NaN is false: too few samples for an interval means go on.
        if ((now.ci95_high - now.ci95_low) / 2 <= rule->noise_max * now.median)
            return "noise";
    }
    if (count >= rule->samples_max)
        return "count";
    if (rule->timeout_s > 0 && elapsed_s >= rule->timeout_s)
        return "timeout";
    return NULL;
}
