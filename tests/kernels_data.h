// kernels_data.h -- what the tests of the CPU kernels share: fresh random numbers, arrays that
// start out poisoned, values of both storage types, and comparisons that print both sides.
#pragma once

#include "harness/random.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static const Stream CPU = {DEVICE_CPU, NULL};

// Random numbers and memory of one test. Every array is a block of its own, so that
// AddressSanitizer sees both its ends. MESHWORK_TEST_SEED repeats a failure.
enum { DATA_BLOCKS_MAX = 4096 };
typedef struct Data {
    uint64_t seed, drawn;
    int blocks;
    void *block[DATA_BLOCKS_MAX];
} Data;

static inline Data data_create(void)
{
    const char *given = getenv("MESHWORK_TEST_SEED");
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t seed = given ? strtoull(given, NULL, 10)
                          : (uint64_t)now.tv_sec * 1000000007u + (uint64_t)now.tv_nsec;
    print_message("MESHWORK_TEST_SEED=%llu\n", (unsigned long long)seed);
    return (Data){.seed = seed};
}

// Everything made since `blocks` was this number goes.
static inline void data_release(Data *data, int blocks)
{
    while (data->blocks > blocks)
        free(data->block[--data->blocks]);
}

static inline void data_destroy(Data *data)
{
    data_release(data, 0);
}

static inline int64_t data_below(Data *data, int64_t bound)
{
    RandomBlock block = random_block(data->seed, 1, data->drawn++);
    return (int64_t)((uint64_t)block.word[0] % (uint64_t)bound);
}

static inline float data_normal(Data *data)
{
    return random_normal(data->seed, 2, data->drawn++);
}

// NaN in every float type, -1 in every integer.
static inline void *data_poisoned(Data *data, int64_t count, uint64_t element_bytes)
{
    uint64_t bytes = (uint64_t)count * element_bytes;
    void *memory = malloc(bytes);
    assert_true(memory || bytes == 0);
    assert_true(data->blocks < DATA_BLOCKS_MAX);
    if (memory)
        memset(memory, 0xFF, bytes);
    data->block[data->blocks++] = memory;
    return memory;
}

static inline float value_of(const void *data, DType dtype, int64_t index)
{
    return dtype == DTYPE_F32 ? ((const float *)data)[index]
                              : f32_from_bf16(((const uint16_t *)data)[index]);
}

static inline void put_value(void *data, DType dtype, int64_t index, float value)
{
    if (dtype == DTYPE_F32)
        ((float *)data)[index] = value;
    else
        ((uint16_t *)data)[index] = bf16_from_f32(value);
}

static inline void *data_normals(Data *data, int64_t count, DType dtype, float deviation)
{
    void *out = data_poisoned(data, count, dtype_bytes(dtype, 1));
    for (int64_t i = 0; i < count; i++)
        put_value(out, dtype, i, deviation * data_normal(data));
    return out;
}

// Half a unit in the last place of the storage type, relative.
static inline double rounding_of(DType dtype)
{
    return dtype == DTYPE_F32 ? FLT_EPSILON / 2.0 : 1.0 / 256.0;
}

// Same bits, or both NaN.
static inline bool same_value(float a, float b)
{
    return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b));
}

static inline void expect_same(float ours, float expected, const char *what, int64_t index)
{
    if (!same_value(ours, expected))
        fail_msg("%s[%lld]: %.9g, expected exactly %.9g", what, (long long)index, (double)ours,
                 (double)expected);
}

static inline void expect_near(double ours, double expected, double bound, const char *what,
                               int64_t index)
{
    if (!(fabs(ours - expected) <= bound) && !(isnan(ours) && isnan(expected)))
        fail_msg("%s[%lld]: %.9g, expected %.9g, |difference| %.3g > %.3g", what, (long long)index,
                 ours, expected, fabs(ours - expected), bound);
}

static inline void expect_equal(int64_t ours, int64_t expected, const char *what, int64_t index)
{
    if (ours != expected)
        fail_msg("%s[%lld]: %lld, expected %lld", what, (long long)index, (long long)ours,
                 (long long)expected);
}

static inline void expect_poison(const void *data, DType dtype, int64_t index, const char *what)
{
    uint32_t bits = dtype == DTYPE_F32 ? ((const uint32_t *)data)[index]
                                       : ((const uint16_t *)data)[index] | 0xFFFF0000u;
    if (bits != 0xFFFFFFFFu)
        fail_msg("%s[%lld] was written: %.9g, expected the poison to stay", what, (long long)index,
                 (double)value_of(data, dtype, index));
}
