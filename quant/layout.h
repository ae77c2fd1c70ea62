// layout.h -- places inside the layouts of codes and scales (qtensor.h), and stored numbers as f32,
// inline for the CPU and for CUDA kernels.
#pragma once

#include "quant/method_mx.h"

enum {
    LAYOUT_SWIZZLE_ROWS = 128, // a tile of scales: 128 x 4 bytes
    LAYOUT_SWIZZLE_COLUMNS = 4,
    LAYOUT_TILE_ROWS = 8, // a tile of codes: 8 x 128
    LAYOUT_TILE_COLUMNS = 128,
};

// SCALES_SWIZZLED: the scale of a block in a matrix that is `columns` blocks wide.
FORMAT_INLINE int64_t layout_swizzled_index(int64_t columns, int64_t block_row,
                                            int64_t block_column)
{
    int64_t tiles = (columns + LAYOUT_SWIZZLE_COLUMNS - 1) / LAYOUT_SWIZZLE_COLUMNS;
    int64_t tile = block_row / LAYOUT_SWIZZLE_ROWS * tiles + block_column / LAYOUT_SWIZZLE_COLUMNS;
    return tile * LAYOUT_SWIZZLE_ROWS * LAYOUT_SWIZZLE_COLUMNS + block_row % 32 * 16 +
           block_row % LAYOUT_SWIZZLE_ROWS / 32 * 4 + block_column % LAYOUT_SWIZZLE_COLUMNS;
}

// CODES_TILED: the first bit of a code in a matrix of `columns`, a multiple of 128. PyTorch's
// aten/src/ATen/native/cuda/int4mm.cu: word [rows / 8][columns / 128][t of 32][j of 4] has row t /
// 4 and, from bit 0 up, columns c, c + 8, c + 16, c + 24, c + 1, c + 9, ... where c = 32 j + 2 (t %
// 4).
FORMAT_INLINE int64_t layout_tiled_bit(int64_t columns, int64_t row, int64_t column)
{
    int64_t tile =
        row / LAYOUT_TILE_ROWS * (columns / LAYOUT_TILE_COLUMNS) + column / LAYOUT_TILE_COLUMNS;
    int64_t j = column % LAYOUT_TILE_COLUMNS / 32, within = column % 32;
    int64_t t = row % LAYOUT_TILE_ROWS * 4 + within % 8 / 2;
    int64_t nibble = within / 8 + within % 2 * 4;
    return ((tile * 32 + t) * 4 + j) * 32 + nibble * 4;
}

// A stored scale or zero point.
FORMAT_INLINE uint32_t layout_load_bits(const void *data, DType dtype, int64_t index)
{
    if (dtype == DTYPE_F32)
        return ((const uint32_t *)data)[index];
    return dtype == DTYPE_BF16 ? ((const uint16_t *)data)[index] : ((const uint8_t *)data)[index];
}

FORMAT_INLINE float layout_value_of_bits(DType dtype, uint32_t bits)
{
    if (dtype == DTYPE_F32)
        return format_f32_value(bits);
    if (dtype == DTYPE_BF16)
        return format_f32_value(bits << 16);
    if (dtype == DTYPE_I8)
        return quant_of_int8(bits);
    return dtype == DTYPE_F8_E4M3 ? quant_of_e4m3(bits) : quant_mx_power(bits);
}
