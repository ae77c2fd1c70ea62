// rounding_reference.h -- what an encoder's row promises, worked out the slow way, and every float
// held against it.
//
// The values of a format are listed in double from the formula (1 + m / 2^M) * 2^(e - bias); a
// float is placed between two neighbours of the list and goes to the one that the row's rounding
// names, "past the largest" being the value that the next code would have. No encoder's or
// decoder's code takes part.
#pragma once

#include "quant/format.h"

DECLARATIONS_BEGIN

typedef struct RoundingReference RoundingReference;

// Local. Owner: the caller.
RoundingReference *rounding_reference_create(const Format *format, const FormatEncoder *encoder);
void rounding_reference_destroy(RoundingReference *reference);
// Local. The code that the row promises for this f32.
uint32_t rounding_reference_encode(const RoundingReference *reference, uint32_t f32_bits);
// Local. The formula's value of a code without sign; past the largest the formula goes on.
double rounding_reference_value(const Format *format, uint32_t magnitude);

typedef struct RoundingCheck {
    uint64_t floats, differences;
    uint32_t f32_bits, found, expected; // of the first difference, by bits; all 0 if there is none
} RoundingCheck;

enum { ROUNDING_BLOCK_FLOATS = 1 << 20, ROUNDING_BLOCKS = 1 << 12 };
// Local. Compares the encoder with its row over blocks [first, first + blocks) of 2^20 bit patterns
// each; 4096 blocks are all 2^32. Uses OpenMP threads.
RoundingCheck rounding_reference_check(const RoundingReference *reference, int64_t first,
                                       int64_t blocks);

DECLARATIONS_END
