// lm_layout.h -- which rank holds what of a model: axes by what they divide, a style per parameter,
// placements, tokens. Numbers only: it needs a mesh that was parsed, not one with ranks behind it.
//
//   data     every axis but tp: divides tokens; gradients are summed over it
//   shard    the data axes that divide dense parameters (FSDP); `replica` copies them
//   experts  --experts_on: divides experts; the data axes not in it divide and copy their shards
//   tp       divides what the styles say
#pragma once

#include "experiments/model/lm.h"
#include "parallel/dtensor.h"
#include "parallel/fsdp.h"
#include "parallel/style.h"

typedef struct LmLayoutRequest {
    const Mesh *mesh;
    const LmConfig *config;
    const LmParameters *parameters;
    const char *experts_on; // NULL: ep where the mesh has it
    bool replicate;         // no FSDP: every data rank holds all parameters (DDP)
    bool sequence_parallel; // the default plan's norms
    const Plan *plan;       // NULL: the default plan
    const char *tokens;     // "8", or one number per data rank
} LmLayoutRequest;

// How a block's feed-forward meets tensor parallelism.
typedef enum LmFlow {
    LM_FLOW_LOCAL,        // on the rows that this rank holds, with whole weights
    LM_FLOW_SPLIT_INNER,  // on all rows of the tp group, a share of the inner width: output is P
    LM_FLOW_SPLIT_TOKENS, // experts span tp: a share of the rows, gathered afterwards
} LmFlow;

enum { LM_DENSE = 0, LM_EXPERTS = 1 }; // groups of FSDP

typedef struct LmLayout {
    const Mesh *mesh;
    const LmConfig *config;
    const LmParameters *parameters;
    MeshAxes tp, data, shard, replica;
    MeshAxes experts, experts_shard, experts_replica;
    bool sequence;      // rows of a tp group are divided between blocks
    bool experts_on_tp; // experts span tp
    bool split_embedding, split_head;
    LmFlow *flow;           // [layers]
    Style *style;           // [parameters]
    Mesh view[FSDP_GROUPS]; // the axes as a parameter sees them; no communicators
    int64_t *tokens_of_data, *first_token_of_data; // [data.ranks], of one micro-batch
    int64_t tokens;                                // of all of them
} LmLayout;

// Local. Error 2 names what cannot be. Owner: the caller.
bool lm_layout_create(const LmLayoutRequest *request, LmLayout *layout, Error *error);
void lm_layout_destroy(LmLayout *layout); // Local

// Local. FSDP group of a parameter; the parameter as this rank's shard and as its gathered copy.
int lm_group(const LmLayout *layout, int parameter);
DTensor lm_shard(const LmLayout *layout, int parameter);
DTensor lm_gathered(const LmLayout *layout, int parameter);
// Local. Where world rank `rank` stands in the view of a group.
void lm_view_coord(const LmLayout *layout, int group, int rank, int *coord);
// Local. True for exactly one of the ranks that hold the same elements of a group's parameters.
bool lm_is_owner(const LmLayout *layout, int parameter, int rank);
// Local. The gradient is a term of a sum over tp.
bool lm_is_partial(const LmLayout *layout, int parameter);
// Local. The layout as world rank `rank` sees it; shares everything with the original, which must
// outlive it.
LmLayout lm_layout_seen_from(const LmLayout *layout, int rank);
// Local. The type in which terms of sums over tp travel: f32 when exact, else that of activations.
DType lm_tp_wire(const LmLayout *layout, bool exact);
// Local. Placements as text: "replica: R, dp*ep: S0x2, tp: S0".
const char *lm_describe(const LmLayout *layout, int parameter, char *text, size_t bytes);
// Local. What FSDP needs to know of each parameter: [parameters->count], the caller frees it.
FsdpParameter *lm_fsdp_parameters(const LmLayout *layout);
