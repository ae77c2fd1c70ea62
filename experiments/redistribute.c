// redistribute.c -- one tensor from one list of placements to another: the plan, what it sends, how
// long it takes, and whether every bit is where it belongs.
//
// Every element is a function of the seed, its global index and, where an axis is Partial, the
// coordinate along that axis. So every rank can say alone what gathering the tensor, combining its
// terms and slicing it anew would leave in its part, whatever the size; it compares bit for bit.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness/command.h"
#include "harness/json.h"
#include "harness/random.h"
#include "parallel/partial.h"
#include "parallel/redistribute.h"

typedef struct Params {
    const char *shape, *mesh, *from, *to, *dtype;
    int64_t seed, samples;
    int device;
    bool check, json;
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
    {"samples", OPTION_INT, FIELD(samples), "10", 0, 100000, .doc = "timed replays; 0 = none"},
    {"seed", OPTION_INT, FIELD(seed), "6", 0, 9e18, .doc = "seed of the elements"},
    {"device", OPTION_CHOICE, FIELD(device), "cpu", .choices = "cpu|cuda",
     .doc = "where to run; cuda is not there yet"},
    {"json", OPTION_SWITCH, FIELD(json), "no", .doc = "print the result as one JSON object"},
    {NULL},
};

typedef struct Job {
    Run *run;
    const Params *params;
    Comm world;
    Mesh *mesh;
    Tensor whole;
    Placement from[MESH_AXES_MAX], to[MESH_AXES_MAX];
    Arena *arena;
    Redistribute *plan;
    char *in, *out;
    int64_t *wire_of_step; // [ranks][steps]
    int64_t sent_bytes;    // by all ranks, as counted
    double seconds;        // median, the slowest rank's
    int64_t wrong;         // elements that differ, all ranks
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

static void read_request(Job *job)
{
    const Params *p = job->params;
    Error error = {0};
    Mesh mesh;
    // On every rank alike, so the first rank's message is everybody's.
    if (parse_shape(p->shape, &job->whole, &error) &&
        parse_dtype(p->dtype, &job->whole.dtype, &error) &&
        mesh_parse_any_names(p->mesh, job->run->ranks, &mesh, &error) &&
        placement_parse(p->from, "--from", &mesh, job->from, &error) &&
        placement_parse(p->to, "--to", &mesh, job->to, &error) &&
        dtensor_check(&mesh, &job->whole, job->from, &error) &&
        dtensor_check(&mesh, &job->whole, job->to, &error) && p->device == DEVICE_CUDA)
        error_set(&error, EXIT_CODE_HARDWARE, "use --device cpu",
                  "redistribute has no CUDA rows yet: NCCL needs padded exchanges of equal counts");
    run_agree(job->run, &error);
}

// ---- elements ----

// Row-major walk over a part: global index of each element, from the maps.
typedef struct Walk {
    const DTensor *part;
    int64_t local[TENSOR_RANK_MAX];  // index in the part
    int64_t global[TENSOR_RANK_MAX]; // the same element in the whole
} Walk;

static void walk_settle(Walk *walk, int dim)
{
    walk->global[dim] =
        dtensor_global_index(walk->part, walk->part->mesh->coord, dim, walk->local[dim]);
}

static Walk walk_begin(const DTensor *part)
{
    Walk walk = {.part = part};
    for (int dim = 0; dim < part->local.rank; dim++)
        walk_settle(&walk, dim);
    return walk;
}

static void walk_next(Walk *walk)
{
    for (int dim = walk->part->local.rank - 1; dim >= 0; dim--) {
        bool carry = ++walk->local[dim] == walk->part->local.shape[dim];
        if (carry)
            walk->local[dim] = 0;
        walk_settle(walk, dim);
        if (!carry)
            return;
    }
}

static uint64_t linear_index(const Walk *walk)
{
    uint64_t index = 0;
    for (int dim = 0; dim < walk->part->local.rank; dim++)
        index = index * (uint64_t)walk->part->shape[dim] + (uint64_t)walk->global[dim];
    return index;
}

// The term at `coord` of the element: one random stream per combination of Partial coordinates.
static void make_element(const Job *job, const int *coord, uint64_t index, void *out)
{
    uint32_t stream = 1;
    for (int axis = 0; axis < job->mesh->axes; axis++)
        if (job->from[axis].kind == PLACEMENT_PARTIAL)
            stream = stream * (uint32_t)job->mesh->ranks[axis] + (uint32_t)coord[axis];
    uint64_t seed = (uint64_t)job->params->seed;
    DType dtype = job->whole.dtype;
    RandomBlock block = random_block(seed, stream, index);
    float normal = random_normal(seed, stream, index);
    double wide = (double)normal;
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

// ---- what gather, combine and slice would leave ----

typedef struct Expectation {
    const Job *job;
    bool one_op;
    int combined[MESH_AXES_MAX], combinations; // axes in the order of redistribute.h
    DTensor source;
} Expectation;

static bool stays_partial(const Expectation *e, int axis)
{
    return e->one_op && e->job->to[axis].kind == PLACEMENT_PARTIAL;
}

static Expectation expectation_begin(const Job *job)
{
    Expectation e = {.job = job, .one_op = true, .source = *redistribute_from(job->plan)};
    unsigned ops = 0;
    int axes = job->mesh->axes;
    for (int axis = 0; axis < axes; axis++) {
        if (job->mesh->ranks[axis] == 1)
            continue;
        if (job->from[axis].kind == PLACEMENT_PARTIAL)
            ops |= 1u << job->from[axis].op;
        if (job->to[axis].kind == PLACEMENT_PARTIAL)
            ops |= 1u << job->to[axis].op;
    }
    e.one_op = (ops & (ops - 1)) == 0;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < axes; i++) {
            int axis = pass == 0 ? i : axes - 1 - i;
            bool to_shard = e.one_op && job->to[axis].kind == PLACEMENT_SHARD;
            bool partial = job->from[axis].kind == PLACEMENT_PARTIAL && job->mesh->ranks[axis] > 1;
            if (partial && !stays_partial(&e, axis) && to_shard == (pass == 0))
                e.combined[e.combinations++] = axis;
        }
    return e;
}

// The element after the first `combinations` combinations, at coord. Terms are narrowed after each
// axis, as they travel.
static void combine_element(const Expectation *e, int combinations, const int *coord,
                            uint64_t index, void *out)
{
    if (combinations == 0) {
        make_element(e->job, coord, index, out);
        return;
    }
    int axis = e->combined[combinations - 1], there[MESH_AXES_MAX];
    DType dtype = e->job->whole.dtype;
    uint64_t size = dtype_bytes(dtype, 1);
    memcpy(there, coord, sizeof(there));
    char pair[16];
    char *terms = e->job->mesh->ranks[axis] * size > sizeof(pair)
                      ? malloc(size * (uint64_t)e->job->mesh->ranks[axis])
                      : pair;
    CHECK_RULE(terms != NULL);
    for (int rank = 0; rank < e->job->mesh->ranks[axis]; rank++) {
        there[axis] = rank;
        combine_element(e, combinations - 1, there, index, terms + (uint64_t)rank * size);
    }
    partial_combine(dtype, e->job->from[axis].op, e->job->mesh->ranks[axis], terms, 1, out);
    if (terms != pair)
        free(terms);
}

static void expected_element(const Expectation *e, const Walk *walk, void *out)
{
    const Job *job = e->job;
    const Mesh *mesh = job->mesh;
    combine_element(e, e->combinations, mesh->coord, linear_index(walk), out);
    for (int axis = 0; axis < mesh->axes; axis++) {
        const Placement *to = &job->to[axis], *from = &job->from[axis];
        if (to->kind != PLACEMENT_PARTIAL || !partial_has_identity(to->op) ||
            mesh->ranks[axis] == 1 || (from->kind == PLACEMENT_PARTIAL && e->one_op))
            continue;
        int home[MESH_AXES_MAX] = {0}; // who keeps the value: coordinate 0, or who had it
        if (e->one_op && from->kind == PLACEMENT_SHARD)
            dtensor_owner(&e->source, from->dim, walk->global[from->dim], home);
        if (mesh->coord[axis] != home[axis])
            partial_fill_identity(job->whole.dtype, to->op, 1, out);
    }
}

static void fill(Job *job)
{
    const DTensor *part = redistribute_from(job->plan);
    uint64_t size = dtype_bytes(job->whole.dtype, 1);
    int64_t count = tensor_elements(&part->local);
    if (count == 0)
        return;
    Walk walk = walk_begin(part);
    for (int64_t i = 0; i < count; i++, walk_next(&walk))
        make_element(job, job->mesh->coord, linear_index(&walk), job->in + (uint64_t)i * size);
}

static void check(Job *job)
{
    const DTensor *part = redistribute_to(job->plan);
    uint64_t size = dtype_bytes(job->whole.dtype, 1);
    int64_t count = tensor_elements(&part->local), wrong = 0;
    Expectation e = expectation_begin(job);
    if (count > 0) {
        Walk walk = walk_begin(part);
        for (int64_t i = 0; i < count; i++, walk_next(&walk)) {
            char expected[16];
            expected_element(&e, &walk, expected);
            wrong += memcmp(expected, job->out + (uint64_t)i * size, size) != 0;
        }
    }
    int64_t *all = calloc((size_t)job->run->ranks, sizeof(*all));
    CHECK_RULE(all != NULL);
    comm_gather_host(job->world, &wrong, all, sizeof(wrong));
    for (int rank = 0; rank < job->run->ranks; rank++)
        job->wrong += all[rank];
    free(all);
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

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void time_replays(Job *job, Stream stream)
{
    int64_t samples = job->params->samples;
    if (samples == 0)
        return;
    double *seconds = calloc((size_t)samples, sizeof(*seconds));
    CHECK_RULE(seconds != NULL);
    Event begin = event_create(DEVICE_CPU), end = event_create(DEVICE_CPU);
    for (int64_t i = 0; i < samples; i++) {
        comm_barrier(job->world, stream);
        event_record(&begin, stream);
        redistribute_run(job->plan, job->in, job->out, stream);
        event_record(&end, stream);
        seconds[i] = run_maximum(job->run, event_seconds(&begin, &end));
    }
    qsort(seconds, (size_t)samples, sizeof(*seconds), compare_doubles);
    job->seconds =
        samples % 2 ? seconds[samples / 2] : (seconds[samples / 2 - 1] + seconds[samples / 2]) / 2;
    free(seconds);
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
    printf("%-14s  %-10s  %-22s  %14s  %14s  %s\n", "step", "axis", "change", "sent, bytes",
           "most by a rank", "part of rank 0");
    printf("%-14s  %-10s  %-22s  %14s  %14s  %s\n", "begin", "", "", "", "", text);
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
    printf("\nwire bytes of all ranks: %lld planned, %lld sent\n", (long long)planned_bytes(job),
           (long long)job->sent_bytes);
    if (p->samples > 0)
        printf("time: %.3f ms, median of %lld replays, slowest rank\n", job->seconds * 1e3,
               (long long)p->samples);
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
    json_set(root, "mesh", json_text(p->mesh));
    json_set(root, "from", json_text(p->from));
    json_set(root, "to", json_text(p->to));
    json_set(root, "steps", steps);
    json_set(root, "wire_bytes_planned", json_integer(planned_bytes(job)));
    json_set(root, "wire_bytes_sent", json_integer(job->sent_bytes));
    json_set(root, "seconds", p->samples > 0 ? json_real(job->seconds) : json_null());
    json_set(root, "elements_wrong", p->check ? json_integer(job->wrong) : json_null());
    char *text = json_print(root, true);
    printf("%s\n", text);
    free(text);
    json_destroy(root);
}

static void destroy(Job *job)
{
    free(job->wire_of_step);
    redistribute_destroy(job->plan);
    arena_destroy(job->arena);
    mesh_destroy(job->mesh);
    comm_destroy(&job->world);
}

static int run(Run *run, const void *params, const OptionPositionals *positionals)
{
    (void)positionals;
    Job job = {.run = run, .params = params};
    read_request(&job);
    job.world = comm_create_world(run, DEVICE_CPU, 0);
    job.mesh = mesh_create_any_names(job.params->mesh, job.world);
    job.arena = arena_create(MEMORY_DEVICE, DEVICE_CPU);
    job.plan = redistribute_create(&(RedistributeSettings){
        .mesh = job.mesh, .whole = &job.whole, .from = job.from, .to = job.to, .arena = job.arena});
    job.in = arena_push(job.arena, tensor_bytes(&redistribute_from(job.plan)->local),
                        MEMORY_ACTIVATIONS);
    job.out =
        arena_push(job.arena, tensor_bytes(&redistribute_to(job.plan)->local), MEMORY_ACTIVATIONS);
    Stream stream = stream_create(DEVICE_CPU);
    arena_forbid(job.arena, true);
    fill(&job);
    take_sent(&job);
    redistribute_run(job.plan, job.in, job.out, stream);
    gather_wire(&job);
    if (job.params->check)
        check(&job);
    time_replays(&job, stream);
    bool good = job.wrong == 0 && planned_bytes(&job) == job.sent_bytes;
    if (run->rank == 0)
        (job.params->json ? print_json : print_table)(&job);
    stream_destroy(stream);
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
