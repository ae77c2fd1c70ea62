// partial.h -- Partial placements: which types and operations they may have, and what they mean on
// the host. The arithmetic is kernels/terms.h; terms are combined in rank order.
#pragma once

#include "kernels/terms.h"
#include "parallel/comm.h"

// Local. Error 2 for types without arithmetic (bool, complex, 8 bits and below but integers) and
// for averages of integers.
bool partial_check(DType dtype, CommOp op, Error *error);
TermsOp partial_terms_op(CommOp op); // Local
// Local. What does not change the others: a term of zeros for the sum, of ones for the product.
// Other operations have none (false): their terms all hold the value.
bool partial_has_identity(CommOp op);
// Local, host memory. terms: [ranks][count]; out: [count], may be any term.
void partial_combine(DType dtype, CommOp op, int ranks, const void *terms, int64_t count,
                     void *out);
void partial_fill_identity(DType dtype, CommOp op, int64_t count, void *out); // Local, host memory
