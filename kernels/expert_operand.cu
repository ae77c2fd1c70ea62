// expert_operand.cu -- expert rows measured on the GPU, limited by memory. Their casts:
// cast/experts.cu.
#include "kernels/cuda_common.cuh"
#include "kernels/expert_operand.h"
#include "quant/format_bits.h"

enum { AMAX_THREADS = 256 };

static __device__ __forceinline__ uint32_t warp_most(uint32_t bits)
{
    return __reduce_max_sync(WARP_ALL, bits);
}

// Warp: one row after the other.
template <typename T>
__global__ void __launch_bounds__(AMAX_THREADS) amax_kernel(const __grid_constant__ RowsAmax args)
{
    const int64_t rows = min((int64_t)*args.rows_total, args.rows);
    uint32_t most = 0;
    for (int64_t row = warp_index(); row < rows; row += warp_count()) {
        if (__ldg(args.row_map + row) < 0)
            continue;
        const T *values = (const T *)args.values + row * args.columns;
        for (int64_t i = lane_index(); i < args.columns; i += WARP_LANES)
            most = max(most, format_f32_magnitude(widen(values[i])));
    }
    most = warp_most(most);
    if (lane_index() == 0 && most > 0)
        atomicMax((uint32_t *)args.amax, most);
}

void rows_amax_cuda(const RowsAmax *args, Stream stream)
{
    const unsigned grid = cuda_grid((args->rows + 7) / 8, 8);
    cudaStream_t s = cuda_stream(stream);
    if (args->dtype == DTYPE_BF16)
        amax_kernel<Bf16><<<grid, AMAX_THREADS, 0, s>>>(*args);
    else
        amax_kernel<float><<<grid, AMAX_THREADS, 0, s>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}
