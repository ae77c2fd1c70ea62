// Replaying a plan: each step reads the part of the step before and writes the next one, between
// two stages, through packed buffers where the parts of the other ranks are not contiguous.
//
// The exchange is always comm_all_to_all_v: unpadded all-gather, all-to-all and reduce-scatter are
// the same call with other counts (an all-gather sends one part to everybody). All-reduce is a
// reduce-scatter of flat shards and an all-gather, as rings do it (Patarasuk and Yuan, "Bandwidth
// optimal all-reduce algorithms", 2009), so that each sum is made once and in rank order.
#include "parallel/redistribute.h"

#include <stdlib.h>
#include <string.h>

#include "parallel/partial.h"
#include "parallel/redistribute_plan.h"

static const char *const kind_names[REDISTRIBUTE_KINDS] = {
    [REDISTRIBUTE_SLICE] = "slice",
    [REDISTRIBUTE_REDUCE_SCATTER] = "reduce-scatter",
    [REDISTRIBUTE_ALL_REDUCE] = "all-reduce",
    [REDISTRIBUTE_ALL_GATHER] = "all-gather",
    [REDISTRIBUTE_ALL_TO_ALL] = "all-to-all",
    [REDISTRIBUTE_INTO_PARTIAL] = "into partial",
    [REDISTRIBUTE_MAKE_PARTIAL] = "make partial",
};

uint64_t cut_bytes(const Cut *cut, int coord)
{
    return (uint64_t)(cut->outer * shard_link_count(&cut->link, cut->whole, coord)) *
           cut->inner_bytes;
}

bool cut_is_contiguous(const Cut *cut)
{
    return cut->outer == 1 && cut->link.pieces == 1;
}

uint64_t cut_offset(const Cut *cut, int coord)
{
    return (uint64_t)shard_link_run(&cut->link, cut->whole, coord, 0).whole_first *
           cut->inner_bytes;
}

// Between a block and the packed part of a coordinate. to_block: the part is laid into the block.
static void cut_copy(const Cut *cut, int coord, char *block, char *part, bool to_block)
{
    uint64_t part_rows = (uint64_t)shard_link_count(&cut->link, cut->whole, coord);
    if (part_rows == 0 || cut->inner_bytes == 0)
        return;
    for (int64_t run_index = 0; run_index < cut->link.pieces; run_index++) {
        ShardRun run = shard_link_run(&cut->link, cut->whole, coord, run_index);
        uint64_t bytes = (uint64_t)run.count * cut->inner_bytes;
        char *in_block = block + (uint64_t)run.whole_first * cut->inner_bytes;
        char *in_part = part + (uint64_t)run.part_first * cut->inner_bytes;
        for (int64_t i = 0; i < cut->outer && bytes > 0; i++) {
            memcpy(to_block ? in_block : in_part, to_block ? in_part : in_block, bytes);
            in_block += (uint64_t)cut->whole * cut->inner_bytes;
            in_part += part_rows * cut->inner_bytes;
        }
    }
}

// Collective(the axis). The one place where a plan communicates.
static void exchange(const Mesh *mesh, int axis, const Exchange *e, const void *send, void *receive)
{
    comm_all_to_all_v(mesh->comm[axis], send, e->send_bytes, e->send_offsets, receive,
                      e->receive_bytes, e->receive_offsets);
}

static void pack(const PlannedStep *step, int ranks, const char *in, char *send)
{
    for (int rank = 0; rank < ranks; rank++)
        cut_copy(&step->push, rank, (char *)(uintptr_t)in, send + step->exchange.send_offsets[rank],
                 false);
}

static void unpack(const PlannedStep *step, int ranks, char *receive, char *out)
{
    for (int rank = 0; rank < ranks; rank++)
        cut_copy(&step->pop, rank, out, receive + step->exchange.receive_offsets[rank], true);
}

static void run_local(const Redistribute *plan, const PlannedStep *step, const char *in, char *out)
{
    const RedistributeStep *seen = &step->seen;
    DType dtype = plan->from.local.dtype;
    int coord = plan->mesh->coord[seen->axis];
    char *from = (char *)(uintptr_t)in; // cut_copy goes both ways; here it only reads
    if (seen->kind == REDISTRIBUTE_SLICE) {
        cut_copy(&step->push, coord, from, out, false);
        return;
    }
    int64_t count = (int64_t)(seen->out_bytes / dtype_bytes(dtype, 1));
    if (seen->out_bytes > 0)
        partial_fill_identity(dtype, seen->to.op, count, out);
    if (seen->kind == REDISTRIBUTE_INTO_PARTIAL)
        cut_copy(&step->pop, coord, out, from, true);
}

static void run_collective(const Redistribute *plan, const PlannedStep *step, const char *in,
                           char *out)
{
    const RedistributeStep *seen = &step->seen;
    const Mesh *mesh = plan->mesh;
    int axis = seen->axis, ranks = mesh->ranks[axis];
    DType dtype = plan->from.local.dtype;
    const char *send = in;
    char *receive = seen->receive_bytes > 0 ? plan->receive : out;
    if (seen->send_bytes > 0) {
        pack(step, ranks, in, plan->send);
        send = plan->send;
    }
    exchange(mesh, axis, &step->exchange, send, receive);
    if (seen->kind == REDISTRIBUTE_ALL_GATHER || seen->kind == REDISTRIBUTE_ALL_TO_ALL) {
        if (receive != out)
            unpack(step, ranks, receive, out);
        return;
    }
    uint64_t mine = step->exchange.receive_bytes[mesh->coord[axis]];
    int64_t count = (int64_t)(mine / dtype_bytes(dtype, 1));
    bool reduces_all = seen->kind == REDISTRIBUTE_ALL_REDUCE;
    char *sum = reduces_all ? receive : out; // element by element, so terms may be overwritten
    if (count > 0)
        partial_combine(dtype, seen->from.op, ranks, receive, count, sum);
    if (reduces_all)
        exchange(mesh, axis, &step->second, sum, out);
}

void redistribute_run(Redistribute *plan, const void *in, void *out, Stream stream)
{
    CHECK(stream.device == DEVICE_CPU, EXIT_CODE_HARDWARE, "use --device cpu",
          "redistribute has no rows for %s yet", device_kind_name(stream.device));
    CHECK_RULE(plan->can_run);
    const char *now = in;
    for (int i = 0; i < plan->steps; i++) {
        const PlannedStep *step = &plan->step[i];
        if (step->keeps)
            continue;
        char *next = i == plan->last_moving  ? (char *)out
                     : now == plan->stage[0] ? plan->stage[1]
                                             : plan->stage[0];
        bool is_local = !step->exchange.send_bytes;
        (is_local ? run_local : run_collective)(plan, step, now, next);
        now = next;
    }
    uint64_t bytes = tensor_bytes(&plan->to.local);
    if (now != out && bytes > 0)
        memcpy(out, now, bytes);
}

// ---- set-up ----

// The parts of all ranks one after the other; returns their sum.
static uint64_t lay_out(const Cut *cut, int ranks, uint64_t *bytes, uint64_t *offsets)
{
    uint64_t total = 0;
    for (int rank = 0; rank < ranks; rank++) {
        bytes[rank] = cut_bytes(cut, rank);
        offsets[rank] = total;
        total += bytes[rank];
    }
    return total;
}

static void same_for_all(int ranks, uint64_t size, bool apart, uint64_t *bytes, uint64_t *offsets)
{
    for (int rank = 0; rank < ranks; rank++) {
        bytes[rank] = size;
        offsets[rank] = apart ? (uint64_t)rank * size : 0;
    }
}

static void plan_gather(PlannedStep *step, const Cut *cut, int coord, Exchange *e)
{
    int ranks = cut->link.ranks;
    same_for_all(ranks, cut_bytes(cut, coord), false, e->send_bytes, e->send_offsets);
    uint64_t total = lay_out(cut, ranks, e->receive_bytes, e->receive_offsets);
    // Parts of a contiguous cut lie in rank order, so received parts are at their places already.
    if (!cut_is_contiguous(cut))
        step->seen.receive_bytes = total;
}

static void plan_scatter(PlannedStep *step, int coord)
{
    Exchange *e = &step->exchange;
    const Cut *cut = &step->push;
    int ranks = cut->link.ranks;
    uint64_t total = lay_out(cut, ranks, e->send_bytes, e->send_offsets);
    if (!cut_is_contiguous(cut))
        step->seen.send_bytes = total;
    uint64_t mine = e->send_bytes[coord];
    same_for_all(ranks, mine, true, e->receive_bytes, e->receive_offsets);
    step->seen.receive_bytes = mine * (uint64_t)ranks;
}

static void plan_exchange(Redistribute *plan, PlannedStep *step)
{
    const Mesh *mesh = plan->mesh;
    int axis = step->seen.axis, ranks = mesh->ranks[axis], coord = mesh->coord[axis];
    uint64_t size = dtype_bytes(plan->from.local.dtype, 1);
    Exchange *e = &step->exchange;
    switch (step->seen.kind) {
    case REDISTRIBUTE_ALL_GATHER:
        plan_gather(step, &step->pop, coord, e);
        break;
    case REDISTRIBUTE_REDUCE_SCATTER:
        plan_scatter(step, coord);
        break;
    case REDISTRIBUTE_ALL_REDUCE:
        step->push = (Cut){.link = {.axis = axis, .ranks = ranks, .pieces = 1},
                           .outer = 1,
                           .whole = (int64_t)(step->seen.in_bytes / size),
                           .inner_bytes = size};
        plan_scatter(step, coord);
        plan_gather(step, &step->push, coord, &step->second);
        break;
    case REDISTRIBUTE_ALL_TO_ALL:
        step->seen.send_bytes = lay_out(&step->push, ranks, e->send_bytes, e->send_offsets);
        step->seen.receive_bytes = lay_out(&step->pop, ranks, e->receive_bytes, e->receive_offsets);
        break;
    default:
        return;
    }
    for (int rank = 0; rank < ranks; rank++)
        if (rank != coord)
            step->seen.wire_bytes +=
                e->send_bytes[rank] + (step->second.send_bytes ? step->second.send_bytes[rank] : 0);
}

static bool communicates(RedistributeKind kind)
{
    return kind == REDISTRIBUTE_ALL_GATHER || kind == REDISTRIBUTE_REDUCE_SCATTER ||
           kind == REDISTRIBUTE_ALL_REDUCE || kind == REDISTRIBUTE_ALL_TO_ALL;
}

// One block for the counts of all steps.
static void give_counts(Redistribute *plan)
{
    uint64_t words = 1;
    for (int i = 0; i < plan->steps; i++)
        words += 8 * (uint64_t)plan->mesh->ranks[plan->step[i].seen.axis];
    plan->counts = calloc(words, sizeof(uint64_t));
    CHECK_RULE(plan->counts != NULL);
    uint64_t *next = plan->counts;
    for (int i = 0; i < plan->steps; i++) {
        PlannedStep *step = &plan->step[i];
        uint64_t ranks = (uint64_t)plan->mesh->ranks[step->seen.axis];
        Exchange *const halves[] = {&step->exchange, &step->second};
        bool needed[] = {communicates(step->seen.kind), step->seen.kind == REDISTRIBUTE_ALL_REDUCE};
        for (int half = 0; half < 2; half++) {
            if (!needed[half])
                continue;
            *halves[half] = (Exchange){next, next + ranks, next + 2 * ranks, next + 3 * ranks};
            next += 4 * ranks;
        }
    }
}

static void push_buffers(Redistribute *plan, Arena *arena)
{
    uint64_t stage = 0, send = 0, receive = 0;
    for (int i = 0; i < plan->steps; i++) {
        const RedistributeStep *seen = &plan->step[i].seen;
        if (i < plan->last_moving && !plan->step[i].keeps && seen->out_bytes > stage)
            stage = seen->out_bytes;
        send = seen->send_bytes > send ? seen->send_bytes : send;
        receive = seen->receive_bytes > receive ? seen->receive_bytes : receive;
    }
    plan->buffer_bytes = 2 * stage + send + receive;
    plan->can_run = arena != NULL;
    if (!arena)
        return;
    plan->stage[0] = arena_push(arena, stage, MEMORY_COMMUNICATION);
    plan->stage[1] = arena_push(arena, stage, MEMORY_COMMUNICATION);
    plan->send = arena_push(arena, send, MEMORY_COMMUNICATION);
    plan->receive = arena_push(arena, receive, MEMORY_COMMUNICATION);
}

Redistribute *redistribute_create(const RedistributeSettings *settings)
{
    Redistribute *plan = calloc(1, sizeof(*plan));
    CHECK_RULE(plan != NULL);
    plan->mesh = settings->mesh;
    plan->from = dtensor_make(settings->mesh, settings->whole, settings->from);
    plan->to = dtensor_make(settings->mesh, settings->whole, settings->to);
    redistribute_choose_steps(plan);
    give_counts(plan);
    plan->last_moving = -1;
    for (int i = 0; i < plan->steps; i++) {
        plan_exchange(plan, &plan->step[i]);
        if (!plan->step[i].keeps)
            plan->last_moving = i;
    }
    push_buffers(plan, settings->arena);
    return plan;
}

void redistribute_destroy(Redistribute *plan)
{
    if (!plan)
        return;
    free(plan->counts);
    free(plan);
}

int redistribute_steps(const Redistribute *plan)
{
    return plan->steps;
}

const RedistributeStep *redistribute_step(const Redistribute *plan, int step)
{
    CHECK_RULE(step >= 0 && step < plan->steps);
    return &plan->step[step].seen;
}

uint64_t redistribute_wire_bytes(const Redistribute *plan)
{
    uint64_t bytes = 0;
    for (int i = 0; i < plan->steps; i++)
        bytes += plan->step[i].seen.wire_bytes;
    return bytes;
}

uint64_t redistribute_buffer_bytes(const Redistribute *plan)
{
    return plan->buffer_bytes;
}

const DTensor *redistribute_from(const Redistribute *plan)
{
    return &plan->from;
}

const DTensor *redistribute_to(const Redistribute *plan)
{
    return &plan->to;
}

const char *redistribute_kind_name(RedistributeKind kind)
{
    return kind_names[kind];
}
