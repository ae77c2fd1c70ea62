// router.h -- from router logits to the chosen experts and their weights, and back to the gradient
// of the logits.
//
//   s = sigmoid(z) or softmax(z) over all experts, in f32
//   chosen = the top_k of s + expert_bias, ties to the lower index
//   w = s[chosen] without the bias, divided by (their sum + 1e-20) with normalise; times
//   route_scale
//
// NaN: a NaN key counts as lowest, so that a choice is always made (ties to the lower index); its
// weight stays NaN. With softmax one NaN logit makes all scores of the token NaN, as in torch.
// Exactness: e^x, sigmoid and the sums are the same steps on every device (cpu_math.h), so equal
// logits give equal choices and weights. The softmax's denominator: 32 partial sums, expert e in
// sum e % 32, each ascending from 0; then pairwise, sums 16, 8, 4, 2, 1 apart. The sum of the
// chosen scores: ascending expert, from 0. Against exact arithmetic the relative error of a sigmoid
// is at most 4 eps_f32, that of a softmax score (8 + largest logit - z) eps_f32. Gradients are
// stable at saturated scores, but CPU and CUDA may order their steps differently: |ours - exact| <=
// (32 + largest logit - smallest) eps_f32 * (the same formula over absolute values).
//
// A token's choices are kept twice: by falling score (what users compare) and by ascending expert
// ("slots"), the order in which contributions are summed everywhere.
//
// Source: torchtitan's TokenChoiceTopKRouter, Hugging Face Qwen2-MoE.
#pragma once

#include "kernels/kernel.h"

DECLARATIONS_BEGIN

typedef enum RouterScore { ROUTER_SIGMOID, ROUTER_SOFTMAX } RouterScore;
typedef enum RoutingMode {
    ROUTING_MODEL, // what the scores say
    ROUTING_EVEN,  // global token t takes experts (t * top_k + j) % experts: all loads alike
    ROUTING_SKEW,  // expert 0 with probability min(1, skew * top_k / experts), the rest by score
} RoutingMode;
// Weights come from the scores of what was taken, in every mode. ROUTING_SKEW takes expert 0 when
// random_uniform(seed, ROUTER_RANDOM_STREAM, global token) is below the probability and otherwise
// never; the rest come from the other experts. Where top_k = experts all are taken.
enum { ROUTER_RANDOM_STREAM = 1000 };

typedef struct RouterForward {
    int64_t tokens;
    int experts, top_k;
    RouterScore score;
    bool normalise;
    float route_scale;
    RoutingMode routing;
    double skew;               // ROUTING_SKEW: the busiest expert's load over the mean
    uint64_t seed;             // ROUTING_SKEW draws by global token index
    int64_t first_token;       // global index of token 0 here
    const float *logits;       // [tokens, logits_stride]
    int64_t logits_stride;     // >= experts
    const float *expert_bias;  // [experts] or NULL
    int32_t *expert_of_choice; // out [tokens, top_k], falling score
    int32_t *expert_of_slot;   // out [tokens, top_k], ascending expert
    float *weight_of_slot;     // out [tokens, top_k], final weight
} RouterForward;
KERNEL_DECLARE(router_forward, RouterForward);

typedef struct RouterBackward {
    int64_t tokens;
    int experts, top_k;
    RouterScore score;
    bool normalise;
    float route_scale;
    const float *logits; // [tokens, logits_stride], as in forward
    int64_t logits_stride;
    const int32_t *expert_of_slot; // [tokens, top_k]
    const float *dweight_of_slot;  // [tokens, top_k] gradient of weight_of_slot
    // The sigmoid gate of a shared expert lives in logits column `experts` when shared_dgate is
    // given: its gradient, d(gate value) [tokens], becomes column `experts` of dlogits.
    const float *shared_dgate; // or NULL
    DType dtype;               // of dlogits
    void *dlogits; // out [tokens, logits_stride]; columns past the last used one are set to 0
} RouterBackward;
// Saturated scores: sigmoid' = s * sigmoid(-z), never s * (1 - s).
KERNEL_DECLARE(router_backward, RouterBackward);

DECLARATIONS_END
