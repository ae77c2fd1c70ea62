// The option table: every kind, every way to be wrong, and the words that answer.
#include "harness/option.h"
#include "tests/capture.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/random.h>

#include <cmocka.h>

typedef struct Params {
    int64_t experts, top_k, any;
    double noise, scale;
    const char *mesh, *output;
    bool exact, force, json;
    int device;
} Params;

#define FIELD(field) .offset = offsetof(Params, field)
static const Option table[] = {
    {.name = "experts",
     .kind = OPTION_INT,
     FIELD(experts),
     .fallback = "4",
     .min = 1,
     .max = 65536,
     .doc = "number of experts"},
    {.name = "top_k",
     .kind = OPTION_INT,
     FIELD(top_k),
     .fallback = "1",
     .min = 1,
     .max = 64,
     .doc = "experts per token"},
    {.name = "any", .kind = OPTION_INT, FIELD(any), .fallback = "0", .doc = "any whole number"},
    {.name = "max_noise",
     .kind = OPTION_REAL,
     FIELD(noise),
     .fallback = "0.05",
     .min = 0,
     .max = 1,
     .doc = "stop when the noise is below"},
    {.name = "scale", .kind = OPTION_REAL, FIELD(scale), .fallback = "1", .doc = "any number"},
    {.name = "mesh",
     .kind = OPTION_TEXT,
     FIELD(mesh),
     .fallback = "ep=*",
     .value = "LAYOUT",
     .doc = "the grid of ranks"},
    {.name = "output",
     .kind = OPTION_TEXT,
     FIELD(output),
     .value = "FILE.h5",
     .letter = 'o',
     .doc = "where the result goes"},
    {.name = "exact",
     .kind = OPTION_SWITCH,
     FIELD(exact),
     .fallback = "yes",
     .doc = "keep one order of sums"},
    {.name = "force",
     .kind = OPTION_SWITCH,
     FIELD(force),
     .fallback = "no",
     .letter = 'f',
     .doc = "overwrite"},
    {.name = "json", .kind = OPTION_SWITCH, FIELD(json), .letter = 'j', .doc = "for machines"},
    {.name = "device",
     .kind = OPTION_CHOICE,
     FIELD(device),
     .fallback = "auto",
     .choices = "cpu|cuda|auto",
     .doc = "where it runs"},
    {.name = NULL},
};

typedef struct Parsed {
    bool good;
    Params params;
    OptionPositionals words;
    Error error;
} Parsed;

enum { WORDS_MAX = 24 };

static Parsed parse_array(int argc, const char *const *argv, int positionals_max)
{
    Parsed parsed = {.good = false};
    memset(&parsed.params, 0xA5, sizeof(parsed.params)); // nothing may depend on what was there
    parsed.good = option_parse(table, argc, (char *const *)(uintptr_t)argv, positionals_max,
                               &parsed.params, &parsed.words, &parsed.error);
    return parsed;
}

// parse(words_max, "--a", "b", NULL)
static Parsed parse(int positionals_max, ...)
{
    const char *argv[WORDS_MAX];
    int argc = 0;
    va_list words;
    va_start(words, positionals_max);
    for (const char *word = va_arg(words, const char *); word; word = va_arg(words, const char *))
        argv[argc++] = word;
    va_end(words);
    return parse_array(argc, argv, positionals_max);
}

#define ASSERT_REAL(actual, expected)                                                              \
    do {                                                                                           \
        if ((actual) != (expected))                                                                \
            fail_msg("%s = %.17g, expected %.17g", #actual, (double)(actual), (double)(expected)); \
    } while (0)

// The error must be a usage error whose text and fix hold these parts.
#define ASSERT_REFUSED(parsed, what_part, fix_part)                                                \
    do {                                                                                           \
        Parsed refused_ = (parsed);                                                                \
        assert_false(refused_.good);                                                               \
        assert_int_equal(refused_.error.exit_code, EXIT_CODE_USAGE);                               \
        ASSERT_CONTAINS(refused_.error.what, (what_part));                                         \
        ASSERT_CONTAINS(refused_.error.fix, (fix_part));                                           \
    } while (0)

static void without_words_everything_has_its_default(void **state)
{
    (void)state;
    Parsed parsed = parse(0, NULL);
    assert_true(parsed.good);
    assert_int_equal(parsed.error.exit_code, 0);
    assert_int_equal(parsed.params.experts, 4);
    assert_int_equal(parsed.params.any, 0);
    ASSERT_REAL(parsed.params.noise, 0.05);
    assert_string_equal(parsed.params.mesh, "ep=*");
    assert_null(parsed.params.output);
    assert_true(parsed.params.exact);
    assert_false(parsed.params.force);
    assert_false(parsed.params.json);
    assert_int_equal(parsed.params.device, 2);
    assert_int_equal(parsed.words.count, 0);
}

static void every_spelling_is_read(void **state)
{
    (void)state;
    Parsed parsed = parse(3, "first", "--experts", "128", "--top_k=8", "--any=-7", "--max_noise",
                          "1e-3", "--scale=-2.5", "--mesh", "dp=2,ep=*", "-o", "r.h5", "--no-exact",
                          "-fj", "--device=cpu", "-", "--", "--experts", NULL);
    assert_string_equal(parsed.error.what, "");
    assert_true(parsed.good);
    assert_int_equal(parsed.params.experts, 128);
    assert_int_equal(parsed.params.top_k, 8);
    assert_int_equal(parsed.params.any, -7);
    ASSERT_REAL(parsed.params.noise, 1e-3);
    ASSERT_REAL(parsed.params.scale, -2.5);
    assert_string_equal(parsed.params.mesh, "dp=2,ep=*");
    assert_string_equal(parsed.params.output, "r.h5");
    assert_false(parsed.params.exact);
    assert_true(parsed.params.force);
    assert_true(parsed.params.json);
    assert_int_equal(parsed.params.device, 0);
    assert_int_equal(parsed.words.count, 3);
    assert_string_equal(parsed.words.value[0], "first");
    assert_string_equal(parsed.words.value[1], "-");
    assert_string_equal(parsed.words.value[2], "--experts");
}

static void letters_take_their_value_glued_or_apart(void **state)
{
    (void)state;
    assert_string_equal(parse(0, "-or.h5", NULL).params.output, "r.h5");
    Parsed parsed = parse(0, "-fjo", "x", NULL);
    assert_string_equal(parsed.params.output, "x");
    assert_true(parsed.params.force);
    ASSERT_REFUSED(parse(0, "-o=r.h5", NULL), "'='", "-o VALUE or --output=VALUE");
    ASSERT_REFUSED(parse(0, "-o", NULL), "--output needs a value", "--output=VALUE");
    ASSERT_REFUSED(parse(0, "-x", NULL), "no option -x", "two dashes");
    ASSERT_REFUSED(parse(0, "-fx", NULL), "no option -x (in '-fx')", "--help");
    ASSERT_REFUSED(parse(0, "-experts", NULL), "no option -e", "two dashes");
}

static void empty_and_dashed_text_is_legal_behind_an_equals_sign(void **state)
{
    (void)state;
    assert_string_equal(parse(0, "--mesh=", NULL).params.mesh, "");
    assert_string_equal(parse(0, "--mesh=--x=1", NULL).params.mesh, "--x=1");
    assert_string_equal(parse(0, "--mesh", "", NULL).params.mesh, "");
    assert_string_equal(parse(0, "--mesh", "-x", NULL).params.mesh, "-x");
}

static void typos_get_the_nearest_name(void **state)
{
    (void)state;
    ASSERT_REFUSED(parse(0, "--expert", "4", NULL), "no option --expert",
                   "did you mean --experts?");
    ASSERT_REFUSED(parse(0, "--topk=2", NULL), "no option --topk", "did you mean --top_k?");
    ASSERT_REFUSED(parse(0, "--top-k=2", NULL), "--top-k", "did you mean --top_k?");
    ASSERT_REFUSED(parse(0, "--mehs", "ep=2", NULL), "--mehs", "did you mean --mesh?");
    ASSERT_REFUSED(parse(0, "--no-exakt", NULL), "--no-exakt", "did you mean --no-exact?");
    ASSERT_REFUSED(parse(0, "--out", "x", NULL), "--out", "did you mean --output?");
    ASSERT_REFUSED(parse(0, "--DEVICE", "cpu", NULL), "--DEVICE", "did you mean --device?");
    Parsed far = parse(0, "--zzzzzz", NULL);
    ASSERT_REFUSED(far, "no option --zzzzzz", "--help lists all options");
    ASSERT_LACKS(far.error.fix, "did you mean");
    char huge[4000] = "--";
    memset(huge + 2, 'e', sizeof(huge) - 3);
    huge[sizeof(huge) - 1] = '\0';
    ASSERT_REFUSED(parse(0, huge, NULL), "no option --eee", "--help");
}

static void bad_numbers_are_refused_with_their_range(void **state)
{
    (void)state;
    static const char *const whole[] = {"0",
                                        "65537",
                                        "-4",
                                        "four",
                                        "4x",
                                        "",
                                        " 4",
                                        "4 ",
                                        "0x10",
                                        "1e3",
                                        "4.0",
                                        "+",
                                        "--",
                                        "1_000",
                                        "99999999999999999999",
                                        "-99999999999999999999"};
    for (size_t i = 0; i < COUNT_OF(whole); i++) {
        char word[64], what[64];
        snprintf(word, sizeof(word), "--experts=%s", whole[i]);
        snprintf(what, sizeof(what), "--experts cannot be '%s'", whole[i]);
        ASSERT_REFUSED(parse(0, word, NULL), what, "a whole number from 1 to 65536");
    }
    static const char *const real[] = {"",    "nan", "inf", "-inf", "0x1p3", "1e999", "lots",
                                       "1.5", "-1",  "1,5", "0.5 ", "e",     "1e",    "--1"};
    for (size_t i = 0; i < COUNT_OF(real); i++) {
        char word[64], what[64];
        snprintf(word, sizeof(word), "--max_noise=%s", real[i]);
        snprintf(what, sizeof(what), "--max_noise cannot be '%s'", real[i]);
        ASSERT_REFUSED(parse(0, word, NULL), what, "a number from 0 to 1");
    }
    ASSERT_REFUSED(parse(0, "--any=x", NULL), "--any cannot be 'x'", "give a whole number");
    assert_int_equal(parse(0, "--any=9223372036854775807", NULL).params.any, INT64_MAX);
    assert_int_equal(parse(0, "--any=-9223372036854775808", NULL).params.any, INT64_MIN);
    assert_int_equal(parse(0, "--experts=65536", NULL).params.experts, 65536);
    assert_int_equal(parse(0, "--experts=+1", NULL).params.experts, 1);
}

static void a_missing_value_is_not_taken_from_the_next_option(void **state)
{
    (void)state;
    ASSERT_REFUSED(parse(0, "--mesh", "--exact", NULL), "--mesh needs a value, but another option",
                   "--mesh=VALUE");
    ASSERT_REFUSED(parse(0, "--mesh", NULL), "--mesh needs a value, but the command line ends",
                   "--mesh=VALUE");
    ASSERT_REFUSED(parse(0, "--mesh", "--", "x", NULL), "--mesh needs a value", "--mesh=VALUE");
    ASSERT_REFUSED(parse(0, "--experts=", NULL), "--experts cannot be ''", "whole number");
}

static void switches_and_values_are_not_mixed_up(void **state)
{
    (void)state;
    ASSERT_REFUSED(parse(0, "--exact=maybe", NULL),
                   "--exact is a switch and takes no value ('maybe')", "--exact or --no-exact");
    ASSERT_REFUSED(parse(0, "--no-exact=yes", NULL), "--exact is a switch", "--no-exact");
    ASSERT_REFUSED(parse(0, "--no-mesh", NULL), "--mesh is no switch", "default (ep=*)");
    ASSERT_REFUSED(parse(0, "--no-output", NULL), "--output is no switch", "default (none)");
    ASSERT_REFUSED(parse(0, "--no-", NULL), "no option --no-", "--help");
    ASSERT_REFUSED(parse(0, "--=3", NULL), "no option --", "--help");
}

static void nothing_is_given_twice(void **state)
{
    (void)state;
    ASSERT_REFUSED(parse(0, "--experts", "4", "--experts=4", NULL), "--experts is given twice",
                   "once");
    ASSERT_REFUSED(parse(0, "--exact", "--no-exact", NULL), "--exact is given twice", "once");
    ASSERT_REFUSED(parse(0, "-o", "a", "--output", "b", NULL), "--output is given twice", "once");
    ASSERT_REFUSED(parse(0, "-ff", NULL), "--force is given twice", "once");
}

static void choices_are_exact_and_hint(void **state)
{
    (void)state;
    static const char *const names[] = {"cpu", "cuda", "auto"};
    for (int i = 0; i < 3; i++)
        assert_int_equal(parse(0, "--device", names[i], NULL).params.device, i);
    ASSERT_REFUSED(parse(0, "--device", "cdua", NULL), "--device cannot be 'cdua'",
                   "did you mean cuda? the choices are cpu|cuda|auto");
    Parsed far = parse(0, "--device", "tpuv5", NULL);
    ASSERT_REFUSED(far, "--device cannot be 'tpuv5'", "the choices are cpu|cuda|auto");
    ASSERT_LACKS(far.error.fix, "did you mean");
    ASSERT_REFUSED(parse(0, "--device=", NULL), "--device cannot be ''", "cpu|cuda|auto");
    ASSERT_REFUSED(parse(0, "--device=cpu|cuda", NULL), "cannot be 'cpu|cuda'", "the choices");
}

static void words_too_many_are_refused(void **state)
{
    (void)state;
    ASSERT_REFUSED(parse(0, "bogus", NULL), "unexpected word 'bogus' (at most 0", "--help");
    ASSERT_REFUSED(parse(1, "a", "b", NULL), "unexpected word 'b' (at most 1 word", "--help");
    const char *argv[WORDS_MAX];
    for (int i = 0; i < WORDS_MAX; i++)
        argv[i] = "w";
    Parsed many = parse_array(WORDS_MAX, argv, 1000);
    assert_false(many.good);
    assert_int_equal(many.words.count, OPTION_POSITIONALS_MAX);
}

static void the_first_error_wins(void **state)
{
    (void)state;
    ASSERT_REFUSED(parse(0, "--experts=x", "--bogus", NULL), "--experts cannot be 'x'", "whole");
}

// What option_format writes, option_parse reads back: on random values of every kind.
static void formatted_values_read_back(void **state)
{
    (void)state;
    for (int round = 0; round < 2000; round++) {
        Params random;
        uint64_t bits[4];
        assert_int_equal(getrandom(bits, sizeof(bits), 0), sizeof(bits));
        memset(&random, 0, sizeof(random));
        random.any = (int64_t)bits[0];
        memcpy(&random.scale, &bits[1], sizeof(random.scale));
        if (!isfinite(random.scale))
            random.scale = 0.1;
        random.exact = bits[2] & 1;
        random.device = (int)(bits[3] % 3);
        char text[4][96], word[4][128];
        option_format(&table[2], &random, text[0], sizeof(text[0]));
        option_format(&table[4], &random, text[1], sizeof(text[1]));
        option_format(&table[7], &random, text[2], sizeof(text[2]));
        option_format(&table[10], &random, text[3], sizeof(text[3]));
        snprintf(word[0], sizeof(word[0]), "--any=%s", text[0]);
        snprintf(word[1], sizeof(word[1]), "--scale=%s", text[1]);
        snprintf(word[2], sizeof(word[2]), "--%sexact", strcmp(text[2], "no") == 0 ? "no-" : "");
        snprintf(word[3], sizeof(word[3]), "--device=%s", text[3]);
        Parsed parsed = parse(0, word[0], word[1], word[2], word[3], NULL);
        assert_string_equal(parsed.error.what, "");
        assert_int_equal(parsed.params.any, random.any);
        ASSERT_REAL(parsed.params.scale, random.scale);
        assert_int_equal(parsed.params.exact, random.exact);
        assert_int_equal(parsed.params.device, random.device);
    }
}

static void format_writes_what_a_user_would_type(void **state)
{
    (void)state;
    static const char *const expected[] = {"4", "1",   "0",  "0.05", "1",   "ep=*",
                                           "",  "yes", "no", "no",   "auto"};
    Parsed parsed = parse(0, NULL);
    for (size_t i = 0; i < COUNT_OF(expected); i++) {
        char text[32];
        option_format(&table[i], &parsed.params, text, sizeof(text));
        assert_string_equal(text, expected[i]);
    }
    char tight[3];
    option_format(&table[5], &parsed.params, tight, sizeof(tight));
    assert_string_equal(tight, "ep");
}

static void print_help(void *context)
{
    (void)context;
    option_print_help(table, stdout);
}

static void help_shows_every_row_with_range_and_default(void **state)
{
    (void)state;
    Captured help = capture(print_help, NULL);
    ASSERT_CONTAINS(help.text, "--experts N");
    ASSERT_CONTAINS(help.text, "number of experts (default 4; 1 to 65536)");
    ASSERT_CONTAINS(help.text, "any whole number (default 0)\n");
    ASSERT_CONTAINS(help.text, "-o, --output FILE.h5");
    ASSERT_CONTAINS(help.text, "where the result goes\n");
    ASSERT_CONTAINS(help.text, "--[no-]exact");
    ASSERT_CONTAINS(help.text, "keep one order of sums (default yes)");
    ASSERT_CONTAINS(help.text, "--device cpu|cuda|auto");
    int width = 0, widest = 0;
    for (const char *c = help.text; *c; c++) {
        width = *c == '\n' ? 0 : width + 1;
        widest = width > widest ? width : widest;
    }
    assert_in_range(widest, 40, 100);
    ASSERT_LACKS(help.text, " \n");
}

static void long_help_is_wrapped_whole(void **state)
{
    (void)state;
    char doc[700] = "", word[24];
    for (int i = 0; i < 99; i++) {
        snprintf(word, sizeof(word), "%sw%d", i > 0 ? " " : "", i);
        strcat(doc, word);
    }
    const Option rows[] = {{.name = "many", .kind = OPTION_INT, .doc = doc}, {.name = NULL}};
    FILE *file = tmpfile();
    option_print_help(rows, file);
    rewind(file);
    char line[256];
    int next = 0, lines = 0;
    while (fgets(line, sizeof(line), file)) {
        assert_in_range(strlen(line), 2, 101);
        ASSERT_LACKS(line, " \n");
        lines++;
        for (char *at = strtok(line, " \n"); at; at = strtok(NULL, " \n"))
            if (at[0] == 'w')
                assert_int_equal(atoi(at + 1), next++);
    }
    assert_int_equal(next, 99);
    assert_in_range(lines, 4, 8);
    fclose(file);
}

static void die_bad_default(void *context)
{
    (void)context;
    static const Option bad[] = {{.name = "n", .kind = OPTION_INT, .fallback = "ten"},
                                 {.name = NULL}};
    int64_t field[1];
    OptionPositionals words;
    Error error = {0};
    option_parse(bad, 0, NULL, 0, field, &words, &error);
}

static void a_wrong_default_is_our_bug(void **state)
{
    (void)state;
    Captured end = capture(die_bad_default, NULL);
    assert_int_equal(end.exit_code, EXIT_CODE_INTERNAL);
    ASSERT_CONTAINS(end.text, "the default of --n is wrong: --n cannot be 'ten'");
}

static void nearest_of_a_list(void **state)
{
    (void)state;
    static const char *const list[] = {"dp2ep", "doctor", "results", NULL};
    static const char *const none[] = {NULL};
    assert_string_equal(option_nearest("dp2pe", list), "dp2ep");
    assert_string_equal(option_nearest("resluts", list), "results");
    assert_string_equal(option_nearest("res", list), "results");
    assert_string_equal(option_nearest("dp2ep", list), "dp2ep");
    assert_null(option_nearest("zzzzz", list));
    assert_null(option_nearest("", list));
    assert_null(option_nearest("x", list));
    assert_null(option_nearest("dp2ep", none));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_words_everything_has_its_default),
        cmocka_unit_test(every_spelling_is_read),
        cmocka_unit_test(letters_take_their_value_glued_or_apart),
        cmocka_unit_test(empty_and_dashed_text_is_legal_behind_an_equals_sign),
        cmocka_unit_test(typos_get_the_nearest_name),
        cmocka_unit_test(bad_numbers_are_refused_with_their_range),
        cmocka_unit_test(a_missing_value_is_not_taken_from_the_next_option),
        cmocka_unit_test(switches_and_values_are_not_mixed_up),
        cmocka_unit_test(nothing_is_given_twice),
        cmocka_unit_test(choices_are_exact_and_hint),
        cmocka_unit_test(words_too_many_are_refused),
        cmocka_unit_test(the_first_error_wins),
        cmocka_unit_test(formatted_values_read_back),
        cmocka_unit_test(format_writes_what_a_user_would_type),
        cmocka_unit_test(help_shows_every_row_with_range_and_default),
        cmocka_unit_test(long_help_is_wrapped_whole),
        cmocka_unit_test(a_wrong_default_is_our_bug),
        cmocka_unit_test(nearest_of_a_list),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
