// format_f16.c -- IEEE binary16 in the table.
//
// Source: IEEE 754-2019, 3.6. What becomes of a NaN's payload is the machine's choice: x86 (F16C,
// which torch uses there) keeps its leading bits, CUDA has one NaN.
#include "harness/dtype.h"
#include "quant/format_float.h"

// clang-format off
//                         bits exponent mantissa bias largest
#define FORMAT_F16_NUMBERS 16,  5,       10,      15,  0x7BFF
#define FORMAT_F16_ENCODERS(ROW) \
    ROW(f16, torch, FORMAT_INFINITY, 0x7E00, FORMAT_NAN_KEEPS_PAYLOAD, \
        "torch on x86, F16C") \
    ROW(f16, cuda, FORMAT_INFINITY, 0x7FFF, FORMAT_NAN_KEEPS_NOTHING, \
        "CUDA __float2half_rn")
// clang-format on

FORMAT_FLOAT(f16, FORMAT_F16_NUMBERS)
FORMAT_F16_ENCODERS(FORMAT_FLOAT_ENCODER)

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
