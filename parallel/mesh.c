// The grid of ranks: text to axes and extents, ranks to coordinates, and one communicator per axis.
//
// Row-major with the last axis fastest, as PyTorch's init_device_mesh numbers its ranks
// (SEMANTICS.md section 1).
#include "parallel/mesh.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness/option.h"

// The axes a mesh may have; their meaning is in mesh.h.
static const char *const axis_names[] = {"replica", "dp", "ep", "tp", NULL};
static const char *const layout_fix =
    "write axes as name=extent with commas between, such as --mesh dp=2,ep=4 or --mesh dp=2,ep=*";

enum { EXTENT_REST = 0, EXTENT_DIGITS_MAX = 6 };

// The extents closest to `wanted` (by the sum of |log ratio|) whose product is `ranks`; the axis of
// '*' costs nothing.
typedef struct Fit {
    int axes, rest_axis; // rest_axis: -1 = no '*'
    const int *wanted;
    int trial[MESH_AXES_MAX], best[MESH_AXES_MAX];
    double best_distance; // below 0: none yet
} Fit;

static void fit_axis(Fit *fit, int axis, int remaining, double distance)
{
    if (axis == fit->axes || axis == MESH_AXES_MAX) {
        if (remaining == 1 && (fit->best_distance < 0 || distance < fit->best_distance)) {
            fit->best_distance = distance;
            memcpy(fit->best, fit->trial, sizeof(fit->best));
        }
        return;
    }
    for (int extent = 1; extent <= remaining; extent++) {
        if (remaining % extent != 0)
            continue;
        fit->trial[axis] = extent;
        double step = axis == fit->rest_axis ? 0 : fabs(log((double)extent / fit->wanted[axis]));
        fit_axis(fit, axis + 1, remaining / extent, distance + step);
    }
}

static bool report_product(const Mesh *mesh, const int *wanted, int rest_axis, long long product,
                           int ranks, Error *error)
{
    Fit fit = {.axes = mesh->axes, .rest_axis = rest_axis, .wanted = wanted, .best_distance = -1};
    fit_axis(&fit, 0, ranks, 0);
    char layout[MESH_AXES_MAX * (MESH_NAME_BYTES + 16)] = "", fix[256];
    for (int axis = 0; axis < mesh->axes; axis++) {
        size_t used = strlen(layout);
        snprintf(layout + used, sizeof(layout) - used, "%s%s=%d", axis ? "," : "", mesh->name[axis],
                 fit.best[axis]);
    }
    snprintf(fix, sizeof(fix), "the nearest mesh that fits is --mesh %s; or start %lld ranks",
             layout, product);
    if (rest_axis >= 0)
        return error_set(
            error, EXIT_CODE_USAGE, fix,
            "%d ranks leave no whole number for %s=*: the other extents multiply to %lld", ranks,
            mesh->name[rest_axis], product);
    return error_set(error, EXIT_CODE_USAGE, fix,
                     "the extents multiply to %lld, but the job has %d rank%s", product, ranks,
                     ranks == 1 ? "" : "s");
}

// One of the axes with a meaning, or the nearest of them in the error.
static bool is_known_name(const char *name, Error *error)
{
    char fix[256] = "the axes are replica, dp, ep, tp";
    for (int i = 0; axis_names[i]; i++)
        if (strcmp(axis_names[i], name) == 0)
            return true;
    const char *nearest = option_nearest(name, axis_names);
    if (nearest)
        snprintf(fix, sizeof(fix), "did you mean '%s'? The axes are replica, dp, ep, tp", nearest);
    return error_set(error, EXIT_CODE_USAGE, fix, "there is no axis '%s'", name);
}

static bool is_plain_name(const char *name, Error *error)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    static const char others[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_";
    size_t length = strlen(name);
    if (length < MESH_NAME_BYTES && strchr(letters, name[0]) && strspn(name, others) == length)
        return true;
    char fix[256];
    snprintf(fix, sizeof(fix), "begin with a letter, go on with letters, digits or '_', %d at most",
             MESH_NAME_BYTES - 1);
    return error_set(error, EXIT_CODE_USAGE, fix, "'%s' is no name for an axis", name);
}

typedef bool NameCheck(const char *name, Error *error);

// Reads one "name=extent" of `length` characters into axis number mesh->axes.
static bool parse_axis(const char *part, int length, NameCheck *check_name, Mesh *mesh, int *extent,
                       Error *error)
{
    const char *equals = memchr(part, '=', (size_t)length);
    if (!equals || equals == part)
        return error_set(error, EXIT_CODE_USAGE, layout_fix, "'%.*s' is not name=extent", length,
                         part);
    int name_length = (int)(equals - part), digits = length - name_length - 1;
    char name[64];
    snprintf(name, sizeof(name), "%.*s", name_length, part);
    if (!check_name(name, error))
        return false;
    if (mesh_find_axis(mesh, name) >= 0)
        return error_set(error, EXIT_CODE_USAGE, "name every axis once", "axis '%s' is there twice",
                         name);
    const char *text = equals + 1;
    if (digits == 1 && text[0] == '*') {
        *extent = EXTENT_REST;
    } else {
        bool good = digits >= 1;
        long value = 0;
        for (int i = 0; i < digits; i++) {
            good = good && text[i] >= '0' && text[i] <= '9';
            value = good && i < EXTENT_DIGITS_MAX ? value * 10 + (text[i] - '0') : value;
        }
        if (!good)
            return error_set(error, EXIT_CODE_USAGE, layout_fix,
                             "the extent '%.*s' of axis '%s' is neither a number nor '*'", digits,
                             text, name);
        if (value < 1 || digits > EXTENT_DIGITS_MAX)
            return error_set(error, EXIT_CODE_USAGE, layout_fix,
                             "the extent %.*s of axis '%s' is not in 1 .. 999999", digits, text,
                             name);
        *extent = (int)value;
    }
    memcpy(mesh->name[mesh->axes], name, (size_t)name_length + 1);
    return true;
}

// Fills in '*' and compares the product with the ranks.
static bool settle_extents(Mesh *mesh, const int *wanted, int ranks, Error *error)
{
    long long product = 1;
    int rest_axis = -1;
    for (int axis = 0; axis < mesh->axes; axis++) {
        if (wanted[axis] != EXTENT_REST) {
            // Four extents below 10^6 could pass 2^63; beyond 10^12 the exact number says nothing
            // more.
            product = product > 1000000000000LL ? product : product * wanted[axis];
            continue;
        }
        if (rest_axis >= 0)
            return error_set(error, EXIT_CODE_USAGE, "leave '*' to one axis",
                             "both %s and %s are '*'", mesh->name[rest_axis], mesh->name[axis]);
        rest_axis = axis;
    }
    bool fits = rest_axis >= 0 ? ranks % product == 0 : product == ranks;
    if (!fits)
        return report_product(mesh, wanted, rest_axis, product, ranks, error);
    for (int axis = 0; axis < mesh->axes; axis++)
        mesh->ranks[axis] = axis == rest_axis ? (int)(ranks / product) : wanted[axis];
    return true;
}

static bool parse_layout(const char *layout, int ranks, NameCheck *check_name, Mesh *mesh,
                         Error *error)
{
    int wanted[MESH_AXES_MAX] = {0};
    if (!layout || !layout[0])
        return error_set(error, EXIT_CODE_USAGE, layout_fix, "the layout is empty");
    for (const char *part = layout; part; mesh->axes++) {
        const char *comma = strchr(part, ',');
        int length = comma ? (int)(comma - part) : (int)strlen(part);
        if (mesh->axes == MESH_AXES_MAX)
            return error_set(error, EXIT_CODE_USAGE, "leave out the axes of one rank",
                             "more than %d axes", (int)MESH_AXES_MAX);
        if (!parse_axis(part, length, check_name, mesh, &wanted[mesh->axes], error))
            return false;
        part = comma ? comma + 1 : NULL;
    }
    return settle_extents(mesh, wanted, ranks, error);
}

// Every command spells the layout's option alike, so every message can begin with what was typed.
static bool parse(const char *layout, int ranks, NameCheck *check_name, Mesh *mesh, Error *error)
{
    *mesh = (Mesh){0};
    return parse_layout(layout, ranks, check_name, mesh, error) ||
           error_prefix(error, "--mesh \"%.80s\"", layout ? layout : "");
}

bool mesh_parse(const char *layout, int ranks, Mesh *mesh, Error *error)
{
    return parse(layout, ranks, is_known_name, mesh, error);
}

bool mesh_parse_any_names(const char *layout, int ranks, Mesh *mesh, Error *error)
{
    return parse(layout, ranks, is_plain_name, mesh, error);
}

static void coordinates_of(const Mesh *mesh, int rank, int *coord)
{
    for (int axis = mesh->axes - 1; axis >= 0; axis--) {
        coord[axis] = rank % mesh->ranks[axis];
        rank /= mesh->ranks[axis];
    }
}

static Mesh *create(const char *layout, Comm world, NameCheck *check_name)
{
    Mesh *mesh = calloc(1, sizeof(*mesh));
    CHECK_RULE(mesh != NULL);
    Error error = {0};
    bool good = parse(layout, world.ranks, check_name, mesh, &error);
    CHECK_ALL(good, error.exit_code, error.fix, "%s", error.what);
    mesh->world = world;
    coordinates_of(mesh, world.rank, mesh->coord);
    for (int axis = 0; axis < mesh->axes; axis++) {
        MeshAxes one = {.ranks = mesh->ranks[axis], .coord = mesh->coord[axis]};
        one.member[axis] = true;
        mesh->comm[axis] = mesh_comm(mesh, &one);
    }
    return mesh;
}

Mesh *mesh_create(const char *layout, Comm world)
{
    return create(layout, world, is_known_name);
}

Mesh *mesh_create_any_names(const char *layout, Comm world)
{
    return create(layout, world, is_plain_name);
}

void mesh_destroy(Mesh *mesh)
{
    if (!mesh)
        return;
    for (int axis = 0; axis < mesh->axes; axis++)
        comm_destroy(&mesh->comm[axis]);
    free(mesh);
}

int mesh_find_axis(const Mesh *mesh, const char *name)
{
    for (int axis = 0; axis < mesh->axes; axis++)
        if (strcmp(mesh->name[axis], name) == 0)
            return axis;
    return -1;
}

// Extent and place of a selection whose members are set.
static MeshAxes complete(const Mesh *mesh, MeshAxes axes)
{
    axes.ranks = 1;
    axes.coord = 0;
    for (int axis = 0; axis < mesh->axes; axis++) {
        if (!axes.member[axis])
            continue;
        axes.ranks *= mesh->ranks[axis];
        axes.coord = axes.coord * mesh->ranks[axis] + mesh->coord[axis];
    }
    return axes;
}

static bool report_no_axis(const Mesh *mesh, const char *name, Error *error)
{
    const char *candidates[MESH_AXES_MAX + 1] = {NULL};
    char axes[MESH_AXES_MAX * (MESH_NAME_BYTES + 2)] = "", fix[256], nearest_text[64] = "";
    for (int axis = 0; axis < mesh->axes; axis++) {
        candidates[axis] = mesh->name[axis];
        size_t used = strlen(axes);
        snprintf(axes + used, sizeof(axes) - used, "%s%s", axis ? ", " : "", mesh->name[axis]);
    }
    const char *nearest = option_nearest(name, candidates);
    if (nearest)
        snprintf(nearest_text, sizeof(nearest_text), "did you mean '%s'? ", nearest);
    snprintf(fix, sizeof(fix), "%sname axes of the mesh, such as %s%s%s, or add one to --mesh",
             nearest_text, mesh->name[0], mesh->axes > 1 ? "*" : "",
             mesh->axes > 1 ? mesh->name[1] : "");
    if (!name[0])
        return error_set(error, EXIT_CODE_USAGE, fix,
                         "a name is missing before or behind '*'; the mesh has %s", axes);
    return error_set(error, EXIT_CODE_USAGE, fix, "the mesh has no axis '%s', only %s", name, axes);
}

bool mesh_select(const Mesh *mesh, const char *names, MeshAxes *axes, Error *error)
{
    *axes = (MeshAxes){0};
    for (const char *part = names && names[0] ? names : NULL; part;) {
        const char *star = strchr(part, '*');
        int length = star ? (int)(star - part) : (int)strlen(part);
        char name[64];
        snprintf(name, sizeof(name), "%.*s", length, part);
        int axis = mesh_find_axis(mesh, name);
        if (axis < 0)
            return report_no_axis(mesh, name, error);
        if (axes->member[axis])
            return error_set(error, EXIT_CODE_USAGE, "name every axis once",
                             "axis '%s' is selected twice", name);
        axes->member[axis] = true;
        part = star ? star + 1 : NULL;
    }
    *axes = complete(mesh, *axes);
    return true;
}

MeshAxes mesh_others(const Mesh *mesh, const MeshAxes *axes)
{
    MeshAxes others = {0};
    for (int axis = 0; axis < mesh->axes; axis++)
        others.member[axis] = !axes->member[axis];
    return complete(mesh, others);
}

int mesh_place(const Mesh *mesh, const MeshAxes *axes, int rank)
{
    int coord[MESH_AXES_MAX] = {0}, place = 0;
    coordinates_of(mesh, rank, coord);
    for (int axis = 0; axis < mesh->axes; axis++)
        if (axes->member[axis])
            place = place * mesh->ranks[axis] + coord[axis];
    return place;
}

Comm mesh_comm(const Mesh *mesh, const MeshAxes *axes)
{
    if (axes->ranks == 1)
        return (Comm){.rank = 0, .ranks = 1};
    MeshAxes others = mesh_others(mesh, axes);
    Comm comm = comm_split(mesh->world, others.coord, axes->coord);
    char name[MESH_AXES_MAX * MESH_NAME_BYTES] = "";
    for (int axis = 0; axis < mesh->axes; axis++) {
        size_t used = strlen(name);
        if (axes->member[axis])
            snprintf(name + used, sizeof(name) - used, "%s%s", used ? "*" : "", mesh->name[axis]);
    }
    comm_name(comm, name);
    return comm;
}
