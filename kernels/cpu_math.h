// cpu_math.h -- what the CPU rows share: the two storage types as f32, and an exponential of our own.
//
// All of it is inline and branch-free, so that a loop over a row becomes vector code, and none of it uses fmaf: the bits
// are the same on every CPU and with every C library. The CUDA rows have their own; the bounds are stated per kernel.
#pragma once

#include "harness/dtype.h"

#include <string.h>

// Per-row loops are compiled once per vector width and chosen when the program is loaded. "fma" is AVX with fused
// multiply-add (2013 and later).
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
#define CPU_CLONES __attribute__((target_clones("avx512f", "fma", "default")))
#else
#define CPU_CLONES
#endif
#define CPU_INLINE static inline __attribute__((always_inline))

CPU_INLINE float cpu_float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

CPU_INLINE uint32_t cpu_bits_of_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// The same rounding as bf16_from_f32: to nearest even, every NaN becomes 7FC0.
CPU_INLINE uint16_t cpu_bf16_of_float(float value)
{
    uint32_t bits = cpu_bits_of_float(value);
    uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

CPU_INLINE float cpu_load(const void *data, DType dtype, int64_t index)
{
    if (dtype == DTYPE_F32)
        return ((const float *)data)[index];
    return cpu_float_of_bits((uint32_t)((const uint16_t *)data)[index] << 16);
}

CPU_INLINE void cpu_store(void *data, DType dtype, int64_t index, float value)
{
    if (dtype == DTYPE_F32)
        ((float *)data)[index] = value;
    else
        ((uint16_t *)data)[index] = cpu_bf16_of_float(value);
}

// The value that storing and loading again gives.
CPU_INLINE float cpu_round(float value, DType dtype)
{
    return dtype == DTYPE_F32 ? value
                              : cpu_float_of_bits((uint32_t)cpu_bf16_of_float(value) << 16);
}

// e^x for x <= 0, with at most 2 ulp of error where the result is normal; below 2^-126 the result is a correctly placed
// subnormal, below -104 it is 0. NaN gives NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial (remainder r^8 / 8! < 6e-9); 2^n by exponent bits in
// two halves, so that subnormal results round only once.
CPU_INLINE float cpu_exp_negative(float x)
{
    const float shift = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
    float bounded = x < -104.0f ? -104.0f : x;
    float n = (bounded * 1.44269504f + shift) - shift;
    float r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f; // ln 2 in two parts, the first exact times n
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

// 1 / (1 + e^-z) without overflow and without cancellation at either end.
CPU_INLINE float cpu_sigmoid(float z)
{
    float e = cpu_exp_negative(z < 0 ? z : -z);
    return (z < 0 ? e : 1.0f) / (1.0f + e);
}
