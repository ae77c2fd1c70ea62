// file.c -- files that appear complete or not at all.
//
// Writing goes to "<path>.tmp.<pid>" beside the target (the same file system, so that rename is
// atomic), is fsynced, renamed, and the folder is fsynced so that the new name survives a power cut
// too. Without `force` the rename itself refuses an existing target (renameat2), so that two runs
// cannot overwrite each other between a check and a rename.
#include "harness/file.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { READ_STEP_BYTES = 1 << 16, FOLDER_BYTES = 1088 };

static bool open_input(const char *path, int *descriptor, struct stat *status, Error *error)
{
    *descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a FIFO must not block us
    if (*descriptor < 0) {
        if (errno == ENOENT || errno == ENOTDIR)
            return error_set(error, EXIT_CODE_NO_INPUT, "check the spelling of the path",
                             "there is no file %s", path);
        return error_set(error, EXIT_CODE_IO, "check the permissions of the file and its folders",
                         "cannot open %s: %s", path, strerror(errno));
    }
    if (fstat(*descriptor, status) != 0) {
        error_set(error, EXIT_CODE_IO, "check the file system", "cannot look at %s: %s", path,
                  strerror(errno));
        close(*descriptor);
        return false;
    }
    return true;
}

bool file_map(const char *path, FileMap *map, Error *error)
{
    *map = (FileMap){NULL, 0};
    int descriptor;
    struct stat status;
    if (!open_input(path, &descriptor, &status, error))
        return false;
    void *data = NULL;
    if (!S_ISREG(status.st_mode)) {
        error_set(error, EXIT_CODE_DATA, "give the path of a file",
                  "%s is no regular file (it is a folder, a pipe or a device)", path);
    } else if (status.st_size == 0) {
        error_set(error, EXIT_CODE_DATA, "write or copy the file again", "%s is empty (0 bytes)",
                  path);
    } else {
        data = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
        if (data == MAP_FAILED) {
            data = NULL;
            error_set(error, EXIT_CODE_IO, "check the memory limits (ulimit -v) and the disk",
                      "cannot map the %lld bytes of %s: %s", (long long)status.st_size, path,
                      strerror(errno));
        }
    }
    close(descriptor);
    if (!data)
        return false;
    *map = (FileMap){data, (uint64_t)status.st_size};
    return true;
}

void file_unmap(FileMap *map)
{
    if (map->data)
        munmap((void *)(uintptr_t)map->data, (size_t)map->bytes);
    *map = (FileMap){NULL, 0};
}

// Reads until end of file: st_size is 0 for files of /proc and stale for files that grow.
static bool read_all(int descriptor, const char *path, uint64_t bytes_max, char **text,
                     uint64_t *bytes, Error *error)
{
    uint64_t capacity = READ_STEP_BYTES;
    *bytes = 0;
    *text = malloc(capacity + 1);
    for (;;) {
        if (!*text)
            return error_set(error, EXIT_CODE_HARDWARE, "free memory, or give a smaller file",
                             "no memory for the %llu bytes of %s", (unsigned long long)capacity,
                             path);
        ssize_t got = read(descriptor, *text + *bytes, capacity - *bytes);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_set(error, EXIT_CODE_IO, "check the disk and the file system",
                             "cannot read %s after byte %llu: %s", path, (unsigned long long)*bytes,
                             strerror(errno));
        if (got == 0)
            break;
        *bytes += (uint64_t)got;
        if (*bytes > bytes_max)
            return error_set(error, EXIT_CODE_DATA, "give the file that was meant",
                             "%s is larger than the %llu bytes that such a file may have", path,
                             (unsigned long long)bytes_max);
        if (*bytes == capacity) {
            capacity *= 2;
            char *larger = realloc(*text, capacity + 1);
            if (!larger)
                free(*text);
            *text = larger;
        }
    }
    (*text)[*bytes] = '\0';
    return true;
}

char *file_read(const char *path, uint64_t bytes_max, uint64_t *bytes, Error *error)
{
    int descriptor;
    struct stat status;
    uint64_t count = 0;
    char *text = NULL;
    if (!open_input(path, &descriptor, &status, error))
        return NULL;
    bool good = false;
    if (S_ISDIR(status.st_mode)) {
        error_set(error, EXIT_CODE_DATA, "give the path of a file", "%s is a folder", path);
    } else {
        fcntl(descriptor, F_SETFL, 0); // from here on a pipe may let us wait for its writer
        good = read_all(descriptor, path, bytes_max, &text, &count, error);
    }
    close(descriptor);
    if (!good) {
        free(text);
        return NULL;
    }
    if (bytes)
        *bytes = count;
    return text;
}

static bool folder_of(const char *path, char *folder, size_t bytes, Error *error)
{
    char copy[FOLDER_BYTES];
    if (strlen(path) >= sizeof(copy))
        return error_set(error, EXIT_CODE_CANT_CREATE, "choose a shorter path",
                         "a path of %zu bytes is too long (at most %zu): %.100s...", strlen(path),
                         sizeof(copy) - 1, path);
    snprintf(copy, sizeof(copy), "%s", path);
    snprintf(folder, bytes, "%s", dirname(copy));
    return true;
}

bool file_exists(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0;
}

bool file_check_creatable(const char *path, bool force, Error *error)
{
    char folder[FOLDER_BYTES];
    struct stat status;
    size_t length = strlen(path);
    if (length == 0 || path[length - 1] == '/')
        return error_set(error, EXIT_CODE_CANT_CREATE, "give the path of a file",
                         "'%s' is no name for a file", path);
    if (length >= sizeof(((FileWriter *)0)->path))
        return error_set(error, EXIT_CODE_CANT_CREATE, "choose a shorter path",
                         "a path of %zu bytes is too long (at most %zu): %.100s...", length,
                         sizeof(((FileWriter *)0)->path) - 1, path);
    if (!folder_of(path, folder, sizeof(folder), error))
        return false;
    if (stat(folder, &status) != 0)
        return error_set(error, EXIT_CODE_CANT_CREATE, "make the folder first (mkdir -p)",
                         "cannot create %s: its folder %s: %s", path, folder, strerror(errno));
    if (!S_ISDIR(status.st_mode))
        return error_set(error, EXIT_CODE_CANT_CREATE, "choose another folder",
                         "cannot create %s: %s is no folder", path, folder);
    if (access(folder, W_OK | X_OK) != 0)
        return error_set(error, EXIT_CODE_CANT_CREATE,
                         "choose a folder that you may write, or change its permissions",
                         "cannot create %s in %s: %s", path, folder, strerror(errno));
    if (stat(path, &status) != 0)
        return errno == ENOENT || error_set(error, EXIT_CODE_CANT_CREATE, "choose another name",
                                            "cannot create %s: %s", path, strerror(errno));
    if (!S_ISREG(status.st_mode))
        return error_set(error, EXIT_CODE_CANT_CREATE, "choose another name",
                         "cannot create %s: a folder or a device has that name", path);
    if (!force)
        return error_set(error, EXIT_CODE_CANT_CREATE,
                         "choose another name, or overwrite it with --force",
                         "%s exists already (%lld bytes)", path, (long long)status.st_size);
    return true;
}

bool file_writer_open(FileWriter *writer, const char *path, bool force, Error *error)
{
    *writer = (FileWriter){.descriptor = -1, .force = force};
    if (!file_check_creatable(path, force, error))
        return false;
    snprintf(writer->path, sizeof(writer->path), "%s", path);
    snprintf(writer->temporary, sizeof(writer->temporary), "%s.tmp.%ld", path, (long)getpid());
    // O_TRUNC and not O_EXCL: in containers process ids repeat, and a killed run must not block its
    // successor.
    writer->descriptor =
        open(writer->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (writer->descriptor < 0)
        return error_set(error, EXIT_CODE_CANT_CREATE,
                         "choose a folder that you may write and that has room",
                         "cannot create %s: %s", writer->temporary, strerror(errno));
    return true;
}

// Says what is full and how much was needed: `bytes` were to be written, `written` of them were.
static bool write_failed(const FileWriter *writer, uint64_t bytes, uint64_t written, int code,
                         Error *error)
{
    if (code != ENOSPC && code != EDQUOT)
        return error_set(error, EXIT_CODE_IO, "check the disk and the file system",
                         "cannot write %s: %s (%llu of %llu bytes written)", writer->temporary,
                         strerror(code), (unsigned long long)written, (unsigned long long)bytes);
    struct statvfs space;
    unsigned long long left = 0;
    if (fstatvfs(writer->descriptor, &space) == 0)
        left = (unsigned long long)space.f_bavail * space.f_frsize;
    return error_set(error, EXIT_CODE_IO, "make room there (see df -h), or write to another disk",
                     "%s while writing %s: %llu of %llu bytes written, %llu bytes left",
                     code == ENOSPC ? "the disk is full" : "the disk quota is used up",
                     writer->temporary, (unsigned long long)written, (unsigned long long)bytes,
                     left);
}

bool file_writer_write(FileWriter *writer, const void *data, uint64_t bytes, Error *error)
{
    if (writer->descriptor < 0)
        return error_set(error, EXIT_CODE_IO, "see the first error", "%s is not open for writing",
                         writer->path);
    uint64_t done = 0;
    while (done < bytes) {
        uint64_t left = bytes - done;
        size_t piece = left < 1u << 30 ? (size_t)left : 1u << 30;
        ssize_t written = write(writer->descriptor, (const char *)data + done, piece);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0) {
            write_failed(writer, bytes, done, written < 0 ? errno : ENOSPC, error);
            file_writer_abandon(writer);
            return false;
        }
        done += (uint64_t)written;
    }
    return true;
}

// A new name is on disk when its folder is. Some file systems cannot sync folders (EINVAL): then
// there is nothing to do.
static bool sync_folder(const char *path, Error *error)
{
    char folder[FOLDER_BYTES];
    if (!folder_of(path, folder, sizeof(folder), error))
        return false;
    int descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool good = descriptor >= 0 && (fsync(descriptor) == 0 || errno == EINVAL || errno == EROFS);
    int code = errno;
    if (descriptor >= 0)
        close(descriptor);
    return good || error_set(error, EXIT_CODE_IO, "check the disk and the file system",
                             "cannot sync the folder %s: %s", folder, strerror(code));
}

static bool rename_onto(const char *temporary, const char *path, bool force, Error *error)
{
    int code = 0;
    if (!force && renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RENAME_NOREPLACE) != 0)
        code = errno;
    // Not every file system knows RENAME_NOREPLACE; there a check just before the rename is the
    // best there is.
    bool plain = force || code == EINVAL || code == ENOSYS;
    if (plain && !force && file_exists(path))
        code = EEXIST;
    else if (plain)
        code = rename(temporary, path) == 0 ? 0 : errno;
    if (code == EEXIST)
        return error_set(error, EXIT_CODE_CANT_CREATE,
                         "choose another name, or overwrite it with --force",
                         "%s appeared while it was being written", path);
    if (code != 0)
        return error_set(error, EXIT_CODE_CANT_CREATE, "choose another name",
                         "cannot rename %s to %s: %s", temporary, path, strerror(code));
    return sync_folder(path, error);
}

bool file_writer_commit(FileWriter *writer, Error *error)
{
    if (writer->descriptor < 0)
        return error_set(error, EXIT_CODE_IO, "see the first error", "%s is not open for writing",
                         writer->path);
    bool good = fsync(writer->descriptor) == 0;
    if (!good) {
        int code = errno; // disks that allocate late say only now that they are full
        struct stat status = {.st_size = 0};
        fstat(writer->descriptor, &status);
        write_failed(writer, (uint64_t)status.st_size, 0, code, error);
    } else {
        int descriptor = writer->descriptor;
        writer->descriptor = -1;
        good = close(descriptor) == 0 ||
               error_set(error, EXIT_CODE_IO, "check the file system", "cannot close %s: %s",
                         writer->temporary, strerror(errno));
        good = good && rename_onto(writer->temporary, writer->path, writer->force, error);
    }
    if (!good)
        file_writer_abandon(writer);
    else
        writer->temporary[0] = '\0';
    return good;
}

void file_writer_abandon(FileWriter *writer)
{
    if (writer->descriptor >= 0)
        close(writer->descriptor);
    writer->descriptor = -1;
    if (writer->temporary[0])
        unlink(writer->temporary);
    writer->temporary[0] = '\0';
}

bool file_publish(const char *temporary, const char *path, Error *error)
{
    int descriptor = open(temporary, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return error_set(error, EXIT_CODE_IO, "check the folder", "cannot open %s: %s", temporary,
                         strerror(errno));
    bool good = fsync(descriptor) == 0;
    int code = errno;
    close(descriptor);
    if (!good)
        return error_set(error, EXIT_CODE_IO, "make room on the disk (see df -h)",
                         "cannot sync %s: %s", temporary, strerror(code));
    return rename_onto(temporary, path, true, error);
}
