// The styles of SEMANTICS.md section 4, and the text that gives them to parameters.
#include "parallel/style.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness/file.h"
#include "harness/option.h"

enum { PLAN_BYTES_MAX = 1 << 20 };

static const StyleRow rows[STYLES] = {
    [STYLE_REPLICATE] = {"replicate", -1, "R", "R", "every tp rank has all of it"},
    [STYLE_COLWISE] = {"colwise", 0, "R", "S(features)", "rows of the weight over tp"},
    [STYLE_ROWWISE] = {"rowwise", 1, "S(features)", "P", "columns of the weight over tp"},
    [STYLE_VOCAB_EMBEDDING] = {"vocab_embedding", 0, "R", "P", "ids over tp, masked lookup"},
    [STYLE_VOCAB_HEAD] = {"vocab_head", 0, "R", "S(features)", "logits and their loss over tp"},
    [STYLE_SEQUENCE] = {"sequence", -1, "S(tokens)", "S(tokens)",
                        "a norm on a share of the tokens; its gradient is summed over tp"},
    [STYLE_EXPERT] = {"expert", -1, "S(tokens)", "S(tokens)",
                      "experts over --experts_on; inner width over tp where that does not hold it"},
};

const StyleRow *style_row(Style style)
{
    return &rows[style];
}

bool style_find(const char *name, const char *where, Style *style, Error *error)
{
    const char *names[STYLES + 1] = {NULL};
    for (int i = 0; i < STYLES; i++) {
        names[i] = rows[i].name;
        if (strcmp(name, rows[i].name) == 0) {
            *style = (Style)i;
            return true;
        }
    }
    char fix[256] = "the styles are";
    const char *nearest = option_nearest(name, names);
    if (nearest)
        snprintf(fix, sizeof fix, "did you mean '%s'? The styles are", nearest);
    for (int i = 0; i < STYLES; i++)
        snprintf(fix + strlen(fix), sizeof fix - strlen(fix), "%s %s", i ? "," : "", rows[i].name);
    return error_set(error, EXIT_CODE_USAGE, fix, "%s: there is no style '%.60s'", where, name);
}

// Words of one line up to a comment; at most `most` are kept, all are counted.
static int split_line(const char *text, uint64_t bytes, const char **word, int *length, int most)
{
    int count = 0;
    for (uint64_t i = 0; i < bytes && text[i] != '#';) {
        if (text[i] == ' ' || text[i] == '\t' || text[i] == '\r') {
            i++;
            continue;
        }
        uint64_t begin = i;
        while (i < bytes && !strchr(" \t\r#", text[i]))
            i++;
        if (count < most) {
            word[count] = text + begin;
            length[count] = (int)(i - begin);
        }
        count++;
    }
    return count;
}

static bool parse_line(const char *text, uint64_t bytes, const char *where, PlanLine *line,
                       bool *found, Error *error)
{
    const char *word[2];
    int length[2];
    int count = split_line(text, bytes, word, length, 2);
    *found = count > 0;
    if (count == 0)
        return true;
    if (count != 2)
        return error_set(error, EXIT_CODE_USAGE,
                         "write `pattern style`, such as: "
                         "layers.*.mlp.up colwise",
                         "%s: %d word%s, not two", where, count, count == 1 ? "" : "s");
    if (length[0] >= PLAN_PATTERN_BYTES || length[1] >= PLAN_PATTERN_BYTES)
        return error_set(error, EXIT_CODE_USAGE, "shorten it with *",
                         "%s: a word of more than %d characters", where, PLAN_PATTERN_BYTES - 1);
    char style[PLAN_PATTERN_BYTES];
    snprintf(line->pattern, sizeof line->pattern, "%.*s", length[0], word[0]);
    snprintf(style, sizeof style, "%.*s", length[1], word[1]);
    return style_find(style, where, &line->style, error);
}

bool plan_parse(const char *file, const char *text, uint64_t bytes, Plan *plan, Error *error)
{
    *plan = (Plan){.file = file};
    plan->line = calloc(PLAN_LINES_MAX, sizeof(PlanLine));
    CHECK(plan->line != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for a plan");
    int number = 1;
    bool good = true;
    for (uint64_t at = 0; good && at < bytes; number++) {
        const char *end = memchr(text + at, '\n', bytes - at);
        uint64_t length = end ? (uint64_t)(end - (text + at)) : bytes - at;
        char where[320];
        snprintf(where, sizeof where, "%.280s:%d", file, number);
        if (plan->lines == PLAN_LINES_MAX) {
            good = error_set(error, EXIT_CODE_USAGE, "join lines with *",
                             "%s: more than %d lines with styles", where, PLAN_LINES_MAX);
            break;
        }
        bool found;
        PlanLine *line = &plan->line[plan->lines];
        line->line = number;
        good = parse_line(text + at, length, where, line, &found, error);
        plan->lines += found;
        at += length + 1;
    }
    if (good && plan->lines == 0)
        good = error_set(error, EXIT_CODE_USAGE, "write `pattern style`, or drop --plan",
                         "%.280s: the plan has no line", file);
    if (!good)
        plan_destroy(plan);
    return good;
}

bool plan_read(const char *file, Plan *plan, Error *error)
{
    uint64_t bytes;
    char *text = file_read(file, PLAN_BYTES_MAX, &bytes, error);
    if (!text)
        return false;
    bool good = plan_parse(file, text, bytes, plan, error);
    free(text);
    return good;
}

void plan_destroy(Plan *plan)
{
    free(plan->line);
    *plan = (Plan){0};
}

// `length` characters of name against a pattern whose * stands for anything. On a mismatch the last
// star takes one character more.
static bool glob(const char *pattern, const char *name, size_t length)
{
    const char *star = NULL;
    size_t at = 0, mark = 0;
    while (at < length) {
        if (*pattern == '*') {
            star = pattern++;
            mark = at;
        } else if (*pattern == name[at]) {
            pattern++;
            at++;
        } else if (star) {
            pattern = star + 1;
            at = ++mark;
        } else {
            return false;
        }
    }
    while (*pattern == '*')
        pattern++;
    return *pattern == '\0';
}

bool plan_matches(const char *pattern, const char *name)
{
    static const char *const endings[] = {"", ".weight", "_proj.weight", "_proj"};
    static const char beginning[] = "model.";
    const char *begins[2] = {name, NULL};
    if (strncmp(name, beginning, sizeof beginning - 1) == 0)
        begins[1] = name + sizeof beginning - 1;
    for (int b = 0; b < 2 && begins[b]; b++) {
        size_t length = strlen(begins[b]);
        for (size_t e = 0; e < COUNT_OF(endings); e++) {
            size_t ending = strlen(endings[e]);
            if (ending < length && strcmp(begins[b] + length - ending, endings[e]) == 0 &&
                glob(pattern, begins[b], length - ending))
                return true;
        }
    }
    return false;
}

// A name as a pattern would most shortly say it: without what may be left out, numbers as stars.
static void shorten(const char *name, bool with_stars, char *out, size_t bytes)
{
    const char *from = strncmp(name, "model.", 6) == 0 ? name + 6 : name;
    size_t used = 0;
    while (*from && used + 1 < bytes) {
        if (with_stars && *from >= '0' && *from <= '9') {
            from += strspn(from, "0123456789");
            out[used++] = '*';
        } else {
            out[used++] = *from++;
        }
    }
    out[used] = '\0';
    char *end = strstr(out, ".weight");
    if (end)
        *end = '\0';
    end = strstr(out, "_proj");
    if (end && end[5] == '\0')
        *end = '\0';
}

static bool report_no_match(const Plan *plan, const PlanLine *line, const char *const *names,
                            int count, Error *error)
{
    enum { SHORT_BYTES = 64, FORMS = 2 };
    const char **candidates = calloc(FORMS * (size_t)count + 1, sizeof(*candidates));
    char(*form)[SHORT_BYTES] = calloc((size_t)count + 1, SHORT_BYTES);
    CHECK(candidates && form, EXIT_CODE_HARDWARE, "free some memory", "no memory for names");
    for (int i = 0; i < count; i++) {
        shorten(names[i], strchr(line->pattern, '*') != NULL, form[i], SHORT_BYTES);
        candidates[FORMS * i] = form[i];
        candidates[FORMS * i + 1] = names[i];
    }
    const char *nearest = option_nearest(line->pattern, candidates);
    char fix[256];
    snprintf(fix, sizeof fix, "%s '%.100s'%s; --explain lists all names",
             nearest ? "did you mean" : "the names begin with", nearest ? nearest : names[0],
             nearest ? "?" : "");
    free(candidates);
    free(form);
    return error_set(error, EXIT_CODE_USAGE, fix, "%.280s:%d: no parameter matches '%s'",
                     plan->file, line->line, line->pattern);
}

bool plan_apply(const Plan *plan, const char *const *names, int count, int *line_of_name,
                Error *error)
{
    for (int i = 0; i < count; i++)
        line_of_name[i] = -1;
    for (int line = 0; line < plan->lines; line++) {
        bool found = false;
        for (int i = 0; i < count; i++) {
            if (!plan_matches(plan->line[line].pattern, names[i]))
                continue;
            found = true;
            line_of_name[i] = line;
        }
        if (!found)
            return report_no_match(plan, &plan->line[line], names, count, error);
    }
    return true;
}
