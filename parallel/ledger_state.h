// ledger_state.h -- what stands behind a Ledger: ledger.c (the main thread's side), ledger_thread.c
// (the side thread) and ledger_hub.c (what the hub does). Only these look in here, and the test.
#pragma once

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include "parallel/ledger.h"
#include "parallel/ledger_verdict.h"

// What the main thread asks its own side thread for.
typedef enum LedgerRequest {
    LEDGER_REQUEST_NONE,
    LEDGER_REQUEST_ASK,    // may I speak?
    LEDGER_REQUEST_QUIET,  // the job ends on purpose
    LEDGER_REQUEST_FINISH, // the last call has been made
} LedgerRequest;

// What the hub keeps of a rank.
typedef struct LedgerWatched {
    double heard_at_s;          // last heard of
    double lost_at_s;           // its connection ended; below 0: it has not
    bool answered;              // the inquiry
    uint64_t wondered_sequence; // the call that it waited in when that led to an inquiry
} LedgerWatched;

struct Ledger {
    // Settled at the start.
    int rank, ranks;
    Calls *calls;
    CheckContext where; // for messages: ranks, command line
    double limit_s, patience_s, silent_s, tick_s;
    uint8_t token[LEDGER_TOKEN_BYTES];
    LedgerAddress *address; // [ranks]
    int listener, wake[2];  // wake: a pipe, written by the main thread
    clockid_t main_clock;   // processor time of the main thread
    bool threaded;
    pthread_t thread;

    // Between the two threads.
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    LedgerRequest request;
    bool ready, answered, ended; // ended: nobody watches any more
    LedgerSpeak answer;

    // The side thread's own. Its clock stands still while it does: after a suspended job goes on,
    // nobody is late.
    double now_s, real_s;
    int hub;
    int choice;          // of the hub's addresses, the next to try
    double connecting_s; // began to connect
    double pulse_s;      // the last pulse from a hub
    bool done, quiet;
    uint64_t waiting_sequence;
    double waiting_since_s, idle_since_s;
    int64_t main_ns;   // of main_clock, at idle_since_s
    LedgerLink *links; // [links_max]
    int links_max;
    struct pollfd *polls; // [links_max + 2]
    CallEntry *entries;   // [LEDGER_ENTRIES_MAX]

    // The hub's.
    LedgerView *views;      // [ranks], NULL until this rank is the hub
    LedgerWatched *watched; // [ranks]
    double next_pulse_s;
    bool inquiring;
    double inquiry_end_s;
    int asker; // who waits for a verdict, -1: nobody
    double asked_s, ask_again_s;

    // Asks the device, and may block in its driver, so it is a thread of its own.
    bool polling;
    atomic_bool stop_polling;
    pthread_t poller;
};

void *ledger_watch(void *ledger); // the side thread

// All Local, side thread.
void ledger_own_state(Ledger *ledger, LedgerState *state);
int ledger_own_entries(Ledger *ledger, LedgerCall *calls);     // returns how many
void ledger_answer(Ledger *ledger, const LedgerSpeak *answer); // to the main thread
NORETURN void ledger_leave(const LedgerLeave *leave);
void ledger_send_all(Ledger *ledger, LedgerKind kind, const void *payload, size_t bytes);

// Becomes the hub: from now on this rank's pulses are the job's.
void ledger_hub_begin(Ledger *ledger);
void ledger_hub_turn(Ledger *ledger);          // once per round of the thread
bool ledger_hub_is_busy(const Ledger *ledger); // something is being found out
void ledger_hub_heard(Ledger *ledger, int rank);
void ledger_hub_lost(Ledger *ledger, int rank);
void ledger_hub_state(Ledger *ledger, int rank, const void *payload, size_t bytes);
void ledger_hub_entries(Ledger *ledger, int rank, const void *payload, size_t bytes);
void ledger_hub_asked(Ledger *ledger, int rank);
