// progress.h -- how far along: a bar on a terminal, one line per 30 seconds in a batch log, nothing
// when quiet. Only rank 0 prints, only to stderr.
//
// What took place is told on both as a line of its own (progress_line), after the bar is cleared.
#pragma once

#include "harness/run.h"

typedef struct Progress {
    const Run *run;
    const char *what; // "dp2ep samples"; NULL = quiet
    int64_t total;    // 0 = unknown
    int64_t start_ns, last_print_ns;
    bool terminal, active, drawn;
} Progress;

Progress progress_begin(const Run *run, const char *what, int64_t total); // Local
void progress_update(Progress *progress, int64_t done);                   // Local
void progress_end(Progress *progress);                                    // Local. Clears the bar
// Local, rank 0 only. One line with the time of day: "12:00:01 meshwork: ...".
void progress_line(const Run *run, const char *format, ...) PRINTF_LIKE(2, 3);
