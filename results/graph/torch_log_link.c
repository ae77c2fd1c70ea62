// torch_log_link.c -- behind a module's last line: from which graph it was made, which nodes a
// kernel covers, and how many bytes a call must move.
//
// A kernel's comments name the nodes of its graph ("Graph fragment"). C++ kernels have no comments:
// theirs are guessed from the operations in their name, and marked so. For extern calls the first
// node that does the same operation, has the result's shape and is not taken yet is chosen. Bytes
// count every tensor argument once, in the size that its shape has in memory.
#include "results/graph/torch_log_parser.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_BYTES = 80 };

// ---- modules and graphs ----

// What a module and its graph have in common. Joint graphs have no module of their own.
static Slice join_key(GraphKind kind, int file, int rank, int64_t id, char text[KEY_BYTES])
{
    const char *word = kind == GRAPH_BACKWARD ? "backward" : "forward";
    snprintf(text, KEY_BYTES, "%d %d %lld %s", file, rank, (long long)id, word);
    return slice_of(text);
}

// Programs that were run one after the other use the same ids again, so those that wait under a key
// are a stack: the last one goes first.
void graph_awaits_module(TorchLog *log, int index)
{
    TracedGraph *graph = &log->graphs.items[index];
    NameMap *waiting = &log->parser->graph_of_key;
    char text[KEY_BYTES];
    if (graph->kind == GRAPH_JOINT)
        return;
    Slice key = join_key(graph->kind, graph->file, graph->rank, graph->id, text);
    graph->alike = (int)name_map_find(waiting, key);
    name_map_put(waiting, keep(log, key), index);
}

static void join_module(TorchLog *log, int index)
{
    LogModule *module = &log->modules.items[index];
    NameMap *waiting = &log->parser->graph_of_key;
    char text[KEY_BYTES];
    Slice key = join_key(module->kind, module->file, module->rank, module->id, text);
    int64_t found = module->graph < 0 ? name_map_find(waiting, key) : -1;
    if (found < 0)
        return;
    TracedGraph *graph = &log->graphs.items[found];
    name_map_put(waiting, keep(log, key), graph->alike);
    module->graph = (int)found;
    graph->module = index;
    if (module->kind == GRAPH_INFERENCE)
        graph->kind = GRAPH_INFERENCE;
}

// ---- nodes ----

Slice operation_name(const char *target)
{
    static const char *const spaces[] = {
        "torch.ops.aten.", "torch.ops.prims.", "aten.",     "prims.",
        "extern_kernels.", "aten::",           "torch.ops."};
    Slice name = slice_of(target);
    for (size_t i = 0; i < COUNT_OF(spaces); i++)
        if (slice_take(&name, spaces[i]))
            break;
    return slice_until(name, slice_find_char(name, '.'));
}

static void nodes_of_fragment(const TracedGraph *graph, LogKernel *kernel)
{
    for (int64_t i = 0; i < kernel->fragment.count; i++) {
        int64_t node = name_map_find(&graph->node_of_name, slice_of(kernel->fragment.items[i]));
        if (node >= 0)
            *GROW(kernel->nodes) = (int)node;
    }
}

// Does "cpp_fused_add_mean_mul_0" name the operation? Names of operations may hold '_' themselves.
static bool name_holds(const char *kernel_name, Slice operation)
{
    Slice rest = slice_of(kernel_name);
    while (operation.bytes > 0 && rest.bytes > operation.bytes) {
        rest = slice_after(rest, slice_find_char(rest, '_') + 1);
        bool here = rest.bytes > operation.bytes && rest.at[operation.bytes] == '_' &&
                    slice_same(slice_until(rest, operation.bytes), operation);
        if (here)
            return true;
    }
    return false;
}

static void guess_nodes(const TracedGraph *graph, LogKernel *kernel)
{
    for (int64_t n = 0; n < graph->nodes.count; n++) {
        const GraphNode *node = &graph->nodes.items[n];
        if (node->kind == NODE_OPERATION && name_holds(kernel->name, operation_name(node->target)))
            *GROW(kernel->nodes) = (int)n;
    }
    kernel->nodes_guessed = kernel->nodes.count > 0;
}

// "f32[64, 512][512, 1]cuda:0" has the sizes "64, 512".
static Slice sizes_of_hint(const char *hint)
{
    return slice_inside(slice_of(hint), '[');
}

static bool same_operation(Slice call, Slice node)
{
    if (slice_same(call, node))
        return true;
    // Inductor joins a product and the addition behind it.
    return (slice_is(call, "addmm") || slice_is(call, "bias_addmm")) && slice_is(node, "mm");
}

static void link_extern_calls(const TracedGraph *graph, LogModule *module)
{
    bool *taken = calloc((size_t)graph->nodes.count + 1, sizeof(*taken));
    CHECK(taken, EXIT_CODE_HARDWARE, "free memory", "no memory for %lld nodes",
          (long long)graph->nodes.count);
    for (int64_t c = 0; c < module->calls.count; c++) {
        LogCall *call = &module->calls.items[c];
        if (call->kernel >= 0)
            continue;
        size_t out = slice_find(slice_of(call->arguments), "out=");
        Slice result = slice_after(slice_of(call->arguments), out + strlen("out="));
        result = call->result[0] ? slice_of(call->result) : slice_take_name(&result);
        int64_t buffer = name_map_find(&module->buffer_of_name, result);
        const char *sizes = buffer >= 0 ? module->buffers.items[buffer].sizes : "";
        Slice operation = operation_name(call->name);
        for (int64_t n = 0; n < graph->nodes.count; n++) {
            const GraphNode *node = &graph->nodes.items[n];
            bool fits = node->kind == NODE_OPERATION && !taken[n] &&
                        same_operation(operation, operation_name(node->target)) &&
                        (!sizes[0] || !node->hint[0] || slice_is(sizes_of_hint(node->hint), sizes));
            if (!fits)
                continue;
            taken[n] = true;
            *GROW(call->nodes) = (int)n;
            break;
        }
    }
    free(taken);
}

// ---- bytes ----

// Arguments of a graph have no dtype in call(), but a hint in the graph, and a type where a kernel
// takes them.
static void complete_dtypes(TorchLog *log, LogModule *module)
{
    const TracedGraph *graph = module->graph < 0 ? NULL : &log->graphs.items[module->graph];
    for (int64_t n = 0; graph && n < graph->nodes.count; n++) {
        const GraphNode *node = &graph->nodes.items[n];
        int64_t at = node->kind == NODE_PLACEHOLDER && node->hint[0]
                         ? name_map_find(&module->buffer_of_name, slice_of(node->name))
                         : -1;
        if (at < 0 || module->buffers.items[at].element_bytes)
            continue;
        Slice hint = slice_of(node->hint);
        Slice dtype = slice_until(hint, slice_find_char(hint, '['));
        module->buffers.items[at].dtype = pool_keep(module->pool, dtype);
        module->buffers.items[at].element_bytes = element_bytes_of(dtype);
    }
    for (int64_t c = 0; c < module->calls.count; c++) {
        const LogCall *call = &module->calls.items[c];
        const LogKernel *kernel = call->kernel < 0 ? NULL : &log->kernels.items[call->kernel];
        Slice list = slice_of(call->arguments), item;
        for (int64_t i = 0; kernel && i < kernel->parameters.count; i++) {
            if (!slice_take_item(&list, &item))
                break;
            int64_t at = name_map_find(&module->buffer_of_name, item);
            if (at >= 0 && !module->buffers.items[at].element_bytes)
                module->buffers.items[at].element_bytes = kernel->parameters.items[i].element_bytes;
        }
    }
}

// Bytes of "buf3" or "reinterpret_tensor(buf3, ...)"; 0 for what is no tensor; NaN when unknown.
static double argument_bytes(const LogModule *module, Slice argument)
{
    Slice rest = argument, sizes = {"", 0}, strides = {"", 0};
    bool viewed = slice_take(&rest, "reinterpret_tensor(");
    Slice name = slice_take_name(&rest);
    int64_t index = name_map_find(&module->buffer_of_name, name);
    if (index < 0)
        return 0;
    const LogBuffer *buffer = &module->buffers.items[index];
    int64_t elements = buffer->elements;
    if (viewed && slice_take(&rest, ",")) {
        int64_t size = 1, one, step;
        slice_take_item(&rest, &sizes);
        slice_take_item(&rest, &strides);
        Slice list = slice_inside(sizes, '('), steps = slice_inside(strides, '('), item, by;
        while (size >= 0 && slice_take_item(&list, &item)) {
            bool repeated = slice_take_item(&steps, &by) && slice_is(by, "0");
            bool known = slice_take_number(&item, &one) && item.bytes == 0;
            step = repeated ? 1 : one;
            size = known && (step == 0 || size <= INT64_MAX / step) ? size * step : -1;
        }
        elements = size;
    }
    return elements < 0 || !buffer->element_bytes ? (double)NAN
                                                  : (double)elements * buffer->element_bytes;
}

static void estimate_kernel(const LogModule *module, const LogKernel *kernel, LogCall *call)
{
    Slice list = slice_of(call->arguments), item;
    if (kernel->parameters.count == 0) // a choice between kernels, or a language not taken apart
        call->read_bytes = call->written_bytes = (double)NAN;
    for (int64_t i = 0; i < kernel->parameters.count && slice_take_item(&list, &item); i++) {
        double bytes = argument_bytes(module, item);
        call->read_bytes += kernel->parameters.items[i].reads ? bytes : 0;
        call->written_bytes += kernel->parameters.items[i].writes ? bytes : 0;
    }
}

static void estimate_extern(const LogModule *module, LogCall *call)
{
    Slice list = slice_of(call->arguments), item;
    bool has_out = false;
    while (slice_take_item(&list, &item)) {
        bool out = slice_take(&item, "out=");
        double bytes = argument_bytes(module, item);
        *(out ? &call->written_bytes : &call->read_bytes) += bytes;
        has_out |= out;
    }
    if (!has_out)
        call->written_bytes =
            call->result[0] ? argument_bytes(module, slice_of(call->result)) : (double)NAN;
}

static void estimate_calls(TorchLog *log, LogModule *module)
{
    complete_dtypes(log, module);
    for (int64_t c = module->calls.count - 1; c >= 0; c--) {
        LogCall *call = &module->calls.items[c];
        LogKernel *kernel = call->kernel < 0 ? NULL : &log->kernels.items[call->kernel];
        if (!kernel) {
            estimate_extern(module, call);
            continue;
        }
        estimate_kernel(module, kernel, call);
        kernel->read_bytes = call->read_bytes; // the first call's stay
        kernel->written_bytes = call->written_bytes;
    }
}

static void link_nodes_of(TorchLog *log, LogModule *module)
{
    const TracedGraph *graph = &log->graphs.items[module->graph];
    for (int64_t k = 0; k < module->kernels.count; k++) {
        LogKernel *kernel = &log->kernels.items[module->kernels.items[k]];
        nodes_of_fragment(graph, kernel);
        if (kernel->fragment.count == 0)
            guess_nodes(graph, kernel);
    }
    link_extern_calls(graph, module);
}

void module_forget_calls(LogModule *module)
{
    for (int64_t i = 0; i < module->calls.count; i++) {
        free(module->calls.items[i].source_nodes.items);
        free(module->calls.items[i].original_aten.items);
        free(module->calls.items[i].nodes.items);
    }
    free(module->calls.items);
    free(module->buffers.items);
    module->calls.items = NULL;
    module->buffers.items = NULL;
    module->calls.count = module->calls.capacity = 0;
    module->buffers.count = module->buffers.capacity = 0;
    name_map_destroy(&module->buffer_of_name);
}

// Of a brief log: the module's bytes are known now, and what they came from can go.
static void forget_module(TorchLog *log, LogModule *module)
{
    module_forget_calls(module);
    name_map_destroy(&module->kernel_of_name);
    for (int64_t k = 0; k < module->kernels.count; k++) {
        LogKernel *kernel = &log->kernels.items[module->kernels.items[k]];
        free(kernel->fragment.items);
        free(kernel->parameters.items);
        kernel->fragment = (NameList){NULL, 0, 0};
        kernel->parameters.items = NULL;
        kernel->parameters.count = kernel->parameters.capacity = 0;
    }
    pool_destroy(module->pool);
    module->pool = log->pool;
    if (module->graph >= 0)
        graph_forget_nodes(&log->graphs.items[module->graph]);
}

void module_end(TorchLog *log, int index)
{
    LogModule *module = &log->modules.items[index];
    join_module(log, index);
    if (module->graph >= 0 && !log->brief)
        link_nodes_of(log, module);
    estimate_calls(log, module);
    if (log->brief)
        forget_module(log, module);
}

void torch_log_finish(TorchLog *log)
{
    for (int64_t m = 0; m < log->modules.count; m++) {
        LogModule *module = &log->modules.items[m];
        if (module->graph >= 0)
            continue;
        join_module(log, (int)m); // one that stood before its graph
        if (module->graph >= 0 && !log->brief)
            link_nodes_of(log, module);
    }
    for (int64_t g = 0; g < log->graphs.count; g++) // sub-graphs go with the graph they belong to
        if (log->graphs.items[g].parent >= 0)
            log->graphs.items[g].kind = log->graphs.items[log->graphs.items[g].parent].kind;
}

// ---- what there is ----

const char *graph_kind_name(GraphKind kind)
{
    static const char *const names[] = {"joint", "forward", "backward", "inference"};
    return names[kind];
}

int64_t torch_log_extern_calls(const TorchLog *log)
{
    int64_t calls = 0;
    for (int64_t m = 0; m < log->modules.count; m++)
        calls += log->modules.items[m].extern_calls;
    return calls;
}

void torch_log_coverage(const TorchLog *log, char *text, size_t bytes)
{
    snprintf(text, bytes, "%lld lines read, %lld understood, %lld known noise, %lld not understood",
             (long long)log->lines.read, (long long)log->lines.understood,
             (long long)log->lines.noise, (long long)log->lines.unknown);
}
