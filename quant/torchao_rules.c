// torchao_rules.c -- which rule of a map takes a weight, in two libraries.
//
// transformers 5: the parameter's name, then its module's, then the first expression in the map's
// order that matches either, then _default. torchao: the parameter's name, and every expression
// that matches it on top; then the module's name; then every expression that matches the parameter,
// one on top of the other; then the first that matches the module; then _default. Expressions
// match whole names. Sources: torchao 0.18, quantization/quant_api.py; transformers 5.17,
// quantizers/quantizer_torchao.py.
#include "quant/torchao_rules.h"

#include "quant/message.h"
#include "quant/pattern.h"
#include "quant/torchao.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RULES_MAX = 4096, NAME_BYTES = 4096, NO_RULE = -1 };

typedef struct Rule {
    Pattern *pattern; // NULL: _default
    bool skip;        // null: not quantised
    bool known;       // the configuration is one of ours
    Recipe recipe;
} Rule;

typedef struct Rules {
    Rule *rule;
    int count;
    const char *path;
    Error *error;
} Rules;

static bool add_rule(const char *key, const Json *value, void *context)
{
    Rules *rules = context;
    if (rules->count == RULES_MAX)
        return bad_file(rules->error, rules->path, "more than %d rules", RULES_MAX);
    Rule *rule = &rules->rule[rules->count];
    *rule = (Rule){.skip = json_is_null(value)};
    rule->known = !rule->skip && torchao_config_read(value, &rule->recipe);
    if (strcmp(key, "_default") != 0 &&
        !(rule->pattern = pattern_create(key, EXIT_CODE_DATA, rules->error)))
        return error_prefix(rules->error, "%.200s", rules->path);
    rules->count++;
    return true;
}

// One configuration for all Linears is a map with only _default.
static bool read_rules(Rules *rules, const Json *config)
{
    const Json *kinds = json_find(config, "quant_type");
    const Json *chosen = kinds && json_is_object(kinds) ? json_find(kinds, "default") : NULL;
    const Json *data = chosen && json_is_object(chosen) ? json_find(chosen, "_data") : NULL;
    if (!data || !json_is_object(data))
        return true; // an older spelling: nothing to compare
    const Json *map = json_find(data, "fqn_to_config");
    map = map ? map : json_find(data, "module_fqn_to_config");
    Error first = {0}, *error = rules->error;
    rules->rule = calloc(RULES_MAX, sizeof(*rules->rule));
    CHECK(rules->rule, EXIT_CODE_HARDWARE, "free host memory", "no host memory for rules");
    rules->error = &first;
    if (map && json_is_object(map))
        json_each(map, add_rule, rules);
    else
        add_rule("_default", chosen, rules);
    rules->error = error;
    if (first.exit_code)
        *error = first;
    return first.exit_code == 0;
}

// Which rules match a weight.
typedef struct Matches {
    int parameter, module;                         // by name; NO_RULE
    int first, first_of_module, last_of_parameter; // expressions
    int of_parameter;                              // how many
    int otherwise;
} Matches;

static bool matches_name(const Rule *rule, const char *name, bool *matches, Error *error)
{
    return pattern_match(rule->pattern, name, PATTERN_FULL, matches, error);
}

static bool find_matches(const Rules *rules, const char *parameter, Matches *m)
{
    char module[NAME_BYTES];
    const char *dot = strrchr(parameter, '.');
    snprintf(module, sizeof(module), "%.*s", dot ? (int)(dot - parameter) : 0, parameter);
    *m = (Matches){NO_RULE, NO_RULE, NO_RULE, NO_RULE, NO_RULE, 0, NO_RULE};
    for (int i = 0; i < rules->count; i++) {
        const Rule *rule = &rules->rule[i];
        bool one = false, other = false;
        if (!rule->pattern) {
            m->otherwise = i;
            continue;
        }
        if (!matches_name(rule, parameter, &one, rules->error) ||
            !matches_name(rule, module, &other, rules->error))
            return false;
        if (!pattern_is_expression(rule->pattern)) {
            m->parameter = one ? i : m->parameter;
            m->module = other ? i : m->module;
            continue;
        }
        m->first = m->first == NO_RULE && (one || other) ? i : m->first;
        m->first_of_module = m->first_of_module == NO_RULE && other ? i : m->first_of_module;
        m->last_of_parameter = one ? i : m->last_of_parameter;
        m->of_parameter += one;
    }
    return true;
}

static int first_of(int a, int b)
{
    return a != NO_RULE ? a : b;
}

static int by_transformers(const Matches *m)
{
    return first_of(first_of(m->parameter, m->module), first_of(m->first, m->otherwise));
}

static int by_torchao(const Rules *rules, const Matches *m)
{
    bool on_top = m->parameter != NO_RULE && !rules->rule[m->parameter].skip &&
                  m->last_of_parameter != NO_RULE;
    if (m->parameter != NO_RULE)
        return on_top ? m->last_of_parameter : m->parameter;
    return first_of(first_of(m->module, m->last_of_parameter),
                    first_of(m->first_of_module, m->otherwise));
}

static bool says(const Rules *rules, int index, const Weight *weight)
{
    const Rule *rule = index == NO_RULE ? NULL : &rules->rule[index];
    if (!rule || rule->skip)
        return !weight->quantised;
    // Shapes that a recipe does not take stay as they are.
    return !weight->quantised || !rule->known ||
           strcmp(rule->recipe.name, weight->stored.recipe.name) == 0;
}

static bool same_rule(const Rules *rules, int a, int b)
{
    const Rule *x = a == NO_RULE ? NULL : &rules->rule[a],
               *y = b == NO_RULE ? NULL : &rules->rule[b];
    if (!x || !y || x->skip || y->skip)
        return (!x || x->skip) == (!y || y->skip);
    return x == y || (x->known && y->known && strcmp(x->recipe.name, y->recipe.name) == 0);
}

static bool check_weight(const Rules *rules, const Weight *weight, bool *differ)
{
    Matches m;
    if (!find_matches(rules, weight->name, &m))
        return error_prefix(rules->error, "%.200s", rules->path);
    int theirs = by_transformers(&m), own = by_torchao(rules, &m);
    *differ = !same_rule(rules, theirs, own);
    if (says(rules, theirs, weight) || says(rules, own, weight))
        return true;
    const Rule *rule = theirs == NO_RULE ? NULL : &rules->rule[theirs];
    return bad_tensor(rules->error, rules->path, weight->name,
                      "it is quantised as %.60s, but quantization_config says %.60s",
                      weight->stored.recipe.name,
                      !rule || rule->skip ? "that it is not" : rule->recipe.name);
}

bool torchao_rules_check(const Checkpoint *checkpoint, const Json *config, char *note, size_t bytes,
                         Error *error)
{
    char path[CHECKPOINT_PATH_BYTES + 64];
    snprintf(path, sizeof(path), "%s/config.json", checkpoint->folder);
    Rules rules = {.path = path, .error = error};
    bool good = read_rules(&rules, config);
    int64_t differing = 0;
    const char *example = "";
    for (int64_t i = 0; good && rules.count > 0 && i < checkpoint->count; i++) {
        bool differ = false;
        good = check_weight(&rules, &checkpoint->weights[i], &differ);
        differing += differ;
        example = differ ? checkpoint->weights[i].name : example;
    }
    note[0] = '\0';
    if (differing > 0)
        snprintf(note, bytes,
                 "for %lld weights, such as %.100s, torchao takes another rule of config.json than "
                 "transformers does",
                 (long long)differing, example);
    for (int i = 0; i < rules.count; i++)
        if (rules.rule[i].pattern)
            pattern_destroy(rules.rule[i].pattern);
    free(rules.rule);
    return good;
}
