// optimizer.c -- SGD and AdamW on the CPU, in blocks that stay in L1. Memory bandwidth is the
// limit.
//
// Source: Loshchilov, Hutter, "Decoupled weight decay regularization" (2019), as torch.optim has
// it.

#include "kernels/optimizer.h"
#include "kernels/cpu_math.h"

KERNEL_DEFINE(sgd_step, SgdStep)
KERNEL_DEFINE(adamw_step, AdamwStep)

// The parameters that a block's step is made on, and their way back.
CPU_INLINE void load_parameters(const void *param, DType dtype, const float *master, int64_t first,
                                int64_t count, float *out)
{
    if (master)
        cpu_load_block(master, DTYPE_F32, first, count, out);
    else
        cpu_load_block(param, dtype, first, count, out);
}

CPU_INLINE void store_parameters(void *param, DType dtype, float *master, int64_t first,
                                 int64_t count, const float *value)
{
    if (master)
        cpu_store_block(master, DTYPE_F32, first, count, value);
    cpu_store_block(param, dtype, first, count, value);
}

CPU_CLONES
static void sgd_block(const SgdStep *args, int64_t first, int64_t count)
{
    float lr = (float)args->lr, momentum = (float)args->momentum;
    float decay = (float)args->weight_decay, scale = args->grad_scale ? *args->grad_scale : 1.0f;
    float p[CPU_BLOCK], g[CPU_BLOCK];
    load_parameters(args->param, args->dtype, args->master, first, count, p);
    for (int64_t i = 0; i < count; i++)
        g[i] = fmaf(decay, p[i], scale * args->grad[first + i]);
    if (args->momentum_buffer) {
        float *restrict buffer = args->momentum_buffer + first;
        for (int64_t i = 0; i < count; i++)
            g[i] = buffer[i] = fmaf(momentum, buffer[i], g[i]);
    }
    for (int64_t i = 0; i < count; i++)
        p[i] = fmaf(-lr, g[i], p[i]);
    store_parameters(args->param, args->dtype, args->master, first, count, p);
}

void sgd_step_cpu(const SgdStep *args, Stream stream)
{
    (void)stream;
    CHECK_RULE(args->momentum == 0.0 || args->momentum_buffer);
#pragma omp parallel for schedule(static) if (args->count >= CPU_PARALLEL_MIN)
    for (int64_t first = 0; first < args->count; first += CPU_BLOCK)
        sgd_block(args, first, cpu_block_length(first, args->count));
}

// Bytes of a parameter that is read and written; a master copy is, then param is only written.
static double parameter_bytes(DType dtype, const float *master)
{
    double bytes = (double)dtype_bytes(dtype, 1);
    return master ? 8.0 + bytes : 2.0 * bytes;
}

KernelCost sgd_step_cost(const SgdStep *args)
{
    double count = (double)args->count, state = args->momentum_buffer ? 8.0 : 0.0;
    return (KernelCost){.bytes = count * (parameter_bytes(args->dtype, args->master) + 4.0 + state),
                        .flops = count * (args->momentum_buffer ? 7.0 : 5.0)};
}

CPU_CLONES
static void adamw_block(const AdamwStep *args, const AdamwFactors *factors, int64_t first,
                        int64_t count)
{
    float scale = args->grad_scale ? *args->grad_scale : 1.0f, p[CPU_BLOCK];
    const float *restrict grad = args->grad + first;
    float *restrict m = args->exp_avg + first, *restrict v = args->exp_avg_sq + first;
    load_parameters(args->param, args->dtype, args->master, first, count, p);
    for (int64_t i = 0; i < count; i++) {
        float g = scale * grad[i];
        m[i] = fmaf(factors->blend1, g - m[i], m[i]);
        v[i] = fmaf(factors->blend2 * g, g, factors->beta2 * v[i]);
        float below = sqrtf(v[i]) / factors->correction + factors->eps;
        p[i] = fmaf(-factors->step_size, m[i] / below, p[i] * factors->keep);
    }
    store_parameters(args->param, args->dtype, args->master, first, count, p);
}

void adamw_step_cpu(const AdamwStep *args, Stream stream)
{
    (void)stream;
    int64_t step = args->step_device ? *args->step_device : args->step;
    CHECK_RULE(step >= 1);
    AdamwFactors factors = adamw_factors(args, step);
#pragma omp parallel for schedule(static) if (args->count >= CPU_PARALLEL_MIN)
    for (int64_t first = 0; first < args->count; first += CPU_BLOCK)
        adamw_block(args, &factors, first, cpu_block_length(first, args->count));
}

KernelCost adamw_step_cost(const AdamwStep *args)
{
    double count = (double)args->count;
    return (KernelCost){.bytes = count * (parameter_bytes(args->dtype, args->master) + 4.0 + 16.0),
                        .flops = 15.0 * count};
}
