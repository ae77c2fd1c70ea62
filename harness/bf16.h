// bf16.h -- bf16 as bit patterns, inline, so that loops over tensors vectorise and kernels share
// the one rounding rule.
//
// bf16 is the upper half of an f32: widening is exact, narrowing rounds to nearest even (Wang &
// Kanwar, "BFloat16", 2019; NaN as torch has it: every NaN becomes 7FC0, so that a rounding carry
// cannot turn one into an infinity).
#pragma once

#include "harness/base.h"

#include <string.h>

#ifdef __CUDACC__
#define BF16_INLINE static inline __host__ __device__
#else
#define BF16_INLINE static inline
#endif

BF16_INLINE uint16_t bf16_bits_from_f32(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
    return (uint16_t)(is_nan ? 0x7FC0u : rounded);
}

BF16_INLINE float f32_from_bf16_bits(uint16_t bf16)
{
    uint32_t bits = (uint32_t)bf16 << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}
