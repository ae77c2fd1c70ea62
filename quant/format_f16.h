// format_f16.h -- IEEE binary16, inline: s1 e5 m10, bias 15. Largest 65504 = 7BFF, infinity 7C00,
// NaN above.
//
// The conventions differ about NaN alone: x86 (F16C, which torch uses there) keeps the leading bits
// of its payload, CUDA has one NaN. format_f16_decode makes NaN quiet; the table's decoder leaves
// it as it is. Format: IEEE 754-2019, 3.6.
#pragma once

#include "quant/format_float.h"

// clang-format off
//                         bits exponent mantissa bias largest
#define FORMAT_F16_NUMBERS 16,  5,       10,      15,  0x7BFF
#define FORMAT_F16_ENCODERS(ROW) \
    ROW(f16, torch, FORMAT_INFINITY, 0x7E00, FORMAT_NAN_KEEPS_PAYLOAD, \
        "torch on x86, F16C") \
    ROW(f16, cuda, FORMAT_INFINITY, 0x7FFF, FORMAT_NAN_KEEPS_NOTHING, \
        "CUDA __float2half_rn")
// clang-format on

FORMAT_FLOAT(f16, FORMAT_F16_NUMBERS)
FORMAT_F16_ENCODERS(FORMAT_FLOAT_ENCODER)
