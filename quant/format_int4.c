// format_int4.c -- int4 in the table: a whole number, two's complement.
#include "quant/format_integer.h"

FORMAT_INTEGER(int4, 4, "clamp(round(x), -8, 7)",
               "weights; two to a byte or eight to a word, sign convention by layout");
