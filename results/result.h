// result.h -- what a run leaves behind, as one value: settings, machine, measurements with raw
// samples, checks.
//
// A Result is built up by a run (ResultWriter: journal first, HDF5 at the end), read back from a
// journal or from an HDF5 file, shown as a table or as JSON. The schema of both files is described
// in results/SCHEMA.md.
#pragma once

#include "harness/device.h"
#include "harness/json.h"
#include "harness/option.h"
#include "harness/run.h"

// A file that claims more than these is not ours.
enum { RESULT_NAME_BYTES = 64, RESULT_SPANS_MAX = 256, RESULT_RANKS_MAX = 1 << 20 };
enum { RESULT_MEASUREMENTS_MAX = 1 << 16, RESULT_CHECKS_MAX = 1 << 20 };
enum { RESULT_VALUES_MAX = 1 << 27 }; // samples x ranks of one span

// What a span must do at least, per rank and iteration (the largest rank's figure). 0 = not
// counted.
typedef struct SpanCost {
    double memory_bytes;  // through device memory: every input once, every output once
    double flops;         // floating-point operations
    double wire_bytes;    // left this rank over a link: rows for itself do not count
    double logical_bytes; // what a row per (token, expert) would have carried: what others report
} SpanCost;

typedef struct MeasurementSpan {
    char name[RESULT_NAME_BYTES]; // "step", "forward/dispatch"
    SpanCost cost;
    double floor_s; // the larger of bytes and operations over the measured ceilings; 0 = unknown
    const double *seconds; // [samples][ranks], NaN = not run
} MeasurementSpan;

typedef struct Measurement {
    char name[RESULT_NAME_BYTES]; // "exact", "fast": becomes the HDF5 group <command>/<name>
    int ranks, samples, warmups;
    char stop_reason[16]; // noise, count, timeout, signal
    int span_count;
    const MeasurementSpan *spans; // the first is the whole of an iteration, the others parts of it
    DeviceState state_before, state_after; // rank 0's device
} Measurement;

typedef struct ResultCheck {
    char name[RESULT_NAME_BYTES]; // "y against 1 rank"
    char verdict[16];             // "equal", "within bound", "differs", "skipped"
    char detail[512];    // first differing tensor, coordinate, both values; or the measured and
                         // allowed error
    double error, bound; // NaN when bit for bit
    bool good;
} ResultCheck;

// Everything about a finished or interrupted run, in memory.
typedef struct Result {
    Json *header; // provenance: see SCHEMA.md
    int measurement_count, check_count;
    Measurement *measurements;
    ResultCheck *checks;
    bool complete;  // false: recovered from a journal without its closing line
    char note[256]; // what recovery dropped, "" if nothing
    void *owned;    // sample arrays
} Result;
// Local. Leaves an empty result.
void result_destroy(Result *result);
// Local. How a result grows: by deep copies that it owns. Error 65 when a count is beyond the
// limits above, a name is empty, or a measurement (or a span within it) of that name is there
// already.
bool result_push_measurement(Result *result, const Measurement *measurement, Error *error);
bool result_push_check(Result *result, const ResultCheck *check, Error *error);

// Rank 0 writes; the other ranks hold a writer that does nothing, so that callers need no ladder.
typedef struct ResultWriter ResultWriter;

// How a run introduces itself. `extra` (may be NULL) is taken over and merged into the header:
// mesh, device ceilings, ...
typedef struct ResultStart {
    const Run *run;
    const Option *options;
    const void *params;
    const DeviceInfo *device; // this rank's; gathered into the rank table
    const char *path;         // r.h5; NULL = nothing is written
    bool force;               // overwrite
    uint64_t seed;
    Json *extra;
} ResultStart;
// Collective(all ranks). Creates the journal beside the path, its header fsynced. Stops with 73
// when the path cannot be created or exists without force. Owner: the caller.
ResultWriter *result_writer_create(const ResultStart *start);
// Collective(all ranks). seconds of each span here are this rank's [samples]; gathered to rank 0,
// journalled, fsynced, and only then told in one line on stderr: what was told survives kill -9.
// Print more about a measurement only after this.
void result_add_measurement(ResultWriter *writer, const Measurement *measurement);
// Local on rank 0 (no-op elsewhere).
void result_add_check(ResultWriter *writer, const ResultCheck *check);
// Collective(all ranks). Writes the closing line, builds the HDF5 file, removes the journal. What
// was gathered stays readable through result_of until destroy.
void result_writer_finish(ResultWriter *writer);
const Result *result_of(const ResultWriter *writer); // Local, rank 0; NULL elsewhere
void result_writer_destroy(ResultWriter *writer);

// Local. The table people read, on stdout; or one JSON object with stable keys.
void result_show(const Result *result, bool as_json);
