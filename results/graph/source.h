// source.h -- files read in pieces: plain or gzip (told by their first bytes), or standard input;
// and files written in pieces, plain or gzip, that appear complete or not at all.
//
// The only caller of zlib's inflate and deflate.
#pragma once

#include "harness/file.h"

typedef struct Source Source;

// Local. "-" is standard input. Error 66 when there is no such file or it is a folder, 74.
// Owner: the caller.
Source *source_open(const char *path, Error *error);
void source_close(Source *source);
// Local. Up to `bytes` bytes; 0 at the end; -1 and error 74 when the file cannot be read, 65 when
// its gzip data are damaged. A gzip file that ends too early ends there, with source_is_truncated.
int64_t source_read(Source *source, void *data, int64_t bytes, Error *error);
bool source_is_truncated(const Source *source);

typedef struct Sink Sink;

// Local. Compresses when the path ends in ".gz". Errors as of file_writer_open. Owner: the caller.
Sink *sink_open(const char *path, bool force, Error *error);
bool sink_write(Sink *sink, const void *data, size_t bytes, Error *error); // 74
// Local. Both end the sink: the file appears, or what was written is removed.
bool sink_commit(Sink *sink, Error *error);
void sink_abandon(Sink *sink); // NULL is none
