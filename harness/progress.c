// progress.c -- a bar where somebody watches, a line every half minute where a log is kept.
//
// A terminal is redrawn in place at most ten times a second; a log gets no carriage returns. Both
// only ever go to stderr, so that results on stdout stay clean.
#include "harness/progress.h"
#include "harness/clock.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BAR_CELLS = 24 };
static const int64_t terminal_period_ns = 100 * 1000 * 1000;
static const int64_t log_period_ns = 30LL * 1000 * 1000 * 1000;

Progress progress_begin(const Run *run, const char *what, int64_t total)
{
    const char *terminal = getenv("TERM");
    int64_t now = clock_ns();
    return (Progress){
        .run = run,
        .what = what,
        .total = total,
        .start_ns = now,
        .last_print_ns = now,
        .terminal = isatty(STDERR_FILENO) && terminal && strcmp(terminal, "dumb") != 0,
        .active = run->rank == 0 && what != NULL,
    };
}

// "12 s", "3 min 20 s", "2 h 5 min"
static void format_duration(double seconds, char *text, size_t bytes)
{
    int64_t whole = (int64_t)(seconds + 0.5);
    if (whole < 60)
        snprintf(text, bytes, "%" PRId64 " s", whole);
    else if (whole < 3600)
        snprintf(text, bytes, "%" PRId64 " min %" PRId64 " s", whole / 60, whole % 60);
    else
        snprintf(text, bytes, "%" PRId64 " h %" PRId64 " min", whole / 3600, whole % 3600 / 60);
}

static void describe(const Progress *progress, int64_t done, int64_t now, char *text, size_t bytes)
{
    char spent[48], left[48];
    double spent_s = (double)(now - progress->start_ns) * 1e-9;
    format_duration(spent_s, spent, sizeof(spent));
    if (progress->total <= 0) {
        snprintf(text, bytes, "%" PRId64 ", %s so far", done, spent);
        return;
    }
    double share = (double)done / (double)progress->total;
    share = share > 1 ? 1 : share;
    if (share > 0)
        format_duration(spent_s * (1 - share) / share, left, sizeof(left));
    snprintf(text, bytes, "%" PRId64 " of %" PRId64 ", %d %%, %s so far, %s left", done,
             progress->total, (int)(share * 100), spent, share > 0 ? left : "unknown time");
}

static void draw_bar(const Progress *progress, int64_t done, const char *text)
{
    char bar[BAR_CELLS + 1] = "";
    int64_t filled = progress->total > 0 ? done * BAR_CELLS / progress->total : 0;
    filled = filled > BAR_CELLS ? BAR_CELLS : filled;
    for (int i = 0; i < BAR_CELLS; i++)
        bar[i] = i < filled ? '#' : '.';
    if (progress->total > 0)
        fprintf(stderr, "\r%s [%s] %s\033[K", progress->what, bar, text);
    else
        fprintf(stderr, "\r%s %s\033[K", progress->what, text);
    fflush(stderr);
}

void progress_line(const Run *run, const char *format, ...)
{
    if (run->rank != 0)
        return;
    char clock[16] = "", text[512];
    time_t seconds = time(NULL);
    struct tm local;
    if (localtime_r(&seconds, &local))
        strftime(clock, sizeof(clock), "%H:%M:%S", &local);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    fprintf(stderr, "%s meshwork: %s\n", clock, text);
}

void progress_update(Progress *progress, int64_t done)
{
    if (!progress->active)
        return;
    int64_t now = clock_ns();
    int64_t period = progress->terminal ? terminal_period_ns : log_period_ns;
    if (now - progress->last_print_ns < period)
        return;
    char text[192];
    describe(progress, done, now, text, sizeof(text));
    if (progress->terminal)
        draw_bar(progress, done, text);
    else
        progress_line(progress->run, "%s: %s", progress->what, text);
    progress->drawn = true;
    progress->last_print_ns = now;
}

void progress_end(Progress *progress)
{
    if (progress->active && progress->terminal && progress->drawn) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
    }
    progress->active = false;
}
