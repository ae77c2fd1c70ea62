// format_e4m3fn.c -- fp8 e4m3fn in the table: torch's and CUDA's conventions.
//
// Sources: torch/headeronly/util/Float8_e4m3fn.h of PyTorch; cuda_fp8.hpp of CUDA 13.
#include "quant/format_e4m3fn.h"

static const FormatEncoder encoders[] = {FORMAT_E4M3FN_ENCODERS(FORMAT_FLOAT_ROW)};

const Format format_e4m3fn = {
    .name = "e4m3fn",
    FORMAT_FLOAT_MEMBERS(FORMAT_E4M3FN_NUMBERS),
    .maximum = 448,
    .minimum_normal = 0x1p-6,
    .minimum_subnormal = 0x1p-9,
    .has_zero = true,
    .has_nan = true,
    .decode = format_e4m3fn_decode,
    .encoders = encoders,
    .encoder_count = COUNT_OF(encoders),
    .note = "fp8 for weights and activations; NaN is 7F and FF only",
};
