// Training steps over a mesh.
#include "experiments/model/lm_trainer.h"
#include "kernels/elementwise.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef enum Span { SPAN_FORWARD, SPAN_BACKWARD, SPAN_OPTIMISE, SPANS } Span;

struct LmTrainer {
    Recorder *recorder;
    int span[SPANS];
    LmTrainerSettings settings;
    LmGroups groups;
    FsdpParameter *parameters;
    Fsdp *fsdp;
    Lm *lm;
    LmState state;
    int64_t tokens; // of this rank's tp group, per micro-batch
    int32_t *ids, *targets;
    bool last_micro;
    int64_t *counts; // [layers][experts]
    float *bias;     // [layers][experts]
    double *of_rank; // [ranks] host
    double *square;  // [1 + ranks] device: this rank's, then everybody's
    float *scale;    // [1] device
    double *square_scratch;
};

const char *lm_traffic_name(LmTrafficKind kind)
{
    static const char *const names[LM_TRAFFIC_KINDS] = {
        [LM_TRAFFIC_SHARD] = "shards",
        [LM_TRAFFIC_REPLICA] = "replicas",
        [LM_TRAFFIC_EXPERTS_SHARD] = "shards of experts",
        [LM_TRAFFIC_EXPERTS_REPLICA] = "replicas of experts",
        [LM_TRAFFIC_TP] = "tensor parallel",
        [LM_TRAFFIC_DISPATCH] = "dispatch and combine",
        [LM_TRAFFIC_KEPT] = "neighbours",
        [LM_TRAFFIC_WORLD] = "agreements",
    };
    return names[kind];
}

// ---- the model's parameters come from FSDP ----

static void use(void *context, int unit, bool backward, Stream stream)
{
    LmTrainer *t = context;
    fsdp_use(t->fsdp, unit, backward, stream);
    fsdp_prefetch(t->fsdp, backward ? unit - 1 : unit + 1, backward, stream);
}

// The first rows of a block's last weight gradient were never written.
static void plant_unwritten(LmTrainer *t, Stream stream)
{
    int parameter = lm_block_parameter(0, LM_BLOCK_OUT);
    uint64_t bytes = dtype_bytes(DTYPE_F32, (uint64_t)t->parameters[parameter].columns);
    device_fill(fsdp_gradient(t->fsdp, parameter), 0xFF, bytes, stream);
}

static void done(void *context, int unit, bool backward, Stream stream)
{
    LmTrainer *t = context;
    if (backward && t->settings.plant == LM_PLANT_UNWRITTEN_ROWS && unit == 1)
        plant_unwritten(t, stream);
    bool turns = unit == t->settings.layout->parameters->units - 1; // stays for its backward
    if (backward)
        fsdp_reduce(t->fsdp, unit, t->last_micro, stream);
    else if (!turns)
        fsdp_release(t->fsdp, unit, stream);
}

static const void *value(void *context, int parameter)
{
    return fsdp_value(((LmTrainer *)context)->fsdp, parameter);
}

static float *gradient(void *context, int parameter, int part)
{
    (void)part;
    return fsdp_gradient(((LmTrainer *)context)->fsdp, parameter);
}

// ---- set-up ----

FsdpSettings lm_fsdp_settings(const LmLayout *layout, const LmTraining *training,
                              const LmGroups *groups, const FsdpParameter *parameters)
{
    return (FsdpSettings){.units = layout->parameters->units,
                          .parameters = layout->parameters->count,
                          .parameter = parameters,
                          .group = {groups->group[LM_DENSE], groups->group[LM_EXPERTS]},
                          .partial = groups->tp,
                          .kept = groups->kept,
                          .param_dtype = layout->config->dtype,
                          .wire_dtype = training->wire,
                          .reshard = training->reshard,
                          .accumulates = training->accumulate > 1};
}

static Comm numbers(const MeshAxes *axes)
{
    return (Comm){.rank = axes->coord, .ranks = axes->ranks};
}

LmGroups lm_groups_without_links(const LmLayout *l, const LmTraining *training)
{
    LmGroups g = {.group = {{numbers(&l->shard), numbers(&l->replica)},
                            {numbers(&l->experts_shard), numbers(&l->experts_replica)}},
                  .tp = numbers(&l->tp),
                  .experts = numbers(&l->experts),
                  .kept = {.rank = 0, .ranks = 1}};
    if (training->reshard > 1)
        g.kept = (Comm){.rank = l->shard.coord % training->reshard, .ranks = training->reshard};
    return g;
}

static void make_groups(LmTrainer *t)
{
    const LmLayout *l = t->settings.layout;
    const Mesh *mesh = l->mesh;
    LmGroups *g = &t->groups;
    g->group[LM_DENSE].shard = mesh_comm(mesh, &l->shard);
    g->group[LM_DENSE].replica = mesh_comm(mesh, &l->replica);
    g->group[LM_EXPERTS].shard = mesh_comm(mesh, &l->experts_shard);
    g->group[LM_EXPERTS].replica = mesh_comm(mesh, &l->experts_replica);
    g->tp = mesh_comm(mesh, &l->tp);
    g->experts = mesh_comm(mesh, &l->experts);
    comm_name(g->group[LM_DENSE].shard, "dense shards");
    comm_name(g->group[LM_DENSE].replica, "dense replicas");
    comm_name(g->group[LM_EXPERTS].shard, "expert shards");
    comm_name(g->group[LM_EXPERTS].replica, "expert replicas");
    comm_name(g->tp, "tensor parallel");
    comm_name(g->experts, "experts");
    g->kept = (Comm){.rank = 0, .ranks = 1};
    int kept = t->settings.training->reshard;
    if (kept > 1) {
        Comm shard = g->group[LM_DENSE].shard;
        g->kept = comm_split(shard, shard.rank / kept, shard.rank);
        comm_name(g->kept, "kept shards");
    }
}

static void fill(LmTrainer *t, Stream stream)
{
    const LmLayout *l = t->settings.layout;
    for (int i = 0; i < l->parameters->count; i++) {
        DTensor part = lm_shard(l, i);
        lm_fill(l->parameters, i, &part, t->settings.training->seed,
                t->state.values + fsdp_shard_offset(t->fsdp, i), stream);
    }
}

static void *clear(size_t count, size_t bytes)
{
    void *memory = calloc(count + 1, bytes);
    CHECK(memory != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for training");
    return memory;
}

static int64_t shard_elements(const LmTrainer *t, int parameter)
{
    const FsdpParameter *p = &t->parameters[parameter];
    return p->outer * fsdp_plan(t->fsdp)->place[parameter].rows * p->columns;
}

static void make_norm(LmTrainer *t)
{
    Arena *arena = t->settings.arena;
    uint64_t most = 0;
    for (int i = 0; i < t->settings.layout->parameters->count; i++) {
        uint64_t bytes = sum_squares_scratch_bytes(shard_elements(t, i));
        most = bytes > most ? bytes : most;
    }
    t->square =
        ARENA_PUSH(arena, double, 1 + t->settings.layout->mesh->world.ranks, MEMORY_SCRATCH);
    t->scale = ARENA_PUSH(arena, float, 1, MEMORY_SCRATCH);
    t->square_scratch = arena_push(arena, most, MEMORY_SCRATCH);
}

static LmSettings model_settings(LmTrainer *t)
{
    const LmTrainerSettings *s = &t->settings;
    const LmLayout *l = s->layout;
    int64_t step_tokens = l->tokens * s->training->accumulate;
    if (s->plant == LM_PLANT_LOCAL_LOSS)
        step_tokens = t->tokens * s->training->accumulate;
    return (LmSettings){.layout = l,
                        .store = {use, done, value, gradient, t},
                        .tp = t->groups.tp,
                        .experts = t->groups.experts,
                        .tokens = t->tokens,
                        .parts = 1,
                        .groups = 1,
                        .tokens_of_step = step_tokens,
                        .align = s->align,
                        .threads = s->threads,
                        .exact = s->exact,
                        .transport = s->transport,
                        .device = s->device,
                        .arena = s->arena};
}

// One room for what the model saves for its backward and the gradients that come instead. They are
// made by the backward of the last micro-batch and stay until the next forward.
static void share_room(Arena *arena, FsdpSettings *fsdp, LmSettings *model)
{
    FsdpPlan plan = fsdp_plan_create(fsdp);
    LmMemory memory = lm_memory(model, &plan);
    fsdp_plan_destroy(&plan);
    char *room = arena_push(arena, memory.room_bytes, MEMORY_ACTIVATIONS);
    model->room = room;
    fsdp->gradients = (float *)(room + memory.gradients_first_bytes);
}

static void plant_not_reduced(LmTrainer *t)
{
    const LmParameters *list = t->settings.layout->parameters;
    bool router = t->settings.plant == LM_PLANT_ROUTER_NOT_REDUCED;
    bool norm = t->settings.plant == LM_PLANT_NORM_NOT_REDUCED;
    for (int i = 0; i < list->count; i++)
        if ((router && list->parameter[i].role == LM_ROUTER) ||
            (norm && list->parameter[i].role == LM_NORM))
            t->parameters[i].partial = false;
}

LmTrainer *lm_trainer_create(const LmTrainerSettings *settings)
{
    LmTrainer *t = clear(1, sizeof(*t));
    t->settings = *settings;
    const LmLayout *l = settings->layout;
    t->tokens = l->tokens_of_data[l->data.coord];
    make_groups(t);
    t->parameters = lm_fsdp_parameters(l);
    plant_not_reduced(t);
    FsdpSettings fsdp = lm_fsdp_settings(l, settings->training, &t->groups, t->parameters);
    fsdp.device = settings->device;
    fsdp.arena = settings->arena;
    LmSettings model = model_settings(t);
    share_room(settings->arena, &fsdp, &model);
    t->fsdp = fsdp_create(&fsdp);
    Stream stream = stream_create(settings->device);
    t->state = (LmState){.count = fsdp_plan(t->fsdp)->flat,
                         .values = fsdp_values(t->fsdp),
                         .gradients = fsdp_gradients(t->fsdp)};
    lm_state_push(settings->training, &t->state, settings->arena, stream);
    fill(t, stream);
    t->ids = clear((size_t)t->tokens, sizeof(int32_t));
    t->targets = clear((size_t)t->tokens, sizeof(int32_t));
    size_t experts = (size_t)l->config->layers * (size_t)l->config->moe.experts;
    t->counts = clear(experts, sizeof(int64_t));
    t->bias = clear(experts, sizeof(float));
    t->of_rank = clear((size_t)l->mesh->world.ranks, sizeof(double));
    make_norm(t);
    t->lm = lm_create(&model);
    stream_wait(stream);
    stream_destroy(stream);
    uint64_t unused[LM_TRAFFIC_KINDS];
    lm_trainer_take_traffic(t, unused); // set-up is not a step's
    return t;
}

void lm_trainer_destroy(LmTrainer *t)
{
    if (!t)
        return;
    lm_destroy(t->lm);
    fsdp_destroy(t->fsdp);
    LmGroups *g = &t->groups;
    for (int i = 0; i < FSDP_GROUPS; i++) {
        comm_destroy(&g->group[i].shard);
        comm_destroy(&g->group[i].replica);
    }
    comm_destroy(&g->kept);
    comm_destroy(&g->tp);
    comm_destroy(&g->experts);
    free(t->parameters);
    free(t->ids);
    free(t->targets);
    free(t->counts);
    free(t->bias);
    free(t->of_rank);
    free(t);
}

const Fsdp *lm_trainer_fsdp(const LmTrainer *t)
{
    return t->fsdp;
}

const LmTrainerSettings *lm_trainer_settings(const LmTrainer *t)
{
    return &t->settings;
}

Fsdp *lm_trainer_mutable_fsdp(LmTrainer *t)
{
    return t->fsdp;
}

void lm_trainer_record_with(LmTrainer *t, Recorder *recorder)
{
    static const char *const names[SPANS] = {
        [SPAN_FORWARD] = "forward", [SPAN_BACKWARD] = "backward", [SPAN_OPTIMISE] = "optimise"};
    t->recorder = t->settings.training->accumulate == 1 ? recorder : NULL;
    for (int span = 0; span < SPANS && t->recorder; span++)
        t->span[span] = recorder_span(recorder, names[span]);
}

const Lm *lm_trainer_model(const LmTrainer *t)
{
    return t->lm;
}

const float *lm_trainer_expert_bias(const LmTrainer *t)
{
    return t->bias;
}

void lm_trainer_take_traffic(LmTrainer *t, uint64_t *bytes)
{
    const LmGroups *g = &t->groups;
    const Comm comm[LM_TRAFFIC_KINDS] = {
        [LM_TRAFFIC_SHARD] = g->group[LM_DENSE].shard,
        [LM_TRAFFIC_REPLICA] = g->group[LM_DENSE].replica,
        [LM_TRAFFIC_EXPERTS_SHARD] = g->group[LM_EXPERTS].shard,
        [LM_TRAFFIC_EXPERTS_REPLICA] = g->group[LM_EXPERTS].replica,
        [LM_TRAFFIC_TP] = g->tp,
        [LM_TRAFFIC_DISPATCH] = g->experts,
        [LM_TRAFFIC_KEPT] = g->kept,
        [LM_TRAFFIC_WORLD] = t->settings.layout->mesh->world,
    };
    for (int kind = 0; kind < LM_TRAFFIC_KINDS; kind++)
        bytes[kind] = comm_take_wire_bytes(comm[kind]);
    Comm shard = g->group[LM_DENSE].shard;
    if (t->settings.plant == LM_PLANT_LOGICAL_BYTES && shard.ranks > 1)
        bytes[LM_TRAFFIC_SHARD] += bytes[LM_TRAFFIC_SHARD] / (uint64_t)(shard.ranks - 1);
}

// ---- a step ----

// Collective(all ranks), Waits. Loss sums in order of ranks; each tp group's counts once.
static double sum_loss(LmTrainer *t, double mine)
{
    const LmLayout *l = t->settings.layout;
    Comm world = l->mesh->world;
    double *all = t->of_rank, sum = 0;
    if (l->tp.coord != 0 && !lm_loss_is_split(l))
        mine = 0;
    comm_gather_host(world, &mine, all, sizeof mine);
    for (int rank = 0; rank < world.ranks; rank++)
        sum += all[rank];
    return sum / (double)(l->tokens * t->settings.training->accumulate);
}

// Collective(all ranks), Waits(stream). Each element counts once, on the rank that owns it; the
// ranks' sums are added in rank order. Leaves the factor in t->scale and returns the norm.
static double clip(LmTrainer *t, Stream stream)
{
    const LmLayout *l = t->settings.layout;
    Comm world = l->mesh->world;
    bool accumulate = false, all_count = t->settings.plant == LM_PLANT_CLIP_COPIES;
    device_fill(t->square, 0, sizeof(double), stream);
    for (int i = 0; i < l->parameters->count; i++) {
        if (!all_count && !lm_is_owner(l, i, world.rank))
            continue;
        sum_squares(&(SumSquares){.count = shard_elements(t, i),
                                  .dtype = DTYPE_F32,
                                  .x = t->state.gradients + fsdp_shard_offset(t->fsdp, i),
                                  .sum = t->square,
                                  .accumulate = accumulate,
                                  .scratch = t->square_scratch},
                    stream);
        accumulate = true;
    }
    double *all = t->of_rank, sum = 0;
    comm_all_gather(world, t->square, t->square + 1, sizeof(double), stream);
    device_copy(all, t->square + 1, (uint64_t)world.ranks * sizeof(double), stream);
    stream_wait(stream);
    for (int rank = 0; rank < world.ranks; rank++)
        sum += all[rank];
    device_copy(t->square, &sum, sizeof sum, stream);
    clip_scale(
        &(ClipScale){.sum = t->square, .max_norm = t->settings.training->clip, .scale = t->scale},
        stream);
    stream_wait(stream);
    return sqrt(sum);
}

// Collective(all ranks), Waits(stream).
static void balance(LmTrainer *t, Stream stream)
{
    const LmLayout *l = t->settings.layout;
    int experts = l->config->moe.experts;
    int64_t count = (int64_t)l->config->layers * experts;
    if (l->tp.coord != 0 && !lm_choices_are_split(l))
        memset(t->counts, 0, (size_t)count * sizeof(int64_t));
    Stream host = {.device = DEVICE_CPU};
    comm_all_reduce(l->mesh->world, t->counts, t->counts, count, DTYPE_I64, COMM_SUM, host);
    for (int layer = 0; layer < l->config->layers; layer++) {
        float *bias = t->bias + (int64_t)layer * experts;
        lm_balance(t->settings.training->balance, experts, t->counts + (int64_t)layer * experts,
                   bias);
        lm_set_expert_bias(t->lm, layer, bias, stream);
    }
    memset(t->counts, 0, (size_t)count * sizeof(int64_t));
}

// Twice as large, or four times, ...: a factor that ep has when it is a power of two.
static void plant_doubled_experts(LmTrainer *t, Stream stream)
{
    const LmLayout *l = t->settings.layout;
    for (int i = 0; i < l->parameters->count; i++) {
        float *g = t->state.gradients + fsdp_shard_offset(t->fsdp, i);
        AddRows twice = {.count = shard_elements(t, i), .dtype = DTYPE_F32, .a = g, .b = g, .y = g};
        for (int k = 1; lm_group(l, i) == LM_EXPERTS && k < l->experts.ranks; k *= 2)
            add_rows(&twice, stream);
    }
}

LmStepResult lm_trainer_step(LmTrainer *t, int step, Stream stream)
{
    const LmTraining *training = t->settings.training;
    const LmLayout *l = t->settings.layout;
    bool balances = training->balance > 0 && lm_is_moe(l->config);
    bool stale = t->settings.plant == LM_PLANT_STALE_GATHER && step > 0;
    if (!stale) // else, with --reshard no: what was gathered for the step before is used again
        fsdp_step_begin(t->fsdp);
    for (int micro = 0; micro < training->accumulate; micro++) {
        int64_t first = lm_first_token(training, l->tokens, step, micro) +
                        l->first_token_of_data[l->data.coord];
        lm_tokens(l->config, training->seed, first, t->tokens, t->ids, t->targets);
        lm_set_tokens(t->lm, t->ids, t->targets, stream);
        t->last_micro = micro == training->accumulate - 1;
        record_begin(t->recorder, t->span[SPAN_FORWARD]);
        lm_forward(t->lm, micro > 0, stream);
        record_end(t->recorder, t->span[SPAN_FORWARD]);
        if (balances)
            lm_count_choices(t->lm, t->counts, stream);
        record_begin(t->recorder, t->span[SPAN_BACKWARD]);
        lm_backward(t->lm, micro > 0, stream);
        record_end(t->recorder, t->span[SPAN_BACKWARD]);
    }
    fsdp_step_end(t->fsdp, stream);
    if (t->settings.plant == LM_PLANT_EXPERTS_TIMES_EP)
        plant_doubled_experts(t, stream);
    record_begin(t->recorder, t->span[SPAN_OPTIMISE]);
    LmStepResult result = {.norm = NAN};
    if (training->clip > 0)
        result.norm = clip(t, stream);
    lm_optimise(training, &t->state, step, training->clip > 0 ? t->scale : NULL, stream);
    record_end(t->recorder, t->span[SPAN_OPTIMISE]);
    if (balances)
        balance(t, stream);
    stream_wait(stream);
    result.loss = sum_loss(t, lm_loss_sum(t->lm, 0, stream));
    return result;
}
