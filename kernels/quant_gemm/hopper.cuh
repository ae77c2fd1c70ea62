// hopper.cuh -- products of bf16, e4m3 or int8 matrices on Hopper's tensor cores with scales
// behind the sums (quant_gemm/hopper.cu).
#pragma once

#include "kernels/quant_gemm/view.cuh"

typedef enum QuantUnit { QUANT_UNIT_BF16, QUANT_UNIT_E4M3, QUANT_UNIT_S8, QUANT_UNITS } QuantUnit;

// What becomes of a sum; fa and fb are the factors of its rows, and values are rounded to bf16.
typedef enum QuantFinish {
    QUANT_FINISH_NONE,
    QUANT_FINISH_TIMES,   // sum * (fa * fb)
    QUANT_FINISH_ROUNDED, // round(sum * fa) * round(fb)
    QUANT_FINISH_TENSORS, // round(sum) * round(fa * fb): one factor for all of a, one per group
} QuantFinish;

// Factors in device memory, so many elements apart; NULL: all 1.
typedef struct QuantFactors {
    const float *of;
    int64_t matrix, row, block;
} QuantFactors;

typedef struct QuantHopper {
    GroupedGemm frame; // groups, sizes and c
    QuantUnit unit;
    const void *a, *b; // [rows_max, k], [groups, n, k] of the unit
    int64_t block;     // 0; or every block of so many columns, a multiple of 128, has its sum
                       // times fa * fb, and no finish
    bool b_per_row;    // block: every row of b has its own factors, else 128 rows share them
    QuantFinish finish;
    QuantFactors fa, fb;
} QuantHopper;

// Local. Whether sizes and addresses suit the kernel and the current GPU is a Hopper.
bool quant_hopper_suits(const QuantHopper *args);
// Enqueues(stream).
void quant_hopper(const QuantHopper *args, cudaStream_t stream);
