// int8.cu -- the CUDA casts to int8.
#include "kernels/cast/tiles.cuh"

const CastKernels cast_kernels_int8[][2] = {CAST_VARIANTS_INT8(CAST_KERNELS)};
