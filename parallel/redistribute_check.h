// redistribute_check.h -- what a redistribute must leave on this rank, made without communication.
//
// Where every element is a function of its global index and, for Partials, of the rank's
// coordinates, every rank can say alone what gathering the tensor, combining its terms and slicing
// it anew would leave in its part, whatever the size.
#pragma once

#include "parallel/redistribute.h"

typedef struct RedistributeTerms {
    // Writes the element of global row-major index `index` as ranks at coord [mesh->axes] hold it
    // before; only coordinates along axes that are Partial then may matter.
    void (*term)(const void *context, const int *coord, uint64_t index, void *out);
    const void *context;
} RedistributeTerms;

// Local, host memory. This rank's part before.
void redistribute_fill(const Redistribute *plan, const RedistributeTerms *terms, void *in);
// Local, host memory. How many elements of this rank's part afterwards have other bits than they
// must.
int64_t redistribute_check(const Redistribute *plan, const RedistributeTerms *terms,
                           const void *out);
