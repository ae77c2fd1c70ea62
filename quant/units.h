// units.h -- whole rows of an operand as f32, for products: code by code what dequantise_element
// and quant_value give, several times faster.
#pragma once

#include "quant/qtensor.h"

DECLARATIONS_BEGIN

// Where a row is, in the terms of the tensor's shape: matrix of the outermost dimension, row within
// it. A tensor under one block counts all rows as one matrix's; these functions hide that.
typedef struct UnitRow {
    int64_t matrix, row;
} UnitRow;

// Local, host tensors. out [columns]: element c at out[c * stride].
void units_of_codes(const QTensor *q, UnitRow at, float *out, int64_t stride); // codes alone
// With their scales, rounded to `dtype` (bf16 or f32).
void units_of_values(const QTensor *q, DType dtype, UnitRow at, float *out, int64_t stride);
// Local, host tensors. The scale of a block of columns of that row, without the second level.
float units_scale(const QTensor *q, UnitRow at, int64_t block_column);
float units_tensor_scale(const QTensor *q, UnitRow at); // the second level; 1 without

DECLARATIONS_END
