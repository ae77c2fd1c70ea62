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
//
// Choices are made with masks, not branches, so that loops over elements become vector code.

FORMAT_INLINE uint32_t quant_select(bool condition, uint32_t yes, uint32_t no)
{
#ifdef __CUDA_ARCH__
    return condition ? yes : no; // one instruction
#else
    uint32_t mask = 0u - (uint32_t)condition;
    return (yes & mask) | (no & ~mask);
#endif
}

FORMAT_INLINE float quant_select_f32(bool condition, float yes, float no)
{
    return format_f32_value(quant_select(condition, format_f32_bits(yes), format_f32_bits(no)));
}

FORMAT_INLINE bool quant_is_nan(float value)
{
    return format_f32_magnitude(value) > FORMAT_F32_INFINITY;
}

FORMAT_INLINE float quant_nan(void)
{
    return format_f32_value(0x7FC00000u);
}

// bf16(value) as an f32 (harness/bf16.h).
FORMAT_INLINE float quant_round(DType dtype, float value)
{
    uint32_t bits = format_f32_bits(value);
#ifdef __CUDA_ARCH__
    uint32_t rounded; // of two, the upper
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(rounded) : "f"(value), "f"(0.0f));
#else
    uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) & 0xFFFF0000u;
#endif
    rounded = quant_select(quant_is_nan(value), 0x7FC00000u, rounded);
    return format_f32_value(quant_select(dtype == DTYPE_BF16, rounded, bits));
}

FORMAT_INLINE uint32_t quant_bits(DType dtype, float value)
{
    uint32_t unused_bits = dtype == DTYPE_BF16 ? 16 : 0;
    return format_f32_bits(quant_round(dtype, value)) >> unused_bits;
}

// clamp(value, min=low): NaN stays NaN.
FORMAT_INLINE float quant_at_least(float value, float low)
{
    return quant_select_f32(value < low, low, value);
}

FORMAT_INLINE float quant_clamp(float value, float low, float high)
{
    value = quant_at_least(value, low);
    return quant_select_f32(value > high, high, value);
}

// Round half to even. Adding 1.5 * 2^23 leaves no room for a fraction; from 2^22 on, far beyond
// every range of codes, the value is kept.
FORMAT_INLINE float quant_rint(float value)
{
    const float shift = 12582912.0f;
    float rounded = format_f32_sum(format_f32_sum(value, shift), -shift);
    return quant_select_f32(format_f32_magnitude(value) < 0x4A800000u, rounded, value);
}

// A value in [low, high], rounded half to even, as two's complement; NaN gives 0.
FORMAT_INLINE uint32_t quant_whole(float value, float low, float high)
{
    float limited = quant_clamp(value, low, high);
    uint32_t whole = format_f32_bits(format_f32_sum(limited, 12582912.0f)) - 0x4B400000u;
    return quant_select(quant_is_nan(value), 0, whole);
}

// format_e4m3fn_encode_satfinite. Below 2^-6 codes are multiples of 2^-9, which is what is left
// of a fraction beside 2^14; above, the exponent is rebiased by 120.
FORMAT_INLINE uint32_t quant_e4m3(float value)
{
    uint32_t bits = format_f32_bits(value), magnitude = bits & 0x7FFFFFFFu;
    uint32_t limited = format_minimum(magnitude, 0x43E00000u); // 448
    uint32_t normal = ((limited + 0x7FFFFu + (limited >> 20 & 1u)) >> 20) - (120u << 3);
    uint32_t tiny = format_f32_bits(format_f32_value(limited) + 16384.0f) - 0x46800000u;
    uint32_t code = quant_select(limited < 0x3C800000u, tiny, normal) | (bits >> 24 & 0x80u);
    return quant_select(magnitude > FORMAT_F32_INFINITY, 0x7Fu, code);
}

// The same for e2m1: multiples of 0.5 below 1. NaN is 3.
FORMAT_INLINE uint32_t quant_e2m1(float value)
{
    uint32_t bits = format_f32_bits(value), magnitude = bits & 0x7FFFFFFFu;
    uint32_t limited = format_minimum(magnitude, 0x40C00000u); // 6
    uint32_t normal = ((limited + 0x1FFFFFu + (limited >> 22 & 1u)) >> 22) - (126u << 1);
    uint32_t tiny = format_f32_bits(format_f32_value(limited) + 4194304.0f) - 0x4A800000u;
    uint32_t code = quant_select(limited < 0x3F800000u, tiny, normal) | (bits >> 28 & 8u);
    return quant_select(magnitude > FORMAT_F32_INFINITY, 3u, code);
}

// format_e4m3fn_decode.
FORMAT_INLINE float quant_of_e4m3(uint32_t code)
{
    uint32_t magnitude = code & 0x7Fu;
    float tiny = (float)(int32_t)magnitude * 0x1p-9f;
    uint32_t bits = quant_select(magnitude < 8, format_f32_bits(tiny),
                                 (magnitude << 20) + (120u << FORMAT_F32_MANTISSA_BITS));
    bits = quant_select(magnitude == 0x7Fu, 0x7FF00000u, bits);
    return format_f32_value(bits | (code & 0x80u) << 24);
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
        return quant_e4m3(value);
    if (code == CODE_E2M1)
        return quant_e2m1(value);
    return code == CODE_INT8 ? quant_whole(value, -128.0f, 127.0f) & 0xFFu
                             : quant_whole(value, -8.0f, 7.0f) & 0xFu;
}

FORMAT_INLINE float quant_value(QuantCode code, uint32_t bits)
{
    if (code == CODE_E4M3)
        return quant_of_e4m3(bits);
    if (code == CODE_E2M1)
        return format_e2m1_decode(bits);
    return code == CODE_INT8 ? quant_of_int8(bits) : quant_of_int4(bits);
}
