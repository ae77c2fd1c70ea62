// zip.h -- the container of torch.save: a zip archive whose members are stored as they are.
//
// Read as if a stranger had written it. Source: PKWARE's APPNOTE 6.3.10, sections 4.3 and 4.5.
// torch.save never compresses, so a compressed member is refused: nothing here can grow.
#pragma once

#include "harness/file.h"

typedef struct ZipEntry {
    char *name;
    const uint8_t *data; // inside the image
    uint64_t bytes;
} ZipEntry;

typedef struct Zip {
    FileMap map; // of zip_open
    int64_t count;
    ZipEntry *entries; // sorted by name, no two alike
} Zip;

// Local. Errors: 66 not there, 65 with the file, the byte offset and the rule that broke.
bool zip_open(const char *path, Zip *zip, Error *error);
// Local. The same from memory, which must outlive the value.
bool zip_parse(const char *path, const uint8_t *data, uint64_t bytes, Zip *zip, Error *error);
void zip_close(Zip *zip);
const ZipEntry *zip_find(const Zip *zip, const char *name); // Local. NULL if absent
// Local. The one member whose name ends with `tail`; NULL if there is none or more than one.
const ZipEntry *zip_find_tail(const Zip *zip, const char *tail);
