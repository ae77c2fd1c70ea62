// modules.c -- the built-in model, the modules of a model's folder, and which of them are chosen.
#include "experiments/ao/modules.h"

#include "harness/bf16.h"
#include "harness/option.h"
#include "harness/random.h"
#include "quant/name_rules.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 2, DIM = 256, INNER = 128, EXPERTS = 4, KEY_VALUE = 64, VOCABULARY = 512 };

// What a block holds; %d: the expert.
typedef struct BuiltIn {
    const char *name, *kind;
    int64_t rows, columns;
    int copies;
} BuiltIn;
static const BuiltIn block[] = {
    {"input_layernorm", "Norm", 1, DIM, 1},
    {"self_attn.q_proj", "Linear", DIM, DIM, 1},
    {"self_attn.k_proj", "Linear", KEY_VALUE, DIM, 1},
    {"self_attn.v_proj", "Linear", KEY_VALUE, DIM, 1},
    {"self_attn.o_proj", "Linear", DIM, DIM, 1},
    {"post_attention_layernorm", "Norm", 1, DIM, 1},
    {"mlp.gate", "Linear", EXPERTS, DIM, 1},
    {"mlp.experts.%d.gate_proj", "Linear", INNER, DIM, EXPERTS},
    {"mlp.experts.%d.up_proj", "Linear", INNER, DIM, EXPERTS},
    {"mlp.experts.%d.down_proj", "Linear", DIM, INNER, EXPERTS},
    {"mlp.shared_expert_gate", "Linear", 1, DIM, 1},
};

static AoModule *add(AoModules *modules, const char *kind, int64_t rows, int64_t columns)
{
    size_t bytes = (size_t)(modules->count + 1) * sizeof(AoModule);
    AoModule *grown = realloc(modules->module, bytes);
    CHECK(grown != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for %d modules",
          modules->count + 1);
    modules->module = grown;
    AoModule *module = &grown[modules->count++];
    *module = (AoModule){.kind = kind, .rows = rows, .columns = columns};
    return module;
}

static void add_built_in(AoModules *modules, int layer, const BuiltIn *row, uint64_t seed)
{
    for (int copy = 0; copy < row->copies; copy++) {
        AoModule *module = add(modules, row->kind, row->rows, row->columns);
        char expert[16], name[AO_NAME_BYTES / 2];
        const char *place = strstr(row->name, "%d");
        snprintf(expert, sizeof(expert), "%d", copy);
        snprintf(name, sizeof(name), "%.*s%s%s", (int)(place ? place - row->name : 99), row->name,
                 place ? expert : "", place ? place + 2 : "");
        if (layer < 0)
            snprintf(module->name, sizeof(module->name), "%s", name);
        else
            snprintf(module->name, sizeof(module->name), "model.layers.%d.%s", layer, name);
        module->seed = seed + (uint64_t)modules->count;
    }
}

AoModules ao_modules_built_in(uint64_t seed)
{
    static const BuiltIn first = {"model.embed_tokens", "Embedding", VOCABULARY, DIM, 1};
    static const BuiltIn last[] = {{"model.norm", "Norm", 1, DIM, 1},
                                   {"lm_head", "Linear", VOCABULARY, DIM, 1}};
    AoModules modules = {0};
    add_built_in(&modules, -1, &first, seed);
    for (int layer = 0; layer < LAYERS; layer++)
        for (size_t i = 0; i < COUNT_OF(block); i++)
            add_built_in(&modules, layer, &block[i], seed);
    for (size_t i = 0; i < COUNT_OF(last); i++)
        add_built_in(&modules, -1, &last[i], seed);
    return modules;
}

// ---- files ----

// Without ".weight".
static int stem_length(const char *parameter)
{
    const char *dot = strrchr(parameter, '.');
    bool weight = dot && dot > parameter && strcmp(dot, ".weight") == 0;
    return (int)(weight ? (size_t)(dot - parameter) : strlen(parameter));
}

static const char *kind_of(const Weight *weight)
{
    int rank = weight->tensor.rank;
    if (weight->name[stem_length(weight->name)] == '\0' || rank > 2)
        return "parameter";
    return rank < 2 ? "Norm" : weight_is_embedding(weight->name) ? "Embedding" : "Linear";
}

static AoModule *add_of(AoModules *modules, const Weight *weight, const char *kind,
                        const char *parameter)
{
    const Tensor *t = &weight->tensor;
    bool matrix = t->rank >= 2;
    AoModule *module = add(modules, kind, matrix ? t->shape[t->rank - 2] : 1,
                           matrix ? t->shape[t->rank - 1] : tensor_elements(t));
    snprintf(module->name, sizeof(module->name), "%.*s", stem_length(parameter), parameter);
    module->source = weight;
    return module;
}

static bool add_experts(AoModules *modules, const Weight *weight, const ExpertName *array,
                        Error *error)
{
    int64_t count;
    if (expert_array_is_turned(array, &modules->checkpoint))
        return error_set(
            error, EXIT_CODE_USAGE, "`meshwork convert --layout bf16 --experts separate` first",
            "%.150s is [experts, inputs, outputs], with the inputs first", weight->name);
    if (!expert_matrices(array, weight, &modules->checkpoint, &count, error))
        return false;
    for (int64_t i = 0; i < count; i++) {
        ExpertMatrix matrix;
        expert_matrix(array, weight, i, false, &matrix);
        AoModule *module = add_of(modules, weight, "Linear", matrix.name);
        module->rows = matrix.rows;
        module->first = matrix.first;
    }
    return true;
}

bool ao_modules_read(const char *folder, AoModules *modules, Error *error)
{
    *modules = (AoModules){0};
    if (!checkpoint_open(folder, &modules->checkpoint, error))
        return false;
    modules->loaded = true;
    bool good = true;
    for (int64_t i = 0; good && i < modules->checkpoint.count; i++) {
        const Weight *weight = &modules->checkpoint.weights[i];
        ExpertName name;
        if (expert_name_read(weight->name, weight->tensor.rank, &name) && name.expert < 0)
            good = add_experts(modules, weight, &name, error);
        else
            add_of(modules, weight, kind_of(weight), weight->name);
    }
    return good;
}

void ao_modules_destroy(AoModules *modules)
{
    if (modules->loaded)
        checkpoint_close(&modules->checkpoint);
    free(modules->module);
    *modules = (AoModules){0};
}

// ---- choice ----

static bool matches(const Pattern *pattern, const AoModule *module, bool *hit, Error *error)
{
    char parameter[AO_NAME_BYTES + 8];
    snprintf(parameter, sizeof(parameter), "%s.weight", module->name);
    const char *const names[] = {module->name, parameter,
                                 module->source ? module->source->name : NULL};
    bool good = true;
    *hit = false;
    for (size_t i = 0; good && !*hit && i < COUNT_OF(names) && names[i]; i++)
        good = pattern_match(pattern, names[i], PATTERN_FULL, hit, error);
    return good;
}

static size_t word_length(const char *text)
{
    return strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");
}

// The last word of a text: "gate_prj" of "re:.*experts.*gate_prj".
static void last_word(const char *text, char *word, size_t bytes)
{
    *word = '\0';
    for (size_t length; *text; text += length ? length : 1) {
        length = word_length(text);
        if (length > 0)
            snprintf(word, bytes, "%.*s", (int)length, text);
    }
}

// Expressions cannot be compared with names, but their last words can.
static bool no_match(const AoModules *modules, const char *option, const char *text, Error *error)
{
    char word[AO_NAME_BYTES], last[AO_NAME_BYTES], fix[2 * AO_NAME_BYTES];
    const char *nearest = NULL, *example = "";
    last_word(text, word, sizeof(word));
    for (int i = 0; i < modules->count; i++) {
        const char *name = modules->module[i].name;
        const char *const candidates[] = {last, NULL};
        last_word(name, last, sizeof(last));
        if (!nearest && option_nearest(word, candidates))
            nearest = name;
        if (strcmp(modules->module[i].kind, "Linear") == 0 && strchr(name, '.'))
            example = name;
    }
    snprintf(fix, sizeof(fix), nearest ? "did you mean %s?" : "names look like %s",
             nearest ? nearest : example);
    return error_set(error, EXIT_CODE_USAGE, fix, "--%s %.200s fits no module's name", option,
                     text);
}

static bool mark(AoModules *modules, const char *option, const char *text, bool *hit, Error *error)
{
    Pattern *pattern = pattern_create(text, EXIT_CODE_USAGE, error);
    bool any = false, good = pattern != NULL;
    for (int i = 0; good && i < modules->count; i++) {
        good = matches(pattern, &modules->module[i], &hit[i], error);
        any = any || hit[i];
    }
    if (pattern)
        pattern_destroy(pattern);
    return good && (any || no_match(modules, option, text, error));
}

// What `quantize` leaves alone as long as no pattern names it; NULL: it does not.
static const char *special_of(const AoModule *module)
{
    char parameter[AO_NAME_BYTES + 8];
    Tensor linear = {.dtype = DTYPE_BF16, .rank = 2};
    snprintf(parameter, sizeof(parameter), "%s.weight", module->name);
    return weight_is_special(parameter, &linear);
}

static void choose(AoModule *module, bool named, bool excluded, const char *match, const char *skip)
{
    const Weight *w = module->source;
    module->chosen = false;
    if (!named)
        snprintf(module->why, sizeof(module->why), "--match %.200s does not name it",
                 match ? match : "");
    else if (excluded)
        snprintf(module->why, sizeof(module->why), "excluded by --skip %.200s", skip ? skip : "");
    else if (w && w->quantised)
        snprintf(module->why, sizeof(module->why), "already quantised: %s", w->stored.recipe.name);
    else if (strcmp(module->kind, "Linear") != 0)
        snprintf(module->why, sizeof(module->why), "no Linear: %s", module->kind);
    else if (w && !weight_is_real(w->tensor.dtype))
        snprintf(module->why, sizeof(module->why), "not of a floating type: %s",
                 dtype_row(w->tensor.dtype)->name);
    else if (!match && special_of(module))
        snprintf(module->why, sizeof(module->why), "%s; --match can name it", special_of(module));
    else
        module->chosen = true;
}

bool ao_modules_choose(AoModules *modules, const char *match, const char *skip, Error *error)
{
    size_t count = (size_t)modules->count + 1;
    bool *named = calloc(count, sizeof(bool)), *excluded = calloc(count, sizeof(bool));
    CHECK(named && excluded, EXIT_CODE_HARDWARE, "free some memory", "no memory for names");
    for (int i = 0; i < modules->count; i++)
        named[i] = !match;
    bool good = (!match || mark(modules, "match", match, named, error)) &&
                (!skip || mark(modules, "skip", skip, excluded, error));
    for (int i = 0; good && i < modules->count; i++)
        choose(&modules->module[i], named[i], excluded[i], match, skip);
    free(named);
    free(excluded);
    return good;
}

void ao_module_values(const AoModule *module, uint16_t *values)
{
    if (!module->source) {
        random_fill(&(RandomFill){.seed = module->seed,
                                  .rows = module->rows,
                                  .columns = module->columns,
                                  .deviation = 1.0f / sqrtf((float)module->columns),
                                  .dtype = DTYPE_BF16,
                                  .out = values},
                    (Stream){.device = DEVICE_CPU});
        return;
    }
    int64_t first = module->first * module->columns;
    for (int64_t i = 0; i < module->rows * module->columns; i++)
        values[i] = bf16_from_f32((float)tensor_value(&module->source->tensor, first + i));
}
