// lm_run.h -- the model's forward and backward on one rank of a layout.
//
// The same code runs as one of many ranks and as a 1-rank reference that stands for several
// ("parts"): the reference sums weight gradients once per part, and routes tokens among the parts
// that share experts ("groups"), so that the order of every sum can be the many ranks' own.
//
// Parameters come from a store, unit by unit: FSDP gathers them, a reference holds them all.
#pragma once

#include "experiments/model/lm_layout.h"

typedef struct LmStore {
    // Enqueues(stream). Around each unit's forward and backward.
    void (*use)(void *context, int unit, bool backward, Stream stream);
    void (*done)(void *context, int unit, bool backward, Stream stream);
    // Local. Between the two: values of the parameter type; f32 sums of one part (experts: group).
    const void *(*value)(void *context, int parameter);
    float *(*gradient)(void *context, int parameter, int part);
    void *context;
} LmStore;

typedef struct LmSettings {
    const LmLayout *layout;
    LmStore store;
    Comm tp, experts;
    int64_t tokens;             // of the tp group, or of all parts
    int parts;                  // 1 for a real rank
    const int64_t *part_tokens; // [parts], or NULL: one part
    int groups;                 // 1 for a real rank
    const int *group_of_part;   // [parts], or NULL; parts of a group by rising number
    int64_t tokens_of_step;     // of all ranks and micro-batches: what the loss is divided by
    int align, threads;
    bool exact;
    int group_size; // a reference of the fast mode: see MoeSettings; 0 = none
    EpTransport transport;
    DeviceKind device;
    Arena *arena;
    void *room; // LmMemory.room_bytes for what units save for their backward; NULL: it is pushed
} LmSettings;

typedef struct Lm Lm;
Lm *lm_create(const LmSettings *settings); // Collective(experts). Owner: the caller
void lm_destroy(Lm *lm);                   // Collective(experts)

// What lm_create needs, but for what the expert layers push themselves. What units save in their
// forward for their backward goes as gradients come, so that both stand in one room:
//
//   saved      | unit 1 | unit 2 | unit 3 |   ...   | head |
//   gradients     | 0 | unit 1 | unit 2 | unit 3 |   ...   | head |   shards, in the plan's order
//
// A backward works from the right to the left. A unit's gradient is reduced when its backward is
// done, into room that only it and units after it have used, or made there at once (fsdp.h), in
// room of units after it alone: the gradients begin as far left as that holds for every unit.
typedef struct LmMemory {
    uint64_t bytes[MEMORY_CATEGORIES]; // the room is among the activations
    uint64_t room_bytes;
    uint64_t gradients_first_bytes; // in the room
} LmMemory;
// Local. plan: whose shards' gradients stand in the room; NULL: none do. Communicators need only
// ranks.
LmMemory lm_memory(const LmSettings *settings, const FsdpPlan *plan);

// Enqueues(stream). The tokens of the next forward, host arrays [tokens].
void lm_set_tokens(Lm *lm, const int32_t *ids, const int32_t *targets, Stream stream);
// Collective(tp, experts), Enqueues(stream). `again`: losses and gradients are added to what is
// there.
void lm_forward(Lm *lm, bool again, Stream stream);
void lm_backward(Lm *lm, bool again, Stream stream);
// Waits(stream). Sum of the losses of one part's tokens since the last forward that was
// not `again`.
double lm_loss_sum(const Lm *lm, int part, Stream stream);
// Waits(stream). Adds to counts [layers][experts] how many of this rank's tokens chose each expert.
void lm_count_choices(const Lm *lm, int64_t *counts, Stream stream);
// Waits(stream). Expert bias of a layer: [experts], host.
void lm_set_expert_bias(Lm *lm, int layer, const float *bias, Stream stream);
// Local. Whether loss sums and choice counts of the ranks of a tp group are of different tokens.
bool lm_loss_is_split(const LmLayout *layout);
bool lm_choices_are_split(const LmLayout *layout);
const Moe *lm_moe(const Lm *lm, int layer); // Local. NULL without experts
