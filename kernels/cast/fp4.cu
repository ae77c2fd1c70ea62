// fp4.cu -- the CUDA casts to fp4.
#include "kernels/cast/tiles.cuh"

const CastKernels cast_kernels_fp4[][2] = {CAST_VARIANTS_FP4(CAST_KERNELS)};
