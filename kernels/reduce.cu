// reduce.cu -- sums of a few large arrays in a fixed order, and gated rows, on the GPU.
//
// Limit: memory bandwidth. Each thread owns groups of 8 elements and adds the parts in order, in
// f32.
#include "kernels/cuda_common.cuh"
#include "kernels/reduce.h"

enum {
    REDUCE_THREADS = 256,
    REDUCE_BLOCKS_MOST = 8,
    SUM_TOGETHER = 2, // parts loaded before they are added
};

// Thread: one group of elements in all parts. Only the last group can be short.
template <typename T, bool ALIGNED>
__device__ __forceinline__ void sum_group(const SumParts &args, int64_t element, int64_t left)
{
    float sum[GROUP_ELEMENTS];
    for (int first = 0; first < args.parts; first += SUM_TOGETHER) {
        Group<float> group[SUM_TOGETHER];
#pragma unroll
        for (int i = 0; i < SUM_TOGETHER; i++)
            if (first + i < args.parts)
                group[i] =
                    group_load<ALIGNED>(args.part + (first + i) * args.part_stride + element, left);
#pragma unroll
        for (int i = 0; i < SUM_TOGETHER; i++)
            if (first + i < args.parts)
#pragma unroll
                for (int e = 0; e < GROUP_ELEMENTS; e++)
                    sum[e] = first + i == 0 ? group_value(group[i], e)
                                            : __fadd_rn(sum[e], group_value(group[i], e));
    }
    group_store<ALIGNED>((T *)args.out + element, left, sum);
}

template <typename T, bool VECTOR>
__global__ void __launch_bounds__(REDUCE_THREADS) sum_parts_kernel(SumParts args)
{
    for_each_group<VECTOR>(args.count, [&](int64_t element, int64_t left, auto kind) {
        sum_group<T, decltype(kind)::vector>(args, element, left);
    });
}

void sum_parts_cuda(const SumParts *args, Stream stream)
{
    typedef void (*SumKernel)(SumParts);
    static const SumKernel kernels[2][2] = {
        {sum_parts_kernel<float, false>, sum_parts_kernel<float, true>},
        {sum_parts_kernel<Bf16, false>, sum_parts_kernel<Bf16, true>},
    };
    CHECK_RULE(args->parts > 0);
    const int64_t groups = (args->count + GROUP_ELEMENTS - 1) / GROUP_ELEMENTS;
    const bool vector = (args->parts == 1 || args->part_stride % 4 == 0) &&
                        cuda_aligned(args->part) && cuda_aligned(args->out);
    const SumKernel kernel = kernels[args->out_dtype == DTYPE_BF16][vector];
    const unsigned grid =
        cuda_grid((groups + REDUCE_THREADS - 1) / REDUCE_THREADS, REDUCE_BLOCKS_MOST);
    kernel<<<grid, REDUCE_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}

// Warp: one token's row.
template <typename T, bool VECTOR>
__global__ void __launch_bounds__(REDUCE_THREADS) gate_rows_kernel(GateRows args)
{
    const int64_t hidden = args.x ? args.hidden : 0;
    for (int64_t token = warp_index(); token < args.tokens; token += warp_count()) {
        float gate = 1.0f;
        if (args.logits)
            gate = 1.0f / (1.0f + expf(-args.logits[token * args.logits_stride]));
        if (args.gate_out && lane_index() == 0)
            args.gate_out[token] = gate;
        for (int64_t element = lane_index() * GROUP_ELEMENTS; element < hidden;
             element += WARP_LANES * GROUP_ELEMENTS) {
            const int64_t left = hidden - element;
            const Group<T> group =
                group_load<VECTOR>((const T *)args.x + token * hidden + element, left);
            float out[GROUP_ELEMENTS];
#pragma unroll
            for (int e = 0; e < GROUP_ELEMENTS; e++)
                out[e] = __fmul_rn(gate, group_value(group, e));
            group_store<VECTOR>((T *)args.out + token * hidden + element, left, out);
        }
    }
}

void gate_rows_cuda(const GateRows *args, Stream stream)
{
    typedef void (*GateKernel)(GateRows);
    static const GateKernel kernels[2][2] = {
        {gate_rows_kernel<float, false>, gate_rows_kernel<float, true>},
        {gate_rows_kernel<Bf16, false>, gate_rows_kernel<Bf16, true>},
    };
    const int64_t warps_per_block = REDUCE_THREADS / WARP_LANES;
    const bool vector =
        row_is_vector(args->hidden) && cuda_aligned(args->x) && cuda_aligned(args->out);
    const GateKernel kernel = kernels[args->dtype == DTYPE_BF16][vector];
    const unsigned grid =
        cuda_grid((args->tokens + warps_per_block - 1) / warps_per_block, REDUCE_BLOCKS_MOST);
    kernel<<<grid, REDUCE_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}
