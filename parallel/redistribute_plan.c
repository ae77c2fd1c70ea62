// Choosing the steps. The state is a chain of links per dimension (dtensor.h) and one placement per
// axis. A dimension may only lose or gain its innermost link: then the parts along that axis make
// up one block before or after, and nothing else moves. Each dimension keeps the links that its old
// and its new chain begin with alike; the rest is popped, innermost first, and the new links
// pushed.
//
// Two links may be turned. Cutting over k and then over a leaves a rank the same rows in the same
// order as cutting into as many pieces as k has ranks, dividing each over a, and picking piece k:
//
//   (k), (a)   =   (a, pieces of k's ranks), (k picks)
//
// for uneven shards as well, since both follow the same two divisions. So k can be gathered or cut
// with a inside it, as S0x2,S0 -> S0x2,R needs.
//
// The rules are those of PyTorch's DTensor (SEMANTICS.md section 2): apply left to right, undo
// right to left; their order here is redistribute.h's.
#include "parallel/redistribute_plan.h"

#include <string.h>

#include "parallel/partial.h"

typedef struct PlanLink {
    ShardLink link;
    bool picks; // a run of the link before, which has as many pieces as this axis has ranks
} PlanLink;

typedef struct PlanChain {
    int links;
    PlanLink link[MESH_AXES_MAX];
} PlanChain;

typedef struct Planner {
    Redistribute *plan;
    const Mesh *mesh;
    Placement now[MESH_AXES_MAX], goal[MESH_AXES_MAX]; // axes of one rank are R in both
    PlanChain chain[TENSOR_RANK_MAX], goal_chain[TENSOR_RANK_MAX];
    bool one_op;                    // all Partials of both lists have the same operation
    int64_t shape[TENSOR_RANK_MAX]; // this rank's part now
} Planner;

static bool links_equal(const PlanLink *a, const PlanLink *b)
{
    return a->link.axis == b->link.axis && a->link.pieces == b->link.pieces && a->picks == b->picks;
}

// How many links the present chain and the wanted one share from the outside.
static int links_common(const Planner *planner, int dim)
{
    const PlanChain *now = &planner->chain[dim], *goal = &planner->goal_chain[dim];
    int common = 0;
    while (common < now->links && common < goal->links &&
           links_equal(&now->link[common], &goal->link[common]))
        common++;
    return common;
}

// ---- turning ----

// True if all that remains of the chain after `common` are two plain links.
static bool ends_in_plain_pair(const PlanChain *chain, int common)
{
    if (chain->links != common + 2)
        return false;
    const PlanLink *outer = &chain->link[common], *inner = outer + 1;
    return outer->link.pieces == 1 && inner->link.pieces == 1 && !outer->picks && !inner->picks;
}

static void turn_pair(PlanChain *chain, int at)
{
    PlanLink outer = chain->link[at], inner = chain->link[at + 1];
    inner.link.pieces = outer.link.ranks;
    outer.picks = true;
    chain->link[at] = inner;
    chain->link[at + 1] = outer;
}

// Turns the last pair of the wanted chain or of the present one where that brings the axis which
// shards the dimension before and after to the same place in both: it can then stay, or be cut
// anew, while the other comes or goes.
static void turn_chains(Planner *planner)
{
    for (int dim = 0; dim < planner->plan->from.local.rank; dim++) {
        PlanChain *now = &planner->chain[dim], *goal = &planner->goal_chain[dim];
        int common = links_common(planner, dim);
        if (ends_in_plain_pair(goal, common) && now->links > common &&
            now->link[common].link.axis == goal->link[common + 1].link.axis)
            turn_pair(goal, common);
        common = links_common(planner, dim);
        if (ends_in_plain_pair(now, common) && goal->links > common &&
            goal->link[common].link.axis == now->link[common + 1].link.axis)
            turn_pair(now, common);
    }
}

// ---- one step ----

// True if the axis wants to be a shard, and its link is the next one that its dimension lacks.
// `leaving`: the dimension whose innermost link goes away in the same step, or -1.
static bool can_push(const Planner *planner, int axis, int leaving)
{
    if (planner->goal[axis].kind != PLACEMENT_SHARD)
        return false;
    int dim = planner->goal[axis].dim, common = links_common(planner, dim);
    return dim != leaving && common == planner->chain[dim].links &&
           common < planner->goal_chain[dim].links &&
           planner->goal_chain[dim].link[common].link.axis == axis;
}

// True if the innermost link of the dimension is the only wrong one, and its axis stays there,
// cutting otherwise.
static bool can_recut(const Planner *planner, int dim)
{
    const PlanChain *now = &planner->chain[dim], *goal = &planner->goal_chain[dim];
    int common = links_common(planner, dim);
    if (now->links != common + 1 || goal->links <= common)
        return false;
    const PlanLink *old = &now->link[common], *new = &goal->link[common];
    return old->link.axis == new->link.axis && !old->picks && !new->picks &&
           old->link.pieces + new->link.pieces <= REDISTRIBUTE_RECUT_PIECES_MAX;
}

// Link `at` of a chain, cutting the block of the present shape along dim. What it finds follows
// from the global length and the links before it.
static Cut cut_of(const Planner *planner, int dim, int at)
{
    const PlanChain *chain = &planner->chain[dim];
    const Tensor *local = &planner->plan->from.local;
    Cut cut = {.whole = planner->plan->from.shape[dim]};
    for (int i = 0; i <= at; i++) {
        Cut before = cut;
        cut = (Cut){.link = chain->link[i].link, .picks = chain->link[i].picks};
        cut.whole =
            i == 0 ? before.whole : cut_count(&before, planner->mesh->coord[before.link.axis]);
        if (cut.picks) {
            cut.base = before.link;
            cut.base_whole = before.whole;
            cut.base_coord = planner->mesh->coord[before.link.axis];
        }
        cut_settle(&cut);
    }
    cut.outer = 1;
    cut.inner_bytes = dtype_bytes(local->dtype, 1);
    for (int i = 0; i < dim; i++)
        cut.outer *= planner->shape[i];
    for (int i = dim + 1; i < local->rank; i++)
        cut.inner_bytes *= (uint64_t)planner->shape[i];
    return cut;
}

static uint64_t bytes_now(const Planner *planner)
{
    Tensor local = planner->plan->from.local;
    memcpy(local.shape, planner->shape, sizeof(local.shape));
    return tensor_bytes(&local);
}

// Does the next link of the wanted chain.
static void push_link(Planner *planner, PlannedStep *step, int dim)
{
    PlanChain *chain = &planner->chain[dim];
    chain->link[chain->links] = planner->goal_chain[dim].link[chain->links];
    step->push = cut_of(planner, dim, chain->links++);
    planner->shape[dim] = cut_count(&step->push, planner->mesh->coord[step->push.link.axis]);
}

// Undoes the innermost link.
static void pop_link(Planner *planner, PlannedStep *step, int dim)
{
    step->pop = cut_of(planner, dim, --planner->chain[dim].links);
    planner->shape[dim] = step->pop.whole;
}

// Takes one step: `axis` gets `to`; pop_dim is the dimension that loses a link, or -1.
static void take(Planner *planner, RedistributeKind kind, int axis, Placement to, int pop_dim)
{
    Redistribute *plan = planner->plan;
    CHECK_RULE(plan->steps < REDISTRIBUTE_STEPS_MAX);
    PlannedStep *step = &plan->step[plan->steps++];
    *step =
        (PlannedStep){.seen = {.kind = kind, .axis = axis, .from = planner->now[axis], .to = to}};
    step->seen.in_bytes = bytes_now(planner);
    step->recuts = to.kind == PLACEMENT_SHARD && to.dim == pop_dim;
    // The push is cut from the input, so it comes first; the pop makes up the output. Within one
    // dimension the old link makes room for the new one.
    if (to.kind == PLACEMENT_SHARD && !step->recuts)
        push_link(planner, step, to.dim);
    if (pop_dim >= 0)
        pop_link(planner, step, pop_dim);
    if (step->recuts)
        push_link(planner, step, to.dim);
    planner->now[axis] = to;
    step->seen.out_bytes = bytes_now(planner);
    memcpy(step->seen.shape, planner->shape, sizeof(planner->shape));
    int coord = planner->mesh->coord[axis];
    step->keeps = kind == REDISTRIBUTE_MAKE_PARTIAL &&
                  (coord == 0 || to.op == COMM_AVG || to.op == COMM_MAX || to.op == COMM_MIN);
}

// ---- which step is next ----

static bool take_slice(Planner *planner)
{
    for (int axis = 0; axis < planner->mesh->axes; axis++)
        if (planner->now[axis].kind == PLACEMENT_REPLICATE && can_push(planner, axis, -1)) {
            take(planner, REDISTRIBUTE_SLICE, axis, planner->goal[axis], -1);
            return true;
        }
    return false;
}

static bool must_combine(const Planner *planner, int axis)
{
    return planner->now[axis].kind == PLACEMENT_PARTIAL &&
           !(planner->one_op && planner->goal[axis].kind == PLACEMENT_PARTIAL);
}

static bool take_combination(Planner *planner)
{
    int chosen = -1, axes = planner->mesh->axes;
    for (int axis = 0; axis < axes && chosen < 0 && planner->one_op; axis++)
        if (must_combine(planner, axis) && planner->goal[axis].kind == PLACEMENT_SHARD)
            chosen = axis;
    for (int axis = axes - 1; axis >= 0 && chosen < 0; axis--)
        if (must_combine(planner, axis))
            chosen = axis;
    if (chosen < 0)
        return false;
    bool scatter = can_push(planner, chosen, -1);
    take(planner, scatter ? REDISTRIBUTE_REDUCE_SCATTER : REDISTRIBUTE_ALL_REDUCE, chosen,
         scatter ? planner->goal[chosen] : placement_replicate(), -1);
    return true;
}

// The innermost link of the dimension becomes the wanted one. The placement is named by what it now
// is, since links to its right may still be missing.
static void take_recut(Planner *planner, int dim)
{
    const ShardLink *link = &planner->goal_chain[dim].link[planner->chain[dim].links - 1].link;
    const ShardLink *old = &planner->chain[dim].link[planner->chain[dim].links - 1].link;
    planner->now[link->axis] = placement_strided(dim, (int)old->pieces);
    take(planner, REDISTRIBUTE_ALL_TO_ALL, link->axis, placement_strided(dim, (int)link->pieces),
         dim);
}

// Undoes one shard. Moves to another dimension, or within one, come before gathers: they carry
// less.
static bool take_removal(Planner *planner)
{
    int chosen = -1, dim_of_chosen = -1;
    for (int dim = 0; dim < planner->plan->from.local.rank; dim++) {
        const PlanChain *chain = &planner->chain[dim];
        if (chain->links == links_common(planner, dim))
            continue;
        int axis = chain->link[chain->links - 1].link.axis;
        if (can_recut(planner, dim)) {
            take_recut(planner, dim);
            return true;
        }
        if (can_push(planner, axis, dim)) {
            take(planner, REDISTRIBUTE_ALL_TO_ALL, axis, planner->goal[axis], dim);
            return true;
        }
        if (axis > chosen) {
            chosen = axis;
            dim_of_chosen = dim;
        }
    }
    if (chosen < 0)
        return false;
    const Placement *goal = &planner->goal[chosen];
    bool into =
        planner->one_op && goal->kind == PLACEMENT_PARTIAL && partial_has_identity(goal->op);
    take(planner, into ? REDISTRIBUTE_INTO_PARTIAL : REDISTRIBUTE_ALL_GATHER, chosen,
         into ? *goal : placement_replicate(), dim_of_chosen);
    return true;
}

static bool has_one_op(const Planner *planner)
{
    int op = -1;
    for (int i = 0; i < 2 * planner->mesh->axes; i++) {
        const Placement *list = i % 2 ? planner->goal : planner->now;
        const Placement *placement = &list[i / 2];
        if (placement->kind != PLACEMENT_PARTIAL)
            continue;
        if (op >= 0 && op != (int)placement->op)
            return false;
        op = (int)placement->op;
    }
    return true;
}

static PlanChain plan_chain(const Mesh *mesh, const Placement *placements, int dim)
{
    ShardChain found = shard_chain(mesh, placements, dim);
    PlanChain chain = {.links = found.links};
    for (int i = 0; i < found.links; i++)
        chain.link[i].link = found.link[i];
    return chain;
}

void redistribute_choose_steps(Redistribute *plan)
{
    Planner planner = {.plan = plan, .mesh = plan->mesh};
    const Mesh *mesh = plan->mesh;
    for (int axis = 0; axis < mesh->axes; axis++) {
        bool alone = mesh->ranks[axis] == 1;
        planner.now[axis] = alone ? placement_replicate() : plan->from.placement[axis];
        planner.goal[axis] = alone ? placement_replicate() : plan->to.placement[axis];
    }
    for (int dim = 0; dim < plan->from.local.rank; dim++) {
        planner.chain[dim] = plan_chain(mesh, planner.now, dim);
        planner.goal_chain[dim] = plan_chain(mesh, planner.goal, dim);
    }
    memcpy(planner.shape, plan->from.local.shape, sizeof(planner.shape));
    planner.one_op = has_one_op(&planner);
    do
        turn_chains(&planner);
    while (take_slice(&planner) || take_combination(&planner) || take_removal(&planner));
    for (int axis = 0; axis < mesh->axes; axis++)
        if (planner.goal[axis].kind == PLACEMENT_PARTIAL &&
            planner.now[axis].kind == PLACEMENT_REPLICATE)
            take(&planner, REDISTRIBUTE_MAKE_PARTIAL, axis, planner.goal[axis], -1);
    for (int dim = 0; dim < plan->to.local.rank; dim++)
        CHECK_RULE(planner.shape[dim] == plan->to.local.shape[dim]);
}
