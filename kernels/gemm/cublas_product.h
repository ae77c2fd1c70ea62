// cublas_product.h -- one product by cuBLASLt, with or without scales of its operands; what
// dense_gemm and quant_gemm use.
#pragma once

#include "kernels/dense_gemm.h"

DECLARATIONS_BEGIN

// f32 scales in device memory that an operand of fp8 codes is multiplied by; its columns are those
// that the product sums over, cut into blocks of 128.
typedef enum CublasScale {
    CUBLAS_SCALE_NONE,
    CUBLAS_SCALE_TENSOR,  // one
    CUBLAS_SCALE_ROW,     // [rows]
    CUBLAS_SCALE_128,     // [blocks, rows]
    CUBLAS_SCALE_128_128, // [rows / 128 rounded up, blocks rounded up to a multiple of 4]
} CublasScale;

typedef struct CublasProduct {
    DenseGemm gemm; // dtype: DTYPE_F32, DTYPE_BF16 or DTYPE_F8_E4M3 (GEMM_NT only)
    CublasScale kind_a, kind_b;
    const float *scale_a, *scale_b;
    bool fast_sums; // fp8: the multiplier's own sums all the way, some 13 bits
} CublasProduct;

// Enqueues(stream). False: cuBLASLt knows no algorithm, and nothing was enqueued.
OPTIONAL_SYMBOL bool cublas_product(const CublasProduct *args, Stream stream);

DECLARATIONS_END
