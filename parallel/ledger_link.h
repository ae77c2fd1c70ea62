// ledger_link.h -- the watchdog's sockets, and what travels over them. Only parallel/ looks in
// here.
#pragma once

#include "harness/calls.h"
#include "harness/run.h"

typedef enum LedgerKind {
    LEDGER_HELLO,   // LedgerHello: the first message of who connects
    LEDGER_PULSE,   // hub: tell me your state
    LEDGER_STATE,   // LedgerState, [groups] of them used
    LEDGER_SHOW,    // hub: tell me your last calls
    LEDGER_ENTRIES, // LedgerCall[]
    LEDGER_ASK,     // I failed: may I speak?
    LEDGER_SPEAK,   // hub: LedgerSpeak
    LEDGER_QUIET,   // the job ends on purpose: watch no longer
    LEDGER_LEAVE,   // hub: LedgerLeave
    LEDGER_KINDS,
} LedgerKind;

enum { LEDGER_TOKEN_BYTES = 16, LEDGER_OTHERS_BYTES = 768 };
enum {
    LEDGER_ENTRIES_MAX = 8192,
    LEDGER_ENTRIES_MIN = 64
}; // of one rank; fewer when ranks are many

typedef struct LedgerHello {
    uint8_t token[LEDGER_TOKEN_BYTES];
    int32_t rank;
} LedgerHello;

typedef struct LedgerSpeak {
    int32_t may;
    char others[LEDGER_OTHERS_BYTES];
} LedgerSpeak;

typedef struct LedgerLeave {
    int32_t exit_code, wait_s; // wait_s: that the launcher has to end the job itself
} LedgerLeave;

// A CallEntry without pointers.
typedef struct LedgerCall {
    uint64_t sequence, group_id, number, count; // sequence 0: none
    CallPieces pieces;
    uint8_t op, dtype, detail, unused[5];
    char phase[CALL_NAME_BYTES], span[CALL_SPAN_BYTES];
} LedgerCall;
LedgerCall ledger_call_of(const CallEntry *entry); // Local

typedef struct LedgerGroup {
    uint64_t id;
    char name[CALL_NAME_BYTES];
    int32_t rank, ranks;
    uint64_t arrived; // calls that this rank has come to
    CallPoint point[CALL_POINTS];
} LedgerGroup;

typedef struct LedgerState {
    LedgerCall last, waiting;
    double waiting_s; // in `waiting`
    double idle_s;    // since the main thread last used the processor
    int32_t reached;  // the stream has come to `waiting`
    int32_t done;     // the last call of all has been made
    int32_t groups, unused;
    LedgerGroup group[CALL_GROUPS_MAX];
} LedgerState;
size_t ledger_state_bytes(const LedgerState *state); // Local. As sent
// Local. Makes what came over a socket safe to use; false: it makes no sense.
bool ledger_state_read(const void *payload, size_t bytes, LedgerState *state);
bool ledger_calls_read(LedgerCall *calls, size_t bytes, int *count);

// How a rank is reached.
enum { LEDGER_ADDRESSES_MAX = 4 };
typedef struct LedgerAddress {
    uint32_t ipv4[LEDGER_ADDRESSES_MAX]; // network order; 0: none
    uint16_t port;                       // network order; 0: this rank cannot listen
    int32_t host_index;
    char host[RUN_HOST_BYTES];
} LedgerAddress;
// Local. A listening socket, for the loopback only when all ranks share a host; -1 on failure.
int ledger_listen(bool one_host, LedgerAddress *address);

// A connection. Nothing here ever waits.
typedef struct LedgerLink {
    int fd;          // -1: none
    int rank;        // -1: has not said who it is
    bool connecting; // not writable yet
    bool ended;      // the other side has closed, or sent nonsense; what came before may be read
    size_t taken;    // of `in`, by the last ledger_link_next
    struct LedgerBuffer {
        char *data;
        size_t bytes, room;
    } in, out;
} LedgerLink;
void ledger_link_open(LedgerLink *link, int fd, int rank); // Local. Takes the socket over
void ledger_link_close(LedgerLink *link);
// Local. Begins to connect to address number `choice`; false: there is none, or it refuses.
bool ledger_link_connect(LedgerLink *link, const LedgerAddress *to, int rank, bool same_host,
                         int choice);
// Local. Queues a message and sends what the socket takes.
void ledger_link_send(LedgerLink *link, LedgerKind kind, const void *payload, size_t bytes);
void ledger_link_flush(LedgerLink *link);
void ledger_link_receive(LedgerLink *link); // Local. Reads what is there
// Local. The next whole message: its kind, or -1. The payload stays until the next call.
int ledger_link_next(LedgerLink *link, void **payload, size_t *bytes);
