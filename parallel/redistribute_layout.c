// Laying out the steps of a plan: what each rank of the axis sends and gets, which blocks are
// copied before and after, and how long the packed buffers are.
//
// A part that is one piece of its block needs no packing: it is sent from where it lies, or
// received where it belongs. What stays on the rank is no message: one copy takes it from input to
// output. Parts that must be packed stand one after the other, each at a multiple of PACK_ALIGNMENT
// bytes, so that device copies and sums find 16-byte units however odd the shards are.
#include "parallel/redistribute_plan.h"

#include <stdlib.h>

#include "parallel/shard.h"

enum { PACK_ALIGNMENT = 256 };

typedef struct Layout {
    Redistribute *plan;
    PlannedStep *step;
    int ranks, coord; // of the step's axis
    bool will_run;
} Layout;

// ---- parts of a cut ----

void cut_settle(Cut *cut)
{
    bool plain = !cut->picks && cut->link.pieces == 1;
    cut->room = plain ? shard_size(cut->whole, cut->link.ranks) : 0;
}

ShardRun cut_run(const Cut *cut, int coord, int64_t run)
{
    if (cut->room > 0) {
        uint64_t first = (uint64_t)coord * (uint64_t)cut->room; // at most whole + ranks
        int64_t begin = first < (uint64_t)cut->whole ? (int64_t)first : cut->whole;
        int64_t left = cut->whole - begin;
        return (ShardRun){begin, 0, left < cut->room ? left : cut->room};
    }
    if (!cut->picks)
        return shard_link_run(&cut->link, cut->whole, coord, run);
    ShardRun picked = shard_link_run(&cut->base, cut->base_whole, cut->base_coord, coord);
    return (ShardRun){picked.part_first, 0, picked.count};
}

int64_t cut_count(const Cut *cut, int coord)
{
    bool one_run = cut->picks || cut->room > 0;
    return one_run ? cut_run(cut, coord, 0).count : shard_link_count(&cut->link, cut->whole, coord);
}

static bool has_one_run(const Cut *cut)
{
    return cut->picks || cut->link.pieces == 1;
}

// Every part is one piece of the block, in rank order.
static bool is_contiguous(const Cut *cut)
{
    return cut->outer == 1 && has_one_run(cut);
}

static void part_bytes(const Cut *cut, int ranks, uint64_t *bytes)
{
    uint64_t each = (uint64_t)cut->outer * cut->inner_bytes;
    for (int rank = 0; rank < ranks; rank++)
        bytes[rank] = (uint64_t)cut_count(cut, rank) * each;
}

static uint64_t aligned(uint64_t bytes)
{
    return (bytes + PACK_ALIGNMENT - 1) / PACK_ALIGNMENT * PACK_ALIGNMENT;
}

// Writes where each part begins and returns the end. `apart`: packed, so every part is aligned.
static uint64_t place_parts(int ranks, const uint64_t *bytes, bool apart, uint64_t *offsets)
{
    uint64_t end = 0;
    for (int rank = 0; rank < ranks; rank++) {
        offsets[rank] = end;
        end += apart ? aligned(bytes[rank]) : bytes[rank];
    }
    return end;
}

// ---- blocks ----

static void add_block(Layout *layout, CopyList *list, CopyBlock block)
{
    Redistribute *plan = layout->plan;
    if (!layout->will_run || block.run_bytes == 0 || block.counts[0] == 0 || block.counts[1] == 0)
        return;
    if (list->args.blocks == 0)
        list->first = plan->blocks;
    CHECK_RULE(list->first + list->args.blocks == plan->blocks); // a list is filled in one go
    if (plan->blocks == plan->blocks_room) {
        plan->blocks_room = 2 * plan->blocks_room + 8;
        plan->block = realloc(plan->block, (size_t)plan->blocks_room * sizeof(*plan->block));
        CHECK_RULE(plan->block != NULL);
    }
    plan->block[plan->blocks++] = block;
    list->args.blocks++;
}

typedef struct Side {
    uint64_t first, row_bytes, run_stride; // where it begins, between rows, between runs
} Side;

static void add_rows(Layout *layout, CopyList *list, int64_t rows, int64_t runs, uint64_t run_bytes,
                     const Side sides[2])
{
    CopyBlock block = {.from_first = sides[0].first,
                       .to_first = sides[1].first,
                       .run_bytes = run_bytes,
                       .counts = {rows, runs},
                       .from_strides = {sides[0].row_bytes, sides[0].run_stride},
                       .to_strides = {sides[1].row_bytes, sides[1].run_stride}};
    add_block(layout, list, block);
}

// Between the block and the packed part of a coordinate, which begins at part_first. to_block: the
// part is laid into the block. All pieces of a strided shard but one are alike: they are one block
// of copies, the one that is cut short is another.
static void add_part(Layout *layout, CopyList *list, const Cut *cut, int coord, uint64_t part_first,
                     bool to_block)
{
    int64_t pieces = has_one_run(cut) ? 1 : cut->link.pieces, part_rows = cut_count(cut, coord);
    int64_t size = pieces == 1 ? cut->whole : shard_size(cut->whole, (int)pieces);
    int64_t alike = pieces == 1 ? 1 : size > 0 ? cut->whole / size : 0;
    for (int64_t run = 0; run <= alike && run<pieces; run += alike> 0 ? alike : 1) {
        ShardRun first = cut_run(cut, coord, run), next = {0};
        int64_t runs = run == 0 && alike > 0 ? alike : 1;
        if (runs > 1)
            next = cut_run(cut, coord, run + 1);
        Side block = {
            (uint64_t)first.whole_first * cut->inner_bytes, (uint64_t)cut->whole * cut->inner_bytes,
            (uint64_t)(runs > 1 ? next.whole_first - first.whole_first : 0) * cut->inner_bytes};
        Side part = {part_first + (uint64_t)first.part_first * cut->inner_bytes,
                     (uint64_t)part_rows * cut->inner_bytes,
                     (uint64_t)(runs > 1 ? next.part_first - first.part_first : 0) *
                         cut->inner_bytes};
        Side sides[2] = {to_block ? part : block, to_block ? block : part};
        add_rows(layout, list, cut->outer, runs, (uint64_t)first.count * cut->inner_bytes, sides);
    }
}

// Plain shards of full length, of ranks first .. end - 1: alike, so one block whatever their
// number.
static void add_full_parts(Layout *layout, CopyList *list, const Cut *cut, const uint64_t *offsets,
                           int first, int end, bool to_block)
{
    if (first >= end)
        return;
    uint64_t run_bytes = (uint64_t)cut->room * cut->inner_bytes;
    uint64_t part_bytes_each = run_bytes * (uint64_t)cut->outer;
    // Here the rows of a part are its runs.
    Side block = {(uint64_t)first * run_bytes, run_bytes, (uint64_t)cut->whole * cut->inner_bytes};
    Side part = {offsets[first], aligned(part_bytes_each), run_bytes};
    Side sides[2] = {to_block ? part : block, to_block ? block : part};
    add_rows(layout, list, end - first, cut->outer, run_bytes, sides);
}

// All parts, packed at their offsets; the own one only where `own_too`.
static void add_parts(Layout *layout, CopyList *list, const Cut *cut, const uint64_t *offsets,
                      bool own_too, bool to_block)
{
    int skipped = own_too ? layout->ranks : layout->coord;
    int full = cut->room > 0 ? (int)(cut->whole / cut->room) : 0;
    add_full_parts(layout, list, cut, offsets, 0, skipped < full ? skipped : full, to_block);
    add_full_parts(layout, list, cut, offsets, skipped + 1, full, to_block);
    int end = cut->room > 0 && full < layout->ranks ? full + 1 : layout->ranks; // then empty ones
    for (int rank = full; rank < end; rank++)
        if (rank != skipped)
            add_part(layout, list, cut, rank, offsets[rank], to_block);
}

// ---- cutting a dimension anew ----

// Indices that a rank holds by the old cut and another by the new one; positions in both parts.
typedef struct Overlap {
    int64_t old_first, new_first, packed_first, count;
} Overlap;

typedef struct Overlaps {
    int runs;
    int64_t count; // of all
    Overlap run[REDISTRIBUTE_RECUT_PIECES_MAX];
} Overlaps;

// Both lists of runs are in ascending order of the whole dimension, so one walk meets all.
static Overlaps find_overlaps(const PlannedStep *step, int old_coord, int new_coord)
{
    Overlaps found = {0};
    const Cut *old_cut = &step->pop, *new_cut = &step->push;
    int64_t old_run = 0, new_run = 0;
    while (old_run < old_cut->link.pieces && new_run < new_cut->link.pieces) {
        ShardRun a = cut_run(old_cut, old_coord, old_run);
        ShardRun b = cut_run(new_cut, new_coord, new_run);
        int64_t first = a.whole_first > b.whole_first ? a.whole_first : b.whole_first;
        int64_t a_end = a.whole_first + a.count, b_end = b.whole_first + b.count;
        int64_t end = a_end < b_end ? a_end : b_end;
        if (first < end) {
            found.run[found.runs++] =
                (Overlap){a.part_first + first - a.whole_first,
                          b.part_first + first - b.whole_first, found.count, end - first};
            found.count += end - first;
        }
        if (a_end <= b_end)
            old_run++;
        else
            new_run++;
    }
    return found;
}

typedef enum RecutCopy { RECUT_PACK, RECUT_UNPACK, RECUT_OWN } RecutCopy;

static void add_overlaps(Layout *layout, CopyList *list, const Overlaps *overlaps, RecutCopy copy,
                         uint64_t packed_first)
{
    const PlannedStep *step = layout->step;
    uint64_t inner = step->pop.inner_bytes;
    uint64_t old_row = (uint64_t)cut_count(&step->pop, layout->coord) * inner;
    uint64_t new_row = (uint64_t)cut_count(&step->push, layout->coord) * inner;
    for (int i = 0; i < overlaps->runs; i++) {
        const Overlap *run = &overlaps->run[i];
        Side old_side = {(uint64_t)run->old_first * inner, old_row, 0};
        Side new_side = {(uint64_t)run->new_first * inner, new_row, 0};
        Side packed = {packed_first + (uint64_t)run->packed_first * inner,
                       (uint64_t)overlaps->count * inner, 0};
        Side sides[2] = {copy == RECUT_UNPACK ? packed : old_side,
                         copy == RECUT_PACK ? packed : new_side};
        add_rows(layout, list, step->pop.outer, 1, (uint64_t)run->count * inner, sides);
    }
}

static void lay_out_recut(Layout *layout)
{
    PlannedStep *step = layout->step;
    Exchange *e = &step->exchange;
    uint64_t each = (uint64_t)step->pop.outer * step->pop.inner_bytes;
    for (int rank = 0; rank < layout->ranks; rank++) {
        bool own = rank == layout->coord;
        Overlaps sent = find_overlaps(step, layout->coord, rank);
        e->send_bytes[rank] = own ? 0 : (uint64_t)sent.count * each;
        e->send_offsets[rank] = step->seen.send_bytes;
        step->seen.send_bytes += aligned(e->send_bytes[rank]);
        if (!own)
            add_overlaps(layout, &step->pack, &sent, RECUT_PACK, e->send_offsets[rank]);
    }
    Overlaps kept = find_overlaps(step, layout->coord, layout->coord);
    add_overlaps(layout, &step->own, &kept, RECUT_OWN, 0);
    for (int rank = 0; rank < layout->ranks; rank++) {
        bool own = rank == layout->coord;
        Overlaps received = find_overlaps(step, rank, layout->coord);
        e->receive_bytes[rank] = own ? 0 : (uint64_t)received.count * each;
        e->receive_offsets[rank] = step->seen.receive_bytes;
        step->seen.receive_bytes += aligned(e->receive_bytes[rank]);
        if (!own)
            add_overlaps(layout, &step->unpack, &received, RECUT_UNPACK, e->receive_offsets[rank]);
    }
}

// ---- the kinds of steps ----

// What is received lies in parts of `cut`: at their places in the output, or packed.
static void lay_out_received(Layout *layout, const Cut *cut, Exchange *e)
{
    PlannedStep *step = layout->step;
    bool packed = !is_contiguous(cut);
    part_bytes(cut, layout->ranks, e->receive_bytes);
    if (packed)
        e->receive_bytes[layout->coord] = 0;
    uint64_t end = place_parts(layout->ranks, e->receive_bytes, packed, e->receive_offsets);
    step->seen.receive_bytes = packed ? end : step->seen.receive_bytes;
    if (packed)
        add_parts(layout, &step->unpack, cut, e->receive_offsets, false, true);
    e->receive_bytes[layout->coord] = 0;
}

// What is sent lies in parts of the push: at their places in the input, or packed. The own part is
// packed with them where `own_too`.
static void lay_out_sent(Layout *layout, bool own_too)
{
    PlannedStep *step = layout->step;
    Exchange *e = &step->exchange;
    const Cut *cut = &step->push;
    bool packed = !is_contiguous(cut);
    part_bytes(cut, layout->ranks, e->send_bytes);
    step->own_bytes = e->send_bytes[layout->coord];
    if (packed && !own_too)
        e->send_bytes[layout->coord] = 0;
    uint64_t end = place_parts(layout->ranks, e->send_bytes, packed, e->send_offsets);
    step->seen.send_bytes = packed ? end : 0;
    step->own_offset = e->send_offsets[layout->coord];
    if (packed)
        add_parts(layout, &step->pack, cut, e->send_offsets, own_too, false);
    e->send_bytes[layout->coord] = 0;
}

// One part to everybody.
static void lay_out_gather(Layout *layout, const Cut *cut, uint64_t own_offset, Exchange *e)
{
    uint64_t each = (uint64_t)cut->outer * cut->inner_bytes;
    uint64_t mine = (uint64_t)cut_count(cut, layout->coord) * each;
    for (int rank = 0; rank < layout->ranks; rank++) {
        e->send_bytes[rank] = rank == layout->coord ? 0 : mine;
        e->send_offsets[rank] = own_offset;
    }
    lay_out_received(layout, cut, e);
}

// Terms of this rank's part from everybody, one behind the other without a place for the own one.
static void lay_out_terms(Layout *layout)
{
    PlannedStep *step = layout->step;
    Exchange *e = &step->exchange;
    lay_out_sent(layout, true);
    step->term_stride = aligned(step->own_bytes);
    for (int rank = 0; rank < layout->ranks; rank++) {
        bool own = rank == layout->coord;
        e->receive_bytes[rank] = own ? 0 : step->own_bytes;
        e->receive_offsets[rank] = step->seen.receive_bytes;
        step->seen.receive_bytes += own ? 0 : step->term_stride;
    }
}

// The part that stays is copied once where either side leaves it in one piece, through the packed
// buffer where neither does.
static void lay_out_all_to_all(Layout *layout)
{
    PlannedStep *step = layout->step;
    bool push_contiguous = is_contiguous(&step->push), pop_contiguous = is_contiguous(&step->pop);
    int coord = layout->coord;
    step->own_is_packed = !push_contiguous && !pop_contiguous;
    lay_out_sent(layout, step->own_is_packed);
    if (pop_contiguous && !push_contiguous) {
        uint64_t each = (uint64_t)step->pop.outer * step->pop.inner_bytes;
        uint64_t first = (uint64_t)cut_run(&step->pop, coord, 0).whole_first * each;
        add_part(layout, &step->own, &step->push, coord, first, false);
    } else {
        add_part(layout, &step->own, &step->pop, coord, step->own_offset, true);
    }
    lay_out_received(layout, &step->pop, &step->exchange);
}

static void lay_out_all_reduce(Layout *layout)
{
    PlannedStep *step = layout->step;
    uint64_t size = dtype_bytes(layout->plan->from.local.dtype, 1);
    step->push = (Cut){
        .link = {.axis = step->seen.axis, .ranks = layout->ranks, .pieces = 1},
        .outer = 1,
        .whole = (int64_t)(step->seen.in_bytes / size),
        .inner_bytes = size,
    };
    cut_settle(&step->push);
    lay_out_terms(layout);
    lay_out_gather(layout, &step->push, step->own_offset, &step->second);
}

static void lay_out_step(Layout *layout)
{
    PlannedStep *step = layout->step;
    switch (step->seen.kind) {
    case REDISTRIBUTE_SLICE:
        add_part(layout, &step->own, &step->push, layout->coord, 0, false);
        break;
    case REDISTRIBUTE_INTO_PARTIAL:
        add_part(layout, &step->own, &step->pop, layout->coord, 0, true);
        break;
    case REDISTRIBUTE_ALL_GATHER:
        add_part(layout, &step->own, &step->pop, layout->coord, 0, true);
        lay_out_gather(layout, &step->pop, 0, &step->exchange);
        break;
    case REDISTRIBUTE_REDUCE_SCATTER:
        lay_out_terms(layout);
        break;
    case REDISTRIBUTE_ALL_REDUCE:
        lay_out_all_reduce(layout);
        break;
    case REDISTRIBUTE_ALL_TO_ALL:
        (step->recuts ? lay_out_recut : lay_out_all_to_all)(layout);
        break;
    default:
        break;
    }
    const Exchange *const halves[] = {&step->exchange, &step->second};
    for (size_t half = 0; half < COUNT_OF(halves); half++)
        for (int rank = 0; rank < layout->ranks && halves[half]->send_bytes; rank++)
            step->seen.wire_bytes += halves[half]->send_bytes[rank];
}

// One block of memory for the counts of all steps.
static void give_counts(Redistribute *plan)
{
    static const int halves_of_kind[REDISTRIBUTE_KINDS] = {
        [REDISTRIBUTE_REDUCE_SCATTER] = 1,
        [REDISTRIBUTE_ALL_REDUCE] = 2,
        [REDISTRIBUTE_ALL_GATHER] = 1,
        [REDISTRIBUTE_ALL_TO_ALL] = 1,
    };
    uint64_t words = 1;
    for (int i = 0; i < plan->steps; i++)
        words += 8 * (uint64_t)plan->mesh->ranks[plan->step[i].seen.axis];
    plan->counts = calloc(words, sizeof(uint64_t));
    CHECK_RULE(plan->counts != NULL);
    uint64_t *next = plan->counts;
    for (int i = 0; i < plan->steps; i++) {
        PlannedStep *step = &plan->step[i];
        uint64_t ranks = (uint64_t)plan->mesh->ranks[step->seen.axis];
        Exchange *const halves[] = {&step->exchange, &step->second};
        for (int half = 0; half < halves_of_kind[step->seen.kind]; half++) {
            *halves[half] = (Exchange){next, next + ranks, next + 2 * ranks, next + 3 * ranks};
            next += 4 * ranks;
        }
    }
}

void redistribute_lay_out(Redistribute *plan, bool will_run)
{
    give_counts(plan);
    for (int i = 0; i < plan->steps; i++) {
        int axis = plan->step[i].seen.axis;
        Layout layout = {.plan = plan,
                         .step = &plan->step[i],
                         .ranks = plan->mesh->ranks[axis],
                         .coord = plan->mesh->coord[axis],
                         .will_run = will_run};
        lay_out_step(&layout);
    }
}
