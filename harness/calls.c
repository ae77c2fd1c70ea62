// calls.c -- the ring, the hashes, the marks on streams, and the one place where faults are
// planted.
//
// The main thread writes; the thread that watches copies out under the same mutex, for microseconds
// at a time. Marks are the exception: a slot's sequence number is atomic, 0 while the main thread
// records its events, so a thread that polls the device never holds a lock.
#include "harness/calls.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RING_ENTRIES = 8192, MARKS = 256, WHERE_BYTES = 64 };
enum { FAULT_EXIT_CODE = 42 };
static const uint64_t POINT_SPACING[CALL_POINTS] = {1, 64, 512, 4096, 32768, 262144};

// An enqueued call: its stream has come to it (reached), has passed it (sequence 0).
typedef struct Mark {
    _Atomic uint64_t sequence;
    atomic_bool reached;
    Event begin, end;
} Mark;

struct Calls {
    int rank, ranks;
    pthread_mutex_t mutex; // ring, groups
    CallEntry *ring;       // [RING_ENTRIES], entry of sequence s at s % RING_ENTRIES
    CallGroup group[CALL_GROUPS_MAX];
    int groups;
    uint64_t sequence;     // calls entered
    _Atomic uint64_t left; // of these, returned to the caller
    CallFault fault;       // still to be planted
    uint64_t fault_number; // at this call; 0: at the first within fault_where
    char fault_where[WHERE_BYTES];
    Mark *mark; // [MARKS], CUDA only
    DeviceKind device;
    int device_index;
};

static const char *const op_names[CALL_OPS] = {
    [CALL_ALL_GATHER] = "all_gather",
    [CALL_ALL_TO_ALL] = "all_to_all",
    [CALL_ALL_TO_ALL_V] = "all_to_all_v",
    [CALL_ALL_REDUCE] = "all_reduce",
    [CALL_REDUCE_SCATTER] = "reduce_scatter",
    [CALL_BROADCAST] = "broadcast",
    [CALL_BARRIER] = "barrier",
    [CALL_GATHER] = "gather",
    [CALL_GATHER_PIECES] = "gather_pieces",
    [CALL_AGREE] = "agree",
    [CALL_MAXIMUM] = "maximum",
    [CALL_STOP_REQUESTED] = "stop_requested",
    [CALL_SPLIT] = "split",
    [CALL_CLOSE] = "close",
    [CALL_WINDOW] = "window",
    [CALL_PEER_BARRIER] = "peer_barrier",
    [CALL_REPLAY] = "graph_replay",
};

static const char *const fault_names[CALL_FAULTS] = {
    [CALL_FAULT_NONE] = "none",   [CALL_FAULT_SKIP] = "skip",   [CALL_FAULT_OTHER] = "other",
    [CALL_FAULT_COUNT] = "count", [CALL_FAULT_DTYPE] = "dtype", [CALL_FAULT_TRAP] = "trap",
    [CALL_FAULT_STOP] = "stop",   [CALL_FAULT_SLEEP] = "sleep", [CALL_FAULT_EXIT] = "exit",
    [CALL_FAULT_KILL] = "kill",
};

const char *call_op_name(CallOp op)
{
    return op < CALL_OPS ? op_names[op] : "?";
}

// The finaliser of splitmix64 (Steele, Lea, Flood 2014): every bit of the result hangs on every bit
// of both words.
static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t z = a * 0x9E3779B97F4A7C15u + b;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static uint64_t hash_piece(int sender, int receiver, uint64_t bytes)
{
    return mix(mix((uint64_t)sender + 1, (uint64_t)receiver + 1), bytes);
}

static void add_piece(CallPieces *pieces, int rank, int other, uint64_t difference)
{
    pieces->sum += difference;
    pieces->ends += difference * (uint64_t)(rank + other);
    pieces->product += difference * (uint64_t)rank * (uint64_t)other;
}

void call_piece(Call *call, int rank, int other, uint64_t send_bytes, uint64_t receive_bytes)
{
    uint64_t expected = hash_piece(other, rank, receive_bytes);
    add_piece(&call->pieces, rank, other, hash_piece(rank, other, send_bytes) - expected);
}

// ---- groups ----

static bool parse_fault(Calls *calls, const char *text, Error *error)
{
    const char *at = strchr(text, '@'), *colon = at ? strchr(at, ':') : NULL;
    char *end = NULL;
    long rank = at ? strtol(at + 1, &end, 10) : -1;
    for (int kind = CALL_FAULT_NONE + 1; kind < CALL_FAULTS; kind++)
        if (at && strlen(fault_names[kind]) == (size_t)(at - text) &&
            strncmp(text, fault_names[kind], (size_t)(at - text)) == 0)
            calls->fault = (CallFault)kind;
    bool good = calls->fault && colon && end == colon && end != at + 1 && rank >= 0 &&
                rank < calls->ranks && colon[1] && strlen(colon + 1) < WHERE_BYTES;
    if (!good)
        return error_set(error, EXIT_CODE_USAGE,
                         "write skip, other, count, dtype, trap, stop, sleep, exit or kill, '@', a "
                         "rank, ':', a call's number or a phase or span",
                         "--fault '%.100s' is not KIND@RANK:WHERE", text);
    snprintf(calls->fault_where, sizeof(calls->fault_where), "%s", colon + 1);
    calls->fault_number = strtoull(colon + 1, &end, 10);
    if (*end)
        calls->fault_number = 0;
    if (rank != calls->rank)
        calls->fault = CALL_FAULT_NONE;
    return true;
}

Calls *calls_create(int rank, int ranks, const char *fault, Error *error)
{
    Calls *calls = calloc(1, sizeof(*calls));
    CHECK_RULE(calls != NULL);
    calls->rank = rank;
    calls->ranks = ranks;
    calls->ring = calloc(RING_ENTRIES, sizeof(*calls->ring));
    CHECK_RULE(calls->ring != NULL);
    pthread_mutex_init(&calls->mutex, NULL);
    if (fault && !parse_fault(calls, fault, error)) {
        calls_destroy(calls);
        return NULL;
    }
    return calls;
}

void calls_destroy(Calls *calls)
{
    if (!calls)
        return;
    for (int i = 0; calls->mark && i < MARKS; i++) {
        event_destroy(&calls->mark[i].begin);
        event_destroy(&calls->mark[i].end);
    }
    pthread_mutex_destroy(&calls->mutex);
    free(calls->mark);
    free(calls->ring);
    free(calls);
}

// A new row; when there is none, the oldest closed one.
static CallGroup *open_group(Calls *calls, uint64_t id, int rank, int ranks)
{
    int row = calls->groups;
    if (row == CALL_GROUPS_MAX)
        for (row = 0; row < CALL_GROUPS_MAX && calls->group[row].open;)
            row++;
    if (row == CALL_GROUPS_MAX) {
        check_warn("more than %d groups of ranks are open: the watchdog does not see the calls of "
                   "the others",
                   CALL_GROUPS_MAX);
        return NULL;
    }
    CallGroup *group = &calls->group[row];
    pthread_mutex_lock(&calls->mutex);
    *group = (CallGroup){.calls = calls, .id = id, .rank = rank, .ranks = ranks, .open = true};
    calls->groups = row == calls->groups ? row + 1 : calls->groups;
    pthread_mutex_unlock(&calls->mutex);
    return group;
}

CallGroup *calls_job(Calls *calls)
{
    CallGroup *job = open_group(calls, mix(0, 0), calls->rank, calls->ranks);
    calls_name(job, "job");
    return job;
}

CallGroup *calls_split(CallGroup *parent, int colour, int rank, int ranks)
{
    if (!parent)
        return NULL;
    pthread_mutex_lock(&parent->calls->mutex);
    uint64_t turn = ++parent->splits;
    pthread_mutex_unlock(&parent->calls->mutex);
    if (ranks == 1)
        return NULL; // but the turn counts on every member of the parent
    uint64_t id = mix(mix(parent->id, turn), (uint64_t)colour);
    CallGroup *group = open_group(parent->calls, id, rank, ranks);
    calls_name(group, "group");
    return group;
}

static bool name_is_taken(const CallGroup *group, const char *name)
{
    const Calls *calls = group->calls;
    for (int row = 0; row < calls->groups; row++) {
        const CallGroup *other = &calls->group[row];
        if (other != group && other->open && strcmp(other->name, name) == 0)
            return true;
    }
    return false;
}

// All members open and name their groups in the same order, so they count the same namesakes.
void calls_name(CallGroup *group, const char *name)
{
    if (!group)
        return;
    char unique[CALL_NAME_BYTES];
    int namesakes = 1;
    snprintf(unique, sizeof(unique), "%s", name);
    while (name_is_taken(group, unique))
        snprintf(unique, sizeof(unique), "%.18s#%d", name, ++namesakes % 1000);
    pthread_mutex_lock(&group->calls->mutex);
    memcpy(group->name, unique, sizeof(group->name));
    pthread_mutex_unlock(&group->calls->mutex);
}

void calls_close(CallGroup *group)
{
    if (!group)
        return;
    pthread_mutex_lock(&group->calls->mutex);
    group->open = false;
    pthread_mutex_unlock(&group->calls->mutex);
}

// ---- entering ----

static DType other_dtype(DType dtype)
{
    static const DType pairs[][2] = {{DTYPE_F32, DTYPE_I32},
                                     {DTYPE_F64, DTYPE_I64},
                                     {DTYPE_BF16, DTYPE_F16},
                                     {DTYPE_U8, DTYPE_I8}};
    for (size_t i = 0; i < COUNT_OF(pairs); i++)
        for (int side = 0; side < 2; side++)
            if (pairs[i][side] == dtype)
                return pairs[i][1 - side];
    return dtype == DTYPE_F32 ? DTYPE_I32 : DTYPE_F32;
}

static bool fault_is_due(const Calls *calls)
{
    const CheckContext *context = check_context();
    if (calls->fault_number > 0)
        return calls->fault_number == calls->sequence + 1;
    return strcmp(calls->fault_where, context->span) == 0 ||
           (context->phase && strcmp(calls->fault_where, context->phase) == 0);
}

// False: the call is not to be made.
static bool plant_fault(Calls *calls, const CallGroup *group, Call *call)
{
    call->fault = calls->fault;
    calls->fault = CALL_FAULT_NONE;
    switch (call->fault) {
    case CALL_FAULT_SKIP:
    case CALL_FAULT_OTHER:
        return false;
    case CALL_FAULT_COUNT: // less, so that no buffer is too small
        if (call->op != CALL_ALL_TO_ALL_V && call->op != CALL_GATHER_PIECES)
            call->count = call->count > 0 ? call->count / 2 : 1;
        for (int other = 0; other < group->ranks; other++)
            if (other != group->rank)
                add_piece(&call->pieces, group->rank, other, (uint64_t)other + 1);
        return true;
    case CALL_FAULT_DTYPE:
        call->dtype = other_dtype(call->dtype);
        return true;
    case CALL_FAULT_STOP:
        raise(SIGSTOP);
        return true;
    case CALL_FAULT_SLEEP:
        for (;;)
            pause();
    case CALL_FAULT_EXIT:
        _exit(FAULT_EXIT_CODE);
    case CALL_FAULT_KILL:
        raise(SIGKILL);
        return true;
    default:
        return true; // a trap is the business of who has the stream
    }
}

static void advance(CallGroup *group, const Call *call)
{
    CallPoint *now = &group->point[0];
    uint64_t what = (uint64_t)call->detail << 16 | (uint64_t)call->op << 8 | (uint64_t)call->dtype;
    now->number++;
    now->chain = mix(mix(now->chain, what), call->count);
    now->balance += call->pieces.sum;
    for (int i = 1; i < CALL_POINTS && now->number % POINT_SPACING[i] == 0; i++)
        group->point[i] = *now;
}

bool calls_enter(CallGroup *group, Call *call)
{
    if (!group)
        return true;
    Calls *calls = group->calls;
    if (calls->fault && fault_is_due(calls) && !plant_fault(calls, group, call))
        return false;
    const CheckContext *context = check_context();
    pthread_mutex_lock(&calls->mutex);
    advance(group, call);
    calls->sequence++;
    CallEntry *entry = &calls->ring[calls->sequence % RING_ENTRIES];
    entry->sequence = calls->sequence;
    entry->group_id = group->id;
    entry->number = group->point[0].number;
    entry->count = call->count;
    entry->pieces = call->pieces;
    entry->phase = context->phase;
    entry->op = (uint8_t)call->op;
    entry->dtype = (uint8_t)call->dtype;
    entry->detail = call->detail;
    memcpy(entry->span, context->span, CALL_SPAN_BYTES - 1);
    pthread_mutex_unlock(&calls->mutex);
    return true;
}

void calls_leave(CallGroup *group)
{
    if (group)
        atomic_store_explicit(&group->calls->left, group->calls->sequence, memory_order_release);
}

// ---- marks ----

void calls_use_device(CallGroup *group, DeviceKind kind, int device_index)
{
    if (!group || group->calls->mark)
        return;
    Calls *calls = group->calls;
    calls->device = kind;
    calls->device_index = device_index;
    Mark *mark = calloc(MARKS, sizeof(*mark));
    CHECK_RULE(mark != NULL);
    for (int i = 0; i < MARKS; i++) {
        mark[i].begin = event_create(kind);
        mark[i].end = event_create(kind);
    }
    pthread_mutex_lock(&calls->mutex);
    calls->mark = mark;
    pthread_mutex_unlock(&calls->mutex);
}

static Mark *mark_of(const Calls *calls)
{
    return &calls->mark[calls->sequence % MARKS];
}

void calls_mark_begin(CallGroup *group, Stream stream)
{
    if (!group || !group->calls->mark)
        return;
    Mark *mark = mark_of(group->calls);
    atomic_store(&mark->sequence, 0);
    event_record(&mark->begin, stream);
}

void calls_mark_end(CallGroup *group, Stream stream)
{
    if (!group || !group->calls->mark)
        return;
    Mark *mark = mark_of(group->calls);
    event_record(&mark->end, stream);
    atomic_store(&mark->reached, false);
    atomic_store(&mark->sequence, group->calls->sequence);
}

bool calls_on_device(Calls *calls)
{
    pthread_mutex_lock(&calls->mutex);
    bool found = calls->mark != NULL;
    pthread_mutex_unlock(&calls->mutex);
    return found;
}

void calls_poll_device(Calls *calls)
{
    device_select(calls->device, calls->device_index);
    for (int i = 0; i < MARKS; i++) {
        Mark *mark = &calls->mark[i];
        uint64_t sequence = atomic_load(&mark->sequence);
        if (sequence == 0)
            continue;
        if (event_done(&mark->end))
            atomic_compare_exchange_strong(&mark->sequence, &sequence, 0); // not a newer call's
        else if (!atomic_load(&mark->reached) && event_done(&mark->begin))
            atomic_store(&mark->reached, true);
    }
}

// ---- for the thread that watches ----

static const CallEntry *entry_of(const Calls *calls, uint64_t sequence)
{
    return &calls->ring[sequence % RING_ENTRIES];
}

static int row_of(const CallsState *state, uint64_t group_id)
{
    int row = state->groups - 1;
    while (row >= 0 && state->group[row].id != group_id)
        row--;
    return row;
}

// Enqueued calls that are not over. This rank waits in the oldest of them that its stream has come
// to (there may be several streams); if there is none, its streams are before the oldest of all.
static void look_at_marks(const Calls *calls, CallsState *state)
{
    const uint64_t on_host = state->waiting.sequence ? state->waiting.sequence : UINT64_MAX;
    uint64_t oldest = UINT64_MAX, oldest_reached = on_host;
    for (int i = 0; i < MARKS; i++) {
        uint64_t open = atomic_load(&calls->mark[i].sequence);
        if (open == 0 || open >= on_host)
            continue;
        bool reached = atomic_load(&calls->mark[i].reached);
        oldest = open < oldest ? open : oldest;
        oldest_reached = reached && open < oldest_reached ? open : oldest_reached;
        int row = reached ? -1 : row_of(state, entry_of(calls, open)->group_id);
        if (row >= 0)
            state->arrived[row]--;
    }
    state->reached = oldest_reached != UINT64_MAX || oldest == UINT64_MAX;
    uint64_t waiting = oldest_reached != UINT64_MAX ? oldest_reached : oldest;
    if (waiting != UINT64_MAX)
        state->waiting = *entry_of(calls, waiting);
}

void calls_state(Calls *calls, CallsState *state)
{
    pthread_mutex_lock(&calls->mutex);
    *state = (CallsState){.groups = calls->groups, .reached = true};
    memcpy(state->group, calls->group, sizeof(CallGroup) * (size_t)calls->groups);
    for (int row = 0; row < calls->groups; row++)
        state->arrived[row] = calls->group[row].point[0].number;
    state->last = *entry_of(calls, calls->sequence);
    if (atomic_load_explicit(&calls->left, memory_order_acquire) < calls->sequence)
        state->waiting = state->last;
    if (calls->mark)
        look_at_marks(calls, state);
    pthread_mutex_unlock(&calls->mutex);
}

int calls_copy(Calls *calls, CallEntry *entries, int entries_max)
{
    pthread_mutex_lock(&calls->mutex);
    uint64_t count = calls->sequence < RING_ENTRIES ? calls->sequence : RING_ENTRIES;
    count = count < (uint64_t)entries_max ? count : (uint64_t)entries_max;
    for (uint64_t i = 0; i < count; i++)
        entries[i] = *entry_of(calls, calls->sequence - count + 1 + i);
    pthread_mutex_unlock(&calls->mutex);
    return (int)count;
}
