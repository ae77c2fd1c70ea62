// place.h -- where a scale and a code lie in memory: the layouts of rule.h as index arithmetic, and
// stored numbers as f32; inline, for the CPU and for CUDA kernels.
//
// Sources: torchao, prototype/mx_formats/utils.py, to_blocked; PyTorch,
// aten/src/ATen/native/cuda/int4mm.cu. 64-bit throughout.
#pragma once

#include "quant/method_mx.h"

enum {
    SWIZZLE_ROWS = 128, // a tile of scales: 128 x 4 bytes
    SWIZZLE_COLUMNS = 4,
    CODE_TILE_ROWS = 8, // a tile of codes: 8 x 128
    CODE_TILE_COLUMNS = 128,
};

// The blocks of one matrix, and how their scales lie.
typedef struct QuantGrid {
    ScaleLayout layout;
    int64_t rows, columns;
} QuantGrid;

FORMAT_INLINE int64_t quant_round_up(int64_t value, int64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

// Scales of one matrix, with padding.
FORMAT_INLINE int64_t quant_scale_stride(QuantGrid grid)
{
    if (grid.layout == SCALES_SWIZZLED)
        return quant_round_up(grid.rows, SWIZZLE_ROWS) *
               quant_round_up(grid.columns, SWIZZLE_COLUMNS);
    return grid.rows * grid.columns * (grid.layout == SCALES_PAIRED ? 2 : 1);
}

// SCALES_SWIZZLED, in a matrix that is `columns` blocks wide.
FORMAT_INLINE int64_t quant_swizzled_place(int64_t columns, int64_t row, int64_t column)
{
    const uint64_t r = (uint64_t)row, c = (uint64_t)column; // divided by shifts
    const uint64_t tiles = ((uint64_t)columns + SWIZZLE_COLUMNS - 1) / SWIZZLE_COLUMNS;
    const uint64_t tile = r / SWIZZLE_ROWS * tiles + c / SWIZZLE_COLUMNS;
    return (int64_t)(tile * SWIZZLE_ROWS * SWIZZLE_COLUMNS + r % 32 * 16 +
                     r % SWIZZLE_ROWS / 32 * 4 + c % SWIZZLE_COLUMNS);
}

// In elements, from the first of the matrix. PAIRED: the zero point is the next.
FORMAT_INLINE int64_t quant_scale_place(QuantGrid grid, int64_t row, int64_t column)
{
    if (grid.layout == SCALES_PLAIN)
        return row * grid.columns + column;
    if (grid.layout == SCALES_SWIZZLED)
        return quant_swizzled_place(grid.columns, row, column);
    int64_t transposed = column * grid.rows + row;
    return grid.layout == SCALES_PAIRED ? 2 * transposed : transposed;
}

// Word [row / 8][column / 128][t of 32][j of 4] has row t / 4 and, from bit 0 up, columns c, c + 8,
// c + 16, c + 24, c + 1, c + 9, ... where c = 32 j + 2 (t % 4). columns: of a padded row.
FORMAT_INLINE int64_t quant_tiled_bit(int64_t columns, int64_t row, int64_t column)
{
    int64_t tile =
        row / CODE_TILE_ROWS * (columns / CODE_TILE_COLUMNS) + column / CODE_TILE_COLUMNS;
    int64_t j = column % CODE_TILE_COLUMNS / 32, within = column % 32;
    int64_t t = row % CODE_TILE_ROWS * 4 + within % 8 / 2;
    int64_t nibble = within / 8 + within % 2 * 4;
    return ((tile * 32 + t) * 4 + j) * 32 + nibble * 4;
}

// A stored scale or zero point.
FORMAT_INLINE uint32_t quant_load_bits(const void *data, DType dtype, int64_t index)
{
    if (dtype == DTYPE_F32)
        return ((const uint32_t *)data)[index];
    bool two_bytes = dtype == DTYPE_BF16 || dtype == DTYPE_F16;
    return two_bytes ? ((const uint16_t *)data)[index] : ((const uint8_t *)data)[index];
}

// f32_from_f16: the exponent moves by 112, which a product does for subnormals, too.
FORMAT_INLINE float quant_of_f16(uint32_t bits)
{
    uint32_t magnitude = (bits & 0x7FFFu) << 13;
    uint32_t finite = format_f32_bits(format_f32_value(magnitude) * 0x1p112f);
    return format_f32_value(((bits & 0x7C00u) == 0x7C00u ? magnitude | 0x7F800000u : finite) |
                            (bits & 0x8000u) << 16);
}

FORMAT_INLINE float quant_value_of_bits(DType dtype, uint32_t bits)
{
    if (dtype == DTYPE_F32)
        return format_f32_value(bits);
    if (dtype == DTYPE_BF16)
        return format_f32_value(bits << 16);
    if (dtype == DTYPE_F16) // compressed-tensors' files of f16 models
        return quant_of_f16(bits);
    if (dtype == DTYPE_I8)
        return quant_of_int8(bits);
    return dtype == DTYPE_F8_E4M3 ? quant_of_e4m3(bits) : quant_mx_power(bits);
}

FORMAT_INLINE void quant_store_bits(void *data, DType dtype, int64_t index, uint32_t bits)
{
    if (dtype == DTYPE_F32)
        ((uint32_t *)data)[index] = bits;
    else if (dtype == DTYPE_BF16 || dtype == DTYPE_F16)
        ((uint16_t *)data)[index] = (uint16_t)bits;
    else
        ((uint8_t *)data)[index] = (uint8_t)bits;
}
