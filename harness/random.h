// random.h -- counter-based random numbers: a value depends on (seed, stream, global index) and on
// nothing else, so any layout of the same tensor over any ranks, on CPU or GPU, holds the same
// numbers.
//
// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
// SC'11). One block of four words makes one value. The normal is the sum of the block's eight
// 16-bit halves (Irwin-Hall of 8, centred and scaled to unit variance; |value| < 4.9): integer sums
// and one multiplication are exact everywhere, which log and cos are not.
#pragma once

#include "harness/base.h"
#include "harness/device.h"
#include "harness/philox.h"

DECLARATIONS_BEGIN

typedef PhiloxBlock RandomBlock; // word[4]

// Local. counter = {index low, index high, stream, 0}, key = {seed low, seed high}.
RandomBlock random_block(uint64_t seed, uint32_t stream, uint64_t index);
float random_uniform(uint64_t seed, uint32_t stream, uint64_t index); // Local. [0, 1), 24 bits
float random_normal(uint64_t seed, uint32_t stream, uint64_t index);  // Local. mean 0, variance 1

// How a (possibly sharded) tensor is filled: local row-major [rows, columns] taken from a global
// matrix of the same `columns`, starting at global row `first_row`. value = mean + deviation *
// normal, rounded to dtype.
typedef struct RandomFill {
    uint64_t seed;
    uint32_t stream;   // one per tensor, so that tensors differ
    int64_t first_row; // global
    int64_t rows, columns;
    float mean, deviation;
    DType dtype; // DTYPE_F32 or DTYPE_BF16
    void *out;   // [rows, columns]
} RandomFill;
// Enqueues(stream). Same bytes on every device.
void random_fill(const RandomFill *fill, Stream stream);
OPTIONAL_SYMBOL void random_fill_cuda(const RandomFill *fill, Stream stream); // its CUDA row

DECLARATIONS_END
