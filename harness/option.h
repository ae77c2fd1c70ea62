// option.h -- command line options as a table of rows: name, kind, where the value goes, default,
// range, one line of help.
//
// GNU long options: --key value, --key=value, switches --name and --no-name, one-letter forms where
// a row has a letter,
// `--` ends options. A typo is answered with the nearest name; nothing is silently ignored. The
// same rows print --help, fill the Params struct, and name the run's settings in the result file.
#pragma once

#include "harness/check.h"

DECLARATIONS_BEGIN

typedef enum OptionKind {
    OPTION_INT,    // int64_t field, range [min, max]
    OPTION_REAL,   // double field, range [min, max]
    OPTION_TEXT,   // const char * field (points into argv or at the fallback; NULL fallback = not
                   // given)
    OPTION_TEXTS,  // OptionTexts field: may be given several times; no fallback
    OPTION_SWITCH, // bool field
    OPTION_CHOICE, // int field: index into choices, "cpu|cuda|auto"
} OptionKind;

enum { OPTION_TEXTS_MAX = 64 };
typedef struct OptionTexts {
    int count;
    const char *value[OPTION_TEXTS_MAX]; // point into argv, in the order given
} OptionTexts;

typedef struct Option {
    const char *name; // without dashes; NULL ends a table
    OptionKind kind;
    size_t offset;        // of the field in the command's Params struct
    const char *fallback; // default, as a user would type it; switches: "yes" or "no"
    double min, max;      // numbers only; min == max means any
    const char *choices;  // OPTION_CHOICE only
    const char *value;    // placeholder in --help, such as "FILE"; NULL = derived from the kind
    const char *doc;      // one line; NULL: for tests, not in --help and never suggested
    char letter;          // 'o' for -o; 0 = none
} Option;

enum { OPTION_POSITIONALS_MAX = 16 };
typedef struct OptionPositionals {
    int count;
    const char *value[OPTION_POSITIONALS_MAX];
} OptionPositionals;

// Local. Sets every field to its fallback, then reads argv[0 .. argc). More than positionals_max
// words that are no options, unknown names, bad or out-of-range values: error with exit code 2 that
// names the option, the value, the range and the nearest name.
bool option_parse(const Option *table, int argc, char *const *argv, int positionals_max,
                  void *params, OptionPositionals *positionals, Error *error);
// Local. Writes the option's present value as a user would type it.
void option_format(const Option *option, const void *params, char *text, size_t bytes);
// Local. Prints the table as the body of --help.
void option_print_help(const Option *table, void *file);
// Local. The candidate (NULL-terminated list) closest to `name` by edit distance, or NULL when none
// is close.
const char *option_nearest(const char *name, const char *const *candidates);

DECLARATIONS_END
