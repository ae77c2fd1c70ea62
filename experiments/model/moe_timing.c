// moe_timing.c -- samples, and what they are compared with.
#include "experiments/model/moe_timing.h"
#include "experiments/model/moe_cost.h"
#include "experiments/model/sampling.h"
#include "parallel/peer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WARMUPS = 3, LINK_BYTES = 256 << 20, LINK_ROUNDS = 5 };

// One way to keep every link out of this rank busy, `bytes` to each other rank.
typedef struct LinkWay {
    Comm world;
    Peer *peer; // NULL: all-to-all of the communication library; else copies into peer memory
    char *send, *receive;
    uint64_t bytes;
} LinkWay;

static void push_once(const LinkWay *way, Stream stream)
{
    if (!way->peer) {
        comm_all_to_all(way->world, way->send, way->receive, way->bytes, stream);
        return;
    }
    for (int step = 1; step < way->world.ranks; step++) {
        int to = (way->world.rank + step) % way->world.ranks;
        device_copy(peer_bases(way->peer)[to], way->send, way->bytes, stream);
    }
}

// Collective. Bytes per second that leave this rank while all push; the slowest rank's.
static double link_rate(const Run *run, const LinkWay *way, DeviceKind device, Stream stream)
{
    Event begin = event_create(device), end = event_create(device);
    double best = INFINITY;
    for (int round = 0; round < LINK_ROUNDS; round++) {
        run_barrier(run);
        event_record(&begin, stream);
        push_once(way, stream);
        event_record(&end, stream);
        best = fmin(best, run_maximum(run, event_seconds(&begin, &end)));
    }
    event_destroy(&begin);
    event_destroy(&end);
    return (double)way->bytes * (way->world.ranks - 1) / best;
}

// Collective. The faster of the library's all-to-all and, between GPUs that share memory, the copy
// engine.
static double measure_link(const Run *run, Comm world, DeviceKind device, Stream stream)
{
    uint64_t all = device == DEVICE_CPU ? LINK_BYTES / 16 : LINK_BYTES;
    LinkWay way = {.world = world, .bytes = all / (uint64_t)world.ranks};
    Arena *arena = arena_create(MEMORY_DEVICE, device);
    way.send = arena_push(arena, all, MEMORY_SCRATCH);
    way.receive = arena_push(arena, all, MEMORY_SCRATCH);
    device_fill(way.send, 0x5a, all, stream);
    double best = link_rate(run, &way, device, stream);
    char why[256];
    way.peer =
        device == DEVICE_CPU ? NULL : peer_create(world, PEER_IPC, way.bytes, why, sizeof why);
    if (way.peer) {
        best = fmax(best, link_rate(run, &way, device, stream));
        run_barrier(run);
        peer_destroy(way.peer);
    }
    arena_destroy(arena);
    return best;
}

DeviceCeilings moe_ceilings(const Run *run, Comm world, DeviceKind device, Stream stream)
{
    Arena *scratch = arena_create(MEMORY_DEVICE, device);
    DeviceCeilings ceilings = ceiling_measure(device, run->threads, scratch);
    arena_destroy(scratch);
    if (world.ranks > 1)
        ceilings.link_bytes_per_s = measure_link(run, world, device, stream);
    return ceilings;
}

static double floor_seconds(const SpanCost *cost, const MoeTiming *timing)
{
    const DeviceCeilings *c = &timing->ceilings;
    bool bf16 = moe_config(timing->moe)->dtype == DTYPE_BF16;
    double flops = bf16 ? c->bf16_flops_per_s : c->f32_flops_per_s;
    double floor = 0;
    if (c->copy_bytes_per_s > 0)
        floor = fmax(floor, cost->memory_bytes / c->copy_bytes_per_s);
    if (flops > 0)
        floor = fmax(floor, cost->flops / flops);
    if (c->link_bytes_per_s > 0)
        floor = fmax(floor, cost->wire_bytes / c->link_bytes_per_s);
    return floor;
}

static SpanCost cost_of(const MoeTiming *timing, const EpTraffic *traffic, const char *span)
{
    if (strcmp(span, "total") != 0)
        return moe_span_cost(timing->moe, traffic, span);
    return timing->with_backward ? moe_step_cost(timing->moe, traffic)
                                 : moe_forward_cost(timing->moe, traffic);
}

// The largest over ranks, member by member: what the slowest rank had to do.
static SpanCost largest_over_ranks(const Run *run, SpanCost cost)
{
    return (SpanCost){.memory_bytes = run_maximum(run, cost.memory_bytes),
                      .flops = run_maximum(run, cost.flops),
                      .wire_bytes = run_maximum(run, cost.wire_bytes),
                      .logical_bytes = run_maximum(run, cost.logical_bytes)};
}

// What one iteration needs.
typedef struct Iteration {
    const MoeTiming *timing;
    Recorder *recorder;
    int total;
    Graph graph; // handle NULL: enqueue the body
    void *flush; // written before each iteration, so that caches are cold
    uint64_t flush_bytes;
} Iteration;

// Caches cold, ranks together, then the body inside the span "total".
static void iterate(void *context)
{
    const Iteration *one = context;
    const MoeTiming *timing = one->timing;
    device_fill(one->flush, 0x3c, one->flush_bytes, timing->stream);
    stream_wait(timing->stream);
    run_barrier(timing->run);
    arena_forbid(timing->arena, true);
    record_begin(one->recorder, one->total);
    if (one->graph.handle)
        comm_replay(timing->world, &one->graph, timing->stream);
    else
        timing->body(timing->context, timing->stream);
    record_end(one->recorder, one->total);
    arena_forbid(timing->arena, false);
}

static void add_measurement(const MoeTiming *timing, const Recorder *recorder, int warmups,
                            const char *reason, const DeviceState state[2])
{
    int spans = recorder_spans(recorder), count = 0;
    EpTraffic traffic = ep_traffic(moe_ep(timing->moe), timing->stream);
    MeasurementSpan *rows = calloc((size_t)spans, sizeof(MeasurementSpan));
    CHECK(rows != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for %d spans", spans);
    for (int span = 0; span < spans; span++) {
        const double *seconds = recorder_seconds(recorder, span);
        const char *name = recorder_span_name(recorder, span);
        double ran = recorder_samples(recorder) > 0 && !isnan(seconds[0]) ? 1 : 0;
        if (run_maximum(timing->run, ran) == 0)
            continue;
        MeasurementSpan *row = &rows[count++];
        snprintf(row->name, sizeof row->name, "%s", name);
        row->cost = largest_over_ranks(timing->run, cost_of(timing, &traffic, name));
        row->floor_s = floor_seconds(&row->cost, timing);
        row->seconds = seconds;
    }
    Measurement measurement = {.ranks = timing->run->ranks,
                               .samples = recorder_samples(recorder),
                               .warmups = warmups,
                               .span_count = count,
                               .spans = rows,
                               .state_before = state[0],
                               .state_after = state[1]};
    snprintf(measurement.name, sizeof measurement.name, "%s", timing->name);
    snprintf(measurement.stop_reason, sizeof measurement.stop_reason, "%s", reason);
    result_add_measurement(timing->writer, &measurement);
    free(rows);
}

void moe_time(const MoeTiming *timing)
{
    check_phase(timing->name);
    DeviceKind device = timing->stream.device;
    ArenaMark mark = arena_mark(timing->arena);
    Iteration one = {.timing = timing, .flush_bytes = 2 * device_info(device, 0).cache_bytes};
    one.flush = arena_push(timing->arena, one.flush_bytes, MEMORY_SCRATCH);
    Recorder *recorder = recorder_create(timing->stream, timing->rule.samples_max, timing->detail);
    one.recorder = recorder;
    one.total = recorder_span(recorder, "total");
    moe_record_with(timing->moe, timing->detail ? recorder : NULL);
    bool use_graph = timing->graph && !timing->detail && graph_supported(device);
    for (int warmup = 0; warmup < WARMUPS; warmup++) {
        if (warmup == 1 && use_graph) {
            graph_begin(timing->stream);
            timing->body(timing->context, timing->stream);
            one.graph = graph_end(timing->stream);
        }
        iterate(&one);
        recorder_iteration(recorder, false);
    }
    DeviceState state[2] = {device_state(device, 0)};
    const char *reason = sampling_run(&(Sampling){.run = timing->run,
                                                  .recorder = recorder,
                                                  .span = one.total,
                                                  .name = timing->name,
                                                  .rule = timing->rule,
                                                  .iterate = iterate,
                                                  .context = &one});
    state[1] = device_state(device, 0);
    moe_record_with(timing->moe, NULL);
    add_measurement(timing, recorder, WARMUPS, reason, state);
    if (one.graph.handle)
        graph_destroy(&one.graph);
    recorder_destroy(recorder);
    arena_release(timing->arena, mark);
}
