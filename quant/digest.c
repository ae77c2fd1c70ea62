// digest.c -- the only caller of OpenSSL, and of zlib's check sum.
#include "quant/digest.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

enum { STEP_BYTES = 1 << 20, SHA256_BYTES = 32 };

struct Digest {
    EVP_MD_CTX *context;
};

static const char *const broken = "check the installation of OpenSSL (libcrypto)";

Digest *digest_create(void)
{
    Digest *digest = calloc(1, sizeof(*digest));
    CHECK(digest, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a digest");
    digest->context = EVP_MD_CTX_new();
    CHECK(digest->context && EVP_DigestInit_ex(digest->context, EVP_sha256(), NULL) == 1,
          EXIT_CODE_HARDWARE, broken, "OpenSSL has no SHA-256");
    return digest;
}

void digest_add(Digest *digest, const void *data, uint64_t bytes)
{
    CHECK(EVP_DigestUpdate(digest->context, data, bytes) == 1, EXIT_CODE_HARDWARE, broken,
          "OpenSSL's SHA-256 failed");
}

void digest_finish(Digest *digest, char text[DIGEST_TEXT_BYTES])
{
    unsigned char value[EVP_MAX_MD_SIZE];
    unsigned bytes = 0;
    CHECK(EVP_DigestFinal_ex(digest->context, value, &bytes) == 1 && bytes == SHA256_BYTES,
          EXIT_CODE_HARDWARE, broken, "OpenSSL's SHA-256 failed");
    for (unsigned i = 0; i < bytes; i++)
        snprintf(text + (size_t)i * 2, 3, "%02x", value[i]);
    EVP_MD_CTX_free(digest->context);
    free(digest);
}

bool digest_file(const char *path, char text[DIGEST_TEXT_BYTES], Error *error)
{
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return error_set(error, errno == ENOENT ? EXIT_CODE_NO_INPUT : EXIT_CODE_IO,
                         "check the path and its permissions", "cannot open %.300s: %s", path,
                         strerror(errno));
    Digest *digest = digest_create();
    char *buffer = malloc(STEP_BYTES);
    CHECK(buffer, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a digest");
    ssize_t got;
    while ((got = read(descriptor, buffer, STEP_BYTES)) > 0 || (got < 0 && errno == EINTR))
        if (got > 0)
            digest_add(digest, buffer, (uint64_t)got);
    int code = errno;
    close(descriptor);
    free(buffer);
    digest_finish(digest, text);
    return got == 0 || error_set(error, EXIT_CODE_IO, "check the disk", "cannot read %.300s: %s",
                                 path, strerror(code));
}

uint32_t digest_crc32(uint32_t before, const void *data, uint64_t bytes)
{
    return (uint32_t)crc32_z(before, data, bytes);
}

bool digest_crc32_file(int descriptor, uint64_t place, uint64_t bytes, uint32_t *sum, Error *error)
{
    char *buffer = malloc(STEP_BYTES);
    CHECK(buffer, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a check sum");
    *sum = 0;
    ssize_t got = 1;
    while (bytes > 0 && got > 0) {
        got = pread(descriptor, buffer, bytes < STEP_BYTES ? bytes : STEP_BYTES, (off_t)place);
        if (got < 0 && errno == EINTR) {
            got = 1;
            continue;
        }
        if (got > 0)
            *sum = digest_crc32(*sum, buffer, (uint64_t)got);
        bytes -= got > 0 ? (uint64_t)got : 0;
        place += got > 0 ? (uint64_t)got : 0;
    }
    free(buffer);
    return bytes == 0 ||
           error_set(error, EXIT_CODE_IO, "check the disk", "cannot read byte %llu: %s",
                     (unsigned long long)place, got < 0 ? strerror(errno) : "the file ends");
}
