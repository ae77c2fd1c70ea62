// Plans: grammar, patterns, which line counts, and what their errors say.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "parallel/style.h"

static const char *const names[] = {
    "model.embed_tokens.weight",
    "model.layers.0.post_attention_layernorm.weight",
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.11.mlp.up_proj.weight",
    "model.layers.0.mlp.experts.down_proj",
    "lm_head.weight",
};

static bool parse(const char *text, Plan *plan, Error *error)
{
    return plan_parse("plan.txt", text, strlen(text), plan, error);
}

static void test_table(void **state)
{
    (void)state;
    for (int i = 0; i < STYLES; i++) {
        Style found;
        Error error = {0};
        assert_true(style_find(style_row((Style)i)->name, "--plan", &found, &error));
        assert_int_equal(found, i);
    }
}

static void test_patterns(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *name;
        bool matches;
    } cases[] = {
        {"model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight", true},
        {"layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight", true},
        {"layers.*.mlp.up_proj", "model.layers.0.mlp.up_proj.weight", true},
        {"layers.*.mlp.up", "model.layers.11.mlp.up_proj.weight", true},
        {"layers.*.mlp.experts.down", "model.layers.0.mlp.experts.down_proj", true},
        {"*", "lm_head.weight", true},
        {"*norm*", "model.layers.0.post_attention_layernorm.weight", true},
        {"lm_head", "lm_head.weight", true},
        {"layers.*.up", "model.layers.0.mlp.up_proj.weight", true},
        {"layers.1.mlp.up", "model.layers.11.mlp.up_proj.weight", false},
        {"layers.*.mlp.u", "model.layers.0.mlp.up_proj.weight", false},
        {"ayers.*.mlp.up", "model.layers.0.mlp.up_proj.weight", false},
        {"", "lm_head.weight", false},
        {"weight", "model.weight", true},
        {"**a*b**", "xaxxbx", true},
        {"*a*b", "xaxxbx", false},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        if (plan_matches(cases[i].pattern, cases[i].name) != cases[i].matches)
            fail_msg("'%s' on '%s': expected %d", cases[i].pattern, cases[i].name,
                     cases[i].matches);
}

static void test_last_line_counts(void **state)
{
    (void)state;
    Plan plan;
    Error error = {0};
    int line[COUNT_OF(names)];
    assert_true(parse("# all blocks\n"
                      "\n"
                      "layers.*.mlp.up   colwise   # the up rows\r\n"
                      "\tlayers.11.* replicate\n"
                      "embed_tokens vocab_embedding",
                      &plan, &error));
    assert_int_equal(plan.lines, 3);
    assert_int_equal(plan.line[0].line, 3);
    assert_int_equal(plan.line[2].line, 5);
    assert_true(plan_apply(&plan, names, COUNT_OF(names), line, &error));
    const int expected[COUNT_OF(names)] = {2, -1, -1, 0, 1, -1, -1};
    for (size_t i = 0; i < COUNT_OF(names); i++)
        assert_int_equal(line[i], expected[i]);
    assert_int_equal(plan.line[1].style, STYLE_REPLICATE);
    plan_destroy(&plan);
}

static void expect_parse_error(const char *text, const char *what, const char *fix)
{
    Plan plan;
    Error error = {0};
    assert_false(parse(text, &plan, &error));
    assert_int_equal(error.exit_code, EXIT_CODE_USAGE);
    if (!strstr(error.what, what) || !strstr(error.fix, fix))
        fail_msg("'%s' / '%s' instead of '%s' / '%s'", error.what, error.fix, what, fix);
}

static void test_bad_lines(void **state)
{
    (void)state;
    expect_parse_error("a colwise\nb colwize\n", "plan.txt:2: there is no style 'colwize'",
                       "did you mean 'colwise'?");
    expect_parse_error("one\n", "plan.txt:1: 1 word, not two", "pattern style");
    expect_parse_error("\n\none two three\n", "plan.txt:3: 3 words", "pattern style");
    expect_parse_error("# nothing\n\n", "plan.txt: the plan has no line", "drop --plan");
    char wide[256];
    memset(wide, 'a', sizeof wide);
    memcpy(wide + 200, " colwise\n", 10);
    expect_parse_error(wide, "more than 95 characters", "*");
}

static void test_no_match(void **state)
{
    (void)state;
    Plan plan;
    Error error = {0};
    int line[COUNT_OF(names)];
    assert_true(parse("lm_head replicate\nlayers.*.mlp.upp colwise\n", &plan, &error));
    assert_false(plan_apply(&plan, names, COUNT_OF(names), line, &error));
    assert_int_equal(error.exit_code, EXIT_CODE_USAGE);
    assert_non_null(strstr(error.what, "plan.txt:2: no parameter matches 'layers.*.mlp.upp'"));
    assert_non_null(strstr(error.fix, "did you mean 'layers.*.mlp.up'"));
    plan_destroy(&plan);
}

static void test_no_file(void **state)
{
    (void)state;
    Plan plan;
    Error error = {0};
    assert_false(plan_read("/nonexistent/plan.txt", &plan, &error));
    assert_int_equal(error.exit_code, EXIT_CODE_NO_INPUT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),     cmocka_unit_test(test_patterns),
        cmocka_unit_test(test_bad_lines), cmocka_unit_test(test_last_line_counts),
        cmocka_unit_test(test_no_match),  cmocka_unit_test(test_no_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
