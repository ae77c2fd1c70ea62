// Timed training steps.
#include "experiments/model/lm_timing.h"
#include "experiments/model/sampling.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WARMUPS = 2 };

typedef enum Extra { GATHER, GATHER_WAIT, REDUCE, REDUCE_WAIT, EXTRAS } Extra;
static const char *const extra_names[EXTRAS] = {[GATHER] = "fsdp/gather",
                                                [GATHER_WAIT] = "fsdp/gather_exposed",
                                                [REDUCE] = "fsdp/reduce",
                                                [REDUCE_WAIT] = "fsdp/reduce_exposed"};

typedef struct Iteration {
    const LmTiming *timing;
    Recorder *recorder;
    int total, step, kept;
    double *extra[EXTRAS]; // [samples_max]
} Iteration;

static void iterate(void *context)
{
    Iteration *one = context;
    const LmTiming *timing = one->timing;
    stream_wait(timing->stream);
    run_barrier(timing->run);
    record_begin(one->recorder, one->total);
    lm_trainer_step(timing->trainer, one->step++, timing->stream);
    record_end(one->recorder, one->total);
    stream_wait(timing->stream);
    FsdpTimes t = fsdp_take_times(lm_trainer_mutable_fsdp(timing->trainer));
    const double seconds[EXTRAS] = {[GATHER] = t.gather_s,
                                    [GATHER_WAIT] = t.gather_wait_s,
                                    [REDUCE] = t.reduce_s,
                                    [REDUCE_WAIT] = t.reduce_wait_s};
    for (int i = 0; i < EXTRAS && one->kept < timing->rule.samples_max; i++)
        one->extra[i][one->kept] = seconds[i];
    one->kept++;
}

// Products of a step on this rank: each weight is met three times per token (forward, both
// gradients), two operations each time; experts with even routing.
static double step_flops(const LmTrainerSettings *s)
{
    const LmLayout *l = s->layout;
    double flops = 0, tokens = (double)l->tokens_of_data[l->data.coord] * s->training->accumulate;
    for (int i = 0; i < l->parameters->count; i++) {
        const LmParameter *p = &l->parameters->parameter[i];
        if (p->role == LM_EMBEDDING || p->role == LM_NORM)
            continue;
        double elements = (double)tensor_elements(&p->whole);
        bool expert = p->role == LM_EXPERTS_IN || p->role == LM_EXPERTS_OUT;
        double share = expert ? (double)l->config->moe.top_k / l->config->moe.experts : 1;
        bool replicated = l->style[i] == STYLE_REPLICATE;
        flops += 6 * tokens * elements * share / (replicated ? 1 : l->tp.ranks);
    }
    return flops;
}

static SpanCost cost_of(const LmTrainerSettings *s, const char *span)
{
    LmCost cost = lm_cost(s->layout, s->training, s->exact);
    SpanCost c = {0};
    if (strcmp(span, "total") == 0) {
        c.flops = step_flops(s);
        for (int kind = 0; kind < LM_TRAFFIC_KINDS; kind++)
            c.wire_bytes += (double)cost.sent[kind];
    }
    for (int i = 0; i < cost.count; i++) {
        bool gather = strncmp(cost.row[i].name, "all-gather", 10) == 0;
        bool sharding = cost.row[i].kind != LM_TRAFFIC_TP && cost.row[i].kind != LM_TRAFFIC_WORLD;
        if (sharding && strcmp(span, extra_names[gather ? GATHER : REDUCE]) == 0)
            c.wire_bytes += (double)cost.row[i].bytes;
    }
    return c;
}

static void add_measurement(const LmTiming *timing, const Iteration *one, const char *reason,
                            const DeviceState state[2])
{
    int spans = recorder_spans(one->recorder), count = 0;
    const LmTrainerSettings *s = lm_trainer_settings(timing->trainer);
    MeasurementSpan *rows = calloc((size_t)(spans + EXTRAS), sizeof(MeasurementSpan));
    CHECK(rows != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for %d spans", spans);
    for (int i = 0; i < spans + EXTRAS; i++) {
        const double *seconds =
            i < spans ? recorder_seconds(one->recorder, i) : one->extra[i - spans];
        const char *name =
            i < spans ? recorder_span_name(one->recorder, i) : extra_names[i - spans];
        if (recorder_samples(one->recorder) == 0 || isnan(seconds[0]))
            continue;
        MeasurementSpan *row = &rows[count++];
        snprintf(row->name, sizeof row->name, "%s", name);
        row->cost = cost_of(s, name);
        row->seconds = seconds;
    }
    Measurement measurement = {.name = "step",
                               .ranks = timing->run->ranks,
                               .samples = recorder_samples(one->recorder),
                               .warmups = WARMUPS,
                               .span_count = count,
                               .spans = rows,
                               .state_before = state[0],
                               .state_after = state[1]};
    snprintf(measurement.stop_reason, sizeof measurement.stop_reason, "%s", reason);
    result_add_measurement(timing->writer, &measurement);
    free(rows);
}

static double hidden_share(const LmTiming *timing, const Iteration *one)
{
    double busy = 0, waited = 0;
    int samples = recorder_samples(one->recorder);
    for (int i = 0; i < samples; i++) {
        busy += one->extra[GATHER][i] + one->extra[REDUCE][i];
        waited += one->extra[GATHER_WAIT][i] + one->extra[REDUCE_WAIT][i];
    }
    return timing->stream.device == DEVICE_CPU || busy <= 0 ? NAN : 1 - waited / busy;
}

double lm_time(const LmTiming *timing)
{
    DeviceKind device = timing->stream.device;
    size_t room = (size_t)timing->rule.samples_max;
    Iteration one = {.timing = timing, .step = timing->first_step};
    one.recorder = recorder_create(timing->stream, timing->rule.samples_max, true);
    one.total = recorder_span(one.recorder, "total");
    for (int i = 0; i < EXTRAS; i++) {
        one.extra[i] = calloc(room, sizeof(double));
        CHECK(one.extra[i] != NULL, EXIT_CODE_HARDWARE, "lower --samples", "no memory for samples");
    }
    lm_trainer_record_with(timing->trainer, one.recorder);
    fsdp_measure(lm_trainer_mutable_fsdp(timing->trainer));
    for (int warmup = 0; warmup < WARMUPS; warmup++) {
        iterate(&one);
        recorder_iteration(one.recorder, false);
    }
    one.kept = 0;
    DeviceState state[2] = {device_state(device, 0)};
    const char *reason = sampling_run(&(Sampling){.run = timing->run,
                                                  .recorder = one.recorder,
                                                  .span = one.total,
                                                  .name = "step",
                                                  .rule = timing->rule,
                                                  .iterate = iterate,
                                                  .context = &one});
    state[1] = device_state(device, 0);
    add_measurement(timing, &one, reason, state);
    double hidden = hidden_share(timing, &one);
    lm_trainer_record_with(timing->trainer, NULL);
    recorder_destroy(one.recorder);
    for (int i = 0; i < EXTRAS; i++)
        free(one.extra[i]);
    return hidden;
}
