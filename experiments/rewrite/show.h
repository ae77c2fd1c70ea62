// show.h -- what quantize and convert share beside the work: options that mean the same,
// the table of a plan, the summary at the end.
#pragma once

#include "experiments/rewrite/rewrite.h"
#include "harness/option.h"

// Local. "5GB", "500MB", "1GiB" or a plain number of bytes. Error 2.
bool rewrite_read_size(const char *text, uint64_t *bytes, Error *error);
// Collective(all ranks). The body of both commands: plan, then show it or run it. Returns the exit
// code; stops the job on errors.
int rewrite_command(const Run *run, const RewriteRequest *request, bool dry_run, bool json);
