// tile.c -- the table of tiles, and the portable row: plain C, right everywhere, fast nowhere.

#include "kernels/gemm/tile.h"
#include "kernels/cpu_math.h"
#include "kernels/gemm/tile_x86.h"

#include <math.h>

enum { PORTABLE_ROWS = 4, PORTABLE_COLUMNS = 16 };

static bool portable_supported(void)
{
    return true;
}

static void portable_multiply(const GemmTileCall *call)
{
    for (int i = 0; i < call->rows; i++) {
        float *sum = call->sum + i * call->sum_stride;
        for (int j = 0; j < PORTABLE_COLUMNS; j++) {
            float value = call->first ? 0.0f : sum[j];
            for (int64_t k = 0; k < call->k; k++)
                value =
                    fmaf(call->a[k * PORTABLE_ROWS + i], call->b[k * PORTABLE_COLUMNS + j], value);
            sum[j] = value;
        }
    }
}

static int64_t line_start(const GemmPack *pack, int64_t line)
{
    int64_t at = pack->first_line + line;
    return (pack->index ? pack->index[at] : at) * pack->stride + pack->first_element;
}

static void portable_pack_across(const GemmPack *pack)
{
    for (int64_t line = 0; line < pack->lines; line++)
        for (int64_t k = 0; k < pack->elements; k++)
            pack->out[k * pack->width + line] =
                cpu_load(pack->data, pack->dtype, line_start(pack, line) + k);
}

static void portable_pack_along(const GemmPack *pack)
{
    for (int64_t line = 0; line < pack->lines; line++)
        for (int64_t i = 0; i < pack->elements; i++) {
            int64_t panel = i / pack->per_panel;
            pack->out[panel * pack->panel_floats + line * pack->width + i % pack->per_panel] =
                cpu_load(pack->data, pack->dtype, line_start(pack, line) + i);
        }
}

static const GemmTile portable_tile = {
    .name = "portable",
    .rows = PORTABLE_ROWS,
    .columns = PORTABLE_COLUMNS,
    .a_width = PORTABLE_ROWS,
    .supported = portable_supported,
    .multiply = portable_multiply,
    .pack_across = portable_pack_across,
    .pack_along = portable_pack_along,
};

const GemmTile *gemm_tile_row(int index)
{
    static const GemmTile *const rows[] = {GEMM_TILES_X86 & portable_tile, NULL};
    return rows[index];
}

const GemmTile *gemm_tile_best(void)
{
    int index = 0;
    while (!gemm_tile_row(index)->supported())
        index++;
    return gemm_tile_row(index);
}
