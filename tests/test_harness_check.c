// The error messages: fixed form, exit codes, who prints, and nothing from outside that could fool
// a terminal.
#include "harness/check.h"
#include "tests/capture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

static void die_check(void *context)
{
    (void)context;
    int rows = 7, rows_max = 4;
    CHECK(rows <= rows_max, EXIT_CODE_USAGE, "raise --tokens", "rows %d > rows_max %d", rows,
          rows_max);
}

static void check_prints_rule_values_where_and_fix(void **state)
{
    (void)state;
    Captured end = capture(die_check, NULL);
    assert_int_equal(end.exit_code, EXIT_CODE_USAGE);
    char expected[256];
    // The line number is that of the CHECK above: only its place in the form is fixed.
    const char *line = strstr(end.text, "test_harness_check.c:");
    assert_non_null(line);
    snprintf(expected, sizeof(expected),
             "meshwork: error: rows 7 > rows_max 4 (tests/test_harness_check.c:%d, rank 0 of 1)\n"
             "fix: raise --tokens\n",
             atoi(line + strlen("test_harness_check.c:")));
    assert_string_equal(end.text, expected);
}

static void die_in_span(void *context)
{
    check_context()->rank = 3;
    check_context()->ranks = 8;
    snprintf(check_context()->span, CHECK_SPAN_BYTES, "forward/dispatch");
    snprintf(check_context()->reproduce, sizeof(check_context()->reproduce), "meshwork x --y 1");
    printf("measured before\n"); // stays in the buffer unless the message flushes it
    CHECK(false, EXIT_CODE_DATA, "write it again", "bad %s", (const char *)context);
}

static void check_names_rank_span_and_reproduction(void **state)
{
    (void)state;
    Captured end = capture(die_in_span, "file");
    assert_int_equal(end.exit_code, EXIT_CODE_DATA);
    ASSERT_CONTAINS(end.text, ", rank 3 of 8, span forward/dispatch)\nfix: write it again\n"
                              "reproduce: meshwork x --y 1\n");
    assert_int_equal(strncmp(end.text, "measured before\n", 16), 0);
}

static void hostile_text_cannot_steer_the_terminal(void **state)
{
    (void)state;
    Captured end = capture(die_in_span, "\x1b[2J\nmeshwork: error: forged\r\x7f");
    ASSERT_CONTAINS(end.text, "bad ?[2J meshwork: error: forged?? (");
    assert_int_equal(capture_count(end.text, "\n"), 4); // measured, error, fix, reproduce
    assert_null(strchr(end.text, 0x1b));
}

static void die_long(void *context)
{
    (void)context;
    char *text = malloc(100001);
    memset(text, 'x', 100000);
    text[100000] = '\0';
    CHECK(false, EXIT_CODE_DATA, text, "%s", text);
}

static void a_huge_value_leaves_the_form_whole(void **state)
{
    (void)state;
    Captured end = capture(die_long, NULL);
    assert_int_equal(end.exit_code, EXIT_CODE_DATA);
    assert_in_range(strlen(end.text), 100, 4096);
    ASSERT_CONTAINS(end.text, "rank 0 of 1)\nfix: xxxx");
    assert_int_equal(end.text[strlen(end.text) - 1], '\n');
}

static void die_all(void *context)
{
    check_context()->rank = *(int *)context;
    check_context()->ranks = 4;
    CHECK_ALL(1 + 1 == 3, EXIT_CODE_CANT_CREATE, "choose another", "no %s", "way");
}

static void check_all_prints_on_rank_0_only(void **state)
{
    (void)state;
    for (int rank = 0; rank < 4; rank++) {
        Captured end = capture(die_all, &rank);
        assert_int_equal(end.exit_code, EXIT_CODE_CANT_CREATE);
        if (rank == 0)
            ASSERT_CONTAINS(end.text, "meshwork: error: no way (");
        else
            assert_string_equal(end.text, "");
    }
}

static void say_abort(int exit_code)
{
    fprintf(stderr, "abort %d\n", exit_code);
}

static void say_leave(int exit_code)
{
    fprintf(stderr, "leave %d\n", exit_code);
}

static void die_with_hooks(void *context)
{
    check_context()->abort_job = say_abort;
    check_context()->leave_together = say_leave;
    if (context)
        CHECK(false, 65, "a", "alone");
    else
        CHECK_ALL(false, 66, "b", "together");
}

static void hooks_take_the_job_down(void **state)
{
    (void)state;
    int alone = 1;
    Captured end = capture(die_with_hooks, &alone);
    assert_int_equal(end.exit_code, 65);
    ASSERT_CONTAINS(end.text, "fix: a\nabort 65\n");
    ASSERT_LACKS(end.text, "leave");
    end = capture(die_with_hooks, NULL);
    assert_int_equal(end.exit_code, 66);
    ASSERT_CONTAINS(end.text, "fix: b\nleave 66\n");
    ASSERT_LACKS(end.text, "abort");
}

static void die_rule(void *context)
{
    int pieces = *(int *)context;
    CHECK_RULE(pieces == 0);
}

static void a_broken_rule_is_our_bug(void **state)
{
    (void)state;
    int pieces = 5;
    Captured end = capture(die_rule, &pieces);
    assert_int_equal(end.exit_code, EXIT_CODE_INTERNAL);
    ASSERT_CONTAINS(end.text, "broken rule: pieces == 0 (");
    pieces = 0;
    end = capture(die_rule, &pieces);
    assert_int_equal(end.exit_code, 0);
    assert_string_equal(end.text, "");
}

static void warn(void *context)
{
    check_context()->rank = 1;
    check_context()->ranks = *(int *)context;
    check_warn("low on %s", "cores\a");
}

static void warnings_carry_the_rank_of_a_job(void **state)
{
    (void)state;
    int ranks = 2;
    Captured end = capture(warn, &ranks);
    assert_string_equal(end.text, "meshwork: warning: low on cores? (rank 1 of 2)\n");
    assert_int_equal(end.exit_code, 0);
    ranks = 1;
    assert_string_equal(capture(warn, &ranks).text, "meshwork: warning: low on cores?\n");
}

static bool fails_at(Error *error, int *line)
{
    *line = __LINE__ + 1;
    return error_set(error, EXIT_CODE_NO_INPUT, "look there", "no file %s (%d)", "a", 7);
}

static void an_error_keeps_the_first_cause(void **state)
{
    (void)state;
    Error error = {0};
    int line = 0;
    assert_false(fails_at(&error, &line));
    assert_int_equal(error.exit_code, EXIT_CODE_NO_INPUT);
    assert_string_equal(error.what, "no file a (7)");
    assert_string_equal(error.fix, "look there");
    assert_int_equal(error.line, line);
    ASSERT_CONTAINS(error.file, "test_harness_check.c");
    assert_false(error_set(&error, EXIT_CODE_IO, "other", "later"));
    assert_int_equal(error.exit_code, EXIT_CODE_NO_INPUT);
    assert_string_equal(error.what, "no file a (7)");
    assert_false(error_set(NULL, EXIT_CODE_IO, "other", "nobody listens"));
}

static void an_error_cuts_what_is_too_long(void **state)
{
    (void)state;
    char text[2000];
    memset(text, 'y', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    Error error = {0};
    error_set(&error, EXIT_CODE_IO, text, "%s", text);
    assert_int_equal(strlen(error.what), sizeof(error.what) - 1);
    assert_int_equal(strlen(error.fix), sizeof(error.fix) - 1);
}

static void warn_often(void *context)
{
    for (int i = 0; i < 50; i++)
        check_warn("%s", (const char *)context);
}

// Two processes that print at once: every line comes whole.
static void shout(void *context)
{
    (void)context;
    static char left[900], right[900];
    memset(left, 'l', sizeof(left) - 1);
    memset(right, 'r', sizeof(right) - 1);
    pid_t child = fork();
    warn_often(child == 0 ? left : right);
    if (child == 0)
        _exit(0);
    waitpid(child, NULL, 0);
}

static void messages_do_not_interleave(void **state)
{
    (void)state;
    FILE *log = tmpfile();
    assert_non_null(log);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        dup2(fileno(log), STDERR_FILENO);
        fcntl(STDERR_FILENO, F_SETFL, O_APPEND);
        shout(NULL);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    rewind(log);
    char line[2048];
    int lines = 0;
    while (fgets(line, sizeof(line), log)) {
        const char *body = line + strlen("meshwork: warning: ");
        assert_int_equal(strlen(line), strlen("meshwork: warning: ") + 899 + 1);
        assert_int_equal(strspn(body, body[0] == 'l' ? "l" : "r"), 899);
        lines++;
    }
    assert_int_equal(lines, 100);
    fclose(log);
}

static void a_prefix_says_what_the_error_is_about(void **state)
{
    (void)state;
    Error error = {0};
    assert_true(error_prefix(&error, "--mesh \"%s\"", "ep=3"));
    assert_string_equal(error.what, "");
    error_set(&error, EXIT_CODE_USAGE, "start 3 ranks", "3 is not %d", 2);
    int line = error.line;
    assert_false(error_prefix(&error, "--mesh \"%s\"", "ep=3"));
    assert_string_equal(error.what, "--mesh \"ep=3\": 3 is not 2");
    assert_string_equal(error.fix, "start 3 ranks");
    assert_int_equal(error.exit_code, EXIT_CODE_USAGE);
    assert_int_equal(error.line, line);
    // Long words are cut, and leave room for what went wrong; what does not fit is cut too.
    char words[2 * sizeof(error.what)];
    memset(words, 'w', sizeof(words) - 1);
    words[sizeof(words) - 1] = '\0';
    assert_false(error_prefix(&error, "%s", words));
    assert_string_equal(error.what + sizeof(error.what) / 2 - 1, ": --mesh \"ep=3\": 3 is not 2");
    for (int i = 0; i < 3; i++)
        error_prefix(&error, "%s", words);
    assert_int_equal(strlen(error.what), sizeof(error.what) - 1);
    assert_true(error_prefix(NULL, "nothing"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_prints_rule_values_where_and_fix),
        cmocka_unit_test(check_names_rank_span_and_reproduction),
        cmocka_unit_test(hostile_text_cannot_steer_the_terminal),
        cmocka_unit_test(a_huge_value_leaves_the_form_whole),
        cmocka_unit_test(check_all_prints_on_rank_0_only),
        cmocka_unit_test(hooks_take_the_job_down),
        cmocka_unit_test(a_broken_rule_is_our_bug),
        cmocka_unit_test(warnings_carry_the_rank_of_a_job),
        cmocka_unit_test(an_error_keeps_the_first_cause),
        cmocka_unit_test(an_error_cuts_what_is_too_long),
        cmocka_unit_test(a_prefix_says_what_the_error_is_about),
        cmocka_unit_test(messages_do_not_interleave),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
