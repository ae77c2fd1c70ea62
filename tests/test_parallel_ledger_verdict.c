// The watchdog's verdicts on made-up jobs: who is blamed, and in which words.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "harness/check.h"
#include "parallel/ledger_verdict.h"

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

// Pairs of ranks make one call; in one pair the lower rank makes another.
static void of_two_members_the_one_like_the_others_is_right(void **state)
{
    (void)state;
    Fake *fake = fake_create();
    for (int rank = 0; rank < FAKE_RANKS; rank++) {
        CallGroup *pair = calls_split(fake->world[rank], rank / 2, rank % 2, 2);
        calls_name(pair, "pair");
        enter(pair, (Call){.op = CALL_ALL_GATHER, .dtype = rank == 4 ? DTYPE_I8 : DTYPE_U8});
    }
    fake_look(fake, 0);
    LedgerVerdict verdict;
    EXPECT_VERDICT(ledger_find_mismatch(&fake->views, &verdict), verdict, 4,
                   "rank 4 makes another call than rank 5: collective 1 of pair is all_gather of 0 "
                   "i8 there");
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

// What rank 6 has told is older than its half: the others of the half wait for it all the same.
static void a_lost_rank_may_be_of_a_group_it_never_told(void **state)
{
    (void)state;
    Fake *fake = fake_stalled();
    fake->view[6].state.groups = 1;
    fake->view[6].lost = true;
    for (int rank = 0; rank < 4; rank++) // nobody of the world waits
        fake->view[rank].state.waiting.sequence = 0;
    LedgerVerdict verdict;
    EXPECT_VERDICT(ledger_find_lost(&fake->views, &verdict), verdict, 6,
                   "is gone without a word, needed in collective 39 of half");
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

// The same with rank 6, whose half has made a call more than the other long before, and has made it
// together: after it ranks of different halves are not to be compared by how many calls they made.
static void in_a_ring_more_calls_of_a_group_are_no_fault(void **state)
{
    (void)state;
    Fake *fake = fake_create();
    for (int rank = 0; rank < FAKE_RANKS; rank++) {
        fake_run(fake, rank, 0, 20);
        if (rank >= FAKE_RANKS / 2) {
            enter(fake->half[rank], call_number(20));
            calls_leave(fake->world[rank]);
        }
        fake_run(fake, rank, 20, 51);
        int in = rank == 6 ? 52 : 51;
        enter(group_number(fake, rank, in), call_number(in));
    }
    fake_look(fake, 20);
    LedgerVerdict verdict;
    assert_false(ledger_find_mismatch(&fake->views, &verdict));
    EXPECT_VERDICT(ledger_find_stall(&fake->views, &verdict), verdict, 6,
                   "it waits in collective 41 of half");
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_calls_are_good),
        cmocka_unit_test(another_call_is_found),
        cmocka_unit_test(the_lower_of_two_ranks_is_believed),
        cmocka_unit_test(of_two_members_the_one_like_the_others_is_right),
        cmocka_unit_test(pieces_tell_who_is_wrong),
        cmocka_unit_test(a_stall_names_who_does_not_come),
        cmocka_unit_test(a_rank_before_whose_stream_a_call_lies_is_named),
        cmocka_unit_test(a_rank_that_was_never_heard_of_is_named),
        cmocka_unit_test(a_lost_rank_is_named_even_when_nobody_waits),
        cmocka_unit_test(a_lost_rank_may_be_of_a_group_it_never_told),
        cmocka_unit_test(in_a_ring_the_one_who_left_the_order_is_named),
        cmocka_unit_test(in_a_ring_more_calls_of_a_group_are_no_fault),
        cmocka_unit_test(a_call_that_all_are_in_has_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
