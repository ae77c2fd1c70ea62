// check.c -- one message, one write(2), one exit code.
//
// A message is put together in a buffer on the stack and handed to the kernel in a single call: the
// launcher forwards what it reads in one piece, so lines of different ranks do not interleave. Text
// that came from outside (file names, option values) may end up in it, so control characters are
// replaced before a terminal sees them.
#include "harness/check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MESSAGE_BYTES = 4096, WHAT_BYTES = 1536, OTHERS_BYTES = 768 };

typedef struct Message {
    char text[MESSAGE_BYTES];
    size_t length;
} Message;

// The error context: the one mutable object at file scope (check.h says why it may exist). A
// failure can happen anywhere, also where no Run is at hand, and must still know its rank and its
// span.
static CheckContext context = {.rank = 0, .ranks = 1};

CheckContext *check_context(void)
{
    return &context;
}

// "folder/file.c": the part of __FILE__ that is the same on every machine.
static const char *short_file(const char *file)
{
    const char *start = file;
    int slashes = 0;
    for (const char *c = file + strlen(file); c > file; c--) {
        if (c[-1] == '/' && ++slashes == 2) {
            start = c;
            break;
        }
    }
    return start;
}

PRINTF_LIKE(2, 3)
static void append(Message *message, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    size_t left = sizeof(message->text) - message->length;
    int written = vsnprintf(message->text + message->length, left, format, arguments);
    va_end(arguments);
    if (written > 0)
        message->length += (size_t)written < left ? (size_t)written : left - 1;
}

static void replace_control_characters(char *text)
{
    for (unsigned char *c = (unsigned char *)text; *c; c++) {
        if (*c == '\n' || *c == '\t')
            *c = ' ';
        else if (*c < 0x20 || *c == 0x7F)
            *c = '?';
    }
}

static void write_message(const Message *message)
{
    size_t done = 0;
    while (done < message->length) {
        ssize_t written = write(STDERR_FILENO, message->text + done, message->length - done);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return; // there is nobody left to tell
        done += (size_t)written;
    }
}

static void append_where(Message *message, const CheckContext *where, const char *file, int line)
{
    append(message, " (");
    if (file)
        append(message, "%s:%d, ", short_file(file), line);
    append(message, "rank %d of %d", where->rank, where->ranks);
    if (where->span[0])
        append(message, ", span %s", where->span);
    append(message, ")\n");
}

// What was measured before comes first. A thread that is in the middle of printing is not waited
// for: it may be the one that hangs.
static void flush_output(void)
{
    if (ftrylockfile(stdout) != 0)
        return;
    fflush(stdout);
    funlockfile(stdout);
}

// What a message is made of besides its text.
typedef struct Origin {
    const CheckContext *where;
    const char *file;
    int line;
    const char *fix;
    const char *others; // what other ranks are doing; "" = not known
} Origin;

static void print_error(const Origin *origin, const char *what_format, va_list arguments)
{
    char what[WHAT_BYTES];
    vsnprintf(what, sizeof(what), what_format, arguments);
    replace_control_characters(what);
    char change[WHAT_BYTES / 2];
    snprintf(change, sizeof(change), "%s", origin->fix ? origin->fix : "");
    replace_control_characters(change);

    Message message = {.length = 0};
    append(&message, "meshwork: error: %s", what);
    append_where(&message, origin->where, origin->file, origin->line);
    if (origin->others[0])
        append(&message, "meanwhile: %s\n", origin->others);
    if (change[0])
        append(&message, "fix: %s\n", change);
    if (origin->where->reproduce[0])
        append(&message, "reproduce: %s\n", origin->where->reproduce);
    flush_output();
    write_message(&message);
}

bool error_set_at(const char *file, int line, Error *error, int exit_code, const char *fix,
                  const char *what_format, ...)
{
    if (error && error->exit_code == EXIT_CODE_GOOD) {
        *error = (Error){.exit_code = exit_code, .file = file, .line = line};
        va_list arguments;
        va_start(arguments, what_format);
        vsnprintf(error->what, sizeof(error->what), what_format, arguments);
        va_end(arguments);
        snprintf(error->fix, sizeof(error->fix), "%s", fix ? fix : "");
    }
    return false;
}

bool error_prefix(Error *error, const char *format, ...)
{
    if (!error || error->exit_code == EXIT_CODE_GOOD)
        return true;
    char words[sizeof(error->what) / 2]; // half of the room is left to what went wrong
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(words, sizeof(words), format, arguments);
    va_end(arguments);
    size_t used = strlen(words);
    memmove(error->what + used + 2, error->what, sizeof(error->what) - used - 2);
    memcpy(error->what, words, used);
    memcpy(error->what + used, ": ", 2);
    error->what[sizeof(error->what) - 1] = '\0';
    return false;
}

// Whether this rank is the one to say what is wrong with the job.
static bool may_speak(char *others, size_t bytes)
{
    others[0] = '\0';
    return !context.may_speak || context.may_speak(others, bytes);
}

void check_print(const char *file, int line, const char *fix, const char *what_format, ...)
{
    char others[OTHERS_BYTES];
    if (!may_speak(others, sizeof(others)))
        return;
    va_list arguments;
    va_start(arguments, what_format);
    const Origin origin = {&context, file, line, fix, others};
    print_error(&origin, what_format, arguments);
    va_end(arguments);
}

void check_print_for(const CheckContext *where, const char *file, int line, const char *fix,
                     const char *what_format, ...)
{
    va_list arguments;
    va_start(arguments, what_format);
    const Origin origin = {where, file, line, fix, ""};
    print_error(&origin, what_format, arguments);
    va_end(arguments);
}

void check_phase(const char *phase)
{
    context.phase = phase;
}

// _exit: the process is in an unknown state, so nothing registered with atexit may run (and hang).
void check_failed(const char *file, int line, int exit_code, const char *fix,
                  const char *what_format, ...)
{
    char others[OTHERS_BYTES];
    if (may_speak(others, sizeof(others))) {
        va_list arguments;
        va_start(arguments, what_format);
        const Origin origin = {&context, file, line, fix, others};
        print_error(&origin, what_format, arguments);
        va_end(arguments);
    }
    if (context.abort_job)
        context.abort_job(exit_code);
    _exit(exit_code);
}

void check_all_failed(const char *file, int line, int exit_code, const char *fix,
                      const char *what_format, ...)
{
    char others[OTHERS_BYTES];
    if (context.rank == 0 && may_speak(others, sizeof(others))) {
        va_list arguments;
        va_start(arguments, what_format);
        const Origin origin = {&context, file, line, fix, ""};
        print_error(&origin, what_format, arguments);
        va_end(arguments);
    }
    fflush(stdout);
    if (context.leave_together)
        context.leave_together(exit_code);
    _exit(exit_code);
}

void check_warn(const char *what_format, ...)
{
    char what[WHAT_BYTES];
    va_list arguments;
    va_start(arguments, what_format);
    vsnprintf(what, sizeof(what), what_format, arguments);
    va_end(arguments);
    replace_control_characters(what);

    Message message = {.length = 0};
    append(&message, "meshwork: warning: %s", what);
    if (context.ranks > 1)
        append(&message, " (rank %d of %d)", context.rank, context.ranks);
    append(&message, "\n");
    write_message(&message);
}
