// Expert parallelism, step by step: plan, dispatch, return, sum, and the last three again for the
// gradients. The kernels of kernels/ do the addressing and the sums; ep_transport.c gets bytes
// across.
//
// The barriers of peer memory in one step (staged transports order themselves):
//
//   ep_dispatch       1 begin: nobody still reads x, headers and counts of the last step
//                     2 exchange: x, headers, counts have arrived
//   ep_return         3 exchange: results have arrived; ep_sum reads them
//   ep_dispatch_back  4 exchange: dy has arrived
//   ep_return         5 exchange: dx and dweights have arrived; ep_sum reads them
//
// These five are enough, since each also proves that a later store hurts nobody. The return region
// is stored into by both returns: barrier 4 comes after every rank's forward sum, so the second
// return cannot overwrite what that sum still reads, and barrier 1 of the next step does the same
// for the backward sum. dy is stored after barrier 3 and was last read before barrier 1. None can
// go: without 1 a fast rank's next x would land under a slow rank's weight gradients.
#include "parallel/ep.h"

#include <stdlib.h>

#include "parallel/ep_link.h"
#include "parallel/shard.h"

static void check_sizes(const EpSettings *settings, const MoeShape *shape, int64_t expert_rows_max)
{
    CHECK_RULE(settings->tokens >= 0 && settings->hidden >= 1 && settings->experts >= 1);
    CHECK_RULE(settings->top_k >= 1 && settings->top_k <= settings->experts);
    CHECK_RULE(settings->align >= 1);
    // Row indices and return places are int32.
    int64_t places = shape->ranks * shape->tokens_max * (int64_t)settings->top_k;
    int64_t most = places > expert_rows_max ? places : expert_rows_max;
    CHECK(most <= INT32_MAX, EXIT_CODE_USAGE,
          "use fewer tokens per rank (--tokens), or fewer ranks in --experts_on",
          "%d ranks x %lld tokens x top-%d could make %lld expert rows on one rank; row indices "
          "end at 2147483647",
          shape->ranks, (long long)shape->tokens_max, settings->top_k, (long long)most);
}

static void make_plan(Ep *ep)
{
    const EpSettings *settings = &ep->settings;
    const MoeShape *shape = &ep->rows.shape;
    Arena *arena = settings->arena;
    int64_t slots = settings->tokens * shape->top_k, pairs = settings->tokens * shape->ranks;
    ep->plan = (MoePlan){
        .shape = *shape,
        .tokens = settings->tokens,
        .compact = ep->row->compact,
        .counts =
            ARENA_PUSH(arena, int32_t, shape->ranks * shape->count_words, MEMORY_COMMUNICATION),
        .row_of_token = ARENA_PUSH(arena, int32_t, pairs, MEMORY_COMMUNICATION),
        .position_of_slot = ARENA_PUSH(arena, int32_t, slots, MEMORY_COMMUNICATION),
        .return_of_slot = ARENA_PUSH(arena, int32_t, slots, MEMORY_COMMUNICATION),
        .return_of_row = ARENA_PUSH(arena, int32_t, pairs, MEMORY_COMMUNICATION),
        .scratch = ARENA_PUSH(arena, int32_t, moe_plan_scratch_words(shape, settings->tokens),
                              MEMORY_COMMUNICATION),
    };
}

static void make_maps(Ep *ep)
{
    const MoeShape *shape = &ep->rows.shape;
    Arena *arena = ep->settings.arena;
    int64_t experts = ep->rows.experts_local, rows = ep->rows.expert_rows_max;
    ep->maps = (MoeMaps){
        .shape = *shape,
        .experts_local = ep->rows.experts_local,
        .align = ep->settings.align,
        .expert_rows_max = rows,
        .counts = (const int32_t *)ep->in[EP_COUNTS],
        .headers = (const int32_t *)ep->in[EP_HEADERS],
        .group_rows = ARENA_PUSH(arena, int32_t, experts, MEMORY_COMMUNICATION),
        .group_first = ARENA_PUSH(arena, int32_t, experts, MEMORY_COMMUNICATION),
        .rows_total = ARENA_PUSH(arena, int32_t, 1, MEMORY_COMMUNICATION),
        .row_of_expert_row = ARENA_PUSH(arena, int32_t, rows, MEMORY_COMMUNICATION),
        .return_of_expert_row = ARENA_PUSH(arena, int32_t, rows, MEMORY_COMMUNICATION),
        .weight_of_expert_row = ARENA_PUSH(arena, float, rows, MEMORY_COMMUNICATION),
        .expert_row_of_slot =
            ARENA_PUSH(arena, int32_t, shape->ranks * shape->tokens_max * shape->slots_max,
                       MEMORY_COMMUNICATION),
    };
    ep->rows.group_first = ep->maps.group_first;
    ep->rows.group_rows = ep->maps.group_rows;
    ep->rows.rows_total = ep->maps.rows_total;
    ep->rows.row_of_expert_row = ep->maps.row_of_expert_row;
    ep->rows.weight_of_expert_row = ep->maps.weight_of_expert_row;
    ep->rows.x_rows = ep->in[EP_X];
    ep->rows.dy_rows = ep->in[EP_DY];
}

Ep *ep_create(const EpSettings *settings)
{
    Ep *ep = calloc(1, sizeof(*ep));
    CHECK_RULE(ep != NULL);
    ep->settings = *settings;
    Comm comm = settings->comm;
    // At least 1, so that no region is empty when nobody has tokens.
    int64_t tokens_max = comm_maximum(comm, settings->tokens > 0 ? settings->tokens : 1);
    MoeShape shape = moe_shape(comm.ranks, settings->experts, settings->top_k, tokens_max);
    Shard experts = shard_of(settings->experts, comm.ranks, comm.rank);
    int64_t slots_here = experts.count < settings->top_k ? experts.count : settings->top_k;
    int64_t padding = settings->align > 1 ? experts.count * settings->align : 0;
    ep->rows.shape = shape;
    ep->rows.experts_local = (int)experts.count;
    ep->rows.first_expert = (int)experts.first;
    ep->rows.expert_rows_max = comm.ranks * tokens_max * slots_here + padding;
    check_sizes(settings, &shape, ep->rows.expert_rows_max);
    ep->row_bytes = dtype_bytes(settings->dtype, (uint64_t)settings->hidden);
    ep->host_counts = calloc(2 * (size_t)comm.ranks * (size_t)shape.count_words, sizeof(int32_t));
    ep->exchange_bytes = calloc(4 * (size_t)comm.ranks, sizeof(uint64_t));
    CHECK_RULE(ep->host_counts != NULL && ep->exchange_bytes != NULL);
    ep_transport_create(ep);
    make_plan(ep);
    make_maps(ep);
    return ep;
}

void ep_destroy(Ep *ep)
{
    if (!ep)
        return;
    peer_destroy(ep->peer);
    free(ep->host_counts);
    free(ep->exchange_bytes);
    free(ep);
}

EpTransport ep_transport(const Ep *ep)
{
    return ep->transport;
}

const char *ep_transport_note(const Ep *ep)
{
    return ep->note;
}

const EpRows *ep_rows(const Ep *ep)
{
    return &ep->rows;
}

void ep_plan(Ep *ep, const int32_t *expert_of_slot, const float *weight_of_slot, Stream stream)
{
    ep->plan.expert_of_slot = expert_of_slot;
    ep->weight_of_slot = weight_of_slot;
    moe_plan(&ep->plan, stream);
}

// Stores rows for every rank; with headers and counts when the rows are the forward's.
static void pack(Ep *ep, EpRegion region, const void *rows, Stream stream)
{
    const MoePlan *plan = &ep->plan;
    bool forward = region == EP_X;
    MoePack args = {
        .shape = plan->shape,
        .tokens = plan->tokens,
        .hidden = ep->settings.hidden,
        .dtype = ep->settings.dtype,
        .x = rows,
        .row_of_token = plan->row_of_token,
        .rows_to = ep->to[region],
        .headers_to = forward ? (int32_t *const *)ep->to[EP_HEADERS] : NULL,
        .counts_to = forward ? (int32_t *const *)ep->to[EP_COUNTS] : NULL,
        .counts = plan->counts,
        .expert_of_slot = plan->expert_of_slot,
        .position_of_slot = plan->position_of_slot,
        .return_of_slot = plan->return_of_slot,
        .return_of_row = plan->return_of_row,
        .weight_of_slot = ep->weight_of_slot,
    };
    moe_pack(&args, stream);
}

void ep_dispatch(Ep *ep, const void *x, Stream stream)
{
    static const EpRegion regions[] = {EP_COUNTS, EP_HEADERS, EP_X};
    if (ep->row->begin)
        ep->row->begin(ep, stream);
    pack(ep, EP_X, x, stream);
    if (ep->row->exchange)
        ep->row->exchange(ep, regions, COUNT_OF(regions), stream);
    else
        ep->rows.x_rows =
            x; // local: row index = token, since every token has a row to the only rank
    moe_maps(&ep->maps, stream);
}

void ep_dispatch_back(Ep *ep, const void *dy, Stream stream)
{
    static const EpRegion region = EP_DY;
    if (!ep->row->exchange) {
        ep->rows.dy_rows = dy;
        return;
    }
    pack(ep, EP_DY, dy, stream);
    ep->row->exchange(ep, &region, 1, stream);
}

// Where a slot's result is found at home: with one rank the expert row itself, otherwise its place
// in the return region.
static const int32_t *place_of_slot(const Ep *ep)
{
    return ep->row->exchange ? ep->plan.return_of_slot : ep->maps.expert_row_of_slot;
}

void ep_return(Ep *ep, const EpReturn *what, Stream stream)
{
    static const EpRegion regions[] = {EP_RETURNED, EP_DWEIGHTS};
    const MoeShape *shape = &ep->rows.shape;
    const float *dweights = what->dweight_of_expert_row;
    bool weights_here = what->weighted && !ep->settings.exact;
    if (ep->row->exchange) {
        MoeReturn args = {
            .shape = *shape,
            .exact = ep->settings.exact,
            .hidden = ep->settings.hidden,
            .dtype = ep->settings.dtype,
            .expert_rows = what->expert_rows,
            .counts = ep->maps.counts,
            .headers = ep->maps.headers,
            .expert_row_of_slot = ep->maps.expert_row_of_slot,
            .weight_of_expert_row = weights_here ? ep->maps.weight_of_expert_row : NULL,
            .rows_to = ep->to[EP_RETURNED],
            .dweight_of_expert_row = dweights,
            .dweights_to = dweights ? (float *const *)ep->to[EP_DWEIGHTS] : NULL,
        };
        moe_return(&args, stream);
        ep->row->exchange(ep, regions, dweights ? 2 : 1, stream);
    }
    if (!dweights)
        return;
    // Into slot order: a "sum" of one place, one float wide.
    MoeSum gather = {
        .tokens = ep->settings.tokens * shape->top_k,
        .hidden = 1,
        .width = 1,
        .dtype = DTYPE_F32,
        .returned = ep->row->exchange ? (const void *)ep->in[EP_DWEIGHTS] : dweights,
        .index = place_of_slot(ep),
        .out = what->dweight_of_slot,
    };
    moe_sum(&gather, stream);
}

void ep_sum(Ep *ep, const EpSum *what, Stream stream)
{
    const MoeShape *shape = &ep->rows.shape;
    bool local = !ep->row->exchange;
    bool by_slot = local || ep->settings.exact;
    MoeSum sum = {
        .tokens = ep->settings.tokens,
        .hidden = ep->settings.hidden,
        .width = by_slot ? shape->top_k : shape->ranks,
        .dtype = ep->settings.dtype,
        .returned = local ? what->expert_rows : ep->in[EP_RETURNED],
        .index = by_slot ? place_of_slot(ep) : ep->plan.return_of_row,
        .weight = by_slot && what->weighted ? ep->weight_of_slot : NULL,
        .group_size = local ? what->group_size : 0,
        .expert_of_slot = ep->plan.expert_of_slot,
        .addend = what->addend,
        .addend_weight = what->addend_weight,
        .out = what->out,
    };
    moe_sum(&sum, stream);
}

// Counts are read back, so this is for reports, outside the step. Staged transports send whole
// headers, the fixed-size exchange whole segments; stores into peer memory send the header words in
// use.
EpTraffic ep_traffic(const Ep *ep, Stream stream)
{
    const MoeShape *shape = &ep->rows.shape;
    int32_t *sent = ep->host_counts, *received = sent + shape->ranks * shape->count_words;
    uint64_t record_bytes = (uint64_t)shape->count_words * sizeof(int32_t);
    uint64_t records_bytes = (uint64_t)shape->ranks * record_bytes;
    device_copy(sent, ep->plan.counts, records_bytes, stream);
    device_copy(received, ep->maps.counts, records_bytes, stream);
    stream_wait(stream);
    EpTraffic traffic = {0};
    for (int rank = 0; rank < shape->ranks; rank++) {
        const int32_t *to = sent + rank * shape->count_words;
        const int32_t *from = received + rank * shape->count_words;
        traffic.expert_rows += from[MOE_COUNT_SLOTS];
        if (rank == ep->settings.comm.rank)
            continue;
        uint64_t rows = (uint64_t)to[MOE_COUNT_ROWS], slots = (uint64_t)to[MOE_COUNT_SLOTS];
        uint64_t slots_home = (uint64_t)from[MOE_COUNT_SLOTS];
        uint64_t rows_home = ep->settings.exact ? slots_home : (uint64_t)from[MOE_COUNT_ROWS];
        uint64_t header_words = ep->row->staged
                                    ? rows * (uint64_t)shape->header_words
                                    : rows * MOE_HEADER_FIXED + slots * MOE_HEADER_PER_SLOT;
        traffic.dispatch_logical_bytes += slots * ep->row_bytes;
        traffic.combine_logical_bytes += slots_home * ep->row_bytes;
        if (ep->transport == EP_NCCL) {
            traffic.dispatch_wire_bytes += ep->segment_bytes[EP_COUNTS] +
                                           ep->segment_bytes[EP_HEADERS] + ep->segment_bytes[EP_X];
            traffic.combine_wire_bytes += ep->segment_bytes[EP_RETURNED];
        } else {
            traffic.dispatch_wire_bytes +=
                record_bytes + header_words * sizeof(int32_t) + rows * ep->row_bytes;
            traffic.combine_wire_bytes += rows_home * ep->row_bytes;
        }
    }
    return traffic;
}
