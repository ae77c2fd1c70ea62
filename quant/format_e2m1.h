// format_e2m1.h -- fp4 e2m1, inline: s1 e2 m1, bias 1. Codes 0 to 7 are 0, 0.5, 1, 1.5, 2, 3, 4, 6;
// no infinity, no NaN.
//
// All conventions saturate; only NaN, for which there is no code, differs: torchao's is +-1.5, by
// accident of its arithmetic. Format: OCP Microscaling Formats (MX) 1.0, 5.3.3.
#pragma once

#include "quant/format_float.h"

// clang-format off
//                          bits exponent mantissa bias largest
#define FORMAT_E2M1_NUMBERS 4,   2,       1,       1,   7
#define FORMAT_E2M1_ENCODERS(ROW) \
    ROW(e2m1, torchao, FORMAT_LARGEST, 3, FORMAT_NAN_KEEPS_SIGN, \
        "torchao's eager cast: NaN is +-1.5") \
    ROW(e2m1, cuda, FORMAT_LARGEST, 7, FORMAT_NAN_KEEPS_NOTHING, \
        "CUDA, always saturating: NaN is +6")
// clang-format on

FORMAT_FLOAT(e2m1, FORMAT_E2M1_NUMBERS)
FORMAT_E2M1_ENCODERS(FORMAT_FLOAT_ENCODER)
