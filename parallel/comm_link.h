// comm_link.h -- what stands behind a Comm. Only parallel/ and its tests look in here.
//
// MPI carries host memory and every agreement at set-up; NCCL carries device memory, through a
// table of operations that is there only in builds with NCCL. Every collective of either library,
// and every barrier of peer memory, stands between comm_begin and comm_end: the one place where
// wire bytes are counted and where the watchdog sees what this rank is about to do.
#pragma once

#include <mpi.h>

#include "harness/calls.h"
#include "parallel/comm.h"

struct CommLink {
    MPI_Comm mpi;
    MPI_Request *requests; // [2 * ranks]
    uint64_t
        message_bytes_max; // longest single MPI message: counts are int in MPI-3. Tests lower it
    uint64_t wire_bytes;   // sent to others since comm_take_wire_bytes
    CallGroup *group;      // NULL: nobody watches
    int groups_open;       // comm_group_begin without its end
    bool grouped;          // a call was entered since then
    double stream_wait_s;  // a barrier of peer memory gives up after this long
    void *nccl;            // ncclComm_t; NULL for groups of the CPU
    void *nccl_token;      // device memory of a barrier's one-word all-reduce
};

// Local. `wire_bytes` is what this rank must send to others by the shortest algorithm (direct or
// ring), whatever the library really does. A collective in a captured graph is counted when
// captured. False: a planted fault keeps the call from being made; otherwise it is made as `call`
// stands afterwards, and comm_end follows it.
bool comm_begin(Comm comm, Call *call, uint64_t wire_bytes, Stream stream);
void comm_end(Comm comm, Stream stream);
// Enqueues(stream). A kernel that traps; builds with CUDA.
OPTIONAL_SYMBOL void comm_trap_cuda(Stream stream);

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
