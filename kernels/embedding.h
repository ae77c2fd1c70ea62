// embedding.h -- rows of a table by token id, and the gradient of the table; the table may be the
// part of a vocabulary that lives on this device.
//
//   forward:   y[t] = table[ids[t] - vocab_first], or zeros where that is not a row of the table
//   backward:  dtable[v] = sum of dy[t] over the tokens with ids[t] = vocab_first + v
//
// The zeros make the sum over the parts of a divided vocabulary the whole lookup; an id that
// nobody has (negative, or past the end) gives zeros everywhere.
// Exactness: forward copies. A gradient is one chain of f32 additions in ascending token order from
// 0, whatever the device, then stored, or added to what dtable holds; rows without tokens become
// zeros, or with accumulate keep their bits.
#pragma once

#include "kernels/kernel.h"

DECLARATIONS_BEGIN

typedef struct EmbeddingForward {
    int64_t tokens, hidden;
    int64_t vocab_first, vocab_count; // ids that the table's rows stand for
    DType dtype;                      // of table and y: DTYPE_F32 or DTYPE_BF16
    const int32_t *ids;               // [tokens]
    const void *table;                // [vocab_count, hidden]
    void *y;                          // out [tokens, hidden]
} EmbeddingForward;
KERNEL_DECLARE(embedding_forward, EmbeddingForward);

typedef struct EmbeddingBackward {
    int64_t tokens, hidden; // tokens: below 2^31
    int64_t vocab_first, vocab_count;
    DType dtype;        // of dy
    const int32_t *ids; // [tokens]
    const void *dy;     // [tokens, hidden]
    float *dtable;      // out [vocab_count, hidden]
    bool accumulate;    // dtable += ...
    int32_t *scratch;   // [embedding_backward_scratch_bytes]
} EmbeddingBackward;
uint64_t embedding_backward_scratch_bytes(int64_t tokens, int64_t vocab_count); // Local
KERNEL_DECLARE(embedding_backward, EmbeddingBackward);

DECLARATIONS_END
