// kernels_ranks.h -- several ranks of expert parallelism in one process: each has its plan, its
// receive buffers and its maps; "sending" is what moe_pack stores through its pointers. For the
// tests of the addressing and of the way home.
#pragma once

#include "kernels/moe_combine.h"
#include "kernels/moe_plan.h"
#include "tests/kernels_data.h"

enum { RANKS_MAX = 9 };

// One rank. The receive side has one fixed segment per source.
typedef struct TestRank {
    int64_t tokens;
    int32_t *expert_of_slot; // [tokens, top_k]
    float *weight_of_slot;   // [tokens, top_k]
    float *x;                // [tokens, hidden]
    MoePlan plan;
    MoeMaps maps;
    int32_t *counts_in;  // [ranks, count_words]
    int32_t *headers_in; // [ranks, tokens_max, header_words]
    float *rows_in;      // [ranks, tokens_max, hidden]
    int experts_local;
} TestRank;

typedef struct TestRanks {
    MoeShape shape;
    int64_t hidden;
    int align;
    bool compact;
    TestRank rank[RANKS_MAX];
} TestRanks;

static inline int ranks_experts_local(const MoeShape *shape, int rank)
{
    int left = shape->experts - rank * shape->experts_per_rank;
    return left < 0 ? 0 : left < shape->experts_per_rank ? left : shape->experts_per_rank;
}

static inline void ranks_plan(Data *data, TestRanks *all, int r)
{
    TestRank *rank = &all->rank[r];
    const MoeShape *shape = &all->shape;
    int64_t slots = rank->tokens * shape->top_k, pairs = rank->tokens * shape->ranks;
    rank->plan = (MoePlan){
        .shape = *shape,
        .tokens = rank->tokens,
        .expert_of_slot = rank->expert_of_slot,
        .compact = all->compact,
        .counts = data_poisoned(data, shape->ranks * shape->count_words, sizeof(int32_t)),
        .row_of_token = data_poisoned(data, pairs, sizeof(int32_t)),
        .position_of_slot = data_poisoned(data, slots, sizeof(int32_t)),
        .return_of_slot = data_poisoned(data, slots, sizeof(int32_t)),
        .return_of_row = data_poisoned(data, pairs, sizeof(int32_t)),
        .scratch =
            data_poisoned(data, moe_plan_scratch_words(shape, rank->tokens), sizeof(int32_t)),
    };
    moe_plan(&rank->plan, CPU);
}

static inline void ranks_pack(TestRanks *all, int source)
{
    const MoeShape *shape = &all->shape;
    const TestRank *rank = &all->rank[source];
    void *rows_to[RANKS_MAX];
    int32_t *headers_to[RANKS_MAX], *counts_to[RANKS_MAX];
    for (int to = 0; to < shape->ranks; to++) {
        TestRank *there = &all->rank[to];
        rows_to[to] = there->rows_in + source * shape->tokens_max * all->hidden;
        headers_to[to] = there->headers_in + source * shape->tokens_max * shape->header_words;
        counts_to[to] = there->counts_in + source * shape->count_words;
    }
    MoePack pack = {.shape = *shape,
                    .tokens = rank->tokens,
                    .hidden = all->hidden,
                    .dtype = DTYPE_F32,
                    .x = rank->x,
                    .row_of_token = rank->plan.row_of_token,
                    .rows_to = rows_to,
                    .headers_to = headers_to,
                    .counts_to = counts_to,
                    .counts = rank->plan.counts,
                    .expert_of_slot = rank->expert_of_slot,
                    .position_of_slot = rank->plan.position_of_slot,
                    .return_of_slot = rank->plan.return_of_slot,
                    .return_of_row = rank->plan.return_of_row,
                    .weight_of_slot = rank->weight_of_slot};
    moe_pack(&pack, CPU);
}

static inline void ranks_map(Data *data, TestRanks *all, int r)
{
    TestRank *rank = &all->rank[r];
    const MoeShape *shape = &all->shape;
    int64_t slots_here = rank->experts_local < shape->top_k ? rank->experts_local : shape->top_k;
    int64_t room = shape->ranks * shape->tokens_max * slots_here + rank->experts_local * all->align;
    int64_t places = shape->ranks * shape->tokens_max * shape->slots_max;
    rank->maps = (MoeMaps){
        .shape = *shape,
        .experts_local = rank->experts_local,
        .align = all->align,
        .expert_rows_max = room,
        .counts = rank->counts_in,
        .headers = rank->headers_in,
        .group_rows = data_poisoned(data, rank->experts_local, sizeof(int32_t)),
        .group_first = data_poisoned(data, rank->experts_local, sizeof(int32_t)),
        .rows_total = data_poisoned(data, 1, sizeof(int32_t)),
        .row_of_expert_row = data_poisoned(data, room, sizeof(int32_t)),
        .return_of_expert_row = data_poisoned(data, room, sizeof(int32_t)),
        .weight_of_expert_row = data_poisoned(data, room, sizeof(float)),
        .expert_row_of_slot = data_poisoned(data, places, sizeof(int32_t)),
    };
    moe_maps(&rank->maps, CPU);
}

// Given shape, hidden, align, compact, and per rank tokens and expert_of_slot: fills x and the
// weights and runs plan, pack and maps on every rank.
static inline void ranks_dispatch(Data *data, TestRanks *all)
{
    const MoeShape *shape = &all->shape;
    int64_t rows = shape->ranks * shape->tokens_max;
    for (int r = 0; r < shape->ranks; r++) {
        TestRank *rank = &all->rank[r];
        rank->experts_local = ranks_experts_local(shape, r);
        rank->weight_of_slot = data_normals(data, rank->tokens * shape->top_k, DTYPE_F32, 1.0f);
        rank->x = data_normals(data, rank->tokens * all->hidden, DTYPE_F32, 1.0f);
        rank->counts_in = data_poisoned(data, shape->ranks * shape->count_words, sizeof(int32_t));
        rank->headers_in = data_poisoned(data, rows * shape->header_words, sizeof(int32_t));
        rank->rows_in = data_poisoned(data, rows * all->hidden, sizeof(float));
        ranks_plan(data, all, r);
    }
    for (int r = 0; r < shape->ranks; r++)
        ranks_pack(all, r);
    for (int r = 0; r < shape->ranks; r++)
        ranks_map(data, all, r);
}

// top_k different experts in ascending order; often crowded onto few experts.
static inline void ranks_choose(Data *data, const MoeShape *shape, int32_t *slot)
{
    bool taken[256] = {false};
    int64_t span = data_below(data, 3) ? shape->experts : shape->top_k;
    for (int j = 0; j < shape->top_k; j++) {
        int64_t expert = data_below(data, span);
        while (taken[expert])
            expert = (expert + 1) % shape->experts;
        taken[expert] = true;
    }
    for (int expert = 0, j = 0; expert < shape->experts; expert++)
        if (taken[expert])
            slot[j++] = expert;
}

// Any ranks, experts (dividing or not, fewer than ranks or not), top_k, uneven tokens (0 included)
// and alignment.
static inline TestRanks ranks_random(Data *data)
{
    const int aligns[] = {1, 8, 128};
    int ranks = 1 + (int)data_below(data, RANKS_MAX), experts = 1 + (int)data_below(data, 20);
    int top_k =
        data_below(data, 4) ? 1 + (int)data_below(data, experts < 6 ? experts : 6) : experts;
    TestRanks all = {.hidden = 1 + data_below(data, 20),
                     .align = aligns[data_below(data, 3)],
                     .compact = data_below(data, 2)};
    int64_t tokens_max = 0;
    for (int r = 0; r < ranks; r++) {
        all.rank[r].tokens = data_below(data, 4) ? data_below(data, 25) : 0;
        tokens_max = tokens_max > all.rank[r].tokens ? tokens_max : all.rank[r].tokens;
    }
    all.shape = moe_shape(ranks, experts, top_k, tokens_max + data_below(data, 3));
    for (int r = 0; r < ranks; r++) {
        TestRank *rank = &all.rank[r];
        rank->expert_of_slot = data_poisoned(data, rank->tokens * top_k, sizeof(int32_t));
        for (int64_t t = 0; t < rank->tokens; t++)
            ranks_choose(data, &all.shape, rank->expert_of_slot + t * top_k);
    }
    return all;
}
