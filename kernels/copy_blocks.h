// copy_blocks.h -- many strided copies at once: packing and unpacking of shards.
//
// A block is counts[0] x counts[1] runs of run_bytes consecutive bytes:
//
//   for i < counts[0], j < counts[1]:
//       to[to_first + i to_strides[0] + j to_strides[1] ..] =
//           from[from_first + i from_strides[0] + j from_strides[1] ..]
//
// Everything is counted in bytes, so every element type is alike. Blocks do not meet in `to`, and
// `from` and `to` are apart. Memory bandwidth is the limit where runs are 16 bytes and more; on
// CUDA all blocks are one launch, and runs of 1, 2 or 4 bytes are bound by their instructions.
#pragma once

#include "kernels/kernel.h"

DECLARATIONS_BEGIN

typedef struct CopyBlock {
    uint64_t from_first, to_first; // bytes from the beginning of either side
    uint64_t run_bytes;
    int64_t counts[2];
    uint64_t from_strides[2], to_strides[2]; // bytes
    int64_t first_tile;                      // by copy_blocks_measure
} CopyBlock;

typedef struct CopyBlocks {
    int64_t blocks;
    const CopyBlock *block; // [blocks], in the memory of the device
    const void *from;
    void *to;
    // By copy_blocks_measure.
    uint64_t bytes;
    int64_t tiles;  // pieces of work on CUDA
    int unit_bytes; // 1, 2, 4, 8 or 16: divides every place, stride and run
} CopyBlocks;

// CUDA: what one thread block copies at a time, so many bytes of the runs of one block.
enum { COPY_TILE_BYTES = 16384 };

// Local, at set-up. `block` in host memory: joins runs that touch, fills in first_tile, and returns
// arguments that lack block, from and to. Whoever copies on CUDA takes the blocks there afterwards.
CopyBlocks copy_blocks_measure(CopyBlock *block, int64_t blocks);
KERNEL_DECLARE(copy_blocks, CopyBlocks);

DECLARATIONS_END
