// Which rank holds which tokens and experts: lists and totals that nothing divides, ranks without
// any, tokens over a tp group, axes that fold, and the lists that are refused.
#include "experiments/model/layer.h"
#include "tests/kernels_data.h"

enum { RANKS = 24 };

// A mesh without communicators: what layer_spread_create reads of one.
static Mesh mesh_of(const char *layout, int ranks)
{
    Mesh mesh;
    Error error = {0};
    if (!mesh_parse(layout, ranks, &mesh, &error))
        fail_msg("%s over %d ranks: %s", layout, ranks, error.what);
    mesh.world = (Comm){.rank = 0, .ranks = ranks};
    return mesh;
}

static LayerSpread spread_of(const Mesh *mesh, const char *experts_on, const char *list,
                             int64_t total)
{
    LayerSpread spread;
    Error error = {0};
    if (!layer_spread_create(mesh, experts_on, list, total, &spread, &error))
        fail_msg("%s", error.what);
    return spread;
}

// By hand, from the rule: chunks of ceil(n / w), the last ones short or empty.
static void uneven_shards_by_hand(void **state)
{
    (void)state;
    static const struct {
        const char *layout;
        int ranks;
        const char *list; // NULL: `total` is split
        int64_t total;
        int64_t expected[8];
    } rows[] = {
        {"ep=4", 4, "5,0,3,1", -1, {5, 0, 3, 1}},
        {"ep=4", 4, "3", -1, {3, 3, 3, 3}},
        {"ep=4", 4, "0", -1, {0, 0, 0, 0}},
        {"dp=2,ep=2", 4, "5,0,3,1", -1, {5, 0, 3, 1}},
        {"ep=8", 8, NULL, 20, {3, 3, 3, 3, 3, 3, 2, 0}},
        {"ep=4", 4, NULL, 5, {2, 2, 1, 0}},
        {"dp=2,ep=2", 4, NULL, 7, {2, 2, 2, 1}},
        {"ep=4", 4, NULL, 3, {1, 1, 1, 0}},
        {"ep=4", 4, NULL, 0, {0, 0, 0, 0}},
        {"ep=2,tp=4", 8, "10,3", -1, {3, 3, 3, 1, 1, 1, 1, 0}},
        {"tp=2,ep=2", 4, "5,2", -1, {3, 1, 2, 1}}, // rank = tp * 2 + ep
        {"tp=4", 4, "5", -1, {2, 2, 1, 0}},
        {"ep=2,tp=2", 4, NULL, 5, {2, 1, 1, 1}}, // 3 and 2, then each over tp
    };
    for (size_t row = 0; row < COUNT_OF(rows); row++) {
        Mesh mesh = mesh_of(rows[row].layout, rows[row].ranks);
        LayerSpread spread = spread_of(&mesh, NULL, rows[row].list, rows[row].total);
        int64_t first = 0;
        for (int rank = 0; rank < rows[row].ranks; rank++) {
            if (spread.tokens_of_rank[rank] != rows[row].expected[rank])
                fail_msg("%s, row %d: rank %d has %lld tokens, expected %lld", rows[row].layout,
                         (int)row, rank, (long long)spread.tokens_of_rank[rank],
                         (long long)rows[row].expected[rank]);
            assert_int_equal(spread.first_token_of_rank[rank], first);
            first += rows[row].expected[rank];
        }
        assert_int_equal(spread.tokens, first);
        layer_spread_destroy(&spread);
        assert_null(spread.tokens_of_rank);
    }
}

static void experts_go_to_the_axes_that_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *layout;
        int ranks;
        const char *experts_on;
        int experts_ranks, replica_ranks;
    } rows[] = {
        {"dp=2,ep=4", 8, NULL, 4, 2},      {"dp=4,tp=2", 8, NULL, 1, 8},
        {"dp=2,ep=4", 8, "", 1, 8},        {"dp=2,ep=4", 8, "dp", 2, 4},
        {"dp=2,ep=4", 8, "dp*ep", 8, 1},   {"dp=2,ep=2,tp=2", 8, "ep*tp", 4, 2},
        {"dp=2,ep=2,tp=2", 8, NULL, 2, 4}, {"dp=2,ep=2,tp=2", 8, "tp*dp", 4, 2},
    };
    for (size_t row = 0; row < COUNT_OF(rows); row++) {
        Mesh mesh = mesh_of(rows[row].layout, rows[row].ranks);
        LayerSpread spread = spread_of(&mesh, rows[row].experts_on, "1", -1);
        assert_int_equal(spread.experts_axes.ranks, rows[row].experts_ranks);
        assert_int_equal(spread.replica_axes.ranks, rows[row].replica_ranks);
        layer_spread_destroy(&spread);
    }
}

static const struct {
    const char *layout, *experts_on;
} meshes[] = {
    {"dp=2,ep=3,tp=4", NULL},
    {"tp=4,ep=3,dp=2", NULL},
    {"dp=4,tp=6", "tp"},
    {"dp=2,ep=3,tp=4", "ep*tp"},
    {"dp=2,ep=3,tp=4", "dp*tp"},
    {"dp=2,ep=3,tp=4", "dp"},
    {"ep=24", NULL},
    {"replica=2,dp=3,ep=4", NULL},
    {"dp=24", NULL},
    {"ep=1,dp=24", NULL},
    {"replica=2,dp=3,ep=4", "dp*ep"},
};

// Every token stands on one rank, in rank order; what a tp group has together is what was asked of
// its data rank, and its ranks differ by the rule.
static void every_token_stands_once(void **state)
{
    Data *data = *state;
    for (int round = 0; round < 200; round++)
        for (size_t m = 0; m < COUNT_OF(meshes); m++) {
            Mesh mesh = mesh_of(meshes[m].layout, RANKS);
            MeshAxes tensor, groups;
            Error error = {0};
            bool tp = mesh_find_axis(&mesh, "tp") >= 0;
            assert_true(mesh_select(&mesh, tp ? "tp" : "", &tensor, &error));
            groups = mesh_others(&mesh, &tensor);
            int64_t asked[RANKS], found[RANKS] = {0}, all = 0, first = 0;
            char list[16 * RANKS] = "";
            for (int d = 0; d < groups.ranks; d++) {
                asked[d] = data_below(data, 3) ? data_below(data, 50) : 0;
                all += asked[d];
                size_t used = strlen(list);
                snprintf(list + used, sizeof list - used, "%s%lld", d ? "," : "",
                         (long long)asked[d]);
            }
            LayerSpread spread = spread_of(&mesh, meshes[m].experts_on, list, -1);
            for (int rank = 0; rank < RANKS; rank++) {
                int64_t tokens = spread.tokens_of_rank[rank];
                int64_t of_group = asked[mesh_place(&mesh, &groups, rank)];
                assert_in_range(tokens, 0, (of_group + tensor.ranks - 1) / tensor.ranks);
                assert_int_equal(spread.first_token_of_rank[rank], first);
                found[mesh_place(&mesh, &groups, rank)] += tokens;
                first += tokens;
            }
            assert_int_equal(spread.tokens, all);
            for (int d = 0; d < groups.ranks; d++)
                assert_int_equal(found[d], asked[d]);
            layer_spread_destroy(&spread);
        }
}

// Ranks that share a replica hold consecutive tokens, or they do not: counted token by token.
static void contiguous_groups_are_told_from_scattered_ones(void **state)
{
    (void)state;
    int contiguous = 0;
    for (size_t m = 0; m < COUNT_OF(meshes); m++) {
        Mesh mesh = mesh_of(meshes[m].layout, RANKS);
        LayerSpread spread = spread_of(&mesh, meshes[m].experts_on, NULL, 7 * RANKS);
        bool expected = true;
        for (int replica = 0; replica < spread.replica_axes.ranks; replica++) {
            int64_t first = INT64_MAX, end = 0, tokens = 0;
            for (int rank = 0; rank < RANKS; rank++) {
                int64_t begin = spread.first_token_of_rank[rank];
                if (mesh_place(&mesh, &spread.replica_axes, rank) != replica)
                    continue;
                first = begin < first ? begin : first;
                end = begin + spread.tokens_of_rank[rank];
                tokens += spread.tokens_of_rank[rank];
            }
            expected = expected && end - first == tokens;
        }
        if (layer_groups_are_contiguous(&spread) != expected)
            fail_msg("%s with experts on %s: groups are %s", meshes[m].layout,
                     meshes[m].experts_on ? meshes[m].experts_on : "ep",
                     expected ? "contiguous" : "scattered");
        contiguous += expected;
        layer_spread_destroy(&spread);
    }
    assert_in_range(contiguous, 3, (int)COUNT_OF(meshes) - 3); // the list holds both kinds
}

static void wrong_lists_and_axes_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *layout, *experts_on, *list, *what;
    } rows[] = {
        {"dp=2,ep=2", "epp", "1", "--experts_on \"epp\": the mesh has no axis 'epp', only dp, ep"},
        {"dp=2,ep=2", NULL, "1,2,3", "--tokens \"1,2,3\" has 3 numbers for 4 data ranks"},
        {"ep=2,tp=2", NULL, "1,2,3", "--tokens \"1,2,3\" has 3 numbers for 2 data ranks"},
        {"ep=4", NULL, "1,2,3,4,5", "has 5 numbers for 4 data ranks"},
        {"ep=4", NULL, "", "no number from 0 to 2147483647 at \"\""},
        {"ep=4", NULL, "1,", "no number from 0 to 2147483647 at \"\""},
        {"ep=4", NULL, "1,2,-3,4", "no number from 0 to 2147483647 at \"-3,4\""},
        {"ep=4", NULL, "2147483648", "no number from 0 to 2147483647"},
        {"ep=4", NULL, "1000000000", "makes 4000000000 tokens in all"},
    };
    for (size_t row = 0; row < COUNT_OF(rows); row++) {
        Mesh mesh = mesh_of(rows[row].layout, 4);
        LayerSpread spread;
        Error error = {0};
        assert_false(
            layer_spread_create(&mesh, rows[row].experts_on, rows[row].list, -1, &spread, &error));
        assert_int_equal(error.exit_code, EXIT_CODE_USAGE);
        if (!strstr(error.what, rows[row].what))
            fail_msg("'%s' is not in '%s'", rows[row].what, error.what);
        assert_true(error.fix[0] != '\0');
        layer_spread_destroy(&spread);
    }
}

int main(void)
{
    Data data = data_create();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(uneven_shards_by_hand),
        cmocka_unit_test(experts_go_to_the_axes_that_are_named),
        cmocka_unit_test_prestate(every_token_stands_once, &data),
        cmocka_unit_test(contiguous_groups_are_told_from_scattered_ones),
        cmocka_unit_test(wrong_lists_and_axes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
