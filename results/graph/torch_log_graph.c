// torch_log_graph.c -- a TRACED GRAPH block: the Python that torch.fx prints for a graph
// (torch/fx/graph.py), line by line.
//
//    ===== Forward graph 0 =====
//    <path> class GraphModule(torch.nn.Module):
//       def forward(self, primals_1: "f32[4, 4][4, 1]cpu", ...):
//           # File: model.py:335 in forward, code: y = x.t()
//           permute: "f32[4, 4][1, 4]cpu" = torch.ops.aten.permute.default(primals_1, [1, 0]);
//           primals_1 = None return (permute,)
//
// Joint graphs take `primals, tangents` and unpack them in the body; what the unpacking names are
// their placeholders. Sub-graphs of higher-order operations follow as indented classes.
#include "results/graph/torch_log_parser.h"

#include <stdlib.h>
#include <string.h>

static TracedGraph *open_graph(TorchLog *log, const Stream *stream)
{
    return &log->graphs.items[stream->graph];
}

static int new_graph(TorchLog *log, const Stream *stream, int parent, const char *title,
                     int64_t line)
{
    TracedGraph *graph = GROW(log->graphs);
    graph->title = title;
    graph->compile_id = stream->compile_id;
    graph->rank = stream->rank;
    graph->file = (int)log->files.count - 1;
    graph->parent = parent;
    graph->alike = -1;
    graph->module = -1;
    graph->line = line;
    return (int)log->graphs.count - 1;
}

LineFate graph_block_title(TorchLog *log, Stream *stream, const LogLine *line)
{
    static const struct {
        const char *word;
        GraphKind kind;
    } kinds[] = {{"Joint graph ", GRAPH_JOINT},
                 {"Forward graph ", GRAPH_FORWARD},
                 {"Backward graph ", GRAPH_BACKWARD},
                 {"Inference graph ", GRAPH_INFERENCE}};
    Slice text = slice_trim(line->text);
    if (text.bytes == 0)
        return LINE_UNDERSTOOD;
    stream->block = BLOCK_SKIPPED;
    if (!slice_starts(text, "==="))
        return LINE_NOISE;
    while (slice_take(&text, "="))
        continue;
    while (slice_ends(text, "="))
        text.bytes--;
    text = slice_trim(text);
    for (size_t i = 0; i < COUNT_OF(kinds); i++) {
        Slice rest = text;
        int64_t id;
        if (!slice_take(&rest, kinds[i].word) || !slice_take_number(&rest, &id))
            continue;
        stream->block = BLOCK_GRAPH;
        stream->graph = stream->top_graph =
            new_graph(log, stream, -1, keep(log, text), line->number);
        stream->in_signature = false;
        stream->place = -1;
        name_map_destroy(&stream->hint_of_name);
        stream->hints.count = 0;
        open_graph(log, stream)->kind = kinds[i].kind;
        open_graph(log, stream)->id = id;
        graph_awaits_module(log, stream->graph);
        return LINE_UNDERSTOOD;
    }
    return LINE_NOISE; // "AFTER POST GRAD", "__compiled_fn_1": other graphs than ours
}

// ---- hints and placeholders ----

// "name: hint", the hint maybe quoted; true if there is a name.
static bool split_hint(Slice item, Slice *name, Slice *hint)
{
    Slice rest = slice_trim(item);
    *name = slice_take_name(&rest);
    rest = slice_trim(rest);
    *hint = (Slice){"", 0};
    if (slice_take(&rest, ":")) {
        *hint = slice_trim(rest);
        bool quoted = hint->bytes >= 2 && (hint->at[0] == '"' || hint->at[0] == '\'');
        if (quoted)
            *hint = (Slice){hint->at + 1, hint->bytes - 2};
    }
    return name->bytes > 0;
}

static GraphNode *add_node(TorchLog *log, TracedGraph *graph, Slice name, NodeKind kind,
                           int64_t line)
{
    GraphNode *node = GROW(graph->nodes);
    node->name = keep(log, name);
    node->kind = kind;
    node->hint = node->target = node->arguments = node->note = "";
    node->place = -1;
    node->line = line;
    node->inputs.first = graph->inputs.count;
    if (kind != NODE_OUTPUT)
        name_map_put(&graph->node_of_name, node->name, graph->nodes.count - 1);
    return node;
}

static void add_placeholder(TorchLog *log, TracedGraph *graph, Slice item, Slice note, int64_t line)
{
    Slice name, hint;
    while (slice_take(&item, "*"))
        continue;
    if (!split_hint(item, &name, &hint) || slice_is(name, "self"))
        return;
    graph->placeholders++;
    // A brief log needs the dtypes of a module's arguments, which only its graph says.
    if (log->brief && (graph->kind == GRAPH_JOINT || graph->parent >= 0))
        return;
    GraphNode *node = add_node(log, graph, name, NODE_PLACEHOLDER, line);
    node->hint = keep(log, hint);
    node->note = log->brief ? "" : keep(log, note);
}

// Splits "code  # comment"; a '#' within quotes is none.
static Slice take_comment(Slice *text)
{
    char quote = '\0';
    for (size_t i = 0; i < text->bytes; i++) {
        char c = text->at[i];
        if (quote) {
            i += c == '\\';
            quote = c == quote ? '\0' : quote;
        } else if (c == '"' || c == '\'') {
            quote = c;
        } else if (c == '#') {
            Slice comment = slice_trim(slice_after(*text, i + 1));
            *text = slice_trim(slice_until(*text, i));
            return comment;
        }
    }
    return (Slice){"", 0};
}

// A line of the signature; it may be the only one, or hold one argument, or none.
static void signature_line(TorchLog *log, Stream *stream, Slice text, int64_t line)
{
    Slice note = take_comment(&text), item;
    bool last = slice_ends(text, "):") || slice_find(text, ") -> ") < text.bytes;
    if (last) {
        size_t arrow = slice_find(text, ") -> ");
        text = slice_until(text, arrow < text.bytes ? arrow : text.bytes - strlen("):"));
    }
    while (slice_take_item(&text, &item))
        add_placeholder(log, open_graph(log, stream), item, note, line);
    stream->in_signature = !last;
}

// primals_1: "f32[4, 4]"; primals_2: "f32[4]";   # the role of the last
static bool hint_line(TorchLog *log, Stream *stream, Slice text)
{
    Slice note = take_comment(&text);
    bool any = false;
    while (text.bytes) {
        Slice name, hint, rest = text;
        slice_take_name(&rest);
        rest = slice_trim(rest);
        if (!slice_starts(rest, ":"))
            return any;
        size_t end = 0; // of the hint: a ';' outside its quotes
        for (bool quoted = false; end < text.bytes && (quoted || text.at[end] != ';'); end++)
            quoted ^= text.at[end] == '"';
        split_hint(slice_until(text, end), &name, &hint);
        any = true;
        text = slice_trim(slice_after(text, end + 1));
        if (log->brief && open_graph(log, stream)->kind == GRAPH_JOINT)
            continue;
        *GROW(stream->hints) = keep(log, hint);
        *GROW(stream->hints) = keep(log, note);
        name_map_put(&stream->hint_of_name, keep(log, name), stream->hints.count - 2);
    }
    return any;
}

// a, b, = fx_pytree.tree_flatten_spec(...): these are the placeholders.
static void unpack_line(TorchLog *log, Stream *stream, Slice names, int64_t line)
{
    TracedGraph *graph = open_graph(log, stream);
    Slice name;
    name_map_destroy(&graph->node_of_name);
    graph->nodes.count = graph->inputs.count = graph->placeholders = 0;
    while (slice_take_item(&names, &name)) {
        add_placeholder(log, graph, name, (Slice){"", 0}, line);
        int64_t hint = name_map_find(&stream->hint_of_name, name);
        if (hint < 0 || graph->nodes.count == 0)
            continue;
        GraphNode *node = &graph->nodes.items[graph->nodes.count - 1];
        node->hint = stream->hints.items[hint];
        node->note = stream->hints.items[hint + 1];
    }
}

// ---- operations ----

// Adds the nodes whose names stand in the expression, each once, in order.
static void add_inputs(TracedGraph *graph, GraphNode *node, int64_t self, Slice expression)
{
    node->inputs.first = graph->inputs.count;
    for (size_t i = 0; i < expression.bytes;) {
        char c = expression.at[i];
        Slice rest = slice_after(expression, i);
        Slice name = slice_take_name(&rest);
        if (name.bytes == 0) {
            i++;
            // Digits do not begin a name, but belong to what came before.
            while (c >= '0' && c <= '9' && i < expression.bytes && expression.at[i] >= '0' &&
                   expression.at[i] <= '9')
                i++;
            continue;
        }
        bool member = i > 0 && expression.at[i - 1] == '.';
        bool keyword = slice_starts(rest, " = ") || slice_starts(rest, "=");
        i += name.bytes;
        int64_t input = member || keyword ? -1 : name_map_find(&graph->node_of_name, name);
        bool known = input >= 0 && input != self;
        for (int64_t k = node->inputs.first; known && k < graph->inputs.count; k++)
            known = graph->inputs.items[k] != input;
        if (known)
            *GROW(graph->inputs) = (int)input;
    }
    node->inputs.count = graph->inputs.count - node->inputs.first;
}

static void operation_line(TorchLog *log, Stream *stream, Slice name, Slice hint, Slice rest,
                           int64_t line)
{
    TracedGraph *graph = open_graph(log, stream);
    graph->operations++;
    if (log->brief)
        return;
    // The names set to None behind ';' only end their lives. No expression of fx holds a ';' but in
    // quotes, and none of ours looks into these.
    Slice expression = slice_trim(slice_until(rest, slice_find(rest, ";  ")));
    if (slice_ends(expression, ";"))
        expression.bytes--;
    size_t open = slice_find_char(expression, '(');
    bool call = open > 0 && open < expression.bytes && slice_ends(expression, ")");
    GraphNode *node = add_node(log, graph, name, NODE_OPERATION, line);
    node->hint = keep(log, hint);
    node->target = keep(log, call ? slice_until(expression, open) : expression);
    Slice arguments = slice_after(expression, open + 1);
    arguments.bytes -= call;
    node->arguments = call ? keep(log, arguments) : "";
    node->place = stream->place;
    add_inputs(graph, node, graph->nodes.count - 1, call ? arguments : expression);
}

// Leaves of nested tuples and lists: "a, (b, [c]), None" has four.
static int64_t count_leaves(Slice list)
{
    int64_t leaves = 0;
    bool in_leaf = false;
    for (size_t i = 0; i < list.bytes; i++) {
        char c = list.at[i];
        bool between = memchr("()[]{}, ", c, 8) != NULL;
        leaves += !between && !in_leaf;
        in_leaf = !between;
    }
    return leaves;
}

static void return_line(TorchLog *log, Stream *stream, Slice value, int64_t line)
{
    TracedGraph *graph = open_graph(log, stream);
    if (slice_starts(value, "pytree.tree_unflatten("))
        value = slice_inside(value, '[');
    graph->outputs = count_leaves(value);
    graph->has_outputs = true;
    if (log->brief)
        return;
    GraphNode *node = add_node(log, graph, slice_of("output"), NODE_OUTPUT, line);
    node->arguments = keep(log, value);
    node->target = "return";
    add_inputs(graph, node, graph->nodes.count - 1, value);
}

// # File: model.py:12 in forward, code: y = x @ w
static void comment(TorchLog *log, Stream *stream, Slice text)
{
    slice_take(&text, "#");
    text = slice_trim(text);
    if (slice_starts(text, "No stacktrace"))
        stream->place = -1;
    if (!slice_take(&text, "File: ") || log->brief)
        return;
    TracedGraph *graph = open_graph(log, stream);
    SourcePlace *place = GROW(graph->places);
    size_t code = slice_find(text, ", code: ");
    Slice where = slice_until(text, code);
    size_t in = slice_find(where, " in ");
    Slice file = slice_until(where, in), number = file;
    size_t colon = file.bytes;
    while (colon > 0 && file.at[colon - 1] != ':')
        colon--;
    number = slice_after(file, colon);
    place->line = 0;
    bool numbered = colon > 0 && slice_take_number(&number, &place->line) && number.bytes == 0;
    place->file = keep(log, numbered ? slice_until(file, colon - 1) : file);
    place->function = keep(log, slice_after(where, in + strlen(" in ")));
    place->code = keep(log, slice_after(text, code + strlen(", code: ")));
    stream->place = (int)graph->places.count - 1;
}

// class subgraph_0(torch.nn.Module): the body of a branch or a loop of the graph above.
static void class_line(TorchLog *log, Stream *stream, Slice text, int64_t line)
{
    const TracedGraph *top = &log->graphs.items[stream->top_graph];
    bool first = top->placeholders + top->operations == 0 && !top->has_outputs;
    if (first)
        return;
    slice_take(&text, "class ");
    GraphKind kind = top->kind;
    int64_t id = top->id;
    stream->graph =
        new_graph(log, stream, stream->top_graph, keep(log, slice_take_name(&text)), line);
    open_graph(log, stream)->kind = kind;
    open_graph(log, stream)->id = id;
    stream->place = -1;
}

// An assignment: "name = ...", "name: hint = ...". Gives what stands right of the sign.
static bool split_assignment(Slice text, Slice *name, Slice *hint, Slice *rest)
{
    Slice after = text;
    *name = slice_take_name(&after);
    *hint = (Slice){"", 0};
    if (name->bytes == 0)
        return false;
    if (slice_take(&after, ": \"")) {
        size_t close = slice_find_char(after, '"');
        *hint = slice_until(after, close);
        after = slice_after(after, close + 1);
    } else if (slice_take(&after, ": ")) {
        size_t sign = slice_find(after, " = ");
        *hint = slice_until(after, sign);
        after = slice_after(after, sign);
    }
    *rest = after;
    return slice_take(rest, " = ");
}

// a, b, = fx_pytree.tree_flatten_spec(...)
static bool is_unpacking(Slice text)
{
    Slice rest = text;
    bool list = slice_take_name(&rest).bytes == 0 || slice_starts(rest, ",");
    return list && slice_find(rest, "tree_flatten_spec(") < rest.bytes;
}

LineFate graph_block_line(TorchLog *log, Stream *stream, const LogLine *line)
{
    Slice text = slice_trim(line->text), name, hint, rest = text;
    if (text.bytes == 0)
        return LINE_UNDERSTOOD;
    if (slice_ends(text, "(torch.nn.Module):")) {
        class_line(log, stream, text, line->number);
    } else if (slice_take(&rest, "def forward(")) {
        signature_line(log, stream, rest, line->number);
    } else if (text.at[0] == '#') {
        comment(log, stream, text);
    } else if (stream->in_signature) {
        signature_line(log, stream, text, line->number);
    } else if (slice_take(&rest, "return ") || slice_is(rest, "return")) {
        return_line(log, stream, rest, line->number);
    } else if (is_unpacking(text)) {
        unpack_line(log, stream, slice_until(text, slice_find(text, " = ")), line->number);
    } else if (split_assignment(text, &name, &hint, &rest)) {
        operation_line(log, stream, name, hint, rest, line->number);
    } else if (!hint_line(log, stream, text)) {
        return LINE_UNKNOWN;
    }
    return LINE_UNDERSTOOD;
}
