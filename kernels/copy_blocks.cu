// copy_blocks.cu -- strided copies on the GPU, all blocks in one launch.
//
// Limit: memory bandwidth, as long as a unit is 16 bytes. The content of a block, its runs one
// after the other, is cut into tiles; a thread block takes tiles in turn and finds each tile's
// block by bisection. Thread t owns the units t, t + 256, ... of a tile; it divides once to find
// the run it begins in, and then goes on by adding.
#include "kernels/copy_blocks.h"
#include "kernels/cuda_common.cuh"

enum {
    COPY_THREADS = 256,
    COPY_TOGETHER = 4, // units loaded before they are stored
    COPY_BLOCKS_MOST = 8,
};

// Where a thread stands in a block: run (i, j), unit `within` of the run.
struct CopyPlace {
    uint64_t i, j, within;
};

struct CopyStep {
    CopyPlace by;    // what COPY_THREADS units further means
    uint64_t units;  // of a run
    uint64_t counts; // of the inner level
};

__device__ __forceinline__ CopyPlace copy_place(uint64_t unit, uint64_t units, uint64_t counts)
{
    // 32-bit division where it will do: the 64-bit one is a long subroutine.
    uint64_t run, i;
    if (unit <= 0xFFFFFFFFu && units <= 0xFFFFFFFFu)
        run = (uint32_t)unit / (uint32_t)units;
    else
        run = unit / units;
    if (run <= 0xFFFFFFFFu && counts <= 0xFFFFFFFFu)
        i = (uint32_t)run / (uint32_t)counts;
    else
        i = run / counts;
    return {i, run - i * counts, unit - run * units};
}

__device__ __forceinline__ void copy_advance(CopyPlace *place, const CopyStep &step)
{
    place->within += step.by.within;
    const bool next_run = place->within >= step.units;
    place->within -= next_run ? step.units : 0;
    place->j += step.by.j + next_run;
    const bool next_row = place->j >= step.counts;
    place->j -= next_row ? step.counts : 0;
    place->i += step.by.i + next_row;
}

// The last block that begins at or before the tile.
__device__ __forceinline__ const CopyBlock *copy_block_of(const CopyBlocks &args, int64_t tile)
{
    int64_t low = 0, high = args.blocks;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (args.block[middle].first_tile <= tile)
            low = middle;
        else
            high = middle;
    }
    return &args.block[low];
}

template <typename Unit>
__global__ void __launch_bounds__(COPY_THREADS) copy_blocks_kernel(CopyBlocks args)
{
    for (int64_t tile = blockIdx.x; tile < args.tiles; tile += gridDim.x) {
        const CopyBlock block = *copy_block_of(args, tile);
        CopyStep step;
        step.units = block.run_bytes / sizeof(Unit);
        step.counts = (uint64_t)block.counts[1];
        step.by = copy_place(COPY_THREADS, step.units, step.counts);
        const uint64_t all = step.units * step.counts * (uint64_t)block.counts[0];
        const uint64_t first =
            (uint64_t)(tile - block.first_tile) * (COPY_TILE_BYTES / sizeof(Unit));
        const uint64_t left = all - first, tile_units = COPY_TILE_BYTES / sizeof(Unit);
        const uint64_t here = left < tile_units ? left : tile_units;
        const char *const from = (const char *)args.from + block.from_first;
        char *const to = (char *)args.to + block.to_first;
        CopyPlace place = copy_place(first + threadIdx.x, step.units, step.counts);
        for (uint64_t unit = threadIdx.x; unit < here; unit += COPY_TOGETHER * COPY_THREADS) {
            Unit value[COPY_TOGETHER];
            char *target[COPY_TOGETHER];
#pragma unroll
            for (int k = 0; k < COPY_TOGETHER; k++) {
                target[k] = to + place.i * block.to_strides[0] + place.j * block.to_strides[1] +
                            place.within * sizeof(Unit);
                if (unit + k * COPY_THREADS < here)
                    value[k] = *(const Unit *)(from + place.i * block.from_strides[0] +
                                               place.j * block.from_strides[1] +
                                               place.within * sizeof(Unit));
                copy_advance(&place, step);
            }
#pragma unroll
            for (int k = 0; k < COPY_TOGETHER; k++)
                if (unit + k * COPY_THREADS < here)
                    *(Unit *)target[k] = value[k];
        }
    }
}

void copy_blocks_cuda(const CopyBlocks *args, Stream stream)
{
    typedef void (*CopyKernel)(CopyBlocks);
    static const CopyKernel kernels[] = {copy_blocks_kernel<uint8_t>, copy_blocks_kernel<uint16_t>,
                                         copy_blocks_kernel<uint32_t>, copy_blocks_kernel<uint64_t>,
                                         copy_blocks_kernel<uint4>};
    if (args->tiles == 0)
        return;
    // The greatest unit that divides the blocks and both sides' addresses.
    const uint64_t places = (uint64_t)(uintptr_t)args->from | (uint64_t)(uintptr_t)args->to |
                            (uint64_t)args->unit_bytes;
    int row = 0;
    while (row < 4 && places % (2u << row) == 0)
        row++;
    const unsigned grid = cuda_grid(args->tiles, COPY_BLOCKS_MOST);
    kernels[row]<<<grid, COPY_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}
