// growth.c -- the table of rates over sizes.
#include "experiments/model/growth.h"
#include "results/table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SIZES_MAX = (GROWTH_LAST - GROWTH_FIRST) / GROWTH_STEP + 1, NAMES_MAX = 256 };

struct Growth {
    char name[NAMES_MAX][128];
    double rate[NAMES_MAX][SIZES_MAX]; // 0 = not measured
    int names, sizes;
};

bool growth_check(int64_t last, Error *error)
{
    if (last == 0 || (last >= GROWTH_FIRST && last <= GROWTH_LAST))
        return true;
    return error_set(error, EXIT_CODE_USAGE, "write 10 to 30, or leave --grow away",
                     "--grow %lld: sizes begin at 2^%d and end at 2^%d", (long long)last,
                     GROWTH_FIRST, GROWTH_LAST);
}

int growth_sizes(int64_t last)
{
    return (int)(last - GROWTH_FIRST) / GROWTH_STEP + 1;
}

int growth_log2(int size)
{
    return GROWTH_FIRST + GROWTH_STEP * size;
}

Growth *growth_create(void)
{
    Growth *growth = calloc(1, sizeof(*growth));
    CHECK(growth != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for a table");
    return growth;
}

void growth_destroy(Growth *growth)
{
    free(growth);
}

void growth_add(Growth *growth, const char *name, int size, double rate)
{
    int i = 0;
    CHECK_RULE(size >= 0 && size < SIZES_MAX);
    while (i < growth->names && strcmp(growth->name[i], name) != 0)
        i++;
    if (i == growth->names) {
        CHECK_RULE(growth->names < NAMES_MAX);
        snprintf(growth->name[growth->names++], sizeof(growth->name[0]), "%s", name);
    }
    growth->rate[i][size] = rate;
    growth->sizes = size + 1 > growth->sizes ? size + 1 : growth->sizes;
}

void growth_print(const Growth *growth, const char *unit)
{
    const char *columns[SIZES_MAX + 3] = {"recipe"};
    char headings[SIZES_MAX][16], text[64];
    for (int size = 0; size < growth->sizes; size++) {
        snprintf(headings[size], sizeof(headings[size]), ">2^%d", growth_log2(size));
        columns[1 + size] = headings[size];
    }
    columns[1 + growth->sizes] = ">knee";
    Table *table = table_create(columns);
    for (int i = 0; i < growth->names; i++) {
        const double *rate = growth->rate[i];
        double best = 0;
        int knee = 0;
        table_cell(table, "%s", growth->name[i]);
        for (int size = 0; size < growth->sizes; size++) {
            best = fmax(best, rate[size]);
            table_cell(table, rate[size] > 0 ? "%s" : "-",
                       table_rate(rate[size], unit, text, sizeof(text)));
        }
        while (knee < growth->sizes && rate[knee] < best / 2)
            knee++;
        table_cell(table, best > 0 ? "2^%d" : "-", growth_log2(knee));
    }
    table_print(table, stdout);
    table_destroy(table);
}
