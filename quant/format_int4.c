// format_int4.c -- int4 as a row: a whole number, two's complement.
//
// Source: torchao's quant_primitives.py: round half to even, clamp to the range, convert. NaN
// passes the clamp, and the conversion makes it 0.
#include "quant/format.h"
#include "quant/format_bits.h"

#include <math.h>

static uint32_t encode_torchao(float value)
{
    return (uint32_t)format_round_integer(value, 7) & 0xFu;
}

static float decode(uint32_t code)
{
    int32_t low = (int32_t)(code & 0xFu);
    return (float)(low > 7 ? low - 16 : low);
}

static const FormatEncoder encoders[] = {
    {.name = "torchao",
     .encode = encode_torchao,
     .overflow = FORMAT_LARGEST,
     .infinity = FORMAT_LARGEST,
     .nan_code = 0,
     .note = "clamp(round(x), -8, 7)"},
};

const Format format_int4 = {
    .name = "int4",
    .bits = 4,
    .sign_bits = 1,
    .maximum_code = 7,
    .maximum = 7,
    .minimum_normal = NAN,
    .minimum_subnormal = NAN,
    .has_zero = true,
    .decode = decode,
    .encoders = encoders,
    .encoder_count = COUNT_OF(encoders),
    .note = "weights; two to a byte or eight to a word, sign convention by layout",
};
