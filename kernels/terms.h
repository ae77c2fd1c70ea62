// terms.h -- one value from the terms that several ranks hold of it, in the order of the ranks.
//
//   out[i] = round(finish(((term[0][i] op term[1][i]) op term[2][i]) op ...))
//
// Floats narrower than f32 are widened, combined in f32 and rounded once, to nearest even; f32, f64
// and integers combine in their own type, where integers wrap. avg is the sum divided by the terms.
// max and min give NaN when a term is NaN. CPU and CUDA agree bit for bit, but for the payload of a
// NaN.
#pragma once

#include "kernels/kernel.h"

DECLARATIONS_BEGIN

typedef enum TermsOp {
    TERMS_SUM,
    TERMS_AVG,
    TERMS_PRODUCT,
    TERMS_MAX,
    TERMS_MIN,
    TERMS_OPS
} TermsOp;

// One term, a rank's own, lies apart from the others, which came from elsewhere.
typedef struct TermsCombine {
    DType dtype;
    TermsOp op;
    int terms, own_index; // own_index: where in the order the own term stands
    int64_t count;
    int64_t stride;     // elements between the others
    const void *own;    // [count]
    const void *others; // [terms - 1][stride], in order; only count of each are read
    void *out;          // [count]; may be a term
} TermsCombine;
KERNEL_DECLARE(terms_combine, TermsCombine);

// The term that changes nothing: zeros for the sum, ones for the product.
typedef struct TermsIdentity {
    DType dtype;
    TermsOp op; // TERMS_SUM or TERMS_PRODUCT
    int64_t count;
    void *out; // [count]
} TermsIdentity;
KERNEL_DECLARE(terms_identity, TermsIdentity);

bool terms_has_arithmetic(DType dtype); // Local. Not bool, complex, or floats of 8 bits and below
bool terms_is_integer(DType dtype);     // Local. Of those that have
uint64_t terms_one(DType dtype);        // Local. The bits of 1, in the low bytes

DECLARATIONS_END
