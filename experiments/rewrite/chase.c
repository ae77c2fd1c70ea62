// chase.c -- one thread, a mark that moves forward, and a condition to wait for it.
#include "experiments/rewrite/chase.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STEP_BYTES = 1 << 20 };

struct RewriteChase {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t moved;
    uint64_t there; // bytes from the beginning on
    bool ended;     // no more will come
    int descriptor;
    Digest *digest;
    Error error;
};

// How many bytes are there beyond `place`; 0: that was all.
static uint64_t wait_for_more(RewriteChase *chase, uint64_t place)
{
    pthread_mutex_lock(&chase->lock);
    while (chase->there - place < STEP_BYTES && !chase->ended)
        pthread_cond_wait(&chase->moved, &chase->lock);
    uint64_t more = chase->there - place;
    pthread_mutex_unlock(&chase->lock);
    return more;
}

static void *follow(void *context)
{
    RewriteChase *chase = context;
    char *buffer = malloc(STEP_BYTES);
    CHECK(buffer, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a digest");
    uint64_t place = 0;
    for (uint64_t more; (more = wait_for_more(chase, place)) > 0;) {
        ssize_t got =
            pread(chase->descriptor, buffer, more < STEP_BYTES ? more : STEP_BYTES, (off_t)place);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            error_set(&chase->error, EXIT_CODE_IO, "check the disk",
                      "cannot read byte %llu of a new file: %s", (unsigned long long)place,
                      got < 0 ? strerror(errno) : "it ends there");
            break;
        }
        digest_add(chase->digest, buffer, (uint64_t)got);
        place += (uint64_t)got;
    }
    free(buffer);
    return NULL;
}

RewriteChase *rewrite_chase_begin(int descriptor)
{
    RewriteChase *chase = calloc(1, sizeof(*chase));
    CHECK(chase, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a digest");
    chase->descriptor = descriptor;
    chase->digest = digest_create();
    pthread_mutex_init(&chase->lock, NULL);
    pthread_cond_init(&chase->moved, NULL);
    CHECK(pthread_create(&chase->thread, NULL, follow, chase) == 0, EXIT_CODE_HARDWARE,
          "raise the limit of processes (ulimit -u)", "a thread cannot be started");
    return chase;
}

void rewrite_chase_advance(RewriteChase *chase, uint64_t bytes)
{
    pthread_mutex_lock(&chase->lock);
    chase->there = bytes > chase->there ? bytes : chase->there;
    pthread_cond_signal(&chase->moved);
    pthread_mutex_unlock(&chase->lock);
}

bool rewrite_chase_end(RewriteChase *chase, char text[DIGEST_TEXT_BYTES], Error *error)
{
    pthread_mutex_lock(&chase->lock);
    chase->ended = true;
    pthread_cond_signal(&chase->moved);
    pthread_mutex_unlock(&chase->lock);
    pthread_join(chase->thread, NULL);
    digest_finish(chase->digest, text);
    bool good = chase->error.exit_code == 0;
    if (!good)
        *error = chase->error;
    pthread_cond_destroy(&chase->moved);
    pthread_mutex_destroy(&chase->lock);
    free(chase);
    return good;
}
