// format_e4m3fn.c -- fp8 e4m3fn as a row: torch's and CUDA's conventions.
//
// Sources: torch/headeronly/util/Float8_e4m3fn.h of PyTorch; cuda_fp8.hpp of CUDA 13.
#include "quant/format_e4m3fn.h"

#include "quant/format.h"

static uint32_t encode_torch_clamp(float value)
{
    return format_e4m3fn_encode_torch_clamp(value);
}

static uint32_t encode_torch(float value)
{
    return format_e4m3fn_encode_torch(value);
}

static uint32_t encode_satfinite(float value)
{
    return format_e4m3fn_encode_satfinite(value);
}

static uint32_t encode_nosat(float value)
{
    return format_e4m3fn_encode_nosat(value);
}

static float decode(uint32_t code)
{
    return format_e4m3fn_decode(code);
}

static const FormatEncoder encoders[] = {
    {.name = "torch_clamp",
     .encode = encode_torch_clamp,
     .overflow = FORMAT_LARGEST,
     .infinity = FORMAT_LARGEST,
     .nan_code = 0x7F,
     .nan_keeps_sign = true,
     .note = "torchao: clamp to +-448, then torch's cast; finite values of torch >= 2.13 too"},
    {.name = "torch",
     .encode = encode_torch,
     .overflow = FORMAT_NAN,
     .infinity = FORMAT_NAN,
     .nan_code = 0x7F,
     .nan_keeps_sign = true,
     .note = "torch's bare cast before 2.13"},
    {.name = "cuda_satfinite",
     .encode = encode_satfinite,
     .overflow = FORMAT_LARGEST,
     .infinity = FORMAT_LARGEST,
     .nan_code = 0x7F,
     .note = "CUDA __NV_SATFINITE (its default), PTX cvt.satfinite, Triton"},
    {.name = "cuda_nosat",
     .encode = encode_nosat,
     .overflow = FORMAT_NAN,
     .infinity = FORMAT_NAN,
     .nan_code = 0x7F,
     .note = "CUDA __NV_NOSAT"},
};

const Format format_e4m3fn = {
    .name = "e4m3fn",
    .bits = 8,
    .sign_bits = 1,
    .exponent_bits = 4,
    .mantissa_bits = 3,
    .bias = 7,
    .maximum_code = FORMAT_E4M3FN_MAXIMUM,
    .maximum = 448,
    .minimum_normal = 0x1p-6,
    .minimum_subnormal = 0x1p-9,
    .has_zero = true,
    .has_nan = true,
    .decode = decode,
    .encoders = encoders,
    .encoder_count = COUNT_OF(encoders),
    .note = "fp8 for weights and activations; NaN is 7F and FF only",
};
