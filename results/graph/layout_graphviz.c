// layout_graphviz.c -- the only caller of Graphviz (cgraph and gvc), and only for places of nodes.
//
// Quirks, explained once: sizes are inches and places are points, 72 to the inch, y upwards; the
// library prints warnings unless told not to; agsafeset takes char *, though it does not write; its
// plug-ins are loaded at run time, so a machine may have the library and no dot.
#include "results/graph/layout.h"

#include <graphviz/cgraph.h>
#include <graphviz/gvc.h>
#include <stdio.h>
#include <stdlib.h>

#include "harness/check.h"

enum { INCH_POINTS = 72 };

static char *text(const char *constant)
{
    return (char *)(uintptr_t)constant;
}

static void set_number(void *object, const char *name, double value)
{
    char number[32];
    snprintf(number, sizeof(number), "%.4f", value);
    agsafeset(object, text(name), number, text(""));
}

static Agnode_t **add_nodes(Agraph_t *drawing, const LayoutGraph *graph)
{
    Agnode_t **nodes = calloc((size_t)graph->nodes + 1, sizeof(Agnode_t *));
    CHECK(nodes, EXIT_CODE_HARDWARE, "free memory", "no memory to lay out %lld nodes",
          (long long)graph->nodes);
    for (int64_t n = 0; n < graph->nodes; n++) {
        char name[24];
        snprintf(name, sizeof(name), "n%lld", (long long)n);
        nodes[n] = agnode(drawing, name, 1);
        set_number(nodes[n], "width", graph->width[n] / INCH_POINTS);
    }
    return nodes;
}

bool layout_by_graphviz(const LayoutGraph *graph, Layout *layout)
{
    GVC_t *context = gvContext();
    agseterr(AGMAX);
    Agraph_t *drawing = agopen(text("g"), Agdirected, NULL);
    agattr(drawing, AGNODE, text("shape"), text("box"));
    agattr(drawing, AGNODE, text("fixedsize"), text("true"));
    agattr(drawing, AGNODE, text("label"), text(""));
    agattr(drawing, AGRAPH, text("splines"), text("false")); // the page draws its own
    agattr(drawing, AGRAPH, text("nslimit"), text("4"));     // bounds the time of a hard graph
    agattr(drawing, AGRAPH, text("nslimit1"), text("4"));
    set_number(drawing, "nodesep", LAYOUT_GAP_X / INCH_POINTS);
    set_number(drawing, "ranksep", LAYOUT_GAP_Y / INCH_POINTS);
    agattr(drawing, AGNODE, text("height"), text("0.5")); // LAYOUT_HEIGHT
    Agnode_t **nodes = add_nodes(drawing, graph);
    for (int64_t i = 0; i < graph->edges; i++)
        agedge(drawing, nodes[graph->edge[i].from], nodes[graph->edge[i].to], NULL, 1);
    bool good = gvLayout(context, drawing, "dot") == 0;
    for (int64_t n = 0; good && n < graph->nodes; n++) {
        layout->x[n] = ND_coord(nodes[n]).x;
        layout->y[n] = -ND_coord(nodes[n]).y;
    }
    if (good)
        gvFreeLayout(context, drawing);
    agclose(drawing);
    gvFreeContext(context);
    free(nodes);
    return good;
}

void layout_graphviz_version(char *version, size_t bytes)
{
    GVC_t *context = gvContext();
    snprintf(version, bytes, "%s", gvcVersion(context));
    gvFreeContext(context);
}
