// partial.h -- the arithmetic of Partial placements: terms of one value, combined in rank order.
//
// Floats narrower than f32 are widened, combined in f32 from rank 0 upwards, rounded once; f32, f64
// and integers combine in their own type (integers wrap). avg is the sum divided by the ranks. max
// and min give NaN when a term is NaN.
#pragma once

#include "harness/dtype.h"
#include "parallel/comm.h"

// Local. Error 2 for types without arithmetic (bool, complex, 8 bits and below but integers) and
// for averages of integers.
bool partial_check(DType dtype, CommOp op, Error *error);
// Local, host memory. terms: [ranks][count]; out: [count], may be any term.
void partial_combine(DType dtype, CommOp op, int ranks, const void *terms, int64_t count,
                     void *out);
// Local. What does not change the others: a term of zeros for the sum, of ones for the product.
// Other operations have none (false): their terms all hold the value.
bool partial_has_identity(CommOp op);
// Local, host memory.
void partial_fill_identity(DType dtype, CommOp op, int64_t count, void *out);
