// comm.h -- a group of ranks that communicate: MPI for host memory, NCCL for device memory. The
// only caller of NCCL.
//
// Collectives choose their library by the stream's device. On the CPU they are done on return; on
// CUDA they are enqueued and may be captured into a graph. Every rank of the group makes the same
// calls in the same order with the same sizes. Order of sums: comm_all_reduce_ordered adds in rank
// order on every device; comm_all_reduce leaves the order to the library (two ranks: the same bits,
// since a two-term sum commutes).
#pragma once

#include "harness/arena.h"
#include "harness/run.h"

typedef struct CommLink CommLink; // MPI and NCCL communicators
typedef struct Comm {
    int rank, ranks;
    CommLink *link; // NULL for a group of one
} Comm;

typedef enum CommOp { COMM_SUM, COMM_AVG, COMM_PRODUCT, COMM_MAX, COMM_MIN } CommOp;

// Collective(all ranks). The whole job on devices of this kind; NCCL is started for CUDA with more
// than one rank, after the guards: two ranks on one GPU, more ranks on a host than it has GPUs (69,
// both named).
Comm comm_create_world(const Run *run, DeviceKind kind, int device_index);
// Collective(parent). Ranks with the same colour form a group, ordered by key.
Comm comm_split(Comm parent, int colour, int key);
void comm_name(Comm comm, const char *name);  // Local. For the watchdog's messages: "ep", "dp*ep"
void comm_destroy(Comm *comm);                // Collective(comm)
void comm_versions(char *text, size_t bytes); // Local. MPI and NCCL, for doctor and provenance
// Local. Bytes this rank has sent to others (never to itself) since the last call, all collectives
// of this group, as the shortest algorithm sends them; one captured in a graph counts when
// captured.
uint64_t comm_take_wire_bytes(Comm comm);

// Collective(comm), Enqueues(stream). Sizes in bytes; buffers in the memory of the stream's device,
// not overlapping unless said so.
// all: [ranks][bytes]; mine may be its own part of it.
void comm_all_gather(Comm comm, const void *mine, void *all, uint64_t bytes, Stream stream);
// [ranks][bytes] both
void comm_all_to_all(Comm comm, const void *send, void *receive, uint64_t bytes, Stream stream);
// The collectives enqueued between begin and end leave as one launch of NCCL: none may need what
// another of them brings. On the CPU each is done on return, as always. Groups may nest.
void comm_group_begin(Comm comm, Stream stream);
void comm_group_end(Comm comm, Stream stream);
// What this rank exchanges with each rank of the group, in bytes: how much, and where in the
// buffers. Host values on every device, read before the call returns. Nothing travels where the
// count is 0; the own part is copied, unless its counts are 0 as well.
typedef struct CommSplit {
    const uint64_t *send_bytes, *send_offsets, *receive_bytes, *receive_offsets; // [ranks]
} CommSplit;
void comm_all_to_all_v(Comm comm, const CommSplit *split, const void *send, void *receive,
                       Stream stream);
// in may be out; DTYPE_F32, DTYPE_BF16 (CUDA), DTYPE_I32, DTYPE_I64, DTYPE_F64
void comm_all_reduce(Comm comm, const void *in, void *out, int64_t count, DType dtype, CommOp op,
                     Stream stream);
void comm_broadcast(Comm comm, void *data, uint64_t bytes, int root, Stream stream);
void comm_barrier(Comm comm, Stream stream); // Waits on the CPU; enqueued on CUDA

// Sum over ranks of f32 partials, added in rank order: an all-to-all of shards, an ordered sum, an
// all-gather. `scratch` holds comm_ordered_scratch_bytes(comm, count). out may be in.
uint64_t comm_ordered_scratch_bytes(Comm comm, int64_t count); // Local
void comm_all_reduce_ordered(Comm comm, const float *in, float *out, int64_t count, void *scratch,
                             Stream stream);
// Collective(comm), Enqueues(stream). Launches a graph in which collectives of this group, or of
// parts of it, were captured.
void comm_replay(Comm comm, const Graph *graph, Stream stream);
// Host values on every rank, whatever the device: small agreements at set-up. Collective(comm),
// Waits
int64_t comm_maximum(Comm comm, int64_t value);
void comm_gather_host(Comm comm, const void *mine, void *all, uint64_t bytes); // an all-gather
