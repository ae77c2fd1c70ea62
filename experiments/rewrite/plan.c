// plan.c -- from the weights of one checkpoint to those of the next: names, experts, and
// which rule takes which.
#include "experiments/rewrite/rewrite.h"

#include "quant/message.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void rewrite_note(Rewrite *rewrite, const char *format, ...)
{
    size_t length = strlen(rewrite->notes);
    va_list arguments;
    va_start(arguments, format);
    if (length + 2 < sizeof(rewrite->notes)) {
        vsnprintf(rewrite->notes + length, sizeof(rewrite->notes) - length - 1, format, arguments);
        strcat(rewrite->notes, "\n");
    }
    va_end(arguments);
}

bool rewrite_is_quantised(const RewriteTensor *tensor)
{
    return tensor->action == REWRITE_QUANTISE || tensor->action == REWRITE_MOVE;
}

int64_t rewrite_columns(const RewriteTensor *tensor)
{
    const Tensor *t = &tensor->tensor;
    return t->rank > 0 ? t->shape[t->rank - 1] : 1;
}

int64_t rewrite_rows(const RewriteTensor *tensor)
{
    int64_t columns = rewrite_columns(tensor);
    return columns > 0 ? tensor_elements(&tensor->tensor) / columns : 0;
}

// ---- outputs ----

typedef struct Builder {
    Rewrite *rewrite;
    int capacity;
    Error *error;
} Builder;

static RewriteTensor *add_tensor(Builder *builder, const char *name)
{
    Rewrite *rewrite = builder->rewrite;
    if (rewrite->count == builder->capacity) {
        builder->capacity = builder->capacity ? 2 * builder->capacity : 256;
        rewrite->tensor =
            realloc(rewrite->tensor, (size_t)builder->capacity * sizeof(*rewrite->tensor));
        CHECK(rewrite->tensor, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a plan");
    }
    RewriteTensor *tensor = &rewrite->tensor[rewrite->count++];
    *tensor = (RewriteTensor){
        .name = strdup(name), .lossless = true, .rule = -1, .amax_group = -1, .may_split = true};
    CHECK(tensor->name, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a plan");
    return tensor;
}

static void add_segment(RewriteTensor *tensor, const Weight *weight, int64_t first, int64_t rows)
{
    tensor->segment =
        realloc(tensor->segment, (size_t)(tensor->segments + 1) * sizeof(*tensor->segment));
    CHECK(tensor->segment, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a plan");
    tensor->segment[tensor->segments++] =
        (RewriteSegment){.weight = weight, .first = first, .rows = rows};
}

static void add_same(Builder *builder, const Weight *weight)
{
    RewriteTensor *tensor = add_tensor(builder, weight->name);
    tensor->tensor = weight->tensor;
    tensor->tensor.data = NULL;
    add_segment(tensor, weight, 0, rewrite_rows(tensor));
}

static void round_to_bf16(Rewrite *rewrite, RewriteTensor *tensor)
{
    tensor->action = REWRITE_ROUND;
    tensor->tensor.dtype = DTYPE_BF16;
    tensor->lossless = false;
    rewrite->rounded++;
}

// ---- experts one by one, from an array ----

// Turned values pass through the same memory as rounded ones, which is bf16.
static bool check_turned(const Builder *builder, const Weight *weight, const ExpertName *fused)
{
    static const char *const fix = "--experts fused keeps the arrays, which no recipe may take: "
                                   "--skip 're:.*experts.*'";
    if (weight->quantised || !weight_is_real(weight->tensor.dtype))
        return error_set(builder->error, EXIT_CODE_USAGE, fix,
                         "%.150s is [experts, inputs, outputs] of codes, which cannot be turned",
                         weight->name);
    if (expert_array_has_bias(fused, &builder->rewrite->source))
        return error_set(builder->error, EXIT_CODE_USAGE, fix,
                         "%.150s has a bias, as gpt-oss: its gate and up alternate and cannot be "
                         "written as experts one by one",
                         weight->name);
    return true;
}

static bool add_separate(Builder *builder, const Weight *weight, const ExpertName *fused)
{
    const Checkpoint *source = &builder->rewrite->source;
    bool turned = expert_array_is_turned(fused, source);
    int64_t count;
    if ((turned && !check_turned(builder, weight, fused)) ||
        !expert_matrices(fused, weight, source, &count, builder->error))
        return false;
    for (int64_t i = 0; i < count; i++) {
        ExpertMatrix matrix;
        expert_matrix(fused, weight, i, turned, &matrix);
        RewriteTensor *tensor = add_tensor(builder, matrix.name);
        tensor->tensor = (Tensor){.dtype = weight->tensor.dtype, .rank = 2};
        tensor->tensor.shape[0] = matrix.rows;
        tensor->tensor.shape[1] = matrix.columns;
        add_segment(tensor, weight, matrix.first, matrix.rows);
        tensor->segment[0].turned = turned;
        if (turned && weight->tensor.dtype != DTYPE_BF16)
            round_to_bf16(builder->rewrite, tensor);
    }
    return true;
}

// ---- an array, from experts one by one ----

static bool same_tensor(const Weight *a, const Weight *b)
{
    return a->tensor.dtype == b->tensor.dtype && a->tensor.shape[0] == b->tensor.shape[0] &&
           a->tensor.shape[1] == b->tensor.shape[1] && a->quantised == b->quantised;
}

static const Weight *find_expert(const Builder *builder, ExpertName name, int64_t expert,
                                 ExpertPart part)
{
    char text[EXPERT_NAME_BYTES + 64];
    name.expert = expert;
    name.part = part;
    expert_name_write(&name, text, sizeof(text));
    return checkpoint_find(&builder->rewrite->source, text);
}

// Arrays are made upright, which this model's library would not take.
static bool has_turned_arrays(const Json *config)
{
    const char *type = config ? json_text_of(json_find(config, "model_type")) : NULL;
    return type && strncmp(type, "llama4", 6) == 0;
}

// Called with the first part of expert 0; the other parts and experts follow from it.
static bool add_fused(Builder *builder, const Weight *first, const ExpertName *name)
{
    const bool down = name->part == EXPERT_DOWN;
    ExpertName fused = *name;
    if (has_turned_arrays(builder->rewrite->source.config))
        return error_set(builder->error, EXIT_CODE_USAGE, "leave out --experts fused",
                         "%.150s and the others would be one array [experts, outputs, inputs], but "
                         "Llama 4 has [experts, inputs, outputs]",
                         first->name);
    char text[EXPERT_NAME_BYTES + 64];
    fused.expert = -1;
    fused.part = down ? EXPERT_DOWN : EXPERT_GATE_UP;
    expert_name_write(&fused, text, sizeof(text));
    RewriteTensor *tensor = add_tensor(builder, text);
    int64_t expert = 0, rows = first->tensor.shape[0];
    for (; expert < EXPERTS_MAX; expert++) {
        int found = 0;
        for (int part = down ? EXPERT_DOWN : EXPERT_GATE; part <= (down ? EXPERT_DOWN : EXPERT_UP);
             part++) {
            const Weight *weight = find_expert(builder, *name, expert, (ExpertPart)part);
            if (!weight)
                continue;
            found++;
            if (!same_tensor(first, weight))
                return bad_tensor(builder->error, builder->rewrite->source.folder, weight->name,
                                  "its shape or type is not that of %.120s", first->name);
            add_segment(tensor, weight, 0, rows);
        }
        if (found == 0)
            break;
        if (found != (down ? 1 : 2))
            return bad_tensor(builder->error, builder->rewrite->source.folder, text,
                              "expert %lld has gate or up, but not both", (long long)expert);
    }
    tensor->tensor = (Tensor){.dtype = first->tensor.dtype, .rank = 3};
    tensor->tensor.shape[0] = expert;
    tensor->tensor.shape[1] = rows * (down ? 1 : 2);
    tensor->tensor.shape[2] = first->tensor.shape[1];
    return true;
}

static ExpertsChoice experts_of_source(const Checkpoint *source)
{
    ExpertName name;
    for (int64_t i = 0; i < source->count; i++)
        if (expert_name_read(source->weights[i].name, source->weights[i].tensor.rank, &name))
            return name.expert < 0 ? EXPERTS_FUSED : EXPERTS_SEPARATE;
    return EXPERTS_SEPARATE;
}

static bool add_weight(Builder *builder, const Weight *weight, ExpertsChoice experts)
{
    ExpertName name;
    if (!expert_name_read(weight->name, weight->tensor.rank, &name)) {
        add_same(builder, weight);
        return true;
    }
    bool fused = name.expert < 0;
    if (fused == (experts == EXPERTS_FUSED)) {
        add_same(builder, weight);
        return true;
    }
    if (fused)
        return add_separate(builder, weight, &name);
    if (name.expert != 0 || name.part == EXPERT_UP)
        return true; // comes with the first
    return add_fused(builder, weight, &name);
}

static int compare_tensors(const void *a, const void *b)
{
    return checkpoint_compare_names(((const RewriteTensor *)a)->name,
                                    ((const RewriteTensor *)b)->name);
}

// Every weight must have found its place: expert 7 without an expert 0 would be lost.
static bool check_complete(Builder *builder)
{
    Rewrite *rewrite = builder->rewrite;
    int64_t in = 0, out = 0;
    for (int64_t i = 0; i < rewrite->source.count; i++)
        in += tensor_elements(&rewrite->source.weights[i].tensor);
    for (int i = 0; i < rewrite->count; i++)
        out += tensor_elements(&rewrite->tensor[i].tensor);
    for (int i = 1; i < rewrite->count; i++)
        if (strcmp(rewrite->tensor[i - 1].name, rewrite->tensor[i].name) == 0)
            return bad_tensor(builder->error, rewrite->source.folder, rewrite->tensor[i].name,
                              "two weights would have this name");
    return in == out || bad_file(builder->error, rewrite->source.folder,
                                 "experts are missing: their numbers do not go from 0 on");
}

static bool make_tensors(Rewrite *rewrite, Error *error)
{
    Builder builder = {.rewrite = rewrite, .error = error};
    const RewriteRequest *request = rewrite->request;
    ExpertsChoice experts = request->experts;
    if (experts == EXPERTS_AS_SOURCE) {
        experts = experts_of_source(&rewrite->source);
        bool separate = request->layout == LAYOUT_COMPRESSED || request->layout == LAYOUT_DEEPSEEK;
        if (experts == EXPERTS_FUSED && separate) {
            experts = EXPERTS_SEPARATE;
            rewrite_note(rewrite, "experts are written one by one, as layout %s has them",
                         layout_name(request->layout));
        }
    }
    bool torchao = request->layout == LAYOUT_TORCHAO || request->layout == LAYOUT_TORCHAO_BIN;
    for (int64_t i = 0; i < rewrite->source.count; i++)
        if (!add_weight(&builder, &rewrite->source.weights[i], experts))
            return false;
    if (rewrite->count > 0)
        qsort(rewrite->tensor, (size_t)rewrite->count, sizeof(*rewrite->tensor), compare_tensors);
    ExpertName name;
    for (int i = 0; torchao && i < rewrite->count; i++)
        if (expert_name_read(rewrite->tensor[i].name, rewrite->tensor[i].tensor.rank, &name)) {
            if (name.expert >= 0)
                rewrite_note(rewrite, "transformers 5 ignores torchao files with experts one by "
                                      "one; --experts fused writes what it loads");
            break;
        }
    return check_complete(&builder);
}

// ---- quantize: which recipe ----

static void leave_plain(Rewrite *rewrite, RewriteTensor *tensor, const char *why)
{
    snprintf(tensor->why, sizeof(tensor->why), "%.190s", why);
    if (tensor->tensor.dtype == DTYPE_F16 || tensor->tensor.dtype == DTYPE_F32)
        round_to_bf16(rewrite, tensor);
}

// Why a weight that a rule names is left as it is nevertheless; NULL if it is not.
static const char *not_quantisable(const Rewrite *rewrite, const RewriteTensor *tensor, int index)
{
    const NameRule *rule = &rewrite->request->rules->rule[index];
    const char *special = weight_is_special(tensor->name, &tensor->tensor);
    if (!rule->pattern)
        return special;
    ExpertName name;
    bool fused = expert_name_read(tensor->name, tensor->tensor.rank, &name);
    size_t length = strlen(tensor->name);
    bool weight = length > 7 && strcmp(tensor->name + length - 7, ".weight") == 0;
    if (!weight_is_real(tensor->tensor.dtype))
        return "not of a floating type";
    if (!fused && (tensor->tensor.rank != 2 || !weight))
        return "no matrix of a Linear";
    if (weight_is_embedding(tensor->name) && pattern_is_expression(rule->pattern))
        return "an embedding";
    return NULL;
}

static bool is_turned_array(const Rewrite *rewrite, const RewriteTensor *tensor)
{
    ExpertName name;
    return expert_name_read(tensor->name, tensor->tensor.rank, &name) && name.expert < 0 &&
           expert_array_is_turned(&name, &rewrite->source);
}

static bool choose_one(Rewrite *rewrite, RewriteTensor *tensor, Error *error)
{
    const NameRules *rules = rewrite->request->rules;
    int64_t experts = tensor->tensor.rank == 3 ? tensor->tensor.shape[0] : 0;
    if (!name_rules_find(rules, tensor->name, tensor->tensor.rank, experts, &tensor->rule, error))
        return false;
    for (int i = 0; i < tensor->segments; i++)
        if (tensor->segment[i].weight->quantised)
            return error_set(error, EXIT_CODE_USAGE,
                             "`meshwork convert --layout bf16` first, or convert it as it is",
                             "%.150s is quantised already (%.60s)", tensor->segment[i].weight->name,
                             tensor->segment[i].weight->stored.recipe.name);
    const NameRule *rule = tensor->rule >= 0 ? &rules->rule[tensor->rule] : NULL;
    const char *why = !rule        ? "no rule names it"
                      : rule->skip ? "a rule leaves it as it is"
                                   : not_quantisable(rewrite, tensor, tensor->rule);
    if (why || rule->recipe.weights.method == QUANT_NONE) {
        leave_plain(rewrite, tensor, why ? why : "recipe none");
        return true;
    }
    if (is_turned_array(rewrite, tensor))
        return error_set(error, EXIT_CODE_USAGE,
                         "--experts separate writes them one by one as [outputs, inputs]; --skip "
                         "'re:.*experts.*' leaves them as they are",
                         "%.150s is [experts, inputs, outputs], as Llama 4 has it: recipes take "
                         "arrays whose last dimension is the input",
                         tensor->name);
    Error cause = {0};
    StoredPlan plan = {&rule->recipe, rewrite->request->layout, tensor->tensor.rank,
                       tensor->tensor.shape, DTYPES};
    if (!stored_plan(&plan, &tensor->stored, &cause)) {
        if (cause.exit_code != EXIT_CODE_DATA)
            return error_set(error, cause.exit_code, cause.fix, "%s", cause.what);
        leave_plain(rewrite, tensor, cause.what);
        rewrite->left++;
        return true;
    }
    tensor->action = REWRITE_QUANTISE;
    tensor->lossless = false;
    tensor->tensor.dtype = DTYPE_BF16;
    recipe_format(&rule->recipe, tensor->why, sizeof(tensor->why));
    rewrite->quantised++;
    return true;
}

bool rewrite_choose(Rewrite *rewrite, Error *error)
{
    for (int i = 0; i < rewrite->count; i++)
        if (!choose_one(rewrite, &rewrite->tensor[i], error))
            return false;
    if (rewrite->left > 0)
        rewrite_note(rewrite,
                     "%d tensors that a rule names have shapes that its recipe does not "
                     "take; they stay as they are (--dry_run says which)",
                     rewrite->left);
    bool source_is_wide = false;
    for (int64_t i = 0; i < rewrite->source.count; i++) {
        DType dtype = rewrite->source.weights[i].tensor.dtype;
        source_is_wide = source_is_wide || dtype == DTYPE_F16 || dtype == DTYPE_F32;
    }
    if (source_is_wide)
        rewrite_note(rewrite, "f16 and f32 values are rounded to bf16 first");
    if (rewrite->quantised == 0)
        return error_set(error, EXIT_CODE_USAGE,
                         "see `meshwork inspect` for the names; patterns match a whole name",
                         "the rules name no weight that can be quantised");
    rewrite_group_amaxes(rewrite, false);
    return true;
}

// ---- all steps ----

bool rewrite_list(const RewriteRequest *request, Rewrite *rewrite, Error *error)
{
    *rewrite = (Rewrite){.request = request};
    if (!checkpoint_open(request->model, &rewrite->source, error))
        return false;
    if (rewrite->source.note[0])
        rewrite_note(rewrite, "%s", rewrite->source.note);
    return make_tensors(rewrite, error);
}

bool rewrite_plan(const RewriteRequest *request, Rewrite *rewrite, Error *error)
{
    return rewrite_list(request, rewrite, error) &&
           (request->rules ? rewrite_choose(rewrite, error)
                           : rewrite_choose_moves(rewrite, error)) &&
           rewrite_place(rewrite, error) && rewrite_make_config(rewrite, error);
}

void rewrite_release(Rewrite *rewrite)
{
    for (int i = 0; i < rewrite->count; i++) {
        free(rewrite->tensor[i].name);
        free(rewrite->tensor[i].segment);
    }
    for (int i = 0; i < rewrite->shards; i++) {
        free(rewrite->shard[i].header);
        free(rewrite->shard[i].piece);
        free(rewrite->shard[i].member);
    }
    free(rewrite->tensor);
    free(rewrite->shard);
    free(rewrite->index);
    if (rewrite->config)
        json_destroy(rewrite->config);
    checkpoint_close(&rewrite->source);
}
