// quant_gemm.c -- products of quantised operands on the CPU: the definition as plain loops, and
// panels of f32 through the tiles of grouped_gemm.
//
// Rows of a are turned into panels once; each strip of b when it is needed, by the thread that
// needs it, and stays in its cache for all rows of the group. A tile's chain ends with a block of
// columns and is then multiplied by the block's scales.
#include "kernels/quant_gemm.h"

#include "kernels/cpu_math.h"
#include "kernels/gemm/tile.h"
#include "quant/units.h"

#include <math.h>
#include <omp.h>

KERNEL_DEFINE(quant_gemm, QuantGemm)

enum {
    INTEGER_COLUMNS = 1024, // so many products of int8 are exact in f32
    ALIGN = 64,
    PARALLEL_MIN = 1 << 22, // products below which threads are not woken
};

static int64_t divide_up(int64_t value, int64_t by)
{
    return (value + by - 1) / by;
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

// ---- groups ----

static int64_t first_of(const QuantGemm *args, int group)
{
    return args->group_first ? args->group_first[group] : 0;
}

static int64_t rows_of(const QuantGemm *args, int group)
{
    return args->group_rows ? args->group_rows[group] : args->rows_max;
}

// ---- operands ----

static bool is_integer(const QuantOperand *o)
{
    return o->quantised && (o->q.rule.code == CODE_INT8 || o->q.rule.code == CODE_INT4);
}

static bool takes_codes(const QuantGemm *args, const QuantOperand *o)
{
    return o->quantised && args->product != PRODUCT_VALUES;
}

static bool exact(const QuantGemm *args)
{
    return args->product != PRODUCT_VALUES && is_integer(&args->a) && is_integer(&args->b);
}

// Row `at` of an operand with `rows` rows per matrix.
static void load_row(const QuantGemm *args, const QuantOperand *o, UnitRow at, int64_t rows,
                     float *out, int64_t stride)
{
    if (takes_codes(args, o)) {
        units_of_codes(&o->q, at, out, stride);
    } else if (o->quantised) {
        units_of_values(&o->q, args->dtype, at, out, stride);
    } else {
        for (int64_t k = 0; k < args->k; k++)
            out[k * stride] =
                cpu_load(o->values, args->dtype, (at.matrix * rows + at.row) * args->k + k);
    }
}

static int64_t block_of(const QuantGemm *args, const QuantOperand *o)
{
    return takes_codes(args, o) && o->q.rule.block_columns ? o->q.rule.block_columns : args->k;
}

// Columns under one scale of each operand.
static int64_t block_columns(const QuantGemm *args)
{
    int64_t block = smaller(block_of(args, &args->a), block_of(args, &args->b));
    return block > 0 ? block : 1;
}

static float scale_of(const QuantGemm *args, const QuantOperand *o, UnitRow at, int64_t column)
{
    return takes_codes(args, o) ? units_scale(&o->q, at, column / block_of(args, o)) : 1.0f;
}

static float tensor_scale_of(const QuantGemm *args, const QuantOperand *o, UnitRow at)
{
    return takes_codes(args, o) ? units_tensor_scale(&o->q, at) : 1.0f;
}

static bool two_levels(const QuantGemm *args)
{
    return takes_codes(args, &args->a) && args->a.q.rule.two_level && takes_codes(args, &args->b) &&
           args->b.q.rule.two_level;
}

// ---- what follows the sums ----

static float finish(const QuantGemm *args, float sum, float scale_a, float scale_b)
{
    if (args->product == PRODUCT_ROUNDED)
        return quant_round(args->dtype, sum * scale_a) * quant_round(args->dtype, scale_b);
    if (two_levels(args)) // scale_a, scale_b: of the tensors
        return quant_round(args->dtype, sum) * quant_round(args->dtype, scale_a * scale_b);
    return sum;
}

static void store(const QuantGemm *args, int64_t index, float value)
{
    if (args->accumulate)
        value += ((const float *)args->c)[index];
    cpu_store(args->c, args->out_dtype, index, value);
}

// ---- definition ----

typedef struct Rows {
    const float *a, *b; // [k]
    UnitRow at_a, at_b;
} Rows;

static float chain_of(const QuantGemm *args, const Rows *rows, int64_t first, int64_t last)
{
    float chain = 0;
    double whole = 0;
    for (int64_t k = first; k < last; k++) {
        chain = fmaf(rows->a[k], rows->b[k], chain);
        whole += (double)rows->a[k] * (double)rows->b[k];
    }
    return exact(args) ? (float)whole : chain;
}

static float element(const QuantGemm *args, const Rows *rows)
{
    int64_t block = block_columns(args);
    if (args->product == PRODUCT_VALUES)
        return chain_of(args, rows, 0, args->k);
    if (args->product == PRODUCT_ROUNDED)
        return finish(args, chain_of(args, rows, 0, args->k),
                      scale_of(args, &args->a, rows->at_a, 0),
                      scale_of(args, &args->b, rows->at_b, 0));
    float sum = 0;
    for (int64_t first = 0; first < args->k; first += block) {
        float scale = scale_of(args, &args->a, rows->at_a, first) *
                      scale_of(args, &args->b, rows->at_b, first);
        float product = chain_of(args, rows, first, smaller(first + block, args->k)) * scale;
        sum = sum + product;
    }
    return finish(args, sum, tensor_scale_of(args, &args->a, rows->at_a),
                  tensor_scale_of(args, &args->b, rows->at_b));
}

// The operand as one group's sums see it: its own scales.
static QTensor of_group(const QTensor *q, int group)
{
    QTensor part = *q;
    if (q->rule.block_columns == 0)
        part.scales =
            (char *)q->scales + dtype_bytes(q->rule.scale_dtype, (uint64_t)(group * q->rows));
    return part;
}

// One element of a group's c; a and b: codes of all columns.
static float element_of_group(const QuantGemm *args, const Rows *rows, int group)
{
    QTensor a = of_group(&args->a.q, group), b = of_group(&args->b.q, group);
    int64_t block = block_columns(args), first = first_of(args, group),
            sum_to = rows_of(args, group);
    float sum = 0;
    for (int64_t done = 0; done < sum_to; done += block) {
        int64_t at = first + done;
        float scale = units_scale(&a, rows->at_a, at / block_of(args, &args->a)) *
                      units_scale(&b, rows->at_b, at / block_of(args, &args->b));
        float product = chain_of(args, rows, at, smaller(at + block, first + sum_to)) * scale;
        sum = sum + product;
    }
    return sum;
}

static void reference_over_groups(const QuantGemm *args, float *a, float *b)
{
    CHECK_RULE(args->product == PRODUCT_SCALED && args->a.quantised && args->b.quantised);
    for (int64_t m = 0; m < args->rows_max; m++) {
        units_of_codes(&args->a.q, (UnitRow){0, m}, a, 1);
        for (int64_t n = 0; n < args->n; n++) {
            Rows rows = {.a = a, .b = b, .at_a = {0, m}, .at_b = {0, n}};
            units_of_codes(&args->b.q, rows.at_b, b, 1);
            for (int group = 0; group < args->groups; group++)
                store(args, (group * args->rows_max + m) * args->n + n,
                      element_of_group(args, &rows, group));
        }
    }
}

void quant_gemm_reference(const QuantGemm *args)
{
    float *a = device_allocate(DEVICE_CPU, 2 * (uint64_t)args->k * sizeof(float)), *b = a + args->k;
    if (args->sums_over_groups)
        reference_over_groups(args, a, b);
    for (int group = 0; group < args->groups && !args->sums_over_groups; group++)
        for (int64_t n = 0; n < args->n; n++) {
            Rows rows = {.a = a, .b = b, .at_b = {group, n}};
            load_row(args, &args->b, rows.at_b, args->n, b, 1);
            for (int64_t i = 0; i < rows_of(args, group); i++) {
                rows.at_a = (UnitRow){0, first_of(args, group) + i};
                load_row(args, &args->a, rows.at_a, args->rows_max, a, 1);
                store(args, rows.at_a.row * args->n + n, element(args, &rows));
            }
        }
    device_free(DEVICE_CPU, a);
}

// ---- panels ----

// Where everything lies in the workspace. A panel of a has tile->rows rows of one group, for every
// k a_width floats; a strip of b has tile->columns rows of b. Behind each are its scales, per
// block.
typedef struct Plan {
    const GemmTile *tile;
    int64_t block, blocks;
    int64_t panel_floats, strip_floats; // one panel with its scales, one strip
    int64_t panels_max, strips;         // of all groups; of one
    float *panels, *strip_of_thread;
    int64_t *panel_of_group; // [groups + 1] the first of each
} Plan;

static int64_t aligned(int64_t floats)
{
    return divide_up(floats, ALIGN) * ALIGN;
}

static Plan plan_of(const QuantGemm *args, const GemmTile *tile)
{
    Plan p = {.tile = tile, .block = block_columns(args)};
    p.blocks = divide_up(args->k, p.block);
    p.panel_floats = aligned((args->k + p.blocks) * tile->a_width);
    p.strip_floats = aligned((args->k + p.blocks) * tile->columns);
    p.panels_max = args->rows_max / tile->rows + args->groups;
    p.strips = divide_up(args->n, tile->columns);
    char *start = args->workspace;
    start += (ALIGN - (uintptr_t)start % ALIGN) % ALIGN;
    p.panels = (float *)(void *)start;
    p.strip_of_thread = p.panels + p.panels_max * p.panel_floats;
    p.panel_of_group = (int64_t *)(void *)(p.strip_of_thread + args->threads * p.strip_floats);
    return p;
}

uint64_t quant_gemm_workspace_bytes(const QuantGemm *args, DeviceKind device)
{
    if (device == DEVICE_CUDA)
        return quant_gemm_workspace_bytes_cuda ? quant_gemm_workspace_bytes_cuda(args) : 0;
    Plan p = plan_of(args, gemm_tile_best());
    int64_t floats = p.panels_max * p.panel_floats + args->threads * p.strip_floats;
    return (uint64_t)floats * sizeof(float) + (uint64_t)(args->groups + 1) * sizeof(int64_t) +
           ALIGN;
}

// `count` rows from `at` on: [k, width] and [blocks, width] scales behind; missing rows are zeros.
static void pack_rows(const QuantGemm *args, const Plan *p, const QuantOperand *o, UnitRow at,
                      int64_t count, float *out)
{
    bool is_a = o == &args->a;
    int64_t width = is_a ? p->tile->a_width : p->tile->columns;
    float *scales = out + args->k * width;
    if (count < width)
        memset(out, 0, (size_t)((args->k + p->blocks) * width) * sizeof(float));
    for (int64_t i = 0; i < count; i++) {
        UnitRow row = {at.matrix, at.row + i};
        load_row(args, o, row, is_a ? args->rows_max : args->n, out + i, width);
        for (int64_t block = 0; block < p->blocks && args->product != PRODUCT_VALUES; block++)
            scales[block * width + i] = scale_of(args, o, row, block * p->block);
    }
}

// One tile of c: `rows` x columns, from one panel and one strip.
typedef struct Tile {
    const float *a, *b;
    UnitRow at_a, at_b; // first rows
    int64_t rows, columns;
} Tile;

enum { SUMS_MAX = 16 * GEMM_TILE_COLUMNS_MAX };

static void multiply(const Plan *p, const Tile *t, int64_t first, int64_t count, bool start,
                     float *sums)
{
    p->tile->multiply(&(GemmTileCall){.rows = (int)t->rows,
                                      .k = count,
                                      .first = start,
                                      .a = t->a + first * p->tile->a_width,
                                      .b = t->b + first * p->tile->columns,
                                      .sum = sums,
                                      .sum_stride = p->tile->columns});
}

// Exact sums of whole numbers, a run of columns at a time.
static void multiply_exact(const Plan *p, const Tile *t, int64_t first, int64_t count, float *sums)
{
    double whole[SUMS_MAX] = {0};
    for (int64_t done = 0; done < count; done += INTEGER_COLUMNS) {
        multiply(p, t, first + done, smaller(INTEGER_COLUMNS, count - done), true, sums);
        for (int64_t i = 0; i < t->rows * p->tile->columns; i++)
            whole[i] += (double)sums[i];
    }
    for (int64_t i = 0; i < t->rows * p->tile->columns; i++)
        sums[i] = (float)whole[i];
}

CPU_CLONES
static void add_scaled(const float *restrict sums, float scale_a, const float *restrict scale_b,
                       int64_t columns, float *restrict total)
{
    for (int64_t j = 0; j < columns; j++) {
        float product = sums[j] * (scale_a * scale_b[j]);
        total[j] = total[j] + product;
    }
}

// total [rows, tile->columns]
static void tile_sums(const QuantGemm *args, const Plan *p, const Tile *t, float *total)
{
    const int64_t width = p->tile->columns, a_width = p->tile->a_width;
    const float *scale_a = t->a + args->k * a_width, *scale_b = t->b + args->k * width;
    bool whole = exact(args);
    if (args->product != PRODUCT_SCALED) {
        if (whole)
            multiply_exact(p, t, 0, args->k, total);
        else
            multiply(p, t, 0, args->k, true, total);
        return;
    }
    float sums[SUMS_MAX];
    memset(total, 0, (size_t)(t->rows * width) * sizeof(float));
    for (int64_t block = 0; block < p->blocks; block++) {
        int64_t first = block * p->block, count = smaller(p->block, args->k - first);
        if (whole)
            multiply_exact(p, t, first, count, sums);
        else
            multiply(p, t, first, count, true, sums);
        for (int64_t i = 0; i < t->rows; i++)
            add_scaled(sums + i * width, scale_a[block * a_width + i], scale_b + block * width,
                       width, total + i * width);
    }
}

static void store_tile(const QuantGemm *args, const Plan *p, const Tile *t, const float *total)
{
    const int64_t width = p->tile->columns;
    bool rounded = args->product == PRODUCT_ROUNDED;
    const float *scale_a = t->a + args->k * p->tile->a_width, *scale_b = t->b + args->k * width;
    for (int64_t i = 0; i < t->rows; i++)
        for (int64_t j = 0; j < t->columns; j++) {
            UnitRow a = {0, t->at_a.row + i}, b = {t->at_b.matrix, t->at_b.row + j};
            float sa = rounded ? scale_a[i] : tensor_scale_of(args, &args->a, a);
            float sb = rounded ? scale_b[j] : tensor_scale_of(args, &args->b, b);
            store(args, a.row * args->n + b.row, finish(args, total[i * width + j], sa, sb));
        }
}

// Panel `index` of all groups.
static void run_panel(const QuantGemm *args, const Plan *p, int64_t index)
{
    int group = 0;
    while (p->panel_of_group[group + 1] <= index)
        group++;
    int64_t done = (index - p->panel_of_group[group]) * p->tile->rows;
    pack_rows(args, p, &args->a, (UnitRow){0, first_of(args, group) + done},
              smaller(p->tile->rows, rows_of(args, group) - done),
              p->panels + index * p->panel_floats);
}

// A strip of one group's b, against all panels of the group.
static void run_strip(const QuantGemm *args, const Plan *p, int group, int64_t strip)
{
    float total[SUMS_MAX];
    float *b = p->strip_of_thread + omp_get_thread_num() * p->strip_floats;
    Tile t = {.b = b, .at_b = {group, strip * p->tile->columns}};
    t.columns = smaller(p->tile->columns, args->n - t.at_b.row);
    if (rows_of(args, group) == 0)
        return;
    pack_rows(args, p, &args->b, t.at_b, t.columns, b);
    t.a = p->panels + p->panel_of_group[group] * p->panel_floats;
    for (int64_t row = 0; row < rows_of(args, group); row += p->tile->rows) {
        t.at_a = (UnitRow){0, first_of(args, group) + row};
        t.rows = smaller(p->tile->rows, rows_of(args, group) - row);
        tile_sums(args, p, &t, total);
        store_tile(args, p, &t, total);
        t.a += p->panel_floats;
    }
}

void quant_gemm_cpu(const QuantGemm *args, Stream stream)
{
    (void)stream;
    CHECK_RULE(args->threads >= 1 && (!args->accumulate || args->out_dtype == DTYPE_F32));
    if (args->sums_over_groups) {
        quant_gemm_reference(args);
        return;
    }
    Plan p = plan_of(args, gemm_tile_best());
    CHECK_RULE(p.tile->rows * p.tile->columns <= SUMS_MAX);
    int64_t rows = 0;
    p.panel_of_group[0] = 0;
    for (int group = 0; group < args->groups; group++) {
        rows += rows_of(args, group);
        p.panel_of_group[group + 1] =
            p.panel_of_group[group] + divide_up(rows_of(args, group), p.tile->rows);
    }
    bool alone = rows * args->n * args->k < PARALLEL_MIN;
    int64_t panels = p.panel_of_group[args->groups], strips = args->groups * p.strips;
#pragma omp parallel num_threads(alone ? 1 : args->threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < panels; i++)
            run_panel(args, &p, i);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < strips; i++)
            run_strip(args, &p, (int)(i / p.strips), i % p.strips);
    }
}

KernelCost quant_gemm_cost(const QuantGemm *args)
{
    const QuantOperand *operands[] = {&args->a, &args->b};
    const bool over_groups = args->sums_over_groups;
    double rows = (double)(over_groups ? args->groups * args->rows_max : args->rows_expected);
    double bytes =
        rows * (double)args->n * (double)dtype_bytes(args->out_dtype, args->accumulate ? 2 : 1);
    for (int i = 0; i < 2; i++) {
        int64_t elements = (i ? args->groups * args->n : args->rows_expected) * args->k;
        bytes += operands[i]->quantised ? (double)qtensor_bytes(&operands[i]->q).total
                                        : (double)dtype_bytes(args->dtype, (uint64_t)elements);
    }
    return (KernelCost){.bytes = bytes,
                        .flops = 2.0 * (double)args->rows_expected * (double)args->n *
                                 (double)(over_groups ? args->rows_max : args->k)};
}
