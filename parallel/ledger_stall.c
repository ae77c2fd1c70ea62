// ledger_stall.c -- finding who keeps the others waiting, or is gone.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/ledger_words.h"

static bool is_waiting(const LedgerView *view)
{
    return view->known && view->state.waiting.sequence > 0 && view->state.reached;
}

static bool is_silent(const LedgerViews *views, const LedgerView *view)
{
    return view->lost || view->heard_s >= views->limit_s;
}

static bool owes(const LedgerViews *views, int rank, const LedgerCall *call)
{
    const LedgerGroup *group = ledger_group_of(&views->of_rank[rank], call->group_id);
    return group && group->arrived < call->number;
}

// A rank that keeps others waiting in `call`: one that has not come to it, else one that is silent
// and a member, or may be one since a member has not told that it is. -1 if there is none.
static int find_debtor(const LedgerViews *views, const LedgerCall *call)
{
    int members = 0, silent = -1, stranger = -1;
    for (int rank = 0; rank < views->ranks; rank++) {
        const LedgerView *view = &views->of_rank[rank];
        const LedgerGroup *group = ledger_group_of(view, call->group_id);
        if (owes(views, rank, call))
            return rank;
        members += group != NULL;
        if (is_silent(views, view) && (group ? silent : stranger) < 0)
            *(group ? &silent : &stranger) = rank;
    }
    const LedgerGroup *group = ledger_any_group_of(views, call->group_id);
    return silent >= 0 ? silent : group && members < group->ranks ? stranger : -1;
}

// Whether a rank is known not to have come to the call yet.
static bool is_owed(const LedgerViews *views, const LedgerCall *call)
{
    int rank = 0;
    while (call && rank < views->ranks && !owes(views, rank, call))
        rank++;
    return call && rank < views->ranks;
}

bool ledger_is_owed(const LedgerViews *views, int rank)
{
    const LedgerView *view = &views->of_rank[rank];
    return is_waiting(view) && find_debtor(views, &view->state.waiting) >= 0;
}

// All ranks run one program: the first call, in their own count, at which some are in another
// group's or operation's than most. Tells who went another way when ranks wait for each other in a
// ring. -1 if unknown: also where everybody's call was met by all its members, as when uneven
// shards travel in more pieces on some ranks; from there on counts of different ranks say nothing.
static int odd_in_sequence(const LedgerViews *views)
{
    uint64_t first = 0, last = UINT64_MAX;
    for (int rank = 0; rank < views->ranks; rank++) {
        const LedgerView *view = &views->of_rank[rank];
        if (view->entry_count == 0)
            continue;
        uint64_t begin = view->entries[0].sequence;
        uint64_t end = view->entries[view->entry_count - 1].sequence;
        first = begin > first ? begin : first;
        last = end < last ? end : last;
    }
    for (uint64_t sequence = first; sequence <= last && last < UINT64_MAX; sequence++) {
        int best = 0, odd = -1;
        for (int rank = 0; rank < views->ranks; rank++) {
            int same = 0, other = -1;
            for (int peer = 0; peer < views->ranks; peer++) {
                int alike = ledger_compare_steps(views, rank, peer, sequence);
                same += alike > 0;
                other = other < 0 && alike < 0 ? peer : other;
            }
            if (same > best) {
                best = same;
                odd = other;
            }
        }
        if (odd < 0)
            continue;
        bool fault = false;
        for (int rank = 0; rank < views->ranks; rank++)
            fault = fault || is_owed(views, ledger_step_of(&views->of_rank[rank], sequence));
        return fault && sequence > first ? odd : -1;
    }
    return -1;
}

// A rank that waits for `rank` itself, -1 if there is none.
static int waits_for(const LedgerViews *views, int rank)
{
    int waiting = 0;
    while (waiting < views->ranks && !(is_waiting(&views->of_rank[waiting]) &&
                                       owes(views, rank, &views->of_rank[waiting].state.waiting)))
        waiting++;
    return waiting < views->ranks ? waiting : -1;
}

// Who keeps *waiting from going on: goes from debtor to debtor until one waits for nobody, or is
// met again. -1: *waiting, which may have become another rank, is in a call that nobody owes.
static int find_culprit(const LedgerViews *views, int *waiting, bool *ring)
{
    bool *met = calloc((size_t)views->ranks, sizeof(bool));
    CHECK_RULE(met != NULL);
    int debtor = *waiting;
    do {
        *waiting = debtor;
        met[debtor] = true;
        debtor = find_debtor(views, &views->of_rank[debtor].state.waiting);
        *ring = debtor >= 0 && met[debtor];
    } while (debtor >= 0 && !*ring && is_waiting(&views->of_rank[debtor]) &&
             !is_silent(views, &views->of_rank[debtor]));
    free(met);
    int odd = *ring ? odd_in_sequence(views) : -1;
    int behind = odd >= 0 ? waits_for(views, odd) : -1;
    if (behind < 0)
        return debtor;
    *waiting = behind;
    return odd;
}

// Why the culprit does not come; false: it is at work, and may be for longer than that.
static bool describe_culprit(const LedgerViews *views, int rank, double waited_s, char *text,
                             size_t bytes)
{
    const LedgerView *view = &views->of_rank[rank];
    double idle_s = view->state.idle_s + view->heard_s;
    const LedgerCall *waiting = &view->state.waiting;
    if (view->lost)
        ledger_append(text, bytes, "its process is gone");
    else if (is_silent(views, view))
        ledger_append(
            text, bytes,
            "nothing has been heard of it for %.1f s (it is stopped, or its host cut off)",
            view->heard_s);
    else if (waiting->sequence) {
        ledger_append(text, bytes, view->state.reached ? "it waits in " : "its stream is before ");
        ledger_describe_call(views, waiting, text, bytes);
    } else if (idle_s >= views->limit_s)
        ledger_append(text, bytes, "it has done nothing for %.1f s", idle_s);
    else if (waited_s >= views->patience_s)
        ledger_append(text, bytes, "it goes on computing");
    else
        return false;
    if (view->known && view->state.last.sequence && !waiting->sequence) {
        ledger_append(text, bytes, " after ");
        ledger_describe_call(views, &view->state.last, text, bytes);
    }
    return true;
}

static bool judge_waiting(const LedgerViews *views, int rank, LedgerVerdict *verdict)
{
    const LedgerView *view = &views->of_rank[rank];
    double waited_s = view->state.waiting_s + view->heard_s;
    if (!is_waiting(view) || is_silent(views, view) || waited_s < views->limit_s)
        return false;
    char call[LEDGER_TEXT_BYTES] = "", why[LEDGER_TEXT_BYTES] = "";
    int culprit = find_culprit(views, &rank, &verdict->ring);
    const LedgerCall *waiting = &views->of_rank[rank].state.waiting;
    ledger_describe_call(views, waiting, call, sizeof(call));
    if (culprit < 0 && waited_s < views->patience_s)
        return false;
    if (culprit < 0)
        ledger_append(verdict->what, sizeof(verdict->what),
                      "%s has not ended for %.1f s: all its ranks are in it", call, waited_s);
    else if (describe_culprit(views, culprit, waited_s, why, sizeof(why)))
        ledger_append(verdict->what, sizeof(verdict->what),
                      "rank %d (%s) has not come to %s for %.1f s: %s", culprit,
                      views->of_rank[culprit].host, call, waited_s, why);
    else
        return false;
    ledger_finish_verdict(views, culprit < 0 ? rank : culprit, waiting, verdict);
    return true;
}

bool ledger_find_stall(const LedgerViews *views, LedgerVerdict *verdict)
{
    *verdict = (LedgerVerdict){.rank = -1};
    snprintf(verdict->fix, sizeof(verdict->fix),
             "look at what that rank does there; --watchdog_s allows more time");
    for (int rank = 0; rank < views->ranks; rank++)
        if (judge_waiting(views, rank, verdict))
            return true;
    return false;
}

// True for a member; and for any rank when members are missing, since what a lost rank has told may
// be older than the group.
static bool may_be_member(const LedgerViews *views, int rank, uint64_t id)
{
    int members = 0;
    for (int peer = 0; peer < views->ranks; peer++)
        members += ledger_group_of(&views->of_rank[peer], id) != NULL;
    return ledger_group_of(&views->of_rank[rank], id) ||
           members < ledger_any_group_of(views, id)->ranks;
}

// A call in which a rank waits, and `lost` is of that group; else the last one that is known of it.
static const LedgerCall *missed_call(const LedgerViews *views, int lost)
{
    for (int rank = 0; rank < views->ranks; rank++) {
        const LedgerView *view = &views->of_rank[rank];
        if (rank != lost && is_waiting(view) &&
            may_be_member(views, lost, view->state.waiting.group_id))
            return &view->state.waiting;
    }
    return &views->of_rank[lost].state.last;
}

bool ledger_find_lost(const LedgerViews *views, LedgerVerdict *verdict)
{
    *verdict = (LedgerVerdict){.rank = -1};
    int lost = 0;
    while (lost < views->ranks && !views->of_rank[lost].lost)
        lost++;
    if (lost == views->ranks)
        return false;
    const LedgerView *view = &views->of_rank[lost];
    const LedgerCall *call = missed_call(views, lost);
    snprintf(verdict->fix, sizeof(verdict->fix),
             "see the launcher's message about how it ended, and the log of that host");
    ledger_append(verdict->what, sizeof(verdict->what), "rank %d (%s) is gone without a word, ",
                  lost, view->host);
    ledger_append(verdict->what, sizeof(verdict->what),
                  call == &view->state.last ? "last heard of at " : "needed in ");
    if (call->sequence)
        ledger_describe_call(views, call, verdict->what, sizeof(verdict->what));
    else
        ledger_append(verdict->what, sizeof(verdict->what), "the start");
    ledger_finish_verdict(views, lost, call, verdict);
    return true;
}
