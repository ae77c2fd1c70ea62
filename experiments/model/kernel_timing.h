// kernel_timing.h -- samples of one kernel on one device: warm-up, cold caches, stop by noise, and
// what it is held against.
#pragma once

#include "harness/arena.h"
#include "kernels/ceiling.h"
#include "kernels/kernel.h"
#include "results/result.h"
#include "results/statistics.h"

typedef struct KernelTiming {
    const Run *run;
    Stream stream;
    Arena *arena; // for the buffer that flushes the cache; everything is released again
    DeviceCeilings ceilings;
    ResultWriter *writer;
    const char *name; // of the measurement
    void (*body)(void *context, Stream stream);
    void *context;
    KernelCost cost;
    double flops_per_s; // the ceiling of its operations; 0 = memory alone limits it
    StopRule rule;
} KernelTiming;

// Local, Waits. Takes the samples, adds the measurement to the writer and returns its statistics.
Statistics kernel_time(const KernelTiming *timing);
// Local. The least seconds that the cost leaves under those ceilings.
double kernel_floor_s(const KernelTiming *timing);
