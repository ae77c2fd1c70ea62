// Collectives over NCCL against what their definitions say, on the world and on a group made from
// it; the sum in rank order bit for bit; and all of it inside a replayed graph.
// ranks: 2
// labels: gpu2
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

typedef struct Setting {
    Comm comm;
    Stream stream;
    Arena *arena;
    uint64_t seed; // the same on every rank
} Setting;

static float input(const Setting *s, int rank, int64_t i)
{
    float scale = 1;
    for (uint32_t n = random_block(s->seed, 50 + (uint32_t)rank, (uint64_t)i).word[1] % 9; n > 0;
         n--)
        scale *= 10;
    return scale * random_normal(s->seed, (uint32_t)rank, (uint64_t)i);
}

static void *upload(const Setting *s, const void *host, uint64_t bytes)
{
    void *device = arena_push(s->arena, bytes, MEMORY_COMMUNICATION);
    device_copy(device, host, bytes, s->stream);
    stream_wait(s->stream);
    return device;
}

static void *download(const Setting *s, const void *device, uint64_t bytes)
{
    void *host = malloc(bytes ? bytes : 1);
    assert_non_null(host);
    device_copy(host, device, bytes, s->stream);
    stream_wait(s->stream);
    return host;
}

// count values of this rank, in device memory.
static float *inputs(const Setting *s, int64_t count)
{
    float *host = malloc((uint64_t)count * sizeof(float) + 1);
    assert_non_null(host);
    for (int64_t i = 0; i < count; i++)
        host[i] = input(s, s->comm.rank, i);
    float *device = upload(s, host, (uint64_t)count * sizeof(float));
    free(host);
    return device;
}

static void expect_float(const char *what, int64_t i, float found, float expected)
{
    if (memcmp(&found, &expected, sizeof(float)) != 0)
        fail_msg("%s [%lld]: found %.9g, expected %.9g", what, (long long)i, (double)found,
                 (double)expected);
}

static void test_gather_and_exchange(void **state)
{
    const Setting *s = *state;
    enum { BLOCK = 1003 };
    int ranks = s->comm.ranks;
    uint64_t bytes = BLOCK * sizeof(float);
    ArenaMark mark = arena_mark(s->arena);
    float *mine = inputs(s, BLOCK * ranks);
    float *all = arena_push(s->arena, bytes * (uint64_t)ranks, MEMORY_COMMUNICATION);
    comm_take_wire_bytes(s->comm);
    comm_all_gather(s->comm, mine, all, bytes, s->stream);
    float *found = download(s, all, bytes * (uint64_t)ranks);
    for (int64_t i = 0; i < BLOCK * ranks; i++)
        expect_float("all-gather", i, found[i], input(s, (int)(i / BLOCK), i % BLOCK));
    free(found);
    comm_all_to_all(s->comm, mine, all, bytes, s->stream);
    found = download(s, all, bytes * (uint64_t)ranks);
    for (int64_t i = 0; i < BLOCK * ranks; i++)
        expect_float("all-to-all", i, found[i],
                     input(s, (int)(i / BLOCK), BLOCK * s->comm.rank + i % BLOCK));
    free(found);
    assert_int_equal(comm_take_wire_bytes(s->comm), 2 * bytes * (uint64_t)(ranks - 1));
    comm_all_to_all(s->comm, mine, all, 0, s->stream);
    for (int root = 0; root < ranks; root++) {
        float *data = inputs(s, BLOCK);
        comm_broadcast(s->comm, data, bytes, root, s->stream);
        found = download(s, data, bytes);
        for (int64_t i = 0; i < BLOCK; i++)
            expect_float("broadcast", i, found[i], input(s, root, i));
        free(found);
    }
    comm_barrier(s->comm, s->stream);
    stream_wait(s->stream);
    arena_release(s->arena, mark);
}

// Small integers: exact in every type and order.
static double small_value(const Setting *s, int rank, int64_t i)
{
    return (double)(random_block(s->seed, 99 + (uint32_t)rank, (uint64_t)i).word[2] % 9) - 4;
}

static void store(void *array, DType dtype, int64_t i, double value)
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

static double load(const void *array, DType dtype, int64_t i)
{
    if (dtype == DTYPE_F32)
        return ((const float *)array)[i];
    if (dtype == DTYPE_BF16)
        return f32_from_bf16(((const uint16_t *)array)[i]);
    if (dtype == DTYPE_F64)
        return ((const double *)array)[i];
    return dtype == DTYPE_I32 ? ((const int32_t *)array)[i] : (double)((const int64_t *)array)[i];
}

static double fold(const Setting *s, CommOp op, int64_t i)
{
    double result = small_value(s, 0, i);
    for (int rank = 1; rank < s->comm.ranks; rank++) {
        double value = small_value(s, rank, i);
        if (op == COMM_SUM || op == COMM_AVG)
            result += value;
        else if (op == COMM_PRODUCT)
            result *= value;
        else if (op == COMM_MAX)
            result = value > result ? value : result;
        else
            result = value < result ? value : result;
    }
    return op == COMM_AVG ? result / s->comm.ranks : result;
}

static void test_all_reduce(void **state)
{
    const Setting *s = *state;
    enum { COUNT = 777 };
    static const DType dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F64, DTYPE_I32, DTYPE_I64};
    double host[COUNT];
    for (size_t d = 0; d < COUNT_OF(dtypes); d++)
        for (CommOp op = COMM_SUM; op <= COMM_MIN; op++) {
            DType dtype = dtypes[d];
            if (op == COMM_AVG && (dtype == DTYPE_I32 || dtype == DTYPE_I64))
                continue;
            ArenaMark mark = arena_mark(s->arena);
            uint64_t bytes = dtype_bytes(dtype, COUNT);
            for (int64_t i = 0; i < COUNT; i++)
                store(host, dtype, i, small_value(s, s->comm.rank, i));
            void *data = upload(s, host, bytes);
            comm_all_reduce(s->comm, data, data, COUNT, dtype, op, s->stream);
            void *found = download(s, data, bytes);
            for (int64_t i = 0; i < COUNT; i++)
                if (load(found, dtype, i) != fold(s, op, i))
                    fail_msg("all-reduce %s op %d [%lld]: found %g, expected %g",
                             dtype_row(dtype)->name, (int)op, (long long)i, load(found, dtype, i),
                             fold(s, op, i));
            free(found);
            arena_release(s->arena, mark);
        }
}

static void check_ordered(const Setting *s, const float *device, int64_t count)
{
    float *found = download(s, device, (uint64_t)count * sizeof(float));
    for (int64_t i = 0; i < count; i++) {
        float expected = input(s, 0, i);
        for (int rank = 1; rank < s->comm.ranks; rank++)
            expected += input(s, rank, i);
        expect_float("ordered sum", i, found[i], expected);
    }
    free(found);
}

static void test_ordered_sum(void **state)
{
    const Setting *s = *state;
    static const int64_t counts[] = {1, 2, 3, 1000, 4099};
    for (size_t c = 0; c < COUNT_OF(counts); c++)
        for (int in_place = 0; in_place < 2; in_place++) {
            ArenaMark mark = arena_mark(s->arena);
            float *in = inputs(s, counts[c]);
            float *out = in_place ? in : ARENA_PUSH(s->arena, float, counts[c], MEMORY_SCRATCH);
            void *scratch = arena_push(s->arena, comm_ordered_scratch_bytes(s->comm, counts[c]),
                                       MEMORY_SCRATCH);
            comm_all_reduce_ordered(s->comm, in, out, counts[c], scratch, s->stream);
            check_ordered(s, out, counts[c]);
            arena_release(s->arena, mark);
        }
}

// A replay reads what is in the buffers then, not what was there at capture.
static void test_graph(void **state)
{
    Setting s = *(Setting *)*state;
    enum { COUNT = 1001 };
    ArenaMark mark = arena_mark(s.arena);
    float *in = inputs(&s, COUNT), *out = ARENA_PUSH(s.arena, float, COUNT, MEMORY_SCRATCH);
    void *scratch = arena_push(s.arena, comm_ordered_scratch_bytes(s.comm, COUNT), MEMORY_SCRATCH);
    comm_all_reduce_ordered(s.comm, in, out, COUNT, scratch, s.stream); // NCCL connects outside
    stream_wait(s.stream);
    graph_begin(s.stream);
    comm_all_reduce_ordered(s.comm, in, out, COUNT, scratch, s.stream);
    comm_barrier(s.comm, s.stream);
    Graph graph = graph_end(s.stream);
    for (int replay = 0; replay < 5; replay++) {
        s.seed++;
        ArenaMark inner = arena_mark(s.arena);
        device_copy(in, inputs(&s, COUNT), COUNT * sizeof(float), s.stream);
        graph_launch(&graph, s.stream);
        check_ordered(&s, out, COUNT);
        arena_release(s.arena, inner);
    }
    graph_destroy(&graph);
    arena_release(s.arena, mark);
}

// The ranks in reverse order: a group of its own, on which everything above holds.
static void test_split(void **state)
{
    Setting s = *(Setting *)*state;
    Comm world = s.comm;
    s.comm = comm_split(world, 0, -world.rank);
    assert_int_equal(s.comm.ranks, world.ranks);
    assert_int_equal(s.comm.rank, world.ranks - 1 - world.rank);
    void *setting = &s;
    test_gather_and_exchange(&setting);
    test_ordered_sum(&setting);
    Comm alone = comm_split(world, world.rank, 0);
    assert_int_equal(alone.ranks, 1);
    assert_null(alone.link);
    comm_destroy(&alone);
    comm_destroy(&s.comm);
}

int main(int argc, char **argv)
{
    // A rank that fails an assertion takes the job down instead of leaving the others waiting for
    // it.
    setenv("CMOCKA_TEST_ABORT", "1", 1);
    Run *run = run_create(argc, argv, "test_parallel_comm_gpu", true);
    char why[DEVICE_TEXT_BYTES] = "";
    if (device_count(DEVICE_CUDA, why, sizeof(why)) < run->local_ranks) {
        if (run->rank == 0)
            fprintf(stderr, "skipped: fewer GPUs than ranks on this host %s\n", why);
        run_destroy(run);
        return EXIT_CODE_SKIPPED;
    }
    device_select(DEVICE_CUDA, run->local_rank);
    Setting setting = {.comm = comm_create_world(run, DEVICE_CUDA, run->local_rank),
                       .stream = stream_create(DEVICE_CUDA),
                       .arena = arena_create(MEMORY_DEVICE, DEVICE_CUDA)};
    setting.seed = (uint64_t)comm_maximum(setting.comm, time(NULL));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_gather_and_exchange, &setting),
        cmocka_unit_test_prestate(test_all_reduce, &setting),
        cmocka_unit_test_prestate(test_ordered_sum, &setting),
        cmocka_unit_test_prestate(test_graph, &setting),
        cmocka_unit_test_prestate(test_split, &setting),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_destroy(setting.arena);
    stream_destroy(setting.stream);
    comm_destroy(&setting.comm);
    run_destroy(run);
    return failed;
}
