// format_e5m2.c -- fp8 e5m2 as a row: torch's and CUDA's conventions.
//
// Sources: torch/headeronly/util/Float8_e5m2.h of PyTorch; cuda_fp8.hpp of CUDA 13.
#include "quant/format_e5m2.h"

#include "quant/format.h"

static uint32_t encode_torch_clamp(float value)
{
    return format_e5m2_encode_torch_clamp(value);
}

static uint32_t encode_torch(float value)
{
    return format_e5m2_encode_torch(value);
}

static uint32_t encode_satfinite(float value)
{
    return format_e5m2_encode_satfinite(value);
}

static uint32_t encode_nosat(float value)
{
    return format_e5m2_encode_nosat(value);
}

static float decode(uint32_t code)
{
    return format_e5m2_decode(code);
}

static const FormatEncoder encoders[] = {
    {.name = "torch_clamp",
     .encode = encode_torch_clamp,
     .overflow = FORMAT_LARGEST,
     .infinity = FORMAT_LARGEST,
     .nan_code = 0x7F,
     .nan_keeps_sign = true,
     .note = "torchao: clamp to +-57344, then torch's cast"},
    {.name = "torch",
     .encode = encode_torch,
     .overflow = FORMAT_INFINITY,
     .infinity = FORMAT_INFINITY,
     .nan_code = 0x7F,
     .nan_keeps_sign = true,
     .note = "torch's bare cast"},
    {.name = "cuda_satfinite",
     .encode = encode_satfinite,
     .overflow = FORMAT_LARGEST,
     .infinity = FORMAT_LARGEST,
     .nan_code = 0x7F,
     .note = "CUDA __NV_SATFINITE (its default), PTX cvt.satfinite, Triton"},
    {.name = "cuda_nosat",
     .encode = encode_nosat,
     .overflow = FORMAT_INFINITY,
     .infinity = FORMAT_INFINITY,
     .nan_code = 0x7F,
     .note = "CUDA __NV_NOSAT"},
};

const Format format_e5m2 = {
    .name = "e5m2",
    .bits = 8,
    .sign_bits = 1,
    .exponent_bits = 5,
    .mantissa_bits = 2,
    .bias = 15,
    .maximum_code = FORMAT_E5M2_MAXIMUM,
    .maximum = 57344,
    .minimum_normal = 0x1p-14,
    .minimum_subnormal = 0x1p-16,
    .has_zero = true,
    .has_infinity = true,
    .has_nan = true,
    .decode = decode,
    .encoders = encoders,
    .encoder_count = COUNT_OF(encoders),
    .note = "fp8 for gradients: the upper half of an f16",
};
