// expand.cuh -- operands in the form that tensor cores take, and scales as f32
// (quant_gemm/expand.cu).
#pragma once

#include "kernels/quant_gemm/hopper.cuh"

typedef struct QuantExpand {
    QuantView from;
    int64_t rows; // of a matrix
    int matrices;
    const GroupedGemm *groups; // of these only the groups' rows, of one matrix; NULL: all
    QuantUnit unit;
    bool scaled; // codes times their block's scale, which bf16 holds exactly
    void *to;    // [matrices, rows, k]; k a multiple of 16 bytes
} QuantExpand;

// Enqueues(stream). Reads every code once and writes every unit once.
void quant_expand(const QuantExpand *args, cudaStream_t stream);

// Enqueues(stream). Scales of all blocks of `matrices` matrices: to[matrix * places.matrix + block
// row * places.row + block column * places.block].
void quant_gather_scales(const QuantView *from, int64_t matrices, QuantFactors places, float *to,
                         cudaStream_t stream);
