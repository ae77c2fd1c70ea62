// product_bare.h -- a quantised product asked of cuBLASLt directly, on the same codes: what the way
// through quant_gemm is held against. Builds with CUDA only; elsewhere the functions are NULL.
#pragma once

#include "kernels/quant_gemm.h"

typedef struct ProductBare ProductBare;

// Waits. The dense product of e4m3 codes under scales of tensors, rows or blocks of 128, with the
// scales laid out once, beforehand, in memory of `arena`, and run once. NULL: it is no such
// product, or cuBLASLt has none. Owner: the caller.
OPTIONAL_SYMBOL ProductBare *product_bare_create(const QuantGemm *product, Arena *arena,
                                                 Stream stream);
OPTIONAL_SYMBOL void product_bare_destroy(ProductBare *bare);
OPTIONAL_SYMBOL void product_bare_run(void *bare, Stream stream); // Enqueues(stream)
OPTIONAL_SYMBOL void *product_bare_c(const ProductBare *bare);    // Local. Its own, [rows, n]
