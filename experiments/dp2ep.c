// dp2ep.c -- data parallel to expert parallel: one MoE layer whose experts are divided over ranks
// gives, forward and backward, what one rank gives.
//
// Every rank fills its part of the same global layer, the layer runs, the parts are put together on
// rank 0 and compared with a 1-rank reference (bit for bit) and with a file's expectations; then it
// is timed. The defaults are the toy of the PyTorch script of the same name: 4 experts, top-1, dim
// 8, hidden 16, 4 tokens a rank, bf16, sigmoid.
#include "experiments/model/layer_check.h"
#include "experiments/model/layer_compare.h"
#include "experiments/model/moe_options.h"
#include "experiments/model/moe_quant.h"
#include "experiments/model/moe_timing.h"
#include "harness/command.h"
#include "harness/run_device.h"
#include "kernels/ceiling.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// How far two orders of sums may lie apart, relative to the largest value: a few roundings of the
// storage type. The CPU checks a GPU run where that takes seconds.

typedef struct Params {
    MoeOptions layer;
    const char *mesh, *experts_on, *tokens, *recipe, *load, *save, *output;
    int64_t align, seed, samples;
    double max_noise, timeout;
    int device, transport;
    bool exact, check, forward_only, graph, json, force;
} Params;

#define FIELD(name) offsetof(Params, name)
static const Option options[] = {
    {"mesh", OPTION_TEXT, FIELD(mesh), "ep=*", .value = "AXES",
     .doc = "named grid of ranks, such as dp=2,ep=4; * is whatever is left"},
    {"experts_on", OPTION_TEXT, FIELD(experts_on), NULL, .value = "AXES",
     .doc = "axes that divide the experts (default: ep where the mesh has it, else none)"},
    MOE_OPTION_ROWS(Params, layer),
    {"tokens", OPTION_TEXT, FIELD(tokens), "4", .value = "N[,N...]",
     .doc = "tokens of every data rank, or one number per data rank: 5,0,3,1"},
    {"recipe", OPTION_TEXT, FIELD(recipe), "none", .value = "NAME",
     .doc = "how the experts' products are quantised; `meshwork recipes` lists all"},
    {"device", OPTION_CHOICE, FIELD(device), "auto", .choices = "cpu|cuda|auto",
     .doc = "where to run; auto takes a GPU when every rank has one"},
    {"align", OPTION_INT, FIELD(align), "8", 1, 4096,
     .doc = "rows of an expert are padded to a multiple"},
    {"transport", OPTION_CHOICE, FIELD(transport), "auto", .choices = "auto|window|ipc|nccl|mpi",
     .doc = "how rows travel between ranks"},
    {"exact", OPTION_SWITCH, FIELD(exact), "yes",
     .doc = "one order of sums on every mesh; --no-exact adds per rank first, for speed"},
    {"check", OPTION_SWITCH, FIELD(check), "yes", .doc = "compare with a 1-rank reference"},
    {"forward_only", OPTION_SWITCH, FIELD(forward_only), "no", .doc = "no backward"},
    {"graph", OPTION_SWITCH, FIELD(graph), "yes",
     .doc = "CUDA: capture the step in a graph, check its replay, time replays"},
    {"seed", OPTION_INT, FIELD(seed), "6", 0, 9e18, .doc = "seed of weights, tokens and routing"},
    {"samples", OPTION_INT, FIELD(samples), "20", 0, 100000,
     .doc = "timed iterations at most; 0 = no timing"},
    {"max_noise", OPTION_REAL, FIELD(max_noise), "0.02", 0, 10,
     .doc = "stop sampling when the median is known this well (95 %)"},
    {"timeout", OPTION_REAL, FIELD(timeout), "30", 0, 1e6, .value = "SECONDS",
     .doc = "stop sampling a measurement after this long"},
    {"load", OPTION_TEXT, FIELD(load), NULL, .value = "FILE",
     .doc = "take the layer from a safetensors file and compare with its expect.* tensors"},
    {"save", OPTION_TEXT, FIELD(save), NULL, .value = "FILE",
     .doc = "write y, expert_of_token and gradients, whole, as safetensors"},
    {"output", OPTION_TEXT, FIELD(output), NULL, .value = "FILE.h5", .letter = 'o',
     .doc = "result file; without it nothing is written"},
    {"force", OPTION_SWITCH, FIELD(force), "no", .doc = "overwrite files that exist"},
    {"json", OPTION_SWITCH, FIELD(json), "no", .doc = "print the result as one JSON object"},
    {NULL},
};

// One run of the command, from options to result.
typedef struct Job {
    Run *run;
    const Params *params;
    DeviceKind device;
    int device_index;
    Comm world;
    Mesh *mesh;
    LayerSpread spread;
    LayerSource source;
    Recipe recipe; // what source.config.recipe points to, unless it is none
    Safetensors file;
    bool loaded;
    Arena *arena;
    Stream stream;
    Comm experts_comm, replicas_comm;
    int first_expert, experts;
    MoeWeights weights, gradients;
    MoeGradients sums;
    char *x, *y, *dy, *dx;
    int64_t tokens;
    Moe *moe;
    double mesh_s, layer_s; // set-up times, the slowest rank's
    ResultWriter *writer;
    bool good;
} Job;

// Collective. The file is read by rank 0 first, so that a bad file is one message; then every rank
// maps it.
static void load(Job *job)
{
    for (int turn = 0; turn < 2; turn++) {
        Error error = {0};
        bool mine = (job->run->rank == 0) == (turn == 0);
        if (mine && safetensors_open(job->params->load, &job->file, &error)) {
            job->loaded = true;
            if (!layer_source_read(&job->file, &job->source, &error))
                error_prefix(&error, "%s", job->params->load);
        }
        run_agree(job->run, &error);
    }
}

static Event host_now(void)
{
    Event now = event_create(DEVICE_CPU);
    event_record(&now, (Stream){.device = DEVICE_CPU});
    return now;
}

// Collective. Since `begin`, on the slowest rank.
static double set_up_seconds(const Run *run, const Event *begin)
{
    Event end = host_now();
    return run_maximum(run, event_seconds(begin, &end));
}

static void choose_transport(const Job *job)
{
    static const bool needs_cuda[] = {false, true, true, true, false};
    bool cuda = job->device == DEVICE_CUDA;
    int transport = job->params->transport;
    CHECK_ALL(transport == EP_AUTO || needs_cuda[transport] == cuda, EXIT_CODE_USAGE,
              "window, ipc and nccl go with --device cuda, mpi with --device cpu",
              "--transport %s on device %s", ep_transport_name((EpTransport)transport),
              device_kind_name(job->device));
}

static bool check_outputs(const Params *p, Error *error)
{
    return (!p->output || file_check_creatable(p->output, p->force, error)) &&
           (!p->save || file_check_creatable(p->save, p->force, error));
}

static void choose_recipe(Job *job, Error *error)
{
    if (!recipe_parse(job->params->recipe, &job->recipe, error) ||
        job->recipe.weights.method == QUANT_NONE)
        return;
    job->source.config.recipe = &job->recipe;
    moe_quant_check(&job->source.config, job->params->forward_only, error);
}

// Collective. Everything that can be wrong with the request is found here, before anything is
// allocated.
static void set_up_problem(Job *job)
{
    const Params *p = job->params;
    Error error = {0};
    if (!p->load || moe_options_untouched(options, p, &error))
        moe_options_read(&p->layer, &job->source.config, &error);
    run_agree(job->run, &error);
    if (job->run->rank == 0)
        check_outputs(p, &error);
    run_agree(job->run, &error);
    job->source.seed = (uint64_t)p->seed;
    if (p->load)
        load(job);
    job->device = run_choose_device(job->run, (DeviceChoice)p->device, &job->device_index);
    choose_recipe(job, &error);
    run_agree(job->run, &error);
    job->stream = stream_create(job->device);
    choose_transport(job);
    Mesh unused;
    mesh_parse(p->mesh, job->run->ranks, &unused, &error);
    run_agree(job->run, &error);
    Event begin = host_now();
    job->world = comm_create_world(job->run, job->device, job->device_index);
    job->mesh = mesh_create(p->mesh, job->world);
    job->mesh_s = set_up_seconds(job->run, &begin);
    layer_spread_create(job->mesh, p->experts_on, p->tokens, p->load ? job->source.tokens : -1,
                        &job->spread, &error);
    run_agree(job->run, &error);
    job->source.tokens = job->spread.tokens;
}

static void set_up_layer(Job *job)
{
    const Params *p = job->params;
    const MoeConfig *c = &job->source.config;
    int ranks = job->spread.experts_axes.ranks, place = job->spread.experts_axes.coord;
    MoeShape shape = moe_shape(ranks, c->experts, c->top_k, 0);
    int end = (place + 1) * shape.experts_per_rank;
    job->first_expert = place * shape.experts_per_rank;
    job->first_expert = job->first_expert < c->experts ? job->first_expert : c->experts;
    job->experts = (end < c->experts ? end : c->experts) - job->first_expert;
    job->tokens = job->spread.tokens_of_rank[job->run->rank];
    job->arena = arena_create(MEMORY_DEVICE, job->device);
    job->experts_comm = mesh_comm(job->mesh, &job->spread.experts_axes);
    job->replicas_comm = mesh_comm(job->mesh, &job->spread.replica_axes);
    comm_name(job->experts_comm, "experts");
    comm_name(job->replicas_comm, "replicas");
    LayerWeightsSize size = {c, job->experts, 1, c->dtype, c->dtype, MEMORY_PARAMETERS};
    job->weights = layer_weights_push(&size, job->arena);
    layer_weights_fill(&job->source, job->first_expert, job->experts, &job->weights, job->stream);
    uint64_t bytes = dtype_bytes(c->dtype, (uint64_t)(job->tokens * c->hidden));
    job->x = arena_push(job->arena, bytes, MEMORY_ACTIVATIONS);
    job->y = arena_push(job->arena, bytes, MEMORY_ACTIVATIONS);
    int64_t first = job->spread.first_token_of_rank[job->run->rank];
    layer_fill(&job->source, LAYER_X, first, job->tokens, c->dtype, job->x, job->stream);
    Event begin = host_now();
    job->moe =
        moe_create(&(MoeSettings){.config = *c,
                                  .experts_comm = job->experts_comm,
                                  .replicas_comm = job->replicas_comm,
                                  .tokens_comm = job->world,
                                  .tokens = job->tokens,
                                  .first_token = first,
                                  .align = (int)p->align,
                                  .exact = p->exact,
                                  .forward_only = p->forward_only,
                                  .transport = ranks == 1 ? EP_LOCAL : (EpTransport)p->transport,
                                  .device = job->device,
                                  .arena = job->arena,
                                  .seed = job->source.seed,
                                  .threads = job->run->threads});
    job->layer_s = set_up_seconds(job->run, &begin);
    if (p->forward_only)
        return;
    job->dy = arena_push(job->arena, bytes, MEMORY_ACTIVATIONS);
    job->dx = arena_push(job->arena, bytes, MEMORY_ACTIVATIONS);
    layer_fill(&job->source, LAYER_GRAD_Y, first, job->tokens, c->dtype, job->dy, job->stream);
    size.category = MEMORY_GRADIENTS;
    job->gradients = layer_weights_push(&size, job->arena);
    bool direct = moe_experts_direct(job->moe);
    job->sums.experts_dtype = direct ? c->dtype : DTYPE_F32;
    size =
        (LayerWeightsSize){c, direct ? 0 : job->experts, 1, DTYPE_F32, DTYPE_F32, MEMORY_GRADIENTS};
    job->sums.sum = layer_weights_push(&size, job->arena);
    if (direct) {
        job->sums.sum.w13 = job->gradients.w13;
        job->sums.sum.w2 = job->gradients.w2;
    }
}

// Enqueues. One step, or one forward.
static void forward(void *context, Stream stream)
{
    Job *job = context;
    moe_forward(job->moe, &job->weights, job->x, job->y, stream);
}

static void step(void *context, Stream stream)
{
    Job *job = context;
    forward(job, stream);
    if (job->params->forward_only)
        return;
    moe_backward(job->moe, &job->weights, job->x, job->dy, job->dx, &job->sums, stream);
    moe_reduce_gradients(job->moe, &job->sums, &job->gradients, stream);
}

static LayerPart part_of(const Job *job)
{
    return (LayerPart){.y = job->y,
                       .dx = job->dx,
                       .expert_of_choice = moe_expert_of_choice(job->moe),
                       .gradients = job->params->forward_only ? NULL : &job->gradients,
                       .first_expert = job->first_expert,
                       .experts = job->experts};
}

static LayerResult gather(Job *job)
{
    LayerResult result = {0};
    if (job->run->rank == 0)
        result = layer_result_create(&job->source, job->params->forward_only);
    LayerPart part = part_of(job);
    layer_gather(job->run, &job->spread, &job->source, &part, &result, job->stream);
    return result;
}

static void report(Job *job, const ResultCheck *check)
{
    result_add_check(job->writer, check);
    job->good = job->good && check->good;
}

static LayerCheck layer_check_of(const Job *job)
{
    return (LayerCheck){.source = &job->source,
                        .spread = &job->spread,
                        .file = &job->file,
                        .exact = job->params->exact,
                        .forward_only = job->params->forward_only,
                        .align = (int)job->params->align,
                        .threads = job->run->threads,
                        .device = job->device,
                        .writer = job->writer};
}

// Collective. The captured step, replayed on other tokens (so with other routing), gives what the
// enqueued step gives.
static void check_graph(Job *job)
{
    if (!job->params->check || !job->params->graph || !graph_supported(job->device))
        return;
    LayerSource other = job->source;
    other.file = NULL;
    other.seed = job->source.seed + 1;
    graph_begin(job->stream);
    step(job, job->stream);
    Graph graph = graph_end(job->stream);
    int64_t first = job->spread.first_token_of_rank[job->run->rank];
    DType dtype = job->source.config.dtype;
    layer_fill(&other, LAYER_X, first, job->tokens, dtype, job->x, job->stream);
    LayerPart part = part_of(job);
    uint64_t replayed[LAYER_PRINTS], enqueued[LAYER_PRINTS];
    comm_replay(job->world, &graph, job->stream);
    layer_fingerprint(&job->source, &part, job->tokens, replayed, job->stream);
    step(job, job->stream);
    layer_fingerprint(&job->source, &part, job->tokens, enqueued, job->stream);
    int differs = LAYER_PRINTS;
    for (int i = LAYER_PRINTS - 1; i >= 0; i--)
        differs = replayed[i] != enqueued[i] ? i : differs;
    differs = LAYER_PRINTS - (int)run_maximum(job->run, LAYER_PRINTS - differs);
    ResultCheck check = {.error = NAN, .bound = NAN, .good = differs == LAYER_PRINTS};
    snprintf(check.name, sizeof check.name, "graph replayed with other routing, bit for bit");
    snprintf(check.verdict, sizeof check.verdict, "%s", check.good ? "equal" : "differs");
    snprintf(check.detail, sizeof check.detail, "%s%s",
             check.good ? "fingerprints of all outputs on every rank" : "first to differ: ",
             check.good ? "" : layer_print_name((LayerPrint)differs));
    if (job->run->rank == 0)
        report(job, &check);
    graph_destroy(&graph);
    layer_fill(&job->source, LAYER_X, first, job->tokens, dtype, job->x, job->stream);
    stream_wait(job->stream);
}

// Collective. A step that nobody times: its spans only say, to whom it concerns, where a rank is.
static void first_step(Job *job)
{
    check_phase("first step");
    Recorder *recorder = recorder_create(job->stream, 0, false);
    int total = recorder_span(recorder, "total");
    moe_record_with(job->moe, recorder);
    record_begin(recorder, total);
    step(job, job->stream);
    record_end(recorder, total);
    recorder_iteration(recorder, false);
    moe_record_with(job->moe, NULL);
    recorder_destroy(recorder);
}

// Collective. One step, its result put together, compared and saved.
static void check_results(Job *job)
{
    const Params *p = job->params;
    first_step(job);
    if (!p->check && !p->save && !p->load)
        return;
    check_phase("gather");
    LayerResult ours = gather(job);
    check_phase("check");
    Error error = {0};
    if (job->run->rank == 0) {
        LayerCheck check = layer_check_of(job);
        if (p->check)
            job->good = layer_check_references(&check, &ours) && job->good;
        if (p->load && !job->source.config.recipe) // expectations are those of unquantised products
            job->good = layer_check_expectations(&check, &ours) && job->good;
        if (p->save)
            layer_save(&ours, p->save, p->force, &error);
    }
    run_agree(job->run, &error);
    layer_result_destroy(&ours);
    check_graph(job);
}

static Json *mesh_json(const Job *job)
{
    Json *mesh = json_object();
    for (int axis = 0; axis < job->mesh->axes; axis++)
        json_set(mesh, job->mesh->name[axis], json_integer(job->mesh->ranks[axis]));
    return mesh;
}

static Json *memory_json(const Job *job)
{
    Json *memory = json_object();
    for (int category = 0; category < MEMORY_CATEGORIES; category++) {
        uint64_t bytes = arena_peak_bytes(job->arena, (MemoryCategory)category);
        json_set(memory, memory_category_name((MemoryCategory)category),
                 json_integer((int64_t)bytes));
    }
    return memory;
}

static Json *extra_json(const Job *job, const DeviceCeilings *ceilings)
{
    const char *experts_on = job->params->experts_on;
    if (!experts_on)
        experts_on = mesh_find_axis(job->mesh, "ep") >= 0 ? "ep" : "";
    Json *rates = json_object();
    json_set(rates, "copy_bytes_per_s", json_real(ceilings->copy_bytes_per_s));
    json_set(rates, "matmul_flops_per_s",
             json_real(job->source.config.dtype == DTYPE_BF16 ? ceilings->bf16_flops_per_s
                                                              : ceilings->f32_flops_per_s));
    json_set(rates, "link_bytes_per_s", json_real(ceilings->link_bytes_per_s));
    Json *extra = json_object();
    json_set(extra, "mesh", mesh_json(job));
    json_set(extra, "experts_on", json_text(experts_on));
    json_set(extra, "transport", json_text(ep_transport_name(ep_transport(moe_ep(job->moe)))));
    json_set(extra, "transport_note", json_text(ep_transport_note(moe_ep(job->moe))));
    json_set(extra, "memory_peak_bytes", memory_json(job));
    json_set(extra, "set_up_mesh_s", json_real(job->mesh_s));
    json_set(extra, "set_up_layer_s", json_real(job->layer_s));
    return json_set(extra, "ceilings", rates);
}

static void start_result(Job *job, const DeviceCeilings *ceilings)
{
    DeviceInfo info = device_info(job->device, job->device_index);
    job->writer = result_writer_create(&(ResultStart){.run = job->run,
                                                      .options = options,
                                                      .params = job->params,
                                                      .device = &info,
                                                      .path = job->params->output,
                                                      .force = job->params->force,
                                                      .seed = job->source.seed,
                                                      .extra = extra_json(job, ceilings)});
}

// Collective. Forward alone, the whole step, then the step with its phases.
static void time_it(Job *job, const DeviceCeilings *ceilings)
{
    const Params *p = job->params;
    if (p->samples == 0)
        return;
    MoeTiming timing = {.run = job->run,
                        .world = job->world,
                        .moe = job->moe,
                        .stream = job->stream,
                        .arena = job->arena,
                        .ceilings = *ceilings,
                        .writer = job->writer,
                        .context = job,
                        .graph = p->graph,
                        .rule = {.samples_min = p->samples < 5 ? (int)p->samples : 5,
                                 .samples_max = (int)p->samples,
                                 .noise_max = p->max_noise,
                                 .timeout_s = p->timeout}};
    timing.name = "forward";
    timing.body = forward;
    moe_time(&timing);
    if (!p->forward_only) {
        timing.name = "step";
        timing.body = step;
        timing.with_backward = true;
        moe_time(&timing);
    }
    timing.name = "phases";
    timing.body = step;
    timing.detail = true;
    moe_time(&timing);
}

static void tear_down(Job *job)
{
    result_writer_destroy(job->writer);
    moe_destroy(job->moe);
    comm_destroy(&job->experts_comm);
    comm_destroy(&job->replicas_comm);
    stream_destroy(job->stream);
    arena_destroy(job->arena);
    layer_spread_destroy(&job->spread);
    mesh_destroy(job->mesh);
    comm_destroy(&job->world);
    if (job->loaded)
        safetensors_close(&job->file);
}

static int run_dp2ep(Run *run, const void *params, const OptionPositionals *positionals)
{
    (void)positionals;
    Job job = {.run = run, .params = params, .good = true};
    set_up_problem(&job);
    DeviceCeilings ceilings = {0};
    if (job.params->samples > 0)
        ceilings = moe_ceilings(run, job.world, job.device, job.stream);
    set_up_layer(&job);
    start_result(&job, &ceilings);
    check_results(&job);
    time_it(&job, &ceilings);
    check_phase("write");
    result_writer_finish(job.writer);
    if (run->rank == 0)
        result_show(result_of(job.writer), job.params->json);
    bool failed = run_maximum(run, job.good ? 0 : 1) > 0;
    if (failed && run->rank == 0)
        check_print(__FILE__, __LINE__, "see the first difference in the table of checks",
                    "the layer over %d ranks is not what it should be", run->ranks);
    tear_down(&job);
    return failed ? EXIT_CODE_CHECK : EXIT_CODE_GOOD;
}

const Command command_dp2ep = {
    .name = "dp2ep",
    .summary = "one MoE layer, its experts divided over ranks, against one rank",
    .usage = "",
    .notes = "Examples:\n"
             "  mpirun -n 2 meshwork dp2ep\n"
             "  mpirun -n 8 meshwork dp2ep --mesh dp=2,ep=4 --experts 64 --top_k 4 --dim 2048 "
             "--hidden 1408 -o r.h5\n"
             "  mpirun -n 2 meshwork dp2ep --load layer.safetensors --mesh ep=2 --json\n",
    .options = options,
    .params_bytes = sizeof(Params),
    .positionals_max = 0,
    .spmd = true,
    .run = run_dp2ep,
};
