// The layout oracle on made-up results: each classic difference is named, and nothing is named
// where there is none.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "experiments/model/lm_oracle.h"
#include "harness/random.h"

enum {
    GATE = 2
}; // layers.0.mlp.gate_proj.weight [10, 8]: dp S0x2 and tp S0; NORM is copied over tp
enum { NORM = 1, ROWS = 10, COLUMNS = 8 };

typedef struct Setting {
    LmConfig config;
    LmParameters list;
    Mesh mesh;
    LmLayout layout;
    LmResult ours, theirs;
} Setting;

static void fill(const Setting *s, LmWhole *whole, uint32_t stream)
{
    for (int i = 0; i < whole->count; i++)
        for (int64_t k = 0; k < tensor_elements(&s->list.parameter[i].whole); k++)
            whole->tensor[i][k] = random_normal(7, stream + (uint32_t)i, (uint64_t)k);
}

static void fill_result(const Setting *s, LmResult *result)
{
    fill(s, &result->first_gradient, 100);
    fill(s, &result->last_gradient, 200);
    fill(s, &result->values, 300);
    for (int step = 0; step < result->steps; step++)
        result->loss[step] = result->norm[step] = 3 + step;
}

static void begin(Setting *s)
{
    Error error = {0};
    *s = (Setting){.config = {.layers = 1, .dim = COLUMNS, .inner = ROWS, .vocab = 6}};
    s->list = lm_parameters_create(&s->config);
    assert_true(mesh_parse("dp=3,tp=2", 6, &s->mesh, &error));
    s->mesh.world.ranks = 6;
    assert_true(lm_layout_create(
        &(LmLayoutRequest){
            .mesh = &s->mesh, .config = &s->config, .parameters = &s->list, .tokens = "4,2,1"},
        &s->layout, &error));
    s->ours = lm_result_create(&s->list, &s->config, 2, true);
    s->theirs = lm_result_create(&s->list, &s->config, 2, true);
    fill_result(s, &s->ours);
    fill_result(s, &s->theirs);
}

static void end(Setting *s)
{
    lm_result_destroy(&s->ours);
    lm_result_destroy(&s->theirs);
    lm_layout_destroy(&s->layout);
    lm_parameters_destroy(&s->list);
}

// Runs the checks; expects that exactly one cause is given, to `name`, and that it contains `text`.
// NULL: nothing differs.
static void expect_cause(Setting *s, double bound, const char *name, const char *text)
{
    LmOracle oracle = {.layout = &s->layout,
                       .ours = &s->ours,
                       .theirs = &s->theirs,
                       .bound = bound,
                       .bound_later = bound};
    LmFinding *all = calloc((size_t)(LM_SUBJECTS * s->list.count), sizeof(LmFinding));
    ResultCheck checks[LM_CHECKS_MAX];
    int count = lm_oracle_check(&oracle, all, checks), causes = 0;
    bool good = true;
    for (int i = 0; i < count; i++) {
        good = good && checks[i].good;
        if (strcmp(checks[i].verdict, "cause") != 0)
            continue;
        causes++;
        if (!text || strcmp(checks[i].name, name) != 0 || !strstr(checks[i].detail, text))
            fail_msg("%s: '%s' instead of %s: '%s'", checks[i].name, checks[i].detail,
                     name ? name : "no name", text ? text : "no cause");
    }
    assert_int_equal(causes, text != NULL);
    assert_int_equal(good, text == NULL);
    free(all);
    end(s);
}

static float *gate(Setting *s)
{
    return s->ours.first_gradient.tensor[GATE];
}

static const char gate_name[] = "model.layers.0.mlp.gate_proj.weight";

static void test_nothing(void **state)
{
    (void)state;
    Setting s;
    begin(&s);
    expect_cause(&s, -1, NULL, NULL);
    begin(&s);
    gate(&s)[3] *= 1 + 1e-6f;
    expect_cause(&s, 1e-5, NULL, NULL);
}

static void test_factors(void **state)
{
    (void)state;
    static const struct {
        float factor;
        const char *text;
    } cases[] = {{3, "3 times too large: off by dp "},
                 {2, "2 times too large: off by tp "},
                 {6, "6 times too large: off by dp*tp"},
                 {1 / 3.0f, "3 times too small: off by dp "},
                 {1.7f, "which is no extent of the mesh"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Setting s;
        begin(&s);
        for (int k = 0; k < ROWS * COLUMNS; k++)
            gate(&s)[k] *= cases[i].factor;
        expect_cause(&s, 1e-5, gate_name, cases[i].text);
    }
}

static void test_copies(void **state)
{
    (void)state;
    Setting s;
    begin(&s);
    float *ours = s.ours.first_gradient.tensor[NORM];
    const float *theirs = s.theirs.first_gradient.tensor[NORM];
    float *sum = calloc(COLUMNS, sizeof(float));
    for (int k = 0; k < COLUMNS; k++) {
        ours[k] = 0.3f * theirs[k] + (float)k; // this copy's term
        sum[k] = theirs[k];
    }
    s.ours.first_gradient.sum_of_copies[NORM] = sum;
    expect_cause(&s, 1e-5, "model.layers.0.post_attention_layernorm.weight", "not reduced over tp");
}

static void test_rows(void **state)
{
    (void)state;
    // Plain (dp, tp) shards of 10 rows read where tp cut first: 0-4, 5-9, each over dp = 2, 2, 1.
    static const int plain[ROWS] = {0, 1, 5, 6, 2, 3, 7, 8, 4, 9};
    Setting s;
    begin(&s);
    for (int row = 0; row < ROWS; row++)
        memcpy(gate(&s) + row * COLUMNS,
               s.theirs.first_gradient.tensor[GATE] + plain[row] * COLUMNS,
               COLUMNS * sizeof(float));
    expect_cause(&s, 1e-5, gate_name, "rows permuted (7 of 10)");

    begin(&s); // one row of padding between the shards, so that the rows behind it are displaced
    float *ours = gate(&s);
    memmove(ours + 6 * COLUMNS, ours + 5 * COLUMNS, 4 * COLUMNS * sizeof(float));
    memset(ours + 5 * COLUMNS, 0, COLUMNS * sizeof(float));
    expect_cause(&s, -1, gate_name, "padding leaked in: 1 rows of zeros too many");

    begin(&s);
    gate(&s)[17] = NAN;
    expect_cause(&s, -1, gate_name, "not finite from element 17 on");

    begin(&s);
    gate(&s)[17] += 1;
    expect_cause(&s, -1, gate_name, "no classic cause");
}

static void test_common(void **state)
{
    (void)state;
    Setting s;
    begin(&s);
    s.ours.norm[0] *= 1.4;
    expect_cause(&s, 1e-5, "all parameters", "counted twice or not at all");
    begin(&s);
    s.ours.loss[1] *= 1.1;
    expect_cause(&s, 1e-5, "all parameters", "parameters of an earlier step");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing), cmocka_unit_test(test_factors),
        cmocka_unit_test(test_copies),  cmocka_unit_test(test_rows),
        cmocka_unit_test(test_common),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
