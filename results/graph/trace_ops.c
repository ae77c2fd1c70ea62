// trace_ops.c -- see trace_ops.h.
//
// The log's modules are sequences of called names: "triton_poi_fused_add_0", "aten::mm". So are the
// regions of the trace, one for each run of a compiled graph. A region goes with the module of the
// same sequence; if none has it (C++ kernels leave no ops, fall-backs may call several), with one
// in which the region's names occur in order. Ids of a trace may occur again (traces of ranks put
// together, traces that were repeated), so of several ops with one id the last that had begun
// counts.
#include "results/graph/trace_ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_REGION = -1, MODULES_TRIED_MAX = 64, KEY_BYTES = 300 };

typedef struct TraceOp {
    int64_t external_id;
    uint64_t thread;
    double begin_us, end_us;
    int name;   // index of names, or NAME_REGION
    int parent; // the op around it on its thread, -1
    int module, call;
    int hash_kernel; // named by the op itself, -1
    bool sure;
} TraceOp;

typedef struct TraceLaunch {
    int64_t correlation;
    uint64_t thread;
    double begin_us;
} TraceLaunch;

struct TraceOps {
    const TorchLog *log;
    NameMap name_index; // "aten::mm" or a kernel's name -> number of the name
    int64_t name_count;
    NameMap first_kernel; // by name on the device
    int *next_kernel;     // [kernels] of the same name
    NameMap kernel_of_hash;
    IntList *sequence;                        // [modules] numbers of the names that its calls have
    NameMap module_of_sequence;               // text of the numbers -> first module
    int *next_module;                         // [modules] with the same sequence
    int *first_module_of_name, *next_of_name; // modules that call a name: chains over `uses`
    IntList uses;                             // module of each link of those chains
    IntList links;                            // and the next link
    struct {
        TraceOp *items;
        int64_t count, capacity;
    } ops;
    struct {
        TraceLaunch *items;
        int64_t count, capacity;
    } launches;
    int *by_id; // [ops] sorted by external id, then begin
    Pool *pool;
};

static void *zeroed(int64_t count, size_t bytes)
{
    void *memory = calloc((size_t)count + 1, bytes);
    CHECK(memory, EXIT_CODE_HARDWARE, "free memory", "no memory to join %lld events",
          (long long)count);
    return memory;
}

// ---- the log's side ----

// How the profiler names what a call runs: "extern_kernels.mm" and "torch.ops.aten.mm.default" are
// "aten::mm", "torch.ops.mylib.op.default" is "mylib::op", a kernel is its device name.
static void op_name(const TorchLog *log, const LogCall *call, char *text, size_t bytes)
{
    Slice name = slice_of(call->name);
    if (call->kernel >= 0) {
        snprintf(text, bytes, "%s", log->kernels.items[call->kernel].device_name);
    } else if (slice_take(&name, "torch.ops.")) {
        Slice space = slice_take_name(&name);
        slice_take(&name, ".");
        Slice operation = slice_take_name(&name);
        snprintf(text, bytes, "%.*s::%.*s", (int)space.bytes, space.at, (int)operation.bytes,
                 operation.at);
    } else {
        Slice operation = operation_name(call->name);
        if (slice_is(operation, "bias_addmm"))
            operation = slice_of("addmm");
        snprintf(text, bytes, "aten::%.*s", (int)operation.bytes, operation.at);
    }
}

static int number_of(TraceOps *ops, const char *name)
{
    int64_t number = name_map_find(&ops->name_index, slice_of(name));
    if (number >= 0)
        return (int)number;
    name_map_put(&ops->name_index, pool_keep(ops->pool, slice_of(name)), ops->name_count);
    return (int)ops->name_count++;
}

// A sequence as a key: a hash of 64 bits in text.
static const char *sequence_key(const int *numbers, int64_t count, char *text)
{
    uint64_t hash = UINT64_C(14695981039346656037);
    for (int64_t i = 0; i < count; i++)
        hash = (hash ^ (uint64_t)(unsigned)numbers[i]) * UINT64_C(1099511628211);
    snprintf(text, KEY_BYTES, "%llx %lld", (unsigned long long)hash, (long long)count);
    return text;
}

static void index_module(TraceOps *ops, int index)
{
    const LogModule *module = &ops->log->modules.items[index];
    char text[KEY_BYTES];
    for (int64_t c = 0; c < module->calls.count; c++) {
        op_name(ops->log, &module->calls.items[c], text, sizeof(text));
        *GROW(ops->sequence[index]) = number_of(ops, text);
    }
    sequence_key(ops->sequence[index].items, ops->sequence[index].count, text);
    int64_t first = name_map_find(&ops->module_of_sequence, slice_of(text));
    ops->next_module[index] = (int)first;
    name_map_put(&ops->module_of_sequence, pool_keep(ops->pool, slice_of(text)), index);
}

// For each name the modules that call it, as chains.
static void index_uses(TraceOps *ops)
{
    ops->first_module_of_name = zeroed(ops->name_count, sizeof(int));
    for (int64_t n = 0; n < ops->name_count; n++)
        ops->first_module_of_name[n] = -1;
    for (int64_t m = ops->log->modules.count - 1; m >= 0; m--) {
        const IntList *sequence = &ops->sequence[m];
        for (int64_t i = 0; i < sequence->count; i++) {
            int *first = &ops->first_module_of_name[sequence->items[i]];
            if (*first >= 0 && ops->uses.items[*first] == m)
                continue;
            *GROW(ops->uses) = (int)m;
            *GROW(ops->links) = *first;
            *first = (int)ops->uses.count - 1;
        }
    }
}

TraceOps *trace_ops_create(const TorchLog *log)
{
    TraceOps *ops = zeroed(1, sizeof(*ops));
    ops->log = log;
    ops->pool = pool_create();
    ops->next_kernel = zeroed(log->kernels.count, sizeof(int));
    ops->sequence = zeroed(log->modules.count, sizeof(IntList));
    ops->next_module = zeroed(log->modules.count, sizeof(int));
    for (int64_t k = log->kernels.count - 1; k >= 0; k--) {
        const LogKernel *kernel = &log->kernels.items[k];
        ops->next_kernel[k] = (int)name_map_find(&ops->first_kernel, slice_of(kernel->device_name));
        name_map_put(&ops->first_kernel, kernel->device_name, k);
        number_of(ops, kernel->device_name);
        if (kernel->hash[0])
            name_map_put(&ops->kernel_of_hash, kernel->hash, k);
    }
    for (int64_t m = log->modules.count - 1; m >= 0; m--)
        index_module(ops, (int)m);
    index_uses(ops);
    return ops;
}

void trace_ops_destroy(TraceOps *ops)
{
    if (!ops)
        return;
    for (int64_t m = 0; m < ops->log->modules.count; m++)
        free(ops->sequence[m].items);
    free(ops->sequence);
    free(ops->next_module);
    free(ops->next_kernel);
    free(ops->first_module_of_name);
    free(ops->uses.items);
    free(ops->links.items);
    free(ops->ops.items);
    free(ops->launches.items);
    free(ops->by_id);
    name_map_destroy(&ops->name_index);
    name_map_destroy(&ops->first_kernel);
    name_map_destroy(&ops->kernel_of_hash);
    name_map_destroy(&ops->module_of_sequence);
    pool_destroy(ops->pool);
    free(ops);
}

// C++ kernels are recorded as "graph_3_cpp_fused_add_0" when the profiler knows them at all.
Slice trace_kernel_name(Slice name)
{
    Slice rest = name;
    int64_t ignored;
    bool named =
        slice_take(&rest, "graph_") && slice_take_number(&rest, &ignored) && slice_take(&rest, "_");
    return named ? rest : name;
}

int trace_ops_kernel_named(const TraceOps *ops, Slice name)
{
    return (int)name_map_find(&ops->first_kernel, trace_kernel_name(name));
}

int trace_ops_next_kernel(const TraceOps *ops, int kernel)
{
    return ops->next_kernel[kernel];
}

// ---- first pass ----

bool trace_is_op(const TraceEvent *event)
{
    return slice_is(event->category, "cpu_op") || slice_is(event->category, "user_annotation");
}

static uint64_t thread_of(const TraceEvent *event)
{
    uint64_t hash = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < event->pid.bytes; i++)
        hash = (hash ^ (unsigned char)event->pid.at[i]) * UINT64_C(1099511628211);
    hash ^= '/';
    for (size_t i = 0; i < event->tid.bytes; i++)
        hash = (hash ^ (unsigned char)event->tid.at[i]) * UINT64_C(1099511628211);
    return hash;
}

static void add_launch(TraceOps *ops, const TraceEvent *event)
{
    bool from_host =
        slice_is(event->category, "cuda_runtime") || slice_is(event->category, "cuda_driver");
    if (from_host && event->correlation >= 0 &&
        slice_find(event->name, "aunch") < event->name.bytes)
        *GROW(ops->launches) = (TraceLaunch){.correlation = event->correlation,
                                             .thread = thread_of(event),
                                             .begin_us = trace_number(event->ts)};
}

void trace_ops_add(TraceOps *ops, const TraceEvent *event)
{
    if (!trace_is_op(event)) {
        add_launch(ops, event);
        return;
    }
    bool region = slice_find(event->name, "CompiledFxGraph") < event->name.bytes;
    int64_t number =
        region ? NAME_REGION : name_map_find(&ops->name_index, trace_kernel_name(event->name));
    int64_t hash =
        event->kernel_hash.bytes ? name_map_find(&ops->kernel_of_hash, event->kernel_hash) : -1;
    if (!region && number < 0 && hash < 0)
        return;
    double begin_us = trace_number(event->ts), duration_us = trace_number(event->duration);
    *GROW(ops->ops) = (TraceOp){.external_id = event->external_id,
                                .thread = thread_of(event),
                                .begin_us = begin_us,
                                .end_us = begin_us + (isnan(duration_us) ? 0 : duration_us),
                                .name = number < 0 && !region ? NAME_REGION - 1 : (int)number,
                                .parent = -1,
                                .module = -1,
                                .call = -1,
                                .hash_kernel = (int)hash};
}

// ---- joining ----

static int compare_ops(const void *a, const void *b)
{
    const TraceOp *p = a, *q = b;
    if (p->thread != q->thread)
        return p->thread < q->thread ? -1 : 1;
    if (p->begin_us != q->begin_us)
        return p->begin_us < q->begin_us ? -1 : 1;
    return (q->end_us > p->end_us) - (q->end_us < p->end_us); // the outer one first
}

static int compare_launches(const void *a, const void *b)
{
    const TraceLaunch *p = a, *q = b;
    if (p->correlation != q->correlation)
        return p->correlation < q->correlation ? -1 : 1;
    return (p->begin_us > q->begin_us) - (p->begin_us < q->begin_us);
}

static int compare_ids(const void *a, const void *b, void *context)
{
    const TraceOp *p = (const TraceOp *)context + *(const int *)a;
    const TraceOp *q = (const TraceOp *)context + *(const int *)b;
    if (p->external_id != q->external_id)
        return p->external_id < q->external_id ? -1 : 1;
    return (p->begin_us > q->begin_us) - (p->begin_us < q->begin_us);
}

static void find_parents(TraceOps *ops)
{
    int open = -1;
    for (int64_t i = 0; i < ops->ops.count; i++) {
        TraceOp *op = &ops->ops.items[i];
        while (open >= 0 && (ops->ops.items[open].thread != op->thread ||
                             !(ops->ops.items[open].end_us > op->begin_us)))
            open = ops->ops.items[open].parent;
        op->parent = open;
        open = (int)i;
    }
}

// Matches the region's names with the module's calls in order; calls may be passed over. False when
// a name finds no call.
static bool align(const TraceOps *ops, const IntList *region, int module, int *call_of)
{
    const IntList *calls = &ops->sequence[module];
    int64_t at = 0;
    for (int64_t i = 0; i < region->count; i++, at++) {
        int name = ops->ops.items[region->items[i]].name;
        while (at < calls->count && calls->items[at] != name)
            at++;
        if (at == calls->count)
            return false;
        call_of[i] = (int)at;
    }
    return true;
}

typedef struct Choice {
    int module;
    bool sure;
} Choice;

// The name of the region that the fewest modules may know: a generated one if there is any.
static int rarest_name(const TraceOps *ops, const IntList *region)
{
    for (int64_t i = 0; i < region->count; i++) {
        int name = ops->ops.items[region->items[i]].name;
        int link = ops->first_module_of_name[name];
        if (link >= 0 && ops->links.items[link] < 0)
            return name;
    }
    return ops->ops.items[region->items[0]].name;
}

static Choice choose_module(const TraceOps *ops, const IntList *region, int *call_of)
{
    char key[KEY_BYTES];
    int *names = zeroed(region->count, sizeof(int));
    for (int64_t i = 0; i < region->count; i++)
        names[i] = ops->ops.items[region->items[i]].name;
    sequence_key(names, region->count, key);
    free(names);
    int first = (int)name_map_find(&ops->module_of_sequence, slice_of(key));
    if (first >= 0 && align(ops, region, first, call_of))
        return (Choice){first, ops->next_module[first] < 0};
    int64_t best_left = INT64_MAX;
    Choice best = {-1, false};
    int link = ops->first_module_of_name[rarest_name(ops, region)];
    for (int tried = 0; link >= 0 && tried < MODULES_TRIED_MAX; tried++) {
        int module = ops->uses.items[link];
        int64_t left = ops->sequence[module].count - region->count;
        if (align(ops, region, module, call_of) && left <= best_left) {
            best = (Choice){module, left < best_left};
            best_left = left;
        }
        link = ops->links.items[link];
    }
    if (best.module >= 0)
        align(ops, region, best.module, call_of);
    return best;
}

static void join_region(TraceOps *ops, const IntList *region)
{
    if (region->count == 0)
        return;
    int *call_of = zeroed(region->count, sizeof(int));
    Choice choice = choose_module(ops, region, call_of);
    for (int64_t i = 0; choice.module >= 0 && i < region->count; i++) {
        TraceOp *op = &ops->ops.items[region->items[i]];
        op->module = choice.module;
        op->call = call_of[i];
        op->sure = choice.sure;
    }
    free(call_of);
}

void trace_ops_finish(TraceOps *ops)
{
    CHECK(ops->ops.count < INT32_MAX, EXIT_CODE_DATA, "merge parts of the trace",
          "%lld ops are too many", (long long)ops->ops.count);
    if (ops->ops.count)
        qsort(ops->ops.items, (size_t)ops->ops.count, sizeof(TraceOp), compare_ops);
    if (ops->launches.count)
        qsort(ops->launches.items, (size_t)ops->launches.count, sizeof(TraceLaunch),
              compare_launches);
    find_parents(ops);
    // A region's ops follow it in this order; those within another op are its affair.
    IntList region = {NULL, 0, 0};
    int current = -1;
    for (int64_t i = 0; i < ops->ops.count; i++) {
        const TraceOp *op = &ops->ops.items[i];
        if (op->name == NAME_REGION) {
            join_region(ops, &region);
            region.count = 0;
            current = (int)i;
        } else if (op->parent == current && current >= 0 && op->name >= 0) {
            *GROW(region) = (int)i;
        }
    }
    join_region(ops, &region);
    free(region.items);
    ops->by_id = zeroed(ops->ops.count, sizeof(int));
    for (int64_t i = 0; i < ops->ops.count; i++)
        ops->by_id[i] = (int)i;
    qsort_r(ops->by_id, (size_t)ops->ops.count, sizeof(int), compare_ids, ops->ops.items);
}

// ---- second pass ----

// Of the ops with this id the last that began before the time; the first if none did.
static const TraceOp *op_with_id(const TraceOps *ops, int64_t id, double before_us)
{
    int64_t low = 0, high = ops->ops.count;
    while (low < high) { // first position behind (id, before)
        int64_t middle = (low + high) / 2;
        const TraceOp *op = &ops->ops.items[ops->by_id[middle]];
        bool behind = op->external_id > id || (op->external_id == id && op->begin_us > before_us);
        if (behind)
            high = middle;
        else
            low = middle + 1;
    }
    const TraceOp *before = low > 0 ? &ops->ops.items[ops->by_id[low - 1]] : NULL;
    const TraceOp *after = low < ops->ops.count ? &ops->ops.items[ops->by_id[low]] : NULL;
    if (before && before->external_id == id)
        return before;
    return after && after->external_id == id ? after : NULL;
}

// The innermost op around a time on a thread.
static const TraceOp *op_around(const TraceOps *ops, uint64_t thread, double time_us)
{
    int64_t low = 0, high = ops->ops.count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        const TraceOp *op = &ops->ops.items[middle];
        if (op->thread > thread || (op->thread == thread && op->begin_us > time_us))
            high = middle;
        else
            low = middle + 1;
    }
    const TraceOp *op = low > 0 ? &ops->ops.items[low - 1] : NULL;
    while (op && (op->thread != thread || op->end_us < time_us))
        op = op->thread == thread && op->parent >= 0 ? &ops->ops.items[op->parent] : NULL;
    return op;
}

static const TraceOp *op_of_launch(const TraceOps *ops, const TraceEvent *event)
{
    int64_t low = 0, high = event->correlation < 0 ? 0 : ops->launches.count;
    double ts_us = trace_number(event->ts);
    while (low < high) {
        int64_t middle = (low + high) / 2;
        const TraceLaunch *launch = &ops->launches.items[middle];
        bool behind = launch->correlation > event->correlation ||
                      (launch->correlation == event->correlation && launch->begin_us > ts_us);
        if (behind)
            high = middle;
        else
            low = middle + 1;
    }
    const TraceLaunch *launch = low > 0 ? &ops->launches.items[low - 1] : NULL;
    if (!launch || launch->correlation != event->correlation)
        return NULL;
    return op_around(ops, launch->thread, launch->begin_us);
}

static bool match_of(const TraceOps *ops, const TraceOp *op, LogMatch *match)
{
    // An op within the one that the module called counts as that one.
    while (op && op->name >= 0 && op->module < 0 && op->hash_kernel < 0 && op->parent >= 0)
        op = &ops->ops.items[op->parent];
    if (!op || (op->module < 0 && op->hash_kernel < 0))
        return false;
    *match = (LogMatch){.module = op->module, .call = op->call, .kernel = -1, .sure = op->sure};
    if (op->module >= 0)
        match->kernel = ops->log->modules.items[op->module].calls.items[op->call].kernel;
    if (op->hash_kernel < 0)
        return true;
    int module = ops->log->kernels.items[op->hash_kernel].module;
    if (match->kernel != op->hash_kernel)
        match->call = -1;
    match->module = module;
    match->kernel = op->hash_kernel;
    match->sure = true;
    return true;
}

bool trace_ops_of_kernel(const TraceOps *ops, const TraceEvent *event, LogMatch *match,
                         bool *by_hash)
{
    const TraceOp *op = event->external_id < 0
                            ? NULL
                            : op_with_id(ops, event->external_id, trace_number(event->ts));
    if (!op)
        op = op_of_launch(ops, event);
    *by_hash = op && op->hash_kernel >= 0;
    return op && match_of(ops, op, match);
}

bool trace_ops_of_op(const TraceOps *ops, const TraceEvent *event, LogMatch *match)
{
    const TraceOp *op = event->external_id < 0
                            ? NULL
                            : op_with_id(ops, event->external_id, trace_number(event->ts));
    bool same = op && op->begin_us == trace_number(event->ts) && op->thread == thread_of(event) &&
                op->module >= 0;
    return same && match_of(ops, op, match);
}
