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
    uint32_t bits = quant_select(byte == 0, 0x400000u, byte << FORMAT_F32_MANTISSA_BITS);
    return format_f32_value(quant_select(byte == MX_BYTE_NAN, 0x7FC00000u, bits));
}

// The smallest power of two not below a ratio.
FORMAT_INLINE uint32_t quant_mx_byte_rceil(float ratio)
{
    uint32_t u = format_f32_magnitude(ratio), mantissa = u & 0x7FFFFFu;
    uint32_t exponent = u >> FORMAT_F32_MANTISSA_BITS;
    uint32_t up = mantissa > quant_select(exponent == 0, 0x400000u, 0);
    return format_minimum(exponent + up, MX_BYTE_NAN);
}

FORMAT_INLINE uint32_t quant_mx_byte(MxMode mode, QuantCode code, float amax)
{
    const bool fp8 = code == CODE_E4M3;
    uint32_t u = format_f32_magnitude(amax);
    if (mode == MX_RCEIL)
        return quant_mx_byte_rceil(amax * (fp8 ? 1.0f / 448.0f : 1.0f / 6.0f));
    if (mode == MX_EVEN) // half a unit of the element's last mantissa bit
        u = format_minimum(u, FORMAT_F32_INFINITY) + (fp8 ? 1u << 19 : 1u << 21);
    uint32_t exponent = u >> FORMAT_F32_MANTISSA_BITS;
    uint32_t raised = exponent + (mode == MX_CEIL && (u & 0x7FFFFFu) != 0);
    uint32_t byte = raised - format_minimum(raised, fp8 ? 8 : 2);
    return quant_select(exponent >= MX_BYTE_NAN, MX_BYTE_NAN, byte);
}

// amax of a bf16 operand. Infinity and NaN, for which the reference has no byte, give FF.
FORMAT_INLINE uint32_t quant_mx_byte_ct(QuantCode code, float amax)
{
    uint32_t u = format_f32_magnitude(amax) >> 16;
    uint32_t exponent = ((u + 0x20u) & 0xFF80u) >> 7, less = code == CODE_E4M3 ? 8 : 2;
    uint32_t byte = exponent - format_minimum(exponent, less);
    return quant_select(u >= 0x7F80u, MX_BYTE_NAN, byte);
}

FORMAT_INLINE QuantBlock quant_mx_choose(const QuantContext *context, QuantStatistics s)
{
    const QuantRule *rule = &context->rule;
    QuantBlock block = {0, 0, 0, 0, 0};
    uint32_t byte = rule->ct ? quant_mx_byte_ct(rule->code, s.amax)
                             : quant_mx_byte(rule->mx_mode, rule->code, s.amax);
    block.scale_bits = byte;
    block.scale = quant_mx_power(byte);
    float inverse = quant_mx_power(254u - byte);
    block.multiplier = quant_select_f32(byte == MX_BYTE_NAN, quant_nan(), inverse);
    return block;
}

FORMAT_INLINE uint32_t quant_mx_encode(const QuantContext *context, const QuantBlock *block,
                                       float x)
{
    float q = x * block->multiplier;
    uint32_t code = quant_code(context->rule.code, q);
    bool drops_sign = context->rule.ct && context->rule.code == CODE_E2M1 && q == 0.0f;
    return quant_select(drops_sign, 0, code);
}

FORMAT_INLINE float quant_mx_decode(const QuantContext *context, const QuantBlock *block,
                                    uint32_t code)
{
    return quant_value(context->rule.code, code) * block->scale;
}
