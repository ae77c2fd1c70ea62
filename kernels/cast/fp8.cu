// fp8.cu -- the CUDA casts to fp8.
#include "kernels/cast/tiles.cuh"

const CastKernels cast_kernels_fp8[][2] = {CAST_VARIANTS_FP8(CAST_KERNELS)};
