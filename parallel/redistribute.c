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

// ---- replay ----

static void run_copies(const CopyList *list, const char *from, char *to, Stream stream)
{
    if (list->args.blocks == 0)
        return;
    CopyBlocks args = list->args;
    args.from = from;
    args.to = to;
    copy_blocks(&args, stream);
}

// Collective(the axis). The one place where a plan communicates.
static void run_exchange(const Redistribute *plan, int axis, const Exchange *e, const char *send,
                         char *receive, Stream stream)
{
    const CommSplit split = {e->send_bytes, e->send_offsets, e->receive_bytes, e->receive_offsets};
    comm_all_to_all_v(plan->mesh->comm[axis], &split, send, receive, stream);
}

static void run_combination(const Redistribute *plan, const PlannedStep *step, const char *own,
                            char *out, Stream stream)
{
    uint64_t size = dtype_bytes(plan->from.local.dtype, 1);
    const TermsCombine args = {.dtype = plan->from.local.dtype,
                               .op = partial_terms_op(step->seen.from.op),
                               .terms = plan->mesh->ranks[step->seen.axis],
                               .own_index = plan->mesh->coord[step->seen.axis],
                               .count = (int64_t)(step->own_bytes / size),
                               .stride = (int64_t)(step->term_stride / size),
                               .own = own,
                               .others = plan->receive,
                               .out = out};
    if (args.count > 0)
        terms_combine(&args, stream);
}

static void run_identity(const Redistribute *plan, const PlannedStep *step, char *out,
                         Stream stream)
{
    uint64_t size = dtype_bytes(plan->from.local.dtype, 1);
    const TermsIdentity args = {.dtype = plan->from.local.dtype,
                                .op = partial_terms_op(step->seen.to.op),
                                .count = (int64_t)(step->seen.out_bytes / size),
                                .out = out};
    if (args.count > 0)
        terms_identity(&args, stream);
}

static void run_step(const Redistribute *plan, const PlannedStep *step, const char *in, char *out,
                     Stream stream)
{
    RedistributeKind kind = step->seen.kind;
    int axis = step->seen.axis;
    bool combines = kind == REDISTRIBUTE_REDUCE_SCATTER || kind == REDISTRIBUTE_ALL_REDUCE;
    const char *send = step->seen.send_bytes > 0 ? plan->send : in;
    char *receive = step->seen.receive_bytes > 0 ? plan->receive : out;
    if (kind == REDISTRIBUTE_INTO_PARTIAL || kind == REDISTRIBUTE_MAKE_PARTIAL)
        run_identity(plan, step, out, stream);
    run_copies(&step->pack, in, plan->send, stream);
    run_copies(&step->own, step->own_is_packed ? plan->send : in, out, stream);
    if (step->exchange.send_bytes)
        run_exchange(plan, axis, &step->exchange, send, receive, stream);
    if (combines)
        run_combination(plan, step, send + step->own_offset,
                        out + (step->second.send_bytes ? step->own_offset : 0), stream);
    if (step->second.send_bytes)
        run_exchange(plan, axis, &step->second, out, out, stream);
    run_copies(&step->unpack, plan->receive, out, stream);
}

void redistribute_run(Redistribute *plan, const void *in, void *out, Stream stream)
{
    CHECK_RULE(plan->can_run && stream.device == plan->device);
    const char *now = in;
    for (int i = 0; i < plan->steps; i++) {
        const PlannedStep *step = &plan->step[i];
        if (step->keeps)
            continue;
        char *next = i == plan->last_moving  ? (char *)out
                     : now == plan->stage[0] ? plan->stage[1]
                                             : plan->stage[0];
        run_step(plan, step, now, next, stream);
        now = next;
    }
    uint64_t bytes = tensor_bytes(&plan->to.local);
    if (now != out && bytes > 0)
        device_copy(out, now, bytes, stream);
}

// ---- set-up ----

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
    if (!arena)
        return;
    plan->stage[0] = arena_push(arena, stage, MEMORY_COMMUNICATION);
    plan->stage[1] = arena_push(arena, stage, MEMORY_COMMUNICATION);
    plan->send = arena_push(arena, send, MEMORY_COMMUNICATION);
    plan->receive = arena_push(arena, receive, MEMORY_COMMUNICATION);
}

// Measures the lists, and takes the blocks to where the kernels read them.
static void place_blocks(Redistribute *plan, Arena *arena)
{
    uint64_t bytes = (uint64_t)plan->blocks * sizeof(CopyBlock);
    CopyBlock *placed = plan->block;
    if (plan->device != DEVICE_CPU)
        placed = arena_push(arena, bytes, MEMORY_COMMUNICATION);
    for (int i = 0; i < plan->steps; i++) {
        PlannedStep *step = &plan->step[i];
        CopyList *const lists[] = {&step->pack, &step->own, &step->unpack};
        for (size_t l = 0; l < COUNT_OF(lists); l++) {
            CopyList *list = lists[l];
            if (list->args.blocks == 0)
                continue;
            list->args = copy_blocks_measure(plan->block + list->first, list->args.blocks);
            list->args.block = placed + list->first;
        }
    }
    if (plan->device == DEVICE_CPU || plan->blocks == 0)
        return;
    plan->buffer_bytes += bytes;
    Stream stream = stream_create(plan->device);
    device_copy(placed, plan->block, bytes, stream);
    stream_wait(stream);
    stream_destroy(stream);
}

Redistribute *redistribute_create(const RedistributeSettings *settings)
{
    Redistribute *plan = calloc(1, sizeof(*plan));
    CHECK_RULE(plan != NULL);
    plan->mesh = settings->mesh;
    plan->device = settings->device;
    plan->from = dtensor_make(settings->mesh, settings->whole, settings->from);
    plan->to = dtensor_make(settings->mesh, settings->whole, settings->to);
    redistribute_choose_steps(plan);
    plan->can_run = settings->arena != NULL;
    redistribute_lay_out(plan, plan->can_run);
    plan->last_moving = -1;
    for (int i = 0; i < plan->steps; i++)
        if (!plan->step[i].keeps)
            plan->last_moving = i;
    push_buffers(plan, settings->arena);
    if (plan->can_run)
        place_blocks(plan, settings->arena);
    return plan;
}

void redistribute_destroy(Redistribute *plan)
{
    if (!plan)
        return;
    free(plan->counts);
    free(plan->block);
    free(plan);
}

// ---- what the plan says ----

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
