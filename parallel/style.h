// style.h -- how a parameter is divided over tensor and expert ranks: a table of styles, and plans
// that give styles to parameters by name.
//
// A plan is text, one `pattern style` a line:
//
//   plan    = { line "\n" }
//   line    = blank | comment | pattern blanks style [blanks comment]
//   comment = "#" anything
//   pattern = a parameter's name; "*" stands for any characters. "model." at the beginning and
//             ".weight" or "_proj.weight" at the end may be left out: layers.*.mlp.up
//   style   = a name of the table below
//
// The last line that matches a parameter counts; what no line matches is replicated. A pattern that
// matches nothing is an error.
#pragma once

#include "harness/check.h"

typedef enum Style {
    STYLE_REPLICATE,
    STYLE_COLWISE,
    STYLE_ROWWISE,
    STYLE_VOCAB_EMBEDDING,
    STYLE_VOCAB_HEAD,
    STYLE_SEQUENCE,
    STYLE_EXPERT,
    STYLES,
} Style;

typedef struct StyleRow {
    const char *name;
    int dim;            // dimension of the weight that tp divides, -1 = none
    const char *input;  // layout of the tokens that come in: R, S(tokens), S(features)
    const char *output; // and go out; P = a term of the sum over tp
    const char *doc;
} StyleRow;

const StyleRow *style_row(Style style); // Local
// Local. Error 2 with the nearest name; `where` begins the message.
bool style_find(const char *name, const char *where, Style *style, Error *error);

enum { PLAN_PATTERN_BYTES = 96, PLAN_LINES_MAX = 4096 };
typedef struct PlanLine {
    char pattern[PLAN_PATTERN_BYTES];
    Style style;
    int line; // in the file, from 1
} PlanLine;

typedef struct Plan {
    const char *file; // for messages
    int lines;
    PlanLine *line; // owned
} Plan;

// Local. Error 2 names file:line. `bytes` of text; the plan is the caller's to destroy.
bool plan_parse(const char *file, const char *text, uint64_t bytes, Plan *plan, Error *error);
bool plan_read(const char *file, Plan *plan, Error *error); // Local. 66 when there is none
void plan_destroy(Plan *plan);                              // Local
bool plan_matches(const char *pattern, const char *name);   // Local
// Local. line_of_name[i] = index of the line that counts for names[i], -1 = none. Error 2 for a
// pattern that matches none of the names, with the nearest one.
bool plan_apply(const Plan *plan, const char *const *names, int count, int *line_of_name,
                Error *error);
