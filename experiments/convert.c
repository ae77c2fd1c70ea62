// convert.c -- `meshwork convert`: a quantised model into the files of another library, or back to
// bf16. Codes and scales are kept wherever the new layout has a place for them.
#include "experiments/rewrite/rewrite.h"
#include "experiments/rewrite/show.h"
#include "harness/command.h"

typedef struct Params {
    const char *model, *out, *max_shard, *input_scales;
    int layout, experts, device;
    bool requantize, share_scales, dry_run, resume, force, json, copy_all, hash;
} Params;

#define FIELD(name) offsetof(Params, name)
static const Option options[] = {
    {"model", OPTION_TEXT, FIELD(model), NULL, .value = "DIR", .doc = "the quantised model"},
    {"out", OPTION_TEXT, FIELD(out), NULL, .value = "DIR", .doc = "the folder to make"},
    {"layout", OPTION_CHOICE, FIELD(layout), "bf16", .choices = LAYOUT_CHOICES,
     .doc = "of the new files"},
    {"requantize", OPTION_SWITCH, FIELD(requantize), "no",
     .doc = "make codes again where the layout has no place for them as they are"},
    {"share_scales", OPTION_SWITCH, FIELD(share_scales), "no",
     .doc = "NVFP4: one second scale for q, k, v and for gate, up, whose codes are made again"},
    {"experts", OPTION_CHOICE, FIELD(experts), "auto", .choices = "auto|separate|fused",
     .doc = "one matrix per expert or one array for all; auto = as in the source"},
    {"max_shard", OPTION_TEXT, FIELD(max_shard), "5GB", .value = "SIZE",
     .doc = "of one file of weights"},
    {"input_scales", OPTION_TEXT, FIELD(input_scales), NULL, .value = "FILE",
     .doc = "a JSON object of modules and the scales of their activations (NVFP4)"},
    {"device", OPTION_CHOICE, FIELD(device), "cpu", .choices = "cpu|cuda|auto",
     .doc =
         "where --requantize and --share_scales make codes again; auto = cuda where every rank has "
         "a GPU of its own and at least 2 GB to quantise, else cpu"},
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

static bool make_request(const Params *p, RewriteRequest *request, Error *error)
{
    if (!p->model || (!p->out && !p->dry_run))
        return error_set(error, EXIT_CODE_USAGE, "meshwork convert --model DIR --out DIR2 ...",
                         "--%s is missing", p->model ? "out" : "model");
    *request = (RewriteRequest){
        .model = p->model,
        .out = p->out ? p->out : "",
        .input_scales = p->input_scales,
        .layout = (Layout)p->layout,
        .experts = (ExpertsChoice)p->experts,
        .requantize = p->requantize,
        .share_scales = p->share_scales,
        .resume = p->resume,
        .force = p->force,
        .copy_all = p->copy_all,
        .hash = p->hash,
        .device = (DeviceChoice)p->device,
    };
    return rewrite_read_size(p->max_shard, &request->shard_bytes_max, error);
}

static int run_convert(Run *run, const void *params, const OptionPositionals *positionals)
{
    (void)positionals;
    const Params *p = params;
    Error error = {0};
    RewriteRequest request;
    bool good = make_request(p, &request, &error);
    run_agree(run, &error);
    return good ? rewrite_command(run, &request, p->dry_run, p->json) : error.exit_code;
}

const Command command_convert = {
    .name = "convert",
    .summary = "a quantised model into another library's files: torchao, compressed-tensors, bf16",
    .usage = "--model DIR --out DIR2 --layout NAME [options]",
    .notes = "  meshwork convert --model DIR2 --out DIR3 --layout compressed-tensors\n"
             "What loses nothing says so; what would is refused without --requantize.\n",
    .options = options,
    .params_bytes = sizeof(Params),
    .spmd = true,
    .run = run_convert,
};
