// trace_ops.h -- the ops of a trace that launch what a log describes, and which call of the log
// each of them is.
#pragma once

#include "results/graph/torch_log.h"
#include "results/graph/trace_reader.h"

// What an op or a kernel event is, in the log. call -1: only the kernel is known.
typedef struct LogMatch {
    int module, call, kernel; // -1: none; kernel -1 with a call: an extern one
    bool sure;
} LogMatch;

typedef struct TraceOps TraceOps;

// Local. Owner: the caller.
TraceOps *trace_ops_create(const TorchLog *log);
void trace_ops_destroy(TraceOps *ops);
// Local. First pass: keeps an event if it may launch something.
void trace_ops_add(TraceOps *ops, const TraceEvent *event);
// Local. After the first pass: joins ops with calls.
void trace_ops_finish(TraceOps *ops);

// Local. The match of the op that launched a kernel event; false when there is none. by_hash: the
// op named the generated file.
bool trace_ops_of_kernel(const TraceOps *ops, const TraceEvent *event, LogMatch *match,
                         bool *by_hash);
// Local. The match of an op event itself.
bool trace_ops_of_op(const TraceOps *ops, const TraceEvent *event, LogMatch *match);
// Local. The name that the log has for a name of the trace.
Slice trace_kernel_name(Slice name);
// Local. Kernels of the log with this name on the device; the first of a chain, -1.
int trace_ops_kernel_named(const TraceOps *ops, Slice name);
int trace_ops_next_kernel(const TraceOps *ops, int kernel);
bool trace_is_op(const TraceEvent *event);
