// json.c -- the only caller of jansson.
//
// Quirks, explained once: jansson exports functions with five of our names, so json.h gives ours
// another name at link level (jansson calls json_real itself while parsing: ours would be called
// instead, and the other way round). Its own depth limit is 2048 and fixed at its build, so nesting
// is measured before parsing. It keeps members in the order in which they were set. It refuses NaN
// and text that is not UTF-8, where we write null and U+FFFD.
#include <jansson.h>

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static json_t *jansson_object(void)
{
    return json_object();
}

static json_t *jansson_array(void)
{
    return json_array();
}

static json_t *jansson_integer(int64_t value)
{
    return json_integer(value);
}

static json_t *jansson_real(double value)
{
    return json_real(value);
}

static json_t *jansson_null(void)
{
    return json_null();
}

static bool jansson_is_text(const json_t *json)
{
    return json_is_string(json);
}

#undef json_boolean
#undef json_is_object
#undef json_is_array
#undef json_is_integer
#undef json_is_number
#undef json_is_boolean
#undef json_is_null
#include "harness/json.h"

enum { DEPTH_MAX = 64 };

// Fails on the first bracket that opens a level too many. Brackets inside strings do not count.
static bool check_depth(const char *text, uint64_t bytes, Error *error)
{
    int depth = 0;
    uint64_t line = 1, line_start = 0;
    bool in_string = false;
    for (uint64_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (c == '\n') {
            line++;
            line_start = i + 1;
        }
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > DEPTH_MAX)
                return error_set(error, EXIT_CODE_DATA, "no file of ours nests that deep",
                                 "JSON is nested deeper than %d levels at line %llu, column %llu, "
                                 "byte %llu",
                                 DEPTH_MAX, (unsigned long long)line,
                                 (unsigned long long)(i - line_start + 1), (unsigned long long)i);
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return true;
}

Json *json_parse(const char *text, uint64_t bytes, Error *error)
{
    if (!check_depth(text, bytes, error))
        return NULL;
    json_error_t cause;
    Json *json = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &cause);
    if (!json)
        error_set(error, EXIT_CODE_DATA, "correct the text there, or write the file again",
                  "no valid JSON at line %d, column %d, byte %d: %s", cause.line, cause.column,
                  cause.position, cause.text);
    return json;
}

void json_destroy(Json *json)
{
    json_decref(json);
}

// Bytes of the UTF-8 character that begins at text, 0 if none does (overlong forms, surrogates,
// beyond 10FFFF).
static int utf8_bytes(const unsigned char *text)
{
    unsigned char first = text[0];
    if (first < 0x80)
        return 1;
    int length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    if (first < 0xC2 || first > 0xF4)
        return 0;
    for (int i = 1; i < length; i++)
        if ((text[i] & 0xC0) != 0x80)
            return 0;
    unsigned char second = text[1];
    bool bad = (first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
               (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F);
    return bad ? 0 : length;
}

// A copy in which every byte that belongs to no character became U+FFFD; the caller frees it.
static char *repaired(const char *text)
{
    static const char replacement[] = "\xEF\xBF\xBD";
    char *copy = malloc(3 * strlen(text) + 1);
    CHECK(copy, EXIT_CODE_HARDWARE, "free memory", "no memory for %zu bytes of text", strlen(text));
    char *out = copy;
    while (*text) {
        int length = utf8_bytes((const unsigned char *)text);
        memcpy(out, length ? text : replacement, length ? (size_t)length : 3);
        out += length ? length : 3;
        text += length ? length : 1;
    }
    *out = '\0';
    return copy;
}

static Json *made(Json *json)
{
    CHECK(json, EXIT_CODE_HARDWARE, "free memory", "no memory for a JSON value");
    return json;
}

Json *json_object(void)
{
    return made(jansson_object());
}

Json *json_array(void)
{
    return made(jansson_array());
}

Json *json_text(const char *value)
{
    char *text = repaired(value);
    Json *json = json_string(text);
    free(text);
    return made(json);
}

Json *json_integer(int64_t value)
{
    return made(jansson_integer(value));
}

Json *json_real(double value)
{
    return isfinite(value) ? made(jansson_real(value)) : jansson_null();
}

Json *json_boolean(bool value)
{
    return value ? json_true() : json_false();
}

Json *json_null(void)
{
    return jansson_null();
}

Json *json_set(Json *object, const char *key, Json *value)
{
    char *name = repaired(key);
    CHECK_RULE(json_object_set_new(object, name, value) == 0);
    free(name);
    return object;
}

Json *json_append(Json *array, Json *value)
{
    CHECK_RULE(json_array_append_new(array, value) == 0);
    return array;
}

bool json_is_object(const Json *json)
{
    return json && json_typeof(json) == JSON_OBJECT;
}

bool json_is_array(const Json *json)
{
    return json && json_typeof(json) == JSON_ARRAY;
}

bool json_is_text(const Json *json)
{
    return jansson_is_text(json);
}

bool json_is_integer(const Json *json)
{
    return json && json_typeof(json) == JSON_INTEGER;
}

bool json_is_number(const Json *json)
{
    return json_is_integer(json) || (json && json_typeof(json) == JSON_REAL);
}

bool json_is_boolean(const Json *json)
{
    return json && (json_typeof(json) == JSON_TRUE || json_typeof(json) == JSON_FALSE);
}

bool json_is_null(const Json *json)
{
    return json && json_typeof(json) == JSON_NULL;
}

const Json *json_find(const Json *object, const char *key)
{
    return json_object_get(object, key);
}

const char *json_text_of(const Json *json)
{
    return json_string_value(json);
}

int64_t json_integer_of(const Json *json)
{
    return json_integer_value(json);
}

double json_real_of(const Json *json)
{
    return json_is_number(json) ? json_number_value(json) : NAN;
}

bool json_boolean_of(const Json *json)
{
    return json && json_typeof(json) == JSON_TRUE;
}

uint64_t json_count(const Json *array_or_object)
{
    return json_is_array(array_or_object) ? json_array_size(array_or_object)
                                          : json_object_size(array_or_object);
}

const Json *json_at(const Json *array, uint64_t index)
{
    return json_array_get(array, index);
}

// jansson's iterators take a pointer to a mutable object, though they only read it.
void json_each(const Json *object, bool (*visit)(const char *key, const Json *value, void *context),
               void *context)
{
    json_t *members = (json_t *)(uintptr_t)object;
    for (void *at = json_object_iter(members); at; at = json_object_iter_next(members, at))
        if (!visit(json_object_iter_key(at), json_object_iter_value(at), context))
            return;
}

typedef struct Keys {
    const char **key;
    size_t count;
} Keys;

static bool visit_key(const char *key, const Json *value, void *context)
{
    (void)value;
    Keys *keys = context;
    keys->key[keys->count++] = key;
    return true;
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

Json *json_sorted(const Json *json)
{
    if (json_is_array(json)) {
        Json *array = json_array();
        for (uint64_t i = 0; i < json_count(json); i++)
            json_append(array, json_sorted(json_at(json, i)));
        return array;
    }
    if (json_is_object(json)) {
        Keys keys = {calloc(json_count(json) + 1, sizeof(*keys.key)), 0};
        CHECK(keys.key, EXIT_CODE_HARDWARE, "free host memory", "no host memory for %llu keys",
              (unsigned long long)json_count(json));
        json_each(json, visit_key, &keys);
        qsort(keys.key, keys.count, sizeof(*keys.key), compare_keys);
        Json *object = json_object();
        for (size_t i = 0; i < keys.count; i++)
            json_set(object, keys.key[i], json_sorted(json_find(json, keys.key[i])));
        free(keys.key);
        return object;
    }
    if (json_is_text(json))
        return json_text(json_text_of(json));
    if (json_is_integer(json))
        return json_integer(json_integer_of(json));
    if (json_is_boolean(json))
        return json_boolean(json_boolean_of(json));
    return json_is_number(json) ? json_real(json_real_of(json)) : json_null();
}

char *json_print(const Json *json, bool indented)
{
    size_t layout = indented ? JSON_INDENT(2) : 0;
    char *text = json_dumps(json, layout | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    CHECK(text, EXIT_CODE_HARDWARE, "free memory", "no memory to print a JSON value");
    return text;
}
