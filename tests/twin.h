// twin.h -- for tests that run a kernel's CPU row and its CUDA row on the same data: every array
// exists twice, on the host and on the device, filled alike, poisoned alike where nothing was put,
// and compared to the last byte afterwards. So an element that only one row writes is found as
// well.
#pragma once

#include "harness/arena.h"
#include "harness/random.h"
#include "tests/select_gpu.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

typedef struct Twin {
    void *host, *device;
    void *back; // what the device holds, after twin_fetch
    uint64_t bytes;
} Twin;

// Where twins live, and the random numbers that fill them. One per test; everything goes with
// twins_destroy.
typedef struct Twins {
    Arena *host, *device;
    Stream cpu, cuda;
    uint64_t seed;
    uint64_t drawn; // numbers taken so far
    char text[256]; // what is being tested, for messages
} Twins;

enum { TWIN_POISON = 0xFF }; // NaN in every float type, -1 in every integer

static inline uint64_t twins_seed(void)
{
    const char *given = getenv("MESHWORK_TEST_SEED");
    const uint64_t seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    print_message("MESHWORK_TEST_SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

static inline Twins twins_create(void)
{
    return (Twins){.host = arena_create(MEMORY_HOST, DEVICE_CPU),
                   .device = arena_create(MEMORY_DEVICE, DEVICE_CUDA),
                   .cpu = stream_create(DEVICE_CPU),
                   .cuda = stream_create(DEVICE_CUDA),
                   .seed = twins_seed()};
}

static inline void twins_destroy(Twins *twins)
{
    arena_destroy(twins->host);
    arena_destroy(twins->device);
    stream_destroy(twins->cpu);
    stream_destroy(twins->cuda);
}

// Everything made between these two is given back.
typedef struct TwinsMark {
    ArenaMark host, device;
} TwinsMark;

static inline TwinsMark twins_mark(const Twins *twins)
{
    return (TwinsMark){arena_mark(twins->host), arena_mark(twins->device)};
}

static inline void twins_release(Twins *twins, TwinsMark mark)
{
    arena_release(twins->host, mark.host);
    arena_release(twins->device, mark.device);
}

static inline float twins_normal(Twins *twins)
{
    return random_normal(twins->seed, 1, twins->drawn++);
}

static inline int64_t twins_below(Twins *twins, int64_t bound)
{
    const RandomBlock block = random_block(twins->seed, 2, twins->drawn++);
    return (int64_t)(((uint64_t)block.word[0] << 31 | block.word[1] >> 1) % (uint64_t)bound);
}

// Poisoned on both sides. Never empty, so that its pointers are valid.
static inline Twin twin_create(Twins *twins, int64_t count, uint64_t element_bytes)
{
    Twin twin = {.bytes = (uint64_t)count * element_bytes};
    twin.host = arena_push(twins->host, twin.bytes + 16, MEMORY_SCRATCH);
    twin.device = arena_push(twins->device, twin.bytes + 16, MEMORY_SCRATCH);
    memset(twin.host, TWIN_POISON, twin.bytes);
    device_fill(twin.device, TWIN_POISON, twin.bytes, twins->cuda);
    return twin;
}

static inline void twin_upload(Twins *twins, const Twin *twin)
{
    device_copy(twin->device, twin->host, twin->bytes, twins->cuda);
    stream_wait(twins->cuda);
}

static inline void twin_fetch(Twins *twins, Twin *twin)
{
    if (!twin->back)
        twin->back = arena_push(twins->host, twin->bytes + 16, MEMORY_SCRATCH);
    device_copy(twin->back, twin->device, twin->bytes, twins->cuda);
    stream_wait(twins->cuda);
}

static inline float twin_value(const void *data, DType dtype, int64_t index)
{
    return dtype == DTYPE_F32 ? ((const float *)data)[index]
                              : f32_from_bf16(((const uint16_t *)data)[index]);
}

static inline void twin_put(void *data, DType dtype, int64_t index, float value)
{
    if (dtype == DTYPE_F32)
        ((float *)data)[index] = value;
    else
        ((uint16_t *)data)[index] = bf16_from_f32(value);
}

// Normal numbers, the same on both sides.
static inline Twin twin_normals(Twins *twins, int64_t count, DType dtype, float deviation)
{
    Twin twin = twin_create(twins, count, dtype_bytes(dtype, 1));
    const RandomFill fill = {.seed = twins->seed,
                             .stream = 100 + (uint32_t)twins->drawn++,
                             .rows = count,
                             .columns = 1,
                             .deviation = deviation,
                             .dtype = dtype,
                             .out = twin.host};
    random_fill(&fill, twins->cpu);
    twin_upload(twins, &twin);
    return twin;
}

static inline Twin twin_integer(Twins *twins, int32_t value)
{
    Twin twin = twin_create(twins, 1, sizeof(int32_t));
    *(int32_t *)twin.host = value;
    twin_upload(twins, &twin);
    return twin;
}

// A map of `rows` entries: -1 with the given chance, else a number below `bound`.
static inline Twin twin_map(Twins *twins, int64_t rows, int64_t bound, double chance_none)
{
    Twin twin = twin_create(twins, rows, sizeof(int32_t));
    for (int64_t i = 0; i < rows; i++) {
        const bool none = bound == 0 || (double)twins_below(twins, 1000) < 1000 * chance_none;
        ((int32_t *)twin.host)[i] = none ? -1 : (int32_t)twins_below(twins, bound);
    }
    twin_upload(twins, &twin);
    return twin;
}

// Bit for bit the same, poison included.
static inline void twin_expect_same(Twins *twins, Twin *twin, DType dtype, const char *name)
{
    twin_fetch(twins, twin);
    if (memcmp(twin->host, twin->back, twin->bytes) == 0)
        return;
    const int64_t element_bytes = (int64_t)dtype_bytes(dtype, 1);
    for (int64_t i = 0; i < (int64_t)twin->bytes / element_bytes; i++) {
        const char *cpu = (const char *)twin->host + i * element_bytes;
        const char *cuda = (const char *)twin->back + i * element_bytes;
        if (memcmp(cpu, cuda, (size_t)element_bytes) == 0)
            continue;
        if (dtype == DTYPE_I32)
            fail_msg("%s: %s[%lld] is %d on the CPU, %d on CUDA", twins->text, name, (long long)i,
                     *(const int32_t *)cpu, *(const int32_t *)cuda);
        fail_msg("%s: %s[%lld] is %.9g on the CPU, %.9g on CUDA", twins->text, name, (long long)i,
                 (double)twin_value(twin->host, dtype, i),
                 (double)twin_value(twin->back, dtype, i));
    }
}

// How far apart floats may be: |cpu - cuda| <= share * largest finite |cpu| everywhere, and in bf16
// one step of the type more, in at most 1 element of `rare` (plus 2).
typedef struct Bound {
    double share;
    int64_t rare;
} Bound;

static inline void twin_expect_near(Twins *twins, Twin *twin, DType dtype, Bound bound,
                                    const char *name)
{
    twin_fetch(twins, twin);
    const int64_t count = (int64_t)(twin->bytes / dtype_bytes(dtype, 1));
    double largest = 0;
    for (int64_t i = 0; i < count; i++) {
        const double value = fabs((double)twin_value(twin->host, dtype, i));
        if (isfinite(value) && value > largest)
            largest = value;
    }
    int64_t stepped = 0;
    for (int64_t i = 0; i < count; i++) {
        const double cpu = (double)twin_value(twin->host, dtype, i);
        const double cuda = (double)twin_value(twin->back, dtype, i);
        const double apart = fabs(cpu - cuda), allowed = bound.share * largest;
        if (apart <= allowed || cpu == cuda || (isnan(cpu) && isnan(cuda)))
            continue;
        const double step = dtype == DTYPE_BF16 ? fabs(cpu) * 0x1p-7 : 0; // at most one step
        stepped++;
        if (!(apart <= allowed + step))
            fail_msg("%s: %s[%lld] is %.9g on the CPU, %.9g on CUDA: %.3g apart, allowed %.3g",
                     twins->text, name, (long long)i, cpu, cuda, apart, allowed + step);
    }
    if (stepped > 2 + count / bound.rare)
        fail_msg("%s: %lld of %lld elements of %s are a bf16 step apart, at most %lld may be",
                 twins->text, (long long)stepped, (long long)count, name,
                 (long long)(2 + count / bound.rare));
}
