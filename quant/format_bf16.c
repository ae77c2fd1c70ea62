// format_bf16.c -- bf16 in the table: the upper half of an f32.
//
// Its torch row is harness/bf16.h once more, as numbers; the test holds them together. Sources:
// torch/headeronly/util/BFloat16.h of PyTorch; cuda_bf16.hpp of CUDA 13.
#include "harness/bf16.h"
#include "quant/format_float.h"

// clang-format off
//                          bits exponent mantissa bias largest
#define FORMAT_BF16_NUMBERS 16,  8,       7,       127, 0x7F7F
#define FORMAT_BF16_ENCODERS(ROW) \
    ROW(bf16, torch, FORMAT_INFINITY, 0x7FC0, FORMAT_NAN_KEEPS_NOTHING, \
        "torch's scalar rule; its AVX-512 loop turns every NaN into FFFF instead") \
    ROW(bf16, cuda, FORMAT_INFINITY, 0x7FFF, FORMAT_NAN_KEEPS_NOTHING, \
        "CUDA __float2bfloat16_rn")
// clang-format on

FORMAT_FLOAT(bf16, FORMAT_BF16_NUMBERS)
FORMAT_BF16_ENCODERS(FORMAT_FLOAT_ENCODER)

// A signalling NaN stays one.
static float decode(uint32_t code)
{
    return f32_from_bf16_bits((uint16_t)code);
}

static const FormatEncoder encoders[] = {FORMAT_BF16_ENCODERS(FORMAT_FLOAT_ROW)};

const Format format_bf16 = {
    .name = "bf16",
    FORMAT_FLOAT_MEMBERS(FORMAT_BF16_NUMBERS),
    .maximum = 0x1.FEp127,
    .minimum_normal = 0x1p-126,
    .minimum_subnormal = 0x1p-133,
    .has_zero = true,
    .has_infinity = true,
    .has_nan = true,
    .decode = decode,
    .encoders = encoders,
    .encoder_count = COUNT_OF(encoders),
    .note = "the upper half of an f32",
};
