// option.c -- the option table at work: parse, format, help, and the nearest name for a typo.
//
// Grammar: GNU long options (getopt_long(3)), with three of its habits left out because they hide
// mistakes: no abbreviations, no option given twice, and no value that looks like an option
// (`--mesh --exact` is a forgotten value; text that begins with dashes is written `--key=--text`).
#include "harness/option.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES_MAX = 64, CHOICES_MAX = 16, CHOICE_BYTES = 32, OPTIONS_MAX = 256 };

#define LIST_HINT "--help lists all options"

// Edit distance with transpositions (optimal string alignment), '-' and '_' being the same letter.
static int edit_distance(const char *a, const char *b)
{
    int row[3][NAME_BYTES_MAX + 1];
    int a_length = (int)strlen(a), b_length = (int)strlen(b);
    if (a_length > NAME_BYTES_MAX || b_length > NAME_BYTES_MAX)
        return NAME_BYTES_MAX;
    for (int j = 0; j <= b_length; j++)
        row[0][j] = j;
    for (int i = 1; i <= a_length; i++) {
        int *now = row[i % 3], *before = row[(i + 2) % 3], *before_that = row[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= b_length; j++) {
            char x = a[i - 1] == '-' ? '_' : (char)tolower((unsigned char)a[i - 1]);
            char y = b[j - 1] == '-' ? '_' : (char)tolower((unsigned char)b[j - 1]);
            int best = before[j - 1] + (x != y);
            best = before[j] + 1 < best ? before[j] + 1 : best;
            best = now[j - 1] + 1 < best ? now[j - 1] + 1 : best;
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && before_that[j - 2] + 1 < best)
                best = before_that[j - 2] + 1;
            now[j] = best;
        }
    }
    return row[a_length % 3][b_length];
}

// How far off a name is; above its limit it is no typo but another word. A beginning ("tok" of
// "tokens") counts as near.
static int typo_distance(const char *name, const char *candidate)
{
    enum { FAR = 1000 };
    int length = (int)strlen(name);
    int distance = edit_distance(name, candidate);
    if (distance <= 1 + length / 4 && distance < length)
        return distance;
    bool begins = length >= 2 && strncmp(name, candidate, (size_t)length) == 0;
    return begins ? NAME_BYTES_MAX + (int)strlen(candidate) : FAR;
}

const char *option_nearest(const char *name, const char *const *candidates)
{
    const char *nearest = NULL;
    int best = NAME_BYTES_MAX * 3;
    for (; *candidates; candidates++) {
        int distance = typo_distance(name, *candidates);
        if (distance < best) {
            best = distance;
            nearest = *candidates;
        }
    }
    return nearest;
}

static int split_choices(const char *choices, char name[CHOICES_MAX][CHOICE_BYTES])
{
    int count = 0;
    while (count < CHOICES_MAX) {
        size_t length = strcspn(choices, "|");
        snprintf(name[count++], CHOICE_BYTES, "%.*s", (int)length, choices);
        if (choices[length] == '\0')
            break;
        choices += length + 1;
    }
    return count;
}

static bool read_int(const char *text, int64_t *value)
{
    const char *digits = text + (*text == '-' || *text == '+');
    if (*digits == '\0' || strspn(digits, "0123456789") != strlen(digits))
        return false;
    errno = 0;
    long long number = strtoll(text, NULL, 10);
    *value = number;
    return errno == 0;
}

static bool read_real(const char *text, double *value)
{
    if (*text == '\0' || strspn(text, "0123456789+-.eE") != strlen(text))
        return false;
    char *end;
    *value = strtod(text, &end);
    return *end == '\0' && isfinite(*value);
}

static void describe_range(const Option *option, char *text, size_t bytes)
{
    if (option->min == option->max)
        snprintf(text, bytes, "%s", option->kind == OPTION_INT ? "a whole number" : "a number");
    else
        snprintf(text, bytes, "%s from %.15g to %.15g",
                 option->kind == OPTION_INT ? "a whole number" : "a number", option->min,
                 option->max);
}

static bool in_range(const Option *option, double value)
{
    return option->min == option->max || (value >= option->min && value <= option->max);
}

static bool set_choice(const Option *option, const char *text, int *field, Error *error)
{
    char name[CHOICES_MAX][CHOICE_BYTES];
    const char *candidates[CHOICES_MAX + 1] = {NULL};
    int count = split_choices(option->choices, name);
    for (int i = 0; i < count; i++) {
        if (strcmp(name[i], text) == 0) {
            *field = i;
            return true;
        }
        candidates[i] = name[i];
    }
    const char *nearest = option_nearest(text, candidates);
    char fix[256];
    if (nearest)
        snprintf(fix, sizeof(fix), "did you mean %s? the choices are %s", nearest, option->choices);
    else
        snprintf(fix, sizeof(fix), "the choices are %s", option->choices);
    return error_set(error, EXIT_CODE_USAGE, fix, "--%s cannot be '%.100s'", option->name, text);
}

// Reads `text` into the option's field. ranged false: a default, which may lie outside ("0 =
// automatic").
static bool set_value(const Option *option, const char *text, bool ranged, void *params,
                      Error *error)
{
    void *field = (char *)params + option->offset;
    bool good = true;
    if (option->kind == OPTION_TEXT) {
        *(const char **)field = text;
    } else if (option->kind == OPTION_TEXTS) {
        OptionTexts *texts = field;
        if (texts->count == OPTION_TEXTS_MAX)
            return error_set(error, EXIT_CODE_USAGE, "give fewer, or put them into one",
                             "--%s is given more than %d times", option->name, OPTION_TEXTS_MAX);
        texts->value[texts->count++] = text;
    } else if (option->kind == OPTION_SWITCH) {
        *(bool *)field = strcmp(text, "yes") == 0;
        good = *(bool *)field || strcmp(text, "no") == 0;
    } else if (option->kind == OPTION_CHOICE) {
        return set_choice(option, text, field, error);
    } else if (option->kind == OPTION_INT) {
        int64_t value = 0;
        good = read_int(text, &value) && (!ranged || in_range(option, (double)value));
        *(int64_t *)field = value;
    } else {
        double value = 0;
        good = read_real(text, &value) && (!ranged || in_range(option, value));
        *(double *)field = value;
    }
    if (good)
        return true;
    char range[96], fix[160];
    describe_range(option, range, sizeof(range));
    snprintf(fix, sizeof(fix), "give %s", range);
    return error_set(error, EXIT_CODE_USAGE, fix, "--%s cannot be '%.100s': it takes %s",
                     option->name, text, range);
}

static void set_fallbacks(const Option *table, void *params)
{
    for (const Option *option = table; option->name; option++) {
        Error error = {0};
        const char *text = option->fallback;
        if (option->kind == OPTION_TEXTS) {
            ((OptionTexts *)(void *)((char *)params + option->offset))->count = 0;
            continue;
        }
        if (!text && option->kind != OPTION_TEXT)
            text = option->kind == OPTION_SWITCH ? "no" : "0";
        bool good = text || option->kind == OPTION_TEXT;
        if (!text)
            *(const char **)((char *)params + option->offset) = NULL;
        else
            good = set_value(option, text, false, params, &error);
        CHECK(good, EXIT_CODE_INTERNAL, "correct the option table",
              "the default of --%s is wrong: %s", option->name, error.what);
    }
}

// Where the parser stands: the words still to come, and which rows were given already.
typedef struct Parser {
    const Option *table;
    int argc, next;
    char *const *argv;
    void *params;
    Error *error;
    bool given[OPTIONS_MAX];
} Parser;

static const Option *find_name(const Option *table, const char *name, size_t length)
{
    for (const Option *option = table; option->name; option++)
        if (strlen(option->name) == length && strncmp(option->name, name, length) == 0)
            return option;
    return NULL;
}

static const Option *find_letter(const Option *table, char letter)
{
    for (const Option *option = table; option->name; option++)
        if (option->letter && option->letter == letter)
            return option;
    return NULL;
}

static bool unknown_option(const Parser *parser, const char *name)
{
    char spelled[NAME_BYTES_MAX + 1], fix[256];
    snprintf(fix, sizeof(fix), LIST_HINT);
    int best = NAME_BYTES_MAX * 3;
    for (const Option *option = parser->table; option->name; option++) {
        if (!option->doc)
            continue;
        for (int negated = 0; negated <= (option->kind == OPTION_SWITCH); negated++) {
            snprintf(spelled, sizeof(spelled), "%s%s", negated ? "no-" : "", option->name);
            int distance = typo_distance(name, spelled);
            if (distance < best) {
                best = distance;
                snprintf(fix, sizeof(fix), "did you mean --%s? " LIST_HINT, spelled);
            }
        }
    }
    return error_set(parser->error, EXIT_CODE_USAGE, fix, "there is no option --%.100s", name);
}

static bool mark_given(Parser *parser, const Option *option)
{
    size_t index = (size_t)(option - parser->table);
    CHECK_RULE(index < OPTIONS_MAX);
    if (parser->given[index] && option->kind != OPTION_TEXTS)
        return error_set(parser->error, EXIT_CODE_USAGE, "give it once", "--%s is given twice",
                         option->name);
    parser->given[index] = true;
    return true;
}

// The value of an option: what follows '=' or stands glued to its letter, else the next word.
static bool take_value(Parser *parser, const Option *option, const char *attached)
{
    const char *text = attached;
    if (!text && parser->next < parser->argc) {
        text = parser->argv[parser->next];
        if (strncmp(text, "--", 2) == 0)
            text = NULL;
        else
            parser->next++;
    }
    if (!text) {
        char fix[256];
        snprintf(fix, sizeof(fix), "write --%s=VALUE", option->name);
        return error_set(parser->error, EXIT_CODE_USAGE, fix, "--%s needs a value, %s",
                         option->name,
                         parser->next < parser->argc ? "but another option follows"
                                                     : "but the command line ends");
    }
    return set_value(option, text, true, parser->params, parser->error);
}

static bool take_long(Parser *parser, const char *word)
{
    const char *name = word + 2;
    size_t length = strcspn(name, "=");
    const char *attached = name[length] == '=' ? name + length + 1 : NULL;
    const Option *option = find_name(parser->table, name, length);
    bool negated = false;
    if (!option && length > 3 && strncmp(name, "no-", 3) == 0) {
        option = find_name(parser->table, name + 3, length - 3);
        negated = option != NULL;
    }
    if (!option) {
        char spelled[NAME_BYTES_MAX * 2];
        snprintf(spelled, sizeof(spelled), "%.*s", (int)(length < 100 ? length : 100), name);
        return unknown_option(parser, spelled);
    }
    if (negated && option->kind != OPTION_SWITCH) {
        char fix[256];
        snprintf(fix, sizeof(fix), "leave it out for its default (%s), or write --%s=VALUE",
                 option->fallback ? option->fallback : "none", option->name);
        return error_set(parser->error, EXIT_CODE_USAGE, fix,
                         "--no-%s: --%s is no switch but takes a value", option->name,
                         option->name);
    }
    if (!mark_given(parser, option))
        return false;
    if (option->kind != OPTION_SWITCH)
        return take_value(parser, option, attached);
    if (attached) {
        char fix[256];
        snprintf(fix, sizeof(fix), "write --%s or --no-%s", option->name, option->name);
        return error_set(parser->error, EXIT_CODE_USAGE, fix,
                         "--%s is a switch and takes no value ('%.100s')", option->name, attached);
    }
    return set_value(option, negated ? "no" : "yes", true, parser->params, parser->error);
}

// "-o FILE", "-oFILE", and switches together: "-fj".
static bool take_letters(Parser *parser, const char *word)
{
    for (const char *c = word + 1; *c; c++) {
        const Option *option = find_letter(parser->table, *c);
        if (!option)
            return error_set(parser->error, EXIT_CODE_USAGE,
                             "long options have two dashes; " LIST_HINT,
                             "there is no option -%c (in '%.100s')", *c, word);
        if (!mark_given(parser, option))
            return false;
        if (option->kind != OPTION_SWITCH) {
            if (c[1] == '=') {
                char fix[256];
                snprintf(fix, sizeof(fix), "write -%c VALUE or --%s=VALUE", *c, option->name);
                return error_set(parser->error, EXIT_CODE_USAGE, fix,
                                 "'%.100s': '=' goes with the long name only", word);
            }
            return take_value(parser, option, c[1] ? c + 1 : NULL);
        }
        if (!set_value(option, "yes", true, parser->params, parser->error))
            return false;
    }
    return true;
}

static bool take_positional(Parser *parser, const char *word, int positionals_max,
                            OptionPositionals *positionals)
{
    if (positionals->count >= positionals_max || positionals->count >= OPTION_POSITIONALS_MAX)
        return error_set(parser->error, EXIT_CODE_USAGE,
                         "values of options follow their name; " LIST_HINT,
                         "unexpected word '%.100s' (at most %d %s no option)", word,
                         positionals_max, positionals_max == 1 ? "word is" : "words are");
    positionals->value[positionals->count++] = word;
    return true;
}

bool option_parse(const Option *table, int argc, char *const *argv, int positionals_max,
                  void *params, OptionPositionals *positionals, Error *error)
{
    Parser parser = {.table = table, .argc = argc, .argv = argv, .params = params, .error = error};
    *positionals = (OptionPositionals){.count = 0};
    set_fallbacks(table, params);
    bool options_ended = false;
    while (parser.next < argc) {
        const char *word = argv[parser.next++];
        bool good;
        if (options_ended || word[0] != '-' || word[1] == '\0') {
            good = take_positional(&parser, word, positionals_max, positionals);
        } else if (strcmp(word, "--") == 0) {
            options_ended = good = true;
        } else {
            good = word[1] == '-' ? take_long(&parser, word) : take_letters(&parser, word);
        }
        if (!good)
            return false;
    }
    return true;
}

void option_format(const Option *option, const void *params, char *text, size_t bytes)
{
    const void *field = (const char *)params + option->offset;
    if (option->kind == OPTION_INT) {
        snprintf(text, bytes, "%" PRId64, *(const int64_t *)field);
    } else if (option->kind == OPTION_REAL) {
        double value = *(const double *)field;
        for (int digits = 6; digits <= 17; digits++) { // the shortest text that reads back the same
            snprintf(text, bytes, "%.*g", digits, value);
            if (strtod(text, NULL) == value)
                break;
        }
    } else if (option->kind == OPTION_TEXT) {
        const char *value = *(const char *const *)field;
        snprintf(text, bytes, "%s", value ? value : "");
    } else if (option->kind == OPTION_TEXTS) {
        const OptionTexts *texts = field;
        size_t length = 0;
        *text = '\0';
        for (int i = 0; i < texts->count && length < bytes; i++)
            length += (size_t)snprintf(text + length, bytes - length, "%s%s", i ? " " : "",
                                       texts->value[i]);
    } else if (option->kind == OPTION_SWITCH) {
        snprintf(text, bytes, "%s", *(const bool *)field ? "yes" : "no");
    } else {
        char name[CHOICES_MAX][CHOICE_BYTES];
        int count = split_choices(option->choices, name);
        int index = *(const int *)field;
        snprintf(text, bytes, "%s", index >= 0 && index < count ? name[index] : "");
    }
}

// Words go to the next line whole; no line ends in a space.
static void print_wrapped(FILE *file, const char *text, int indent, int width)
{
    int column = indent;
    for (text += strspn(text, " "); *text; text += strspn(text, " ")) {
        int length = (int)strcspn(text, " ");
        bool first = column == indent;
        if (!first && column + 1 + length > width) {
            fprintf(file, "\n%*s", indent, "");
            column = indent;
            first = true;
        }
        fprintf(file, "%s%.*s", first ? "" : " ", length, text);
        column += length + !first;
        text += length;
    }
    fputc('\n', file);
}

static void spell(const Option *option, char *text, size_t bytes)
{
    char letter[8] = "    ";
    if (option->letter)
        snprintf(letter, sizeof(letter), "-%c, ", option->letter);
    const char *value = option->value;
    if (!value)
        value = option->kind == OPTION_CHOICE                                 ? option->choices
                : option->kind == OPTION_TEXT || option->kind == OPTION_TEXTS ? "TEXT"
                : option->kind == OPTION_INT                                  ? "N"
                                                                              : "X";
    if (option->kind == OPTION_SWITCH)
        snprintf(text, bytes, "%s--[no-]%s", letter, option->name);
    else
        snprintf(text, bytes, "%s--%s %s", letter, option->name, value);
}

void option_print_help(const Option *table, void *file)
{
    enum { SPELLED_MAX = 30, WIDTH = 100 };
    char spelled[160], range[96], doc[1024];
    int widest = 0;
    for (const Option *option = table; option->name; option++) {
        if (!option->doc)
            continue;
        spell(option, spelled, sizeof(spelled));
        int length = (int)strlen(spelled);
        widest = length > widest && length <= SPELLED_MAX ? length : widest;
    }
    int indent = 2 + widest + 2;
    for (const Option *option = table; option->name; option++) {
        if (!option->doc)
            continue;
        spell(option, spelled, sizeof(spelled));
        bool number = option->kind == OPTION_INT || option->kind == OPTION_REAL;
        range[0] = '\0';
        if (number && option->min != option->max)
            snprintf(range, sizeof(range), "; %.15g to %.15g", option->min, option->max);
        if (option->fallback && option->fallback[0])
            snprintf(doc, sizeof(doc), "%s (default %s%s)", option->doc, option->fallback, range);
        else
            snprintf(doc, sizeof(doc), "%s%s%s%s", option->doc, range[0] ? " (" : "",
                     range[0] ? range + 2 : "", range[0] ? ")" : "");
        fprintf(file, "  %-*s", widest, spelled);
        if ((int)strlen(spelled) > widest)
            fprintf(file, "\n%*s", indent, "");
        else
            fprintf(file, "  ");
        print_wrapped(file, doc, indent, WIDTH);
    }
}
