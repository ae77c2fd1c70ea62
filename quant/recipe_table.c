// recipe_table.c -- every recipe, one row each.
//
// Sources: torchao 0.18 and 0.14 (quantization/quant_api.py and what it calls), MSLK
// (mslk/quantize/shuffle.py), compressed-tensors 0.20 (quantization/quant_scheme.py), DeepSeek-V3
// (inference/kernel.py). What each rule gives is held byte for byte against files that these
// libraries wrote (tests/test_quant_golden.c).
#include "quant/recipe.h"

// What the rows below have in common. Later initialisers overrule earlier ones.
#define ANY_SHAPE .rows_multiple = 1, .columns_multiple = 1, .pad_rows = 1, .pad_columns = 1
#define FP8                                                                                        \
    ANY_SHAPE, .method = QUANT_SYMMETRIC, .code = CODE_E4M3, .scale_dtype = DTYPE_F32,             \
               .divisor = 448.0f, .quotient = QUOTIENT_DIVIDE
#define FP8_ROW    FP8, .block_rows = 1
#define FP8_TENSOR FP8
// 127.5 = (127 + 128) / 2: the largest element maps to 127.5, which is clamped.
#define INT8_ROW                                                                                   \
    ANY_SHAPE, .method = QUANT_SYMMETRIC, .code = CODE_INT8, .scale_dtype = DTYPE_F32,             \
               .has_zeros = true, .zero_dtype = DTYPE_I8, .block_rows = 1, .divisor = 127.5f,      \
               .scale_minimum = 0x1p-23f, .quotient = QUOTIENT_RECIPROCAL
#define INT8_ZERO_POINT_ROW                                                                        \
    ANY_SHAPE, .method = QUANT_ZERO_POINT, .code = CODE_INT8, .scale_dtype = DTYPE_BF16,           \
               .has_zeros = true, .zero_dtype = DTYPE_I8, .block_rows = 1
#define INT4_ROW                                                                                   \
    ANY_SHAPE, .method = QUANT_SYMMETRIC, .code = CODE_INT4, .scale_dtype = DTYPE_F32,             \
               .block_rows = 1, .columns_multiple = 2, .divisor = 7.5f, .scale_minimum = 0x1p-23f, \
               .quotient = QUOTIENT_RECIPROCAL, .code_layout = CODES_PAIRS
#define INT4_PLAIN                                                                                 \
    ANY_SHAPE, .code = CODE_INT4, .scale_dtype = DTYPE_BF16, .has_zeros = true,                    \
               .zero_dtype = DTYPE_BF16, .block_rows = 1, .block_columns = 128,                    \
               .blocks_exact = true, .amax_minimum = 1e-6f, .code_layout = CODES_PAIRS,            \
               .scale_layout = SCALES_TRANSPOSED
#define MX                                                                                         \
    ANY_SHAPE, .method = QUANT_MX, .scale_dtype = DTYPE_F8_E8M0, .block_rows = 1,                  \
               .block_columns = 32, .blocks_exact = true, .mx_mode = MX_RCEIL,                     \
               .scale_layout = SCALES_SWIZZLED
#define MXFP8 MX, .code = CODE_E4M3
#define MXFP4 MX, .code = CODE_E2M1, .code_layout = CODES_PAIRS
#define NVFP4                                                                                      \
    ANY_SHAPE, .method = QUANT_NVFP4, .code = CODE_E2M1, .scale_dtype = DTYPE_F8_E4M3,             \
               .block_rows = 1, .block_columns = 16, .blocks_exact = true,                         \
               .code_layout = CODES_PAIRS, .scale_layout = SCALES_SWIZZLED

// compressed-tensors: steps in the operand's type, scales of zero become the type's epsilon.
#define CT                                                                                         \
    ANY_SHAPE, .method = QUANT_SYMMETRIC, .scale_dtype = DTYPE_BF16, .block_rows = 1,              \
               .scale_of_zero = 0x1p-7f, .quotient = QUOTIENT_DIVIDE_INPUT
#define CT_FP8    CT, .code = CODE_E4M3, .divisor = 448.0f
#define CT_INT8   CT, .code = CODE_INT8, .divisor = 127.5f
#define CT_INT4   CT, .code = CODE_INT4, .divisor = 7.5f
#define GROUP_128 .block_columns = 128, .blocks_exact = true
#define CT_MX                                                                                      \
    ANY_SHAPE, .method = QUANT_MX, .ct = true, .scale_dtype = DTYPE_U8, .block_rows = 1,           \
               .block_columns = 32, .blocks_exact = true
#define CT_MXFP8 CT_MX, .code = CODE_E4M3
#define CT_MXFP4 CT_MX, .code = CODE_E2M1, .code_layout = CODES_PAIRS

// torchao leaves weights of other shapes as they are, without a word; here that is an error.
#define SIXTEENS    .rows_multiple = 16, .columns_multiple = 16
#define LOWER_BOUND .amax_minimum = 1e-12f
#define GROUPS                                                                                     \
    {                                                                                              \
        32, 64, 128, 256                                                                           \
    }

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Woverride-init"
const Recipe recipe_table[] = {
    {.name = "none", .source = "-", .product = "in the operands' own type", .note = "as it is"},
    {.name = "fp8_row",
     .source = "torchao",
     .weights = {FP8_ROW, SIXTEENS},
     .activations = {FP8_ROW, LOWER_BOUND},
     .has_lower_bound = true,
     .trains = true,
     .form = PRODUCT_SCALED,
     .product = "f32 sums of e4m3 products, times both rows' scales",
     .note = "rows of zeros have scale 0 and codes 7F; activations have a lower bound instead"},
    {.name = "fp8_tensor",
     .source = "torchao",
     .weights = {FP8_TENSOR, SIXTEENS},
     .activations = {FP8_TENSOR},
     .has_lower_bound = true,
     .form = PRODUCT_SCALED,
     .product = "f32 sums of e4m3 products, times both scales",
     .note = "one scale for all experts of a fused weight"},
    {.name = "fp8_block",
     .source = "torchao",
     .weights = {FP8, SIXTEENS, .block_rows = 128, .block_columns = 128, .blocks_exact = true},
     .activations = {FP8, LOWER_BOUND, .block_rows = 1, .block_columns = 128, .blocks_exact = true},
     .has_lower_bound = true,
     .trains = true,
     .form = PRODUCT_SCALED,
     .product = "f32 sums over 128 columns, each times both blocks' scales",
     .note = "weights 128 x 128, activations 1 x 128"},
    {.name = "fp8_weight_only",
     .source = "torchao",
     .weights = {FP8_ROW},
     .product = "bf16 products with dequantised weights",
     .note = "any shape"},
    {.name = "int8_weight_only",
     .source = "torchao",
     .weights = {INT8_ROW},
     .form = PRODUCT_ROUNDED,
     .product = "bf16 products with codes, then times the row's scale",
     .note = "zero points are stored, all 0"},
    {.name = "int8_dynamic",
     .source = "torchao",
     .weights = {INT8_ROW},
     .activations = {INT8_ROW},
     .form = PRODUCT_ROUNDED,
     .product = "exact int32 sums, times the token's scale, rounded, times the row's scale",
     .note = "a token is a row of the activations"},
    {.name = "int4_weight_only",
     .source = "MSLK",
     .weights = {INT4_PLAIN, .method = QUANT_RANGE},
     .groups = GROUPS,
     .product = "bf16 products with dequantised weights",
     .note = "PLAIN: offset in units of value; scales and offsets transposed"},
    {.name = "int4_tile",
     .source = "torchao",
     .weights = {ANY_SHAPE, .method = QUANT_TILE, .code = CODE_INT4, .scale_dtype = DTYPE_BF16,
                 .has_zeros = true, .zero_dtype = DTYPE_BF16, .block_rows = 1, .block_columns = 128,
                 .pad_rows = 8, .pad_columns = 1024, .code_layout = CODES_TILED,
                 .scale_layout = SCALES_PAIRED},
     .groups = GROUPS,
     .product = "bf16 products with dequantised weights",
     .note = "TILE_PACKED_TO_4D of tinygemm: rows padded to 8, columns to 1024"},
    {.name = "int8_int4",
     .source = "torchao",
     .weights = {ANY_SHAPE, .method = QUANT_SYMMETRIC, .code = CODE_INT4, .scale_dtype = DTYPE_BF16,
                 .has_zeros = true, .zero_dtype = DTYPE_I8, .block_rows = 1, .block_columns = 32,
                 .blocks_exact = true, .divisor = 7.5f, .scale_minimum = 0x1p-126f,
                 .quotient = QUOTIENT_RECIPROCAL_INPUT},
     .activations = {INT8_ZERO_POINT_ROW},
     .groups = GROUPS,
     .product = "products of dequantised operands, f32 sums",
     .note = "int4 in int8 containers; activations with a zero point per token"},
    {.name = "mxfp8",
     .source = "torchao",
     .weights = {MXFP8},
     .activations = {MXFP8},
     .has_modes = true,
     .trains = true,
     .form = PRODUCT_SCALED,
     .product = "f32 sums over 32 columns, each times both powers of two",
     .note = "scales swizzled"},
    {.name = "mxfp4",
     .source = "torchao",
     .weights = {MXFP4},
     .activations = {MXFP4},
     .has_modes = true,
     .form = PRODUCT_SCALED,
     .product = "f32 sums over 32 columns, each times both powers of two",
     .note = "scales swizzled"},
    {.name = "nvfp4",
     .source = "torchao",
     .weights = {NVFP4, SIXTEENS, .two_level = true},
     .activations = {NVFP4, .two_level = true},
     .form = PRODUCT_SCALED,
     .product = "f32 sums over 16 columns, each times both scales; then bf16(both tensors' scales)",
     .note = "scales swizzled, a second scale per matrix"},
    {.name = "nvfp4_one_level",
     .source = "torchao",
     .weights = {NVFP4, SIXTEENS},
     .activations = {NVFP4},
     .form = PRODUCT_SCALED,
     .product = "f32 sums over 16 columns, each times both scales",
     .note = "scales swizzled; values beyond 6 x 448 saturate"},
    {.name = "nvfp4_weight_only",
     .source = "torchao",
     .weights = {NVFP4, SIXTEENS, .two_level = true},
     .product = "bf16 products with dequantised weights",
     .note = "the bytes of nvfp4"},
    {.name = "fp8_int4",
     .source = "MSLK",
     .weights = {INT4_PLAIN, .method = QUANT_SYMMETRIC, .divisor = 8.0f, .in_f32 = true,
                 .quotient = QUOTIENT_DIVIDE},
     .activations = {FP8_ROW, .scale_in_f32 = true, .amax_minimum = 1.0f / 512},
     .groups = GROUPS,
     .form = PRODUCT_SCALED,
     .product = "f32 sums over 128 columns, each times both scales",
     .note = "PLAIN with offsets of 0; activations as MSLK's row kernel has them"},
    {.name = "int4_int4",
     .source = "torchao 0.14",
     .weights = {INT4_ROW},
     .activations = {INT4_ROW},
     .form = PRODUCT_SCALED,
     .product = "exact int32 sums, times both rows' scales",
     .note = "A4W4, removed from torchao in January 2026"},
    {.name = "deepseek_block",
     .source = "DeepSeek",
     .weights = {FP8, .block_rows = 128, .block_columns = 128, .amax_minimum = 1e-12f,
                 .scale_in_f32 = true, .quotient = QUOTIENT_RECIPROCAL},
     .activations = {FP8, .block_rows = 1, .block_columns = 128, .amax_minimum = 1e-12f,
                     .scale_in_f32 = true, .quotient = QUOTIENT_RECIPROCAL},
     .form = PRODUCT_SCALED,
     .product = "f32 sums over 128 columns, each times both blocks' scales",
     .note = "scales in f32; blocks at the edges are smaller"},

    {.name = "FP8_DYNAMIC",
     .source = "compressed-tensors",
     .weights = {CT_FP8},
     .activations = {CT_FP8},
     .form = PRODUCT_SCALED,
     .product = "f32 sums of e4m3 products, times both rows' scales",
     .note = "per row"},
    {.name = "FP8_BLOCK",
     .source = "compressed-tensors",
     .weights = {CT_FP8, .block_rows = 128, .block_columns = 128},
     .activations = {CT_FP8, GROUP_128},
     .form = PRODUCT_SCALED,
     .product = "f32 sums over 128 columns, each times both blocks' scales",
     .note = "blocks at the edges are smaller"},
    {.name = "W8A8",
     .source = "compressed-tensors",
     .weights = {CT_INT8},
     .activations = {CT_INT8},
     .form = PRODUCT_SCALED,
     .product = "exact int32 sums, times both rows' scales",
     .note = "per row"},
    {.name = "W8A16",
     .source = "compressed-tensors",
     .weights = {CT_INT8, GROUP_128},
     .product = "bf16 products with dequantised weights",
     .note = "groups of 128"},
    {.name = "W4A16",
     .source = "compressed-tensors",
     .weights = {CT_INT4, GROUP_128},
     .product = "bf16 products with dequantised weights",
     .note = "groups of 128"},
    {.name = "W4A16_ASYM",
     .source = "compressed-tensors",
     .weights = {CT_INT4, GROUP_128, .method = QUANT_ZERO_POINT_CT, .has_zeros = true,
                 .zero_dtype = DTYPE_I8},
     .product = "bf16 products with dequantised weights",
     .note = "groups of 128 with a whole zero point"},
    {.name = "W4A8",
     .source = "compressed-tensors",
     .weights = {CT_INT4, GROUP_128},
     .activations = {CT_INT8},
     .form = PRODUCT_SCALED,
     .product = "exact int32 sums over 128 columns, each times both scales",
     .note = "int4 in int8 containers"},
    {.name = "W4AFP8",
     .source = "compressed-tensors",
     .weights = {CT_INT4, GROUP_128},
     .activations = {CT_FP8},
     .form = PRODUCT_SCALED,
     .product = "f32 sums over 128 columns, each times both scales",
     .note = "int4 in int8 containers"},
    {.name = "NVFP4",
     .source = "compressed-tensors",
     .weights = {NVFP4, .method = QUANT_NVFP4_CT, .two_level = true, .scale_layout = SCALES_PLAIN},
     .activations = {NVFP4, .method = QUANT_NVFP4_CT, .two_level = true,
                     .scale_layout = SCALES_PLAIN},
     .product = "f32 sums over 16 columns, each times both scales",
     .note = "the bytes of NVFP4A16; the activations' second scale is calibrated"},
    {.name = "NVFP4A16",
     .source = "compressed-tensors",
     .weights = {NVFP4, .method = QUANT_NVFP4_CT, .two_level = true, .scale_layout = SCALES_PLAIN},
     .product = "bf16 products with dequantised weights",
     .note = "the second scale inverted; q, k and v of one attention share it"},
    {.name = "MXFP4",
     .source = "compressed-tensors",
     .weights = {CT_MXFP4},
     .activations = {CT_MXFP4},
     .form = PRODUCT_SCALED,
     .product = "f32 sums over 32 columns, each times both powers of two",
     .note = "scales as plain bytes"},
    {.name = "MXFP4A16",
     .source = "compressed-tensors",
     .weights = {CT_MXFP4},
     .product = "bf16 products with dequantised weights",
     .note = "the bytes of MXFP4"},
    {.name = "MXFP8",
     .source = "compressed-tensors",
     .weights = {CT_MXFP8},
     .activations = {CT_MXFP8},
     .form = PRODUCT_SCALED,
     .product = "f32 sums over 32 columns, each times both powers of two",
     .note = "scales as plain bytes"},
    {.name = "MXFP8A16",
     .source = "compressed-tensors",
     .weights = {CT_MXFP8},
     .product = "bf16 products with dequantised weights",
     .note = "the bytes of MXFP8"},
    {.name = NULL},
};
#pragma GCC diagnostic pop
