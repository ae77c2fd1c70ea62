// pattern.h -- names of modules and parameters as rules spell them: exact, or "re:" and a regular
// expression (PCRE2 behind it, which reads what Python's re reads).
//
// Expressions from strangers are bounded: in length when compiled, in steps and memory when
// matched.
#pragma once

#include "harness/check.h"

typedef struct Pattern Pattern;

typedef enum PatternMode {
    PATTERN_FULL,   // the whole name, Python's re.fullmatch: torchao
    PATTERN_PREFIX, // the name's beginning, Python's re.match: compressed-tensors
} PatternMode;

// Local. NULL and an error with exit_code (2 for what a user typed, 65 for what a file says) if it
// is no expression. Owner: the caller.
Pattern *pattern_create(const char *text, int exit_code, Error *error);
void pattern_destroy(Pattern *pattern);
const char *pattern_text(const Pattern *pattern); // as it was given, "re:" included
bool pattern_is_expression(const Pattern *pattern);
// Local. False and an error if the expression takes too long or the name is not UTF-8.
bool pattern_match(const Pattern *pattern, const char *name, PatternMode mode, bool *matches,
                   Error *error);
