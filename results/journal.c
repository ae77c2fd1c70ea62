// journal.c -- an append-only file of checksummed lines.
//
// The idea is that of a write-ahead log with one writer: a line is handed to the kernel in one
// write and synced before anyone is told about it, so the file is always whole lines plus at most
// one torn line at its end. A line that could not be written completely (full disk) is cut off
// again, so that what stands before it stays readable. The checksum is the CRC-32 of zlib (ISO
// 3309, as in gzip).
#include "results/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "harness/file.h"
#include "results/lines.h"

enum { JOURNAL_PATH_BYTES = 1088, LINE_PREFIX_BYTES = 32, LINE_DIGITS_MAX = 10 };
static const uint64_t journal_bytes_max = 1ull << 32;

struct Journal {
    int descriptor;
    uint64_t bytes; // whole lines so far
    char path[JOURNAL_PATH_BYTES];
};

static uint32_t checksum(const char *text, uint64_t bytes)
{
    return (uint32_t)crc32_z(0, (const unsigned char *)text, bytes);
}

void journal_path_for(const char *result_path, char *path, size_t bytes)
{
    static const char *const endings[] = {".h5", ".hdf5"};
    size_t stem = strlen(result_path);
    for (size_t i = 0; i < COUNT_OF(endings); i++) {
        size_t ending = strlen(endings[i]);
        // Not when the name is only the ending (".h5"): a journal needs a stem too.
        if (stem > ending && result_path[stem - ending - 1] != '/' &&
            strcmp(result_path + stem - ending, endings[i]) == 0) {
            stem -= ending;
            break;
        }
    }
    snprintf(path, bytes, "%.*s.journal", (int)stem, result_path);
}

// The name of a new file is on disk when its folder is.
static bool sync_folder_of(const char *path, Error *error)
{
    char copy[JOURNAL_PATH_BYTES];
    snprintf(copy, sizeof copy, "%s", path);
    int folder = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    // Some file systems cannot sync folders and say EINVAL: there is no more to do then.
    bool good = folder >= 0 && (fsync(folder) == 0 || errno == EINVAL);
    int code = errno;
    if (folder >= 0)
        close(folder);
    return good || error_set(error, EXIT_CODE_IO, "check the disk and the file system",
                             "cannot sync the folder of %s: %s", path, strerror(code));
}

// Holds the journal against a second run with the same -o; released when the process ends, however
// it ends.
static bool claim(Journal *journal, Error *error)
{
    struct stat status;
    if (fstat(journal->descriptor, &status) != 0 || !S_ISREG(status.st_mode))
        return error_set(error, EXIT_CODE_CANT_CREATE, "choose another name",
                         "%s is no regular file", journal->path);
    if (flock(journal->descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return error_set(error, EXIT_CODE_CANT_CREATE, "wait for it, or choose another name",
                         "another run is writing %s", journal->path);
    if (ftruncate(journal->descriptor, 0) != 0)
        return error_set(error, EXIT_CODE_IO, "check the disk and the file system",
                         "cannot empty %s: %s", journal->path, strerror(errno));
    return sync_folder_of(journal->path, error);
}

Journal *journal_create(const char *path, bool force, Error *error)
{
    Journal *journal = calloc(1, sizeof *journal);
    CHECK(journal, EXIT_CODE_HARDWARE, "free some memory", "no memory for a journal");
    snprintf(journal->path, sizeof journal->path, "%s", path);
    int flags = O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | (force ? 0 : O_EXCL);
    journal->descriptor = open(path, flags, 0666);
    if (journal->descriptor < 0 && errno == EEXIST)
        error_set(error, EXIT_CODE_CANT_CREATE,
                  "keep what it holds with `meshwork results recover`, choose another -o, or"
                  " overwrite it with --force",
                  "%s exists: an earlier run that did not finish left it", path);
    else if (journal->descriptor < 0)
        error_set(error, EXIT_CODE_CANT_CREATE, "choose a folder that you may write",
                  "cannot create %s: %s", path, strerror(errno));
    if (journal->descriptor < 0 || !claim(journal, error)) {
        journal_destroy(journal);
        return NULL;
    }
    return journal;
}

// Writes all of it or says how much was written; errno tells why.
static uint64_t write_whole(int descriptor, const char *text, uint64_t bytes)
{
    uint64_t done = 0;
    errno = 0;
    while (done < bytes) {
        ssize_t written = write(descriptor, text + done, bytes - done);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            break;
        done += (uint64_t)written;
    }
    return done;
}

bool journal_append(Journal *journal, Json *line, Error *error)
{
    char *body = json_print(line, false);
    json_destroy(line);
    uint64_t body_bytes = strlen(body);
    char *text = malloc(body_bytes + LINE_PREFIX_BYTES);
    CHECK(text, EXIT_CODE_HARDWARE, "free some memory", "no memory for a line of %llu bytes",
          (unsigned long long)body_bytes);
    uint64_t bytes = (uint64_t)sprintf(text, "%08x %llu ", checksum(body, body_bytes),
                                       (unsigned long long)body_bytes);
    memcpy(text + bytes, body, body_bytes);
    bytes += body_bytes;
    text[bytes++] = '\n';
    uint64_t done = write_whole(journal->descriptor, text, bytes);
    bool good = done == bytes && fsync(journal->descriptor) == 0;
    int code = errno;
    free(text);
    free(body);
    if (good) {
        journal->bytes += bytes;
        return true;
    }
    // If even this fails the reader drops the torn line.
    if (ftruncate(journal->descriptor, (off_t)journal->bytes) == 0)
        fsync(journal->descriptor);
    return error_set(error, EXIT_CODE_IO,
                     "make room (see df -h), then `meshwork results recover` keeps what was"
                     " measured before",
                     "cannot write %llu bytes more to %s: %s (%llu were written; the %llu bytes"
                     " before them are safe)",
                     (unsigned long long)bytes, journal->path, strerror(code),
                     (unsigned long long)done, (unsigned long long)journal->bytes);
}

void journal_destroy(Journal *journal)
{
    if (!journal)
        return;
    if (journal->descriptor >= 0)
        close(journal->descriptor);
    free(journal);
}

// One line of the file, taken apart. body is NULL when it is torn or damaged; next is where the
// line ends.
typedef struct LinePiece {
    const char *body;
    uint64_t body_bytes;
    const char *next;
} LinePiece;

static const char *parse_checksum(const char *text, uint32_t *value)
{
    *value = 0;
    for (int i = 0; i < 8; i++) {
        const char *digits = "0123456789abcdef";
        const char *digit = text[i] ? strchr(digits, text[i]) : NULL;
        if (!digit)
            return NULL;
        *value = *value << 4 | (uint32_t)(digit - digits);
    }
    return text[8] == ' ' ? text + 9 : NULL;
}

static const char *parse_length(const char *text, uint64_t *value)
{
    int digits = 0;
    *value = 0;
    for (; digits < LINE_DIGITS_MAX && text[digits] >= '0' && text[digits] <= '9'; digits++)
        *value = *value * 10 + (uint64_t)(text[digits] - '0');
    return digits > 0 && text[digits] == ' ' ? text + digits + 1 : NULL;
}

// `text` up to `end`, which holds a NUL: the parsers above stop there at the latest.
static LinePiece cut_line(const char *text, const char *end)
{
    const char *newline = memchr(text, '\n', (size_t)(end - text));
    LinePiece piece = {.next = newline ? newline + 1 : end};
    uint32_t expected;
    uint64_t length;
    const char *body = parse_checksum(text, &expected);
    body = body ? parse_length(body, &length) : NULL;
    if (!newline || !body || body > newline || (uint64_t)(newline - body) != length ||
        checksum(body, length) != expected)
        return piece;
    piece.body = body;
    piece.body_bytes = length;
    return piece;
}

static bool read_line(const char *path, const LinePiece *piece, uint64_t offset, Result *result,
                      Error *error)
{
    Error inner = {0};
    Json *line = json_parse(piece->body, piece->body_bytes, &inner);
    bool good = line && line_read(line, result, &inner);
    json_destroy(line);
    return good || error_set(error, EXIT_CODE_DATA, inner.fix, "%s, line at byte %llu: %s", path,
                             (unsigned long long)offset, inner.what);
}

static bool read_lines(const char *path, const char *text, uint64_t bytes, Result *result,
                       Error *error)
{
    const char *end = text + bytes;
    for (const char *at = text; at < end;) {
        uint64_t offset = (uint64_t)(at - text);
        LinePiece piece = cut_line(at, end);
        if (!piece.body && !result->header)
            return error_set(error, EXIT_CODE_DATA,
                             "give the .journal that meshwork left beside the result",
                             "%s is no journal of meshwork: it has no whole first line", path);
        if (!piece.body && piece.next < end)
            return error_set(error, EXIT_CODE_DATA, "restore the file from a copy",
                             "%s is damaged at byte %llu, before its last line", path,
                             (unsigned long long)offset);
        if (!piece.body) {
            snprintf(result->note, sizeof result->note,
                     "dropped a torn last line: %llu bytes at byte %llu",
                     (unsigned long long)(bytes - offset), (unsigned long long)offset);
            return true;
        }
        if (!read_line(path, &piece, offset, result, error))
            return false;
        at = piece.next;
    }
    return true;
}

bool journal_read(const char *path, Result *result, Error *error)
{
    *result = (Result){0};
    uint64_t bytes = 0;
    char *text = file_read(path, journal_bytes_max, &bytes, error);
    if (!text)
        return false;
    bool good = bytes > 0 ? read_lines(path, text, bytes, result, error)
                          : error_set(error, EXIT_CODE_DATA, "there is nothing to recover",
                                      "%s is empty: its run ended before it began", path);
    free(text);
    if (!good) {
        result_destroy(result);
    } else if (!result->complete && !result->note[0]) {
        snprintf(result->note, sizeof result->note,
                 "no closing line: the run was stopped before its end");
    }
    return good;
}
