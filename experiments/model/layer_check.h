// layer_check.h -- is it right? The whole result against a 1-rank reference that is told the mesh
// and the token split (virtual ranks), and against what a file says should come out.
#pragma once

#include "experiments/model/layer.h"
#include "results/result.h"

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

// Local. Bit for bit: a check that says "equal", or the first tensor that differs, where, and both
// values.
ResultCheck layer_compare_bits(const char *name, const LayerResult *ours,
                               const LayerResult *theirs);
// Local. Two orders of sums of the same layer: max |ours - theirs| / max |theirs| of every tensor
// within `bound`. Where the sums differ, a token whose scores lie closer than rounding may choose
// another expert: such tokens are counted, at most one in a thousand is accepted, and then only the
// other tokens' rows are compared.
ResultCheck layer_compare_within(const char *name, const LayerResult *ours,
                                 const LayerResult *theirs, double bound);
// Local. One check per tensor expect.<output> of the file: max |ours - expected| / max |expected|
// within `bound`, expert choice exact. Returns how many were written to checks (room for
// LAYER_OUTPUTS).
int layer_compare_expected(const Safetensors *file, const LayerResult *ours, double bound,
                           ResultCheck *checks);
