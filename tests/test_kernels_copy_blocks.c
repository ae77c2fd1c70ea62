// Strided copies against the header's formula, byte by byte: empty blocks, runs that touch, runs of
// every short length, nothing written between.
#include "tests/kernels_copy_cases.h"
#include "tests/kernels_data.h"

static void copies_what_the_formula_says(void **state)
{
    (void)state;
    Data data = data_create();
    for (uint32_t trial = 0; trial < 2000; trial++) {
        int mark = data.blocks;
        CopyCase c = copy_case(data.seed, trial, 12);
        uint8_t *from = data_poisoned(&data, (int64_t)c.from_bytes, 1);
        uint8_t *to = data_poisoned(&data, (int64_t)c.to_bytes, 1);
        uint8_t *expected = data_poisoned(&data, (int64_t)c.to_bytes, 1);
        for (uint64_t i = 0; i < c.from_bytes; i++)
            from[i] = (uint8_t)random_block(data.seed, trial, 1000 + i).word[1];
        uint64_t bytes = copy_plainly(&c, from, expected);
        CopyBlocks args = copy_blocks_measure(c.block, c.blocks);
        args.block = c.block;
        args.from = from;
        args.to = to;
        if (args.bytes != bytes)
            fail_msg("trial %u: measured %llu bytes, there are %llu", trial,
                     (unsigned long long)args.bytes, (unsigned long long)bytes);
        copy_blocks(&args, CPU);
        for (uint64_t i = 0; i < c.to_bytes; i++)
            if (to[i] != expected[i])
                fail_msg("trial %u: byte %llu is %02x, expected %02x", trial, (unsigned long long)i,
                         to[i], expected[i]);
        expect_near(copy_blocks_cost(&args).bytes, 2.0 * (double)bytes, 0, "cost", trial);
        data_release(&data, mark);
    }
    data_destroy(&data);
}

static void measures_units_and_tiles(void **state)
{
    (void)state;
    // Two rows of two runs, one tile; then runs that touch, of three tiles and a byte.
    CopyBlock block[] = {{.from_first = 8,
                          .to_first = 0,
                          .run_bytes = 24,
                          .counts = {2, 2},
                          .from_strides = {160, 32},
                          .to_strides = {96, 48}},
                         {.from_first = 64,
                          .to_first = 4096,
                          .run_bytes = COPY_TILE_BYTES,
                          .counts = {1, 3},
                          .from_strides = {7, COPY_TILE_BYTES},
                          .to_strides = {7, COPY_TILE_BYTES}},
                         {.to_first = 65536, .run_bytes = 8, .counts = {1, 1}}};
    CopyBlocks all = copy_blocks_measure(block, 3);
    assert_int_equal(all.unit_bytes, 8);
    assert_int_equal(all.bytes, 4 * 24 + 3 * COPY_TILE_BYTES + 8);
    assert_int_equal(block[1].first_tile, 1);
    assert_int_equal(block[2].first_tile, 4);
    assert_int_equal(all.tiles, 5);
    assert_int_equal(block[1].run_bytes, 3 * COPY_TILE_BYTES);
    assert_int_equal(copy_blocks_measure(block + 1, 1).unit_bytes, 16);
    assert_int_equal(copy_blocks_measure(block, 0).tiles, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_what_the_formula_says),
        cmocka_unit_test(measures_units_and_tiles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
