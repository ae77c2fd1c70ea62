// swiglu.c -- the gated activation on the CPU, forward and backward: one row at a time, in blocks
// that stay in L1.
//
// silu'(g) = s + g s (1 - s) = s (1 + g (1 - s)), s = sigmoid(g). A block is read completely before
// any of it is written, so the outputs may lie over the inputs. Memory bandwidth is the limit with
// vector code, the exponential without. Source: Shazeer, "GLU variants improve transformer" (2020).

#include "kernels/swiglu.h"
#include "kernels/cpu_math.h"

KERNEL_DEFINE(swiglu_forward, SwigluForward)
KERNEL_DEFINE(swiglu_backward, SwigluBackward)

bool swiglu_casts(const QTensor *cast, int64_t inner, DeviceKind device)
{
    return device == DEVICE_CUDA && swiglu_casts_cuda && swiglu_casts_cuda(cast, inner);
}

CPU_CLONES
static void forward_row(const SwigluForward *args, int64_t row)
{
    int64_t inner = args->inner, gate = row * 2 * inner, up = gate + inner;
    for (int64_t first = 0; first < inner; first += CPU_BLOCK) {
        int64_t count = cpu_block_length(first, inner);
        float g[CPU_BLOCK], u[CPU_BLOCK], a[CPU_BLOCK];
        cpu_load_block(args->gu, args->dtype, gate + first, count, g);
        cpu_load_block(args->gu, args->dtype, up + first, count, u);
        for (int64_t i = 0; i < count; i++)
            a[i] = g[i] * cpu_sigmoid(g[i]) * u[i];
        cpu_store_block(args->a, args->dtype, row * inner + first, count, a);
    }
}

void swiglu_forward_cpu(const SwigluForward *args, Stream stream)
{
    (void)stream;
    int64_t rows = *args->rows_total;
    CHECK_RULE(rows <= args->rows_max && !args->cast);
#pragma omp parallel for schedule(static) if (rows * args->inner >= CPU_PARALLEL_MIN)
    for (int64_t row = 0; row < rows; row++)
        if (!args->row_map || args->row_map[row] >= 0)
            forward_row(args, row);
}

// rows_max rows: what is real is known on the device only.
KernelCost swiglu_forward_cost(const SwigluForward *args)
{
    double elements = (double)args->rows_max * (double)args->inner;
    return (KernelCost){.bytes = 3.0 * elements * (double)dtype_bytes(args->dtype, 1),
                        .flops = 5.0 * elements};
}

// Returns <da, a> of the row.
CPU_CLONES
static float backward_row(const SwigluBackward *args, int64_t row)
{
    int64_t inner = args->inner, gate = row * 2 * inner, up = gate + inner;
    float weight = args->weight ? args->weight[row] : 1.0f;
    float lane[CPU_DOT_LANES] = {0};
    for (int64_t first = 0; first < inner; first += CPU_BLOCK) {
        int64_t count = cpu_block_length(first, inner), at = row * inner + first;
        float g[CPU_BLOCK], u[CPU_BLOCK], da[CPU_BLOCK], a[CPU_BLOCK];
        cpu_load_block(args->gu, args->dtype, gate + first, count, g);
        cpu_load_block(args->gu, args->dtype, up + first, count, u);
        cpu_load_block(args->da, args->dtype, at, count, da);
        for (int64_t i = 0; i < count; i++)
            a[i] = g[i] * cpu_sigmoid(g[i]) * u[i];
        cpu_round_block(a, args->dtype, count);
        if (args->dweight)
            cpu_dot_block(lane, da, a, count);
        for (int64_t i = 0; i < count; i++) {
            float s = cpu_sigmoid(g[i]), weighted = weight * da[i];
            da[i] = weighted * (g[i] * s);
            g[i] = weighted * u[i] * (s * (1.0f + g[i] * (1.0f - s)));
            a[i] *= weight;
        }
        cpu_store_block(args->dgu, args->dtype, gate + first, count, g);
        cpu_store_block(args->dgu, args->dtype, up + first, count, da);
        cpu_store_block(args->a_weighted, args->dtype, at, count, a);
    }
    return cpu_lane_sum(lane);
}

void swiglu_backward_cpu(const SwigluBackward *args, Stream stream)
{
    (void)stream;
    int64_t rows = *args->rows_total;
    CHECK_RULE(rows <= args->rows_max && !args->cast);
#pragma omp parallel for schedule(static) if (rows * args->inner >= CPU_PARALLEL_MIN)
    for (int64_t row = 0; row < rows; row++) {
        if (args->row_map && args->row_map[row] < 0)
            continue;
        float dweight = backward_row(args, row);
        if (args->dweight)
            args->dweight[row] = dweight;
    }
}

KernelCost swiglu_backward_cost(const SwigluBackward *args)
{
    double rows = (double)args->rows_max, elements = rows * (double)args->inner;
    double floats = rows * ((args->weight ? 1.0 : 0.0) + (args->dweight ? 1.0 : 0.0));
    return (KernelCost){.bytes =
                            6.0 * elements * (double)dtype_bytes(args->dtype, 1) + 4.0 * floats,
                        .flops = (args->dweight ? 15.0 : 13.0) * elements};
}
