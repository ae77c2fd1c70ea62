// int4.c -- the CPU's loops of casts to int4.
#include "kernels/cast/isa.h"

#if defined(__x86_64__)
CAST_FAMILY(int4, CAST_VARIANTS_INT4)
#endif
