// placement.h -- how one mesh axis holds a tensor: a shard of it, all of it, or a term of it.
//
// As text, one word per mesh axis from left to right with commas between:
//
//   R                         every rank of the axis has all of it
//   S0, S1, ...               the axis divides that dimension by the uneven shard rule (shard.h)
//   S0x4                      the same, after axes to its right have cut the dimension into 4
//   pieces
//                             (dtensor.h has the exact rule): FSDP over tensor parallel on one
//                             dimension, PyTorch's _StridedShard(0, split_factor=4)
//   P, P(sum), P(avg), P(product), P(max), P(min)
//                             the value is the ranks' tensors combined; P alone is the sum
#pragma once

#include "parallel/comm.h"
#include "parallel/mesh.h"

typedef enum PlacementKind {
    PLACEMENT_REPLICATE,
    PLACEMENT_SHARD,
    PLACEMENT_PARTIAL,
} PlacementKind;

enum { PLACEMENT_SPLIT_MAX = 999999, PLACEMENT_TEXT_BYTES = 24 };

typedef struct Placement {
    PlacementKind kind;
    int dim;          // SHARD only
    int split_factor; // SHARD only: 1 = plain, more = strided
    CommOp op;        // PARTIAL only
} Placement;

Placement placement_replicate(void);                          // Local
Placement placement_shard(int dim);                           // Local
Placement placement_strided(int dim, int split_factor);       // Local
Placement placement_partial(CommOp op);                       // Local
bool placement_equal(const Placement *a, const Placement *b); // Local

const char *placement_op_name(CommOp op); // Local. "sum", "avg", "product", "max", "min"
// Local. Writes "S0x4" into text [PLACEMENT_TEXT_BYTES is enough] and returns it.
const char *placement_format(const Placement *placement, char *text, size_t bytes);
// Local. Reads one word for each axis of the mesh. Error 2 names the word, its axis and what is
// near. `what` begins the message: "--from".
bool placement_parse(const char *text, const char *what, const Mesh *mesh, Placement *placements,
                     Error *error);
