// cross_entropy.c -- the loss over a divided vocabulary on the CPU: one row at a time, in blocks
// that stay in L1. The exponential is the limit.

#include "kernels/cross_entropy.h"
#include "kernels/cpu_math.h"

KERNEL_DEFINE(cross_entropy_row_max, CrossEntropyRowMax)
KERNEL_DEFINE(cross_entropy_row_sum, CrossEntropyRowSum)
KERNEL_DEFINE(cross_entropy_loss, CrossEntropyLoss)
KERNEL_DEFINE(cross_entropy_backward, CrossEntropyBackward)

// The target's column here, or -1.
static int64_t local_target(int64_t target, int64_t vocab_first, int64_t vocab_count)
{
    int64_t column = target - vocab_first;
    return target != CROSS_ENTROPY_IGNORED && column >= 0 && column < vocab_count ? column : -1;
}

CPU_CLONES
static float max_of_row(const CrossEntropyRowMax *args, int64_t row)
{
    float lane[CPU_SUMS], x[CPU_BLOCK];
    for (int i = 0; i < CPU_SUMS; i++)
        lane[i] = -INFINITY;
    for (int64_t first = 0; first < args->vocab_count; first += CPU_BLOCK) {
        int64_t count = cpu_block_length(first, args->vocab_count);
        cpu_load_block(args->logits, args->dtype, row * args->vocab_count + first, count, x);
        for (int64_t i = count; i < CPU_BLOCK; i++)
            x[i] = -INFINITY;
        for (int64_t at = 0; at < CPU_BLOCK; at += CPU_SUMS)
            for (int i = 0; i < CPU_SUMS; i++)
                lane[i] = x[at + i] > lane[i] ? x[at + i] : lane[i];
    }
    float largest = -INFINITY;
    for (int i = 0; i < CPU_SUMS; i++)
        largest = lane[i] > largest ? lane[i] : largest;
    return largest;
}

void cross_entropy_row_max_cpu(const CrossEntropyRowMax *args, Stream stream)
{
    (void)stream;
#pragma omp parallel for schedule(static) if (args->rows * args->vocab_count >= CPU_PARALLEL_MIN)
    for (int64_t row = 0; row < args->rows; row++)
        args->row_max[row] = max_of_row(args, row);
}

KernelCost cross_entropy_row_max_cost(const CrossEntropyRowMax *args)
{
    double rows = (double)args->rows, elements = rows * (double)args->vocab_count;
    return (KernelCost){.bytes = elements * (double)dtype_bytes(args->dtype, 1) + 4.0 * rows,
                        .flops = elements};
}

// x becomes e^(x - largest).
CPU_INLINE void exp_block(float *x, float largest, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = cpu_exp_negative(x[i] - largest);
}

CPU_CLONES
static float sum_of_row(const CrossEntropyRowSum *args, int64_t row)
{
    float sum[CPU_SUMS] = {0}, x[CPU_BLOCK];
    for (int64_t first = 0; first < args->vocab_count; first += CPU_BLOCK) {
        int64_t count = cpu_block_length(first, args->vocab_count);
        cpu_load_block(args->logits, args->dtype, row * args->vocab_count + first, count, x);
        exp_block(x, args->row_max[row], count);
        for (int64_t i = count; i < CPU_BLOCK; i++)
            x[i] = 0.0f;
        for (int64_t at = 0; at < CPU_BLOCK; at += CPU_SUMS)
            for (int i = 0; i < CPU_SUMS; i++)
                sum[i] += x[at + i];
    }
    for (int apart = CPU_DOT_GROUP / 2; apart > 0; apart /= 2)
        for (int i = 0; i < CPU_SUMS; i++)
            if (i % CPU_DOT_GROUP < apart)
                sum[i] += sum[i + apart];
    float lane[CPU_DOT_LANES];
    for (int i = 0; i < CPU_DOT_LANES; i++)
        lane[i] = sum[i * CPU_DOT_GROUP];
    return cpu_lane_sum(lane);
}

void cross_entropy_row_sum_cpu(const CrossEntropyRowSum *args, Stream stream)
{
    (void)stream;
#pragma omp parallel for schedule(static) if (args->rows * args->vocab_count >= CPU_PARALLEL_MIN)
    for (int64_t row = 0; row < args->rows; row++) {
        int64_t column = local_target(args->targets[row], args->vocab_first, args->vocab_count);
        args->row_sum[row] = sum_of_row(args, row);
        args->target_logit[row] =
            column < 0 ? 0.0f
                       : cpu_load(args->logits, args->dtype, row * args->vocab_count + column);
    }
}

KernelCost cross_entropy_row_sum_cost(const CrossEntropyRowSum *args)
{
    double rows = (double)args->rows, elements = rows * (double)args->vocab_count;
    return (KernelCost){.bytes = elements * (double)dtype_bytes(args->dtype, 1) + 16.0 * rows,
                        .flops = 3.0 * elements};
}

void cross_entropy_loss_cpu(const CrossEntropyLoss *args, Stream stream)
{
    (void)stream;
    double sum[CPU_SUMS_F64] = {0};
    int64_t counted = 0;
    for (int64_t row = 0; row < args->rows; row++) {
        float loss = 0.0f;
        if (args->targets[row] != CROSS_ENTROPY_IGNORED) {
            double below = (double)args->row_max[row] - (double)args->target_logit[row];
            loss = (float)(log((double)args->row_sum[row]) + below);
            counted++;
        }
        if (args->loss)
            args->loss[row] = loss;
        sum[row % CPU_SUMS_F64] += (double)loss;
    }
    double total = cpu_pairwise_sum(sum);
    double *totals = args->totals;
    totals[CROSS_ENTROPY_SUM] = (args->accumulate ? totals[CROSS_ENTROPY_SUM] : 0.0) + total;
    totals[CROSS_ENTROPY_COUNT] =
        (args->accumulate ? totals[CROSS_ENTROPY_COUNT] : 0.0) + (double)counted;
}

KernelCost cross_entropy_loss_cost(const CrossEntropyLoss *args)
{
    double rows = (double)args->rows;
    return (KernelCost){.bytes = (args->loss ? 20.0 : 16.0) * rows +
                                 8.0 * CROSS_ENTROPY_TOTALS * (args->accumulate ? 2.0 : 1.0),
                        .flops = 4.0 * rows};
}

CPU_CLONES
static void backward_row(const CrossEntropyBackward *args, int64_t row, float scale)
{
    int64_t vocab = args->vocab_count;
    int64_t column = local_target(args->targets[row], args->vocab_first, vocab);
    float inverse = 1.0f / args->row_sum[row];
    for (int64_t first = 0; first < vocab; first += CPU_BLOCK) {
        int64_t count = cpu_block_length(first, vocab);
        float x[CPU_BLOCK];
        cpu_load_block(args->logits, args->dtype, row * vocab + first, count, x);
        exp_block(x, args->row_max[row], count);
        for (int64_t i = 0; i < count; i++)
            x[i] *= inverse;
        if (column >= first && column < first + count)
            x[column - first] -= 1.0f;
        for (int64_t i = 0; i < count; i++)
            x[i] *= scale;
        cpu_store_block(args->dlogits, args->dtype, row * vocab + first, count, x);
    }
}

void cross_entropy_backward_cpu(const CrossEntropyBackward *args, Stream stream)
{
    (void)stream;
    int64_t row_bytes = (int64_t)dtype_bytes(args->dtype, (uint64_t)args->vocab_count);
    float scale = args->count ? (float)((double)args->scale / *args->count) : args->scale;
#pragma omp parallel for schedule(static) if (args->rows * args->vocab_count >= CPU_PARALLEL_MIN)
    for (int64_t row = 0; row < args->rows; row++) {
        if (args->targets[row] == CROSS_ENTROPY_IGNORED)
            memset((char *)args->dlogits + row * row_bytes, 0, (size_t)row_bytes);
        else
            backward_row(args, row, scale);
    }
}

KernelCost cross_entropy_backward_cost(const CrossEntropyBackward *args)
{
    double rows = (double)args->rows, elements = rows * (double)args->vocab_count;
    return (KernelCost){.bytes = 2.0 * elements * (double)dtype_bytes(args->dtype, 1) +
                                 12.0 * rows + (args->count ? 8.0 : 0.0),
                        .flops = 5.0 * elements};
}
