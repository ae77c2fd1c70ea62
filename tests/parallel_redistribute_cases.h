// parallel_redistribute_cases.h -- redistribute against gather, combine and slice, bit for bit, on
// any device: random shapes (empty and prime sizes), meshes, placements and types. What every rank
// should hold is made on the host from lists that are really cut and plain C arithmetic. Planned
// wire bytes are those counted; replays repeat and allocate nothing; nothing is written past a
// part.
#pragma once

#include "parallel/partial.h"
#include "parallel/redistribute.h"
#include "tests/parallel_index_lists.h"
#include "tests/parallel_job.h"
#include "tests/terms_fold.h"

enum { RANKS_MAX = 8, MESHES_MAX = 128, LAYOUT_BYTES = 64, GUARD_BYTES = 256 };

// Meshes are kept: making one splits communicators, which takes longer than a hundred cases.
typedef struct Setting {
    TestJob job;
    int meshes;
    char layout[MESHES_MAX][LAYOUT_BYTES];
    Mesh *mesh[MESHES_MAX];
} Setting;

// Collective(all ranks).
static inline void setting_destroy(Setting *setting)
{
    for (int i = 0; i < setting->meshes; i++)
        mesh_destroy(setting->mesh[i]);
}

static inline Mesh *find_mesh(Setting *setting, const char *layout)
{
    for (int i = 0; i < setting->meshes; i++)
        if (strcmp(setting->layout[i], layout) == 0)
            return setting->mesh[i];
    assert_in_range(setting->meshes, 0, MESHES_MAX - 1);
    snprintf(setting->layout[setting->meshes], LAYOUT_BYTES, "%s", layout);
    return setting->mesh[setting->meshes++] = mesh_create_any_names(layout, setting->job.comm);
}

// One request, the same on all ranks.
typedef struct Case {
    uint64_t seed;
    uint32_t trial;
    int drawn;
    const Mesh *mesh;
    Tensor whole;
    Placement from[MESH_AXES_MAX], to[MESH_AXES_MAX];
    char text[256];
} Case;

// ---- a request by chance ----

static inline uint32_t draw(Case *c, uint32_t below)
{
    return random_block(c->seed, c->trial, (uint64_t)c->drawn++).word[0] % below;
}

// Half of the strided shards have as many pieces as another axis has ranks, so that some are those
// of dtensor.h.
static inline Placement draw_placement(Case *c)
{
    uint32_t kind = draw(c, 8);
    Error ignored = {0};
    CommOp op = draw(c, 2) ? COMM_SUM : (CommOp)draw(c, COMM_MIN + 1);
    if (kind < 3 && partial_check(c->whole.dtype, op, &ignored))
        return placement_partial(op);
    if (kind < 7 && c->whole.rank > 0) {
        int dim = (int)draw(c, (uint32_t)c->whole.rank);
        if (draw(c, 4))
            return placement_shard(dim);
        int other = c->mesh->ranks[draw(c, (uint32_t)c->mesh->axes)];
        return placement_strided(dim, draw(c, 2) && other > 1 ? other : 2 + (int)draw(c, 3));
    }
    return placement_replicate();
}

static inline void describe(Case *c, const char *layout)
{
    char word[PLACEMENT_TEXT_BYTES], shape[64];
    snprintf(c->text, sizeof(c->text), "seed %llu trial %u: %s on %s:", (unsigned long long)c->seed,
             c->trial, tensor_describe(&c->whole, shape, sizeof(shape)), layout);
    for (int i = 0; i < 2 * c->mesh->axes; i++) {
        const Placement *list = i < c->mesh->axes ? c->from : c->to;
        size_t used = strlen(c->text);
        snprintf(c->text + used, sizeof(c->text) - used, "%s %s", i == c->mesh->axes ? " ->" : "",
                 placement_format(&list[i % c->mesh->axes], word, sizeof(word)));
    }
}

static inline void draw_layout(Case *c, int ranks, char *layout)
{
    int left = ranks, axes = 1 + (int)draw(c, MESH_AXES_MAX);
    size_t used = 0;
    for (int axis = 0; axis < axes; axis++) {
        int extent = 1 + (int)draw(c, (uint32_t)left);
        if (left > 1 && extent == 1 && draw(c, 4)) // mostly axes that do something
            extent = 2;
        while (left % extent != 0)
            extent = extent == 2 ? left : extent - 1;
        extent = axis == axes - 1 ? left : extent;
        left /= extent;
        used += (size_t)snprintf(layout + used, LAYOUT_BYTES - used, "%sx%d=%d", axis ? "," : "",
                                 axis, extent);
    }
}

static inline Case draw_case(Setting *setting, uint32_t trial)
{
    static const int64_t sizes[] = {1, 2, 3, 4, 5, 7, 8, 0, 5, 11, 13, 31};
    char layout[LAYOUT_BYTES] = "";
    Case c = {.seed = setting->job.seed, .trial = trial};
    draw_layout(&c, setting->job.comm.ranks, layout);
    c.mesh = find_mesh(setting, layout);
    do // half of them of the types that models are made of
        c.whole.dtype = draw(&c, 2) ? (DType)draw(&c, DTYPE_F64 + 1) : (DType)draw(&c, DTYPES);
    while (dtype_row(c.whole.dtype)->bits < 8);
    c.whole.rank = (int)draw(&c, 8) ? 1 + (int)draw(&c, 3) : 0;
    for (int dim = 0; dim < c.whole.rank; dim++)
        c.whole.shape[dim] = sizes[draw(&c, COUNT_OF(sizes)) % (c.whole.rank == 3 ? 8 : 12)];
    for (int axis = 0; axis < c.mesh->axes; axis++) {
        c.from[axis] = draw_placement(&c);
        c.to[axis] = draw(&c, 4) ? draw_placement(&c) : c.from[axis];
    }
    describe(&c, layout);
    return c;
}

// ---- what every rank should hold ----

// Room for part_of, which on its way may hold more than the tensor: [5, 0] begins with 5 rows.
static inline int64_t *new_indices(const Case *c)
{
    int64_t count = 1;
    for (int dim = 0; dim < c->whole.rank; dim++)
        count *= c->whole.shape[dim] > 1 ? c->whole.shape[dim] : 1;
    int64_t *indices = malloc((size_t)count * sizeof(*indices));
    assert_non_null(indices);
    return indices;
}

// The global linear indices of a rank's part in its local order, from lists.
static inline int64_t part_of(const Case *c, const Placement *placements, int rank, int64_t *linear)
{
    int coord[MESH_AXES_MAX];
    int64_t count = 1;
    coordinates_of_rank(c->mesh, rank, coord);
    linear[0] = 0;
    for (int dim = 0; dim < c->whole.rank; dim++) {
        IndexList list = list_of(c->mesh, placements, coord, dim, c->whole.shape[dim]);
        int64_t *before = malloc(((size_t)count + 1) * sizeof(*before));
        assert_non_null(before);
        memcpy(before, linear, (size_t)count * sizeof(*before));
        for (int64_t i = 0; i < count; i++)
            for (int64_t j = 0; j < list.count; j++)
                linear[i * list.count + j] = before[i] * c->whole.shape[dim] + list.index[j];
        free(before);
        count *= list.count;
    }
    return count;
}

// The rank that stands for all which hold the same term: coordinates of other axes are 0.
static inline int term_of(const Case *c, const bool *open, int rank)
{
    int coord[MESH_AXES_MAX], term = 0;
    coordinates_of_rank(c->mesh, rank, coord);
    for (int axis = 0; axis < c->mesh->axes; axis++)
        term = term * c->mesh->ranks[axis] + (open[axis] ? coord[axis] : 0);
    return term;
}

static inline void make_value(const Case *c, int term, int64_t linear, char *out)
{
    float normal = random_normal(c->seed + c->trial, 7 + (uint32_t)term, (uint64_t)linear);
    RandomBlock block = random_block(c->seed + c->trial, 7 + (uint32_t)term, (uint64_t)linear);
    double wide = (double)normal / 3;
    uint16_t half = bf16_from_f32(normal);
    block.word[0] &= c->whole.dtype == DTYPE_F16 ? 0xBFFFu : 0xFFFFFFFFu; // finite
    const void *bits = c->whole.dtype == DTYPE_F32    ? (const void *)&normal
                       : c->whole.dtype == DTYPE_F64  ? (const void *)&wide
                       : c->whole.dtype == DTYPE_BF16 ? (const void *)&half
                                                      : (const void *)&block;
    memcpy(out, bits, dtype_bytes(c->whole.dtype, 1));
}

// The whole tensor once per term: [ranks][elements], what all ranks hold.
static inline char *gather_whole(const Case *c, const Setting *setting, const char *in,
                                 uint64_t in_bytes, const bool *open)
{
    int ranks = setting->job.comm.ranks;
    int64_t elements = tensor_elements(&c->whole);
    uint64_t size = dtype_bytes(c->whole.dtype, 1);
    uint64_t room = (uint64_t)comm_maximum(setting->job.comm, (int64_t)in_bytes) + 1;
    char *mine = calloc(room, 1), *all = calloc(room, (size_t)ranks);
    char *whole = calloc((size_t)ranks * (size_t)elements + 1, size);
    int64_t *linear = new_indices(c);
    assert_true(mine && all && whole);
    memcpy(mine, in, in_bytes);
    comm_gather_host(setting->job.comm, mine, all, room);
    for (int rank = 0; rank < ranks; rank++) {
        int64_t count = part_of(c, c->from, rank, linear);
        char *to = whole + (uint64_t)(term_of(c, open, rank) * elements) * size;
        for (int64_t i = 0; i < count; i++)
            memcpy(to + (uint64_t)linear[i] * size,
                   all + (uint64_t)rank * room + (uint64_t)i * size, size);
    }
    free(mine);
    free(all);
    free(linear);
    return whole;
}

static inline void combine_axis(const Case *c, char *whole, int axis, bool *open)
{
    int64_t elements = tensor_elements(&c->whole);
    uint64_t size = dtype_bytes(c->whole.dtype, 1);
    int ranks = c->mesh->world.ranks, extent = c->mesh->ranks[axis], stride = 1;
    for (int right = axis + 1; right < c->mesh->axes; right++)
        stride *= c->mesh->ranks[right];
    for (int term = 0; term < ranks; term++) {
        if (term_of(c, open, term) != term || term / stride % extent != 0)
            continue;
        for (int64_t i = 0; i < elements; i++) {
            char terms[RANKS_MAX][WORD_BYTES] = {0};
            for (int k = 0; k < extent; k++)
                memcpy(terms[k], whole + (uint64_t)((term + k * stride) * elements + i) * size,
                       size);
            fold_terms(c->whole.dtype, partial_terms_op(c->from[axis].op), extent,
                       (const char(*)[WORD_BYTES])terms,
                       whole + (uint64_t)(term * elements + i) * size);
        }
    }
    open[axis] = false;
}

// True if all Partials of the axes that have ranks share one operation.
static inline bool one_operation(const Case *c)
{
    bool seen[COMM_MIN + 1] = {false};
    int different = 0;
    for (int axis = 0; axis < c->mesh->axes; axis++)
        for (int side = 0; side < 2 && c->mesh->ranks[axis] > 1; side++) {
            const Placement *p = side ? &c->to[axis] : &c->from[axis];
            if (p->kind != PLACEMENT_PARTIAL || seen[p->op])
                continue;
            seen[p->op] = true;
            different++;
        }
    return different <= 1;
}

// The coordinate along `axis` of those that hold element `linear` in `from`.
static inline int holder(const Case *c, int axis, int64_t linear)
{
    int64_t index = linear;
    for (int dim = c->whole.rank - 1; dim > c->from[axis].dim; dim--)
        index /= c->whole.shape[dim];
    index %= c->whole.shape[c->from[axis].dim];
    for (int rank = 0; rank < c->mesh->world.ranks; rank++) {
        int coord[MESH_AXES_MAX];
        coordinates_of_rank(c->mesh, rank, coord);
        IndexList list =
            list_of(c->mesh, c->from, coord, c->from[axis].dim, c->whole.shape[c->from[axis].dim]);
        for (int64_t i = 0; i < list.count; i++)
            if (list.index[i] == index)
                return coord[axis];
    }
    fail_msg("%s: nobody holds element %lld", c->text, (long long)linear);
    return -1;
}

static inline bool keeps_value(const Case *c, bool one_op, int64_t linear)
{
    for (int axis = 0; axis < c->mesh->axes; axis++) {
        const Placement *from = &c->from[axis], *to = &c->to[axis];
        if (to->kind != PLACEMENT_PARTIAL || (to->op != COMM_SUM && to->op != COMM_PRODUCT) ||
            c->mesh->ranks[axis] == 1 || (one_op && from->kind == PLACEMENT_PARTIAL))
            continue;
        bool by_holder = one_op && from->kind == PLACEMENT_SHARD;
        if (c->mesh->coord[axis] != (by_holder ? holder(c, axis, linear) : 0))
            return false;
    }
    return true;
}

// The operation whose identity stands where the value is not: the last Partial that was made wins.
static inline CommOp last_made(const Case *c)
{
    CommOp op = COMM_SUM;
    for (int axis = 0; axis < c->mesh->axes; axis++)
        if (c->to[axis].kind == PLACEMENT_PARTIAL && c->mesh->coord[axis] != 0 &&
            c->mesh->ranks[axis] > 1 &&
            (c->to[axis].op == COMM_SUM || c->to[axis].op == COMM_PRODUCT))
            op = c->to[axis].op;
    return op;
}

static inline void combine_all(const Case *c, char *whole, bool one_op, bool *open)
{
    int axes = c->mesh->axes;
    for (int axis = 0; axis < axes && one_op; axis++)
        if (open[axis] && c->to[axis].kind == PLACEMENT_SHARD)
            combine_axis(c, whole, axis, open);
    for (int axis = axes - 1; axis >= 0; axis--)
        if (open[axis] && !(one_op && c->to[axis].kind == PLACEMENT_PARTIAL))
            combine_axis(c, whole, axis, open);
}

static inline void check_part(const Case *c, const Setting *setting, const char *in,
                              uint64_t in_bytes, const char *out)
{
    bool open[MESH_AXES_MAX] = {false}, one_op = one_operation(c);
    uint64_t size = dtype_bytes(c->whole.dtype, 1);
    int64_t elements = tensor_elements(&c->whole);
    for (int axis = 0; axis < c->mesh->axes; axis++)
        open[axis] = c->from[axis].kind == PLACEMENT_PARTIAL && c->mesh->ranks[axis] > 1;
    char *whole = gather_whole(c, setting, in, in_bytes, open);
    combine_all(c, whole, one_op, open);
    int64_t *linear = new_indices(c);
    int64_t count = part_of(c, c->to, setting->job.comm.rank, linear);
    int64_t term = term_of(c, open, setting->job.comm.rank);
    CommOp one = last_made(c);
    for (int axis = 0; axis < c->mesh->axes && one_op; axis++)
        if (c->to[axis].kind == PLACEMENT_PARTIAL && c->mesh->ranks[axis] > 1)
            one = c->to[axis].op;
    for (int64_t i = 0; i < count; i++) {
        char expected[2 * WORD_BYTES] = {0};
        if (keeps_value(c, one_op, linear[i]))
            memcpy(expected, whole + (uint64_t)(term * elements + linear[i]) * size, size);
        else
            partial_fill_identity(c->whole.dtype, one, 1, expected);
        if (memcmp(expected, out + (uint64_t)i * size, size) != 0) {
            uint64_t found = 0, wanted = 0;
            memcpy(&found, out + (uint64_t)i * size, size > 8 ? 8 : size);
            memcpy(&wanted, expected, size > 8 ? 8 : size);
            fail_msg("%s: rank %d, element %lld (global %lld): found %llx, expected %llx", c->text,
                     setting->job.comm.rank, (long long)i, (long long)linear[i],
                     (unsigned long long)found, (unsigned long long)wanted);
        }
    }
    free(linear);
    free(whole);
}

// ---- one case, run ----

// A part and GUARD_BYTES behind it where the plan runs. The CPU takes the host's memory as it is:
// it is exactly as long as the part, so that a sanitizer sees what goes past it.
static inline void *upload(const Setting *setting, void *host, uint64_t bytes)
{
    if (setting->job.stream.device == DEVICE_CPU)
        return host;
    void *there = arena_push(setting->job.arena, bytes + GUARD_BYTES, MEMORY_ACTIVATIONS);
    device_fill(there, 0x3C, bytes + GUARD_BYTES, setting->job.stream);
    if (bytes > 0)
        device_copy(there, host, bytes, setting->job.stream);
    stream_wait(setting->job.stream);
    return there;
}

static inline void download(const Setting *setting, const Case *c, const void *there, void *host,
                            uint64_t bytes)
{
    uint8_t guard[GUARD_BYTES];
    if (setting->job.stream.device == DEVICE_CPU)
        return;
    if (bytes > 0)
        device_copy(host, there, bytes, setting->job.stream);
    device_copy(guard, (const char *)there + bytes, GUARD_BYTES, setting->job.stream);
    stream_wait(setting->job.stream);
    for (int i = 0; i < GUARD_BYTES; i++)
        if (guard[i] != 0x3C)
            fail_msg("%s: rank %d wrote %02x into byte %d behind its part of %llu bytes", c->text,
                     setting->job.comm.rank, guard[i], i, (unsigned long long)bytes);
}

static inline Redistribute *plan_case(const Setting *setting, const Case *c)
{
    return redistribute_create(&(RedistributeSettings){.mesh = c->mesh,
                                                       .whole = &c->whole,
                                                       .from = c->from,
                                                       .to = c->to,
                                                       .arena = setting->job.arena,
                                                       .device = setting->job.stream.device});
}

// This rank's part before, exactly as long as it is.
static inline char *make_part(const Setting *setting, const Case *c, uint64_t bytes)
{
    uint64_t size = dtype_bytes(c->whole.dtype, 1);
    int64_t *linear = new_indices(c);
    char *in = malloc(bytes);
    bool partial[MESH_AXES_MAX] = {false};
    for (int axis = 0; axis < c->mesh->axes; axis++)
        partial[axis] = c->from[axis].kind == PLACEMENT_PARTIAL;
    int64_t count = part_of(c, c->from, setting->job.comm.rank, linear);
    if ((uint64_t)count * size != bytes)
        fail_msg("%s: %lld elements, but %llu bytes", c->text, (long long)count,
                 (unsigned long long)bytes);
    int term = term_of(c, partial, setting->job.comm.rank);
    for (int64_t i = 0; i < count; i++) {
        char value[2 * WORD_BYTES] = {0};
        make_value(c, term, linear[i], value);
        memcpy(in + (uint64_t)i * size, value, size);
    }
    free(linear);
    return in;
}

static inline uint64_t take_sent(const Mesh *mesh)
{
    uint64_t sent = 0;
    for (int axis = 0; axis < mesh->axes; axis++)
        sent += comm_take_wire_bytes(mesh->comm[axis]);
    return sent;
}

static inline void run_case(const Setting *setting, const Case *c)
{
    ArenaMark mark = arena_mark(setting->job.arena);
    Redistribute *plan = plan_case(setting, c);
    uint64_t in_bytes = tensor_bytes(&redistribute_from(plan)->local);
    uint64_t out_bytes = tensor_bytes(&redistribute_to(plan)->local);
    char *in = make_part(setting, c, in_bytes), *out = malloc(out_bytes),
         *again = malloc(out_bytes);
    memset(out, 0xA5, out_bytes);
    memset(again, 0x5A, out_bytes);
    void *in_there = upload(setting, in, in_bytes), *out_there = upload(setting, out, out_bytes);
    void *again_there = upload(setting, again, out_bytes);
    take_sent(c->mesh);
    arena_forbid(setting->job.arena, true);
    redistribute_run(plan, in_there, out_there, setting->job.stream);
    uint64_t sent = take_sent(c->mesh);
    if (sent != redistribute_wire_bytes(plan))
        fail_msg("%s: %llu bytes planned, %llu sent", c->text,
                 (unsigned long long)redistribute_wire_bytes(plan), (unsigned long long)sent);
    redistribute_run(plan, in_there, again_there, setting->job.stream);
    arena_forbid(setting->job.arena, false);
    download(setting, c, out_there, out, out_bytes);
    download(setting, c, again_there, again, out_bytes);
    check_part(c, setting, in, in_bytes, out);
    if (out_bytes > 0 && memcmp(out, again, out_bytes) != 0)
        fail_msg("%s: rank %d: the second replay differs", c->text, setting->job.comm.rank);
    free(in);
    free(out);
    free(again);
    redistribute_destroy(plan);
    arena_release(setting->job.arena, mark);
}

// Collective(all ranks). As many random requests.
static inline void run_random_cases(Setting *setting, uint32_t trials)
{
    for (uint32_t trial = 0; trial < trials; trial++) {
        Case c = draw_case(setting, trial);
        run_case(setting, &c);
    }
}
