// lm.h -- a small language model for parallelisms: embedding, blocks of RMSNorm, feed-forward and
// residual, final norm, head, cross-entropy. No attention: a token's row depends on that token
// only, which is what lets a test say "the same bits on every layout".
//
//   h = E[id];   h = h + ffn(norm(h)) per block;   loss = mean over tokens of -log softmax(W
//   norm(h)) ffn: down(silu(gate x) * up x), or the Mixture-of-Experts layer of moe.h
//
// Parameters carry Hugging Face's names. An expert's gate and up rows are one tensor
// [experts, 2 * inner, dim], as in current transformers.
#pragma once

#include "experiments/model/moe.h"
#include "harness/tensor.h"

typedef struct LmConfig {
    int layers;
    int64_t dim, inner, vocab;
    MoeConfig moe; // experts 0: plain feed-forward of width `inner`
    DType dtype;   // gathered parameters and activations: f32 or bf16
    float eps;
} LmConfig;

typedef enum LmRole {
    LM_EMBEDDING,
    LM_NORM,
    LM_GATE,
    LM_UP,
    LM_DOWN,
    LM_ROUTER,
    LM_EXPERTS_IN,  // gate and up
    LM_EXPERTS_OUT, // down
    LM_HEAD,
    LM_ROLES,
} LmRole;

enum { LM_NAME_BYTES = 64, LM_BLOCK_PARAMETERS = 4, LM_DIMS = 3 };

typedef struct LmParameter {
    char name[LM_NAME_BYTES];
    LmRole role;
    int layer;             // -1 outside blocks
    int unit;              // embedding 0, blocks, then norm and head
    Tensor whole;          // f32 and global shape; data NULL
    float mean, deviation; // of its first values
} LmParameter;

typedef struct LmParameters {
    int count, units;
    LmParameter *parameter;
} LmParameters;

// Local. Owner: the caller.
LmParameters lm_parameters_create(const LmConfig *config);
void lm_parameters_destroy(LmParameters *parameters);

// Local. Indices: a block's parameters are norm, gate, up, down or norm, router, experts in, out.
typedef enum LmBlockParameter {
    LM_BLOCK_NORM,
    LM_BLOCK_FIRST, // gate, or router
    LM_BLOCK_IN,    // up, or experts' gate and up
    LM_BLOCK_OUT,   // down, or experts' down
} LmBlockParameter;
static inline int lm_block_parameter(int layer, LmBlockParameter which)
{
    return 1 + layer * LM_BLOCK_PARAMETERS + (int)which;
}
static inline int lm_norm_parameter(const LmConfig *config)
{
    return 1 + config->layers * LM_BLOCK_PARAMETERS;
}
static inline int lm_head_parameter(const LmConfig *config)
{
    return lm_norm_parameter(config) + 1;
}
static inline bool lm_is_moe(const LmConfig *config)
{
    return config->moe.experts > 0;
}

// Random streams: parameters count up from LM_STREAM_PARAMETERS; tokens have their own.
enum { LM_STREAM_TOKENS = 1, LM_STREAM_PARAMETERS = 16 };
