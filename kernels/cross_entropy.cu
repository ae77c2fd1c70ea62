// cross_entropy.cu -- the loss over a divided vocabulary on the GPU: one warp per row of logits.
//
// Limit: memory bandwidth; an element takes one exponential of the special function unit, which
// makes 16 a clock where memory brings 9 in bf16. Of a row's 256 partial sums lane l has those of
// the columns 8 l .. 8 l + 7 (mod 256), one per element of its groups.
#include "kernels/cross_entropy.h"
#include "kernels/cuda_common.cuh"

enum {
    LOSS_THREADS = 256,
    LOSS_WARPS = LOSS_THREADS / WARP_LANES,
    LOSS_BLOCKS_MOST = 8,
    LOSS_GROUPS = 4, // of a row loaded together by a lane
    ROW_STEP = WARP_LANES * GROUP_ELEMENTS,
};

static unsigned loss_grid(int64_t rows)
{
    return cuda_grid((rows + LOSS_WARPS - 1) / LOSS_WARPS, LOSS_BLOCKS_MOST);
}

// e^d within (3 + 2 |d|) eps_f32: the product's rounding is multiplied by |d|, the unit's own error
// is 2^-22.
__device__ __forceinline__ float exp_approximate(float d)
{
    float e;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(__fmul_rn(d, 1.44269504f)));
    return e;
}

// Warp: body(group, column, left) for the lane's groups of a row, in ascending order; LOSS_GROUPS
// of them are loaded before the first is used.
template <bool VECTOR, typename T, typename Body>
__device__ __forceinline__ void for_each_row_group(const T *row, int64_t columns, Body body)
{
    for (int64_t first = lane_index() * GROUP_ELEMENTS; first < columns;
         first += LOSS_GROUPS * ROW_STEP) {
        Group<T> group[LOSS_GROUPS];
#pragma unroll
        for (int g = 0; g < LOSS_GROUPS; g++)
            if (first + g * ROW_STEP < columns)
                group[g] =
                    group_load<VECTOR>(row + first + g * ROW_STEP, columns - first - g * ROW_STEP);
#pragma unroll
        for (int g = 0; g < LOSS_GROUPS; g++)
            if (first + g * ROW_STEP < columns)
                body(group[g], first + g * ROW_STEP,
                     VECTOR ? GROUP_ELEMENTS : columns - first - g * ROW_STEP);
    }
}

// The target's column here, or -1.
__device__ __forceinline__ int64_t local_target(int32_t target, int64_t vocab_first,
                                                int64_t vocab_count)
{
    const int64_t column = target - vocab_first;
    return target != CROSS_ENTROPY_IGNORED && column >= 0 && column < vocab_count ? column : -1;
}

// fmaxf passes over NaN.
template <typename T, bool VECTOR>
__global__ void __launch_bounds__(LOSS_THREADS) row_max_kernel(CrossEntropyRowMax args)
{
    const int64_t columns = args.vocab_count;
    for (int64_t row = warp_index(); row < args.rows; row += warp_count()) {
        float largest = -INFINITY;
        for_each_row_group<VECTOR>((const T *)args.logits + row * columns, columns,
                                   [&](const Group<T> &group, int64_t, int64_t left) {
#pragma unroll
                                       for (int e = 0; e < GROUP_ELEMENTS; e++)
                                           if (e < left)
                                               largest = fmaxf(largest, group_value(group, e));
                                   });
#pragma unroll
        for (int apart = WARP_LANES / 2; apart > 0; apart /= 2)
            largest = fmaxf(largest, __shfl_xor_sync(WARP_ALL, largest, apart));
        if (lane_index() == 0)
            args.row_max[row] = largest;
    }
}

void cross_entropy_row_max_cuda(const CrossEntropyRowMax *args, Stream stream)
{
    typedef void (*MaxKernel)(CrossEntropyRowMax);
    static const MaxKernel kernels[2][2] = {
        {row_max_kernel<float, false>, row_max_kernel<float, true>},
        {row_max_kernel<Bf16, false>, row_max_kernel<Bf16, true>},
    };
    const bool vector = row_is_vector(args->vocab_count) && cuda_aligned(args->logits);
    const MaxKernel kernel = kernels[args->dtype == DTYPE_BF16][vector];
    kernel<<<loss_grid(args->rows), LOSS_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}

template <typename T, bool VECTOR>
__global__ void __launch_bounds__(LOSS_THREADS) row_sum_kernel(CrossEntropyRowSum args)
{
    const int64_t columns = args.vocab_count;
    for (int64_t row = warp_index(); row < args.rows; row += warp_count()) {
        const T *logits = (const T *)args.logits + row * columns;
        const float largest = args.row_max[row];
        float part[GROUP_ELEMENTS] = {0.0f};
        for_each_row_group<VECTOR>(
            logits, columns, [&](const Group<T> &group, int64_t, int64_t left) {
#pragma unroll
                for (int e = 0; e < GROUP_ELEMENTS; e++)
                    if (e < left)
                        part[e] = __fadd_rn(
                            part[e], exp_approximate(__fsub_rn(group_value(group, e), largest)));
            });
        const float sum = warp_sum(group_sum(part));
        if (lane_index() == 0) {
            const int64_t column = local_target(args.targets[row], args.vocab_first, columns);
            args.row_sum[row] = sum;
            args.target_logit[row] = column < 0 ? 0.0f : widen(logits[column]);
        }
    }
}

void cross_entropy_row_sum_cuda(const CrossEntropyRowSum *args, Stream stream)
{
    typedef void (*SumKernel)(CrossEntropyRowSum);
    static const SumKernel kernels[2][2] = {
        {row_sum_kernel<float, false>, row_sum_kernel<float, true>},
        {row_sum_kernel<Bf16, false>, row_sum_kernel<Bf16, true>},
    };
    const bool vector = row_is_vector(args->vocab_count) && cuda_aligned(args->logits);
    const SumKernel kernel = kernels[args->dtype == DTYPE_BF16][vector];
    kernel<<<loss_grid(args->rows), LOSS_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}

// One block: thread t makes and adds the losses of rows t, t + 1024, ... Limit: the latency of a
// few dependent steps in f64; the rows are few.
__global__ void __launch_bounds__(BLOCK_SUM_THREADS) loss_kernel(CrossEntropyLoss args)
{
    double sum = 0.0, counted = 0.0;
    for (int64_t row = threadIdx.x; row < args.rows; row += BLOCK_SUM_THREADS) {
        float loss = 0.0f;
        if (args.targets[row] != CROSS_ENTROPY_IGNORED) {
            const double below = (double)args.row_max[row] - (double)args.target_logit[row];
            loss = (float)(log((double)args.row_sum[row]) + below);
            counted += 1.0;
        }
        if (args.loss)
            args.loss[row] = loss;
        sum += (double)loss;
    }
    sum = block_sum(sum);
    __syncthreads();
    counted = block_sum(counted);
    if (threadIdx.x > 0)
        return;
    const double held_sum = args.accumulate ? args.totals[CROSS_ENTROPY_SUM] : 0.0;
    const double held_count = args.accumulate ? args.totals[CROSS_ENTROPY_COUNT] : 0.0;
    args.totals[CROSS_ENTROPY_SUM] = held_sum + sum;
    args.totals[CROSS_ENTROPY_COUNT] = held_count + counted;
}

void cross_entropy_loss_cuda(const CrossEntropyLoss *args, Stream stream)
{
    loss_kernel<<<1, BLOCK_SUM_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}

// A lane stores only what it alone has read: in place is legal.
template <typename T, bool VECTOR>
__device__ __forceinline__ void backward_row(const CrossEntropyBackward &args, int64_t row,
                                             float scale)
{
    const int64_t columns = args.vocab_count;
    const int64_t target = local_target(args.targets[row], args.vocab_first, columns);
    const float largest = args.row_max[row], inverse = __fdiv_rn(1.0f, args.row_sum[row]);
    T *to = (T *)args.dlogits + row * columns;
    for_each_row_group<VECTOR>(
        (const T *)args.logits + row * columns, columns,
        [&](const Group<T> &group, int64_t column, int64_t left) {
            float out[GROUP_ELEMENTS];
#pragma unroll
            for (int e = 0; e < GROUP_ELEMENTS; e++) {
                const float d = __fsub_rn(group_value(group, e), largest);
                const float probability = __fmul_rn(exp_approximate(d), inverse);
                out[e] =
                    __fmul_rn(__fsub_rn(probability, column + e == target ? 1.0f : 0.0f), scale);
            }
            group_store<VECTOR>(to + column, left, out);
        });
}

template <typename T, bool VECTOR>
__global__ void __launch_bounds__(LOSS_THREADS) loss_backward_kernel(CrossEntropyBackward args)
{
    const int64_t columns = args.vocab_count;
    const float scale = args.count ? (float)((double)args.scale / *args.count) : args.scale;
    const float zeros[GROUP_ELEMENTS] = {0.0f};
    for (int64_t row = warp_index(); row < args.rows; row += warp_count()) {
        if (args.targets[row] != CROSS_ENTROPY_IGNORED) {
            backward_row<T, VECTOR>(args, row, scale);
            continue;
        }
        T *to = (T *)args.dlogits + row * columns;
        for (int64_t column = lane_index() * GROUP_ELEMENTS; column < columns; column += ROW_STEP)
            group_store<VECTOR>(to + column, columns - column, zeros);
    }
}

void cross_entropy_backward_cuda(const CrossEntropyBackward *args, Stream stream)
{
    typedef void (*BackwardKernel)(CrossEntropyBackward);
    static const BackwardKernel kernels[2][2] = {
        {loss_backward_kernel<float, false>, loss_backward_kernel<float, true>},
        {loss_backward_kernel<Bf16, false>, loss_backward_kernel<Bf16, true>},
    };
    const bool vector = row_is_vector(args->vocab_count) && cuda_aligned(args->logits) &&
                        cuda_aligned(args->dlogits);
    const BackwardKernel kernel = kernels[args->dtype == DTYPE_BF16][vector];
    kernel<<<loss_grid(args->rows), LOSS_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}
