// view.cuh -- quantised operands as the kernels of quant_gemm see them: any element, any
// scale of any layout, with the arithmetic of quant/units.c and quant/quantise.c.
#pragma once

#include "kernels/cuda_common.cuh"
#include "kernels/grouped_gemm.h"
#include "kernels/quant_gemm.h"

// {0} as C has it, which C++ compilers warn about.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#include "quant/method_affine.h"
#include "quant/method_nvfp4.h"
#include "quant/method_symmetric.h"
#include "quant/place.h"
#pragma GCC diagnostic pop

// An operand with what its places are counted from.
struct QuantView {
    QuantOperand operand;
    DType dtype;                     // of plain values; what codes stand for is rounded to it
    bool codes;                      // elements are codes alone
    int64_t columns;                 // k
    int64_t code_columns;            // with padding
    int64_t matrix_rows;             // from one matrix to the next
    int64_t block_rows;              // INT64_MAX: one block for all rows of all matrices
    int64_t block_columns;           // of codes that have scales; else k
    int64_t grid_rows, grid_columns; // of blocks
    int64_t scale_matrix;            // elements between the scales of matrices
};

// One product for any of the kernels.
struct QuantWork {
    GroupedGemm frame; // groups and c; its a and b are not used
    QuantView a, b;
    QuantProduct product;
    DType dtype;
    int64_t block; // columns that make one chain: SCALED under one scale of each operand, else k
    bool two_levels;
    bool whole; // both operands are whole numbers
};

// ---- host ----

static inline QuantView quant_view(const QuantGemm *args, const QuantOperand *operand, int64_t rows)
{
    QuantView v = {};
    v.operand = *operand;
    v.dtype = args->dtype;
    v.columns = v.code_columns = args->k;
    v.matrix_rows = rows;
    v.block_rows = INT64_MAX;
    v.block_columns = args->k > 0 ? args->k : 1;
    if (!operand->quantised)
        return v;
    const QTensor *q = &operand->q;
    v.codes = args->product != PRODUCT_VALUES;
    v.code_columns = qtensor_padded_columns(q);
    if (q->rule.block_rows > 0) {
        v.matrix_rows = qtensor_padded_rows(q);
        v.block_rows = q->rule.block_rows;
        v.scale_matrix = q->matrices > 0 ? qtensor_scale_elements(q) / q->matrices : 0;
    }
    v.block_columns = qtensor_block_columns(q);
    v.grid_rows = qtensor_grid_rows(q);
    v.grid_columns = qtensor_grid_columns(q);
    if (args->sums_over_groups) // scales are those of groups, or of one matrix
        v.scale_matrix = q->rule.block_columns == 0 ? q->rows : 0;
    return v;
}

static inline bool quant_is_whole(const QuantOperand *o)
{
    return o->quantised && (o->q.rule.code == CODE_INT8 || o->q.rule.code == CODE_INT4);
}

static inline QuantWork quant_work(const QuantGemm *args)
{
    QuantWork w = {};
    w.frame.form = args->sums_over_groups ? GEMM_TN : GEMM_NT;
    w.frame.m = args->rows_max;
    w.frame.dtype = args->dtype;
    w.frame.out_dtype = args->out_dtype;
    w.frame.accumulate = args->accumulate;
    w.frame.groups = args->groups;
    w.frame.rows_max = args->rows_max;
    w.frame.n = args->n;
    w.frame.k = args->k;
    w.frame.group_first = args->group_first;
    w.frame.group_rows = args->group_rows;
    w.frame.c = args->c;
    w.frame.rows_expected = args->rows_expected;
    w.a = quant_view(args, &args->a, args->rows_max);
    w.b = quant_view(args, &args->b, args->n);
    w.product = args->product;
    w.dtype = args->dtype;
    w.block = args->k > 0 ? args->k : 1;
    if (args->product == PRODUCT_SCALED)
        w.block = w.a.block_columns < w.b.block_columns ? w.a.block_columns : w.b.block_columns;
    w.two_levels = w.a.codes && w.b.codes && args->a.q.rule.two_level && args->b.q.rule.two_level;
    w.whole =
        args->product != PRODUCT_VALUES && quant_is_whole(&args->a) && quant_is_whole(&args->b);
    return w;
}

// ---- device ----

// Scale and zero point of the block that an element lies in.
static __device__ __forceinline__ QuantBlock view_block(const QuantView &v, int matrix, int64_t row,
                                                        int64_t column)
{
    const QTensor &q = v.operand.q;
    const int64_t block_row = v.block_rows == 1           ? row
                              : v.block_rows == INT64_MAX ? 0
                                                          : row / v.block_rows;
    const int64_t block_column = v.block_columns == v.code_columns ? 0 : column / v.block_columns;
    int64_t index = matrix * v.scale_matrix;
    if (q.scale_layout == SCALES_PLAIN)
        index += block_row * v.grid_columns + block_column;
    else if (q.scale_layout == SCALES_SWIZZLED)
        index += quant_swizzled_place(v.grid_columns, block_row, block_column);
    else
        index +=
            (block_column * v.grid_rows + block_row) * (q.scale_layout == SCALES_PAIRED ? 2 : 1);
    QuantBlock block = {};
    block.scale = quant_value_of_bits(q.rule.scale_dtype,
                                      quant_load_bits(q.scales, q.rule.scale_dtype, index));
    if (q.rule.has_zeros) {
        const void *zeros = q.zeros ? q.zeros : q.scales;
        block.zero = quant_value_of_bits(
            q.rule.zero_dtype, quant_load_bits(zeros, q.rule.zero_dtype, index + !q.zeros));
    }
    return block;
}

// 1 for operands without scales of their own.
static __device__ __forceinline__ float view_scale(const QuantView &v, int matrix, int64_t row,
                                                   int64_t column)
{
    return v.codes ? view_block(v, matrix, row, column).scale : 1.0f;
}

static __device__ __forceinline__ float view_tensor_scale(const QuantView &v, int matrix)
{
    return v.operand.quantised && v.operand.q.rule.two_level
               ? v.operand.q.tensor_scales[v.scale_matrix ? matrix : 0]
               : 1.0f;
}

// quant_method(rule.method)->decode.
static __device__ __forceinline__ float view_decode(const QuantContext &context,
                                                    const QuantBlock &block, uint32_t code)
{
    switch (context.rule.method) {
    case QUANT_RANGE:
        return quant_range_decode(&block, code);
    case QUANT_TILE:
        return quant_tile_decode(&block, code);
    case QUANT_ZERO_POINT:
    case QUANT_ZERO_POINT_CT:
        return quant_zero_point_decode(&context, &block, code);
    case QUANT_NVFP4:
        return quant_nvfp4_decode(&context, &block, code);
    case QUANT_NVFP4_CT:
        return quant_nvfp4_ct_decode(&context, &block, code);
    default: // SYMMETRIC and MX multiply by the scale
        return quant_symmetric_decode(&context, &block, code);
    }
}

// Four codes from a column on that 4 divides, a byte each; those past the row's end are 0.
static __device__ __forceinline__ uint32_t view_codes(const QuantView &v, int64_t all_row,
                                                      int64_t column)
{
    const uint8_t *codes = (const uint8_t *)v.operand.q.codes;
    uint32_t four = 0;
    if (v.operand.q.code_layout == CODES_TILED) { // padded: no row ends inside
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int64_t bit = quant_tiled_bit(v.code_columns, all_row, column + i);
            four |= (uint32_t)(codes[bit / 8] >> bit % 8 & 15) << 8 * i;
        }
    } else if (v.operand.q.code_layout == CODES_PAIRS) {
        const uint8_t *at = codes + (all_row * v.code_columns + column) / 2;
        four = (at[0] & 15u) | (at[0] & 0xF0u) << 4;
        if (column + 2 < v.columns)
            four |= (at[1] & 15u) << 16 | (at[1] & 0xF0u) << 20;
    } else if (v.code_columns % 4 == 0) {
        four = *(const uint32_t *)(codes + all_row * v.code_columns + column);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (column + i < v.columns)
                four |= (uint32_t)codes[all_row * v.code_columns + column + i] << 8 * i;
    }
    return four;
}

// Four neighbouring elements of a row, from a column on that 4 divides: codes, or what they stand
// for; no block ends between them. 0 past the row's end.
static __device__ __forceinline__ void view_four(const QuantView &v, int matrix, int64_t row,
                                                 int64_t column, float (&out)[4])
{
    const int64_t all_row = matrix * v.matrix_rows + row;
    if (!v.operand.quantised) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int64_t at = all_row * v.columns + column + i;
            out[i] = column + i >= v.columns ? 0.0f
                     : v.dtype == DTYPE_F32  ? ((const float *)v.operand.values)[at]
                                             : widen(((const Bf16 *)v.operand.values)[at]);
        }
        return;
    }
    const uint32_t four = view_codes(v, all_row, column);
    const QuantCode kind = v.operand.q.rule.code;
    if (v.codes) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            out[i] = column + i < v.columns ? quant_value(kind, four >> 8 * i & 0xFFu) : 0.0f;
        return;
    }
    const QuantContext context = {v.operand.q.rule, v.operand.q.input,
                                  view_tensor_scale(v, matrix)};
    const QuantBlock block = view_block(v, matrix, row, column);
    const uint32_t mask = kind == CODE_INT4 || kind == CODE_E2M1 ? 15u : 255u;
#pragma unroll
    for (int i = 0; i < 4; i++)
        out[i] = column + i < v.columns
                     ? quant_round(v.dtype, view_decode(context, block, four >> 8 * i & mask))
                     : 0.0f;
}

// What follows the sum of an element (quant_gemm.h); the factors are those of its rows: scales
// (ROUNDED) or the tensors' scales (two levels).
static __device__ __forceinline__ float quant_finish(const QuantWork &w, float sum, float factor_a,
                                                     float factor_b)
{
    if (w.product == PRODUCT_ROUNDED)
        return __fmul_rn(quant_round(w.dtype, __fmul_rn(sum, factor_a)),
                         quant_round(w.dtype, factor_b));
    if (w.two_levels)
        return __fmul_rn(quant_round(w.dtype, sum),
                         quant_round(w.dtype, __fmul_rn(factor_a, factor_b)));
    return sum;
}

static __device__ __forceinline__ float quant_factor(const QuantWork &w, const QuantView &v,
                                                     int matrix, int64_t row)
{
    return w.product == PRODUCT_ROUNDED ? view_scale(v, matrix, row, 0)
           : w.two_levels               ? view_tensor_scale(v, matrix)
                                        : 1.0f;
}
