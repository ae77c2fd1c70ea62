// JSON from strangers and JSON for strangers: limits, places of errors, order, exact numbers.
#include "harness/json.h"
#include "tests/capture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/random.h>

#include <cmocka.h>

static Json *parse(const char *text, Error *error)
{
    *error = (Error){0};
    return json_parse(text, strlen(text), error);
}

typedef struct Hostile {
    const char *text;
    const char *expected; // part of the message
} Hostile;

static void hostile_text_is_refused_with_its_place(void **state)
{
    (void)state;
    static const Hostile rows[] = {
        {"", "line 1, column 0, byte 0"},
        {"{\"a\":1,\"a\":2}", "duplicate"},
        {"{\"a\":\n {\"b\":1,\n\"b\":2}}", "line 3"},
        {"{\"a\":1,}", "line 1, column 8, byte 8"},
        {"[1, 2", "line 1"},
        {"[1]\n\n x", "line 3, column 2"},
        {"\"\xff\"", "unable to decode byte 0x"},
        {"\"\xc0\xaf\"", "unable to decode byte 0x"},
        {"\"\xed\xa0\x80\"", "unable to decode byte 0x"},
        {"\"\\ud800\"", "line 1"},
        {"\"\\u0000\"", "line 1"},
        {"\"a\nb\"", "line 1"},
        {"{1:2}", "line 1"},
        {"nul", "line 1"},
        {"NaN", "line 1"},
        {"[Infinity]", "line 1"},
        {"01", "line 1"},
        {"1e999", "line 1"},
        {"123456789012345678901234567890", "too big"},
        {"// comment\n1", "line 1"},
        {"'a'", "line 1"},
        {"\xef\xbb\xbf{}", "line 1"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        Error error;
        Json *json = parse(rows[i].text, &error);
        if (json)
            fail_msg("row %zu was accepted: %s", i, rows[i].text);
        assert_int_equal(error.exit_code, EXIT_CODE_DATA);
        ASSERT_CONTAINS(error.what, rows[i].expected);
        assert_true(error.fix[0] != '\0');
    }
}

static char *nested(int depth, const char *open, const char *inner, const char *close)
{
    size_t open_bytes = strlen(open), close_bytes = strlen(close), inner_bytes = strlen(inner);
    char *text = malloc((size_t)depth * (open_bytes + close_bytes) + inner_bytes + 1), *at = text;
    for (int i = 0; i < depth; i++, at += open_bytes)
        memcpy(at, open, open_bytes);
    memcpy(at, inner, inner_bytes);
    at += inner_bytes;
    for (int i = 0; i < depth; i++, at += close_bytes)
        memcpy(at, close, close_bytes);
    *at = '\0';
    return text;
}

static void nesting_is_limited_to_64(void **state)
{
    (void)state;
    Error error;
    char *text = nested(64, "[", "1", "]");
    Json *json = parse(text, &error);
    assert_non_null(json);
    json_destroy(json);
    free(text);
    text = nested(65, "[", "", "]");
    assert_null(parse(text, &error));
    ASSERT_CONTAINS(error.what, "deeper than 64 levels at line 1, column 65, byte 64");
    free(text);
    text = nested(65, "\n{\"k\":", "{}", "}");
    assert_null(parse(text, &error));
    ASSERT_CONTAINS(error.what, "deeper than 64 levels at line 66, column 1, byte");
    free(text);
    text = nested(200000, "[", "", "]");
    assert_null(parse(text, &error));
    assert_int_equal(error.exit_code, EXIT_CODE_DATA);
    free(text);
    // Brackets in strings do not nest, and an escaped quote does not end the string.
    text = nested(
        1, "[\"\\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"", "",
        "]");
    json = parse(text, &error);
    assert_non_null(json);
    json_destroy(json);
    free(text);
}

static void text_ends_where_bytes_says(void **state)
{
    (void)state;
    Error error = {0};
    Json *json = json_parse("123456", 3, &error);
    assert_int_equal(json_integer_of(json), 123);
    json_destroy(json);
    assert_null(json_parse("[1,2]", 4, &error));
    assert_int_equal(error.exit_code, EXIT_CODE_DATA);
    // A buffer that ends at the last byte: reading on is an error of the sanitizers.
    char *exact = malloc(2);
    memcpy(exact, "\"\\", 2);
    error = (Error){0};
    assert_null(json_parse(exact, 2, &error));
    free(exact);
    error = (Error){0};
    assert_null(json_parse("1\0002", 3, &error)); // a NUL byte is no white space
    assert_int_equal(error.exit_code, EXIT_CODE_DATA);
}

// Any bytes: either a value or an error, never a crash. The seeds are nearly JSON, so that the
// parser gets deep.
static void random_damage_never_crashes(void **state)
{
    (void)state;
    static const char seed[] =
        "{\"a\":[1,2.5e3,true,null,\"x\\u00e9\\n\"],\"b\":{\"c\":\"\xc3\xa9\"}}";
    int accepted = 0;
    for (int round = 0; round < 3000; round++) {
        unsigned char text[sizeof(seed)], noise[6];
        memcpy(text, seed, sizeof(seed));
        assert_int_equal(getrandom(noise, sizeof(noise), 0), sizeof(noise));
        for (int i = 0; i < 1 + noise[0] % 2; i++)
            text[noise[1 + i] % (sizeof(seed) - 1)] = noise[3 + i];
        Error error = {0};
        Json *json = json_parse((const char *)text, sizeof(seed) - 1, &error);
        assert_int_equal(json == NULL, error.exit_code == EXIT_CODE_DATA);
        accepted += json != NULL;
        json_destroy(json);
    }
    assert_in_range(accepted, 1, 2999);
}

static bool collect(const char *key, const Json *value, void *context)
{
    char *text = context;
    char piece[32];
    snprintf(piece, sizeof(piece), "%s=%lld ", key, (long long)json_integer_of(value));
    strcat(text, piece);
    return strcmp(key, "stop") != 0;
}

static void members_are_visited_in_file_order(void **state)
{
    (void)state;
    Error error;
    char text[512] = "";
    Json *json = parse("{\"zeta\":1,\"a\":2,\"m\":3,\"stop\":4,\"never\":5}", &error);
    assert_int_equal(json_count(json), 5);
    json_each(json, collect, text);
    assert_string_equal(text, "zeta=1 a=2 m=3 stop=4 ");
    json_destroy(json);

    Json *made = json_object();
    char expected[4096] = "";
    for (int i = 0; i < 100; i++) {
        char key[16], piece[48];
        snprintf(key, sizeof(key), "k%d", (i * 37) % 100);
        json_set(made, key, json_integer(i));
        snprintf(piece, sizeof(piece), "%s=%d ", key, i);
        strcat(expected, piece);
    }
    char visited[4096] = "";
    json_each(made, collect, visited);
    assert_string_equal(visited, expected);
    json_destroy(made);
    json_each(NULL, collect, visited); // nothing to visit
}

static void values_tell_their_kind(void **state)
{
    (void)state;
    Error error;
    Json *json = parse("{\"o\":{},\"a\":[7],\"t\":\"x\",\"i\":-9223372036854775808,\"r\":0.5,"
                       "\"b\":true,\"n\":null}",
                       &error);
    static const char *const keys[] = {"o", "a", "t", "i", "r", "b", "n", "absent"};
    static const char *const kinds[] = {"o", "a", "t", "iN", "N", "b", "n", ""};
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        const Json *value = json_find(json, keys[i]);
        char kind[16] = "";
        strcat(kind, json_is_object(value) ? "o" : "");
        strcat(kind, json_is_array(value) ? "a" : "");
        strcat(kind, json_is_text(value) ? "t" : "");
        strcat(kind, json_is_integer(value) ? "i" : "");
        strcat(kind, json_is_number(value) ? "N" : "");
        strcat(kind, json_is_boolean(value) ? "b" : "");
        strcat(kind, json_is_null(value) ? "n" : "");
        assert_string_equal(kind, kinds[i]);
    }
    assert_null(json_find(json, "absent"));
    assert_string_equal(json_text_of(json_find(json, "t")), "x");
    assert_null(json_text_of(json_find(json, "i")));
    assert_int_equal(json_integer_of(json_find(json, "i")), INT64_MIN);
    assert_int_equal(json_integer_of(json_find(json, "r")), 0);
    assert_true(json_real_of(json_find(json, "r")) == 0.5);
    assert_true(json_real_of(json_find(json, "i")) == -9223372036854775808.0);
    assert_true(isnan(json_real_of(json_find(json, "t"))));
    assert_true(isnan(json_real_of(NULL)));
    assert_true(json_boolean_of(json_find(json, "b")));
    assert_false(json_boolean_of(json_find(json, "i")));
    assert_int_equal(json_integer_of(json_at(json_find(json, "a"), 0)), 7);
    assert_null(json_at(json_find(json, "a"), 1));
    assert_null(json_find(json_find(json, "a"), "x"));
    assert_int_equal(json_count(json_find(json, "a")), 1);
    assert_int_equal(json_count(NULL), 0);
    json_destroy(json);
}

// Written and read back: the same bits, for random doubles and integers.
static void numbers_read_back_to_the_same_bits(void **state)
{
    (void)state;
    for (int round = 0; round < 2000; round++) {
        uint64_t bits[2];
        double real;
        assert_int_equal(getrandom(bits, sizeof(bits), 0), sizeof(bits));
        memcpy(&real, &bits[0], sizeof(real));
        Json *array = json_append(json_array(), json_real(real));
        json_append(array, json_integer((int64_t)bits[1]));
        char *text = json_print(array, round & 1);
        json_destroy(array);
        Error error;
        Json *back = parse(text, &error);
        assert_non_null(back);
        if (isfinite(real)) {
            double read = json_real_of(json_at(back, 0));
            if (memcmp(&read, &real, sizeof(real)) != 0)
                fail_msg("%.17g came back as %.17g from %s", real, read, text);
        } else {
            assert_true(json_is_null(json_at(back, 0)));
        }
        assert_int_equal(json_integer_of(json_at(back, 1)), (int64_t)bits[1]);
        json_destroy(back);
        free(text);
    }
    static const double odd[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < COUNT_OF(odd); i++) {
        Json *json = json_real(odd[i]);
        assert_true(json_is_null(json));
        json_destroy(json);
    }
}

static void foreign_bytes_become_replacement_characters(void **state)
{
    (void)state;
    static const struct {
        const char *bytes, *repaired;
    } rows[] = {
        {"plain", "plain"},
        {"gr\xc3\xbc\xc3\x9f \xf0\x9f\x9a\x80", "gr\xc3\xbc\xc3\x9f \xf0\x9f\x9a\x80"},
        {"a\xff"
         "b",
         "a\xef\xbf\xbd"
         "b"},
        {"\xc3", "\xef\xbf\xbd"},
        {"\xe2\x82", "\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xc0\x80", "\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xf4\x8f\xbf\xbf", "\xf4\x8f\xbf\xbf"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        Json *json = json_set(json_object(), rows[i].bytes, json_text(rows[i].bytes));
        assert_string_equal(json_text_of(json_find(json, rows[i].repaired)), rows[i].repaired);
        char *text = json_print(json, false);
        Error error;
        Json *back = parse(text, &error);
        assert_string_equal(json_text_of(json_find(back, rows[i].repaired)), rows[i].repaired);
        json_destroy(back);
        free(text);
        json_destroy(json);
    }
}

static void printing_is_one_line_or_indented(void **state)
{
    (void)state;
    Json *json = json_set(json_object(), "b", json_boolean(true));
    json_set(json, "a", json_append(json_append(json_array(), json_null()), json_text("x\n\"")));
    char *line = json_print(json, false);
    assert_string_equal(line, "{\"b\": true, \"a\": [null, \"x\\n\\\"\"]}");
    char *block = json_print(json, true);
    assert_string_equal(block,
                        "{\n  \"b\": true,\n  \"a\": [\n    null,\n    \"x\\n\\\"\"\n  ]\n}");
    free(line);
    free(block);
    json_destroy(json);
    Json *bare = json_text("alone");
    line = json_print(bare, false);
    assert_string_equal(line, "\"alone\"");
    free(line);
    json_destroy(bare);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hostile_text_is_refused_with_its_place),
        cmocka_unit_test(nesting_is_limited_to_64),
        cmocka_unit_test(text_ends_where_bytes_says),
        cmocka_unit_test(random_damage_never_crashes),
        cmocka_unit_test(members_are_visited_in_file_order),
        cmocka_unit_test(values_tell_their_kind),
        cmocka_unit_test(numbers_read_back_to_the_same_bits),
        cmocka_unit_test(foreign_bytes_become_replacement_characters),
        cmocka_unit_test(printing_is_one_line_or_indented),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
