// recipes.c -- `meshwork recipes`: every recipe as a table; with a name, all that its row says.
//
// Everything shown is read from the recipe's row (quant/recipe.h), which is also what casts and
// products run.
#include "harness/command.h"
#include "harness/json.h"
#include "kernels/cast.h"
#include "quant/recipe.h"
#include "results/table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CELL_BYTES = 128 };

typedef struct Params {
    bool json;
} Params;

static const Option options[] = {
    {.name = "json",
     .kind = OPTION_SWITCH,
     .offset = offsetof(Params, json),
     .fallback = "no",
     .doc = "one JSON object instead of the tables"},
    {.name = NULL},
};

// One of a recipe's operands in words.
typedef struct Words {
    char codes[CELL_BYTES], blocks[CELL_BYTES], scales[CELL_BYTES], scale[CELL_BYTES];
    char needs[CELL_BYTES];
    const char *code_layout, *scale_layout;
} Words;

static Words words_of(const QuantRule *rule)
{
    static const char *const code_layouts[] = {[CODES_BYTES] = "one to a byte",
                                               [CODES_PAIRS] = "two to a byte, even column low",
                                               [CODES_TILED] = "tinygemm's words of 8"};
    static const char *const scale_layouts[] = {[SCALES_PLAIN] = "row-major",
                                                [SCALES_SWIZZLED] = "tiles of 128 x 4 (cuBLAS)",
                                                [SCALES_TRANSPOSED] = "transposed",
                                                [SCALES_PAIRED] =
                                                    "transposed, beside their zero points"};
    Words w = {.codes = "own type", .blocks = "-", .scales = "-", .scale = "-", .needs = "-"};
    w.code_layout = w.scale_layout = "-";
    if (rule->method == QUANT_NONE)
        return w;
    snprintf(w.codes, sizeof(w.codes), "%s", quant_code_name(rule->code));
    quant_rule_blocks(rule, w.blocks, sizeof(w.blocks));
    snprintf(w.scales, sizeof(w.scales), "%s%s%s%s", dtype_row(rule->scale_dtype)->name,
             rule->has_zeros ? ", zero point " : "",
             rule->has_zeros ? dtype_row(rule->zero_dtype)->name : "",
             rule->two_level ? ", f32 per matrix" : "");
    quant_rule_scale(rule, w.scale, sizeof(w.scale));
    quant_rule_needs(rule, w.needs, sizeof(w.needs));
    w.code_layout = code_layouts[rule->code_layout];
    w.scale_layout = scale_layouts[rule->scale_layout];
    return w;
}

// Devices for which this build has the recipe's casts.
static const char *devices(void)
{
    return cast_cuda ? "cpu, cuda" : "cpu";
}

static void print_operand(Table *table, const Recipe *recipe, bool weights)
{
    Words w = words_of(weights ? &recipe->weights : &recipe->activations);
    table_cell(table, "%s", weights ? recipe->name : "");
    table_cell(table, "%s", weights ? recipe->source : "");
    table_cell(table, weights ? "weights" : "activations");
    table_cell(table, "%s", w.codes);
    table_cell(table, "%s", w.blocks);
    table_cell(table, "%s", w.scales);
    table_cell(table, "%s", w.scale);
    table_cell(table, "%s", w.needs);
    table_cell(table, "%s", weights ? devices() : "");
}

static void print_recipes(void)
{
    static const char *const columns[] = {"recipe", "source",   "operand",     "codes", "blocks",
                                          "scales", "scale is", "shape needs", "casts", NULL};
    Table *table = table_create(columns);
    for (const Recipe *recipe = recipe_table; recipe->name; recipe++)
        for (int weights = 1; weights >= 0; weights--)
            print_operand(table, recipe, weights);
    table_print(table, stdout);
    table_destroy(table);
}

static void print_options(const Recipe *recipe)
{
    printf("options:  ");
    if (recipe->groups[0]) {
        printf(" group=");
        for (int i = 0; i < RECIPE_GROUPS_MAX && recipe->groups[i]; i++)
            printf("%s%d", i ? "|" : "", recipe->groups[i]);
    }
    if (recipe->has_modes)
        for (int mode = 0; mode < MX_MODES; mode++)
            printf("%s%s", mode ? "|" : " mode=", quant_mode_name((MxMode)mode));
    if (recipe->has_lower_bound)
        printf(" lower_bound=REAL (now %.9g)", (double)recipe->activations.amax_minimum);
    if (!recipe->groups[0] && !recipe->has_modes && !recipe->has_lower_bound)
        printf(" none");
    printf("\n");
}

static void print_recipe(const Recipe *recipe)
{
    static const char *const columns[] = {"", "weights", "activations", NULL};
    char name[RECIPE_NAME_BYTES];
    recipe_format(recipe, name, sizeof(name));
    Words w = words_of(&recipe->weights), a = words_of(&recipe->activations);
    const struct {
        const char *name, *weights, *activations;
    } rows[] = {
        {"codes", w.codes, a.codes},
        {"blocks", w.blocks, a.blocks},
        {"scales", w.scales, a.scales},
        {"scale is", w.scale, a.scale},
        {"shape needs", w.needs, a.needs},
        {"codes lie", w.code_layout, a.code_layout},
        {"scales lie", w.scale_layout, a.scale_layout},
    };
    printf("%s: %s\nnumerics:   %s\nproduct:    %s\n", name, recipe->note, recipe->source,
           recipe->product);
    print_options(recipe);
    printf("casts:      %s\n\n", devices());
    Table *table = table_create(columns);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        table_cell(table, "%s", rows[i].name);
        table_cell(table, "%s", rows[i].weights);
        table_cell(table, "%s", rows[i].activations);
    }
    table_print(table, stdout);
    table_destroy(table);
}

static Json *operand_json(const QuantRule *rule)
{
    if (rule->method == QUANT_NONE)
        return json_null();
    Words w = words_of(rule);
    Json *row = json_set(json_object(), "codes", json_text(w.codes));
    json_set(row, "block_rows", json_integer(rule->block_rows));
    json_set(row, "block_columns", json_integer(rule->block_columns));
    json_set(row, "scale_dtype", json_text(dtype_row(rule->scale_dtype)->name));
    json_set(row, "scale", json_text(w.scale));
    json_set(row, "needs", json_text(w.needs));
    json_set(row, "code_layout", json_text(w.code_layout));
    return json_set(row, "scale_layout", json_text(w.scale_layout));
}

static void print_json(const Recipe *only)
{
    Json *recipes = json_array();
    for (const Recipe *r = recipe_table; r->name; r++) {
        const Recipe *recipe = only ? only : r;
        char name[RECIPE_NAME_BYTES];
        recipe_format(recipe, name, sizeof(name));
        Json *row = json_set(json_object(), "name", json_text(name));
        json_set(row, "source", json_text(recipe->source));
        json_set(row, "weights", operand_json(&recipe->weights));
        json_set(row, "activations", operand_json(&recipe->activations));
        json_set(row, "product", json_text(recipe->product));
        json_set(row, "casts", json_text(devices()));
        json_append(recipes, json_set(row, "note", json_text(recipe->note)));
        if (only)
            break;
    }
    Json *report = json_set(json_object(), "schema_name", json_text("meshwork recipes"));
    json_set(report, "schema_version", json_text("1.0.0"));
    json_set(report, "recipes", recipes);
    char *text = json_print(report, true);
    printf("%s\n", text);
    free(text);
    json_destroy(report);
}

static int run(Run *job, const void *params, const OptionPositionals *words)
{
    Recipe recipe;
    Error error = {0};
    bool named = words->count > 0;
    if (named)
        recipe_parse(words->value[0], &recipe, &error);
    run_agree(job, &error);
    if (((const Params *)params)->json)
        print_json(named ? &recipe : NULL);
    else if (named)
        print_recipe(&recipe);
    else
        print_recipes();
    return EXIT_CODE_GOOD;
}

const Command command_recipes = {
    .name = "recipes",
    .summary = "how weights and activations can be quantised; with a name, all about that recipe",
    .usage = "[NAME[:OPTION=VALUE...]]",
    .notes = "Examples:\n"
             "  meshwork recipes mxfp8:mode=floor\n"
             "rounded: to the values' own type. Names in capitals are compressed-tensors' schemes\n"
             "with its numerics.",
    .options = options,
    .params_bytes = sizeof(Params),
    .positionals_max = 1,
    .spmd = false,
    .run = run,
};
