// rows.cuh -- products of few rows with many quantised weights (quant_gemm/rows.cu).
#pragma once

#include "kernels/quant_gemm/hopper.cuh"

typedef struct QuantRows {
    QuantWork work; // a quantised: of one row
    bool a_scaled;  // a is codes times their block's scale, which bf16 holds exactly
    QuantFinish finish;
    QuantFactors fa, fb;
} QuantRows;

// Local. Whether operands, sizes and addresses suit the kernel.
bool quant_rows_suits(const QuantRows *args);
// Enqueues(stream). Right for any number of rows; b is read anew for every 8 or 16 rows of a group.
void quant_rows(const QuantRows *args, cudaStream_t stream);
