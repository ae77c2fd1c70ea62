// pattern.c -- the only caller of PCRE2.
//
// A match may take match_steps_max steps: real rules on real names take some hundred. What a
// pattern like (a+)+$ would take beyond that is an error, not a hang.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "quant/pattern.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

enum { PATTERN_BYTES_MAX = 4096, MATCH_STEPS_MAX = 200000, MATCH_MEMORY_KIB_MAX = 4096 };

struct Pattern {
    char *text;
    int exit_code;
    pcre2_code *code; // NULL: an exact name
    pcre2_match_data *data;
    pcre2_match_context *context;
};

static bool compile(Pattern *pattern, Error *error)
{
    const char *expression = pattern->text + 3;
    if (strlen(expression) > PATTERN_BYTES_MAX)
        return error_set(error, pattern->exit_code, "write a shorter one",
                         "a pattern of %zu bytes, at most %d are allowed", strlen(expression),
                         PATTERN_BYTES_MAX);
    int code;
    PCRE2_SIZE offset;
    pcre2_compile_context *limits = pcre2_compile_context_create(NULL);
    CHECK(limits, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a pattern");
    pcre2_set_parens_nest_limit(limits, 64);
    pattern->code = pcre2_compile((PCRE2_SPTR)expression, PCRE2_ZERO_TERMINATED,
                                  PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C, &code, &offset, limits);
    pcre2_compile_context_free(limits);
    if (!pattern->code) {
        char why[128] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof(why));
        return error_set(error, pattern->exit_code, "write it as Python's re takes it",
                         "'%.100s' is no regular expression: %s at byte %zu", pattern->text, why,
                         (size_t)offset);
    }
    pattern->data = pcre2_match_data_create(1, NULL);
    pattern->context = pcre2_match_context_create(NULL);
    CHECK(pattern->data && pattern->context, EXIT_CODE_HARDWARE, "free host memory",
          "no host memory for a pattern");
    pcre2_set_match_limit(pattern->context, MATCH_STEPS_MAX);
    pcre2_set_depth_limit(pattern->context, MATCH_STEPS_MAX);
    pcre2_set_heap_limit(pattern->context, MATCH_MEMORY_KIB_MAX);
    return true;
}

Pattern *pattern_create(const char *text, int exit_code, Error *error)
{
    Pattern *pattern = calloc(1, sizeof(*pattern));
    CHECK(pattern, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a pattern");
    pattern->text = strdup(text);
    CHECK(pattern->text, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a pattern");
    pattern->exit_code = exit_code;
    if (strncmp(text, "re:", 3) == 0 && !compile(pattern, error)) {
        pattern_destroy(pattern);
        return NULL;
    }
    return pattern;
}

void pattern_destroy(Pattern *pattern)
{
    if (!pattern)
        return;
    pcre2_match_context_free(pattern->context);
    pcre2_match_data_free(pattern->data);
    pcre2_code_free(pattern->code);
    free(pattern->text);
    free(pattern);
}

const char *pattern_text(const Pattern *pattern)
{
    return pattern->text;
}

bool pattern_is_expression(const Pattern *pattern)
{
    return pattern->code != NULL;
}

bool pattern_match(const Pattern *pattern, const char *name, PatternMode mode, bool *matches,
                   Error *error)
{
    if (!pattern->code) {
        *matches = strcmp(pattern->text, name) == 0;
        return true;
    }
    uint32_t options = PCRE2_ANCHORED | (mode == PATTERN_FULL ? PCRE2_ENDANCHORED : 0);
    int count = pcre2_match(pattern->code, (PCRE2_SPTR)name, strlen(name), 0, options,
                            pattern->data, pattern->context);
    *matches = count >= 0;
    if (count >= 0 || count == PCRE2_ERROR_NOMATCH)
        return true;
    char why[128] = "";
    pcre2_get_error_message(count, (PCRE2_UCHAR *)why, sizeof(why));
    return error_set(error, pattern->exit_code, "write a pattern without nested repetitions",
                     "pattern '%.100s' on the name '%.100s': %s", pattern->text, name, why);
}
