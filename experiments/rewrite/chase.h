// chase.h -- the digest of a file that is still being written: a thread follows as far as
// the bytes from the beginning on are there.
#pragma once

#include "quant/digest.h"

typedef struct RewriteChase RewriteChase;
// Local. Owner: the caller. The descriptor stays open until the end.
RewriteChase *rewrite_chase_begin(int descriptor);
// Local, any thread. The first `bytes` of the file are there.
void rewrite_chase_advance(RewriteChase *chase, uint64_t bytes);
// Waits. Nothing more will come: the digest of what has been there. Frees the chase. Error 74.
bool rewrite_chase_end(RewriteChase *chase, char text[DIGEST_TEXT_BYTES], Error *error);
