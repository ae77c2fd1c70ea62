// launch.cuh -- the host side of the CUDA casts: parts that cast.cu and cast/transposed.cu
// share.
#pragma once

#include "kernels/cast/tiles.cuh"

static inline bool cast_is_one_block(const QTensor *q)
{
    return q->rule.block_rows == 0 && q->rule.block_columns == 0;
}

CastWork cast_work_of(const void *values, const QTensor *q);
unsigned cast_grid(int64_t blocks); // as a launch takes it; stops with 65 where there are too many
const CastKernels *cast_kernels_for(const QTensor *q); // NULL: only the plain kernel takes it

// What the tiles' kernels have to know of an operand; SPAN_NONE: they do not take it.
CastSpanKind cast_span_of(const QTensor *q);

// q as the transposed operand of `matrices` matrices of rows x columns values; transposed_span is
// SPAN_NONE where the tiles' kernels do not take it.
CastTiles cast_tiles_of(const void *values, const QTensor *q, int64_t matrices, int64_t rows,
                        int64_t columns);

// Enqueues(stream). The amaxes that decide something about the whole tensor, as values lie or
// transposed; they stay where cast_prepare will put what they become.
const float *cast_measure(const void *values, const QTensor *q, Stream stream);
// Enqueues(stream). What comes before the codes: swizzled scales without gaps, and what is decided
// by amax; NULL: measured first.
void cast_prepare(const CastWork *work, const float *amax, const QTensor *q, Stream stream);
// Enqueues(stream). Amaxes at the place of every row's scale become the scales.
void cast_settle_rows(const CastWork *work, Stream stream);
// Enqueues(stream). Tiles whose scales span rows, of so many owners: one reading of memory.
void cast_strips(const CastTiles *tiles, CastTilesKernel kernel, uint32_t *marks, int64_t owners,
                 Stream stream);
// Enqueues(stream). One thread block or warp for each block of scales; one row of units after the
// other, 1024 columns to a warp (CastKernels.rows).
void cast_launch_blocks(const CastWork *work, const CastKernels *kernels, Stream stream);
void cast_launch_rows(const CastWork *work, const CastKernels *kernels, Stream stream);
// Enqueues(stream). Any operand, prepared before; values may lie transposed.
void cast_plain(const CastWork *work, const QTensor *q, bool transposed, Stream stream);
// Enqueues(stream). The transposed cast, and with it the other where one read makes both: returns
// whether it did.
bool cast_transposed(const Cast *args, Stream stream);
