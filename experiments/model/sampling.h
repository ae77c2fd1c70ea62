// sampling.h -- iterations until the time of one span is known well enough, agreed over ranks.
#pragma once

#include "harness/record.h"
#include "harness/run.h"
#include "results/statistics.h"

typedef struct Sampling {
    const Run *run;
    Recorder *recorder;
    int span;         // the one whose noise decides
    const char *name; // for the progress line
    StopRule rule;
    void (*iterate)(void *context); // one iteration, spans begun and ended
    void *context;
} Sampling;
// Collective(all ranks), Waits. Returns why it stopped: noise, count, timeout, signal.
const char *sampling_run(const Sampling *sampling);
