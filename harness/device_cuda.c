// device_cuda.c -- NVIDIA GPUs as devices: the CUDA runtime behind device.h, and NVTX for
// profilers.
//
// Quirks, explained once:
// - A machine without driver or GPU answers cudaGetDeviceCount with an error: here that is a count
// of 0 and a reason.
// - Inside a capture an event is recorded with cudaEventRecordExternal: it becomes a node that
// every replay executes,
//   instead of a mere edge of the graph, so spans of a replayed step can be timed.
// - Capture is thread-local: other threads (NCCL's, the ledger's) may go on calling CUDA meanwhile.
// - Streams do not synchronise with the legacy default stream.
// Source: CUDA Runtime API reference (NVIDIA); NVTX 3.
#include "harness/device_operations.h"
#include "harness/gpu_driver.h"

#include <cuda_runtime_api.h>
#include <nvtx3/nvToolsExt.h>

#include <stdio.h>
#include <string.h>

static cudaStream_t cuda_stream(Stream stream)
{
    return (cudaStream_t)stream.handle;
}

static int cuda_count(char *why, size_t why_bytes)
{
    int count = 0;
    cudaError_t code = cudaGetDeviceCount(&count);
    if (code == cudaSuccess && count > 0)
        return count;
    cudaGetLastError(); // forget it: this is an answer, not a failure
    if (code == cudaErrorInsufficientDriver)
        snprintf(why, why_bytes, "no NVIDIA driver, or one older than CUDA %d.%d",
                 CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    else if (code == cudaErrorNoDevice || code == cudaSuccess)
        snprintf(why, why_bytes, "no CUDA device is visible to this process");
    else
        snprintf(why, why_bytes, "%s", cudaGetErrorString(code));
    return 0;
}

static void cuda_select(int index)
{
    CHECK_CUDA(cudaSetDevice(index));
}

static void format_uuid(const cudaUUID_t *uuid, char *text, size_t bytes)
{
    unsigned char b[16];
    memcpy(b, uuid->bytes, sizeof(b));
    snprintf(text, bytes,
             "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
             b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
             b[15]);
}

static void format_versions(char *text, size_t bytes)
{
    int driver = 0, runtime = 0;
    CHECK_CUDA(cudaDriverGetVersion(&driver));
    CHECK_CUDA(cudaRuntimeGetVersion(&runtime));
    char module[32] = "", why[DEVICE_TEXT_BYTES];
    bool known = gpu_driver_version(module, sizeof(module), why, sizeof(why));
    snprintf(text, bytes, "driver %s (CUDA %d.%d), runtime %d.%d", known ? module : "unknown",
             driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
}

static DeviceInfo cuda_info(int index)
{
    DeviceInfo info = {.kind = DEVICE_CUDA, .index = index};
    struct cudaDeviceProp properties;
    CHECK_CUDA(cudaGetDeviceProperties(&properties, index));
    snprintf(info.name, sizeof(info.name), "%.95s", properties.name);
    format_uuid(&properties.uuid, info.uuid, sizeof(info.uuid));
    CHECK_CUDA(cudaDeviceGetPCIBusId(info.pci, (int)sizeof(info.pci), index));
    format_versions(info.driver, sizeof(info.driver));
    info.major = properties.major;
    info.minor = properties.minor;
    info.processors = properties.multiProcessorCount;
    info.memory_bytes = properties.totalGlobalMem;
    info.cache_bytes = (uint64_t)properties.l2CacheSize;

    int current = 0;
    size_t free_bytes = 0, total_bytes = 0;
    CHECK_CUDA(cudaGetDevice(&current));
    CHECK_CUDA(cudaSetDevice(index));
    CHECK_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
    CHECK_CUDA(cudaSetDevice(current));
    info.memory_free_bytes = free_bytes;
    return info;
}

static DeviceState cuda_state(int index)
{
    char pci[DEVICE_TEXT_BYTES] = "";
    CHECK_CUDA(cudaDeviceGetPCIBusId(pci, (int)sizeof(pci), index));
    return gpu_driver_state(pci);
}

static Stream cuda_stream_create(void)
{
    cudaStream_t handle;
    CHECK_CUDA(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking));
    return (Stream){.device = DEVICE_CUDA, .handle = handle};
}

static void cuda_stream_destroy(Stream stream)
{
    CHECK_CUDA(cudaStreamDestroy(cuda_stream(stream)));
}

static void cuda_stream_wait(Stream stream)
{
    CHECK_CUDA(cudaStreamSynchronize(cuda_stream(stream)));
}

// The event is destroyed at once: the runtime keeps what the wait needs until it is done.
static void cuda_stream_wait_stream(Stream stream, Stream other)
{
    cudaEvent_t event;
    CHECK_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    CHECK_CUDA(cudaEventRecord(event, cuda_stream(other)));
    CHECK_CUDA(cudaStreamWaitEvent(cuda_stream(stream), event, 0));
    CHECK_CUDA(cudaEventDestroy(event));
}

static bool cuda_stream_is_capturing(Stream stream)
{
    enum cudaStreamCaptureStatus status;
    CHECK_CUDA(cudaStreamIsCapturing(cuda_stream(stream), &status));
    return status == cudaStreamCaptureStatusActive;
}

static Event cuda_event_create(void)
{
    cudaEvent_t handle;
    CHECK_CUDA(cudaEventCreate(&handle));
    return (Event){.device = DEVICE_CUDA, .handle = handle};
}

static void cuda_event_destroy(Event *event)
{
    if (event->handle)
        CHECK_CUDA(cudaEventDestroy((cudaEvent_t)event->handle));
    *event = (Event){.device = DEVICE_CUDA};
}

static void cuda_event_record(Event *event, Stream stream)
{
    unsigned flags =
        cuda_stream_is_capturing(stream) ? cudaEventRecordExternal : cudaEventRecordDefault;
    CHECK_CUDA(cudaEventRecordWithFlags((cudaEvent_t)event->handle, cuda_stream(stream), flags));
}

// A stream that failed has not passed its events: who waits for it will say what happened.
static bool cuda_event_done(const Event *event)
{
    if (cudaEventQuery((cudaEvent_t)event->handle) == cudaSuccess)
        return true;
    cudaGetLastError(); // "not ready" is an answer
    return false;
}

static double cuda_event_seconds(const Event *begin, const Event *end)
{
    float milliseconds = 0;
    CHECK_CUDA(cudaEventSynchronize((cudaEvent_t)end->handle));
    CHECK_CUDA(
        cudaEventElapsedTime(&milliseconds, (cudaEvent_t)begin->handle, (cudaEvent_t)end->handle));
    return (double)milliseconds * 1e-3;
}

static void *cuda_allocate(uint64_t bytes)
{
    void *memory = NULL;
    cudaError_t code = cudaMalloc(&memory, bytes > 0 ? bytes : 1);
    if (code == cudaSuccess)
        return memory;
    cudaGetLastError();
    size_t free_bytes = 0, total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    CHECK(false, EXIT_CODE_HARDWARE, "use smaller sizes or more ranks, or free the GPU",
          "no %.3f GiB of GPU memory to be had (%.3f GiB free of %.3f GiB): %s",
          (double)bytes / (1 << 30), (double)free_bytes / (1 << 30),
          (double)total_bytes / (1 << 30), cudaGetErrorString(code));
    return NULL;
}

static void cuda_release(void *memory)
{
    CHECK_CUDA(cudaFree(memory));
}

static void *cuda_pinned_allocate(uint64_t bytes)
{
    void *memory = NULL;
    cudaError_t code = cudaHostAlloc(&memory, bytes > 0 ? bytes : 1, cudaHostAllocPortable);
    if (code != cudaSuccess)
        cudaGetLastError();
    CHECK(code == cudaSuccess, EXIT_CODE_HARDWARE, "use smaller sizes; see also ulimit -l",
          "no %.3f GiB of pinned host memory to be had: %s", (double)bytes / (1 << 30),
          cudaGetErrorString(code));
    return memory;
}

static void cuda_pinned_release(void *memory)
{
    CHECK_CUDA(cudaFreeHost(memory));
}

// cudaMemcpyDefault: the runtime knows from the addresses which side is the device's.
static void cuda_copy(void *to, const void *from, uint64_t bytes, Stream stream)
{
    CHECK_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, cuda_stream(stream)));
}

static void cuda_fill(void *memory, int byte, uint64_t bytes, Stream stream)
{
    CHECK_CUDA(cudaMemsetAsync(memory, byte, bytes, cuda_stream(stream)));
}

static void cuda_graph_begin(Stream stream)
{
    CHECK_CUDA(cudaStreamBeginCapture(cuda_stream(stream), cudaStreamCaptureModeThreadLocal));
}

static Graph cuda_graph_end(Stream stream)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t executable = NULL;
    CHECK_CUDA(cudaStreamEndCapture(cuda_stream(stream), &graph));
    CHECK_CUDA(cudaGraphInstantiate(&executable, graph, 0));
    CHECK_CUDA(cudaGraphDestroy(graph));
    return (Graph){.handle = executable};
}

static void cuda_graph_launch(const Graph *graph, Stream stream)
{
    CHECK_CUDA(cudaGraphLaunch((cudaGraphExec_t)graph->handle, cuda_stream(stream)));
}

static void cuda_graph_destroy(Graph *graph)
{
    CHECK_CUDA(cudaGraphExecDestroy((cudaGraphExec_t)graph->handle));
    graph->handle = NULL;
}

static void *cuda_ranges_create(void)
{
    return nvtxDomainCreateA("meshwork");
}

static void cuda_ranges_destroy(void *ranges)
{
    if (ranges)
        nvtxDomainDestroy((nvtxDomainHandle_t)ranges);
}

static void cuda_range_push(void *ranges, const char *name)
{
    nvtxEventAttributes_t attributes = {.version = NVTX_VERSION,
                                        .size = NVTX_EVENT_ATTRIB_STRUCT_SIZE,
                                        .messageType = NVTX_MESSAGE_TYPE_ASCII,
                                        .message.ascii = name};
    nvtxDomainRangePushEx((nvtxDomainHandle_t)ranges, &attributes);
}

static void cuda_range_pop(void *ranges)
{
    nvtxDomainRangePop((nvtxDomainHandle_t)ranges);
}

const DeviceOperations device_operations_cuda = {
    .count = cuda_count,
    .select = cuda_select,
    .info = cuda_info,
    .state = cuda_state,
    .stream_create = cuda_stream_create,
    .stream_destroy = cuda_stream_destroy,
    .stream_wait = cuda_stream_wait,
    .stream_wait_stream = cuda_stream_wait_stream,
    .stream_is_capturing = cuda_stream_is_capturing,
    .event_create = cuda_event_create,
    .event_destroy = cuda_event_destroy,
    .event_record = cuda_event_record,
    .event_done = cuda_event_done,
    .event_seconds = cuda_event_seconds,
    .allocate = cuda_allocate,
    .release = cuda_release,
    .pinned_allocate = cuda_pinned_allocate,
    .pinned_release = cuda_pinned_release,
    .copy = cuda_copy,
    .fill = cuda_fill,
    .graphs = true,
    .graph_begin = cuda_graph_begin,
    .graph_end = cuda_graph_end,
    .graph_launch = cuda_graph_launch,
    .graph_destroy = cuda_graph_destroy,
    .ranges_create = cuda_ranges_create,
    .ranges_destroy = cuda_ranges_destroy,
    .range_push = cuda_range_push,
    .range_pop = cuda_range_pop,
};
