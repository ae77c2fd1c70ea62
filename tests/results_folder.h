// results_folder.h -- what the tests of files and of what is shown share: a folder for each test,
// bytes in and out, standard output into a file, and a limit on the size of files.
#pragma once

#include "tests/results_sample.h"

#include <signal.h>
#include <sys/resource.h>

#include "harness/file.h"

enum { PATH_BYTES = 256 };

typedef struct Folder {
    Sample *sample;
    char path[PATH_BYTES], file[PATH_BYTES + 16], journal[PATH_BYTES + 16], out[PATH_BYTES + 16];
} Folder;

static inline int folder_setup(void **state)
{
    Folder *folder = calloc(1, sizeof *folder);
    folder->sample = *state;
    sample_folder_create(folder->path, sizeof folder->path);
    snprintf(folder->file, sizeof folder->file, "%s/r.h5", folder->path);
    snprintf(folder->journal, sizeof folder->journal, "%s/r.journal", folder->path);
    snprintf(folder->out, sizeof folder->out, "%s/out", folder->path);
    *state = folder;
    return 0;
}

static inline int folder_teardown(void **state)
{
    Folder *folder = *state;
    sample_folder_destroy(folder->path);
    free(folder);
    return 0;
}

// A row of the list of tests: a folder of its own, and the stream of random numbers of all.
#define FOLDER_TEST(function, sample)                                                              \
    {                                                                                              \
#function, function, folder_setup, folder_teardown, sample                                 \
    }

// The caller frees it.
static inline char *read_bytes(const char *path, uint64_t *bytes)
{
    Error error = {0};
    char *data = file_read(path, 1ull << 30, bytes, &error);
    assert_error(error, 0);
    return data;
}

static inline void write_bytes(const char *path, const char *data, uint64_t bytes)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

// What result_show prints goes into a file.
static inline void show_into(const char *path, const Result *result, bool as_json)
{
    fflush(stdout);
    int saved = dup(STDOUT_FILENO);
    FILE *file = fopen(path, "w");
    dup2(fileno(file), STDOUT_FILENO);
    result_show(result, as_json);
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    fclose(file);
}

// A disk that takes no file of more than so many bytes, from begin to end.
static inline struct rlimit size_limit_begin(rlim_t bytes)
{
    struct rlimit before, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = bytes;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    return before;
}

static inline void size_limit_end(const struct rlimit *before)
{
    setrlimit(RLIMIT_FSIZE, before);
    signal(SIGXFSZ, SIG_DFL);
}
