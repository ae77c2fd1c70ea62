// clock.h -- time that only goes on, since some moment before the job: for differences.
#pragma once

#include "harness/base.h"

#include <time.h>

static inline int64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline double clock_s(void)
{
    return 1e-9 * (double)clock_ns();
}
