// Redistribute against gather, combine and slice, bit for bit: random shapes (empty and prime
// sizes), meshes, placements and types; planned wire bytes are those counted; replays repeat and
// allocate nothing; and plans, as the table in redistribute.h has them.
// ranks: 1 2 3 4 6 8
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "harness/random.h"
#include "parallel/partial.h"
#include "parallel/redistribute.h"
#include "parallel_index_lists.h"

enum { TRIALS = 1000, RANKS_MAX = 8, WORD_BYTES = 8 };

typedef struct Setting {
    Comm world;
    Stream stream;
    uint64_t seed;
} Setting;

// One random request, the same on all ranks.
typedef struct Case {
    uint64_t seed;
    uint32_t trial;
    int drawn;
    Mesh *mesh;
    Tensor whole;
    Placement from[MESH_AXES_MAX], to[MESH_AXES_MAX];
    char text[256];
} Case;

static uint32_t draw(Case *c, uint32_t below)
{
    return random_block(c->seed, c->trial, (uint64_t)c->drawn++).word[0] % below;
}

static Placement draw_placement(Case *c)
{
    uint32_t kind = draw(c, 8);
    Error ignored = {0};
    CommOp op = draw(c, 2) ? COMM_SUM : (CommOp)draw(c, COMM_MIN + 1);
    if (kind < 3 && partial_check(c->whole.dtype, op, &ignored))
        return placement_partial(op);
    if (kind < 7 && c->whole.rank > 0) {
        int dim = (int)draw(c, (uint32_t)c->whole.rank);
        return draw(c, 4) ? placement_shard(dim) : placement_strided(dim, 2 + (int)draw(c, 3));
    }
    return placement_replicate();
}

static void describe(Case *c, const char *layout)
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

static Case draw_case(const Setting *setting, uint32_t trial)
{
    static const int64_t sizes[] = {1, 2, 3, 4, 5, 7, 8, 0, 5, 11, 13, 31};
    static const DType types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16,     DTYPE_F64, DTYPE_I32,
                                  DTYPE_U8,  DTYPE_I64,  DTYPE_F8_E4M3, DTYPE_C64};
    Case c = {.seed = setting->seed, .trial = trial};
    int left = setting->world.ranks, axes = 1 + (int)draw(&c, MESH_AXES_MAX);
    char layout[64] = "";
    for (int axis = 0; axis < axes; axis++) {
        int extent = 1 + (int)draw(&c, (uint32_t)left);
        if (left > 1 && extent == 1 && draw(&c, 4)) // mostly axes that do something
            extent = 2;
        while (left % extent != 0)
            extent = extent == 2 ? left : extent - 1;
        extent = axis == axes - 1 ? left : extent;
        left /= extent;
        size_t used = strlen(layout);
        snprintf(layout + used, sizeof(layout) - used, "%sx%d=%d", axis ? "," : "", axis, extent);
    }
    c.mesh = mesh_create_any_names(layout, setting->world);
    c.whole.dtype = types[draw(&c, COUNT_OF(types))];
    c.whole.rank = (int)draw(&c, 8) ? 1 + (int)draw(&c, 3) : 0;
    for (int dim = 0; dim < c.whole.rank; dim++)
        c.whole.shape[dim] = sizes[draw(&c, COUNT_OF(sizes)) % (c.whole.rank == 3 ? 8 : 12)];
    for (int axis = 0; axis < axes; axis++) {
        c.from[axis] = draw_placement(&c);
        c.to[axis] = draw(&c, 4) ? draw_placement(&c) : c.from[axis];
    }
    describe(&c, layout);
    return c;
}

// Room for part_of, which on its way may hold more than the tensor: [5, 0] begins with 5 rows.
static int64_t *new_indices(const Case *c)
{
    int64_t count = 1;
    for (int dim = 0; dim < c->whole.rank; dim++)
        count *= c->whole.shape[dim] > 1 ? c->whole.shape[dim] : 1;
    int64_t *indices = malloc((size_t)count * sizeof(*indices));
    assert_non_null(indices);
    return indices;
}

// The global linear indices of a rank's part in its local order, from lists.
static int64_t part_of(const Case *c, const Placement *placements, int rank, int64_t *linear)
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
static int term_of(const Case *c, const bool *open, int rank)
{
    int coord[MESH_AXES_MAX], term = 0;
    coordinates_of_rank(c->mesh, rank, coord);
    for (int axis = 0; axis < c->mesh->axes; axis++)
        term = term * c->mesh->ranks[axis] + (open[axis] ? coord[axis] : 0);
    return term;
}

static void make_value(const Case *c, int term, int64_t linear, char *out)
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

#define FOLD_TERMS(type)                                                                           \
    do {                                                                                           \
        type value_, other_;                                                                       \
        memcpy(&value_, terms[0], sizeof(value_));                                                 \
        for (int i_ = 1; i_ < count; i_++) {                                                       \
            memcpy(&other_, terms[i_], sizeof(other_));                                            \
            switch (op) {                                                                          \
            case COMM_PRODUCT:                                                                     \
                value_ = (type)(value_ * other_);                                                  \
                break;                                                                             \
            case COMM_MAX:                                                                         \
                value_ = other_ > value_ ? other_ : value_;                                        \
                break;                                                                             \
            case COMM_MIN:                                                                         \
                value_ = other_ < value_ ? other_ : value_;                                        \
                break;                                                                             \
            default:                                                                               \
                value_ = (type)(value_ + other_);                                                  \
            }                                                                                      \
        }                                                                                          \
        value_ = op == COMM_AVG ? (type)(value_ / (type)count) : value_;                           \
        memcpy(out, &value_, sizeof(value_));                                                      \
    } while (0)

// Terms in rank order, by plain C arithmetic.
static void fold(DType dtype, CommOp op, int count, char terms[][WORD_BYTES], char *out)
{
    if (dtype == DTYPE_F32) {
        FOLD_TERMS(float);
    } else if (dtype == DTYPE_F64) {
        FOLD_TERMS(double);
    } else if (dtype == DTYPE_U8) {
        FOLD_TERMS(uint8_t);
    } else if (dtype == DTYPE_I32) {
        FOLD_TERMS(uint32_t);
        if (op == COMM_MAX || op == COMM_MIN)
            FOLD_TERMS(int32_t);
    } else if (dtype == DTYPE_I64) {
        FOLD_TERMS(uint64_t);
        if (op == COMM_MAX || op == COMM_MIN)
            FOLD_TERMS(int64_t);
    } else if (dtype == DTYPE_BF16) {
        uint16_t bits;
        for (int i = 0; i < count; i++) {
            memcpy(&bits, terms[i], sizeof(bits));
            float wide = f32_from_bf16(bits);
            memcpy(terms[i], &wide, sizeof(wide));
        }
        float sum;
        fold(DTYPE_F32, op, count, terms, (char *)&sum);
        bits = bf16_from_f32(sum);
        memcpy(out, &bits, sizeof(bits));
    } else { // f16, whose arithmetic has a test of its own
        char packed[RANKS_MAX * WORD_BYTES];
        uint64_t size = dtype_bytes(dtype, 1);
        for (int i = 0; i < count; i++)
            memcpy(packed + (uint64_t)i * size, terms[i], size);
        partial_combine(dtype, op, count, packed, 1, out);
    }
}

// The whole tensor once per term: [ranks][elements], what all ranks hold.
static char *gather_whole(const Case *c, const Setting *setting, const char *in, uint64_t in_bytes,
                          const bool *open)
{
    int ranks = setting->world.ranks;
    int64_t elements = tensor_elements(&c->whole);
    uint64_t size = dtype_bytes(c->whole.dtype, 1);
    uint64_t room = (uint64_t)comm_maximum(setting->world, (int64_t)in_bytes) + 1;
    char *mine = calloc(room, 1), *all = calloc(room, (size_t)ranks);
    char *whole = calloc((size_t)ranks * (size_t)elements + 1, size);
    int64_t *linear = new_indices(c);
    assert_true(mine && all && whole);
    memcpy(mine, in, in_bytes);
    comm_gather_host(setting->world, mine, all, room);
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

static void combine_axis(const Case *c, char *whole, int axis, bool *open)
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
            fold(c->whole.dtype, c->from[axis].op, extent, terms,
                 whole + (uint64_t)(term * elements + i) * size);
        }
    }
    open[axis] = false;
}

// True if all Partials of the axes that have ranks share one operation.
static bool one_operation(const Case *c)
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
static int holder(const Case *c, int axis, int64_t linear)
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

static bool keeps_value(const Case *c, bool one_op, int64_t linear)
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
static CommOp last_made(const Case *c)
{
    CommOp op = COMM_SUM;
    for (int axis = 0; axis < c->mesh->axes; axis++)
        if (c->to[axis].kind == PLACEMENT_PARTIAL && c->mesh->coord[axis] != 0 &&
            c->mesh->ranks[axis] > 1 &&
            (c->to[axis].op == COMM_SUM || c->to[axis].op == COMM_PRODUCT))
            op = c->to[axis].op;
    return op;
}

static void combine_all(const Case *c, char *whole, bool one_op, bool *open)
{
    int axes = c->mesh->axes;
    for (int axis = 0; axis < axes && one_op; axis++)
        if (open[axis] && c->to[axis].kind == PLACEMENT_SHARD)
            combine_axis(c, whole, axis, open);
    for (int axis = axes - 1; axis >= 0; axis--)
        if (open[axis] && !(one_op && c->to[axis].kind == PLACEMENT_PARTIAL))
            combine_axis(c, whole, axis, open);
}

static void check_part(const Case *c, const Setting *setting, const char *in, uint64_t in_bytes,
                       const char *out)
{
    bool open[MESH_AXES_MAX] = {false}, one_op = one_operation(c);
    uint64_t size = dtype_bytes(c->whole.dtype, 1);
    int64_t elements = tensor_elements(&c->whole);
    for (int axis = 0; axis < c->mesh->axes; axis++)
        open[axis] = c->from[axis].kind == PLACEMENT_PARTIAL && c->mesh->ranks[axis] > 1;
    char *whole = gather_whole(c, setting, in, in_bytes, open);
    combine_all(c, whole, one_op, open);
    int64_t *linear = new_indices(c);
    int64_t count = part_of(c, c->to, setting->world.rank, linear);
    int64_t term = term_of(c, open, setting->world.rank);
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
                     setting->world.rank, (long long)i, (long long)linear[i],
                     (unsigned long long)found, (unsigned long long)wanted);
        }
    }
    free(linear);
    free(whole);
}

static uint64_t take_sent(const Mesh *mesh)
{
    uint64_t sent = 0;
    for (int axis = 0; axis < mesh->axes; axis++)
        sent += comm_take_wire_bytes(mesh->comm[axis]);
    return sent;
}

static void run_case(const Case *c, const Setting *setting)
{
    Arena *arena = arena_create(MEMORY_DEVICE, DEVICE_CPU);
    Redistribute *plan = redistribute_create(&(RedistributeSettings){
        .mesh = c->mesh, .whole = &c->whole, .from = c->from, .to = c->to, .arena = arena});
    uint64_t in_bytes = tensor_bytes(&redistribute_from(plan)->local);
    uint64_t out_bytes = tensor_bytes(&redistribute_to(plan)->local);
    uint64_t size = dtype_bytes(c->whole.dtype, 1);
    int64_t *linear = new_indices(c);
    // Exactly as long as the parts, so that a sanitizer sees what goes past them.
    char *in = malloc(in_bytes), *out = malloc(out_bytes), *again = malloc(out_bytes);
    bool partial[MESH_AXES_MAX] = {false};
    for (int axis = 0; axis < c->mesh->axes; axis++)
        partial[axis] = c->from[axis].kind == PLACEMENT_PARTIAL;
    int64_t count = part_of(c, c->from, setting->world.rank, linear);
    if ((uint64_t)count * size != in_bytes)
        fail_msg("%s: %lld elements, but %llu bytes", c->text, (long long)count,
                 (unsigned long long)in_bytes);
    int term = term_of(c, partial, setting->world.rank);
    for (int64_t i = 0; i < count; i++) {
        char value[2 * WORD_BYTES] = {0};
        make_value(c, term, linear[i], value);
        memcpy(in + (uint64_t)i * size, value, size);
    }
    memset(out, 0xA5, out_bytes);
    memset(again, 0x5A, out_bytes);
    take_sent(c->mesh);
    arena_forbid(arena, true);
    redistribute_run(plan, in, out, setting->stream);
    uint64_t sent = take_sent(c->mesh);
    if (sent != redistribute_wire_bytes(plan))
        fail_msg("%s: %llu bytes planned, %llu sent", c->text,
                 (unsigned long long)redistribute_wire_bytes(plan), (unsigned long long)sent);
    redistribute_run(plan, in, again, setting->stream);
    if (out_bytes > 0)
        assert_memory_equal(out, again, out_bytes);
    check_part(c, setting, in, in_bytes, out);
    free(linear);
    free(in);
    free(out);
    free(again);
    redistribute_destroy(plan);
    arena_destroy(arena);
}

static void test_random_requests(void **state)
{
    const Setting *setting = *state;
    for (uint32_t trial = 0; trial < TRIALS; trial++) {
        Case c = draw_case(setting, trial);
        run_case(&c, setting);
        mesh_destroy(c.mesh);
    }
}

// Plans for ranks that are not there: the collectives of each pair, and their bytes by hand.
static void test_plans(void **state)
{
    (void)state;
    static const struct {
        const char *mesh, *from, *to, *steps;
        uint64_t wire_bytes; // of rank 0: 8 x 4 f32 = 128 bytes
    } rows[] = {
        {"a=4", "S0", "R", "all-gather ", 3 * 32},
        {"a=4", "S0", "S1", "all-to-all ", 3 * 8},
        {"a=4", "P", "R", "all-reduce ", 2 * 3 * 32},
        {"a=4", "P(max)", "S1", "reduce-scatter ", 3 * 32},
        {"a=4", "R", "S1", "slice ", 0},
        {"a=4", "R", "P", "make partial ", 0},
        {"a=4", "S0", "P", "into partial ", 0},
        {"a=4", "S0", "P(max)", "all-gather make partial ", 3 * 32},
        {"a=4", "P", "P(avg)", "all-reduce make partial ", 2 * 3 * 32},
        {"a=4", "P", "P", "", 0},
        {"a=1,b=1", "P,S0", "R,P(max)", "", 0},
        {"a=2,b=4", "S0,P", "R,S1", "reduce-scatter all-gather ", 3 * 16 + 16},
        {"a=2,b=4", "P,P", "R,S0", "reduce-scatter all-reduce ", 3 * 32 + 2 * 16},
        {"a=2,b=4", "S0,R", "R,S1", "slice all-gather ", 16},
        {"a=2,b=4", "S0,S0", "R,R", "all-gather all-gather ", 3 * 16 + 64},
        {"a=2,b=4", "S0x4,S0", "R,S0", "all-gather ", 16},
        {"a=2,b=4", "S0,S0", "S0x4,S0", "all-gather all-gather slice slice ", 3 * 16 + 64},
    };
    for (size_t row = 0; row < COUNT_OF(rows); row++) {
        Mesh mesh;
        Error error = {0};
        Tensor whole = {.dtype = DTYPE_F32, .rank = 2, .shape = {8, 4}};
        Placement from[MESH_AXES_MAX], to[MESH_AXES_MAX];
        int ranks = rows[row].mesh[2] - '0';
        ranks *= rows[row].mesh[3] ? rows[row].mesh[6] - '0' : 1;
        assert_true(mesh_parse_any_names(rows[row].mesh, ranks, &mesh, &error));
        assert_true(placement_parse(rows[row].from, "from", &mesh, from, &error));
        assert_true(placement_parse(rows[row].to, "to", &mesh, to, &error));
        Redistribute *plan = redistribute_create(
            &(RedistributeSettings){.mesh = &mesh, .whole = &whole, .from = from, .to = to});
        char steps[256] = "";
        for (int i = 0; i < redistribute_steps(plan); i++) {
            strcat(steps, redistribute_kind_name(redistribute_step(plan, i)->kind));
            strcat(steps, " ");
        }
        if (strcmp(steps, rows[row].steps) != 0 ||
            redistribute_wire_bytes(plan) != rows[row].wire_bytes)
            fail_msg("%s, %s -> %s: found '%s' %llu, expected '%s' %llu", rows[row].mesh,
                     rows[row].from, rows[row].to, steps,
                     (unsigned long long)redistribute_wire_bytes(plan), rows[row].steps,
                     (unsigned long long)rows[row].wire_bytes);
        redistribute_destroy(plan);
    }
}

// The first rank of 8 gathers 2^33 + 3 rows of bf16: no memory is needed to know what that sends.
static void test_far_plan(void **state)
{
    (void)state;
    Mesh mesh;
    Error error = {0};
    Tensor whole = {.dtype = DTYPE_BF16, .rank = 2, .shape = {((int64_t)1 << 33) + 3, 3}};
    Placement from = placement_shard(0), to = placement_replicate();
    assert_true(mesh_parse("tp=8", 8, &mesh, &error));
    Redistribute *plan = redistribute_create(
        &(RedistributeSettings){.mesh = &mesh, .whole = &whole, .from = &from, .to = &to});
    assert_int_equal(redistribute_wire_bytes(plan), (((uint64_t)1 << 30) + 1) * 6 * 7);
    assert_int_equal(redistribute_step(plan, 0)->out_bytes, (((uint64_t)1 << 33) + 3) * 6);
    redistribute_destroy(plan);
}

int main(int argc, char **argv)
{
    // A rank that fails an assertion takes the job down instead of leaving the others waiting for
    // it.
    setenv("CMOCKA_TEST_ABORT", "1", 1);
    Run *run = run_create(argc, argv, "test_parallel_redistribute", true);
    Setting setting = {.world = comm_create_world(run, DEVICE_CPU, 0),
                       .stream = stream_create(DEVICE_CPU)};
    setting.seed = (uint64_t)comm_maximum(setting.world, time(NULL));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_random_requests, &setting),
        cmocka_unit_test(test_plans),
        cmocka_unit_test(test_far_plan),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    comm_destroy(&setting.world);
    stream_destroy(setting.stream);
    run_destroy(run);
    return failed;
}
