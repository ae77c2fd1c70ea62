// table.h -- a text table: columns sized to their content, numbers to the right, for stdout.
#pragma once

#include "harness/base.h"

typedef struct Table Table;
// Local. columns: NULL-terminated titles; a title that starts with '>' is right-aligned. Owner: the
// caller.
Table *table_create(const char *const *columns);
void table_cell(Table *table, const char *format, ...) __attribute__((format(printf, 2, 3)));
void table_print(const Table *table, void *file); // FILE *
void table_destroy(Table *table);

// Local. A duration with a fitting unit ("1.24 ms"), a byte count ("3.1 GiB"), a rate ("3.9 TB/s",
// "612 TFLOP/s"; unit is "B" or "FLOP"), a share ("3.1 %"). NaN gives "-".
const char *table_seconds(double seconds, char *text, size_t bytes);
const char *table_bytes(double value, char *text, size_t bytes);
const char *table_rate(double per_second, const char *unit, char *text, size_t bytes);
const char *table_percent(double share, char *text, size_t bytes);
