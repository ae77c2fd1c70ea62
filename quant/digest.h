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
uint32_t digest_crc32(const void *data, uint64_t bytes); // Local. As zip archives have it
