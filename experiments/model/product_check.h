// product_check.h -- is a quantised product what it should be, and what did quantising cost?
#pragma once

#include "kernels/quant_gemm.h"

typedef struct ProductCheck {
    double error;       // the largest |c - exact|, relative to its bound: good up to 1
    int64_t row, n;     // where
    double ours, exact; // there
    double sqnr_db;     // of c against the product of the unquantised values
    int64_t values;     // how many were compared
} ProductCheck;

// Waits. c of `product`, on at most rows_max rows spread over all, against the product of what the
// codes stand for, in double; the bound is that of quant_gemm.h for the stream's device. a, b: the
// values before quantising, of product->dtype, on the host. Rows in which a value is not finite are
// bound to nothing.
ProductCheck product_check(const QuantGemm *product, const void *a, const void *b, int64_t rows_max,
                           Stream stream);

// Local, host. Signal over noise of what the codes stand for, in dB, against `values` [matrices,
// rows, columns] of q->input.
double cast_sqnr_db(const QTensor *q, const void *values);
