// rule.h -- how one operand becomes codes and scales: everything that can differ, as one plain
// struct, and the arithmetic of all methods inline, for the CPU and for CUDA kernels.
//
// A tensor is cut into blocks. Of each block a method sees three numbers (QuantStatistics), chooses
// from them what is stored for the block and what its elements are divided by (QuantBlock), and
// then turns each element into a code, and each code back into a value. Every step is rounded as
// eager torch rounds it: to the type of the operation's result. Divisions by a constant are
// multiplications by its rounded reciprocal, which is what torch does on CUDA, and what we do on
// every device, so that all give the same bytes. Whoever compiles this must not fuse a
// multiplication with an addition; the few places where that could happen are exact.
#pragma once

#include "harness/bf16.h"
#include "harness/dtype.h"
#include "quant/format_e2m1.h"
#include "quant/format_e4m3fn.h"

// Families of arithmetic; their headers (method_<family>.h) say the formulas.
typedef enum QuantMethod {
    QUANT_NONE,          // stays in its own type
    QUANT_SYMMETRIC,     // scale = amax / divisor
    QUANT_RANGE,         // int4 over [min, max], offset in units of value, all in f32
    QUANT_TILE,          // the same with every step rounded to the operand's type (tinygemm)
    QUANT_ZERO_POINT,    // int8 over [min, max] with 0 in it, whole zero point (activations)
    QUANT_ZERO_POINT_CT, // int4 likewise, as compressed-tensors has it
    QUANT_MX,            // power-of-two scales
    QUANT_NVFP4,         // e4m3 scales, with or without a second scale over the tensor
    QUANT_NVFP4_CT,      // the second scale inverted, as compressed-tensors has it
    QUANT_METHODS,
} QuantMethod;

typedef enum QuantCode { CODE_E4M3, CODE_E2M1, CODE_INT8, CODE_INT4, QUANT_CODES } QuantCode;

// x over scale, and what the quotient is rounded to.
typedef enum QuantQuotient {
    QUOTIENT_DIVIDE,           // f32(x / scale)
    QUOTIENT_RECIPROCAL,       // f32(x * f32(1 / scale))
    QUOTIENT_DIVIDE_INPUT,     // x / scale in the operand's type
    QUOTIENT_RECIPROCAL_INPUT, // x * (1 / scale), both rounded to the operand's type
} QuantQuotient;

typedef enum MxMode { MX_FLOOR, MX_CEIL, MX_EVEN, MX_RCEIL, MX_MODES } MxMode;

// How codes lie in memory, and how scales do.
typedef enum CodeLayout {
    CODES_BYTES, // one to a byte, row-major
    CODES_PAIRS, // two to a byte, the even column in the low half, row-major
    CODES_TILED, // tinygemm's int32 [rows / 8, columns / 128, 32, 4]
} CodeLayout;
typedef enum ScaleLayout {
    SCALES_PLAIN,      // [rows of blocks, columns of blocks]
    SCALES_SWIZZLED,   // cuBLAS's tiles of 128 x 4, padded with zero bytes
    SCALES_TRANSPOSED, // [columns of blocks, rows of blocks]
    SCALES_PAIRED,     // [columns of blocks, rows of blocks, 2]: scale, zero point
} ScaleLayout;

typedef struct QuantRule {
    QuantMethod method;
    QuantCode code;
    DType scale_dtype;
    bool has_zeros; // a zero point per block ...
    DType zero_dtype;
    // A block; 0 = the whole extent. Whole rows and columns: one block for all matrices.
    int block_rows, block_columns;
    int rows_multiple, columns_multiple; // what the reference demands of the shape; 1 = nothing
    bool blocks_exact;         // the shape must be divided by the block; else tails are shorter
    int pad_rows, pad_columns; // zeros are added up to these multiples before anything; 1 = none
    float divisor;             // SYMMETRIC: scale = amax / divisor
    float amax_minimum;        // SYMMETRIC, RANGE: amax, or the range, is at least this
    float scale_minimum;       // SYMMETRIC: clamp after the division
    float scale_of_zero;       // SYMMETRIC: replaces a scale of 0, where not 0
    bool scale_in_f32;         // SYMMETRIC: else it is rounded to the operand's type
    bool in_f32;               // SYMMETRIC: every step is, as if the operand were f32
    QuantQuotient quotient;    // SYMMETRIC
    MxMode mx_mode;            // MX
    bool two_level;            // NVFP4: a second scale per matrix
    bool ct;                   // MX: compressed-tensors' arithmetic
    CodeLayout code_layout;    // as the reference stores them
    ScaleLayout scale_layout;
} QuantRule;

// Of a block's elements; NaN anywhere makes all three NaN.
typedef struct QuantStatistics {
    float amax, minimum, maximum;
} QuantStatistics;

typedef struct QuantBlock {
    float scale;         // what arithmetic uses, in f32
    float zero;          // likewise; its unit is the method's
    float multiplier;    // 1 / scale where the method multiplies
    uint32_t scale_bits; // as stored, in scale_dtype
    uint32_t zero_bits;
} QuantBlock;

// What the arithmetic of one tensor shares.
typedef struct QuantContext {
    QuantRule rule;
    DType input;        // of the operand: DTYPE_BF16 or DTYPE_F32
    float tensor_scale; // NVFP4: the second level; 1 where there is none
} QuantContext;

// ---- steps that all methods share ----

FORMAT_INLINE float quant_round(DType dtype, float value)
{
    return dtype == DTYPE_BF16 ? f32_from_bf16_bits(bf16_bits_from_f32(value)) : value;
}

FORMAT_INLINE uint32_t quant_bits(DType dtype, float value)
{
    return dtype == DTYPE_BF16 ? bf16_bits_from_f32(value) : format_f32_bits(value);
}

FORMAT_INLINE bool quant_is_nan(float value)
{
    return format_f32_magnitude(value) > FORMAT_F32_INFINITY;
}

// clamp(value, min=low): NaN stays NaN.
FORMAT_INLINE float quant_at_least(float value, float low)
{
    return value < low ? low : value;
}

FORMAT_INLINE float quant_clamp(float value, float low, float high)
{
    value = value < low ? low : value;
    return value > high ? high : value;
}

FORMAT_INLINE float quant_nan(void)
{
    return format_f32_value(0x7FC00000u);
}

// Round half to even. Adding 1.5 * 2^23 leaves no room for a fraction; from 2^22 on, far beyond
// every range of codes, the value is kept.
FORMAT_INLINE float quant_rint(float value)
{
    const float shift = 12582912.0f;
    float rounded = (value + shift) - shift;
    return format_f32_magnitude(value) < 0x4A800000u ? rounded : value;
}

// A value in [low, high], rounded half to even, as two's complement; NaN gives 0.
FORMAT_INLINE uint32_t quant_whole(float value, float low, float high)
{
    value = value == value ? quant_clamp(value, low, high) : 0.0f;
    return format_f32_bits(value + 12582912.0f) - 0x4B400000u;
}

FORMAT_INLINE float quant_of_int8(uint32_t code)
{
    return (float)(int8_t)(uint8_t)code;
}

FORMAT_INLINE float quant_of_int4(uint32_t code)
{
    return (float)((int32_t)((code & 15u) ^ 8u) - 8);
}

// The code of a quotient. NaN: 7F in e4m3, 3 (1.5) in e2m1, 0 in whole numbers, as on CUDA.
FORMAT_INLINE uint32_t quant_code(QuantCode code, float value)
{
    if (code == CODE_E4M3)
        return format_e4m3fn_encode_satfinite(value);
    if (code == CODE_E2M1)
        return quant_is_nan(value) ? 3u : format_e2m1_encode_torchao(value);
    return code == CODE_INT8 ? quant_whole(value, -128.0f, 127.0f) & 0xFFu
                             : quant_whole(value, -8.0f, 7.0f) & 0xFu;
}

FORMAT_INLINE float quant_value(QuantCode code, uint32_t bits)
{
    if (code == CODE_E4M3)
        return format_e4m3fn_decode(bits);
    if (code == CODE_E2M1)
        return format_e2m1_decode(bits);
    return code == CODE_INT8 ? quant_of_int8(bits) : quant_of_int4(bits);
}
