// int4.cu -- the CUDA casts to int4.
#include "kernels/cast/tiles.cuh"

const CastKernels cast_kernels_int4[][2] = {CAST_VARIANTS_INT4(CAST_KERNELS)};
