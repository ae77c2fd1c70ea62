// page_log.c -- a TorchLog as a page: a tab for each traced graph, a tab for each generated module
// (its calls, and what they hand to each other), and the kernels' code.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "results/graph/page.h"
#include "results/graph/torch_log_show.h"
#include "results/table.h"

enum { SECOND_BYTES = 64, TITLE_BYTES = 160 };

typedef struct EdgeList {
    LayoutEdge *items;
    int64_t count, capacity;
} EdgeList;

// "torch.ops.aten.mm.default" and "f32[64, 512][512, 1]cuda:0" give "mm f32[64, 512]".
static void second_line(const GraphNode *node, char *text, size_t bytes)
{
    Slice operation = operation_name(node->target), hint = slice_of(node->hint);
    size_t close = slice_find_char(hint, ']');
    Slice shape = slice_until(hint, close + 1);
    if (node->kind != NODE_OPERATION)
        operation.bytes = 0;
    snprintf(text, bytes, "%.*s%s%.*s", (int)(operation.bytes < 30 ? operation.bytes : 30),
             operation.at, operation.bytes && shape.bytes ? " " : "",
             (int)(shape.bytes < 30 ? shape.bytes : 30), shape.at);
}

static void group_name(int file, int rank, int64_t id, char *text, size_t bytes)
{
    snprintf(text, bytes, "%d/%d/%lld", file, rank, (long long)id);
}

static const char *node_class(const GraphNode *node)
{
    static const char *const names[] = {"placeholder", "operation", "output"};
    return names[node->kind];
}

static Json *graph_node(const TracedGraph *graph, const GraphNode *node)
{
    char second[SECOND_BYTES];
    second_line(node, second, sizeof(second));
    Json *made = page_node(node->name, second, node_class(node));
    page_detail(made, "shape", "%s", node->hint);
    if (node->kind != NODE_PLACEHOLDER)
        page_detail(made, "operation", "%s", node->target);
    page_detail(made, "arguments", "%s", node->arguments);
    page_detail(made, "role", "%s", node->note);
    if (node->place >= 0) {
        const SourcePlace *place = &graph->places.items[node->place];
        page_detail(made, "source", "%s:%lld in %s", place->file, (long long)place->line,
                    place->function);
        page_detail(made, "source line", "%s", place->code);
    }
    page_detail(made, "line of the log", "%lld", (long long)node->line);
    return made;
}

static Json *graph_tab(const TorchLog *log, const TracedGraph *graph)
{
    char title[TITLE_BYTES], group[64];
    Json *nodes = json_array();
    EdgeList edges = {NULL, 0, 0};
    for (int64_t n = 0; n < graph->nodes.count; n++) {
        const GraphNode *node = &graph->nodes.items[n];
        json_append(nodes, graph_node(graph, node));
        for (int64_t i = 0; i < node->inputs.count; i++)
            *GROW(edges) = (LayoutEdge){graph->inputs.items[node->inputs.first + i], (int)n};
    }
    bool several = log->files.count > 1 || graph->rank > 0;
    snprintf(title, sizeof(title), "%s %lld%s%.60s", graph_kind_name(graph->kind),
             (long long)graph->id, graph->parent >= 0 ? " / " : "",
             graph->parent >= 0 ? graph->title : "");
    size_t length = strlen(title);
    if (several)
        snprintf(title + length, sizeof(title) - length, ", rank %d", graph->rank);
    group_name(graph->file, graph->rank, graph->id, group, sizeof(group));
    Json *tab = page_tab(&(PageTab){.title = title,
                                    .kind = graph_kind_name(graph->kind),
                                    .group = group,
                                    .nodes = nodes,
                                    .edges = edges.items,
                                    .edge_count = edges.count});
    free(edges.items);
    return tab;
}

// ---- modules ----

// What a call does with one of its arguments.
static void argument_role(const TorchLog *log, const LogCall *call, int64_t index, Slice *argument,
                          bool *reads, bool *writes)
{
    *reads = true;
    *writes = slice_take(argument, "out=");
    *reads = !*writes;
    if (call->kernel < 0)
        return;
    const LogKernel *kernel = &log->kernels.items[call->kernel];
    *reads = *writes = false;
    if (index < kernel->parameters.count) {
        *reads = kernel->parameters.items[index].reads;
        *writes = kernel->parameters.items[index].writes;
    }
}

typedef struct CallGraph {
    const TorchLog *log;
    const LogModule *module;
    Json *nodes;
    EdgeList edges;
    int *writer; // [buffers] node that wrote it last, -1
} CallGraph;

// The node that wrote what is in a buffer's memory; an argument of the module gets a node here.
static int writer_of(CallGraph *made, Slice name)
{
    const LogModule *module = made->module;
    int64_t index = name_map_find(&module->buffer_of_name, name);
    for (int64_t hops = 0; index >= 0 && made->writer[index] < 0 && hops < 64; hops++) {
        const LogBuffer *buffer = &module->buffers.items[index];
        if (!buffer->reuses[0])
            break;
        index = name_map_find(&module->buffer_of_name, slice_of(buffer->reuses));
    }
    if (index < 0)
        return -1;
    if (made->writer[index] < 0 &&
        !slice_starts(slice_of(module->buffers.items[index].name), "buf")) {
        const LogBuffer *buffer = &module->buffers.items[index];
        char second[SECOND_BYTES];
        snprintf(second, sizeof(second), "%.20s[%.30s]", buffer->dtype, buffer->sizes);
        Json *node = page_node(buffer->name, second, "placeholder");
        page_detail(node, "shape", "%s", second);
        json_append(made->nodes, node);
        made->writer[index] = (int)json_count(made->nodes) - 1;
    }
    return made->writer[index];
}

static Slice tensor_name(Slice argument)
{
    slice_take(&argument, "reinterpret_tensor(");
    return slice_take_name(&argument);
}

static void add_edge(CallGraph *made, int from, int to)
{
    if (from < 0 || from >= to)
        return;
    for (int64_t i = made->edges.count; i-- > 0 && made->edges.items[i].to == to;)
        if (made->edges.items[i].from == from)
            return;
    *GROW(made->edges) = (LayoutEdge){from, to};
}

static void join_names(const NameList *names, char *text, size_t bytes)
{
    text[0] = '\0';
    for (int64_t i = 0; i < names->count; i++) {
        size_t length = strlen(text);
        snprintf(text + length, bytes - length, "%s%s", i ? ", " : "", names->items[i]);
    }
}

static void describe_bytes(Json *node, double read_bytes, double written_bytes)
{
    char text[32];
    page_detail(node, "bytes read", "%s",
                isnan(read_bytes) ? "not known" : table_bytes(read_bytes, text, sizeof(text)));
    page_detail(node, "bytes written", "%s",
                isnan(written_bytes) ? "not known"
                                     : table_bytes(written_bytes, text, sizeof(text)));
}

// A row for each tensor: what the call calls it, whether it reads or writes it, its shape.
static void describe_arguments(const TorchLog *log, const LogModule *module, const LogCall *call,
                               Json *node)
{
    Slice list = slice_of(call->arguments), argument;
    for (int64_t i = 0; slice_take_item(&list, &argument); i++) {
        bool reads, writes;
        argument_role(log, call, i, &argument, &reads, &writes);
        int64_t index = name_map_find(&module->buffer_of_name, tensor_name(argument));
        if (index < 0 || (!reads && !writes))
            continue;
        const LogBuffer *buffer = &module->buffers.items[index];
        const char *role = reads && writes ? "reads, writes" : reads ? "reads" : "writes";
        page_detail(node, role, "%s  %s[%s]", buffer->name, buffer->dtype, buffer->sizes);
    }
}

// "buf3 = extern_kernels.mm": calls of one kernel are told apart by what they write.
static void call_title(const TorchLog *log, const LogCall *call, char *title, size_t bytes)
{
    Slice list = slice_of(call->arguments), argument;
    size_t length = (size_t)snprintf(title, bytes, "%.40s", call->result);
    for (int64_t i = 0; slice_take_item(&list, &argument) && length < bytes / 2; i++) {
        bool reads, writes;
        argument_role(log, call, i, &argument, &reads, &writes);
        Slice name = tensor_name(argument);
        if (writes)
            length += (size_t)snprintf(title + length, bytes - length, "%s%.*s", length ? ", " : "",
                                       (int)(name.bytes < 40 ? name.bytes : 40), name.at);
    }
    snprintf(title + length, bytes - length, "%s%s", length ? " = " : "", call->name);
}

static Json *call_node(const TorchLog *log, const LogModule *module, const LogCall *call)
{
    char names[2048], title[TITLE_BYTES];
    call_title(log, call, title, sizeof(title));
    const LogKernel *kernel = call->kernel < 0 ? NULL : &log->kernels.items[call->kernel];
    Json *node = page_node(title, kernel ? kernel->kind : "extern", kernel ? "kernel" : "extern");
    page_detail(node, "arguments", "%s", call->arguments);
    page_detail(node, "result", "%s", call->result);
    describe_arguments(log, module, call, node);
    describe_bytes(node, call->read_bytes, call->written_bytes);
    join_names(&call->original_aten, names, sizeof(names));
    page_detail(node, "original ATen", "%s", names);
    join_names(&call->source_nodes, names, sizeof(names));
    page_detail(node, "source nodes", "%s", names);
    page_detail(node, "line of the log", "%lld", (long long)call->line);
    if (kernel)
        json_append((Json *)(uintptr_t)json_find(node, "k"), json_integer(call->kernel));
    const IntList *covered = kernel ? &kernel->nodes : &call->nodes;
    for (int64_t i = 0; module->graph >= 0 && i < covered->count; i++)
        json_append((Json *)(uintptr_t)json_find(node, "r"),
                    page_pair(module->graph, covered->items[i]));
    return node;
}

static void add_call(CallGraph *made, const LogCall *call)
{
    Slice list = slice_of(call->arguments), argument;
    IntList from = {NULL, 0, 0}, written = {NULL, 0, 0};
    for (int64_t i = 0; slice_take_item(&list, &argument); i++) {
        bool reads, writes;
        argument_role(made->log, call, i, &argument, &reads, &writes);
        Slice name = tensor_name(argument);
        if (reads)
            *GROW(from) = writer_of(made, name);
        if (writes)
            *GROW(written) = (int)name_map_find(&made->module->buffer_of_name, name);
    }
    if (call->result[0])
        *GROW(written) = (int)name_map_find(&made->module->buffer_of_name, slice_of(call->result));
    int self = (int)json_count(made->nodes);
    json_append(made->nodes, call_node(made->log, made->module, call));
    for (int64_t i = 0; i < from.count; i++)
        add_edge(made, from.items[i], self);
    for (int64_t i = 0; i < written.count; i++)
        if (written.items[i] >= 0)
            made->writer[written.items[i]] = self;
    free(from.items);
    free(written.items);
}

// calls: for each call of the module, the index of its node.
static Json *module_tab(const TorchLog *log, const LogModule *module, IntList *calls)
{
    CallGraph made = {.log = log, .module = module, .nodes = json_array()};
    made.writer = malloc(((size_t)module->buffers.count + 1) * sizeof(int));
    CHECK(made.writer, EXIT_CODE_HARDWARE, "free memory", "no memory for a page");
    for (int64_t i = 0; i < module->buffers.count; i++)
        made.writer[i] = -1;
    for (int64_t c = 0; c < module->calls.count; c++) {
        add_call(&made, &module->calls.items[c]);
        *GROW(*calls) = (int)json_count(made.nodes) - 1;
    }
    char title[TITLE_BYTES], group[64];
    snprintf(title, sizeof(title), "code %.80s", module->aot_id[0] ? module->aot_id : "?");
    size_t length = strlen(title);
    if (log->files.count > 1 || module->rank > 0)
        snprintf(title + length, sizeof(title) - length, ", rank %d", module->rank);
    group_name(module->file, module->rank, module->id, group, sizeof(group));
    Json *tab = page_tab(&(PageTab){.title = title,
                                    .kind = "code",
                                    .group = group,
                                    .nodes = made.nodes,
                                    .edges = made.edges.items,
                                    .edge_count = made.edges.count});
    free(made.edges.items);
    free(made.writer);
    return tab;
}

// ---- kernels ----

// The lines of the user's program that a kernel comes from, each once.
static void describe_places(const TorchLog *log, const LogModule *module, const LogKernel *kernel,
                            Json *code)
{
    const TracedGraph *graph = module->graph < 0 ? NULL : &log->graphs.items[module->graph];
    IntList shown = {NULL, 0, 0};
    for (int64_t i = 0; graph && i < kernel->nodes.count; i++) {
        int place = graph->nodes.items[kernel->nodes.items[i]].place;
        bool is_new = place >= 0;
        for (int64_t k = 0; is_new && k < shown.count; k++) {
            const SourcePlace *a = &graph->places.items[place];
            const SourcePlace *b = &graph->places.items[shown.items[k]];
            is_new = a->line != b->line || strcmp(a->file, b->file) != 0;
        }
        if (!is_new)
            continue;
        *GROW(shown) = place;
        page_detail(code, "source", "%s:%lld in %s", graph->places.items[place].file,
                    (long long)graph->places.items[place].line,
                    graph->places.items[place].function);
    }
    free(shown.items);
}

static Json *kernel_code(const TorchLog *log, int index)
{
    const LogKernel *kernel = &log->kernels.items[index];
    const LogModule *module = &log->modules.items[kernel->module];
    char names[2048];
    Json *code = json_set(json_object(), "name", json_text(kernel->name));
    json_set(code, "kind", json_text(kernel->kind));
    json_set(code, "language", json_text(kernel->language));
    json_set(code, "text", json_text(kernel->code));
    json_set(code, "d", json_array());
    page_detail(code, "kind", "%s, %s", kernel->kind, kernel->language);
    page_detail(code, "code of", "%s", module->aot_id);
    page_detail(code, "calls", "%lld", (long long)kernel->calls);
    for (int64_t c = 0; c < module->calls.count; c++) {
        if (module->calls.items[c].kernel != index)
            continue;
        describe_arguments(log, module, &module->calls.items[c], code);
        break; // the other calls have the same shapes
    }
    describe_bytes(code, kernel->read_bytes, kernel->written_bytes);
    join_names(&kernel->original_aten, names, sizeof(names));
    page_detail(code, "original ATen", "%s", names);
    join_names(&kernel->source_nodes, names, sizeof(names));
    page_detail(code, "source nodes", "%s", names);
    if (kernel->user_file[0])
        page_detail(code, "written in", "%s:%lld", kernel->user_file, (long long)kernel->user_line);
    describe_places(log, module, kernel, code);
    page_detail(code, "cache file", "%s", kernel->hash);
    if (kernel->nodes_guessed)
        page_detail(code, "nodes", "guessed from the kernel's name: the log names none");
    Json *nodes = json_array();
    for (int64_t i = 0; module->graph >= 0 && i < kernel->nodes.count; i++)
        json_append(nodes, page_pair(module->graph, kernel->nodes.items[i]));
    return json_set(code, "nodes", nodes);
}

static Json *node_at(const Json *tabs, int64_t tab, int64_t node)
{
    return (Json *)(uintptr_t)json_at(json_find(json_at(tabs, (uint64_t)tab), "nodes"),
                                      (uint64_t)node);
}

// Graph nodes learn which kernel covers them and which call they became.
static void link_nodes(const TorchLog *log, const LogModule *module, int64_t module_tab_index,
                       const IntList *calls, Json *tabs)
{
    for (int64_t k = 0; module->graph >= 0 && k < module->kernels.count; k++) {
        const LogKernel *kernel = &log->kernels.items[module->kernels.items[k]];
        for (int64_t i = 0; i < kernel->nodes.count; i++) {
            Json *node = node_at(tabs, module->graph, kernel->nodes.items[i]);
            json_append((Json *)(uintptr_t)json_find(node, "k"),
                        json_integer(module->kernels.items[k]));
        }
    }
    for (int64_t c = 0; module->graph >= 0 && c < module->calls.count; c++) {
        const LogCall *call = &module->calls.items[c];
        const IntList *covered =
            call->kernel >= 0 ? &log->kernels.items[call->kernel].nodes : &call->nodes;
        for (int64_t i = 0; i < covered->count; i++) {
            Json *node = node_at(tabs, module->graph, covered->items[i]);
            json_append((Json *)(uintptr_t)json_find(node, "r"),
                        page_pair(module_tab_index, calls->items[c]));
        }
    }
}

static Json *texts_of_log(const TorchLog *log, Json *document)
{
    char text[400];
    Json *summary = json_array(), *warnings = json_array();
    torch_log_coverage(log, text, sizeof(text));
    json_append(summary, json_text(text));
    for (int i = 0; i < log->unknown_count; i++) {
        snprintf(text, sizeof(text), "not understood: %.120s:%lld: %.200s",
                 log->files.items[log->unknown[i].file].name, (long long)log->unknown[i].line,
                 log->unknown[i].text);
        json_append(warnings, json_text(text));
    }
    for (int64_t g = 0; g < log->graphs.count; g++) {
        const TracedGraph *graph = &log->graphs.items[g];
        if (graph->has_outputs)
            continue;
        snprintf(text, sizeof(text), "cut off before its return: %.100s, line %lld of the log",
                 graph->title, (long long)graph->line);
        json_append(warnings, json_text(text));
    }
    if (log->graphs.count == 0)
        json_append(warnings,
                    json_text("The log has no traced graph, only kernels. "
                              "TORCH_LOGS=aot_joint_graph,aot_graphs,output_code prints both."));
    json_set(document, "summary", summary);
    return json_set(document, "warnings", warnings);
}

Json *page_of_log(const TorchLog *log)
{
    char title[TITLE_BYTES];
    const char *name = log->files.count ? log->files.items[0].name : "";
    const char *slash = strrchr(name, '/');
    snprintf(title, sizeof(title), "%.100s%s", slash ? slash + 1 : name,
             log->files.count > 1 ? " and more" : "");
    Json *document = json_set(json_object(), "title", json_text(title));
    Json *tabs = json_array(), *codes = json_array();
    texts_of_log(log, document);
    for (int64_t g = 0; g < log->graphs.count; g++)
        json_append(tabs, graph_tab(log, &log->graphs.items[g]));
    for (int64_t m = 0; m < log->modules.count; m++) {
        const LogModule *module = &log->modules.items[m];
        IntList calls = {NULL, 0, 0};
        json_append(tabs, module_tab(log, module, &calls));
        link_nodes(log, module, log->graphs.count + m, &calls, tabs);
        free(calls.items);
    }
    for (int64_t k = 0; k < log->kernels.count; k++)
        json_append(codes, kernel_code(log, (int)k));
    json_set(document, "tabs", tabs);
    return json_set(document, "codes", codes);
}
