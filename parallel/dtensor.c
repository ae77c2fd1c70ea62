// The index arithmetic of sharded tensors. A strided link keeps a closed form because pieces follow
// the uneven shard rule too: all have c = ceil(n / pieces) indices, then at most one is shorter,
// then all are empty, so what stands before the parts of piece j is j full parts.
//
// Shards and strided shards as in PyTorch's DTensor (SEMANTICS.md section 2).
#include "parallel/dtensor.h"

#include <string.h>

#include "parallel/partial.h"
#include "parallel/shard.h"

ShardChain shard_chain(const Mesh *mesh, const Placement *placements, int dim)
{
    ShardChain chain = {0};
    int64_t shards = 1; // that the axes to the right make
    for (int axis = mesh->axes - 1; axis >= 0; axis--) {
        const Placement *placement = &placements[axis];
        if (placement->kind != PLACEMENT_SHARD || placement->dim != dim || mesh->ranks[axis] == 1)
            continue;
        ShardLink link = {.axis = axis, .ranks = mesh->ranks[axis], .pieces = 1};
        if (placement->split_factor > 1 && placement->split_factor == shards) {
            chain.link[chain.links] = link;
        } else {
            link.pieces = placement->split_factor;
            memmove(&chain.link[1], &chain.link[0], (size_t)chain.links * sizeof(link));
            chain.link[0] = link;
        }
        chain.links++;
        shards *= link.ranks;
    }
    return chain;
}

ShardRun shard_link_run(const ShardLink *link, int64_t whole, int coord, int64_t run)
{
    Shard piece = shard_of(whole, (int)link->pieces, (int)run);
    Shard part = shard_of(piece.count, link->ranks, coord);
    int64_t before = 0;
    if (run > 0) {
        int64_t size = shard_size(whole, (int)link->pieces);
        int64_t full = size > 0 ? whole / size : 0; // pieces that are not cut short
        int64_t full_part = shard_of(size, link->ranks, coord).count;
        before = (run < full ? run : full) * full_part;
        if (run > full && size > 0)
            before += shard_of(whole - full * size, link->ranks, coord).count;
    }
    return (ShardRun){piece.first + part.first, before, part.count};
}

int64_t shard_link_count(const ShardLink *link, int64_t whole, int coord)
{
    ShardRun last = shard_link_run(link, whole, coord, link->pieces - 1);
    return last.part_first + last.count;
}

int64_t shard_link_whole_index(const ShardLink *link, int64_t whole, int coord, int64_t part)
{
    int64_t size = shard_size(whole, (int)link->pieces);
    int64_t full = size > 0 ? whole / size : 0;
    int64_t full_part = shard_of(size, link->ranks, coord).count;
    int64_t run = full;
    if (full_part > 0 && part < full * full_part)
        run = part / full_part;
    ShardRun found =
        shard_link_run(link, whole, coord, run < link->pieces ? run : link->pieces - 1);
    return found.whole_first + part - found.part_first;
}

int64_t shard_link_part_index(const ShardLink *link, int64_t whole, int64_t index, int *coord)
{
    int64_t size = shard_size(whole, (int)link->pieces), run = index / size;
    Shard piece = shard_of(whole, (int)link->pieces, (int)run);
    *coord = (int)((index - piece.first) / shard_size(piece.count, link->ranks));
    ShardRun found = shard_link_run(link, whole, *coord, run);
    return found.part_first + index - found.whole_first;
}

static bool fits_in_memory(const Tensor *whole)
{
    int64_t bits = dtype_row(whole->dtype)->bits;
    for (int dim = 0; dim < whole->rank; dim++)
        if (whole->shape[dim] == 0)
            return true;
    for (int dim = 0; dim < whole->rank; dim++)
        if (__builtin_mul_overflow(bits, whole->shape[dim], &bits))
            return false;
    return true;
}

bool dtensor_check(const Mesh *mesh, const Tensor *whole, const Placement *placements, Error *error)
{
    char text[256], word[PLACEMENT_TEXT_BYTES];
    tensor_describe(whole, text, sizeof(text));
    if (!fits_in_memory(whole))
        return error_set(error, EXIT_CODE_USAGE, "make the tensor smaller",
                         "the tensor %s passes 2^63 bits", text);
    for (int axis = 0; axis < mesh->axes; axis++) {
        const Placement *placement = &placements[axis];
        placement_format(placement, word, sizeof(word));
        if (placement->kind == PLACEMENT_PARTIAL &&
            !partial_check(whole->dtype, placement->op, error))
            return false;
        if (placement->kind != PLACEMENT_SHARD)
            continue;
        if (placement->dim >= whole->rank)
            return error_set(error, EXIT_CODE_USAGE, "dimensions are counted from 0",
                             "%s on axis %s: the tensor %s has no dimension %d", word,
                             mesh->name[axis], text, placement->dim);
        if (dtype_row(whole->dtype)->bits < 8)
            return error_set(error, EXIT_CODE_USAGE,
                             "redistribute its bytes: u8, the last dimension in bytes",
                             "%s on axis %s: elements of %s share bytes and cannot be parted", word,
                             mesh->name[axis], dtype_row(whole->dtype)->name);
    }
    return true;
}

DTensor dtensor_make(const Mesh *mesh, const Tensor *whole, const Placement *placements)
{
    DTensor tensor = {.local = *whole, .mesh = mesh};
    tensor.local.data = NULL;
    memcpy(tensor.shape, whole->shape, sizeof(tensor.shape));
    memcpy(tensor.placement, placements, (size_t)mesh->axes * sizeof(*placements));
    dtensor_local_shape(&tensor, mesh->coord, tensor.local.shape);
    return tensor;
}

// The chain of a dimension with the length that each link finds; counts[links] is the local one.
static ShardChain measured_chain(const DTensor *tensor, const int *coord, int dim, int64_t *counts)
{
    ShardChain chain = shard_chain(tensor->mesh, tensor->placement, dim);
    counts[0] = tensor->shape[dim];
    for (int i = 0; i < chain.links; i++)
        counts[i + 1] = shard_link_count(&chain.link[i], counts[i], coord[chain.link[i].axis]);
    return chain;
}

void dtensor_local_shape(const DTensor *tensor, const int *coord, int64_t *shape)
{
    int64_t counts[MESH_AXES_MAX + 1];
    for (int dim = 0; dim < tensor->local.rank; dim++) {
        ShardChain chain = measured_chain(tensor, coord, dim, counts);
        shape[dim] = counts[chain.links];
    }
}

int64_t dtensor_global_index(const DTensor *tensor, const int *coord, int dim, int64_t local)
{
    int64_t counts[MESH_AXES_MAX + 1];
    ShardChain chain = measured_chain(tensor, coord, dim, counts);
    for (int i = chain.links - 1; i >= 0; i--)
        local = shard_link_whole_index(&chain.link[i], counts[i], coord[chain.link[i].axis], local);
    return local;
}

int64_t dtensor_offset(const DTensor *tensor, const int *coord, int dim)
{
    return dtensor_global_index(tensor, coord, dim, 0);
}

int64_t dtensor_local_index(const DTensor *tensor, const int *coord, int dim, int64_t global)
{
    int64_t counts[MESH_AXES_MAX + 1];
    ShardChain chain = measured_chain(tensor, coord, dim, counts);
    for (int i = 0; i < chain.links; i++) {
        int place;
        global = shard_link_part_index(&chain.link[i], counts[i], global, &place);
        if (place != coord[chain.link[i].axis])
            return -1;
    }
    return global;
}

void dtensor_owner(const DTensor *tensor, int dim, int64_t global, int *owner)
{
    ShardChain chain = shard_chain(tensor->mesh, tensor->placement, dim);
    int64_t count = tensor->shape[dim];
    for (int i = 0; i < chain.links; i++) {
        const ShardLink *link = &chain.link[i];
        global = shard_link_part_index(link, count, global, &owner[link->axis]);
        count = shard_link_count(link, count, owner[link->axis]);
    }
}
