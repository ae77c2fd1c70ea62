// mesh.h -- the ranks of the job, arranged as a small named grid.
//
// "dp=2,ep=4" puts rank r at dp = r / 4, ep = r % 4: the last axis varies fastest, so its
// neighbours share a node when the launcher fills nodes in order. One extent may be '*', "whatever
// is left". Axes of one rank are legal. Meaning of the names (DESIGN.md section 4): replica, dp:
// data; ep: data and experts; tp: tensor.
#pragma once

#include "parallel/comm.h"

enum { MESH_AXES_MAX = 4, MESH_NAME_BYTES = 16 };

typedef struct Mesh {
    int axes;                                  // 1 .. MESH_AXES_MAX
    char name[MESH_AXES_MAX][MESH_NAME_BYTES]; // no two alike
    int ranks[MESH_AXES_MAX];                  // extent of each axis; the product is world.ranks
    int coord[MESH_AXES_MAX];                  // where this rank stands
    Comm comm[MESH_AXES_MAX];                  // the ranks that share every coordinate but this one
    Comm world;
} Mesh;

// Local. Reads "dp=2,ep=*" for `ranks` ranks into names and extents; the rest of the mesh is
// zeroed. Error 2 begins with --mesh and the text, and names the part that is wrong: unknown
// syntax, an unknown axis (with the nearest name), an axis twice, more than four, an extent below
// 1, two '*', a product that is not `ranks` (both numbers and the nearest extents that fit).
bool mesh_parse(const char *layout, int ranks, Mesh *mesh, Error *error);
// Collective(all ranks). Stops with 2 on a bad layout. Owner: the caller.
Mesh *mesh_create(const char *layout, Comm world);
// The same for grids whose axes mean nothing to the program (redistribute): a name is a letter,
// then letters, digits and '_', at most MESH_NAME_BYTES - 1 characters.
bool mesh_parse_any_names(const char *layout, int ranks, Mesh *mesh, Error *error); // Local
Mesh *mesh_create_any_names(const char *layout, Comm world); // Collective(all ranks)
void mesh_destroy(Mesh *mesh);                          // Collective(all ranks); the world stays
int mesh_find_axis(const Mesh *mesh, const char *name); // Local. -1 if there is none

// A selection of axes, "ep*tp" or "dp*tp", as one flat axis: row-major over the named axes in mesh
// order.
typedef struct MeshAxes {
    bool member[MESH_AXES_MAX];
    int ranks, coord; // extent and this rank's place
} MeshAxes;
// Local. "" or NULL selects nothing (1 rank). Error 2 with the axes that there are and the nearest
// name; the caller puts the option before it (error_prefix).
bool mesh_select(const Mesh *mesh, const char *names, MeshAxes *axes, Error *error);
// Local. The axes that are not in the selection.
MeshAxes mesh_others(const Mesh *mesh, const MeshAxes *axes);
// Local. The place of world rank `rank` along the selection.
int mesh_place(const Mesh *mesh, const MeshAxes *axes, int rank);
// Collective(all ranks). The group of ranks that differ only along the selection, in order of
// place.
Comm mesh_comm(const Mesh *mesh, const MeshAxes *axes);
