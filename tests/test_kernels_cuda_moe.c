// The CUDA rows of moe_plan, moe_pack, moe_maps, moe_return and moe_sum against their CPU rows,
// chained as expert parallelism chains them, with 1 to 8 ranks simulated in one process by tables
// of pointers. Everything is prescribed to the bit, unwritten memory included. Uneven tokens, 0 and
// 1 token, odd widths, many experts, ranks without experts, alignments.
// labels: gpu
#include "tests/twin.h"

#include "kernels/moe_combine.h"
#include "kernels/moe_plan.h"

#define ON(cuda, twin) ((cuda) ? (twin).device : (twin).host)

enum { RANKS_MAX = 8 };

typedef struct MoeCase {
    int ranks, experts, top_k, align;
    int64_t tokens[RANKS_MAX];
    int64_t hidden;
    DType dtype;
    bool compact, exact, headers_only, hot; // hot: most tokens want the same experts
} MoeCase;

// One simulated rank: what it sends, what it receives, what comes home.
typedef struct Rank {
    int64_t tokens;
    int experts_local;
    Twin x, expert_of_slot, weight_of_slot;
    Twin counts, row_of_token, position_of_slot, return_of_slot, return_of_row, scratch;
    Twin rows_to, headers_to, counts_to; // tables of pointers
    Twin rows_in, headers_in, counts_in;
    int64_t expert_rows_max;
    Twin group_rows, group_first, rows_total, row_of_expert_row, return_of_expert_row,
        weight_of_expert_row, expert_row_of_slot;
    Twin expert_rows, dweight, return_to, dweights_to, returned, dweights, out;
} Rank;

typedef struct World {
    MoeCase made_from;
    MoeShape shape;
    Rank rank[RANKS_MAX];
} World;

static Twin words(Twins *twins, int64_t count)
{
    return twin_create(twins, count, sizeof(int32_t));
}

// top_k different experts for each token, ascending.
static void draw_experts(Twins *twins, const MoeCase *c, Rank *rank)
{
    int32_t *slot = rank->expert_of_slot.host;
    const int span = c->hot && c->experts / 3 > c->top_k ? c->experts / 3 : c->experts;
    for (int64_t token = 0; token < rank->tokens; token++, slot += c->top_k) {
        const int from = twins_below(twins, 10) ? span : c->experts;
        int chosen = 0;
        for (int expert = 0; expert < from && chosen < c->top_k; expert++)
            if (twins_below(twins, from - expert) < c->top_k - chosen)
                slot[chosen++] = expert;
        assert_int_equal(chosen, c->top_k);
    }
    twin_upload(twins, &rank->expert_of_slot);
}

static void create_sender(Twins *twins, World *world, Rank *rank)
{
    const MoeCase *c = &world->made_from;
    const int64_t slots = rank->tokens * c->top_k, places = rank->tokens * c->ranks;
    rank->x = twin_normals(twins, rank->tokens * c->hidden, c->dtype, 1);
    rank->expert_of_slot = words(twins, slots);
    draw_experts(twins, c, rank);
    rank->weight_of_slot = twin_normals(twins, slots, DTYPE_F32, 1);
    rank->counts = words(twins, (int64_t)c->ranks * world->shape.count_words);
    rank->row_of_token = words(twins, places);
    rank->position_of_slot = words(twins, slots);
    rank->return_of_slot = words(twins, slots);
    rank->return_of_row = words(twins, places);
    rank->scratch = words(twins, moe_plan_scratch_words(&world->shape, rank->tokens));
    const int64_t homes = c->ranks * world->shape.tokens_max * world->shape.slots_max;
    const int64_t returns = c->compact ? slots : homes;
    rank->returned = twin_create(twins, returns * c->hidden, dtype_bytes(c->dtype, 1));
    rank->dweights = twin_create(twins, returns, sizeof(float));
    rank->out = twin_create(twins, rank->tokens * c->hidden, dtype_bytes(c->dtype, 1));
}

static void create_receiver(Twins *twins, World *world, Rank *rank)
{
    const MoeCase *c = &world->made_from;
    const int64_t rows = c->ranks * world->shape.tokens_max;
    const int64_t slots = rows * world->shape.slots_max;
    rank->rows_in = twin_create(twins, rows * c->hidden, dtype_bytes(c->dtype, 1));
    rank->headers_in = words(twins, rows * world->shape.header_words);
    rank->counts_in = words(twins, (int64_t)c->ranks * world->shape.count_words);
    rank->expert_rows_max = slots + (int64_t)rank->experts_local * c->align;
    rank->group_rows = words(twins, rank->experts_local);
    rank->group_first = words(twins, rank->experts_local);
    rank->rows_total = words(twins, 1);
    rank->row_of_expert_row = words(twins, rank->expert_rows_max);
    rank->return_of_expert_row = words(twins, rank->expert_rows_max);
    rank->weight_of_expert_row = words(twins, rank->expert_rows_max);
    rank->expert_row_of_slot = words(twins, slots);
    rank->expert_rows = twin_normals(twins, rank->expert_rows_max * c->hidden, c->dtype, 1);
    rank->dweight = twin_normals(twins, rank->expert_rows_max, DTYPE_F32, 1);
}

// A table of one pointer per rank, into that rank's twin, `offset` elements in.
static Twin table_of(Twins *twins, World *world, size_t member, int64_t offset_bytes)
{
    Twin table = twin_create(twins, world->made_from.ranks, sizeof(void *));
    void *host[RANKS_MAX];
    for (int cuda = 1; cuda >= 0; cuda--) { // device addresses first, then the host's own stay
        for (int r = 0; r < world->made_from.ranks; r++) {
            const Twin *into = (const Twin *)((const char *)&world->rank[r] + member);
            host[r] = (char *)ON(cuda, *into) + offset_bytes;
        }
        memcpy(table.host, host, table.bytes);
        if (cuda)
            twin_upload(twins, &table);
    }
    return table;
}

static World *world_create(Twins *twins, const MoeCase *c)
{
    World *world = arena_push(twins->host, sizeof(World), MEMORY_SCRATCH);
    memset(world, 0, sizeof(*world));
    world->made_from = *c;
    int64_t tokens_max = 0;
    for (int r = 0; r < c->ranks; r++)
        tokens_max = c->tokens[r] > tokens_max ? c->tokens[r] : tokens_max;
    world->shape = moe_shape(c->ranks, c->experts, c->top_k, tokens_max);
    const int per_rank = world->shape.experts_per_rank;
    for (int r = 0; r < c->ranks; r++) {
        Rank *rank = &world->rank[r];
        const int left = c->experts - r * per_rank;
        rank->tokens = c->tokens[r];
        rank->experts_local = left < 0 ? 0 : left < per_rank ? left : per_rank;
        create_sender(twins, world, rank);
        create_receiver(twins, world, rank);
    }
    const int64_t row_bytes = c->hidden * (int64_t)dtype_bytes(c->dtype, 1);
    for (int r = 0; r < c->ranks; r++) {
        Rank *rank = &world->rank[r];
        const int64_t segment = r * tokens_max;
        rank->rows_to = table_of(twins, world, offsetof(Rank, rows_in), segment * row_bytes);
        rank->headers_to = table_of(twins, world, offsetof(Rank, headers_in),
                                    segment * world->shape.header_words * 4);
        rank->counts_to = table_of(twins, world, offsetof(Rank, counts_in),
                                   (int64_t)r * world->shape.count_words * 4);
        rank->return_to = table_of(twins, world, offsetof(Rank, returned), 0);
        rank->dweights_to = table_of(twins, world, offsetof(Rank, dweights), 0);
    }
    return world;
}

static void run_send(const World *world, const Rank *rank, bool cuda, Stream stream)
{
    const MoeCase *c = &world->made_from;
    const MoePlan plan = {.shape = world->shape,
                          .tokens = rank->tokens,
                          .expert_of_slot = ON(cuda, rank->expert_of_slot),
                          .compact = c->compact,
                          .counts = ON(cuda, rank->counts),
                          .row_of_token = ON(cuda, rank->row_of_token),
                          .position_of_slot = ON(cuda, rank->position_of_slot),
                          .return_of_slot = ON(cuda, rank->return_of_slot),
                          .return_of_row = ON(cuda, rank->return_of_row),
                          .scratch = ON(cuda, rank->scratch)};
    moe_plan(&plan, stream);
    const MoePack pack = {.shape = world->shape,
                          .tokens = rank->tokens,
                          .hidden = c->hidden,
                          .dtype = c->dtype,
                          .x = ON(cuda, rank->x),
                          .row_of_token = plan.row_of_token,
                          .rows_to = c->headers_only ? NULL : ON(cuda, rank->rows_to),
                          .headers_to = ON(cuda, rank->headers_to),
                          .counts_to = ON(cuda, rank->counts_to),
                          .counts = plan.counts,
                          .expert_of_slot = plan.expert_of_slot,
                          .position_of_slot = plan.position_of_slot,
                          .return_of_slot = plan.return_of_slot,
                          .return_of_row = plan.return_of_row,
                          .weight_of_slot = ON(cuda, rank->weight_of_slot)};
    moe_pack(&pack, stream);
}

static void run_receive(const World *world, const Rank *rank, bool cuda, Stream stream)
{
    const MoeCase *c = &world->made_from;
    const MoeMaps maps = {.shape = world->shape,
                          .experts_local = rank->experts_local,
                          .align = c->align,
                          .expert_rows_max = rank->expert_rows_max,
                          .counts = ON(cuda, rank->counts_in),
                          .headers = ON(cuda, rank->headers_in),
                          .group_rows = ON(cuda, rank->group_rows),
                          .group_first = ON(cuda, rank->group_first),
                          .rows_total = ON(cuda, rank->rows_total),
                          .row_of_expert_row = ON(cuda, rank->row_of_expert_row),
                          .return_of_expert_row = ON(cuda, rank->return_of_expert_row),
                          .weight_of_expert_row = ON(cuda, rank->weight_of_expert_row),
                          .expert_row_of_slot = ON(cuda, rank->expert_row_of_slot)};
    moe_maps(&maps, stream);
    const MoeReturn back = {.shape = world->shape,
                            .exact = c->exact,
                            .hidden = c->hidden,
                            .dtype = c->dtype,
                            .expert_rows = ON(cuda, rank->expert_rows),
                            .counts = maps.counts,
                            .headers = maps.headers,
                            .expert_row_of_slot = maps.expert_row_of_slot,
                            .weight_of_expert_row = maps.weight_of_expert_row,
                            .rows_to = ON(cuda, rank->return_to),
                            .dweight_of_expert_row = ON(cuda, rank->dweight),
                            .dweights_to = ON(cuda, rank->dweights_to)};
    moe_return(&back, stream);
}

static void run_sum(const World *world, const Rank *rank, bool cuda, Stream stream)
{
    const MoeCase *c = &world->made_from;
    const MoeSum sum = {.tokens = rank->tokens,
                        .hidden = c->hidden,
                        .width = c->exact ? c->top_k : c->ranks,
                        .dtype = c->dtype,
                        .returned = ON(cuda, rank->returned),
                        .index = ON(cuda, c->exact ? rank->return_of_slot : rank->return_of_row),
                        .weight = c->exact ? ON(cuda, rank->weight_of_slot) : NULL,
                        .out = ON(cuda, rank->out)};
    moe_sum(&sum, stream);
}

static void run_world(const World *world, bool cuda, Stream stream)
{
    for (int r = 0; r < world->made_from.ranks; r++)
        run_send(world, &world->rank[r], cuda, stream);
    for (int r = 0; r < world->made_from.ranks; r++)
        run_receive(world, &world->rank[r], cuda, stream);
    for (int r = 0; r < world->made_from.ranks; r++)
        run_sum(world, &world->rank[r], cuda, stream);
}

static void expect_same_world(Twins *twins, World *world)
{
    static const struct {
        size_t member;
        const char *name;
        bool elements; // of the case's dtype, else words
    } outputs[] = {
        {offsetof(Rank, counts), "counts", false},
        {offsetof(Rank, row_of_token), "row_of_token", false},
        {offsetof(Rank, position_of_slot), "position_of_slot", false},
        {offsetof(Rank, return_of_slot), "return_of_slot", false},
        {offsetof(Rank, return_of_row), "return_of_row", false},
        {offsetof(Rank, counts_in), "received counts", false},
        {offsetof(Rank, headers_in), "received headers", false},
        {offsetof(Rank, rows_in), "received rows", true},
        {offsetof(Rank, group_rows), "group_rows", false},
        {offsetof(Rank, group_first), "group_first", false},
        {offsetof(Rank, rows_total), "rows_total", false},
        {offsetof(Rank, row_of_expert_row), "row_of_expert_row", false},
        {offsetof(Rank, return_of_expert_row), "return_of_expert_row", false},
        {offsetof(Rank, weight_of_expert_row), "weight_of_expert_row", false},
        {offsetof(Rank, expert_row_of_slot), "expert_row_of_slot", false},
        {offsetof(Rank, returned), "returned rows", true},
        {offsetof(Rank, dweights), "returned dweights", false},
        {offsetof(Rank, out), "out", true},
    };
    for (size_t i = 0; i < COUNT_OF(outputs); i++)
        for (int r = 0; r < world->made_from.ranks; r++) {
            char name[64];
            snprintf(name, sizeof(name), "rank %d's %s", r, outputs[i].name);
            Twin *twin = (Twin *)((char *)&world->rank[r] + outputs[i].member);
            twin_expect_same(twins, twin, outputs[i].elements ? world->made_from.dtype : DTYPE_I32,
                             name);
        }
}

static void describe(Twins *twins, const MoeCase *c)
{
    snprintf(twins->text, sizeof(twins->text),
             "moe ranks=%d experts=%d top_k=%d tokens=%lld,%lld.. hidden=%lld %s align=%d%s%s%s%s",
             c->ranks, c->experts, c->top_k, (long long)c->tokens[0], (long long)c->tokens[1],
             (long long)c->hidden, dtype_row(c->dtype)->name, c->align,
             c->compact ? " compact" : "", c->exact ? " exact" : " fast",
             c->headers_only ? " headers only" : "", c->hot ? " hot" : "");
}

static void moe_case(Twins *twins, const MoeCase *c)
{
    describe(twins, c);
    const TwinsMark mark = twins_mark(twins);
    World *world = world_create(twins, c);
    run_world(world, false, twins->cpu);
    run_world(world, true, twins->cuda);
    expect_same_world(twins, world);
    twins_release(twins, mark);
}

static void draw_tokens(Twins *twins, MoeCase *c, int64_t most)
{
    for (int r = 0; r < c->ranks; r++)
        c->tokens[r] = twins_below(twins, 4) ? twins_below(twins, most + 1) : r % 2;
}

static void test_ranks_experts_and_widths(void **state)
{
    (void)state;
    Twins twins = twins_create();
    static const struct {
        int experts, top_k;
    } sizes[] = {{1, 1}, {4, 1}, {4, 4}, {60, 4}, {64, 6}, {128, 8}, {256, 8}, {50, 40}};
    static const int64_t widths[] = {1, 7, 8, 96, 2048, 7168};
    static const int aligns[] = {1, 8, 128};
    int round = 0;
    for (int ranks = 1; ranks <= RANKS_MAX; ranks++)
        for (size_t s = 0; s < COUNT_OF(sizes); s++, round++) {
            MoeCase c = {.ranks = ranks,
                         .experts = sizes[s].experts,
                         .top_k = sizes[s].top_k,
                         .align = aligns[round % 3],
                         .hidden = widths[round % 6],
                         .dtype = round % 2 ? DTYPE_BF16 : DTYPE_F32,
                         .compact = round / 2 % 2,
                         .exact = round / 4 % 2,
                         .hot = round % 5 == 0};
            draw_tokens(&twins, &c, c.hidden > 2000 ? 40 : 300);
            moe_case(&twins, &c);
            c.exact = !c.exact;
            c.dtype = c.dtype == DTYPE_F32 ? DTYPE_BF16 : DTYPE_F32;
            draw_tokens(&twins, &c, 40);
            moe_case(&twins, &c);
        }
    twins_destroy(&twins);
}

static void test_no_and_one_token(void **state)
{
    (void)state;
    Twins twins = twins_create();
    for (int ranks = 1; ranks <= 3; ranks++)
        for (int tokens = 0; tokens < 2; tokens++) {
            MoeCase c = {.ranks = ranks, .experts = 5, .top_k = 2, .align = 8, .hidden = 16};
            for (int r = 0; r < ranks; r++)
                c.tokens[r] = tokens;
            c.dtype = DTYPE_BF16;
            moe_case(&twins, &c);
            c.exact = c.compact = c.headers_only = true;
            moe_case(&twins, &c);
        }
    twins_destroy(&twins);
}

static void test_large(void **state)
{
    (void)state;
    Twins twins = twins_create();
    MoeCase c = {.ranks = 1,
                 .experts = 60,
                 .top_k = 4,
                 .align = 128,
                 .tokens = {16384},
                 .hidden = 2048,
                 .dtype = DTYPE_BF16,
                 .exact = true,
                 .compact = true};
    moe_case(&twins, &c);
    c.ranks = 3;
    c.tokens[0] = c.tokens[2] = 5000;
    c.tokens[1] = 16384;
    c.hidden = 72;
    c.exact = false;
    moe_case(&twins, &c);
    c.ranks = 8;
    c.experts = 256;
    c.top_k = 8;
    c.hidden = 8;
    c.hot = true;
    for (int r = 0; r < c.ranks; r++)
        c.tokens[r] = 4000 + 77 * r;
    moe_case(&twins, &c);
    twins_destroy(&twins);
}

// A captured step, replayed with other routing: nothing of the sizes was fixed at capture.
static void test_replayed_graph(void **state)
{
    (void)state;
    Twins twins = twins_create();
    const MoeCase c = {.ranks = 2,
                       .experts = 12,
                       .top_k = 3,
                       .align = 8,
                       .tokens = {333, 290},
                       .hidden = 40,
                       .dtype = DTYPE_BF16,
                       .compact = true};
    describe(&twins, &c);
    World *world = world_create(&twins, &c);
    graph_begin(twins.cuda);
    run_world(world, true, twins.cuda);
    const Graph captured = graph_end(twins.cuda);
    Graph graph = captured;
    for (int round = 0; round < 3; round++) {
        world->made_from.hot = round == 1;
        for (int r = 0; r < c.ranks; r++)
            draw_experts(&twins, &world->made_from, &world->rank[r]);
        run_world(world, false, twins.cpu);
        // What the last round left where this one writes nothing may differ in neither.
        graph_launch(&graph, twins.cuda);
        expect_same_world(&twins, world);
    }
    graph_destroy(&graph);
    twins_destroy(&twins);
}

int main(void)
{
    if (!select_gpu())
        return EXIT_CODE_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks_experts_and_widths),
        cmocka_unit_test(test_no_and_one_token),
        cmocka_unit_test(test_large),
        cmocka_unit_test(test_replayed_graph),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
