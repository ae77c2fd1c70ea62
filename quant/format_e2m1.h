// format_e2m1.h -- fp4 e2m1, inline: s1 e2 m1, bias 1. Codes 0 to 7 are 0, 0.5, 1, 1.5, 2, 3, 4, 6;
// no infinity, no NaN.
//
// Rounding is to nearest even and saturates everywhere; only NaN, for which there is no code,
// differs. Format: OCP Microscaling Formats (MX) 1.0, 5.3.3.
#pragma once

#include "quant/format_bits.h"

enum { FORMAT_E2M1_MAXIMUM = 7 };

FORMAT_INLINE uint32_t format_e2m1_sign(float value)
{
    return format_f32_bits(value) >> 28 & 8u;
}

FORMAT_INLINE uint32_t format_e2m1_limited(float value)
{
    return format_minimum(format_round_even(format_f32_magnitude(value), 1, 1),
                          FORMAT_E2M1_MAXIMUM);
}

// NaN is +-1.5, by accident of its arithmetic.
FORMAT_INLINE uint32_t format_e2m1_encode_torchao(float value)
{
    bool is_nan = format_f32_magnitude(value) > FORMAT_F32_INFINITY;
    return (is_nan ? 3u : format_e2m1_limited(value)) | format_e2m1_sign(value);
}

// NaN is +6, whatever its sign.
FORMAT_INLINE uint32_t format_e2m1_encode_cuda(float value)
{
    bool is_nan = format_f32_magnitude(value) > FORMAT_F32_INFINITY;
    return is_nan ? FORMAT_E2M1_MAXIMUM : format_e2m1_limited(value) | format_e2m1_sign(value);
}

FORMAT_INLINE float format_e2m1_decode(uint32_t code)
{
    return format_f32_value((code & 8u) << 28 | format_widen(code & 7u, 1, 1));
}
