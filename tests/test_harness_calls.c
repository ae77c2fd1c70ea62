// The ring of calls: hashes that agree exactly when the calls do, pieces that cancel, groups with
// the same name tags on all members, what a rank is in, and planted faults.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "harness/calls.h"
#include "harness/random.h"

static Calls *create(int rank, int ranks)
{
    Error error = {0};
    Calls *calls = calls_create(rank, ranks, NULL, &error);
    assert_non_null(calls);
    return calls;
}

// Call number i of a program that all ranks run.
static Call call_of(uint64_t seed, uint64_t i)
{
    RandomBlock block = random_block(seed, 1, i);
    return (Call){.op = (CallOp)(block.word[0] % CALL_OPS),
                  .dtype = (DType)(block.word[1] % DTYPES),
                  .count = block.word[2],
                  .detail = (uint8_t)(block.word[3] % 4)};
}

static void make(CallGroup *group, Call call)
{
    assert_true(calls_enter(group, &call));
    calls_leave(group);
}

// Two ranks that stand at different calls have points in common, and these agree until the calls
// differ.
static void hashes_agree_exactly_when_calls_do(void **state)
{
    (void)state;
    enum { CALLS = 3000, DIFFERENT = 1700 };
    uint64_t seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int variant = 0; variant < 5; variant++) { // 0: none differs
        Calls *calls[2] = {create(0, 2), create(1, 2)};
        CallGroup *group[2] = {calls_job(calls[0]), calls_job(calls[1])};
        uint64_t chain[CALLS + 1] = {0};
        for (uint64_t i = 1; i <= CALLS; i++) {
            make(group[0], call_of(seed, i));
            chain[i] = group[0]->point[0].chain;
        }
        for (uint64_t i = 1; i <= CALLS; i++) {
            Call call = call_of(seed, i);
            if (i == DIFFERENT) {
                call.op = variant == 1 ? (call.op + 1) % CALL_OPS : call.op;
                call.dtype = variant == 2 ? (call.dtype + 1) % DTYPES : call.dtype;
                call.count += variant == 3;
                call.detail += variant == 4;
            }
            make(group[1], call);
            const CallPoint *now = &group[1]->point[0];
            bool equal = now->chain == chain[i];
            if (now->number != i || equal != (variant == 0 || i < DIFFERENT))
                fail_msg("variant %d: call %llu: number %llu, equal %d (seed %llu)", variant,
                         (unsigned long long)i, (unsigned long long)now->number, equal,
                         (unsigned long long)seed);
            for (int p = 1; p < CALL_POINTS; p++)
                if (group[1]->point[p].number > 0 && variant == 0)
                    assert_int_equal(group[1]->point[p].chain, chain[group[1]->point[p].number]);
        }
        assert_int_equal(group[1]->point[1].number, CALLS / 64 * 64);
        assert_int_equal(group[1]->point[2].number, CALLS / 512 * 512);
        assert_int_equal(group[1]->point[3].number, 0);
        calls_destroy(calls[0]);
        calls_destroy(calls[1]);
    }
}

// Over all ranks the pieces cancel, and do not when one rank is wrong about one number.
static void pieces_cancel(void **state)
{
    (void)state;
    enum { RANKS = 7 };
    for (uint64_t round = 0; round < 200; round++) {
        uint64_t bytes[RANKS][RANKS];
        for (int i = 0; i < RANKS * RANKS; i++)
            bytes[i / RANKS][i % RANKS] = random_block(round, 2, (uint64_t)i).word[0] % 1000;
        CallPieces sum = {0};
        int wrong = round % 2 ? (int)(round % RANKS) : -1;
        for (int rank = 0; rank < RANKS; rank++) {
            Call call = {.op = CALL_ALL_TO_ALL_V};
            for (int other = 0; other < RANKS; other++)
                if (other != rank)
                    call_piece(&call, rank, other, bytes[rank][other],
                               bytes[other][rank] + (rank == wrong));
            sum.sum += call.pieces.sum;
            sum.ends += call.pieces.ends;
            sum.product += call.pieces.product;
        }
        assert_int_equal(sum.sum == 0, wrong < 0);
        for (uint64_t m = 0; m < RANKS; m++) {
            uint64_t rest = sum.product - m * sum.ends + m * m * sum.sum;
            assert_int_equal(rest == 0, wrong < 0 || m == (uint64_t)wrong);
        }
    }
}

static void groups_have_one_id_on_all_members(void **state)
{
    (void)state;
    enum { RANKS = 4 };
    uint64_t id[RANKS][3];
    Calls *calls[RANKS];
    for (int rank = 0; rank < RANKS; rank++) {
        calls[rank] = create(rank, RANKS);
        CallGroup *job = calls_job(calls[rank]);
        CallGroup *half = calls_split(job, rank / 2, rank % 2, 2);
        assert_null(calls_split(half, rank, 0, 1)); // a group of one makes no calls
        CallGroup *quarter = calls_split(half, 0, rank % 2, 2);
        CallGroup *other = calls_split(job, rank % 2, rank / 2, 2);
        calls_name(half, "half");
        assert_string_equal(half->name, "half");
        calls_name(quarter, "half");
        assert_string_equal(quarter->name, "half#2");
        calls_name(quarter, "quarter");
        id[rank][0] = half->id;
        id[rank][1] = quarter->id;
        id[rank][2] = other->id;
    }
    for (int a = 0; a < RANKS * 3; a++)
        for (int b = 0; b < RANKS * 3; b++) {
            bool pair = a % 3 == 2 ? a / 3 % 2 == b / 3 % 2 : a / 6 == b / 6;
            assert_int_equal(id[a / 3][a % 3] == id[b / 3][b % 3], a % 3 == b % 3 && pair);
        }
    for (int rank = 0; rank < RANKS; rank++)
        calls_destroy(calls[rank]);
    assert_null(calls_split(NULL, 0, 0, 2)); // nobody watches
    assert_true(calls_enter(NULL, &(Call){.op = CALL_BARRIER}));
    calls_leave(NULL);
}

static void closed_groups_make_room(void **state)
{
    (void)state;
    Calls *calls = create(0, 2);
    CallGroup *job = calls_job(calls);
    for (int i = 0; i < 3 * CALL_GROUPS_MAX; i++) {
        CallGroup *group = calls_split(job, 0, 0, 2);
        assert_non_null(group);
        make(group, (Call){.op = CALL_BARRIER});
        assert_int_equal(group->point[0].number, 1);
        calls_close(group);
    }
    calls_destroy(calls);
}

static void the_state_tells_what_a_rank_is_in(void **state)
{
    (void)state;
    Calls *calls = create(0, 2);
    CallGroup *job = calls_job(calls), *half = calls_split(job, 0, 0, 2);
    CallsState *now = calloc(1, sizeof(*now));
    calls_state(calls, now);
    assert_int_equal(now->last.sequence, 0);
    assert_int_equal(now->waiting.sequence, 0);
    make(job, (Call){.op = CALL_BARRIER});
    check_phase("step");
    snprintf(check_context()->span, CHECK_SPAN_BYTES, "forward/dispatch");
    Call call = {.op = CALL_ALL_TO_ALL, .dtype = DTYPE_U8, .count = 12};
    assert_true(calls_enter(half, &call));
    calls_state(calls, now);
    assert_int_equal(now->groups, 2);
    assert_int_equal(now->waiting.sequence, 2);
    assert_int_equal(now->waiting.number, 1);
    assert_int_equal(now->waiting.group_id, half->id);
    assert_int_equal(now->waiting.op, CALL_ALL_TO_ALL);
    assert_int_equal(now->waiting.count, 12);
    assert_string_equal(now->waiting.phase, "step");
    assert_string_equal(now->waiting.span, "forward/dispatch");
    assert_true(now->reached);
    assert_int_equal(now->arrived[0], 1);
    assert_int_equal(now->arrived[1], 1);
    calls_leave(half);
    calls_state(calls, now);
    assert_int_equal(now->waiting.sequence, 0);
    assert_int_equal(now->last.sequence, 2);
    check_phase(NULL);
    check_context()->span[0] = '\0';

    enum { ENTRIES = 20000 };
    CallEntry *entries = calloc(ENTRIES, sizeof(*entries));
    assert_int_equal(calls_copy(calls, entries, ENTRIES), 2);
    for (int i = 0; i < ENTRIES; i++)
        make(i % 3 ? job : half, (Call){.op = CALL_BARRIER});
    int count = calls_copy(calls, entries, ENTRIES);
    assert_in_range(count, 1000, ENTRIES - 1); // the ring is shorter than that
    for (int i = 0; i < count; i++)
        assert_int_equal(entries[i].sequence, ENTRIES + 2 - count + 1 + i);
    assert_int_equal(calls_copy(calls, entries, 10), 10);
    assert_int_equal(entries[9].sequence, ENTRIES + 2);
    free(entries);
    free(now);
    calls_destroy(calls);
}

static void faults_are_read_strictly(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "",         "skip",     "skip@1",    "skip@1:",   "skip@:3", "hop@1:3",
        "none@1:3", "skip@2:3", "skip@-1:3", "skip@1x:3", "@1:3",    "skip1:3"};
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        Error error = {0};
        assert_null(calls_create(0, 2, wrong[i], &error));
        assert_int_equal(error.exit_code, EXIT_CODE_USAGE);
        assert_non_null(strstr(error.what, "--fault"));
        assert_true(error.fix[0]);
    }
}

// At which of ten calls the fault falls, 0: at none; and what became of that call.
static int planted(const char *fault, int rank, Call *changed)
{
    Error error = {0};
    Calls *calls = calls_create(rank, 2, fault, &error);
    assert_non_null(calls);
    CallGroup *job = calls_job(calls);
    int at = 0;
    for (int i = 1; i <= 10; i++) {
        check_phase(i > 3 ? "step" : "set-up");
        snprintf(check_context()->span, CHECK_SPAN_BYTES, "%s", i == 7 ? "reduce" : "");
        Call call = {.op = CALL_ALL_REDUCE, .dtype = DTYPE_F32, .count = 12};
        bool make_it = calls_enter(job, &call);
        assert_int_equal(make_it, call.fault != CALL_FAULT_SKIP && call.fault != CALL_FAULT_OTHER);
        calls_leave(job);
        if (call.fault) {
            assert_int_equal(at, 0); // once
            at = i;
            *changed = call;
        }
    }
    check_phase(NULL);
    check_context()->span[0] = '\0';
    calls_destroy(calls);
    return at;
}

static void faults_fall_where_they_are_wanted(void **state)
{
    (void)state;
    Call call;
    assert_int_equal(planted("skip@1:4", 1, &call), 4);
    assert_int_equal(call.fault, CALL_FAULT_SKIP);
    assert_int_equal(planted("skip@1:4", 0, &call), 0);
    assert_int_equal(planted("skip@1:44", 1, &call), 0);
    assert_int_equal(planted("other@1:step", 1, &call), 4);
    assert_int_equal(call.fault, CALL_FAULT_OTHER);
    assert_int_equal(planted("count@1:reduce", 1, &call), 7);
    assert_int_equal(call.count, 6);
    assert_int_equal(planted("dtype@0:1", 0, &call), 1);
    assert_int_equal(call.dtype, DTYPE_I32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hashes_agree_exactly_when_calls_do),
        cmocka_unit_test(pieces_cancel),
        cmocka_unit_test(groups_have_one_id_on_all_members),
        cmocka_unit_test(closed_groups_make_room),
        cmocka_unit_test(the_state_tells_what_a_rank_is_in),
        cmocka_unit_test(faults_are_read_strictly),
        cmocka_unit_test(faults_fall_where_they_are_wanted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
