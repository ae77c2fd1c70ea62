// message.c -- the fixed forms of messages about files from strangers.
#include "quant/message.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const write_again = "copy or write the file again; it is damaged or hostile";

const char *quoted_name(const char *name, char text[QUOTED_BYTES])
{
    size_t length = 0;
    for (const unsigned char *c = (const unsigned char *)name; *c; c++) {
        if (length > QUOTED_BYTES - 10) {
            memcpy(text + length, "...", 3);
            length += 3;
            break;
        }
        bool plain = *c >= 0x20 && *c != 0x7F && *c != '"' && *c != '\\';
        length += (size_t)snprintf(text + length, QUOTED_BYTES - length, plain ? "%c" : "\\x%02X",
                                   (unsigned)*c);
    }
    text[length] = '\0';
    return text;
}

// The end of a path says more than its beginning.
static const char *tail_of(const char *path)
{
    size_t length = strlen(path);
    return length > 120 ? path + length - 120 : path;
}

bool bad_byte(Error *error, const char *path, uint64_t byte, const char *format, ...)
{
    char rule[300];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(rule, sizeof(rule), format, arguments);
    va_end(arguments);
    return error_set(error, EXIT_CODE_DATA, write_again, "%s: byte %llu: %s", tail_of(path),
                     (unsigned long long)byte, rule);
}

bool bad_tensor(Error *error, const char *path, const char *name, const char *format, ...)
{
    char rule[240], shown[QUOTED_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(rule, sizeof(rule), format, arguments);
    va_end(arguments);
    return error_set(error, EXIT_CODE_DATA, write_again, "%s: tensor \"%s\": %s", tail_of(path),
                     quoted_name(name, shown), rule);
}

bool bad_file(Error *error, const char *path, const char *format, ...)
{
    char rule[320];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(rule, sizeof(rule), format, arguments);
    va_end(arguments);
    return error_set(error, EXIT_CODE_DATA, write_again, "%s: %s", tail_of(path), rule);
}
