// The uneven shard rule of DTensor's Shard(dim) (SEMANTICS.md section 2): every shard has room for
// ceil(n / ranks), the last ones are cut short where n ends.
#include "parallel/shard.h"

#include "harness/check.h"

int64_t shard_size(int64_t total, int ranks)
{
    CHECK_RULE(total >= 0 && ranks >= 1);
    return total / ranks + (total % ranks != 0);
}

Shard shard_of(int64_t total, int ranks, int rank)
{
    CHECK_RULE(rank >= 0 && rank < ranks);
    int64_t size = shard_size(total, ranks);
    // rank * size could pass 2^63 only for shards beyond the end, so those are recognised by a
    // division.
    bool empty = size == 0 || rank >= total / size + (total % size != 0);
    int64_t first = empty ? total : rank * size;
    return (Shard){.first = first, .count = total - first < size ? total - first : size};
}
