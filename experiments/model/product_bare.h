// product_bare.h -- a quantised product asked of cuBLASLt directly, on the same codes: what the way
// through quant_gemm is held against.
#pragma once

#include "kernels/cublas_product.h"
#include "kernels/quant_gemm.h"

// Waits. The dense product of e4m3 codes under scales of tensors, rows or blocks of 128, with the
// scales laid out once, beforehand, in memory of `arena`, and with a c of its own there. False: it
// is no such product, or cuBLASLt has none.
bool product_bare_make(const QuantGemm *product, Arena *arena, CublasProduct *bare, Stream stream);
