// tensor.h -- a plain array with a shape: a value, copied freely, never freed (its memory belongs
// to an arena or a map).
//
// Row-major, last dimension fastest, no strides: what needs another view says so with an offset and
// a shape.
#pragma once

#include "harness/dtype.h"

DECLARATIONS_BEGIN

enum { TENSOR_RANK_MAX = 8 };

typedef struct Tensor {
    void *data; // host or device, whoever made it knows
    DType dtype;
    int rank; // 0 = scalar
    int64_t shape[TENSOR_RANK_MAX];
} Tensor;

int64_t tensor_elements(const Tensor *tensor); // Local. 1 for rank 0
uint64_t tensor_bytes(const Tensor *tensor);   // Local
// Local. Writes "[60, 1408, 2048] bf16" into text and returns it.
const char *tensor_describe(const Tensor *tensor, char *text, size_t bytes);
// Local, host tensors. Element `index` of any numeric dtype as a double, and `count` of them as
// floats.
double tensor_value(const Tensor *tensor, int64_t index);
void tensor_to_f32(const Tensor *tensor, int64_t first, int64_t count, float *out);

DECLARATIONS_END
