// lm_cost_check.h -- what a run sent and holds against what --explain says of it.
#pragma once

#include "experiments/model/lm_explain.h"
#include "results/result.h"

typedef struct LmCostCheck {
    const Run *run;
    const LmLayout *layout;
    const LmTraining *training;
    bool exact;
    DeviceKind device;
    const Arena *arena;
    const uint64_t *sent; // [LM_TRAFFIC_KINDS] by this rank in all steps
} LmCostCheck;
// Collective(all ranks). Equal on every rank to the byte, or the first rank that differs, and in
// what; dispatch and combine lie between least and most. Valid on rank 0.
ResultCheck lm_cost_check(const LmCostCheck *what);
