// dtensor.h -- a tensor spread over a mesh: the local part, the mesh, one placement per axis.
//
// Which part of a dimension a rank holds. Each axis that shards it is one link of a chain, applied
// one after the other to what the links before have left: the uneven shard rule (shard.h), so parts
// may be short or empty. Links stand in mesh order, left to right. A strided axis, S0x4, comes
// instead after the axes to its right when these make exactly 4 shards of the dimension: they cut
// first, it cuts what each of them holds. That is FSDP over tensor parallel. Where they do not make
// 4 shards (they have been gathered, say), the axis stays at its place and divides as if they had:
// what is there is cut in 4 pieces, each piece is divided over the axis, and a rank's parts of the
// pieces stand one after the other. Gathering one tensor parallel axis of that extent thus leads
// from the first layout to the second. 8 rows over a 2 x 2 mesh:
//
//   S0,S0     (0,0) 0 1   (0,1) 2 3   (1,0) 4 5   (1,1) 6 7
//   S0x2,S0   (0,0) 0 1   (0,1) 4 5   (1,0) 2 3   (1,1) 6 7
//   S0x2,R    (0,*) 0 1 4 5           (1,*) 2 3 6 7
//
// All indices are 64 bits; nothing here touches the tensor's memory.
#pragma once

#include "harness/tensor.h"
#include "parallel/mesh.h"
#include "parallel/placement.h"

// One division of a dimension: cut into pieces, each piece divided over the ranks of an axis.
typedef struct ShardLink {
    int axis, ranks;
    int64_t pieces; // 1 = plain
} ShardLink;

// How a dimension is divided: outermost link first. Axes of one rank make no link.
typedef struct ShardChain {
    int links;
    ShardLink link[MESH_AXES_MAX];
} ShardChain;

// A run of consecutive indices that one coordinate of a link holds.
typedef struct ShardRun {
    int64_t whole_first, part_first, count;
} ShardRun;

typedef struct DTensor {
    Tensor local; // [local shape]; data may be NULL: the maps need none
    const Mesh *mesh;
    int64_t shape[TENSOR_RANK_MAX]; // global
    Placement placement[MESH_AXES_MAX];
} DTensor;

// Local. Error 2 when a placement shards a dimension that is not there, the whole tensor passes
// 2^63 bytes, a type below a byte is sharded, or a type has no arithmetic for Partial.
bool dtensor_check(const Mesh *mesh, const Tensor *whole, const Placement *placements,
                   Error *error);
// Local. This rank's part of a tensor of the whole's dtype and shape; local.data is NULL. The
// request must have passed dtensor_check.
DTensor dtensor_make(const Mesh *mesh, const Tensor *whole, const Placement *placements);
// Local. The local shape of the rank at coord [mesh->axes].
void dtensor_local_shape(const DTensor *tensor, const int *coord, int64_t *shape);
// Local. Global index of the first local element along dim; for an empty part where it would stand.
int64_t dtensor_offset(const DTensor *tensor, const int *coord, int dim);
// Local. The maps along one dimension. Global of local; local of global, -1 if the rank at coord
// has it not.
int64_t dtensor_global_index(const DTensor *tensor, const int *coord, int dim, int64_t local);
int64_t dtensor_local_index(const DTensor *tensor, const int *coord, int dim, int64_t global);
// Local. Writes into owner[axis] where along each axis that shards dim the element lives; the other
// axes are left as they are.
void dtensor_owner(const DTensor *tensor, int dim, int64_t global, int *owner);

// Local. The chain of a dimension, and one link of it over a dimension of `whole` indices.
ShardChain shard_chain(const Mesh *mesh, const Placement *placements, int dim);
int64_t shard_link_count(const ShardLink *link, int64_t whole, int coord);
int64_t shard_link_whole_index(const ShardLink *link, int64_t whole, int coord, int64_t part);
int64_t shard_link_part_index(const ShardLink *link, int64_t whole, int64_t index, int *coord);
// Local. Run number `run` (0 .. link->pieces - 1) of a coordinate; may be empty.
ShardRun shard_link_run(const ShardLink *link, int64_t whole, int coord, int64_t run);
