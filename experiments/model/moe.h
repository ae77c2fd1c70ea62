// moe.h -- one Mixture-of-Experts layer, forward and backward, on whatever ranks its experts are
// divided over.
//
//   y[t] = sum over chosen experts e, ascending, of w[t,e] * w2[e] (silu(w1[e] x) * w3[e] x)  [+
//   gate * shared(x)]
// or, with the score before the experts, w[t,e] multiplies the expert's input.
//
// Canonical order of sums (DESIGN.md section 5): a token's contributions in f32 by ascending
// expert; an expert's weight gradient over its rows in (rank, token) order; dense gradients
// (router, shared expert) one partial per rank's tokens; partials added in f32 in rank order,
// rounded once to the storage type.
#pragma once

#include "harness/record.h"
#include "kernels/grouped_gemm.h"
#include "kernels/router.h"
#include "parallel/ep.h"
#include "quant/recipe.h"

typedef struct MoeConfig {
    int64_t hidden, inner; // inner: width of one expert
    int experts, top_k;
    RouterScore score;
    bool score_before_experts, normalise_top_k;
    double route_scale;
    bool expert_bias;     // a bias used for choosing only
    int64_t shared_inner; // 0 = no shared expert
    bool shared_gate;     // sigmoid gate on the shared expert
    DType dtype;          // storage: f32 or bf16
    RoutingMode routing;
    double skew;
    const Recipe *recipe; // of the experts' products (moe_quant.h); NULL = none
} MoeConfig;

// Every parameter of the layer, in device memory of the rank that holds it. The same struct holds
// gradients. The router and the shared gate are one matrix: rows 0 .. experts - 1, then the gate's
// row if there is one, then zero rows up to router_rows (a multiple of 8), so that one product
// makes all logits.
typedef struct MoeWeights {
    void *router;       // [router_rows, hidden]
    float *expert_bias; // [experts] or NULL; has no gradient
    void *w13;          // [experts_local, 2 * inner, hidden]: gate rows, then up rows
    void *w2;           // [experts_local, hidden, inner]
    void *shared_w13;   // [2 * shared_inner, hidden]
    void *shared_w2;    // [hidden, shared_inner]
} MoeWeights;
int64_t moe_router_rows(const MoeConfig *config); // Local

// Work buffers and the expert-parallel machinery of one layer on one rank.
typedef struct Moe Moe;

enum { MOE_AMAXES = 2 }; // of the inputs of both products

typedef struct MoeSettings {
    MoeConfig config;
    Comm experts_comm; // the ranks that divide the experts
    Comm
        replicas_comm; // the ranks that hold the same experts (expert gradients are summed over it)
    Comm tokens_comm;  // the ranks that divide the tokens (dense gradients are summed over it)
    int64_t tokens;    // of this rank
    int64_t first_token; // global index of its first token
    int align;
    bool exact, forward_only;
    EpTransport transport;
    DeviceKind device;
    Arena *arena;
    uint64_t seed;
    int threads;
    // For a 1-rank reference that stands for several ranks ("virtual ranks"; a real rank leaves all
    // three at 0):
    int group_size; // experts per virtual rank, for the fast mode's grouping of sums; 0 = none
    int parts;      // virtual ranks whose tokens these are; 0 = one
    const int64_t *part_tokens; // [parts] tokens of each, in order; sum = tokens
    // Recipes with one activation scale for all: [MOE_AMAXES] in device memory, the largest
    // magnitudes known so far, which a forward raises; a reference carries them from group to
    // group. NULL = start from 0.
    float *amax;
} MoeSettings;

// Collective(experts_comm). Owner: the caller.
Moe *moe_create(const MoeSettings *settings);
void moe_destroy(Moe *moe);
// Local. Who records the spans from now on; NULL = nobody.
void moe_record_with(Moe *moe, Recorder *recorder);
// Collective(experts_comm), Enqueues(stream). y: [tokens, hidden].
void moe_forward(Moe *moe, const MoeWeights *weights, const void *x, void *y, Stream stream);
// Where gradients go. The dense ones (router, shared) are always f32 sums over this rank's tokens,
// once per part
// ([parts, ...]). The experts' are f32 sums over this rank's rows, or the finished storage type
// when no other rank holds the same experts (moe_experts_direct); accumulate_experts adds f32 sums
// to what is there.
typedef struct MoeGradients {
    MoeWeights sum;
    DType experts_dtype;
    bool accumulate_experts;
} MoeGradients;
bool moe_experts_direct(const Moe *moe); // Local

// Collective(experts_comm), Enqueues(stream), after moe_forward with the same x. dx: [tokens,
// hidden].
void moe_backward(Moe *moe, const MoeWeights *weights, const void *x, const void *dy, void *dx,
                  const MoeGradients *gradients, Stream stream);
// Collective(replicas_comm, tokens_comm), Enqueues(stream). Sums over ranks, in rank order when
// exact, and rounds to the storage type. Experts that were direct are left alone (out.w13 is
// sum.w13).
void moe_reduce_gradients(Moe *moe, const MoeGradients *gradients, const MoeWeights *out,
                          Stream stream);
// Local. After a forward: [tokens, top_k] by falling score, device memory.
const int32_t *moe_expert_of_choice(const Moe *moe);
const Ep *moe_ep(const Moe *moe);            // Local
const MoeConfig *moe_config(const Moe *moe); // Local
int64_t moe_tokens(const Moe *moe);          // Local. Of this rank
