// int8.c -- the CPU's loops of casts to int8.
#include "kernels/cast/isa.h"

#if defined(__x86_64__)
CAST_FAMILY(int8, CAST_VARIANTS_INT8)
#endif
