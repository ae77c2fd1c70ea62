// parallel_values.h -- what the tests of collectives put in, and what must come out: small whole
// numbers, which every type and every order of sums keeps exact, and partials whose sum depends on
// the order.
#pragma once

#include "tests/parallel_job.h"

static inline double small_value(const TestJob *job, int rank, int64_t i)
{
    return (double)(random_block(job->seed, 2000 + (uint32_t)rank, (uint64_t)i).word[0] % 7) - 3;
}

static inline void set_value(void *array, DType dtype, int64_t i, double value)
{
    if (dtype == DTYPE_F32)
        ((float *)array)[i] = (float)value;
    else if (dtype == DTYPE_BF16)
        ((uint16_t *)array)[i] = bf16_from_f32((float)value);
    else if (dtype == DTYPE_F64)
        ((double *)array)[i] = value;
    else if (dtype == DTYPE_I32)
        ((int32_t *)array)[i] = (int32_t)value;
    else
        ((int64_t *)array)[i] = (int64_t)value;
}

static inline double get_value(const void *array, DType dtype, int64_t i)
{
    if (dtype == DTYPE_F32)
        return ((const float *)array)[i];
    if (dtype == DTYPE_BF16)
        return f32_from_bf16(((const uint16_t *)array)[i]);
    if (dtype == DTYPE_F64)
        return ((const double *)array)[i];
    return dtype == DTYPE_I32 ? ((const int32_t *)array)[i] : (double)((const int64_t *)array)[i];
}

static inline double expected_reduction(const TestJob *job, CommOp op, int64_t i)
{
    double result = small_value(job, 0, i);
    for (int rank = 1; rank < job->comm.ranks; rank++) {
        double value = small_value(job, rank, i);
        switch (op) {
        case COMM_SUM:
        case COMM_AVG:
            result += value;
            break;
        case COMM_PRODUCT:
            result *= value;
            break;
        case COMM_MAX:
            result = value > result ? value : result;
            break;
        case COMM_MIN:
            result = value < result ? value : result;
            break;
        }
    }
    return op == COMM_AVG ? result / job->comm.ranks : result;
}

// found: the reduction of small values, on the host.
static inline void expect_reduction(const TestJob *job, DType dtype, CommOp op, const void *found,
                                    int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        double expected = expected_reduction(job, op, i);
        if (dtype == DTYPE_F32)
            expected = (float)expected;
        if (get_value(found, dtype, i) != expected)
            fail_msg("all-reduce %s op %d [%lld]: found %g, expected %g", dtype_row(dtype)->name,
                     (int)op, (long long)i, get_value(found, dtype, i), expected);
    }
}

// Magnitudes over 12 decades, signs mixed.
static inline float partial_of(const TestJob *job, int rank, int64_t i)
{
    uint32_t stream = 3000 + (uint32_t)rank;
    float scale = 1;
    for (uint32_t n = random_block(job->seed, stream, (uint64_t)i).word[1] % 13; n > 0; n--)
        scale *= 10;
    return scale * random_normal(job->seed, stream, (uint64_t)i);
}

static inline void expect_float(const TestJob *job, const char *what, int64_t i, float found,
                                float expected)
{
    if (memcmp(&found, &expected, sizeof(float)) != 0)
        fail_msg("%s [%lld]: found %.9g, expected %.9g (seed %llu)", what, (long long)i,
                 (double)found, (double)expected, (unsigned long long)job->seed);
}

// found: the sum of partials in rank order, on the host. Returns how many of the sums another order
// would make different.
static inline int64_t expect_ordered_sum(const TestJob *job, const float *found, int64_t count)
{
    int64_t order_matters = 0;
    for (int64_t i = 0; i < count; i++) {
        float expected = partial_of(job, 0, i), backward = 0;
        for (int rank = 1; rank < job->comm.ranks; rank++)
            expected += partial_of(job, rank, i);
        for (int rank = job->comm.ranks - 1; rank >= 0; rank--)
            backward += partial_of(job, rank, i);
        order_matters += expected != backward;
        expect_float(job, "ordered sum", i, found[i], expected);
    }
    return order_matters;
}

// Exchanges of different sizes in one group, one of them of nothing: each brings its own values,
// and all bytes are counted.
static inline void test_grouped_exchange(void **state)
{
    const TestJob *job = *state;
    static const int64_t counts[] = {5, 1003, 0, 64}; // floats for each rank
    enum { EXCHANGES = COUNT_OF(counts) };
    int64_t ranks = job->comm.ranks, first = 0;
    float *send[EXCHANGES], *receive[EXCHANGES];
    ArenaMark mark = arena_mark(job->arena);
    for (int e = 0; e < EXCHANGES; first += counts[e++] * ranks) {
        uint64_t bytes = (uint64_t)(counts[e] * ranks) * sizeof(float);
        float *host = host_memory(bytes);
        for (int64_t i = 0; i < counts[e] * ranks; i++)
            host[i] = partial_of(job, job->comm.rank, first + i);
        send[e] = arena_push(job->arena, bytes, MEMORY_COMMUNICATION);
        receive[e] = arena_push(job->arena, bytes, MEMORY_COMMUNICATION);
        put_and_free(send[e], host, bytes, job->stream);
    }
    comm_take_wire_bytes(job->comm);
    comm_group_begin(job->comm, job->stream);
    for (int e = 0; e < EXCHANGES; e++)
        comm_all_to_all(job->comm, send[e], receive[e], (uint64_t)counts[e] * sizeof(float),
                        job->stream);
    comm_group_end(job->comm, job->stream);
    assert_int_equal(comm_take_wire_bytes(job->comm),
                     (uint64_t)(first / ranks * (ranks - 1)) * sizeof(float));
    first = 0;
    for (int e = 0; e < EXCHANGES; first += counts[e++] * ranks) {
        float *found =
            host_copy(receive[e], (uint64_t)(counts[e] * ranks) * sizeof(float), job->stream);
        for (int64_t i = 0; i < counts[e] * ranks; i++) {
            int64_t sent = first + counts[e] * job->comm.rank + i % counts[e];
            expect_float(job, "grouped exchange", first + i, found[i],
                         partial_of(job, (int)(i / counts[e]), sent));
        }
        free(found);
    }
    arena_release(job->arena, mark);
}
