// format_e2m1.c -- fp4 e2m1 as a row: torchao's and CUDA's conventions.
//
// Sources: prototype/custom_fp_utils.py of torchao; cuda_fp4.hpp of CUDA 13.
#include "quant/format_e2m1.h"

#include "quant/format.h"

static uint32_t encode_torchao(float value)
{
    return format_e2m1_encode_torchao(value);
}

static uint32_t encode_cuda(float value)
{
    return format_e2m1_encode_cuda(value);
}

static float decode(uint32_t code)
{
    return format_e2m1_decode(code);
}

static const FormatEncoder encoders[] = {
    {.name = "torchao",
     .encode = encode_torchao,
     .overflow = FORMAT_LARGEST,
     .infinity = FORMAT_LARGEST,
     .nan_code = 3,
     .nan_keeps_sign = true,
     .note = "torchao's eager cast: NaN is +-1.5"},
    {.name = "cuda",
     .encode = encode_cuda,
     .overflow = FORMAT_LARGEST,
     .infinity = FORMAT_LARGEST,
     .nan_code = 7,
     .note = "CUDA, always saturating: NaN is +6"},
};

const Format format_e2m1 = {
    .name = "e2m1",
    .bits = 4,
    .sign_bits = 1,
    .exponent_bits = 2,
    .mantissa_bits = 1,
    .bias = 1,
    .maximum_code = FORMAT_E2M1_MAXIMUM,
    .maximum = 6,
    .minimum_normal = 1,
    .minimum_subnormal = 0.5,
    .has_zero = true,
    .decode = decode,
    .encoders = encoders,
    .encoder_count = COUNT_OF(encoders),
    .note = "fp4 of mxfp4 and nvfp4; two to a byte, the even column in the low half",
};
