// The list of a model's parameters: names, shapes, units, first values.
#include "experiments/model/lm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

// Shapes are products of these.
typedef enum Size { ONE, DIM, INNER, VOCAB, EXPERTS, EXPERT_INNER, EXPERT_INNER_TWICE } Size;

typedef struct Row {
    const char *name; // after "model.layers.N." for blocks
    LmRole role;
    int rank;
    Size shape[LM_DIMS];
} Row;

static const Row embedding = {"model.embed_tokens.weight", LM_EMBEDDING, 2, {VOCAB, DIM}};
static const Row last[] = {{"model.norm.weight", LM_NORM, 1, {DIM}},
                           {"lm_head.weight", LM_HEAD, 2, {VOCAB, DIM}}};
static const Row mlp_block[LM_BLOCK_PARAMETERS] = {
    {"post_attention_layernorm.weight", LM_NORM, 1, {DIM}},
    {"mlp.gate_proj.weight", LM_GATE, 2, {INNER, DIM}},
    {"mlp.up_proj.weight", LM_UP, 2, {INNER, DIM}},
    {"mlp.down_proj.weight", LM_DOWN, 2, {DIM, INNER}},
};
static const Row moe_block[LM_BLOCK_PARAMETERS] = {
    {"post_attention_layernorm.weight", LM_NORM, 1, {DIM}},
    {"mlp.gate.weight", LM_ROUTER, 2, {EXPERTS, DIM}},
    {"mlp.experts.gate_up_proj", LM_EXPERTS_IN, 3, {EXPERTS, EXPERT_INNER_TWICE, DIM}},
    {"mlp.experts.down_proj", LM_EXPERTS_OUT, 3, {EXPERTS, DIM, EXPERT_INNER}},
};

static int64_t size_of(const LmConfig *c, Size size)
{
    const int64_t sizes[] = {[ONE] = 1,
                             [DIM] = c->dim,
                             [INNER] = c->inner,
                             [VOCAB] = c->vocab,
                             [EXPERTS] = c->moe.experts,
                             [EXPERT_INNER] = c->moe.inner,
                             [EXPERT_INNER_TWICE] = 2 * c->moe.inner};
    return sizes[size];
}

static LmParameter make(const LmConfig *config, const Row *row, int layer, int unit)
{
    LmParameter p = {.role = row->role, .layer = layer, .unit = unit};
    if (layer >= 0)
        snprintf(p.name, sizeof p.name, "model.layers.%d.%s", layer, row->name);
    else
        snprintf(p.name, sizeof p.name, "%s", row->name);
    p.whole = (Tensor){.dtype = DTYPE_F32, .rank = row->rank};
    for (int d = 0; d < row->rank; d++)
        p.whole.shape[d] = size_of(config, row->shape[d]);
    // Norms near 1; other rows keep the size of what comes in.
    bool norm = row->role == LM_NORM;
    int64_t columns = p.whole.shape[row->rank - 1];
    p.mean = norm ? 1.0f : 0.0f;
    p.deviation = norm ? 0.1f : row->role == LM_EMBEDDING ? 1.0f : 1.0f / sqrtf((float)columns);
    return p;
}

LmParameters lm_parameters_create(const LmConfig *config)
{
    LmParameters list = {.count = 1 + config->layers * LM_BLOCK_PARAMETERS + (int)COUNT_OF(last),
                         .units = config->layers + 2};
    list.parameter = calloc((size_t)list.count, sizeof(LmParameter));
    CHECK(list.parameter != NULL, EXIT_CODE_HARDWARE, "lower --layers",
          "no memory for a list of %d parameters", list.count);
    const Row *block = lm_is_moe(config) ? moe_block : mlp_block;
    list.parameter[0] = make(config, &embedding, -1, 0);
    for (int layer = 0; layer < config->layers; layer++)
        for (int i = 0; i < LM_BLOCK_PARAMETERS; i++)
            list.parameter[lm_block_parameter(layer, (LmBlockParameter)i)] =
                make(config, &block[i], layer, layer + 1);
    for (int i = 0; i < (int)COUNT_OF(last); i++)
        list.parameter[lm_norm_parameter(config) + i] =
            make(config, &last[i], -1, config->layers + 1);
    return list;
}

void lm_parameters_destroy(LmParameters *parameters)
{
    free(parameters->parameter);
    *parameters = (LmParameters){0};
}
