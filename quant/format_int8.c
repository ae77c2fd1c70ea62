// format_int8.c -- int8 in the table: a whole number, two's complement.
#include "quant/format_integer.h"

FORMAT_INTEGER(int8, 8, "clamp(round(x), -128, 127)",
               "weights and activations; the scale is beside them");
