// chase.h -- the digest of a file that is still being written. It has no thread of its own: whoever
// writes takes a step in between, so that no more threads run than there are cores, and what is
// read again is still in the cache.
#pragma once

#include "quant/digest.h"

typedef struct RewriteChase RewriteChase;
// Local. Owner: the caller. The descriptor stays open until the end.
RewriteChase *rewrite_chase_begin(int descriptor);
// Local, any thread. The first `bytes` of the file are there.
void rewrite_chase_advance(RewriteChase *chase, uint64_t bytes);
// Local, any thread. Adds some of what is there to the digest. False: there was nothing worth a
// step, or another thread is at it.
bool rewrite_chase_step(RewriteChase *chase);
// Local, when no other thread is at it. Nothing more will come: adds the rest and gives the digest
// of all. Frees the chase. Error 74.
bool rewrite_chase_end(RewriteChase *chase, char text[DIGEST_TEXT_BYTES], Error *error);
