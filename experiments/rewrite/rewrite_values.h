// rewrite_values.h -- the values of rows on their way from a source into a slice: read, rounded or
// dequantised, measured, quantised; or codes and scales moved.
#pragma once

#include "experiments/rewrite/rewrite.h"
#include "kernels/cast.h"

// Scales over whole matrices that several slices need, known once and for all threads.
typedef struct RewriteAmaxes RewriteAmaxes;

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
    RewriteAmaxes *amaxes;
    bool owns_amaxes;
} RewriteValues;

// Collective(all ranks).
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
// Local. A wish to the system: the source of these rows soon, or no longer.
void rewrite_read_ahead(const RewriteValues *values, const RewriteTensor *tensor, int64_t first,
                        int64_t rows);
void rewrite_release_rows(const RewriteValues *values, const RewriteTensor *tensor, int64_t first,
                          int64_t rows);

// Local. Fills the codes and scales of rows of one matrix.
void rewrite_quantise_rows(RewriteValues *values, int tensor, int64_t matrix, int64_t first,
                           QTensor *slice);
void rewrite_move_rows(RewriteValues *values, const RewriteTensor *tensor, int64_t matrix,
                       int64_t first, QTensor *slice);
