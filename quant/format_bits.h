// format_bits.h -- the integer arithmetic under every encoder, inline, so that loops over tensors
// vectorise and CUDA kernels share it.
//
// Rounding to nearest even by adding half a unit less one, plus the last bit that stays, and
// shifting: the carry walks from mantissa into exponent by itself (Goldberg, "What every computer
// scientist should know about floating-point arithmetic", 1991).
#pragma once

#include "harness/base.h"

#include <string.h>

#ifdef __CUDACC__
#define FORMAT_INLINE static __forceinline__ __host__ __device__
#elif defined(__OPTIMIZE__)
#define FORMAT_INLINE static inline __attribute__((always_inline))
#else // constants are not folded then: copies in every caller would only take minutes to compile
#define FORMAT_INLINE static inline
#endif

enum { FORMAT_F32_INFINITY = 0x7F800000, FORMAT_F32_MANTISSA_BITS = 23, FORMAT_F32_BIAS = 127 };

FORMAT_INLINE uint32_t format_f32_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

FORMAT_INLINE float format_f32_value(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

FORMAT_INLINE uint32_t format_f32_magnitude(float value)
{
    return format_f32_bits(value) & 0x7FFFFFFFu;
}

// a + b, rounded on its own: nvcc would make a * b + c one step.
FORMAT_INLINE float format_f32_sum(float a, float b)
{
#ifdef __CUDA_ARCH__
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}

FORMAT_INLINE uint32_t format_minimum(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

// value / 2^shift, to nearest even. 1 <= shift <= 31, and the sum must fit.
FORMAT_INLINE uint32_t format_shift_even(uint32_t value, uint32_t shift)
{
    return (value + (1u << (shift - 1)) - 1 + ((value >> shift) & 1u)) >> shift;
}

// The code of a magnitude (f32 bits without sign) in a format of that bias (at most f32's own) and
// mantissa, as if its exponents went on for ever: whoever calls it limits the code. Infinity and
// NaN give codes above that of the largest float.
FORMAT_INLINE uint32_t format_round_even(uint32_t magnitude, uint32_t bias, uint32_t mantissa_bits)
{
    uint32_t dropped = FORMAT_F32_MANTISSA_BITS - mantissa_bits;
    uint32_t exponent_of_minimum = FORMAT_F32_BIAS - bias + 1;
    uint32_t exponent = magnitude >> FORMAT_F32_MANTISSA_BITS;
    // With f32's own bias a subnormal there is one here, in the same place.
    if (exponent >= exponent_of_minimum || bias == FORMAT_F32_BIAS)
        return format_shift_even(magnitude, dropped) - ((FORMAT_F32_BIAS - bias) << mantissa_bits);
    // Subnormal there: a multiple of the one smallest value. Far below it all is zero.
    uint32_t significand = magnitude & 0x7FFFFFu;
    significand |= exponent > 0 ? 0x800000u : 0;
    uint32_t shift = dropped + exponent_of_minimum - (exponent > 0 ? exponent : 1);
    return format_shift_even(significand, format_minimum(shift, 25));
}

// The f32 bits of a finite code without sign. Exact. bias: less than f32's, or no subnormals.
FORMAT_INLINE uint32_t format_widen(uint32_t code, uint32_t bias, uint32_t mantissa_bits)
{
    uint32_t dropped = FORMAT_F32_MANTISSA_BITS - mantissa_bits;
    uint32_t rebias = (FORMAT_F32_BIAS - bias) << FORMAT_F32_MANTISSA_BITS;
    if (code >> mantissa_bits)
        return (code << dropped) + rebias;
    if (code == 0)
        return 0;
    uint32_t exponent = 1;
    for (; !(code >> mantissa_bits); code <<= 1)
        exponent--; // may pass 0: with the new bias it is positive again
    code &= (1u << mantissa_bits) - 1;
    return (exponent << FORMAT_F32_MANTISSA_BITS) + (code << dropped) + rebias;
}

// The nearest whole number, ties to even, within [-maximum - 1, maximum]; NaN gives 0.
// maximum + 1 is a power of two, at most 2^22.
FORMAT_INLINE int32_t format_round_integer(float value, int32_t maximum)
{
    uint32_t bits = format_f32_bits(value), magnitude = bits & 0x7FFFFFFFu;
    uint32_t exponent = magnitude >> FORMAT_F32_MANTISSA_BITS;
    int32_t limit = maximum + (int32_t)(bits >> 31);
    int32_t rounded = limit;
    if (magnitude > FORMAT_F32_INFINITY || exponent < FORMAT_F32_BIAS - 1)
        rounded = 0;
    else if (exponent < FORMAT_F32_BIAS + 22)
        rounded = (int32_t)format_shift_even((magnitude & 0x7FFFFFu) | 0x800000u,
                                             FORMAT_F32_BIAS + 23 - exponent);
    rounded = rounded < limit ? rounded : limit;
    return bits >> 31 ? -rounded : rounded;
}
