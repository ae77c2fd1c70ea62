// device.h -- where work runs: the CPU, or one CUDA GPU. Streams order the work, events time it.
//
// On the CPU a stream is synchronous: when a function that "Enqueues" returns, its work is done.
// Each device kind is one row of operations; the CUDA row (device_cuda.c) exists only in builds
// with CUDA.
#pragma once

#include "harness/base.h"
#include "harness/check.h"
#include "harness/dtype.h"

DECLARATIONS_BEGIN

typedef enum DeviceKind { DEVICE_CPU, DEVICE_CUDA, DEVICE_KINDS } DeviceKind;

typedef struct Stream {
    DeviceKind device;
    void *handle; // cudaStream_t; NULL on the CPU
} Stream;

typedef struct Event {
    DeviceKind device;
    void *handle;    // cudaEvent_t
    int64_t host_ns; // CPU: CLOCK_MONOTONIC when recorded
} Event;

enum { DEVICE_TEXT_BYTES = 96 };
typedef struct DeviceInfo {
    DeviceKind kind;
    int index;                    // CUDA ordinal; 0 on the CPU
    char name[DEVICE_TEXT_BYTES]; // "NVIDIA H200", "AMD EPYC ..."
    char uuid[DEVICE_TEXT_BYTES]; // GPU UUID, "" on the CPU
    char pci[DEVICE_TEXT_BYTES];
    char driver[DEVICE_TEXT_BYTES]; // driver and runtime versions
    int major, minor;               // compute capability
    int processors;                 // SMs, or cores in this rank's affinity mask
    uint64_t memory_bytes, memory_free_bytes, cache_bytes; // cache: L2, or last level on the CPU
} DeviceInfo;

// Clocks, power and throttling at a moment (NVML; CPU: scaling frequency). Absent values are NaN
// and reason says why.
typedef struct DeviceState {
    double sm_clock_mhz, memory_clock_mhz, power_w, temperature_c;
    uint64_t throttle_mask;
    char reason[DEVICE_TEXT_BYTES];
} DeviceState;

// Local. How many devices of this kind this process sees; 0 when the build or the machine has none
// (why says which).
int device_count(DeviceKind kind, char *why, size_t why_bytes);
// Local. Makes the device current for the calling thread. Stops with 69 when it is not there.
void device_select(DeviceKind kind, int index);
DeviceInfo device_info(DeviceKind kind, int index);   // Local
DeviceState device_state(DeviceKind kind, int index); // Local
const char *device_kind_name(DeviceKind kind);        // Local. "cpu", "cuda"

Stream stream_create(DeviceKind kind); // Local
void stream_destroy(Stream stream);    // Local
void stream_wait(Stream stream);       // Waits. Everything enqueued so far is done
// Enqueues(stream): `stream` goes on only when `other` has done what it was given so far.
void stream_wait_stream(Stream stream, Stream other);

Event event_create(DeviceKind kind); // Local
void event_destroy(Event *event);    // Local
// Enqueues(stream). While the stream is being captured into a graph the event becomes a node of it
// and is recorded anew by each replay.
void event_record(Event *event, Stream stream);
bool event_done(const Event *event); // Local. Whether the stream has passed it; does not wait
double event_seconds(const Event *begin, const Event *end); // Waits(end)

void *
device_allocate(DeviceKind kind,
                uint64_t bytes); // Local. 64-byte aligned (256 on CUDA); stops with 69 if none
void device_free(DeviceKind kind, void *memory); // Local
// Enqueues(stream). Any direction between host and device memory; host memory should be pinned to
// overlap.
void device_copy(void *to, const void *from, uint64_t bytes, Stream stream);
void device_fill(void *memory, int byte, uint64_t bytes, Stream stream); // Enqueues(stream)

// A recorded sequence of enqueued work (CUDA graph). On the CPU capture is refused: call
// graph_supported first.
typedef struct Graph {
    void *handle; // cudaGraphExec_t
} Graph;
bool graph_supported(DeviceKind kind); // Local
void graph_begin(Stream stream); // Enqueues(stream): until graph_end, work is recorded, not run
Graph graph_end(Stream stream);  // Local
void graph_launch(const Graph *graph, Stream stream); // Enqueues(stream)
void graph_destroy(Graph *graph);                     // Local

DECLARATIONS_END
