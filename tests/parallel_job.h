// parallel_job.h -- how a test on several ranks begins and ends: the job, the world's Comm, stream
// and arena on a device, and a seed that all ranks share. With it what such tests do all the time:
// memory between host and device, values of any type.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "harness/random.h"
#include "parallel/comm_link.h"

typedef struct TestJob {
    Run *run;
    Comm comm; // the world's, unless a test makes a group of its own
    Stream stream;
    Arena *arena;
    uint64_t seed; // the same on every rank
} TestJob;

// Collective(all ranks). Leaves with 77 when this host has fewer GPUs than ranks.
// MESHWORK_TEST_SEED repeats a failure.
static inline TestJob test_job_begin(int argc, char **argv, DeviceKind device)
{
    // A rank that fails an assertion takes the job down instead of leaving the others waiting for
    // it.
    setenv("CMOCKA_TEST_ABORT", "1", 1);
    Run *run = run_create(argc, argv, "test", true);
    char why[DEVICE_TEXT_BYTES] = "";
    if (device == DEVICE_CUDA && device_count(device, why, sizeof(why)) < run->local_ranks) {
        if (run->rank == 0)
            fprintf(stderr, "skipped: fewer GPUs than ranks on this host %s\n", why);
        run_destroy(run);
        exit(EXIT_CODE_SKIPPED);
    }
    int index = device == DEVICE_CUDA ? run->local_rank : 0;
    if (device == DEVICE_CUDA)
        device_select(device, index);
    TestJob job = {.run = run,
                   .comm = comm_create_world(run, device, index),
                   .stream = stream_create(device),
                   .arena = arena_create(MEMORY_DEVICE, device)};
    const char *given = getenv("MESHWORK_TEST_SEED");
    job.seed = (uint64_t)comm_maximum(job.comm, given ? strtoll(given, NULL, 10) : time(NULL));
    if (run->rank == 0)
        fprintf(stderr, "MESHWORK_TEST_SEED=%llu\n", (unsigned long long)job.seed);
    return job;
}

// Collective(all ranks). Gives `failed` back, for main to return.
static inline int test_job_end(TestJob *job, int failed)
{
    arena_destroy(job->arena);
    stream_destroy(job->stream);
    comm_destroy(&job->comm);
    run_destroy(job->run);
    return failed;
}

static inline void *host_memory(uint64_t bytes)
{
    void *memory = calloc(bytes ? bytes : 1, 1);
    assert_non_null(memory);
    return memory;
}

static inline void *host_copy(const void *device, uint64_t bytes, Stream stream)
{
    void *memory = host_memory(bytes);
    if (bytes > 0)
        device_copy(memory, device, bytes, stream);
    stream_wait(stream);
    return memory;
}

static inline void put_and_free(void *device, void *host, uint64_t bytes, Stream stream)
{
    if (bytes > 0)
        device_copy(device, host, bytes, stream);
    stream_wait(stream);
    free(host);
}
