// hopper.cuh -- the grouped product on Hopper's tensor cores (gemm/hopper.cu).
#pragma once

#include "kernels/grouped_gemm.h"

#include <cuda_runtime.h>

// Local. Whether shapes, strides, addresses and the current GPU suit gemm_hopper.
bool gemm_hopper_suits(const GroupedGemm *args);
// Enqueues(stream).
void gemm_hopper(const GroupedGemm *args, cudaStream_t stream);
