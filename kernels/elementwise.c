// elementwise.c -- sums and copies of flat arrays, and sums of squares, on the CPU. Memory
// bandwidth is the limit.

#include "kernels/elementwise.h"
#include "kernels/cpu_math.h"

KERNEL_DEFINE(add_rows, AddRows)
KERNEL_DEFINE(cast_copy, CastCopy)
KERNEL_DEFINE(sum_squares, SumSquares)
KERNEL_DEFINE(clip_scale, ClipScale)

CPU_CLONES
static void add_block(const AddRows *args, int64_t first, int64_t count)
{
    float a[CPU_BLOCK], b[CPU_BLOCK];
    cpu_load_block(args->a, args->dtype, first, count, a);
    cpu_load_block(args->b, args->dtype, first, count, b);
    for (int64_t i = 0; i < count; i++)
        a[i] += b[i];
    cpu_store_block(args->y, args->dtype, first, count, a);
}

void add_rows_cpu(const AddRows *args, Stream stream)
{
    (void)stream;
#pragma omp parallel for schedule(static) if (args->count >= CPU_PARALLEL_MIN)
    for (int64_t first = 0; first < args->count; first += CPU_BLOCK)
        add_block(args, first, cpu_block_length(first, args->count));
}

KernelCost add_rows_cost(const AddRows *args)
{
    double count = (double)args->count;
    return (KernelCost){.bytes = 3.0 * count * (double)dtype_bytes(args->dtype, 1), .flops = count};
}

CPU_CLONES
static void cast_block(const CastCopy *args, int64_t first, int64_t count)
{
    float value[CPU_BLOCK];
    cpu_load_block(args->from, args->from_dtype, first, count, value);
    cpu_store_block(args->to, args->to_dtype, first, count, value);
}

void cast_copy_cpu(const CastCopy *args, Stream stream)
{
    (void)stream;
#pragma omp parallel for schedule(static) if (args->count >= CPU_PARALLEL_MIN)
    for (int64_t first = 0; first < args->count; first += CPU_BLOCK)
        cast_block(args, first, cpu_block_length(first, args->count));
}

KernelCost cast_copy_cost(const CastCopy *args)
{
    double bytes =
        (double)dtype_bytes(args->from_dtype, 1) + (double)dtype_bytes(args->to_dtype, 1);
    return (KernelCost){.bytes = (double)args->count * bytes};
}

static int64_t pieces_of(int64_t count)
{
    return (count + SUM_SQUARES_PIECE - 1) / SUM_SQUARES_PIECE;
}

uint64_t sum_squares_scratch_bytes(int64_t count)
{
    return (uint64_t)pieces_of(count) * sizeof(double);
}

CPU_CLONES
static double piece_squares(const SumSquares *args, int64_t begin, int64_t end)
{
    double sum[CPU_SUMS] = {0};
    float x[CPU_BLOCK];
    for (int64_t first = begin; first < end; first += CPU_BLOCK) {
        int64_t count = cpu_block_length(first, end);
        cpu_load_block(args->x, args->dtype, first, count, x);
        for (int64_t i = count; i < CPU_BLOCK; i++)
            x[i] = 0.0f;
        for (int64_t at = 0; at < CPU_BLOCK; at += CPU_SUMS)
            for (int i = 0; i < CPU_SUMS; i++)
                sum[i] += (double)x[at + i] * (double)x[at + i];
    }
    for (int apart = CPU_DOT_GROUP / 2; apart > 0; apart /= 2)
        for (int i = 0; i < CPU_SUMS; i++)
            if (i % CPU_DOT_GROUP < apart)
                sum[i] += sum[i + apart];
    for (int apart = CPU_SUMS / 2; apart >= CPU_DOT_GROUP; apart /= 2)
        for (int i = 0; i < apart; i += CPU_DOT_GROUP)
            sum[i] += sum[i + apart];
    return sum[0];
}

void sum_squares_cpu(const SumSquares *args, Stream stream)
{
    (void)stream;
    int64_t pieces = pieces_of(args->count);
#pragma omp parallel for schedule(static) if (args->count >= CPU_PARALLEL_MIN)
    for (int64_t piece = 0; piece < pieces; piece++) {
        int64_t begin = piece * SUM_SQUARES_PIECE, end = begin + SUM_SQUARES_PIECE;
        args->scratch[piece] = piece_squares(args, begin, end < args->count ? end : args->count);
    }
    double sum[CPU_SUMS_F64] = {0};
    for (int64_t piece = 0; piece < pieces; piece++)
        sum[piece % CPU_SUMS_F64] += args->scratch[piece];
    double total = cpu_pairwise_sum(sum);
    *args->sum = args->accumulate ? *args->sum + total : total;
}

KernelCost sum_squares_cost(const SumSquares *args)
{
    double count = (double)args->count;
    return (KernelCost){.bytes = count * (double)dtype_bytes(args->dtype, 1) + 8.0,
                        .flops = 2.0 * count};
}

void clip_scale_cpu(const ClipScale *args, Stream stream)
{
    (void)stream;
    double norm = sqrt(*args->sum), scale = args->max_norm / (norm + CLIP_SCALE_EPSILON);
    *args->scale = scale > 1.0 ? 1.0f : (float)scale;
    if (args->norm)
        *args->norm = (float)norm;
}

KernelCost clip_scale_cost(const ClipScale *args)
{
    return (KernelCost){.bytes = args->norm ? 16.0 : 12.0, .flops = 3.0};
}
