// kernel_timing.h -- samples of one kernel on one device: warm-up, cold caches, stop by noise, and
// what it is held against.
//
// On a GPU a sample is a captured graph of the body between two events, enqueued behind the flush
// of the cache, so that it holds none of the host's time. The flush leaves the cache full of bytes
// that were written: what a kernel evicts is written back in its time, as its own last bytes are in
// the time of what follows. A kernel that writes next to nothing would pay without that return: it
// has writes_little, and then the flush ends with reading.
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
    bool writes_little; // CUDA: see above
    double flops_per_s; // the ceiling of its operations; 0 = memory alone limits it
    StopRule rule;
} KernelTiming;

// Local, Waits. Takes the samples, adds the measurement to the writer and returns its statistics.
Statistics kernel_time(const KernelTiming *timing);
// Local. The least seconds that the cost leaves under those ceilings.
double kernel_floor_s(const KernelTiming *timing);
