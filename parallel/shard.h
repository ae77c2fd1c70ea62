// shard.h -- how n things are divided over ranks that need not divide them: the uneven shard rule
// of DTensor's Shard(dim).
//
// c = ceil(n / ranks); rank r holds [min(n, r c), min(n, (r + 1) c)). Trailing ranks may be short
// or empty: 20 over 8 is 3 3 3 3 3 3 2 0.
#pragma once

#include "harness/base.h"

typedef struct Shard {
    int64_t first, count;
} Shard;

Shard shard_of(int64_t total, int ranks, int rank); // Local
int64_t shard_size(int64_t total, int ranks);       // Local. c, the padded size of every shard
