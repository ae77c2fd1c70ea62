// grouped_gemm.h -- matrix products of many experts in one launch; group sizes are read from device
// memory.
//
//   GEMM_NT  c[r, n] = sum_k a[ia(r), k] b[g, n, k]     rows x weights, forward
//   GEMM_NN  c[r, n] = sum_k a[ia(r), k] b[g, k, n]     rows x weights, gradient of the input
//   GEMM_TN  c[g, m, n] = sum_r a[ia(r), m] b[ib(r), n] rows of group g, gradient of the weights
//
// Group g owns rows group_first[g] .. + group_rows[g] of the row space; rows between groups
// (padding) are neither read nor written. ia(r) = a_index[r] (r itself without an index), likewise
// ib. A dense product is one group.
//
// Exactness: a row of c (NT, NN) depends on that row of a and on b only, not on where it stands or
// how many rows there are; a TN sum runs over a group's rows in ascending order from the group's
// first row, whatever the padding.
//   CPU   every element is one chain of fmaf in ascending k (ascending r), starting from 0:
//         any CPU, any blocking, any number of threads, same bits
//   CUDA  f32 accumulation in tensor-core order, fixed per shape;
//         |ours - exact| <= 2 k eps_f32 * sum |a b| + one rounding
//
// With accumulate the finished sum (from zero) is added to what c holds, in f32: c = c + sum. An
// empty group writes zeros (TN, accumulate false) and leaves c alone with accumulate.
#pragma once

#include "kernels/kernel.h"

DECLARATIONS_BEGIN

typedef enum GemmForm { GEMM_NT, GEMM_NN, GEMM_TN } GemmForm;

typedef struct GroupedGemm {
    GemmForm form;
    DType dtype;     // of a and b: DTYPE_F32 or DTYPE_BF16
    DType out_dtype; // of c: the same, or DTYPE_F32
    bool accumulate; // c += ...; out_dtype DTYPE_F32 only
    int groups;
    int64_t rows_max;           // rows of the row space that exist in memory (worst case)
    int64_t m, n, k;            // m: TN only; k: NT and NN only
    const int32_t *group_first; // [groups] device
    const int32_t *group_rows;  // [groups] device
    const void *a;              // NT, NN: [*, k] rows a_stride apart; TN: [*, m]
    int64_t a_stride;           // elements
    const int32_t *a_index;     // [rows_max] device, or NULL
    const void *b;    // NT: [groups, n, k]; NN: [groups, k, n]; TN: [*, n] rows b_stride apart
    int64_t b_stride; // TN only
    const int32_t *b_index; // TN only: [rows_max] device, or NULL
    void *c;                // NT, NN: [rows_max, n]; TN: [groups, m, n]
    int64_t rows_expected;  // rows over all groups, for the cost and (CPU) for whether threads pay
    int threads;            // CPU: threads to use, at least 1
} GroupedGemm;

KERNEL_DECLARE(grouped_gemm, GroupedGemm);
// Local, CPU. The definition above as plain loops; what grouped_gemm_cpu equals bit for bit.
void grouped_gemm_reference(const GroupedGemm *args);

DECLARATIONS_END
