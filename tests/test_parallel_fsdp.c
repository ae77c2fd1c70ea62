// FSDP with random parameters (empty, uneven, in blocks), units, groups and types: what is gathered
// is what was put in, gradients are sums in rank order, memory holds its bound, bytes are as
// planned, lent room is written when it may be.
// ranks: 1 2 3 4 6 8
#include "harness/bf16.h"
#include "parallel/fsdp.h"
#include "parallel/shard.h"
#include "tests/parallel_job.h"

enum { TRIALS = 60, PARAMETERS_MAX = 12, UNITS_MAX = 4 };
#define OURS 12345.0f

typedef struct Setting {
    Comm world, shard, replica, alone;
    Stream stream;
    uint64_t seed;
} Setting;

typedef struct Case {
    const Setting *setting;
    uint32_t trial;
    int drawn;
    FsdpParameter parameter[PARAMETERS_MAX];
    FsdpSettings settings;
    float *lent; // the room for gradients, where it is the test's own
    char text[160];
} Case;

static uint32_t draw(Case *c, uint32_t below)
{
    return random_block(c->setting->seed, c->trial, (uint64_t)c->drawn++).word[0] % below;
}

static void draw_parameters(Case *c)
{
    static const int64_t rows[] = {1, 2, 3, 5, 7, 8, 20, 0, 13};
    int unit = 0;
    bool even = draw(c, 2) == 0; // over any number of ranks up to 8, but 5 and 7
    bool aligned = draw(c, 3) == 0;
    c->settings.units = 1 + (int)draw(c, UNITS_MAX);
    for (int i = 0; i < PARAMETERS_MAX; i++) {
        FsdpParameter *p = &c->parameter[i];
        p->unit = unit;
        p->group = (int)draw(c, FSDP_GROUPS);
        p->outer = even || draw(c, 3) ? 1 : 1 + draw(c, 3);
        p->rows = even && draw(c, 20) ? 24 * (1 + draw(c, 2)) : rows[draw(c, COUNT_OF(rows))];
        p->columns = aligned ? 64 : 1 + draw(c, 5);
        p->room_rows = p->rows + (p->outer == 1 ? draw(c, 3) : 0);
        p->partial = draw(c, 4) == 0;
        if (i >= (PARAMETERS_MAX / c->settings.units) * (unit + 1) - 1 &&
            unit < c->settings.units - 1)
            unit++;
    }
}

// Group 0 is divided over `shard` with copies over `replica`, group 1 over the world.
static Case draw_case(const Setting *s, uint32_t trial, Arena *arena)
{
    Case c = {.setting = s, .trial = trial};
    draw_parameters(&c);
    c.settings.parameters = PARAMETERS_MAX;
    c.settings.group[0] = (FsdpGroup){s->shard, s->replica};
    c.settings.group[1] = (FsdpGroup){s->world, s->alone};
    c.settings.partial = s->replica; // any group will do
    c.settings.kept = s->alone;
    c.settings.param_dtype = draw(&c, 2) ? DTYPE_F32 : DTYPE_BF16;
    c.settings.wire_dtype = draw(&c, 2) ? DTYPE_F32 : DTYPE_BF16;
    c.settings.reshard = (int)draw(&c, 3);
    if (c.settings.reshard == 2) { // over the whole shard group
        c.settings.kept = s->shard;
        c.settings.reshard = s->shard.ranks > 1 ? s->shard.ranks : FSDP_RESHARD_YES;
    }
    c.settings.accumulates = draw(&c, 2) == 1;
    c.settings.device = DEVICE_CPU;
    c.settings.arena = arena;
    snprintf(c.text, sizeof c.text, "seed %llu trial %u: %d units, param %s, wire %s, reshard %d",
             (unsigned long long)s->seed, trial, c.settings.units,
             dtype_row(c.settings.param_dtype)->name, dtype_row(c.settings.wire_dtype)->name,
             c.settings.reshard);
    return c;
}

static float value_at(const Case *c, int parameter, int64_t element)
{
    return random_normal(c->setting->seed + c->trial, 100 + (uint32_t)parameter, (uint64_t)element);
}

// The gradient that rank `rank` of the world has.
static float gradient_at(const Case *c, int parameter, int64_t element, int rank)
{
    uint32_t stream = 1000 + (uint32_t)(parameter * 64 + rank);
    return random_normal(c->setting->seed + c->trial, stream, (uint64_t)element);
}

static float rounded(float value, DType dtype)
{
    return dtype == DTYPE_F32 ? value : f32_from_bf16_bits(bf16_bits_from_f32(value));
}

// Element `i` of a shard, as an element of the whole.
static int64_t element_of_shard(const FsdpParameter *p, const FsdpPlace *place, int64_t i)
{
    int64_t row = i / p->columns, block = row / place->rows;
    return (block * p->rows + place->first_row + row % place->rows) * p->columns + i % p->columns;
}

static int64_t shard_count(const FsdpParameter *p, const FsdpPlace *place)
{
    return p->outer * place->rows * p->columns;
}

static void fill_values(const Case *c, Fsdp *fsdp)
{
    for (int i = 0; i < PARAMETERS_MAX; i++) {
        const FsdpPlace *place = &fsdp_plan(fsdp)->place[i];
        float *shard = fsdp_values(fsdp) + fsdp_shard_offset(fsdp, i);
        for (int64_t k = 0; k < shard_count(&c->parameter[i], place); k++)
            shard[k] = value_at(c, i, element_of_shard(&c->parameter[i], place, k));
    }
}

static void check_gathered(const Case *c, const Fsdp *fsdp, int unit)
{
    for (int i = 0; i < PARAMETERS_MAX; i++) {
        const FsdpParameter *p = &c->parameter[i];
        if (p->unit != unit)
            continue;
        const void *values = fsdp_value(fsdp, i);
        int64_t room = p->outer * p->room_rows * p->columns;
        for (int64_t k = 0; k < room; k++) {
            float here = c->settings.param_dtype == DTYPE_F32
                             ? ((const float *)values)[k]
                             : f32_from_bf16_bits(((const uint16_t *)values)[k]);
            bool real = k < fsdp_elements(p);
            float expected = real ? rounded(value_at(c, i, k), c->settings.param_dtype) : 0;
            if (here != expected)
                fail_msg("%s: parameter %d element %lld is %g, not %g", c->text, i, (long long)k,
                         here, expected);
        }
    }
}

// World rank at (shard, replica): the shard group is consecutive ranks.
static int world_rank(const Case *c, int shard, int replica)
{
    return replica * c->setting->shard.ranks + shard;
}

// What `rank` brings to the reduction: its own gradients of `micros` micro-batches, after the sum
// over the partial group where it has one.
static float term(const Case *c, int i, int64_t element, int rank, int micros)
{
    float sum = 0;
    if (!c->parameter[i].partial)
        return (float)micros * gradient_at(c, i, element, rank);
    for (int replica = 0; replica < c->setting->replica.ranks; replica++) {
        float one =
            (float)micros *
            gradient_at(c, i, element, world_rank(c, rank % c->setting->shard.ranks, replica));
        sum = replica ? sum + one : one;
    }
    return sum;
}

static float expected_gradient(const Case *c, int i, int64_t element, int micros)
{
    DType wire = c->settings.wire_dtype;
    bool dense = c->parameter[i].group == 0;
    int shards = dense ? c->setting->shard.ranks : c->setting->world.ranks;
    int replicas = dense ? c->setting->replica.ranks : 1;
    float total = 0;
    for (int replica = 0; replica < replicas; replica++) {
        float sum = 0;
        for (int shard = 0; shard < shards; shard++) {
            float one = rounded(term(c, i, element, world_rank(c, shard, replica), micros), wire);
            sum = shard ? sum + one : one;
        }
        if (replicas > 1)
            sum = rounded(sum, wire);
        total = replica ? total + sum : sum;
    }
    return replicas > 1 ? rounded(total, wire) : total;
}

static void check_gradients(const Case *c, const Fsdp *fsdp, int micros)
{
    for (int i = 0; i < PARAMETERS_MAX; i++) {
        const FsdpParameter *p = &c->parameter[i];
        const FsdpPlace *place = &fsdp_plan(fsdp)->place[i];
        const float *shard = fsdp_gradients(fsdp) + fsdp_shard_offset(fsdp, i);
        for (int64_t k = 0; k < shard_count(p, place); k++) {
            int64_t element = element_of_shard(p, place, k);
            float expected = expected_gradient(c, i, element, micros);
            if (shard[k] != expected)
                fail_msg("%s: gradient %d element %lld is %.9g, not %.9g", c->text, i,
                         (long long)element, shard[k], expected);
        }
        for (int64_t k = shard_count(p, place); k < p->outer * place->shard_rows * p->columns; k++)
            assert_true(shard[k] == 0); // padding
    }
}

// What is lent belongs to the test until a bucket's gradients come.
static void lend(const Case *c, const Fsdp *fsdp)
{
    for (int64_t i = 0; c->lent && i < fsdp_plan(fsdp)->flat; i++)
        c->lent[i] = OURS;
}

// No gradient of the units up to `unit` has come; but once they are made, those made in shards.
static void check_lent(const Case *c, const Fsdp *fsdp, int unit, bool made)
{
    const FsdpPlan *plan = fsdp_plan(fsdp);
    for (int u = 0; c->lent && u <= unit; u++)
        for (int g = 0; g < FSDP_GROUPS; g++) {
            const FsdpBucket *bucket = &plan->unit[u].bucket[g];
            for (int64_t i = 0; i < bucket->shard; i++)
                if (!(made && u == unit && bucket->made_in_shard) &&
                    c->lent[bucket->flat + i] != OURS)
                    fail_msg("%s: unit %d wrote into lent room before its time", c->text, u);
        }
}

// One step: all units forward, then backward, as a model would use them.
static void run_step(const Case *c, Fsdp *fsdp, int micros)
{
    Stream stream = c->setting->stream;
    int units = c->settings.units;
    lend(c, fsdp);
    fsdp_step_begin(fsdp);
    for (int micro = 0; micro < micros; micro++) {
        for (int unit = 0; unit < units; unit++) {
            fsdp_use(fsdp, unit, false, stream);
            fsdp_prefetch(fsdp, unit + 1, false, stream);
            check_gathered(c, fsdp, unit);
            if (unit < units - 1)
                fsdp_release(fsdp, unit, stream);
        }
        for (int unit = units - 1; unit >= 0; unit--) {
            fsdp_use(fsdp, unit, true, stream);
            fsdp_prefetch(fsdp, unit - 1, true, stream);
            check_gathered(c, fsdp, unit);
            check_lent(c, fsdp, unit, false);
            for (int i = 0; i < PARAMETERS_MAX; i++)
                for (int64_t k = 0;
                     c->parameter[i].unit == unit && k < fsdp_elements(&c->parameter[i]); k++) {
                    float *to = fsdp_gradient(fsdp, i) + k;
                    float one = gradient_at(c, i, k, c->setting->world.rank);
                    *to = micro ? (float)(micro + 1) * one : one;
                }
            check_lent(c, fsdp, unit, true);
            fsdp_reduce(fsdp, unit, micro == micros - 1, stream);
        }
    }
    fsdp_step_end(fsdp, stream);
}

static uint64_t sent(const Setting *s)
{
    return comm_take_wire_bytes(s->world) + comm_take_wire_bytes(s->shard) +
           comm_take_wire_bytes(s->replica);
}

// One micro-batch's bytes: gathers of every unit forward, of all but the last backward.
static uint64_t planned(const Case *c, const Fsdp *fsdp)
{
    uint64_t bytes = 0;
    for (int unit = 0; unit < c->settings.units; unit++) {
        FsdpTraffic t = fsdp_traffic(&c->settings, fsdp_plan(fsdp), unit);
        uint64_t gathered = t.gather_bytes[0] + t.gather_bytes[1];
        bool again = unit < c->settings.units - 1 && c->settings.reshard != FSDP_RESHARD_NO;
        uint64_t backward = c->settings.reshard > 1 ? t.regather_bytes : gathered;
        bytes += gathered + (again ? backward : 0) + t.partial_bytes;
        for (int g = 0; g < FSDP_GROUPS; g++)
            bytes += t.scatter_bytes[g] + t.replica_bytes[g];
    }
    return bytes;
}

static void test_random(void **state)
{
    const Setting *s = *state;
    for (uint32_t trial = 0; trial < TRIALS; trial++) {
        Arena *arena = arena_create(MEMORY_DEVICE, DEVICE_CPU);
        Case c = draw_case(s, trial, arena);
        c.settings.parameter = c.parameter;
        if (draw(&c, 2)) {
            FsdpPlan plan = fsdp_plan_create(&c.settings);
            c.settings.gradients = c.lent = ARENA_PUSH(arena, float, plan.flat, MEMORY_SCRATCH);
            fsdp_plan_destroy(&plan);
        }
        Fsdp *fsdp = fsdp_create(&c.settings);
        FsdpMemory memory = fsdp_memory(&c.settings, fsdp_plan(fsdp));
        assert_int_equal(arena_peak_bytes(arena, MEMORY_PARAMETERS),
                         memory.shard_bytes + memory.gathered_bytes);
        assert_int_equal(arena_peak_bytes(arena, MEMORY_GRADIENTS), memory.gradient_bytes);
        assert_int_equal(arena_peak_bytes(arena, MEMORY_COMMUNICATION),
                         memory.send_bytes + memory.scratch_bytes + memory.cast_bytes);
        if (c.settings.reshard == FSDP_RESHARD_YES)
            assert_true(memory.gathered_bytes <= 2 * memory.largest_bytes);
        fill_values(&c, fsdp);
        arena_forbid(arena, true);
        sent(s);
        run_step(&c, fsdp, 1);
        assert_int_equal(sent(s), planned(&c, fsdp));
        check_gradients(&c, fsdp, 1);
        run_step(&c, fsdp, c.settings.accumulates ? 3 : 1); // the next step begins anew
        check_gradients(&c, fsdp, c.settings.accumulates ? 3 : 1);
        arena_forbid(arena, false);
        fsdp_destroy(fsdp);
        arena_destroy(arena);
    }
}

// The plan of a large model is numbers only: 2^33 rows over 8 ranks need no memory.
static void test_far_plan(void **state)
{
    (void)state;
    const FsdpParameter p = {.outer = 1,
                             .rows = ((int64_t)1 << 33) + 3,
                             .columns = 3,
                             .room_rows = ((int64_t)1 << 33) + 3};
    Comm eight = {.rank = 7, .ranks = 8}, one = {.ranks = 1};
    FsdpSettings settings = {.units = 1,
                             .parameters = 1,
                             .parameter = &p,
                             .group = {{eight, one}, {one, one}},
                             .partial = one,
                             .kept = one,
                             .param_dtype = DTYPE_BF16,
                             .wire_dtype = DTYPE_F32,
                             .reshard = FSDP_RESHARD_YES};
    FsdpPlan plan = fsdp_plan_create(&settings);
    assert_int_equal(plan.place[0].shard_rows, ((int64_t)1 << 30) + 1);
    assert_int_equal(plan.place[0].rows, ((int64_t)1 << 30) - 4);
    FsdpTraffic t = fsdp_traffic(&settings, &plan, 0);
    assert_int_equal(t.gather_bytes[0], (((uint64_t)1 << 30) + 1) * 3 * 2 * 7);
    assert_int_equal(t.scatter_bytes[0], (((uint64_t)1 << 30) + 1) * 3 * 4 * 7);
    fsdp_plan_destroy(&plan);
}

int main(int argc, char **argv)
{
    TestJob job = test_job_begin(argc, argv, DEVICE_CPU);
    Setting s = {.world = job.comm,
                 .alone = {.rank = 0, .ranks = 1},
                 .stream = job.stream,
                 .seed = job.seed};
    int replicas = s.world.ranks % 2 == 0 && s.world.ranks > 2 ? 2 : 1;
    int shards = s.world.ranks / replicas;
    s.shard = comm_split(s.world, s.world.rank / shards, s.world.rank);
    s.replica = comm_split(s.world, s.world.rank % shards, s.world.rank);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_random, &s),
        cmocka_unit_test(test_far_plan),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    comm_destroy(&s.shard);
    comm_destroy(&s.replica);
    return test_job_end(&job, failed);
}
