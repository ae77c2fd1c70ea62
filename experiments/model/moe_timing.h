// moe_timing.h -- samples of a layer's step: warm-up, cold caches, one barrier per iteration, stop
// by noise over ranks.
#pragma once

#include "experiments/model/moe.h"
#include "kernels/ceiling.h"
#include "results/result.h"
#include "results/statistics.h"

typedef struct MoeTiming {
    const Run *run;
    Comm world;
    Moe *moe;
    Stream stream;
    Arena *arena; // for the buffer that flushes the cache; everything is released again
    DeviceCeilings ceilings;
    ResultWriter *writer;
    const char *name; // of the measurement; a literal
    void (*body)(void *context, Stream stream);
    void *context;
    bool detail; // time the phases too (enqueued); else only the total (a graph replay where there
                 // are graphs)
    bool graph;  // use graphs where the device has them
    bool with_backward; // for the cost of the total
    StopRule rule;
} MoeTiming;

// Collective(all ranks), Waits. Takes the samples and adds the measurement to the writer.
void moe_time(const MoeTiming *timing);
// Collective(all ranks), Waits. What this device and its links can do at best, measured now.
DeviceCeilings moe_ceilings(const Run *run, Comm world, DeviceKind device, Stream stream);
