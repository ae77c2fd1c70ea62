// layer_check.h -- a layer's results against what they should be: 1-rank references, as far as
// there is room for them, and what a file expects.
//
// References add in the same order, and then every bit must be the same; the canonical order, the
// other device and other people's files agree within a bound. A recipe (quantised products) also
// says what it costs: signal over noise against the same layer without it.
#pragma once

#include "experiments/model/layer_reference.h"
#include "results/result.h"

typedef struct LayerCheck {
    const LayerSource *source;
    const LayerSpread *spread;
    const Safetensors *file; // for expectations
    bool exact, forward_only;
    int align, threads;
    DeviceKind device;
    ResultWriter *writer; // gets every comparison, also those for which there was no room
} LayerCheck;

// Local, on rank 0. False if something differs.
bool layer_check_references(const LayerCheck *check, const LayerResult *ours);
bool layer_check_expectations(const LayerCheck *check, const LayerResult *ours);
