// method_mx.h -- blocks of 32 under a power of two: mxfp8 and mxfp4.
//
// The scale is 2^(byte - 127). With e the exponent of amax, P that of the largest element (8 for
// e4m3, 2 for e2m1) and M the largest element (448, 6):
//   FLOOR  e - P: may overflow the elements, which saturate
//   CEIL   e - P, plus 1 if amax is no power of two
//   EVEN   amax rounded to the element's mantissa first, then FLOOR
//   RCEIL  amax / M rounded up to a power of two
//   compressed-tensors: amax rounded to one mantissa bit (in bf16), then e - P
//   code = round(x * 2^(127 - byte))             value = code * 2^(byte - 127)
//
// A block of zeros has byte 0 and codes 0. NaN or infinity: byte FF, every code of the block NaN
// (e4m3 7F, e2m1 3). Sources: OCP Microscaling Formats 1.0, 6.3; torchao,
// prototype/mx_formats/mx_tensor.py; compressed-tensors, compressors/mxfp.
#pragma once

#include "quant/rule.h"

enum { MX_BYTE_NAN = 0xFF };

// 2^(byte - 127); FF is NaN.
FORMAT_INLINE float quant_mx_power(uint32_t byte)
{
    uint32_t bits = byte == 0 ? 0x400000u : byte << FORMAT_F32_MANTISSA_BITS;
    return byte == MX_BYTE_NAN ? quant_nan() : format_f32_value(bits);
}

FORMAT_INLINE uint32_t quant_mx_clamp(int32_t exponent)
{
    exponent = exponent < 0 ? 0 : exponent;
    return exponent > MX_BYTE_NAN ? MX_BYTE_NAN : (uint32_t)exponent;
}

FORMAT_INLINE uint32_t quant_mx_byte(MxMode mode, QuantCode code, float amax)
{
    const int32_t largest_exponent = code == CODE_E4M3 ? 8 : 2;
    uint32_t u = format_f32_magnitude(amax);
    if (mode == MX_RCEIL) {
        float ratio = amax * (code == CODE_E4M3 ? 1.0f / 448.0f : 1.0f / 6.0f);
        u = format_f32_magnitude(ratio);
        uint32_t exponent = u >> FORMAT_F32_MANTISSA_BITS, mantissa = u & 0x7FFFFFu;
        uint32_t up = exponent == 0 ? mantissa > 0x400000u : mantissa != 0;
        return exponent == 0xFFu ? MX_BYTE_NAN : exponent + up;
    }
    if (mode == MX_EVEN) // half a unit of the element's last mantissa bit
        u = u < FORMAT_F32_INFINITY ? u + (1u << (code == CODE_E4M3 ? 19 : 21)) : u;
    int32_t exponent = (int32_t)(u >> FORMAT_F32_MANTISSA_BITS);
    int32_t up = mode == MX_CEIL && (u & 0x7FFFFFu) != 0;
    return exponent == 0xFF ? MX_BYTE_NAN : quant_mx_clamp(exponent + up - largest_exponent);
}

// amax of a bf16 operand. Infinity and NaN, for which the reference has no byte, give FF.
FORMAT_INLINE uint32_t quant_mx_byte_ct(QuantCode code, float amax)
{
    uint32_t u = format_f32_magnitude(amax) >> 16;
    int32_t exponent = (int32_t)(((u + 0x20u) & 0xFF80u) >> 7) - (code == CODE_E4M3 ? 8 : 2);
    exponent = exponent < 0 ? 0 : exponent;
    uint32_t byte = exponent > 0xFE ? 0xFEu : (uint32_t)exponent;
    return u >= 0x7F80u ? MX_BYTE_NAN : byte;
}

FORMAT_INLINE QuantBlock quant_mx_choose(const QuantContext *context, QuantStatistics s)
{
    const QuantRule *rule = &context->rule;
    QuantBlock block = {0};
    uint32_t byte = rule->ct ? quant_mx_byte_ct(rule->code, s.amax)
                             : quant_mx_byte(rule->mx_mode, rule->code, s.amax);
    block.scale_bits = byte;
    block.scale = quant_mx_power(byte);
    block.multiplier = byte == MX_BYTE_NAN ? quant_nan() : quant_mx_power(254u - byte);
    return block;
}

FORMAT_INLINE uint32_t quant_mx_encode(const QuantContext *context, const QuantBlock *block,
                                       float x)
{
    float q = x * block->multiplier;
    uint32_t code = quant_code(context->rule.code, q);
    bool drops_sign = context->rule.ct && context->rule.code == CODE_E2M1 && q == 0.0f;
    return drops_sign ? 0 : code;
}

FORMAT_INLINE float quant_mx_decode(const QuantContext *context, const QuantBlock *block,
                                    uint32_t code)
{
    return quant_value(context->rule.code, code) * block->scale;
}
