// Progress: quiet on ranks above 0, rare lines in a log, a bar that clears itself on a terminal,
// never on stdout.
#include "harness/progress.h"
#include "tests/capture.h"

#include <pty.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

typedef struct Scene {
    int rank;
    const char *what;
    int64_t total;
    int64_t done;
    int64_t elapsed_s; // how long ago it began, and how long ago it last printed
} Scene;

// Sets the clock back, so that no test waits.
static void play(void *context)
{
    const Scene *scene = context;
    Run run = {.rank = scene->rank, .ranks = 2};
    close(STDOUT_FILENO); // whatever went there would be lost, and the test would miss it
    Progress progress = progress_begin(&run, scene->what, scene->total);
    progress.start_ns -= scene->elapsed_s * 1000000000;
    progress.last_print_ns -= scene->elapsed_s * 1000000000;
    progress_update(&progress, scene->done);
    progress_update(&progress, scene->done); // at once again: nothing more
    progress_end(&progress);
    progress_update(&progress, scene->done);
}

static void a_log_gets_a_line_every_half_minute(void **state)
{
    (void)state;
    Scene scene = {0, "samples", 200, 50, 31};
    Captured log = capture(play, &scene);
    ASSERT_CONTAINS(log.text,
                    " meshwork: samples: 50 of 200, 25 %, 31 s so far, 1 min 33 s left\n");
    assert_int_equal(capture_count(log.text, "\n"), 1);
    assert_null(strchr(log.text, '\r'));
    assert_null(strchr(log.text, '\033'));
    assert_int_equal(log.text[2], ':'); // it begins with the time of day
    scene.elapsed_s = 29;
    assert_string_equal(capture(play, &scene).text, "");
}

static void only_rank_0_speaks_and_only_if_asked(void **state)
{
    (void)state;
    Scene scene = {1, "samples", 200, 50, 3600};
    assert_string_equal(capture(play, &scene).text, "");
    scene = (Scene){0, NULL, 200, 50, 3600};
    assert_string_equal(capture(play, &scene).text, "");
}

static void odd_counts_are_told_as_they_are(void **state)
{
    (void)state;
    Scene scene = {0, "reading", 0, 7, 7500};
    ASSERT_CONTAINS(capture(play, &scene).text, "reading: 7, 2 h 5 min so far\n");
    scene = (Scene){0, "reading", 10, 12, 40};
    ASSERT_CONTAINS(capture(play, &scene).text, "12 of 10, 100 %, 40 s so far, 0 s left\n");
    scene = (Scene){0, "reading", 10, 0, 40};
    ASSERT_CONTAINS(capture(play, &scene).text, "0 of 10, 0 %, 40 s so far, unknown time left\n");
}

static void play_line(void *context)
{
    const Run run = {.rank = *(int *)context, .ranks = 2};
    close(STDOUT_FILENO);
    progress_line(&run, "measured %s: %d samples", "step", 20);
}

static void a_line_is_told_at_once_and_by_rank_0(void **state)
{
    (void)state;
    int rank = 0;
    Captured line = capture(play_line, &rank);
    ASSERT_CONTAINS(line.text, " meshwork: measured step: 20 samples\n");
    assert_int_equal(capture_count(line.text, "\n"), 1);
    assert_int_equal(line.text[2], ':'); // it begins with the time of day
    rank = 1;
    assert_string_equal(capture(play_line, &rank).text, "");
}

// The same scene with a terminal as stderr; returns what the terminal got.
static void play_on_terminal(Scene *scene, const char *kind, char *text, size_t bytes)
{
    int master = -1;
    fflush(NULL);
    pid_t child = forkpty(&master, NULL, NULL, NULL);
    if (child == 0) {
        setenv("TERM", kind, 1);
        play(scene);
        _exit(0);
    }
    assert_true(child > 0);
    size_t length = 0;
    for (;;) {
        ssize_t got = read(master, text + length, bytes - 1 - length);
        if (got <= 0)
            break;
        length += (size_t)got;
    }
    text[length] = '\0';
    close(master);
    waitpid(child, NULL, 0);
}

static void a_terminal_gets_a_bar_that_clears_itself(void **state)
{
    (void)state;
    char text[4096];
    Scene scene = {0, "samples", 200, 50, 1};
    play_on_terminal(&scene, "xterm", text, sizeof(text));
    ASSERT_CONTAINS(text, "\rsamples [######..................] 50 of 200, 25 %");
    assert_null(strchr(text, '\n'));
    assert_int_equal(capture_count(text, "\r"), 2); // drawn once, cleared once
    assert_string_equal(text + strlen(text) - 4, "\r\033[K");
    scene.done = 1000;
    play_on_terminal(&scene, "xterm", text, sizeof(text));
    ASSERT_CONTAINS(text, "[########################]");
    scene.total = 0;
    play_on_terminal(&scene, "xterm", text, sizeof(text));
    ASSERT_CONTAINS(text, "\rsamples 1000, 1 s so far");
    scene.rank = 1;
    play_on_terminal(&scene, "xterm", text, sizeof(text));
    assert_string_equal(text, "");
}

static void a_dumb_terminal_is_a_log(void **state)
{
    (void)state;
    char text[4096];
    Scene scene = {0, "samples", 200, 50, 1};
    play_on_terminal(&scene, "dumb", text, sizeof(text));
    assert_string_equal(text, "");
    scene.elapsed_s = 60;
    play_on_terminal(&scene, "dumb", text, sizeof(text));
    ASSERT_CONTAINS(text, "samples: 50 of 200");
    assert_null(strchr(text, '\033'));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_log_gets_a_line_every_half_minute),
        cmocka_unit_test(only_rank_0_speaks_and_only_if_asked),
        cmocka_unit_test(odd_counts_are_told_as_they_are),
        cmocka_unit_test(a_line_is_told_at_once_and_by_rank_0),
        cmocka_unit_test(a_terminal_gets_a_bar_that_clears_itself),
        cmocka_unit_test(a_dumb_terminal_is_a_log),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
