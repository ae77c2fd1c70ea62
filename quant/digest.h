// digest.h -- check sums of what goes into a file: SHA-256 (OpenSSL's libcrypto behind it), CRC-32
// (zlib).
#pragma once

#include "harness/check.h"

enum { DIGEST_TEXT_BYTES = 65 };

typedef struct Digest Digest;
Digest *digest_create(void);                                       // Local. Owner: the caller
void digest_add(Digest *digest, const void *data, uint64_t bytes); // Local
void digest_finish(Digest *digest, char text[DIGEST_TEXT_BYTES]);  // Local. Also destroys it
// Local. Of a whole file. Errors 66, 74.
bool digest_file(const char *path, char text[DIGEST_TEXT_BYTES], Error *error);
// Local. As zip archives have it; before: of what goes ahead, 0 = nothing.
uint32_t digest_crc32(uint32_t before, const void *data, uint64_t bytes);
// Local. Of `bytes` bytes of an open file. Errors 74.
bool digest_crc32_file(int descriptor, uint64_t place, uint64_t bytes, uint32_t *sum, Error *error);
