// moe.c -- the layer's buffers and its forward pass: router, dispatch, two grouped products with
// the activation between them, the shared expert, combine. The backward is in moe_backward.c.
#include "experiments/model/moe.h"
#include "experiments/model/moe_quant.h"
#include "experiments/model/moe_state.h"
#include "kernels/reduce.h"
#include "kernels/swiglu.h"

#include <stdlib.h>

enum { ROUTER_ROWS_MULTIPLE = 8 }; // so that logits rows stay 16-byte aligned in bf16

static const char *const span_names[MOE_SPANS] = {
    [MOE_SPAN_FORWARD] = "forward",
    [MOE_SPAN_ROUTER] = "forward/router",
    [MOE_SPAN_PLAN] = "forward/plan",
    [MOE_SPAN_DISPATCH] = "forward/dispatch",
    [MOE_SPAN_GEMM1] = "forward/gemm1",
    [MOE_SPAN_ACTIVATION] = "forward/activation",
    [MOE_SPAN_GEMM2] = "forward/gemm2",
    [MOE_SPAN_SHARED] = "forward/shared",
    [MOE_SPAN_COMBINE] = "forward/combine",
    [MOE_SPAN_BACKWARD] = "backward",
    [MOE_SPAN_BACK_DISPATCH] = "backward/dispatch",
    [MOE_SPAN_BACK_GEMM2] = "backward/gemm2",
    [MOE_SPAN_BACK_ACTIVATION] = "backward/activation",
    [MOE_SPAN_BACK_GEMM1] = "backward/gemm1",
    [MOE_SPAN_BACK_COMBINE] = "backward/combine",
    [MOE_SPAN_BACK_WEIGHTS] = "backward/weights",
    [MOE_SPAN_BACK_DENSE] = "backward/dense",
    [MOE_SPAN_REDUCE] = "reduce",
};

int64_t moe_router_rows(const MoeConfig *config)
{
    int64_t rows = config->experts + (config->shared_gate ? 1 : 0);
    return (rows + ROUTER_ROWS_MULTIPLE - 1) / ROUTER_ROWS_MULTIPLE * ROUTER_ROWS_MULTIPLE;
}

bool moe_experts_direct(const Moe *moe)
{
    return moe->settings.replicas_comm.ranks == 1 && moe->settings.group_size == 0 &&
           moe->settings.parts <= 1;
}

const int32_t *moe_expert_of_choice(const Moe *moe)
{
    return moe->expert_of_choice;
}

const MoeConfig *moe_config(const Moe *moe)
{
    return &moe->settings.config;
}

int64_t moe_tokens(const Moe *moe)
{
    return moe->settings.tokens;
}

const Ep *moe_ep(const Moe *moe)
{
    return moe->ep;
}

static void *push(Moe *moe, int64_t rows, int64_t columns, uint64_t element_bytes,
                  MemoryCategory category)
{
    uint64_t bytes = (uint64_t)rows * (uint64_t)columns * element_bytes;
    return arena_push(moe->settings.arena, bytes, category);
}

static void push_activation(Moe *moe, void **buffer, int64_t rows, int64_t columns)
{
    uint64_t element_bytes = dtype_bytes(moe->settings.config.dtype, 1);
    *buffer = push(moe, rows, columns, element_bytes, MEMORY_ACTIVATIONS);
}

static void push_floats(Moe *moe, float **buffer, int64_t rows, int64_t columns)
{
    *buffer = push(moe, rows, columns, sizeof(float), MEMORY_ACTIVATIONS);
}

static void make_ranges(Moe *moe, Stream stream)
{
    const MoeSettings *s = &moe->settings;
    int32_t *host = malloc((2 + 2 * (size_t)moe->parts) * sizeof(int32_t));
    CHECK(host != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for %d parts",
          moe->parts);
    host[0] = 0;
    host[1] = (int32_t)s->tokens;
    int32_t first = 0;
    for (int part = 0; part < moe->parts; part++) {
        int32_t rows = (int32_t)(s->parts > 0 ? s->part_tokens[part] : s->tokens);
        host[2 + part] = first;
        host[2 + moe->parts + part] = rows;
        first += rows;
    }
    CHECK_RULE(first == s->tokens);
    uint64_t words = 2 + 2 * (uint64_t)moe->parts;
    int32_t *device = ARENA_PUSH(s->arena, int32_t, words, MEMORY_ACTIVATIONS);
    device_copy(device, host, words * sizeof(int32_t), stream);
    stream_wait(stream);
    free(host);
    moe->dense_first = device;
    moe->dense_rows = device + 1;
    moe->part_first = device + 2;
    moe->part_rows = device + 2 + moe->parts;
}

static void make_forward_buffers(Moe *moe)
{
    const MoeSettings *s = &moe->settings;
    const MoeConfig *c = &s->config;
    int64_t rows = ep_rows(moe->ep)->expert_rows_max;
    push_floats(moe, &moe->logits, s->tokens, moe->router_rows);
    push_floats(moe, &moe->weight_of_slot, s->tokens, c->top_k);
    moe->expert_of_choice = push(moe, s->tokens, c->top_k, sizeof(int32_t), MEMORY_ACTIVATIONS);
    moe->expert_of_slot = push(moe, s->tokens, c->top_k, sizeof(int32_t), MEMORY_ACTIVATIONS);
    if (c->score_before_experts)
        push_activation(moe, &moe->x_scaled, rows, c->hidden);
    push_activation(moe, &moe->gu, rows, 2 * c->inner);
    push_activation(moe, &moe->a, rows, c->inner);
    push_activation(moe, &moe->out, rows, c->hidden);
    if (c->shared_inner > 0) {
        push_floats(moe, &moe->shared_y, s->tokens, c->hidden);
        push_activation(moe, &moe->shared_gu, s->tokens, 2 * c->shared_inner);
        push_activation(moe, &moe->shared_a, s->tokens, c->shared_inner);
    }
    if (c->shared_gate)
        push_floats(moe, &moe->gate, s->tokens, 1);
}

static int64_t largest_dense_gradient(const MoeConfig *c)
{
    int64_t router = moe_router_rows(c) * c->hidden;
    int64_t shared = 2 * c->shared_inner * c->hidden;
    return router > shared ? router : shared;
}

static void make_backward_buffers(Moe *moe)
{
    const MoeSettings *s = &moe->settings;
    const MoeConfig *c = &s->config;
    const EpRows *rows = ep_rows(moe->ep);
    push_floats(moe, &moe->dweight_of_expert_row, rows->expert_rows_max, 1);
    push_floats(moe, &moe->dweight_of_slot, s->tokens, c->top_k);
    push_activation(moe, &moe->dlogits, s->tokens, moe->router_rows);
    push_floats(moe, &moe->dense_dx, s->tokens, c->hidden);
    if (c->shared_gate)
        push_floats(moe, &moe->dgate, s->tokens, 1);
    if (c->shared_inner > 0)
        push_activation(moe, &moe->shared_dout, s->tokens, c->hidden);

    int64_t experts = rows->experts_local * 2 * c->inner * c->hidden;
    uint64_t bytes = comm_ordered_scratch_bytes(s->tokens_comm, largest_dense_gradient(c));
    uint64_t expert_bytes = comm_ordered_scratch_bytes(s->replicas_comm, experts);
    moe->reduce_scratch =
        arena_push(s->arena, bytes > expert_bytes ? bytes : expert_bytes, MEMORY_COMMUNICATION);
}

Moe *moe_create(const MoeSettings *settings)
{
    Moe *moe = calloc(1, sizeof(Moe));
    CHECK(moe != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for a layer");
    moe->settings = *settings;
    moe->parts = settings->parts > 0 ? settings->parts : 1;
    moe->router_rows = moe_router_rows(&settings->config);
    const MoeConfig *c = &settings->config;
    moe->ep = ep_create(&(EpSettings){.comm = settings->experts_comm,
                                      .experts = c->experts,
                                      .top_k = c->top_k,
                                      .hidden = c->hidden,
                                      .tokens = settings->tokens,
                                      .dtype = c->dtype,
                                      .align = moe_quant_align(settings),
                                      .exact = settings->exact,
                                      .transport = settings->transport,
                                      .arena = settings->arena,
                                      .device = settings->device});
    Stream stream = stream_create(settings->device);
    make_ranges(moe, stream);
    stream_destroy(stream);
    make_forward_buffers(moe);
    if (!settings->forward_only)
        make_backward_buffers(moe);
    moe->quant = moe_quant_create(moe);
    return moe;
}

void moe_destroy(Moe *moe)
{
    if (!moe)
        return;
    moe_quant_destroy(moe->quant);
    ep_destroy(moe->ep);
    free(moe);
}

void moe_record_with(Moe *moe, Recorder *recorder)
{
    moe->recorder = recorder;
    for (int span = 0; span < MOE_SPANS && recorder; span++)
        moe->span[span] = recorder_span(recorder, span_names[span]);
}

GroupedGemm moe_expert_product(const Moe *moe, GemmForm form)
{
    const MoeSettings *s = &moe->settings;
    const EpRows *rows = ep_rows(moe->ep);
    return (GroupedGemm){.form = form,
                         .dtype = s->config.dtype,
                         .out_dtype = s->config.dtype,
                         .groups = rows->experts_local,
                         .rows_max = rows->expert_rows_max,
                         .rows_expected = s->tokens * s->config.top_k, // with even routing
                         .group_first = rows->group_first,
                         .group_rows = rows->group_rows,
                         .threads = s->threads};
}

GroupedGemm moe_dense_product(const Moe *moe, GemmForm form)
{
    const MoeSettings *s = &moe->settings;
    bool by_part = form == GEMM_TN;
    return (GroupedGemm){.form = form,
                         .dtype = s->config.dtype,
                         .out_dtype = DTYPE_F32,
                         .groups = by_part ? moe->parts : 1,
                         .rows_max = s->tokens,
                         .rows_expected = s->tokens,
                         .group_first = by_part ? moe->part_first : moe->dense_first,
                         .group_rows = by_part ? moe->part_rows : moe->dense_rows,
                         .threads = s->threads};
}

static void route(Moe *moe, const MoeWeights *weights, const void *x, Stream stream)
{
    const MoeSettings *s = &moe->settings;
    const MoeConfig *c = &s->config;
    GroupedGemm logits = moe_dense_product(moe, GEMM_NT);
    logits.n = moe->router_rows;
    logits.k = c->hidden;
    logits.a = x;
    logits.a_stride = c->hidden;
    logits.b = weights->router;
    logits.c = moe->logits;
    grouped_gemm(&logits, stream);
    router_forward(&(RouterForward){.tokens = s->tokens,
                                    .experts = c->experts,
                                    .top_k = c->top_k,
                                    .score = c->score,
                                    .normalise = c->normalise_top_k,
                                    .route_scale = (float)c->route_scale,
                                    .routing = c->routing,
                                    .skew = c->skew,
                                    .seed = s->seed,
                                    .first_token = s->first_token,
                                    .logits = moe->logits,
                                    .logits_stride = moe->router_rows,
                                    .expert_bias = weights->expert_bias,
                                    .expert_of_choice = moe->expert_of_choice,
                                    .expert_of_slot = moe->expert_of_slot,
                                    .weight_of_slot = moe->weight_of_slot},
                   stream);
}

static void first_product(Moe *moe, const MoeWeights *weights, Stream stream)
{
    const MoeConfig *c = &moe->settings.config;
    const EpRows *rows = ep_rows(moe->ep);
    GroupedGemm product = moe_expert_product(moe, GEMM_NT);
    product.n = 2 * c->inner;
    product.k = c->hidden;
    product.a_stride = c->hidden;
    product.b = weights->w13;
    product.c = moe->gu;
    if (c->score_before_experts) {
        moe_scale_rows(&(MoeScaleRows){.hidden = c->hidden,
                                       .rows_max = rows->expert_rows_max,
                                       .dtype = c->dtype,
                                       .x = rows->x_rows,
                                       .row_of_expert_row = rows->row_of_expert_row,
                                       .rows_total = rows->rows_total,
                                       .weight_of_expert_row = rows->weight_of_expert_row,
                                       .out = moe->x_scaled},
                       stream);
        product.a = moe->x_scaled;
    } else {
        product.a = rows->x_rows;
        product.a_index = rows->row_of_expert_row;
    }
    moe_product(moe, MOE_PRODUCT_FIRST, &product, stream);
}

static void second_product(Moe *moe, const MoeWeights *weights, Stream stream)
{
    const MoeConfig *c = &moe->settings.config;
    GroupedGemm product = moe_expert_product(moe, GEMM_NT);
    product.n = c->hidden;
    product.k = c->inner;
    product.a = moe->a;
    product.a_stride = c->inner;
    product.b = weights->w2;
    product.c = moe->out;
    moe_product(moe, MOE_PRODUCT_SECOND, &product, stream);
}

// shared_y = shared_w2 (silu(w1 x) * w3 x) in f32, and the gate; the sum at the end of the combine
// adds gate * shared_y.
static void shared_expert(Moe *moe, const MoeWeights *weights, const void *x, Stream stream)
{
    const MoeSettings *s = &moe->settings;
    const MoeConfig *c = &s->config;
    GroupedGemm first = moe_dense_product(moe, GEMM_NT);
    first.out_dtype = c->dtype;
    first.n = 2 * c->shared_inner;
    first.k = c->hidden;
    first.a = x;
    first.a_stride = c->hidden;
    first.b = weights->shared_w13;
    first.c = moe->shared_gu;
    grouped_gemm(&first, stream);
    swiglu_forward(&(SwigluForward){.inner = c->shared_inner,
                                    .rows_max = s->tokens,
                                    .dtype = c->dtype,
                                    .rows_total = moe->dense_rows,
                                    .gu = moe->shared_gu,
                                    .a = moe->shared_a},
                   stream);
    GroupedGemm second = moe_dense_product(moe, GEMM_NT);
    second.n = c->hidden;
    second.k = c->shared_inner;
    second.a = moe->shared_a;
    second.a_stride = c->shared_inner;
    second.b = weights->shared_w2;
    second.c = moe->shared_y;
    grouped_gemm(&second, stream);
    if (c->shared_gate)
        gate_rows(&(GateRows){.tokens = s->tokens,
                              .hidden = c->hidden,
                              .dtype = c->dtype,
                              .logits = moe->logits + c->experts,
                              .logits_stride = moe->router_rows,
                              .gate_out = moe->gate},
                  stream);
}

void moe_forward(Moe *moe, const MoeWeights *weights, const void *x, void *y, Stream stream)
{
    const MoeConfig *c = &moe->settings.config;
    Recorder *r = moe->recorder;
    const EpRows *rows = ep_rows(moe->ep);
    record_begin(r, moe->span[MOE_SPAN_FORWARD]);

    record_begin(r, moe->span[MOE_SPAN_ROUTER]);
    route(moe, weights, x, stream);
    record_end(r, moe->span[MOE_SPAN_ROUTER]);

    record_begin(r, moe->span[MOE_SPAN_PLAN]);
    ep_plan(moe->ep, moe->expert_of_slot, moe->weight_of_slot, stream);
    record_end(r, moe->span[MOE_SPAN_PLAN]);

    record_begin(r, moe->span[MOE_SPAN_DISPATCH]);
    ep_dispatch(moe->ep, x, stream);
    record_end(r, moe->span[MOE_SPAN_DISPATCH]);

    record_begin(r, moe->span[MOE_SPAN_GEMM1]);
    first_product(moe, weights, stream);
    record_end(r, moe->span[MOE_SPAN_GEMM1]);

    record_begin(r, moe->span[MOE_SPAN_ACTIVATION]);
    swiglu_forward(&(SwigluForward){.inner = c->inner,
                                    .rows_max = rows->expert_rows_max,
                                    .dtype = c->dtype,
                                    .rows_total = rows->rows_total,
                                    .row_map = rows->row_of_expert_row,
                                    .gu = moe->gu,
                                    .a = moe->a,
                                    .cast = moe_activation_cast(moe, MOE_PRODUCT_SECOND)},
                   stream);
    record_end(r, moe->span[MOE_SPAN_ACTIVATION]);

    record_begin(r, moe->span[MOE_SPAN_GEMM2]);
    second_product(moe, weights, stream);
    record_end(r, moe->span[MOE_SPAN_GEMM2]);

    if (c->shared_inner > 0) {
        record_begin(r, moe->span[MOE_SPAN_SHARED]);
        shared_expert(moe, weights, x, stream);
        record_end(r, moe->span[MOE_SPAN_SHARED]);
    }

    record_begin(r, moe->span[MOE_SPAN_COMBINE]);
    bool weighted = !c->score_before_experts;
    ep_return(moe->ep, &(EpReturn){.expert_rows = moe->out, .weighted = weighted}, stream);
    ep_sum(moe->ep,
           &(EpSum){.expert_rows = moe->out,
                    .weighted = weighted,
                    .addend = c->shared_inner > 0 ? moe->shared_y : NULL,
                    .addend_weight = c->shared_gate ? moe->gate : NULL,
                    .group_size = moe->settings.group_size,
                    .out = y},
           stream);
    record_end(r, moe->span[MOE_SPAN_COMBINE]);
    record_end(r, moe->span[MOE_SPAN_FORWARD]);
}
