// parallel_index_lists.h -- which global indices a rank holds, as plain lists: the definition of
// dtensor.h done by cutting arrays, which the closed forms are compared with.
#pragma once

#include "parallel/dtensor.h"

enum { INDEX_LIST_MAX = 512 };

typedef struct IndexList {
    int64_t count;
    int64_t index[INDEX_LIST_MAX];
} IndexList;

// Appends part `part` of `parts` of list[first .. first + count).
static inline void list_cut(const IndexList *list, int64_t first, int64_t count, int parts,
                            int part, IndexList *out)
{
    int64_t room = (count + parts - 1) / parts;
    for (int64_t i = 0; i < count; i++)
        if (i / room == part)
            out->index[out->count++] = list->index[first + i];
}

static inline bool axis_cuts(const Mesh *mesh, const Placement *placements, int axis, int dim)
{
    return axis < mesh->axes && placements[axis].kind == PLACEMENT_SHARD &&
           placements[axis].dim == dim;
}

// The axes from `axis` on, applied to the list.
static inline IndexList list_apply(const Mesh *mesh, const Placement *placements, const int *coord,
                                   int dim, int axis, IndexList list)
{
    if (axis >= mesh->axes || axis >= MESH_AXES_MAX)
        return list;
    if (!axis_cuts(mesh, placements, axis, dim))
        return list_apply(mesh, placements, coord, dim, axis + 1, list);
    int ranks = mesh->ranks[axis], pieces = placements[axis].split_factor, right = 1;
    for (int other = axis + 1; other < mesh->axes && other < MESH_AXES_MAX; other++)
        right *= axis_cuts(mesh, placements, other, dim) ? mesh->ranks[other] : 1;
    IndexList mine = {0};
    if (pieces > 1 && right == pieces) { // right to left
        IndexList rest = list_apply(mesh, placements, coord, dim, axis + 1, list);
        list_cut(&rest, 0, rest.count, ranks, coord[axis], &mine);
        return mine;
    }
    int64_t room = (list.count + pieces - 1) / pieces;
    for (int piece = 0; piece < pieces && piece * room < list.count; piece++) {
        int64_t left = list.count - piece * room;
        list_cut(&list, piece * room, left < room ? left : room, ranks, coord[axis], &mine);
    }
    return list_apply(mesh, placements, coord, dim, axis + 1, mine);
}

static inline IndexList list_of(const Mesh *mesh, const Placement *placements, const int *coord,
                                int dim, int64_t size)
{
    IndexList list = {.count = size};
    for (int64_t i = 0; i < size; i++)
        list.index[i] = i;
    return list_apply(mesh, placements, coord, dim, 0, list);
}

static inline void coordinates_of_rank(const Mesh *mesh, int rank, int *coord)
{
    for (int axis = mesh->axes - 1; axis >= 0; axis--) {
        coord[axis] = rank % mesh->ranks[axis];
        rank /= mesh->ranks[axis];
    }
}
