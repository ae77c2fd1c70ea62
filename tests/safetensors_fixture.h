// safetensors_fixture.h -- for the tests of the safetensors reader and writer: the file of the
// reference library in memory, and a folder to write into.
#pragma once

#include "quant/safetensors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { PATH_BYTES = 512 };

static inline const char *golden_path(char *path)
{
    const char *folder = getenv("MESHWORK_GOLDEN");
    snprintf(path, PATH_BYTES, "%s/safetensors/every_dtype.safetensors",
             folder ? folder : "tests/golden");
    return path;
}

// Fails with the reader's own words.
static inline void expect_good(bool good, const Error *error)
{
    if (!good)
        fail_msg("exit code %d: %s", error->exit_code, error->what);
}

// A file image in a block of exactly its size, so that the sanitizer sees any step beside it.
typedef struct Image {
    uint8_t *bytes;
    uint64_t count;
} Image;

static inline Image read_golden(void)
{
    char path[PATH_BYTES];
    Error error = {0};
    uint64_t bytes = 0;
    char *text = file_read(golden_path(path), 1 << 20, &bytes, &error);
    expect_good(text != NULL, &error);
    Image image = {.bytes = malloc(bytes), .count = bytes};
    memcpy(image.bytes, text, bytes);
    free(text);
    return image;
}

static inline void make_folder(char *folder)
{
    const char *base = getenv("TMPDIR");
    snprintf(folder, PATH_BYTES / 2, "%s/meshwork.XXXXXX", base && *base ? base : "/tmp");
    assert_non_null(mkdtemp(folder));
}

static inline char *join(char *path, const char *folder, const char *name)
{
    assert_true(snprintf(path, PATH_BYTES, "%s/%s", folder, name) < PATH_BYTES);
    return path;
}
