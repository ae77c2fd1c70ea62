// redistribute.h -- from one list of placements to another: a plan of collectives, made once,
// replayed without allocating.
//
// Each step changes one mesh axis by the collective of SEMANTICS.md section 2:
//
//   P    -> S(a)  reduce-scatter     S(a) -> R     all-gather       R -> S  slice, local
//   P    -> R     all-reduce         S(a) -> S(b)  all-to-all       R -> P  local
//   S(a) -> P     local for sum (into zeros) and product (into ones); else through R
//   P(a) -> P(b)  through R          S(a) -> S(a), cut otherwise (strided): all-to-all, or through
//   R
//                                    where a rank would have hundreds of pieces
//
// Order of the steps, the same on every rank:
//   1 slices come first, as soon as what they cut stands: less travels afterwards
//   2 then Partials are combined: those that become shards from left to right, then the others from
//     right to left
//   3 then shards are undone, from the innermost link of a dimension outwards (dtensor.h: right to
//     left, where no shard is strided). Of two plain shards of one dimension the outer one may come
//     and go under the inner one, which then holds a strided shard: S0x2,S0 -> S0x2,R is one
//     all-gather along the second axis
//   4 then Partials are made, left to right
// A Partial that stays is not touched while all Partials of both lists have one operation. With
// several operations their order matters, so all are combined, strictly from right to left, and
// made anew.
//
// Terms are combined in rank order along the axis (kernels/terms.h) on every device, so results do
// not depend on the library. R -> P keeps the value at coordinate 0, with zeros elsewhere (sum) or
// ones (product); avg, max and min keep it everywhere. (PyTorch divides instead, which rounds.)
//
// Unpadded on every device: empty and short shards send what they have. On the CPU an exchange is
// MPI messages between pairs, on CUDA grouped ncclSend and ncclRecv, whose counts may differ,
// instead of NCCL's collectives, whose counts may not. Those would need a padded copy of every
// part, and a reduction in NCCL's own order. An all-gather by pairs sends no more bytes than a ring
// does, and two H200 of one host exchange 327 GB/s by pairs (NCCL 2.28, 1 GiB) against 266 by its
// all-gather. What it costs: n - 1 messages at once instead of n - 1 steps between neighbours.
#pragma once

#include "parallel/dtensor.h"

typedef enum RedistributeKind {
    REDISTRIBUTE_SLICE,
    REDISTRIBUTE_REDUCE_SCATTER,
    REDISTRIBUTE_ALL_REDUCE,
    REDISTRIBUTE_ALL_GATHER,
    REDISTRIBUTE_ALL_TO_ALL,
    REDISTRIBUTE_INTO_PARTIAL, // S -> P, local
    REDISTRIBUTE_MAKE_PARTIAL, // R -> P, local
    REDISTRIBUTE_KINDS,
} RedistributeKind;

typedef struct RedistributeStep {
    RedistributeKind kind;
    int axis;
    Placement from, to;                 // of that axis
    int64_t shape[TENSOR_RANK_MAX];     // this rank's part after the step
    uint64_t in_bytes, out_bytes;       // this rank's part before and after
    uint64_t wire_bytes;                // this rank sends to others
    uint64_t send_bytes, receive_bytes; // packed buffers, 0 where the parts themselves will do
} RedistributeStep;

// A slice, a combination and a removal per axis at most, and what is made at the end.
enum { REDISTRIBUTE_STEPS_MAX = 4 * MESH_AXES_MAX };

typedef struct Redistribute Redistribute;

typedef struct RedistributeSettings {
    const Mesh *mesh;           // stays in use; one that was only parsed is good for plans
    const Tensor *whole;        // dtype and global shape; data is not looked at
    const Placement *from, *to; // [mesh->axes], which passed dtensor_check
    Arena *arena;               // buffers are pushed here; NULL: a plan that cannot run
    DeviceKind device;          // of the arena and of the parts
} RedistributeSettings;

// Local; on CUDA it waits for a small copy. Owner: the caller. The arena's pieces are the caller's
// to release, after destroy.
Redistribute *redistribute_create(const RedistributeSettings *settings);
void redistribute_destroy(Redistribute *plan); // Local
// Collective(the mesh), Enqueues(stream). in: this rank's part in `from`; out: in `to`; apart. May
// be captured in a graph, once it has run outside of one (NCCL connects ranks when they first
// meet).
void redistribute_run(Redistribute *plan, const void *in, void *out, Stream stream);

int redistribute_steps(const Redistribute *plan);                              // Local
const RedistributeStep *redistribute_step(const Redistribute *plan, int step); // Local
uint64_t redistribute_wire_bytes(const Redistribute *plan);   // Local. Of this rank, all steps
uint64_t redistribute_buffer_bytes(const Redistribute *plan); // Local. Pushed onto the arena
const DTensor *redistribute_from(const Redistribute *plan);   // Local
const DTensor *redistribute_to(const Redistribute *plan);     // Local
const char *redistribute_kind_name(RedistributeKind kind);    // Local. "all-gather"
