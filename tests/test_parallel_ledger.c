// The watchdog: its verdicts on made-up jobs; its messages over sockets in any pieces; and a real
// job that does nothing wrong, in every way that might look like it, and is left alone. What it
// does to jobs that go wrong is in program_faults.sh.
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

#include "harness/random.h"
#include "parallel/comm.h"
#include "parallel/ledger_state.h"

// ---- made-up jobs ----

// Ranks that ran one program: rank r is in groups "world" and "half" (its half of the ranks).
enum { FAKE_RANKS = 8, FAKE_CALLS = 200 };
typedef struct Fake {
    Calls *calls[FAKE_RANKS];
    CallGroup *world[FAKE_RANKS], *half[FAKE_RANKS];
    LedgerView view[FAKE_RANKS];
    LedgerViews views;
} Fake;

static Fake *fake_create(void)
{
    Fake *fake = calloc(1, sizeof(*fake));
    assert_non_null(fake);
    for (int rank = 0; rank < FAKE_RANKS; rank++) {
        Error error = {0};
        fake->calls[rank] = calls_create(rank, FAKE_RANKS, NULL, &error);
        fake->world[rank] = calls_job(fake->calls[rank]);
        calls_name(fake->world[rank], "world");
        fake->half[rank] = calls_split(fake->world[rank], rank / 4, rank % 4, 4);
        calls_name(fake->half[rank], "half");
        fake->view[rank] = (LedgerView){.known = true, .host = "node"};
    }
    fake->views =
        (LedgerViews){.of_rank = fake->view, .ranks = FAKE_RANKS, .limit_s = 10, .patience_s = 100};
    return fake;
}

static void fake_destroy(Fake *fake)
{
    for (int rank = 0; rank < FAKE_RANKS; rank++) {
        calls_destroy(fake->calls[rank]);
        free(fake->view[rank].entries);
    }
    free(fake);
}

static void enter(CallGroup *group, Call call)
{
    assert_true(calls_enter(group, &call));
}

static Call call_number(int i)
{
    return (Call){.op = i % 3 ? CALL_ALL_GATHER : CALL_ALL_REDUCE,
                  .dtype = DTYPE_F32,
                  .count = 100 + (uint64_t)i};
}

static CallGroup *group_number(Fake *fake, int rank, int i)
{
    return i % 4 == 3 ? fake->world[rank] : fake->half[rank];
}

// A rank makes the calls [begin, end) and has returned from them.
static void fake_run(Fake *fake, int rank, int begin, int end)
{
    for (int i = begin; i < end; i++) {
        enter(group_number(fake, rank, i), call_number(i));
        calls_leave(fake->world[rank]);
    }
}

// What the hub would know now: every rank waits in a call that it has not returned from, for that
// long.
static void fake_look(Fake *fake, double waited_s)
{
    for (int rank = 0; rank < FAKE_RANKS; rank++) {
        LedgerView *view = &fake->view[rank];
        CallsState *state = calloc(1, sizeof(*state));
        CallEntry *entries = calloc(LEDGER_ENTRIES_MAX, sizeof(*entries));
        calls_state(fake->calls[rank], state);
        view->state.last = ledger_call_of(&state->last);
        view->state.waiting = ledger_call_of(&state->waiting);
        view->state.reached = state->reached;
        view->state.waiting_s = state->waiting.sequence ? waited_s : 0;
        view->state.groups = state->groups;
        for (int i = 0; i < state->groups; i++) {
            LedgerGroup *told = &view->state.group[i];
            const CallGroup *group = &state->group[i];
            *told = (LedgerGroup){.id = group->id,
                                  .rank = group->rank,
                                  .ranks = group->ranks,
                                  .arrived = state->arrived[i]};
            memcpy(told->name, group->name, sizeof(told->name));
            memcpy(told->point, group->point, sizeof(told->point));
        }
        free(view->entries);
        view->entry_count = calls_copy(fake->calls[rank], entries, LEDGER_ENTRIES_MAX);
        view->entries = calloc((size_t)view->entry_count + 1, sizeof(*view->entries));
        for (int i = 0; i < view->entry_count; i++)
            view->entries[i] = ledger_call_of(&entries[i]);
        free(state);
        free(entries);
    }
}

static void expect_nothing(Fake *fake)
{
    LedgerVerdict verdict;
    bool found =
        ledger_hashes_differ(&fake->views) || ledger_find_mismatch(&fake->views, &verdict) ||
        ledger_find_lost(&fake->views, &verdict) || ledger_find_stall(&fake->views, &verdict);
    if (found)
        fail_msg("nothing is wrong, but: %s", verdict.what);
}

#define EXPECT_VERDICT(found, verdict, blamed, part)                                               \
    do {                                                                                           \
        assert_true(found);                                                                        \
        if ((verdict).rank != (blamed) || !strstr((verdict).what, (part)))                         \
            fail_msg("rank %d instead of %d, or no '%s' in: %s", (verdict).rank, (blamed), (part), \
                     (verdict).what);                                                              \
        assert_true((verdict).fix[0]);                                                             \
    } while (0)

static void equal_calls_are_good(void **state)
{
    (void)state;
    for (int apart = 0; apart < 3; apart++) {
        Fake *fake = fake_create();
        for (int rank = 0; rank < FAKE_RANKS; rank++)
            fake_run(fake, rank, 0, FAKE_CALLS + rank * apart * 70);
        fake_look(fake, 50);
        expect_nothing(fake);
        fake_destroy(fake);
    }
}

static void another_call_is_found(void **state)
{
    (void)state;
    static const char *const parts[] = {
        "rank 5 makes another call than ranks 4, 6-7: collective 76 of half is barrier of 200 f32",
        "is all_gather of 200 i32 there", "is all_gather of 199 f32 there",
        "is all_gather of 200 f32 with reduction 7 there"};
    for (int variant = 0; variant < 4; variant++) {
        Fake *fake = fake_create();
        for (int rank = 0; rank < FAKE_RANKS; rank++) {
            fake_run(fake, rank, 0, 100);
            Call call = call_number(100);
            if (rank == 5) {
                call.op = variant == 0 ? CALL_BARRIER : call.op;
                call.dtype = variant == 1 ? DTYPE_I32 : call.dtype;
                call.count -= variant == 2;
                call.detail = variant == 3 ? 7 : 0;
            }
            enter(fake->half[rank], call);
            calls_leave(fake->half[rank]);
            fake_run(fake, rank, 101, FAKE_CALLS);
        }
        fake_look(fake, 0);
        LedgerVerdict verdict;
        assert_true(ledger_hashes_differ(&fake->views));
        EXPECT_VERDICT(ledger_find_mismatch(&fake->views, &verdict), verdict, 5, parts[variant]);
        // With nothing but hashes, the rank is still known.
        for (int rank = 0; rank < FAKE_RANKS; rank++)
            fake->view[rank].entry_count = 0;
        EXPECT_VERDICT(ledger_find_mismatch(&fake->views, &verdict), verdict, 5, "half");
        fake_destroy(fake);
    }
}

static void the_lower_of_two_ranks_is_believed(void **state)
{
    (void)state;
    Fake *fake = fake_create();
    fake->views.ranks = 2;
    for (int rank = 0; rank < 2; rank++) {
        CallGroup *pair = calls_split(fake->world[rank], 0, rank, 2);
        calls_name(pair, "pair");
        enter(pair, (Call){.op = rank ? CALL_BARRIER : CALL_ALL_GATHER});
    }
    fake_look(fake, 0);
    LedgerVerdict verdict;
    EXPECT_VERDICT(ledger_find_mismatch(&fake->views, &verdict), verdict, 1,
                   "rank 0 waiting in collective 1 of pair (all_gather");
    fake_destroy(fake);
}

// An all-to-all of uneven pieces: `wrong` believes something else about its piece to `to` (-1: to
// all).
static void pieces_tell_who_is_wrong(void **state)
{
    (void)state;
    static const int cases[][2] = {{1, -1}, {3, -1}, {0, 2}, {2, 1}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Fake *fake = fake_create();
        int wrong = cases[i][0], to = cases[i][1];
        for (int rank = 0; rank < FAKE_RANKS; rank++) {
            fake_run(fake, rank, 0, 9);
            Call call = {.op = CALL_ALL_TO_ALL_V, .dtype = DTYPE_U8};
            for (int other = 0; other < 4; other++)
                if (other != rank % 4)
                    call_piece(&call, rank % 4, other,
                               (uint64_t)(10 * rank + other) +
                                   (rank == 4 + wrong && (to < 0 || other == to)),
                               (uint64_t)(10 * (rank / 4 * 4 + other) + rank % 4));
            enter(fake->half[rank], call);
            calls_leave(fake->half[rank]);
            fake_run(fake, rank, 10, 20);
        }
        fake_look(fake, 0);
        LedgerVerdict verdict;
        char part[128];
        if (to < 0)
            snprintf(part, sizeof(part), "rank %d and the others", 4 + wrong);
        else
            snprintf(part, sizeof(part), "rank %d and rank %d", 4 + (wrong > to ? wrong : to),
                     4 + (wrong > to ? to : wrong));
        assert_true(ledger_hashes_differ(&fake->views));
        EXPECT_VERDICT(ledger_find_mismatch(&fake->views, &verdict), verdict,
                       4 + (wrong > to ? wrong : to), part);
        fake_destroy(fake);
    }
}

// Rank 6 has not made call 50 (of its half); the others of its half wait in it, the other half has
// gone on to call 51 (of the world) and waits there.
static Fake *fake_stalled(void)
{
    Fake *fake = fake_create();
    for (int rank = 0; rank < FAKE_RANKS; rank++) {
        int in = rank < 4 ? 51 : 50;
        fake_run(fake, rank, 0, in);
        if (rank != 6)
            enter(group_number(fake, rank, in), call_number(in));
    }
    fake_look(fake, 20);
    return fake;
}

static void a_stall_names_who_does_not_come(void **state)
{
    (void)state;
    LedgerVerdict verdict;
    Fake *fake = fake_stalled();
    assert_false(ledger_hashes_differ(&fake->views));
    assert_false(ledger_find_mismatch(&fake->views, &verdict));
    // It works: the others wait on, but not for ever.
    assert_false(ledger_find_stall(&fake->views, &verdict));
    fake->views.patience_s = 15;
    EXPECT_VERDICT(ledger_find_stall(&fake->views, &verdict), verdict, 6, "goes on computing");
    fake->views.patience_s = 100;
    fake->view[6].state.idle_s = 12;
    EXPECT_VERDICT(ledger_find_stall(&fake->views, &verdict), verdict, 6,
                   "done nothing for 12.0 s after collective");
    assert_non_null(strstr(verdict.what, "ranks 4-5, 7 waiting in collective 39 of half"));
    assert_non_null(strstr(verdict.what, "ranks 0-3 waiting in collective 13 of world"));
    // Not heard of any more, its last words long ago.
    fake->view[6].state.idle_s = 0;
    fake->view[6].heard_s = 12;
    EXPECT_VERDICT(ledger_find_stall(&fake->views, &verdict), verdict, 6, "heard of it for 12.0 s");
    // Nobody has waited long enough.
    fake_look(fake, 5);
    assert_false(ledger_find_stall(&fake->views, &verdict));
    fake_destroy(fake);
}

static void a_rank_before_whose_stream_a_call_lies_is_named(void **state)
{
    (void)state;
    Fake *fake = fake_stalled();
    LedgerState *six = &fake->view[6].state;
    six->waiting = fake->view[5].state.waiting;
    six->reached = false;
    LedgerVerdict verdict;
    EXPECT_VERDICT(ledger_find_stall(&fake->views, &verdict), verdict, 6, "stream is before");
    fake_destroy(fake);
}

static void a_rank_that_was_never_heard_of_is_named(void **state)
{
    (void)state;
    Fake *fake = fake_stalled();
    free(fake->view[6].entries);
    fake->view[6] = (LedgerView){.heard_s = 30, .host = "node"};
    LedgerVerdict verdict;
    EXPECT_VERDICT(ledger_find_stall(&fake->views, &verdict), verdict, 6, "heard of");
    fake->view[6].lost = true;
    EXPECT_VERDICT(ledger_find_lost(&fake->views, &verdict), verdict, 6,
                   "is gone without a word, needed in collective");
    fake_destroy(fake);
}

static void a_lost_rank_is_named_even_when_nobody_waits(void **state)
{
    (void)state;
    Fake *fake = fake_create();
    for (int rank = 0; rank < FAKE_RANKS; rank++)
        fake_run(fake, rank, 0, 30);
    fake_look(fake, 0);
    fake->view[3].lost = true;
    LedgerVerdict verdict;
    EXPECT_VERDICT(ledger_find_lost(&fake->views, &verdict), verdict, 3,
                   "last heard of at collective 23 of half");
    fake_destroy(fake);
}

// Rank 2 leaves out call 51 (of the world) and waits in 52 (of its half), where the others of its
// half do not come, since they wait in 51 for it.
static void in_a_ring_the_one_who_left_the_order_is_named(void **state)
{
    (void)state;
    Fake *fake = fake_create();
    for (int rank = 0; rank < FAKE_RANKS; rank++) {
        fake_run(fake, rank, 0, 51);
        int in = rank == 2 ? 52 : 51;
        enter(group_number(fake, rank, in), call_number(in));
    }
    fake_look(fake, 20);
    LedgerVerdict verdict;
    assert_false(ledger_find_mismatch(&fake->views, &verdict));
    EXPECT_VERDICT(ledger_find_stall(&fake->views, &verdict), verdict, 2,
                   "it waits in collective 40 of half");
    assert_true(verdict.ring);
    fake_destroy(fake);
}

static void a_call_that_all_are_in_has_time(void **state)
{
    (void)state;
    Fake *fake = fake_create();
    for (int rank = 0; rank < FAKE_RANKS; rank++) {
        fake_run(fake, rank, 0, 3);
        enter(fake->world[rank], call_number(3));
    }
    fake_look(fake, 99);
    expect_nothing(fake);
    fake_look(fake, 101);
    LedgerVerdict verdict;
    EXPECT_VERDICT(ledger_find_stall(&fake->views, &verdict), verdict, 0, "all its ranks are in");
    fake_look(fake, 20);
    fake->view[4].heard_s = 11;
    EXPECT_VERDICT(ledger_find_stall(&fake->views, &verdict), verdict, 4, "heard of it for 11.0 s");
    fake_destroy(fake);
}

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

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
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
    comm_all_to_all_v(comm, send, send_bytes, offsets, receive, receive_bytes, offsets);
}

// Thousands of calls of every kind, while the hub looks at them at random moments.
static void right_calls_are_left_alone(void **state)
{
    Job *job = *state;
    start(job);
    double begin = now_s(), ends = 0;
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
        ends = run_maximum(job->run, now_s() - begin > 1.5);
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
    for (double begin = now_s(); job->run->rank == job->run->ranks - 1 && now_s() - begin < 1.6;)
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
        cmocka_unit_test(equal_calls_are_good),
        cmocka_unit_test(another_call_is_found),
        cmocka_unit_test(the_lower_of_two_ranks_is_believed),
        cmocka_unit_test(pieces_tell_who_is_wrong),
        cmocka_unit_test(a_stall_names_who_does_not_come),
        cmocka_unit_test(a_rank_before_whose_stream_a_call_lies_is_named),
        cmocka_unit_test(a_rank_that_was_never_heard_of_is_named),
        cmocka_unit_test(a_lost_rank_is_named_even_when_nobody_waits),
        cmocka_unit_test(in_a_ring_the_one_who_left_the_order_is_named),
        cmocka_unit_test(a_call_that_all_are_in_has_time),
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
