// method_symmetric.h -- one scale per block, zero is zero: fp8, int8 and int4 weights and
// activations.
//
//   scale = max(amax, amax_minimum) / divisor, rounded to the operand's type or kept in f32
//   code  = round(x / scale)          value = code * scale
//
// A block of zeros has scale 0 unless the rule has a minimum, and 0 / 0 is NaN: code 7F in e4m3.
// An infinity makes the scale infinite: finite elements become 0, infinite ones NaN (7F; 0 in whole
// numbers). Sources: torchao, quant_primitives.py and float8_tensor.py; DeepSeek-V3's kernels;
// compressed-tensors, quantization/utils/helpers.py.
#pragma once

#include "quant/rule.h"

FORMAT_INLINE QuantBlock quant_symmetric_choose(const QuantContext *context, QuantStatistics s)
{
    const QuantRule *rule = &context->rule;
    DType input = (DType)quant_select(rule->in_f32, DTYPE_F32, context->input);
    DType rounding = (DType)quant_select(rule->scale_in_f32, DTYPE_F32, input);
    QuantBlock block = {0, 0, 0, 0, 0};
    float amax = quant_at_least(s.amax, quant_round(input, rule->amax_minimum));
    float scale = quant_round(rounding, amax * (1.0f / rule->divisor));
    scale = quant_at_least(scale, quant_round(rounding, rule->scale_minimum));
    scale = quant_select_f32(scale == 0.0f, rule->scale_of_zero, scale);
    scale = quant_select_f32(quant_is_nan(scale), quant_nan(), scale);
    block.scale = scale;
    block.multiplier = 1.0f / scale;
    if (rule->quotient == QUOTIENT_RECIPROCAL_INPUT)
        block.multiplier = quant_round(input, block.multiplier);
    block.scale_bits = quant_bits(rule->scale_dtype, scale);
    return block;
}

FORMAT_INLINE float quant_symmetric_quotient(const QuantContext *context, const QuantBlock *block,
                                             float x)
{
    QuantQuotient quotient = context->rule.quotient;
    bool divides = quotient == QUOTIENT_DIVIDE || quotient == QUOTIENT_DIVIDE_INPUT;
    float q = divides ? x / block->scale : x * block->multiplier;
    bool in_f32 = quotient == QUOTIENT_DIVIDE || quotient == QUOTIENT_RECIPROCAL;
    return in_f32 ? q : quant_round(context->input, q);
}

FORMAT_INLINE uint32_t quant_symmetric_encode(const QuantContext *context, const QuantBlock *block,
                                              float x)
{
    return quant_code(context->rule.code, quant_symmetric_quotient(context, block, x));
}

FORMAT_INLINE float quant_symmetric_decode(const QuantContext *context, const QuantBlock *block,
                                           uint32_t code)
{
    return quant_value(context->rule.code, code) * block->scale;
}
