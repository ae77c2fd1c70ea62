// estimate.h -- how long a plan will take, from what its casts take here and now.
#pragma once

#include "experiments/rewrite/rewrite.h"

typedef struct RewriteEstimate {
    double seconds; // of the slowest of the three below, which go on beside each other
    const char *limit;
    double disk_bytes_per_s;   // assumed: of reading and writing
    double cast_bytes_per_s;   // of source values, by all ranks; 0: nothing is quantised
    double digest_bytes_per_s; // of the new files, which follow one another; 0: none are made
    uint64_t memory_bytes;     // of a rank, without CUDA's own
    DeviceKind device;
    int workers; // threads of a rank
} RewriteEstimate;

// Collective(all ranks). Rank 0 casts a unit of every recipe a few times and has the numbers; on
// other ranks seconds and rates are 0.
RewriteEstimate rewrite_estimate(const Run *run, const Rewrite *rewrite);
