// Bytes and memory of a step from its layout: lm_forward.c, lm_backward.c, lm_trainer.c and fsdp.c
// without the work.
#include "experiments/model/lm_explain.h"
#include "parallel/ordered.h"
#include "parallel/shard.h"

#include <stdlib.h>
#include <string.h>

// What the functions below share: one rank's numbers.
typedef struct Pass {
    const LmLayout *layout;
    const LmTraining *training;
    Comm tp;
    int64_t tokens, share; // of the tp group in a micro-batch; a rank's, rounded up
    bool exact;
    LmCost *cost;
} Pass;

static void add(Pass *pass, const char *name, LmTrafficKind kind, int64_t calls, uint64_t bytes)
{
    LmCost *cost = pass->cost;
    if (bytes == 0)
        return;
    cost->sent[kind] += bytes;
    for (int i = 0; i < cost->count; i++)
        if (cost->row[i].name == name) {
            cost->row[i].calls += calls;
            cost->row[i].bytes += bytes;
            return;
        }
    CHECK_RULE(cost->count < LM_COLLECTIVES_MAX);
    cost->row[cost->count++] = (LmCollective){name, kind, calls, bytes};
}

// ---- FSDP ----

static const char *const gather_name[] = {"all-gather parameters", "all-gather experts"};
static const char *const scatter_name[] = {"reduce-scatter gradients", "reduce-scatter experts"};
static const char *const replica_name[] = {"all-reduce gradients", "all-reduce experts"};
static const LmTrafficKind shard_kind[] = {LM_TRAFFIC_SHARD, LM_TRAFFIC_EXPERTS_SHARD};
static const LmTrafficKind replica_kind[] = {LM_TRAFFIC_REPLICA, LM_TRAFFIC_EXPERTS_REPLICA};

// How often a unit is gathered in a step: from the shards, and from its neighbours' pieces.
static void gathers(const Pass *pass, int unit, int64_t *whole, int64_t *kept)
{
    int reshard = pass->training->reshard, units = pass->layout->parameters->units;
    int64_t micros = pass->training->accumulate;
    bool first = unit == 0, last = unit == units - 1;
    *whole = 1, *kept = 0;
    if (reshard == FSDP_RESHARD_NO)
        return;
    // A unit stays where one pass ends and the next begins: the last one for its backward, the
    // first one for the next micro-batch's forward.
    int64_t forward = first ? 1 : micros, backward = last ? 0 : micros;
    *whole = forward + (reshard == FSDP_RESHARD_YES ? backward : 0);
    *kept = reshard > 1 ? backward : 0;
}

static void add_fsdp(Pass *pass, const FsdpSettings *settings, const FsdpPlan *plan)
{
    for (int unit = 0; unit < settings->units; unit++) {
        FsdpTraffic t = fsdp_traffic(settings, plan, unit);
        int64_t whole, kept;
        gathers(pass, unit, &whole, &kept);
        for (int g = 0; g < FSDP_GROUPS; g++) {
            add(pass, gather_name[g], shard_kind[g], whole, (uint64_t)whole * t.gather_bytes[g]);
            add(pass, scatter_name[g], shard_kind[g], 1, t.scatter_bytes[g]);
            add(pass, replica_name[g], replica_kind[g], 1, t.replica_bytes[g]);
        }
        add(pass, "all-gather neighbours", LM_TRAFFIC_KEPT, kept,
            (uint64_t)kept * t.regather_bytes);
        add(pass, "all-reduce gradients over tp", LM_TRAFFIC_TP, t.partial_calls, t.partial_bytes);
    }
}

// ---- tensor parallelism ----

static void add_tp_gather(Pass *pass)
{
    const LmConfig *c = pass->layout->config;
    uint64_t bytes = dtype_bytes(c->dtype, (uint64_t)(pass->share * c->dim));
    add(pass, "all-gather tokens", LM_TRAFFIC_TP, 1, bytes * (uint64_t)(pass->tp.ranks - 1));
}

static void add_tp_sum(Pass *pass)
{
    int64_t dim = pass->layout->config->dim;
    DType wire = lm_tp_wire(pass->layout, pass->exact);
    if (pass->layout->sequence)
        add(pass, "reduce-scatter tokens", LM_TRAFFIC_TP, 1,
            ordered_scatter_wire_bytes(pass->tp, pass->share * dim, wire));
    else
        add(pass, "all-reduce tokens", LM_TRAFFIC_TP, 1,
            ordered_reduce_wire_bytes(pass->tp, pass->tokens * dim, wire));
}

static void add_tp_block(Pass *pass, LmFlow flow)
{
    bool sequence = pass->layout->sequence;
    for (int direction = 0; direction < 2; direction++) { // forward, then backward: duals
        if (flow == LM_FLOW_SPLIT_TOKENS)
            add_tp_gather(pass);
        if (flow == LM_FLOW_SPLIT_INNER) {
            if (sequence)
                add_tp_gather(pass);
            add_tp_sum(pass);
        }
    }
}

static void add_tp(Pass *pass)
{
    const LmLayout *l = pass->layout;
    if (pass->tp.ranks == 1)
        return;
    if (l->split_embedding) {
        add_tp_sum(pass);
        if (l->sequence)
            add_tp_gather(pass);
    }
    for (int layer = 0; layer < l->config->layers; layer++)
        add_tp_block(pass, l->flow[layer]);
    if (!l->split_head)
        return;
    if (l->sequence)
        add_tp_gather(pass);
    uint64_t ranks = (uint64_t)pass->tp.ranks, bytes = (uint64_t)pass->tokens * sizeof(float);
    add(pass, "all-reduce of the loss", LM_TRAFFIC_TP, 2,
        2 * bytes / ranks * (ranks - 1) +
            ordered_reduce_wire_bytes(pass->tp, 2 * pass->tokens, DTYPE_F32));
    add_tp_sum(pass);
}

// ---- experts ----

// Bytes for `rows` (token, rank) pairs and `slots` (token, expert) pairs that leave, and as many of
// other ranks' that go home from here.
static double exchange_bytes(const Pass *pass, double rows, double slots)
{
    const MoeConfig *c = &pass->layout->config->moe;
    MoeShape shape = moe_shape(pass->layout->experts.ranks, c->experts, c->top_k, 1);
    double row = (double)dtype_bytes(c->dtype, (uint64_t)c->hidden);
    double header = (double)shape.header_words * sizeof(int32_t);
    double home = pass->exact ? slots : rows;
    // dispatch of x with headers and of dy; results and dx home; gradients of the weights home
    return rows * (2 * row + header) + 2 * home * row + slots * sizeof(float);
}

// Chance that none of k of E equally likely experts is among the c of a rank.
static double chance_of_none(int experts, int here, int top_k)
{
    double chance = 1;
    for (int i = 0; i < top_k; i++)
        chance *= experts - i > here ? (double)(experts - here - i) / (experts - i) : 0;
    return chance;
}

static double even_rows(const MoeConfig *c, int ranks, int self)
{
    double rows = 0;
    for (int rank = 0; rank < ranks; rank++)
        if (rank != self)
            rows += 1 - chance_of_none(c->experts, (int)shard_of(c->experts, ranks, rank).count,
                                       c->top_k);
    return rows;
}

static void add_dispatch(Pass *pass)
{
    const LmLayout *l = pass->layout;
    const MoeConfig *c = &l->config->moe;
    int ranks = l->experts.ranks;
    if (!lm_is_moe(l->config) || ranks == 1)
        return;
    MoeShape shape = moe_shape(ranks, c->experts, c->top_k, 1);
    double counts = (double)(ranks - 1) * shape.count_words * sizeof(int32_t);
    int here = (int)shard_of(c->experts, ranks, l->experts.coord).count;
    bool shared = l->flow[0] == LM_FLOW_SPLIT_INNER; // every rank of tp sends all tokens
    double tokens = (double)(shared ? pass->tokens : pass->share);
    double layers = (double)l->config->layers * pass->training->accumulate;
    double others = 0; // tokens of the group's other ranks, at most
    for (int d = 0; d < l->data.ranks; d++)
        others = l->tokens_of_data[d] > others ? (double)l->tokens_of_data[d] : others;
    others *= ranks - 1;
    double top_k = c->top_k, most_rows = top_k < ranks - 1 ? top_k : ranks - 1;
    double slots_here = here < c->top_k ? here : c->top_k;
    double most = tokens * most_rows > others ? tokens * most_rows : others;
    double most_slots = tokens * top_k > others * slots_here ? tokens * top_k : others * slots_here;
    double away = top_k * (1 - (double)here / c->experts);
    pass->cost->dispatch_least = layers * counts;
    pass->cost->dispatch_even =
        layers * (counts + exchange_bytes(pass, tokens * even_rows(c, ranks, l->experts.coord),
                                          tokens * away));
    pass->cost->dispatch_most = layers * (counts + exchange_bytes(pass, most, most_slots));
}

// ---- agreements and memory ----

static void add_agreements(Pass *pass)
{
    const LmLayout *l = pass->layout;
    uint64_t others = (uint64_t)(l->mesh->world.ranks - 1), ranks = others + 1;
    add(pass, "gather of the loss", LM_TRAFFIC_WORLD, 1, sizeof(double) * others);
    if (pass->training->clip > 0)
        add(pass, "gather of the norm", LM_TRAFFIC_WORLD, 1, sizeof(double) * others);
    uint64_t counts = (uint64_t)(l->config->layers * l->config->moe.experts) * sizeof(int64_t);
    if (pass->training->balance > 0)
        add(pass, "all-reduce of expert counts", LM_TRAFFIC_WORLD, 1, 2 * counts / ranks * others);
}

static void add_memory(Pass *pass, const FsdpSettings *settings, const FsdpPlan *plan,
                       const LmGroups *groups)
{
    LmCost *cost = pass->cost;
    const LmLayout *l = pass->layout;
    const LmConfig *c = l->config;
    cost->model = lm_memory(&(LmSettings){.layout = l,
                                          .tp = groups->tp,
                                          .experts = groups->experts,
                                          .tokens = pass->tokens,
                                          .parts = 1,
                                          .groups = 1,
                                          .exact = pass->exact,
                                          .device = DEVICE_CPU},
                            plan);
    memcpy(cost->held, cost->model.bytes, sizeof cost->held);
    cost->memory = fsdp_memory(settings, plan);
    cost->held[MEMORY_PARAMETERS] += cost->memory.shard_bytes + cost->memory.gathered_bytes;
    cost->held[MEMORY_GRADIENTS] += cost->memory.full_gradient_bytes;
    cost->held[MEMORY_COMMUNICATION] +=
        cost->memory.send_bytes + cost->memory.scratch_bytes + cost->memory.cast_bytes;
    cost->held[MEMORY_OPTIMISER] += lm_state_bytes(pass->training, plan->flat);
    if (!lm_is_moe(c))
        return;
    // Worst case: every token of the group comes here. Inner activations, rows in and out.
    int ranks = l->experts.ranks,
        here = (int)shard_of(c->moe.experts, ranks, l->experts.coord).count;
    bool shared = l->flow[0] == LM_FLOW_SPLIT_INNER;
    int64_t slots = here < c->moe.top_k ? here : c->moe.top_k;
    int64_t tokens = shared ? pass->tokens : pass->share;
    DTensor out = lm_gathered(l, lm_block_parameter(0, LM_BLOCK_OUT));
    int64_t row = 3 * out.local.shape[2] + c->dim, in = 3 * c->dim;
    cost->experts_held = (uint64_t)c->layers *
                         dtype_bytes(c->dtype, (uint64_t)(ranks * tokens * (slots * row + in)));
}

LmCost lm_cost(const LmLayout *layout, const LmTraining *training, bool exact)
{
    LmCost cost = {0};
    LmGroups groups = lm_groups_without_links(layout, training);
    FsdpParameter *parameters = lm_fsdp_parameters(layout);
    FsdpSettings settings = lm_fsdp_settings(layout, training, &groups, parameters);
    FsdpPlan plan = fsdp_plan_create(&settings);
    int64_t tokens = layout->tokens_of_data[layout->data.coord];
    Pass pass = {.layout = layout,
                 .training = training,
                 .tp = groups.tp,
                 .tokens = tokens,
                 .share = shard_size(tokens, groups.tp.ranks),
                 .exact = exact,
                 .cost = &cost};
    add_fsdp(&pass, &settings, &plan);
    for (int micro = 0; micro < training->accumulate; micro++)
        add_tp(&pass);
    add_dispatch(&pass);
    add_agreements(&pass);
    add_memory(&pass, &settings, &plan, &groups);
    fsdp_plan_destroy(&plan);
    free(parameters);
    return cost;
}
