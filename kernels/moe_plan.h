// moe_plan.h -- who gets which row: the addressing of expert parallelism, all of it in device
// memory.
//
// Words: a *row* is a token on its way to a rank (once per destination rank, however many of its
// experts live there); a *slot* is a (token, expert) pair, a token's slots by ascending expert; an
// *expert row* is a slot's place in the expert-major matrix that the grouped GEMM works on.
// `experts_per_rank` is c = ceil(experts / ranks): expert e lives on rank e / c (SEMANTICS.md:
// uneven shards, the last ranks may hold fewer or none).
//
// Three steps. The plan (sender): counts, and where each row and slot will go. Pack (sender): rows,
// a header per row and a count record per destination are written straight to where the destination
// wants them. Maps (receiver): the expert rows in (source rank, token) order, which is what keeps
// sums the same on every layout.
//
// Nothing here depends on the order in which threads run: positions are ranks in token order, not
// atomics' returns.
#pragma once

#include "kernels/kernel.h"

DECLARATIONS_BEGIN

// Count record from one source to one destination: words of int32.
enum {
    MOE_COUNT_ROWS = 0,    // rows in the segment
    MOE_COUNT_SLOTS = 1,   // slots in them
    MOE_COUNT_EXPERTS = 2, // then one count per local expert of the destination [experts_per_rank]
};
// Row header: words of int32.
enum {
    MOE_HEADER_SLOTS = 0,   // slots of this row, at least 1
    MOE_HEADER_RETURN_SLOT, // place of the first slot in the source's return buffer (exact); the
                            // others follow
    MOE_HEADER_RETURN_ROW,  // place of the row in the source's return buffer (one row per token and
                            // rank)
    MOE_HEADER_TOKEN,       // index at the source, for error messages and tests
    MOE_HEADER_FIXED, // then per slot (words past the row's slots are not written): local expert,
                      // position among the source's rows of it, weight (f32 bits)
    MOE_HEADER_PER_SLOT = 3,
};

typedef struct MoeShape {
    int ranks, experts, top_k;
    int experts_per_rank; // c
    int slots_max;        // most slots of a row: min(top_k, c)
    int64_t tokens_max;   // most tokens on any rank: the length of a segment
    int count_words;      // MOE_COUNT_EXPERTS + c
    int header_words;     // MOE_HEADER_FIXED + MOE_HEADER_PER_SLOT * slots_max
} MoeShape;
MoeShape moe_shape(int ranks, int experts, int top_k, int64_t tokens_max); // Local

typedef struct MoePlan {
    MoeShape shape;
    int64_t tokens;                // on this rank
    const int32_t *expert_of_slot; // [tokens, top_k]
    bool compact; // return places of all ranks packed one after another (peer memory, MPI); false:
                  // rank p's start at p * segment (p * tokens_max for rows, p * tokens_max *
                  // slots_max for slots: fixed-size exchange)
    int32_t *counts;       // out [ranks, count_words]: the count records to send
    int32_t *row_of_token; // out [tokens, ranks]: index of the token's row in the segment to that
                           // rank, -1 = none
    int32_t *position_of_slot; // out [tokens, top_k]: place among this rank's rows of that expert
    int32_t *
        return_of_slot; // out [tokens, top_k]: place in this rank's return buffer, one row per slot
    int32_t
        *return_of_row; // out [tokens, ranks]: place there, one row per (token, rank); -1 = none
    int32_t *scratch;   // [moe_plan_scratch_words(shape, tokens)]
} MoePlan;
int64_t moe_plan_scratch_words(const MoeShape *shape, int64_t tokens); // Local
KERNEL_DECLARE(moe_plan, MoePlan);

typedef struct MoePack {
    MoeShape shape;
    int64_t tokens, hidden;
    DType dtype;
    const void *x;               // [tokens, hidden]
    const int32_t *row_of_token; // [tokens, ranks]
    void *const
        *rows_to; // [ranks] device array: where the rows to rank p go, [tokens_max, hidden];
                  // NULL: headers and counts only (one rank: rows are gathered from x itself)
    // Headers and counts travel with the forward rows only; headers_to NULL leaves them out.
    int32_t *const *headers_to; // [ranks] device array: [tokens_max, header_words]
    int32_t *const *counts_to;  // [ranks] device array: [count_words]
    const int32_t *counts;      // [ranks, count_words]
    const int32_t *expert_of_slot, *position_of_slot, *return_of_slot; // [tokens, top_k]
    const int32_t *return_of_row;                                      // [tokens, ranks]
    const float *weight_of_slot;                                       // [tokens, top_k]
} MoePack;
KERNEL_DECLARE(moe_pack, MoePack);

typedef struct MoeMaps {
    MoeShape shape;
    int experts_local;
    int align; // rows of an expert are padded to a multiple; above 1 an empty expert still gets
               // `align`
    int64_t expert_rows_max;    // room in the outputs
    const int32_t *counts;      // [ranks, count_words] received, by source
    const int32_t *headers;     // [ranks, tokens_max, header_words] received
    int32_t *group_rows;        // out [experts_local]: real rows
    int32_t *group_first;       // out [experts_local]: first expert row (multiple of align)
    int32_t *rows_total;        // out [1]: end of the last group's padded rows
    int32_t *row_of_expert_row; // out [expert_rows_max]: source * tokens_max + index, -1 = padding
    int32_t *return_of_expert_row; // out [expert_rows_max]: MOE_HEADER_RETURN_SLOT + slot of it, -1
                                   // = padding
    float *weight_of_expert_row;   // out [expert_rows_max]: routing weight, 0 for padding
    int32_t *expert_row_of_slot;   // out [ranks, tokens_max, slots_max]: -1 past a row's slots;
                                   // received rows only
} MoeMaps;
KERNEL_DECLARE(moe_maps, MoeMaps);

DECLARATIONS_END
