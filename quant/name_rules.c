// name_rules.c -- rules on names, and the two spellings of experts.
//
// A rule speaks of separate experts or of the fused array. It speaks of the array if it matches the
// array's name and none of the names that its experts would have: so "re:.*experts.*up_proj.*"
// means up projections, also where a file calls the array "experts.gate_up_proj".
#include "quant/name_rules.h"

#include "quant/message.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const part_names[] = {
    [EXPERT_GATE] = "gate_proj",
    [EXPERT_UP] = "up_proj",
    [EXPERT_DOWN] = "down_proj",
    [EXPERT_GATE_UP] = "gate_up_proj",
};

// ---- rules ----

bool name_rules_add(NameRules *rules, const char *pattern, const Recipe *recipe, int exit_code,
                    Error *error)
{
    if (rules->count == NAME_RULES_MAX)
        return error_set(error, exit_code, "write fewer, with expressions (re:...)",
                         "more than %d rules", NAME_RULES_MAX);
    Pattern *compiled = NULL;
    if (strcmp(pattern, "_default") != 0 && !(compiled = pattern_create(pattern, exit_code, error)))
        return false;
    rules->rule = realloc(rules->rule, (size_t)(rules->count + 1) * sizeof(*rules->rule));
    CHECK(rules->rule, EXIT_CODE_HARDWARE, "free host memory", "no host memory for rules");
    NameRule *rule = &rules->rule[rules->count++];
    *rule = (NameRule){.pattern = compiled, .skip = recipe == NULL};
    if (recipe)
        rule->recipe = *recipe;
    return true;
}

typedef struct Reader {
    NameRules *rules;
    const char *path;
    Error *error;
} Reader;

static bool visit_rule(const char *key, const Json *value, void *context)
{
    Reader *reader = context;
    Recipe recipe;
    char shown[QUOTED_BYTES];
    const char *text = json_text_of(value);
    bool skip =
        json_is_null(value) || (text && (strcmp(text, "skip") == 0 || strcmp(text, "none") == 0));
    Error cause = {0};
    if (!skip && !text)
        return bad_file(reader->error, reader->path, "rule \"%s\" is neither a recipe nor null",
                        quoted_name(key, shown));
    if (!skip && !recipe_parse(text, &recipe, &cause))
        return error_set(reader->error, EXIT_CODE_DATA, cause.fix, "%.100s: rule \"%s\": %.200s",
                         reader->path, quoted_name(key, shown), cause.what);
    return name_rules_add(reader->rules, key, skip ? NULL : &recipe, EXIT_CODE_DATA, reader->error);
}

bool name_rules_parse(NameRules *rules, const char *path, const char *text, uint64_t bytes,
                      Error *error)
{
    Error first = {0}, cause = {0};
    Json *json = json_parse(text, bytes, &cause);
    if (!json || !json_is_object(json))
        bad_file(&first, path, "it is no JSON object of rules: %.200s", cause.what);
    else
        json_each(json, visit_rule, &(Reader){rules, path, &first});
    if (json)
        json_destroy(json);
    if (first.exit_code && error->exit_code == 0)
        *error = first;
    return first.exit_code == 0;
}

bool name_rules_read(NameRules *rules, const char *path, Error *error)
{
    enum { RULES_BYTES_MAX = 16 << 20 };
    uint64_t bytes = 0;
    char *text = file_read(path, RULES_BYTES_MAX, &bytes, error);
    bool good = text && name_rules_parse(rules, path, text, bytes, error);
    free(text);
    return good;
}

void name_rules_release(NameRules *rules)
{
    for (int i = 0; i < rules->count; i++)
        pattern_destroy(rules->rule[i].pattern);
    free(rules->rule);
    *rules = (NameRules){.count = 0};
}

// ---- names of experts ----

static bool take_part(const char *text, size_t bytes, ExpertPart *part)
{
    for (size_t i = 0; i < COUNT_OF(part_names); i++)
        if (strlen(part_names[i]) == bytes && memcmp(part_names[i], text, bytes) == 0) {
            *part = (ExpertPart)i;
            return true;
        }
    return false;
}

bool expert_name_read(const char *parameter, int rank, ExpertName *name)
{
    static const char *const word = ".experts.";
    const char *found = NULL;
    for (const char *at = parameter; (at = strstr(at, word)); at++)
        found = at;
    if (!found || strlen(parameter) >= EXPERT_NAME_BYTES - 64)
        return false;
    snprintf(name->prefix, sizeof(name->prefix), "%.*s", (int)(found - parameter + 8), parameter);
    const char *rest = found + strlen(word);
    size_t digits = strspn(rest, "0123456789"), length;
    if (digits == 0) { // one array, which has no module of its own
        name->expert = -1;
        return rank == 3 && take_part(rest, strlen(rest), &name->part) &&
               name->part != EXPERT_GATE && name->part != EXPERT_UP;
    }
    if (digits > 9 || (digits > 1 && *rest == '0') || rest[digits] != '.' || rank != 2)
        return false;
    name->expert = strtol(rest, NULL, 10);
    rest += digits + 1;
    length = strcspn(rest, ".");
    return strcmp(rest + length, ".weight") == 0 && take_part(rest, length, &name->part) &&
           name->part != EXPERT_GATE_UP;
}

void expert_name_write(const ExpertName *name, char *text, size_t bytes)
{
    if (name->expert < 0)
        snprintf(text, bytes, "%s.%s", name->prefix, part_names[name->part]);
    else
        snprintf(text, bytes, "%s.%lld.%s.weight", name->prefix, (long long)name->expert,
                 part_names[name->part]);
}

static int parts_of(const ExpertName *array)
{
    return array->part == EXPERT_GATE_UP ? 2 : 1;
}

static const Weight *find_part(const ExpertName *array, const Checkpoint *checkpoint,
                               ExpertPart part, const char *tail)
{
    char text[EXPERT_NAME_BYTES + 64];
    snprintf(text, sizeof(text), "%s.%s%s", array->prefix, part_names[part], tail);
    return checkpoint_find(checkpoint, text);
}

// Upright: [experts, 2 inner, hidden] and [experts, hidden, inner]. No shapes fit both.
bool expert_array_is_turned(const ExpertName *array, const Checkpoint *checkpoint)
{
    const Weight *gate_up = find_part(array, checkpoint, EXPERT_GATE_UP, "");
    const Weight *down = find_part(array, checkpoint, EXPERT_DOWN, "");
    if (array->expert >= 0 || !gate_up || !down || gate_up->tensor.rank != 3 ||
        down->tensor.rank != 3)
        return false;
    const int64_t *g = gate_up->tensor.shape, *d = down->tensor.shape;
    return g[2] > 0 && g[1] == d[2] && g[2] % 2 == 0 && g[2] / 2 == d[1];
}

bool expert_array_has_bias(const ExpertName *array, const Checkpoint *checkpoint)
{
    return find_part(array, checkpoint, EXPERT_GATE_UP, "_bias") != NULL;
}

bool expert_matrices(const ExpertName *array, const Weight *weight, const Checkpoint *checkpoint,
                     int64_t *count, Error *error)
{
    bool turned = expert_array_is_turned(array, checkpoint);
    int64_t experts = weight->tensor.shape[0], rows = weight->tensor.shape[turned ? 2 : 1];
    *count = experts * parts_of(array);
    return (rows % parts_of(array) == 0 && experts <= EXPERTS_MAX) ||
           bad_tensor(error, checkpoint->folder, weight->name,
                      "%lld experts of %lld rows are no experts' gate and up", (long long)experts,
                      (long long)rows);
}

void expert_matrix(const ExpertName *array, const Weight *weight, int64_t index, bool turned,
                   ExpertMatrix *matrix)
{
    int parts = parts_of(array);
    ExpertName name = *array;
    name.expert = index / parts;
    if (parts == 2)
        name.part = index % 2 ? EXPERT_UP : EXPERT_GATE;
    expert_name_write(&name, matrix->name, sizeof(matrix->name));
    matrix->turned = turned;
    matrix->rows = weight->tensor.shape[turned ? 2 : 1] / parts;
    matrix->columns = weight->tensor.shape[turned ? 1 : 2];
    matrix->first = index * matrix->rows;
}

// ---- matching ----

// The parameter's name, and its module's.
static bool matches_name(const Pattern *pattern, const char *parameter, bool *matches, Error *error)
{
    char module[EXPERT_NAME_BYTES * 2];
    const char *dot = strrchr(parameter, '.');
    if (!pattern_match(pattern, parameter, PATTERN_FULL, matches, error))
        return false;
    if (*matches || !dot || strcmp(dot, ".weight") != 0 || strlen(parameter) >= sizeof(module))
        return true;
    snprintf(module, sizeof(module), "%.*s", (int)(dot - parameter), parameter);
    return pattern_match(pattern, module, PATTERN_FULL, matches, error);
}

static bool matches_expert(const Pattern *pattern, ExpertName name, ExpertPart part, bool *matches,
                           Error *error)
{
    char text[EXPERT_NAME_BYTES + 64];
    name.part = part;
    expert_name_write(&name, text, sizeof(text));
    return matches_name(pattern, text, matches, error);
}

// One expert's gate, up or down, by either spelling.
static bool matches_either(const Pattern *pattern, const ExpertName *name, bool *matches,
                           Error *error)
{
    if (!matches_expert(pattern, *name, name->part, matches, error))
        return false;
    if (*matches)
        return true;
    bool down = name->part == EXPERT_DOWN, other = false;
    ExpertPart twin = name->part == EXPERT_GATE ? EXPERT_UP : EXPERT_GATE;
    if (!down && !matches_expert(pattern, *name, twin, &other, error))
        return false;
    if (other)
        return true; // it speaks of the other half
    ExpertName fused = *name;
    fused.expert = -1;
    return matches_expert(pattern, fused, down ? EXPERT_DOWN : EXPERT_GATE_UP, matches, error);
}

static bool find_for(const NameRules *rules, const char *parameter, const ExpertName *name,
                     int *index, Error *error)
{
    *index = -1;
    for (int i = 0; i < rules->count; i++) {
        const Pattern *pattern = rules->rule[i].pattern;
        bool matches = false;
        if (!pattern) { // _default: only if nothing else matches
            continue;
        } else if (name ? !matches_either(pattern, name, &matches, error)
                        : !matches_name(pattern, parameter, &matches, error)) {
            return false;
        }
        if (matches) {
            *index = i;
            return true;
        }
    }
    for (int i = 0; i < rules->count; i++)
        if (!rules->rule[i].pattern)
            *index = i;
    return true;
}

static const char *rule_name(const NameRules *rules, int index)
{
    if (index < 0)
        return "no rule";
    return rules->rule[index].pattern ? pattern_text(rules->rule[index].pattern) : "_default";
}

// Rules that say the same of a weight, whichever they are.
static bool same_rule(const NameRules *rules, int a, int b)
{
    if (a == b)
        return true;
    bool a_skips = a < 0 || rules->rule[a].skip, b_skips = b < 0 || rules->rule[b].skip;
    if (a_skips || b_skips)
        return a_skips && b_skips;
    char x[RECIPE_NAME_BYTES], y[RECIPE_NAME_BYTES];
    recipe_format(&rules->rule[a].recipe, x, sizeof(x));
    recipe_format(&rules->rule[b].recipe, y, sizeof(y));
    return strcmp(x, y) == 0;
}

bool name_rules_find(const NameRules *rules, const char *parameter, int rank, int64_t experts,
                     int *index, Error *error)
{
    ExpertName name;
    if (!expert_name_read(parameter, rank, &name))
        return find_for(rules, parameter, NULL, index, error);
    if (name.expert >= 0)
        return find_for(rules, parameter, &name, index, error);
    bool down = name.part == EXPERT_DOWN;
    for (int64_t expert = 0; expert < experts; expert++)
        for (int part = down ? EXPERT_DOWN : EXPERT_GATE; part <= (down ? EXPERT_DOWN : EXPERT_UP);
             part++) {
            ExpertName one = name;
            one.expert = expert;
            one.part = (ExpertPart)part;
            int found;
            if (!find_for(rules, parameter, &one, &found, error))
                return false;
            if (expert == 0 && part == (down ? EXPERT_DOWN : EXPERT_GATE)) {
                *index = found;
            } else if (!same_rule(rules, *index, found)) {
                char text[EXPERT_NAME_BYTES + 64];
                expert_name_write(&one, text, sizeof(text));
                return error_set(error, EXIT_CODE_USAGE,
                                 "name all of them, or write experts one by one: --experts "
                                 "separate",
                                 "%.120s is one array, but %.60s holds for its first part and "
                                 "%.60s for %.120s",
                                 parameter, rule_name(rules, *index), rule_name(rules, found),
                                 text);
            }
        }
    return true;
}

// ---- what a parameter is ----

static bool contains(const char *text, size_t bytes, const char *word)
{
    return memmem(text, bytes, word, strlen(word)) != NULL;
}

// The last component of the module's name.
static const char *last_of(const char *parameter, size_t *bytes)
{
    const char *end = parameter + strlen(parameter), *dot = strrchr(parameter, '.');
    if (dot && strcmp(dot, ".weight") == 0)
        end = dot;
    const char *start = end;
    while (start > parameter && start[-1] != '.')
        start--;
    *bytes = (size_t)(end - start);
    return start;
}

static bool is_word(const char *text, size_t bytes, const char *word)
{
    return strlen(word) == bytes && memcmp(text, word, bytes) == 0;
}

bool weight_is_embedding(const char *parameter)
{
    size_t bytes;
    const char *last = last_of(parameter, &bytes);
    return contains(last, bytes, "embed") || is_word(last, bytes, "wte") ||
           is_word(last, bytes, "wpe");
}

bool weight_is_real(DType dtype)
{
    return dtype == DTYPE_BF16 || dtype == DTYPE_F16 || dtype == DTYPE_F32;
}

const char *weight_is_special(const char *parameter, const Tensor *tensor)
{
    size_t bytes;
    ExpertName name;
    const char *last = last_of(parameter, &bytes), *dot = strrchr(parameter, '.');
    if (!weight_is_real(tensor->dtype))
        return "not of a floating type";
    if (expert_name_read(parameter, tensor->rank, &name))
        return NULL;
    if (tensor->rank != 2 || !dot || strcmp(dot, ".weight") != 0)
        return "no matrix of a Linear";
    if (weight_is_embedding(parameter))
        return "an embedding";
    if (is_word(last, bytes, "lm_head") || is_word(last, bytes, "output"))
        return "the output embedding";
    if (contains(last, bytes, "norm") || contains(last, bytes, "ln_"))
        return "a norm";
    if (is_word(last, bytes, "gate") || is_word(last, bytes, "router") ||
        (bytes > 5 && memcmp(last + bytes - 5, "_gate", 5) == 0))
        return "a router";
    return NULL;
}
