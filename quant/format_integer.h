// format_integer.h -- whole numbers in two's complement, which differ in nothing but their bits.
//
// Source of the rounding: torchao's quant_primitives.py: round half to even, clamp to the range,
// convert. NaN passes the clamp, and the conversion makes it 0.
#pragma once

#include "quant/format.h"
#include "quant/format_bits.h"

#include <math.h>

FORMAT_INLINE uint32_t format_integer_encode(uint32_t bits, float value)
{
    int32_t maximum = (1 << (bits - 1)) - 1;
    return (uint32_t)format_round_integer(value, maximum) & ((1u << bits) - 1);
}

FORMAT_INLINE float format_integer_decode(uint32_t bits, uint32_t code)
{
    int32_t maximum = (1 << (bits - 1)) - 1;
    int32_t low = (int32_t)(code & ((1u << bits) - 1));
    return (float)(low > maximum ? low - (1 << bits) : low);
}

// All of format_<name>.c. clamp_: torchao's rule in words.
#define FORMAT_INTEGER(name_, bits_, clamp_, note_)                                                \
    static uint32_t encode(float value)                                                            \
    {                                                                                              \
        return format_integer_encode(bits_, value);                                                \
    }                                                                                              \
    static float decode(uint32_t code)                                                             \
    {                                                                                              \
        return format_integer_decode(bits_, code);                                                 \
    }                                                                                              \
    static const FormatEncoder encoders[] = {{.name = "torchao",                                   \
                                              .encode = encode,                                    \
                                              .overflow = FORMAT_LARGEST,                          \
                                              .infinity = FORMAT_LARGEST,                          \
                                              .note = (clamp_)}};                                  \
    const Format format_##name_ = {.name = #name_,                                                 \
                                   .bits = (bits_),                                                \
                                   .sign_bits = 1,                                                 \
                                   .maximum_code = (1 << ((bits_)-1)) - 1,                         \
                                   .maximum = (1 << ((bits_)-1)) - 1,                              \
                                   .minimum_normal = NAN,                                          \
                                   .minimum_subnormal = NAN,                                       \
                                   .has_zero = true,                                               \
                                   .decode = decode,                                               \
                                   .encoders = encoders,                                           \
                                   .encoder_count = COUNT_OF(encoders),                            \
                                   .note = (note_)}
