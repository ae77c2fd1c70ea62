// lanes.h -- the code of one bf16 in the fewest steps that a vector unit with fused steps has: the
// same code as cast_encode (cast/variant.h), where cast_lane_fits says so.
//
//   x / s          of two bf16 X and S of eight bits lies 2^-12 of itself or more from a tie of
//                  e4m3 or int4, T of five bits: 16 X - T S is a whole number. So the product with
//                  f32(1 / s), whose last bits are wrong, is rounded to 21 bits before: ties are
//                  ties again. It lies 2^-17 of itself or more from a tie of bf16, which has nine
//                  bits and an odd one last: there none is to be recognised.
//   e4m3           beside 2^20 times its own power of two, at least 2^-6, a magnitude has room for
//                  three bits of fraction: the significand is the low bits of the sum. The factor
//                  2^20 + 7 adds 56 to them, which with the exponent makes the code, modulo 256.
//   e2m1           the three lines of cast/pairs.h
//   whole          beside 1.5 * 2^23: codes lie in the low bits (cast/quick.h)
//
// Remainders of other quotients and their correction: cast/quick.h.
#pragma once

#include "kernels/cast/pairs.h"

// x / s of two bf16, to be rounded to few bits: s must be one.
FORMAT_INLINE bool cast_lane_is_short(const QuantRule *rule)
{
    return rule->method == QUANT_SYMMETRIC
               ? cast_divides(rule)
               : rule->method == QUANT_TILE || rule->method == QUANT_ZERO_POINT_CT;
}

// Whether ordinary blocks fit.
FORMAT_INLINE bool cast_lane_has(const QuantRule *rule)
{
    return !(cast_lane_is_short(rule) && rule->scale_in_f32);
}

// The largest quotient whose code is right; it is limited to the codes' range from above alone, or
// in rules with zero points from both sides.
FORMAT_INLINE float cast_lane_most(const QuantRule *rule)
{
    if (rule->method == QUANT_MX || cast_shifts(rule))
        return 0x1p20f;
    return rule->code == CODE_E4M3   ? 464.0f
           : rule->code == CODE_E2M1 ? 6.99f
           : rule->code == CODE_INT8 ? 128.25f
                                     : 8.25f;
}

// Of a block that cast_quick_ready had, and whose elements have magnitudes up to amax. False for
// NaN.
FORMAT_INLINE bool cast_lane_fits(const QuantContext *context, const QuantBlock *block, float amax)
{
    const QuantRule *rule = &context->rule;
    const bool drops_sign = rule->method == QUANT_MX && rule->ct;
    const bool offset = rule->method == QUANT_RANGE || rule->method == QUANT_TILE;
    const float most = offset ? amax + fabsf(block->zero) : amax;
    // Beyond these, remainders underflow, or quotients, which then lose their sign.
    const float least_scale = cast_divides(rule) ? 0x1p-90f : 0.0f;
    const float most_scale = rule->method == QUANT_NVFP4_CT || drops_sign ? 0x1p15f
                             : cast_divides(rule)                         ? 0x1p90f
                                                                          : INFINITY;
    const bool is_short = !cast_lane_is_short(rule) | cast_pairs_is_short(block->scale);
    const float quotient = cast_quick_product(most, block->multiplier);
    const bool sized = (block->scale >= least_scale) & (block->scale <= most_scale) & is_short;
    return (quotient <= cast_lane_most(rule)) & (sized | (most == 0.0f));
}

FORMAT_INLINE uint32_t cast_lane_largest(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

// bf16(value) of what is no tie.
FORMAT_INLINE float cast_lane_bf16(float value)
{
    return format_f32_value((format_f32_bits(value) + 0x8000u) & 0xFFFF0000u);
}

// bf16(value) of what may be one.
FORMAT_INLINE float cast_lane_bf16_even(float value)
{
    const uint32_t bits = format_f32_bits(value);
    return format_f32_value((bits + 0x7FFFu + (bits >> 16 & 1u)) & 0xFFFF0000u);
}

// 21 bits of a value.
FORMAT_INLINE float cast_lane_snapped(float value)
{
    return format_f32_value((format_f32_bits(value) + 4u) & ~7u);
}

// What becomes a code by rounding.
FORMAT_INLINE float cast_lane_scaled(const QuantContext *context, const QuantBlock *block, float x)
{
    const QuantRule *rule = &context->rule;
    switch (rule->method) { // a constant in every copy
    case QUANT_SYMMETRIC: {
        const float q = x * block->multiplier;
        return rule->quotient == QUOTIENT_DIVIDE         ? cast_lane_snapped(q)
               : rule->quotient == QUOTIENT_DIVIDE_INPUT ? cast_lane_bf16(q)
               : rule->quotient == QUOTIENT_RECIPROCAL   ? q
                                                         : cast_lane_bf16_even(q);
    }
    case QUANT_RANGE:
        return cast_quick_quotient(x - block->zero, block->scale, block->multiplier);
    case QUANT_TILE:
        return cast_lane_bf16(cast_lane_bf16_even(x - block->zero) * block->multiplier);
    case QUANT_ZERO_POINT:
        x = cast_lane_bf16_even(x * block->multiplier) + CAST_SHIFT;
        return x - CAST_SHIFT + block->zero;
    case QUANT_ZERO_POINT_CT:
        return cast_lane_bf16_even(cast_lane_bf16(x * block->multiplier) + block->zero);
    default:
        return x * block->multiplier;
    }
}

// In the low byte.
FORMAT_INLINE uint32_t cast_lane_e4m3(const QuantRule *rule, float q)
{
    uint32_t a = format_f32_magnitude(q);
    if (rule->method == QUANT_MX)
        a = format_minimum(a, 0x43E00000u); // 448
    const uint32_t unit = cast_lane_largest(a & 0x7F800000u, 0x3C800000u);
    const uint32_t code =
        format_f32_bits(fmaf(format_f32_value(unit), 0x1p20f + 7.0f, format_f32_value(a)));
    return ((code + (unit >> 20)) & 0x7Fu) | (format_f32_bits(q) >> 24 & 0x80u);
}

// In the low nibble; of a block that cast_pairs_ready had.
FORMAT_INLINE uint32_t cast_lane_e2m1(const QuantRule *rule, const QuantBlock *block, float x)
{
    const bool drops_sign =
        rule->method == QUANT_NVFP4_CT || (rule->method == QUANT_MX && rule->ct);
    x += drops_sign ? 0.0f : -0.0f; // takes the sign of -0, or nothing
    uint32_t code = cast_one_e2m1(rule, block, fabsf(x));
    if (rule->method == QUANT_MX)
        code = format_minimum(code, 0x4B000007u);
    return (code & 7u) | (format_f32_bits(x) >> 28 & 8u);
}

// In the low byte, or nibble; what lies above is undefined.
FORMAT_INLINE uint32_t cast_lane(const QuantContext *context, const QuantBlock *block, float x)
{
    const QuantRule *rule = &context->rule;
    if (rule->code == CODE_E2M1)
        return cast_lane_e2m1(rule, block, x);
    float q = cast_lane_scaled(context, block, x);
    if (rule->code == CODE_E4M3)
        return cast_lane_e4m3(rule, q);
    if (rule->method == QUANT_RANGE)
        return format_f32_bits(q + (CAST_SHIFT - 8.0f));
    const uint32_t low = CAST_SHIFT_BITS - (rule->method == QUANT_TILE ? 0u
                                            : rule->code == CODE_INT8  ? 128u
                                                                       : 8u);
    uint32_t code = format_f32_bits(q + CAST_SHIFT);
    if (cast_shifts(rule))
        code = cast_lane_largest(code, low);
    return format_minimum(code, low + (rule->code == CODE_INT8 ? 255u : 15u));
}
