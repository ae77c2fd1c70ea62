// lm_timing.h -- samples of training steps: their phases, and how much of FSDP's communication
// hides behind compute.
#pragma once

#include "experiments/model/lm_explain.h"
#include "results/result.h"
#include "results/statistics.h"

typedef struct LmTiming {
    const Run *run;
    LmTrainer *trainer;
    Stream stream;
    ResultWriter *writer;
    StopRule rule;
    int first_step; // the number of the first timed step
} LmTiming;
// Collective(all ranks), Waits. Adds the measurement "step". Returns the hidden share of FSDP's
// communication on this rank, NaN where streams do not overlap (CPU) or nothing was sent.
double lm_time(const LmTiming *timing);
