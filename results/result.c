// result.c -- how a Result grows and goes: it owns copies of everything that was pushed into it.
//
// Every way in (a run, a journal, an HDF5 file) passes through the two push functions, so the rules
// about names and counts are checked here once, and whoever reads a Result may rely on them.
#include "results/result.h"

#include <stdlib.h>
#include <string.h>

// Memory that lives as long as its result: a list, newest first.
typedef struct Block {
    struct Block *next;
    double data[]; // any type of ours fits where a double does
} Block;

static void *result_keep(Result *result, uint64_t bytes)
{
    Block *block = malloc(sizeof *block + bytes);
    CHECK(block, EXIT_CODE_HARDWARE, "free some memory", "no memory for %llu bytes of samples",
          (unsigned long long)bytes);
    block->next = result->owned;
    result->owned = block;
    return block->data;
}

void result_destroy(Result *result)
{
    for (Block *block = result->owned, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    json_destroy(result->header);
    free(result->measurements);
    free(result->checks);
    *result = (Result){0};
}

// Room for one more element; grows when the count is a power of two.
static void *grown(void *array, int count, size_t element_bytes)
{
    if (count > 0 && (count & (count - 1)) != 0)
        return array;
    void *larger = realloc(array, (count ? 2 * (size_t)count : 1) * element_bytes);
    CHECK(larger, EXIT_CODE_HARDWARE, "free some memory", "no memory for %d rows of a result",
          2 * count);
    return larger;
}

static const char fix[] = "if meshwork wrote this, report it; else the file is not ours";

static bool counts_are_legal(const Measurement *m, Error *error)
{
    if (m->ranks < 1 || m->ranks > RESULT_RANKS_MAX || m->samples < 0 || m->warmups < 0 ||
        m->span_count < 0 || m->span_count > RESULT_SPANS_MAX)
        return error_set(error, EXIT_CODE_DATA, fix,
                         "measurement \"%s\": %d ranks, %d samples, %d warm-ups, %d spans (allowed:"
                         " 1 to %d ranks, at most %d spans)",
                         m->name, m->ranks, m->samples, m->warmups, m->span_count, RESULT_RANKS_MAX,
                         RESULT_SPANS_MAX);
    if ((int64_t)m->samples * m->ranks > RESULT_VALUES_MAX)
        return error_set(error, EXIT_CODE_DATA, fix,
                         "measurement \"%s\": %d samples of %d ranks are more than %d values",
                         m->name, m->samples, m->ranks, RESULT_VALUES_MAX);
    return true;
}

static bool names_are_legal(const Result *result, const Measurement *m, Error *error)
{
    if (!m->name[0])
        return error_set(error, EXIT_CODE_DATA, fix, "measurement %d has an empty name",
                         result->measurement_count);
    for (int i = 0; i < result->measurement_count; i++)
        if (strcmp(result->measurements[i].name, m->name) == 0)
            return error_set(error, EXIT_CODE_DATA, fix, "two measurements are named \"%s\"",
                             m->name);
    for (int i = 0; i < m->span_count; i++) {
        if (!m->spans[i].name[0])
            return error_set(error, EXIT_CODE_DATA, fix, "span %d of \"%s\" has an empty name", i,
                             m->name);
        for (int j = 0; j < i; j++)
            if (strcmp(m->spans[i].name, m->spans[j].name) == 0)
                return error_set(error, EXIT_CODE_DATA, fix, "two spans of \"%s\" are named \"%s\"",
                                 m->name, m->spans[i].name);
    }
    return true;
}

bool result_push_measurement(Result *result, const Measurement *measurement, Error *error)
{
    if (result->measurement_count >= RESULT_MEASUREMENTS_MAX)
        return error_set(error, EXIT_CODE_DATA, fix, "more than %d measurements",
                         RESULT_MEASUREMENTS_MAX);
    if (!counts_are_legal(measurement, error) || !names_are_legal(result, measurement, error))
        return false;
    result->measurements =
        grown(result->measurements, result->measurement_count, sizeof *result->measurements);
    Measurement *copy = &result->measurements[result->measurement_count++];
    *copy = *measurement;
    size_t span_bytes = (size_t)measurement->span_count * sizeof(MeasurementSpan);
    MeasurementSpan *spans = result_keep(result, span_bytes);
    copy->spans = spans;
    size_t bytes = (size_t)measurement->samples * (size_t)measurement->ranks * sizeof(double);
    for (int i = 0; i < measurement->span_count; i++) {
        double *seconds = result_keep(result, bytes);
        if (bytes > 0)
            memcpy(seconds, measurement->spans[i].seconds, bytes);
        spans[i] = measurement->spans[i];
        spans[i].seconds = seconds;
    }
    return true;
}

bool result_push_check(Result *result, const ResultCheck *check, Error *error)
{
    if (result->check_count >= RESULT_CHECKS_MAX)
        return error_set(error, EXIT_CODE_DATA, fix, "more than %d checks", RESULT_CHECKS_MAX);
    if (!check->name[0])
        return error_set(error, EXIT_CODE_DATA, fix, "check %d has an empty name",
                         result->check_count);
    result->checks = grown(result->checks, result->check_count, sizeof *result->checks);
    result->checks[result->check_count++] = *check;
    return true;
}
