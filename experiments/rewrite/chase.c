// chase.c -- how far the file is there, how far the digest has come, and who is at it.
#include "experiments/rewrite/chase.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STEP_BYTES = 256 << 10 }; // it is copied, and stays in a core's own cache meanwhile

struct RewriteChase {
    pthread_mutex_t lock;
    uint64_t there; // bytes from the beginning on
    uint64_t place; // of them in the digest
    bool busy;      // a thread has the members below
    int descriptor;
    Digest *digest;
    char *buffer;
    Error error;
};

// Reads the next `bytes` of the file, at most a step, into the digest. 0 is an error.
static uint64_t add_bytes(RewriteChase *chase, uint64_t bytes)
{
    ssize_t got;
    do
        got = pread(chase->descriptor, chase->buffer, bytes < STEP_BYTES ? bytes : STEP_BYTES,
                    (off_t)chase->place);
    while (got < 0 && errno == EINTR);
    if (got <= 0) {
        error_set(&chase->error, EXIT_CODE_IO, "check the disk",
                  "cannot read byte %llu of a new file: %s", (unsigned long long)chase->place,
                  got < 0 ? strerror(errno) : "it ends there");
        return 0;
    }
    digest_add(chase->digest, chase->buffer, (uint64_t)got);
    return (uint64_t)got;
}

RewriteChase *rewrite_chase_begin(int descriptor)
{
    RewriteChase *chase = calloc(1, sizeof(*chase));
    char *buffer = malloc(STEP_BYTES);
    CHECK(chase && buffer, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a digest");
    chase->descriptor = descriptor;
    chase->digest = digest_create();
    chase->buffer = buffer;
    pthread_mutex_init(&chase->lock, NULL);
    return chase;
}

void rewrite_chase_advance(RewriteChase *chase, uint64_t bytes)
{
    pthread_mutex_lock(&chase->lock);
    chase->there = bytes > chase->there ? bytes : chase->there;
    pthread_mutex_unlock(&chase->lock);
}

bool rewrite_chase_step(RewriteChase *chase)
{
    pthread_mutex_lock(&chase->lock);
    bool mine = !chase->busy && chase->there - chase->place >= STEP_BYTES;
    chase->busy = chase->busy || mine;
    pthread_mutex_unlock(&chase->lock);
    if (!mine)
        return false;
    uint64_t got = add_bytes(chase, STEP_BYTES);
    pthread_mutex_lock(&chase->lock);
    chase->place += got;
    chase->busy = got == 0; // after an error nobody goes on
    pthread_mutex_unlock(&chase->lock);
    return got > 0;
}

bool rewrite_chase_end(RewriteChase *chase, char text[DIGEST_TEXT_BYTES], Error *error)
{
    bool good = chase->error.exit_code == 0;
    while (good && chase->place < chase->there) {
        uint64_t got = add_bytes(chase, chase->there - chase->place);
        chase->place += got;
        good = got > 0;
    }
    digest_finish(chase->digest, text);
    if (!good)
        *error = chase->error;
    pthread_mutex_destroy(&chase->lock);
    free(chase->buffer);
    free(chase);
    return good;
}
