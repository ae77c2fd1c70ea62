// philox.h -- the arithmetic of random.h, inline and shared by the CPU and the CUDA row, so that
// both give the same bits.
//
// Philox 4x32-10: ten rounds of two 32 x 32 -> 64 bit products on a 128-bit counter under a 64-bit
// key (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11). Floating
// point is limited to single operations that round once: products and sums are never fused (the GPU
// compiler would, the CPU compiler may not).
#pragma once

#include "harness/base.h"

#ifdef __CUDACC__
#define PHILOX_INLINE static __forceinline__ __host__ __device__
#else
#define PHILOX_INLINE static inline __attribute__((always_inline))
#endif

enum { PHILOX_ROUNDS = 10 };

typedef struct PhiloxBlock {
    uint32_t word[4];
} PhiloxBlock;

PHILOX_INLINE PhiloxBlock philox_block(PhiloxBlock counter, uint32_t key0, uint32_t key1)
{
    uint32_t c0 = counter.word[0], c1 = counter.word[1];
    uint32_t c2 = counter.word[2], c3 = counter.word[3];
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * c0;
        uint64_t product1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ key0;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ key1;
        c1 = (uint32_t)product1;
        c3 = (uint32_t)product0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    PhiloxBlock block = {{c0, c1, c2, c3}};
    return block;
}

// The block of one value: counter = {index low, index high, stream, 0}, key = {seed low, seed
// high}.
PHILOX_INLINE PhiloxBlock philox_value_block(uint64_t seed, uint32_t stream, uint64_t index)
{
    PhiloxBlock counter = {{(uint32_t)index, (uint32_t)(index >> 32), stream, 0}};
    return philox_block(counter, (uint32_t)seed, (uint32_t)(seed >> 32));
}

PHILOX_INLINE float philox_uniform(PhiloxBlock block)
{
    return (float)(block.word[0] >> 8) * 0x1p-24f;
}

// Eight halves, each uniform on 0 .. 65535: mean of the sum 8 * 65535 / 2 = 262140, variance 8 *
// (2^32 - 1) / 12. The centred sum has at most 19 bits, so it is exact in f32, and the value is
// rounded once, by the scaling.
PHILOX_INLINE float philox_normal(PhiloxBlock block)
{
    const float inverse_deviation = 0x1.3988e2p-16f; // 1 / sqrt(8 * (2^32 - 1) / 12)
    uint32_t sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (block.word[i] & 0xFFFFu) + (block.word[i] >> 16);
    return (float)((int32_t)sum - 262140) * inverse_deviation;
}

// mean + deviation * normal, rounded after the product and after the sum on every device.
PHILOX_INLINE float philox_scaled(float mean, float deviation, float normal)
{
#ifdef __CUDA_ARCH__
    return __fadd_rn(mean, __fmul_rn(deviation, normal));
#else
    float product =
        deviation * normal; // ISO C mode and -ffp-contract=off keep it a step of its own
    return mean + product;
#endif
}
