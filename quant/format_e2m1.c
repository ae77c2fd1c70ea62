// format_e2m1.c -- fp4 e2m1 in the table: torchao's and CUDA's conventions.
//
// Sources: prototype/custom_fp_utils.py of torchao; cuda_fp4.hpp of CUDA 13.
#include "quant/format_e2m1.h"

static const FormatEncoder encoders[] = {FORMAT_E2M1_ENCODERS(FORMAT_FLOAT_ROW)};

const Format format_e2m1 = {
    .name = "e2m1",
    FORMAT_FLOAT_MEMBERS(FORMAT_E2M1_NUMBERS),
    .maximum = 6,
    .minimum_normal = 1,
    .minimum_subnormal = 0.5,
    .has_zero = true,
    .decode = format_e2m1_decode,
    .encoders = encoders,
    .encoder_count = COUNT_OF(encoders),
    .note = "fp4 of mxfp4 and nvfp4; two to a byte, the even column in the low half",
};
