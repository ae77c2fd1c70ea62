// record.c -- spans: a pair of events each, a sample per iteration, the name in the error context
// and on the timeline.
//
// A span that is begun while its stream is being captured becomes part of the graph: its events are
// nodes, recorded anew by every replay, and nobody calls record_begin then. So a captured span
// stays "captured", and an iteration in which no captured span was begun by hand counts as a
// replay: its events are read as they are.
#include "harness/record.h"

#include "harness/check.h"
#include "harness/device_operations.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Span {
    char name[RECORD_NAME_BYTES];
    Event begin, end;
    bool timed;    // begun in this iteration, and its events were recorded
    bool closed;   // and ended
    bool captured; // its events are nodes of a graph
    bool open;
} Span;

struct Recorder {
    Stream stream;
    bool detail;
    int iterations_max, samples;
    int span_count;
    Span spans[RECORD_SPANS_MAX];
    int depth; // open spans
    int open_spans[RECORD_SPANS_MAX];
    char outer_name[CHECK_SPAN_BYTES]; // the error context's span before the outermost of ours
    double *seconds;                   // [RECORD_SPANS_MAX][iterations_max]
    void *ranges;                      // the profiler's domain
};

Recorder *recorder_create(Stream stream, int iterations_max, bool detail)
{
    CHECK_RULE(iterations_max >= 0);
    Recorder *recorder = calloc(1, sizeof(*recorder));
    CHECK(recorder, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a recorder");
    recorder->stream = stream;
    recorder->detail = detail;
    recorder->iterations_max = iterations_max;
    size_t samples = (size_t)RECORD_SPANS_MAX * (size_t)(iterations_max > 0 ? iterations_max : 1);
    recorder->seconds = calloc(samples, sizeof(double));
    CHECK(recorder->seconds, EXIT_CODE_HARDWARE, "ask for fewer --samples",
          "no host memory for %d samples of %d spans", iterations_max, RECORD_SPANS_MAX);
    for (int i = 0; i < RECORD_SPANS_MAX; i++) {
        recorder->spans[i].begin = event_create(stream.device);
        recorder->spans[i].end = event_create(stream.device);
    }
    recorder->ranges = device_operations(stream.device)->ranges_create();
    return recorder;
}

void recorder_destroy(Recorder *recorder)
{
    if (!recorder)
        return;
    for (int i = 0; i < RECORD_SPANS_MAX; i++) {
        event_destroy(&recorder->spans[i].begin);
        event_destroy(&recorder->spans[i].end);
    }
    device_operations(recorder->stream.device)->ranges_destroy(recorder->ranges);
    free(recorder->seconds);
    free(recorder);
}

int recorder_span(Recorder *recorder, const char *name)
{
    for (int i = 0; i < recorder->span_count; i++)
        if (strcmp(recorder->spans[i].name, name) == 0)
            return i;
    CHECK(recorder->span_count < RECORD_SPANS_MAX && strlen(name) < RECORD_NAME_BYTES,
          EXIT_CODE_INTERNAL, "use fewer spans, or shorter names",
          "span %.60s: %d spans there, at most %d; %zu characters, at most %d", name,
          recorder->span_count, RECORD_SPANS_MAX, strlen(name), RECORD_NAME_BYTES - 1);
    int span = recorder->span_count++;
    memcpy(recorder->spans[span].name, name, strlen(name) + 1);
    // Samples taken before the span was known: it did not run in them.
    for (int i = 0; i < recorder->samples; i++)
        recorder->seconds[(size_t)span * (size_t)recorder->iterations_max + (size_t)i] = NAN;
    return span;
}

int recorder_spans(const Recorder *recorder)
{
    return recorder->span_count;
}

static void check_span(const Recorder *recorder, int span)
{
    CHECK(span >= 0 && span < recorder->span_count, EXIT_CODE_INTERNAL,
          "this is a bug of meshwork: please report it", "span %d of %d", span,
          recorder->span_count);
}

const char *recorder_span_name(const Recorder *recorder, int span)
{
    check_span(recorder, span);
    return recorder->spans[span].name;
}

static void set_context_span(const char *name)
{
    CheckContext *context = check_context();
    snprintf(context->span, sizeof(context->span), "%s", name);
}

// The step itself is always timed, its phases only when asked: events between kernels cost a
// little.
static bool is_timed(const Recorder *recorder, int depth)
{
    return recorder->detail || depth == 0;
}

void record_begin(Recorder *recorder, int span)
{
    if (!recorder)
        return;
    check_span(recorder, span);
    Span *begun = &recorder->spans[span];
    CHECK(!begun->open && !begun->timed, EXIT_CODE_INTERNAL,
          "end the span, or give the second phase a name of its own",
          "span %s is begun twice in one iteration", begun->name);
    if (recorder->depth == 0)
        snprintf(recorder->outer_name, sizeof(recorder->outer_name), "%s", check_context()->span);
    int depth = recorder->depth++;
    recorder->open_spans[depth] = span;
    begun->open = true;
    set_context_span(begun->name);
    const DeviceOperations *device = device_operations(recorder->stream.device);
    device->range_push(recorder->ranges, begun->name);
    if (!is_timed(recorder, depth))
        return;
    if (device->stream_is_capturing(recorder->stream))
        begun->captured = true;
    else
        begun->timed = true;
    event_record(&begun->begin, recorder->stream);
}

void record_end(Recorder *recorder, int span)
{
    if (!recorder)
        return;
    check_span(recorder, span);
    Span *ended = &recorder->spans[span];
    int depth = recorder->depth - 1;
    CHECK(depth >= 0 && recorder->open_spans[depth] == span, EXIT_CODE_INTERNAL,
          "end spans in the reverse order of their beginning",
          "span %s is ended, but %s is the innermost open one", ended->name,
          depth >= 0 ? recorder->spans[recorder->open_spans[depth]].name : "none");
    if (is_timed(recorder, depth))
        event_record(&ended->end, recorder->stream);
    const DeviceOperations *device = device_operations(recorder->stream.device);
    device->range_pop(recorder->ranges);
    ended->open = false;
    ended->closed = ended->timed;
    recorder->depth = depth;
    set_context_span(depth > 0 ? recorder->spans[recorder->open_spans[depth - 1]].name
                               : recorder->outer_name);
}

void recorder_iteration(Recorder *recorder, bool keep)
{
    if (!recorder)
        return;
    CHECK(recorder->depth == 0, EXIT_CODE_INTERNAL, "end every span before the iteration",
          "an iteration is closed while span %s is open",
          recorder->spans[recorder->open_spans[recorder->depth - 1]].name);
    CHECK(!keep || recorder->samples < recorder->iterations_max, EXIT_CODE_INTERNAL,
          "create the recorder with more iterations", "the recorder is full: %d samples",
          recorder->samples);
    stream_wait(recorder->stream);
    bool replay = true;
    for (int i = 0; i < recorder->span_count; i++)
        replay = replay && !(recorder->spans[i].timed && recorder->spans[i].captured);
    for (int i = 0; i < recorder->span_count; i++) {
        Span *span = &recorder->spans[i];
        bool ran = span->closed || (span->captured && replay);
        size_t row = (size_t)i * (size_t)recorder->iterations_max;
        if (keep)
            recorder->seconds[row + (size_t)recorder->samples] =
                ran ? event_seconds(&span->begin, &span->end) : (double)NAN;
        span->timed = span->closed = false;
    }
    if (keep)
        recorder->samples++;
}

int recorder_samples(const Recorder *recorder)
{
    return recorder->samples;
}

const double *recorder_seconds(const Recorder *recorder, int span)
{
    check_span(recorder, span);
    return recorder->seconds + (size_t)span * (size_t)recorder->iterations_max;
}
