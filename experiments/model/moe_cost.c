// moe_cost.c -- bytes and operations of a layer's spans, from the shapes and the traffic of the
// last plan.
#include "experiments/model/moe_cost.h"
#include "experiments/model/moe_state.h"

#include <string.h>

// The sizes that formulas are written in.
typedef struct Sizes {
    double t, h, i, e, r;  // tokens, hidden, inner, experts here, expert rows here
    double router, shared; // router rows, shared inner
    double b, k;           // bytes of an element, top_k
    bool local;            // one rank: rows are read in place, nothing travels
    bool quantised;        // experts multiply under a recipe
    EpTraffic traffic;
} Sizes;

static SpanCost product(const Sizes *z, double rows, double weights, double n, double k,
                        double out_bytes)
{
    return (SpanCost){.memory_bytes = z->b * (rows * k + weights * n * k) + out_bytes * rows * n,
                      .flops = 2 * rows * n * k};
}

static SpanCost gradient(const Sizes *z, double rows, double weights, double m, double n)
{
    return (SpanCost){.memory_bytes = z->b * (rows * (m + n) + weights * m * n),
                      .flops = 2 * rows * m * n};
}

static SpanCost add(SpanCost a, SpanCost b)
{
    return (SpanCost){a.memory_bytes + b.memory_bytes, a.flops + b.flops,
                      a.wire_bytes + b.wire_bytes, a.logical_bytes + b.logical_bytes};
}

static SpanCost router(const Sizes *z)
{
    return product(z, z->t, 1, z->router, z->h, sizeof(float));
}

static SpanCost dispatch(const Sizes *z)
{
    return (SpanCost){.memory_bytes = z->local ? 0 : z->b * z->h * z->t,
                      .wire_bytes = (double)z->traffic.dispatch_wire_bytes,
                      .logical_bytes = (double)z->traffic.dispatch_logical_bytes};
}

static SpanCost combine(const Sizes *z)
{
    return (SpanCost){.memory_bytes = z->b * z->h * (z->r + z->t),
                      .wire_bytes = (double)z->traffic.combine_wire_bytes,
                      .logical_bytes = (double)z->traffic.combine_logical_bytes};
}

static SpanCost gemm1(const Sizes *z)
{
    return product(z, z->r, z->e, 2 * z->i, z->h, z->b);
}

static SpanCost activation(const Sizes *z)
{
    return (SpanCost){.memory_bytes = z->b * z->r * 3 * z->i, .flops = z->r * z->i * 5};
}

static SpanCost gemm2(const Sizes *z)
{
    return product(z, z->r, z->e, z->h, z->i, z->b);
}

static SpanCost shared(const Sizes *z)
{
    return add(product(z, z->t, 1, 2 * z->shared, z->h, z->b),
               product(z, z->t, 1, z->h, z->shared, sizeof(float)));
}

static SpanCost back_gemm2(const Sizes *z)
{
    return product(z, z->r, z->e, z->i, z->h, z->b);
}

static SpanCost back_activation(const Sizes *z)
{
    return (SpanCost){.memory_bytes = z->b * z->r * 6 * z->i, .flops = z->r * z->i * 12};
}

static SpanCost back_gemm1(const Sizes *z)
{
    return product(z, z->r, z->e, z->h, 2 * z->i, z->b);
}

static SpanCost back_weights(const Sizes *z)
{
    return add(gradient(z, z->r, z->e, 2 * z->i, z->h), gradient(z, z->r, z->e, z->h, z->i));
}

// The way home only: the sum at home is part of the dense span, which makes one of its terms.
static SpanCost back_combine(const Sizes *z)
{
    SpanCost rows = combine(z);
    rows.memory_bytes = z->local ? 0 : z->b * z->h * z->r;
    return rows;
}

// Bytes of expert rows that a rank adds up at home: its own where it is alone, else about as many
// as it sent home to others.
static double home_bytes(const Sizes *z)
{
    return z->local ? z->b * z->h * z->r : (double)z->traffic.combine_wire_bytes;
}

static SpanCost back_dense(const Sizes *z)
{
    SpanCost cost = add(product(z, z->t, 1, z->h, z->router, sizeof(float)),
                        gradient(z, z->t, 1, z->router, z->h));
    if (z->shared > 0) {
        cost = add(cost, product(z, z->t, 1, z->shared, z->h, z->b));
        cost = add(cost, product(z, z->t, 1, z->h, 2 * z->shared, sizeof(float)));
        cost = add(cost, gradient(z, z->t, 1, 2 * z->shared, z->h));
        cost = add(cost, gradient(z, z->t, 1, z->h, z->shared));
    }
    cost.memory_bytes += z->t * z->h * (sizeof(float) + z->b) + home_bytes(z);
    return cost;
}

static const struct {
    const char *span;
    bool forward, experts; // experts: a product that a recipe applies to
    SpanCost (*cost)(const Sizes *z);
} rows[] = {
    {"forward/router", true, false, router},
    {"forward/dispatch", true, false, dispatch},
    {"forward/gemm1", true, true, gemm1},
    {"forward/activation", true, false, activation},
    {"forward/gemm2", true, true, gemm2},
    {"forward/shared", true, false, shared},
    {"forward/combine", true, false, combine},
    {"backward/dispatch", false, false, dispatch},
    {"backward/gemm2", false, true, back_gemm2},
    {"backward/activation", false, false, back_activation},
    {"backward/gemm1", false, true, back_gemm1},
    {"backward/combine", false, false, back_combine},
    {"backward/weights", false, true, back_weights},
    {"backward/dense", false, false, back_dense},
};

static Sizes sizes_of(const Moe *moe, const EpTraffic *traffic)
{
    const MoeSettings *s = &moe->settings;
    return (Sizes){.t = (double)s->tokens,
                   .h = (double)s->config.hidden,
                   .i = (double)s->config.inner,
                   .e = ep_rows(moe->ep)->experts_local,
                   .r = (double)traffic->expert_rows,
                   .router = (double)moe->router_rows,
                   .shared = (double)s->config.shared_inner,
                   .b = (double)dtype_bytes(s->config.dtype, 1),
                   .k = s->config.top_k,
                   .local = ep_transport(moe->ep) == EP_LOCAL,
                   .quantised = moe->quant != NULL,
                   .traffic = *traffic};
}

// Codes multiply at other rates than values: under a recipe only memory bounds the time of a
// product, values and results at their own width as before.
static SpanCost cost_of(const Sizes *z, size_t row)
{
    SpanCost cost = rows[row].cost(z);
    if (z->quantised && rows[row].experts)
        cost.flops = 0;
    return cost;
}

static SpanCost sum_of(const Moe *moe, const EpTraffic *traffic, bool with_backward)
{
    Sizes z = sizes_of(moe, traffic);
    SpanCost total = {0};
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        if (rows[i].forward || with_backward)
            total = add(total, cost_of(&z, i));
    return total;
}

SpanCost moe_forward_cost(const Moe *moe, const EpTraffic *traffic)
{
    return sum_of(moe, traffic, false);
}

SpanCost moe_step_cost(const Moe *moe, const EpTraffic *traffic)
{
    return sum_of(moe, traffic, true);
}

SpanCost moe_span_cost(const Moe *moe, const EpTraffic *traffic, const char *span)
{
    Sizes z = sizes_of(moe, traffic);
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        if (strcmp(rows[i].span, span) == 0)
            return cost_of(&z, i);
    return (SpanCost){0};
}
