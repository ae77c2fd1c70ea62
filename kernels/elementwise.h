// elementwise.h -- flat arrays: sums of two, copies that change the type, the sum of squares and
// what clipping by global norm makes of it.
#pragma once

#include "kernels/kernel.h"

DECLARATIONS_BEGIN

// y[i] = round(a[i] + b[i]), added in f32: the residual.
typedef struct AddRows {
    int64_t count;
    DType dtype; // DTYPE_F32 or DTYPE_BF16
    const void *a, *b;
    void *y; // [count]; may be a or b
} AddRows;
KERNEL_DECLARE(add_rows, AddRows);

// to[i] = round(from[i]): exact when widening; every NaN becomes the type's quiet one in bf16.
typedef struct CastCopy {
    int64_t count;
    DType from_dtype, to_dtype; // DTYPE_F32 or DTYPE_BF16
    const void *from;           // [count]
    void *to;                   // [count]; from itself only if the types are alike
} CastCopy;
KERNEL_DECLARE(cast_copy, CastCopy);

// sum = sum of x[i]^2 in f64, stored, or added to what sum holds: the squares of several arrays
// add up in the order of the calls.
// Order, the same bits on every device and for every launch: pieces of SUM_SQUARES_PIECE elements.
// In a piece element i (counted from the piece's start) is in partial sum i % 256, each ascending
// from 0; then pairwise inside each eight neighbouring sums, 4, 2, 1 apart; then these 32, 16, 8,
// 4, 2, 1 apart. Over pieces: piece p in partial sum p % 1024, each ascending; then pairwise, 512,
// 256, ... 1 apart. Squares are exact in f64: the error is below 200 eps_f64 of the sum up to 2^30
// elements.
enum { SUM_SQUARES_PIECE = 8192 };
typedef struct SumSquares {
    int64_t count;
    DType dtype; // DTYPE_F32 or DTYPE_BF16
    const void *x;
    double *sum; // [1]
    bool accumulate;
    double *scratch; // [sum_squares_scratch_bytes]
} SumSquares;
uint64_t sum_squares_scratch_bytes(int64_t count); // Local
KERNEL_DECLARE(sum_squares, SumSquares);

// norm = sqrt(*sum); scale = min(1, max_norm / (norm + CLIP_SCALE_EPSILON)), as
// torch.nn.utils.clip_grad_norm_ has it: NaN stays NaN, an infinite norm gives 0. Made in f64,
// rounded once.
static const double CLIP_SCALE_EPSILON = 1e-6;
typedef struct ClipScale {
    const double *sum; // [1] over all parameters and ranks
    double max_norm;
    float *scale; // out [1]
    float *norm;  // out [1], or NULL
} ClipScale;
KERNEL_DECLARE(clip_scale, ClipScale);

DECLARATIONS_END
