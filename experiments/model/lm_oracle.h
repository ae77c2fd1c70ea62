// lm_oracle.h -- is it right, and if not, which of the classic mistakes is it? Every gradient and
// every updated parameter against the 1-rank reference.
//
// Named causes (SEMANTICS.md section 8):
//   k times too large, or k times too small, k = extents of mesh axes     summed twice, or never
//   divided copies differ, and their sum is right          terms of a sum over an axis that nobody
//   made rows are those of the reference in another order          a strided shard read as a plain
//   one rows of zeros where the reference has none                padding took the place of rows
//   NaN or infinite                                           unwritten rows or padding were read
//   gradients right, norm wrong                               copies counted twice in the clip norm
//   all gradients wrong, loss right, uneven tokens            divided by a rank's own tokens
//   the first step right, the next loss wrong                 parameters of an earlier step were
//   used
#pragma once

#include "experiments/model/lm_result.h"
#include "results/result.h"

typedef enum LmSubject { LM_FIRST_GRADIENT, LM_LAST_GRADIENT, LM_VALUE, LM_SUBJECTS } LmSubject;

typedef struct LmFinding {
    double ratio;  // |ours| / |theirs|, 1 when both are zero
    double error;  // max |ours - theirs| / max |theirs|
    int64_t worst; // element
    bool good;
    char cause[192]; // "" when good
} LmFinding;

typedef struct LmOracle {
    const LmLayout *layout;
    const LmResult *ours, *theirs;
    // Below 0: bit for bit. Otherwise two orders of sums: `bound` for what the first step makes, as
    // max |difference| / max |theirs|; `bound_later` for what follows from it, as |difference| /
    // |theirs| of whole tensors, since an optimizer that divides by the gradient's size makes any
    // rounding of a tiny gradient as large as a step.
    double bound, bound_later;
} LmOracle;

// Local. findings [parameters].
void lm_oracle_compare(const LmOracle *oracle, LmSubject subject, LmFinding *findings);
// Local. One check per subject and one for losses and norms, then one per parameter that differs
// (a few); returns how many were written, at most LM_CHECKS_MAX. all_findings: [LM_SUBJECTS *
// parameters], kept for the report.
enum { LM_CHECKS_MAX = 24 };
int lm_oracle_check(const LmOracle *oracle, LmFinding *all_findings, ResultCheck *checks);
// Local. The table of parameters on stdout: placement, ratio of norms, worst element, cause.
void lm_oracle_print(const LmOracle *oracle, const LmFinding *all_findings);
