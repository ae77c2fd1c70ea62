// capture.h -- for tests of how the program stops: a body runs in a child process, and what it
// printed (both streams together) and its exit code come back.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct Captured {
    int exit_code; // 128 + n when a signal ended it
    char text[16384];
} Captured;

static inline int capture_exit_code(int status)
{
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static inline Captured capture(void (*body)(void *context), void *context)
{
    Captured captured = {.exit_code = -1};
    int ends[2];
    fflush(NULL);
    if (pipe(ends) != 0)
        return captured;
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        body(context);
        fflush(NULL);
        _exit(0);
    }
    close(ends[1]);
    size_t length = 0;
    for (;;) {
        ssize_t got = read(ends[0], captured.text + length, sizeof(captured.text) - 1 - length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        length += (size_t)got;
    }
    close(ends[0]);
    int status = 0;
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    captured.exit_code = child > 0 ? capture_exit_code(status) : -1;
    return captured;
}

static inline int capture_count(const char *text, const char *part)
{
    int count = 0;
    for (const char *at = strstr(text, part); at; at = strstr(at + strlen(part), part))
        count++;
    return count;
}

// For assert_true-like use that shows the whole text when a part is not there.
#define ASSERT_CONTAINS(whole, part)                                                               \
    do {                                                                                           \
        if (!strstr((whole), (part)))                                                              \
            fail_msg("'%s' is not in:\n%s", (part), (whole));                                      \
    } while (0)
#define ASSERT_LACKS(whole, part)                                                                  \
    do {                                                                                           \
        if (strstr((whole), (part)))                                                               \
            fail_msg("'%s' should not be in:\n%s", (part), (whole));                               \
    } while (0)
