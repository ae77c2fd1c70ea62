// swiglu.h -- the gated activation between an expert's two products, over the real rows of an
// expert-major matrix.
//
// forward:   a = silu(g) * u, silu(g) = g * sigmoid(g), in f32, rounded once
// backward:  dweight = <da, a>;  dg = w da u silu'(g);  du = w da silu(g);  a_weighted = w a
//
// da is the gradient before the routing weight w is applied (score after the experts); a_weighted
// serves the gradient of w2. The gate and up halves lie side by side in one row,
// gate first. A CPU sigmoid is within 4 ulp, a CUDA one within 4 ulp; every result takes at most
// 8 more roundings and one to dtype. <da, a> has the order of RowDot (moe_combine.h), with a
// rounded to dtype as the forward stored it.
//
// Where swiglu_casts() says so, the result is also cast, from registers: codes and scales are those
// of rows_cast (expert_operand.h).
#pragma once

#include "kernels/kernel.h"
#include "quant/qtensor.h"

DECLARATIONS_BEGIN

typedef struct SwigluForward {
    int64_t inner, rows_max;
    DType dtype;
    const int32_t *rows_total; // [1] device: rows to look at
    const int32_t *row_map;    // [rows_max] device: rows with -1 are skipped; NULL = all are real
    const void *gu;            // [rows_max, 2 * inner]
    void *a;                   // out [rows_max, inner]
    const QTensor *cast;       // out [rows_max, inner]: of a; or NULL
} SwigluForward;
KERNEL_DECLARE(swiglu_forward, SwigluForward);

typedef struct SwigluBackward {
    int64_t inner, rows_max;
    DType dtype;
    const int32_t *rows_total;
    const int32_t *row_map;
    const float *weight; // [rows_max] routing weights, or NULL = 1
    const void *gu;      // [rows_max, 2 * inner]
    const void *da;      // [rows_max, inner]
    void *dgu;           // out [rows_max, 2 * inner]; may be gu
    void *a_weighted;    // out [rows_max, inner]; may be da
    float *dweight;      // out [rows_max], or NULL
    const QTensor *cast; // out [rows_max, 2 * inner]: of dgu; or NULL
} SwigluBackward;
KERNEL_DECLARE(swiglu_backward, SwigluBackward);

// Local, host. Whether that device casts in the same pass: e4m3 with a scale per row of bf16, for
// an inner of some thousand. Codes need no memory yet.
bool swiglu_casts(const QTensor *cast, int64_t inner, DeviceKind device);
OPTIONAL_SYMBOL bool swiglu_casts_cuda(const QTensor *cast, int64_t inner);

DECLARATIONS_END
