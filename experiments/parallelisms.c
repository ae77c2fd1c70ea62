// parallelisms.c -- FSDP, DDP, HSDP, tensor, sequence and expert parallelism, and their foldings,
// on a small language model: some training steps over a mesh, compared with the same steps on one
// rank.
//
// Many ranks and one rank start from the same numbers (by global index) and add in the same order,
// so losses, gradients and updated parameters must agree bit for bit; where tp divides products
// their sums are reordered, and a bound holds. What differs is looked at by the layout oracle
// (model/lm_oracle.h), which names the classic causes.
#include "experiments/model/layer_file.h"
#include "experiments/model/linear.h"
#include "experiments/model/lm_cost_check.h"
#include "experiments/model/lm_oracle.h"
#include "experiments/model/lm_reference.h"
#include "experiments/model/lm_timing.h"
#include "harness/command.h"
#include "harness/file.h"
#include "harness/run_device.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// How far sums in another order may take the first gradients, and what follows from them: see
// LmOracle. bf16 rounds every activation, and a token whose scores lie closer than that chooses
// another expert.
static const struct {
    double first, later;
} bound_of_dtype[2] = {{1e-5, 2.5e-3}, {6e-2, 6e-2}};

typedef enum Mode { MODE_FSDP, MODE_DDP, MODE_HSDP, MODE_TP, MODE_SP, MODE_EP, MODES } Mode;

typedef struct Params {
    const char *mesh, *experts_on, *tokens, *plan, *reshard, *load, *save, *output;
    int64_t layers, dim, hidden, vocab, experts, top_k, steps, accumulate, align, seed, samples;
    double lr, momentum, weight_decay, clip, balance, max_noise, timeout;
    int mode, dtype, wire, optimizer, device, plant;
    bool sequence_parallel, linear, explain, exact, check, json, force;
} Params;

#define FIELD(name) offsetof(Params, name)
static const Option options[] = {
    {"mode", OPTION_CHOICE, FIELD(mode), "fsdp", .choices = "fsdp|ddp|hsdp|tp|sp|ep",
     .doc = "what all ranks are for, without --mesh; ddp and sp also say how with one"},
    {"mesh", OPTION_TEXT, FIELD(mesh), NULL, .value = "AXES",
     .doc = "named grid of ranks, such as dp=2,ep=2,tp=2; * is whatever is left"},
    {"experts_on", OPTION_TEXT, FIELD(experts_on), NULL, .value = "AXES",
     .doc = "axes that divide the experts, such as ep*tp (default: ep where the mesh has it)"},
    {"plan", OPTION_TEXT, FIELD(plan), NULL, .value = "FILE",
     .doc = "styles of parameters, one `pattern style` a line (default: the styles of the mode)"},
    {"sequence_parallel", OPTION_SWITCH, FIELD(sequence_parallel), "no",
     .doc = "divide tokens over tp between blocks, as --mode sp does"},
    {"layers", OPTION_INT, FIELD(layers), "2", 1, 100000, .doc = "blocks"},
    {"dim", OPTION_INT, FIELD(dim), "32", 1, 1 << 20, .doc = "width of a token"},
    {"hidden", OPTION_INT, FIELD(hidden), "48", 1, 1 << 20,
     .doc = "inner width of a block's feed-forward, or of one expert"},
    {"vocab", OPTION_INT, FIELD(vocab), "61", 1, 1 << 24, .doc = "rows of embedding and head"},
    {"experts", OPTION_INT, FIELD(experts), "0", 0, 1 << 20,
     .doc = "experts of every block; 0 = a plain feed-forward (--mode ep: 8)"},
    {"top_k", OPTION_INT, FIELD(top_k), "2", 1, 1024, .doc = "experts per token"},
    {"tokens", OPTION_TEXT, FIELD(tokens), "8", .value = "N[,N...]",
     .doc = "tokens of every data rank in a micro-batch, or one number per data rank: 5,0,3,1"},
    {"dtype", OPTION_CHOICE, FIELD(dtype), "f32", .choices = "f32|bf16",
     .doc = "gathered parameters and activations; shards and sums are f32"},
    {"reduce_dtype", OPTION_CHOICE, FIELD(wire), "f32", .choices = "f32|bf16",
     .doc = "gradients on their way between ranks; they are added in f32"},
    {"reshard", OPTION_TEXT, FIELD(reshard), "yes", .value = "yes|no|K",
     .doc = "after a unit's forward: divide it again, keep it, or divide it over K neighbours"},
    {"steps", OPTION_INT, FIELD(steps), "2", 1, 100000, .doc = "training steps"},
    {"accumulate", OPTION_INT, FIELD(accumulate), "1", 1, 10000,
     .doc = "micro-batches per step; gradients travel after the last"},
    {"optimizer", OPTION_CHOICE, FIELD(optimizer), "adamw", .choices = "sgd|adamw", .doc = "which"},
    {"lr", OPTION_REAL, FIELD(lr), "0.01", 0, 1e6, .doc = "learning rate"},
    {"momentum", OPTION_REAL, FIELD(momentum), "0", 0, 1, .doc = "of sgd"},
    {"weight_decay", OPTION_REAL, FIELD(weight_decay), "0.1", 0, 1e6, .doc = "weight decay"},
    {"clip", OPTION_REAL, FIELD(clip), "1", 0, 1e30,
     .doc = "largest norm of all gradients together; 0 = no clipping"},
    {"balance", OPTION_REAL, FIELD(balance), "0", 0, 1e6,
     .doc = "step of the experts' bias towards even loads; 0 = no bias"},
    {"device", OPTION_CHOICE, FIELD(device), "auto", .choices = "cpu|cuda|auto",
     .doc = "where to run; auto takes a GPU when every rank has one"},
    {"align", OPTION_INT, FIELD(align), "8", 1, 4096,
     .doc = "rows of an expert are padded to a multiple"},
    {"explain", OPTION_SWITCH, FIELD(explain), "no",
     .doc = "say placements, collectives, bytes and memory of --mesh, whatever its ranks; run "
            "nothing"},
    {"exact", OPTION_SWITCH, FIELD(exact), "yes",
     .doc = "one order of sums in products, dispatch and combine on every mesh, f32 sums over tp"},
    {"check", OPTION_SWITCH, FIELD(check), "yes", .doc = "compare with a 1-rank reference"},
    {"linear", OPTION_SWITCH, FIELD(linear), "no",
     .doc = "one Linear 8 -> 16 instead of a model, the same rows on every rank (--mode fsdp, tp)"},
    {"load", OPTION_TEXT, FIELD(load), NULL, .value = "FILE",
     .doc = "run the MoE layer of a safetensors file, as dp2ep does"},
    {"save", OPTION_TEXT, FIELD(save), NULL, .value = "FILE",
     .doc = "with --load: write its outputs and gradients"},
    {"samples", OPTION_INT, FIELD(samples), "20", 0, 100000,
     .doc = "timed steps at most, after the checked ones; 0 = no timing"},
    {"max_noise", OPTION_REAL, FIELD(max_noise), "0.02", 0, 10,
     .doc = "stop sampling when the median is known this well (95 %)"},
    {"timeout", OPTION_REAL, FIELD(timeout), "30", 0, 1e6, .value = "SECONDS",
     .doc = "stop sampling after this long"},
    {"seed", OPTION_INT, FIELD(seed), "6", 0, 9e18, .doc = "seed of parameters and tokens"},
    {"plant", OPTION_CHOICE, FIELD(plant), "none", .choices = LM_PLANT_CHOICES,
     .doc = "for tests: a classic bug that the check must name"},
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
    char mesh_text[128];
    LmConfig config;
    LmTraining training;
    LmParameters list;
    Plan plan;
    DeviceKind device;
    int device_index;
    Comm world;
    Mesh *mesh;
    LmLayout layout;
    Arena *arena;
    Stream stream;
    LmTrainer *trainer;
    LmResult ours;
    uint64_t sent[LM_TRAFFIC_KINDS]; // by this rank in all steps
    ResultWriter *writer;
    double hidden;     // share of FSDP's communication behind compute; NaN where there is none
    double plan_cpu_s; // layout and plan of the slowest rank, processor time
    bool good;
} Job;

// ---- request ----

// The mesh that a mode means when none is given.
static const char *const mode_mesh[MODES] = {
    [MODE_FSDP] = "dp=*", [MODE_DDP] = "dp=*", [MODE_HSDP] = "replica=2,dp=*",
    [MODE_TP] = "tp=*",   [MODE_SP] = "tp=*",  [MODE_EP] = "ep=*"};
enum { MODE_EP_EXPERTS = 8 };

static bool read_model(Job *job, Error *error)
{
    const Params *p = job->params;
    DType dtype = p->dtype == 0 ? DTYPE_F32 : DTYPE_BF16;
    int experts = (int)p->experts;
    if (p->mode == MODE_EP && experts == 0)
        experts = MODE_EP_EXPERTS;
    job->config = (LmConfig){.layers = (int)p->layers,
                             .dim = p->dim,
                             .inner = p->hidden,
                             .vocab = p->vocab,
                             .dtype = dtype,
                             .eps = 1e-6f};
    if (experts > 0)
        job->config.moe = (MoeConfig){.hidden = p->dim,
                                      .inner = p->hidden,
                                      .experts = experts,
                                      .top_k = (int)p->top_k,
                                      .score = ROUTER_SOFTMAX,
                                      .normalise_top_k = true,
                                      .route_scale = 1,
                                      .expert_bias = p->balance > 0,
                                      .dtype = dtype};
    if (experts > 0 && p->top_k > experts)
        return error_set(error, EXIT_CODE_USAGE, "lower --top_k or raise --experts",
                         "--top_k %lld > --experts %d", (long long)p->top_k, experts);
    if (experts == 0 && p->balance > 0)
        return error_set(error, EXIT_CODE_USAGE, "add --experts N, or drop --balance",
                         "--balance in a model without experts");
    return true;
}

static bool read_training(Job *job, Error *error)
{
    const Params *p = job->params;
    job->training = (LmTraining){.steps = (int)p->steps,
                                 .accumulate = (int)p->accumulate,
                                 .optimizer = p->optimizer == 0 ? LM_SGD : LM_ADAMW,
                                 .lr = p->lr,
                                 .momentum = p->momentum,
                                 .weight_decay = p->weight_decay,
                                 .clip = p->clip,
                                 .balance = p->balance,
                                 .wire = p->wire == 0 ? DTYPE_F32 : DTYPE_BF16,
                                 .reshard = FSDP_RESHARD_YES,
                                 .seed = (uint64_t)p->seed};
    if (strcmp(p->reshard, "no") == 0) {
        job->training.reshard = FSDP_RESHARD_NO;
    } else if (strcmp(p->reshard, "yes") != 0) {
        char *end;
        long neighbours = strtol(p->reshard, &end, 10);
        if (*end != '\0' || neighbours < 2 || neighbours > 999999)
            return error_set(error, EXIT_CODE_USAGE, "yes, no, or a number from 2 on",
                             "--reshard %.60s is none of yes, no, K", p->reshard);
        job->training.reshard = (int)neighbours;
    }
    return true;
}

// What the mesh must be before it is made, the same on every rank.
static bool read_layout(Job *job, const Mesh *mesh, Error *error)
{
    const Params *p = job->params;
    job->list = lm_parameters_create(&job->config);
    LmLayoutRequest request = {.mesh = mesh,
                               .config = &job->config,
                               .parameters = &job->list,
                               .experts_on = p->experts_on,
                               .replicate = p->mode == MODE_DDP,
                               .sequence_parallel = p->mode == MODE_SP || p->sequence_parallel,
                               .plan = p->plan ? &job->plan : NULL,
                               .tokens = p->tokens};
    if (!lm_layout_create(&request, &job->layout, error))
        return false;
    int kept = job->training.reshard, ranks = job->layout.shard.ranks;
    if (kept > 1 && ranks % kept != 0)
        return error_set(error, EXIT_CODE_USAGE, "a divisor of the ranks that divide parameters",
                         "--reshard %d does not divide the %d ranks of a shard group", kept, ranks);
    return true;
}

// The ranks that a mesh with nothing left open asks for; the job's own otherwise.
static int ranks_of_mesh(const char *text, int ranks)
{
    int64_t product = 1;
    if (strchr(text, '*'))
        return ranks;
    for (const char *at = strchr(text, '='); at; at = strchr(at + 1, '=')) {
        product *= strtol(at + 1, NULL, 10);
        if (product < 1 || product > 1 << 20)
            return ranks;
    }
    return (int)product;
}

// Collective. Placements and costs of a mesh that need not be there.
static int explain(Job *job)
{
    Error error = {0};
    Mesh mesh;
    int ranks = ranks_of_mesh(job->mesh_text, job->run->ranks);
    if (mesh_parse(job->mesh_text, ranks, &mesh, &error)) {
        mesh.world.ranks = ranks;
        read_layout(job, &mesh, &error);
    }
    run_agree(job->run, &error);
    if (job->run->rank == 0)
        lm_explain(&job->layout, &job->training, job->params->exact, job->params->json);
    lm_layout_destroy(&job->layout);
    lm_parameters_destroy(&job->list);
    plan_destroy(&job->plan);
    return EXIT_CODE_GOOD;
}

// Collective. Options that need no mesh.
static void read_request(Job *job)
{
    const Params *p = job->params;
    Error error = {0};
    if (read_model(job, &error))
        read_training(job, &error);
    run_agree(job->run, &error);
    if (job->run->rank == 0 && p->output)
        file_check_creatable(p->output, p->force, &error);
    run_agree(job->run, &error);
    if (p->plan)
        plan_read(p->plan, &job->plan, &error);
    run_agree(job->run, &error);
    snprintf(job->mesh_text, sizeof job->mesh_text, "%s", p->mesh ? p->mesh : mode_mesh[p->mode]);
}

static void set_up_problem(Job *job)
{
    const Params *p = job->params;
    Error error = {0};
    Mesh parsed;
    if (mesh_parse(job->mesh_text, job->run->ranks, &parsed, &error))
        read_layout(job, &parsed, &error);
    run_agree(job->run, &error);
    lm_layout_destroy(&job->layout);
    lm_parameters_destroy(&job->list);
    job->device = run_choose_device(job->run, (DeviceChoice)p->device, &job->device_index);
    job->stream = stream_create(job->device);
    job->arena = arena_create(MEMORY_DEVICE, job->device);
    job->world = comm_create_world(job->run, job->device, job->device_index);
    job->mesh = mesh_create(job->mesh_text, job->world);
    clock_t begin = clock();
    if (read_layout(job, job->mesh, &error))
        lm_cost(&job->layout, &job->training, p->exact);
    job->plan_cpu_s = run_maximum(job->run, (double)(clock() - begin) / CLOCKS_PER_SEC);
    run_agree(job->run, &error);
}

// ---- run ----

static LmTrainerSettings trainer_settings(const Job *job)
{
    return (LmTrainerSettings){.layout = &job->layout,
                               .training = &job->training,
                               .align = (int)job->params->align,
                               .threads = job->run->threads,
                               .exact = job->params->exact,
                               .transport = EP_AUTO,
                               .device = job->device,
                               .arena = job->arena,
                               .plant = (LmPlant)job->params->plant};
}

// A step that nobody times: its spans only say, to whom it concerns, where a rank is.
static LmStepResult untimed_step(Job *job, Recorder *recorder, int total, int step)
{
    check_phase("train");
    record_begin(recorder, total);
    LmStepResult result = lm_trainer_step(job->trainer, step, job->stream);
    record_end(recorder, total);
    recorder_iteration(recorder, false);
    check_phase("gather");
    return result;
}

static void train(Job *job)
{
    const Fsdp *fsdp = lm_trainer_fsdp(job->trainer);
    bool check = job->params->check;
    Recorder *recorder = recorder_create(job->stream, 0, false);
    int total = recorder_span(recorder, "total");
    lm_trainer_record_with(job->trainer, recorder);
    for (int step = 0; step < job->training.steps; step++) {
        LmStepResult result = untimed_step(job, recorder, total, step);
        job->ours.loss[step] = result.loss;
        job->ours.norm[step] = result.norm;
        uint64_t sent[LM_TRAFFIC_KINDS];
        lm_trainer_take_traffic(job->trainer, sent);
        for (int kind = 0; kind < LM_TRAFFIC_KINDS; kind++)
            job->sent[kind] += sent[kind];
        if (check && step == 0)
            lm_gather_whole(job->run, job->trainer, fsdp_gradients(fsdp), &job->ours.first_gradient,
                            job->stream);
        if (check && step == job->training.steps - 1)
            lm_gather_whole(job->run, job->trainer, fsdp_gradients(fsdp), &job->ours.last_gradient,
                            job->stream);
    }
    memcpy(job->ours.bias, lm_trainer_expert_bias(job->trainer),
           (size_t)(job->config.layers * job->config.moe.experts) * sizeof(float));
    if (check)
        lm_gather_whole(job->run, job->trainer, fsdp_values(fsdp), &job->ours.values, job->stream);
    lm_trainer_record_with(job->trainer, NULL);
    recorder_destroy(recorder);
}

// Collective(all ranks).
static void check_cost(Job *job)
{
    ResultCheck check = lm_cost_check(&(LmCostCheck){.run = job->run,
                                                     .layout = &job->layout,
                                                     .training = &job->training,
                                                     .exact = job->params->exact,
                                                     .device = job->device,
                                                     .arena = job->arena,
                                                     .sent = job->sent});
    if (job->run->rank == 0)
        result_add_check(job->writer, &check);
    job->good = job->good && check.good;
}

// Local on rank 0.
static void check_against_one_rank(Job *job)
{
    LmTrainerSettings settings = trainer_settings(job);
    double needed = (double)lm_reference_bytes(&settings);
    double free_bytes = (double)device_info(job->device, job->device_index).memory_free_bytes;
    if (needed > 0.8 * free_bytes) {
        ResultCheck skipped = {.error = NAN, .bound = NAN, .good = true, .verdict = "skipped"};
        snprintf(skipped.name, sizeof skipped.name, "1 rank");
        snprintf(skipped.detail, sizeof skipped.detail, "it needs %.1f GiB, %.1f GiB are free",
                 needed / 1073741824.0, free_bytes / 1073741824.0);
        result_add_check(job->writer, &skipped);
        return;
    }
    LmResult theirs = lm_result_create(&job->list, &job->config, job->training.steps, true);
    lm_reference(&settings, &theirs);
    int row = job->config.dtype == DTYPE_F32 ? 0 : 1;
    bool same_bits = job->layout.tp.ranks == 1 &&
                     (job->params->exact || job->device == DEVICE_CPU); // dense_gemm.h
    LmOracle oracle = {.layout = &job->layout,
                       .ours = &job->ours,
                       .theirs = &theirs,
                       .bound = same_bits ? -1 : bound_of_dtype[row].first,
                       .bound_later = bound_of_dtype[row].later};
    LmFinding *findings = calloc((size_t)LM_SUBJECTS * (size_t)job->list.count, sizeof(LmFinding));
    CHECK(findings != NULL, EXIT_CODE_HARDWARE, "use --no-check", "no memory for findings");
    ResultCheck checks[LM_CHECKS_MAX];
    int count = lm_oracle_check(&oracle, findings, checks);
    for (int i = 0; i < count; i++) {
        result_add_check(job->writer, &checks[i]);
        job->good = job->good && checks[i].good;
    }
    if (!job->good && !job->params->json)
        lm_oracle_print(&oracle, findings);
    free(findings);
    lm_result_destroy(&theirs);
}

static Json *extra_json(const Job *job)
{
    Json *mesh = json_object(), *extra = json_object();
    for (int axis = 0; axis < job->mesh->axes; axis++)
        json_set(mesh, job->mesh->name[axis], json_integer(job->mesh->ranks[axis]));
    json_set(extra, "mesh", mesh);
    json_set(extra, "set_up_plan_cpu_s", json_real(job->plan_cpu_s));
    Json *memory = json_object();
    for (int category = 0; category < MEMORY_CATEGORIES; category++) {
        uint64_t bytes = arena_peak_bytes(job->arena, (MemoryCategory)category);
        json_set(memory, memory_category_name((MemoryCategory)category),
                 json_integer((int64_t)bytes));
    }
    FsdpMemory fsdp = lm_cost(&job->layout, &job->training, job->params->exact).memory;
    json_set(memory, "parameter_shards", json_integer((int64_t)fsdp.shard_bytes));
    json_set(memory, "parameters_gathered", json_integer((int64_t)fsdp.gathered_bytes));
    json_set(memory, "largest_unit", json_integer((int64_t)fsdp.largest_bytes));
    return json_set(extra, "memory_peak_bytes", memory);
}

static void start_result(Job *job)
{
    DeviceInfo info = device_info(job->device, job->device_index);
    job->writer = result_writer_create(&(ResultStart){.run = job->run,
                                                      .options = options,
                                                      .params = job->params,
                                                      .device = &info,
                                                      .path = job->params->output,
                                                      .force = job->params->force,
                                                      .seed = job->training.seed,
                                                      .extra = extra_json(job)});
}

static void time_steps(Job *job)
{
    const Params *p = job->params;
    job->hidden = NAN;
    if (p->samples == 0)
        return;
    double hidden =
        lm_time(&(LmTiming){.run = job->run,
                            .trainer = job->trainer,
                            .stream = job->stream,
                            .writer = job->writer,
                            .first_step = job->training.steps,
                            .rule = {.samples_min = p->samples < 5 ? (int)p->samples : 5,
                                     .samples_max = (int)p->samples,
                                     .noise_max = p->max_noise,
                                     .timeout_s = p->timeout}});
    job->hidden = -run_maximum(job->run, -hidden); // the rank that hides least
}

static void show(const Job *job)
{
    result_show(result_of(job->writer), job->params->json);
    if (!isnan(job->hidden) && !job->params->json)
        printf("communication of FSDP hidden behind compute: %.1f %%\n", 100 * job->hidden);
}

// Collective. Exit code of --linear.
static int run_linear(Run *run, const Params *p)
{
    CHECK_ALL(p->mode == MODE_FSDP || p->mode == MODE_TP, EXIT_CODE_USAGE,
              "use --mode fsdp or --mode tp, or drop --linear",
              "--linear knows the modes fsdp and tp");
    int device_index;
    DeviceKind device = run_choose_device(run, (DeviceChoice)p->device, &device_index);
    LinearDemo demo = {.run = run,
                       .world = comm_create_world(run, device, device_index),
                       .device = device,
                       .seed = (uint64_t)p->seed,
                       .tensor_parallel = p->mode == MODE_TP,
                       .stream = stream_create(device)};
    DeviceInfo info = device_info(device, device_index);
    ResultWriter *writer = result_writer_create(&(ResultStart){.run = run,
                                                               .options = options,
                                                               .params = p,
                                                               .device = &info,
                                                               .path = p->output,
                                                               .force = p->force,
                                                               .seed = demo.seed});
    ResultCheck checks[LINEAR_CHECKS] = {{.good = true}};
    linear_demo(&demo, checks);
    double failed = 0;
    for (int i = 0; i < LINEAR_CHECKS && run->rank == 0; i++) {
        result_add_check(writer, &checks[i]);
        failed += !checks[i].good;
    }
    result_writer_finish(writer);
    if (run->rank == 0)
        result_show(result_of(writer), p->json);
    failed = run_maximum(run, failed);
    result_writer_destroy(writer);
    stream_destroy(demo.stream);
    comm_destroy(&demo.world);
    return failed > 0 ? EXIT_CODE_CHECK : EXIT_CODE_GOOD;
}

static void tear_down(Job *job)
{
    result_writer_destroy(job->writer);
    lm_result_destroy(&job->ours);
    lm_trainer_destroy(job->trainer);
    lm_layout_destroy(&job->layout);
    lm_parameters_destroy(&job->list);
    plan_destroy(&job->plan);
    stream_destroy(job->stream);
    arena_destroy(job->arena);
    mesh_destroy(job->mesh);
    comm_destroy(&job->world);
}

static int run_parallelisms(Run *run, const void *params, const OptionPositionals *positionals)
{
    (void)positionals;
    Job job = {.run = run, .params = params, .good = true};
    const Params *p = params;
    if (p->load)
        return layer_file_run(run, options, params);
    CHECK_ALL(!p->save, EXIT_CODE_USAGE, "add --load FILE, or drop --save",
              "--save %.100s without --load", p->save);
    if (p->linear)
        return run_linear(run, p);
    read_request(&job);
    if (job.params->explain)
        return explain(&job);
    set_up_problem(&job);
    LmTrainerSettings settings = trainer_settings(&job);
    job.trainer = lm_trainer_create(&settings);
    start_result(&job);
    bool whole = job.params->check && run->rank == 0;
    job.ours = lm_result_create(&job.list, &job.config, job.training.steps, whole);
    train(&job);
    check_phase("check");
    if (run->rank == 0 && job.params->check)
        check_against_one_rank(&job);
    if (job.params->check)
        check_cost(&job);
    check_phase("time");
    time_steps(&job);
    check_phase("write");
    result_writer_finish(job.writer);
    if (run->rank == 0)
        show(&job);
    bool failed = run_maximum(run, job.good ? 0 : 1) > 0;
    if (failed && run->rank == 0)
        check_print(__FILE__, __LINE__, "see the causes in the table of checks",
                    "training over %d ranks is not what one rank does", run->ranks);
    tear_down(&job);
    return failed ? EXIT_CODE_CHECK : EXIT_CODE_GOOD;
}

const Command command_parallelisms = {
    .name = "parallelisms",
    .summary = "a small language model over a mesh: FSDP, TP, SP, HSDP, EP, against one rank",
    .usage = "",
    .notes = "Examples:\n"
             "  mpirun -n 2 meshwork parallelisms --mode fsdp\n"
             "  mpirun -n 8 meshwork parallelisms --mesh dp=2,ep=2,tp=2 --experts_on 'ep*tp' "
             "--layers 4 --dim 256 --experts 12 --steps 3\n",
    .options = options,
    .params_bytes = sizeof(Params),
    .positionals_max = 0,
    .spmd = true,
    .run = run_parallelisms,
};
