// Expected elements one by one, through the index maps of dtensor.h: the order in which axes are
// combined and the place where a made Partial keeps its value are redistribute.h's, written down a
// second time.
#include "parallel/redistribute_check.h"

#include <stdlib.h>
#include <string.h>

#include "parallel/partial.h"

enum { ELEMENT_BYTES_MAX = 8, TERMS_ON_STACK = 16 };

// Row-major walk over a part: global index of each element, from the maps.
typedef struct Walk {
    const DTensor *part;
    int64_t local[TENSOR_RANK_MAX];  // index in the part
    int64_t global[TENSOR_RANK_MAX]; // the same element in the whole
} Walk;

static void walk_settle(Walk *walk, int dim)
{
    walk->global[dim] =
        dtensor_global_index(walk->part, walk->part->mesh->coord, dim, walk->local[dim]);
}

static Walk walk_begin(const DTensor *part)
{
    Walk walk = {.part = part};
    for (int dim = 0; dim < part->local.rank; dim++)
        walk_settle(&walk, dim);
    return walk;
}

static void walk_next(Walk *walk)
{
    for (int dim = walk->part->local.rank - 1; dim >= 0; dim--) {
        bool carry = ++walk->local[dim] == walk->part->local.shape[dim];
        if (carry)
            walk->local[dim] = 0;
        walk_settle(walk, dim);
        if (!carry)
            return;
    }
}

static uint64_t linear_index(const Walk *walk)
{
    uint64_t index = 0;
    for (int dim = 0; dim < walk->part->local.rank; dim++)
        index = index * (uint64_t)walk->part->shape[dim] + (uint64_t)walk->global[dim];
    return index;
}

typedef struct Expectation {
    const RedistributeTerms *terms;
    const Mesh *mesh;
    DTensor from, to;
    bool one_op;
    int combined[MESH_AXES_MAX], combinations; // axes in the order of redistribute.h
} Expectation;

// True if the axis has several ranks and the placement is a Partial.
static bool is_partial(const Mesh *mesh, const Placement *placements, int axis)
{
    return placements[axis].kind == PLACEMENT_PARTIAL && mesh->ranks[axis] > 1;
}

static Expectation expectation_of(const Redistribute *plan, const RedistributeTerms *terms)
{
    Expectation e = {.terms = terms,
                     .mesh = redistribute_from(plan)->mesh,
                     .from = *redistribute_from(plan),
                     .to = *redistribute_to(plan)};
    unsigned ops = 0;
    int axes = e.mesh->axes;
    for (int axis = 0; axis < axes; axis++) {
        ops |= is_partial(e.mesh, e.from.placement, axis) ? 1u << e.from.placement[axis].op : 0;
        ops |= is_partial(e.mesh, e.to.placement, axis) ? 1u << e.to.placement[axis].op : 0;
    }
    e.one_op = (ops & (ops - 1)) == 0;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < axes; i++) {
            int axis = pass == 0 ? i : axes - 1 - i;
            bool to_shard = e.one_op && e.to.placement[axis].kind == PLACEMENT_SHARD;
            bool stays = e.one_op && e.to.placement[axis].kind == PLACEMENT_PARTIAL;
            if (is_partial(e.mesh, e.from.placement, axis) && !stays && to_shard == (pass == 0))
                e.combined[e.combinations++] = axis;
        }
    return e;
}

// The element after the first `combinations` combinations, at coord. Terms are narrowed after each
// axis, as they travel.
static void combine_element(const Expectation *e, int combinations, const int *coord,
                            uint64_t index, void *out)
{
    if (combinations == 0) {
        e->terms->term(e->terms->context, coord, index, out);
        return;
    }
    int axis = e->combined[combinations - 1], there[MESH_AXES_MAX];
    int ranks = e->mesh->ranks[axis];
    DType dtype = e->from.local.dtype;
    uint64_t size = dtype_bytes(dtype, 1);
    char few[TERMS_ON_STACK * ELEMENT_BYTES_MAX];
    char *terms = ranks > TERMS_ON_STACK ? malloc(size * (uint64_t)ranks) : few;
    CHECK_RULE(terms != NULL);
    memcpy(there, coord, sizeof(there));
    for (int rank = 0; rank < ranks; rank++) {
        there[axis] = rank;
        combine_element(e, combinations - 1, there, index, terms + (uint64_t)rank * size);
    }
    partial_combine(dtype, e->from.placement[axis].op, ranks, terms, 1, out);
    if (terms != few)
        free(terms);
}

static void expected_element(const Expectation *e, const Walk *walk, void *out)
{
    const Mesh *mesh = e->mesh;
    combine_element(e, e->combinations, mesh->coord, linear_index(walk), out);
    for (int axis = 0; axis < mesh->axes; axis++) {
        const Placement *to = &e->to.placement[axis], *from = &e->from.placement[axis];
        if (!is_partial(mesh, e->to.placement, axis) || !partial_has_identity(to->op) ||
            (from->kind == PLACEMENT_PARTIAL && e->one_op))
            continue;
        int home[MESH_AXES_MAX] = {0}; // who keeps the value: coordinate 0, or who had it
        if (e->one_op && from->kind == PLACEMENT_SHARD)
            dtensor_owner(&e->from, from->dim, walk->global[from->dim], home);
        if (mesh->coord[axis] != home[axis])
            partial_fill_identity(e->from.local.dtype, to->op, 1, out);
    }
}

void redistribute_fill(const Redistribute *plan, const RedistributeTerms *terms, void *in)
{
    const DTensor *part = redistribute_from(plan);
    uint64_t size = dtype_bytes(part->local.dtype, 1);
    int64_t count = tensor_elements(&part->local);
    if (count == 0)
        return;
    Walk walk = walk_begin(part);
    for (int64_t i = 0; i < count; i++, walk_next(&walk))
        terms->term(terms->context, part->mesh->coord, linear_index(&walk),
                    (char *)in + (uint64_t)i * size);
}

int64_t redistribute_check(const Redistribute *plan, const RedistributeTerms *terms,
                           const void *out)
{
    const DTensor *part = redistribute_to(plan);
    uint64_t size = dtype_bytes(part->local.dtype, 1);
    int64_t count = tensor_elements(&part->local), wrong = 0;
    CHECK_RULE(size <= ELEMENT_BYTES_MAX);
    Expectation e = expectation_of(plan, terms);
    if (count == 0)
        return 0;
    Walk walk = walk_begin(part);
    for (int64_t i = 0; i < count; i++, walk_next(&walk)) {
        char expected[ELEMENT_BYTES_MAX];
        expected_element(&e, &walk, expected);
        wrong += memcmp(expected, (const char *)out + (uint64_t)i * size, size) != 0;
    }
    return wrong;
}
