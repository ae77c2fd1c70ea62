// One rank computes what all ranks together must give.
#include "experiments/model/lm_reference.h"
#include "kernels/elementwise.h"
#include "kernels/reduce.h"
#include "parallel/shard.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Reference {
    const LmTrainerSettings *settings;
    Mesh one;
    LmLayout layout; // of one rank
    Arena *arena;
    Stream stream;
    Lm *lm;
    int parts, groups;
    int *rank_of_part, *group_of_part; // the part's first rank of its tp group
    // Elements: parameters one after the other in flat arrays; in copies with room behind them.
    int64_t *flat_of, *copy_of, *count_of;
    int64_t flat, copy;
    LmState state;      // whole parameters
    char *copies;       // the same in the parameter type, as the model reads them
    float *gradients;   // [parts][copy]
    float *sum, *total; // [largest parameter]
    void *narrow;
    double *square;
    float *scale;
    double *square_scratch;
} Reference;

static const LmConfig *config_of(const Reference *r)
{
    return r->layout.config;
}

static const LmLayout *ranks_of(const Reference *r)
{
    return r->settings->layout;
}

static void *clear(size_t count, size_t bytes)
{
    void *memory = calloc(count + 1, bytes);
    CHECK(memory != NULL, EXIT_CODE_HARDWARE, "use --no-check", "no memory for a reference");
    return memory;
}

// ---- the model's parameters are whole ----

static void nothing(void *context, int unit, bool backward, Stream stream)
{
    (void)context;
    (void)unit;
    (void)backward;
    (void)stream;
}

static const void *value(void *context, int parameter)
{
    const Reference *r = context;
    return r->copies + dtype_bytes(config_of(r)->dtype, (uint64_t)r->copy_of[parameter]);
}

static float *gradient(void *context, int parameter, int part)
{
    const Reference *r = context;
    return r->gradients + part * r->copy + r->copy_of[parameter];
}

static void refresh_copies(Reference *r)
{
    DType dtype = config_of(r)->dtype;
    for (int i = 0; i < r->layout.parameters->count; i++)
        cast_copy(&(CastCopy){.count = r->count_of[i],
                              .from_dtype = DTYPE_F32,
                              .to_dtype = dtype,
                              .from = r->state.values + r->flat_of[i],
                              .to = (void *)value(r, i)},
                  r->stream);
}

// ---- set-up ----

static void find_parts(Reference *r)
{
    const LmLayout *l = ranks_of(r);
    r->parts = l->data.ranks;
    r->rank_of_part = clear((size_t)r->parts, sizeof(int));
    r->group_of_part = clear((size_t)r->parts, sizeof(int));
    bool divided =
        lm_is_moe(l->config) && l->style[lm_block_parameter(0, LM_BLOCK_OUT)] == STYLE_EXPERT;
    r->groups = divided ? l->experts_replica.ranks * l->experts_shard.ranks : r->parts;
    for (int rank = l->mesh->world.ranks - 1; rank >= 0; rank--) {
        int part = mesh_place(l->mesh, &l->data, rank);
        r->rank_of_part[part] = rank; // the smallest rank is the last to write
        r->group_of_part[part] =
            divided ? mesh_place(l->mesh, &l->experts_replica, rank) * l->experts_shard.ranks +
                          mesh_place(l->mesh, &l->experts_shard, rank)
                    : part;
    }
}

static void place_parameters(Reference *r)
{
    const LmParameters *list = r->layout.parameters;
    size_t count = (size_t)list->count;
    r->flat_of = clear(count, sizeof(int64_t));
    r->copy_of = clear(count, sizeof(int64_t));
    r->count_of = clear(count, sizeof(int64_t));
    for (int i = 0; i < list->count; i++) {
        const LmParameter *p = &list->parameter[i];
        r->count_of[i] = tensor_elements(&p->whole);
        r->flat_of[i] = r->flat;
        r->copy_of[i] = p->role == LM_UP ? r->copy : (r->copy + 63) / 64 * 64;
        r->flat += r->count_of[i];
        r->copy = r->copy_of[i] + (p->role == LM_ROUTER
                                       ? moe_router_rows(&config_of(r)->moe) * config_of(r)->dim
                                       : r->count_of[i]);
    }
}

static void push_buffers(Reference *r)
{
    const LmParameters *list = r->layout.parameters;
    DType dtype = config_of(r)->dtype;
    int64_t most = 0;
    for (int i = 0; i < list->count; i++)
        most = r->count_of[i] > most ? r->count_of[i] : most;
    r->state.count = r->flat;
    r->state.values = ARENA_PUSH(r->arena, float, r->flat, MEMORY_PARAMETERS);
    r->state.gradients = ARENA_PUSH(r->arena, float, r->flat, MEMORY_GRADIENTS);
    uint64_t bytes = dtype_bytes(dtype, (uint64_t)r->copy);
    r->copies = arena_push(r->arena, bytes, MEMORY_PARAMETERS);
    device_fill(r->copies, 0, bytes, r->stream);
    r->gradients = ARENA_PUSH(r->arena, float, r->parts * r->copy, MEMORY_GRADIENTS);
    r->sum = ARENA_PUSH(r->arena, float, most, MEMORY_SCRATCH);
    r->total = ARENA_PUSH(r->arena, float, most, MEMORY_SCRATCH);
    r->narrow = ARENA_PUSH(r->arena, float, most, MEMORY_SCRATCH);
    r->square = ARENA_PUSH(r->arena, double, 1, MEMORY_SCRATCH);
    r->scale = ARENA_PUSH(r->arena, float, 1, MEMORY_SCRATCH);
    r->square_scratch = arena_push(r->arena, sum_squares_scratch_bytes(most), MEMORY_SCRATCH);
    lm_state_push(r->settings->training, &r->state, r->arena, r->stream);
    for (int i = 0; i < list->count; i++) {
        DTensor whole = lm_gathered(&r->layout, i);
        lm_fill(list, i, &whole, r->settings->training->seed, r->state.values + r->flat_of[i],
                r->stream);
    }
}

static void make_model(Reference *r)
{
    const LmLayout *l = ranks_of(r);
    const LmTrainerSettings *s = r->settings;
    Comm alone = {.rank = 0, .ranks = 1};
    bool fast = !s->exact && l->experts.ranks > 1;
    r->lm = lm_create(&(LmSettings){
        .layout = &r->layout,
        .store = {nothing, nothing, value, gradient, r},
        .tp = alone,
        .experts = alone,
        .tokens = l->tokens,
        .parts = r->parts,
        .part_tokens = l->tokens_of_data,
        .groups = r->groups,
        .group_of_part = r->group_of_part,
        .tokens_of_step = l->tokens * s->training->accumulate,
        .align = s->align,
        .threads = s->threads,
        .exact = s->exact,
        .group_size = fast ? (int)shard_size(l->config->moe.experts, l->experts.ranks) : 0,
        .transport = EP_LOCAL,
        .device = s->device,
        .arena = r->arena});
}

static void make_layout(Reference *r)
{
    const LmLayout *l = ranks_of(r);
    Error error = {0};
    char tokens[32];
    snprintf(tokens, sizeof tokens, "%lld", (long long)l->tokens);
    bool good = mesh_parse("dp=1", 1, &r->one, &error) &&
                lm_layout_create(&(LmLayoutRequest){.mesh = &r->one,
                                                    .config = l->config,
                                                    .parameters = l->parameters,
                                                    .tokens = tokens},
                                 &r->layout, &error);
    CHECK_RULE(good);
}

// ---- a step ----

static void round_to_wire(Reference *r, float *values, int64_t count)
{
    DType wire = r->settings->training->wire;
    if (wire == DTYPE_F32)
        return;
    CastCopy down = {
        .count = count, .from_dtype = DTYPE_F32, .to_dtype = wire, .from = values, .to = r->narrow};
    CastCopy up = {
        .count = count, .from_dtype = wire, .to_dtype = DTYPE_F32, .from = r->narrow, .to = values};
    cast_copy(&down, r->stream);
    cast_copy(&up, r->stream);
}

// to = first ? from : to + from
static void add_term(Reference *r, float *to, const float *from, int64_t count, bool first)
{
    sum_parts(&(SumParts){.parts = first ? 1 : 2,
                          .count = count,
                          .part_stride = from - to,
                          .part = first ? from : to,
                          .out_dtype = DTYPE_F32,
                          .out = to},
              r->stream);
}

// The part (or group) whose term stands at (replica, shard) of a parameter's groups of ranks.
static int term_at(const Reference *r, int group, int replica, int shard)
{
    const LmLayout *l = ranks_of(r);
    if (group == LM_EXPERTS)
        return replica * l->experts_shard.ranks + shard;
    for (int part = 0; part < r->parts; part++) {
        int rank = r->rank_of_part[part];
        if (mesh_place(l->mesh, &l->replica, rank) == replica &&
            mesh_place(l->mesh, &l->shard, rank) == shard)
            return part;
    }
    CHECK_RULE(false && "every place has a part");
    return -1;
}

// Terms are rounded to the wire type, added over the shard group in f32; the replicas' sums are
// rounded, added, and rounded again: fsdp.c and ordered.c, said without ranks.
static void reduce_parameter(Reference *r, int i)
{
    const LmLayout *l = ranks_of(r);
    int group = lm_group(l, i);
    int shards = group == LM_DENSE ? l->shard.ranks : l->experts_shard.ranks;
    int replicas = group == LM_DENSE ? l->replica.ranks : l->experts_replica.ranks;
    int64_t count = r->count_of[i];
    for (int replica = 0; replica < replicas; replica++) {
        for (int shard = 0; shard < shards; shard++) {
            float *term = gradient(r, i, term_at(r, group, replica, shard));
            round_to_wire(r, term, count);
            add_term(r, r->sum, term, count, shard == 0);
        }
        if (replicas > 1)
            round_to_wire(r, r->sum, count);
        add_term(r, r->total, r->sum, count, replica == 0);
    }
    if (replicas > 1)
        round_to_wire(r, r->total, count);
    float *out = r->state.gradients + r->flat_of[i];
    device_fill(out, 0, dtype_bytes(DTYPE_F32, (uint64_t)count), r->stream);
    add_term(r, out, r->total, count, false);
}

static void add_squares(Reference *r, const float *x, int64_t count, bool accumulate)
{
    sum_squares(&(SumSquares){.count = count,
                              .dtype = DTYPE_F32,
                              .x = x,
                              .sum = r->square,
                              .accumulate = accumulate,
                              .scratch = r->square_scratch},
                r->stream);
}

// One rank's shard of a gradient, side by side in r->sum.
static int64_t collect_shard(Reference *r, const LmLayout *seen, int i)
{
    DTensor part = lm_shard(seen, i);
    int64_t length = part.local.shape[part.local.rank - 1], at = 0;
    int64_t runs = length > 0 ? lm_runs(&part) : 0;
    for (int64_t run = 0; run < runs; run++, at += length)
        device_copy(r->sum + at, r->state.gradients + r->flat_of[i] + lm_run_index(&part, run),
                    dtype_bytes(DTYPE_F32, (uint64_t)length), r->stream);
    return at;
}

// What rank `rank` adds to the sum of squares: the elements it owns.
static double squares_of_rank(Reference *r, int rank)
{
    const LmLayout *l = ranks_of(r);
    LmLayout seen = lm_layout_seen_from(l, rank);
    bool accumulate = false;
    double sum = 0;
    device_fill(r->square, 0, sizeof(double), r->stream);
    for (int i = 0; i < l->parameters->count; i++) {
        if (!lm_is_owner(l, i, rank))
            continue;
        add_squares(r, r->sum, collect_shard(r, &seen, i), accumulate);
        accumulate = true;
    }
    device_copy(&sum, r->square, sizeof sum, r->stream);
    stream_wait(r->stream);
    return sum;
}

static double clip(Reference *r)
{
    double sum = 0;
    for (int rank = 0; rank < ranks_of(r)->mesh->world.ranks; rank++)
        sum += squares_of_rank(r, rank);
    device_copy(r->square, &sum, sizeof sum, r->stream);
    clip_scale(
        &(ClipScale){.sum = r->square, .max_norm = r->settings->training->clip, .scale = r->scale},
        r->stream);
    stream_wait(r->stream);
    return sqrt(sum);
}

static void balance(Reference *r, int64_t *counts, float *bias)
{
    int experts = config_of(r)->moe.experts;
    for (int layer = 0; layer < config_of(r)->layers; layer++) {
        lm_balance(r->settings->training->balance, experts, counts + (int64_t)layer * experts,
                   bias + (int64_t)layer * experts);
        lm_set_expert_bias(r->lm, layer, bias + (int64_t)layer * experts, r->stream);
    }
}

static void keep(const Reference *r, const float *flat, LmWhole *whole)
{
    for (int i = 0; i < whole->count; i++)
        if (r->count_of[i] > 0)
            device_copy(whole->tensor[i], flat + r->flat_of[i],
                        dtype_bytes(DTYPE_F32, (uint64_t)r->count_of[i]), r->stream);
    stream_wait(r->stream);
}

static double forward_backward(Reference *r, int step, int64_t *counts)
{
    const LmLayout *l = ranks_of(r);
    const LmTraining *training = r->settings->training;
    int32_t *ids = clear(2 * (size_t)l->tokens, sizeof(int32_t)), *targets = ids + l->tokens;
    double loss = 0;
    for (int micro = 0; micro < training->accumulate; micro++) {
        lm_tokens(l->config, training->seed, lm_first_token(training, l->tokens, step, micro),
                  l->tokens, ids, targets);
        lm_set_tokens(r->lm, ids, targets, r->stream);
        lm_forward(r->lm, micro > 0, r->stream);
        if (counts)
            lm_count_choices(r->lm, counts, r->stream);
        lm_backward(r->lm, micro > 0, r->stream);
    }
    for (int part = 0; part < r->parts; part++)
        loss += lm_loss_sum(r->lm, part, r->stream);
    free(ids);
    return loss / (double)(l->tokens * training->accumulate);
}

static void run_step(Reference *r, int step, LmResult *result)
{
    const LmTraining *training = r->settings->training;
    size_t experts = (size_t)(config_of(r)->layers * config_of(r)->moe.experts);
    bool balances = training->balance > 0 && lm_is_moe(config_of(r));
    int64_t *counts = balances ? clear(experts, sizeof(int64_t)) : NULL;
    refresh_copies(r);
    result->loss[step] = forward_backward(r, step, counts);
    for (int i = 0; i < r->layout.parameters->count; i++)
        reduce_parameter(r, i);
    if (step == 0)
        keep(r, r->state.gradients, &result->first_gradient);
    if (step == training->steps - 1)
        keep(r, r->state.gradients, &result->last_gradient);
    result->norm[step] = training->clip > 0 ? clip(r) : NAN;
    lm_optimise(training, &r->state, step, training->clip > 0 ? r->scale : NULL, r->stream);
    if (balances)
        balance(r, counts, result->bias);
    free(counts);
}

uint64_t lm_reference_bytes(const LmTrainerSettings *settings)
{
    const LmLayout *l = settings->layout;
    uint64_t elements = 0, tokens = (uint64_t)l->tokens;
    for (int i = 0; i < l->parameters->count; i++)
        elements += (uint64_t)tensor_elements(&l->parameters->parameter[i].whole);
    const LmConfig *c = l->config;
    uint64_t inner = (uint64_t)(lm_is_moe(c) ? 4 * c->moe.inner * c->moe.top_k : 4 * c->inner);
    uint64_t row = (uint64_t)c->layers * (inner + 8 * (uint64_t)c->dim) + (uint64_t)c->vocab;
    return 4 * (elements * (6 + (uint64_t)l->data.ranks) + tokens * row);
}

void lm_reference(const LmTrainerSettings *settings, LmResult *result)
{
    Reference r = {.settings = settings,
                   .arena = arena_create(MEMORY_DEVICE, settings->device),
                   .stream = stream_create(settings->device)};
    make_layout(&r);
    find_parts(&r);
    place_parameters(&r);
    push_buffers(&r);
    make_model(&r);
    for (int step = 0; step < settings->training->steps; step++)
        run_step(&r, step, result);
    keep(&r, r.state.values, &result->values);
    lm_destroy(r.lm);
    stream_destroy(r.stream);
    arena_destroy(r.arena);
    lm_layout_destroy(&r.layout);
    free(r.rank_of_part);
    free(r.group_of_part);
    free(r.flat_of);
    free(r.copy_of);
    free(r.count_of);
}
