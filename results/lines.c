// lines.c -- a Result taken apart into JSON objects and put together again.
//
// A line is complete in itself: reading needs no state but the Result that grows. Samples are
// written with the digits that read back to the same double; NaN (a span that did not run) is null.
#include "results/lines.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "results/fields.h"

static const char fix[] = "the file was changed or made by another version of meshwork";

Json *json_copy_of(const Json *json)
{
    char *text = json_print(json, false);
    Error error = {0};
    Json *copy = json_parse(text, strlen(text), &error);
    CHECK(copy, EXIT_CODE_INTERNAL, "this is a bug of meshwork: please report it",
          "a JSON value of ours does not parse: %s", error.what);
    free(text);
    return copy;
}

bool schema_version_agrees(const char *name, const char *version, const char *expected,
                           Error *error)
{
    if (version && strtol(version, NULL, 10) == strtol(expected, NULL, 10))
        return true;
    return error_set(error, EXIT_CODE_DATA, "use the meshwork that made it",
                     "%s version %s; this program reads versions with the major number of %s", name,
                     version ? version : "(none)", expected);
}

static Json *line_of_kind(const char *kind)
{
    return json_set(json_object(), "kind", json_text(kind));
}

Json *line_of_header(const Json *header)
{
    Json *line = line_of_kind("header");
    json_set(line, "schema_name", json_text(LINES_SCHEMA_NAME));
    json_set(line, "schema_version", json_text(LINES_SCHEMA_VERSION));
    return json_set(line, "run", json_copy_of(header));
}

static Json *seconds_to_json(const double *seconds, int samples, int ranks)
{
    Json *rows = json_array();
    for (int i = 0; i < samples; i++) {
        Json *row = json_array();
        for (int rank = 0; rank < ranks; rank++)
            json_append(row, json_of_double(seconds[(int64_t)i * ranks + rank]));
        json_append(rows, row);
    }
    return rows;
}

void json_set_measurement(Json *json, const Measurement *measurement)
{
    Json *before = json_object(), *after = json_object();
    fields_to_json(fields_of_measurement, measurement, json);
    fields_to_json(fields_of_state, &measurement->state_before, before);
    fields_to_json(fields_of_state, &measurement->state_after, after);
    json_set(json, "state_before", before);
    json_set(json, "state_after", after);
}

Json *json_of_span(const Measurement *measurement, int index)
{
    const MeasurementSpan *from = &measurement->spans[index];
    Json *span = json_set(json_object(), "name", json_text(from->name));
    fields_to_json(fields_of_span, from, span);
    return json_set(span, "seconds",
                    seconds_to_json(from->seconds, measurement->samples, measurement->ranks));
}

Json *line_of_measurement(const Measurement *measurement)
{
    Json *line = line_of_kind("measurement"), *spans = json_array();
    json_set_measurement(line, measurement);
    for (int i = 0; i < measurement->span_count; i++)
        json_append(spans, json_of_span(measurement, i));
    return json_set(line, "spans", spans);
}

Json *line_of_check(const ResultCheck *check)
{
    Json *line = line_of_kind("check");
    fields_to_json(fields_of_check, check, line);
    return line;
}

Json *line_of_end(const Result *result)
{
    Json *line = line_of_kind("end");
    json_set(line, "measurements", json_integer(result->measurement_count));
    return json_set(line, "checks", json_integer(result->check_count));
}

static bool read_header(const Json *line, Result *result, Error *error)
{
    const Json *run = json_find(line, "run");
    const char *name = json_text_of(json_find(line, "schema_name"));
    if (result->header)
        return error_set(error, EXIT_CODE_DATA, fix, "a second header");
    if (!name || strcmp(name, LINES_SCHEMA_NAME) != 0 || !json_is_object(run))
        return error_set(error, EXIT_CODE_DATA, fix, "the header is not that of a %s",
                         LINES_SCHEMA_NAME);
    if (!schema_version_agrees(LINES_SCHEMA_NAME, json_text_of(json_find(line, "schema_version")),
                               LINES_SCHEMA_VERSION, error))
        return false;
    result->header = json_copy_of(run);
    return true;
}

static bool read_seconds(const Json *rows, const Measurement *measurement, double *seconds,
                         Error *error)
{
    int samples = measurement->samples, ranks = measurement->ranks;
    bool good = json_is_array(rows) && json_count(rows) == (uint64_t)samples;
    for (int i = 0; good && i < samples; i++) {
        const Json *row = json_at(rows, (uint64_t)i);
        good = json_is_array(row) && json_count(row) == (uint64_t)ranks;
        for (int rank = 0; good && rank < ranks; rank++)
            good = double_of_json(json_at(row, (uint64_t)rank), seconds++);
    }
    return good || error_set(error, EXIT_CODE_DATA, fix,
                             "measurement \"%s\": a span's seconds are not %d rows of %d numbers",
                             measurement->name, samples, ranks);
}

// Memory for the samples is asked for only when the text holds as many rows as it claims.
static bool read_span(const Json *json, const Measurement *measurement, MeasurementSpan *span,
                      Error *error)
{
    static const Field name_field[] = {
        {"name", FIELD_TEXT, offsetof(MeasurementSpan, name), RESULT_NAME_BYTES, NULL, NULL}, {0}};
    const Json *rows = json_find(json, "seconds");
    if (!fields_from_json(name_field, json, span, error) ||
        !fields_from_json(fields_of_span, json, span, error))
        return false;
    int64_t values = (int64_t)measurement->samples * measurement->ranks;
    bool plausible = json_is_array(rows) && json_count(rows) == (uint64_t)measurement->samples &&
                     measurement->ranks <= RESULT_RANKS_MAX && values <= RESULT_VALUES_MAX;
    double *seconds = calloc(plausible ? (size_t)values + 1 : 1, sizeof *seconds);
    CHECK(seconds, EXIT_CODE_HARDWARE, "free some memory", "no memory for %lld samples",
          (long long)values);
    span->seconds = seconds;
    return read_seconds(plausible ? rows : NULL, measurement, seconds, error);
}

static bool read_measurement(const Json *line, Result *result, Error *error)
{
    Measurement measurement = {0};
    const Json *list = json_find(line, "spans");
    if (!fields_from_json(fields_of_measurement, line, &measurement, error) ||
        !fields_from_json(fields_of_state, json_find(line, "state_before"),
                          &measurement.state_before, error) ||
        !fields_from_json(fields_of_state, json_find(line, "state_after"), &measurement.state_after,
                          error))
        return false;
    uint64_t count = json_is_array(list) ? json_count(list) : UINT64_MAX;
    if (count > RESULT_SPANS_MAX)
        return error_set(error, EXIT_CODE_DATA, fix, "measurement \"%s\" has no list of spans",
                         measurement.name);
    MeasurementSpan *spans = calloc((size_t)count + 1, sizeof *spans);
    CHECK(spans, EXIT_CODE_HARDWARE, "free some memory", "no memory for %d spans", (int)count);
    measurement.spans = spans;
    measurement.span_count = (int)count;
    bool good = true;
    for (uint64_t i = 0; good && i < count; i++)
        good = read_span(json_at(list, i), &measurement, &spans[i], error);
    good = good && result_push_measurement(result, &measurement, error);
    for (uint64_t i = 0; i < count; i++)
        free((void *)(uintptr_t)spans[i].seconds);
    free(spans);
    return good;
}

static bool read_check(const Json *line, Result *result, Error *error)
{
    ResultCheck check = {0};
    return fields_from_json(fields_of_check, line, &check, error) &&
           result_push_check(result, &check, error);
}

static bool read_end(const Json *line, Result *result, Error *error)
{
    int64_t measurements = json_integer_of(json_find(line, "measurements"));
    int64_t checks = json_integer_of(json_find(line, "checks"));
    if (measurements != result->measurement_count || checks != result->check_count)
        return error_set(error, EXIT_CODE_DATA, fix,
                         "the end counts %lld measurements and %lld checks; before it stand %d and"
                         " %d",
                         (long long)measurements, (long long)checks, result->measurement_count,
                         result->check_count);
    result->complete = true;
    return true;
}

bool line_read(const Json *line, Result *result, Error *error)
{
    static const struct {
        const char *kind;
        bool (*read)(const Json *line, Result *result, Error *error);
    } kinds[] = {
        {"header", read_header},
        {"measurement", read_measurement},
        {"check", read_check},
        {"end", read_end},
    };
    const char *kind = json_text_of(json_find(line, "kind"));
    if (!kind)
        return error_set(error, EXIT_CODE_DATA, fix, "a line without a kind");
    if (!result->header && strcmp(kind, "header") != 0)
        return error_set(error, EXIT_CODE_DATA, fix, "a %s before the header", kind);
    if (result->complete)
        return error_set(error, EXIT_CODE_DATA, fix, "a %s after the end", kind);
    for (size_t i = 0; i < COUNT_OF(kinds); i++)
        if (strcmp(kinds[i].kind, kind) == 0)
            return kinds[i].read(line, result, error);
    return true;
}
