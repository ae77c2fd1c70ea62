// redistribute_plan.h -- the inside of a Redistribute, between the planner and the runner.
#pragma once

#include "parallel/redistribute.h"

// How one dimension of a block is divided over the ranks of an axis: the block seen as
// [outer][whole][inner_bytes].
typedef struct Cut {
    ShardLink link;
    int64_t outer, whole;
    uint64_t inner_bytes;
} Cut;

// What a rank exchanges with each rank of the axis. Offsets into the packed buffers, or into the
// parts themselves where those will do.
typedef struct Exchange {
    uint64_t *send_bytes, *send_offsets, *receive_bytes, *receive_offsets; // [axis ranks]
} Exchange;

typedef struct PlannedStep {
    RedistributeStep seen;
    Cut push; // the input cut for the new shard: slice, reduce-scatter, all-to-all; all-reduce:
              // flat
    Cut pop;  // the output cut as the old shard was: all-gather, all-to-all, into partial
    Exchange exchange; // all-reduce: of its first half
    Exchange second;   // all-reduce: of its all-gather
    bool keeps;        // the output is the input
} PlannedStep;

struct Redistribute {
    const Mesh *mesh;
    DTensor from, to;
    int steps, last_moving; // last_moving: the last step that does not keep, -1 if none
    PlannedStep step[REDISTRIBUTE_STEPS_MAX];
    uint64_t *counts; // all Exchange arrays in one block
    bool can_run;
    uint64_t buffer_bytes;
    char *stage[2], *send, *receive;
};

uint64_t cut_bytes(const Cut *cut, int coord); // Local. Of the part of a coordinate
bool cut_is_contiguous(const Cut *cut);        // Local. Every part is one piece of the block
// Local. Where the part of a coordinate begins in a contiguous block.
uint64_t cut_offset(const Cut *cut, int coord);

// Local. Fills in steps (kinds, placements, cuts, shapes); no exchanges yet.
void redistribute_choose_steps(Redistribute *plan);
