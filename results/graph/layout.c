// layout.c -- the ranks, and the choice between them and dot.
//
// Ranks: a node's rank is one more than the highest of its inputs'; a node without inputs stands
// just above its first user, or the arguments of a graph would all stand in one endless row. Within
// a rank nodes are ordered by the mean place of their inputs, then spread so that none overlap.
#include "results/graph/layout.h"

#include <stdlib.h>
#include <string.h>

#include "harness/check.h"

enum { RANK_ROW_MAX = 24 }; // longer rows are broken: nobody scrolls that far sideways

static void *zeroed(int64_t count, size_t bytes)
{
    void *memory = calloc((size_t)count + 1, bytes);
    CHECK(memory, EXIT_CODE_HARDWARE, "free memory", "no memory to lay out %lld nodes",
          (long long)count);
    return memory;
}

static bool goes_down(const LayoutGraph *graph, const LayoutEdge *edge)
{
    return edge->from >= 0 && edge->from < edge->to && edge->to < graph->nodes;
}

// Edges must be seen in the order of their ends: a rank is final when its node's turn comes.
static int compare_edges(const void *a, const void *b)
{
    const LayoutEdge *p = a, *q = b;
    return p->to != q->to ? (p->to > q->to) - (p->to < q->to)
                          : (p->from > q->from) - (p->from < q->from);
}

static void rank_nodes(const LayoutGraph *graph, const LayoutEdge *edges, int64_t edge_count,
                       int *rank)
{
    bool *has_input = zeroed(graph->nodes, sizeof(*has_input));
    int *lowest_user = zeroed(graph->nodes, sizeof(*lowest_user));
    for (int64_t i = 0; i < edge_count; i++) {
        int above = rank[edges[i].from] + 1;
        has_input[edges[i].to] = true;
        rank[edges[i].to] = above > rank[edges[i].to] ? above : rank[edges[i].to];
    }
    for (int64_t i = 0; i < edge_count; i++) {
        int *lowest = &lowest_user[edges[i].from];
        int user = rank[edges[i].to];
        *lowest = *lowest == 0 || user < *lowest ? user : *lowest;
    }
    for (int64_t n = 0; n < graph->nodes; n++)
        if (!has_input[n] && lowest_user[n] > 0)
            rank[n] = lowest_user[n] - 1;
    free(has_input);
    free(lowest_user);
}

typedef struct Placed {
    int node, rank;
    double wish; // where its inputs are, on average
} Placed;

static int compare_placed(const void *a, const void *b)
{
    const Placed *p = a, *q = b;
    if (p->rank != q->rank)
        return p->rank - q->rank;
    if (p->wish != q->wish)
        return p->wish < q->wish ? -1 : 1;
    return p->node - q->node;
}

// Puts one rank's nodes side by side around x = 0; returns how many rows they took.
static int place_row(const LayoutGraph *graph, Layout *layout, Placed *row, int64_t count, double y)
{
    int rows = 0;
    for (int64_t first = 0; first < count; first += RANK_ROW_MAX, rows++) {
        int64_t end = first + RANK_ROW_MAX < count ? first + RANK_ROW_MAX : count;
        double total = 0, wish = 0;
        for (int64_t i = first; i < end; i++) {
            total += graph->width[row[i].node] + LAYOUT_GAP_X;
            wish += row[i].wish / (double)(end - first);
        }
        double x = wish - total / 2;
        for (int64_t i = first; i < end; i++) {
            double width = graph->width[row[i].node];
            layout->x[row[i].node] = x + width / 2;
            layout->y[row[i].node] = y + rows * (LAYOUT_HEIGHT + LAYOUT_GAP_Y);
            x += width + LAYOUT_GAP_X;
        }
    }
    return rows;
}

static void place_ranks(const LayoutGraph *graph, const LayoutEdge *edges, int64_t edge_count,
                        const int *rank, Layout *layout)
{
    Placed *placed = zeroed(graph->nodes, sizeof(*placed));
    int64_t *first_edge = zeroed(graph->nodes + 1, sizeof(*first_edge));
    for (int64_t n = 0; n < graph->nodes; n++)
        placed[n] = (Placed){(int)n, rank[n], 0};
    for (int64_t i = 0; i < edge_count; i++)
        first_edge[edges[i].to + 1]++;
    for (int64_t n = 0; n < graph->nodes; n++)
        first_edge[n + 1] += first_edge[n];
    qsort(placed, (size_t)graph->nodes, sizeof(*placed), compare_placed);
    double y = 0;
    for (int64_t first = 0; first < graph->nodes;) {
        int64_t end = first;
        for (; end < graph->nodes && placed[end].rank == placed[first].rank; end++) {
            int node = placed[end].node;
            int64_t inputs = first_edge[node + 1] - first_edge[node];
            for (int64_t i = first_edge[node]; i < first_edge[node + 1]; i++)
                placed[end].wish += layout->x[edges[i].from] / (double)inputs;
        }
        qsort(placed + first, (size_t)(end - first), sizeof(*placed), compare_placed);
        int rows = place_row(graph, layout, placed + first, end - first, y);
        y += rows * (LAYOUT_HEIGHT + LAYOUT_GAP_Y);
        first = end;
    }
    free(first_edge);
    free(placed);
}

typedef struct Ranks {
    LayoutEdge *edges; // those that go down, in order
    int64_t edge_count;
    int *rank; // [nodes]
} Ranks;

static Ranks find_ranks(const LayoutGraph *graph)
{
    Ranks ranks = {.edges = zeroed(graph->edges, sizeof(LayoutEdge)),
                   .rank = zeroed(graph->nodes, sizeof(int))};
    for (int64_t i = 0; i < graph->edges; i++)
        if (goes_down(graph, &graph->edge[i]))
            ranks.edges[ranks.edge_count++] = graph->edge[i];
    qsort(ranks.edges, (size_t)ranks.edge_count, sizeof(*ranks.edges), compare_edges);
    rank_nodes(graph, ranks.edges, ranks.edge_count, ranks.rank);
    return ranks;
}

static void drop_ranks(Ranks *ranks)
{
    free(ranks->rank);
    free(ranks->edges);
}

// dot divides an edge at every rank that it crosses, and its time grows with the square of the
// pieces: half a second for LAYOUT_DOT_PIECES_MAX.
static bool fits_dot(const LayoutGraph *graph)
{
    if (graph->nodes > LAYOUT_DOT_NODES_MAX || graph->edges > LAYOUT_DOT_EDGES_MAX)
        return false;
    Ranks ranks = find_ranks(graph);
    int64_t pieces = 0;
    for (int64_t i = 0; i < ranks.edge_count; i++)
        pieces += ranks.rank[ranks.edges[i].to] - ranks.rank[ranks.edges[i].from];
    drop_ranks(&ranks);
    return pieces <= LAYOUT_DOT_PIECES_MAX;
}

void layout_by_ranks(const LayoutGraph *graph, Layout *layout)
{
    Ranks ranks = find_ranks(graph);
    place_ranks(graph, ranks.edges, ranks.edge_count, ranks.rank, layout);
    drop_ranks(&ranks);
}

// Moves everything so that it begins at 0, 0.
static void normalise(const LayoutGraph *graph, Layout *layout)
{
    double left = 0, top = 0, right = 0, bottom = 0;
    for (int64_t n = 0; n < graph->nodes; n++) {
        double half = graph->width[n] / 2, x = layout->x[n], y = layout->y[n];
        left = n == 0 || x - half < left ? x - half : left;
        right = n == 0 || x + half > right ? x + half : right;
        top = n == 0 || y - LAYOUT_HEIGHT / 2 < top ? y - LAYOUT_HEIGHT / 2 : top;
        bottom = n == 0 || y + LAYOUT_HEIGHT / 2 > bottom ? y + LAYOUT_HEIGHT / 2 : bottom;
    }
    for (int64_t n = 0; n < graph->nodes; n++) {
        layout->x[n] -= left;
        layout->y[n] -= top;
    }
    layout->width = right - left;
    layout->height = bottom - top;
}

Layout layout_make(const LayoutGraph *graph)
{
    Layout layout = {.x = zeroed(graph->nodes, sizeof(double)),
                     .y = zeroed(graph->nodes, sizeof(double))};
    bool fits = fits_dot(graph);
    bool done = fits && layout_by_graphviz && layout_by_graphviz(graph, &layout);
    layout.method = done                 ? "laid out by Graphviz (dot)"
                    : !fits              ? "laid out in ranks by depth: too large for Graphviz"
                    : layout_by_graphviz ? "laid out in ranks by depth: Graphviz has no dot here"
                                         : "laid out in ranks by depth: built without Graphviz";
    if (!done)
        layout_by_ranks(graph, &layout);
    normalise(graph, &layout);
    return layout;
}

void layout_destroy(Layout *layout)
{
    free(layout->x);
    free(layout->y);
    *layout = (Layout){.method = ""};
}
