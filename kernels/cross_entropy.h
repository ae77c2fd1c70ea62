// cross_entropy.h -- the loss of rows of logits whose vocabulary may be divided over devices.
//
//   row_max:   m = max over the local columns                    the caller all-reduces max
//   row_sum:   s = sum over the local columns of e^(x - m),
//              z = the target's logit where it is local, else 0  the caller all-reduces both sums
//   loss:      l = log(s) + (m - z), 0 for ignored rows; their sum and how many counted
//   backward:  dx = round((e^(x - m) / s - [column = target]) f), 0 for ignored rows
//              f = scale / *count
//
// An undivided vocabulary is vocab_first 0 and no all-reduce. Targets are global column numbers, or
// CROSS_ENTROPY_IGNORED as in torch.
//
// NaN: row_max passes over NaN and row_sum does not, so that a NaN logit makes its row's loss and
// gradient NaN although reductions of maxima may drop NaN. A row with +inf, or with nothing but
// -inf, gives NaN, as in torch.
// Exactness: e^d is within (3 + 2 |d|) eps_f32 of itself. The sum: column c (local) in partial sum
// c % 256, each ascending from 0 in f32; then pairwise inside each eight neighbouring sums, 4, 2, 1
// apart; then these 32, 16, 8, 4, 2, 1 apart: (columns / 512 + 8) eps_f32 more. A loss is made in
// f64 and rounded once. The sum of losses: f64, row r in partial sum r % 1024, each ascending; then
// pairwise, 512, 256, ... 1 apart. A row's result depends on that row only.
#pragma once

#include "kernels/kernel.h"

DECLARATIONS_BEGIN

enum { CROSS_ENTROPY_IGNORED = -100 };

typedef struct CrossEntropyRowMax {
    int64_t rows, vocab_count;
    DType dtype;        // of logits: DTYPE_F32 or DTYPE_BF16
    const void *logits; // [rows, vocab_count]
    float *row_max;     // out [rows]; -inf with no columns
} CrossEntropyRowMax;
KERNEL_DECLARE(cross_entropy_row_max, CrossEntropyRowMax);

typedef struct CrossEntropyRowSum {
    int64_t rows;
    int64_t vocab_first, vocab_count; // columns that live here
    DType dtype;
    const void *logits;     // [rows, vocab_count]
    const float *row_max;   // [rows] over the whole vocabulary
    const int32_t *targets; // [rows]
    float *row_sum;         // out [rows]
    float *target_logit;    // out [rows]
} CrossEntropyRowSum;
KERNEL_DECLARE(cross_entropy_row_sum, CrossEntropyRowSum);

// What CrossEntropyLoss leaves for one all-reduce over the data axes.
enum { CROSS_ENTROPY_SUM, CROSS_ENTROPY_COUNT, CROSS_ENTROPY_TOTALS };

typedef struct CrossEntropyLoss {
    int64_t rows;
    const float *row_max, *row_sum, *target_logit; // [rows] over the whole vocabulary
    const int32_t *targets;                        // [rows]
    float *loss;     // out [rows], not yet divided by anything; or NULL
    double *totals;  // out [CROSS_ENTROPY_TOTALS]: sum of losses, rows that counted
    bool accumulate; // totals += ...
} CrossEntropyLoss;
KERNEL_DECLARE(cross_entropy_loss, CrossEntropyLoss);

typedef struct CrossEntropyBackward {
    int64_t rows;
    int64_t vocab_first, vocab_count;
    DType dtype;                    // of logits and dlogits
    const void *logits;             // [rows, vocab_count]
    const float *row_max, *row_sum; // [rows] over the whole vocabulary
    const int32_t *targets;         // [rows]
    float scale;         // the loss's own gradient; with count NULL also 1 / global token count
    const double *count; // [1] device: rows that counted, over all ranks; NULL = 1
    void *dlogits;       // out [rows, vocab_count]; may be logits
} CrossEntropyBackward;
KERNEL_DECLARE(cross_entropy_backward, CrossEntropyBackward);

DECLARATIONS_END
