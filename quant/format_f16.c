// format_f16.c -- IEEE binary16 in the table: torch's and CUDA's conventions.
//
// Sources: see format_f16.h.
#include "quant/format_f16.h"

#include "harness/dtype.h"

// A signalling NaN stays one.
static float decode(uint32_t code)
{
    return f32_from_f16((uint16_t)code);
}

static const FormatEncoder encoders[] = {FORMAT_F16_ENCODERS(FORMAT_FLOAT_ROW)};

const Format format_f16 = {
    .name = "f16",
    FORMAT_FLOAT_MEMBERS(FORMAT_F16_NUMBERS),
    .maximum = 65504,
    .minimum_normal = 0x1p-14,
    .minimum_subnormal = 0x1p-24,
    .has_zero = true,
    .has_infinity = true,
    .has_nan = true,
    .decode = decode,
    .encoders = encoders,
    .encoder_count = COUNT_OF(encoders),
    .note = "IEEE binary16",
};
