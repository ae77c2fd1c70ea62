// quantise.h -- values into codes and scales and back: the reference, one element at a time.
//
// Every fast version (kernels/cast.h) gives these bytes. What NaN, infinities and blocks of zeros
// become is said by the methods' headers (method_*.h). Elements that are only padding count as
// zeros.
#pragma once

#include "quant/qtensor.h"

DECLARATIONS_BEGIN

// One method of rule.h: what becomes of a block and of an element.
typedef struct QuantMethodRow {
    const char *name;
    float (*tensor_scale)(const QuantContext *context, float amax); // NULL: no second level
    QuantBlock (*choose)(const QuantContext *context, QuantStatistics statistics);
    uint32_t (*encode)(const QuantContext *context, const QuantBlock *block, float value);
    // The block is as it was read back: its scale and zero are the stored ones.
    float (*decode)(const QuantContext *context, const QuantBlock *block, uint32_t code);
} QuantMethodRow;

const QuantMethodRow *quant_method(QuantMethod method); // Local

// Local. How many amaxes decide something about the whole tensor: one per matrix with a second
// level, one where one block covers the tensor, else 0.
int64_t quantise_amaxes(const QTensor *q);
// Local. Those amaxes of host values [matrices, rows, columns]; NaN if any value is.
void quantise_measure(const QTensor *q, const void *values, float *amax);

// Local. Host values of q->input become codes and scales in q's memory. amax: [quantise_amaxes],
// or NULL to measure them; given where several ranks or several tensors share a scale.
void quantise(const void *values, const float *amax, QTensor *q);
// Local. The same of values that lie transposed: [matrices, columns, rows].
void quantise_transposed(const void *values, const float *amax, QTensor *q);
// Local. quantise for rows of blocks [first, first + count) of one matrix. Parts that share no
// rows may run at the same time. tensor_scales must be there already (quantise_tensor_scales).
void quantise_block_rows(const void *values, const float *amax, QTensor *q, int64_t matrix,
                         int64_t first, int64_t count);
void quantise_tensor_scales(const float *amax, QTensor *q); // Local

// Local. Codes and scales become host values [matrices, rows, columns] of dtype (f32 or bf16):
// value as the method says, in f32, then rounded.
void dequantise(const QTensor *q, DType dtype, void *values);
float dequantise_element(const QTensor *q, int64_t matrix, int64_t row, int64_t column); // Local

DECLARATIONS_END
