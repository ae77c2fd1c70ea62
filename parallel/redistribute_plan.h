// redistribute_plan.h -- the inside of a Redistribute, between the planner, the layout and the
// runner.
#pragma once

#include "kernels/copy_blocks.h"
#include "parallel/redistribute.h"

// How one dimension of a block is divided over the ranks of an axis: the block seen as
// [outer][whole][inner_bytes].
typedef struct Cut {
    ShardLink link;
    // The parts are not those of `link` but the runs that a link before it left to this rank: the
    // part of coordinate c is run c of `base`.
    bool picks;
    ShardLink base;
    int64_t base_whole;
    int base_coord;
    int64_t outer, whole;
    int64_t room; // plain shards: indices of every part that is not cut short; else 0
    uint64_t inner_bytes;
} Cut;

// What a rank exchanges with each rank of the axis: CommSplit while it is filled in.
typedef struct Exchange {
    uint64_t *send_bytes, *send_offsets, *receive_bytes, *receive_offsets; // [axis ranks]
} Exchange;

// Some of the plan's blocks.
typedef struct CopyList {
    int64_t first;
    CopyBlocks args; // without from and to
} CopyList;

typedef struct PlannedStep {
    RedistributeStep seen;
    Cut push;    // the input cut for the new shard: slice, reduce-scatter, all-to-all; all-reduce:
                 // flat
    Cut pop;     // the output cut as the old shard was: all-gather, all-to-all, into partial
    bool recuts; // all-to-all within a dimension: both cut what neither side holds whole
    bool keeps;  // the output is the input
    Exchange exchange; // all-reduce: of its first half
    Exchange second;   // all-reduce: of its all-gather, from the output into the output
    CopyList pack;     // input -> packed to send
    CopyList own;      // input, or packed to send -> output: what stays here
    CopyList unpack;   // received -> output
    bool own_is_packed;
    uint64_t own_offset, own_bytes; // reductions: the own term in what is sent
    uint64_t term_stride;           // reductions: bytes between the terms received
} PlannedStep;

struct Redistribute {
    const Mesh *mesh;
    DTensor from, to;
    DeviceKind device;
    int steps, last_moving; // last_moving: the last step that does not keep, -1 if none
    PlannedStep step[REDISTRIBUTE_STEPS_MAX];
    uint64_t *counts; // all Exchange arrays in one block
    CopyBlock *block; // [blocks], of all steps
    int64_t blocks, blocks_room;
    bool can_run;
    uint64_t buffer_bytes;
    char *stage[2], *send, *receive;
};

// Pieces of both links together above which a dimension is not cut anew directly: every pair of
// ranks has so many blocks to copy.
enum { REDISTRIBUTE_RECUT_PIECES_MAX = 256 };

// Local. Sets the room once link, picks and whole are there: plans ask for the parts of all ranks,
// and a division for each would be most of the work.
void cut_settle(Cut *cut);
ShardRun cut_run(const Cut *cut, int coord, int64_t run); // Local. A run of a coordinate's part
int64_t cut_count(const Cut *cut, int coord);             // Local. Indices of a coordinate's part

// Local. Fills in steps (kinds, placements, cuts, shapes); no exchanges yet.
void redistribute_choose_steps(Redistribute *plan);
// Local. What each step exchanges, copies and needs as buffers; allocates counts and, for a plan
// that will run, blocks.
void redistribute_lay_out(Redistribute *plan, bool will_run);
