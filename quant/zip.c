// zip.c -- finding the members of a zip archive, with nothing believed before it is checked.
//
// The archive is read from its end: end record (perhaps with a comment behind it), zip64 record
// where a number does not fit, central directory, and for each member its local header, whose name
// must be that of the directory. Members must not overlap, so all of them together are no larger
// than the file.
#include "quant/zip.h"

#include "quant/message.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    END_BYTES = 22,
    END64_BYTES = 56,
    LOCATOR_BYTES = 20,
    CENTRAL_BYTES = 46,
    LOCAL_BYTES = 30,
    COMMENT_MAX = 65535,
    NAME_MAX_BYTES = 4096,
    ENTRIES_MAX = 1 << 22,
};
static const uint32_t end_mark = 0x06054B50, end64_mark = 0x06064B50, locator_mark = 0x07064B50;
static const uint32_t central_mark = 0x02014B50, local_mark = 0x04034B50;

typedef struct Reader {
    const char *path;
    const uint8_t *image;
    uint64_t bytes;
    uint64_t directory, directory_bytes, count;
    Zip *zip;
    Error *error;
} Reader;

static uint64_t number(const uint8_t *at, int bytes)
{
    uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; i--)
        value = value << 8 | at[i];
    return value;
}

#define BAD(reader, byte, ...) bad_byte((reader)->error, (reader)->path, (byte), __VA_ARGS__)

// The last place where an end record with its comment would reach exactly the end of the file.
static bool find_end(Reader *reader, uint64_t *end)
{
    if (reader->bytes < END_BYTES)
        return BAD(reader, 0, "%llu bytes are no zip archive: its end record alone takes %d",
                   (unsigned long long)reader->bytes, END_BYTES);
    uint64_t first = reader->bytes - END_BYTES;
    uint64_t last = first > COMMENT_MAX ? first - COMMENT_MAX : 0;
    for (uint64_t at = first + 1; at-- > last;)
        if (number(reader->image + at, 4) == end_mark &&
            at + END_BYTES + number(reader->image + at + 20, 2) == reader->bytes) {
            *end = at;
            return true;
        }
    return BAD(reader, reader->bytes, "no end record of a zip archive (truncated?)");
}

// Numbers that are all ones stand in the zip64 record, which a locator before the end record finds.
static bool read_end(Reader *reader)
{
    uint64_t end = 0;
    if (!find_end(reader, &end))
        return false;
    const uint8_t *record = reader->image + end;
    reader->count = number(record + 10, 2);
    reader->directory_bytes = number(record + 12, 4);
    reader->directory = number(record + 16, 4);
    if (number(record + 4, 2) != 0 && number(record + 4, 2) != 0xFFFF)
        return BAD(reader, end, "the archive is split over several disks");
    bool wide = reader->count == 0xFFFF || reader->directory_bytes == 0xFFFFFFFF ||
                reader->directory == 0xFFFFFFFF;
    bool located =
        end >= LOCATOR_BYTES && number(reader->image + end - LOCATOR_BYTES, 4) == locator_mark;
    if (wide || located) {
        if (!located)
            return BAD(reader, end, "no zip64 locator before the end record");
        uint64_t at = number(reader->image + end - LOCATOR_BYTES + 8, 8);
        if (at > end - LOCATOR_BYTES || end - LOCATOR_BYTES - at < END64_BYTES ||
            number(reader->image + at, 4) != end64_mark)
            return BAD(reader, end - LOCATOR_BYTES, "the zip64 locator points to no zip64 record");
        reader->count = number(reader->image + at + 32, 8);
        reader->directory_bytes = number(reader->image + at + 40, 8);
        reader->directory = number(reader->image + at + 48, 8);
        end = at;
    }
    if (reader->directory > end || reader->directory_bytes > end - reader->directory)
        return BAD(reader, end, "the directory (%llu bytes at %llu) is not before its end record",
                   (unsigned long long)reader->directory_bytes,
                   (unsigned long long)reader->directory);
    if (reader->count > ENTRIES_MAX || reader->count > reader->directory_bytes / CENTRAL_BYTES)
        return BAD(reader, end, "%llu members do not fit in a directory of %llu bytes",
                   (unsigned long long)reader->count, (unsigned long long)reader->directory_bytes);
    return true;
}

// The 8-byte numbers of the zip64 extra field take the place of those that are all ones.
static bool read_wide(Reader *reader, uint64_t at, const uint8_t *extra, uint64_t extra_bytes,
                      uint64_t *values[3])
{
    bool needed = false;
    for (int i = 0; i < 3; i++)
        needed = needed || *values[i] == 0xFFFFFFFF;
    for (uint64_t place = 0; needed && place + 4 <= extra_bytes;) {
        uint64_t id = number(extra + place, 2), length = number(extra + place + 2, 2);
        place += 4;
        if (length > extra_bytes - place)
            return BAD(reader, at, "an extra field of %llu bytes reaches beyond its entry",
                       (unsigned long long)length);
        for (int i = 0; id == 1 && i < 3; i++) {
            if (*values[i] != 0xFFFFFFFF)
                continue;
            if (length < 8)
                return BAD(reader, at, "the zip64 extra field is too short");
            *values[i] = number(extra + place, 8);
            place += 8;
            length -= 8;
        }
        if (id == 1)
            return true;
        place += length;
    }
    return !needed || BAD(reader, at, "a size of all ones without a zip64 extra field");
}

static bool read_local(Reader *reader, uint64_t at, uint64_t place, uint64_t bytes,
                       const uint8_t *name, uint64_t name_bytes, const uint8_t **data)
{
    if (place > reader->directory || reader->directory - place < LOCAL_BYTES)
        return BAD(reader, at, "a local header at %llu is not before the directory",
                   (unsigned long long)place);
    const uint8_t *local = reader->image + place;
    uint64_t head = LOCAL_BYTES + number(local + 26, 2) + number(local + 28, 2);
    uint64_t room = reader->directory - place;
    if (number(local, 4) != local_mark)
        return BAD(reader, place, "no local header where the directory says");
    if (head > room || bytes > room - head)
        return BAD(reader, place, "a member of %llu bytes reaches into the directory",
                   (unsigned long long)bytes);
    if (number(local + 26, 2) != name_bytes || memcmp(local + LOCAL_BYTES, name, name_bytes) != 0)
        return BAD(reader, place, "the local header has another name than the directory");
    if (number(local + 8, 2) != 0)
        return BAD(reader, place, "a compressed member: torch.save only stores");
    *data = local + head;
    return true;
}

static bool read_entry(Reader *reader, uint64_t *at)
{
    uint64_t left = reader->directory + reader->directory_bytes - *at, start = *at;
    const uint8_t *entry = reader->image + start;
    if (left < CENTRAL_BYTES || number(entry, 4) != central_mark)
        return BAD(reader, start, "no directory entry here");
    uint64_t name_bytes = number(entry + 28, 2), extra_bytes = number(entry + 30, 2);
    uint64_t entry_bytes = CENTRAL_BYTES + name_bytes + extra_bytes + number(entry + 32, 2);
    if (entry_bytes > left)
        return BAD(reader, start, "a directory entry of %llu bytes, %llu are left",
                   (unsigned long long)entry_bytes, (unsigned long long)left);
    const uint8_t *name = entry + CENTRAL_BYTES;
    if (name_bytes == 0 || name_bytes > NAME_MAX_BYTES || memchr(name, 0, name_bytes))
        return BAD(reader, start, "a member's name of %llu bytes, or with a NUL in it",
                   (unsigned long long)name_bytes);
    if (number(entry + 8, 2) & 1)
        return BAD(reader, start, "an encrypted member");
    if (number(entry + 10, 2) != 0)
        return BAD(reader, start, "a compressed member: torch.save only stores");
    uint64_t packed = number(entry + 20, 4), bytes = number(entry + 24, 4);
    uint64_t place = number(entry + 42, 4);
    uint64_t *wide[3] = {&bytes, &packed, &place};
    const uint8_t *data = NULL;
    if (!read_wide(reader, start, name + name_bytes, extra_bytes, wide))
        return false;
    if (packed != bytes)
        return BAD(reader, start, "a stored member with %llu bytes packed and %llu unpacked",
                   (unsigned long long)packed, (unsigned long long)bytes);
    if (!read_local(reader, start, place, bytes, name, name_bytes, &data))
        return false;
    char *copy = strndup((const char *)name, name_bytes);
    CHECK(copy, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a member's name");
    reader->zip->entries[reader->zip->count++] = (ZipEntry){copy, data, bytes};
    *at = start + entry_bytes;
    return true;
}

static int compare_places(const void *a, const void *b)
{
    const ZipEntry *x = a, *y = b;
    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const ZipEntry *)a)->name, ((const ZipEntry *)b)->name);
}

static bool check_entries(Reader *reader)
{
    Zip *zip = reader->zip;
    qsort(zip->entries, (size_t)zip->count, sizeof(*zip->entries), compare_places);
    for (int64_t i = 1; i < zip->count; i++) {
        const ZipEntry *before = &zip->entries[i - 1];
        if (zip->entries[i].data < before->data + before->bytes)
            return BAD(reader, (uint64_t)(zip->entries[i].data - reader->image),
                       "two members overlap");
    }
    qsort(zip->entries, (size_t)zip->count, sizeof(*zip->entries), compare_names);
    for (int64_t i = 1; i < zip->count; i++)
        if (strcmp(zip->entries[i - 1].name, zip->entries[i].name) == 0)
            return BAD(reader, reader->directory, "two members have the same name");
    return true;
}

static bool read_image(const char *path, const uint8_t *data, uint64_t bytes, Zip *zip,
                       Error *error)
{
    Reader reader = {.path = path, .image = data, .bytes = bytes, .zip = zip, .error = error};
    bool good = read_end(&reader);
    if (good) {
        zip->entries = calloc(reader.count + 1, sizeof(*zip->entries));
        CHECK(zip->entries, EXIT_CODE_HARDWARE, "free host memory", "no host memory for %llu names",
              (unsigned long long)reader.count);
        uint64_t at = reader.directory;
        for (uint64_t i = 0; good && i < reader.count; i++)
            good = read_entry(&reader, &at);
        good = good && check_entries(&reader);
    }
    if (!good)
        zip_close(zip);
    return good;
}

bool zip_parse(const char *path, const uint8_t *data, uint64_t bytes, Zip *zip, Error *error)
{
    *zip = (Zip){.count = 0};
    return read_image(path, data, bytes, zip, error);
}

bool zip_open(const char *path, Zip *zip, Error *error)
{
    *zip = (Zip){.count = 0};
    return file_map(path, &zip->map, error) &&
           read_image(path, zip->map.data, zip->map.bytes, zip, error);
}

void zip_close(Zip *zip)
{
    for (int64_t i = 0; i < zip->count; i++)
        free(zip->entries[i].name);
    free(zip->entries);
    if (zip->map.data)
        file_unmap(&zip->map);
    *zip = (Zip){.count = 0};
}

static int compare_key(const void *name, const void *entry)
{
    return strcmp(name, ((const ZipEntry *)entry)->name);
}

const ZipEntry *zip_find(const Zip *zip, const char *name)
{
    if (zip->count == 0)
        return NULL;
    return bsearch(name, zip->entries, (size_t)zip->count, sizeof(*zip->entries), compare_key);
}

const ZipEntry *zip_find_tail(const Zip *zip, const char *tail)
{
    const ZipEntry *found = NULL;
    size_t length = strlen(tail);
    for (int64_t i = 0; i < zip->count; i++) {
        size_t bytes = strlen(zip->entries[i].name);
        if (bytes < length || strcmp(zip->entries[i].name + bytes - length, tail) != 0)
            continue;
        if (found)
            return NULL;
        found = &zip->entries[i];
    }
    return found;
}
