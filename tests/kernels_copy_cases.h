// kernels_copy_cases.h -- random lists of blocks for copy_blocks, and what they must leave, byte by
// byte.
#pragma once

#include "harness/random.h"
#include "kernels/copy_blocks.h"

#include <stdlib.h>
#include <string.h>

enum { COPY_CASE_BLOCKS = 12 };

typedef struct CopyCase {
    int64_t blocks;
    CopyBlock block[COPY_CASE_BLOCKS];
    uint64_t from_bytes, to_bytes; // that the blocks stay within
} CopyCase;

typedef struct CopyDraw {
    uint64_t seed, drawn;
    uint32_t trial;
} CopyDraw;

static inline uint64_t copy_draw(CopyDraw *draw, uint64_t below)
{
    return random_block(draw->seed, draw->trial, draw->drawn++).word[0] % below;
}

// Blocks one behind the other in `to`, with gaps, each anywhere in `from`. Some are empty, some
// touch, and everything is a multiple of a unit of 1 to 16 bytes.
static inline CopyCase copy_case(uint64_t seed, uint32_t trial, uint64_t runs_max)
{
    CopyDraw draw = {.seed = seed, .trial = trial};
    CopyCase c = {.blocks = (int64_t)copy_draw(&draw, COPY_CASE_BLOCKS + 1), .from_bytes = 16};
    uint64_t unit = (uint64_t)1 << copy_draw(&draw, 5);
    for (int64_t i = 0; i < c.blocks; i++) {
        CopyBlock *b = &c.block[i];
        uint64_t extent[2] = {0}; // of from and to
        b->run_bytes = unit * copy_draw(&draw, copy_draw(&draw, 2) ? 4 : 60);
        for (int level = 0; level < 2; level++)
            b->counts[level] = (int64_t)copy_draw(&draw, copy_draw(&draw, 2) ? 3 : runs_max);
        for (int side = 0; side < 2; side++) {
            uint64_t *strides = side ? b->to_strides : b->from_strides;
            uint64_t gap = copy_draw(&draw, 2) ? unit * copy_draw(&draw, 5) : 0;
            strides[1] = b->run_bytes + gap;
            strides[0] = strides[1] * (uint64_t)b->counts[1] + (copy_draw(&draw, 2) ? gap : 0);
            extent[side] = strides[0] * (uint64_t)b->counts[0];
        }
        b->from_first = unit * copy_draw(&draw, 9);
        b->to_first = c.to_bytes + unit * copy_draw(&draw, 3);
        c.to_bytes = b->to_first + extent[1];
        uint64_t end = b->from_first + extent[0];
        c.from_bytes = end > c.from_bytes ? end : c.from_bytes;
    }
    return c;
}

// The header's formula, before copy_blocks_measure has joined anything.
static inline uint64_t copy_plainly(const CopyCase *c, const uint8_t *from, uint8_t *to)
{
    uint64_t bytes = 0;
    for (int64_t n = 0; n < c->blocks; n++) {
        const CopyBlock *b = &c->block[n];
        for (int64_t i = 0; i < b->counts[0]; i++)
            for (int64_t j = 0; j < b->counts[1]; j++)
                for (uint64_t k = 0; k < b->run_bytes; k++, bytes++)
                    to[b->to_first + (uint64_t)i * b->to_strides[0] +
                       (uint64_t)j * b->to_strides[1] + k] =
                        from[b->from_first + (uint64_t)i * b->from_strides[0] +
                             (uint64_t)j * b->from_strides[1] + k];
    }
    return bytes;
}
