// The router against an implementation of its own in double: scores, choices, ties, NaN, weights,
// the routing modes; and the gradient of the logits against double formulas that finite differences
// confirm, saturated scores included.
#include "kernels/router.h"
#include "tests/kernels_data.h"

enum { EXPERTS_TOP = 130 };

typedef struct Case {
    RouterForward forward;
    float *logits;
    int64_t tokens;
} Case;

static Case make_case(Data *data)
{
    const int counts[] = {1, 2, 3, 8, 31, 32, 33, 60, EXPERTS_TOP};
    Case c = {.tokens = data_below(data, 30)};
    RouterForward *args = &c.forward;
    args->tokens = c.tokens;
    args->experts = counts[data_below(data, COUNT_OF(counts))];
    args->top_k = 1 + (int)data_below(data, args->experts < 8 ? args->experts : 8);
    args->score = (RouterScore)data_below(data, 2);
    args->normalise = data_below(data, 2);
    args->route_scale = data_below(data, 2) ? 1.0f : 2.5f;
    args->seed = data->seed;
    args->first_token = data_below(data, 1000);
    args->logits_stride = args->experts + data_below(data, 5);
    c.logits = data_poisoned(data, c.tokens * args->logits_stride, sizeof(float));
    for (int64_t t = 0; t < c.tokens; t++)
        for (int e = 0; e < args->experts; e++)
            c.logits[t * args->logits_stride + e] = 3.0f * data_normal(data);
    args->logits = c.logits;
    if (data_below(data, 2))
        args->expert_bias = data_normals(data, args->experts, DTYPE_F32, 0.2f);
    int64_t slots = c.tokens * args->top_k;
    args->expert_of_choice = data_poisoned(data, slots, sizeof(int32_t));
    args->expert_of_slot = data_poisoned(data, slots, sizeof(int32_t));
    args->weight_of_slot = data_poisoned(data, slots, sizeof(float));
    return c;
}

// Scores in double; returns the spread of the logits, which softmax's bound needs.
static double scores_of(const RouterForward *args, int64_t token, double *score)
{
    const float *z = args->logits + token * args->logits_stride;
    double largest = -INFINITY, smallest = INFINITY, sum = 0;
    for (int e = 0; e < args->experts; e++) {
        largest = fmax(largest, z[e]);
        smallest = fmin(smallest, z[e]);
    }
    for (int e = 0; e < args->experts; e++) {
        score[e] = args->score == ROUTER_SIGMOID ? 1.0 / (1.0 + exp(-(double)z[e]))
                                                 : exp((double)z[e] - largest);
        sum += score[e];
    }
    for (int e = 0; e < args->experts && args->score == ROUTER_SOFTMAX; e++)
        score[e] /= sum;
    return largest - smallest;
}

static double key_of(const RouterForward *args, const double *score, int expert)
{
    return score[expert] + (args->expert_bias ? (double)args->expert_bias[expert] : 0.0);
}

// The slots are the choices in ascending order, all different.
static void expect_slots_match(const RouterForward *args, int64_t token)
{
    const int32_t *choice = args->expert_of_choice + token * args->top_k;
    const int32_t *slot = args->expert_of_slot + token * args->top_k;
    bool chosen[EXPERTS_TOP] = {false};
    for (int j = 0; j < args->top_k; j++) {
        assert_in_range(choice[j], 0, args->experts - 1);
        expect_equal(chosen[choice[j]], false, "chosen twice", choice[j]);
        chosen[choice[j]] = true;
    }
    for (int j = 0, e = 0; j < args->top_k; j++, e++) {
        while (!chosen[e])
            e++;
        expect_equal(slot[j], e, "slot", token * args->top_k + j);
    }
}

static void expect_weights(const RouterForward *args, int64_t token, const double *score,
                           double spread)
{
    const int32_t *slot = args->expert_of_slot + token * args->top_k;
    double sum = 1e-20, relative = (3 * 8 + args->top_k + 2 * spread) * FLT_EPSILON;
    for (int j = 0; j < args->top_k; j++)
        sum += score[slot[j]];
    for (int j = 0; j < args->top_k; j++) {
        double exact = score[slot[j]] / (args->normalise ? sum : 1.0) * (double)args->route_scale;
        expect_near(args->weight_of_slot[token * args->top_k + j], exact,
                    relative * fabs(exact) + 0x1p-148, "weight", token * args->top_k + j);
    }
}

static void choices_and_weights(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 120; round++) {
        int mark = data.blocks;
        Case c = make_case(&data);
        const RouterForward *args = &c.forward;
        router_forward(args, CPU);
        for (int64_t t = 0; t < c.tokens; t++) {
            double score[EXPERTS_TOP], spread = scores_of(args, t, score);
            const int32_t *choice = args->expert_of_choice + t * args->top_k;
            bool chosen[EXPERTS_TOP] = {false};
            double lowest = INFINITY, tolerance = (10 + spread) * FLT_EPSILON;
            expect_slots_match(args, t);
            for (int j = 0; j < args->top_k; j++) {
                double key = key_of(args, score, choice[j]);
                assert_true(key <= lowest + tolerance);
                lowest = key;
                chosen[choice[j]] = true;
            }
            for (int e = 0; e < args->experts; e++)
                if (!chosen[e] && key_of(args, score, e) > lowest + tolerance)
                    fail_msg("expert %d with %.9g was not chosen, one with %.9g was", e,
                             key_of(args, score, e), lowest);
            expect_weights(args, t, score, spread);
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

static void ties_go_to_the_lower_index(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 40; round++) {
        int mark = data.blocks;
        Case c = make_case(&data);
        RouterForward *args = &c.forward;
        args->expert_bias = NULL;
        for (int64_t i = 0; i < c.tokens * args->logits_stride; i++)
            c.logits[i] = (float)data_below(&data, 3); // many ties
        router_forward(args, CPU);
        for (int64_t t = 0; t < c.tokens; t++) {
            const float *z = c.logits + t * args->logits_stride;
            bool taken[EXPERTS_TOP] = {false};
            for (int j = 0; j < args->top_k; j++) {
                int best = -1;
                for (int e = 0; e < args->experts; e++)
                    if (!taken[e] && (best < 0 || z[e] > z[best]))
                        best = e;
                taken[best] = true;
                expect_equal(args->expert_of_choice[t * args->top_k + j], best, "choice",
                             t * args->top_k + j);
            }
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

static void nan_and_infinity_do_not_stop_it(void **state)
{
    (void)state;
    enum { EXPERTS = 5, TOP = 3, TOKENS = 4 };
    const float logits[TOKENS * EXPERTS] = {
        NAN,       1.0f,      NAN,
        2.0f,      -INFINITY, // the only numbers, then the lowest, ties to the lower index
        NAN,       NAN,       NAN,
        NAN,       NAN, //
        0.5f,      NAN,       INFINITY,
        -1.0f,     3.0f, //
        -INFINITY, -INFINITY, -INFINITY,
        -INFINITY, -INFINITY,
    };
    const int32_t expected[TOKENS * TOP] = {3, 1, 4, 0, 1, 2, 2, 4, 0, 0, 1, 2};
    int32_t choice[TOKENS * TOP], slot[TOKENS * TOP];
    float weight[TOKENS * TOP];
    RouterForward args = {.tokens = TOKENS,
                          .experts = EXPERTS,
                          .top_k = TOP,
                          .score = ROUTER_SIGMOID,
                          .route_scale = 1.0f,
                          .logits = logits,
                          .logits_stride = EXPERTS,
                          .expert_of_choice = choice,
                          .expert_of_slot = slot,
                          .weight_of_slot = weight};
    router_forward(&args, CPU);
    for (int i = 0; i < TOKENS * TOP; i++)
        expect_equal(choice[i], expected[i], "choice", i);
    for (int j = 0; j < TOP; j++)
        expect_same(weight[TOP + j], NAN, "weight", TOP + j);
    expect_same(weight[3 * TOP], 0.0f, "weight", 3 * TOP);
    // Softmax: one NaN makes every score NaN, so the first experts are taken.
    args.score = ROUTER_SOFTMAX;
    router_forward(&args, CPU);
    for (int i = 0; i < TOKENS * TOP; i++) {
        expect_equal(choice[i], i % TOP, "softmax choice", i);
        expect_same(weight[i], NAN, "softmax weight", i);
    }
}

// Normalised weights of scores so small that the 1e-20 in the denominator counts.
static void tiny_scores_are_normalised_with_the_epsilon(void **state)
{
    (void)state;
    const float logits[] = {-46.0f, -47.0f, -90.0f};
    int32_t choice[2], slot[2];
    float weight[2];
    RouterForward args = {.tokens = 1,
                          .experts = 3,
                          .top_k = 2,
                          .score = ROUTER_SIGMOID,
                          .normalise = true,
                          .route_scale = 2.0f,
                          .logits = logits,
                          .logits_stride = 3,
                          .expert_of_choice = choice,
                          .expert_of_slot = slot,
                          .weight_of_slot = weight};
    router_forward(&args, CPU);
    double s0 = 1 / (1 + exp(46.0)), s1 = 1 / (1 + exp(47.0));
    expect_near(weight[0], 2 * s0 / (s0 + s1 + 1e-20), 10 * FLT_EPSILON, "weight", 0);
    expect_near(weight[1], 2 * s1 / (s0 + s1 + 1e-20), 10 * FLT_EPSILON, "weight", 1);
}

// The same tokens in one call and in two.
static void a_split_changes_nothing(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 60; round++) {
        int mark = data.blocks;
        Case c = make_case(&data);
        RouterForward whole = c.forward;
        whole.routing = (RoutingMode)(round % 3);
        whole.skew = 1.7;
        router_forward(&whole, CPU);
        RouterForward part = whole;
        int64_t slots = c.tokens * whole.top_k, first = data_below(&data, c.tokens + 1);
        int64_t slot = first * whole.top_k;
        part.expert_of_choice = data_poisoned(&data, slots, sizeof(int32_t));
        part.expert_of_slot = data_poisoned(&data, slots, sizeof(int32_t));
        part.weight_of_slot = data_poisoned(&data, slots, sizeof(float));
        part.tokens = c.tokens - first;
        part.first_token += first;
        part.logits += first * whole.logits_stride;
        router_forward(&part, CPU);
        for (int64_t i = slot; i < slots; i++) {
            expect_equal(part.expert_of_choice[i - slot], whole.expert_of_choice[i], "choice", i);
            expect_equal(part.expert_of_slot[i - slot], whole.expert_of_slot[i], "slot", i);
            expect_same(part.weight_of_slot[i - slot], whole.weight_of_slot[i], "weight", i);
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

static void even_routing_loads_all_alike(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 20; round++) {
        int mark = data.blocks;
        Case c = make_case(&data);
        RouterForward *args = &c.forward;
        args->routing = ROUTING_EVEN;
        router_forward(args, CPU);
        for (int64_t t = 0; t < c.tokens; t++) {
            double score[EXPERTS_TOP], spread = scores_of(args, t, score);
            expect_slots_match(args, t);
            expect_weights(args, t, score, spread);
            for (int j = 0; j < args->top_k; j++) {
                int64_t expert = ((args->first_token + t) * args->top_k + j) % args->experts;
                bool found = false;
                for (int i = 0; i < args->top_k; i++)
                    found |= args->expert_of_slot[t * args->top_k + i] == expert;
                expect_equal(found, true, "even expert taken", expert);
            }
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

// Expert 0 exactly where the stated draw says so; the others as the scores say among themselves.
static void skewed_routing_loads_expert_0(void **state)
{
    (void)state;
    Data data = data_create();
    enum { TOKENS = 6000, EXPERTS = 8, TOP = 2 };
    const double skew = 2.6, probability = skew * TOP / EXPERTS;
    RouterForward args = {.tokens = TOKENS,
                          .experts = EXPERTS,
                          .top_k = TOP,
                          .score = ROUTER_SOFTMAX,
                          .normalise = true,
                          .route_scale = 1.0f,
                          .routing = ROUTING_SKEW,
                          .skew = skew,
                          .seed = data.seed,
                          .first_token = 77,
                          .logits = data_normals(&data, TOKENS * EXPERTS, DTYPE_F32, 1.0f),
                          .logits_stride = EXPERTS,
                          .expert_of_choice = data_poisoned(&data, TOKENS * TOP, sizeof(int32_t)),
                          .expert_of_slot = data_poisoned(&data, TOKENS * TOP, sizeof(int32_t)),
                          .weight_of_slot = data_poisoned(&data, TOKENS * TOP, sizeof(float))};
    router_forward(&args, CPU);
    int64_t load = 0;
    for (int64_t t = 0; t < TOKENS; t++) {
        const int32_t *slot = args.expert_of_slot + t * TOP;
        bool expected = (double)random_uniform(data.seed, 1000, (uint64_t)(77 + t)) < probability;
        expect_slots_match(&args, t);
        expect_equal(slot[0] == 0, expected, "expert 0 taken", t);
        load += expected;
        // What is not expert 0 is the best of the others.
        for (int j = expected ? 1 : 0, rank = 0; j < TOP; j++, rank++) {
            int better = 0;
            for (int e = 1; e < EXPERTS; e++)
                better += args.logits[t * EXPERTS + e] > args.logits[t * EXPERTS + slot[j]];
            assert_true(better < TOP - (expected ? 1 : 0));
        }
    }
    double deviation = sqrt(TOKENS * probability * (1 - probability));
    expect_near((double)load, TOKENS * probability, 6 * deviation, "load of expert 0", 0);
    args.top_k = 1;
    args.skew = 100; // capped: always
    router_forward(&args, CPU);
    for (int64_t t = 0; t < TOKENS; t++)
        expect_equal(args.expert_of_slot[t], 0, "capped", t);
    data_destroy(&data);
}

// ---- backward

typedef struct Loss {
    const RouterForward *args;
    int64_t token;
    const float *dweight; // [top_k]
} Loss;

// sum_j dw_j w_j as a function of the logits, choice held fixed.
static double loss_at(const Loss *loss, const double *z)
{
    const RouterForward *args = loss->args;
    const int32_t *slot = args->expert_of_slot + loss->token * args->top_k;
    double all = 0, sum = 1e-20, total = 0;
    for (int e = 0; e < args->experts; e++)
        all += exp(z[e]);
    for (int j = 0; j < args->top_k; j++)
        sum += args->score == ROUTER_SIGMOID ? 1 / (1 + exp(-z[slot[j]])) : exp(z[slot[j]]) / all;
    for (int j = 0; j < args->top_k; j++) {
        double s =
            args->score == ROUTER_SIGMOID ? 1 / (1 + exp(-z[slot[j]])) : exp(z[slot[j]]) / all;
        total += (double)loss->dweight[j] * s / (args->normalise ? sum : 1.0);
    }
    return total * (double)args->route_scale;
}

// The gradient by formula in double, and the same formula over absolute values.
static void gradient_of(const Loss *loss, const double *score, double *gradient, double *size)
{
    const RouterForward *args = loss->args;
    const int32_t *slot = args->expert_of_slot + loss->token * args->top_k;
    double ds[EXPERTS_TOP] = {0}, ds_size[EXPERTS_TOP] = {0}, scale = args->route_scale,
           sum = 1e-20;
    for (int j = 0; j < args->top_k; j++)
        sum += score[slot[j]];
    for (int j = 0; j < args->top_k; j++) {
        double dw = loss->dweight[j], spread = dw, spread_size = fabs(dw);
        for (int i = 0; i < args->top_k && args->normalise; i++) {
            spread -= (double)loss->dweight[i] * score[slot[i]] / sum;
            spread_size += fabs((double)loss->dweight[i]) * score[slot[i]] / sum;
        }
        ds[slot[j]] = scale * spread / (args->normalise ? sum : 1.0);
        ds_size[slot[j]] = scale * spread_size / (args->normalise ? sum : 1.0);
    }
    for (int e = 0; e < args->experts; e++) {
        double z = args->logits[loss->token * args->logits_stride + e];
        if (args->score == ROUTER_SIGMOID) {
            gradient[e] = ds[e] * score[e] / (1 + exp(z));
            size[e] = ds_size[e] * score[e] / (1 + exp(z));
            continue;
        }
        double mean = 0, mean_size = 0;
        for (int i = 0; i < args->experts; i++) {
            mean += ds[i] * score[i];
            mean_size += ds_size[i] * score[i];
        }
        gradient[e] = score[e] * (ds[e] - mean);
        size[e] = score[e] * (ds_size[e] + mean_size);
    }
}

static void expect_finite_difference(const Loss *loss, const double *gradient, const double *size)
{
    const RouterForward *args = loss->args;
    const float *logits = args->logits + loss->token * args->logits_stride;
    const double step = 1e-4;
    double z[EXPERTS_TOP];
    for (int e = 0; e < args->experts; e++)
        z[e] = logits[e];
    for (int e = 0; e < args->experts; e++) {
        double here = z[e];
        z[e] = here + step;
        double above = loss_at(loss, z);
        z[e] = here - step;
        double below = loss_at(loss, z);
        z[e] = here;
        expect_near((above - below) / (2 * step), gradient[e], 1e-7 * (1 + size[e]),
                    "finite difference", e);
    }
}

static void gradients_are_close(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 120; round++) {
        int mark = data.blocks;
        Case c = make_case(&data);
        RouterForward *forward = &c.forward;
        router_forward(forward, CPU);
        bool gate = forward->logits_stride > forward->experts;
        for (int64_t t = 0; t < c.tokens && gate; t++)
            c.logits[t * forward->logits_stride + forward->experts] = 4 * data_normal(&data);
        float *dweight = data_normals(&data, c.tokens * forward->top_k, DTYPE_F32, 1.0f);
        float *dgate = data_normals(&data, c.tokens, DTYPE_F32, 1.0f);
        RouterBackward args = {.tokens = c.tokens,
                               .experts = forward->experts,
                               .top_k = forward->top_k,
                               .score = forward->score,
                               .normalise = forward->normalise,
                               .route_scale = forward->route_scale,
                               .logits = c.logits,
                               .logits_stride = forward->logits_stride,
                               .expert_of_slot = forward->expert_of_slot,
                               .dweight_of_slot = dweight,
                               .shared_dgate = gate ? dgate : NULL,
                               .dtype = data_below(&data, 2) ? DTYPE_F32 : DTYPE_BF16};
        args.dlogits =
            data_poisoned(&data, c.tokens * args.logits_stride, dtype_bytes(args.dtype, 1));
        router_backward(&args, CPU);
        for (int64_t t = 0; t < c.tokens; t++) {
            double score[EXPERTS_TOP], gradient[EXPERTS_TOP], size[EXPERTS_TOP];
            double spread = scores_of(forward, t, score);
            Loss loss = {forward, t, dweight + t * forward->top_k};
            gradient_of(&loss, score, gradient, size);
            if (t < 2)
                expect_finite_difference(&loss, gradient, size);
            int64_t row = t * args.logits_stride, e = 0;
            for (; e < args.experts; e++)
                expect_near(value_of(args.dlogits, args.dtype, row + e), gradient[e],
                            (32 + spread) * FLT_EPSILON * size[e] +
                                rounding_of(args.dtype) * fabs(gradient[e]) + 0x1p-140,
                            "dlogits", row + e);
            if (gate) {
                double z = c.logits[row + e], exact = dgate[t] / (1 + exp(-z)) / (1 + exp(z));
                expect_near(value_of(args.dlogits, args.dtype, row + e++), exact,
                            (10 * FLT_EPSILON + rounding_of(args.dtype)) * fabs(exact), "gate", t);
            }
            for (; e < args.logits_stride; e++)
                expect_same(value_of(args.dlogits, args.dtype, row + e), 0.0f, "unused column", e);
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

// One token; two of three experts chosen. Returns the gradient of all logits.
static void saturated(RouterScore score, bool normalise, const float *logits, int top_k,
                      const float *dweight, float *dlogits)
{
    const int32_t slot[] = {0, 1};
    RouterBackward args = {.tokens = 1,
                           .experts = 3,
                           .top_k = top_k,
                           .score = score,
                           .normalise = normalise,
                           .route_scale = 1.0f,
                           .logits = logits,
                           .logits_stride = 3,
                           .expert_of_slot = slot,
                           .dweight_of_slot = dweight,
                           .dlogits = dlogits};
    router_backward(&args, CPU);
}

static void saturated_scores_keep_their_gradients(void **state)
{
    (void)state;
    const float z[] = {80.0f, -80.0f, 0.0f}, dweight[] = {3.0f, 5.0f};
    const double tiny = exp(-80.0), relative = 100 * FLT_EPSILON;
    float d[3];
    saturated(ROUTER_SIGMOID, false, z, 2, dweight, d);
    expect_near(d[0], 3 * tiny, 3 * tiny * relative, "sigmoid", 0);
    expect_near(d[1], 5 * tiny, 5 * tiny * relative, "sigmoid", 1);
    expect_same(d[2], 0.0f, "sigmoid, not chosen", 2);
    // w0 = s0 / (s0 + s1), s0 = 1, s1 = tiny: dL/ds0 = (3 - 5) s1, dL/ds1 = 5 - 3; then times s
    // sigmoid(-z).
    saturated(ROUTER_SIGMOID, true, z, 2, dweight, d);
    expect_near(d[1], 2 * tiny, 2 * tiny * relative, "normalised sigmoid", 1);
    expect_near(d[0], 0, 0x1p-149, "normalised sigmoid", 0); // -2 e^-160 is below the range of f32
    // Softmax of 40, 0, 0: the others have r = e^-40 each, 1 - s0 = 2 r.
    const float wide[] = {40.0f, 0.0f, 0.0f};
    const double r = exp(-40.0);
    saturated(ROUTER_SOFTMAX, false, wide, 1, dweight, d);
    expect_near(d[0], 3 * 2 * r, 6 * r * relative, "softmax", 0);
    expect_near(d[1], -3 * r, 3 * r * relative, "softmax", 1);
    expect_near(d[2], -3 * r, 3 * r * relative, "softmax", 2);
    saturated(ROUTER_SOFTMAX, false, wide, 2, dweight, d);
    expect_near(d[0], 3 * 2 * r - 5 * r, 16 * r * relative, "softmax, two chosen", 0);
    expect_near(d[1], (5 - 3) * r, 16 * r * relative, "softmax, two chosen", 1);
    // One expert chosen and normalised: w = s / (s + 1e-20), so only the 1e-20 leaves a gradient.
    saturated(ROUTER_SIGMOID, true, z, 1, dweight, d);
    expect_near(d[0], 0, 1e-50, "normalised top-1", 0);
    const float low[] = {-46.0f, 0.0f, 0.0f}; // s = 1.05e-20, of the size of the 1e-20
    double s = 1 / (1 + exp(46.0)), exact = 3 * 1e-20 / ((s + 1e-20) * (s + 1e-20)) * s;
    saturated(ROUTER_SIGMOID, true, low, 1, dweight, d);
    expect_near(d[0], exact, exact * relative, "normalised top-1 far below", 0);
}

static void costs(void **state)
{
    (void)state;
    RouterForward forward = {.tokens = 10, .experts = 6, .top_k = 2};
    expect_near(router_forward_cost(&forward).bytes, 4.0 * (60 + 3 * 20), 0, "forward bytes", 0);
    RouterBackward backward = {
        .tokens = 10, .experts = 6, .top_k = 2, .logits_stride = 8, .dtype = DTYPE_BF16};
    expect_near(router_backward_cost(&backward).bytes, 4.0 * (60 + 40) + 160, 0, "bytes", 0);
    assert_true(router_forward_cost(&forward).flops > 0);
    assert_true(router_backward_cost(&backward).flops > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(choices_and_weights),
        cmocka_unit_test(ties_go_to_the_lower_index),
        cmocka_unit_test(nan_and_infinity_do_not_stop_it),
        cmocka_unit_test(tiny_scores_are_normalised_with_the_epsilon),
        cmocka_unit_test(a_split_changes_nothing),
        cmocka_unit_test(even_routing_loads_all_alike),
        cmocka_unit_test(skewed_routing_loads_expert_0),
        cmocka_unit_test(gradients_are_close),
        cmocka_unit_test(saturated_scores_keep_their_gradients),
        cmocka_unit_test(costs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
