// lm_explain.h -- what a training step will send and hold, before any rank exists: every
// parameter's placement, every collective with its bytes, memory, as one rank sees it.
//
// The numbers of a run are counted where collectives begin (comm_link.h) and compared with these.
// Dispatch and combine depend on routing: least (every token stays), even (every expert equally
// likely), most (every token leaves).
#pragma once

#include "experiments/model/lm_trainer.h"

typedef struct LmCollective {
    const char *name;
    LmTrafficKind kind;
    int64_t calls;  // per step
    uint64_t bytes; // sent by this rank per step
} LmCollective;

enum { LM_COLLECTIVES_MAX = 24 };
typedef struct LmCost {
    int count;
    LmCollective row[LM_COLLECTIVES_MAX];
    uint64_t sent[LM_TRAFFIC_KINDS]; // per step; dispatch: 0, see below
    double dispatch_least, dispatch_even, dispatch_most;
    FsdpMemory memory;
    LmMemory model;
    uint64_t held[MEMORY_CATEGORIES]; // without the expert layers' own buffers
    uint64_t experts_held;            // those, about
} LmCost;
// Local. Of the rank that the layout is seen from.
LmCost lm_cost(const LmLayout *layout, const LmTraining *training, bool exact);
// Local, stdout. Placements, collectives, memory.
void lm_explain(const LmLayout *layout, const LmTraining *training, bool exact, bool as_json);
