// reduce.h -- sums of a few large arrays in a fixed order, and conversions.
#pragma once

#include "kernels/kernel.h"

DECLARATIONS_BEGIN

// out[i] = round(((part[0][i] + part[1][i]) + part[2][i]) + ...): f32 additions in order of parts.
typedef struct SumParts {
    int parts;
    int64_t count, part_stride; // elements between parts
    const float *part;
    DType out_dtype; // DTYPE_F32 or DTYPE_BF16
    void *out;       // [count]; may be part[0] when f32
} SumParts;
KERNEL_DECLARE(sum_parts, SumParts);

// out[t] = gate[t] * x[t], gate[t] = sigmoid(logits[t * logits_stride]) in f32, or 1 where logits
// is NULL; gate_out (may be NULL) keeps the gate. The gate of a shared expert, forward and
// backward.
typedef struct GateRows {
    int64_t tokens, hidden;
    DType dtype;
    const void *x; // [tokens, hidden], or NULL: only gate_out is made
    const float *logits;
    int64_t logits_stride;
    void *out;
    float *gate_out; // [tokens]
} GateRows;
KERNEL_DECLARE(gate_rows, GateRows);

DECLARATIONS_END
