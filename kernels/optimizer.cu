// optimizer.cu -- SGD and AdamW on the GPU: a thread owns groups of 8 parameters.
//
// Limit: memory bandwidth (22 to 34 bytes a parameter); AdamW's two divisions and its root, each
// correctly rounded, take about half of the time that memory leaves. The factors of AdamW are made
// on the host, or with step_device once per block.
#include "kernels/cuda_common.cuh"
#include "kernels/optimizer.h"

enum { STEP_THREADS = 256, STEP_BLOCKS_MOST = 8 };

static unsigned step_grid(int64_t count)
{
    const int64_t block_elements = STEP_THREADS * GROUP_ELEMENTS;
    return cuda_grid((count + block_elements - 1) / block_elements, STEP_BLOCKS_MOST);
}

// The parameters that a step is made on: the master copy where there is one.
template <typename T, bool VECTOR>
__device__ __forceinline__ void load_parameters(const void *param, const float *master,
                                                int64_t element, int64_t left,
                                                float (&p)[GROUP_ELEMENTS])
{
    if (master) {
        const Group<float> group = group_load<VECTOR>(master + element, left);
#pragma unroll
        for (int e = 0; e < GROUP_ELEMENTS; e++)
            p[e] = group_value(group, e);
    } else {
        const Group<T> group = group_load<VECTOR>((const T *)param + element, left);
#pragma unroll
        for (int e = 0; e < GROUP_ELEMENTS; e++)
            p[e] = group_value(group, e);
    }
}

template <typename T, bool VECTOR>
__device__ __forceinline__ void store_parameters(void *param, float *master, int64_t element,
                                                 int64_t left, const float (&p)[GROUP_ELEMENTS])
{
    if (master)
        group_store<VECTOR>(master + element, left, p);
    group_store<VECTOR>((T *)param + element, left, p);
}

template <typename T, bool VECTOR>
__global__ void __launch_bounds__(STEP_THREADS) sgd_kernel(SgdStep args)
{
    const float lr = (float)args.lr, momentum = (float)args.momentum;
    const float decay = (float)args.weight_decay, scale = args.grad_scale ? *args.grad_scale : 1.0f;
    for_each_group<VECTOR>(args.count, [&](int64_t element, int64_t left, auto kind) {
        constexpr bool vector = decltype(kind)::vector;
        float p[GROUP_ELEMENTS], g[GROUP_ELEMENTS];
        const Group<float> grad = group_load<vector>(args.grad + element, left);
        load_parameters<T, vector>(args.param, args.master, element, left, p);
#pragma unroll
        for (int e = 0; e < GROUP_ELEMENTS; e++)
            g[e] = __fmaf_rn(decay, p[e], __fmul_rn(scale, group_value(grad, e)));
        if (args.momentum_buffer) {
            const Group<float> buffer = group_load<vector>(args.momentum_buffer + element, left);
#pragma unroll
            for (int e = 0; e < GROUP_ELEMENTS; e++)
                g[e] = __fmaf_rn(momentum, group_value(buffer, e), g[e]);
            group_store<vector>(args.momentum_buffer + element, left, g);
        }
#pragma unroll
        for (int e = 0; e < GROUP_ELEMENTS; e++)
            p[e] = __fmaf_rn(-lr, g[e], p[e]);
        store_parameters<T, vector>(args.param, args.master, element, left, p);
    });
}

void sgd_step_cuda(const SgdStep *args, Stream stream)
{
    typedef void (*SgdKernel)(SgdStep);
    static const SgdKernel kernels[2][2] = {
        {sgd_kernel<float, false>, sgd_kernel<float, true>},
        {sgd_kernel<Bf16, false>, sgd_kernel<Bf16, true>},
    };
    CHECK_RULE(args->momentum == 0.0 || args->momentum_buffer);
    const bool vector = cuda_aligned(args->param) && cuda_aligned(args->master) &&
                        cuda_aligned(args->grad) && cuda_aligned(args->momentum_buffer);
    const SgdKernel kernel = kernels[args->dtype == DTYPE_BF16][vector];
    kernel<<<step_grid(args->count), STEP_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}

// m and v become the new ones, p the stepped parameter.
__device__ __forceinline__ void adamw_element(const AdamwFactors &f, float g, float *m, float *v,
                                              float *p)
{
    *m = __fmaf_rn(f.blend1, __fsub_rn(g, *m), *m);
    *v = __fmaf_rn(__fmul_rn(f.blend2, g), g, __fmul_rn(f.beta2, *v));
    const float below = __fadd_rn(__fdiv_rn(__fsqrt_rn(*v), f.correction), f.eps);
    *p = __fmaf_rn(-f.step_size, __fdiv_rn(*m, below), __fmul_rn(*p, f.keep));
}

template <typename T, bool VECTOR>
__global__ void __launch_bounds__(STEP_THREADS) adamw_kernel(AdamwStep args, AdamwFactors given)
{
    __shared__ AdamwFactors factors;
    if (threadIdx.x == 0)
        factors = args.step_device ? adamw_factors(&args, *args.step_device) : given;
    __syncthreads();
    const AdamwFactors f = factors;
    const float scale = args.grad_scale ? *args.grad_scale : 1.0f;
    for_each_group<VECTOR>(args.count, [&](int64_t element, int64_t left, auto kind) {
        constexpr bool vector = decltype(kind)::vector;
        float p[GROUP_ELEMENTS], m[GROUP_ELEMENTS], v[GROUP_ELEMENTS];
        const Group<float> grad = group_load<vector>(args.grad + element, left);
        const Group<float> old_m = group_load<vector>(args.exp_avg + element, left);
        const Group<float> old_v = group_load<vector>(args.exp_avg_sq + element, left);
        load_parameters<T, vector>(args.param, args.master, element, left, p);
#pragma unroll
        for (int e = 0; e < GROUP_ELEMENTS; e++) {
            m[e] = group_value(old_m, e);
            v[e] = group_value(old_v, e);
            adamw_element(f, __fmul_rn(scale, group_value(grad, e)), &m[e], &v[e], &p[e]);
        }
        group_store<vector>(args.exp_avg + element, left, m);
        group_store<vector>(args.exp_avg_sq + element, left, v);
        store_parameters<T, vector>(args.param, args.master, element, left, p);
    });
}

void adamw_step_cuda(const AdamwStep *args, Stream stream)
{
    typedef void (*AdamwKernel)(AdamwStep, AdamwFactors);
    static const AdamwKernel kernels[2][2] = {
        {adamw_kernel<float, false>, adamw_kernel<float, true>},
        {adamw_kernel<Bf16, false>, adamw_kernel<Bf16, true>},
    };
    CHECK_RULE(args->step_device || args->step >= 1);
    const bool vector = cuda_aligned(args->param) && cuda_aligned(args->master) &&
                        cuda_aligned(args->grad) && cuda_aligned(args->exp_avg) &&
                        cuda_aligned(args->exp_avg_sq);
    const AdamwKernel kernel = kernels[args->dtype == DTYPE_BF16][vector];
    kernel<<<step_grid(args->count), STEP_THREADS, 0, cuda_stream(stream)>>>(
        *args, adamw_factors(args, args->step_device ? 1 : args->step));
    CHECK_CUDA(cudaGetLastError());
}
