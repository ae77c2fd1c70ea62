// random.cu -- random_fill on CUDA: the arithmetic of philox.h, one value per thread and turn.
//
// A thread owns values i, i + threads, i + 2 threads, ...; a warp stores 32 neighbours, so every
// store is coalesced. Limited by the integer pipe (about 40 multiplications a value), not by
// memory. No shared memory.
#include "harness/bf16.h"
#include "harness/random.h"

#include <cuda_runtime_api.h>

static const int64_t threads_per_block = 256, blocks_max = 4096;

__global__ static void fill_f32(RandomFill fill, uint64_t first, int64_t count)
{
    float *out = (float *)fill.out;
    int64_t threads = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += threads) {
        PhiloxBlock block = philox_value_block(fill.seed, fill.stream, first + (uint64_t)i);
        out[i] = philox_scaled(fill.mean, fill.deviation, philox_normal(block));
    }
}

__global__ static void fill_bf16(RandomFill fill, uint64_t first, int64_t count)
{
    uint16_t *out = (uint16_t *)fill.out;
    int64_t threads = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += threads) {
        PhiloxBlock block = philox_value_block(fill.seed, fill.stream, first + (uint64_t)i);
        float value = philox_scaled(fill.mean, fill.deviation, philox_normal(block));
        out[i] = bf16_bits_from_f32(value);
    }
}

extern "C" void random_fill_cuda(const RandomFill *fill, Stream stream)
{
    int64_t count = fill->rows * fill->columns;
    uint64_t first = (uint64_t)fill->first_row * (uint64_t)fill->columns;
    int64_t blocks = (count + threads_per_block - 1) / threads_per_block;
    dim3 grid((unsigned)(blocks < blocks_max ? blocks : blocks_max));
    cudaStream_t handle = (cudaStream_t)stream.handle;
    if (fill->dtype == DTYPE_F32)
        fill_f32<<<grid, (unsigned)threads_per_block, 0, handle>>>(*fill, first, count);
    else
        fill_bf16<<<grid, (unsigned)threads_per_block, 0, handle>>>(*fill, first, count);
    CHECK_CUDA(cudaGetLastError());
}
