// trace_merge.h -- what a log says about a kernel, written into the profiler's events of it.
//
// The file is read twice: first for the ops that launched kernels, then to be passed on byte for
// byte with args.inductor added to the events that were recognised. How, in this order:
//   kernel_hash        the op names the generated file, the log names it too: sure
//   launch order       the op (by External id, else by correlation and the launching thread's
//                      time) stands in a "Call CompiledFxGraph" region whose ops follow each other
//                      as the calls of one module of the log do: sure when only one module fits
//   name               sure when the log has one kernel of that name; else all are listed
#pragma once

#include "harness/json.h"
#include "results/graph/torch_log.h"

enum { TRACE_UNMATCHED_LISTED_MAX = 10000 };

typedef struct TraceUnmatched {
    const char *name, *why;
} TraceUnmatched;

typedef enum MatchWay { MATCH_HASH, MATCH_ORDER, MATCH_NAME, MATCH_AMBIGUOUS, MATCH_WAYS } MatchWay;

typedef struct TraceCounts {
    int64_t events, kernel_events, generated_kernel_events;
    int64_t merged, merged_generated;
    int64_t merged_by[MATCH_WAYS];
    int64_t cpu_ops_merged; // calls of libraries on the CPU: their op is the kernel
    int64_t unmatched;      // all; the list below may be shorter
    struct {
        TraceUnmatched *items;
        int64_t count, capacity;
    } listed;
    Pool *pool;
} TraceCounts;

// Local. Writes the merged trace. Errors of trace_walk, and 73, 74 for the output. Owner of counts:
// the caller, also after an error.
typedef struct TraceMerge {
    const char *trace, *out; // out NULL: nothing is written, only counted
    const TorchLog *log;
    bool force;
} TraceMerge;
bool trace_merge(const TraceMerge *merge, TraceCounts *counts, Error *error);
void trace_counts_destroy(TraceCounts *counts);

const char *match_way_name(MatchWay way);
// Local. {"kernel_events": N, "generated_kernel_events": N, "merged": N, "unmatched": [...], ...}.
// Owner: the caller.
Json *trace_counts_json(const TraceCounts *counts);
