// The watchdog: its messages over sockets in any pieces; and a real job that does nothing wrong, in
// every way that might look like it, and is left alone. What it does to jobs that go wrong is in
// program_faults.sh.
// ranks: 1 2 4 8
#include <arpa/inet.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "harness/clock.h"
#include "harness/random.h"
#include "parallel/comm.h"
#include "parallel/ledger_state.h"

// ---- sockets ----

static void messages_arrive_whole_in_any_pieces(void **state)
{
    (void)state;
    enum { MESSAGES = 200, MOST = 5000 };
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
    LedgerLink from, to;
    ledger_link_open(&from, ends[0], 1);
    ledger_link_open(&to, ends[1], 0);
    char *data = malloc(MOST);
    int received = 0, sent = 0;
    while (received < MESSAGES) {
        uint32_t bytes = random_block(3, 1, (uint64_t)sent).word[0] % MOST;
        if (sent < MESSAGES && sent - received < 40) {
            memset(data, sent, bytes);
            ledger_link_send(&from, LEDGER_ENTRIES, data, bytes);
            sent++;
        }
        ledger_link_flush(&from);
        ledger_link_receive(&to);
        void *payload;
        size_t got;
        for (int kind; (kind = ledger_link_next(&to, &payload, &got)) >= 0; received++) {
            assert_int_equal(kind, LEDGER_ENTRIES);
            assert_int_equal(got, random_block(3, 1, (uint64_t)received).word[0] % MOST);
            for (size_t i = 0; i < got; i++)
                assert_int_equal(((char *)payload)[i], (char)received);
        }
        assert_false(to.ended);
    }
    // What was sent before the end is read before it.
    ledger_link_send(&from, LEDGER_QUIET, NULL, 0);
    ledger_link_close(&from);
    ledger_link_receive(&to);
    void *payload;
    size_t got;
    assert_true(to.ended);
    assert_int_equal(ledger_link_next(&to, &payload, &got), LEDGER_QUIET);
    assert_int_equal(ledger_link_next(&to, &payload, &got), -1);
    ledger_link_close(&to);
    free(data);
}

static void nonsense_is_no_state(void **state)
{
    (void)state;
    LedgerState *good = calloc(1, sizeof(*good)), *read = calloc(1, sizeof(*read));
    good->groups = 3;
    memset(good->group[1].name, 'x', CALL_NAME_BYTES); // no end
    size_t bytes = ledger_state_bytes(good);
    assert_true(ledger_state_read(good, bytes, read));
    assert_int_equal(strlen(read->group[1].name), CALL_NAME_BYTES - 1);
    assert_false(ledger_state_read(good, bytes - 1, read));
    assert_false(ledger_state_read(good, bytes + 1, read));
    assert_false(ledger_state_read(good, 0, read));
    good->groups = -1;
    assert_false(ledger_state_read(good, bytes, read));
    good->groups = CALL_GROUPS_MAX + 1;
    assert_false(ledger_state_read(good, sizeof(*good), read));
    good->groups = 0;
    good->last.op = CALL_OPS;
    assert_false(ledger_state_read(good, ledger_state_bytes(good), read));
    free(good);
    free(read);
}

// ---- a real job ----

typedef struct Job {
    Run *run;
    Comm world, half;
    Stream stream;
} Job;

static void start(Job *job)
{
    job->run->options.watchdog_s = 1;
    run_start_watch(job->run);
    assert_int_equal(job->run->ledger != NULL, job->run->ranks > 1);
    job->world = comm_create_world(job->run, DEVICE_CPU, 0);
    job->half = comm_split(job->world, job->world.rank % 2, job->world.rank);
    comm_name(job->half, "half");
    job->stream = stream_create(DEVICE_CPU);
}

// The last comparison of all is in here: a difference that no pulse met would end the job now.
static void stop(Job *job)
{
    comm_destroy(&job->half);
    comm_destroy(&job->world);
    if (job->run->ledger)
        run_watch.stop(job->run);
    assert_null(job->run->ledger);
}

static void sleep_s(double seconds)
{
    struct timespec time = {.tv_sec = (time_t)seconds,
                            .tv_nsec = (long)(1e9 * (seconds - (time_t)seconds))};
    nanosleep(&time, NULL);
}

static void uneven_exchange(Comm comm, uint64_t round)
{
    enum { RANKS_MAX = 8, STRIDE = 512 };
    static char send[RANKS_MAX * STRIDE], receive[RANKS_MAX * STRIDE];
    uint64_t send_bytes[RANKS_MAX] = {0}, receive_bytes[RANKS_MAX] = {0}, offsets[RANKS_MAX] = {0};
    for (int rank = 0; rank < comm.ranks; rank++) {
        send_bytes[rank] =
            random_block(round, 1, (uint64_t)(comm.rank * 8 + rank)).word[0] % STRIDE;
        receive_bytes[rank] =
            random_block(round, 1, (uint64_t)(rank * 8 + comm.rank)).word[0] % STRIDE;
        offsets[rank] = (uint64_t)(rank * STRIDE);
    }
    const CommSplit split = {send_bytes, offsets, receive_bytes, offsets};
    comm_all_to_all_v(comm, &split, send, receive, (Stream){.device = DEVICE_CPU});
}

// Thousands of calls of every kind, while the hub looks at them at random moments.
static void right_calls_are_left_alone(void **state)
{
    Job *job = *state;
    start(job);
    double begin = clock_s(), ends = 0;
    int64_t value = 0, all[8] = {0};
    for (uint64_t round = 0; ends == 0; round++) {
        Comm comm = round % 3 ? job->half : job->world;
        uneven_exchange(comm, round);
        comm_all_gather(comm, &value, all, sizeof(value), job->stream);
        comm_all_reduce(comm, all, all, 4, DTYPE_I64, COMM_MAX, job->stream);
        comm_broadcast(comm, all, 16, (int)(round % (uint64_t)comm.ranks), job->stream);
        if (round % 50 == 0) {
            Comm short_lived = comm_split(comm, 0, comm.rank);
            comm_barrier(short_lived, job->stream);
            comm_destroy(&short_lived);
        }
        run_barrier(job->run);
        ends = run_maximum(job->run, clock_s() - begin > 1.5);
    }
    stop(job);
}

// Everybody away for longer than the limit, but nobody waits; then all but one wait, for one that
// is at work.
static void work_is_left_alone(void **state)
{
    Job *job = *state;
    start(job);
    run_barrier(job->run);
    sleep_s(1.6);
    comm_barrier(job->world, job->stream);
    volatile double sum = 0;
    for (double begin = clock_s();
         job->run->rank == job->run->ranks - 1 && clock_s() - begin < 1.6;)
        for (int i = 0; i < 1000; i++)
            sum += i;
    comm_barrier(job->world, job->stream);
    stop(job);
}

// Connections of others than the ranks: closed, too long, nonsense, a wrong token.
static void strangers_are_ignored(void **state)
{
    Job *job = *state;
    start(job);
    for (int i = 0; job->run->ledger && i < 40; i++) {
        struct sockaddr_in to = {.sin_family = AF_INET,
                                 .sin_port = job->run->ledger->address[0].port};
        to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof(to)), 0);
        uint32_t words[64];
        for (int w = 0; w < 64; w++)
            words[w] = random_block((uint64_t)i, 1, (uint64_t)w).word[0];
        if (i % 4 == 1) {
            words[0] = LEDGER_HELLO;
            words[1] = sizeof(LedgerHello);
        } else if (i % 4 == 2) {
            words[0] = LEDGER_LEAVE;
            words[1] = 4;
        }
        ssize_t written = i % 4 ? send(fd, words, sizeof(words), MSG_NOSIGNAL) : 0;
        assert_true(written >= 0 || i % 4);
        close(fd);
    }
    comm_barrier(job->world, job->stream);
    stop(job);
}

static void without_a_watchdog_there_is_none(void **state)
{
    Job *job = *state;
    job->run->options.watchdog_s = 0;
    run_start_watch(job->run);
    assert_null(job->run->ledger);
    assert_null(job->run->job);
    run_barrier(job->run);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_arrive_whole_in_any_pieces),
        cmocka_unit_test(nonsense_is_no_state),
        cmocka_unit_test(right_calls_are_left_alone),
        cmocka_unit_test(work_is_left_alone),
        cmocka_unit_test(strangers_are_ignored),
        cmocka_unit_test(without_a_watchdog_there_is_none),
    };
    Job job = {.run = run_create(argc, argv, "test", true)};
    struct CMUnitTest with_job[COUNT_OF(tests)];
    for (size_t i = 0; i < COUNT_OF(tests); i++) {
        with_job[i] = tests[i];
        with_job[i].initial_state = &job;
    }
    int failed = cmocka_run_group_tests(with_job, NULL, NULL);
    run_destroy(job.run);
    return failed;
}
