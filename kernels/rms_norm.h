// rms_norm.h -- root mean square norm of rows, forward and backward.
//
//   forward:   rstd = 1 / sqrt(sum_h x_h^2 / hidden + eps);  y = round((x rstd) w)
//   backward:  n = x rstd;  g = dy w;  c = sum_h g n / hidden
//              dx = round(rstd (g - n c) + addend);  dweight = sum over rows of dy n
//
// All steps in f32, one rounding to dtype at the end (as torch.nn.functional.rms_norm; Hugging
// Face's LlamaRMSNorm rounds x rstd to bf16 once more). A row's results depend on that row only.
//
// Order, the same bits on every device: the sums over a row have the order of RowDot
// (moe_combine.h). dweight: slabs of RMS_NORM_SLAB_ROWS rows from row 0 on, each a chain
// sum = fmaf(dy, n, sum) in ascending row order from 0; then the slabs, ascending; the finished sum
// is stored, or added to what dweight holds.
// Against exact arithmetic: rstd within (hidden / 64 + 16) eps_f32, y that and 3 more roundings. A
// row whose sum of squares overflows f32 (|x| above 1e19 / sqrt(hidden)) gives zeros, as in torch.
#pragma once

#include "kernels/kernel.h"

DECLARATIONS_BEGIN

enum { RMS_NORM_SLAB_ROWS = 32 };

typedef struct RmsNormForward {
    int64_t rows, hidden;
    DType dtype; // of x, weight and y: DTYPE_F32 or DTYPE_BF16
    float eps;
    const void *x;      // [rows, hidden]
    const void *weight; // [hidden]
    void *y;            // out [rows, hidden]; may be x
    float *rstd_out;    // out [rows], or NULL
} RmsNormForward;
KERNEL_DECLARE(rms_norm_forward, RmsNormForward);

typedef struct RmsNormBackward {
    int64_t rows, hidden;
    DType dtype;        // of x, weight, dy, addend and dx
    const void *x;      // [rows, hidden], as the forward read it
    const void *weight; // [hidden]
    const float *rstd;  // [rows], from the forward
    const void *dy;     // [rows, hidden]
    const void *addend; // [rows, hidden] or NULL: the gradient that comes along the residual
    void *dx;           // out [rows, hidden]; may be dy or addend
    float *dweight;     // out [hidden], or NULL: not wanted
    bool accumulate;    // dweight += ...
    float *scratch;     // [rms_norm_backward_scratch_bytes] with dweight
} RmsNormBackward;
uint64_t rms_norm_backward_scratch_bytes(int64_t rows, int64_t hidden); // Local
KERNEL_DECLARE(rms_norm_backward, RmsNormBackward);

DECLARATIONS_END
