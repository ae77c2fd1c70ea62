// values.h -- the values of rows on their way from a source into a slice: read, rounded or
// dequantised, measured, quantised; or codes and scales moved.
#pragma once

#include "experiments/rewrite/rewrite.h"
#include "kernels/cast.h"

// What the threads of a rank share: amaxes of whole matrices that several slices need, and the
// pinned memory that slices pass on their way to a GPU and back.
typedef struct RewriteShared RewriteShared;

typedef struct RewriteValues {
    const Rewrite *rewrite;
    DeviceKind device;
    int device_index;
    int threads; // of a cast
    Stream stream;
    Arena *arena; // of the device
    Arena *host;  // for slices: release what was pushed
    void *buffer; // host, as large as the largest rows so far
    uint64_t capacity;
    char *staging; // pinned, as large as the largest slice so far
    uint64_t staging_bytes;
    RewriteShared *shared;
    bool owns_shared;
} RewriteValues;

// Collective(all ranks). The device is the request's; `auto` takes a GPU of each rank's own where
// the plan quantises enough to pay for its start.
void rewrite_values_create(const Run *run, const Rewrite *rewrite, RewriteValues *values);
// Local. For another thread, whose casts have one thread each; goes before `first`.
void rewrite_values_create_beside(const RewriteValues *first, RewriteValues *values);
void rewrite_values_destroy(RewriteValues *values);
// Local. What was measured belongs to another plan.
void rewrite_values_forget(RewriteValues *values);

// Local. Rows [first, first + rows) of what a tensor stands for, as bf16 (plain tensors that are
// copied: as they are). The memory is the buffer's, or the source's where it has them like that.
const void *rewrite_read_rows(RewriteValues *values, const RewriteTensor *tensor, int64_t first,
                              int64_t rows);
// Local. Where the source has row `first`; *rows is reduced to those that follow it there.
const void *rewrite_source_rows(const RewriteTensor *tensor, int64_t first, int64_t *rows);
// Local. A wish to the system: the source of these rows, or what is picked of it, soon, or no
// longer.
void rewrite_read_ahead(const RewriteValues *values, const RewriteTensor *tensor, StoredPick pick,
                        int64_t first, int64_t rows);
void rewrite_release_rows(const RewriteValues *values, const RewriteTensor *tensor, StoredPick pick,
                          int64_t first, int64_t rows);

// Local. Fills the codes and scales of rows of one matrix. On a GPU their memory is not the slice's
// afterwards, but the staging memory's: until the next call.
void rewrite_quantise_rows(RewriteValues *values, int tensor, int64_t matrix, int64_t first,
                           QTensor *slice);
// Local. The same of what the slice picks.
void rewrite_move_rows(RewriteValues *values, const RewriteTensor *tensor, int64_t matrix,
                       int64_t first, StoredSlice *slice);
