// ledger_words.c -- what the watchdog's messages are made of.
#include "parallel/ledger_words.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SHOWN_MAX = 8 };

void ledger_append(char *text, size_t bytes, const char *format, ...)
{
    size_t used = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, bytes - used, format, arguments);
    va_end(arguments);
}

const LedgerGroup *ledger_group_of(const LedgerView *view, uint64_t id)
{
    for (int i = 0; view->known && i < view->state.groups; i++)
        if (view->state.group[i].id == id)
            return &view->state.group[i];
    return NULL;
}

const LedgerGroup *ledger_any_group_of(const LedgerViews *views, uint64_t id)
{
    const LedgerGroup *found = NULL;
    for (int rank = 0; rank < views->ranks && !found; rank++)
        found = ledger_group_of(&views->of_rank[rank], id);
    return found;
}

bool ledger_is_first_member(const LedgerViews *views, int rank, uint64_t id)
{
    for (int lower = 0; lower < rank; lower++)
        if (ledger_group_of(&views->of_rank[lower], id))
            return false;
    return true;
}

const LedgerCall *ledger_step_of(const LedgerView *view, uint64_t sequence)
{
    uint64_t begin = view->entry_count > 0 ? view->entries[0].sequence : UINT64_MAX;
    bool there = sequence >= begin && sequence < begin + (uint64_t)view->entry_count;
    return there ? &view->entries[sequence - begin] : NULL;
}

int ledger_compare_steps(const LedgerViews *views, int a, int b, uint64_t sequence)
{
    const LedgerCall *one = ledger_step_of(&views->of_rank[a], sequence);
    const LedgerCall *two = ledger_step_of(&views->of_rank[b], sequence);
    if (!one || !two)
        return 0;
    const LedgerGroup *group_one = ledger_group_of(&views->of_rank[a], one->group_id);
    const LedgerGroup *group_two = ledger_group_of(&views->of_rank[b], two->group_id);
    bool named_alike = group_one && group_two ? strcmp(group_one->name, group_two->name) == 0
                                              : !group_one == !group_two;
    return named_alike && one->op == two->op && one->dtype == two->dtype &&
                   one->detail == two->detail
               ? 1
               : -1;
}

void ledger_describe_what(const LedgerCall *call, char *text, size_t bytes)
{
    CallOp op = (CallOp)call->op;
    const char *type = dtype_row((DType)call->dtype)->name;
    ledger_append(text, bytes, "%s", call_op_name(op));
    if (op == CALL_ALL_TO_ALL_V || op == CALL_GATHER_PIECES)
        ledger_append(text, bytes, " of pieces of %s", type);
    else if (op == CALL_PEER_BARRIER)
        ledger_append(text, bytes, " of channel %llu", (unsigned long long)call->count);
    else if (op != CALL_SPLIT && op != CALL_REPLAY && (op != CALL_BARRIER || call->count > 0))
        ledger_append(text, bytes, " of %llu %s", (unsigned long long)call->count, type);
    if (call->detail > 0)
        ledger_append(text, bytes, op == CALL_BROADCAST ? " from rank %d" : " with reduction %d",
                      call->detail);
}

void ledger_describe_where(const LedgerCall *call, char *text, size_t bytes)
{
    ledger_append(text, bytes, "phase %s, span %s", call->phase[0] ? call->phase : "none",
                  call->span[0] ? call->span : "none");
}

void ledger_describe_call(const LedgerViews *views, const LedgerCall *call, char *text,
                          size_t bytes)
{
    const LedgerGroup *group = ledger_any_group_of(views, call->group_id);
    ledger_append(text, bytes, "collective %llu of %s (", (unsigned long long)call->number,
                  group ? group->name : "a closed group");
    ledger_describe_what(call, text, bytes);
    ledger_append(text, bytes, ", ");
    ledger_describe_where(call, text, bytes);
    ledger_append(text, bytes, ")");
}

void ledger_describe_ranks(const bool *flag, int ranks, char *text, size_t bytes)
{
    int count = 0, shown = 0, left = 0;
    for (int rank = 0; rank < ranks; rank++)
        count += flag[rank];
    ledger_append(text, bytes, count == 1 ? "rank" : "ranks");
    for (int rank = 0; rank < ranks;) {
        int end = rank;
        while (end < ranks && flag[end])
            end++;
        if (end > rank && shown == SHOWN_MAX)
            left += end - rank;
        else if (end > rank)
            ledger_append(text, bytes, end - rank > 1 ? "%s %d-%d" : "%s %d", shown++ ? "," : "",
                          rank, end - 1);
        rank = end > rank ? end : rank + 1;
    }
    if (left > 0)
        ledger_append(text, bytes, " and %d others", left);
}

void ledger_describe_waiting(const LedgerViews *views, int except, char *text, size_t bytes)
{
    enum { CALLS_SHOWN = 3 };
    bool *told = calloc((size_t)views->ranks, sizeof(bool));
    bool *together = calloc((size_t)views->ranks, sizeof(bool));
    CHECK_RULE(told && together);
    text[0] = '\0';
    int calls = 0;
    for (int rank = 0; rank < views->ranks; rank++) {
        const LedgerView *view = &views->of_rank[rank];
        if (told[rank] || rank == except || !view->known || !view->state.waiting.sequence)
            continue;
        char call[LEDGER_TEXT_BYTES] = "", other[LEDGER_TEXT_BYTES];
        ledger_describe_call(views, &view->state.waiting, call, sizeof(call));
        for (int peer = 0; peer < views->ranks; peer++) {
            const LedgerView *peer_view = &views->of_rank[peer];
            other[0] = '\0';
            if (peer != except && peer_view->known && peer_view->state.waiting.sequence)
                ledger_describe_call(views, &peer_view->state.waiting, other, sizeof(other));
            together[peer] = strcmp(call, other) == 0;
            told[peer] = told[peer] || together[peer];
        }
        if (calls++ == CALLS_SHOWN)
            break;
        ledger_append(text, bytes, calls > 1 ? "; " : "");
        ledger_describe_ranks(together, views->ranks, text, bytes);
        ledger_append(text, bytes, " waiting in %s", call);
    }
    free(told);
    free(together);
}

void ledger_describe_failed(const LedgerViews *views, int rank, char *text, size_t bytes)
{
    const LedgerState *state = &views->of_rank[rank].state;
    const LedgerCall *call = state->waiting.sequence ? &state->waiting : &state->last;
    text[0] = '\0';
    if (call->sequence) {
        ledger_append(text, bytes, "rank %d %s ", rank, call == &state->waiting ? "in" : "after");
        ledger_describe_call(views, call, text, bytes);
    }
    char waiting[LEDGER_TEXT_BYTES] = "";
    ledger_describe_waiting(views, rank, waiting, sizeof(waiting));
    if (waiting[0])
        ledger_append(text, bytes, "%s%s", text[0] ? "; " : "", waiting);
}

void ledger_finish_verdict(const LedgerViews *views, int rank, const LedgerCall *call,
                           LedgerVerdict *verdict)
{
    verdict->rank = rank;
    memcpy(verdict->span, call->span, sizeof(verdict->span));
    char waiting[LEDGER_TEXT_BYTES] = "";
    ledger_describe_waiting(views, rank, waiting, sizeof(waiting));
    if (waiting[0])
        ledger_append(verdict->what, sizeof(verdict->what), "; %s", waiting);
}
