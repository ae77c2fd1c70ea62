// ledger_mismatch.c -- comparing the ranks' calls: first the hashes, and where they disagree the
// entries.
//
// Of two members that disagree, the one is right that did what other ranks did in groups of that
// name. Where there are none nobody can say: then the lower rank's word counts, and the message
// shows both.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/ledger_words.h"

// One call of one group, as its members made it.
typedef struct Compared {
    const LedgerCall **call; // [ranks], NULL: no member, or it has not told
    int members;
    uint64_t sequence; // of the first member's
    bool strictly;     // phase and span count
} Compared;

static bool same_call(const Compared *compared, const LedgerCall *a, const LedgerCall *b)
{
    bool same =
        a->op == b->op && a->dtype == b->dtype && a->count == b->count && a->detail == b->detail;
    return same && (!compared->strictly ||
                    (strcmp(a->phase, b->phase) == 0 && strcmp(a->span, b->span) == 0));
}

// The first entry of the group from number on; `at` remembers where.
static const LedgerCall *seek(const LedgerView *view, uint64_t id, uint64_t number, int *at)
{
    while (*at < view->entry_count &&
           (view->entries[*at].group_id != id || view->entries[*at].number < number))
        ++*at;
    return *at < view->entry_count ? &view->entries[*at] : NULL;
}

// Everybody's call with the lowest number from *number on that all who told remember; false: none.
static bool line_up(const LedgerViews *views, uint64_t id, uint64_t *number, int *at,
                    Compared *compared)
{
    for (int rank = 0; rank < views->ranks; rank++) {
        const LedgerView *view = &views->of_rank[rank];
        compared->call[rank] = NULL;
        if (!ledger_group_of(view, id) || view->entry_count == 0)
            continue;
        const LedgerCall *call = seek(view, id, *number, &at[rank]);
        if (!call)
            return false;
        compared->call[rank] = call;
        if (call->number > *number) {
            *number = call->number;
            rank = -1; // others may remember it too: begin again
        }
    }
    compared->members = 0;
    for (int rank = views->ranks - 1; rank >= 0; rank--)
        if (compared->call[rank]) {
            compared->members++;
            compared->sequence = compared->call[rank]->sequence;
        }
    return compared->members > 1;
}

// How many ranks, members or not, did the like of what `rank` did here.
static int count_alike(const LedgerViews *views, const Compared *compared, int rank)
{
    int count = 0;
    for (int peer = 0; compared->call[rank] && peer < views->ranks; peer++)
        count += ledger_compare_steps(views, rank, peer, compared->call[rank]->sequence) > 0;
    return count;
}

// The call that most members made; of equally many, what most ranks of the job did in their groups
// of that name; else the lowest rank's.
static const LedgerCall *common_call(const LedgerViews *views, const Compared *compared)
{
    const LedgerCall *best = NULL;
    int best_count = 0, best_alike = 0;
    for (int rank = 0; rank < views->ranks; rank++) {
        int count = 0;
        for (int peer = 0; compared->call[rank] && peer < views->ranks; peer++)
            count += compared->call[peer] &&
                     same_call(compared, compared->call[rank], compared->call[peer]);
        bool tied = count == best_count && best && !same_call(compared, compared->call[rank], best);
        int alike = tied || count > best_count ? count_alike(views, compared, rank) : 0;
        if (count > best_count || (tied && alike > best_alike)) {
            best = compared->call[rank];
            best_count = count;
            best_alike = alike;
        }
    }
    return best;
}

static int first_other(const LedgerViews *views, const Compared *compared, const LedgerCall *common)
{
    for (int rank = 0; rank < views->ranks; rank++)
        if (compared->call[rank] && !same_call(compared, compared->call[rank], common))
            return rank;
    return -1;
}

static CallPieces sum_pieces(const LedgerViews *views, const Compared *compared)
{
    CallPieces sum = {0};
    for (int rank = 0; rank < views->ranks; rank++) {
        const LedgerCall *call = compared->call[rank];
        if (!call)
            continue;
        sum.sum += call->pieces.sum;
        sum.ends += call->pieces.ends;
        sum.product += call->pieces.product;
    }
    return sum;
}

static bool differs(const LedgerViews *views, const Compared *compared, uint64_t id)
{
    bool whole = compared->members == ledger_any_group_of(views, id)->ranks;
    return first_other(views, compared, common_call(views, compared)) >= 0 ||
           (whole && sum_pieces(views, compared).sum != 0);
}

static bool find_in_group(const LedgerViews *views, uint64_t id, Compared *compared)
{
    int *at = calloc((size_t)views->ranks, sizeof(int));
    CHECK_RULE(at != NULL);
    bool found = false;
    for (uint64_t number = 1; !found && line_up(views, id, &number, at, compared); number++)
        found = differs(views, compared, id);
    free(at);
    return found;
}

static void blame_call(const LedgerViews *views, const Compared *compared, int rank,
                       const LedgerCall *common, LedgerVerdict *verdict)
{
    bool *others = calloc((size_t)views->ranks, sizeof(bool));
    CHECK_RULE(others != NULL);
    for (int peer = 0; peer < views->ranks; peer++)
        others[peer] = compared->call[peer] && same_call(compared, compared->call[peer], common);
    char *what = verdict->what;
    size_t bytes = sizeof(verdict->what);
    ledger_append(what, bytes, "rank %d makes another call than ", rank);
    ledger_describe_ranks(others, views->ranks, what, bytes);
    ledger_append(what, bytes, ": collective %llu of %s is ", (unsigned long long)common->number,
                  ledger_any_group_of(views, common->group_id)->name);
    ledger_describe_what(compared->call[rank], what, bytes);
    ledger_append(what, bytes, " there (");
    ledger_describe_where(compared->call[rank], what, bytes);
    ledger_append(what, bytes, "), but ");
    ledger_describe_what(common, what, bytes);
    ledger_append(what, bytes, " elsewhere (");
    ledger_describe_where(common, what, bytes);
    ledger_append(what, bytes, ")");
    free(others);
}

static int rank_of_member(const LedgerViews *views, uint64_t id, int member)
{
    for (int rank = 0; rank < views->ranks; rank++) {
        const LedgerGroup *group = ledger_group_of(&views->of_rank[rank], id);
        if (group && group->rank == member)
            return rank;
    }
    return 0;
}

// Every wrong piece adds its difference d, d (s + r) and d s r. The sum of d (s - m) (r - m) is 0
// for a member m that has a part in each of them, and for nobody else but by chance. Where only two
// ranks disagree both are such, and the lower one's word counts.
static int blame_pieces(const LedgerViews *views, const Compared *compared, uint64_t id,
                        LedgerVerdict *verdict)
{
    CallPieces pieces = sum_pieces(views, compared);
    int rank = -1, other = -1;
    for (int i = 0; i < compared->members; i++) {
        uint64_t m = (uint64_t)i;
        if (pieces.product - m * pieces.ends + m * m * pieces.sum != 0)
            continue;
        other = rank;
        rank = rank_of_member(views, id, i);
    }
    char *what = verdict->what;
    size_t bytes = sizeof(verdict->what);
    if (rank < 0)
        ledger_append(what, bytes, "what several ranks send is not what others expect");
    else if (other < 0)
        ledger_append(what, bytes, "rank %d and the others do not send what is expected", rank);
    else
        ledger_append(what, bytes, "rank %d and rank %d do not send what the other expects", rank,
                      other);
    ledger_append(what, bytes, ", in ");
    rank = rank < 0 ? 0 : rank;
    ledger_describe_call(views, compared->call[rank], what, bytes);
    return rank;
}

static const char *const MISMATCH_FIX =
    "let every rank make the same collectives in the same order with the same sizes: the spans say "
    "where to look";

// The largest number whose hash all members of the group still have; 0: none, or somebody is
// silent.
static uint64_t common_number(const LedgerViews *views, uint64_t id, const LedgerGroup *first)
{
    uint64_t best = 0;
    for (int i = 0; i < CALL_POINTS; i++) {
        int have = 0;
        for (int rank = 0; rank < views->ranks; rank++) {
            const LedgerGroup *group = ledger_group_of(&views->of_rank[rank], id);
            bool found = false;
            for (int j = 0; group && j < CALL_POINTS; j++)
                found = found || group->point[j].number == first->point[i].number;
            have += found;
        }
        if (have == first->ranks && first->point[i].number > best)
            best = first->point[i].number;
    }
    return best;
}

static const CallPoint *point_of(const LedgerGroup *group, uint64_t number)
{
    int i = 0;
    while (group->point[i].number != number)
        i++;
    return &group->point[i];
}

// The lowest rank whose hash is not that of the group's first member, -1 if there is none. A sum of
// pieces that is not 0 is nobody's in particular: the first member's.
static int odd_hash(const LedgerViews *views, uint64_t id, const LedgerGroup *first)
{
    uint64_t number = common_number(views, id, first), balance = 0;
    int odd = -1, first_rank = -1;
    for (int rank = 0; number > 0 && rank < views->ranks; rank++) {
        const LedgerGroup *group = ledger_group_of(&views->of_rank[rank], id);
        if (!group)
            continue;
        first_rank = first_rank < 0 ? rank : first_rank;
        balance += point_of(group, number)->balance;
        if (odd < 0 && point_of(group, number)->chain != point_of(first, number)->chain)
            odd = rank;
    }
    return odd < 0 && balance != 0 ? first_rank : odd;
}

static int find_odd_hash(const LedgerViews *views, const LedgerGroup **where)
{
    for (int rank = 0; rank < views->ranks; rank++) {
        const LedgerView *view = &views->of_rank[rank];
        for (int i = 0; view->known && i < view->state.groups; i++) {
            const LedgerGroup *group = &view->state.group[i];
            int odd = group->rank == 0 ? odd_hash(views, group->id, group) : -1;
            *where = group;
            if (odd >= 0)
                return odd;
        }
    }
    return -1;
}

bool ledger_hashes_differ(const LedgerViews *views)
{
    const LedgerGroup *where;
    return find_odd_hash(views, &where) >= 0;
}

static bool find_by_hash(const LedgerViews *views, LedgerVerdict *verdict)
{
    const LedgerGroup *group;
    int rank = find_odd_hash(views, &group);
    if (rank < 0)
        return false;
    ledger_append(
        verdict->what, sizeof(verdict->what),
        "the calls of %s up to collective %llu are not the same on all its ranks, first on rank "
        "%d; which one differs is no longer remembered",
        group->name, (unsigned long long)common_number(views, group->id, group), rank);
    ledger_finish_verdict(views, rank, &views->of_rank[rank].state.last, verdict);
    return true;
}

// The earliest call that differs; earliest->call has room for [ranks]. False: there is none.
static bool find_earliest(const LedgerViews *views, Compared *earliest)
{
    Compared trial = *earliest;
    size_t bytes = (size_t)views->ranks * sizeof(*trial.call);
    trial.call = malloc(bytes);
    CHECK_RULE(trial.call != NULL);
    earliest->sequence = UINT64_MAX;
    for (int rank = 0; rank < views->ranks; rank++) {
        const LedgerView *view = &views->of_rank[rank];
        for (int i = 0; view->known && i < view->state.groups; i++) {
            uint64_t id = view->state.group[i].id;
            if (!ledger_is_first_member(views, rank, id) || !find_in_group(views, id, &trial) ||
                trial.sequence >= earliest->sequence)
                continue;
            memcpy(earliest->call, trial.call, bytes);
            earliest->sequence = trial.sequence;
            earliest->members = trial.members;
        }
    }
    free(trial.call);
    return earliest->sequence != UINT64_MAX;
}

static bool find_and_blame(const LedgerViews *views, bool strictly, LedgerVerdict *verdict)
{
    *verdict = (LedgerVerdict){.rank = -1};
    snprintf(verdict->fix, sizeof(verdict->fix), "%s", MISMATCH_FIX);
    Compared earliest = {.strictly = strictly};
    earliest.call = calloc((size_t)views->ranks, sizeof(*earliest.call));
    CHECK_RULE(earliest.call != NULL);
    bool found = find_earliest(views, &earliest);
    if (found) {
        const LedgerCall *common = common_call(views, &earliest);
        int odd = first_other(views, &earliest, common);
        if (odd >= 0)
            blame_call(views, &earliest, odd, common, verdict);
        else
            odd = blame_pieces(views, &earliest, common->group_id, verdict);
        ledger_finish_verdict(views, odd, earliest.call[odd], verdict);
    }
    free(earliest.call);
    return found;
}

bool ledger_find_parting(const LedgerViews *views, LedgerVerdict *verdict)
{
    return find_and_blame(views, true, verdict);
}

bool ledger_find_mismatch(const LedgerViews *views, LedgerVerdict *verdict)
{
    if (find_and_blame(views, false, verdict))
        return ledger_find_parting(views, verdict);
    return find_by_hash(views, verdict);
}
