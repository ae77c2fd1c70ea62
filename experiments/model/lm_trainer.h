// lm_trainer.h -- training steps of the model over a mesh: FSDP under the model, gradients clipped
// by their global norm, the optimizer on shards.
#pragma once

#include "experiments/model/lm_plant.h"
#include "experiments/model/lm_run.h"
#include "experiments/model/lm_step.h"
#include "harness/record.h"

typedef struct LmTrainerSettings {
    const LmLayout *layout; // over a mesh with ranks behind it
    const LmTraining *training;
    int align, threads;
    bool exact;
    EpTransport transport;
    DeviceKind device;
    Arena *arena;
    LmPlant plant; // a bug to be found, for tests
} LmTrainerSettings;

// Bytes sent by this rank, by what they were for.
typedef enum LmTrafficKind {
    LM_TRAFFIC_SHARD,   // all-gathers and reduce-scatters of dense parameters
    LM_TRAFFIC_REPLICA, // all-reduces over copies of them
    LM_TRAFFIC_EXPERTS_SHARD,
    LM_TRAFFIC_EXPERTS_REPLICA,
    LM_TRAFFIC_TP,
    LM_TRAFFIC_DISPATCH, // rows to experts and home again
    LM_TRAFFIC_KEPT,     // gathers over the neighbours of --reshard K
    LM_TRAFFIC_WORLD,    // loss, norm, expert counts
    LM_TRAFFIC_KINDS,
} LmTrafficKind;
const char *lm_traffic_name(LmTrafficKind kind); // Local

typedef struct LmStepResult {
    double loss, norm; // norm: of all gradients before clipping; NaN without --clip
} LmStepResult;

typedef struct LmTrainer LmTrainer;
LmTrainer *lm_trainer_create(const LmTrainerSettings *settings); // Collective(all ranks)
void lm_trainer_destroy(LmTrainer *trainer);                     // Collective(all ranks)
// Collective(all ranks), Waits(stream).
LmStepResult lm_trainer_step(LmTrainer *trainer, int step, Stream stream);
// Local. Bytes sent since the last call, [LM_TRAFFIC_KINDS].
void lm_trainer_take_traffic(LmTrainer *trainer, uint64_t *bytes);
const Fsdp *lm_trainer_fsdp(const LmTrainer *trainer); // Local
Fsdp *lm_trainer_mutable_fsdp(LmTrainer *trainer);     // Local
// Local. Spans of the steps from now on; NULL = none. Phases need steps of one micro-batch.
void lm_trainer_record_with(LmTrainer *trainer, Recorder *recorder);
const Lm *lm_trainer_model(const LmTrainer *trainer);                   // Local
const LmTrainerSettings *lm_trainer_settings(const LmTrainer *trainer); // Local
const float *lm_trainer_expert_bias(const LmTrainer *trainer); // Local. [layers][experts], host
// Local. Settings of FSDP for a layout; with a mesh that was only parsed the groups have no links.
typedef struct LmGroups {
    FsdpGroup group[FSDP_GROUPS];
    Comm tp, experts, kept;
} LmGroups;
LmGroups lm_groups_without_links(const LmLayout *layout, const LmTraining *training);
FsdpSettings lm_fsdp_settings(const LmLayout *layout, const LmTraining *training,
                              const LmGroups *groups, const FsdpParameter *parameters);
