// layout.h -- where the boxes of a graph stand.
//
// By Graphviz's dot where the build has it; else, and for graphs too large for it, by ranks: a node
// stands below the lowest of its inputs. Either way edges go down. The page draws them itself.
#pragma once

#include "harness/base.h"

enum { LAYOUT_DOT_NODES_MAX = 600, LAYOUT_DOT_EDGES_MAX = 1500, LAYOUT_DOT_PIECES_MAX = 6000 };

typedef struct LayoutEdge {
    int from, to;
} LayoutEdge;

typedef struct LayoutGraph {
    int64_t nodes, edges;
    const double *width; // [nodes] of the boxes, in pixels; all are LAYOUT_HEIGHT high
    const LayoutEdge *edge;
} LayoutGraph;

static const double LAYOUT_HEIGHT = 36, LAYOUT_GAP_X = 18, LAYOUT_GAP_Y = 34;

typedef struct Layout {
    double *x, *y;        // [nodes] centres, y downwards
    double width, height; // of the whole
    const char *method;   // for people: by what, and why not by dot
} Layout;

// Local. An edge must go from a lower index to a higher; others are left out of the ranks.
// Owner: the caller.
Layout layout_make(const LayoutGraph *graph);
void layout_destroy(Layout *layout);
// Local. Its two ways. The first is absent in builds without Graphviz, and false when Graphviz has
// no dot.
bool layout_by_graphviz(const LayoutGraph *graph, Layout *layout) OPTIONAL_SYMBOL;
void layout_by_ranks(const LayoutGraph *graph, Layout *layout);
void layout_graphviz_version(char *text, size_t bytes) OPTIONAL_SYMBOL;
