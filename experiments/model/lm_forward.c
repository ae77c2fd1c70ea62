// The model's forward pass: embedding, blocks, head, loss.
//
// Where tensor parallelism enters, in the words of SEMANTICS.md section 4: a product whose weight
// is divided by rows (colwise) reads all rows of the tp group, one divided by columns (rowwise)
// makes a term of a sum over tp. With sequence parallelism the residual rows are divided between
// blocks: they are gathered before the first and reduce-scattered after the second.
#include "experiments/model/lm_state.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/rms_norm.h"
#include "kernels/swiglu.h"
#include "parallel/ordered.h"

static const LmConfig *config_of(const Lm *lm)
{
    return lm->settings.layout->config;
}

static void embed(Lm *lm, Stream stream)
{
    const LmConfig *c = config_of(lm);
    bool split = lm->settings.layout->split_embedding;
    void *out = split ? lm->y : lm->block[0].h;
    embedding_forward(&(EmbeddingForward){.tokens = split ? lm->settings.tokens : lm->rows,
                                          .hidden = c->dim,
                                          .vocab_first = lm->table_first,
                                          .vocab_count = lm->table_count,
                                          .dtype = c->dtype,
                                          .ids = lm->ids + (split ? 0 : lm->first_row),
                                          .table = lm_value(lm, 0),
                                          .y = out},
                      stream);
    if (!split)
        return;
    lm_cast(lm, out, c->dtype, lm->wide, DTYPE_F32, lm->settings.tokens, stream);
    lm_sum_over_tp(lm, lm->block[0].h, stream);
}

static void norm(Lm *lm, int layer, int parameter, Stream stream)
{
    const LmConfig *c = config_of(lm);
    LmBlock *block = &lm->block[layer];
    rms_norm_forward(&(RmsNormForward){.rows = lm->rows,
                                       .hidden = c->dim,
                                       .dtype = c->dtype,
                                       .eps = c->eps,
                                       .x = block->h,
                                       .weight = lm_value(lm, parameter),
                                       .y = block->n,
                                       .rstd_out = block->rstd},
                     stream);
    if (block->n_all != block->n)
        lm_gather_over_tp(lm, block->n, block->n_all, stream);
}

// out = w2 (silu(g) * u), [g u] = w13 x, over this rank's share of the inner width. A whole result
// in the storage type, a term of a sum in f32.
static void mlp(Lm *lm, int layer, const void *x, void *out, DType out_dtype, Stream stream)
{
    const LmConfig *c = config_of(lm);
    LmBlock *block = &lm->block[layer];
    LmRows rows = lm_ffn_rows(lm, layer);
    GroupedGemm first = lm_product(lm, GEMM_NT, rows);
    first.n = 2 * block->inner;
    first.k = c->dim;
    first.a = x;
    first.a_stride = c->dim;
    first.b = lm_value(lm, lm_block_parameter(layer, LM_BLOCK_FIRST)); // up stands behind gate
    first.c = block->gu;
    lm_multiply(lm, &first, 0, stream);
    swiglu_forward(&(SwigluForward){.inner = block->inner,
                                    .rows_max = first.rows_max,
                                    .dtype = c->dtype,
                                    .rows_total = lm->all_rows[rows],
                                    .gu = block->gu,
                                    .a = lm->a},
                   stream);
    GroupedGemm second = lm_product(lm, GEMM_NT, rows);
    second.out_dtype = out_dtype;
    second.n = c->dim;
    second.k = block->inner;
    second.a = lm->a;
    second.a_stride = block->inner;
    second.b = lm_value(lm, lm_block_parameter(layer, LM_BLOCK_OUT));
    second.c = out;
    lm_multiply(lm, &second, 0, stream);
}

static void moe(Lm *lm, int layer, void *x, void *out, Stream stream)
{
    LmBlock *block = &lm->block[layer];
    MoeWeights weights = {
        .router = (void *)lm_value(lm, lm_block_parameter(layer, LM_BLOCK_FIRST)),
        .expert_bias = config_of(lm)->moe.expert_bias ? block->expert_bias : NULL,
        .w13 = (void *)lm_value(lm, lm_block_parameter(layer, LM_BLOCK_IN)),
        .w2 = (void *)lm_value(lm, lm_block_parameter(layer, LM_BLOCK_OUT)),
    };
    if (lm->settings.parts == 1) {
        moe_forward(block->moe[0], &weights, x, out, stream);
        return;
    }
    for (int group = 0; group < lm->settings.groups; group++) {
        lm_group_rows(lm, group, x, lm->group_x, true, stream);
        moe_forward(block->moe[group], &weights, lm->group_x, lm->group_y, stream);
        lm_group_rows(lm, group, out, lm->group_y, false, stream);
    }
}

// y [rows, dim] of this rank's residual rows.
static void feed_forward(Lm *lm, int layer, Stream stream)
{
    const LmConfig *c = config_of(lm);
    LmBlock *block = &lm->block[layer];
    LmFlow flow = lm->settings.layout->flow[layer];
    int64_t share = lm->all_padded / lm->settings.tp.ranks;
    if (flow == LM_FLOW_SPLIT_TOKENS) { // n holds all rows: take a share, and gather the results
        moe(lm, layer, lm_rows_at(lm, block->n, lm->settings.tp.rank * share), lm->dn, stream);
        lm_gather_over_tp(lm, lm->dn, lm->y, stream);
    } else if (flow == LM_FLOW_LOCAL) {
        if (lm_is_moe(c))
            moe(lm, layer, block->n, lm->y, stream);
        else
            mlp(lm, layer, block->n, lm->y, c->dtype, stream);
    } else {
        if (lm_is_moe(c)) {
            moe(lm, layer, block->n_all, lm->dn, stream);
            lm_cast(lm, lm->dn, c->dtype, lm->wide, DTYPE_F32, lm->settings.tokens, stream);
        } else {
            mlp(lm, layer, block->n_all, lm->wide, DTYPE_F32, stream);
        }
        lm_sum_over_tp(lm, lm->y, stream);
    }
}

static void run_block(Lm *lm, int layer, Stream stream)
{
    const LmConfig *c = config_of(lm);
    norm(lm, layer, lm_block_parameter(layer, LM_BLOCK_NORM), stream);
    feed_forward(lm, layer, stream);
    add_rows(&(AddRows){.count = lm->rows * c->dim,
                        .dtype = c->dtype,
                        .a = lm->block[layer].h,
                        .b = lm->y,
                        .y = lm->block[layer + 1].h},
             stream);
}

// Maxima and sums over the vocabulary, then over tp where that divides it.
static void reduce_logits(Lm *lm, int64_t rows, const int32_t *targets, Stream stream)
{
    const LmSettings *s = &lm->settings;
    DType dtype = config_of(lm)->dtype;
    bool split = s->layout->split_head;
    lm->target_logit = lm->row_sum + rows;
    cross_entropy_row_max(&(CrossEntropyRowMax){.rows = rows,
                                                .vocab_count = lm->vocab_count,
                                                .dtype = dtype,
                                                .logits = lm->logits,
                                                .row_max = lm->row_max},
                          stream);
    if (split)
        comm_all_reduce(s->tp, lm->row_max, lm->row_max, rows, DTYPE_F32, COMM_MAX, stream);
    cross_entropy_row_sum(&(CrossEntropyRowSum){.rows = rows,
                                                .vocab_first = lm->vocab_first,
                                                .vocab_count = lm->vocab_count,
                                                .dtype = dtype,
                                                .logits = lm->logits,
                                                .row_max = lm->row_max,
                                                .targets = targets,
                                                .row_sum = lm->row_sum,
                                                .target_logit = lm->target_logit},
                          stream);
    if (split)
        ordered_all_reduce(&(OrderedReduce){.comm = s->tp,
                                            .count = 2 * rows,
                                            .wire = DTYPE_F32,
                                            .values = lm->row_sum,
                                            .scratch = lm->tp_scratch},
                           stream);
}

static void head(Lm *lm, Stream stream)
{
    const LmConfig *c = config_of(lm);
    const LmBlock *block = &lm->block[c->layers];
    LmRows rows = lm_head_rows(lm);
    norm(lm, c->layers, lm_norm_parameter(c), stream);
    GroupedGemm product = lm_product(lm, GEMM_NT, rows);
    product.n = lm->vocab_count;
    product.k = c->dim;
    product.a = block->n_all;
    product.a_stride = c->dim;
    product.b = lm_value(lm, lm_head_parameter(c));
    product.c = lm->logits;
    lm_multiply(lm, &product, 0, stream);
    const int32_t *targets = lm->targets + (rows == LM_ROWS_ALL ? 0 : lm->first_row);
    reduce_logits(lm, product.rows_max, targets, stream);
    for (int part = 0; part < lm->settings.parts; part++) {
        LmRange range = lm->range[rows][part];
        cross_entropy_loss(&(CrossEntropyLoss){.rows = range.count,
                                               .row_max = lm->row_max + range.first,
                                               .row_sum = lm->row_sum + range.first,
                                               .target_logit = lm->target_logit + range.first,
                                               .targets = targets + range.first,
                                               .totals = lm->totals + part * CROSS_ENTROPY_TOTALS,
                                               .accumulate = lm->again},
                           stream);
    }
}

void lm_forward(Lm *lm, bool again, Stream stream)
{
    lm->again = again;
    const LmStore *store = &lm->settings.store;
    int units = config_of(lm)->layers + 2;
    for (int unit = 0; unit < units; unit++) {
        store->use(store->context, unit, false, stream);
        if (unit == 0)
            embed(lm, stream);
        else if (unit < units - 1)
            run_block(lm, unit - 1, stream);
        else
            head(lm, stream);
        store->done(store->context, unit, false, stream);
    }
}
