// format_e4m3fn.h -- fp8 e4m3fn, inline: s1 e4 m3, bias 7, largest 448 = 7E, no infinity, NaN 7F
// and FF only.
//
// Rounding is to nearest even everywhere (464, the tie above 448, goes down to it); the conventions
// differ about what lies above, and about the sign of NaN. Format: Micikevicius et al., "FP8
// formats for deep learning", 2022.
#pragma once

#include "quant/format_bits.h"

enum { FORMAT_E4M3FN_MAXIMUM = 0x7E, FORMAT_E4M3FN_NAN = 0x7F };

FORMAT_INLINE uint32_t format_e4m3fn_sign(float value)
{
    return format_f32_bits(value) >> 24 & 0x80u;
}

// Everything above 448 is 448; NaN is 7F, whatever its sign. CUDA's SATFINITE, PTX and Triton.
FORMAT_INLINE uint32_t format_e4m3fn_encode_satfinite(float value)
{
    uint32_t magnitude = format_f32_magnitude(value);
    uint32_t code = format_round_even(magnitude, 7, 3);
    code = format_minimum(code, FORMAT_E4M3FN_MAXIMUM) | format_e4m3fn_sign(value);
    return magnitude > FORMAT_F32_INFINITY ? FORMAT_E4M3FN_NAN : code;
}

// Overflow and infinities are NaN of their sign; NaN is 7F. CUDA's NOSAT.
FORMAT_INLINE uint32_t format_e4m3fn_encode_nosat(float value)
{
    uint32_t magnitude = format_f32_magnitude(value);
    uint32_t code = format_round_even(magnitude, 7, 3);
    code = format_minimum(code, FORMAT_E4M3FN_NAN) | format_e4m3fn_sign(value);
    return magnitude > FORMAT_F32_INFINITY ? FORMAT_E4M3FN_NAN : code;
}

// As NOSAT, but NaN keeps its sign: torch's bare cast.
FORMAT_INLINE uint32_t format_e4m3fn_encode_torch(float value)
{
    uint32_t code = format_round_even(format_f32_magnitude(value), 7, 3);
    return format_minimum(code, FORMAT_E4M3FN_NAN) | format_e4m3fn_sign(value);
}

// torch's cast behind a clamp to +-448, which lets NaN through: what torchao does.
FORMAT_INLINE uint32_t format_e4m3fn_encode_torch_clamp(float value)
{
    uint32_t magnitude = format_f32_magnitude(value);
    uint32_t code = format_minimum(format_round_even(magnitude, 7, 3), FORMAT_E4M3FN_MAXIMUM);
    code = magnitude > FORMAT_F32_INFINITY ? FORMAT_E4M3FN_NAN : code;
    return code | format_e4m3fn_sign(value);
}

// NaN becomes 7FF00000 with its sign, as torch has it.
FORMAT_INLINE float format_e4m3fn_decode(uint32_t code)
{
    uint32_t magnitude = code & 0x7Fu, sign = (code & 0x80u) << 24;
    uint32_t bits = magnitude == FORMAT_E4M3FN_NAN ? 0x7FF00000u : format_widen(magnitude, 7, 3);
    return format_f32_value(sign | bits);
}
