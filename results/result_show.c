// result_show.c -- a Result for people (tables on stdout) and for machines (one JSON object).
//
// Statistics are made here, from the raw samples, and nowhere stored. A span's time is the maximum
// over ranks of each iteration; its rates divide the cost of the busiest rank by the median of that
// time, so they never flatter; its shares compare them with what this device was measured to reach
// in the same run (header.ceilings).
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "results/fields.h"
#include "results/lines.h"
#include "results/statistics.h"
#include "results/table.h"

#define SHOW_SCHEMA_NAME    "meshwork-show"
#define SHOW_SCHEMA_VERSION "1.0.0"

enum { CELL_BYTES = 96 };

// What a cost is called, which ceiling it is compared with, and how both are written.
typedef struct Rate {
    size_t offset; // of the cost in SpanCost
    const char *title, *unit;
    const char *ceiling; // member of header.ceilings; NULL = none
    const char *rate_key, *share_key;
} Rate;

static const Rate rates[] = {
    {offsetof(SpanCost, memory_bytes), ">memory, of copy", "B", "copy_bytes_per_s",
     "memory_bytes_per_s", "memory_share"},
    {offsetof(SpanCost, flops), ">compute, of matmul", "FLOP", "matmul_flops_per_s", "flops_per_s",
     "flops_share"},
    {offsetof(SpanCost, wire_bytes), ">wire, of link", "B", "link_bytes_per_s", "wire_bytes_per_s",
     "wire_share"},
    {offsetof(SpanCost, logical_bytes), ">logical", "B", NULL, "logical_bytes_per_s", NULL},
};
enum { RATES = COUNT_OF(rates) };

// What is said about one span.
typedef struct Summary {
    Statistics time;      // of the maximum over ranks
    double *rank_medians; // [ranks]
    int *slowest_counts;  // [ranks] iterations in which this rank took longest
    double rank_spread;   // largest over smallest of rank_medians
    double rate[RATES];   // NaN = no cost counted, or not run
    double share[RATES];  // NaN = no ceiling known
} Summary;

static void *zeroed(int count, size_t element_bytes)
{
    void *memory = calloc((size_t)count + 1, element_bytes);
    CHECK(memory, EXIT_CODE_HARDWARE, "free some memory", "no memory for %d values", count);
    return memory;
}

static double ceiling_of(const Json *header, const char *name)
{
    double value = name ? json_real_of(json_find(json_find(header, "ceilings"), name)) : NAN;
    return value > 0 ? value : NAN;
}

static void summarise_ranks(const Measurement *measurement, const double *seconds, Summary *summary)
{
    int ranks = measurement->ranks, samples = measurement->samples;
    double *one = zeroed(samples, sizeof *one);
    double smallest = NAN, largest = NAN;
    for (int rank = 0; rank < ranks; rank++) {
        for (int i = 0; i < samples; i++)
            one[i] = seconds[(int64_t)i * ranks + rank];
        double median = statistics_of(one, samples).median;
        summary->rank_medians[rank] = median;
        smallest = fmin(smallest, median);
        largest = fmax(largest, median);
    }
    summary->rank_spread = largest / smallest;
    for (int i = 0; i < samples; i++) {
        const double *row = &seconds[(int64_t)i * ranks];
        int slowest = -1;
        for (int rank = 0; rank < ranks; rank++)
            if (!isnan(row[rank]) && (slowest < 0 || row[rank] > row[slowest]))
                slowest = rank;
        if (slowest >= 0)
            summary->slowest_counts[slowest]++;
    }
    free(one);
}

static Summary summary_create(const Result *result, const Measurement *measurement, int span)
{
    const MeasurementSpan *from = &measurement->spans[span];
    Summary summary = {.rank_medians = zeroed(measurement->ranks, sizeof(double)),
                       .slowest_counts = zeroed(measurement->ranks, sizeof(int))};
    double *longest = zeroed(measurement->samples, sizeof *longest);
    statistics_max_over_ranks(from->seconds, measurement->samples, measurement->ranks, longest);
    summary.time = statistics_of(longest, measurement->samples);
    free(longest);
    summarise_ranks(measurement, from->seconds, &summary);
    for (int i = 0; i < RATES; i++) {
        double cost;
        memcpy(&cost, (const char *)&from->cost + rates[i].offset, sizeof cost);
        summary.rate[i] = cost > 0 ? cost / summary.time.median : NAN;
        summary.share[i] = summary.rate[i] / ceiling_of(result->header, rates[i].ceiling);
    }
    return summary;
}

static void summary_destroy(Summary *summary)
{
    free(summary->rank_medians);
    free(summary->slowest_counts);
}

// "name  text" on a line of its own; what a file brought must not command the terminal.
PRINTF_LIKE(2, 3)
static void print_fact(const char *name, const char *format, ...)
{
    char *text = NULL;
    va_list arguments;
    va_start(arguments, format);
    int length = vasprintf(&text, format, arguments);
    va_end(arguments);
    CHECK(length >= 0, EXIT_CODE_HARDWARE, "free some memory", "no memory for a line of text");
    for (unsigned char *c = (unsigned char *)text; *c; c++)
        if (*c < 0x20 || *c == 0x7F)
            *c = '?';
    printf("%-9s %s\n", name, text);
    free(text);
}

static const char *plural(int64_t count)
{
    return count == 1 ? "" : "s";
}

static const char *text_or(const Json *json, const char *otherwise)
{
    const char *text = json_text_of(json);
    return text && text[0] ? text : otherwise;
}

// "2 x NVIDIA H200": the device of rank 0, and on how many ranks it is of that name.
static void show_devices(const Json *ranks)
{
    uint64_t count = json_is_array(ranks) ? json_count(ranks) : 0, alike = 0;
    if (count == 0)
        return;
    const Json *first = json_at(ranks, 0);
    const char *name = text_or(json_find(first, "device_name"), "unknown");
    for (uint64_t i = 0; i < count; i++)
        alike += strcmp(text_or(json_find(json_at(ranks, i), "device_name"), "unknown"), name) == 0;
    print_fact("device", "%s (%s), on %llu of %llu ranks; %lld threads a rank, rank 0 on cores %s",
               name, text_or(json_find(first, "device_kind"), "?"), (unsigned long long)alike,
               (unsigned long long)count, (long long)json_integer_of(json_find(first, "threads")),
               text_or(json_find(first, "cpus"), "?"));
}

static void show_ceilings(const Json *header)
{
    char copy[CELL_BYTES], matmul[CELL_BYTES], link[CELL_BYTES];
    if (!json_find(header, "ceilings"))
        return;
    print_fact("ceilings", "copy %s, matmul %s, link %s",
               table_rate(ceiling_of(header, "copy_bytes_per_s"), "B", copy, sizeof copy),
               table_rate(ceiling_of(header, "matmul_flops_per_s"), "FLOP", matmul, sizeof matmul),
               table_rate(ceiling_of(header, "link_bytes_per_s"), "B", link, sizeof link));
}

static bool append_size(const char *key, const Json *value, void *context)
{
    char *text = context;
    size_t length = strlen(text);
    snprintf(text + length, CELL_BYTES - length, "%s%s=%lld", length ? "," : "", key,
             (long long)json_integer_of(value));
    return true;
}

static void show_header(const Result *result)
{
    const Json *header = result->header;
    const Json *build = json_find(header, "build");
    char mesh[CELL_BYTES] = "";
    int64_t ranks = json_integer_of(json_find(header, "rank_count"));
    int64_t hosts = json_integer_of(json_find(header, "host_count"));
    print_fact("run", "%s, %s, %lld rank%s on %lld host%s, %s",
               text_or(json_find(header, "command"), "unknown command"),
               text_or(json_find(header, "created_utc"), "at an unknown time"), (long long)ranks,
               plural(ranks), (long long)hosts, plural(hosts),
               text_or(json_find(json_at(json_find(header, "ranks"), 0), "host"), "unknown host"));
    print_fact("command", "%s", text_or(json_find(header, "reproduce"), "(not recorded)"));
    print_fact("built", "%s, %s, %s",
               text_or(json_find(header, "creator"), "by an unknown program"),
               text_or(json_find(build, "compiler"), "?"), text_or(json_find(build, "flags"), "?"));
    show_devices(json_find(header, "ranks"));
    json_each(json_find(header, "mesh"), append_size, mesh);
    if (mesh[0])
        print_fact("mesh", "%s", mesh);
    show_ceilings(header);
    if (!result->complete)
        print_fact("NOTE", "this run did not finish; what it had measured is here");
    if (result->note[0])
        print_fact("note", "%s", result->note);
}

static bool state_is_unknown(const DeviceState *state)
{
    return isnan(state->sm_clock_mhz) && isnan(state->power_w);
}

static void show_state(const char *name, const DeviceState *state)
{
    if (state_is_unknown(state))
        print_fact(name, "clocks unknown%s%s", state->reason[0] ? ": " : "", state->reason);
    else
        print_fact(name, "%.0f MHz, memory %.0f MHz, %.0f W, %.0f C, throttle mask 0x%llx",
                   state->sm_clock_mhz, state->memory_clock_mhz, state->power_w,
                   state->temperature_c, (unsigned long long)state->throttle_mask);
}

// Two unknown states are one line.
static void show_states(const Measurement *measurement)
{
    const DeviceState *before = &measurement->state_before, *after = &measurement->state_after;
    bool alike = state_is_unknown(before) && state_is_unknown(after) &&
                 strcmp(before->reason, after->reason) == 0;
    show_state(alike ? "device" : "before", before);
    if (!alike)
        show_state("after", after);
}

static const char *ratio_text(double ratio, char *text)
{
    if (isnan(ratio))
        snprintf(text, CELL_BYTES, "-");
    else
        snprintf(text, CELL_BYTES, "%.*fx", ratio < 100 ? 2 : 0, ratio);
    return text;
}

static void add_rate_cell(Table *table, const Summary *summary, int rate)
{
    char value[CELL_BYTES], share[CELL_BYTES];
    table_rate(summary->rate[rate], rates[rate].unit, value, sizeof value);
    if (isnan(summary->share[rate]))
        table_cell(table, "%s", value);
    else
        table_cell(table, "%s, %s", value,
                   table_percent(summary->share[rate], share, sizeof share));
}

static void add_span_row(Table *table, const MeasurementSpan *span, const Summary *summary,
                         const bool *shown)
{
    char text[CELL_BYTES], other[CELL_BYTES];
    const Statistics *time = &summary->time;
    table_cell(table, "%s", span->name);
    if (time->count == 0)
        table_cell(table, "not run");
    else
        table_cell(table, "%s", table_seconds(time->median, text, sizeof text));
    if (isnan(time->ci95_low))
        table_cell(table, "-");
    else
        table_cell(table, "%s .. %s", table_seconds(time->ci95_low, text, sizeof text),
                   table_seconds(time->ci95_high, other, sizeof other));
    table_cell(table, "%s", table_percent(time->noise, text, sizeof text));
    table_cell(table, "%s", ratio_text(summary->rank_spread, text));
    for (int i = 0; i < RATES; i++)
        if (shown[i])
            add_rate_cell(table, summary, i);
    if (shown[RATES])
        table_cell(table, "%s",
                   ratio_text(span->floor_s > 0 ? time->median / span->floor_s : NAN, text));
}

static void show_measurement(const Result *result, const Measurement *measurement)
{
    const char *titles[8 + RATES] = {"span", ">median", ">95 % interval", ">noise", ">rank spread"};
    bool shown[RATES + 1] = {false}; // columns that any span fills; the last one is the floor
    int columns = 5;
    Summary *summaries = zeroed(measurement->span_count, sizeof *summaries);
    for (int span = 0; span < measurement->span_count; span++) {
        summaries[span] = summary_create(result, measurement, span);
        for (int i = 0; i < RATES; i++)
            shown[i] = shown[i] || !isnan(summaries[span].rate[i]);
        shown[RATES] = shown[RATES] || measurement->spans[span].floor_s > 0;
    }
    for (int i = 0; i < RATES; i++)
        if (shown[i])
            titles[columns++] = rates[i].title;
    if (shown[RATES])
        titles[columns++] = ">time / floor";
    Table *table = table_create(titles);
    for (int span = 0; span < measurement->span_count; span++) {
        add_span_row(table, &measurement->spans[span], &summaries[span], shown);
        summary_destroy(&summaries[span]);
    }
    printf("\n");
    print_fact("measured",
               "%s: %d samples after %d warm-ups, ended by %s; times are the maximum"
               " over %d ranks",
               measurement->name, measurement->samples, measurement->warmups,
               measurement->stop_reason, measurement->ranks);
    show_states(measurement);
    table_print(table, stdout);
    table_destroy(table);
    free(summaries);
}

static void show_checks(const Result *result)
{
    if (result->check_count == 0)
        return;
    const char *const titles[] = {"check", "verdict", "", ">error", ">bound", "detail", NULL};
    Table *table = table_create(titles);
    int failed = 0;
    for (int i = 0; i < result->check_count; i++) {
        const ResultCheck *check = &result->checks[i];
        failed += !check->good;
        table_cell(table, "%s", check->name);
        table_cell(table, "%s", check->verdict);
        table_cell(table, "%s", check->good ? "good" : "FAILED");
        if (isnan(check->error))
            table_cell(table, "-");
        else
            table_cell(table, "%.2e", check->error);
        if (isnan(check->bound))
            table_cell(table, "-");
        else
            table_cell(table, "%.2e", check->bound);
        table_cell(table, "%s", check->detail);
    }
    printf("\n");
    table_print(table, stdout);
    printf("%d check%s, %d failed\n", result->check_count, plural(result->check_count), failed);
    table_destroy(table);
}

#define STATISTIC(member)                                                                          \
    {                                                                                              \
#member, FIELD_REAL, offsetof(Statistics, member), sizeof(double), NULL, NULL              \
    }

static Json *statistics_to_json(const Measurement *measurement, const Summary *summary)
{
    static const Field fields[] = {
        STATISTIC(minimum),   STATISTIC(q1),
        STATISTIC(median),    STATISTIC(q3),
        STATISTIC(maximum),   STATISTIC(mean),
        STATISTIC(deviation), STATISTIC(mad),
        STATISTIC(ci95_low),  STATISTIC(ci95_high),
        STATISTIC(p95),       STATISTIC(p99),
        STATISTIC(noise),     {0},
    };
    Json *json = json_set(json_object(), "count", json_integer(summary->time.count));
    Json *medians = json_array(), *slowest = json_array();
    fields_to_json(fields, &summary->time, json);
    for (int rank = 0; rank < measurement->ranks; rank++) {
        json_append(medians, json_real(summary->rank_medians[rank]));
        json_append(slowest, json_integer(summary->slowest_counts[rank]));
    }
    json_set(json, "rank_medians", medians);
    json_set(json, "rank_spread", json_real(summary->rank_spread));
    return json_set(json, "slowest_rank_counts", slowest);
}

static Json *measurement_to_json(const Result *result, const Measurement *measurement)
{
    Json *json = json_object(), *spans = json_array();
    json_set_measurement(json, measurement);
    for (int i = 0; i < measurement->span_count; i++) {
        Summary summary = summary_create(result, measurement, i);
        Json *span = json_of_span(measurement, i);
        json_set(span, "statistics", statistics_to_json(measurement, &summary));
        for (int rate = 0; rate < RATES; rate++) {
            json_set(span, rates[rate].rate_key, json_real(summary.rate[rate]));
            if (rates[rate].share_key)
                json_set(span, rates[rate].share_key, json_real(summary.share[rate]));
        }
        json_append(spans, span);
        summary_destroy(&summary);
    }
    return json_set(json, "spans", spans);
}

static void show_json(const Result *result)
{
    Json *json = json_set(json_object(), "schema_name", json_text(SHOW_SCHEMA_NAME));
    Json *measurements = json_array(), *checks = json_array();
    for (int i = 0; i < result->measurement_count; i++)
        json_append(measurements, measurement_to_json(result, &result->measurements[i]));
    for (int i = 0; i < result->check_count; i++) {
        Json *check = json_object();
        fields_to_json(fields_of_check, &result->checks[i], check);
        json_append(checks, check);
    }
    json_set(json, "schema_version", json_text(SHOW_SCHEMA_VERSION));
    json_set(json, "complete", json_boolean(result->complete));
    json_set(json, "note", json_text(result->note));
    json_set(json, "run", json_copy_of(result->header));
    json_set(json, "measurements", measurements);
    json_set(json, "checks", checks);
    char *text = json_print(json, true);
    printf("%s\n", text);
    free(text);
    json_destroy(json);
}

void result_show(const Result *result, bool as_json)
{
    if (as_json) {
        show_json(result);
        return;
    }
    show_header(result);
    for (int i = 0; i < result->measurement_count; i++)
        show_measurement(result, &result->measurements[i]);
    show_checks(result);
}
