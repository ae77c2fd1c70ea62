// statistics.h -- what is said about samples, made when they are read, never stored instead of
// them.
//
// Median and quartiles, MAD, the rank-based 95 % interval of the median (Hoefler & Belli,
// "Scientific benchmarking of parallel computing systems", SC'15), p95 only from 20 samples and p99
// from 100. A collective's time is the maximum over ranks of each iteration first.
#pragma once

#include "harness/base.h"

typedef struct Statistics {
    int count;
    double minimum, q1, median, q3, maximum, mean, deviation;
    double mad;                 // median absolute deviation, not scaled
    double ci95_low, ci95_high; // of the median; NaN below 6 samples
    double p95, p99;            // NaN with too few samples
    double noise;               // deviation / mean
} Statistics;

// Local. NaN samples are left out; count 0 gives NaN everywhere.
Statistics statistics_of(const double *samples, int count);
// Local. out[i] = max over ranks of samples[i][rank].
void statistics_max_over_ranks(const double *samples, int count, int ranks, double *out);

// When to stop sampling. The decision is made from rank 0's reduced samples and shared by the
// caller.
typedef struct StopRule {
    int samples_min, samples_max;
    double noise_max; // relative half width of the median's 95 % interval; 0 = no such rule
    double timeout_s; // 0 = no such rule
} StopRule;
// Local. NULL = go on, else the reason: "noise", "count", "timeout". Nothing stops it below
// samples_min.
const char *statistics_stop(const StopRule *rule, const double *samples, int count,
                            double elapsed_s);
