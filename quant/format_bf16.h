// format_bf16.h -- bf16, inline: s1 e8 m7, bias 127: the upper half of an f32. Largest 7F7F,
// infinity 7F80, NaN above.
//
// The conventions differ about NaN alone. The torch row is harness/bf16.h once more, as numbers;
// the tests hold them together. Format: Wang & Kanwar, "BFloat16", 2019.
#pragma once

#include "harness/bf16.h"
#include "quant/format_float.h"

// clang-format off
//                          bits exponent mantissa bias largest
#define FORMAT_BF16_NUMBERS 16,  8,       7,       127, 0x7F7F
#define FORMAT_BF16_ENCODERS(ROW) \
    ROW(bf16, torch, FORMAT_INFINITY, 0x7FC0, FORMAT_NAN_KEEPS_NOTHING, \
        "torch's scalar rule; its AVX-512 loop turns every NaN into FFFF instead") \
    ROW(bf16, cuda, FORMAT_INFINITY, 0x7FFF, FORMAT_NAN_KEEPS_NOTHING, \
        "CUDA __float2bfloat16_rn")
// clang-format on

// Not FORMAT_FLOAT, whose decoder is for biases below f32's own.
FORMAT_INLINE FormatFloat format_bf16_numbers(void)
{
    FormatFloat numbers = {FORMAT_BF16_NUMBERS};
    return numbers;
}

FORMAT_BF16_ENCODERS(FORMAT_FLOAT_ENCODER)

// A signalling NaN stays one.
FORMAT_INLINE float format_bf16_decode(uint32_t code)
{
    return f32_from_bf16_bits((uint16_t)code);
}
