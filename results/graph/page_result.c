// page_result.c -- a run of ours as a page: a tab for each measurement, its spans as boxes in the
// order of the program, inner phases below the phase that holds them.
//
// "forward/dispatch" lies within "forward". Phases of one parent follow each other, so each has an
// edge from the one before; a phase that sends bytes to other ranks is a collective and drawn as
// one. Times are medians over iterations of the slowest rank, with every rank's median beside them.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "results/graph/page.h"
#include "results/statistics.h"
#include "results/table.h"

enum { TEXT_BYTES = 64, RANKS_SHOWN = 64 };

typedef struct SpanTimes {
    double median_s; // of the maximum over ranks
    double *rank_median_s;
} SpanTimes;

static SpanTimes times_of(const Measurement *measurement, const MeasurementSpan *span)
{
    int samples = measurement->samples, ranks = measurement->ranks;
    double *values = malloc(((size_t)samples + 1) * sizeof(*values));
    SpanTimes times = {.rank_median_s = malloc(((size_t)ranks + 1) * sizeof(double))};
    CHECK(values && times.rank_median_s, EXIT_CODE_HARDWARE, "free memory",
          "no memory for %d samples of %d ranks", samples, ranks);
    statistics_max_over_ranks(span->seconds, samples, ranks, values);
    times.median_s = statistics_of(values, samples).median;
    for (int rank = 0; rank < ranks; rank++) {
        for (int sample = 0; sample < samples; sample++)
            values[sample] = span->seconds[(size_t)sample * (size_t)ranks + (size_t)rank];
        times.rank_median_s[rank] = statistics_of(values, samples).median;
    }
    free(values);
    return times;
}

static bool is_inside(const char *name, const char *parent)
{
    size_t length = strlen(parent);
    return strncmp(name, parent, length) == 0 && name[length] == '/';
}

// The span that most closely holds this one, -1.
static int parent_of(const Measurement *measurement, int span)
{
    int parent = -1;
    for (int i = 0; i < measurement->span_count; i++) {
        const char *name = measurement->spans[i].name;
        if (is_inside(measurement->spans[span].name, name) &&
            (parent < 0 || strlen(name) > strlen(measurement->spans[parent].name)))
            parent = i;
    }
    return parent;
}

static void describe_cost(Json *node, const MeasurementSpan *span, double median_s)
{
    static const struct {
        const char *key;
        size_t offset;
        const char *unit;
    } rows[] = {
        {"through memory", offsetof(SpanCost, memory_bytes), "B"},
        {"operations", offsetof(SpanCost, flops), "FLOP"},
        {"over the wire", offsetof(SpanCost, wire_bytes), "B"},
        {"as others count it", offsetof(SpanCost, logical_bytes), "B"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        double amount;
        char rate[TEXT_BYTES];
        memcpy(&amount, (const char *)&span->cost + rows[i].offset, sizeof(amount));
        if (!(amount > 0))
            continue;
        page_detail(node, rows[i].key, "%.4g %s, %s", amount, rows[i].unit,
                    table_rate(amount / median_s, rows[i].unit, rate, sizeof(rate)));
    }
}

static Json *span_node(const Measurement *measurement, const MeasurementSpan *span)
{
    SpanTimes times = times_of(measurement, span);
    char median[TEXT_BYTES], floor[TEXT_BYTES];
    const char *slash = strrchr(span->name, '/');
    table_seconds(times.median_s, median, sizeof(median));
    Json *node = page_node(slash ? slash + 1 : span->name, median,
                           span->cost.wire_bytes > 0 ? "extern" : "operation");
    page_detail(node, "span", "%s", span->name);
    if (span->cost.wire_bytes > 0)
        page_detail(node, "kind", "collective: it sends to other ranks");
    page_detail(node, "median, slowest rank", "%s", median);
    if (span->floor_s > 0)
        page_detail(node, "floor", "%s", table_seconds(span->floor_s, floor, sizeof(floor)));
    describe_cost(node, span, times.median_s);
    for (int rank = 0; rank < measurement->ranks && rank < RANKS_SHOWN; rank++) {
        char key[TEXT_BYTES], text[TEXT_BYTES];
        snprintf(key, sizeof(key), "rank %d", rank);
        page_detail(node, key, "%s", table_seconds(times.rank_median_s[rank], text, sizeof(text)));
    }
    if (measurement->ranks > RANKS_SHOWN)
        page_detail(node, "more ranks", "%d", measurement->ranks - RANKS_SHOWN);
    free(times.rank_median_s);
    return node;
}

// An edge from the phase before, or, for the first, from the phase that holds it. Spans are listed
// when they begin, so both stand further up in the list; if not, there is no edge.
static void add_edges(const Measurement *measurement, int span, LayoutEdge *edges, int64_t *count)
{
    int parent = parent_of(measurement, span), before = -1;
    for (int i = 0; i < span; i++)
        if (parent_of(measurement, i) == parent)
            before = i;
    int from = before >= 0 ? before : parent;
    if (from >= 0 && from < span)
        edges[(*count)++] = (LayoutEdge){from, span};
}

static Json *measurement_tab(const Measurement *measurement)
{
    LayoutEdge *edges = calloc((size_t)measurement->span_count + 1, sizeof(*edges));
    CHECK(edges, EXIT_CODE_HARDWARE, "free memory", "no memory for a page");
    int64_t edge_count = 0;
    Json *nodes = json_array();
    for (int i = 0; i < measurement->span_count; i++) {
        json_append(nodes, span_node(measurement, &measurement->spans[i]));
        add_edges(measurement, i, edges, &edge_count);
    }
    char title[RESULT_NAME_BYTES + 32];
    snprintf(title, sizeof(title), "%s, %d ranks", measurement->name, measurement->ranks);
    Json *tab = page_tab(&(PageTab){.title = title,
                                    .kind = "measurement",
                                    .group = "run",
                                    .nodes = nodes,
                                    .edges = edges,
                                    .edge_count = edge_count});
    free(edges);
    return tab;
}

static void add_text(Json *list, const char *label, const Json *value)
{
    const char *text = json_text_of(value);
    char line[1024];
    if (!text)
        return;
    snprintf(line, sizeof(line), "%s%s", label, text);
    json_append(list, json_text(line));
}

Json *page_of_result(const Result *result, const char *name)
{
    Json *document = json_set(json_object(), "title", json_text(name));
    Json *summary = json_array(), *warnings = json_array(), *tabs = json_array();
    add_text(summary, "", json_find(result->header, "command"));
    add_text(summary, "", json_find(result->header, "created_utc"));
    add_text(warnings, "run again with: ", json_find(result->header, "reproduce"));
    for (int i = 0; i < result->check_count; i++) {
        char line[1024];
        const ResultCheck *check = &result->checks[i];
        snprintf(line, sizeof(line), "check %s: %s%s%s", check->name, check->verdict,
                 check->detail[0] ? ", " : "", check->detail);
        json_append(warnings, json_text(line));
    }
    if (!result->complete)
        json_append(warnings, json_text("the run did not finish; this is what it had measured"));
    for (int i = 0; i < result->measurement_count; i++)
        json_append(tabs, measurement_tab(&result->measurements[i]));
    json_set(document, "summary", summary);
    json_set(document, "warnings", warnings);
    json_set(document, "tabs", tabs);
    return json_set(document, "codes", json_array());
}
