// The model's backward pass, from the loss inwards. Duals of the forward's collectives: a gather
// becomes a sum over tp, a sum becomes a gather (or nothing, where every rank has the rows).
//
// dh is the gradient of a block's output on the way in, of its input on the way out. Weight
// gradients are f32 sums over one part's rows.
#include "experiments/model/lm_state.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/reduce.h"
#include "kernels/rms_norm.h"
#include "kernels/swiglu.h"

#include <stddef.h>

static const LmConfig *config_of(const Lm *lm)
{
    return lm->settings.layout->config;
}

// gradient[m, n] (+)= a^T b over the rows of each part.
typedef struct WeightGradient {
    int parameter;
    LmRows rows;
    int64_t m, n;
    const void *a, *b;
} WeightGradient;

static void weight_gradient(Lm *lm, const WeightGradient *what, Stream stream)
{
    for (int part = 0; part < lm->settings.parts; part++) {
        GroupedGemm product = lm_part_product(lm, what->rows, part);
        product.m = what->m;
        product.n = what->n;
        product.a = what->a;
        product.a_stride = what->m;
        product.b = what->b;
        product.b_stride = what->n;
        product.c = lm_gradient(lm, what->parameter, part);
        lm_multiply(lm, &product, lm->range[what->rows][part].first, stream);
    }
}

// dh = d norm(h) of dn, plus what comes along the residual (addend, or NULL).
static void norm_back(Lm *lm, int layer, int parameter, const void *addend, Stream stream)
{
    const LmConfig *c = config_of(lm);
    const LmBlock *block = &lm->block[layer];
    for (int part = 0; part < lm->settings.parts; part++) {
        LmRange range = lm->range[LM_ROWS_MINE][part];
        rms_norm_backward(
            &(RmsNormBackward){.rows = range.count,
                               .hidden = c->dim,
                               .dtype = c->dtype,
                               .x = lm_rows_at(lm, block->h, range.first),
                               .weight = lm_value(lm, parameter),
                               .rstd = block->rstd + range.first,
                               .dy = lm_rows_at(lm, lm->dn, range.first),
                               .addend = addend ? lm_rows_at(lm, addend, range.first) : NULL,
                               .dx = lm_rows_at(lm, lm->dh, range.first),
                               .dweight = lm_gradient(lm, parameter, part),
                               .accumulate = lm->again,
                               .scratch = lm->norm_scratch},
            stream);
    }
}

static void head_back(Lm *lm, Stream stream)
{
    const LmSettings *s = &lm->settings;
    const LmConfig *c = config_of(lm);
    int head = lm_head_parameter(c);
    LmRows rows = lm_head_rows(lm);
    bool split = s->layout->split_head;
    GroupedGemm dx = lm_product(lm, GEMM_NN, rows);
    cross_entropy_backward(
        &(CrossEntropyBackward){.rows = dx.rows_max,
                                .vocab_first = lm->vocab_first,
                                .vocab_count = lm->vocab_count,
                                .dtype = c->dtype,
                                .logits = lm->logits,
                                .row_max = lm->row_max,
                                .row_sum = lm->row_sum,
                                .targets = lm->targets + (split ? 0 : lm->first_row),
                                .scale = 1.0f / (float)s->tokens_of_step,
                                .dlogits = lm->logits},
        stream);
    weight_gradient(lm,
                    &(WeightGradient){.parameter = head,
                                      .rows = rows,
                                      .m = lm->vocab_count,
                                      .n = c->dim,
                                      .a = lm->logits,
                                      .b = lm->block[c->layers].n_all},
                    stream);
    dx.out_dtype = split ? DTYPE_F32 : c->dtype;
    dx.n = c->dim;
    dx.k = lm->vocab_count;
    dx.a = lm->logits;
    dx.a_stride = lm->vocab_count;
    dx.b = lm_value(lm, head);
    dx.c = split ? (void *)lm->wide : lm->dn;
    lm_multiply(lm, &dx, 0, stream);
    if (split)
        lm_sum_over_tp(lm, lm->dn, stream);
    norm_back(lm, c->layers, lm_norm_parameter(c), NULL, stream);
}

static void mlp_back(Lm *lm, int layer, const void *dy, void *dx, DType dx_dtype, Stream stream)
{
    const LmConfig *c = config_of(lm);
    const LmBlock *block = &lm->block[layer];
    LmRows rows = lm_ffn_rows(lm, layer);
    int first = lm_block_parameter(layer, LM_BLOCK_FIRST);
    int out = lm_block_parameter(layer, LM_BLOCK_OUT);
    GroupedGemm da = lm_product(lm, GEMM_NN, rows);
    da.n = block->inner;
    da.k = c->dim;
    da.a = dy;
    da.a_stride = c->dim;
    da.b = lm_value(lm, out);
    da.c = lm->a;
    lm_multiply(lm, &da, 0, stream);
    swiglu_backward(&(SwigluBackward){.inner = block->inner,
                                      .rows_max = da.rows_max,
                                      .dtype = c->dtype,
                                      .rows_total = lm->all_rows[rows],
                                      .gu = block->gu,
                                      .da = lm->a,
                                      .dgu = block->gu,
                                      .a_weighted = lm->a},
                    stream);
    weight_gradient(
        lm,
        &(WeightGradient){
            .parameter = out, .rows = rows, .m = c->dim, .n = block->inner, .a = dy, .b = lm->a},
        stream);
    weight_gradient(lm,
                    &(WeightGradient){.parameter = first, // and up behind it
                                      .rows = rows,
                                      .m = 2 * block->inner,
                                      .n = c->dim,
                                      .a = block->gu,
                                      .b = rows == LM_ROWS_ALL ? block->n_all : block->n},
                    stream);
    GroupedGemm back = lm_product(lm, GEMM_NN, rows);
    back.out_dtype = dx_dtype;
    back.n = c->dim;
    back.k = 2 * block->inner;
    back.a = block->gu;
    back.a_stride = 2 * block->inner;
    back.b = lm_value(lm, first);
    back.c = dx;
    lm_multiply(lm, &back, 0, stream);
}

// The router's gradient comes out once per part of the group, padded to router_rows.
static void add_router_gradients(Lm *lm, int layer, int group, Stream stream)
{
    const LmConfig *c = config_of(lm);
    const LmSettings *s = &lm->settings;
    int64_t count = c->moe.experts * c->dim, stride = moe_router_rows(&c->moe) * c->dim;
    int at = 0;
    for (int part = 0; part < s->parts; part++) {
        if (s->group_of_part && s->group_of_part[part] != group)
            continue;
        float *to = lm_gradient(lm, lm_block_parameter(layer, LM_BLOCK_FIRST), part);
        float *from = lm->router_gradient + at++ * stride;
        sum_parts(&(SumParts){.parts = lm->again ? 2 : 1,
                              .count = count,
                              .part_stride = from - to,
                              .part = lm->again ? to : from,
                              .out_dtype = DTYPE_F32,
                              .out = to},
                  stream);
    }
}

static void moe_back(Lm *lm, int layer, void *x, void *dy, void *dx, Stream stream)
{
    const LmSettings *s = &lm->settings;
    LmBlock *block = &lm->block[layer];
    int in = lm_block_parameter(layer, LM_BLOCK_IN), out = lm_block_parameter(layer, LM_BLOCK_OUT);
    MoeWeights weights = {
        .router = (void *)lm_value(lm, lm_block_parameter(layer, LM_BLOCK_FIRST)),
        .expert_bias = config_of(lm)->moe.expert_bias ? block->expert_bias : NULL,
        .w13 = (void *)lm_value(lm, in),
        .w2 = (void *)lm_value(lm, out),
    };
    bool many = s->parts > 1;
    for (int group = 0; group < s->groups; group++) {
        MoeGradients gradients = {.sum = {.router = lm->router_gradient,
                                          .w13 = lm_gradient(lm, in, group),
                                          .w2 = lm_gradient(lm, out, group)},
                                  .experts_dtype = DTYPE_F32,
                                  .accumulate_experts = lm->again};
        if (many) {
            lm_group_rows(lm, group, x, lm->group_x, true, stream);
            lm_group_rows(lm, group, dy, lm->group_y, true, stream);
        }
        // With parts, dx comes out in lm->y and is put in place from there.
        moe_backward(block->moe[group], &weights, many ? lm->group_x : x, many ? lm->group_y : dy,
                     many ? lm->y : dx, &gradients, stream);
        if (many)
            lm_group_rows(lm, group, dx, lm->y, false, stream);
        add_router_gradients(lm, layer, group, stream);
    }
}

// dn of this rank's rows from dh, and the block's weight gradients.
static void feed_forward_back(Lm *lm, int layer, Stream stream)
{
    const LmSettings *s = &lm->settings;
    const LmConfig *c = config_of(lm);
    LmBlock *block = &lm->block[layer];
    LmFlow flow = s->layout->flow[layer];
    int64_t share = lm->all_padded / s->tp.ranks;
    if (flow == LM_FLOW_LOCAL) {
        if (lm_is_moe(c))
            moe_back(lm, layer, block->n, lm->dh, lm->dn, stream);
        else
            mlp_back(lm, layer, lm->dh, lm->dn, c->dtype, stream);
        return;
    }
    if (flow == LM_FLOW_SPLIT_TOKENS) {
        int64_t first = s->tp.rank * share;
        moe_back(lm, layer, lm_rows_at(lm, block->n, first), lm_rows_at(lm, lm->dh, first), lm->y,
                 stream);
        lm_gather_over_tp(lm, lm->y, lm->dn, stream);
        return;
    }
    void *dy = lm->dh;
    if (s->layout->sequence) {
        lm_gather_over_tp(lm, lm->dh, lm->dy_all, stream);
        dy = lm->dy_all;
    }
    if (lm_is_moe(c)) {
        moe_back(lm, layer, block->n_all, dy, lm->y, stream);
        lm_cast(lm, lm->y, c->dtype, lm->wide, DTYPE_F32, s->tokens, stream);
    } else {
        mlp_back(lm, layer, dy, lm->wide, DTYPE_F32, stream);
    }
    lm_sum_over_tp(lm, lm->dn, stream);
}

static void block_back(Lm *lm, int layer, Stream stream)
{
    feed_forward_back(lm, layer, stream);
    norm_back(lm, layer, lm_block_parameter(layer, LM_BLOCK_NORM), lm->dh, stream);
}

static void embed_back(Lm *lm, Stream stream)
{
    const LmSettings *s = &lm->settings;
    const LmConfig *c = config_of(lm);
    bool split = s->layout->split_embedding;
    const void *dy = lm->dh;
    if (split && s->layout->sequence) {
        lm_gather_over_tp(lm, lm->dh, lm->dy_all, stream);
        dy = lm->dy_all;
    }
    const int32_t *ids = lm->ids + (split ? 0 : lm->first_row);
    for (int part = 0; part < s->parts; part++) {
        LmRange range = lm->range[split ? LM_ROWS_ALL : LM_ROWS_MINE][part];
        embedding_backward(&(EmbeddingBackward){.tokens = range.count,
                                                .hidden = c->dim,
                                                .vocab_first = lm->table_first,
                                                .vocab_count = lm->table_count,
                                                .dtype = c->dtype,
                                                .ids = ids + range.first,
                                                .dy = lm_rows_at(lm, dy, range.first),
                                                .dtable = lm_gradient(lm, 0, part),
                                                .accumulate = lm->again,
                                                .scratch = lm->embedding_scratch},
                           stream);
    }
}

void lm_backward(Lm *lm, bool again, Stream stream)
{
    const LmStore *store = &lm->settings.store;
    lm->again = again;
    for (int unit = config_of(lm)->layers + 1; unit >= 0; unit--) {
        store->use(store->context, unit, true, stream);
        if (unit == 0)
            embed_back(lm, stream);
        else if (unit <= config_of(lm)->layers)
            block_back(lm, unit - 1, stream);
        else
            head_back(lm, stream);
        store->done(store->context, unit, true, stream);
    }
}
