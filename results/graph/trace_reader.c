// trace_reader.c -- see trace_reader.h.
//
// An event is scanned in one go where it lies. When the window ends within it, the window is moved
// up and filled, and the event scanned again: once per window, so that costs nothing. Whatever else
// the file holds beside its events is passed on piece by piece in the same way.
#include "results/graph/trace_reader.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW_BYTES = 1 << 18, WINDOW_BYTES_MAX = 1 << 27 };

typedef struct Reader {
    Source *source;
    const char *path;
    char *window;             // a NUL stands behind its end
    int64_t capacity, offset; // offset in the text of window[0]
    char *at, *end;
    char *passed; // up to here pieces were given to the visitor
    bool at_end;
    const TraceVisitor *visitor;
} Reader;

static bool pass(Reader *reader, const char *until, const TraceEvent *event, Error *error)
{
    Slice piece = {reader->passed, (size_t)(until - reader->passed)};
    reader->passed += piece.bytes;
    return piece.bytes == 0 ||
           reader->visitor->piece(piece, event, reader->visitor->context, error);
}

// Moves what begins at `at` to the front and reads more. False with an error; at_end when there is
// no more.
static bool refill(Reader *reader, Error *error)
{
    if (!pass(reader, reader->at, NULL, error))
        return false;
    int64_t kept = reader->end - reader->at;
    reader->offset += reader->at - reader->window;
    if (kept == reader->capacity && reader->capacity >= WINDOW_BYTES_MAX)
        return error_set(error, EXIT_CODE_DATA, "give a trace as torch.profiler writes it",
                         "%.300s: one value is longer than %d bytes, from byte %lld", reader->path,
                         WINDOW_BYTES_MAX, (long long)reader->offset);
    memmove(reader->window, reader->at, (size_t)kept);
    if (kept == reader->capacity) {
        reader->capacity *= 2;
        reader->window = realloc(reader->window, (size_t)reader->capacity + 1);
        CHECK(reader->window, EXIT_CODE_HARDWARE, "free memory",
              "no memory for a window of %lld bytes", (long long)reader->capacity);
    }
    reader->at = reader->passed = reader->window;
    int64_t got =
        source_read(reader->source, reader->window + kept, reader->capacity - kept, error);
    if (got < 0)
        return false;
    reader->at_end = got == 0;
    reader->end = reader->window + kept + got;
    *reader->end = '\0';
    return true;
}

static bool too_short(const Reader *reader, Error *error)
{
    return error_set(error, EXIT_CODE_DATA, "write or copy the trace again",
                     "%.300s ends too early: at byte %lld it is within a value%s", reader->path,
                     (long long)(reader->offset + (reader->end - reader->window)),
                     source_is_truncated(reader->source) ? ", its gzip data are cut off" : "");
}

static bool not_json(const Reader *reader, const char *at, const char *why, Error *error)
{
    return error_set(error, EXIT_CODE_DATA, "give a trace as torch.profiler writes it",
                     "%.300s is no valid JSON at byte %lld: %s", reader->path,
                     (long long)(reader->offset + (at - reader->window)), why);
}

// The next byte that is no white space, not taken; 0 at the end of the file.
static bool peek(Reader *reader, char *next, Error *error)
{
    for (;;) {
        JsonScan scan = {reader->at, reader->end, NULL};
        json_scan_space(&scan);
        reader->at += scan.at - reader->at;
        *next = reader->at < reader->end ? *reader->at : '\0';
        if (reader->at < reader->end || reader->at_end)
            return true;
        if (!refill(reader, error))
            return false;
    }
}

static bool expect(Reader *reader, char wanted, const char *why, Error *error)
{
    char next;
    if (!peek(reader, &next, error))
        return false;
    if (reader->at == reader->end)
        return too_short(reader, error);
    if (next != wanted)
        return not_json(reader, reader->at, why, error);
    reader->at++;
    return true;
}

// ---- one event ----

static JsonOutcome text_member(JsonScan *scan, Slice *content)
{
    if (scan->at < scan->end && *scan->at == '"')
        return json_scan_string(scan, content);
    return json_scan_value(scan);
}

static JsonOutcome raw_member(JsonScan *scan, Slice *value)
{
    const char *first = scan->at;
    JsonOutcome outcome = json_scan_value(scan);
    *value = (Slice){first, (size_t)(scan->at - first)};
    return outcome;
}

double trace_number(Slice number)
{
    bool is_number = number.bytes > 0 && number.at[0] != '"' && number.at[0] != '{';
    return is_number ? strtod(number.at, NULL) : (double)NAN; // it ends where the number does
}

static JsonOutcome integer_member(JsonScan *scan, int64_t *value)
{
    Slice raw;
    JsonOutcome outcome = raw_member(scan, &raw);
    Slice rest = raw;
    int64_t number;
    if (outcome == JSON_GOOD && slice_take_number(&rest, &number) && rest.bytes == 0)
        *value = number;
    return outcome;
}

static JsonOutcome visit_argument(JsonScan *scan, Slice key, void *context)
{
    TraceEvent *event = context;
    JsonOutcome outcome;
    event->args_empty = false;
    if (slice_is(key, "External id") || slice_is(key, "external id"))
        outcome = integer_member(scan, &event->external_id);
    else if (slice_is(key, "correlation"))
        outcome = integer_member(scan, &event->correlation);
    else if (slice_is(key, "kernel_hash"))
        outcome = text_member(scan, &event->kernel_hash);
    else if (slice_is(key, "kernel_file"))
        outcome = text_member(scan, &event->kernel_file);
    else
        outcome = json_scan_value(scan);
    event->has_inductor |= slice_is(key, "inductor");
    event->insert_at = scan->at;
    return outcome;
}

static JsonOutcome visit_member(JsonScan *scan, Slice key, void *context)
{
    TraceEvent *event = context;
    JsonOutcome outcome;
    if (slice_is(key, "args") && scan->at < scan->end && *scan->at == '{') {
        event->has_args = event->args_empty = true;
        event->insert_at = scan->at + 1;
        return json_scan_members(scan, visit_argument, event);
    }
    if (slice_is(key, "name"))
        outcome = text_member(scan, &event->name);
    else if (slice_is(key, "cat"))
        outcome = text_member(scan, &event->category);
    else if (slice_is(key, "ts"))
        outcome = raw_member(scan, &event->ts);
    else if (slice_is(key, "dur"))
        outcome = raw_member(scan, &event->duration);
    else if (slice_is(key, "pid"))
        outcome = raw_member(scan, &event->pid);
    else if (slice_is(key, "tid"))
        outcome = raw_member(scan, &event->tid);
    else
        outcome = json_scan_value(scan);
    if (!event->has_args)
        event->insert_at = scan->at;
    return outcome;
}

JsonOutcome trace_scan_event(JsonScan *scan, TraceEvent *event)
{
    *event = (TraceEvent){.external_id = -1, .correlation = -1};
    const char *first = scan->at;
    JsonOutcome outcome =
        *scan->at == '{' ? json_scan_members(scan, visit_member, event) : json_scan_value(scan);
    event->whole = (Slice){first, (size_t)(scan->at - first)};
    return outcome;
}

// Takes a value; as an event if `event` is given.
static bool take_value(Reader *reader, TraceEvent *event, Error *error)
{
    char next;
    if (!peek(reader, &next, error))
        return false;
    for (;;) {
        JsonScan scan = {reader->at, reader->end, NULL};
        JsonOutcome outcome = reader->at == reader->end ? JSON_MORE
                              : event                   ? trace_scan_event(&scan, event)
                                                        : json_scan_value(&scan);
        // A number at the end of the file ends there.
        if (outcome == JSON_MORE && reader->at_end)
            return too_short(reader, error);
        if (outcome == JSON_BAD)
            return not_json(reader, scan.at, scan.why, error);
        if (outcome == JSON_GOOD) {
            reader->at += scan.at - reader->at;
            return true;
        }
        if (!refill(reader, error))
            return false;
    }
}

// ---- the file ----

static bool take_events(Reader *reader, Error *error)
{
    char next;
    if (!expect(reader, '[', "expected a list of events", error) || !peek(reader, &next, error))
        return false;
    while (next != ']') {
        TraceEvent event;
        char *first;
        if (!take_value(reader, &event, error))
            return false;
        first = reader->at - event.whole.bytes;
        bool object = *first == '{';
        if (!pass(reader, first, NULL, error) ||
            !pass(reader, reader->at, object ? &event : NULL, error) || !peek(reader, &next, error))
            return false;
        if (next != ']' && !expect(reader, ',', "expected ',' or ']'", error))
            return false;
    }
    reader->at++;
    return true;
}

static bool take_key(Reader *reader, bool *is_events, Error *error)
{
    char next;
    if (!peek(reader, &next, error))
        return false;
    for (;;) {
        JsonScan scan = {reader->at, reader->end, NULL};
        Slice content;
        JsonOutcome outcome = json_scan_string(&scan, &content);
        if (outcome == JSON_BAD)
            return not_json(reader, scan.at, scan.why, error);
        if (outcome == JSON_GOOD) {
            *is_events = slice_is(content, "traceEvents");
            reader->at += scan.at - reader->at;
            return expect(reader, ':', "expected ':'", error);
        }
        if (reader->at_end)
            return too_short(reader, error);
        if (!refill(reader, error))
            return false;
    }
}

static bool take_members(Reader *reader, bool *found, Error *error)
{
    char next;
    if (!expect(reader, '{', "expected '{'", error) || !peek(reader, &next, error))
        return false;
    while (next != '}') {
        bool is_events = false, list;
        if (!take_key(reader, &is_events, error) || !peek(reader, &next, error))
            return false;
        list = is_events && next == '[';
        *found |= list;
        if (list ? !take_events(reader, error) : !take_value(reader, NULL, error))
            return false;
        if (!peek(reader, &next, error) ||
            (next != '}' && !expect(reader, ',', "expected ',' or '}'", error)))
            return false;
    }
    reader->at++;
    return true;
}

static bool take_file(Reader *reader, Error *error)
{
    char next;
    bool found = false;
    if (!peek(reader, &next, error))
        return false;
    if (next == '[') { // some tools write the list alone
        found = true;
        if (!take_events(reader, error))
            return false;
    } else if (!take_members(reader, &found, error)) {
        return false;
    }
    if (!peek(reader, &next, error))
        return false;
    if (reader->at < reader->end)
        return not_json(reader, reader->at, "something stands behind the end", error);
    if (!found)
        return error_set(error, EXIT_CODE_DATA, "give a trace as torch.profiler writes it",
                         "%.300s holds no list \"traceEvents\" in its %lld bytes", reader->path,
                         (long long)(reader->offset + (reader->end - reader->window)));
    return pass(reader, reader->at, NULL, error);
}

bool trace_walk(const char *path, const TraceVisitor *visitor, Error *error)
{
    Reader reader = {.path = path, .capacity = WINDOW_BYTES, .visitor = visitor};
    reader.source = source_open(path, error);
    if (!reader.source)
        return false;
    reader.window = malloc(WINDOW_BYTES + 1);
    CHECK(reader.window, EXIT_CODE_HARDWARE, "free memory", "no memory for a window");
    reader.at = reader.end = reader.passed = reader.window;
    *reader.end = '\0';
    bool good = take_file(&reader, error);
    free(reader.window);
    source_close(reader.source);
    return good;
}
