// The CUDA row of copy_blocks against the header's formula, byte by byte: random lists of blocks,
// both sides at any address, thousands of blocks, blocks of many tiles, places beyond 2^32 bytes.
// labels: gpu
#include "tests/kernels_copy_cases.h"
#include "tests/twin.h"

static Twin twin_bytes(Twins *twins, uint64_t bytes)
{
    Twin twin = twin_create(twins, (int64_t)bytes, 1);
    for (uint64_t i = 0; i < bytes; i++)
        ((uint8_t *)twin.host)[i] = (uint8_t)(i * 251 + i / 251 + twins->seed);
    twin_upload(twins, &twin);
    return twin;
}

static void expect_bytes(Twins *twins, Twin *twin)
{
    twin_fetch(twins, twin);
    const uint8_t *expected = twin->host, *found = twin->back;
    for (uint64_t i = 0; i < twin->bytes; i++)
        if (found[i] != expected[i])
            fail_msg("%s: byte %llu of %llu is %02x, expected %02x", twins->text,
                     (unsigned long long)i, (unsigned long long)twin->bytes, found[i], expected[i]);
}

// The blocks as the kernel wants them: measured, and in device memory.
static CopyBlocks place_blocks(Twins *twins, CopyBlock *block, int64_t blocks)
{
    CopyBlocks args = copy_blocks_measure(block, blocks);
    uint64_t bytes = (uint64_t)blocks * sizeof(*block);
    CopyBlock *placed = arena_push(twins->device, bytes, MEMORY_SCRATCH);
    device_copy(placed, block, bytes, twins->cuda);
    stream_wait(twins->cuda);
    args.block = placed;
    return args;
}

static void run_case(Twins *twins, CopyCase *c, uint64_t from_late, uint64_t to_late)
{
    const TwinsMark mark = twins_mark(twins);
    Twin from = twin_bytes(twins, c->from_bytes + from_late);
    Twin to = twin_create(twins, (int64_t)(c->to_bytes + to_late + 16), 1);
    copy_plainly(c, (const uint8_t *)from.host + from_late, (uint8_t *)to.host + to_late);
    CopyBlocks args = place_blocks(twins, c->block, c->blocks);
    args.from = (const char *)from.device + from_late;
    args.to = (char *)to.device + to_late;
    copy_blocks(&args, twins->cuda);
    expect_bytes(twins, &to);
    twins_release(twins, mark);
}

static void test_random_lists(void **state)
{
    (void)state;
    Twins twins = twins_create();
    for (uint32_t trial = 0; trial < 600; trial++) {
        static const uint64_t late[] = {0, 0, 16, 8, 4, 2, 1, 3};
        CopyCase c = copy_case(twins.seed, trial, trial % 8 ? 9 : 40);
        uint64_t from_late = late[twins_below(&twins, 8)], to_late = late[twins_below(&twins, 8)];
        snprintf(twins.text, sizeof(twins.text), "trial %u, %lld blocks, from + %llu, to + %llu",
                 trial, (long long)c.blocks, (unsigned long long)from_late,
                 (unsigned long long)to_late);
        run_case(&twins, &c, from_late, to_late);
    }
    twins_destroy(&twins);
}

// A matrix cut into columns of every width and joined again, as shards are: a block per part, many
// tiles in each.
static void test_columns(void **state)
{
    (void)state;
    enum { ROWS = 3001 };
    static const uint64_t widths[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 48, 160, 1026, 4096};
    Twins twins = twins_create();
    uint64_t row_bytes = 0, column = 0;
    for (size_t i = 0; i < COUNT_OF(widths); i++)
        row_bytes += widths[i];
    Twin matrix = twin_bytes(&twins, ROWS * row_bytes);
    Twin parts = twin_create(&twins, (int64_t)(ROWS * row_bytes), 1);
    Twin back = twin_create(&twins, (int64_t)(ROWS * row_bytes), 1);
    for (size_t i = 0; i < COUNT_OF(widths); i++) {
        snprintf(twins.text, sizeof(twins.text), "columns of %llu bytes",
                 (unsigned long long)widths[i]);
        CopyBlock cut = {.from_first = column,
                         .to_first = ROWS * column,
                         .run_bytes = widths[i],
                         .counts = {1, ROWS},
                         .from_strides = {0, row_bytes},
                         .to_strides = {0, widths[i]}};
        CopyBlock join = {.from_first = ROWS * column,
                          .to_first = column,
                          .run_bytes = widths[i],
                          .counts = {ROWS, 1},
                          .from_strides = {widths[i], 0},
                          .to_strides = {row_bytes, 0}};
        CopyBlocks args = place_blocks(&twins, &cut, 1);
        args.from = matrix.device;
        args.to = parts.device;
        copy_blocks(&args, twins.cuda);
        args = place_blocks(&twins, &join, 1);
        args.from = parts.device;
        args.to = back.device;
        copy_blocks(&args, twins.cuda);
        for (uint64_t row = 0; row < ROWS; row++) {
            const char *source = (const char *)matrix.host + row * row_bytes + column;
            memcpy((char *)parts.host + ROWS * column + row * widths[i], source, widths[i]);
            memcpy((char *)back.host + row * row_bytes + column, source, widths[i]);
        }
        expect_bytes(&twins, &parts);
        expect_bytes(&twins, &back);
        column += widths[i];
    }
    twins_destroy(&twins);
}

// More blocks than a grid has thread blocks, some of them empty: each tile must find its own.
static void test_many_blocks(void **state)
{
    (void)state;
    enum { BLOCKS = 20011 };
    Twins twins = twins_create();
    snprintf(twins.text, sizeof(twins.text), "%d blocks", BLOCKS);
    Twin from = twin_bytes(&twins, (uint64_t)BLOCKS * 64);
    Twin to = twin_create(&twins, (int64_t)BLOCKS * 64, 1);
    CopyBlock *block = ARENA_PUSH(twins.host, CopyBlock, BLOCKS, MEMORY_SCRATCH);
    for (uint64_t i = 0; i < BLOCKS; i++) { // in reverse order
        uint64_t bytes = i % 5 ? 4 * (i % 17) : 0;
        block[i] = (CopyBlock){.from_first = i * 64,
                               .to_first = (BLOCKS - 1 - i) * 64,
                               .run_bytes = bytes,
                               .counts = {1, 1}};
        memcpy((char *)to.host + block[i].to_first, (const char *)from.host + i * 64, bytes);
    }
    CopyBlocks args = place_blocks(&twins, block, BLOCKS);
    args.from = from.device;
    args.to = to.device;
    copy_blocks(&args, twins.cuda);
    expect_bytes(&twins, &to);
    twins_destroy(&twins);
}

// Rows 2^22 bytes apart, the last beyond 2^32 on both sides. Only the device holds them.
static void test_places_beyond_32_bits(void **state)
{
    (void)state;
    enum { ROWS = 1026, ROW_BYTES = 1000 };
    const uint64_t stride = (uint64_t)1 << 22;
    Twins twins = twins_create();
    snprintf(twins.text, sizeof(twins.text), "rows beyond 2^32");
    Twin rows = twin_bytes(&twins, (uint64_t)ROWS * ROW_BYTES);
    Twin back = twin_create(&twins, (int64_t)ROWS * ROW_BYTES, 1);
    char *far = arena_push(twins.device, ROWS * stride, MEMORY_SCRATCH);
    char *farther = arena_push(twins.device, ROWS * stride, MEMORY_SCRATCH);
    CopyBlock hops[] = {{.run_bytes = ROW_BYTES,
                         .counts = {1, ROWS},
                         .from_strides = {0, ROW_BYTES},
                         .to_strides = {0, stride}},
                        {.run_bytes = ROW_BYTES,
                         .counts = {ROWS, 1},
                         .from_strides = {stride, 0},
                         .to_strides = {stride, 0}},
                        {.run_bytes = ROW_BYTES,
                         .counts = {1, ROWS},
                         .from_strides = {0, stride},
                         .to_strides = {0, ROW_BYTES}}};
    const void *const from[] = {rows.device, far, farther};
    void *const to[] = {far, farther, back.device};
    for (size_t hop = 0; hop < COUNT_OF(hops); hop++) {
        CopyBlocks args = place_blocks(&twins, &hops[hop], 1);
        args.from = from[hop];
        args.to = to[hop];
        copy_blocks(&args, twins.cuda);
    }
    memcpy(back.host, rows.host, rows.bytes);
    expect_bytes(&twins, &back);
    twins_destroy(&twins);
}

int main(void)
{
    if (!select_gpu())
        return EXIT_CODE_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_lists),
        cmocka_unit_test(test_columns),
        cmocka_unit_test(test_many_blocks),
        cmocka_unit_test(test_places_beyond_32_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
