// router.c -- choosing experts on the CPU, and the gradient of the logits.
//
// Keys are scores plus bias with NaN as minus infinity; the next choice is the largest key that
// comes after the last one in the order (falling key, rising expert), so nothing needs marking and
// nothing can loop.
//
// Gradients are written so that nothing cancels where a score is nearly 0 or nearly 1. With
// normalise, S the sum of the chosen scores and D = S + 1e-20:
//   ds_j = scale / D * (sum_i s_i / D (dw_j - dw_i) + dw_j 1e-20 / D)         [dw_j - sum_i dw_i
//   s_i / D would cancel]
// and for softmax, over the chosen i, with R the sum of all scores that were not chosen:
//   dz_j = s_j (sum_i s_i (ds_j - ds_i) + ds_j R)                             [ds_j - sum_i ds_i
//   s_i would cancel]

#include "kernels/router.h"
#include "kernels/cpu_math.h"

#include "harness/random.h"

KERNEL_DEFINE(router_forward, RouterForward)
KERNEL_DEFINE(router_backward, RouterBackward)

enum { EXPERTS_MAX = 4096 }; // scores of one token are kept on the stack
static const float NORMALISE_EPSILON = 1e-20f;

static void check_experts(int experts, int top_k)
{
    CHECK(experts <= EXPERTS_MAX, EXIT_CODE_USAGE, "use fewer --experts",
          "%d experts: the router takes at most %d", experts, EXPERTS_MAX);
    CHECK_RULE(top_k >= 1 && top_k <= experts);
}

CPU_CLONES
static void scores_of_token(RouterScore kind, const float *logits, int experts,
                            float *restrict score)
{
    if (kind == ROUTER_SIGMOID) {
        for (int expert = 0; expert < experts; expert++)
            score[expert] = cpu_sigmoid(logits[expert]);
        return;
    }
    float largest = -INFINITY;
    for (int expert = 0; expert < experts; expert++)
        largest = logits[expert] > largest ? logits[expert] : largest;
    for (int expert = 0; expert < experts; expert++)
        score[expert] = cpu_exp_negative(logits[expert] - largest);
    float lane[CPU_DOT_LANES] = {0};
    for (int expert = 0; expert < experts; expert++)
        lane[expert % CPU_DOT_LANES] += score[expert];
    float sum = cpu_lane_sum(lane);
    for (int expert = 0; expert < experts; expert++)
        score[expert] /= sum;
}

// The best expert from `first` on that comes after (key, expert) in the order of choice.
static int next_choice(const float *key, int experts, int first, float last_key, int last_expert)
{
    int best = -1;
    for (int expert = first; expert < experts; expert++) {
        bool after = key[expert] < last_key || (key[expert] == last_key && expert > last_expert);
        if (after && (best < 0 || key[expert] > key[best]))
            best = expert;
    }
    return best;
}

static void choose_best(const float *key, int experts, int first, int count, int32_t *choice)
{
    float last_key = INFINITY;
    int last_expert = -1;
    for (int j = 0; j < count; j++) {
        last_expert = next_choice(key, experts, first, last_key, last_expert);
        last_key = key[last_expert];
        choice[j] = last_expert;
    }
}

// Into falling key, ties to the lower expert; with key NULL into rising expert. Few and nearly
// sorted: insertion.
static void sort_choices(const float *key, int count, int32_t *choice)
{
    for (int j = 1; j < count; j++) {
        int32_t moving = choice[j];
        int at = j;
        for (; at > 0; at--) {
            int32_t other = choice[at - 1];
            bool differ = key && key[moving] != key[other];
            if (differ ? key[moving] < key[other] : moving > other)
                break;
            choice[at] = other;
        }
        choice[at] = moving;
    }
}

static void choose_skewed(const RouterForward *args, int64_t token, const float *key,
                          int32_t *choice)
{
    double probability = args->skew * args->top_k / args->experts;
    double draw = (double)random_uniform(args->seed, ROUTER_RANDOM_STREAM, (uint64_t)token);
    if (args->top_k == args->experts) {
        choose_best(key, args->experts, 0, args->top_k, choice);
    } else if (draw < probability) {
        choice[0] = 0;
        choose_best(key, args->experts, 1, args->top_k - 1, choice + 1);
    } else {
        choose_best(key, args->experts, 1, args->top_k, choice);
    }
}

static void route_token(const RouterForward *args, int64_t token)
{
    float score[EXPERTS_MAX], key[EXPERTS_MAX];
    int experts = args->experts, top_k = args->top_k;
    int64_t global = args->first_token + token;
    int32_t *choice = args->expert_of_choice + token * top_k;
    int32_t *slot = args->expert_of_slot + token * top_k;
    scores_of_token(args->score, args->logits + token * args->logits_stride, experts, score);
    for (int expert = 0; expert < experts; expert++) {
        float biased =
            args->expert_bias ? score[expert] + args->expert_bias[expert] : score[expert];
        key[expert] = isnan(biased) ? -INFINITY : biased;
    }
    if (args->routing == ROUTING_EVEN)
        for (int j = 0; j < top_k; j++)
            choice[j] = (int32_t)((global % experts * top_k + j) % experts);
    else if (args->routing == ROUTING_SKEW)
        choose_skewed(args, global, key, choice);
    else
        choose_best(key, experts, 0, top_k, choice);
    sort_choices(key, top_k, choice);
    memcpy(slot, choice, sizeof(int32_t) * (size_t)top_k);
    sort_choices(NULL, top_k, slot);
    float sum = 0.0f;
    for (int j = 0; j < top_k; j++)
        sum += score[slot[j]];
    for (int j = 0; j < top_k; j++) {
        float weight = score[slot[j]];
        if (args->normalise)
            weight /= sum + NORMALISE_EPSILON;
        args->weight_of_slot[token * top_k + j] = weight * args->route_scale;
    }
}

void router_forward_cpu(const RouterForward *args, Stream stream)
{
    (void)stream;
    check_experts(args->experts, args->top_k);
#pragma omp parallel for schedule(static) if (args->tokens * args->experts >= CPU_PARALLEL_MIN)
    for (int64_t token = 0; token < args->tokens; token++)
        route_token(args, token);
}

KernelCost router_forward_cost(const RouterForward *args)
{
    double tokens = (double)args->tokens, experts = (double)args->experts;
    double chosen = tokens * (double)args->top_k;
    return (KernelCost){
        .bytes = 4.0 * (tokens * experts + 3.0 * chosen + (args->expert_bias ? experts : 0.0)),
        .flops = 4.0 * tokens * experts + 2.0 * chosen};
}

// d(score) of every chosen expert, by slot.
static void slot_gradients(const RouterBackward *args, int64_t token, const float *score,
                           float *dscore)
{
    const int32_t *expert = args->expert_of_slot + token * args->top_k;
    const float *dweight = args->dweight_of_slot + token * args->top_k;
    float denominator = NORMALISE_EPSILON;
    for (int j = 0; j < args->top_k; j++)
        denominator += score[expert[j]];
    for (int j = 0; j < args->top_k; j++) {
        dscore[j] = args->route_scale * dweight[j];
        if (!args->normalise)
            continue;
        float spread = dweight[j] * (NORMALISE_EPSILON / denominator);
        for (int i = 0; i < args->top_k; i++)
            spread += score[expert[i]] / denominator * (dweight[j] - dweight[i]);
        dscore[j] = args->route_scale * spread / denominator;
    }
}

// Gradient of all logits of a token under softmax, in place of `score`.
static void softmax_gradients(const RouterBackward *args, int64_t token, float *score,
                              const float *dscore, float *dlogit)
{
    const int32_t *slot = args->expert_of_slot + token * args->top_k;
    float mean = 0.0f, rest = 0.0f;
    for (int j = 0; j < args->top_k; j++)
        mean += dscore[j] * score[slot[j]];
    for (int expert = 0, j = 0; expert < args->experts; expert++) {
        if (j < args->top_k && slot[j] == expert)
            j++;
        else
            rest += score[expert];
        dlogit[expert] = -score[expert] * mean;
    }
    for (int j = 0; j < args->top_k; j++) {
        float spread = dscore[j] * rest;
        for (int i = 0; i < args->top_k; i++)
            spread += score[slot[i]] * (dscore[j] - dscore[i]);
        dlogit[slot[j]] = score[slot[j]] * spread;
    }
}

static void backward_token(const RouterBackward *args, int64_t token)
{
    float score[EXPERTS_MAX], dscore[EXPERTS_MAX], dlogit[EXPERTS_MAX];
    const float *logits = args->logits + token * args->logits_stride;
    const int32_t *slot = args->expert_of_slot + token * args->top_k;
    int64_t row = token * args->logits_stride, column = 0;
    scores_of_token(args->score, logits, args->experts, score);
    slot_gradients(args, token, score, dscore);
    if (args->score == ROUTER_SOFTMAX) {
        softmax_gradients(args, token, score, dscore, dlogit);
    } else {
        memset(dlogit, 0, sizeof(float) * (size_t)args->experts);
        for (int j = 0; j < args->top_k; j++)
            dlogit[slot[j]] = dscore[j] * score[slot[j]] * cpu_sigmoid(-logits[slot[j]]);
    }
    for (; column < args->experts; column++)
        cpu_store(args->dlogits, args->dtype, row + column, dlogit[column]);
    if (args->shared_dgate) {
        float z = logits[column], gradient = args->shared_dgate[token];
        cpu_store(args->dlogits, args->dtype, row + column++,
                  gradient * cpu_sigmoid(z) * cpu_sigmoid(-z));
    }
    for (; column < args->logits_stride; column++)
        cpu_store(args->dlogits, args->dtype, row + column, 0.0f);
}

void router_backward_cpu(const RouterBackward *args, Stream stream)
{
    (void)stream;
    check_experts(args->experts, args->top_k);
    CHECK_RULE(args->logits_stride >= args->experts + (args->shared_dgate ? 1 : 0));
#pragma omp parallel for schedule(static) if (args->tokens * args->experts >= CPU_PARALLEL_MIN)
    for (int64_t token = 0; token < args->tokens; token++)
        backward_token(args, token);
}

KernelCost router_backward_cost(const RouterBackward *args)
{
    double tokens = (double)args->tokens, experts = (double)args->experts;
    double top_k = (double)args->top_k, gates = args->shared_dgate ? tokens : 0.0;
    double out_bytes = tokens * (double)dtype_bytes(args->dtype, (uint64_t)args->logits_stride);
    return (KernelCost){.bytes = 4.0 * (tokens * (experts + 2.0 * top_k) + 2.0 * gates) + out_bytes,
                        .flops = tokens * (6.0 * experts + 3.0 * top_k * top_k) + 6.0 * gates};
}
