// layer_compare.h -- is it right? Whole results against a reference and against what a file says
// should come out.
#pragma once

#include "experiments/model/layer.h"
#include "results/result.h"

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

// Fingerprints of what one rank has, for "the same bits again" without putting results together.
typedef enum LayerPrint {
    PRINT_Y,
    PRINT_CHOICES,
    PRINT_DX,
    PRINT_ROUTER,
    PRINT_W13,
    PRINT_W2,
    PRINT_SHARED_W13,
    PRINT_SHARED_W2,
    LAYER_PRINTS,
} LayerPrint;
const char *layer_print_name(LayerPrint print); // Local
// Local, Waits(stream). One print per piece of the part; pieces that it does not have get that of
// no bytes.
void layer_fingerprint(const LayerSource *source, const LayerPart *part, int64_t tokens,
                       uint64_t prints[LAYER_PRINTS], Stream stream);

// Local. 10 log10 of signal over noise, in dB: the tensor of `exact` against its difference from
// ours; infinite where they are equal, NaN where a result lacks the tensor or it is all zeros.
double layer_compare_sqnr(const LayerResult *ours, const LayerResult *exact, LayerOutput output);
