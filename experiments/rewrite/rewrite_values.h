// rewrite_values.h -- the values of rows on their way from a source into a slice: read, rounded or
// dequantised, measured, quantised; or codes and scales moved.
#pragma once

#include "experiments/rewrite/rewrite.h"
#include "kernels/cast.h"

typedef struct RewriteValues {
    const Run *run;
    const Rewrite *rewrite;
    DeviceKind device;
    Stream stream;
    Arena *arena; // of the device
    void *buffer; // host, as large as the largest rows so far
    uint64_t capacity;
    int measured; // the tensor, or group, whose amax is known; -1 = none
    int64_t matrix;
    float amax;
} RewriteValues;

void rewrite_values_create(const Run *run, const Rewrite *rewrite, RewriteValues *values);
void rewrite_values_destroy(RewriteValues *values);

// Local. Rows [first, first + rows) of what a tensor stands for, as bf16 (plain tensors that are
// copied: as they are). The memory is the buffer's.
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
void rewrite_move_rows(const RewriteTensor *tensor, int64_t matrix, int64_t first, QTensor *slice);
