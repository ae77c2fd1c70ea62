// ledger_verdict.h -- what is wrong with a job, from what its ranks say: no sockets, no clocks.
#pragma once

#include "parallel/ledger_link.h"

// What the hub knows of one rank.
typedef struct LedgerView {
    bool known;     // it has told its state
    bool lost;      // its connection ended without a word
    double heard_s; // since it was last heard of
    LedgerState state;
    LedgerCall *entries; // [entry_count], oldest first; NULL before an inquiry
    int entry_count;
    const char *host;
} LedgerView;

typedef struct LedgerViews {
    const LedgerView *of_rank; // [ranks]
    int ranks;
    double limit_s;    // a rank may stand still that long while others wait for it
    double patience_s; // and compute that long
} LedgerViews;

typedef struct LedgerVerdict {
    int rank;  // whose fault it is
    bool ring; // a stall in which ranks wait for each other
    char what[1400], fix[200];
    char span[CALL_SPAN_BYTES]; // where it happened
} LedgerVerdict;

// All Local. True: found, and the verdict says what.

// Whether the hashes of some group disagree: then the entries are worth asking for.
bool ledger_hashes_differ(const LedgerViews *views);
// The first call, in the order of a rank's calls, that is not the same on all members of its group.
// When none is remembered, whose hash differs.
bool ledger_find_mismatch(const LedgerViews *views, LedgerVerdict *verdict);
// The same where phase and span count too. They need not agree, but once something is known to be
// wrong they tell where ranks parted that went on with calls of the same sizes for a while.
bool ledger_find_parting(const LedgerViews *views, LedgerVerdict *verdict);
bool ledger_find_lost(const LedgerViews *views, LedgerVerdict *verdict);
bool ledger_find_stall(const LedgerViews *views, LedgerVerdict *verdict);
// True when that rank is in a call to which another rank has not come.
bool ledger_is_owed(const LedgerViews *views, int rank);
// For the message of a rank that failed by itself: the call it is in or has made last, and what the
// others wait in.
void ledger_describe_failed(const LedgerViews *views, int rank, char *text, size_t bytes);
// What ranks wait in: "ranks 0, 2-3 wait in collective 17 of ep (...)"; "" when nobody waits.
// `except` is left out (-1: nobody).
void ledger_describe_waiting(const LedgerViews *views, int except, char *text, size_t bytes);
