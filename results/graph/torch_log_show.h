// torch_log_show.h -- what a log holds, for people (tables on stdout) and for machines (one
// object).
#pragma once

#include "harness/json.h"
#include "results/graph/torch_log.h"

// Local. {"graphs": [...], "kernels": [...], "extern_calls": N, "lines": {...}}; what its members
// mean is in results/graph/README.md. Owner: the caller.
Json *torch_log_json(const TorchLog *log);
void torch_log_show(const TorchLog *log);
// Local. The coverage line, the first lines that were not understood, and what is missing, on
// stderr.
void torch_log_warn(const TorchLog *log);
Json *names_json(const NameList *names);
Json *json_of_bytes(double bytes); // null when not known
