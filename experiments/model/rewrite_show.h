// rewrite_show.h -- what quantize and convert share beside the work: options that mean the same,
// the table of a plan, the summary at the end.
#pragma once

#include "experiments/model/rewrite.h"
#include "harness/option.h"

// Local. "5GB", "500MB", "1GiB" or a plain number of bytes. Error 2.
bool rewrite_read_size(const char *text, uint64_t *bytes, Error *error);
// Local, rank 0. The plan: every tensor, what it becomes and why; sizes; time and memory.
void rewrite_show_plan(const Rewrite *rewrite, const Run *run, bool json);
void rewrite_show_report(const Rewrite *rewrite, const RewriteReport *report, bool json);
void rewrite_show_notes(const Rewrite *rewrite); // on stderr
// Local. {"module": value} into the plan's input scales; NULL path: all 1, said as a note.
bool rewrite_read_input_scales(Rewrite *rewrite, Error *error);
