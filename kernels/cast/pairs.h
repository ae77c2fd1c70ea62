// pairs.h -- codes of eight bf16 at once, two of them in a word where that is exact: the same
// codes as cast_encode (cast/variant.h), where cast_pairs_fits says so, in half the instructions of
// cast/quick.h.
//
//   bf16 steps     A sum or product of two bf16, rounded to f32 and then to bf16, is as if
//                  rounded once: 24 bits are at least 2 * 8 + 2 (Figueroa, "When is double rounding
//                  innocuous?", 1995).
//   bf16(x / s)    of two bf16 lies 2^-17 of itself or more from where bf16 changes, since that
//                  has an odd ninth bit and x has eight: f32(x * f32(1 / s)) is near enough.
//   rint(x / s)    of two bf16 is a half, or 1 / 510 away from one: so f16(x * (1 / s)), which
//                  rounds by at most 1 / 512 below 8, is a half where the quotient is one.
//   f32(a / s)     by 1 / s in two numbers (Brisebarre & Muller, "Correctly rounded multiplication
//                  by arbitrary precision constants", 2008), off by less than 2^-22 of a unit
//                  before it is rounded. That decides wrongly where a / s is so near to the middle
//                  of two numbers, next to k + 1/2 as it were; then 2 a / s (2^20 for k below 16)
//                  is, too, and s is a multiple of 2^20 of its units but for 6 of them.
//   e2m1(x * 2^k)  the three lines of cast/quick.h, each one fused step of two bf16.
//   e2m1(f32(x / s)) with s = f32(e4m3 / G), G a bf16: x / s is a tie, but for what rounding s
//                  does, or 2^-16 of itself away from one. So x * f32(1 / s) + 16, whose unit
//                  is 2^-19, is 16 and a tie where it should be. What rounding s did matters then
//                  only where it takes 7 / 4 and 7 / 2 below themselves, whose even neighbour is
//                  above; cast_pairs_ready finds such blocks, where no other tie goes up.
//
// Whole numbers appear in the low bits of 128 + n or 192 + n (1536 + n in f16), bf16's (f16's) unit
// there being 1. Compiled as C this is plain C, so that tests without a GPU compare it.
#pragma once

#include "kernels/cast/quick.h"
#include "quant/place.h"

// ---- two numbers in a word ----

#ifdef __CUDA_ARCH__
#define CAST_PAIR_2(text, a, b)                                                                    \
    uint32_t pair;                                                                                 \
    asm(text " %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));                                        \
    return pair
#define CAST_PAIR_FLOATS(text, even, odd)                                                          \
    uint32_t pair;                                                                                 \
    asm(text " %0, %1, %2;" : "=r"(pair) : "f"(odd), "f"(even));                                   \
    return pair
#endif

// A double's nearest bf16 or f16: to f32 with a last bit that says whether something was cut, then
// on. No subnormals of f16: what is made of them here is the same without.
FORMAT_INLINE float cast_pair_cut(double value)
{
    const float f = (float)value;
    uint32_t bits = format_f32_bits(f);
    bits -= fabs((double)f) > fabs(value);
    return format_f32_value((double)f == value ? bits : bits | 1u);
}
FORMAT_INLINE uint32_t cast_pair_bf16(double value)
{
    return format_f32_bits(quant_round(DTYPE_BF16, cast_pair_cut(value))) >> 16;
}
FORMAT_INLINE uint32_t cast_pair_f16(double value)
{
    const uint32_t bits = format_f32_bits(cast_pair_cut(value)), bias = 112u << 10;
    const uint32_t rounded = format_shift_even(bits & 0x7FFFFFFFu, 13);
    return (rounded < bias ? 0 : rounded - bias) | (bits >> 16 & 0x8000u);
}

FORMAT_INLINE float cast_pair_even(uint32_t pair)
{
    return format_f32_value(pair << 16);
}
FORMAT_INLINE float cast_pair_uneven(uint32_t pair)
{
    return format_f32_value(pair & 0xFFFF0000u);
}
FORMAT_INLINE uint32_t cast_pair_twice(uint32_t half)
{
    return half * 0x10001u;
}

// a * b + c, rounded once.
FORMAT_INLINE uint32_t cast_pair_fused(uint32_t a, uint32_t b, uint32_t c)
{
#ifdef __CUDA_ARCH__
    uint32_t pair;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(a), "r"(b), "r"(c));
    return pair;
#else
    const double even = (double)cast_pair_even(a) * (double)cast_pair_even(b);
    const double odd = (double)cast_pair_uneven(a) * (double)cast_pair_uneven(b);
    return cast_pair_bf16(even + (double)cast_pair_even(c)) |
           cast_pair_bf16(odd + (double)cast_pair_uneven(c)) << 16;
#endif
}

FORMAT_INLINE uint32_t cast_pair_sum(uint32_t a, uint32_t b)
{
#ifdef __CUDA_ARCH__
    CAST_PAIR_2("add.rn.bf16x2", a, b);
#else
    return cast_pair_fused(a, cast_pair_twice(0x3F80u), b);
#endif
}

FORMAT_INLINE uint32_t cast_pair_product(uint32_t a, uint32_t b)
{
#ifdef __CUDA_ARCH__
    CAST_PAIR_2("mul.rn.bf16x2", a, b);
#else
    return cast_pair_fused(a, b, cast_pair_twice(0x8000u));
#endif
}

FORMAT_INLINE uint32_t cast_pair_sum_f16(uint32_t a, uint32_t b)
{
#ifdef __CUDA_ARCH__
    CAST_PAIR_2("add.rn.f16x2", a, b);
#else
    const double even = (double)quant_of_f16(a & 0xFFFFu) + (double)quant_of_f16(b & 0xFFFFu);
    const double odd = (double)quant_of_f16(a >> 16) + (double)quant_of_f16(b >> 16);
    return cast_pair_f16(even) | cast_pair_f16(odd) << 16;
#endif
}

FORMAT_INLINE uint32_t cast_pair_of(float even, float odd)
{
#ifdef __CUDA_ARCH__
    CAST_PAIR_FLOATS("cvt.rn.bf16x2.f32", even, odd);
#else
    return cast_pair_bf16((double)even) | cast_pair_bf16((double)odd) << 16;
#endif
}

FORMAT_INLINE uint32_t cast_pair_of_f16(float even, float odd)
{
#ifdef __CUDA_ARCH__
    CAST_PAIR_FLOATS("cvt.rn.f16x2.f32", even, odd);
#else
    return cast_pair_f16((double)even) | cast_pair_f16((double)odd) << 16;
#endif
}

FORMAT_INLINE uint32_t cast_half_limited(uint32_t a, uint32_t b, uint32_t most)
{
    int sum = (int16_t)(uint16_t)(a + b), limit = (int16_t)(uint16_t)most;
    sum = sum < limit ? sum : limit;
    return (uint32_t)(sum > 0 ? sum : 0);
}

// max(min(a + b, most), 0), of signed 16 bits.
FORMAT_INLINE uint32_t cast_pair_limited(uint32_t a, uint32_t b, uint32_t most)
{
#ifdef __CUDA_ARCH__
    return __viaddmin_s16x2_relu(a, b, most);
#else
    return cast_half_limited(a, b, most) | cast_half_limited(a >> 16, b >> 16, most >> 16) << 16;
#endif
}

FORMAT_INLINE uint32_t cast_pair_least(uint32_t a, uint32_t b)
{
#ifdef __CUDA_ARCH__
    return __vminu2(a, b);
#else
    return format_minimum(a & 0xFFFFu, b & 0xFFFFu) | format_minimum(a >> 16, b >> 16) << 16;
#endif
}

FORMAT_INLINE uint32_t cast_pair_least3(uint32_t a, uint32_t b, uint32_t c)
{
#ifdef __CUDA_ARCH__
    return __vimin3_u16x2(a, b, c);
#else
    return cast_pair_least(cast_pair_least(a, b), c);
#endif
}

// Bytes of eight; a digit with its high bit set gives the byte's sign eight times.
FORMAT_INLINE uint32_t cast_bytes(uint32_t a, uint32_t b, uint32_t which)
{
#ifdef __CUDA_ARCH__
    uint32_t bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(a), "r"(b), "r"(which));
    return bytes;
#else
    uint32_t bytes = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t digit = which >> 4 * i & 15u;
        const uint32_t byte = (digit & 4 ? b : a) >> digit % 4 * 8 & 0xFFu;
        bytes |= (digit & 8 ? (byte >> 7) * 0xFFu : byte) << 8 * i;
    }
    return bytes;
#endif
}

// ---- which rules, which blocks ----

// A constant in every copy.
FORMAT_INLINE bool cast_pairs_has(const QuantContext *context)
{
    const QuantRule *rule = &context->rule;
    if (context->input != DTYPE_BF16 || rule->code == CODE_E4M3)
        return false;
    if (rule->method == QUANT_SYMMETRIC)
        return rule->quotient == QUOTIENT_DIVIDE_INPUT ||
               rule->quotient == QUOTIENT_RECIPROCAL_INPUT ||
               (rule->quotient == QUOTIENT_DIVIDE && rule->code == CODE_INT4);
    return rule->method != QUANT_ZERO_POINT;
}

FORMAT_INLINE bool cast_pairs_is_short(float value)
{
    return (format_f32_bits(value) & 0xFFFFu) == 0;
}

// Whether a number is nearly a multiple of 2^20 of its units.
FORMAT_INLINE bool cast_pairs_is_even(float value)
{
    return ((format_f32_bits(value) + 8u) & 0xFFFFFu) < 16u;
}

// As cast_quick_fits, of a block that cast_quick_ready had.
FORMAT_INLINE bool cast_pairs_fits(const QuantContext *context, const QuantBlock *block, float amax)
{
    const QuantRule *rule = &context->rule;
    const float most = cast_quick_product(amax, block->multiplier);
    const bool sized = block->scale >= 0x1p-90f && block->scale <= 0x1p90f;
    const bool nothing = amax == 0.0f;
    switch (rule->method) {
    case QUANT_MX: { // twice and half the multiplier are bf16, too; -0 only from -0
        const bool inside = block->multiplier <= 0x1p126f && block->multiplier >= 0x1p-125f;
        return inside && !(rule->ct && block->multiplier < 0x1p-16f);
    }
    case QUANT_NVFP4:
        return most < 7.0f;
    case QUANT_NVFP4_CT:
        return most < 7.0f && block->scale >= 0x1p-90f && block->scale <= 0x1p15f;
    case QUANT_RANGE:
        return sized && most <= 0x1p20f && !cast_pairs_is_even(block->scale);
    case QUANT_TILE:
        return nothing ||
               (sized && cast_quick_product(amax + fabsf(block->zero), block->multiplier) <= 64.0f);
    case QUANT_ZERO_POINT_CT:
        return sized && most <= 32.0f;
    default:
        if (rule->quotient == QUOTIENT_DIVIDE)
            return nothing || (sized && most <= 8.0f && cast_pairs_is_short(block->scale));
        return nothing || (sized && most <= (rule->code == CODE_INT8 ? 128.25f : 32.0f));
    }
}

// What cast_pairs_codes reads of a block that fits.
FORMAT_INLINE void cast_pairs_ready(const QuantContext *context, QuantBlock *block)
{
    if (context->rule.method != QUANT_NVFP4_CT || context->input != DTYPE_BF16)
        return;
    const float seven = cast_quick_round(DTYPE_BF16, cast_quick_product(7.0f, block->scale));
    const float q = cast_quick_quotient(seven, block->scale, block->multiplier);
    const float less = cast_quick_product(block->multiplier, 1.0f - 0x1p-20f);
    block->multiplier = q < 7.0f && q >= 7.0f - 0x1p-20f ? less : block->multiplier;
}

// ---- steps ----

// bf16(x / s) of two bf16.
FORMAT_INLINE uint32_t cast_pair_quotient(const QuantBlock *block, uint32_t pair)
{
    return cast_pair_of(cast_quick_product(cast_pair_even(pair), block->multiplier),
                        cast_quick_product(cast_pair_uneven(pair), block->multiplier));
}

// Whole numbers of -8 .. 7 (counted from -8) or 0 .. 15, from bf16 of magnitudes up to 64.
FORMAT_INLINE uint32_t cast_pair_nibbles(const QuantRule *rule, uint32_t pair)
{
    if (rule->method == QUANT_TILE)
        return cast_pair_limited(cast_pair_sum(pair, 0x43004300u), 0xBD00BD00u, 0x000F000Fu);
    return cast_pair_limited(cast_pair_sum(pair, 0x43404340u), 0xBCC8BCC8u, 0x000F000Fu);
}

// Nibbles 0 .. 15 of a pair.
FORMAT_INLINE uint32_t cast_pair_int4(const QuantContext *context, const QuantBlock *block,
                                      uint32_t pair)
{
    const QuantRule *rule = &context->rule;
    const uint32_t zero = cast_pair_twice(format_f32_bits(block->zero) >> 16);
    if (rule->method == QUANT_TILE) { // x - z; z is no more than a bf16
        pair = cast_pair_sum(pair, zero ^ 0x80008000u);
        return cast_pair_nibbles(rule, cast_pair_quotient(block, pair));
    }
    if (rule->method == QUANT_ZERO_POINT_CT)
        return cast_pair_nibbles(rule, cast_pair_sum(cast_pair_quotient(block, pair), zero));
    if (rule->quotient == QUOTIENT_RECIPROCAL_INPUT) {
        const uint32_t multiplier = cast_pair_twice(format_f32_bits(block->multiplier) >> 16);
        return cast_pair_nibbles(rule, cast_pair_product(pair, multiplier));
    }
    if (rule->quotient == QUOTIENT_DIVIDE_INPUT)
        return cast_pair_nibbles(rule, cast_pair_quotient(block, pair));
    const uint32_t q =
        cast_pair_of_f16(cast_quick_product(cast_pair_even(pair), block->multiplier),
                         cast_quick_product(cast_pair_uneven(pair), block->multiplier));
    return cast_pair_limited(cast_pair_sum_f16(q, 0x66006600u), 0x9A089A08u, 0x000F000Fu);
}

// Low bytes of a pair, -128 .. 127, from bf16 of magnitudes up to 128.
FORMAT_INLINE uint32_t cast_pair_int8(uint32_t q)
{
    const uint32_t even = format_f32_bits(format_f32_sum(cast_pair_even(q), CAST_SHIFT));
    const uint32_t odd = format_f32_bits(format_f32_sum(cast_pair_uneven(q), CAST_SHIFT));
    const uint32_t whole = cast_bytes(even, odd, 0x5410);
#ifdef __CUDA_ARCH__
    return __vmins2(whole, 0x007F007Fu);
#else
    const uint32_t low = whole & 0xFFFFu, high = whole >> 16;
    return (low == 0x80u ? 0x7Fu : low) | (high == 0x80u ? 0x7Fu : high) << 16;
#endif
}

// f32(a / s); rest: what the multiplier is short of 1 / s.
FORMAT_INLINE float cast_pairs_rest(const QuantBlock *block)
{
    return cast_quick_product(fmaf(-block->multiplier, block->scale, 1.0f), block->multiplier);
}
FORMAT_INLINE float cast_pairs_over(const QuantBlock *block, float rest, float a)
{
    return fmaf(a, block->multiplier, cast_quick_product(a, rest));
}

// The low byte: rint(f32((x - z) / s)), 0 .. 15, since z is the least x and s 15th of the range.
FORMAT_INLINE uint32_t cast_one_range(const QuantBlock *block, float rest, float x)
{
    const float above = format_f32_sum(x, -block->zero);
    return format_f32_bits(format_f32_sum(cast_pairs_over(block, rest, above), CAST_SHIFT));
}

// Codes of magnitudes of two bf16 under a power of two.
FORMAT_INLINE uint32_t cast_pair_e2m1(const QuantBlock *block, uint32_t pair)
{
    const uint32_t multiplier = cast_pair_twice(format_f32_bits(block->multiplier) >> 16);
    const uint32_t a = pair & 0x7FFF7FFFu;
    const uint32_t low = cast_pair_fused(a, multiplier + 0x00800080u, 0x43004300u);
    const uint32_t middle = cast_pair_fused(a, multiplier, 0x43024302u);
    const uint32_t high = cast_pair_fused(a, multiplier - 0x00800080u, 0x43044304u);
    return cast_pair_least(cast_pair_least3(low, middle, high), 0x43074307u);
}

// The code in the low byte, of a magnitude over or times a number of 24 bits, below 7.
FORMAT_INLINE uint32_t cast_one_e2m1(const QuantRule *rule, const QuantBlock *block, float a)
{
    const float above = rule->method == QUANT_NVFP4_CT ? 16.0f : 0.0f; // what q is too large by
    const float q = above != 0.0f ? fmaf(a, block->multiplier, above)
                                  : cast_quick_product(a, block->multiplier);
    const uint32_t low = format_f32_bits(fmaf(q, 2.0f, 0x1p23f - 2.0f * above));
    const uint32_t middle = format_f32_bits(format_f32_sum(q, 0x1p23f + 2.0f - above));
    const uint32_t high = format_f32_bits(fmaf(q, 0.5f, 0x1p23f + 4.0f - 0.5f * above));
    return cast_quick_least(low, middle, high);
}

// ---- eight of them ----

// Nibbles of eight elements in order, from pairs of codes, the even one in the low byte.
FORMAT_INLINE uint32_t cast_pairs_word(uint32_t first, uint32_t second)
{
    return cast_bytes(first, second, 0x5410) + cast_bytes(first, second, 0x7632) * 16;
}

FORMAT_INLINE uint32_t cast_pairs_e2m1(const QuantContext *context, const QuantBlock *block,
                                       const uint32_t *pair)
{
    const QuantRule *rule = &context->rule;
    const bool drops_sign =
        rule->method == QUANT_NVFP4_CT || (rule->method == QUANT_MX && rule->ct);
    uint32_t code[2]; // low bytes of the even elements of two pairs, then of the odd ones
    for (int half = 0; half < 2; half++) {
        uint32_t x[2] = {pair[2 * half], pair[2 * half + 1]};
        uint32_t c[4];
        if (rule->method == QUANT_MX) {
            code[half] =
                cast_bytes(cast_pair_e2m1(block, x[0]), cast_pair_e2m1(block, x[1]), 0x6240);
        } else {
            for (int i = 0; i < 2; i++) {
                c[2 * i] = cast_one_e2m1(rule, block, fabsf(cast_pair_even(x[i])));
                c[2 * i + 1] = cast_one_e2m1(rule, block, fabsf(cast_pair_uneven(x[i])));
            }
            code[half] =
                cast_bytes(cast_bytes(c[0], c[2], 0x0040), cast_bytes(c[1], c[3], 0x0040), 0x5410);
        }
        for (int i = 0; i < 2 && drops_sign; i++)
            x[i] = cast_pair_sum(x[i], 0);
        code[half] |= cast_bytes(x[0], x[1], 0xFBD9) & 0x08080808u;
    }
    return cast_pairs_word(code[0], code[1]);
}

FORMAT_INLINE uint32_t cast_pairs_range(const QuantBlock *block, const uint32_t *pair)
{
    const float rest = cast_pairs_rest(block);
    uint32_t even[4], odd[4];
    for (int p = 0; p < 4; p++) {
        even[p] = cast_one_range(block, rest, cast_pair_even(pair[p]));
        odd[p] = cast_one_range(block, rest, cast_pair_uneven(pair[p]));
    }
    return (cast_quick_bytes(even[0], even[1], even[2], even[3]) +
            cast_quick_bytes(odd[0], odd[1], odd[2], odd[3]) * 16) ^
           0x88888888u;
}

// Words as cast_quick_pack has them.
FORMAT_INLINE void cast_pairs_codes(const QuantContext *context, const QuantBlock *block,
                                    const uint32_t *pair, uint32_t *words)
{
    const QuantRule *rule = &context->rule;
    uint32_t code[4];
    words[1] = 0;
    if (rule->code == CODE_E2M1) {
        words[0] = cast_pairs_e2m1(context, block, pair);
        return;
    }
    if (rule->method == QUANT_RANGE) {
        words[0] = cast_pairs_range(block, pair);
        return;
    }
    for (int p = 0; p < 4; p++)
        code[p] = rule->code == CODE_INT8 ? cast_pair_int8(cast_pair_quotient(block, pair[p]))
                                          : cast_pair_int4(context, block, pair[p]);
    if (rule->code_layout == CODES_BYTES) {
        words[0] = cast_bytes(code[0], code[1], 0x6420);
        words[1] = cast_bytes(code[2], code[3], 0x6420);
        if (rule->code == CODE_INT4) // from 0 .. 15 to -8 .. 7, byte by byte
            for (int i = 0; i < 2; i++)
                words[i] = ((words[i] | 0x80808080u) - 0x08080808u) ^ 0x80808080u;
        return;
    }
    words[0] =
        cast_pairs_word(cast_bytes(code[0], code[1], 0x6240), cast_bytes(code[2], code[3], 0x6240));
    if (rule->code_layout == CODES_PAIRS)
        words[0] ^= 0x88888888u;
}
