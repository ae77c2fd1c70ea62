// growth.h -- rates of something over sizes from 2^10 elements on, and where they stop being those
// of launches and latencies.
#pragma once

#include "harness/check.h"

enum { GROWTH_FIRST = 10, GROWTH_STEP = 2, GROWTH_LAST = 30 }; // log2 of elements

// Local. Whether --grow LAST is one (0 = not asked for); exit code 2.
bool growth_check(int64_t last, Error *error);
// Local. How many sizes lead to 2^last elements, and the log2 of a size's.
int growth_sizes(int64_t last);
int growth_log2(int size);

typedef struct Growth Growth;
// Local. Owner: the caller.
Growth *growth_create(void);
void growth_destroy(Growth *growth);
// Local. A rate in `unit`s a second of the named one at this size; sizes ascend. Names that are not
// measured at a size are left out or have a rate of 0.
void growth_add(Growth *growth, const char *name, int size, double rate);
// Local. A line per name: its rates, and its knee, the fewest elements with half of its best rate.
// unit: as table_rate takes it.
void growth_print(const Growth *growth, const char *unit);
