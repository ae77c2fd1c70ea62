// moe_combine.h -- expert rows on their way home, and the sums made there.
//
// moe_return writes each result straight into the return buffer of the token's home rank:
//   exact: one row per slot, as the expert stored it; weights and sums at home
//   fast:  one row per (token, rank): the sum of weight * row over ascending experts, rounded once
// moe_sum at home adds what came, in f32, in the order of its index list (exact: ascending expert;
// fast: ascending rank), adds the dense part, rounds once.
//
// Order, the same bits on every device: each sum is a chain sum = fmaf(weight, row, sum) from 0,
// weight 1 where there is none; the dense part is one more step fmaf(addend_weight, addend, sum).
#pragma once

#include "kernels/moe_plan.h"

DECLARATIONS_BEGIN

typedef struct MoeReturn {
    MoeShape shape;
    bool exact;
    int64_t hidden;
    DType dtype;
    const void *expert_rows;           // [expert_rows_max, hidden]
    const int32_t *counts;             // [ranks, count_words] received: rows per source
    const int32_t *headers;            // [ranks, tokens_max, header_words] received
    const int32_t *expert_row_of_slot; // [ranks, tokens_max, slots_max]
    const float *weight_of_expert_row; // fast only: NULL = weight 1
    void *const *rows_to; // [ranks] device array: return buffer of each home, whole: [*, hidden]
    // Gradient of the routing weights (backward): one float per slot, at the slot's return place.
    // NULL = none.
    const float *dweight_of_expert_row;
    float *const *dweights_to; // [ranks] device array
} MoeReturn;
KERNEL_DECLARE(moe_return, MoeReturn);

typedef struct MoeSum {
    int64_t tokens, hidden;
    int width; // places per token: top_k (exact) or ranks (fast)
    DType dtype;
    const void *returned; // [*, hidden]
    const int32_t *index; // [tokens, width] row of `returned`, -1 = none
    const float *weight;  // [tokens, width], or NULL = 1
    // A 1-rank reference of the fast mode groups its sums as `group_size` experts per rank would:
    // when the next place belongs to another group, the partial sum is rounded to dtype and added
    // to the total. 0 = no groups.
    int group_size;
    const int32_t *expert_of_slot; // [tokens, width], with group_size
    const float *addend;           // [tokens, hidden] f32, or NULL; added after the sum
    const float *addend_weight;    // [tokens] or NULL
    void *out;                     // [tokens, hidden]
} MoeSum;
KERNEL_DECLARE(moe_sum, MoeSum);

// weight * row for experts that take the score before: out[r] = round(weight[r] *
// x[row_of_expert_row[r]]). Without weights the rows as they are.
typedef struct MoeScaleRows {
    int64_t hidden, rows_max;
    DType dtype;
    const void *x;
    const int32_t *row_of_expert_row;  // [rows_max], -1 rows are skipped
    const int32_t *rows_total;         // [1] device
    const float *weight_of_expert_row; // NULL: 1
    void *out;                         // [rows_max, hidden]
} MoeScaleRows;
KERNEL_DECLARE(moe_scale_rows, MoeScaleRows);

// Row dot products: out[r] = sum_h a[r, h] * b[ib(r), h] in f32. Order, the same bits on every
// device: 32 partial sums, element h in sum (h / 8) % 32, each a chain of fmaf in ascending h from
// 0; then pairwise, sums 16, 8, 4, 2, 1 apart. Skipped rows keep what `out` holds.
typedef struct RowDot {
    int64_t hidden, rows_max;
    DType dtype_a, dtype_b;
    const void *a;
    const void *b;
    const int32_t *b_index;    // [rows_max] row of b, -1 = skip; NULL = r
    const int32_t *rows_total; // [1] device
    float *out;                // [rows_max]
} RowDot;
KERNEL_DECLARE(row_dot, RowDot);

DECLARATIONS_END
