// variant.h -- the choices of a rule that every copy of the casts' loops has as constants, and
// one block and one element under them: shared by the CPU's loops and the CUDA kernels.
#pragma once

#include "kernels/cast.h"
#include "quant/method_affine.h"
#include "quant/method_mx.h"
#include "quant/method_nvfp4.h"
#include "quant/method_symmetric.h"

typedef struct CastVariant {
    QuantMethod method;
    QuantCode code;
    CodeLayout layout;
    QuantQuotient quotient; // of the method SYMMETRIC
    bool ranged;            // needs minimum and maximum
} CastVariant;

// X(name, method, code, layout, quotient, ranged), in families that are compiled apart.
#define CAST_VARIANTS_FP8(X)                                                                       \
    X(fp8_divide, QUANT_SYMMETRIC, CODE_E4M3, CODES_BYTES, QUOTIENT_DIVIDE, false)                 \
    X(fp8_multiply, QUANT_SYMMETRIC, CODE_E4M3, CODES_BYTES, QUOTIENT_RECIPROCAL, false)           \
    X(fp8_input, QUANT_SYMMETRIC, CODE_E4M3, CODES_BYTES, QUOTIENT_DIVIDE_INPUT, false)            \
    X(mxfp8, QUANT_MX, CODE_E4M3, CODES_BYTES, QUOTIENT_DIVIDE, false)
#define CAST_VARIANTS_FP4(X)                                                                       \
    X(mxfp4, QUANT_MX, CODE_E2M1, CODES_PAIRS, QUOTIENT_DIVIDE, false)                             \
    X(nvfp4, QUANT_NVFP4, CODE_E2M1, CODES_PAIRS, QUOTIENT_DIVIDE, false)                          \
    X(nvfp4_ct, QUANT_NVFP4_CT, CODE_E2M1, CODES_PAIRS, QUOTIENT_DIVIDE, false)
#define CAST_VARIANTS_INT8(X)                                                                      \
    X(int8_multiply, QUANT_SYMMETRIC, CODE_INT8, CODES_BYTES, QUOTIENT_RECIPROCAL, false)          \
    X(int8_input, QUANT_SYMMETRIC, CODE_INT8, CODES_BYTES, QUOTIENT_DIVIDE_INPUT, false)           \
    X(zero_point, QUANT_ZERO_POINT, CODE_INT8, CODES_BYTES, QUOTIENT_DIVIDE, true)
#define CAST_VARIANTS_INT4(X)                                                                      \
    X(int4_multiply, QUANT_SYMMETRIC, CODE_INT4, CODES_PAIRS, QUOTIENT_RECIPROCAL, false)          \
    X(int4_divide, QUANT_SYMMETRIC, CODE_INT4, CODES_PAIRS, QUOTIENT_DIVIDE, false)                \
    X(int4_input, QUANT_SYMMETRIC, CODE_INT4, CODES_BYTES, QUOTIENT_DIVIDE_INPUT, false)           \
    X(int4_packed, QUANT_SYMMETRIC, CODE_INT4, CODES_PAIRS, QUOTIENT_DIVIDE_INPUT, false)          \
    X(int4_inputs, QUANT_SYMMETRIC, CODE_INT4, CODES_BYTES, QUOTIENT_RECIPROCAL_INPUT, false)      \
    X(range, QUANT_RANGE, CODE_INT4, CODES_PAIRS, QUOTIENT_DIVIDE, true)                           \
    X(tile, QUANT_TILE, CODE_INT4, CODES_TILED, QUOTIENT_DIVIDE, true)                             \
    X(zero_point_ct, QUANT_ZERO_POINT_CT, CODE_INT4, CODES_BYTES, QUOTIENT_DIVIDE, true)           \
    X(zero_point_packed, QUANT_ZERO_POINT_CT, CODE_INT4, CODES_PAIRS, QUOTIENT_DIVIDE, true)
#define CAST_VARIANTS(X)                                                                           \
    CAST_VARIANTS_FP8(X) CAST_VARIANTS_FP4(X) CAST_VARIANTS_INT8(X) CAST_VARIANTS_INT4(X)

#define CAST_VARIANT_KEY(name, ...) {__VA_ARGS__},
static const CastVariant cast_variants[] = {CAST_VARIANTS(CAST_VARIANT_KEY)};

// Local. Which variant the operand is; -1: none.
static inline int cast_variant_of(const QTensor *to)
{
    const QuantRule *rule = &to->rule;
    for (int i = 0; i < (int)COUNT_OF(cast_variants); i++) {
        const CastVariant *v = &cast_variants[i];
        bool quotient_matters = v->method == QUANT_SYMMETRIC;
        if (v->method == rule->method && v->code == rule->code && v->layout == to->code_layout &&
            (!quotient_matters || v->quotient == rule->quotient))
            return i;
    }
    return -1;
}

FORMAT_INLINE QuantBlock cast_choose(const QuantContext *context, QuantStatistics s)
{
    switch (context->rule.method) { // a constant in every copy
    case QUANT_SYMMETRIC:
        return quant_symmetric_choose(context, s);
    case QUANT_RANGE:
        return quant_range_choose(context, s);
    case QUANT_TILE:
        return quant_tile_choose(context, s);
    case QUANT_ZERO_POINT:
        return quant_zero_point_choose(context, s);
    case QUANT_ZERO_POINT_CT:
        return quant_zero_point_ct_choose(context, s);
    case QUANT_MX:
        return quant_mx_choose(context, s);
    case QUANT_NVFP4:
        return quant_nvfp4_choose(context, s);
    default:
        return quant_nvfp4_ct_choose(context, s);
    }
}

FORMAT_INLINE uint32_t cast_encode(const QuantContext *context, const QuantBlock *block, float x)
{
    switch (context->rule.method) {
    case QUANT_SYMMETRIC:
        return quant_symmetric_encode(context, block, x);
    case QUANT_RANGE:
        return quant_range_encode(block, x);
    case QUANT_TILE:
        return quant_tile_encode(context, block, x);
    case QUANT_ZERO_POINT:
        return quant_zero_point_encode(context, block, x);
    case QUANT_ZERO_POINT_CT:
        return quant_zero_point_ct_encode(context, block, x);
    case QUANT_MX:
        return quant_mx_encode(context, block, x);
    case QUANT_NVFP4:
        return quant_nvfp4_encode(block, x);
    default:
        return quant_nvfp4_ct_encode(block, x);
    }
}

// As a byte of its own holds it: int4 keeps its sign.
FORMAT_INLINE uint32_t cast_byte(const QuantRule *rule, uint32_t bits)
{
    bool extends = rule->code == CODE_INT4 && rule->code_layout == CODES_BYTES;
    return extends ? ((bits ^ 8u) - 8u) & 0xFFu : bits;
}

// Which of a block's numbers the elements' arithmetic reads.
FORMAT_INLINE bool cast_divides(const QuantRule *rule)
{
    bool symmetric = rule->quotient == QUOTIENT_DIVIDE || rule->quotient == QUOTIENT_DIVIDE_INPUT;
    return rule->method == QUANT_SYMMETRIC
               ? symmetric
               : rule->method == QUANT_RANGE || rule->method == QUANT_TILE ||
                     rule->method == QUANT_ZERO_POINT_CT || rule->method == QUANT_NVFP4_CT;
}

FORMAT_INLINE bool cast_shifts(const QuantRule *rule)
{
    return rule->method == QUANT_RANGE || rule->method == QUANT_TILE ||
           rule->method == QUANT_ZERO_POINT || rule->method == QUANT_ZERO_POINT_CT;
}
