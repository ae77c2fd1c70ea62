// The JSON scanner accepts what jansson accepts and stops where it does, on text that is JSON, was
// JSON before bytes were changed, or ends too early; it never reads past the end.
#include "harness/json.h"
#include "results/graph/json_scan.h"
#include "tests/capture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/random.h>

#include <cmocka.h>

// In a buffer of exactly that size, so that the sanitizer sees a byte too many.
static JsonOutcome scan_text(const char *text, size_t bytes, size_t *at, const char **why)
{
    char *exact = malloc(bytes ? bytes : 1);
    memcpy(exact, text, bytes);
    JsonScan scan = {exact, exact + bytes, NULL};
    JsonOutcome outcome = json_scan_value(&scan);
    if (outcome == JSON_GOOD)
        json_scan_space(&scan);
    *at = (size_t)(scan.at - exact);
    if (why)
        *why = scan.why;
    free(exact);
    return outcome;
}

static const struct {
    const char *text;
    JsonOutcome outcome;
    size_t at; // of GOOD and BAD
} rows[] = {
    {"", JSON_MORE, 0},
    {"  ", JSON_MORE, 0},
    {"{}", JSON_GOOD, 2},
    {" [ ] ", JSON_GOOD, 5},
    {"[1,2]x", JSON_GOOD, 5},
    {"{\"a\":{\"b\":[true,false,null]}}", JSON_GOOD, 29},
    {"[-0.5e+3,0,1E9,NaN,-Infinity]", JSON_GOOD, 29},
    {"\"\\u00e9\\n\\\"\" ", JSON_GOOD, 13},
    {"12", JSON_MORE, 0},
    {"12 ", JSON_GOOD, 3},
    {"[", JSON_MORE, 0},
    {"{\"a\"", JSON_MORE, 0},
    {"{\"a\":", JSON_MORE, 0},
    {"[1,", JSON_MORE, 0},
    {"\"abc", JSON_MORE, 0},
    {"\"ab\\u00", JSON_MORE, 0},
    {"tru", JSON_MORE, 0},
    {"[1,]", JSON_BAD, 3},
    {"{\"a\":1,}", JSON_BAD, 7},
    {"{\"a\":}", JSON_BAD, 5},
    {"{\"a\" 1}", JSON_BAD, 5},
    {"{1:2}", JSON_BAD, 1},
    {"[1 2]", JSON_BAD, 3},
    {"[1}", JSON_BAD, 2},
    {"{\"a\":1]", JSON_BAD, 6},
    {"]", JSON_BAD, 0},
    {"[01]", JSON_BAD, 2},
    {"[1.]", JSON_BAD, 3},
    {"[.5]", JSON_BAD, 1},
    {"[1e]", JSON_BAD, 3},
    {"[+1]", JSON_BAD, 1},
    {"[-]", JSON_BAD, 2},
    {"\"a\nb\"", JSON_BAD, 2},
    {"\"\\x\"", JSON_BAD, 1},
    {"\"\\u12g4\"", JSON_BAD, 1},
    {"nul", JSON_MORE, 0},
    {"nulx", JSON_BAD, 0},
    {"'a'", JSON_BAD, 0},
};

static void every_rule_has_its_place(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        size_t at;
        JsonOutcome outcome = scan_text(rows[i].text, strlen(rows[i].text), &at, NULL);
        if (outcome != rows[i].outcome)
            fail_msg("%s: outcome %d, expected %d", rows[i].text, outcome, rows[i].outcome);
        if (outcome != JSON_MORE && at != rows[i].at)
            fail_msg("%s: at %zu, expected %zu", rows[i].text, at, rows[i].at);
    }
}

static void nesting_has_a_limit(void **state)
{
    (void)state;
    enum { DEPTH = JSON_SCAN_DEPTH_MAX };
    char text[2 * DEPTH + 8];
    memset(text, '[', DEPTH);
    memset(text + DEPTH, ']', DEPTH);
    size_t at;
    assert_int_equal(scan_text(text, 2 * DEPTH, &at, NULL), JSON_GOOD);
    memset(text, '[', DEPTH + 1);
    assert_int_equal(scan_text(text, 2 * DEPTH, &at, NULL), JSON_BAD);
    assert_int_equal(at, DEPTH);
}

// Every beginning of a good text but the whole is MORE.
static void a_text_cut_anywhere_wants_more(void **state)
{
    (void)state;
    static const char text[] =
        "{\"a\": [1, -2.5e-3, {\"b\\u00e9\": null}, \"x\\\\\"], \"c\": {}, \"d\": [[], true]}";
    for (size_t bytes = 0; bytes < sizeof(text) - 1; bytes++) {
        size_t at;
        JsonOutcome outcome = scan_text(text, bytes, &at, NULL);
        if (outcome != JSON_MORE)
            fail_msg("cut at %zu: outcome %d", bytes, outcome);
    }
}

// What jansson refuses for reasons of its own.
static bool refused_for_more_than_grammar(const char *why)
{
    static const char *const parts[] = {"duplicate", "too big", "overflow", "Unicode",    "u0000",
                                        "NUL byte",  "deeper",  "UTF-8",    "decode byte"};
    for (size_t i = 0; i < COUNT_OF(parts); i++)
        if (strstr(why, parts[i]))
            return true;
    return false;
}

static void it_agrees_with_jansson_on_damaged_text(void **state)
{
    (void)state;
    static const char seed[] = " {\"a\":[1,2.5e3,true,null,\"x\\u00e9\\n\",[],{}],\"b\":{\"c\":-0,"
                               "\"d\":[false,{\"e\":[1]}]}} ";
    static const char bytes_used[] = "{}[],:\"0123456789.eE+-truefalsn \\/bux\n";
    int good = 0, bad = 0;
    for (int round = 0; round < 20000; round++) {
        char text[sizeof(seed)];
        uint16_t noise[8];
        memcpy(text, seed, sizeof(seed));
        assert_int_equal(getrandom(noise, sizeof(noise), 0), sizeof(noise));
        for (int i = 0; i < noise[0] % 4; i++)
            text[noise[1 + i] % (sizeof(seed) - 1)] =
                bytes_used[(noise[1 + i] >> 8) % (sizeof(bytes_used) - 1)];
        size_t at, length = noise[7] % 5 ? sizeof(seed) - 1 : noise[6] % (sizeof(seed) - 1);
        if (length > 0)
            text[length - 1] = ' '; // ends a number
        JsonOutcome outcome = scan_text(text, length, &at, NULL);
        bool accepted = outcome == JSON_GOOD && at == length;
        Error error = {0};
        Json *json = json_parse(text, length, &error);
        if (!json && refused_for_more_than_grammar(error.what))
            continue;
        if (accepted != (json != NULL))
            fail_msg("'%.*s': scanner %d at %zu, jansson: %s", (int)length, text, outcome, at,
                     json ? "accepts" : error.what);
        good += json != NULL;
        bad += json == NULL;
        json_destroy(json);
    }
    assert_in_range(good, 1000, 20000);
    assert_in_range(bad, 1000, 20000);
}

static JsonOutcome collect(JsonScan *scan, Slice key, void *context)
{
    const char *first = scan->at;
    JsonOutcome outcome = json_scan_value(scan);
    char *text = context;
    size_t length = strlen(text);
    if (outcome == JSON_GOOD)
        snprintf(text + length, 256 - length, "%.*s=%.*s;", (int)key.bytes, key.at,
                 (int)(scan->at - first), first);
    return outcome;
}

static void members_are_handed_over_as_written(void **state)
{
    (void)state;
    const char *text = " { \"a\" : 1.50 , \"b\\n\":[1, 2],\"c\":{\"d\":1} } rest";
    char seen[256] = "";
    JsonScan scan = {text, text + strlen(text), NULL};
    assert_int_equal(json_scan_members(&scan, collect, seen), JSON_GOOD);
    assert_string_equal(seen, "a=1.50;b\\n=[1, 2];c={\"d\":1};");
    assert_string_equal(scan.at, " rest");
    scan = (JsonScan){text, text + 20, NULL};
    assert_int_equal(json_scan_members(&scan, collect, seen), JSON_MORE);
    const char *wrong = "{\"a\":1,}";
    scan = (JsonScan){wrong, wrong + strlen(wrong), NULL};
    assert_int_equal(json_scan_members(&scan, collect, seen), JSON_BAD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_rule_has_its_place),
        cmocka_unit_test(nesting_has_a_limit),
        cmocka_unit_test(a_text_cut_anywhere_wants_more),
        cmocka_unit_test(it_agrees_with_jansson_on_damaged_text),
        cmocka_unit_test(members_are_handed_over_as_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
