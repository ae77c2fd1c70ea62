// reduce.c -- ordered sums of arrays and gated rows on the CPU. Memory bandwidth is the limit of
// both.

#include "kernels/reduce.h"
#include "kernels/cpu_math.h"

KERNEL_DEFINE(sum_parts, SumParts)
KERNEL_DEFINE(gate_rows, GateRows)

CPU_CLONES
static void sum_block(const SumParts *args, int64_t first, int64_t count)
{
    float sum[CPU_BLOCK];
    cpu_load_block(args->part, DTYPE_F32, first, count, sum);
    for (int part = 1; part < args->parts; part++) {
        const float *restrict from = args->part + part * args->part_stride + first;
        for (int64_t i = 0; i < count; i++)
            sum[i] += from[i];
    }
    cpu_store_block(args->out, args->out_dtype, first, count, sum);
}

void sum_parts_cpu(const SumParts *args, Stream stream)
{
    (void)stream;
    CHECK_RULE(args->parts > 0);
#pragma omp parallel for schedule(static) if (args->count >= CPU_PARALLEL_MIN)
    for (int64_t first = 0; first < args->count; first += CPU_BLOCK)
        sum_block(args, first, cpu_block_length(first, args->count));
}

KernelCost sum_parts_cost(const SumParts *args)
{
    double count = (double)args->count, parts = (double)args->parts;
    return (KernelCost){.bytes = count * (parts * 4.0 + (double)dtype_bytes(args->out_dtype, 1)),
                        .flops = count * (parts - 1.0)};
}

CPU_CLONES
static void gate_row(const GateRows *args, int64_t token, float gate)
{
    int64_t row = token * args->hidden;
    for (int64_t first = 0; first < args->hidden; first += CPU_BLOCK) {
        int64_t count = cpu_block_length(first, args->hidden);
        float value[CPU_BLOCK];
        cpu_load_block(args->x, args->dtype, row + first, count, value);
        for (int64_t i = 0; i < count; i++)
            value[i] *= gate;
        cpu_store_block(args->out, args->dtype, row + first, count, value);
    }
}

void gate_rows_cpu(const GateRows *args, Stream stream)
{
    (void)stream;
#pragma omp parallel for schedule(static) if (args->tokens * args->hidden >= CPU_PARALLEL_MIN)
    for (int64_t token = 0; token < args->tokens; token++) {
        float gate = 1.0f;
        if (args->logits)
            gate = cpu_sigmoid(args->logits[token * args->logits_stride]);
        if (args->gate_out)
            args->gate_out[token] = gate;
        if (args->x)
            gate_row(args, token, gate);
    }
}

KernelCost gate_rows_cost(const GateRows *args)
{
    double tokens = (double)args->tokens;
    double elements = args->x ? tokens * (double)args->hidden : 0.0;
    double gates = args->logits ? tokens : 0.0;
    return (KernelCost){.bytes = 2.0 * elements * (double)dtype_bytes(args->dtype, 1) +
                                 4.0 * (gates + (args->gate_out ? tokens : 0.0)),
                        .flops = elements + 4.0 * gates};
}
