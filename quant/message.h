// message.h -- how readers of files from strangers say what is wrong: file, byte, rule.
#pragma once

#include "harness/check.h"

enum { QUOTED_BYTES = 96 };

// Local. A name from a file as it may be shown: control characters and quotes as \xNN, long ones
// cut. Returns text.
const char *quoted_name(const char *name, char text[QUOTED_BYTES]);
// Local. Error 65 "FILE: byte N: RULE"; returns false.
bool bad_byte(Error *error, const char *path, uint64_t byte, const char *format, ...)
    PRINTF_LIKE(4, 5);
// Local. Error 65 "FILE: tensor "NAME": RULE"; returns false.
bool bad_tensor(Error *error, const char *path, const char *name, const char *format, ...)
    PRINTF_LIKE(4, 5);
// Local. Error 65 "FILE: RULE"; returns false.
bool bad_file(Error *error, const char *path, const char *format, ...) PRINTF_LIKE(3, 4);
