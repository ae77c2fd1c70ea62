// fsdp.h -- parameters that live divided over ranks and are put together for the moment of use.
//
// A unit is what is gathered together: a block, the embedding, the head. Its parameters form one
// bucket per group of ranks that divides them (dense parameters, experts). Each parameter is cut
// along its rows by the uneven shard rule (shard.h); a rank's shards, padded to the size of the
// first, stand one after the other in its part of the bucket (SEMANTICS.md section 3):
//
//   shards  f32: values and what the optimizer adds, always there, and gradients, from their
//           reduction to the optimizer's step, in room that the caller may lend
//   gather  cast to the parameter type, all-gather of the bucket, rows put in order
//   reduce  rows of the f32 gradient padded and cast to the wire type, reduce-scatter in rank order
//           (ordered.h) into the shard's gradient; then an all-reduce over the replicas
//
// Where ranks divide every parameter of a bucket evenly, each is gathered straight into its place,
// and in f32 reduced from where its gradient was made: nothing is put in order or packed. Where one
// rank holds the whole bucket, that place is the shard itself, unless micro-batches are added.
//
// Memory of gathered values: one unit in use and one on its way, never more: the peak is at most
// the shards plus two gathered units (fsdp_create asserts it; with reshard off all units stay).
// Gathers run on a stream of their own, ahead of use; reductions on another.
#pragma once

#include "harness/arena.h"
#include "parallel/comm.h"

typedef struct FsdpParameter {
    int unit, group;
    int64_t outer;         // blocks, each divided along its rows; 1 = one matrix
    int64_t rows, columns; // of a block: what the group divides
    int64_t room_rows;     // rows of the gathered copy, >= rows; those beyond are zeros (outer 1)
    bool joined;           // stands directly behind the parameter before it in the gathered copy
    bool partial;          // the gradient is a term of a sum over the `partial` ranks
} FsdpParameter;

int64_t fsdp_elements(const FsdpParameter *parameter); // Local. Without room

enum { FSDP_GROUPS = 2, FSDP_SLOTS = 2 };
typedef struct FsdpGroup {
    Comm shard, replica; // divide the parameters; hold the same shards
} FsdpGroup;

enum { FSDP_RESHARD_NO = 0, FSDP_RESHARD_YES = 1 };
typedef struct FsdpSettings {
    int units, parameters;
    const FsdpParameter *parameter; // [parameters] by rising unit; stays the caller's
    FsdpGroup group[FSDP_GROUPS];
    Comm partial;
    DType param_dtype, wire_dtype; // gathered values; gradients on their way
    int reshard;      // after the forward: FSDP_RESHARD_*, or K > 1: over K neighbours of group 0
    Comm kept;        // those neighbours, with reshard K
    bool accumulates; // gradients of several micro-batches are added before they travel
    DeviceKind device;
    Arena *arena;
    // Room for the shards' gradients [plan.flat], or NULL: it is pushed. A bucket's part is the
    // caller's until the unit's backward, if made_in_shard, or its last micro-batch's fsdp_reduce.
    float *gradients;
} FsdpSettings;

// Where everything stands; made from numbers alone (Comm.ranks), so that it can be asked before
// anything runs. Elements, unless said otherwise.
typedef struct FsdpBucket {
    int64_t shard;        // this rank's part of the bucket, padding included
    int64_t flat;         // where it begins in the flat arrays of all shards
    int64_t staged_bytes; // where its gathered form begins in the staging buffer
    bool even;            // every rank holds whole rows of each parameter, equally many
    bool made_in_shard;   // the backward writes gradients where their shards stand
} FsdpBucket;
typedef struct FsdpUnit {
    FsdpBucket bucket[FSDP_GROUPS];
    int first, count;         // parameters
    bool in_place;            // all buckets are even: gathered where it is used
    int64_t full;             // gathered copy, gaps and room included
    int64_t full_first;       // where it begins when all units stay
    int64_t kept, kept_first; // with reshard K: this rank's piece
    uint64_t staged_bytes;
} FsdpUnit;
typedef struct FsdpPlace {
    int64_t shard;           // in its bucket's part
    int64_t full;            // in its unit's gathered copy
    int64_t shard_rows;      // padded
    int64_t first_row, rows; // this rank's
} FsdpPlace;
typedef struct FsdpPlan {
    int64_t flat, full, kept; // sums over units
    int64_t full_max;         // largest unit
    int64_t full_made_max;    // largest unit with gradients that are not made in shards
    int64_t cast_max;         // largest bucket's part that is gathered by way of staging
    uint64_t staged_bytes_max, send_bytes_max;
    FsdpUnit *unit;   // [units]
    FsdpPlace *place; // [parameters]
} FsdpPlan;
// Local. Whether its gradients travel from where they are made.
bool fsdp_reduces_in_place(const FsdpSettings *settings, const FsdpBucket *bucket);
// Local. Of a rank's shard, padding included.
int64_t fsdp_shard_elements(const FsdpParameter *parameter, const FsdpPlace *place);
FsdpPlan fsdp_plan_create(const FsdpSettings *settings); // Local
void fsdp_plan_destroy(FsdpPlan *plan);                  // Local

// Bytes this rank sends per call of each kind, and what it holds.
typedef struct FsdpTraffic {
    uint64_t gather_bytes[FSDP_GROUPS]; // of the unit, forward
    uint64_t regather_bytes;            // backward after a reshard K, over `kept`
    uint64_t scatter_bytes[FSDP_GROUPS], replica_bytes[FSDP_GROUPS];
    uint64_t partial_bytes;
    int partial_calls;
} FsdpTraffic;
FsdpTraffic fsdp_traffic(const FsdpSettings *settings, const FsdpPlan *plan, int unit); // Local
typedef struct FsdpMemory {
    uint64_t shard_bytes;    // values
    uint64_t gathered_bytes; // in use and on their way
    uint64_t largest_bytes;  // one gathered unit, padding included
    // The unit in use and the next one, or, with reshard off, all units and what is being staged.
    uint64_t slot_bytes[FSDP_SLOTS];
    // Of whole parameters, where they are not made in shards: two units, or all that accumulate.
    uint64_t full_gradient_bytes;
    uint64_t gradient_bytes; // pushed: those, and the shards' where settings->gradients is NULL
    uint64_t send_bytes, scratch_bytes, cast_bytes; // on their way
} FsdpMemory;
FsdpMemory fsdp_memory(const FsdpSettings *settings, const FsdpPlan *plan); // Local

// Where time goes, in seconds since the last call: streams at work, and the caller's stream
// standing still for them. Communication is hidden as far as the second is less than the first.
typedef struct FsdpTimes {
    double gather_s, reduce_s;
    double gather_wait_s, reduce_wait_s;
} FsdpTimes;

typedef struct Fsdp Fsdp;
Fsdp *fsdp_create(const FsdpSettings *settings); // Local. Owner: the caller
void fsdp_destroy(Fsdp *fsdp);                   // Local
const FsdpPlan *fsdp_plan(const Fsdp *fsdp);     // Local
void fsdp_measure(Fsdp *fsdp);                   // Local. From now on, for fsdp_take_times
FsdpTimes fsdp_take_times(Fsdp *fsdp);           // Waits

// Local. All shards of this rank as flat arrays [plan->flat], padding is zero: for the optimizer.
float *fsdp_values(const Fsdp *fsdp);
float *fsdp_gradients(const Fsdp *fsdp);
// Local. One parameter's shard in them: [rows, columns] from first_row on.
int64_t fsdp_shard_offset(const Fsdp *fsdp, int parameter);

// All below: Collective(the groups), Enqueues(stream), in the same order on every rank.
void fsdp_step_begin(Fsdp *fsdp); // values may have changed
void fsdp_prefetch(Fsdp *fsdp, int unit, bool backward, Stream stream);
void fsdp_use(Fsdp *fsdp, int unit, bool backward, Stream stream);
void fsdp_release(Fsdp *fsdp, int unit, Stream stream); // after the unit's forward
// Local. Valid from fsdp_use to the next: [room_rows, columns].
void *fsdp_value(const Fsdp *fsdp, int parameter);
// Local. Where the unit's backward writes: f32 [rows, columns]; from use to fsdp_reduce.
float *fsdp_gradient(const Fsdp *fsdp, int parameter);
// After the unit's backward; `last` micro-batch: the gradient travels and its sum replaces the
// shards' gradients, otherwise it stays.
void fsdp_reduce(Fsdp *fsdp, int unit, bool last, Stream stream);
void fsdp_step_end(Fsdp *fsdp, Stream stream); // the stream waits for all reductions
