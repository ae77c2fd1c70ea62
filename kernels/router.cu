// router.cu -- choosing experts on the GPU: one warp per token, lane l looks after experts l, l +
// 32,
// ...
//
// A choice is the largest of the candidates' keys: the score (plus bias) mapped to an integer that
// orders like the float; two warp-wide reductions give the largest key and the lowest expert that
// has it. The scores follow kernels/cpu_math.h step by step, without fused steps, so that CPU and
// GPU choose alike from the same logits. Limit: instructions (top_k rounds of reductions); the
// logits are read once.
#include "harness/philox.h"
#include "kernels/cuda_common.cuh"
#include "kernels/router.h"

enum {
    ROUTER_THREADS = 128,
    ROUTER_WARPS = ROUTER_THREADS / WARP_LANES,
    ROUTER_BLOCKS_MOST = 16,
    ROUTER_EXPERTS_MAX = 1024, // 32 a lane, whose choice fits one word
};

static unsigned router_grid(int64_t tokens)
{
    return cuda_grid((tokens + ROUTER_WARPS - 1) / ROUTER_WARPS, ROUTER_BLOCKS_MOST);
}

// cpu_exp_negative of kernels/cpu_math.h.
__device__ static float exp_negative(float x)
{
    const float shift = 12582912.0f;
    const float bounded = x < -104.0f ? -104.0f : x;
    const float n = __fsub_rn(__fadd_rn(__fmul_rn(bounded, 1.44269504f), shift), shift);
    const float r =
        __fsub_rn(__fsub_rn(bounded, __fmul_rn(n, 0.693359375f)), __fmul_rn(n, -2.12194440e-4f));
    float p = 1.0f / 5040.0f;
    const float coefficient[] = {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f};
#pragma unroll
    for (int i = 0; i < 5; i++)
        p = __fadd_rn(__fmul_rn(p, r), coefficient[i]);
    p = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, r), r), r), 1.0f);
    const int exponent = x == x ? (int)n : 0, half = exponent / 2;
    const float scale_a = __int_as_float((127 + half) << 23);
    const float scale_b = __int_as_float((127 + exponent - half) << 23);
    return __fmul_rn(__fmul_rn(p, scale_a), scale_b);
}

// cpu_sigmoid of kernels/cpu_math.h.
__device__ static float router_sigmoid(float z)
{
    const float e = exp_negative(z < 0 ? z : -z);
    return __fdiv_rn(z < 0 ? e : 1.0f, __fadd_rn(1.0f, e));
}

// What a token's scores are made of: the softmax's largest logit and denominator (unused by the
// sigmoid).
struct Scores {
    RouterScore kind;
    float largest, denominator;
};

__device__ static float score_of(const Scores &scores, float z)
{
    if (scores.kind == ROUTER_SIGMOID)
        return router_sigmoid(z);
    return __fdiv_rn(exp_negative(__fsub_rn(z, scores.largest)), scores.denominator);
}

__device__ static Scores scores_of_token(RouterScore kind, const float *logits, int experts)
{
    Scores scores = {kind, 0.0f, 1.0f};
    if (kind == ROUTER_SIGMOID)
        return scores;
    float largest = -INFINITY, sum = 0.0f;
    for (int expert = lane_index(); expert < experts; expert += WARP_LANES)
        largest = fmaxf(largest, logits[expert]);
#pragma unroll
    for (int apart = WARP_LANES / 2; apart > 0; apart /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(WARP_ALL, largest, apart));
    for (int expert = lane_index(); expert < experts; expert += WARP_LANES)
        sum = __fadd_rn(sum, exp_negative(__fsub_rn(logits[expert], largest)));
    scores.largest = largest;
    scores.denominator = warp_sum(sum);
    return scores;
}

// Orders like the float; -0 like 0, NaN like -infinity; never 0, which stands for "no candidate".
__device__ static uint32_t order_key(float value)
{
    const uint32_t bits = __float_as_uint(value != value ? -INFINITY : __fadd_rn(value, 0.0f));
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Takes the `count` best of the lanes' candidates (bit i of a lane: expert i * 32 + lane). Returns
// the lane's part of the chosen set, and stores the experts by falling key unless order is NULL.
template <int PER_LANE>
__device__ static uint32_t choose(const uint32_t (&key)[PER_LANE], uint32_t candidates, int count,
                                  int32_t *order)
{
    uint32_t chosen = 0;
    for (int round = 0; round < count; round++) {
        uint32_t best_key = 0, best = 0xFFFFFFFFu;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if ((candidates >> i & 1u) && key[i] > best_key) {
                best_key = key[i];
                best = (uint32_t)(i * WARP_LANES + lane_index());
            }
        const uint32_t top = __reduce_max_sync(WARP_ALL, best_key);
        const uint32_t expert = __reduce_min_sync(WARP_ALL, best_key == top ? best : 0xFFFFFFFFu);
        if (best == expert) {
            candidates &= ~(1u << expert / WARP_LANES);
            chosen |= 1u << expert / WARP_LANES;
        }
        if (order && lane_index() == 0)
            order[round] = (int32_t)expert;
    }
    return chosen;
}

// The experts that a token may choose from (bit i of a lane: expert i * 32 + lane) under the
// routing mode. Where the mode fixes a part of the choice, what is left is exactly the chosen set.
template <int PER_LANE>
__device__ static uint32_t candidates_of(const RouterForward &args, const uint32_t (&key)[PER_LANE],
                                         int64_t token)
{
    const int64_t global = args.first_token + token;
    const int first_even = (int)(global % args.experts * args.top_k % args.experts);
    uint32_t candidates = 0;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const int expert = i * WARP_LANES + lane_index();
        const bool even = (expert - first_even + args.experts) % args.experts < args.top_k;
        if (expert < args.experts && (args.routing != ROUTING_EVEN || even))
            candidates |= 1u << i;
    }
    if (args.routing != ROUTING_SKEW || args.top_k == args.experts)
        return candidates;
    const float drawn =
        philox_uniform(philox_value_block(args.seed, ROUTER_RANDOM_STREAM, (uint64_t)global));
    const bool busiest = (double)drawn < fmin(1.0, args.skew * args.top_k / args.experts);
    const uint32_t expert_0 = lane_index() == 0 ? 1u : 0u;
    if (!busiest)
        return candidates & ~expert_0;
    return choose<PER_LANE>(key, candidates & ~expert_0, args.top_k - 1, NULL) | expert_0;
}

// Writes a token's slots: the chosen experts in ascending order, and their weights.
template <int PER_LANE>
__device__ static void store_slots(const RouterForward &args, const float (&score)[PER_LANE],
                                   uint32_t chosen, int64_t token)
{
    float sum = 0.0f;
    if (args.normalise)
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            for (unsigned left = __ballot_sync(WARP_ALL, chosen >> i & 1u); left; left &= left - 1)
                sum = __fadd_rn(sum, __shfl_sync(WARP_ALL, score[i], __ffs((int)left) - 1));
    int64_t slot = token * args.top_k;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const bool mine = chosen >> i & 1u;
        const unsigned lanes = __ballot_sync(WARP_ALL, mine);
        if (mine) {
            const int64_t place = slot + __popc(lanes & lanes_below());
            const float weight =
                args.normalise ? __fdiv_rn(score[i], __fadd_rn(sum, 1e-20f)) : score[i];
            args.expert_of_slot[place] = i * WARP_LANES + lane_index();
            args.weight_of_slot[place] = __fmul_rn(weight, args.route_scale);
        }
        slot += __popc(lanes);
    }
}

// Warp: one token. PER_LANE experts in the registers of each lane.
template <int PER_LANE>
__global__ void __launch_bounds__(ROUTER_THREADS) router_forward_kernel(RouterForward args)
{
    for (int64_t token = warp_index(); token < args.tokens; token += warp_count()) {
        const float *logits = args.logits + token * args.logits_stride;
        const Scores scores = scores_of_token(args.score, logits, args.experts);
        float score[PER_LANE];
        uint32_t key[PER_LANE];
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            const int expert = i * WARP_LANES + lane_index();
            score[i] = 0.0f;
            key[i] = 0;
            if (expert < args.experts) {
                score[i] = score_of(scores, logits[expert]);
                key[i] = order_key(args.expert_bias ? __fadd_rn(score[i], args.expert_bias[expert])
                                                    : score[i]);
            }
        }
        const uint32_t candidates = candidates_of<PER_LANE>(args, key, token);
        const uint32_t chosen = choose<PER_LANE>(key, candidates, args.top_k,
                                                 args.expert_of_choice + token * args.top_k);
        store_slots<PER_LANE>(args, score, chosen, token);
    }
}

void router_forward_cuda(const RouterForward *args, Stream stream)
{
    typedef void (*ForwardKernel)(RouterForward);
    static const ForwardKernel kernels[] = {router_forward_kernel<2>, router_forward_kernel<4>,
                                            router_forward_kernel<8>, router_forward_kernel<16>,
                                            router_forward_kernel<32>};
    CHECK(args->experts <= ROUTER_EXPERTS_MAX, EXIT_CODE_USAGE, "use fewer --experts",
          "%d experts: the router on CUDA takes at most %d", args->experts, ROUTER_EXPERTS_MAX);
    int row = 0;
    while ((2 << row) * WARP_LANES < args->experts)
        row++;
    kernels[row]<<<router_grid(args->tokens), ROUTER_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}

// A token's slots in shared memory, one warp's part: [top_k] each.
struct BackwardSlots {
    float *score, *dweight, *dscore;
};

// dscore of every slot. With normalise w_j = scale s_j / (S + eps), S = sum of the chosen scores,
// hence
//   dscore_j = scale / (S + eps) * sum_i s_i / (S + eps) * (dw_j - dw_i)   [+ dw_j eps / (S +
//   eps)^2 scale]
// which does not cancel where one score is nearly all of S, as dw_j - sum_i dw_i w_i would.
__device__ static void backward_scores(const RouterBackward &args, const BackwardSlots &slots)
{
    const float epsilon = 1e-20f;
    float sum = epsilon;
    for (int j = 0; args.normalise && j < args.top_k; j++)
        sum += slots.score[j];
    for (int j = lane_index(); j < args.top_k; j += WARP_LANES) {
        const float dweight = slots.dweight[j];
        float dscore = args.route_scale * dweight;
        if (args.normalise) {
            float spread = epsilon / sum * dweight;
            for (int i = 0; i < args.top_k; i++)
                spread += slots.score[i] / sum * (dweight - slots.dweight[i]);
            dscore = args.route_scale * spread / sum;
        }
        slots.dscore[j] = dscore;
    }
    __syncwarp();
}

__device__ static bool is_chosen(const int32_t *expert_of_slot, int top_k, int expert)
{
    bool chosen = false;
    for (int j = 0; j < top_k; j++)
        chosen |= expert_of_slot[j] == expert;
    return chosen;
}

// The gradient of slot j's logit. Softmax, with `rest` the sum of all scores that were not chosen:
// s_j (sum_i s_i (ds_j - ds_i) + ds_j rest), where ds_j - sum_i ds_i s_i would cancel.
__device__ static float backward_slot(const RouterBackward &args, const BackwardSlots &slots, int j,
                                      float z, float rest)
{
    const float score = slots.score[j], dscore = slots.dscore[j];
    if (args.score == ROUTER_SIGMOID)
        return dscore * score * router_sigmoid(-z);
    float spread = dscore * rest;
    for (int i = 0; i < args.top_k; i++)
        spread += slots.score[i] * (dscore - slots.dscore[i]);
    return score * spread;
}

// Warp: one token. All columns get what they have without being chosen, then the slots' columns are
// overwritten.
template <typename T>
__global__ void __launch_bounds__(ROUTER_THREADS) router_backward_kernel(RouterBackward args)
{
    extern __shared__ float shared[];
    float *mine = shared + threadIdx.x / WARP_LANES * 3 * args.top_k;
    const BackwardSlots slots = {mine, mine + args.top_k, mine + 2 * args.top_k};
    for (int64_t token = warp_index(); token < args.tokens; token += warp_count()) {
        const float *logits = args.logits + token * args.logits_stride;
        const int32_t *expert_of_slot = args.expert_of_slot + token * args.top_k;
        T *dlogits = (T *)args.dlogits + token * args.logits_stride;
        const Scores scores = scores_of_token(args.score, logits, args.experts);
        for (int j = lane_index(); j < args.top_k; j += WARP_LANES) {
            slots.score[j] = score_of(scores, logits[expert_of_slot[j]]);
            slots.dweight[j] = args.dweight_of_slot[token * args.top_k + j];
        }
        __syncwarp();
        backward_scores(args, slots);
        const bool softmax = args.score == ROUTER_SOFTMAX;
        float mean = 0.0f, rest = 0.0f;
        for (int j = 0; softmax && j < args.top_k; j++)
            mean += slots.dscore[j] * slots.score[j];
        for (int column = lane_index(); column < args.logits_stride; column += WARP_LANES) {
            float dlogit = 0.0f;
            if (softmax && column < args.experts) {
                const float score = score_of(scores, logits[column]);
                rest += is_chosen(expert_of_slot, args.top_k, column) ? 0.0f : score;
                dlogit = -score * mean;
            }
            dlogits[column] = narrow<T>(dlogit);
        }
        rest = warp_sum(rest);
        __syncwarp();
        for (int j = lane_index(); j < args.top_k; j += WARP_LANES) {
            const int expert = expert_of_slot[j];
            dlogits[expert] = narrow<T>(backward_slot(args, slots, j, logits[expert], rest));
        }
        if (args.shared_dgate && lane_index() == 0) {
            const float z = logits[args.experts];
            dlogits[args.experts] =
                narrow<T>(args.shared_dgate[token] * router_sigmoid(z) * router_sigmoid(-z));
        }
        __syncwarp();
    }
}

void router_backward_cuda(const RouterBackward *args, Stream stream)
{
    CHECK(args->top_k <= ROUTER_EXPERTS_MAX, EXIT_CODE_USAGE, "use a smaller --top_k",
          "top_k %d: the router on CUDA takes at most %d", args->top_k, ROUTER_EXPERTS_MAX);
    const size_t shared_bytes = sizeof(float) * 3 * ROUTER_WARPS * (size_t)args->top_k;
    const cudaStream_t handle = cuda_stream(stream);
    const unsigned grid = router_grid(args->tokens);
    (args->dtype == DTYPE_BF16
         ? router_backward_kernel<Bf16>
         : router_backward_kernel<float>)<<<grid, ROUTER_THREADS, shared_bytes, handle>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}
