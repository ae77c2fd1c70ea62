// format_bf16.c -- bf16 as a row; the arithmetic is harness/bf16.h.
//
// Sources: torch/headeronly/util/BFloat16.h of PyTorch; cuda_bf16.hpp of CUDA 13.
#include "harness/bf16.h"

#include "quant/format.h"
#include "quant/format_bits.h"

enum { CUDA_NAN = 0x7FFF };

static uint32_t encode_torch(float value)
{
    return bf16_bits_from_f32(value);
}

static uint32_t encode_cuda(float value)
{
    bool is_nan = format_f32_magnitude(value) > FORMAT_F32_INFINITY;
    return is_nan ? CUDA_NAN : bf16_bits_from_f32(value);
}

static float decode(uint32_t code)
{
    return f32_from_bf16_bits((uint16_t)code);
}

static const FormatEncoder encoders[] = {
    {.name = "torch",
     .encode = encode_torch,
     .overflow = FORMAT_INFINITY,
     .infinity = FORMAT_INFINITY,
     .nan_code = 0x7FC0,
     .note = "torch's scalar rule; its AVX-512 loop turns every NaN into FFFF instead"},
    {.name = "cuda",
     .encode = encode_cuda,
     .overflow = FORMAT_INFINITY,
     .infinity = FORMAT_INFINITY,
     .nan_code = CUDA_NAN,
     .note = "CUDA __float2bfloat16_rn"},
};

const Format format_bf16 = {
    .name = "bf16",
    .bits = 16,
    .sign_bits = 1,
    .exponent_bits = 8,
    .mantissa_bits = 7,
    .bias = 127,
    .maximum_code = 0x7F7F,
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
