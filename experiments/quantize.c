// quantize.c -- `meshwork quantize`: a Hugging Face model into a smaller one, by patterns on names,
// in the files that torchao and compressed-tensors load.
#include "experiments/rewrite/rewrite.h"
#include "experiments/rewrite/show.h"
#include "harness/command.h"

#include <stdio.h>
#include <string.h>

typedef struct Params {
    const char *model, *out, *recipe, *rules, *max_shard, *input_scales;
    OptionTexts match, skip;
    int layout, experts, device;
    bool dry_run, resume, force, json, copy_all, hash;
} Params;

enum { LAYOUT_CHOICE_AUTO };

#define FIELD(name) offsetof(Params, name)
static const Option options[] = {
    {"model", OPTION_TEXT, FIELD(model), NULL, .value = "DIR", .doc = "the model's folder"},
    {"out", OPTION_TEXT, FIELD(out), NULL, .value = "DIR", .doc = "the folder to make"},
    {"recipe", OPTION_TEXT, FIELD(recipe), NULL, .value = "NAME",
     .doc = "how, such as nvfp4 or FP8_DYNAMIC or int4_tile:group=64; `meshwork casts --help`"},
    {"match", OPTION_TEXTS, FIELD(match), NULL, .value = "PATTERN",
     .doc = "which weights: a name, or re: and an expression for the whole name of a parameter or "
            "module; may be repeated. Without it every matrix that is no embedding, norm, router "
            "or output head"},
    {"skip", OPTION_TEXTS, FIELD(skip), NULL, .value = "PATTERN",
     .doc = "which weights to leave as they are; goes before --match"},
    {"rules", OPTION_TEXT, FIELD(rules), NULL, .value = "FILE",
     .doc = "a JSON object of patterns and recipes, the first that matches wins; null = leave, "
            "_default = all others; in place of --recipe, --match and --skip"},
    {"layout", OPTION_CHOICE, FIELD(layout), "auto",
     .choices = "auto|torchao|torchao-bin|compressed-tensors|deepseek",
     .doc = "of the files; auto = the recipe's own library"},
    {"experts", OPTION_CHOICE, FIELD(experts), "auto", .choices = "auto|separate|fused",
     .doc = "one matrix per expert or one array for all; auto = as in the source"},
    {"max_shard", OPTION_TEXT, FIELD(max_shard), "5GB", .value = "SIZE",
     .doc = "of one file of weights"},
    {"input_scales", OPTION_TEXT, FIELD(input_scales), NULL, .value = "FILE",
     .doc = "a JSON object of modules and the scales of their activations (NVFP4)"},
    {"device", OPTION_CHOICE, FIELD(device), "cpu", .choices = "cpu|cuda|auto",
     .doc = "where values become codes. Files seldom wait for a processor with all its "
            "cores; a GPU helps few ranks with few threads. auto = cuda where every rank has a GPU "
            "of its own and at least 2 GB to quantise, else cpu"},
    {"dry_run", OPTION_SWITCH, FIELD(dry_run), "no",
     .doc = "say for every tensor what would be done and why, and the size of the result"},
    {"resume", OPTION_SWITCH, FIELD(resume), "no", .doc = "go on after an interruption"},
    {"force", OPTION_SWITCH, FIELD(force), "no", .doc = "replace the folder if it is there"},
    {"copy_all", OPTION_SWITCH, FIELD(copy_all), "no",
     .doc = "take every other file along, weights in other forms too"},
    {"hash", OPTION_SWITCH, FIELD(hash), "yes", .doc = "SHA-256 of the files in manifest.json"},
    {"json", OPTION_SWITCH, FIELD(json), "no", .doc = "print the result as one JSON object"},
    {NULL},
};

static bool is_capital(const char *text)
{
    return *text >= 'A' && *text <= 'Z';
}

static bool collect_rules(const Params *p, NameRules *rules, Error *error)
{
    Recipe recipe;
    if (p->rules && (p->recipe || p->match.count > 0 || p->skip.count > 0))
        return error_set(error, EXIT_CODE_USAGE, "put them all into the file, or none",
                         "--rules goes without --recipe, --match and --skip");
    if (p->rules)
        return name_rules_read(rules, p->rules, error);
    if (!p->recipe)
        return error_set(error, EXIT_CODE_USAGE, "add --recipe nvfp4, or --rules FILE",
                         "neither --recipe nor --rules says how to quantise");
    if (!recipe_parse(p->recipe, &recipe, error))
        return error_prefix(error, "--recipe");
    for (int i = 0; i < p->skip.count; i++)
        if (!name_rules_add(rules, p->skip.value[i], NULL, EXIT_CODE_USAGE, error))
            return error_prefix(error, "--skip");
    for (int i = 0; i < p->match.count; i++)
        if (!name_rules_add(rules, p->match.value[i], &recipe, EXIT_CODE_USAGE, error))
            return error_prefix(error, "--match");
    return p->match.count > 0 || name_rules_add(rules, "_default", &recipe, EXIT_CODE_USAGE, error);
}

// The library whose numerics the recipes have.
static Layout choose_layout(const Params *p, const NameRules *rules)
{
    static const Layout layouts[] = {LAYOUT_TORCHAO, LAYOUT_TORCHAO, LAYOUT_TORCHAO_BIN,
                                     LAYOUT_COMPRESSED, LAYOUT_DEEPSEEK};
    for (int i = 0; p->layout == LAYOUT_CHOICE_AUTO && i < rules->count; i++) {
        if (rules->rule[i].skip)
            continue;
        if (is_capital(rules->rule[i].recipe.name))
            return LAYOUT_COMPRESSED;
        if (strcmp(rules->rule[i].recipe.name, "deepseek_block") == 0)
            return LAYOUT_DEEPSEEK;
    }
    return layouts[p->layout];
}

static bool make_request(const Params *p, NameRules *rules, RewriteRequest *request, Error *error)
{
    if (!p->model || (!p->out && !p->dry_run))
        return error_set(error, EXIT_CODE_USAGE, "meshwork quantize --model DIR --out DIR2 ...",
                         "--%s is missing", p->model ? "out" : "model");
    if (!collect_rules(p, rules, error))
        return false;
    *request = (RewriteRequest){
        .model = p->model,
        .out = p->out ? p->out : "",
        .input_scales = p->input_scales,
        .layout = choose_layout(p, rules),
        .experts = (ExpertsChoice)p->experts,
        .rules = rules,
        .rules_are_default = !p->rules && p->match.count == 0 && p->skip.count == 0,
        .resume = p->resume,
        .force = p->force,
        .copy_all = p->copy_all,
        .hash = p->hash,
        .device = (DeviceChoice)p->device,
    };
    return rewrite_read_size(p->max_shard, &request->shard_bytes_max, error);
}

static int run_quantize(Run *run, const void *params, const OptionPositionals *positionals)
{
    (void)positionals;
    const Params *p = params;
    Error error = {0};
    NameRules rules = {0};
    RewriteRequest request;
    bool good = make_request(p, &rules, &request, &error);
    run_agree(run, &error);
    int exit_code = good ? rewrite_command(run, &request, p->dry_run, p->json) : error.exit_code;
    name_rules_release(&rules);
    return exit_code;
}

const Command command_quantize = {
    .name = "quantize",
    .summary =
        "a model into a smaller one, for torchao, compressed-tensors and those who read them",
    .usage = "--model DIR --out DIR2 --recipe NAME [options]",
    .notes = "  mpirun -n 4 meshwork quantize --model DIR --out DIR2 --recipe nvfp4 --match "
             "'re:.*experts.*'\n"
             "  meshwork quantize --model DIR --out DIR2 --recipe fp8_row --layout "
             "compressed-tensors --dry_run\n"
             "The folder appears complete or not at all; after an interruption --resume goes on.\n",
    .options = options,
    .params_bytes = sizeof(Params),
    .spmd = true,
    .run = run_quantize,
};
