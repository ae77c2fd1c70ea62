// format_e8m0.h -- e8m0, the power-of-two scale of the MX formats, inline: the exponent field of an
// f32 and nothing else. 00 = 2^-127, FE = 2^127, FF = NaN; no sign, no zero, no infinity.
//
// There is no agreed rounding, so each convention is a function of its own; all ignore the sign.
// Format: OCP Microscaling Formats (MX) 1.0, 5.4.1. torch: torch/headeronly/util/Float8_e8m0fnu.h.
// CUDA: cvt.{rz,rp}.ue8m0x2.f32 of the PTX ISA. torchao: prototype/mx_formats/mx_tensor.py.
#pragma once

#include "quant/format_bits.h"

enum { FORMAT_E8M0_MAXIMUM = 0xFE, FORMAT_E8M0_NAN = 0xFF };

// The largest power of two that is not above the magnitude: its exponent field. What lies below
// 2^-127 gives 2^-127; NaN and infinity give FF. OCP's rule for a shared scale; CUDA rz, NOSAT.
FORMAT_INLINE uint32_t format_e8m0_encode_floor(float value)
{
    return format_f32_magnitude(value) >> FORMAT_F32_MANTISSA_BITS;
}

// The smallest power of two that is not below the magnitude. The subnormal binade holds one more
// power of two, 2^-127 = 00400000, at and below which it is 00. CUDA rp, NOSAT; torchao's RCEIL.
FORMAT_INLINE uint32_t format_e8m0_encode_ceil(float value)
{
    uint32_t magnitude = format_f32_magnitude(value);
    uint32_t exponent = magnitude >> FORMAT_F32_MANTISSA_BITS, mantissa = magnitude & 0x7FFFFFu;
    uint32_t up = exponent == 0 ? mantissa > 0x400000u : mantissa != 0;
    return format_minimum(exponent + up, FORMAT_E8M0_NAN);
}

// What is past 2^127, infinity too, becomes 2^127. CUDA's SATFINITE over either of the two above.
FORMAT_INLINE uint32_t format_e8m0_saturate(uint32_t code, float value)
{
    bool is_nan = format_f32_magnitude(value) > FORMAT_F32_INFINITY;
    return is_nan ? code : format_minimum(code, FORMAT_E8M0_MAXIMUM);
}

FORMAT_INLINE uint32_t format_e8m0_encode_floor_satfinite(float value)
{
    return format_e8m0_saturate(format_e8m0_encode_floor(value), value);
}

FORMAT_INLINE uint32_t format_e8m0_encode_ceil_satfinite(float value)
{
    return format_e8m0_saturate(format_e8m0_encode_ceil(value), value);
}

// Nearest, ties up (never to even), except that everything between 2^-127 and 2^-126 goes up: the
// rule looks at mantissa bit 22, which in the subnormal binade is not the half but the one.
FORMAT_INLINE uint32_t format_e8m0_encode_torch(float value)
{
    uint32_t magnitude = format_f32_magnitude(value);
    uint32_t exponent = magnitude >> FORMAT_F32_MANTISSA_BITS;
    bool guard = magnitude & 0x400000u, rest = magnitude & 0x3FFFFFu;
    uint32_t up = guard && (rest || exponent > 0);
    return format_minimum(exponent + up, FORMAT_E8M0_NAN);
}

// FF becomes 7F800001, as torch has it: a NaN, though a signalling one.
FORMAT_INLINE float format_e8m0_decode(uint32_t code)
{
    uint32_t exponent = code & 0xFFu;
    uint32_t bits = exponent << FORMAT_F32_MANTISSA_BITS;
    bits = exponent == 0 ? 0x400000u : bits;
    return format_f32_value(exponent == FORMAT_E8M0_NAN ? bits | 1u : bits);
}

// What another implementation gave on a machine of its own: an input and the code it made.
typedef struct FormatE8m0Record {
    uint32_t f32_bits;
    uint8_t code;
    const char *what; // the input, for a reader
} FormatE8m0Record;
DECLARATIONS_BEGIN
// LLVM APFloat (Float8E8M0FNU, a development build before 20), rmNearestTiesToEven. Ends with a
// NULL `what`.
extern const FormatE8m0Record format_e8m0_llvm[];
DECLARATIONS_END
