// recipe.c -- reading a recipe's name and options, and saying in words what a rule does.
#include "quant/recipe.h"

#include "harness/option.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const mode_names[MX_MODES + 1] = {
    [MX_FLOOR] = "floor", [MX_CEIL] = "ceil", [MX_EVEN] = "even", [MX_RCEIL] = "rceil", NULL};

const char *quant_mode_name(MxMode mode)
{
    return mode_names[mode];
}

const char *quant_code_name(QuantCode code)
{
    static const char *const names[QUANT_CODES] = {
        [CODE_E4M3] = "e4m3fn", [CODE_E2M1] = "e2m1", [CODE_INT8] = "int8", [CODE_INT4] = "int4"};
    return names[code];
}

static const Recipe *find(const char *name, size_t bytes)
{
    for (const Recipe *row = recipe_table; row->name; row++)
        if (strlen(row->name) == bytes && memcmp(row->name, name, bytes) == 0)
            return row;
    return NULL;
}

static bool no_such_recipe(const char *name, Error *error)
{
    const char *candidates[RECIPES_MAX + 1] = {NULL};
    for (int i = 0; recipe_table[i].name && i < RECIPES_MAX; i++)
        candidates[i] = recipe_table[i].name;
    const char *nearest = option_nearest(name, candidates);
    char fix[128];
    snprintf(fix, sizeof(fix), "%s%s%s`meshwork recipes` lists all recipes",
             nearest ? "did you mean " : "", nearest ? nearest : "", nearest ? "? " : "");
    return error_set(error, EXIT_CODE_USAGE, fix, "there is no recipe '%.60s'", name);
}

// One option of a recipe: its name, whether a recipe has it, how a value is taken over and written.
typedef struct RecipeOption {
    const char *name, *values;
    bool (*has)(const Recipe *recipe);
    bool (*set)(Recipe *recipe, const char *value);
    bool (*differs)(const Recipe *recipe, const Recipe *row);
    void (*print)(const Recipe *recipe, char *text, size_t bytes);
} RecipeOption;

static bool has_group(const Recipe *recipe)
{
    return recipe->groups[0] > 0;
}

static bool set_group(Recipe *recipe, const char *value)
{
    char *end;
    long group = strtol(value, &end, 10);
    for (int i = 0; i < RECIPE_GROUPS_MAX && end != value && *end == '\0'; i++)
        if (recipe->groups[i] == group && group > 0) {
            recipe->weights.block_columns = (int)group;
            return true;
        }
    return false;
}

static bool group_differs(const Recipe *recipe, const Recipe *row)
{
    return recipe->weights.block_columns != row->weights.block_columns;
}

static void print_group(const Recipe *recipe, char *text, size_t bytes)
{
    snprintf(text, bytes, "%d", recipe->weights.block_columns);
}

static bool has_mode(const Recipe *recipe)
{
    return recipe->has_modes;
}

static bool set_mode(Recipe *recipe, const char *value)
{
    for (int mode = 0; mode < MX_MODES; mode++)
        if (strcmp(mode_names[mode], value) == 0) {
            recipe->weights.mx_mode = recipe->activations.mx_mode = (MxMode)mode;
            return true;
        }
    return false;
}

static bool mode_differs(const Recipe *recipe, const Recipe *row)
{
    return recipe->weights.mx_mode != row->weights.mx_mode;
}

static void print_mode(const Recipe *recipe, char *text, size_t bytes)
{
    snprintf(text, bytes, "%s", quant_mode_name(recipe->weights.mx_mode));
}

static bool has_lower_bound(const Recipe *recipe)
{
    return recipe->has_lower_bound;
}

static bool set_lower_bound(Recipe *recipe, const char *value)
{
    char *end;
    float bound = strtof(value, &end);
    bool good = end != value && *end == '\0' && bound >= 0 && bound <= 448.0f;
    recipe->activations.amax_minimum = good ? bound : 0;
    return good;
}

static bool lower_bound_differs(const Recipe *recipe, const Recipe *row)
{
    return recipe->activations.amax_minimum != row->activations.amax_minimum;
}

static void print_lower_bound(const Recipe *recipe, char *text, size_t bytes)
{
    snprintf(text, bytes, "%.9g", (double)recipe->activations.amax_minimum);
}

static const RecipeOption recipe_options[] = {
    {"group", "32, 64, 128 or 256", has_group, set_group, group_differs, print_group},
    {"mode", "floor, ceil, even or rceil", has_mode, set_mode, mode_differs, print_mode},
    {"lower_bound", "0 .. 448, such as 1e-12", has_lower_bound, set_lower_bound,
     lower_bound_differs, print_lower_bound},
};

static bool no_such_option(const char *word, const Recipe *recipe, Error *error)
{
    char fix[128] = "this recipe has no options";
    size_t length = 0;
    for (size_t i = 0; i < COUNT_OF(recipe_options); i++)
        if (recipe_options[i].has(recipe))
            length +=
                (size_t)snprintf(fix + length, sizeof(fix) - length,
                                 "%s%s=", length ? ", " : "options: ", recipe_options[i].name);
    return error_set(error, EXIT_CODE_USAGE, fix, "recipe %s has no option '%.60s'", recipe->name,
                     word);
}

// "name=value", at most up to the next ':'.
static bool parse_option(const char *word, size_t bytes, Recipe *recipe, Error *error)
{
    char text[RECIPE_NAME_BYTES];
    if (bytes >= sizeof(text))
        bytes = sizeof(text) - 1;
    memcpy(text, word, bytes);
    text[bytes] = '\0';
    char *value = strchr(text, '=');
    if (value)
        *value++ = '\0';
    for (size_t i = 0; i < COUNT_OF(recipe_options); i++) {
        const RecipeOption *option = &recipe_options[i];
        if (strcmp(option->name, text) != 0 || !option->has(recipe))
            continue;
        if (value && option->set(recipe, value))
            return true;
        return error_set(error, EXIT_CODE_USAGE, option->values, "recipe %s: %s=%.40s is no value",
                         recipe->name, text, value ? value : "");
    }
    return no_such_option(text, recipe, error);
}

bool recipe_parse(const char *text, Recipe *recipe, Error *error)
{
    size_t bytes = strcspn(text, ":");
    const Recipe *row = find(text, bytes);
    if (!row) {
        char name[RECIPE_NAME_BYTES];
        snprintf(name, sizeof(name), "%.*s", (int)(bytes < 64 ? bytes : 64), text);
        return no_such_recipe(name, error);
    }
    *recipe = *row;
    for (text += bytes; *text == ':'; text += bytes) {
        text++;
        bytes = strcspn(text, ":");
        if (!parse_option(text, bytes, recipe, error))
            return false;
    }
    return true;
}

bool recipe_next(const char **list, Recipe *recipe, Error *error)
{
    if (**list == '\0')
        return false;
    char name[RECIPE_NAME_BYTES];
    size_t length = strcspn(*list, ",");
    snprintf(name, sizeof(name), "%.*s", (int)length, *list);
    *list += length + ((*list)[length] == ',');
    return recipe_parse(name, recipe, error);
}

void recipe_format(const Recipe *recipe, char *text, size_t bytes)
{
    const Recipe *row = find(recipe->name, strlen(recipe->name));
    size_t length = (size_t)snprintf(text, bytes, "%s", recipe->name);
    for (size_t i = 0; i < COUNT_OF(recipe_options) && length < bytes; i++) {
        const RecipeOption *option = &recipe_options[i];
        if (!option->has(recipe) || !option->differs(recipe, row))
            continue;
        char value[32];
        option->print(recipe, value, sizeof(value));
        length += (size_t)snprintf(text + length, bytes - length, ":%s=%s", option->name, value);
    }
}

// ---- in words ----

static void name_extent(int extent, const char *whole, char *text, size_t bytes)
{
    if (extent > 0)
        snprintf(text, bytes, "%d", extent);
    else
        snprintf(text, bytes, "%s", whole);
}

void quant_rule_blocks(const QuantRule *rule, char *text, size_t bytes)
{
    char rows[16], columns[16];
    name_extent(rule->block_rows, "all", rows, sizeof(rows));
    name_extent(rule->block_columns, "all", columns, sizeof(columns));
    bool whole = rule->block_rows == 0 && rule->block_columns == 0;
    snprintf(text, bytes, whole ? "whole tensor" : "%s x %s", rows, columns);
}

static void describe_symmetric(const QuantRule *rule, char *text, size_t bytes)
{
    static const char *const quotients[] = {
        [QUOTIENT_DIVIDE] = "x / scale",
        [QUOTIENT_RECIPROCAL] = "x * (1 / scale)",
        [QUOTIENT_DIVIDE_INPUT] = "x / scale rounded",
        [QUOTIENT_RECIPROCAL_INPUT] = "x * (1 / scale), both rounded",
    };
    bool in_f32 = rule->in_f32 || rule->scale_in_f32;
    char amax[48] = "amax", most[32] = "";
    if (rule->amax_minimum > 0)
        snprintf(amax, sizeof(amax), "max(amax, %.4g)", (double)rule->amax_minimum);
    if (rule->scale_minimum > 0)
        snprintf(most, sizeof(most), ", at least %.4g", (double)rule->scale_minimum);
    if (rule->scale_of_zero > 0)
        snprintf(most, sizeof(most), ", 0 becomes %.4g", (double)rule->scale_of_zero);
    snprintf(text, bytes, "%s / %g%s%s; %s", amax, (double)rule->divisor,
             in_f32 ? " in f32" : " rounded", most, quotients[rule->quotient]);
}

void quant_rule_scale(const QuantRule *rule, char *text, size_t bytes)
{
    static const char *const methods[QUANT_METHODS] = {
        [QUANT_NONE] = "-",
        [QUANT_RANGE] = "max(max - min, 1e-6) / 15 in f32; offset min + 8 scale",
        [QUANT_TILE] = "(max - min) / 15 rounded; offset min + 8 scale rounded",
        [QUANT_ZERO_POINT] = "(max - min) / 255 rounded; whole zero point",
        [QUANT_ZERO_POINT_CT] = "(max - min) / 15 rounded; whole zero point; x / scale rounded",
        [QUANT_NVFP4] = "amax / 6, in e4m3; x * (1 / scale)",
        [QUANT_NVFP4_CT] = "amax / 6 rounded, times 2688 / tensor's amax, in e4m3; x / scale",
    };
    if (rule->method == QUANT_SYMMETRIC)
        describe_symmetric(rule, text, bytes);
    else if (rule->method == QUANT_MX && rule->ct)
        snprintf(text, bytes, "2^n: amax rounded to one mantissa bit, its exponent");
    else if (rule->method == QUANT_MX)
        snprintf(text, bytes, "2^n, %s", quant_mode_name(rule->mx_mode));
    else if (rule->method == QUANT_NVFP4 && rule->two_level)
        snprintf(text, bytes, "amax / 6 / T, in e4m3; T = tensor's amax / 2688; x * (1 / scale)");
    else
        snprintf(text, bytes, "%s", methods[rule->method]);
}

void quant_rule_needs(const QuantRule *rule, char *text, size_t bytes)
{
    size_t length = 0;
    *text = '\0';
    if (rule->rows_multiple > 1)
        length += (size_t)snprintf(text, bytes, "rows by %d", rule->rows_multiple);
    int columns = rule->columns_multiple;
    if (rule->blocks_exact && rule->block_columns > columns)
        columns = rule->block_columns;
    if (rule->blocks_exact && rule->block_rows > rule->rows_multiple)
        length = (size_t)snprintf(text, bytes, "rows by %d", rule->block_rows);
    if (columns > 1)
        snprintf(text + length, bytes - length, "%scolumns by %d", length ? ", " : "", columns);
    if (*text == '\0')
        snprintf(text, bytes, "any shape");
}
