// kernel_timing.c -- one kernel, sampled.
#include "experiments/model/kernel_timing.h"
#include "harness/progress.h"
#include "harness/record.h"

#include <math.h>
#include <stdio.h>
#include <time.h>

enum { WARMUPS = 2 };

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double kernel_floor_s(const KernelTiming *timing)
{
    double floor = 0;
    if (timing->ceilings.copy_bytes_per_s > 0)
        floor = timing->cost.bytes / timing->ceilings.copy_bytes_per_s;
    if (timing->flops_per_s > 0)
        floor = fmax(floor, timing->cost.flops / timing->flops_per_s);
    return floor;
}

typedef struct Flush {
    void *buffer;
    uint64_t bytes;
} Flush;

static void iterate(const KernelTiming *timing, Recorder *recorder, int span, const Flush *flush)
{
    device_fill(flush->buffer, 0x3c, flush->bytes, timing->stream);
    stream_wait(timing->stream);
    arena_forbid(timing->arena, true);
    record_begin(recorder, span);
    timing->body(timing->context, timing->stream);
    record_end(recorder, span);
    arena_forbid(timing->arena, false);
}

static const char *sample(const KernelTiming *timing, Recorder *recorder, int span,
                          const Flush *flush)
{
    Progress progress = progress_begin(timing->run, timing->name, timing->rule.samples_max);
    double start = now_s();
    const char *reason = NULL;
    for (int count = 1; !reason; count++) {
        if (run_stop_requested(timing->run)) {
            reason = "signal";
            break;
        }
        iterate(timing, recorder, span, flush);
        recorder_iteration(recorder, true);
        reason = statistics_stop(&timing->rule, recorder_seconds(recorder, span), count,
                                 now_s() - start);
        progress_update(&progress, count);
    }
    progress_end(&progress);
    return reason;
}

Statistics kernel_time(const KernelTiming *timing)
{
    DeviceKind device = timing->stream.device;
    ArenaMark mark = arena_mark(timing->arena);
    Flush flush = {.bytes = 2 * device_info(device, 0).cache_bytes};
    flush.buffer = arena_push(timing->arena, flush.bytes, MEMORY_SCRATCH);
    Recorder *recorder = recorder_create(timing->stream, timing->rule.samples_max, false);
    int span = recorder_span(recorder, "total");
    for (int warmup = 0; warmup < WARMUPS; warmup++) {
        iterate(timing, recorder, span, &flush);
        recorder_iteration(recorder, false);
    }
    Measurement measurement = {.ranks = 1, .warmups = WARMUPS, .span_count = 1};
    measurement.state_before = device_state(device, 0);
    const char *reason = sample(timing, recorder, span, &flush);
    measurement.state_after = device_state(device, 0);
    measurement.samples = recorder_samples(recorder);
    MeasurementSpan row = {
        .name = "total",
        .cost = {.memory_bytes = timing->cost.bytes, .flops = timing->cost.flops},
        .floor_s = kernel_floor_s(timing),
        .seconds = recorder_seconds(recorder, span)};
    measurement.spans = &row;
    snprintf(measurement.name, sizeof(measurement.name), "%s", timing->name);
    snprintf(measurement.stop_reason, sizeof(measurement.stop_reason), "%s", reason);
    result_add_measurement(timing->writer, &measurement);
    Statistics statistics = statistics_of(row.seconds, measurement.samples);
    recorder_destroy(recorder);
    arena_release(timing->arena, mark);
    return statistics;
}
