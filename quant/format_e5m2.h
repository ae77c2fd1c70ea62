// format_e5m2.h -- fp8 e5m2, inline: s1 e5 m2, bias 15: the upper half of an f16. Largest 57344 =
// 7B, infinity 7C, NaN 7D to 7F.
//
// Rounding is to nearest even everywhere (61440, the tie above 57344, goes up and overflows); the
// conventions differ about overflow and the sign of NaN. Format: Micikevicius et al., "FP8 formats
// for deep learning", 2022.
#pragma once

#include "quant/format_bits.h"

enum { FORMAT_E5M2_MAXIMUM = 0x7B, FORMAT_E5M2_INFINITY = 0x7C, FORMAT_E5M2_NAN = 0x7F };

FORMAT_INLINE uint32_t format_e5m2_sign(float value)
{
    return format_f32_bits(value) >> 24 & 0x80u;
}

// Rounds, then limits to the code `most`; NaN is 7F without sign. Both CUDA modes.
FORMAT_INLINE uint32_t format_e5m2_encode_limited(float value, uint32_t most)
{
    uint32_t magnitude = format_f32_magnitude(value);
    uint32_t code = format_minimum(format_round_even(magnitude, 15, 2), most);
    return magnitude > FORMAT_F32_INFINITY ? FORMAT_E5M2_NAN : code | format_e5m2_sign(value);
}

// Overflow and infinities are 57344. CUDA's SATFINITE, PTX and Triton.
FORMAT_INLINE uint32_t format_e5m2_encode_satfinite(float value)
{
    return format_e5m2_encode_limited(value, FORMAT_E5M2_MAXIMUM);
}

// Overflow is infinity. CUDA's NOSAT.
FORMAT_INLINE uint32_t format_e5m2_encode_nosat(float value)
{
    return format_e5m2_encode_limited(value, FORMAT_E5M2_INFINITY);
}

// As NOSAT, but NaN keeps its sign: torch's bare cast.
FORMAT_INLINE uint32_t format_e5m2_encode_torch(float value)
{
    return format_e5m2_encode_nosat(value) | format_e5m2_sign(value);
}

// torch's cast behind a clamp to +-57344, which lets NaN through: what torchao does.
FORMAT_INLINE uint32_t format_e5m2_encode_torch_clamp(float value)
{
    return format_e5m2_encode_satfinite(value) | format_e5m2_sign(value);
}

// NaN keeps sign and payload and becomes quiet, as torch has it.
FORMAT_INLINE float format_e5m2_decode(uint32_t code)
{
    uint32_t magnitude = code & 0x7Fu, sign = (code & 0x80u) << 24;
    uint32_t special = FORMAT_F32_INFINITY | (magnitude & 3u) << 21;
    special |= magnitude > FORMAT_E5M2_INFINITY ? 0x400000u : 0;
    bool finite = magnitude <= FORMAT_E5M2_MAXIMUM;
    return format_f32_value(sign | (finite ? format_widen(magnitude, 15, 2) : special));
}
