// quick.h -- codes of eight elements at once, in the fewest instructions that a GPU has for
// them: the same codes as cast_encode (cast/variant.h), where cast_quick_fits says so.
//
//   x / scale   by the reciprocal and two corrections with exact remainders, which rounds
//               correctly (Markstein, "Computation of elementary functions on the IBM RISC
//               System/6000 processor", 1990, theorem 8.2). Remainders are taken with the sign
//               that keeps -0 / scale = -0.
//   e4m3(f32(x / scale)) of a bf16: one correction decides as two do. It lies on the same side of
//               every tie of e4m3 as the quotient, or on the tie with it: for all significands of
//               both (tests).
//   bf16(x / scale) of two bf16: pairs.h says why the reciprocal alone is enough.
//   e4m3        the hardware's conversion of two values
//   e2m1        with a = min(|q|, 6) the code is the least of 2 a, a + 2, a / 2 + 4, rounded to
//               even: the lines that the format's three binades lie on. Rounding is monotone, so
//               each is rounded, by the shift that leaves no room for a fraction, before the least
//               is taken.
//   whole       the clamped quotient plus the same shift; codes lie in the low bits
//
// Compiled as C this is plain C, so that tests without a GPU compare it with cast_encode.
#pragma once

#include "kernels/cast/variant.h"

#include <math.h>

enum { CAST_QUICK = 8, CAST_SHIFT_BITS = 0x4B400000 };
static const float CAST_SHIFT = 12582912.0f; // 1.5 * 2^23, whose bits are CAST_SHIFT_BITS

// The quotient of a product of two, rounded on its own.
FORMAT_INLINE float cast_quick_product(float a, float b)
{
#ifdef __CUDA_ARCH__
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

// What the quick arithmetic reads of a block, added to what choosing it left.
FORMAT_INLINE void cast_quick_ready(const QuantContext *context, QuantBlock *block, float amax)
{
    if (cast_divides(&context->rule) && context->rule.method != QUANT_SYMMETRIC)
        block->multiplier = 1.0f / block->scale;
    if (context->rule.method == QUANT_MX) // for 0 any will do, one that cast/pairs.h has as well
        block->multiplier = quant_select_f32(amax == 0.0f, 1.0f, block->multiplier);
}

// Whether elements of magnitudes up to amax have their codes from the quick arithmetic: nothing on
// the way overflows, no remainder is too small to be exact. False for NaN.
FORMAT_INLINE bool cast_quick_fits(const QuantContext *context, const QuantBlock *block, float amax)
{
    const QuantRule *rule = &context->rule;
    const bool e4m3 = rule->code == CODE_E4M3, divides = cast_divides(rule);
    if (e4m3 && !divides)
        return true;
    if (e4m3 && block->scale == 0.0f && amax == 0.0f)
        return true; // 0 / 0
    if (rule->method == QUANT_TILE && amax == 0.0f)
        return true;
    const bool bounded = cast_quick_product(amax, block->multiplier) <= 0x1p20f;
    if (!divides)
        return bounded;
    // Quotients that underflow lose their sign here.
    const float most = rule->method != QUANT_NVFP4_CT ? 0x1p90f
                       : context->input == DTYPE_BF16 ? 0x1p15f
                                                      : 1.0f;
    return bounded && block->scale >= 0x1p-90f && block->scale <= most;
}

FORMAT_INLINE float cast_quick_corrected(float q, float x, float scale, float reciprocal)
{
    return fmaf(-fmaf(q, scale, -x), reciprocal, q);
}

FORMAT_INLINE float cast_quick_quotient(float x, float scale, float reciprocal)
{
    float q = cast_quick_product(x, reciprocal);
    q = cast_quick_corrected(q, x, scale, reciprocal);
    return cast_quick_corrected(q, x, scale, reciprocal);
}

// ---- choosing ----

// 1 / b to about an ulp or, where b has few bits (an e4m3), rounded correctly.
FORMAT_INLINE float cast_quick_reciprocal(float b)
{
#ifdef __CUDA_ARCH__
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(b));
#else
    float y = 1.0f / b;
#endif
    return fmaf(-fmaf(y, b, -1.0f), y, y);
}

// quant_e4m3 of a value that is no NaN and not negative.
FORMAT_INLINE uint32_t cast_quick_e4m3(float value)
{
#ifdef __CUDA_ARCH__
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(value));
    return pair;
#else
    return quant_e4m3(value);
#endif
}

// The value of such a code: its exponent is off by 120.
FORMAT_INLINE float cast_quick_of_e4m3(uint32_t code)
{
    return format_f32_value(code << 20) * 0x1p120f;
}

// quant_nvfp4_choose and quant_nvfp4_ct_choose without divisions but for the matrix's, which every
// block shares.
FORMAT_INLINE QuantBlock cast_quick_nvfp4(const QuantContext *context, float inverse, float amax)
{
    QuantBlock block = {0, 0, 0, 0, 0};
    const float second = context->tensor_scale;
    const bool ct = context->rule.method == QUANT_NVFP4_CT, two = context->rule.two_level;
    const float small = quant_round(ct ? context->input : DTYPE_F32, amax * (1.0f / 6.0f));
    float scale = ct    ? cast_quick_product(small, second)
                  : two ? cast_quick_quotient(small, second, inverse)
                        : small;
    block.scale_bits = cast_quick_e4m3(ct ? scale : fmaxf(scale, 0x1p-6f));
    if (ct)
        block.scale_bits = quant_select(block.scale_bits == 0, 0x20u, block.scale_bits);
    const float s8 = cast_quick_of_e4m3(block.scale_bits);
    block.scale = ct ? cast_quick_quotient(s8, second, inverse) : s8;
    if (!ct) {
        const float above = cast_quick_reciprocal(s8);
        block.multiplier = two ? cast_quick_quotient(inverse, s8, above) : above;
    }
    return block;
}

FORMAT_INLINE QuantBlock cast_quick_choose(const QuantContext *context, QuantStatistics s)
{
    const QuantMethod method = context->rule.method;
    if (method != QUANT_NVFP4 && method != QUANT_NVFP4_CT)
        return cast_choose(context, s);
    // Else quotients could overflow, or their remainders underflow. NaN is in neither range.
    const float inverse = 1.0f / context->tensor_scale; // here, for all blocks of a lane
    const bool usual = context->tensor_scale >= 0x1p-60f && context->tensor_scale <= 0x1p60f;
    if (usual && s.amax <= 0x1p60f)
        return cast_quick_nvfp4(context, inverse, s.amax);
    return cast_choose(context, s);
}

// ---- codes ----

// quant_round of a value that is no NaN.
FORMAT_INLINE float cast_quick_round(DType dtype, float value)
{
#ifdef __CUDA_ARCH__
    if (dtype != DTYPE_BF16)
        return value;
    uint32_t bits; // of two, the upper
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(value), "f"(0.0f));
    return __uint_as_float(bits);
#else
    return quant_round(dtype, value);
#endif
}

// x over the scale of a rule that is SYMMETRIC, before it is rounded to the operand's type.
FORMAT_INLINE float cast_quick_symmetric(const QuantContext *context, const QuantBlock *block,
                                         float x)
{
    const QuantRule *rule = &context->rule;
    const bool is_short = context->input == DTYPE_BF16;
    const float nearly = cast_quick_product(x, block->multiplier);
    if (!cast_divides(rule) || (is_short && rule->quotient == QUOTIENT_DIVIDE_INPUT))
        return nearly;
    if (is_short && rule->code == CODE_E4M3)
        return cast_quick_corrected(nearly, x, block->scale, block->multiplier);
    return cast_quick_quotient(x, block->scale, block->multiplier);
}

// What becomes a code by rounding: x over the scale, zero point and all.
FORMAT_INLINE float cast_quick_scaled(const QuantContext *context, const QuantBlock *block, float x)
{
    const QuantRule *rule = &context->rule;
    const DType t = context->input;
    const float divided = cast_quick_quotient(x, block->scale, block->multiplier);
    const float multiplied = cast_quick_product(x, block->multiplier);
    float q;
    switch (rule->method) { // a constant in every copy
    case QUANT_SYMMETRIC:
        q = cast_quick_symmetric(context, block, x);
        return rule->quotient == QUOTIENT_DIVIDE || rule->quotient == QUOTIENT_RECIPROCAL
                   ? q
                   : cast_quick_round(t, q);
    case QUANT_RANGE:
        return cast_quick_quotient(x - block->zero, block->scale, block->multiplier);
    case QUANT_TILE:
        q = cast_quick_round(t, x - block->zero);
        return cast_quick_round(t, cast_quick_quotient(q, block->scale, block->multiplier));
    case QUANT_ZERO_POINT:
        q = format_f32_sum(cast_quick_round(t, multiplied), CAST_SHIFT);
        return format_f32_sum(format_f32_sum(q, -CAST_SHIFT), block->zero);
    case QUANT_ZERO_POINT_CT:
        return cast_quick_round(t, cast_quick_round(t, divided) + block->zero);
    case QUANT_MX: // + 0 takes the sign of -0
        return rule->ct && rule->code == CODE_E2M1 ? format_f32_sum(multiplied, 0.0f) : multiplied;
    case QUANT_NVFP4:
        return multiplied;
    default:
        return format_f32_sum(divided, 0.0f);
    }
}

// ---- packing ----

// Two codes, that of `even` in the low byte.
FORMAT_INLINE uint32_t cast_quick_e4m3_pair(float even, float odd)
{
#ifdef __CUDA_ARCH__
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(odd), "f"(even));
    return pair;
#else
    return quant_e4m3(even) | quant_e4m3(odd) << 8;
#endif
}

FORMAT_INLINE uint32_t cast_quick_least(uint32_t a, uint32_t b, uint32_t c)
{
#ifdef __CUDA_ARCH__
    return __vimin3_u32(a, b, c);
#else
    return format_minimum(format_minimum(a, b), c);
#endif
}

// CAST_SHIFT_BITS plus the magnitude of the code.
FORMAT_INLINE uint32_t cast_quick_e2m1(float q)
{
    float a = fminf(fabsf(q), 6.0f);
    uint32_t low = format_f32_bits(fmaf(a, 2.0f, CAST_SHIFT));
    uint32_t middle = format_f32_bits(format_f32_sum(a, CAST_SHIFT + 2.0f));
    uint32_t high = format_f32_bits(fmaf(a, 0.5f, CAST_SHIFT + 4.0f));
    return cast_quick_least(low, middle, high);
}

// CAST_SHIFT_BITS plus the code; nibbles are counted from their lowest, so that none is negative.
FORMAT_INLINE uint32_t cast_quick_whole(const QuantRule *rule, float q)
{
    const bool unsigned_codes = rule->method == QUANT_RANGE || rule->method == QUANT_TILE;
    const bool wide = rule->code == CODE_INT8;
    const float low = unsigned_codes ? 0.0f : wide ? -128.0f : -8.0f;
    const float high = unsigned_codes ? 15.0f : wide ? 127.0f : 7.0f;
    const float first = rule->code_layout != CODES_BYTES && !unsigned_codes ? 8.0f : 0.0f;
    return format_f32_bits(format_f32_sum(fminf(fmaxf(q, low), high), CAST_SHIFT + first));
}

// Low bytes of four.
FORMAT_INLINE uint32_t cast_quick_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
#ifdef __CUDA_ARCH__
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
#else
    return (a & 0xFFu) | (b & 0xFFu) << 8 | (c & 0xFFu) << 16 | d << 24;
#endif
}

// Of what cast_quick_scaled gave: two words (BYTES), or one with element e in nibble e.
FORMAT_INLINE void cast_quick_pack(const QuantRule *rule, const float *q, uint32_t *words)
{
    uint32_t word = 0, shifts = 0;
    if (rule->code == CODE_E4M3) {
        words[0] = cast_quick_e4m3_pair(q[0], q[1]) | cast_quick_e4m3_pair(q[2], q[3]) << 16;
        words[1] = cast_quick_e4m3_pair(q[4], q[5]) | cast_quick_e4m3_pair(q[6], q[7]) << 16;
        return;
    }
    if (rule->code_layout == CODES_BYTES) {
        uint32_t whole[CAST_QUICK];
        for (int e = 0; e < CAST_QUICK; e++)
            whole[e] = cast_quick_whole(rule, q[e]);
        words[0] = cast_quick_bytes(whole[0], whole[1], whole[2], whole[3]);
        words[1] = cast_quick_bytes(whole[4], whole[5], whole[6], whole[7]);
        return;
    }
    // Sums of shifted codes carry the shifts along, which are taken off at the end, modulo 2^32.
    for (int e = CAST_QUICK - 1; e >= 0; e--) {
        shifts = (shifts << 4) + CAST_SHIFT_BITS;
        if (rule->code == CODE_E2M1) {
            word = word << 1 | format_f32_bits(q[e]) >> 31;
            word = (word << 3) + cast_quick_e2m1(q[e]);
        } else {
            word = (word << 4) + cast_quick_whole(rule, q[e]);
        }
    }
    words[0] = word - shifts;
    words[1] = 0;
    if (rule->code == CODE_INT4 && rule->code_layout == CODES_PAIRS) // two's complement
        words[0] ^= 0x88888888u;
}
