// config.c -- config.json of the new folder: the source's, with the quantisation that was
// made.
//
// The user's patterns stand as they were given where the reading library gives them the meaning
// they have here (torchao and transformers: one of the two, which differ where expressions
// overlap); otherwise patterns are made from the names: numbers become [0-9]+.
#include "experiments/rewrite/rewrite.h"

#include "quant/torchao.h"
#include "quant/torchao_rules.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATTERN_BYTES = 4096, PATTERNS_MAX = 4096 };

// ---- names ----

static void module_of(const RewriteTensor *tensor, char *text, size_t bytes)
{
    size_t length = strlen(tensor->name);
    bool weight = length > 7 && strcmp(tensor->name + length - 7, ".weight") == 0;
    snprintf(text, bytes, "%.*s", (int)(weight ? length - 7 : length), tensor->name);
}

// "re:model\.layers\.[0-9]+\.mlp": what a name has in common with those of other layers.
static void generalise(const char *name, char *text, size_t bytes)
{
    size_t length = (size_t)snprintf(text, bytes, "re:");
    while (*name && length + 16 < bytes) {
        if (isdigit((unsigned char)*name)) {
            length += (size_t)snprintf(text + length, bytes - length, "[0-9]+");
            name += strspn(name, "0123456789");
            continue;
        }
        bool plain = isalnum((unsigned char)*name) || *name == '_' || *name == '-';
        if (!plain)
            text[length++] = '\\';
        text[length++] = *name++;
    }
    text[length] = '\0';
}

typedef struct Names {
    int count;
    char **text;
} Names;

static void add_name(Names *names, const char *text)
{
    for (int i = 0; i < names->count; i++)
        if (strcmp(names->text[i], text) == 0)
            return;
    names->text = realloc(names->text, (size_t)(names->count + 1) * sizeof(*names->text));
    CHECK(names->text, EXIT_CODE_HARDWARE, "free host memory", "no host memory for names");
    names->text[names->count++] = strdup(text);
}

static void release_names(Names *names)
{
    for (int i = 0; i < names->count; i++)
        free(names->text[i]);
    free(names->text);
    *names = (Names){0};
}

static bool could_be_linear(const RewriteTensor *tensor)
{
    ExpertName name;
    size_t length = strlen(tensor->name);
    return expert_name_read(tensor->name, tensor->tensor.rank, &name) ||
           (tensor->tensor.rank == 2 && length > 7 &&
            strcmp(tensor->name + length - 7, ".weight") == 0);
}

static const char *recipe_text(const RewriteTensor *tensor, char text[RECIPE_NAME_BYTES])
{
    *text = '\0';
    if (rewrite_is_quantised(tensor))
        recipe_format(&tensor->stored.recipe, text, RECIPE_NAME_BYTES);
    return text;
}

// Patterns, made from names, that match the modules with this recipe ("": those left as they are)
// and no other Linear. Where a general pattern would match others too, exact names stand instead.
static void make_patterns(const Rewrite *rewrite, const char *recipe, Names *names)
{
    Names candidates = {0};
    char module[PATTERN_BYTES], pattern[PATTERN_BYTES], text[RECIPE_NAME_BYTES];
    for (int i = 0; i < rewrite->count; i++) {
        const RewriteTensor *tensor = &rewrite->tensor[i];
        if (!could_be_linear(tensor) || strcmp(recipe_text(tensor, text), recipe) != 0)
            continue;
        module_of(tensor, module, sizeof(module));
        bool numbered = strpbrk(module, "0123456789") != NULL;
        if (numbered)
            generalise(module, pattern, sizeof(pattern));
        add_name(&candidates, numbered ? pattern : module);
    }
    bool *wrong = calloc((size_t)candidates.count + 1, sizeof(*wrong));
    CHECK(wrong, EXIT_CODE_HARDWARE, "free host memory", "no host memory for patterns");
    for (int i = 0; i < rewrite->count; i++) {
        const RewriteTensor *tensor = &rewrite->tensor[i];
        if (!could_be_linear(tensor) || strcmp(recipe_text(tensor, text), recipe) == 0)
            continue;
        module_of(tensor, module, sizeof(module));
        generalise(module, pattern, sizeof(pattern));
        for (int k = 0; k < candidates.count; k++)
            wrong[k] = wrong[k] || strcmp(candidates.text[k], pattern) == 0;
    }
    for (int i = 0; i < rewrite->count; i++) {
        const RewriteTensor *tensor = &rewrite->tensor[i];
        if (!could_be_linear(tensor) || strcmp(recipe_text(tensor, text), recipe) != 0)
            continue;
        module_of(tensor, module, sizeof(module));
        generalise(module, pattern, sizeof(pattern));
        bool exact = !strpbrk(module, "0123456789");
        for (int k = 0; k < candidates.count; k++)
            exact = exact || (wrong[k] && strcmp(candidates.text[k], pattern) == 0);
        add_name(names, exact ? module : pattern);
    }
    free(wrong);
    release_names(&candidates);
}

// The recipes in use, by their text.
static void list_recipes(const Rewrite *rewrite, Names *recipes)
{
    char text[RECIPE_NAME_BYTES];
    for (int i = 0; i < rewrite->count; i++)
        if (rewrite_is_quantised(&rewrite->tensor[i]))
            add_name(recipes, recipe_text(&rewrite->tensor[i], text));
}

static const RewriteTensor *first_with(const Rewrite *rewrite, const char *recipe)
{
    char text[RECIPE_NAME_BYTES];
    for (int i = 0; i < rewrite->count; i++)
        if (rewrite_is_quantised(&rewrite->tensor[i]) &&
            strcmp(recipe_text(&rewrite->tensor[i], text), recipe) == 0)
            return &rewrite->tensor[i];
    return NULL;
}

// ---- torchao ----

static bool rules_stand(const Rewrite *rewrite)
{
    return rewrite->request->rules && !rewrite->request->rules_are_default;
}

// pattern -> configuration or null. The order is that of the keys once the file is sorted, which is
// also what torchao sees.
static Json *torchao_map(const Rewrite *rewrite, bool stand)
{
    Json *map = json_object();
    const NameRules *rules = rewrite->request->rules;
    for (int i = 0; stand && i < rules->count; i++) {
        const NameRule *rule = &rules->rule[i];
        const char *key = rule->pattern ? pattern_text(rule->pattern) : "_default";
        Json *config = rule->skip ? NULL : torchao_config(&rule->recipe);
        json_set(map, key, config ? config : json_null());
    }
    if (stand)
        return map;
    Names recipes = {0};
    list_recipes(rewrite, &recipes);
    for (int i = 0; i < recipes.count; i++) {
        Names patterns = {0};
        make_patterns(rewrite, recipes.text[i], &patterns);
        for (int k = 0; k < patterns.count; k++)
            json_set(map, patterns.text[k],
                     torchao_config(&first_with(rewrite, recipes.text[i])->stored.recipe));
        release_names(&patterns);
    }
    release_names(&recipes);
    return map;
}

static Json *torchao_block_of(const Rewrite *rewrite, bool stand)
{
    Json *map = torchao_map(rewrite, stand), *twin = json_sorted(map);
    Json *data = json_set(json_object(), "fqn_to_config", map);
    json_set(data, "module_fqn_to_config", twin);
    Json *type = json_set(json_object(), "_data", data);
    json_set(json_set(type, "_type", json_text("FqnToConfig")), "_version", json_integer(1));
    Json *block = json_set(json_object(), "include_input_output_embeddings", json_boolean(false));
    json_set(block, "modules_to_not_convert", json_null());
    json_set(block, "quant_method", json_text("torchao"));
    json_set(block, "quant_type", json_set(json_object(), "default", type));
    json_set(block, "untie_embedding_weights", json_boolean(false));
    Json *sorted = json_sorted(block);
    json_destroy(block);
    return sorted;
}

// Whether the folder, once written, would be read as it was planned.
static bool reads_as_planned(const Rewrite *rewrite, const Json *block, Error *error)
{
    char note[256];
    Checkpoint written = {.count = rewrite->count};
    snprintf(written.folder, sizeof(written.folder), "%s", rewrite->request->out);
    written.weights = calloc((size_t)rewrite->count + 1, sizeof(*written.weights));
    CHECK(written.weights, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a config");
    for (int i = 0; i < rewrite->count; i++)
        written.weights[i] = (Weight){.name = rewrite->tensor[i].name,
                                      .quantised = rewrite_is_quantised(&rewrite->tensor[i]),
                                      .tensor = rewrite->tensor[i].tensor,
                                      .stored = rewrite->tensor[i].stored};
    bool good = torchao_rules_check(&written, block, note, sizeof(note), error);
    free(written.weights);
    return good;
}

// The map's order is not the rules' and the libraries choose among overlapping expressions each in
// their own way: patterns of names, which do not overlap, say the same to both.
static Json *torchao_block(Rewrite *rewrite, Error *error)
{
    Error misread = {0};
    Json *block = torchao_block_of(rewrite, rules_stand(rewrite));
    if (!rules_stand(rewrite) || reads_as_planned(rewrite, block, &misread))
        return block;
    json_destroy(block);
    rewrite_note(
        rewrite,
        "config.json has patterns made from the weights' names: of the rules, some match "
        "the same weights, and torchao and transformers would both take other ones (%.300s)",
        misread.what);
    block = torchao_block_of(rewrite, false);
    if (reads_as_planned(rewrite, block, error))
        return block;
    json_destroy(block);
    error->exit_code = EXIT_CODE_USAGE;
    return NULL;
}

// ---- compressed-tensors ----

// Whether a pattern, read as a beginning of names, still means exactly the tensors of its rule.
static bool means_the_same(const Rewrite *rewrite, int rule, Error *error)
{
    const Pattern *pattern = rewrite->request->rules->rule[rule].pattern;
    char module[PATTERN_BYTES];
    for (int i = 0; pattern && i < rewrite->count; i++) {
        const RewriteTensor *tensor = &rewrite->tensor[i];
        bool matches = false, ours = tensor->rule == rule;
        if (!could_be_linear(tensor))
            continue;
        module_of(tensor, module, sizeof(module));
        if (!pattern_match(pattern, module, PATTERN_PREFIX, &matches, error))
            return false;
        if (ours != matches ||
            (ours && rewrite_is_quantised(tensor) == rewrite->request->rules->rule[rule].skip))
            return false;
    }
    return pattern != NULL;
}

// The user's patterns of one recipe (NULL: of what is left as it is) if all of them mean the same
// to compressed-tensors.
static bool verbatim(const Rewrite *rewrite, const char *recipe, Names *names)
{
    const NameRules *rules = rewrite->request->rules;
    bool found = false;
    for (int i = 0; rules_stand(rewrite) && i < rules->count; i++) {
        char text[RECIPE_NAME_BYTES] = "";
        Error error = {0};
        if (!rules->rule[i].skip)
            recipe_format(&rules->rule[i].recipe, text, sizeof(text));
        if (rules->rule[i].skip != !recipe || (recipe && strcmp(text, recipe) != 0))
            continue;
        if (!means_the_same(rewrite, i, &error)) {
            release_names(names);
            return false;
        }
        found = true;
        add_name(names, pattern_text(rules->rule[i].pattern));
    }
    return found;
}

static Json *names_json(const Names *names)
{
    Json *array = json_array();
    for (int i = 0; i < names->count; i++)
        json_append(array, json_text(names->text[i]));
    return array;
}

// A module's end is the pattern's end, which compressed-tensors would not ask for by itself.
static void close_patterns(Names *names)
{
    for (int i = 0; i < names->count; i++) {
        if (strncmp(names->text[i], "re:", 3) != 0)
            continue;
        size_t length = strlen(names->text[i]);
        names->text[i] = realloc(names->text[i], length + 2);
        CHECK(names->text[i], EXIT_CODE_HARDWARE, "free host memory", "no host memory for names");
        strcpy(names->text[i] + length, "$");
    }
}

// Whether one of the user's patterns leaves the module as it is already.
static bool is_covered(const Rewrite *rewrite, const char *module)
{
    const NameRules *rules = rewrite->request->rules;
    for (int i = 0; rules_stand(rewrite) && i < rules->count; i++) {
        bool matches = false;
        Error error = {0};
        if (rules->rule[i].skip && rules->rule[i].pattern &&
            pattern_match(rules->rule[i].pattern, module, PATTERN_PREFIX, &matches, &error) &&
            matches)
            return true;
    }
    return false;
}

// The user's words, then patterns for every other Linear that stays as it is.
static Json *ignored(const Rewrite *rewrite)
{
    Names names = {0}, made = {0};
    char module[PATTERN_BYTES], pattern[PATTERN_BYTES], text[RECIPE_NAME_BYTES];
    bool given = verbatim(rewrite, NULL, &names);
    make_patterns(rewrite, "", &made);
    for (int i = 0; i < rewrite->count; i++) {
        const RewriteTensor *tensor = &rewrite->tensor[i];
        if (!could_be_linear(tensor) || recipe_text(tensor, text)[0])
            continue;
        module_of(tensor, module, sizeof(module));
        generalise(module, pattern, sizeof(pattern));
        bool general = false;
        for (int k = 0; k < made.count; k++)
            general = general || strcmp(made.text[k], pattern) == 0;
        if (given && is_covered(rewrite, module))
            continue;
        if (general)
            strcat(pattern, "$"); // compressed-tensors would be content with a beginning
        add_name(&names, general ? pattern : module);
    }
    Json *json = names_json(&names);
    release_names(&names);
    release_names(&made);
    return json;
}

static Json *compressed_block(const Rewrite *rewrite)
{
    Json *groups = json_object();
    Names recipes = {0};
    list_recipes(rewrite, &recipes);
    for (int i = 0; i < recipes.count; i++) {
        const RewriteTensor *tensor = first_with(rewrite, recipes.text[i]);
        Names targets = {0};
        char name[96];
        const char *scheme = scheme_find(tensor->stored.recipe.name)->scheme;
        if (recipes.count == 1) {
            if (!verbatim(rewrite, recipes.text[i], &targets))
                add_name(&targets, "Linear");
        } else if (!verbatim(rewrite, recipes.text[i], &targets)) {
            make_patterns(rewrite, recipes.text[i], &targets);
            close_patterns(&targets);
        }
        snprintf(name, sizeof(name), json_find(groups, scheme) ? "%s_%d" : "%s", scheme, i);
        json_set(groups, name, compressed_group_json(&tensor->stored, names_json(&targets)));
        release_names(&targets);
    }
    release_names(&recipes);
    return compressed_config_json(groups, ignored(rewrite));
}

// ---- all of it ----

static Json *deepseek_block(const Rewrite *rewrite)
{
    Names patterns = {0};
    Json *size = json_append(json_append(json_array(), json_integer(128)), json_integer(128));
    Json *block = json_set(json_object(), "activation_scheme", json_text("dynamic"));
    json_set(block, "fmt", json_text("e4m3"));
    make_patterns(rewrite, "", &patterns);
    Json *plain = json_array();
    for (int i = 0; i < patterns.count; i++)
        if (strncmp(patterns.text[i], "re:", 3) != 0)
            json_append(plain, json_text(patterns.text[i]));
    json_set(block, "modules_to_not_convert", plain);
    json_set(block, "quant_method", json_text("fp8"));
    release_names(&patterns);
    return json_set(block, "weight_block_size", size);
}

typedef struct Copy {
    Json *to;
    bool bf16;
} Copy;

static bool visit_config(const char *key, const Json *value, void *context)
{
    Copy *copy = context;
    bool dtype = strcmp(key, "dtype") == 0 || strcmp(key, "torch_dtype") == 0;
    if (strcmp(key, "quantization_config") == 0)
        return true;
    json_set(copy->to, key, dtype && copy->bf16 ? json_text("bfloat16") : json_sorted(value));
    return true;
}

// torchao's tensors in another of its containers: the patterns that made them stay.
static bool keeps_config(const Rewrite *rewrite)
{
    Layout from = rewrite->source.layout, to = rewrite->request->layout;
    bool torchao = (from == LAYOUT_TORCHAO || from == LAYOUT_TORCHAO_BIN) &&
                   (to == LAYOUT_TORCHAO || to == LAYOUT_TORCHAO_BIN);
    if (!torchao || !rewrite->source.config ||
        !json_find(rewrite->source.config, "quantization_config"))
        return false;
    for (int i = 0; i < rewrite->count; i++)
        if (rewrite->tensor[i].action == REWRITE_QUANTISE ||
            !checkpoint_find(&rewrite->source, rewrite->tensor[i].name))
            return false;
    return true;
}

bool rewrite_make_config(Rewrite *rewrite, Error *error)
{
    if (!rewrite->source.config)
        rewrite_note(rewrite, "the source has no config.json: the new one only says how weights "
                              "are quantised");
    Copy copy = {json_object(), rewrite->rounded > 0 || rewrite->quantised > 0};
    if (rewrite->source.config)
        json_each(rewrite->source.config, visit_config, &copy);
    Layout layout = rewrite->request->layout;
    Json *block = NULL;
    if (rewrite->quantised == 0)
        block = NULL;
    else if (keeps_config(rewrite))
        block = json_sorted(json_find(rewrite->source.config, "quantization_config"));
    else if (layout == LAYOUT_COMPRESSED)
        block = compressed_block(rewrite);
    else if (layout == LAYOUT_DEEPSEEK)
        block = deepseek_block(rewrite);
    else if (layout != LAYOUT_PLAIN)
        block = torchao_block(rewrite, error);
    if (block)
        json_set(copy.to, "quantization_config", block);
    rewrite->config = json_sorted(copy.to);
    json_destroy(copy.to);
    return error->exit_code == 0;
}
