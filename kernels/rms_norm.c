// rms_norm.c -- root mean square norm on the CPU: one row at a time, in blocks that stay in L1.
//
// Backward: a slab of rows belongs to one thread, which keeps the slab's part of dweight in the
// scratch memory. Memory bandwidth is the limit. Source: Zhang, Sennrich, "Root mean square layer
// normalization" (2019).

#include "kernels/rms_norm.h"
#include "kernels/cpu_math.h"

KERNEL_DEFINE(rms_norm_forward, RmsNormForward)
KERNEL_DEFINE(rms_norm_backward, RmsNormBackward)

static int64_t slabs_of(int64_t rows)
{
    return (rows + RMS_NORM_SLAB_ROWS - 1) / RMS_NORM_SLAB_ROWS;
}

uint64_t rms_norm_backward_scratch_bytes(int64_t rows, int64_t hidden)
{
    return (uint64_t)slabs_of(rows) * (uint64_t)hidden * sizeof(float);
}

CPU_CLONES
static void forward_row(const RmsNormForward *args, int64_t row)
{
    int64_t hidden = args->hidden, start = row * hidden;
    float lane[CPU_DOT_LANES] = {0}, x[CPU_BLOCK], weight[CPU_BLOCK];
    for (int64_t first = 0; first < hidden; first += CPU_BLOCK) {
        int64_t count = cpu_block_length(first, hidden);
        cpu_load_block(args->x, args->dtype, start + first, count, x);
        cpu_dot_block(lane, x, x, count);
    }
    float rstd = 1.0f / sqrtf(cpu_lane_sum(lane) / (float)hidden + args->eps);
    for (int64_t first = 0; first < hidden; first += CPU_BLOCK) {
        int64_t count = cpu_block_length(first, hidden);
        cpu_load_block(args->x, args->dtype, start + first, count, x);
        cpu_load_block(args->weight, args->dtype, first, count, weight);
        for (int64_t i = 0; i < count; i++)
            x[i] = x[i] * rstd * weight[i];
        cpu_store_block(args->y, args->dtype, start + first, count, x);
    }
    if (args->rstd_out)
        args->rstd_out[row] = rstd;
}

void rms_norm_forward_cpu(const RmsNormForward *args, Stream stream)
{
    (void)stream;
#pragma omp parallel for schedule(static) if (args->rows * args->hidden >= CPU_PARALLEL_MIN)
    for (int64_t row = 0; row < args->rows; row++)
        forward_row(args, row);
}

KernelCost rms_norm_forward_cost(const RmsNormForward *args)
{
    double rows = (double)args->rows, hidden = (double)args->hidden, elements = rows * hidden;
    return (KernelCost){.bytes = (2.0 * elements + hidden) * (double)dtype_bytes(args->dtype, 1) +
                                 (args->rstd_out ? 4.0 * rows : 0.0),
                        .flops = 4.0 * elements};
}

// n = x rstd and g = dy weight of elements first .. first + count of a row; dy as well.
typedef struct NormBlock {
    float n[CPU_BLOCK], g[CPU_BLOCK], dy[CPU_BLOCK];
} NormBlock;

CPU_INLINE void load_norm_block(const RmsNormBackward *args, int64_t row, int64_t first,
                                int64_t count, NormBlock *block)
{
    int64_t at = row * args->hidden + first;
    float rstd = args->rstd[row];
    cpu_load_block(args->x, args->dtype, at, count, block->n);
    cpu_load_block(args->dy, args->dtype, at, count, block->dy);
    cpu_load_block(args->weight, args->dtype, first, count, block->g);
    for (int64_t i = 0; i < count; i++) {
        block->n[i] *= rstd;
        block->g[i] *= block->dy[i];
    }
}

// Adds the row's dy n to `dweight` (may be NULL) and makes its dx.
CPU_CLONES
static void backward_row(const RmsNormBackward *args, int64_t row, float *restrict dweight)
{
    int64_t hidden = args->hidden;
    float lane[CPU_DOT_LANES] = {0}, rstd = args->rstd[row];
    NormBlock block;
    for (int64_t first = 0; first < hidden; first += CPU_BLOCK) {
        int64_t count = cpu_block_length(first, hidden);
        load_norm_block(args, row, first, count, &block);
        cpu_dot_block(lane, block.g, block.n, count);
    }
    float mean = cpu_lane_sum(lane) / (float)hidden;
    for (int64_t first = 0; first < hidden; first += CPU_BLOCK) {
        int64_t count = cpu_block_length(first, hidden), at = row * hidden + first;
        float addend[CPU_BLOCK];
        load_norm_block(args, row, first, count, &block);
        if (args->addend)
            cpu_load_block(args->addend, args->dtype, at, count, addend);
        for (int64_t i = 0; i < count && dweight; i++)
            dweight[first + i] = fmaf(block.dy[i], block.n[i], dweight[first + i]);
        for (int64_t i = 0; i < count; i++)
            block.g[i] = fmaf(-block.n[i], mean, block.g[i]);
        if (args->addend)
            for (int64_t i = 0; i < count; i++)
                block.g[i] = fmaf(rstd, block.g[i], addend[i]);
        else
            for (int64_t i = 0; i < count; i++)
                block.g[i] *= rstd;
        cpu_store_block(args->dx, args->dtype, at, count, block.g);
    }
}

static void backward_slab(const RmsNormBackward *args, int64_t slab)
{
    int64_t begin = slab * RMS_NORM_SLAB_ROWS, end = begin + RMS_NORM_SLAB_ROWS;
    float *dweight = args->dweight ? args->scratch + slab * args->hidden : NULL;
    if (dweight)
        memset(dweight, 0, (size_t)args->hidden * sizeof(float));
    for (int64_t row = begin; row < end && row < args->rows; row++)
        backward_row(args, row, dweight);
}

CPU_CLONES
static void add_slabs(const RmsNormBackward *args, int64_t slabs)
{
    int64_t hidden = args->hidden;
    for (int64_t first = 0; first < hidden; first += CPU_BLOCK) {
        int64_t count = cpu_block_length(first, hidden);
        float sum[CPU_BLOCK] = {0};
        for (int64_t slab = 0; slab < slabs; slab++) {
            const float *restrict part = args->scratch + slab * hidden + first;
            for (int64_t i = 0; i < count; i++)
                sum[i] += part[i];
        }
        for (int64_t i = 0; i < count; i++)
            args->dweight[first + i] =
                args->accumulate ? args->dweight[first + i] + sum[i] : sum[i];
    }
}

void rms_norm_backward_cpu(const RmsNormBackward *args, Stream stream)
{
    (void)stream;
    int64_t slabs = slabs_of(args->rows);
#pragma omp parallel for schedule(static) if (args->rows * args->hidden >= CPU_PARALLEL_MIN)
    for (int64_t slab = 0; slab < slabs; slab++)
        backward_slab(args, slab);
    if (args->dweight)
        add_slabs(args, slabs);
}

KernelCost rms_norm_backward_cost(const RmsNormBackward *args)
{
    double rows = (double)args->rows, hidden = (double)args->hidden, elements = rows * hidden;
    double matrices = args->addend ? 4.0 : 3.0;
    double dweights = args->dweight ? (args->accumulate ? 2.0 : 1.0) * hidden : 0.0;
    return (KernelCost){.bytes =
                            (matrices * elements + hidden) * (double)dtype_bytes(args->dtype, 1) +
                            4.0 * (rows + dweights),
                        .flops = (args->dweight ? 9.0 : 7.0) * elements};
}
