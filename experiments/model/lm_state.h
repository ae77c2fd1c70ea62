// lm_state.h -- what lm_run.c, lm_forward.c and lm_backward.c share: buffers of one rank.
#pragma once

#include "experiments/model/lm_run.h"

// Rows that a product or a norm works on: this rank's residual rows, or all of its tp group's.
typedef enum LmRows { LM_ROWS_MINE, LM_ROWS_ALL, LM_ROWS_KINDS } LmRows;

typedef struct LmRange {
    int64_t first, count;
} LmRange;

typedef struct LmBlock {
    void *h;     // [rows_padded, dim] what comes in
    void *n;     // [rows_padded, dim] after the norm
    void *n_all; // [all_padded, dim] the same of the whole tp group; n where that is all
    float *rstd; // [rows_padded]
    void *gu;    // [rows, 2 * inner]; in the backward its gradient
    Moe **moe;   // [groups]
    float *expert_bias;
    int64_t inner; // of this rank
} LmBlock;

struct Lm {
    LmSettings settings;
    int64_t rows, first_row;          // residual rows of this rank, within the tp group's tokens
    int64_t rows_padded, all_padded;  // room: a share of ceil(tokens / tp) rows; all shares
    int64_t vocab_first, vocab_count; // of the head here
    int64_t table_first, table_count; // of the embedding here
    LmRange *range[LM_ROWS_KINDS];    // [parts]
    int32_t *part_first[LM_ROWS_KINDS], *part_rows[LM_ROWS_KINDS]; // [parts] device
    int32_t *all_first[LM_ROWS_KINDS], *all_rows[LM_ROWS_KINDS];   // [1] device
    int32_t *ids, *targets;                                        // [all_padded]
    LmBlock *block;           // [layers + 1]: the last one is the final norm
    void *logits;             // [rows, vocab here] saved by the head, as are the next three
    float *row_max, *row_sum; // [tokens]; row_sum and target_logit side by side
    float *target_logit;
    // Scratch of one block or head.
    void *y, *dy_all; // [all_padded, dim]
    float *wide;      // [all_padded, dim] a term of a sum over tp
    void *narrow;     // [all_padded, dim] the same as it travels, where that is not f32
    void *a;          // [rows, inner]
    void *dh, *dn;    // [all_padded, dim]
    double *totals;   // [parts][CROSS_ENTROPY_TOTALS]
    float *norm_scratch;
    int32_t *embedding_scratch;
    float *router_gradient;  // [parts, router_rows, dim]
    void *group_x, *group_y; // [tokens, dim] rows of a group side by side
    void *tp_scratch;
    void *product_workspace;           // of the device's library, when not exact
    int32_t *choices;                  // [tokens, top_k] host, for counting
    uint64_t bytes[MEMORY_CATEGORIES]; // pushed
    uint64_t saved_bytes;              // of all units, each tensor rounded up
    uint64_t *saved_first_bytes;       // [units + 1] where a unit's begin; where all end
    bool again;
};

static inline void *lm_rows_at(const Lm *lm, const void *base, int64_t row)
{
    const LmConfig *c = lm->settings.layout->config;
    return (char *)base + dtype_bytes(c->dtype, (uint64_t)(row * c->dim));
}
// A product over rows, everything but the operands filled in; TN over one part's rows.
GroupedGemm lm_product(const Lm *lm, GemmForm form, LmRows rows);
GroupedGemm lm_part_product(const Lm *lm, LmRows rows, int part);
// Enqueues(stream). Exact: a row has the same bits in any matrix; else by the device's library.
// first_row: of the product's one group; 0 but for TN.
void lm_multiply(const Lm *lm, const GroupedGemm *product, int64_t first_row, Stream stream);
// Collective(tp), Enqueues(stream). lm->wide [all_padded, dim] summed over tp into out: this rank's
// rows. mine [rows_padded, dim] of every rank into all.
void lm_sum_over_tp(Lm *lm, void *out, Stream stream);
void lm_gather_over_tp(Lm *lm, const void *mine, void *all, Stream stream);
void lm_cast(const Lm *lm, const void *from, DType from_dtype, void *to, DType to_dtype,
             int64_t rows, Stream stream);

static inline const void *lm_value(const Lm *lm, int parameter)
{
    return lm->settings.store.value(lm->settings.store.context, parameter);
}
static inline float *lm_gradient(const Lm *lm, int parameter, int part)
{
    return lm->settings.store.gradient(lm->settings.store.context, parameter, part);
}
// Which rows the feed-forward of a block sees.
static inline LmRows lm_ffn_rows(const Lm *lm, int layer)
{
    return lm->settings.layout->flow[layer] == LM_FLOW_SPLIT_INNER ? LM_ROWS_ALL : LM_ROWS_MINE;
}
static inline LmRows lm_head_rows(const Lm *lm)
{
    return lm->settings.layout->split_head ? LM_ROWS_ALL : LM_ROWS_MINE;
}
// Copies the rows of a group's parts side by side, or back.
void lm_group_rows(const Lm *lm, int group, void *whole, void *packed, bool pack, Stream stream);
