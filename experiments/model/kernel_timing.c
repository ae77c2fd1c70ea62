// kernel_timing.c -- one kernel, sampled.
#include "experiments/model/kernel_timing.h"
#include "harness/clock.h"
#include "harness/progress.h"
#include "harness/record.h"
#include "kernels/reduce.h"

#include <math.h>
#include <stdio.h>

enum { WARMUPS = 2 };

double kernel_floor_s(const KernelTiming *timing)
{
    double floor = 0;
    if (timing->ceilings.copy_bytes_per_s > 0)
        floor = timing->cost.bytes / timing->ceilings.copy_bytes_per_s;
    if (timing->flops_per_s > 0)
        floor = fmax(floor, timing->cost.flops / timing->flops_per_s);
    return floor;
}

// What an iteration needs.
typedef struct Iteration {
    const KernelTiming *timing;
    Recorder *recorder;
    int span;
    char *flush;
    uint64_t flush_bytes;
    Graph graph; // handle NULL: the body is enqueued
} Iteration;

enum { FLUSH_PARTS = 64 };

static void flush_caches(const Iteration *one)
{
    const KernelTiming *timing = one->timing;
    uint64_t bytes = one->flush_bytes;
    device_fill(one->flush, 0x3c, bytes, timing->stream);
    if (timing->stream.device == DEVICE_CPU || !timing->writes_little)
        return;
    int64_t count = (int64_t)(bytes / FLUSH_PARTS / sizeof(float) / 8 * 8);
    sum_parts(&(SumParts){.parts = FLUSH_PARTS,
                          .count = count,
                          .part_stride = count,
                          .part = (const float *)(void *)one->flush,
                          .out_dtype = DTYPE_F32,
                          .out = one->flush},
              timing->stream);
}

static void iterate(const Iteration *one)
{
    const KernelTiming *timing = one->timing;
    flush_caches(one);
    arena_forbid(timing->arena, true);
    record_begin(one->recorder, one->span);
    if (one->graph.handle)
        graph_launch(&one->graph, timing->stream);
    else
        timing->body(timing->context, timing->stream);
    record_end(one->recorder, one->span);
    arena_forbid(timing->arena, false);
}

// Once as it is, since a first call may plan on the host; then, where there are graphs, recorded.
static void warm_up(Iteration *one)
{
    const KernelTiming *timing = one->timing;
    iterate(one);
    recorder_iteration(one->recorder, false);
    if (graph_supported(timing->stream.device)) {
        graph_begin(timing->stream);
        timing->body(timing->context, timing->stream);
        one->graph = graph_end(timing->stream);
    }
    for (int warmup = 1; warmup < WARMUPS; warmup++) {
        iterate(one);
        recorder_iteration(one->recorder, false);
    }
}

static const char *sample(const Iteration *one)
{
    const KernelTiming *timing = one->timing;
    Progress progress = progress_begin(timing->run, timing->name, timing->rule.samples_max);
    double start = clock_s();
    const char *reason = NULL;
    for (int count = 1; !reason; count++) {
        if (run_stop_requested(timing->run)) {
            reason = "signal";
            break;
        }
        iterate(one);
        recorder_iteration(one->recorder, true);
        reason = statistics_stop(&timing->rule, recorder_seconds(one->recorder, one->span), count,
                                 clock_s() - start);
        progress_update(&progress, count);
    }
    progress_end(&progress);
    return reason;
}

Statistics kernel_time(const KernelTiming *timing)
{
    DeviceKind device = timing->stream.device;
    ArenaMark mark = arena_mark(timing->arena);
    Recorder *recorder = recorder_create(timing->stream, timing->rule.samples_max, false);
    int span = recorder_span(recorder, "total");
    Iteration one = {.timing = timing,
                     .recorder = recorder,
                     .span = span,
                     .flush_bytes = 2 * device_info(device, 0).cache_bytes};
    one.flush = arena_push(timing->arena, one.flush_bytes, MEMORY_SCRATCH);
    warm_up(&one);
    Measurement measurement = {.ranks = 1, .warmups = WARMUPS, .span_count = 1};
    measurement.state_before = device_state(device, 0);
    const char *reason = sample(&one);
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
    if (one.graph.handle)
        graph_destroy(&one.graph);
    arena_release(timing->arena, mark);
    return statistics;
}
