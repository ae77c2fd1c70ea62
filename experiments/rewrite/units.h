// units.h -- what is made at a time: a run of rows of one tensor, which is one run of bytes in
// every part of it. Units of a shard stand in the order in which the file has their codes or
// values, so that it fills from its beginning on; they are dealt to ranks by bytes. Where codes
// only change their places, and the file has all scales before all codes, scales are units of their
// own: else the file's beginning would be there last, and its digest made after all the rest.
#pragma once

#include "experiments/rewrite/rewrite.h"

typedef struct RewriteUnit {
    int tensor;
    StoredPick pick;
    int64_t matrix, first, rows;
    uint64_t bytes; // of the source
    uint64_t ahead; // bytes of the file that neither this unit nor a later one writes into
    bool done;
} RewriteUnit;

typedef struct RewriteUnits {
    RewriteUnit *unit;
    int64_t count, capacity;
} RewriteUnits;

// Local. The units of a shard replace what stood there.
void rewrite_units_make(const Rewrite *rewrite, const RewriteShard *shard, DeviceKind device,
                        RewriteUnits *units);
// Local. Those of a rank: [first, last).
void rewrite_units_share(const RewriteUnits *units, int rank, int ranks, int64_t *first,
                         int64_t *last);
void rewrite_units_release(RewriteUnits *units);
// Local. How many rows of a tensor make a unit.
int64_t rewrite_unit_rows(const Rewrite *rewrite, const RewriteTensor *tensor, DeviceKind device);
