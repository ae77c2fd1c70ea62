// expert_operand.h -- expert rows made ready for quantised products whose group sizes lie in device
// memory: transposed with gaps made zeros, measured, and cast under a scale per row and group.
//
// Expert rows are those of parallel/ep.h: groups begin at multiples of an alignment, row_map says
// which rows are real (-1: padding), rows_total where the last group's padding ends.
#pragma once

#include "kernels/kernel.h"
#include "quant/qtensor.h"

DECLARATIONS_BEGIN

enum { EXPERT_TERMS_ALIGN = 128 }; // quant_gemm.h, sums_over_groups

// to[m, c, r] = from[m, r, c]. With a row_map: one matrix of expert rows; rows of padding become
// zeros, up to the multiple of EXPERT_TERMS_ALIGN behind rows_total, or to_columns if that is less;
// nothing is written beyond. CPU only: casts on a GPU transpose by themselves.
typedef struct RowsTranspose {
    int64_t matrices, rows, columns; // of from
    DType dtype;
    const void *from;
    const int32_t *row_map;    // [rows], or NULL: all rows as they are
    bool mapped;               // expert row r is row row_map[r] of from, else row r
    const int32_t *rows_total; // [1], with row_map; at most rows
    int64_t to_columns;        // at least rows
    void *to;                  // [matrices, columns, to_columns]
} RowsTranspose;
KERNEL_DECLARE(rows_transpose, RowsTranspose);

// *amax becomes the largest of itself and all magnitudes in real rows, NaN if any is. Bits are
// compared as whole numbers, so that any order gives the same. Without gaps: cast_largest (cast.h).
typedef struct RowsAmax {
    int64_t rows, columns;
    DType dtype;
    const void *values;        // [rows, columns]
    const int32_t *row_map;    // [rows]
    const int32_t *rows_total; // [1]
    float *amax;               // [1]
} RowsAmax;
KERNEL_DECLARE(rows_amax, RowsAmax);

// Expert rows under a rule whose blocks are parts of one row, cast as they lie: row r of `to` is
// that of the values, or of the row that the map names. Rows of padding are left as they are.
typedef struct RowsCast {
    const void *values;        // [.., to.columns] of to.input
    const int32_t *row_map;    // [to.rows]
    bool mapped;               // as in RowsTranspose
    const int32_t *rows_total; // [1]
    QTensor to;                // of one matrix, scales plain
} RowsCast;
KERNEL_DECLARE(rows_cast, RowsCast);
// Local, host. Whether that device has rows_cast for this operand; codes need no memory yet. Else
// the rows that the map names are to be laid side by side first, and cast (cast.h).
bool rows_cast_suits(const RowsCast *args, DeviceKind device);
OPTIONAL_SYMBOL bool rows_cast_suits_cuda(const RowsCast *args);

// Expert rows, transposed and quantised along the rows of each group: a column of the values is a
// row of `to`. A block that is a whole row is a group's part of it, scales are then [groups, rows];
// other blocks do not cross groups. Codes of padding are 0, and an empty group's scales those of
// zeros. For each group, the bytes of quantise() of its own columns, zeros up to a whole block.
typedef struct GroupCast {
    const void *values;        // [.., to.rows] of to.input
    const int32_t *row_map;    // [rows]
    bool mapped;               // as in RowsTranspose
    const int32_t *rows_total; // [1]
    int groups;
    const int32_t *group_first, *group_rows; // [groups] device; first: multiples of the alignment
    uint32_t *marks; // [cast_marks(&to, groups, ..)] (cast.h), scratch; or NULL
    QTensor to; // [columns of the values, at least rows_total], with room for all scales; columns a
                // multiple of the alignment, scales plain, codes of one byte
} GroupCast;
KERNEL_DECLARE(group_cast, GroupCast);

DECLARATIONS_END
