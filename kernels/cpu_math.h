// cpu_math.h -- what the CPU rows share: blocks of the two storage types as f32, an exponential of
// our own, and the prescribed order of a row's dot product.
//
// All of it is inline, so that a loop over a row becomes vector code. The exponential uses no fused
// steps: its bits are the same on every CPU, with every C library, and in the router's CUDA row,
// which follows it step by step.
#pragma once

#include "harness/bf16.h"
#include "harness/dtype.h"

#include <math.h>
#include <string.h>

// Per-row loops are compiled once per vector width and chosen when the program is loaded. "fma" is
// AVX with fused multiply-add (2013 and later). AddressSanitizer would run the chooser before it is
// ready.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__SANITIZE_ADDRESS__)
#define CPU_CLONES __attribute__((target_clones("avx512f", "fma", "default")))
#else
#define CPU_CLONES
#endif
#define CPU_INLINE static inline __attribute__((always_inline))

enum {
    CPU_BLOCK = 512,     // elements that a row's loops take at a time, through arrays on the stack
    CPU_DOT_LANES = 32,  // partial sums of a dot product
    CPU_DOT_GROUP = 8,   // neighbouring elements of one partial sum
    CPU_SUMS_F64 = 1024, // partial sums in f64 of what a whole array has
    CPU_SUMS = CPU_DOT_LANES * CPU_DOT_GROUP, // partial sums where every element has its own
    CPU_PARALLEL_MIN = 1 << 15,               // elements below which threads are not woken
};

CPU_INLINE float cpu_load(const void *data, DType dtype, int64_t index)
{
    return dtype == DTYPE_F32 ? ((const float *)data)[index]
                              : f32_from_bf16_bits(((const uint16_t *)data)[index]);
}

CPU_INLINE void cpu_store(void *data, DType dtype, int64_t index, float value)
{
    if (dtype == DTYPE_F32)
        ((float *)data)[index] = value;
    else
        ((uint16_t *)data)[index] = bf16_bits_from_f32(value);
}

// Elements first .. first + count of `data`, widened.
CPU_INLINE void cpu_load_block(const void *data, DType dtype, int64_t first, int64_t count,
                               float *restrict out)
{
    if (dtype == DTYPE_F32) {
        memcpy(out, (const float *)data + first, (size_t)count * sizeof(float));
    } else {
        const uint16_t *restrict from = (const uint16_t *)data + first;
        for (int64_t i = 0; i < count; i++)
            out[i] = f32_from_bf16_bits(from[i]);
    }
}

CPU_INLINE void cpu_store_block(void *data, DType dtype, int64_t first, int64_t count,
                                const float *restrict value)
{
    if (dtype == DTYPE_F32) {
        memcpy((float *)data + first, value, (size_t)count * sizeof(float));
    } else {
        uint16_t *restrict to = (uint16_t *)data + first;
        for (int64_t i = 0; i < count; i++)
            to[i] = bf16_bits_from_f32(value[i]);
    }
}

// The values that storing and loading again gives.
CPU_INLINE void cpu_round_block(float *value, DType dtype, int64_t count)
{
    for (int64_t i = 0; i < count && dtype != DTYPE_F32; i++)
        value[i] = f32_from_bf16_bits(bf16_bits_from_f32(value[i]));
}

CPU_INLINE int64_t cpu_block_length(int64_t first, int64_t end)
{
    return end - first < CPU_BLOCK ? end - first : CPU_BLOCK;
}

// One block of the dot product that moe_combine.h prescribes; the block starts at a multiple of
// CPU_BLOCK.
CPU_INLINE void cpu_dot_block(float *lane, const float *a, const float *b, int64_t count)
{
    for (int64_t first = 0; first < count; first += CPU_DOT_GROUP) {
        int64_t end = first + CPU_DOT_GROUP < count ? first + CPU_DOT_GROUP : count;
        float sum = lane[first / CPU_DOT_GROUP % CPU_DOT_LANES];
        for (int64_t i = first; i < end; i++)
            sum = fmaf(a[i], b[i], sum);
        lane[first / CPU_DOT_GROUP % CPU_DOT_LANES] = sum;
    }
}

// Pairwise: lanes 16 apart first, then 8, 4, 2, 1.
CPU_INLINE float cpu_lane_sum(const float *lane)
{
    float sum[CPU_DOT_LANES];
    memcpy(sum, lane, sizeof sum);
    for (int apart = CPU_DOT_LANES / 2; apart > 0; apart /= 2)
        for (int i = 0; i < apart; i++)
            sum[i] += sum[i + apart];
    return sum[0];
}

// Pairwise: sums CPU_SUMS_F64 / 2 apart first, then a quarter, ... 1.
CPU_INLINE double cpu_pairwise_sum(double *sum)
{
    for (int apart = CPU_SUMS_F64 / 2; apart > 0; apart /= 2)
        for (int i = 0; i < apart; i++)
            sum[i] += sum[i + apart];
    return sum[0];
}

CPU_INLINE float cpu_float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// e^x for x <= 0, with at most 1.1 ulp of error where the result is normal; below 2^-126 the result
// is a correctly placed subnormal, below -104 it is 0. NaN gives NaN.
// How: x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial (remainder r^8 / 8! <
// 6e-9); 2^n by exponent bits in two halves, so that subnormal results round only once.
CPU_INLINE float cpu_exp_negative(float x)
{
    const float shift = 12582912.0f;     // 1.5 * 2^23: adding it rounds to an integer
    const float ln2_high = 0.693359375f; // few enough bits that times n it is exact
    const float ln2_low = -2.12194440e-4f;
    float bounded = x < -104.0f ? -104.0f : x;
    float n = (bounded * 1.44269504f + shift) - shift;
    float r = (bounded - n * ln2_high) - n * ln2_low;
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = (p * r) * r + r + 1.0f;
    int32_t exponent = x == x ? (int32_t)n : 0;
    int32_t half = exponent / 2;
    float scale_a = cpu_float_of_bits((uint32_t)(127 + half) << 23);
    float scale_b = cpu_float_of_bits((uint32_t)(127 + exponent - half) << 23);
    return p * scale_a * scale_b;
}

// 1 / (1 + e^-z), at most 2.5 ulp off, without overflow and without cancellation at either end.
CPU_INLINE float cpu_sigmoid(float z)
{
    float e = cpu_exp_negative(z < 0 ? z : -z);
    return (z < 0 ? e : 1.0f) / (1.0f + e);
}
