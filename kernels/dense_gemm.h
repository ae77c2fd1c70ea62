// dense_gemm.h -- one matrix product whose sizes the host knows, as fast as the device's library
// makes it.
//
//   GEMM_NT  c[r, n] = sum_k a[r, k] b[n, k]     rows x weights, forward
//   GEMM_NN  c[r, n] = sum_k a[r, k] b[k, n]     rows x weights, gradient of the input
//   GEMM_TN  c[m, n] = sum_r a[r, m] b[r, n]     gradient of the weights
//
// With accumulate the product is added to what c holds.
//
// Exactness: f32 accumulation in any order, and the order may change with every size, `rows`
// included: |ours - exact| <= 2 K eps_f32 * sum |a b| + one rounding, K the length of a sum.
// Where a row's bits must not depend on its neighbours, use grouped_gemm (grouped_gemm.h).
//   CPU   grouped_gemm's bits
//   CUDA  cuBLASLt, the first choice of its heuristic: the same bits for the same sizes and
//         alignments
#pragma once

#include "kernels/grouped_gemm.h"

DECLARATIONS_BEGIN

enum { DENSE_GEMM_WORKSPACE_BYTES = 32 << 20 };

typedef struct DenseGemm {
    GemmForm form;
    DType dtype;     // of a and b: DTYPE_F32 or DTYPE_BF16
    DType out_dtype; // of c: the same, or DTYPE_F32
    bool accumulate; // c += ...; out_dtype DTYPE_F32 only
    int64_t rows;
    int64_t m, n, k; // m: TN only; k: NT and NN only
    const void *a;   // NT, NN: [rows, k]; TN: [rows, m]
    const void *b;   // NT: [n, k]; NN: [k, n]; TN: [rows, n]
    void *c;         // NT, NN: [rows, n]; TN: [m, n]
    void *workspace; // CUDA: DENSE_GEMM_WORKSPACE_BYTES of device memory for this stream alone
    int threads;     // CPU: threads to use, at least 1
} DenseGemm;

// The first CUDA product of each size makes a plan on the host, so it must come before a graph is
// captured.
KERNEL_DECLARE(dense_gemm, DenseGemm);

DECLARATIONS_END
