// format_f16.c -- IEEE binary16 as a row.
//
// Source: IEEE 754-2019, 3.6. What becomes of a NaN's payload is the machine's choice: x86 (F16C,
// which torch uses there) keeps its leading bits, CUDA has one NaN.
#include "harness/dtype.h"
#include "quant/format.h"
#include "quant/format_bits.h"

enum { INFINITY_CODE = 0x7C00, QUIET_NAN = 0x7E00, CUDA_NAN = 0x7FFF };

// All but NaN.
static uint32_t encode_number(float value)
{
    uint32_t code = format_round_even(format_f32_magnitude(value), 15, 10);
    return format_minimum(code, INFINITY_CODE) | (format_f32_bits(value) >> 16 & 0x8000u);
}

static uint32_t encode_torch(float value)
{
    uint32_t bits = format_f32_bits(value), magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > FORMAT_F32_INFINITY)
        return QUIET_NAN | (bits >> 16 & 0x8000u) | (magnitude >> 13 & 0x3FFu);
    return encode_number(value);
}

static uint32_t encode_cuda(float value)
{
    return format_f32_magnitude(value) > FORMAT_F32_INFINITY ? CUDA_NAN : encode_number(value);
}

static float decode(uint32_t code)
{
    return f32_from_f16((uint16_t)code);
}

static const FormatEncoder encoders[] = {
    {.name = "torch",
     .encode = encode_torch,
     .overflow = FORMAT_INFINITY,
     .infinity = FORMAT_INFINITY,
     .nan_code = QUIET_NAN,
     .nan_keeps_sign = true,
     .nan_keeps_payload = true,
     .note = "torch on x86, F16C"},
    {.name = "cuda",
     .encode = encode_cuda,
     .overflow = FORMAT_INFINITY,
     .infinity = FORMAT_INFINITY,
     .nan_code = CUDA_NAN,
     .note = "CUDA __float2half_rn"},
};

const Format format_f16 = {
    .name = "f16",
    .bits = 16,
    .sign_bits = 1,
    .exponent_bits = 5,
    .mantissa_bits = 10,
    .bias = 15,
    .maximum_code = 0x7BFF,
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
