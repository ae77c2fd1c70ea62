// comm_link.h -- what stands behind a Comm. Only parallel/ and its tests look in here.
//
// MPI carries host memory and every agreement at set-up; NCCL carries device memory, through a
// table of operations that is there only in builds with NCCL. Every collective of either library
// passes comm_enter first: the one place where wire bytes are counted, and where the ledger will
// note what this rank is about to do.
#pragma once

#include <mpi.h>

#include "parallel/comm.h"

typedef enum CommCall {
    COMM_CALL_ALL_GATHER,
    COMM_CALL_ALL_TO_ALL,
    COMM_CALL_ALL_TO_ALL_V,
    COMM_CALL_ALL_REDUCE,
    COMM_CALL_BROADCAST,
    COMM_CALL_BARRIER,
    COMM_CALL_AGREE, // host values at set-up
    COMM_CALLS,
} CommCall;

struct CommLink {
    MPI_Comm mpi;
    MPI_Request *requests; // [2 * ranks]
    uint64_t
        message_bytes_max; // longest single MPI message: counts are int in MPI-3. Tests lower it
    uint64_t wire_bytes;   // sent to others since comm_take_wire_bytes
    uint64_t calls;        // collectives entered so far
    CommCall last_call;
    void *nccl;       // ncclComm_t; NULL for groups of the CPU
    void *nccl_token; // device memory of a barrier's one-word all-reduce
};

// Local. Every collective begins here. `wire_bytes` is what this rank must send to others by the
// shortest algorithm (direct or ring), whatever the library really does. A collective in a captured
// graph is counted when captured.
static inline void comm_enter(Comm comm, CommCall call, uint64_t wire_bytes)
{
    comm.link->calls++;
    comm.link->last_call = call;
    comm.link->wire_bytes += wire_bytes;
}

// The NCCL operations, comm_nccl.c. The address is NULL in builds without NCCL.
enum { COMM_NCCL_ID_BYTES = 128 };
typedef struct CommNccl {
    void (*make_id)(void *id); // Local. [COMM_NCCL_ID_BYTES]
    // Collective(the new group).
    void *(*create)(const void *id, int rank, int ranks);
    // Collective(parent). colour < 0: this rank gets no group (NULL).
    void *(*split)(void *nccl, int colour, int key);
    void (*destroy)(void *nccl);
    void (*version)(char *text, size_t bytes); // Local
    // Local. What is enqueued between the two leaves together at the outermost end.
    void (*group_begin)(void);
    void (*group_end)(void);
    // Enqueues(stream).
    void (*all_gather)(void *nccl, const void *mine, void *all, uint64_t bytes, Stream stream);
    void (*all_to_all)(void *nccl, Comm comm, const void *send, void *receive, uint64_t bytes,
                       Stream stream);
    // Everything but the own part.
    void (*all_to_all_v)(void *nccl, Comm comm, const CommSplit *split, const void *send,
                         void *receive, Stream stream);
    void (*all_reduce)(void *nccl, const void *in, void *out, int64_t count, DType dtype, CommOp op,
                       Stream stream);
    void (*broadcast)(void *nccl, void *data, uint64_t bytes, int root, Stream stream);
} CommNccl;
OPTIONAL_SYMBOL extern const CommNccl comm_nccl;

// Where a rank of a CUDA job stands; gathered from all before NCCL starts.
typedef struct CommPlace {
    char host[RUN_HOST_BYTES];
    char uuid[DEVICE_TEXT_BYTES]; // of the GPU it chose, "" when there is none of that index
    int device_index, visible;    // its GPU, and how many it sees
} CommPlace;
// Local. Error 69 when a rank sees no GPU, when a host runs more ranks than they see GPUs, or when
// two ranks chose one GPU: NCCL would fail late or hang. One GPU visible per rank (srun
// --gpus-per-task) is legal: the UUIDs then differ.
bool comm_check_places(const CommPlace *places, int ranks, Error *error);
