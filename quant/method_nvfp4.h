// method_nvfp4.h -- e2m1 codes, an e4m3 scale for 16 of them, and usually one f32 for the matrix.
//
// torchao, two levels: T = amax of the matrix / 2688
//   s8 = e4m3(clamp((amax16 / 6) / T, 2^-6, 448))    code = e2m1(x * ((1 / T) / s8))
//   value = code * (T * s8)
// one level: s8 = e4m3(clamp(amax16 / 6, 2^-6, 448)) code = e2m1(x * (1 / s8))
//   value = code * s8
// compressed-tensors: G = bf16(bf16(1 / amax of the matrix) * 2688)
//   s8 = e4m3(clamp(bf16(amax16 / 6) * G, -448, 448)), 0 becomes 0.125
//   code = e2m1(x / (s8 / G)), +-0 without sign      value = code * (s8 / G)
//
// A matrix of zeros would make torchao's scales NaN; here T = 1 (G = 1), scales are the smallest
// and codes 0. NaN in a block: its scale is NaN (7F), its codes 3; NaN or infinity anywhere in the
// matrix makes T so. Sources: torchao, prototype/mx_formats/nvfp4_tensor.py; compressed-tensors,
// compressors/nvfp4.
#pragma once

#include "quant/rule.h"

// What is stored for the matrix: T or G.
FORMAT_INLINE float quant_nvfp4_tensor_scale(float amax)
{
    float scale = amax * (1.0f / 2688.0f);
    return scale == 0.0f ? 1.0f : scale == scale ? scale : quant_nan();
}

FORMAT_INLINE float quant_nvfp4_ct_tensor_scale(DType input, float amax)
{
    float inverse = quant_round(input, 1.0f / amax);
    float scale = quant_round(input, inverse * 2688.0f);
    return amax == 0.0f ? 1.0f : scale == scale ? scale : quant_nan();
}

FORMAT_INLINE QuantBlock quant_nvfp4_choose(const QuantContext *context, QuantStatistics s)
{
    QuantBlock block = {0, 0, 0, 0, 0};
    float small = s.amax * (1.0f / 6.0f);
    float scale = context->rule.two_level ? small / context->tensor_scale : small;
    block.scale_bits = quant_e4m3(quant_clamp(scale, 0x1p-6f, 448.0f));
    float s8 = quant_of_e4m3(block.scale_bits);
    float above = context->rule.two_level ? 1.0f / context->tensor_scale : 1.0f;
    block.scale = s8;
    block.multiplier = above / s8;
    return block;
}

FORMAT_INLINE uint32_t quant_nvfp4_encode(const QuantBlock *block, float x)
{
    return quant_e2m1(x * block->multiplier); // which is the clamp to +-6, too
}

FORMAT_INLINE QuantBlock quant_nvfp4_ct_choose(const QuantContext *context, QuantStatistics s)
{
    QuantBlock block = {0, 0, 0, 0, 0};
    float small = quant_round(context->input, s.amax * (1.0f / 6.0f));
    float scale = quant_clamp(small * context->tensor_scale, -448.0f, 448.0f);
    block.scale_bits = quant_e4m3(scale);
    block.scale_bits = quant_select(block.scale_bits == 0, 0x20u, block.scale_bits);
    block.scale = quant_of_e4m3(block.scale_bits) / context->tensor_scale;
    return block;
}

FORMAT_INLINE uint32_t quant_nvfp4_ct_encode(const QuantBlock *block, float x)
{
    float q = x / block->scale;
    return quant_select(q == 0.0f, 0, quant_e2m1(q));
}

// block->scale: the e4m3 scale as read back.
FORMAT_INLINE float quant_nvfp4_decode(const QuantContext *context, const QuantBlock *block,
                                       uint32_t code)
{
    float scale = context->rule.two_level ? context->tensor_scale * block->scale : block->scale;
    return format_e2m1_decode(code) * scale;
}

FORMAT_INLINE float quant_nvfp4_ct_decode(const QuantContext *context, const QuantBlock *block,
                                          uint32_t code)
{
    return format_e2m1_decode(code) * (block->scale / context->tensor_scale);
}
