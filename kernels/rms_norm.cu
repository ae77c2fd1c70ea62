// rms_norm.cu -- root mean square norm on the GPU.
//
// Limit: memory bandwidth. Forward: a warp owns a row and reads it twice, the second time from the
// cache. Backward: a block owns a slab of rows and takes NORM_WARPS of them at a time: first each
// warp reduces one row to its mean of g n, then each thread owns groups of columns and goes down
// these rows, whose elements the first pass has just brought into the cache: it makes dx and
// carries on the columns' sums of dy n, kept in the scratch memory between one set of rows and the
// next.
#include "kernels/cuda_common.cuh"
#include "kernels/rms_norm.h"

enum {
    NORM_THREADS = 256,
    NORM_WARPS = NORM_THREADS / WARP_LANES,
    NORM_BLOCKS = 3,     // on a multiprocessor at least: their rows stay in its cache
    NORM_GROUPS = 4,     // of a row loaded together by a lane
    SLABS_THREADS = 64,  // few, so that the columns spread over the multiprocessors
    SLABS_TOGETHER = 16, // loaded before they are added
};
static_assert(RMS_NORM_SLAB_ROWS % NORM_WARPS == 0, "whole sets of rows make a slab");

// Warp: one row.
template <typename T, bool VECTOR>
__device__ __forceinline__ float row_rstd(const T *x, int64_t hidden, float eps)
{
    const int64_t step = WARP_LANES * GROUP_ELEMENTS;
    float sum = 0.0f;
    for (int64_t first = lane_index() * GROUP_ELEMENTS; first < hidden;
         first += NORM_GROUPS * step) {
        Group<T> group[NORM_GROUPS];
#pragma unroll
        for (int g = 0; g < NORM_GROUPS; g++)
            if (first + g * step < hidden)
                group[g] = group_load<VECTOR>(x + first + g * step, hidden - first - g * step);
#pragma unroll
        for (int g = 0; g < NORM_GROUPS; g++)
            if (first + g * step < hidden)
                sum = dot_chain(group[g], group[g],
                                VECTOR ? GROUP_ELEMENTS : hidden - first - g * step, sum);
    }
    const float mean = __fdiv_rn(warp_sum(sum), (float)hidden);
    return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(mean, eps)));
}

template <typename T, bool VECTOR>
__global__ void __launch_bounds__(NORM_THREADS, NORM_BLOCKS)
    norm_forward_kernel(RmsNormForward args)
{
    const int64_t hidden = args.hidden;
    const T *weight = (const T *)args.weight;
    for (int64_t row = warp_index(); row < args.rows; row += warp_count()) {
        const T *x = (const T *)args.x + row * hidden;
        T *y = (T *)args.y + row * hidden;
        const float rstd = row_rstd<T, VECTOR>(x, hidden, args.eps);
#pragma unroll 2
        for (int64_t element = lane_index() * GROUP_ELEMENTS; element < hidden;
             element += WARP_LANES * GROUP_ELEMENTS) {
            const int64_t left = hidden - element;
            const Group<T> value = group_load<VECTOR>(x + element, left);
            const Group<T> factor = group_load<VECTOR>(weight + element, left);
            float out[GROUP_ELEMENTS];
#pragma unroll
            for (int e = 0; e < GROUP_ELEMENTS; e++)
                out[e] = __fmul_rn(__fmul_rn(group_value(value, e), rstd), group_value(factor, e));
            group_store<VECTOR>(y + element, left, out);
        }
        if (args.rstd_out && lane_index() == 0)
            args.rstd_out[row] = rstd;
    }
}

void rms_norm_forward_cuda(const RmsNormForward *args, Stream stream)
{
    typedef void (*ForwardKernel)(RmsNormForward);
    static const ForwardKernel kernels[2][2] = {
        {norm_forward_kernel<float, false>, norm_forward_kernel<float, true>},
        {norm_forward_kernel<Bf16, false>, norm_forward_kernel<Bf16, true>},
    };
    const bool vector = row_is_vector(args->hidden) && cuda_aligned(args->x) &&
                        cuda_aligned(args->weight) && cuda_aligned(args->y);
    const ForwardKernel kernel = kernels[args->dtype == DTYPE_BF16][vector];
    const unsigned grid = cuda_grid((args->rows + NORM_WARPS - 1) / NORM_WARPS, NORM_BLOCKS);
    kernel<<<grid, NORM_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}

// Warp: the mean of g n over one row.
template <typename T, bool VECTOR>
__device__ __forceinline__ float row_mean(const RmsNormBackward &args, int64_t row)
{
    const int64_t hidden = args.hidden;
    const T *x = (const T *)args.x + row * hidden, *dy = (const T *)args.dy + row * hidden;
    const T *weight = (const T *)args.weight;
    const float rstd = args.rstd[row];
    float sum = 0.0f;
#pragma unroll 2
    for (int64_t element = lane_index() * GROUP_ELEMENTS; element < hidden;
         element += WARP_LANES * GROUP_ELEMENTS) {
        const int64_t left = VECTOR ? GROUP_ELEMENTS : hidden - element;
        const Group<T> value = group_load<VECTOR>(x + element, left);
        const Group<T> grad = group_load<VECTOR>(dy + element, left);
        const Group<T> factor = group_load<VECTOR>(weight + element, left);
#pragma unroll
        for (int e = 0; e < GROUP_ELEMENTS; e++)
            if (e < left)
                sum = __fmaf_rn(__fmul_rn(group_value(factor, e), group_value(grad, e)),
                                __fmul_rn(group_value(value, e), rstd), sum);
    }
    return __fdiv_rn(warp_sum(sum), (float)hidden);
}

// Thread: one group of columns in `rows` rows from `first_row` on. dweight: the slab's sums of
// these columns, or NULL; the slab's first rows start them from 0.
template <typename T, bool VECTOR>
__device__ __forceinline__ void down_columns(const RmsNormBackward &args, int64_t first_row,
                                             int rows, const float *mean, int64_t element,
                                             float *dweight, bool starts)
{
    const int64_t left = VECTOR ? GROUP_ELEMENTS : args.hidden - element;
    const Group<T> factor = group_load<VECTOR>((const T *)args.weight + element, left);
    float sum[GROUP_ELEMENTS] = {0.0f};
    if (dweight && !starts) {
        const Group<float> held = group_load<VECTOR>(dweight + element, left);
#pragma unroll
        for (int e = 0; e < GROUP_ELEMENTS; e++)
            sum[e] = group_value(held, e);
    }
#pragma unroll 2
    for (int i = 0; i < rows; i++) {
        const int64_t at = (first_row + i) * args.hidden + element;
        const float rstd = args.rstd[first_row + i];
        const Group<T> value = group_load<VECTOR>((const T *)args.x + at, left);
        const Group<T> grad = group_load<VECTOR>((const T *)args.dy + at, left);
        Group<T> addend;
        if (args.addend)
            addend = group_load<VECTOR>((const T *)args.addend + at, left);
        float dx[GROUP_ELEMENTS];
#pragma unroll
        for (int e = 0; e < GROUP_ELEMENTS; e++) {
            const float n = __fmul_rn(group_value(value, e), rstd), dy = group_value(grad, e);
            const float inner = __fmaf_rn(-n, mean[i], __fmul_rn(group_value(factor, e), dy));
            sum[e] = __fmaf_rn(dy, n, sum[e]);
            dx[e] = args.addend ? __fmaf_rn(rstd, inner, group_value(addend, e))
                                : __fmul_rn(rstd, inner);
        }
        group_store<VECTOR>((T *)args.dx + at, left, dx);
    }
    if (dweight)
        group_store<VECTOR>(dweight + element, left, sum);
}

// Block: one slab.
template <typename T, bool VECTOR>
__global__ void __launch_bounds__(NORM_THREADS, NORM_BLOCKS)
    norm_backward_kernel(RmsNormBackward args)
{
    __shared__ float mean[NORM_WARPS];
    const int64_t begin = (int64_t)blockIdx.x * RMS_NORM_SLAB_ROWS, hidden = args.hidden;
    const int64_t end = min(begin + RMS_NORM_SLAB_ROWS, args.rows);
    const int warp = threadIdx.x / WARP_LANES;
    float *dweight = args.dweight ? args.scratch + blockIdx.x * hidden : NULL;
    for (int64_t first = begin; first < end; first += NORM_WARPS) {
        const int rows = (int)min((int64_t)NORM_WARPS, end - first);
        if (warp < rows) {
            const float row = row_mean<T, VECTOR>(args, first + warp);
            if (lane_index() == 0)
                mean[warp] = row;
        }
        __syncthreads();
        for (int64_t element = (int64_t)threadIdx.x * GROUP_ELEMENTS; element < hidden;
             element += NORM_THREADS * GROUP_ELEMENTS)
            down_columns<T, VECTOR>(args, first, rows, mean, element, dweight, first == begin);
        __syncthreads();
    }
}

// Thread: one column of all slabs.
__global__ void __launch_bounds__(SLABS_THREADS)
    add_slabs_kernel(RmsNormBackward args, int64_t slabs)
{
    const int64_t column = (int64_t)blockIdx.x * SLABS_THREADS + threadIdx.x;
    if (column >= args.hidden)
        return;
    float sum = 0.0f;
    for (int64_t first = 0; first < slabs; first += SLABS_TOGETHER) {
        float part[SLABS_TOGETHER];
#pragma unroll
        for (int i = 0; i < SLABS_TOGETHER; i++)
            if (first + i < slabs)
                part[i] = args.scratch[(first + i) * args.hidden + column];
#pragma unroll
        for (int i = 0; i < SLABS_TOGETHER; i++)
            if (first + i < slabs)
                sum = __fadd_rn(sum, part[i]);
    }
    args.dweight[column] = args.accumulate ? __fadd_rn(args.dweight[column], sum) : sum;
}

void rms_norm_backward_cuda(const RmsNormBackward *args, Stream stream)
{
    typedef void (*BackwardKernel)(RmsNormBackward);
    static const BackwardKernel kernels[2][2] = {
        {norm_backward_kernel<float, false>, norm_backward_kernel<float, true>},
        {norm_backward_kernel<Bf16, false>, norm_backward_kernel<Bf16, true>},
    };
    const int64_t slabs = (args->rows + RMS_NORM_SLAB_ROWS - 1) / RMS_NORM_SLAB_ROWS;
    const bool vector = row_is_vector(args->hidden) && cuda_aligned(args->x) &&
                        cuda_aligned(args->weight) && cuda_aligned(args->dy) &&
                        cuda_aligned(args->addend) && cuda_aligned(args->dx) &&
                        (!args->dweight || cuda_aligned(args->scratch));
    const BackwardKernel kernel = kernels[args->dtype == DTYPE_BF16][vector];
    if (slabs > 0)
        kernel<<<(unsigned)slabs, NORM_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
    const unsigned columns = (unsigned)((args->hidden + SLABS_THREADS - 1) / SLABS_THREADS);
    if (args->dweight && columns > 0)
        add_slabs_kernel<<<columns, SLABS_THREADS, 0, cuda_stream(stream)>>>(*args, slabs);
    CHECK_CUDA(cudaGetLastError());
}
