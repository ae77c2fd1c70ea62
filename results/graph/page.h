// page.h -- one HTML file that shows graphs, without a network: page.html, page.css and page.js are
// embedded in the program, what to show is JSON within the file.
//
// The document, whatever it is made from (page.js explains what it does with it):
//   title, summary: [text], warnings: [text]
//   tabs:  [{title, kind, group, note, nodes: [{n name, s second line, c class, d [[key, value]],
//            i inputs (indices), k codes (indices), r [[tab, node]] related, x, y, w}]}]
//   codes: [{name, kind, language, text, d [[key, value]], nodes [[tab, node]]}]
#pragma once

#include "harness/json.h"
#include "results/graph/layout.h"
#include "results/graph/torch_log.h"
#include "results/result.h"

// Local. The document of a log, and of a run of ours. Owner: the caller.
Json *page_of_log(const TorchLog *log);
Json *page_of_result(const Result *result, const char *name);

// Local. Writes the page. Errors as of file_writer_open.
bool page_write(const Json *document, const char *path, bool force, Error *error);

// ---- for those who make documents ----

// Local. A node with a place to be filled in by page_tab.
Json *page_node(const char *name, const char *second, const char *class_name);
// Local. Adds a row to a node's or a code's details; an empty value adds none.
void page_detail(Json *node, const char *key, const char *format, ...) PRINTF_LIKE(3, 4);
// Local. A tab of these nodes, laid out; takes the nodes over.
typedef struct PageTab {
    const char *title, *kind, *group;
    Json *nodes;
    const LayoutEdge *edges;
    int64_t edge_count;
} PageTab;
Json *page_tab(const PageTab *tab);
Json *page_pair(int64_t tab, int64_t node);
