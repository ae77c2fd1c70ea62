// The uneven shard rule: the table of SEMANTICS.md section 2, and what must hold for any numbers.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#include <cmocka.h>

#include "harness/random.h"
#include "parallel/shard.h"

enum { RANKS_MAX = 8 };

static void test_known_shards(void **state)
{
    (void)state;
    static const struct {
        int64_t total;
        int ranks;
        int64_t counts[RANKS_MAX];
    } rows[] = {
        {20, 8, {3, 3, 3, 3, 3, 3, 2, 0}},
        {10, 4, {3, 3, 3, 1}},
        {5, 4, {2, 2, 1, 0}},
        {7, 4, {2, 2, 2, 1}},
        {3, 4, {1, 1, 1, 0}},
        {60, 8, {8, 8, 8, 8, 8, 8, 8, 4}},
        {0, 3, {0, 0, 0}},
        {1, 1, {1}},
        {9, 8, {2, 2, 2, 2, 1, 0, 0, 0}},
    };
    for (size_t row = 0; row < COUNT_OF(rows); row++)
        for (int rank = 0; rank < rows[row].ranks; rank++)
            assert_int_equal(shard_of(rows[row].total, rows[row].ranks, rank).count,
                             rows[row].counts[rank]);
}

// Shards lie end to end, cover everything once, and none is longer than shard_size.
static void check_cover(int64_t total, int ranks)
{
    int64_t next = 0, size = shard_size(total, ranks);
    for (int rank = 0; rank < ranks; rank++) {
        Shard shard = shard_of(total, ranks, rank);
        if (shard.first != next || shard.count < 0 || shard.count > size)
            fail_msg("%lld over %d: rank %d has [%lld, +%lld), expected to begin at %lld, at most "
                     "%lld",
                     (long long)total, ranks, rank, (long long)shard.first, (long long)shard.count,
                     (long long)next, (long long)size);
        if (rank + 1 < ranks && shard.count < size && shard.first + shard.count != total)
            fail_msg("%lld over %d: rank %d is short before the end", (long long)total, ranks,
                     rank);
        next = shard.first + shard.count;
    }
    assert_int_equal(next, total);
}

static void test_shards_cover(void **state)
{
    (void)state;
    for (int64_t total = 0; total < 70; total++)
        for (int ranks = 1; ranks <= 17; ranks++)
            check_cover(total, ranks);
    uint64_t seed = (uint64_t)time(NULL);
    for (uint64_t draw = 0; draw < 200; draw++) {
        RandomBlock block = random_block(seed, 0, draw);
        uint64_t wide = ((uint64_t)block.word[0] << 32 | block.word[1]) >> 1;
        check_cover((int64_t)(wide >> block.word[2] % 63), 1 + (int)(block.word[3] % 300));
    }
    check_cover(INT64_MAX, 1);
    check_cover(INT64_MAX, 7);
    check_cover(INT64_MAX - 1, 1024);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_shards),
        cmocka_unit_test(test_shards_cover),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
