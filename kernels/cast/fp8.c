// fp8.c -- the CPU's loops of casts to fp8.
#include "kernels/cast/isa.h"

#if defined(__x86_64__)
CAST_FAMILY(fp8, CAST_VARIANTS_FP8)
#endif
