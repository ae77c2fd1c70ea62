// Collectives on the CPU against what their definitions say, whole and in short rounds; the sum in
// rank order bit for bit; wire bytes; splitting; and the guards that keep two ranks off one GPU.
// ranks: 1 2 3 4 8
#include <sys/mman.h>

#include "tests/parallel_values.h"

// Byte i of what rank `source` has for rank `target`.
static uint8_t byte_of(const TestJob *job, int source, int target, uint64_t i)
{
    return (uint8_t)random_block(job->seed, (uint32_t)(source * 64 + target), i).word[0];
}

static void expect_block(const TestJob *job, const uint8_t *found, uint64_t bytes, int source,
                         int target)
{
    for (uint64_t i = 0; i < bytes; i++) {
        uint8_t expected = byte_of(job, source, target, i);
        if (found[i] != expected)
            fail_msg("rank %d: byte %llu of %llu from rank %d is %d, expected %d (seed %llu)",
                     job->comm.rank, (unsigned long long)i, (unsigned long long)bytes, source,
                     found[i], expected, (unsigned long long)job->seed);
    }
}

// Runs a check with the real longest message, then with ones that force rounds that do and do not
// divide.
static void with_short_messages(const TestJob *job, void (*check)(const TestJob *))
{
    static const uint64_t limits[] = {(uint64_t)1 << 30, 64, 24, 8};
    for (size_t i = 0; i < COUNT_OF(limits); i++) {
        if (job->comm.link)
            job->comm.link->message_bytes_max = limits[i];
        check(job);
    }
    if (job->comm.link)
        job->comm.link->message_bytes_max = limits[0];
}

static const uint64_t block_sizes[] = {0, 1, 7, 64, 65, 1000};

static void check_all_gather(const TestJob *job)
{
    Comm comm = job->comm;
    for (size_t size = 0; size < COUNT_OF(block_sizes); size++) {
        uint64_t bytes = block_sizes[size];
        uint8_t *mine = host_memory(bytes), *all = host_memory(bytes * (uint64_t)comm.ranks);
        for (uint64_t i = 0; i < bytes; i++)
            mine[i] = byte_of(job, comm.rank, 0, i);
        enum { HOST_VALUES, IN_PLACE, APART, WAYS };
        for (int way = 0; way < WAYS; way++) {
            uint8_t *own = all + (uint64_t)comm.rank * bytes;
            memset(all, 0xEE, bytes * (uint64_t)comm.ranks);
            if (way == IN_PLACE && bytes > 0)
                memcpy(own, mine, bytes);
            if (way == HOST_VALUES)
                comm_gather_host(comm, mine, all, bytes);
            else
                comm_all_gather(comm, way == IN_PLACE ? own : mine, all, bytes, job->stream);
            for (int rank = 0; rank < comm.ranks; rank++)
                expect_block(job, all + (uint64_t)rank * bytes, bytes, rank, 0);
        }
        free(mine);
        free(all);
    }
}

static void test_all_gather(void **state)
{
    with_short_messages(*state, check_all_gather);
}

static void check_all_to_all(const TestJob *job)
{
    Comm comm = job->comm;
    for (size_t size = 0; size < COUNT_OF(block_sizes); size++) {
        uint64_t bytes = block_sizes[size], total = bytes * (uint64_t)comm.ranks;
        uint8_t *send = host_memory(total), *receive = host_memory(total);
        for (uint64_t i = 0; i < total; i++)
            send[i] = byte_of(job, comm.rank, (int)(i / bytes), i % bytes);
        comm_all_to_all(comm, send, receive, bytes, job->stream);
        for (int rank = 0; rank < comm.ranks; rank++)
            expect_block(job, receive + (uint64_t)rank * bytes, bytes, rank, comm.rank);
        free(send);
        free(receive);
    }
}

static void test_all_to_all(void **state)
{
    with_short_messages(*state, check_all_to_all);
}

// Sizes that differ for every pair, a third of them 0.
static uint64_t size_between(const TestJob *job, int source, int target)
{
    RandomBlock block = random_block(job->seed, 1000, (uint64_t)(source * 64 + target));
    return block.word[0] % 3 == 0 ? 0 : block.word[1] % 300;
}

// Offsets `stride` bytes apart, in reserved address space of which only what is used becomes
// memory.
static void check_all_to_all_v_at(const TestJob *job, uint64_t stride)
{
    enum { RANKS_MAX = 64 };
    Comm comm = job->comm;
    uint64_t send_bytes[RANKS_MAX] = {0}, receive_bytes[RANKS_MAX] = {0}, offsets[RANKS_MAX] = {0};
    uint64_t reserve = stride * (uint64_t)comm.ranks + 4096;
    uint8_t *area = mmap(NULL, 2 * reserve, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_ptr_not_equal(area, MAP_FAILED);
    uint8_t *send = area, *receive = area + reserve;
    for (int rank = 0; rank < comm.ranks; rank++) {
        send_bytes[rank] = size_between(job, comm.rank, rank);
        receive_bytes[rank] = size_between(job, rank, comm.rank);
        offsets[rank] = stride * (uint64_t)rank;
        for (uint64_t i = 0; i < send_bytes[rank]; i++)
            send[offsets[rank] + i] = byte_of(job, comm.rank, rank, i);
    }
    comm_take_wire_bytes(comm);
    const CommSplit split = {send_bytes, offsets, receive_bytes, offsets};
    comm_all_to_all_v(comm, &split, send, receive, job->stream);
    uint64_t sent = 0;
    for (int rank = 0; rank < comm.ranks; rank++) {
        expect_block(job, receive + offsets[rank], receive_bytes[rank], rank, comm.rank);
        assert_int_equal(receive[offsets[rank] + receive_bytes[rank]], 0); // nothing behind it
        sent += rank == comm.rank ? 0 : send_bytes[rank];
    }
    assert_int_equal(comm_take_wire_bytes(comm), sent);
    munmap(area, 2 * reserve);
}

static void check_all_to_all_v(const TestJob *job)
{
    check_all_to_all_v_at(job, 301);
}

static void test_all_to_all_v(void **state)
{
    with_short_messages(*state, check_all_to_all_v);
}

// Worst-case segments put offsets beyond what an int can say.
static void test_all_to_all_v_far(void **state)
{
    check_all_to_all_v_at(*state, (uint64_t)3 << 30);
}

static void check_reduction(const TestJob *job, DType dtype, CommOp op, bool in_place)
{
    enum { COUNT = 37 };
    double in[COUNT], out[COUNT] = {0}; // room for any of the types
    for (int64_t i = 0; i < COUNT; i++)
        set_value(in, dtype, i, small_value(job, job->comm.rank, i));
    void *result = in_place ? in : out;
    comm_all_reduce(job->comm, in, result, COUNT, dtype, op, job->stream);
    expect_reduction(job, dtype, op, result, COUNT);
}

static void check_all_reduce(const TestJob *job)
{
    static const DType dtypes[] = {DTYPE_F32, DTYPE_F64, DTYPE_I32, DTYPE_I64};
    for (size_t d = 0; d < COUNT_OF(dtypes); d++)
        for (CommOp op = COMM_SUM; op <= COMM_MIN; op++)
            for (int in_place = 0; in_place < 2; in_place++)
                if (op != COMM_AVG || dtypes[d] == DTYPE_F32 || dtypes[d] == DTYPE_F64)
                    check_reduction(job, dtypes[d], op, in_place);
}

static void test_all_reduce(void **state)
{
    with_short_messages(*state, check_all_reduce);
}

static void check_broadcast(const TestJob *job)
{
    for (int root = 0; root < job->comm.ranks; root++)
        for (size_t size = 0; size < COUNT_OF(block_sizes); size++) {
            uint64_t bytes = block_sizes[size];
            uint8_t *data = host_memory(bytes);
            for (uint64_t i = 0; job->comm.rank == root && i < bytes; i++)
                data[i] = byte_of(job, root, 1, i);
            comm_broadcast(job->comm, data, bytes, root, job->stream);
            expect_block(job, data, bytes, root, 1);
            free(data);
        }
}

static void test_broadcast(void **state)
{
    with_short_messages(*state, check_broadcast);
}

static void check_ordered(const TestJob *job)
{
    static const int64_t counts[] = {0, 1, 2, 3, 7, 8, 24, 1000, 1001};
    Comm comm = job->comm;
    int64_t order_matters = 0;
    for (size_t c = 0; c < COUNT_OF(counts); c++)
        for (int in_place = 0; in_place < 2; in_place++) {
            int64_t count = counts[c];
            float *in = host_memory((uint64_t)count * sizeof(float));
            float *out = in_place ? in : host_memory((uint64_t)count * sizeof(float));
            void *scratch = host_memory(comm_ordered_scratch_bytes(comm, count));
            for (int64_t i = 0; i < count; i++)
                in[i] = partial_of(job, comm.rank, i);
            comm_all_reduce_ordered(comm, in, out, count, scratch, job->stream);
            order_matters += expect_ordered_sum(job, out, count);
            free(scratch);
            free(in);
            if (!in_place)
                free(out);
        }
    if (comm.ranks > 2 && order_matters == 0)
        fail_msg("the data cannot tell one order of %d ranks from another", comm.ranks);
}

static void test_ordered_sum(void **state)
{
    with_short_messages(*state, check_ordered);
}

// Bytes that an ideal algorithm sends, by hand: none for a group of one.
static void test_wire_bytes(void **state)
{
    const TestJob *job = *state;
    Comm comm = job->comm;
    uint64_t others = (uint64_t)comm.ranks - 1, ranks = (uint64_t)comm.ranks;
    uint8_t *a = host_memory(64 * ranks), *b = host_memory(64 * ranks);
    comm_take_wire_bytes(comm);
    comm_all_gather(comm, a, b, 64, job->stream);
    assert_int_equal(comm_take_wire_bytes(comm), 64 * others);
    comm_all_to_all(comm, a, b, 32, job->stream);
    assert_int_equal(comm_take_wire_bytes(comm), 32 * others);
    comm_broadcast(comm, a, 48, 0, job->stream);
    assert_int_equal(comm_take_wire_bytes(comm), comm.rank == 0 ? 48 * others : 0);
    comm_all_reduce(comm, a, b, (int64_t)(2 * ranks), DTYPE_F64, COMM_SUM, job->stream);
    assert_int_equal(comm_take_wire_bytes(comm), 2 * 16 * others);
    comm_barrier(comm, job->stream);
    assert_int_equal(comm_take_wire_bytes(comm), 0);
    assert_int_equal(comm_take_wire_bytes(comm), 0);
    free(a);
    free(b);
}

static void test_maximum(void **state)
{
    const TestJob *job = *state;
    Comm comm = job->comm;
    for (int chosen = 0; chosen < comm.ranks; chosen++) {
        int64_t mine = comm.rank == chosen ? INT64_MAX - chosen : -chosen - comm.rank;
        assert_int_equal(comm_maximum(comm, mine), INT64_MAX - chosen);
    }
    assert_int_equal(comm_maximum(comm, -5 - comm.rank), -5);
}

// Odd and even ranks apart, in falling order; groups of one have no link.
static void test_split(void **state)
{
    const TestJob *job = *state;
    Comm parent = job->comm;
    Comm group = comm_split(parent, parent.rank % 2, -parent.rank);
    int expected = (parent.ranks + (parent.rank % 2 == 0)) / 2;
    assert_int_equal(group.ranks, expected);
    assert_int_equal(group.link == NULL, expected == 1);
    int members[64] = {0};
    comm_gather_host(group, &parent.rank, members, sizeof(int));
    for (int i = 0; i < group.ranks; i++)
        assert_int_equal(members[i], parent.rank % 2 + 2 * (group.ranks - 1 - i));
    assert_int_equal(members[group.rank], parent.rank);
    Comm alone = comm_split(group, group.rank, 0);
    assert_int_equal(alone.ranks, 1);
    assert_null(alone.link);
    comm_destroy(&alone);
    comm_destroy(&group);
    assert_null(group.link);
}

static void test_places(void **state)
{
    (void)state;
    static const struct {
        CommPlace places[3];
        const char *what; // NULL: fine
    } rows[] = {
        {{{"a", "U0", 0, 2}, {"a", "U1", 1, 2}, {"b", "U2", 0, 1}}, NULL},
        {{{"a", "U0", 0, 1}, {"a", "U1", 0, 1}, {"a", "U2", 0, 1}}, NULL}, // one GPU bound per task
        {{{"a", "U0", 0, 2}, {"b", "U9", 0, 2}, {"a", "U0", 0, 2}},
         "ranks 0 and 2 on host a share one GPU (U0): 2 ranks there, 2 visible GPUs"},
        {{{"b", "U9", 0, 1}, {"a", "U0", 0, 1}, {"a", "U0", 0, 1}},
         "ranks 1 and 2 on host a share one GPU (U0): 2 ranks there, 1 visible GPU"},
        {{{"a", "U0", 0, 2}, {"a", "U1", 1, 2}, {"a", "U0", 0, 2}},
         "host a runs 3 ranks, but rank 0 sees only 2 GPUs"},
        {{{"a", "U0", 0, 1}, {"a", "", 1, 1}, {"b", "U2", 0, 1}},
         "host a runs 2 ranks, but rank 1 sees only 1 GPU"},
        {{{"a", "U0", 0, 1}, {"b", "", 0, 0}, {"c", "U2", 0, 1}}, "rank 1 on host b sees no GPU"},
    };
    for (size_t row = 0; row < COUNT_OF(rows); row++) {
        Error error = {0};
        bool good = comm_check_places(rows[row].places, 3, &error);
        assert_int_equal(good, rows[row].what == NULL);
        assert_int_equal(error.exit_code, good ? 0 : EXIT_CODE_HARDWARE);
        assert_string_equal(error.what, good ? "" : rows[row].what);
        assert_int_equal(error.fix[0] != 0, !good);
    }
}

static void test_versions(void **state)
{
    (void)state;
    char text[256] = "";
    comm_versions(text, sizeof(text));
    if (!strstr(text, "MPI ") || !strstr(text, ", NCCL "))
        fail_msg("found '%s', expected 'MPI ..., NCCL ...'", text);
    comm_versions(text, 8); // a short buffer is filled, not passed
    assert_int_equal(strlen(text), 7);
}

int main(int argc, char **argv)
{
    TestJob job = test_job_begin(argc, argv, DEVICE_CPU);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_all_gather, &job),
        cmocka_unit_test_prestate(test_all_to_all, &job),
        cmocka_unit_test_prestate(test_grouped_exchange, &job),
        cmocka_unit_test_prestate(test_all_to_all_v, &job),
        cmocka_unit_test_prestate(test_all_to_all_v_far, &job),
        cmocka_unit_test_prestate(test_all_reduce, &job),
        cmocka_unit_test_prestate(test_broadcast, &job),
        cmocka_unit_test_prestate(test_ordered_sum, &job),
        cmocka_unit_test_prestate(test_wire_bytes, &job),
        cmocka_unit_test_prestate(test_maximum, &job),
        cmocka_unit_test_prestate(test_split, &job),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_versions),
    };
    return test_job_end(&job, cmocka_run_group_tests(tests, NULL, NULL));
}
