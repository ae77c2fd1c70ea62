// ledger_hub.c -- the rank that compares: pulses, suspicion, an inquiry for the rings, the verdict.
//
// Nothing is reported on a first look. Suspicion starts an inquiry: every rank tells its state and
// its last calls anew, and only if these still show the fault is it reported. So a rank that was
// just late is not blamed, and a connection that ended has time to explain itself: a rank that
// fails says so before it leaves, and a job that is killed as a whole is gone before anybody is
// blamed.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "parallel/ledger_state.h"

static const double LOST_WAIT_S = 0.1;   // from the end of a connection to the inquiry
static const double WONDER_S = 1;        // that a rank waits so long
static const double ASKER_WAIT_S = 2;    // before a rank that failed may say so
static const double ANSWER_WAIT_S = 0.3; // mpirun gives survivors a second in all
enum { FLUSH_ROUNDS = 20, LAUNCHER_S = 3 };

void ledger_hub_begin(Ledger *ledger)
{
    if (!ledger->views) {
        ledger->views = calloc((size_t)ledger->ranks, sizeof(*ledger->views));
        ledger->watched = calloc((size_t)ledger->ranks, sizeof(*ledger->watched));
        CHECK_RULE(ledger->views && ledger->watched);
        for (int rank = 0; rank < ledger->ranks; rank++) {
            bool lower = rank < ledger->rank;
            ledger->views[rank].host = ledger->address[rank].host;
            ledger->watched[rank].heard_at_s = lower ? ledger->pulse_s : ledger->now_s;
            ledger->watched[rank].lost_at_s = -1;
        }
    }
    ledger->asker = -1;
    ledger->next_pulse_s = ledger->now_s;
}

void ledger_hub_heard(Ledger *ledger, int rank)
{
    if (!ledger->views)
        return;
    ledger->watched[rank].heard_at_s = ledger->now_s;
    ledger->watched[rank].lost_at_s = -1;
}

void ledger_hub_lost(Ledger *ledger, int rank)
{
    if (ledger->views)
        ledger->watched[rank].lost_at_s = ledger->now_s;
}

void ledger_hub_state(Ledger *ledger, int rank, const void *payload, size_t bytes)
{
    if (ledger->views && ledger_state_read(payload, bytes, &ledger->views[rank].state))
        ledger->views[rank].known = true;
}

static void keep_entries(LedgerView *view, const void *calls, size_t bytes)
{
    free(view->entries);
    view->entry_count = 0;
    view->entries = malloc(bytes > 0 ? bytes : 1);
    if (!view->entries)
        return;
    memcpy(view->entries, calls, bytes);
    ledger_calls_read(view->entries, bytes, &view->entry_count);
}

void ledger_hub_entries(Ledger *ledger, int rank, const void *payload, size_t bytes)
{
    if (!ledger->views || !ledger->inquiring)
        return;
    keep_entries(&ledger->views[rank], payload, bytes);
    ledger->watched[rank].answered = true;
}

static LedgerViews look(Ledger *ledger)
{
    for (int rank = 0; rank < ledger->ranks; rank++) {
        const LedgerWatched *watched = &ledger->watched[rank];
        LedgerView *view = &ledger->views[rank];
        view->heard_s = ledger->now_s - watched->heard_at_s;
        view->lost = watched->lost_at_s >= 0 && ledger->now_s - watched->lost_at_s >= LOST_WAIT_S;
    }
    return (LedgerViews){.of_rank = ledger->views,
                         .ranks = ledger->ranks,
                         .limit_s = ledger->limit_s,
                         .patience_s = ledger->patience_s};
}

static void look_at_self(Ledger *ledger)
{
    LedgerView *own = &ledger->views[ledger->rank];
    ledger_own_state(ledger, &own->state);
    own->known = true;
    ledger_hub_heard(ledger, ledger->rank);
}

// ---- inquiry and verdict ----

static void begin_inquiry(Ledger *ledger)
{
    LedgerCall *calls = malloc(LEDGER_ENTRIES_MAX * sizeof(*calls));
    if (!calls)
        return;
    ledger->inquiring = true;
    ledger->inquiry_end_s = ledger->now_s + ANSWER_WAIT_S;
    look_at_self(ledger);
    int count = ledger_own_entries(ledger, calls);
    keep_entries(&ledger->views[ledger->rank], calls, (size_t)count * sizeof(*calls));
    free(calls);
    for (int rank = 0; rank < ledger->ranks; rank++)
        ledger->watched[rank].answered = true; // unless there is a connection to ask
    for (int i = 0; i < ledger->links_max; i++)
        if (ledger->links[i].rank >= 0)
            ledger->watched[ledger->links[i].rank].answered = false;
    ledger_send_all(ledger, LEDGER_PULSE, NULL, 0);
    ledger_send_all(ledger, LEDGER_SHOW, NULL, 0);
}

static bool any_lost(const LedgerViews *views)
{
    bool any = false;
    for (int rank = 0; rank < views->ranks; rank++)
        any = any || views->of_rank[rank].lost;
    return any;
}

// When a process is gone the launcher ends the job with that one's exit code, unless it first hears
// of another that ended: so the survivors stay a little: silent, since the job has its message.
NORETURN static void report(Ledger *ledger, const LedgerVerdict *verdict, bool lost)
{
    CheckContext where = ledger->where;
    const LedgerLeave leave = {.exit_code = EXIT_CODE_HANG, .wait_s = lost ? LAUNCHER_S : 0};
    where.rank = verdict->rank;
    snprintf(where.span, sizeof(where.span), "%s", verdict->span);
    check_print_for(&where, __FILE__, __LINE__, verdict->fix, "%s", verdict->what);
    ledger_send_all(ledger, LEDGER_LEAVE, &leave, sizeof(leave));
    bool waiting = true;
    for (int round = 0; waiting && round < FLUSH_ROUNDS; round++) {
        waiting = false;
        for (int i = 0; i < ledger->links_max; i++) {
            ledger_link_flush(&ledger->links[i]);
            waiting = waiting || ledger->links[i].out.bytes > 0;
        }
        if (waiting)
            nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    ledger_leave(&leave);
}

// Lets one rank speak for the job. Then nobody else is to: all watch no longer.
static void let_speak(Ledger *ledger, int rank, const LedgerViews *views)
{
    LedgerSpeak yes = {.may = true};
    ledger_describe_failed(views, rank, yes.others, sizeof(yes.others));
    if (rank == ledger->rank)
        ledger_answer(ledger, &yes);
    for (int i = 0; i < ledger->links_max; i++) {
        LedgerLink *link = &ledger->links[i];
        if (link->rank == rank)
            ledger_link_send(link, LEDGER_SPEAK, &yes, sizeof(yes));
        else if (link->rank >= 0)
            ledger_link_send(link, LEDGER_QUIET, NULL, 0);
    }
    ledger->quiet = true;
}

static bool all_answered(const Ledger *ledger)
{
    bool all = true;
    for (int rank = 0; rank < ledger->ranks; rank++)
        all = all && (ledger->watched[rank].answered || ledger->watched[rank].lost_at_s >= 0);
    return all;
}

static void conclude(Ledger *ledger)
{
    LedgerVerdict verdict;
    look_at_self(ledger);
    LedgerViews views = look(ledger);
    if (ledger_find_mismatch(&views, &verdict) || ledger_find_lost(&views, &verdict))
        report(ledger, &verdict, any_lost(&views));
    if (ledger_find_stall(&views, &verdict)) {
        LedgerVerdict parting;
        bool parted = verdict.ring && ledger_find_parting(&views, &parting);
        report(ledger, parted ? &parting : &verdict, any_lost(&views));
    }
    ledger->inquiring = false;
    for (int rank = 0; rank < ledger->ranks; rank++) {
        free(ledger->views[rank].entries);
        ledger->views[rank].entries = NULL;
        ledger->views[rank].entry_count = 0;
    }
    // What failed may not be known before the last rank has come to the call that failed.
    if (ledger->asker >= 0 && ledger_is_owed(&views, ledger->asker) &&
        ledger->now_s - ledger->asked_s < ASKER_WAIT_S)
        ledger->ask_again_s = ledger->now_s + LOST_WAIT_S;
    else if (ledger->asker >= 0)
        let_speak(ledger, ledger->asker, &views);
}

// The first to fail speaks, unless the inquiry finds that somebody else is to blame. Who asks later
// is answered by QUIET.
void ledger_hub_asked(Ledger *ledger, int rank)
{
    if (!ledger->views || ledger->asker >= 0)
        return;
    ledger->asker = rank;
    ledger->asked_s = ledger->ask_again_s = ledger->now_s;
}

bool ledger_hub_is_busy(const Ledger *ledger)
{
    if (!ledger->views || ledger->hub != ledger->rank)
        return false;
    bool busy = ledger->inquiring || ledger->asker >= 0;
    for (int rank = 0; rank < ledger->ranks; rank++)
        busy = busy || ledger->watched[rank].lost_at_s >= 0;
    return busy;
}

static bool all_done(const Ledger *ledger)
{
    bool all = true;
    for (int rank = 0; rank < ledger->ranks; rank++)
        all = all && ledger->views[rank].known && ledger->views[rank].state.done;
    return all;
}

// True when a rank has waited in a call for a while, once for each such call. Hashes can only be
// compared where ranks stand at the same call; this finds those that went on another way.
static bool wonder(Ledger *ledger)
{
    bool any = false;
    double wonder_s = ledger->limit_s / 2 < WONDER_S ? ledger->limit_s / 2 : WONDER_S;
    for (int rank = 0; rank < ledger->ranks; rank++) {
        const LedgerState *state = &ledger->views[rank].state;
        uint64_t *wondered = &ledger->watched[rank].wondered_sequence;
        bool is_new = state->waiting_s >= wonder_s && state->waiting.sequence != *wondered;
        if (is_new)
            *wondered = state->waiting.sequence;
        any = any || is_new;
    }
    return any;
}

void ledger_hub_turn(Ledger *ledger)
{
    LedgerViews views = look(ledger);
    bool pulse = ledger->now_s >= ledger->next_pulse_s;
    if (pulse) {
        look_at_self(ledger);
        ledger_send_all(ledger, LEDGER_PULSE, NULL, 0);
        ledger->next_pulse_s = ledger->now_s + ledger->tick_s;
    }
    if (ledger->inquiring) {
        if (all_answered(ledger) || ledger->now_s >= ledger->inquiry_end_s)
            conclude(ledger);
        return;
    }
    LedgerVerdict unused;
    bool done = all_done(ledger);
    bool suspect = any_lost(&views) || (ledger->asker >= 0 && ledger->now_s >= ledger->ask_again_s);
    if (pulse || done)
        suspect = wonder(ledger) || ledger_hashes_differ(&views) ||
                  ledger_find_stall(&views, &unused) || suspect;
    if (suspect) {
        begin_inquiry(ledger);
    } else if (done) {
        ledger_send_all(ledger, LEDGER_QUIET, NULL, 0);
        ledger->quiet = true;
    }
}
