// Redistribute against gather, combine and slice, bit for bit: the random requests of
// parallel_redistribute_cases.h; and plans, as the table in redistribute.h has them.
// ranks: 1 2 3 4 6 8
#include "tests/parallel_redistribute_cases.h"

enum { TRIALS = 5000 };

static void test_random_requests(void **state)
{
    run_random_cases(*state, TRIALS);
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
        // Strided shards, by hand for the rows of rank 0 (16 bytes each).
        {"a=2,b=4", "S0,S0", "S0x4,S0", "all-gather all-to-all slice ", 3 * 16 + 2 * 16},
        {"a=2,b=4", "S0x4,S0", "S0x4,R", "all-gather ", 3 * 16},
        {"a=2,b=4", "S0x4,R", "S0x4,S0", "slice ", 0},
        {"a=2,b=4", "S0x4,S0", "S0x4,S1", "all-to-all ", 3 * 4},
        {"a=2,b=4", "S0x4,P", "S0x4,S0", "reduce-scatter ", 3 * 16},
        {"a=2,b=4", "S0x4,S0", "S0x4,P", "into partial ", 0},
        {"a=2,b=4", "S0,S0", "R,S0", "all-gather all-to-all ", 16 + 16},
        {"a=2,b=4", "R,S0", "S0,S0", "all-to-all slice ", 16},
        {"a=4", "S0", "S0x2", "all-to-all ", 16},
        {"a=4", "S0x2", "S0", "all-to-all ", 16},
        {"a=4", "S0x200", "S0x100", "all-gather slice ", 3 * 128}, // pieces of a row: all rank 0
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
    Setting setting = {.job = test_job_begin(argc, argv, DEVICE_CPU)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_random_requests, &setting),
        cmocka_unit_test(test_plans),
        cmocka_unit_test(test_far_plan),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    setting_destroy(&setting);
    return test_job_end(&setting.job, failed);
}
