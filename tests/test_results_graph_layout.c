// Both layouts of a graph: boxes do not overlap, edges go down, everything lies within the size
// that is given; graphs too large for Graphviz say that they were laid out by depth.
#include "results/graph/layout.h"
#include "tests/capture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

enum { NODES_MAX = 3000 };

typedef struct Sample {
    LayoutGraph graph;
    double width[NODES_MAX];
    LayoutEdge edge[3 * NODES_MAX];
} Sample;

// Node n takes from n - 1 and from two that lie further back, so that ranks are neither all of one
// node nor all of one row.
static Sample *make_sample(int nodes, int reach)
{
    Sample *sample = calloc(1, sizeof(*sample));
    assert_non_null(sample);
    int64_t edges = 0;
    for (int n = 0; n < nodes; n++) {
        sample->width[n] = 60 + n * 37 % 160;
        for (int step = reach; n > 0 && step > 0; step /= 2)
            if (n % (step + 1) != 0 && n - step >= 0)
                sample->edge[edges++] = (LayoutEdge){n - step, n};
    }
    sample->graph =
        (LayoutGraph){.nodes = nodes, .edges = edges, .width = sample->width, .edge = sample->edge};
    return sample;
}

static void require_sound(const LayoutGraph *graph, const Layout *layout)
{
    for (int64_t i = 0; i < graph->edges; i++) {
        const LayoutEdge *edge = &graph->edge[i];
        if (!(layout->y[edge->from] + LAYOUT_HEIGHT < layout->y[edge->to] + 1))
            fail_msg("edge %d -> %d goes from y %g to %g", edge->from, edge->to,
                     layout->y[edge->from], layout->y[edge->to]);
    }
    for (int64_t a = 0; a < graph->nodes; a++) {
        double half = graph->width[a] / 2;
        assert_true(layout->x[a] - half > -1 && layout->x[a] + half < layout->width + 1);
        assert_true(layout->y[a] > 0 && layout->y[a] < layout->height + 1);
        for (int64_t b = 0; b < a; b++) {
            double apart = fabs(layout->x[a] - layout->x[b]);
            bool clear = apart + 1 > half + graph->width[b] / 2 ||
                         fabs(layout->y[a] - layout->y[b]) + 1 > LAYOUT_HEIGHT;
            if (!clear)
                fail_msg("boxes %lld and %lld overlap", (long long)a, (long long)b);
        }
    }
}

static void layouts_are_sound(void **state)
{
    (void)state;
    static const struct {
        int nodes, reach;
    } rows[] = {{0, 1}, {1, 1}, {2, 1}, {40, 1}, {120, 4}, {300, 16}, {200, 0}, {2000, 8}};
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        Sample *sample = make_sample(rows[i].nodes, rows[i].reach);
        Layout layout = layout_make(&sample->graph);
        require_sound(&sample->graph, &layout);
        bool large = rows[i].nodes > LAYOUT_DOT_NODES_MAX;
        if (large)
            ASSERT_CONTAINS(layout.method, "too large");
        else
            ASSERT_CONTAINS(layout.method, layout_by_graphviz ? "Graphviz (dot)" : "built without");
        layout_destroy(&layout);
        free(sample);
    }
}

// Few nodes, but edges across hundreds of ranks: dot would take the better part of a minute.
static void long_edges_are_too_much_for_dot(void **state)
{
    (void)state;
    Sample *sample = make_sample(500, 1);
    int64_t edges = 0;
    for (int n = 1; n < 500; n++) {
        sample->edge[edges++] = (LayoutEdge){n - 1, n};
        sample->edge[edges++] = (LayoutEdge){n * 7 / 11, n};
    }
    sample->graph.edges = edges;
    Layout layout = layout_make(&sample->graph);
    ASSERT_CONTAINS(layout.method, "too large");
    layout_destroy(&layout);
    free(sample);
}

static void ranks_do_without_graphviz(void **state)
{
    (void)state;
    Sample *sample = make_sample(300, 16);
    double x[NODES_MAX], y[NODES_MAX];
    Layout layout = {.x = x, .y = y};
    layout_by_ranks(&sample->graph, &layout);
    for (int64_t i = 0; i < sample->graph.edges; i++)
        assert_true(y[sample->edge[i].from] < y[sample->edge[i].to]);
    // An edge that goes up, or nowhere, is passed over.
    sample->edge[0] = (LayoutEdge){7, 3};
    sample->edge[1] = (LayoutEdge){-1, 4};
    sample->edge[2] = (LayoutEdge){4, 100000};
    layout_by_ranks(&sample->graph, &layout);
    free(sample);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layouts_are_sound),
        cmocka_unit_test(long_edges_are_too_much_for_dot),
        cmocka_unit_test(ranks_do_without_graphviz),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
