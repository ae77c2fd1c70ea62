// lm_reference.h -- training on one rank that is told the mesh and the token split, and adds in the
// same order: what any number of ranks must give, bit for bit where tp has one rank.
//
// It holds every parameter whole, runs all tokens through one model, sums weight gradients once per
// data rank ("part"), and adds the parts as the ranks' reduce-scatter and all-reduce do.
#pragma once

#include "experiments/model/lm_result.h"

// Local, Waits. `settings` as the ranks have them; arena is not used.
void lm_reference(const LmTrainerSettings *settings, LmResult *result);
// Local. Device bytes that it would take.
uint64_t lm_reference_bytes(const LmTrainerSettings *settings);
