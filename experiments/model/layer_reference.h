// layer_reference.h -- a 1-rank reference that is told the mesh and the token split ("virtual
// ranks"), and adds in the same order: what any number of ranks must give, bit for bit.
#pragma once

#include "experiments/model/layer.h"

typedef struct LayerReference {
    const LayerSource *source;
    const LayerSpread *spread;
    bool exact, forward_only;
    int align, threads;
    DeviceKind device;
} LayerReference;
// Local. Device bytes that layer_reference would take.
uint64_t layer_reference_bytes(const LayerReference *reference);
// Local, Waits. One rank computes the whole layer, group after group of the ranks that share
// experts, with the sums in the order of the real run: bit for bit what the ranks together must
// give.
LayerResult layer_reference(const LayerReference *reference);
