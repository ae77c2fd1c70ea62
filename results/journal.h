// journal.h -- the append-only truth of a run: one checksummed line per finished measurement, on
// disk before it is shown.
//
// A line is: 8 hex digits of the CRC-32 of the body, a space, the body's length in decimal, a
// space, the body (one JSON object with a "kind"), a newline. The first line is the header. A torn
// or damaged last line is dropped when reading; damage before the last line is an error with its
// offset.
#pragma once

#include "results/result.h"

typedef struct Journal Journal;

// Local. Error 73 (cannot create, exists without force) or 74. The path's file and folder are
// fsynced. Owner: the caller.
Journal *journal_create(const char *path, bool force, Error *error);
// Local. Takes over `line`. On return it is on disk (fsync). 74 names the bytes that were needed
// when the disk is full.
bool journal_append(Journal *journal, Json *line, Error *error);
void journal_destroy(Journal *journal);
// Local. Reads a journal into a Result; result->note says what was dropped. 65 when it is no
// journal.
bool journal_read(const char *path, Result *result, Error *error);
// Local. The journal's path for a result path: "r.h5" -> "r.journal".
void journal_path_for(const char *result_path, char *path, size_t bytes);
