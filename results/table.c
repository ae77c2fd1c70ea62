// table.c -- a text table whose columns are as wide as their content, and numbers with three
// figures and a fitting unit.
//
// Width is counted in characters, not bytes, so that UTF-8 cells stay aligned.
#include "results/table.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness/check.h"

typedef struct Column {
    bool right;
    int width;
} Column;

struct Table {
    int columns, cells, capacity;
    Column *column;
    char **cell; // row by row; the titles are the first row
};

// Bytes of the form 10xxxxxx continue a character.
static int character_count(const char *text)
{
    int count = 0;
    for (; *text; text++)
        count += (*text & 0xC0) != 0x80;
    return count;
}

// Takes over `text`. Some of it comes from files: a terminal must not see control characters.
static void push_cell(Table *table, char *text)
{
    if (table->cells == table->capacity) {
        table->capacity = table->capacity ? 2 * table->capacity : 64;
        table->cell = realloc(table->cell, (size_t)table->capacity * sizeof *table->cell);
    }
    CHECK(table->cell && text, EXIT_CODE_HARDWARE, "free some memory",
          "no memory for a table of %d"
          " cells",
          table->capacity);
    for (unsigned char *c = (unsigned char *)text; *c; c++)
        if (*c < 0x20 || *c == 0x7F)
            *c = '?';
    Column *column = &table->column[table->cells % table->columns];
    int width = character_count(text);
    if (width > column->width)
        column->width = width;
    table->cell[table->cells++] = text;
}

Table *table_create(const char *const *columns)
{
    Table *table = calloc(1, sizeof *table);
    CHECK(table, EXIT_CODE_HARDWARE, "free some memory", "no memory for a table");
    while (columns[table->columns])
        table->columns++;
    table->column = calloc((size_t)table->columns + 1, sizeof *table->column);
    CHECK(table->column, EXIT_CODE_HARDWARE, "free some memory", "no memory for a table");
    for (int i = 0; i < table->columns; i++) {
        table->column[i].right = columns[i][0] == '>';
        push_cell(table, strdup(columns[i] + table->column[i].right));
    }
    return table;
}

void table_cell(Table *table, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    char *text = NULL;
    if (vasprintf(&text, format, arguments) < 0)
        text = NULL;
    va_end(arguments);
    push_cell(table, text);
}

static void print_cell(const Table *table, int index, FILE *file)
{
    int column = index % table->columns;
    bool last = column == table->columns - 1;
    const char *text = table->cell[index];
    int pad = table->column[column].width - character_count(text);
    if (table->column[column].right)
        fprintf(file, "%*s%s", pad, "", text);
    else
        fprintf(file, "%s%*s", text, last ? 0 : pad, "");
    fputs(last ? "\n" : "  ", file);
}

void table_print(const Table *table, void *file)
{
    for (int i = 0; i < table->cells; i++)
        print_cell(table, i, file);
    if (table->columns > 0 && table->cells % table->columns != 0)
        fputc('\n', file);
}

void table_destroy(Table *table)
{
    if (!table)
        return;
    for (int i = 0; i < table->cells; i++)
        free(table->cell[i]);
    free(table->cell);
    free(table->column);
    free(table);
}

typedef struct Unit {
    double size;
    const char *name;
    bool whole; // has no fractions
} Unit;

// How many decimals show three figures, but no more than `most`.
static int decimals_for(double magnitude, int most)
{
    int decimals = magnitude < 10 ? 2 : magnitude < 100 ? 1 : 0;
    return decimals < most ? decimals : most;
}

// `units` ascend and end with a NULL name. A value goes to the first unit in which it prints below
// `limit`, judged after rounding: 999.7 us is "1.00 ms", not "1000 us".
static const char *scaled(double value, const Unit *units, double limit, int decimals_max,
                          char *text, size_t bytes)
{
    if (!isfinite(value)) {
        snprintf(text, bytes, "%s", isnan(value) ? "-" : value > 0 ? "inf" : "-inf");
        return text;
    }
    double magnitude = fabs(value) / units->size;
    double step = pow(10, -decimals_for(magnitude, decimals_max));
    while (units[1].name && round(magnitude / step) * step >= limit) {
        units++;
        magnitude = fabs(value) / units->size;
        step = pow(10, -decimals_for(magnitude, decimals_max));
    }
    int decimals = units->whole ? 0 : decimals_for(round(magnitude / step) * step, decimals_max);
    snprintf(text, bytes, "%.*f %s", decimals, value / units->size, units->name);
    return text;
}

const char *table_seconds(double seconds, char *text, size_t bytes)
{
    static const Unit units[] = {{1e-9, "ns", false},
                                 {1e-6, "us", false},
                                 {1e-3, "ms", false},
                                 {1, "s", false},
                                 {0, NULL, false}};
    return scaled(seconds, units, 1000, 2, text, bytes);
}

const char *table_bytes(double value, char *text, size_t bytes)
{
    static const Unit units[] = {{1, "B", true},         {0x1p10, "KiB", false},
                                 {0x1p20, "MiB", false}, {0x1p30, "GiB", false},
                                 {0x1p40, "TiB", false}, {0, NULL, false}};
    return scaled(value, units, 1024, 1, text, bytes);
}

const char *table_rate(double per_second, const char *unit, char *text, size_t bytes)
{
    static const Unit units[] = {{1, "", false},    {1e3, "k", false},  {1e6, "M", false},
                                 {1e9, "G", false}, {1e12, "T", false}, {1e15, "P", false},
                                 {0, NULL, false}};
    char number[64];
    scaled(per_second, units, 1000, 1, number, sizeof number);
    if (isfinite(per_second))
        snprintf(text, bytes, "%s%s/s", number, unit);
    else
        snprintf(text, bytes, "%s", number);
    return text;
}

const char *table_percent(double share, char *text, size_t bytes)
{
    if (isnan(share))
        snprintf(text, bytes, "-");
    else
        snprintf(text, bytes, "%.*f %%", share < 0.1 ? 1 : 0, 100 * share);
    return text;
}
