// record.h -- the one instrumentation point: record_begin / record_end around a phase give a timed
// sample, an NVTX range, and the span name in any error message.
//
// Spans are named at set-up; a sample of every span is taken per iteration. On the GPU a span is a
// pair of events on the stream, which also works inside a captured graph (replays record them
// anew); on the CPU it is the monotonic clock. Nothing is allocated between recorder_create and
// recorder_destroy.
#pragma once

#include "harness/arena.h"
#include "harness/device.h"

DECLARATIONS_BEGIN

enum { RECORD_SPANS_MAX = 64, RECORD_NAME_BYTES = 48 };

typedef struct Recorder Recorder;

// Local. detail false: only spans of depth 0 are timed (the step itself), the others cost nothing
// but their name. Owner: the caller.
Recorder *recorder_create(Stream stream, int iterations_max, bool detail);
void recorder_destroy(Recorder *recorder);
// Local, at set-up. Finds or adds a span and returns its index. Names: lower case, '/' for nesting
// ("forward/dispatch").
int recorder_span(Recorder *recorder, const char *name);
int recorder_spans(const Recorder *recorder);
const char *recorder_span_name(const Recorder *recorder, int span);
// Enqueues(stream). A NULL recorder is legal and records nothing. Spans nest; a span may occur once
// per iteration. Begun while the stream is captured, a span belongs to the graph: nobody begins it
// again when the graph is replayed. An iteration in which no such span is begun by hand counts as a
// replay.
void record_begin(Recorder *recorder, int span);
void record_end(Recorder *recorder, int span);
// Waits(stream). Closes an iteration: reads the events and stores one sample per span (NaN for
// spans that did not run). keep false drops it (warm-up).
void recorder_iteration(Recorder *recorder, bool keep);
int recorder_samples(const Recorder *recorder);                     // Local. iterations kept
const double *recorder_seconds(const Recorder *recorder, int span); // Local. [samples]

DECLARATIONS_END
