// json_scan.c -- see json_scan.h. One pass, no recursion: open brackets are bits.
#include "results/graph/json_scan.h"

#include <string.h>

static JsonOutcome bad(JsonScan *scan, const char *why)
{
    scan->why = why;
    return JSON_BAD;
}

void json_scan_space(JsonScan *scan)
{
    while (scan->at < scan->end &&
           (*scan->at == ' ' || *scan->at == '\n' || *scan->at == '\t' || *scan->at == '\r'))
        scan->at++;
}

// 1: an ordinary byte of a string; 0: quote, backslash or control character.
static const unsigned char plain[256] = {
#define P4  1, 1, 1, 1
#define P16 P4, P4, P4, P4
    0,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0, 0, 0, 0, 0, 0,
    0,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0, 0, 0, 0, 0, 0, // 00
    1,   1,   0,   1,   P4,  P4,  P4,                                   // 20: not '"'
    P16,                                                                // 30
    P16,                                                                // 40
    P4,  P4,  P4,  0,   1,   1,   1,                                    // 50: not '\\'
    P16, P16, P16, P16, P16, P16, P16, P16, P16, P16,
#undef P16
#undef P4
};

static bool is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static JsonOutcome escape(JsonScan *scan)
{
    if (scan->end - scan->at < 2)
        return JSON_MORE;
    char c = scan->at[1];
    if (c == 'u') {
        for (int i = 2; i < 6; i++) {
            if (scan->end - scan->at <= i)
                return JSON_MORE;
            if (!is_hex(scan->at[i]))
                return bad(scan, "\\u without four hexadecimal digits");
        }
        scan->at += 6;
        return JSON_GOOD;
    }
    if (!c || !strchr("\"\\/bfnrt", c))
        return bad(scan, "an unknown escape in a string");
    scan->at += 2;
    return JSON_GOOD;
}

JsonOutcome json_scan_string(JsonScan *scan, Slice *content)
{
    json_scan_space(scan);
    if (scan->at == scan->end)
        return JSON_MORE;
    if (*scan->at != '"')
        return bad(scan, "expected a string");
    const char *first = ++scan->at;
    for (;;) {
        const char *at = scan->at, *end = scan->end;
        while (at < end && plain[(unsigned char)*at])
            at++;
        scan->at = at;
        if (at == end)
            return JSON_MORE;
        if (*at == '"') {
            *content = (Slice){first, (size_t)(at - first)};
            scan->at++;
            return JSON_GOOD;
        }
        if (*at != '\\')
            return bad(scan, "a control character in a string");
        JsonOutcome outcome = escape(scan);
        if (outcome != JSON_GOOD)
            return outcome;
    }
}

static JsonOutcome word(JsonScan *scan, const char *text)
{
    size_t bytes = strlen(text), left = (size_t)(scan->end - scan->at);
    if (memcmp(scan->at, text, left < bytes ? left : bytes) != 0)
        return bad(scan, "expected a value");
    if (left < bytes)
        return JSON_MORE;
    scan->at += bytes;
    return JSON_GOOD;
}

static bool digits(JsonScan *scan)
{
    const char *first = scan->at;
    while (scan->at < scan->end && *scan->at >= '0' && *scan->at <= '9')
        scan->at++;
    return scan->at > first;
}

static JsonOutcome number(JsonScan *scan)
{
    if (*scan->at == '-')
        scan->at++;
    if (scan->at < scan->end && *scan->at == 'I')
        return word(scan, "Infinity");
    bool zero = scan->at < scan->end && *scan->at == '0';
    const char *first = scan->at;
    bool good = digits(scan);
    if (good && zero && scan->at - first > 1) {
        scan->at = first + 1;
        return bad(scan, "a number must not begin with 0");
    }
    if (good && scan->at < scan->end && *scan->at == '.') {
        scan->at++;
        good = digits(scan);
    }
    if (good && scan->at < scan->end && (*scan->at == 'e' || *scan->at == 'E')) {
        scan->at++;
        if (scan->at < scan->end && (*scan->at == '+' || *scan->at == '-'))
            scan->at++;
        good = digits(scan);
    }
    if (scan->at == scan->end)
        return JSON_MORE;
    return good ? JSON_GOOD : bad(scan, "expected a digit");
}

// A value that opens no bracket.
static JsonOutcome scalar(JsonScan *scan)
{
    Slice ignored;
    switch (*scan->at) {
    case '"':
        return json_scan_string(scan, &ignored);
    case 't':
        return word(scan, "true");
    case 'f':
        return word(scan, "false");
    case 'n':
        return word(scan, "null");
    case 'N':
        return word(scan, "NaN");
    case 'I':
        return word(scan, "Infinity");
    default:
        break;
    }
    if (*scan->at == '-' || (*scan->at >= '0' && *scan->at <= '9'))
        return number(scan);
    return bad(scan, "expected a value");
}

static JsonOutcome key(JsonScan *scan)
{
    Slice ignored;
    JsonOutcome outcome = json_scan_string(scan, &ignored);
    if (outcome != JSON_GOOD)
        return outcome;
    json_scan_space(scan);
    if (scan->at == scan->end)
        return JSON_MORE;
    if (*scan->at != ':')
        return bad(scan, "expected ':'");
    scan->at++;
    return JSON_GOOD;
}

typedef struct Nesting {
    uint64_t is_object[JSON_SCAN_DEPTH_MAX / 64];
    int depth;
} Nesting;

static bool in_object(const Nesting *nesting)
{
    int level = nesting->depth - 1;
    return nesting->is_object[level / 64] >> (level % 64) & 1;
}

// Takes an opening bracket, and the closing one behind it if nothing is within.
static JsonOutcome open_bracket(JsonScan *scan, Nesting *nesting)
{
    bool object = *scan->at == '{';
    if (nesting->depth == JSON_SCAN_DEPTH_MAX)
        return bad(scan, "nested too deeply");
    scan->at++;
    int level = nesting->depth++;
    uint64_t bit = UINT64_C(1) << (level % 64);
    nesting->is_object[level / 64] &= ~bit;
    nesting->is_object[level / 64] |= object ? bit : 0;
    json_scan_space(scan);
    if (scan->at == scan->end)
        return JSON_MORE;
    if (*scan->at == (object ? '}' : ']'))
        return JSON_GOOD; // close_brackets takes it
    return object ? key(scan) : JSON_GOOD;
}

// Behind a value: takes closing brackets and a comma. *more says whether a value must follow.
static JsonOutcome close_brackets(JsonScan *scan, Nesting *nesting, bool *more)
{
    *more = false;
    while (nesting->depth > 0) {
        json_scan_space(scan);
        if (scan->at == scan->end)
            return JSON_MORE;
        bool object = in_object(nesting);
        if (*scan->at == (object ? '}' : ']')) {
            scan->at++;
            nesting->depth--;
            continue;
        }
        if (*scan->at != ',')
            return bad(scan, object ? "expected ',' or '}'" : "expected ',' or ']'");
        scan->at++;
        *more = true;
        return object ? key(scan) : JSON_GOOD;
    }
    return JSON_GOOD;
}

JsonOutcome json_scan_value(JsonScan *scan)
{
    Nesting nesting = {.depth = 0};
    bool more = true, empty;
    while (more) {
        json_scan_space(scan);
        if (scan->at == scan->end)
            return JSON_MORE;
        bool bracket = *scan->at == '{' || *scan->at == '[';
        char closing = *scan->at == '{' ? '}' : ']';
        JsonOutcome outcome = bracket ? open_bracket(scan, &nesting) : scalar(scan);
        if (outcome != JSON_GOOD)
            return outcome;
        // An open bracket is closed at once, or its first value comes now.
        empty = bracket && scan->at < scan->end && *scan->at == closing && scan->at[-1] != ':';
        if (bracket && !empty)
            continue;
        outcome = close_brackets(scan, &nesting, &more);
        if (outcome != JSON_GOOD)
            return outcome;
    }
    return JSON_GOOD;
}

JsonOutcome json_scan_members(JsonScan *scan, JsonVisit *visit, void *context)
{
    json_scan_space(scan);
    if (scan->at == scan->end)
        return JSON_MORE;
    if (*scan->at != '{')
        return bad(scan, "expected '{'");
    scan->at++;
    json_scan_space(scan);
    if (scan->at < scan->end && *scan->at == '}') {
        scan->at++;
        return JSON_GOOD;
    }
    for (;;) {
        Slice name;
        JsonOutcome outcome = json_scan_string(scan, &name);
        if (outcome == JSON_GOOD) {
            json_scan_space(scan);
            if (scan->at == scan->end)
                return JSON_MORE;
            outcome = *scan->at == ':' ? JSON_GOOD : bad(scan, "expected ':'");
        }
        if (outcome != JSON_GOOD)
            return outcome;
        scan->at++;
        json_scan_space(scan);
        outcome = visit(scan, name, context);
        if (outcome != JSON_GOOD)
            return outcome;
        json_scan_space(scan);
        if (scan->at == scan->end)
            return JSON_MORE;
        if (*scan->at != ',' && *scan->at != '}')
            return bad(scan, "expected ',' or '}'");
        if (*scan->at++ == '}')
            return JSON_GOOD;
    }
}
