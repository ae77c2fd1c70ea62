// redistribute.c -- one tensor from one list of placements to another: the plan, what it sends, how
// long it takes, and whether every bit is where it belongs.
//
// Every element is a function of the seed, its global index and, where an axis is Partial, the
// coordinate along that axis. So every rank can say alone what it should hold, whatever the size
// (parallel/redistribute_check.h); it compares bit for bit.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness/command.h"
#include "harness/json.h"
#include "harness/random.h"
#include "harness/run_device.h"
#include "parallel/redistribute_check.h"
#include "results/statistics.h"

enum { PLANS_TIMED = 101 };

typedef struct Params {
    const char *shape, *mesh, *from, *to, *dtype;
    int64_t seed, samples;
    int device;
    bool check, move, json;
} Params;

#define FIELD(name) offsetof(Params, name)
static const Option options[] = {
    {"shape", OPTION_TEXT, FIELD(shape), "61,7", .value = "N[,N...]",
     .doc = "global shape; 0 and sizes that nothing divides are welcome"},
    {"mesh", OPTION_TEXT, FIELD(mesh), "a=*", .value = "AXES",
     .doc = "named grid of ranks, any names, such as a=2,b=4; * is whatever is left"},
    {"from", OPTION_TEXT, FIELD(from), "S0", .value = "PLACEMENTS",
     .doc = "one per axis: R, S0, S0x4 (strided), P, P(avg|product|max|min)"},
    {"to", OPTION_TEXT, FIELD(to), "R", .value = "PLACEMENTS", .doc = "the same, afterwards"},
    {"dtype", OPTION_TEXT, FIELD(dtype), "f32", .value = "TYPE",
     .doc = "element type: f32, bf16, f16, f64, i64, ..., f8_e4m3, ..."},
    {"check", OPTION_SWITCH, FIELD(check), "yes",
     .doc = "compare with gather, combine and slice, bit for bit"},
    {"move", OPTION_SWITCH, FIELD(move), "yes",
     .doc = "--no-move: only the plan and its bytes, for tensors of any size"},
    {"samples", OPTION_INT, FIELD(samples), "10", 0, 100000, .doc = "timed replays; 0 = none"},
    {"seed", OPTION_INT, FIELD(seed), "6", 0, 9e18, .doc = "seed of the elements"},
    {"device", OPTION_CHOICE, FIELD(device), "auto", .choices = "cpu|cuda|auto",
     .doc = "where the parts are; auto takes a GPU when every rank has one"},
    {"json", OPTION_SWITCH, FIELD(json), "no", .doc = "print the result as one JSON object"},
    {NULL},
};

typedef struct Job {
    Run *run;
    const Params *params;
    DeviceKind device;
    Stream stream;
    Comm world;
    Mesh *mesh;
    Tensor whole;
    Placement from[MESH_AXES_MAX], to[MESH_AXES_MAX];
    Arena *arena, *host; // host: what is filled and checked where the parts are elsewhere
    Redistribute *plan;
    char *in, *out;           // this rank's parts, on the device
    char *in_host, *out_host; // the same on the CPU, else their images
    int64_t *wire_of_step;    // [ranks][steps]
    int64_t sent_bytes;       // by all ranks, as counted
    double seconds;           // of a replay: median, the slowest rank's
    double plan_seconds;      // of a plan: median, the slowest rank's
    int64_t wrong;            // elements that differ, all ranks
} Job;

// ---- request ----

static bool parse_shape(const char *text, Tensor *whole, Error *error)
{
    static const char *const fix = "write sizes with commas between, such as --shape 61,7";
    for (const char *part = text; part; whole->rank++) {
        char *end;
        bool digit = *part >= '0' && *part <= '9';
        long long size = digit ? strtoll(part, &end, 10) : 0;
        if (whole->rank == TENSOR_RANK_MAX)
            return error_set(error, EXIT_CODE_USAGE, fix,
                             "--shape '%.100s' has more than %d dimensions", text, TENSOR_RANK_MAX);
        if (!digit || (*end != ',' && *end != '\0') || size > INT64_MAX / 64)
            return error_set(error, EXIT_CODE_USAGE, fix,
                             "--shape '%.100s': dimension %d is no size in 0 .. %lld", text,
                             whole->rank, (long long)(INT64_MAX / 64));
        whole->shape[whole->rank] = size;
        part = *end == ',' ? end + 1 : NULL;
    }
    return true;
}

static bool parse_dtype(const char *text, DType *dtype, Error *error)
{
    const char *names[DTYPES + 1] = {NULL};
    char fix[256] = "the types are f32, bf16, f16, f64, i64 .. i8, u64 .. u8, bool, c64, f8_*";
    for (int i = 0; i < DTYPES; i++)
        names[i] = dtype_row((DType)i)->name;
    if (!dtype_find_name(text, dtype)) {
        const char *nearest = option_nearest(text, names);
        if (nearest)
            snprintf(fix, sizeof(fix), "did you mean '%s'?", nearest);
        return error_set(error, EXIT_CODE_USAGE, fix, "--dtype: there is no type '%.60s'", text);
    }
    if (dtype_row(*dtype)->bits < 8)
        return error_set(error, EXIT_CODE_USAGE, "redistribute its bytes: --dtype u8",
                         "--dtype %s: its elements share bytes and cannot be parted", text);
    return true;
}

// The message begins with the option and what was typed.
static bool check_placements(const Job *job, const Mesh *mesh, const char *option, const char *text,
                             const Placement *placements, Error *error)
{
    return dtensor_check(mesh, &job->whole, placements, error) ||
           error_prefix(error, "%s '%.100s'", option, text);
}

static void read_request(Job *job)
{
    const Params *p = job->params;
    Error error = {0};
    Mesh mesh;
    Placement whole[MESH_AXES_MAX] = {{0}}; // replicated: what is wrong then is the shape
    // On every rank alike, so the first rank's message is everybody's.
    if (parse_shape(p->shape, &job->whole, &error) &&
        parse_dtype(p->dtype, &job->whole.dtype, &error) &&
        mesh_parse_any_names(p->mesh, job->run->ranks, &mesh, &error) &&
        check_placements(job, &mesh, "--shape", p->shape, whole, &error) &&
        placement_parse(p->from, "--from", &mesh, job->from, &error) &&
        placement_parse(p->to, "--to", &mesh, job->to, &error) &&
        check_placements(job, &mesh, "--from", p->from, job->from, &error))
        check_placements(job, &mesh, "--to", p->to, job->to, &error);
    run_agree(job->run, &error);
}

// ---- elements ----

// The term at `coord` of the element: one random stream per combination of Partial coordinates.
static void make_term(const void *context, const int *coord, uint64_t index, void *out)
{
    const Job *job = context;
    uint32_t stream = 1;
    for (int axis = 0; axis < job->mesh->axes; axis++)
        if (job->from[axis].kind == PLACEMENT_PARTIAL)
            stream = stream * (uint32_t)job->mesh->ranks[axis] + (uint32_t)coord[axis];
    uint64_t seed = (uint64_t)job->params->seed;
    DType dtype = job->whole.dtype;
    RandomBlock block = random_block(seed, stream, index);
    float normal = random_normal(seed, stream, index);
    double wide = (double)normal / 3;
    uint16_t bf16 = bf16_from_f32(normal);
    const void *bits = dtype == DTYPE_F32    ? (const void *)&normal
                       : dtype == DTYPE_F64  ? (const void *)&wide
                       : dtype == DTYPE_BF16 ? (const void *)&bf16
                                             : (const void *)&block;
    if (dtype == DTYPE_F16)
        block.word[0] &= 0xBFFFu; // finite, |value| < 2
    if (dtype == DTYPE_BOOL)
        block.word[0] &= 1u;
    memcpy(out, bits, dtype_bytes(dtype, 1));
}

static void check(Job *job)
{
    const RedistributeTerms terms = {make_term, job};
    int64_t wrong = redistribute_check(job->plan, &terms, job->out_host);
    Stream host = {.device = DEVICE_CPU};
    comm_all_reduce(job->world, &wrong, &job->wrong, 1, DTYPE_I64, COMM_SUM, host);
}

// ---- run and report ----

// Bytes that this rank's axes have sent since the last call.
static int64_t take_sent(const Job *job)
{
    uint64_t bytes = 0;
    for (int axis = 0; axis < job->mesh->axes; axis++)
        bytes += comm_take_wire_bytes(job->mesh->comm[axis]);
    return (int64_t)bytes;
}

static void time_replays(Job *job)
{
    int samples = (int)job->params->samples;
    if (samples == 0)
        return;
    double *seconds = calloc((size_t)samples, sizeof(*seconds));
    CHECK_RULE(seconds != NULL);
    Event begin = event_create(job->device), end = event_create(job->device);
    for (int i = 0; i < samples; i++) {
        comm_barrier(job->world, job->stream);
        event_record(&begin, job->stream);
        redistribute_run(job->plan, job->in, job->out, job->stream);
        event_record(&end, job->stream);
        seconds[i] = run_maximum(job->run, event_seconds(&begin, &end));
    }
    event_destroy(&begin);
    event_destroy(&end);
    job->seconds = statistics_of(seconds, samples).median;
    free(seconds);
}

// arena NULL: a plan that is only looked at.
static Redistribute *make_plan(const Job *job, Arena *arena)
{
    return redistribute_create(&(RedistributeSettings){.mesh = job->mesh,
                                                       .whole = &job->whole,
                                                       .from = job->from,
                                                       .to = job->to,
                                                       .arena = arena,
                                                       .device = job->device});
}

// Host memory is given out before it is there, so a tensor that is too large would end in a KILL.
static void check_room(const Job *job, int device_index)
{
    Error error = {0};
    Redistribute *plan = make_plan(job, NULL);
    uint64_t parts =
        tensor_bytes(&redistribute_from(plan)->local) + tensor_bytes(&redistribute_to(plan)->local);
    uint64_t need = parts + redistribute_buffer_bytes(plan);
    uint64_t room = device_info(job->device, device_index).memory_free_bytes;
    room /= job->device == DEVICE_CPU ? (uint64_t)job->run->local_ranks : 1;
    if (need > room)
        error_set(&error, EXIT_CODE_HARDWARE,
                  "make it smaller, or use --no-move to see the plan only",
                  "--shape '%.100s': a rank needs %llu bytes and has %llu", job->params->shape,
                  (unsigned long long)need, (unsigned long long)room);
    redistribute_destroy(plan);
    run_agree(job->run, &error);
}

// Every plan takes its buffers and gives them back. A plan is over long before a scheduler looks,
// so the median is a rank's own time even where ranks share a core.
static void time_plans(Job *job)
{
    double seconds[PLANS_TIMED];
    Event begin = event_create(DEVICE_CPU), end = event_create(DEVICE_CPU);
    Stream host = {.device = DEVICE_CPU};
    for (int i = 0; i < PLANS_TIMED; i++) {
        ArenaMark mark = arena_mark(job->arena);
        event_record(&begin, host);
        Redistribute *plan = make_plan(job, job->params->move ? job->arena : NULL);
        event_record(&end, host);
        seconds[i] = event_seconds(&begin, &end);
        redistribute_destroy(plan);
        arena_release(job->arena, mark);
    }
    event_destroy(&begin);
    event_destroy(&end);
    job->plan_seconds = run_maximum(job->run, statistics_of(seconds, PLANS_TIMED).median);
}

// Planned bytes of every rank and step, and the counted sum.
static void gather_wire(Job *job)
{
    int steps = redistribute_steps(job->plan), ranks = job->run->ranks;
    int64_t mine[REDISTRIBUTE_STEPS_MAX + 1] = {take_sent(job)};
    for (int step = 0; step < steps; step++)
        mine[step + 1] = (int64_t)redistribute_step(job->plan, step)->wire_bytes;
    size_t row = (size_t)steps + 1;
    job->wire_of_step = calloc(row * (size_t)ranks, sizeof(int64_t));
    CHECK_RULE(job->wire_of_step != NULL);
    comm_gather_host(job->world, mine, job->wire_of_step, row * sizeof(int64_t));
    for (int rank = 0; rank < ranks; rank++)
        job->sent_bytes += job->wire_of_step[row * (size_t)rank];
}

// Sum and maximum over ranks of a step's planned bytes.
static int64_t wire_sum(const Job *job, int step, int64_t *maximum)
{
    size_t row = (size_t)redistribute_steps(job->plan) + 1;
    int64_t sum = 0;
    *maximum = 0;
    for (int rank = 0; rank < job->run->ranks; rank++) {
        int64_t bytes = job->wire_of_step[row * (size_t)rank + (size_t)step + 1];
        sum += bytes;
        *maximum = bytes > *maximum ? bytes : *maximum;
    }
    return sum;
}

static int64_t planned_bytes(const Job *job)
{
    int64_t sum = 0, unused;
    for (int step = 0; step < redistribute_steps(job->plan); step++)
        sum += wire_sum(job, step, &unused);
    return sum;
}

static void describe_part(const Job *job, const int64_t *shape, char *text, size_t bytes)
{
    Tensor part = job->whole;
    memcpy(part.shape, shape, sizeof(part.shape));
    tensor_describe(&part, text, bytes);
}

static void print_table(const Job *job)
{
    char text[256], from[PLACEMENT_TEXT_BYTES], to[PLACEMENT_TEXT_BYTES];
    const Params *p = job->params;
    tensor_describe(&job->whole, text, sizeof(text));
    printf("%s on mesh %s: %s -> %s\n\n", text, p->mesh, p->from, p->to);
    describe_part(job, redistribute_from(job->plan)->local.shape, text, sizeof(text));
    printf("%-14s  %-10s  %-22s  %14s  %14s  %s\n%-82s  %s\n", "step", "axis", "change",
           "sent, bytes", "most by a rank", "part of rank 0", "begin", text);
    for (int i = 0; i < redistribute_steps(job->plan); i++) {
        const RedistributeStep *step = redistribute_step(job->plan, i);
        char change[2 * PLACEMENT_TEXT_BYTES + 8];
        int64_t most, sum = wire_sum(job, i, &most);
        snprintf(change, sizeof(change), "%s -> %s",
                 placement_format(&step->from, from, sizeof(from)),
                 placement_format(&step->to, to, sizeof(to)));
        describe_part(job, step->shape, text, sizeof(text));
        printf("%-14s  %-10s  %-22s  %14lld  %14lld  %s\n", redistribute_kind_name(step->kind),
               job->mesh->name[step->axis], change, (long long)sum, (long long)most, text);
    }
    printf("\nwire bytes of all ranks: %lld planned", (long long)planned_bytes(job));
    if (!p->move) {
        printf(", nothing moved\n");
        return;
    }
    printf(", %lld sent\n", (long long)job->sent_bytes);
    if (p->samples > 0)
        printf("time on %s: %.3f ms, median of %lld replays, slowest rank; plan: %.1f us\n",
               device_kind_name(job->device), job->seconds * 1e3, (long long)p->samples,
               job->plan_seconds * 1e6);
    if (p->check && job->wrong == 0)
        printf("check: equal to gather, combine and slice, bit for bit\n");
    else if (p->check)
        printf("check: WRONG: %lld elements differ\n", (long long)job->wrong);
}

static void print_json(const Job *job)
{
    const Params *p = job->params;
    char from[PLACEMENT_TEXT_BYTES], to[PLACEMENT_TEXT_BYTES];
    Json *shape = json_array(), *steps = json_array(), *root = json_object();
    for (int dim = 0; dim < job->whole.rank; dim++)
        json_append(shape, json_integer(job->whole.shape[dim]));
    for (int i = 0; i < redistribute_steps(job->plan); i++) {
        const RedistributeStep *step = redistribute_step(job->plan, i);
        int64_t most, sum = wire_sum(job, i, &most);
        Json *one = json_object();
        json_set(one, "step", json_text(redistribute_kind_name(step->kind)));
        json_set(one, "axis", json_text(job->mesh->name[step->axis]));
        json_set(one, "from", json_text(placement_format(&step->from, from, sizeof(from))));
        json_set(one, "to", json_text(placement_format(&step->to, to, sizeof(to))));
        json_set(one, "wire_bytes", json_integer(sum));
        json_set(one, "wire_bytes_max", json_integer(most));
        json_append(steps, one);
    }
    json_set(root, "command", json_text("redistribute"));
    json_set(root, "shape", shape);
    json_set(root, "dtype", json_text(dtype_row(job->whole.dtype)->name));
    json_set(root, "device", json_text(device_kind_name(job->device)));
    json_set(root, "mesh", json_text(p->mesh));
    json_set(root, "from", json_text(p->from));
    json_set(root, "to", json_text(p->to));
    json_set(root, "steps", steps);
    json_set(root, "wire_bytes_planned", json_integer(planned_bytes(job)));
    bool timed = p->move && p->samples > 0;
    json_set(root, "wire_bytes_sent", p->move ? json_integer(job->sent_bytes) : json_null());
    json_set(root, "seconds", timed ? json_real(job->seconds) : json_null());
    json_set(root, "plan_seconds", p->samples > 0 ? json_real(job->plan_seconds) : json_null());
    json_set(root, "elements_wrong", p->move && p->check ? json_integer(job->wrong) : json_null());
    char *text = json_print(root, true);
    printf("%s\n", text);
    free(text);
    json_destroy(root);
}

static char *push_part(Arena *arena, const DTensor *part)
{
    return arena_push(arena, tensor_bytes(&part->local), MEMORY_ACTIVATIONS);
}

static void create(Job *job)
{
    int index;
    job->device = run_choose_device(job->run, (DeviceChoice)job->params->device, &index);
    job->stream = stream_create(job->device);
    job->world = comm_create_world(job->run, job->device, index);
    job->mesh = mesh_create_any_names(job->params->mesh, job->world);
    job->arena = arena_create(MEMORY_DEVICE, job->device);
    job->host = arena_create(MEMORY_HOST, DEVICE_CPU);
    if (job->params->move)
        check_room(job, index);
    if (job->params->samples > 0)
        time_plans(job);
    job->plan = make_plan(job, job->params->move ? job->arena : NULL);
    if (!job->params->move)
        return;
    const DTensor *from = redistribute_from(job->plan), *to = redistribute_to(job->plan);
    job->in = push_part(job->arena, from);
    job->out = push_part(job->arena, to);
    bool on_host = job->device == DEVICE_CPU;
    job->in_host = on_host ? job->in : push_part(job->host, from);
    job->out_host = on_host ? job->out : push_part(job->host, to);
    arena_forbid(job->arena, true);
}

static void destroy(Job *job)
{
    free(job->wire_of_step);
    redistribute_destroy(job->plan);
    arena_destroy(job->arena);
    arena_destroy(job->host);
    mesh_destroy(job->mesh);
    comm_destroy(&job->world);
    stream_destroy(job->stream);
}

// Between a part and its image on the host.
static void copy_image(const Job *job, char *to, const char *from, const DTensor *part)
{
    uint64_t bytes = tensor_bytes(&part->local);
    if (to != from && bytes > 0)
        device_copy(to, from, bytes, job->stream);
    stream_wait(job->stream);
}

static void move(Job *job)
{
    const RedistributeTerms terms = {make_term, job};
    redistribute_fill(job->plan, &terms, job->in_host);
    copy_image(job, job->in, job->in_host, redistribute_from(job->plan));
    check_phase("redistribute");
    redistribute_run(job->plan, job->in, job->out, job->stream);
    gather_wire(job);
    check_phase("check");
    copy_image(job, job->out_host, job->out, redistribute_to(job->plan));
    if (job->params->check)
        check(job);
    check_phase("time");
    time_replays(job);
}

static int run(Run *run, const void *params, const OptionPositionals *positionals)
{
    (void)positionals;
    Job job = {.run = run, .params = params};
    read_request(&job);
    create(&job);
    take_sent(&job);
    if (job.params->move)
        move(&job);
    else
        gather_wire(&job);
    bool good = job.wrong == 0 && (!job.params->move || planned_bytes(&job) == job.sent_bytes);
    if (run->rank == 0)
        (job.params->json ? print_json : print_table)(&job);
    destroy(&job);
    return good ? EXIT_CODE_GOOD : EXIT_CODE_CHECK;
}

const Command command_redistribute = {
    .name = "redistribute",
    .summary = "move one tensor between placements on a mesh: plan, wire bytes, time, check",
    .notes =
        "Placements, one per mesh axis: R all of it; S0 a shard of dimension 0; S0x4 a strided\n"
        "shard, cut after axes to its right made 4 shards; P a term of the sum (P(avg),\n"
        "P(product), P(max), P(min)). The exact rules stand in parallel/placement.h,\n"
        "parallel/dtensor.h and parallel/redistribute.h.\n"
        "\n"
        "  mpirun -n 8 meshwork redistribute --shape 61,7 --mesh a=2,b=4 --from S0,P --to R,S1",
    .options = options,
    .params_bytes = sizeof(Params),
    .positionals_max = 0,
    .spmd = true,
    .run = run,
};
