// ledger_words.h -- looking things up in what the ranks told, and putting them into words. Only the
// verdicts look in here.
#pragma once

#include "parallel/ledger_verdict.h"

enum { LEDGER_TEXT_BYTES = 512 };

// All Local. Texts are appended to, and cut off at `bytes`.
void ledger_append(char *text, size_t bytes, const char *format, ...) PRINTF_LIKE(3, 4);
// NULL: the rank is no member, or nothing is known of it.
const LedgerGroup *ledger_group_of(const LedgerView *view, uint64_t id);
const LedgerGroup *ledger_any_group_of(const LedgerViews *views, uint64_t id);
// True when no lower rank has the group: whoever goes over all ranks and groups meets each once.
bool ledger_is_first_member(const LedgerViews *views, int rank, uint64_t id);
// Call number `sequence` of all that a rank made, whatever the group: 1, ranks a and b made the
// same operation in groups of the same name; -1, another; 0, one of them does not say.
int ledger_compare_steps(const LedgerViews *views, int a, int b, uint64_t sequence);
// That call; NULL: not remembered.
const LedgerCall *ledger_step_of(const LedgerView *view, uint64_t sequence);

void ledger_describe_what(const LedgerCall *call, char *text, size_t bytes);  // "maximum of 1 i64"
void ledger_describe_where(const LedgerCall *call, char *text, size_t bytes); // phase and span
// "collective 17 of ep (all_to_all of 64 u8, phase step, span forward/dispatch)"
void ledger_describe_call(const LedgerViews *views, const LedgerCall *call, char *text,
                          size_t bytes);
// "rank 3", "ranks 0, 2-5 and 7 others": those whose flag is set.
void ledger_describe_ranks(const bool *flag, int ranks, char *text, size_t bytes);
// The end of every verdict: whose it is, and what the others wait in.
void ledger_finish_verdict(const LedgerViews *views, int rank, const LedgerCall *call,
                           LedgerVerdict *verdict);
