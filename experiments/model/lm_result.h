// lm_result.h -- what came out of training, whole, in host memory of rank 0, in a form that does
// not depend on the mesh.
#pragma once

#include "experiments/model/lm_trainer.h"

// One f32 array per parameter, and what its copies on other ranks say.
typedef struct LmWhole {
    int count;
    float **tensor; // [parameters][elements]
    // Where copies on several ranks differ: the sum of all copies, else NULL.
    float **sum_of_copies;
} LmWhole;
LmWhole lm_whole_create(const LmParameters *parameters); // Local
void lm_whole_destroy(LmWhole *whole);

typedef struct LmResult {
    int steps;
    double *loss, *norm;           // [steps]
    LmWhole first_gradient;        // of the first step, before clipping
    LmWhole last_gradient, values; // after the last step
    float *bias;                   // [layers][experts]
} LmResult;
// Local. Without wholes: losses, norms and bias only.
LmResult lm_result_create(const LmParameters *parameters, const LmConfig *config, int steps,
                          bool wholes);
void lm_result_destroy(LmResult *result);

// Collective(all ranks), Waits(stream). Every rank's shards `flat` (fsdp_values or fsdp_gradients)
// into a whole on rank 0; untouched elsewhere. permute: the planted bug of that name.
void lm_gather_whole(const Run *run, const LmTrainer *trainer, const float *flat, LmWhole *whole,
                     Stream stream);
