// format_e5m2.h -- fp8 e5m2, inline: s1 e5 m2, bias 15: the upper half of an f16. Largest 57344 =
// 7B, infinity 7C, NaN 7D to 7F.
//
// 61440, the tie above 57344, goes up and overflows; the conventions differ about overflow and the
// sign of NaN. Format: Micikevicius et al., "FP8 formats for deep learning", 2022.
#pragma once

#include "quant/format_float.h"

// clang-format off
//                          bits exponent mantissa bias largest
#define FORMAT_E5M2_NUMBERS 8,   5,       2,       15,  0x7B
#define FORMAT_E5M2_ENCODERS(ROW) \
    ROW(e5m2, torch_clamp, FORMAT_LARGEST, 0x7F, FORMAT_NAN_KEEPS_SIGN, \
        "torchao: clamp to +-57344, then torch's cast") \
    ROW(e5m2, torch, FORMAT_INFINITY, 0x7F, FORMAT_NAN_KEEPS_SIGN, \
        "torch's bare cast") \
    ROW(e5m2, cuda_satfinite, FORMAT_LARGEST, 0x7F, FORMAT_NAN_KEEPS_NOTHING, \
        "CUDA __NV_SATFINITE (its default), PTX cvt.satfinite, Triton") \
    ROW(e5m2, cuda_nosat, FORMAT_INFINITY, 0x7F, FORMAT_NAN_KEEPS_NOTHING, \
        "CUDA __NV_NOSAT")
// clang-format on

FORMAT_FLOAT(e5m2, FORMAT_E5M2_NUMBERS)
FORMAT_E5M2_ENCODERS(FORMAT_FLOAT_ENCODER)
