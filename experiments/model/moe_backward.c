// moe_backward.c -- the layer's backward pass and the sum of its gradients over ranks.
//
// Written from the loss inwards: dy travels to the experts along the forward's plan; there da, then
// dgu (in place of gu) and the weighted a (in place of a); expert rows of dx and the gradients of
// the routing weights travel home; with those the router's gradient is known, and dx at home is the
// routed part plus the dense part, in f32, rounded once.
//
// The routing weight w multiplies an expert's output: y += w out(x). With g = dy: dout = w g, so da
// = w (g w2) and dw2 = (w g)^T a = g^T (w a): w is applied to a and to da in one pass over the
// activation, never to rows of dy. With the score before the experts w multiplies x: dx += w dx',
// dw = <dx', x>.
#include "experiments/model/moe_quant.h"
#include "experiments/model/moe_state.h"
#include "kernels/reduce.h"
#include "kernels/swiglu.h"

// da[r] = dy_rows[row(r)] w2[e]
static void back_second_product(Moe *moe, const MoeWeights *weights, Stream stream)
{
    const MoeConfig *c = &moe->settings.config;
    const EpRows *rows = ep_rows(moe->ep);
    GroupedGemm product = moe_expert_product(moe, GEMM_NN);
    product.n = c->inner;
    product.k = c->hidden;
    product.a = rows->dy_rows;
    product.a_stride = c->hidden;
    product.a_index = rows->row_of_expert_row;
    product.b = weights->w2;
    product.c = moe->a;
    moe_product(moe, MOE_PRODUCT_BACK_SECOND, &product, stream);
}

static void back_activation(Moe *moe, Stream stream)
{
    const MoeConfig *c = &moe->settings.config;
    const EpRows *rows = ep_rows(moe->ep);
    bool weighted = !c->score_before_experts;
    swiglu_backward(&(SwigluBackward){.inner = c->inner,
                                      .rows_max = rows->expert_rows_max,
                                      .dtype = c->dtype,
                                      .rows_total = rows->rows_total,
                                      .row_map = rows->row_of_expert_row,
                                      .weight = weighted ? rows->weight_of_expert_row : NULL,
                                      .gu = moe->gu,
                                      .da = moe->a,
                                      .dgu = moe->gu,
                                      .a_weighted = moe->a,
                                      .dweight = weighted ? moe->dweight_of_expert_row : NULL,
                                      .cast = moe_activation_cast(moe, MOE_PRODUCT_BACK_FIRST)},
                    stream);
}

// dx'[r] = dgu[r] w13[e], and with the score before the experts dw[r] = <dx'[r], x>
static void back_first_product(Moe *moe, const MoeWeights *weights, Stream stream)
{
    const MoeConfig *c = &moe->settings.config;
    const EpRows *rows = ep_rows(moe->ep);
    GroupedGemm product = moe_expert_product(moe, GEMM_NN);
    product.n = c->hidden;
    product.k = 2 * c->inner;
    product.a = moe->gu;
    product.a_stride = 2 * c->inner;
    product.b = weights->w13;
    product.c = moe->out;
    moe_product(moe, MOE_PRODUCT_BACK_FIRST, &product, stream);
    if (c->score_before_experts)
        row_dot(&(RowDot){.hidden = c->hidden,
                          .rows_max = rows->expert_rows_max,
                          .dtype_a = c->dtype,
                          .dtype_b = c->dtype,
                          .a = moe->out,
                          .b = rows->x_rows,
                          .b_index = rows->row_of_expert_row,
                          .rows_total = rows->rows_total,
                          .out = moe->dweight_of_expert_row},
                stream);
}

// dw2[e] = sum_r dy[r]^T (w a)[r], dw13[e] = sum_r dgu[r]^T x[r], rows in (rank, token) order
static void expert_gradients(Moe *moe, const MoeGradients *gradients, Stream stream)
{
    const MoeConfig *c = &moe->settings.config;
    const EpRows *rows = ep_rows(moe->ep);
    GroupedGemm second = moe_expert_product(moe, GEMM_TN);
    second.out_dtype = gradients->experts_dtype;
    second.accumulate = gradients->accumulate_experts;
    second.m = c->hidden;
    second.n = c->inner;
    second.a = rows->dy_rows;
    second.a_stride = c->hidden;
    second.a_index = rows->row_of_expert_row;
    second.b = moe->a;
    second.b_stride = c->inner;
    second.c = gradients->sum.w2;
    moe_product(moe, MOE_PRODUCT_WEIGHTS_SECOND, &second, stream);

    GroupedGemm first = moe_expert_product(moe, GEMM_TN);
    first.out_dtype = gradients->experts_dtype;
    first.accumulate = gradients->accumulate_experts;
    first.m = 2 * c->inner;
    first.n = c->hidden;
    first.a = moe->gu;
    first.a_stride = 2 * c->inner;
    first.b = c->score_before_experts ? moe->x_scaled : rows->x_rows;
    first.b_stride = c->hidden;
    first.b_index = c->score_before_experts ? NULL : rows->row_of_expert_row;
    first.c = gradients->sum.w13;
    moe_product(moe, MOE_PRODUCT_WEIGHTS_FIRST, &first, stream);
}

// The shared expert: dout = gate * dy; its dx is added to dense_dx, its gradients are sums over the
// tokens of a part.
static void back_shared(Moe *moe, const MoeWeights *weights, const void *x, const void *dy,
                        const MoeGradients *gradients, Stream stream)
{
    const MoeSettings *s = &moe->settings;
    const MoeConfig *c = &s->config;
    const void *dout = dy;
    if (c->shared_gate) {
        gate_rows(&(GateRows){.tokens = s->tokens,
                              .hidden = c->hidden,
                              .dtype = c->dtype,
                              .x = dy,
                              .logits = moe->logits + c->experts,
                              .logits_stride = moe->router_rows,
                              .out = moe->shared_dout},
                  stream);
        dout = moe->shared_dout;
    }
    GroupedGemm da = moe_dense_product(moe, GEMM_NN);
    da.out_dtype = c->dtype;
    da.n = c->shared_inner;
    da.k = c->hidden;
    da.a = dout;
    da.a_stride = c->hidden;
    da.b = weights->shared_w2;
    da.c = moe->shared_a;
    grouped_gemm(&da, stream);
    swiglu_backward(&(SwigluBackward){.inner = c->shared_inner,
                                      .rows_max = s->tokens,
                                      .dtype = c->dtype,
                                      .rows_total = moe->dense_rows,
                                      .gu = moe->shared_gu,
                                      .da = moe->shared_a,
                                      .dgu = moe->shared_gu,
                                      .a_weighted = moe->shared_a},
                    stream);
    GroupedGemm dx = moe_dense_product(moe, GEMM_NN);
    dx.accumulate = true;
    dx.n = c->hidden;
    dx.k = 2 * c->shared_inner;
    dx.a = moe->shared_gu;
    dx.a_stride = 2 * c->shared_inner;
    dx.b = weights->shared_w13;
    dx.c = moe->dense_dx;
    grouped_gemm(&dx, stream);

    GroupedGemm dw2 = moe_dense_product(moe, GEMM_TN);
    dw2.m = c->hidden;
    dw2.n = c->shared_inner;
    dw2.a = dout;
    dw2.a_stride = c->hidden;
    dw2.b = moe->shared_a;
    dw2.b_stride = c->shared_inner;
    dw2.c = gradients->sum.shared_w2;
    grouped_gemm(&dw2, stream);
    GroupedGemm dw13 = moe_dense_product(moe, GEMM_TN);
    dw13.m = 2 * c->shared_inner;
    dw13.n = c->hidden;
    dw13.a = moe->shared_gu;
    dw13.a_stride = 2 * c->shared_inner;
    dw13.b = x;
    dw13.b_stride = c->hidden;
    dw13.c = gradients->sum.shared_w13;
    grouped_gemm(&dw13, stream);
}

// dlogits from the returned weight gradients; dense_dx = dlogits router; drouter = dlogits^T x per
// part.
static void back_router(Moe *moe, const MoeWeights *weights, const void *x, const void *dy,
                        const MoeGradients *gradients, Stream stream)
{
    const MoeSettings *s = &moe->settings;
    const MoeConfig *c = &s->config;
    if (c->shared_gate)
        row_dot(&(RowDot){.hidden = c->hidden,
                          .rows_max = s->tokens,
                          .dtype_a = c->dtype,
                          .dtype_b = DTYPE_F32,
                          .a = dy,
                          .b = moe->shared_y,
                          .rows_total = moe->dense_rows,
                          .out = moe->dgate},
                stream);
    router_backward(&(RouterBackward){.tokens = s->tokens,
                                      .experts = c->experts,
                                      .top_k = c->top_k,
                                      .score = c->score,
                                      .normalise = c->normalise_top_k,
                                      .route_scale = (float)c->route_scale,
                                      .logits = moe->logits,
                                      .logits_stride = moe->router_rows,
                                      .expert_of_slot = moe->expert_of_slot,
                                      .dweight_of_slot = moe->dweight_of_slot,
                                      .shared_dgate = c->shared_gate ? moe->dgate : NULL,
                                      .dtype = c->dtype,
                                      .dlogits = moe->dlogits},
                    stream);
    GroupedGemm dx = moe_dense_product(moe, GEMM_NN);
    dx.n = c->hidden;
    dx.k = moe->router_rows;
    dx.a = moe->dlogits;
    dx.a_stride = moe->router_rows;
    dx.b = weights->router;
    dx.c = moe->dense_dx;
    grouped_gemm(&dx, stream);
    GroupedGemm drouter = moe_dense_product(moe, GEMM_TN);
    drouter.m = moe->router_rows;
    drouter.n = c->hidden;
    drouter.a = moe->dlogits;
    drouter.a_stride = moe->router_rows;
    drouter.b = x;
    drouter.b_stride = c->hidden;
    drouter.c = gradients->sum.router;
    grouped_gemm(&drouter, stream);
}

void moe_backward(Moe *moe, const MoeWeights *weights, const void *x, const void *dy, void *dx,
                  const MoeGradients *gradients, Stream stream)
{
    const MoeConfig *c = &moe->settings.config;
    Recorder *r = moe->recorder;
    bool weighted = c->score_before_experts;
    record_begin(r, moe->span[MOE_SPAN_BACKWARD]);

    record_begin(r, moe->span[MOE_SPAN_BACK_DISPATCH]);
    ep_dispatch_back(moe->ep, dy, stream);
    record_end(r, moe->span[MOE_SPAN_BACK_DISPATCH]);

    record_begin(r, moe->span[MOE_SPAN_BACK_GEMM2]);
    back_second_product(moe, weights, stream);
    record_end(r, moe->span[MOE_SPAN_BACK_GEMM2]);

    record_begin(r, moe->span[MOE_SPAN_BACK_ACTIVATION]);
    back_activation(moe, stream);
    record_end(r, moe->span[MOE_SPAN_BACK_ACTIVATION]);

    record_begin(r, moe->span[MOE_SPAN_BACK_GEMM1]);
    back_first_product(moe, weights, stream);
    record_end(r, moe->span[MOE_SPAN_BACK_GEMM1]);

    record_begin(r, moe->span[MOE_SPAN_BACK_WEIGHTS]);
    expert_gradients(moe, gradients, stream);
    record_end(r, moe->span[MOE_SPAN_BACK_WEIGHTS]);

    record_begin(r, moe->span[MOE_SPAN_BACK_COMBINE]);
    ep_return(moe->ep,
              &(EpReturn){.expert_rows = moe->out,
                          .weighted = weighted,
                          .dweight_of_expert_row = moe->dweight_of_expert_row,
                          .dweight_of_slot = moe->dweight_of_slot},
              stream);
    record_end(r, moe->span[MOE_SPAN_BACK_COMBINE]);

    record_begin(r, moe->span[MOE_SPAN_BACK_DENSE]);
    back_router(moe, weights, x, dy, gradients, stream);
    if (c->shared_inner > 0)
        back_shared(moe, weights, x, dy, gradients, stream);
    ep_sum(moe->ep,
           &(EpSum){.expert_rows = moe->out,
                    .weighted = weighted,
                    .addend = moe->dense_dx,
                    .group_size = moe->settings.group_size,
                    .out = dx},
           stream);
    record_end(r, moe->span[MOE_SPAN_BACK_DENSE]);
    record_end(r, moe->span[MOE_SPAN_BACKWARD]);
}

static void reduce_one(Moe *moe, Comm comm, void *sum, void *out, int64_t count, Stream stream)
{
    if (count == 0)
        return;
    // In rank order always: it sends no more bytes than a library's all-reduce, whose order is its
    // own affair.
    comm_all_reduce_ordered(comm, sum, sum, count, moe->reduce_scratch, stream);
    sum_parts(&(SumParts){.parts = 1,
                          .count = count,
                          .part = sum,
                          .out_dtype = moe->settings.config.dtype,
                          .out = out},
              stream);
}

void moe_reduce_gradients(Moe *moe, const MoeGradients *gradients, const MoeWeights *out,
                          Stream stream)
{
    const MoeSettings *s = &moe->settings;
    const MoeConfig *c = &s->config;
    const MoeWeights *sum = &gradients->sum;
    CHECK_RULE(moe->parts == 1);
    record_begin(moe->recorder, moe->span[MOE_SPAN_REDUCE]);
    reduce_one(moe, s->tokens_comm, sum->router, out->router, moe->router_rows * c->hidden, stream);
    int64_t shared = c->shared_inner * c->hidden;
    reduce_one(moe, s->tokens_comm, sum->shared_w13, out->shared_w13, 2 * shared, stream);
    reduce_one(moe, s->tokens_comm, sum->shared_w2, out->shared_w2, shared, stream);
    if (out->w13 != sum->w13) {
        int64_t experts = ep_rows(moe->ep)->experts_local * c->inner * c->hidden;
        reduce_one(moe, s->replicas_comm, sum->w13, out->w13, 2 * experts, stream);
        reduce_one(moe, s->replicas_comm, sum->w2, out->w2, experts, stream);
    }
    record_end(moe->recorder, moe->span[MOE_SPAN_REDUCE]);
}
