// Placements as text and back. The grammar is in placement.h; a word is one letter and what that
// letter takes, so that the whole list is read without look-ahead.
#include "parallel/placement.h"

#include <stdio.h>
#include <string.h>

#include "harness/option.h"
#include "harness/tensor.h"

static const char *const op_names[] = {
    [COMM_SUM] = "sum", [COMM_AVG] = "avg", [COMM_PRODUCT] = "product",
    [COMM_MAX] = "max", [COMM_MIN] = "min", NULL};
static const char *const grammar_fix =
    "write R, S0 (or S1, ...), S0x4 (strided), P or P(sum|avg|product|max|min) for each axis";

Placement placement_replicate(void)
{
    return (Placement){.kind = PLACEMENT_REPLICATE};
}

Placement placement_shard(int dim)
{
    return placement_strided(dim, 1);
}

Placement placement_strided(int dim, int split_factor)
{
    CHECK_RULE(dim >= 0 && split_factor >= 1);
    return (Placement){.kind = PLACEMENT_SHARD, .dim = dim, .split_factor = split_factor};
}

Placement placement_partial(CommOp op)
{
    return (Placement){.kind = PLACEMENT_PARTIAL, .op = op};
}

bool placement_equal(const Placement *a, const Placement *b)
{
    if (a->kind != b->kind)
        return false;
    if (a->kind == PLACEMENT_SHARD)
        return a->dim == b->dim && a->split_factor == b->split_factor;
    return a->kind == PLACEMENT_REPLICATE || a->op == b->op;
}

const char *placement_op_name(CommOp op)
{
    return op_names[op];
}

const char *placement_format(const Placement *placement, char *text, size_t bytes)
{
    if (placement->kind == PLACEMENT_REPLICATE)
        snprintf(text, bytes, "R");
    else if (placement->kind == PLACEMENT_PARTIAL)
        snprintf(text, bytes, "P(%s)", op_names[placement->op]);
    else if (placement->split_factor == 1)
        snprintf(text, bytes, "S%d", placement->dim);
    else
        snprintf(text, bytes, "S%dx%d", placement->dim, placement->split_factor);
    return text;
}

// A number of 1 to 6 digits at *text, which moves past it; -1 if there is none.
static int read_number(const char **text)
{
    int value = 0, digits = 0;
    for (; **text >= '0' && **text <= '9' && digits < 6; (*text)++, digits++)
        value = value * 10 + (**text - '0');
    return digits == 0 || (**text >= '0' && **text <= '9') ? -1 : value;
}

static bool parse_shard(const char *word, const char *what, Placement *placement, Error *error)
{
    const char *rest = word + 1;
    int dim = read_number(&rest), split_factor = 1;
    if (dim >= TENSOR_RANK_MAX)
        return error_set(error, EXIT_CODE_USAGE, "dimensions are counted from 0",
                         "%s: '%s' shards dimension %d, but tensors have at most %d dimensions",
                         what, word, dim, TENSOR_RANK_MAX);
    if (dim >= 0 && *rest == 'x') {
        rest++;
        split_factor = read_number(&rest);
    }
    if (dim < 0 || split_factor < 1 || *rest)
        return error_set(error, EXIT_CODE_USAGE, grammar_fix,
                         "%s: '%s' is no shard: S, the dimension, and for a strided shard x and "
                         "the pieces (1 .. %d)",
                         what, word, PLACEMENT_SPLIT_MAX);
    *placement = placement_strided(dim, split_factor);
    return true;
}

static bool parse_partial(const char *word, const char *what, Placement *placement, Error *error)
{
    size_t length = strlen(word);
    if (length == 1) {
        *placement = placement_partial(COMM_SUM);
        return true;
    }
    if (word[1] != '(' || word[length - 1] != ')' || length < 3)
        return error_set(error, EXIT_CODE_USAGE, grammar_fix,
                         "%s: '%s' is no partial: P, or P and the operation in parentheses", what,
                         word);
    char name[64], fix[256] = "the operations are sum, avg, product, max, min";
    snprintf(name, sizeof(name), "%.*s", (int)(length - 3), word + 2);
    for (int op = 0; op_names[op]; op++)
        if (strcmp(op_names[op], name) == 0) {
            *placement = placement_partial((CommOp)op);
            return true;
        }
    const char *nearest = option_nearest(name, op_names);
    if (nearest)
        snprintf(fix, sizeof(fix),
                 "did you mean 'P(%s)'? The operations are sum, avg, product, max, min", nearest);
    return error_set(error, EXIT_CODE_USAGE, fix, "%s: '%s': there is no operation '%s'", what,
                     word, name);
}

static bool parse_word(const char *word, const char *what, Placement *placement, Error *error)
{
    static const char *const words[] = {"R", "S0", "P", NULL};
    if (strcmp(word, "R") == 0) {
        *placement = placement_replicate();
        return true;
    }
    if (word[0] == 'S')
        return parse_shard(word, what, placement, error);
    if (word[0] == 'P')
        return parse_partial(word, what, placement, error);
    // A small letter, or a whole name such as "Shard": the first letter says what was meant.
    char capital[3] = {0}, fix[256];
    capital[0] = word[0] >= 'a' && word[0] <= 'z' ? (char)(word[0] - 'a' + 'A') : word[0];
    for (int i = 0; words[i]; i++)
        if (words[i][0] == capital[0]) {
            snprintf(fix, sizeof(fix), "did you mean '%s'? %s", words[i], grammar_fix);
            return error_set(error, EXIT_CODE_USAGE, fix, "%s: '%s' is no placement", what, word);
        }
    return error_set(error, EXIT_CODE_USAGE, grammar_fix, "%s: '%s' is no placement", what, word);
}

bool placement_parse(const char *text, const char *what, const Mesh *mesh, Placement *placements,
                     Error *error)
{
    int words = 1;
    for (const char *c = text; *c; c++)
        words += *c == ',';
    if (words != mesh->axes)
        return error_set(error, EXIT_CODE_USAGE,
                         "give one placement per mesh axis, from left to right",
                         "%s: '%.100s' has %d placement%s, but the mesh has %d ax%s", what, text,
                         words, words == 1 ? "" : "s", mesh->axes, mesh->axes == 1 ? "is" : "es");
    for (int axis = 0; axis < mesh->axes; axis++) {
        size_t length = strcspn(text, ",");
        char word[64], place[128];
        snprintf(word, sizeof(word), "%.*s", (int)(length < 63 ? length : 63), text);
        snprintf(place, sizeof(place), "%.60s, axis %s", what, mesh->name[axis]);
        if (!parse_word(word, place, &placements[axis], error))
            return false;
        text += length + (text[length] == ',');
    }
    return true;
}
