// device.c -- the table of device kinds, and the one place that looks a row up.
//
// The CUDA row is a weak symbol: a build without CUDA links the same table with an empty place in
// it.
#include "harness/device_operations.h"

#include <stdio.h>

static const char *const kind_names[DEVICE_KINDS] = {[DEVICE_CPU] = "cpu", [DEVICE_CUDA] = "cuda"};

// NULL where the build has no such row.
static const DeviceOperations *find_operations(DeviceKind kind)
{
    const DeviceOperations *const rows[DEVICE_KINDS] = {
        [DEVICE_CPU] = &device_operations_cpu, [DEVICE_CUDA] = &device_operations_cuda};
    return (unsigned)kind < DEVICE_KINDS ? rows[kind] : NULL;
}

const DeviceOperations *device_operations(DeviceKind kind)
{
    const DeviceOperations *found = find_operations(kind);
    CHECK(found, EXIT_CODE_HARDWARE, "use --device cpu, or build where nvcc is on the PATH",
          "this build has no %s devices", device_kind_name(kind));
    return found;
}

const char *device_kind_name(DeviceKind kind)
{
    return (unsigned)kind < DEVICE_KINDS ? kind_names[kind] : "unknown";
}

int device_count(DeviceKind kind, char *why, size_t why_bytes)
{
    const DeviceOperations *found = find_operations(kind);
    if (why && why_bytes > 0)
        why[0] = '\0';
    if (found)
        return found->count(why, why ? why_bytes : 0);
    snprintf(why, why ? why_bytes : 0, "built without %s",
             kind == DEVICE_CUDA ? "CUDA" : device_kind_name(kind));
    return 0;
}

void device_select(DeviceKind kind, int index)
{
    char why[DEVICE_TEXT_BYTES];
    int count = device_count(kind, why, sizeof(why));
    CHECK(count > 0, EXIT_CODE_HARDWARE, "use --device cpu, or run `meshwork doctor`",
          "there is no %s device here: %s", device_kind_name(kind), why);
    CHECK(index >= 0 && index < count, EXIT_CODE_HARDWARE,
          "start fewer ranks on this host, or make more devices visible to it",
          "%s device %d is not there: this process sees %d", device_kind_name(kind), index, count);
    device_operations(kind)->select(index);
}

DeviceInfo device_info(DeviceKind kind, int index)
{
    return device_operations(kind)->info(index);
}

DeviceState device_state(DeviceKind kind, int index)
{
    return device_operations(kind)->state(index);
}

Stream stream_create(DeviceKind kind)
{
    return device_operations(kind)->stream_create();
}

void stream_destroy(Stream stream)
{
    device_operations(stream.device)->stream_destroy(stream);
}

void stream_wait(Stream stream)
{
    device_operations(stream.device)->stream_wait(stream);
}

void stream_wait_stream(Stream stream, Stream other)
{
    CHECK_RULE(stream.device == other.device);
    device_operations(stream.device)->stream_wait_stream(stream, other);
}

Event event_create(DeviceKind kind)
{
    return device_operations(kind)->event_create();
}

void event_destroy(Event *event)
{
    device_operations(event->device)->event_destroy(event);
}

void event_record(Event *event, Stream stream)
{
    CHECK_RULE(event->device == stream.device);
    device_operations(stream.device)->event_record(event, stream);
}

bool event_done(const Event *event)
{
    return device_operations(event->device)->event_done(event);
}

double event_seconds(const Event *begin, const Event *end)
{
    CHECK_RULE(begin->device == end->device);
    return device_operations(end->device)->event_seconds(begin, end);
}

void *device_allocate(DeviceKind kind, uint64_t bytes)
{
    return device_operations(kind)->allocate(bytes);
}

void device_free(DeviceKind kind, void *memory)
{
    if (memory)
        device_operations(kind)->release(memory);
}

void device_copy(void *to, const void *from, uint64_t bytes, Stream stream)
{
    if (bytes > 0)
        device_operations(stream.device)->copy(to, from, bytes, stream);
}

void device_fill(void *memory, int byte, uint64_t bytes, Stream stream)
{
    if (bytes > 0)
        device_operations(stream.device)->fill(memory, byte, bytes, stream);
}

bool graph_supported(DeviceKind kind)
{
    const DeviceOperations *found = find_operations(kind);
    return found && found->graphs;
}

static const DeviceOperations *graph_operations(DeviceKind kind)
{
    const DeviceOperations *found = device_operations(kind);
    CHECK(found->graphs, EXIT_CODE_HARDWARE, "run the steps one by one on this device",
          "%s devices record no graphs", device_kind_name(kind));
    return found;
}

void graph_begin(Stream stream)
{
    graph_operations(stream.device)->graph_begin(stream);
}

Graph graph_end(Stream stream)
{
    return graph_operations(stream.device)->graph_end(stream);
}

void graph_launch(const Graph *graph, Stream stream)
{
    graph_operations(stream.device)->graph_launch(graph, stream);
}

// A graph carries no device kind, but only one kind makes graphs: an empty one has nothing to
// destroy.
void graph_destroy(Graph *graph)
{
    if (graph->handle)
        graph_operations(DEVICE_CUDA)->graph_destroy(graph);
}
