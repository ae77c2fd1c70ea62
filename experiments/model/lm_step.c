// Data, first values, optimizer, balance of experts.
#include "experiments/model/lm_step.h"
#include "harness/random.h"
#include "kernels/optimizer.h"

#define ADAM_BETA1 0.9
#define ADAM_BETA2 0.95
#define ADAM_EPS   1e-8

static int32_t token_at(const LmConfig *config, uint64_t seed, int64_t index)
{
    float u = random_uniform(seed, LM_STREAM_TOKENS, (uint64_t)index);
    int32_t id = (int32_t)((double)u * (double)config->vocab);
    return id < config->vocab ? id : (int32_t)config->vocab - 1;
}

void lm_tokens(const LmConfig *config, uint64_t seed, int64_t first, int64_t count, int32_t *ids,
               int32_t *targets)
{
    for (int64_t i = 0; i < count; i++) {
        ids[i] = token_at(config, seed, first + i);
        targets[i] = token_at(config, seed, first + i + 1);
    }
}

int64_t lm_first_token(const LmTraining *training, int64_t tokens_per_batch, int step, int micro)
{
    return ((int64_t)step * training->accumulate + micro) * tokens_per_batch;
}

int64_t lm_runs(const DTensor *part)
{
    int64_t runs = 1;
    for (int d = 0; d < part->local.rank - 1; d++)
        runs *= part->local.shape[d];
    return runs;
}

int64_t lm_run_index(const DTensor *part, int64_t run)
{
    const Tensor *local = &part->local;
    int last = local->rank - 1;
    int64_t at[TENSOR_RANK_MAX] = {0}, global = 0;
    for (int d = last - 1; d >= 0; d--) {
        at[d] = run % local->shape[d];
        run /= local->shape[d];
    }
    for (int d = 0; d <= last; d++)
        global = global * part->shape[d] + dtensor_global_index(part, part->mesh->coord, d, at[d]);
    return global;
}

void lm_fill(const LmParameters *parameters, int parameter, const DTensor *part, uint64_t seed,
             float *out, Stream stream)
{
    const LmParameter *p = &parameters->parameter[parameter];
    int64_t length = part->local.shape[part->local.rank - 1];
    int64_t runs = length > 0 ? lm_runs(part) : 0;
    for (int64_t run = 0, next; run < runs; run = next) {
        int64_t first = lm_run_index(part, run);
        next = run + 1; // runs that follow each other in the whole as well are one
        while (next < runs && lm_run_index(part, next) == first + (next - run) * length)
            next++;
        random_fill(&(RandomFill){.seed = seed,
                                  .stream = LM_STREAM_PARAMETERS + (uint32_t)parameter,
                                  .first_row = first,
                                  .rows = (next - run) * length,
                                  .columns = 1,
                                  .mean = p->mean,
                                  .deviation = p->deviation,
                                  .dtype = DTYPE_F32,
                                  .out = out + run * length},
                    stream);
    }
    stream_wait(stream);
}

uint64_t lm_state_bytes(const LmTraining *training, int64_t count)
{
    uint64_t arrays = training->optimizer == LM_ADAMW ? 2 : training->momentum != 0 ? 1 : 0;
    return arrays * dtype_bytes(DTYPE_F32, (uint64_t)count);
}

void lm_state_push(const LmTraining *training, LmState *state, Arena *arena, Stream stream)
{
    uint64_t bytes = lm_state_bytes(training, state->count);
    float *memory = arena_push(arena, bytes, MEMORY_OPTIMISER);
    device_fill(memory, 0, bytes, stream);
    bool adamw = training->optimizer == LM_ADAMW;
    state->first = bytes > 0 ? memory : NULL;
    state->second = adamw ? memory + state->count : NULL;
}

void lm_optimise(const LmTraining *training, const LmState *state, int step, const float *scale,
                 Stream stream)
{
    if (training->optimizer == LM_SGD) {
        sgd_step(&(SgdStep){.count = state->count,
                            .dtype = DTYPE_F32,
                            .lr = training->lr,
                            .momentum = training->momentum,
                            .weight_decay = training->weight_decay,
                            .grad = state->gradients,
                            .grad_scale = scale,
                            .param = state->values,
                            .momentum_buffer = state->first},
                 stream);
        return;
    }
    adamw_step(&(AdamwStep){.count = state->count,
                            .dtype = DTYPE_F32,
                            .lr = training->lr,
                            .beta1 = ADAM_BETA1,
                            .beta2 = ADAM_BETA2,
                            .eps = ADAM_EPS,
                            .weight_decay = training->weight_decay,
                            .step = step + 1,
                            .grad = state->gradients,
                            .grad_scale = scale,
                            .param = state->values,
                            .exp_avg = state->first,
                            .exp_avg_sq = state->second},
               stream);
}

// torchtitan's hook (SEMANTICS.md section 6): delta = coeff sign(mean - count), minus its mean.
void lm_balance(double coeff, int experts, const int64_t *counts, float *bias)
{
    int64_t sum = 0, signs = 0;
    for (int e = 0; e < experts; e++)
        sum += counts[e];
    for (int e = 0; e < experts; e++)
        signs += (sum > counts[e] * experts) - (sum < counts[e] * experts);
    double mean = coeff * (double)signs / experts;
    for (int e = 0; e < experts; e++) {
        int sign = (sum > counts[e] * experts) - (sum < counts[e] * experts);
        bias[e] += (float)(coeff * sign - mean);
    }
}
