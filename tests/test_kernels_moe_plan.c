// The addressing of expert parallelism: the worked examples of PyTorch's dp2ep, and random plans on
// 1 to 9 ranks against an implementation that does nothing but walk over (expert, source rank,
// token).
#include "tests/kernels_ranks.h"

// ---- the seed's example: 4 experts, top-1, 4 tokens a rank, 2 ranks, rows padded to 8
//
// PyTorch sends each rank's tokens sorted by expert and permutes at the receiver; a row of ours
// goes to a fixed segment per source, in token order, and the maps bring the rows into (expert,
// source rank, token) order. So the same facts appear as: token indices = tokens in the order of
// their return places per expert; splits = MOE_COUNT_ROWS; m_sizes = distance between groups; and
// the permuted indices (positions in rank-major, expert-sorted rows) name the same tokens in the
// same expert rows.

// Token whose row stands at expert row `at` of a rank, and the rank it came from; -1 for padding.
static int source_of(const TestRanks *all, int r, int64_t at, int64_t *token)
{
    const MoeMaps *maps = &all->rank[r].maps;
    int64_t row = maps->row_of_expert_row[at];
    if (row < 0)
        return -1;
    *token = maps->headers[row * all->shape.header_words + MOE_HEADER_TOKEN];
    return (int)(row / all->shape.tokens_max);
}

static void expect_words(const int32_t *ours, const int32_t *expected, int count, const char *what)
{
    for (int i = 0; i < count; i++)
        expect_equal(ours[i], expected[i], what, i);
}

static TestRanks seed_example(Data *data)
{
    static const int32_t chosen[2][4] = {{2, 2, 3, 0}, {3, 3, 2, 3}};
    TestRanks all = {.shape = moe_shape(2, 4, 1, 4), .hidden = 8, .align = 8, .compact = true};
    for (int r = 0; r < 2; r++) {
        all.rank[r].tokens = 4;
        all.rank[r].expert_of_slot = data_poisoned(data, 4, sizeof(int32_t));
        memcpy(all.rank[r].expert_of_slot, chosen[r], sizeof chosen[r]);
    }
    ranks_dispatch(data, &all);
    return all;
}

static void seed_example_on_two_ranks(void **state)
{
    (void)state;
    Data data = data_create();
    TestRanks all = seed_example(&data);
    const MoePlan *plan0 = &all.rank[0].plan, *plan1 = &all.rank[1].plan;
    // counts 1 0 2 1 and 0 0 1 3; input_splits 1 3 and 0 4: {rows, slots, counts of two local
    // experts} per destination.
    const int32_t counts0[] = {1, 1, 1, 0, 3, 3, 2, 1}, counts1[] = {0, 0, 0, 0, 4, 4, 1, 3};
    expect_words(plan0->counts, counts0, 8, "rank 0 counts");
    expect_words(plan1->counts, counts1, 8, "rank 1 counts");
    // output_splits 1 0 and 3 4; counts after the exchange 1 0 0 0 and 2 1 1 3, rank-major.
    const int32_t in0[] = {1, 1, 1, 0, 0, 0, 0, 0}, in1[] = {3, 3, 2, 1, 4, 4, 1, 3};
    expect_words(all.rank[0].counts_in, in0, 8, "rank 0 received counts");
    expect_words(all.rank[1].counts_in, in1, 8, "rank 1 received counts");
    // Rows inside the segments, in token order.
    const int32_t row0[] = {-1, 0, -1, 1, -1, 2, 0, -1}, row1[] = {-1, 0, -1, 1, -1, 2, -1, 3};
    expect_words(plan0->row_of_token, row0, 8, "rank 0 row_of_token");
    expect_words(plan1->row_of_token, row1, 8, "rank 1 row_of_token");
    // Return buffers, packed by destination: rank 0's one token at rank 0 first, then three from
    // rank 1.
    const int32_t return0[] = {1, 2, 3, 0}, return1[] = {0, 1, 2, 3};
    expect_words(plan0->return_of_slot, return0, 4, "rank 0 return_of_slot");
    expect_words(plan1->return_of_slot, return1, 4, "rank 1 return_of_slot");
    // m_sizes 8 8 and offsets 8 16 on both.
    for (int r = 0; r < 2; r++) {
        const int32_t first[] = {0, 8};
        expect_words(all.rank[r].maps.group_first, first, 2, "group_first");
        expect_equal(*all.rank[r].maps.rows_total, 16, "rows_total", r);
    }
    const int32_t rows0[] = {1, 0}, rows1[] = {3, 4};
    expect_words(all.rank[0].maps.group_rows, rows0, 2, "rank 0 group_rows");
    expect_words(all.rank[1].maps.group_rows, rows1, 2, "rank 1 group_rows");
    data_destroy(&data);
}

static void seed_example_rows_stand_where_pytorch_puts_them(void **state)
{
    (void)state;
    Data data = data_create();
    TestRanks all = seed_example(&data);
    // PyTorch: permuted_indices, length max_len = received rows + experts_local * 8, and for each
    // position of the received rows (rank-major, sorted by expert) the token it is: rank 0 sends
    // tokens 3 | 0 1 2, rank 1 sends 2 0 1 3.
    static const int permuted[2][23] = {
        {0, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1},
        {0, 1, 3, -1, -1, -1, -1, -1, 2, 4, 5, 6, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1}};
    static const int max_len[2] = {17, 23}, source[2][7] = {{0}, {0, 0, 0, 1, 1, 1, 1}};
    static const int64_t token[2][7] = {{3}, {0, 1, 2, 2, 0, 1, 3}};
    for (int r = 0; r < 2; r++) {
        int received = 0;
        for (int from = 0; from < 2; from++)
            received += all.rank[r].counts_in[from * all.shape.count_words + MOE_COUNT_SLOTS];
        expect_equal(received + all.rank[r].experts_local * 8, max_len[r], "max_len", r);
        for (int at = 0; at < max_len[r]; at++) {
            int64_t our_token = -1;
            bool ours = at < all.rank[r].maps.expert_rows_max; // ours holds 8 fewer rows at the end
            int from = ours ? source_of(&all, r, at, &our_token) : -1;
            expect_equal(from < 0, permuted[r][at] < 0, "padding", at);
            if (from < 0)
                continue;
            expect_equal(from, source[r][permuted[r][at]], "source rank", at);
            expect_equal(our_token, token[r][permuted[r][at]], "token", at);
        }
    }
    data_destroy(&data);
}

// The second vector: counts per (source rank, local expert) 4 0 2 3 | 1 0 0 5 at a rank with 4
// experts, rows padded to 8.
static void second_vector(void **state)
{
    (void)state;
    Data data = data_create();
    static const int per_expert[2][4] = {{4, 0, 2, 3}, {1, 0, 0, 5}};
    TestRanks all = {.shape = moe_shape(2, 8, 1, 9), .hidden = 3, .align = 8};
    for (int r = 0; r < 2; r++) {
        TestRank *rank = &all.rank[r];
        rank->expert_of_slot = data_poisoned(&data, 9, sizeof(int32_t));
        for (int expert = 0; expert < 4; expert++)
            for (int i = 0; i < per_expert[r][expert]; i++)
                rank->expert_of_slot[rank->tokens++] = expert; // tokens in expert order
    }
    ranks_dispatch(&data, &all);
    const MoeMaps *maps = &all.rank[0].maps;
    const int32_t first[] = {0, 8, 16, 24}, rows[] = {5, 0, 2, 8};
    expect_words(maps->group_first, first, 4, "group_first");
    expect_words(maps->group_rows, rows, 4, "group_rows");
    expect_equal(*maps->rows_total, 32, "rows_total", 0);
    // out_splits, per source rank.
    expect_equal(maps->counts[MOE_COUNT_ROWS], 9, "rows from rank", 0);
    expect_equal(maps->counts[all.shape.count_words + MOE_COUNT_ROWS], 6, "rows from rank", 1);
    // PyTorch's positions count the received rows rank-major: 0 .. 8 from rank 0, 9 .. 14 from
    // rank 1.
    static const int expected[32] = {0, 1, 2,  3,  9,  -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                     4, 5, -1, -1, -1, -1, -1, -1, 6,  7,  8,  10, 11, 12, 13, 14};
    for (int at = 0; at < 32; at++) {
        int64_t token = -1;
        int from = source_of(&all, 0, at, &token);
        expect_equal(from < 0 ? -1 : from * 9 + token, expected[at], "expert row", at);
    }
    // Rank 1 gets nothing, and every one of its experts still has 8 rows.
    expect_equal(*all.rank[1].maps.rows_total, 32, "rows_total of an idle rank", 1);
    for (int at = 0; at < 32; at++)
        expect_equal(all.rank[1].maps.row_of_expert_row[at], -1, "idle rank", at);
    data_destroy(&data);
}

// ---- random plans

// Everything that one slot's row, header and maps say, at its destination.
static void expect_slot(const TestRanks *all, int source, int64_t token, int j, int64_t at)
{
    const MoeShape *shape = &all->shape;
    const TestRank *home = &all->rank[source];
    int64_t slot = token * shape->top_k + j;
    int expert = home->expert_of_slot[slot], r = expert / shape->experts_per_rank;
    const TestRank *there = &all->rank[r];
    const MoeMaps *maps = &there->maps;
    int64_t row = maps->row_of_expert_row[at], index = row - source * shape->tokens_max;
    expect_equal(index, home->plan.row_of_token[token * shape->ranks + r], "row", slot);
    for (int64_t h = 0; h < all->hidden; h++)
        expect_same(there->rows_in[row * all->hidden + h], home->x[token * all->hidden + h], "x",
                    h);
    expect_equal(maps->return_of_expert_row[at], home->plan.return_of_slot[slot], "return", slot);
    expect_same(maps->weight_of_expert_row[at], home->weight_of_slot[slot], "weight", slot);
    const int32_t *header = there->headers_in + row * shape->header_words;
    int before = 0, here = 0; // slots of the token at this rank before this one, and in all
    for (int i = 0; i < shape->top_k; i++) {
        bool same = home->expert_of_slot[token * shape->top_k + i] / shape->experts_per_rank == r;
        here += same;
        before += same && i < j;
    }
    expect_equal(header[MOE_HEADER_TOKEN], token, "header token", row);
    expect_equal(header[MOE_HEADER_SLOTS], here, "header slots", row);
    expect_equal(header[MOE_HEADER_RETURN_SLOT] + before, home->plan.return_of_slot[slot],
                 "header return slot", row);
    expect_equal(header[MOE_HEADER_RETURN_ROW], home->plan.return_of_row[token * shape->ranks + r],
                 "header return row", row);
    expect_equal(header[MOE_HEADER_FIXED + 3 * before], expert - r * shape->experts_per_rank,
                 "header expert", row);
    for (int i = 0; i < shape->slots_max; i++) {
        int32_t of_slot = maps->expert_row_of_slot[row * shape->slots_max + i];
        expect_equal(i < here ? of_slot >= 0 : of_slot, i < here ? true : -1, "slots", row);
        if (i == before)
            expect_equal(of_slot, at, "expert row of slot", row);
    }
}

// Walks (expert, source rank, token) and checks that the rows of a rank stand in that order.
static void expect_rank(const TestRanks *all, int r)
{
    const MoeShape *shape = &all->shape;
    const MoeMaps *maps = &all->rank[r].maps;
    int64_t at = 0, real = 0;
    for (int local = 0; local < maps->experts_local; local++) {
        int expert = r * shape->experts_per_rank + local;
        expect_equal(maps->group_first[local], at, "group_first", local);
        for (int source = 0; source < shape->ranks; source++)
            for (int64_t t = 0; t < all->rank[source].tokens; t++)
                for (int j = 0; j < shape->top_k; j++)
                    if (all->rank[source].expert_of_slot[t * shape->top_k + j] == expert)
                        expect_slot(all, source, t, j, at++);
        int64_t rows = at - maps->group_first[local];
        expect_equal(maps->group_rows[local], rows, "group_rows", local);
        real += rows;
        int64_t end = (maps->group_first[local] + rows + all->align - 1) / all->align * all->align;
        if (rows == 0 && all->align > 1)
            end += all->align;
        for (; at < end; at++)
            expect_equal(maps->row_of_expert_row[at], -1, "padding", at);
    }
    expect_equal(*maps->rows_total, at, "rows_total", r);
    for (; at < maps->expert_rows_max; at++) {
        expect_equal(maps->row_of_expert_row[at], -1, "behind the end", at);
        expect_equal(maps->return_of_expert_row[at], -1, "behind the end", at);
        expect_same(maps->weight_of_expert_row[at], 0.0f, "weight behind the end", at);
    }
    int64_t counted = 0;
    for (int source = 0; source < shape->ranks; source++)
        counted += maps->counts[source * shape->count_words + MOE_COUNT_SLOTS];
    expect_equal(counted, real, "slots counted", r);
}

// Return places: all different; packed without a hole, or inside the segment of the rank they come
// from.
static void expect_places(Data *data, const TestRanks *all, int r)
{
    const MoeShape *shape = &all->shape;
    const TestRank *rank = &all->rank[r];
    int64_t slots = rank->tokens * shape->top_k, taken_rows = 0;
    int64_t places = shape->ranks * shape->tokens_max * shape->top_k + 1;
    bool *slot_taken = data_poisoned(data, places, 1), *row_taken = data_poisoned(data, places, 1);
    memset(slot_taken, 0, (size_t)places);
    memset(row_taken, 0, (size_t)places);
    for (int64_t slot = 0; slot < slots; slot++) {
        int64_t place = rank->plan.return_of_slot[slot];
        int to = rank->expert_of_slot[slot] / shape->experts_per_rank;
        assert_true(place >= 0 && place < places && !slot_taken[place]);
        slot_taken[place] = true;
        if (all->compact)
            assert_true(place < slots);
        else
            expect_equal(place / (shape->tokens_max * shape->slots_max), to, "segment", slot);
    }
    for (int64_t i = 0; i < rank->tokens * shape->ranks; i++) {
        int64_t place = rank->plan.return_of_row[i];
        expect_equal(place < 0, rank->plan.row_of_token[i] < 0, "row or none", i);
        if (place < 0)
            continue;
        assert_true(place < places && !row_taken[place]);
        row_taken[place] = true;
        taken_rows++;
        if (!all->compact)
            expect_equal(place / shape->tokens_max, i % shape->ranks, "row segment", i);
    }
    for (int64_t place = 0; place < taken_rows && all->compact; place++)
        expect_equal(row_taken[place], true, "no hole", place);
}

static void random_plans_agree_with_a_walk(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 150; round++) {
        int mark = data.blocks;
        TestRanks all = ranks_random(&data);
        ranks_dispatch(&data, &all);
        for (int r = 0; r < all.shape.ranks; r++) {
            expect_rank(&all, r);
            expect_places(&data, &all, r);
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

// Segments behind their rows, and header words behind a row's slots, keep what they held.
static void nothing_else_is_written(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 40; round++) {
        int mark = data.blocks;
        TestRanks all = ranks_random(&data);
        const MoeShape *shape = &all.shape;
        ranks_dispatch(&data, &all);
        for (int64_t i = 0; i < shape->ranks * shape->ranks * shape->tokens_max; i++) {
            const TestRank *rank = &all.rank[i / (shape->ranks * shape->tokens_max)];
            int64_t row = i % (shape->ranks * shape->tokens_max);
            const int32_t *count = rank->counts_in + row / shape->tokens_max * shape->count_words;
            const int32_t *header = rank->headers_in + row * shape->header_words;
            bool used = row % shape->tokens_max < count[MOE_COUNT_ROWS];
            int first = used ? MOE_HEADER_FIXED + MOE_HEADER_PER_SLOT * header[0] : 0;
            for (int word = first; word < shape->header_words; word++)
                expect_equal(header[word], -1, "unused header word", row);
            for (int64_t h = 0; h < all.hidden && !used; h++)
                expect_poison(rank->rows_in, DTYPE_F32, row * all.hidden + h, "unused row");
            for (int s = 0; s < shape->slots_max && !used; s++)
                expect_equal(rank->maps.expert_row_of_slot[row * shape->slots_max + s], -1, "slot",
                             row);
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

// One rank needs no rows: headers and counts alone, and row index = token. Backward needs no
// headers.
static void parts_of_a_pack_can_be_left_out(void **state)
{
    (void)state;
    Data data = data_create();
    TestRanks all = {.shape = moe_shape(1, 5, 2, 7), .hidden = 4, .align = 1, .compact = true};
    TestRank *rank = &all.rank[0];
    rank->tokens = 6;
    rank->expert_of_slot = data_poisoned(&data, 12, sizeof(int32_t));
    for (int64_t t = 0; t < 6; t++)
        ranks_choose(&data, &all.shape, rank->expert_of_slot + 2 * t);
    ranks_dispatch(&data, &all);
    int32_t *headers = data_poisoned(&data, 7 * all.shape.header_words, sizeof(int32_t));
    int32_t *counts = data_poisoned(&data, all.shape.count_words, sizeof(int32_t));
    float *rows = data_poisoned(&data, 7 * 4, sizeof(float));
    void *rows_to[] = {rows};
    MoePack pack = {.shape = all.shape,
                    .tokens = 6,
                    .hidden = 4,
                    .x = rank->x,
                    .row_of_token = rank->plan.row_of_token,
                    .headers_to = &headers,
                    .counts_to = &counts,
                    .counts = rank->plan.counts,
                    .expert_of_slot = rank->expert_of_slot,
                    .position_of_slot = rank->plan.position_of_slot,
                    .return_of_slot = rank->plan.return_of_slot,
                    .return_of_row = rank->plan.return_of_row,
                    .weight_of_slot = rank->weight_of_slot};
    moe_pack(&pack, CPU);
    assert_memory_equal(headers, rank->headers_in, 6 * (size_t)all.shape.header_words * 4);
    assert_memory_equal(counts, rank->counts_in, (size_t)all.shape.count_words * 4);
    for (int64_t t = 0; t < 6; t++)
        expect_equal(rank->plan.row_of_token[t], t, "row of the only rank", t);
    pack.headers_to = NULL;
    pack.counts_to = NULL;
    pack.rows_to = rows_to;
    moe_pack(&pack, CPU);
    assert_memory_equal(rows, rank->x, 6 * 4 * sizeof(float));
    data_destroy(&data);
}

static void shapes_follow_the_uneven_shard_rule(void **state)
{
    (void)state;
    MoeShape shape = moe_shape(8, 60, 4, 10); // 8 8 8 8 8 8 8 4
    expect_equal(shape.experts_per_rank, 8, "experts_per_rank", 0);
    expect_equal(shape.slots_max, 4, "slots_max", 0);
    expect_equal(ranks_experts_local(&shape, 7), 4, "last rank", 7);
    shape = moe_shape(8, 20, 4, 10); // 3 3 3 3 3 3 2 0
    expect_equal(shape.experts_per_rank, 3, "experts_per_rank", 1);
    expect_equal(shape.slots_max, 3, "slots_max", 1);
    expect_equal(shape.count_words, 5, "count_words", 1);
    expect_equal(shape.header_words, 13, "header_words", 1);
}

static void costs(void **state)
{
    (void)state;
    MoeShape shape = moe_shape(2, 4, 1, 8);
    MoePlan plan = {.shape = shape, .tokens = 8};
    expect_near(moe_plan_cost(&plan).bytes, 4.0 * (8 * (3 + 4) + 2 * 4), 0, "plan bytes", 0);
    // top-1 on 2 ranks: one row per token.
    void *rows_to[2] = {NULL, NULL};
    MoePack pack = {.shape = shape, .tokens = 8, .hidden = 16, .dtype = DTYPE_BF16};
    pack.rows_to = rows_to;
    expect_near(moe_pack_cost(&pack).bytes, 2.0 * 8 * 32 + 4 * 16, 1e-9, "pack bytes", 0);
    MoeMaps maps = {.shape = shape, .experts_local = 2, .expert_rows_max = 16};
    expect_near(moe_maps_cost(&maps).bytes, 4.0 * (16 * (7 + 1) + 3 * 16 + 4 + 8), 0, "maps", 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(seed_example_on_two_ranks),
        cmocka_unit_test(seed_example_rows_stand_where_pytorch_puts_them),
        cmocka_unit_test(second_vector),
        cmocka_unit_test(random_plans_agree_with_a_walk),
        cmocka_unit_test(nothing_else_is_written),
        cmocka_unit_test(parts_of_a_pack_can_be_left_out),
        cmocka_unit_test(shapes_follow_the_uneven_shard_rule),
        cmocka_unit_test(costs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
