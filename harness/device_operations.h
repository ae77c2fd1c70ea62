// device_operations.h -- what a device kind must be able to do: one row of functions per kind. Used
// by device.c and by the parts of harness/ that need more of a device than device.h shows (pinned
// memory, profiler ranges).
#pragma once

#include "harness/device.h"

DECLARATIONS_BEGIN

typedef struct DeviceOperations {
    int (*count)(char *why, size_t why_bytes);
    void (*select)(int index);
    DeviceInfo (*info)(int index);
    DeviceState (*state)(int index);

    Stream (*stream_create)(void);
    void (*stream_destroy)(Stream stream);
    void (*stream_wait)(Stream stream);
    void (*stream_wait_stream)(Stream stream, Stream other);
    bool (*stream_is_capturing)(Stream stream);

    Event (*event_create)(void);
    void (*event_destroy)(Event *event);
    void (*event_record)(Event *event, Stream stream);
    bool (*event_done)(const Event *event);
    double (*event_seconds)(const Event *begin, const Event *end);

    void *(*allocate)(uint64_t bytes);
    void (*release)(void *memory);
    void *(*pinned_allocate)(
        uint64_t bytes); // host memory that the device copies from and to without a detour
    void (*pinned_release)(void *memory);
    void (*copy)(void *to, const void *from, uint64_t bytes, Stream stream);
    void (*fill)(void *memory, int byte, uint64_t bytes, Stream stream);

    bool graphs;
    void (*graph_begin)(Stream stream);
    Graph (*graph_end)(Stream stream);
    void (*graph_launch)(const Graph *graph, Stream stream);
    void (*graph_destroy)(Graph *graph);

    // Ranges for a profiler's timeline, in a domain that the caller owns (NULL where there is
    // none).
    void *(*ranges_create)(void);
    void (*ranges_destroy)(void *ranges);
    void (*range_push)(void *ranges, const char *name);
    void (*range_pop)(void *ranges);
} DeviceOperations;

extern const DeviceOperations device_operations_cpu;
extern OPTIONAL_SYMBOL const DeviceOperations device_operations_cuda;

// Local. Stops with 69 when this build has no row for the kind.
const DeviceOperations *device_operations(DeviceKind kind);

DECLARATIONS_END
