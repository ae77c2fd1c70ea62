// ao_modules.c -- the built-in model, the modules of a safetensors file, and which of them are
// chosen.
#include "experiments/model/ao_modules.h"

#include "harness/bf16.h"
#include "harness/option.h"
#include "harness/random.h"

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

static bool ends_with(const char *name, const char *end)
{
    size_t length = strlen(name), tail = strlen(end);
    return length > tail && strcmp(name + length - tail, end) == 0;
}

static const char *kind_of(const char *name, const Tensor *tensor)
{
    if (!ends_with(name, ".weight"))
        return "parameter";
    return tensor->rank < 2 ? "Norm" : strstr(name, "embed") ? "Embedding" : "Linear";
}

bool ao_modules_read(const char *folder, AoModules *modules, Error *error)
{
    char path[4096];
    *modules = (AoModules){0};
    snprintf(path, sizeof(path), "%s/model.safetensors", folder);
    if (!safetensors_open(path, &modules->file, error))
        return false;
    modules->loaded = true;
    for (int64_t i = 0; i < modules->file.count; i++) {
        const SafetensorsEntry *entry = &modules->file.entries[i];
        const Tensor *t = &entry->tensor;
        bool matrix = t->rank == 2;
        AoModule *module = add(modules, kind_of(entry->name, t), matrix ? t->shape[0] : 1,
                               matrix ? t->shape[1] : tensor_elements(t));
        int length = (int)strlen(entry->name);
        length -= ends_with(entry->name, ".weight") ? (int)strlen(".weight") : 0;
        snprintf(module->name, sizeof(module->name), "%.*s", length, entry->name);
        module->weight = *t;
    }
    return true;
}

void ao_modules_destroy(AoModules *modules)
{
    if (modules->loaded)
        safetensors_close(&modules->file);
    free(modules->module);
    *modules = (AoModules){0};
}

// ---- choice ----

static bool matches(const Pattern *pattern, const AoModule *module, bool *hit, Error *error)
{
    char parameter[AO_NAME_BYTES + 8];
    snprintf(parameter, sizeof(parameter), "%s.weight", module->name);
    bool by_module = false, by_parameter = false;
    bool good = pattern_match(pattern, module->name, PATTERN_FULL, &by_module, error) &&
                pattern_match(pattern, parameter, PATTERN_FULL, &by_parameter, error);
    *hit = by_module || by_parameter;
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

static bool is_quantised(const AoModule *module)
{
    DType t = module->weight.dtype;
    return module->weight.data && t != DTYPE_F32 && t != DTYPE_BF16 && t != DTYPE_F16 &&
           t != DTYPE_F64;
}

static void choose(AoModule *module, bool named, bool excluded, const char *match, const char *skip)
{
    module->chosen = false;
    if (!named)
        snprintf(module->why, sizeof(module->why), "--match %.200s does not name it", match);
    else if (excluded)
        snprintf(module->why, sizeof(module->why), "excluded by --skip %.200s", skip);
    else if (is_quantised(module))
        snprintf(module->why, sizeof(module->why), "already quantised: %s",
                 dtype_row(module->weight.dtype)->name);
    else if (strcmp(module->kind, "Linear") != 0)
        snprintf(module->why, sizeof(module->why), "no Linear: %s", module->kind);
    else if (module->weight.data && module->weight.rank != 2)
        snprintf(module->why, sizeof(module->why), "rank %d", module->weight.rank);
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
    if (module->weight.data) {
        for (int64_t i = 0; i < module->rows * module->columns; i++)
            values[i] = bf16_from_f32((float)tensor_value(&module->weight, i));
        return;
    }
    random_fill(&(RandomFill){.seed = module->seed,
                              .rows = module->rows,
                              .columns = module->columns,
                              .deviation = 1.0f / sqrtf((float)module->columns),
                              .dtype = DTYPE_BF16,
                              .out = values},
                (Stream){.device = DEVICE_CPU});
}
