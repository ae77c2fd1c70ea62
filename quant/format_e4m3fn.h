// format_e4m3fn.h -- fp8 e4m3fn, inline: s1 e4 m3, bias 7, largest 448 = 7E, no infinity, NaN 7F
// and FF only.
//
// 464, the tie above 448, goes down to it; the conventions differ about what lies above, and about
// the sign of NaN. Format: Micikevicius et al., "FP8 formats for deep learning", 2022.
#pragma once

#include "quant/format_float.h"

// clang-format off
//                            bits exponent mantissa bias largest
#define FORMAT_E4M3FN_NUMBERS 8,   4,       3,       7,   0x7E
#define FORMAT_E4M3FN_ENCODERS(ROW) \
    ROW(e4m3fn, torch_clamp, FORMAT_LARGEST, 0x7F, FORMAT_NAN_KEEPS_SIGN, \
        "torchao: clamp to +-448, then torch's cast; finite values of torch >= 2.13 too") \
    ROW(e4m3fn, torch, FORMAT_NAN, 0x7F, FORMAT_NAN_KEEPS_SIGN, \
        "torch's bare cast before 2.13") \
    ROW(e4m3fn, cuda_satfinite, FORMAT_LARGEST, 0x7F, FORMAT_NAN_KEEPS_NOTHING, \
        "CUDA __NV_SATFINITE (its default), PTX cvt.satfinite, Triton") \
    ROW(e4m3fn, cuda_nosat, FORMAT_NAN, 0x7F, FORMAT_NAN_KEEPS_NOTHING, \
        "CUDA __NV_NOSAT")
// clang-format on

FORMAT_FLOAT(e4m3fn, FORMAT_E4M3FN_NUMBERS)
FORMAT_E4M3FN_ENCODERS(FORMAT_FLOAT_ENCODER)
