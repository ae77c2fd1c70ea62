// method_affine.h -- a scale and a zero point per block: four conventions.
//
// RANGE (int4, torchao's PLAIN through MSLK), all in f32:
//   s = max(max - min, amax_minimum) / 15     z = min + 8 s    code = rint((x - min) / s) - 8
//   value = code * s + z; s and z are stored rounded to bf16, codes were made with the f32 s.
// TILE (int4, tinygemm), every step rounded to the operand's type:
//   s = max((max - min) / 15, smallest normal)                 z = min + s * 8
//   code = rint((x - (z - s * 8)) / s), 0 .. 15                value = (code - 8) * s + z
// ZERO_POINT (int8 activations), in the operand's type, min and max include 0:
//   s = max((max - min) / 255, smallest normal)                z = -128 - rint(min / s)
//   code = rint(x * (1 / s)) + z                               value = (code - z) * s
// ZERO_POINT_CT (int4, compressed-tensors), in the operand's type, min and max include 0:
//   s = (max - min) / 15; z = rint(clamp(-8 - min / s, -8, 7)) with the s before a zero is replaced
//   code = rint(clamp(x / s + z, -8, 7))                       value = (code - z) * s
//
// A quotient that is NaN, as NaN and infinity in a block make it, has code 0 (and zero point 0).
// Sources: MSLK, mslk/quantize/shuffle.py; torchao, quant_primitives.py; compressed-tensors,
// quantization/utils/helpers.py and lifecycle/forward.py.
#pragma once

#include "quant/rule.h"

FORMAT_INLINE QuantBlock quant_range_choose(const QuantContext *context, QuantStatistics s)
{
    QuantBlock block = {0, 0, 0, 0, 0};
    block.scale = quant_at_least(s.maximum - s.minimum, context->rule.amax_minimum);
    block.scale *= 1.0f / 15.0f;
    block.zero = s.minimum;
    block.scale_bits = quant_bits(context->rule.scale_dtype, block.scale);
    block.zero_bits = quant_bits(context->rule.zero_dtype, s.minimum + 8.0f * block.scale);
    return block;
}

FORMAT_INLINE uint32_t quant_range_encode(const QuantBlock *block, float x)
{
    float q = (x - block->zero) / block->scale;
    return quant_select(quant_is_nan(q), 0, (quant_whole(q, 0.0f, 15.0f) - 8u) & 0xFu);
}

FORMAT_INLINE QuantBlock quant_tile_choose(const QuantContext *context, QuantStatistics s)
{
    DType t = context->input;
    QuantBlock block = {0, 0, 0, 0, 0};
    float range = quant_round(t, s.maximum - s.minimum);
    block.scale = quant_at_least(quant_round(t, range * (1.0f / 15.0f)), 0x1p-126f);
    float middle = quant_round(t, block.scale * 8.0f);
    float zero = quant_round(t, s.minimum + middle);
    block.zero = quant_round(t, zero - middle);
    block.scale_bits = quant_bits(context->rule.scale_dtype, block.scale);
    block.zero_bits = quant_bits(context->rule.zero_dtype, zero);
    return block;
}

FORMAT_INLINE uint32_t quant_tile_encode(const QuantContext *context, const QuantBlock *block,
                                         float x)
{
    float above = quant_round(context->input, x - block->zero);
    return quant_whole(quant_round(context->input, above / block->scale), 0.0f, 15.0f);
}

FORMAT_INLINE QuantBlock quant_zero_point_choose(const QuantContext *context, QuantStatistics s)
{
    DType t = context->input;
    QuantBlock block = {0, 0, 0, 0, 0};
    float low = quant_select_f32(s.minimum > 0.0f, 0.0f, s.minimum);
    float high = quant_at_least(s.maximum, 0.0f);
    float range = quant_round(t, high - low);
    block.scale = quant_at_least(quant_round(t, range * (1.0f / 255.0f)), 0x1p-126f);
    block.multiplier = quant_round(t, 1.0f / block.scale);
    float zero = -128.0f - quant_rint(quant_round(t, low / block.scale));
    zero = quant_round(t, zero);
    block.zero = quant_select_f32(quant_is_nan(zero), 0.0f, quant_clamp(zero, -128.0f, 127.0f));
    block.scale_bits = quant_bits(context->rule.scale_dtype, block.scale);
    block.zero_bits = quant_whole(block.zero, -128.0f, 127.0f) & 0xFFu;
    return block;
}

FORMAT_INLINE uint32_t quant_zero_point_encode(const QuantContext *context, const QuantBlock *block,
                                               float x)
{
    float q = quant_rint(quant_round(context->input, x * block->multiplier));
    return quant_whole(q + block->zero, -128.0f, 127.0f) & 0xFFu;
}

FORMAT_INLINE QuantBlock quant_zero_point_ct_choose(const QuantContext *context, QuantStatistics s)
{
    DType t = context->input;
    QuantBlock block = {0, 0, 0, 0, 0};
    float low = quant_select_f32(s.minimum > 0.0f, 0.0f, s.minimum);
    float high = quant_at_least(s.maximum, 0.0f);
    float scale = quant_round(t, quant_round(t, high - low) * (1.0f / 15.0f));
    float zero = quant_round(t, -8.0f - quant_round(t, low / scale));
    float whole = quant_rint(quant_clamp(zero, -8.0f, 7.0f));
    zero = quant_select_f32(quant_is_nan(zero), 0.0f, whole);
    block.scale = quant_select_f32(scale == 0.0f, 0x1p-7f, scale);
    block.zero = zero;
    block.scale_bits = quant_bits(context->rule.scale_dtype, block.scale);
    block.zero_bits = quant_whole(zero, -8.0f, 7.0f) & 0xFFu;
    return block;
}

FORMAT_INLINE uint32_t quant_zero_point_ct_encode(const QuantContext *context,
                                                  const QuantBlock *block, float x)
{
    float q = quant_round(context->input, x / block->scale);
    return quant_whole(quant_round(context->input, q + block->zero), -8.0f, 7.0f) & 0xFu;
}

// block: as read back, scale and zero are the stored ones.
FORMAT_INLINE float quant_range_decode(const QuantBlock *block, uint32_t code)
{
    return quant_of_int4(code) * block->scale + block->zero;
}

FORMAT_INLINE float quant_tile_decode(const QuantBlock *block, uint32_t code)
{
    return ((float)(code & 15u) - 8.0f) * block->scale + block->zero;
}

FORMAT_INLINE float quant_zero_point_decode(const QuantContext *context, const QuantBlock *block,
                                            uint32_t code)
{
    return (quant_value(context->rule.code, code) - block->zero) * block->scale;
}
