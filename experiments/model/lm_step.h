// lm_step.h -- what a training step does beside forward and backward, the same for many ranks and
// for the 1-rank reference: the data, the first values, the optimizer, the balance of experts.
#pragma once

#include "experiments/model/lm_layout.h"

typedef enum LmOptimizer { LM_SGD, LM_ADAMW } LmOptimizer;

typedef struct LmTraining {
    int steps, accumulate; // micro-batches per step
    LmOptimizer optimizer;
    double lr, momentum, weight_decay, clip; // clip 0 = none
    double balance; // step of the experts' bias towards even loads; 0 = none
    DType wire;     // gradients on their way
    int reshard;    // FSDP_RESHARD_*, or K
    uint64_t seed;
} LmTraining;

// Local. Ids and targets (the ids that follow) of `count` tokens from global token `first` on.
void lm_tokens(const LmConfig *config, uint64_t seed, int64_t first, int64_t count, int32_t *ids,
               int32_t *targets);
// Local. Global number of the first token of a micro-batch.
int64_t lm_first_token(const LmTraining *training, int64_t tokens_per_batch, int step, int micro);

// Local. A part is runs of neighbouring elements along the last dimension; where run number `run`
// begins in the whole.
int64_t lm_runs(const DTensor *part);
int64_t lm_run_index(const DTensor *part, int64_t run);
// Waits(stream). First values of a part of a parameter in the layout of `part`, f32 device memory.
void lm_fill(const LmParameters *parameters, int parameter, const DTensor *part, uint64_t seed,
             float *out, Stream stream);

// Optimizer state over a flat array of parameters.
typedef struct LmState {
    int64_t count;
    float *values, *gradients;
    float *first, *second; // momentum or exp_avg; exp_avg_sq; NULL where not needed
} LmState;
// Local. Pushes and clears what the optimizer adds to values and gradients.
void lm_state_push(const LmTraining *training, LmState *state, Arena *arena, Stream stream);
uint64_t lm_state_bytes(const LmTraining *training, int64_t count); // Local
// Enqueues(stream). scale: [1] device, or NULL.
void lm_optimise(const LmTraining *training, const LmState *state, int step, const float *scale,
                 Stream stream);
// Local. counts [experts] over all ranks; bias [experts] moves by coeff * sign(mean - count),
// centred.
void lm_balance(double coeff, int experts, const int64_t *counts, float *bias);
