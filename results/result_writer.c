// result_writer.c -- a run's side of its result: every rank calls, rank 0 writes.
//
// The order is the promise: gather, journal, fsync, tell, return. A line about a measurement, and
// whatever a caller prints after that, is about something that is on disk. The HDF5 file is made
// once, from the Result in memory, when the run is over; until then the journal is all there is,
// and `meshwork results recover` makes the same file from it. Failures on rank 0 reach all ranks
// through run_agree, so the job stops together with one message.
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness/file.h"
#include "harness/progress.h"
#include "results/journal.h"
#include "results/lines.h"
#include "results/provenance.h"
#include "results/statistics.h"
#include "results/store.h"
#include "results/table.h"

enum { PATH_BYTES = 1024 };

struct ResultWriter {
    const Run *run;
    bool force;
    char path[PATH_BYTES], journal_path[PATH_BYTES + 16];
    Journal *journal; // rank 0, when something is written
    Result result;    // rank 0
};

static bool open_files(ResultWriter *writer, const char *path, Error *error)
{
    if (strlen(path) >= sizeof writer->path)
        return error_set(error, EXIT_CODE_CANT_CREATE, "choose a shorter path",
                         "a path of %zu bytes is too long (at most %d)", strlen(path),
                         PATH_BYTES - 1);
    snprintf(writer->path, sizeof writer->path, "%s", path);
    journal_path_for(path, writer->journal_path, sizeof writer->journal_path);
    if (!file_check_creatable(writer->path, writer->force, error))
        return false;
    writer->journal = journal_create(writer->journal_path, writer->force, error);
    return writer->journal &&
           journal_append(writer->journal, line_of_header(writer->result.header), error);
}

ResultWriter *result_writer_create(const ResultStart *start)
{
    ResultWriter *writer = calloc(1, sizeof *writer);
    CHECK(writer, EXIT_CODE_HARDWARE, "free some memory", "no memory for a result");
    writer->run = start->run;
    writer->force = start->force;
    writer->result.header = provenance_create(start);
    Error error = {0};
    if (start->run->rank == 0 && start->path)
        open_files(writer, start->path, &error);
    run_agree(start->run, &error);
    return writer;
}

// The shape of a measurement, which must be the same on all ranks before samples are gathered.
typedef struct Shape {
    char name[RESULT_NAME_BYTES];
    int64_t ranks, samples, spans;
} Shape;

static Shape shape_of(const Measurement *measurement)
{
    Shape shape = {.ranks = measurement->ranks,
                   .samples = measurement->samples,
                   .spans = measurement->span_count};
    snprintf(shape.name, sizeof shape.name, "%s", measurement->name);
    return shape;
}

static void agree_on_shape(const Run *run, const Measurement *measurement)
{
    Error error = {0};
    Shape mine = shape_of(measurement), first = mine;
    run_broadcast(run, &first, sizeof first);
    if (memcmp(&mine, &first, sizeof mine) != 0 || mine.ranks != run->ranks)
        error_set(&error, EXIT_CODE_INTERNAL, "this is a bug of meshwork: please report it",
                  "rank %d measured \"%s\": %lld samples of %lld spans on %lld ranks; rank 0"
                  " \"%s\": %lld, %lld, %lld",
                  run->rank, mine.name, (long long)mine.samples, (long long)mine.spans,
                  (long long)mine.ranks, first.name, (long long)first.samples,
                  (long long)first.spans, (long long)first.ranks);
    run_agree(run, &error);
}

// rows: [ranks][samples] as gathered; out: [samples][ranks] as stored.
static void transpose(const double *rows, int samples, int ranks, double *out)
{
    for (int rank = 0; rank < ranks; rank++)
        for (int i = 0; i < samples; i++)
            out[(int64_t)i * ranks + rank] = rows[(int64_t)rank * samples + i];
}

// The cost of a span is that of the rank that has most to do.
static void maximum_cost(const Run *run, MeasurementSpan *span)
{
    double *figures[] = {&span->cost.memory_bytes, &span->cost.flops, &span->cost.wire_bytes,
                         &span->cost.logical_bytes, &span->floor_s};
    for (size_t i = 0; i < COUNT_OF(figures); i++)
        *figures[i] = run_maximum(run, *figures[i]);
}

static double *allocate_values(int64_t count)
{
    double *values = calloc((size_t)count + 1, sizeof *values);
    CHECK(values, EXIT_CODE_HARDWARE, "free some memory", "no memory for %lld samples",
          (long long)count);
    return values;
}

// Collective. spans: copies of the measurement's, whose seconds become those of all ranks on rank
// 0.
static void gather_spans(const Run *run, const Measurement *measurement, MeasurementSpan *spans)
{
    int samples = measurement->samples;
    int64_t values = run->rank == 0 ? (int64_t)samples * run->ranks : 0;
    double *rows = allocate_values(values);
    for (int i = 0; i < measurement->span_count; i++) {
        spans[i] = measurement->spans[i];
        maximum_cost(run, &spans[i]);
        run_gather(run, measurement->spans[i].seconds, (uint64_t)samples * sizeof(double), rows);
        double *seconds = allocate_values(values);
        if (run->rank == 0)
            transpose(rows, samples, run->ranks, seconds);
        spans[i].seconds = seconds;
    }
    free(rows);
}

// Rank 0. The first span speaks for the measurement, as the slowest rank of each iteration saw it.
static void tell(const Run *run, const Measurement *measurement)
{
    int samples = measurement->samples;
    const char *span = measurement->span_count > 0 ? measurement->spans[0].name : "no span";
    double *longest = allocate_values(samples);
    if (measurement->span_count > 0)
        statistics_max_over_ranks(measurement->spans[0].seconds, samples, measurement->ranks,
                                  longest);
    Statistics time = statistics_of(longest, measurement->span_count > 0 ? samples : 0);
    char median[64], noise[64];
    progress_line(run, "measured %s: %s, median %s, %d sample%s, noise %s", measurement->name, span,
                  table_seconds(time.median, median, sizeof median), samples,
                  samples == 1 ? "" : "s", table_percent(time.noise, noise, sizeof noise));
    free(longest);
}

void result_add_measurement(ResultWriter *writer, const Measurement *measurement)
{
    const Run *run = writer->run;
    agree_on_shape(run, measurement);
    MeasurementSpan *spans = calloc((size_t)measurement->span_count + 1, sizeof *spans);
    CHECK(spans, EXIT_CODE_HARDWARE, "free some memory", "no memory for %d spans",
          measurement->span_count);
    gather_spans(run, measurement, spans);
    Error error = {0};
    if (run->rank == 0) {
        Measurement whole = *measurement;
        whole.spans = spans;
        if (result_push_measurement(&writer->result, &whole, &error) && writer->journal)
            journal_append(writer->journal, line_of_measurement(&whole), &error);
    }
    for (int i = 0; i < measurement->span_count; i++)
        free((void *)(uintptr_t)spans[i].seconds);
    free(spans);
    run_agree(run, &error);
    if (run->rank == 0)
        tell(run, &writer->result.measurements[writer->result.measurement_count - 1]);
}

void result_add_check(ResultWriter *writer, const ResultCheck *check)
{
    if (writer->run->rank != 0)
        return;
    Error error = {0};
    if (result_push_check(&writer->result, check, &error) && writer->journal)
        journal_append(writer->journal, line_of_check(check), &error);
    CHECK(error.exit_code == 0, error.exit_code, error.fix, "%s", error.what);
}

void result_writer_finish(ResultWriter *writer)
{
    Error error = {0};
    writer->result.complete = true;
    if (writer->journal && journal_append(writer->journal, line_of_end(&writer->result), &error) &&
        store_write(&writer->result, writer->path, writer->force, &error)) {
        journal_destroy(writer->journal);
        writer->journal = NULL;
        if (unlink(writer->journal_path) != 0)
            check_warn("cannot remove %s: %s", writer->journal_path, strerror(errno));
    }
    run_agree(writer->run, &error);
}

const Result *result_of(const ResultWriter *writer)
{
    return writer->run->rank == 0 ? &writer->result : NULL;
}

void result_writer_destroy(ResultWriter *writer)
{
    if (!writer)
        return;
    journal_destroy(writer->journal);
    result_destroy(&writer->result);
    free(writer);
}
