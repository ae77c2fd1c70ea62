// quant_gemm.h -- products of quantised operands, dense and grouped, as each recipe defines them.
//
//   c[r, n] = sum_k a[r, k] b[g, n, k]      rows r of group g, as GEMM_NT of grouped_gemm.h
//
// a: activations, or a gradient; b: weights, or what stands in their place. Each is a quantised
// tensor or plain. round() is to `dtype`, everything else is f32; a chain is fmaf in ascending k
// from 0.
//
//   VALUES   chain of va vb: what codes stand for, or plain values, rounded to dtype
//   SCALED   sum over blocks of columns, ascending, of chain(qa qb) * (sa sb); a block is the
//            smaller of both operands' blocks. Two levels: round(sum) * round(Ta Tb).
//   ROUNDED  round(chain(qa qb) * sa) * round(sb); a plain operand a has sa = 1
//
// If both operands are whole numbers, a block's chain is exact instead (|sum| < 2^53) and rounded
// to f32 once. Sources: torchao's tensor subclasses (float8_tensor.py, int8_tensor.py,
// mx_tensor.py, nvfp4_tensor.py), DeepSeek-V3 (inference/kernel.py).
//
// Exactness: CPU, and CUDA with bits_of_cpu: an element of c depends on its row of a and its row of
// b alone; every device, instruction set and number of threads gives the same bits (of a NaN only
// that it is one).
//   |ours - exact| <= (k + 4 blocks) eps_f32 * sum |a b| + 1, 2 (ROUNDED) or 3 (two levels)
//   roundings to dtype
// CUDA without bits_of_cpu: tensor cores, in their order of sums, which differs with every size.
//   |ours - exact| <= 2 (k + 4 blocks) eps_f32 * sum |a b| + the same roundings; whole numbers as
//   above, to the bit; e4m3 codes of a under scales of rows, tensors or 128 n columns: +
//   2^-10 sum |a b| for terms of both signs, since there a multiplier keeps some 13 bits of its
//   sums. Powers of two below 2^-117 may lose bits of the values under them.
// Only NT: gradients are products of transposed operands, quantised along the sum
// (experiments/model/moe_quant.h has the table). sums_over_groups is the form of weights' gradients
// on a device that alone knows the groups' sizes: groups are ranges of columns,
//
//   c[g, m, n] = sum of a[m, t] b[n, t] over the columns t of group g
//
// SCALED, both operands quantised, of one matrix. Groups begin at multiples of 128; from their ends
// to the next multiple lie zeros. A block that is a whole row is a group's part of it: its scales
// are [groups, rows].
#pragma once

#include "kernels/kernel.h"
#include "quant/qtensor.h"
#include "quant/recipe.h"

DECLARATIONS_BEGIN

typedef struct QuantOperand {
    bool quantised;
    QTensor q;          // quantised: a [rows_max, k], b [groups, n, k] or [n, k]
    const void *values; // else: the same of dtype
} QuantOperand;

typedef struct QuantGemm {
    QuantProduct product;
    DType dtype;                // f32 or bf16: the operands' own
    DType out_dtype;            // of c: the same or f32
    bool accumulate;            // c += ..., out_dtype f32 only
    bool bits_of_cpu;           // CUDA: slower, see above
    bool sums_over_groups;      // see above; the CPU takes its plain loops
    int groups;                 //
    const int32_t *group_first; // [groups] device; NULL: dense, one group of all rows_max rows
    const int32_t *group_rows;  // [groups] device; likewise
    int64_t rows_max, n, k;
    QuantOperand a, b;
    void *c;               // [rows_max, n]; sums_over_groups: [groups, rows_max, n]
    void *workspace;       // quant_gemm_workspace_bytes
    int64_t rows_expected; // over all groups, for the cost; sums_over_groups: columns
    int threads;           // CPU: at least 1
} QuantGemm;

// A dense product on CUDA may make a plan on the host (dense_gemm.h): the first of each size must
// come before a graph is captured.
KERNEL_DECLARE(quant_gemm, QuantGemm);
// Local, host. Of what the device's row needs; operands need only be planned.
uint64_t quant_gemm_workspace_bytes(const QuantGemm *args, DeviceKind device);
OPTIONAL_SYMBOL uint64_t quant_gemm_workspace_bytes_cuda(const QuantGemm *args);
// Local, CPU. The definition above as plain loops.
void quant_gemm_reference(const QuantGemm *args);

DECLARATIONS_END
