// calls.h -- the collectives this rank has entered: a ring of the last ones, and a running hash for
// each group of ranks. The other half, which compares them over ranks, is parallel/ledger.h.
//
// Every rank of a group must make the same calls in the same order. So each collective is entered
// here before it is made, and left when it has returned. Operation (with reduction or root),
// element type and count must be equal on all ranks. Where pieces differ in size, what one rank
// sends must be what another expects: each rank adds a hash of every piece that it sends and
// subtracts one of every piece that it expects, so over the group the sum is 0 (call_piece).
//
// Entering costs some tens of nanoseconds and never waits for anybody: the clock is read by the
// thread that watches.
#pragma once

#include "harness/device.h"

DECLARATIONS_BEGIN

typedef enum CallOp {
    CALL_ALL_GATHER,
    CALL_ALL_TO_ALL,
    CALL_ALL_TO_ALL_V,
    CALL_ALL_REDUCE,
    CALL_REDUCE_SCATTER,
    CALL_BROADCAST,
    CALL_BARRIER,
    CALL_GATHER,
    CALL_GATHER_PIECES,
    CALL_AGREE, // errors: run_agree
    CALL_MAXIMUM,
    CALL_STOP_REQUESTED,
    CALL_SPLIT,        // a new group
    CALL_CLOSE,        // the end of one
    CALL_WINDOW,       // memory that peers may reach is registered, or no longer
    CALL_PEER_BARRIER, // of streams, through peer memory
    CALL_REPLAY,       // of a graph that has collectives in it
    CALL_OPS,
} CallOp;
const char *call_op_name(CallOp op); // Local. "all_gather"

// For tests of the watchdog: what goes wrong at one call of one rank.
typedef enum CallFault {
    CALL_FAULT_NONE,
    CALL_FAULT_SKIP,  // the call is not made
    CALL_FAULT_OTHER, // another is made in its place
    CALL_FAULT_COUNT,
    CALL_FAULT_DTYPE,
    CALL_FAULT_TRAP,  // a kernel traps on the call's stream
    CALL_FAULT_STOP,  // SIGSTOP
    CALL_FAULT_SLEEP, // for ever
    CALL_FAULT_EXIT,
    CALL_FAULT_KILL,
    CALL_FAULTS,
} CallFault;

// The sums over pieces of d, d (s + r) and d s r, where d is the hash and s and r are the ranks of
// sender and receiver in the group: they tell who has a part in every wrong piece.
typedef struct CallPieces {
    uint64_t sum, ends, product;
} CallPieces;

// One collective, as every rank of the group must make it. calls_enter may change op, count or
// dtype: that is a planted fault, and the caller makes the call as it stands afterwards.
typedef struct Call {
    CallOp op;
    DType dtype;
    uint64_t count;
    uint8_t detail; // root of a broadcast, reduction of a sum
    CallPieces pieces;
    CallFault fault;
} Call;
// Local. Adds the two pieces between this rank and another; both ranks of a pair call it.
void call_piece(Call *call, int rank, int other, uint64_t send_bytes, uint64_t receive_bytes);

// A call that was entered, as it is remembered.
enum { CALL_SPAN_BYTES = 40, CALL_NAME_BYTES = 24 };
typedef struct CallEntry {
    uint64_t sequence; // of this rank, all groups; from 1
    uint64_t group_id;
    uint64_t number; // within the group, from 1
    uint64_t count;
    CallPieces pieces;
    const char *phase; // a literal
    uint8_t op, dtype, detail;
    char span[CALL_SPAN_BYTES]; // the innermost open one
} CallEntry;

// Where a group's hashes stand after call `number`.
typedef struct CallPoint {
    uint64_t number, chain, balance; // chain: of all calls so far; balance: sum of their pieces.sum
} CallPoint;

// Kept points: the last call, and the last whose number is a multiple of 64, 512, 4096 ...: ranks
// that stand at different calls still have one in common.
enum { CALL_POINTS = 6 };

typedef struct Calls Calls;
typedef struct CallGroup {
    Calls *calls;
    uint64_t id; // the same on every member, no two groups alike
    char name[CALL_NAME_BYTES];
    int rank, ranks;
    bool open;
    uint64_t splits;              // groups that were made from this one
    CallPoint point[CALL_POINTS]; // point[0]: now
} CallGroup;

enum { CALL_GROUPS_MAX = 48 };

// Local. `fault` is NULL or "KIND@RANK:WHERE", KIND skip, other, count, dtype, trap, stop, sleep,
// exit or kill; WHERE the sequence number of a call of that rank, or a phase or span: its first
// call there. NULL with an error (2) when it cannot be read. Owner: the caller.
Calls *calls_create(int rank, int ranks, const char *fault, Error *error);
void calls_destroy(Calls *calls);
// Local, on every member alike. All ranks of the job; and a group made from another, by colour.
// NULL when nobody watches (parent NULL), when the group has one rank, or CALL_GROUPS_MAX are open.
CallGroup *calls_job(Calls *calls);
CallGroup *calls_split(CallGroup *parent, int colour, int rank, int ranks);
// Local. For messages: "ep", "dp*ep". "#2" and so on is added where another open group has the
// name: the watchdog takes groups of one name on several ranks for the same part of the program.
void calls_name(CallGroup *group, const char *name);
// Local. What a closed group did stays comparable until its place is needed.
void calls_close(CallGroup *group);

// Local, main thread. True: make the call. NULL group (nobody watches): true.
bool calls_enter(CallGroup *group, Call *call);
void calls_leave(CallGroup *group);
// Enqueues(stream), CUDA and not captured. Around an enqueued call: events by which the watching
// thread sees how far the stream is. The device must be named once, at set-up.
void calls_use_device(CallGroup *group, DeviceKind kind, int device_index);
void calls_mark_begin(CallGroup *group, Stream stream);
void calls_mark_end(CallGroup *group, Stream stream);

// ---- for the thread that watches; all Local ----

// What this rank is in: the oldest call that is not over, on the host or on a stream.
typedef struct CallsState {
    int groups;
    CallGroup group[CALL_GROUPS_MAX];
    uint64_t arrived[CALL_GROUPS_MAX]; // calls of the group that host and stream have come to
    CallEntry last, waiting;           // sequence 0: none
    bool reached; // waiting: the stream has come to it (always true on the host)
} CallsState;
void calls_state(Calls *calls, CallsState *state);
// Copies the last entries, at most `entries_max`, oldest first; returns how many.
int calls_copy(Calls *calls, CallEntry *entries, int entries_max);
// Asks the device about the marks. May block when the device's driver does: a thread of its own
// calls it.
void calls_poll_device(Calls *calls);
bool calls_on_device(Calls *calls);

DECLARATIONS_END
