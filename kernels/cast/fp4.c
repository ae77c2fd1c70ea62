// fp4.c -- the CPU's loops of casts to fp4.
#include "kernels/cast/isa.h"

#if defined(__x86_64__)
CAST_FAMILY(fp4, CAST_VARIANTS_FP4)
#endif
