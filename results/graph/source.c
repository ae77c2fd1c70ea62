// source.c -- see source.h. zlib's gzread reads plain files too, and tells them by their first two
// bytes.
#include "results/graph/source.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

enum { READ_BYTES = 1 << 17, WRITE_BYTES = 1 << 20, GZIP_LEVEL = 1, GZIP_WINDOW = 15 + 16 };

struct Source {
    gzFile file;
    bool truncated;
    char path[1024];
};

static void *new_object(size_t bytes)
{
    void *memory = calloc(1, bytes);
    CHECK(memory, EXIT_CODE_HARDWARE, "free memory", "no memory for %zu bytes of a file", bytes);
    return memory;
}

static int open_input(const char *path, Error *error)
{
    if (strcmp(path, "-") == 0)
        return dup(STDIN_FILENO);
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (descriptor < 0 && (errno == ENOENT || errno == ENOTDIR)) {
        error_set(error, EXIT_CODE_NO_INPUT, "check the spelling of the path",
                  "there is no file %s", path);
    } else if (descriptor < 0) {
        error_set(error, EXIT_CODE_IO, "check the permissions of the file and its folders",
                  "cannot open %s: %s", path, strerror(errno));
    } else if (fstat(descriptor, &status) == 0 && S_ISDIR(status.st_mode)) {
        error_set(error, EXIT_CODE_NO_INPUT, "give the path of a file", "%s is a folder", path);
        close(descriptor);
        descriptor = -1;
    }
    return descriptor;
}

Source *source_open(const char *path, Error *error)
{
    int descriptor = open_input(path, error);
    if (descriptor < 0)
        return NULL;
    Source *source = new_object(sizeof(*source));
    snprintf(source->path, sizeof(source->path), "%s",
             strcmp(path, "-") == 0 ? "standard input" : path);
    source->file = gzdopen(descriptor, "rb");
    CHECK(source->file && gzbuffer(source->file, READ_BYTES) == 0, EXIT_CODE_HARDWARE,
          "free memory", "no memory to read %s", path);
    return source;
}

void source_close(Source *source)
{
    if (!source)
        return;
    gzclose(source->file);
    free(source);
}

int64_t source_read(Source *source, void *data, int64_t bytes, Error *error)
{
    unsigned piece = bytes < 1 << 30 ? (unsigned)bytes : 1u << 30;
    int got = gzread(source->file, data, piece);
    int code = Z_OK;
    const char *why = gzerror(source->file, &code);
    if (code == Z_BUF_ERROR)
        source->truncated = true;
    if (got >= 0)
        return got;
    if (code == Z_ERRNO)
        error_set(error, EXIT_CODE_IO, "check the disk and the file system", "cannot read %s: %s",
                  source->path, strerror(errno));
    else
        error_set(error, EXIT_CODE_DATA, "copy or compress the file again",
                  "%s is no whole gzip file: %.200s, near byte %lld of its text", source->path, why,
                  (long long)gztell(source->file));
    return -1;
}

bool source_is_truncated(const Source *source)
{
    return source->truncated;
}

// ---- writing ----

struct Sink {
    FileWriter writer;
    bool compressed, failed;
    z_stream stream;
    size_t held;
    uint8_t *buffer; // [WRITE_BYTES] waiting to be written
};

Sink *sink_open(const char *path, bool force, Error *error)
{
    FileWriter writer;
    if (!file_writer_open(&writer, path, force, error))
        return NULL;
    Sink *sink = new_object(sizeof(*sink));
    size_t length = strlen(path);
    sink->writer = writer;
    sink->buffer = new_object(WRITE_BYTES);
    sink->compressed = length > 3 && strcmp(path + length - 3, ".gz") == 0;
    if (sink->compressed)
        CHECK(deflateInit2(&sink->stream, GZIP_LEVEL, Z_DEFLATED, GZIP_WINDOW, 8,
                           Z_DEFAULT_STRATEGY) == Z_OK,
              EXIT_CODE_HARDWARE, "free memory", "no memory to compress %s", path);
    return sink;
}

static bool flush(Sink *sink, Error *error)
{
    bool good = file_writer_write(&sink->writer, sink->buffer, sink->held, error);
    sink->held = 0;
    return good;
}

// Compresses what is given; at the end also what zlib keeps back.
static bool deflate_all(Sink *sink, const void *data, size_t bytes, int mode, Error *error)
{
    const uint8_t *from = data;
    int code = Z_OK;
    do {
        size_t piece = bytes < 1u << 30 ? bytes : 1u << 30;
        sink->stream.next_in = (uint8_t *)(uintptr_t)from;
        sink->stream.avail_in = (unsigned)piece;
        do {
            if (sink->held == WRITE_BYTES && !flush(sink, error))
                return false;
            sink->stream.next_out = sink->buffer + sink->held;
            sink->stream.avail_out = (unsigned)(WRITE_BYTES - sink->held);
            code = deflate(&sink->stream, mode);
            sink->held = WRITE_BYTES - sink->stream.avail_out;
        } while (sink->stream.avail_in > 0 || (mode == Z_FINISH && code == Z_OK));
        from += piece;
        bytes -= piece;
    } while (bytes > 0);
    return true;
}

bool sink_write(Sink *sink, const void *data, size_t bytes, Error *error)
{
    if (sink->compressed)
        return deflate_all(sink, data, bytes, Z_NO_FLUSH, error);
    if (bytes > WRITE_BYTES - sink->held && !flush(sink, error))
        return false;
    if (bytes > WRITE_BYTES)
        return file_writer_write(&sink->writer, data, bytes, error);
    if (bytes)
        memcpy(sink->buffer + sink->held, data, bytes);
    sink->held += bytes;
    return true;
}

static void destroy(Sink *sink)
{
    if (sink->compressed)
        deflateEnd(&sink->stream);
    free(sink->buffer);
    free(sink);
}

bool sink_commit(Sink *sink, Error *error)
{
    bool good = !sink->compressed || deflate_all(sink, "", 0, Z_FINISH, error);
    good = good && flush(sink, error) && file_writer_commit(&sink->writer, error);
    if (!good)
        file_writer_abandon(&sink->writer);
    destroy(sink);
    return good;
}

void sink_abandon(Sink *sink)
{
    if (!sink)
        return;
    file_writer_abandon(&sink->writer);
    destroy(sink);
}
