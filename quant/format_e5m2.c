// format_e5m2.c -- fp8 e5m2 in the table: torch's and CUDA's conventions.
//
// Sources: torch/headeronly/util/Float8_e5m2.h of PyTorch; cuda_fp8.hpp of CUDA 13.
#include "quant/format_e5m2.h"

static const FormatEncoder encoders[] = {FORMAT_E5M2_ENCODERS(FORMAT_FLOAT_ROW)};

const Format format_e5m2 = {
    .name = "e5m2",
    FORMAT_FLOAT_MEMBERS(FORMAT_E5M2_NUMBERS),
    .maximum = 57344,
    .minimum_normal = 0x1p-14,
    .minimum_subnormal = 0x1p-16,
    .has_zero = true,
    .has_infinity = true,
    .has_nan = true,
    .decode = format_e5m2_decode,
    .encoders = encoders,
    .encoder_count = COUNT_OF(encoders),
    .note = "fp8 for gradients: the upper half of an f16",
};
