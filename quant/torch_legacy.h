// torch_legacy.h -- torchao's tensor classes of before April 2026: an AffineQuantizedTensor, alone
// or in a LinearActivationQuantizedTensor, around a tensor_impl that holds the parts.
//
// Source: torchao 0.9, dtypes/affine_quantized_tensor.py, dtypes/uintx/plain_layout.py and
// tensor_core_tiled_layout.py, quantization/linear_activation_quantized_tensor.py; removed by
// pytorch/ao pull request 4245.
#pragma once

#include "quant/torch_file.h"

// Local. Whether the name is one of theirs.
bool torch_legacy_is(const char *class_name);
// Local. The same tensor as the class of today that stands for the same values, of parts and
// attributes that torch_file read through all its levels. Error 65 where there is none: other
// layouts, zero points that are not 0, other rules for activations.
bool torch_legacy_translate(const char *path, TorchTensor *tensor, Error *error);
