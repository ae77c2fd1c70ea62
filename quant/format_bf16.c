// format_bf16.c -- bf16 in the table: torch's and CUDA's conventions.
//
// Sources: torch/headeronly/util/BFloat16.h of PyTorch; cuda_bf16.hpp of CUDA 13.
#include "quant/format_bf16.h"

static const FormatEncoder encoders[] = {FORMAT_BF16_ENCODERS(FORMAT_FLOAT_ROW)};

const Format format_bf16 = {
    .name = "bf16",
    FORMAT_FLOAT_MEMBERS(FORMAT_BF16_NUMBERS),
    .maximum = 0x1.FEp127,
    .minimum_normal = 0x1p-126,
    .minimum_subnormal = 0x1p-133,
    .has_zero = true,
    .has_infinity = true,
    .has_nan = true,
    .decode = format_bf16_decode,
    .encoders = encoders,
    .encoder_count = COUNT_OF(encoders),
    .note = "the upper half of an f32",
};
