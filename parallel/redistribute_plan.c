// Choosing the steps. The state is a chain of links per dimension (dtensor.h) and one placement per
// axis. A dimension may only lose or gain its innermost link: then the parts along that axis make
// up one block before or after, and nothing else moves. Each dimension keeps the links that its old
// and its new chain begin with alike; the rest is popped, innermost first, and the new links
// pushed.
//
// The rules are those of PyTorch's DTensor (SEMANTICS.md section 2): apply left to right, undo
// right to left; their order here is redistribute.h's.
#include "parallel/redistribute_plan.h"

#include <string.h>

#include "parallel/partial.h"

typedef struct Planner {
    Redistribute *plan;
    const Mesh *mesh;
    Placement now[MESH_AXES_MAX], goal[MESH_AXES_MAX]; // axes of one rank are R in both
    ShardChain chain[TENSOR_RANK_MAX], goal_chain[TENSOR_RANK_MAX];
    bool one_op;                    // all Partials of both lists have the same operation
    int64_t shape[TENSOR_RANK_MAX]; // this rank's part now
} Planner;

static bool links_equal(const ShardLink *a, const ShardLink *b)
{
    return a->axis == b->axis && a->pieces == b->pieces;
}

// How many links the present chain and the wanted one share from the outside.
static int links_common(const Planner *planner, int dim)
{
    const ShardChain *now = &planner->chain[dim], *goal = &planner->goal_chain[dim];
    int common = 0;
    while (common < now->links && common < goal->links &&
           links_equal(&now->link[common], &goal->link[common]))
        common++;
    return common;
}

// The axis wants to be a shard, and its link is the next one that its dimension lacks. `leaving`:
// the dimension whose innermost link goes away in the same step, or -1.
static const ShardLink *find_push(const Planner *planner, int axis, int leaving)
{
    if (planner->goal[axis].kind != PLACEMENT_SHARD)
        return NULL;
    int dim = planner->goal[axis].dim, common = links_common(planner, dim);
    const ShardLink *next = &planner->goal_chain[dim].link[common];
    bool ready = dim != leaving && common == planner->chain[dim].links &&
                 common < planner->goal_chain[dim].links && next->axis == axis;
    return ready ? next : NULL;
}

// The block of the present shape, cut along dim.
static Cut cut_of(const Planner *planner, const ShardLink *link, int dim)
{
    Cut cut = {.link = *link, .outer = 1, .whole = planner->shape[dim]};
    const Tensor *local = &planner->plan->from.local;
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

static void push_link(Planner *planner, PlannedStep *step, const ShardLink *link, int dim)
{
    step->push = cut_of(planner, link, dim);
    ShardChain *chain = &planner->chain[dim];
    chain->link[chain->links++] = *link;
    planner->shape[dim] =
        shard_link_count(link, planner->shape[dim], planner->mesh->coord[link->axis]);
}

// Undoes the innermost link of dim. Its whole length follows from the global one.
static void pop_link(Planner *planner, PlannedStep *step, int dim)
{
    ShardChain *chain = &planner->chain[dim];
    ShardLink link = chain->link[--chain->links];
    int64_t whole = planner->plan->from.shape[dim];
    for (int i = 0; i < chain->links; i++)
        whole = shard_link_count(&chain->link[i], whole, planner->mesh->coord[chain->link[i].axis]);
    planner->shape[dim] = whole;
    step->pop = cut_of(planner, &link, dim);
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
    // The push is cut from the input, so it comes first; the pop makes up the output.
    const ShardLink *link = find_push(planner, axis, pop_dim);
    if (to.kind == PLACEMENT_SHARD && link)
        push_link(planner, step, link, to.dim);
    if (pop_dim >= 0)
        pop_link(planner, step, pop_dim);
    planner->now[axis] = to;
    step->seen.out_bytes = bytes_now(planner);
    memcpy(step->seen.shape, planner->shape, sizeof(planner->shape));
    int coord = planner->mesh->coord[axis];
    step->keeps = kind == REDISTRIBUTE_MAKE_PARTIAL &&
                  (coord == 0 || to.op == COMM_AVG || to.op == COMM_MAX || to.op == COMM_MIN);
}

static bool take_slice(Planner *planner)
{
    for (int axis = 0; axis < planner->mesh->axes; axis++)
        if (planner->now[axis].kind == PLACEMENT_REPLICATE && find_push(planner, axis, -1)) {
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
    bool scatter = find_push(planner, chosen, -1) != NULL;
    take(planner, scatter ? REDISTRIBUTE_REDUCE_SCATTER : REDISTRIBUTE_ALL_REDUCE, chosen,
         scatter ? planner->goal[chosen] : placement_replicate(), -1);
    return true;
}

// Undoes one shard. Moves to another dimension come before gathers: they carry less.
static bool take_removal(Planner *planner)
{
    int chosen = -1, dim_of_chosen = -1;
    for (int dim = 0; dim < planner->plan->from.local.rank; dim++) {
        const ShardChain *chain = &planner->chain[dim];
        if (chain->links == links_common(planner, dim))
            continue;
        int axis = chain->link[chain->links - 1].axis;
        if (find_push(planner, axis, dim)) {
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
        planner.chain[dim] = shard_chain(mesh, planner.now, dim);
        planner.goal_chain[dim] = shard_chain(mesh, planner.goal, dim);
    }
    memcpy(planner.shape, plan->from.local.shape, sizeof(planner.shape));
    planner.one_op = has_one_op(&planner);
    while (take_slice(&planner) || take_combination(&planner) || take_removal(&planner))
        ;
    for (int axis = 0; axis < mesh->axes; axis++)
        if (planner.goal[axis].kind == PLACEMENT_PARTIAL &&
            planner.now[axis].kind == PLACEMENT_REPLICATE)
            take(&planner, REDISTRIBUTE_MAKE_PARTIAL, axis, planner.goal[axis], -1);
    for (int dim = 0; dim < plan->to.local.rank; dim++)
        CHECK_RULE(planner.shape[dim] == plan->to.local.shape[dim]);
}
