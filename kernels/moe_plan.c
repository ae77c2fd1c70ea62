// moe_plan.c -- the addressing of expert parallelism on the CPU: plan, pack and maps as plain loops
// in token order.
//
// This is the reference for the CUDA rows. Only copying rows is worth threads; the rest touches a
// few words per token. Source: the dispatch of torchtitan's expert parallelism, with one row per
// (token, rank) instead of one per slot.

#include "kernels/moe_plan.h"
#include "kernels/cpu_math.h"

KERNEL_DEFINE(moe_plan, MoePlan)
KERNEL_DEFINE(moe_pack, MoePack)
KERNEL_DEFINE(moe_maps, MoeMaps)

// Tokens whose keys the CUDA row counts together; its counts and their total are the scratch.
enum { SCRATCH_CHUNK_TOKENS = 128 };

MoeShape moe_shape(int ranks, int experts, int top_k, int64_t tokens_max)
{
    CHECK_RULE(ranks >= 1 && experts >= 1 && tokens_max >= 0);
    CHECK_RULE(top_k >= 1 && top_k <= experts);
    int experts_per_rank = (experts + ranks - 1) / ranks;
    int slots_max = top_k < experts_per_rank ? top_k : experts_per_rank;
    return (MoeShape){.ranks = ranks,
                      .experts = experts,
                      .top_k = top_k,
                      .experts_per_rank = experts_per_rank,
                      .slots_max = slots_max,
                      .tokens_max = tokens_max,
                      .count_words = MOE_COUNT_EXPERTS + experts_per_rank,
                      .header_words = MOE_HEADER_FIXED + MOE_HEADER_PER_SLOT * slots_max};
}

int64_t moe_plan_scratch_words(const MoeShape *shape, int64_t tokens)
{
    int64_t chunks = (tokens + SCRATCH_CHUNK_TOKENS - 1) / SCRATCH_CHUNK_TOKENS;
    return (chunks + 1) * shape->ranks * shape->count_words;
}

// Places counted from the start of each rank's segment; the counts run along and end as the
// records.
static void place_in_segments(const MoePlan *args)
{
    const MoeShape *shape = &args->shape;
    memset(args->counts, 0, sizeof(int32_t) * (size_t)shape->ranks * (size_t)shape->count_words);
    for (int64_t token = 0; token < args->tokens; token++) {
        int32_t *row = args->row_of_token + token * shape->ranks;
        for (int rank = 0; rank < shape->ranks; rank++)
            row[rank] = -1;
        for (int64_t slot = token * shape->top_k; slot < (token + 1) * shape->top_k; slot++) {
            int expert = args->expert_of_slot[slot];
            int rank = expert / shape->experts_per_rank;
            int32_t *counts = args->counts + (int64_t)rank * shape->count_words;
            if (row[rank] < 0)
                row[rank] = counts[MOE_COUNT_ROWS]++;
            args->return_of_slot[slot] = counts[MOE_COUNT_SLOTS]++;
            args->position_of_slot[slot] =
                counts[MOE_COUNT_EXPERTS + expert % shape->experts_per_rank]++;
        }
    }
}

// Where the return places of the ranks before `rank` end, for word MOE_COUNT_ROWS or
// MOE_COUNT_SLOTS.
static int32_t return_base(const MoePlan *args, int rank, int word)
{
    const MoeShape *shape = &args->shape;
    if (!args->compact) {
        int64_t per_token = word == MOE_COUNT_SLOTS ? shape->slots_max : 1;
        return (int32_t)(rank * shape->tokens_max * per_token);
    }
    int32_t base = 0;
    for (int before = 0; before < rank; before++)
        base += args->counts[(int64_t)before * shape->count_words + word];
    return base;
}

void moe_plan_cpu(const MoePlan *args, Stream stream)
{
    (void)stream;
    const MoeShape *shape = &args->shape;
    place_in_segments(args);
    for (int rank = 0; rank < shape->ranks; rank++) {
        int32_t row_base = return_base(args, rank, MOE_COUNT_ROWS);
        int32_t slot_base = return_base(args, rank, MOE_COUNT_SLOTS);
        for (int64_t token = 0; token < args->tokens; token++) {
            int32_t row = args->row_of_token[token * shape->ranks + rank];
            args->return_of_row[token * shape->ranks + rank] = row < 0 ? -1 : row_base + row;
        }
        for (int64_t slot = 0; slot < args->tokens * shape->top_k; slot++)
            if (args->expert_of_slot[slot] / shape->experts_per_rank == rank)
                args->return_of_slot[slot] += slot_base;
    }
}

KernelCost moe_plan_cost(const MoePlan *args)
{
    double tokens = (double)args->tokens, ranks = (double)args->shape.ranks;
    double words = tokens * (3.0 * (double)args->shape.top_k + 2.0 * ranks) +
                   ranks * (double)args->shape.count_words;
    return (KernelCost){.bytes = 4.0 * words};
}

// The header of a token's row to `rank`: its slots there are neighbours, since slots ascend by
// expert.
static void pack_header(const MoePack *args, int64_t token, int rank)
{
    const MoeShape *shape = &args->shape;
    int32_t row = args->row_of_token[token * shape->ranks + rank];
    int32_t *header = args->headers_to[rank] + (int64_t)row * shape->header_words;
    int32_t slots = 0;
    for (int64_t slot = token * shape->top_k; slot < (token + 1) * shape->top_k; slot++) {
        int expert = args->expert_of_slot[slot];
        if (expert / shape->experts_per_rank != rank)
            continue;
        if (slots == 0)
            header[MOE_HEADER_RETURN_SLOT] = args->return_of_slot[slot];
        int32_t *words = header + MOE_HEADER_FIXED + MOE_HEADER_PER_SLOT * slots++;
        words[0] = expert - rank * shape->experts_per_rank;
        words[1] = args->position_of_slot[slot];
        memcpy(&words[2], &args->weight_of_slot[slot], sizeof words[2]);
    }
    header[MOE_HEADER_SLOTS] = slots;
    header[MOE_HEADER_RETURN_ROW] = args->return_of_row[token * shape->ranks + rank];
    header[MOE_HEADER_TOKEN] = (int32_t)token;
}

static void pack_token(const MoePack *args, int64_t token)
{
    int64_t row_bytes = (int64_t)dtype_bytes(args->dtype, (uint64_t)args->hidden);
    for (int rank = 0; rank < args->shape.ranks; rank++) {
        int64_t row = args->row_of_token[token * args->shape.ranks + rank];
        if (row < 0)
            continue;
        if (args->rows_to)
            memcpy((char *)args->rows_to[rank] + row * row_bytes,
                   (const char *)args->x + token * row_bytes, (size_t)row_bytes);
        if (args->headers_to)
            pack_header(args, token, rank);
    }
}

void moe_pack_cpu(const MoePack *args, Stream stream)
{
    (void)stream;
    const MoeShape *shape = &args->shape;
    for (int rank = 0; rank < shape->ranks && args->headers_to; rank++)
        memcpy(args->counts_to[rank], args->counts + (int64_t)rank * shape->count_words,
               sizeof(int32_t) * (size_t)shape->count_words);
#pragma omp parallel for schedule(static) if (args->tokens * args->hidden >= CPU_PARALLEL_MIN)
    for (int64_t token = 0; token < args->tokens; token++)
        pack_token(args, token);
}

// Every rank equally likely for each slot: the ranks that a token needs.
KernelCost moe_pack_cost(const MoePack *args)
{
    double tokens = (double)args->tokens, ranks = (double)args->shape.ranks, avoided = 1.0;
    for (int slot = 0; slot < args->shape.top_k; slot++)
        avoided *= 1.0 - 1.0 / ranks;
    double rows = tokens * ranks * (1.0 - avoided);
    double row_bytes = (double)dtype_bytes(args->dtype, (uint64_t)args->hidden);
    double words = tokens * ranks; // row_of_token
    if (args->headers_to)
        words += rows * (double)(MOE_HEADER_FIXED + 1) +
                 tokens * (double)args->shape.top_k * (4.0 + (double)MOE_HEADER_PER_SLOT) +
                 2.0 * ranks * (double)args->shape.count_words;
    return (KernelCost){.bytes = (args->rows_to ? (tokens + rows) * row_bytes : 0.0) + 4.0 * words};
}

static int32_t padded_rows(int32_t rows, int32_t align)
{
    if (align > 1 && rows == 0)
        return align;
    return (rows + align - 1) / align * align;
}

// Rows of a local expert that come from sources before `source`.
static int32_t rows_before(const MoeMaps *args, int expert, int source)
{
    int32_t rows = 0;
    for (int rank = 0; rank < source; rank++)
        rows += args->counts[(int64_t)rank * args->shape.count_words + MOE_COUNT_EXPERTS + expert];
    return rows;
}

// The slots of a received row. Its place inside the expert: after the sources before it, in token
// order.
static void map_row(const MoeMaps *args, int source, int64_t index)
{
    const MoeShape *shape = &args->shape;
    int64_t row = source * shape->tokens_max + index;
    const int32_t *header = args->headers + row * shape->header_words;
    for (int slot = 0; slot < shape->slots_max; slot++) {
        int32_t *expert_row = args->expert_row_of_slot + row * shape->slots_max + slot;
        *expert_row = -1;
        if (slot >= header[MOE_HEADER_SLOTS])
            continue;
        const int32_t *words = header + MOE_HEADER_FIXED + MOE_HEADER_PER_SLOT * slot;
        int expert = words[0];
        *expert_row = args->group_first[expert] + rows_before(args, expert, source) + words[1];
        args->row_of_expert_row[*expert_row] = (int32_t)row;
        args->return_of_expert_row[*expert_row] = header[MOE_HEADER_RETURN_SLOT] + slot;
        memcpy(&args->weight_of_expert_row[*expert_row], &words[2], sizeof words[2]);
    }
}

void moe_maps_cpu(const MoeMaps *args, Stream stream)
{
    (void)stream;
    const MoeShape *shape = &args->shape;
    int32_t total = 0;
    for (int expert = 0; expert < args->experts_local; expert++) {
        args->group_rows[expert] = rows_before(args, expert, shape->ranks);
        args->group_first[expert] = total;
        total += padded_rows(args->group_rows[expert], args->align);
    }
    *args->rows_total = total;
    CHECK_RULE(total <= args->expert_rows_max);
    memset(args->row_of_expert_row, 0xFF, sizeof(int32_t) * (size_t)args->expert_rows_max);
    memset(args->return_of_expert_row, 0xFF, sizeof(int32_t) * (size_t)args->expert_rows_max);
    memset(args->weight_of_expert_row, 0, sizeof(float) * (size_t)args->expert_rows_max);
    for (int source = 0; source < shape->ranks; source++) {
        int32_t rows = args->counts[(int64_t)source * shape->count_words + MOE_COUNT_ROWS];
        for (int64_t index = 0; index < rows; index++)
            map_row(args, source, index);
    }
}

// All segments full: the received counts are known on the device only.
KernelCost moe_maps_cost(const MoeMaps *args)
{
    double rows = (double)args->shape.ranks * (double)args->shape.tokens_max;
    double words = rows * (double)(args->shape.header_words + args->shape.slots_max) +
                   3.0 * (double)args->expert_rows_max + 2.0 * (double)args->experts_local +
                   (double)args->shape.ranks * (double)args->shape.count_words;
    return (KernelCost){.bytes = 4.0 * words};
}
