// Collectives over NCCL against what their definitions say, on the world and on a group made from
// it; the sum in rank order bit for bit; and all of it inside a replayed graph.
// ranks: 2
// labels: gpu2
#include "tests/parallel_values.h"

static void *upload(const TestJob *s, const void *host, uint64_t bytes)
{
    void *device = arena_push(s->arena, bytes, MEMORY_COMMUNICATION);
    device_copy(device, host, bytes, s->stream);
    stream_wait(s->stream);
    return device;
}

// count values of this rank, in device memory.
static float *inputs(const TestJob *s, int64_t count)
{
    float *host = host_memory((uint64_t)count * sizeof(float));
    for (int64_t i = 0; i < count; i++)
        host[i] = partial_of(s, s->comm.rank, i);
    float *device = upload(s, host, (uint64_t)count * sizeof(float));
    free(host);
    return device;
}

static void test_gather_and_exchange(void **state)
{
    const TestJob *s = *state;
    enum { BLOCK = 1003 };
    int ranks = s->comm.ranks;
    uint64_t bytes = BLOCK * sizeof(float);
    ArenaMark mark = arena_mark(s->arena);
    float *mine = inputs(s, BLOCK * ranks);
    float *all = arena_push(s->arena, bytes * (uint64_t)ranks, MEMORY_COMMUNICATION);
    comm_take_wire_bytes(s->comm);
    comm_all_gather(s->comm, mine, all, bytes, s->stream);
    float *found = host_copy(all, bytes * (uint64_t)ranks, s->stream);
    for (int64_t i = 0; i < BLOCK * ranks; i++)
        expect_float(s, "all-gather", i, found[i], partial_of(s, (int)(i / BLOCK), i % BLOCK));
    free(found);
    comm_all_to_all(s->comm, mine, all, bytes, s->stream);
    found = host_copy(all, bytes * (uint64_t)ranks, s->stream);
    for (int64_t i = 0; i < BLOCK * ranks; i++)
        expect_float(s, "all-to-all", i, found[i],
                     partial_of(s, (int)(i / BLOCK), BLOCK * s->comm.rank + i % BLOCK));
    free(found);
    assert_int_equal(comm_take_wire_bytes(s->comm), 2 * bytes * (uint64_t)(ranks - 1));
    comm_all_to_all(s->comm, mine, all, 0, s->stream);
    for (int root = 0; root < ranks; root++) {
        float *data = inputs(s, BLOCK);
        comm_broadcast(s->comm, data, bytes, root, s->stream);
        found = host_copy(data, bytes, s->stream);
        for (int64_t i = 0; i < BLOCK; i++)
            expect_float(s, "broadcast", i, found[i], partial_of(s, root, i));
        free(found);
    }
    comm_barrier(s->comm, s->stream);
    stream_wait(s->stream);
    arena_release(s->arena, mark);
}

// Elements that one rank sends to another; some pairs send nothing.
static uint64_t elements_between(const TestJob *s, int source, int target)
{
    RandomBlock block = random_block(s->seed, 98, (uint64_t)(source * 64 + target));
    return block.word[0] % 3 == 0 ? 0 : 1 + block.word[1] % 5000;
}

static void test_unequal_exchange(void **state)
{
    TestJob s = *(TestJob *)*state;
    enum { ROOM = 5003, RANKS_MAX = 64 };
    int ranks = s.comm.ranks;
    assert_in_range(ranks, 1, RANKS_MAX);
    for (int round = 0; round < 20; round++, s.seed++) {
        uint64_t send_bytes[RANKS_MAX], receive_bytes[RANKS_MAX], offsets[RANKS_MAX], sent = 0;
        for (int rank = 0; rank < ranks; rank++) {
            bool own = rank == s.comm.rank && round % 2; // every other time its counts are 0
            send_bytes[rank] = own ? 0 : elements_between(&s, s.comm.rank, rank) * sizeof(float);
            receive_bytes[rank] = own ? 0 : elements_between(&s, rank, s.comm.rank) * sizeof(float);
            offsets[rank] = (uint64_t)rank * ROOM * sizeof(float);
            sent += rank == s.comm.rank ? 0 : send_bytes[rank];
        }
        ArenaMark mark = arena_mark(s.arena);
        uint64_t bytes = (uint64_t)ranks * ROOM * sizeof(float);
        float *send = inputs(&s, ranks * ROOM);
        float *receive = arena_push(s.arena, bytes, MEMORY_COMMUNICATION);
        device_fill(receive, 0, bytes, s.stream);
        const CommSplit split = {send_bytes, offsets, receive_bytes, offsets};
        comm_take_wire_bytes(s.comm);
        comm_all_to_all_v(s.comm, &split, send, receive, s.stream);
        assert_int_equal(comm_take_wire_bytes(s.comm), sent);
        float *found = host_copy(receive, bytes, s.stream);
        for (int64_t i = 0; i < ranks * ROOM; i++) {
            int rank = (int)(i / ROOM);
            bool came = (uint64_t)(i % ROOM) * sizeof(float) < receive_bytes[rank];
            expect_float(&s, "unequal exchange", i, found[i],
                         came ? partial_of(&s, rank, s.comm.rank * ROOM + i % ROOM) : 0.0f);
        }
        free(found);
        arena_release(s.arena, mark);
    }
}

static void test_all_reduce(void **state)
{
    const TestJob *s = *state;
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
                set_value(host, dtype, i, small_value(s, s->comm.rank, i));
            void *data = upload(s, host, bytes);
            comm_all_reduce(s->comm, data, data, COUNT, dtype, op, s->stream);
            void *found = host_copy(data, bytes, s->stream);
            expect_reduction(s, dtype, op, found, COUNT);
            free(found);
            arena_release(s->arena, mark);
        }
}

static void check_ordered(const TestJob *s, const float *device, int64_t count)
{
    float *found = host_copy(device, (uint64_t)count * sizeof(float), s->stream);
    expect_ordered_sum(s, found, count);
    free(found);
}

static void test_ordered_sum(void **state)
{
    const TestJob *s = *state;
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
    TestJob s = *(TestJob *)*state;
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
    TestJob s = *(TestJob *)*state;
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
    TestJob job = test_job_begin(argc, argv, DEVICE_CUDA);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_gather_and_exchange, &job),
        cmocka_unit_test_prestate(test_grouped_exchange, &job),
        cmocka_unit_test_prestate(test_unequal_exchange, &job),
        cmocka_unit_test_prestate(test_all_reduce, &job),
        cmocka_unit_test_prestate(test_ordered_sum, &job),
        cmocka_unit_test_prestate(test_graph, &job),
        cmocka_unit_test_prestate(test_split, &job),
    };
    return test_job_end(&job, cmocka_run_group_tests(tests, NULL, NULL));
}
