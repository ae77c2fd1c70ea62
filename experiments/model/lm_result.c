// Shards put together.
#include "experiments/model/lm_result.h"

#include <stdlib.h>
#include <string.h>

static void *clear(size_t count, size_t bytes)
{
    void *memory = calloc(count + 1, bytes);
    CHECK(memory != NULL, EXIT_CODE_HARDWARE, "use --no-check", "no memory for whole parameters");
    return memory;
}

LmWhole lm_whole_create(const LmParameters *parameters)
{
    LmWhole whole = {.count = parameters->count};
    whole.tensor = clear((size_t)whole.count, sizeof(float *));
    whole.sum_of_copies = clear((size_t)whole.count, sizeof(float *));
    for (int i = 0; i < whole.count; i++)
        whole.tensor[i] =
            clear((size_t)tensor_elements(&parameters->parameter[i].whole), sizeof(float));
    return whole;
}

void lm_whole_destroy(LmWhole *whole)
{
    for (int i = 0; i < whole->count; i++) {
        free(whole->tensor[i]);
        free(whole->sum_of_copies[i]);
    }
    free(whole->tensor);
    free(whole->sum_of_copies);
    *whole = (LmWhole){0};
}

LmResult lm_result_create(const LmParameters *parameters, const LmConfig *config, int steps,
                          bool wholes)
{
    const LmParameters none = {0};
    const LmParameters *whole = wholes ? parameters : &none;
    return (LmResult){.steps = steps,
                      .loss = clear((size_t)steps, sizeof(double)),
                      .norm = clear((size_t)steps, sizeof(double)),
                      .first_gradient = lm_whole_create(whole),
                      .last_gradient = lm_whole_create(whole),
                      .values = lm_whole_create(whole),
                      .bias = clear((size_t)(config->layers * config->moe.experts), sizeof(float))};
}

void lm_result_destroy(LmResult *result)
{
    free(result->loss);
    free(result->norm);
    free(result->bias);
    lm_whole_destroy(&result->first_gradient);
    lm_whole_destroy(&result->last_gradient);
    lm_whole_destroy(&result->values);
    *result = (LmResult){0};
}

// What one rank holds of one parameter, run by run.
typedef struct Piece {
    const DTensor *part;
    const float *local;
    float *whole;
    bool owner;
} Piece;

// Owners write; copies are compared with what owners wrote. False if a copy differs.
static bool place_piece(const Piece *piece)
{
    int64_t length = piece->part->local.shape[piece->part->local.rank - 1];
    int64_t runs = length > 0 ? lm_runs(piece->part) : 0;
    for (int64_t run = 0; run < runs; run++) {
        float *at = piece->whole + lm_run_index(piece->part, run);
        const float *from = piece->local + run * length;
        if (piece->owner)
            memcpy(at, from, (size_t)length * sizeof(float));
        else if (memcmp(at, from, (size_t)length * sizeof(float)) != 0)
            return false;
    }
    return true;
}

static void add_piece(const Piece *piece)
{
    int64_t length = piece->part->local.shape[piece->part->local.rank - 1];
    int64_t runs = length > 0 ? lm_runs(piece->part) : 0;
    for (int64_t run = 0; run < runs; run++) {
        float *at = piece->whole + lm_run_index(piece->part, run);
        for (int64_t i = 0; i < length; i++)
            at[i] += piece->local[run * length + i];
    }
}

// Where one rank's shards stand in its flat array.
typedef struct RankPlan {
    LmLayout seen;
    FsdpParameter *parameters;
    FsdpPlan plan;
} RankPlan;

static RankPlan rank_plan_create(const LmTrainer *trainer, int rank)
{
    const LmTrainerSettings *s = lm_trainer_settings(trainer);
    RankPlan r = {.seen = lm_layout_seen_from(s->layout, rank)};
    r.parameters = lm_fsdp_parameters(&r.seen);
    LmGroups groups = lm_groups_without_links(&r.seen, s->training);
    FsdpSettings settings = lm_fsdp_settings(&r.seen, s->training, &groups, r.parameters);
    r.plan = fsdp_plan_create(&settings);
    return r;
}

static void rank_plan_destroy(RankPlan *r)
{
    free(r->parameters);
    fsdp_plan_destroy(&r->plan);
}

static const float *shard_of_rank(const RankPlan *r, int parameter, const float *flat)
{
    const FsdpParameter *p = &r->parameters[parameter];
    return flat + r->plan.unit[p->unit].bucket[p->group].flat + r->plan.place[parameter].shard;
}

// Rows of a strided shard read as if FSDP had cut first: the bug of checkpoint code that ignores
// tp.
static DTensor part_of(const LmTrainer *trainer, const LmLayout *seen, int parameter)
{
    DTensor part = lm_shard(seen, parameter);
    bool strided = part.placement[1].split_factor > 1;
    if (lm_trainer_settings(trainer)->plant == LM_PLANT_PERMUTED_ROWS && strided) {
        Placement plain[MESH_AXES_MAX];
        memcpy(plain, part.placement, sizeof plain);
        plain[1] = placement_shard(0);
        Tensor whole = seen->parameters->parameter[parameter].whole;
        part = dtensor_make(part.mesh, &whole, plain);
    }
    return part;
}

typedef enum Pass { PASS_OWNERS, PASS_COPIES, PASS_SUM, PASSES } Pass;

// One pass over all ranks' pieces of all parameters. differs: [parameters], set by PASS_COPIES.
static void pass_over(const LmTrainer *trainer, Pass pass, const float *const *flat, int ranks,
                      LmWhole *whole, bool *differs)
{
    for (int rank = 0; rank < ranks; rank++) {
        RankPlan r = rank_plan_create(trainer, rank);
        for (int i = 0; i < whole->count; i++) {
            bool owner = lm_is_owner(&r.seen, i, rank);
            DTensor part = part_of(trainer, &r.seen, i);
            Piece piece = {&part, shard_of_rank(&r, i, flat[rank]), whole->tensor[i], owner};
            if (pass == PASS_OWNERS && owner)
                place_piece(&piece);
            if (pass == PASS_COPIES && !owner && !place_piece(&piece))
                differs[i] = true;
            piece.whole = whole->sum_of_copies[i];
            if (pass == PASS_SUM && differs[i])
                add_piece(&piece);
        }
        rank_plan_destroy(&r);
    }
}

void lm_gather_whole(const Run *run, const LmTrainer *trainer, const float *flat, LmWhole *whole,
                     Stream stream)
{
    uint64_t bytes = dtype_bytes(DTYPE_F32, (uint64_t)fsdp_plan(lm_trainer_fsdp(trainer))->flat);
    float *host = clear(bytes, 1);
    if (bytes > 0)
        device_copy(host, flat, bytes, stream);
    stream_wait(stream);
    uint64_t *sizes = clear((size_t)run->ranks, sizeof(uint64_t));
    char *pieces = run_gather_pieces(run, host, bytes, sizes);
    if (pieces) {
        const float **of_rank = clear((size_t)run->ranks, sizeof(*of_rank));
        bool *differs = clear((size_t)whole->count, sizeof(bool));
        for (int rank = 0; rank < run->ranks; rank++)
            of_rank[rank] = rank
                                ? (const float *)((const char *)of_rank[rank - 1] + sizes[rank - 1])
                                : (const float *)pieces;
        pass_over(trainer, PASS_OWNERS, of_rank, run->ranks, whole, differs);
        pass_over(trainer, PASS_COPIES, of_rank, run->ranks, whole, differs);
        const LmParameters *list = lm_trainer_settings(trainer)->layout->parameters;
        for (int i = 0; i < whole->count; i++)
            if (differs[i] && !whole->sum_of_copies[i])
                whole->sum_of_copies[i] =
                    clear((size_t)tensor_elements(&list->parameter[i].whole), sizeof(float));
        pass_over(trainer, PASS_SUM, of_rank, run->ranks, whole, differs);
        free(of_rank);
        free(differs);
    }
    free(pieces);
    free(sizes);
    free(host);
}
