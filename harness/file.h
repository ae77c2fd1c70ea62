// file.h -- files read whole, mapped, and written so that they appear complete or not at all.
#pragma once

#include "harness/check.h"

typedef struct FileMap {
    const uint8_t *data;
    uint64_t bytes;
} FileMap;

// Local. Maps a file read-only. Error 66 when it is not there, 65 when it is no regular file or
// empty, 74 otherwise.
bool file_map(const char *path, FileMap *map, Error *error);
void file_unmap(FileMap *map);
// Local. The whole file as bytes plus a closing NUL; the caller frees it. Error 65 above bytes_max.
char *file_read(const char *path, uint64_t bytes_max, uint64_t *bytes, Error *error);

// A file being written under "<path>.tmp.<pid>"; it gets its name on commit (fsync, rename, fsync
// of the folder).
typedef struct FileWriter {
    int descriptor; // -1 when closed
    bool force;     // replace a file of that name
    char path[1024], temporary[1088];
} FileWriter;
// Local. Error 73 when the folder cannot be written or the path exists and !force. After a failed
// write or commit (74, 73) the temporary file is already gone.
bool file_writer_open(FileWriter *writer, const char *path, bool force, Error *error);
bool file_writer_write(FileWriter *writer, const void *data, uint64_t bytes,
                       Error *error); // 74, disk full said so
bool file_writer_commit(FileWriter *writer, Error *error);
void file_writer_abandon(FileWriter *writer); // removes the temporary file

// Local. Renames an already complete and closed `temporary` onto `path` durably (fsync file,
// rename, fsync folder).
bool file_publish(const char *temporary, const char *path, Error *error);
// Local. Error 73 unless `path` could be created now: its folder exists and is writable, and it is
// absent or force.
bool file_check_creatable(const char *path, bool force, Error *error);
bool file_exists(const char *path);
