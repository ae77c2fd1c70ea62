// trace_reader.h -- a torch.profiler trace (Chrome trace JSON, plain or gzip) event by event, in a
// window of bounded size.
#pragma once

#include "results/graph/json_scan.h"
#include "results/graph/source.h"

// One event; texts as written, between their quotes. Absent ones are empty.
typedef struct TraceEvent {
    Slice whole;
    Slice category, name, pid, tid;   // "cat", "name"; pid and tid as written
    Slice ts, duration;               // microseconds, as written: see trace_number
    int64_t external_id, correlation; // -1 when absent
    Slice kernel_hash, kernel_file;
    bool has_args, args_empty, has_inductor;
    const char *insert_at; // behind the last member of args, or, without args, of the event
} TraceEvent;

typedef struct TraceVisitor {
    // Every piece of the file, in order; `event` is NULL for what is not within the list of events.
    // False ends the walk with the error that it set.
    bool (*piece)(Slice piece, const TraceEvent *event, void *context, Error *error);
    void *context;
} TraceVisitor;

// Local. A number as written in an event; NaN when it is absent or none.
double trace_number(Slice number);
// Local. Takes the event (or what stands in its place) that `scan` is before apart.
JsonOutcome trace_scan_event(JsonScan *scan, TraceEvent *event);
// Local. Walks a whole trace. Error 66, 74; 65 with the offset when it is no JSON, ends too early,
// or holds no list of events.
bool trace_walk(const char *path, const TraceVisitor *visitor, Error *error);
