// The mesh: every layout that parses and every message of those that do not, coordinates,
// selections, and communicators that join the right ranks.
// ranks: 1 2 4 6 8
#include "parallel/mesh.h"
#include "tests/parallel_job.h"

static void expect_contains(const char *layout, const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("'%s': expected '%s' in '%s'", layout, part, text);
}

static void test_layouts_that_parse(void **state)
{
    (void)state;
    static const struct {
        const char *layout;
        int ranks, axes;
        int extents[MESH_AXES_MAX];
        const char *last_name;
    } rows[] = {
        {"ep=*", 1, 1, {1}, "ep"},         {"ep=*", 7, 1, {7}, "ep"},
        {"dp=2,ep=4", 8, 2, {2, 4}, "ep"}, {"dp=2,ep=*", 8, 2, {2, 4}, "ep"},
        {"dp=*,ep=4", 8, 2, {2, 4}, "ep"}, {"dp=1,ep=1", 1, 2, {1, 1}, "ep"},
        {"dp=*,ep=8", 8, 2, {1, 8}, "ep"}, {"replica=2,dp=3,ep=5,tp=*", 210, 4, {2, 3, 5, 7}, "tp"},
        {"tp=2,dp=3", 6, 2, {2, 3}, "dp"}, {"ep=002", 2, 1, {2}, "ep"},
    };
    for (size_t row = 0; row < COUNT_OF(rows); row++) {
        Mesh mesh;
        Error error = {0};
        if (!mesh_parse(rows[row].layout, rows[row].ranks, &mesh, &error))
            fail_msg("'%s' over %d: %s", rows[row].layout, rows[row].ranks, error.what);
        assert_int_equal(error.exit_code, 0);
        assert_int_equal(mesh.axes, rows[row].axes);
        for (int axis = 0; axis < mesh.axes; axis++)
            assert_int_equal(mesh.ranks[axis], rows[row].extents[axis]);
        assert_string_equal(mesh.name[mesh.axes - 1], rows[row].last_name);
        assert_null(mesh.world.link);
        assert_int_equal(mesh.coord[0], 0);
    }
}

static void test_layouts_that_do_not(void **state)
{
    (void)state;
    static const struct {
        const char *layout;
        int ranks;
        const char *what, *fix;
    } rows[] = {
        {NULL, 2, "the layout is empty", "dp=2,ep=4"},
        {"", 2, "the layout is empty", "dp=2,ep=4"},
        {"ep", 2, "'ep' is not name=extent", "name=extent"},
        {"ep=2,", 2, "'' is not name=extent", "name=extent"},
        {",ep=2", 2, "'' is not name=extent", "name=extent"},
        {"=2", 2, "'=2' is not name=extent", "name=extent"},
        {"dp=1,=2", 2, "'=2' is not name=extent", "name=extent"},
        {"ep=", 2, "extent '' of axis 'ep' is neither a number nor '*'", "name=extent"},
        {"ep=two", 2, "extent 'two' of axis 'ep' is neither", "name=extent"},
        {"ep=2x", 2, "extent '2x' of axis 'ep'", "name=extent"},
        {"ep=-2", 2, "extent '-2' of axis 'ep'", "name=extent"},
        {"ep= 2", 2, "extent ' 2' of axis 'ep'", "name=extent"},
        {"ep=2=2", 4, "extent '2=2' of axis 'ep'", "name=extent"},
        {"ep=**", 2, "extent '**' of axis 'ep'", "name=extent"},
        {"ep=0", 2, "extent 0 of axis 'ep' is not in 1 .. 999999", "name=extent"},
        {"ep=1000000", 2, "extent 1000000 of axis 'ep' is not in", "name=extent"},
        {"ep=99999999999999999999", 2, "extent 99999999999999999999 of axis 'ep'", "name=extent"},
        {"pe=2", 2, "there is no axis 'pe'", "did you mean 'ep'? The axes are replica, dp, ep, tp"},
        {"replic=2", 2, "there is no axis 'replic'", "did you mean 'replica'?"},
        {"EP=2", 2, "there is no axis 'EP'", "replica, dp, ep, tp"},
        {" ep=2", 2, "there is no axis ' ep'", "replica, dp, ep, tp"},
        {"ep=2,ep=1", 2, "axis 'ep' is there twice", "once"},
        {"dp=1,ep=1,tp=1,replica=1,dp=1", 1, "more than 4 axes", "leave out"},
        {"dp=*,ep=*", 4, "both dp and ep are '*'", "one axis"},
        {"dp=2,ep=2", 8, "multiply to 4, but the job has 8 ranks", "or start 4 ranks"},
        {"ep=2", 1, "multiply to 2, but the job has 1 rank", "--mesh ep=1;"},
        {"dp=3,ep=2", 8, "multiply to 6, but the job has 8 ranks", "--mesh dp=4,ep=2;"},
        {"dp=2,ep=5", 12, "multiply to 10, but the job has 12 ranks", "--mesh dp=2,ep=6;"},
        {"dp=3,ep=*", 8, "8 ranks leave no whole number for ep=*", "--mesh dp=4,ep=2;"},
        {"dp=16,ep=*", 8, "the other extents multiply to 16", "--mesh dp=8,ep=1;"},
        {"dp=999999,ep=999999,tp=999999,replica=999999", 4, "but the job has 4 ranks", "--mesh"},
    };
    for (size_t row = 0; row < COUNT_OF(rows); row++) {
        const char *name = rows[row].layout ? rows[row].layout : "(null)";
        Mesh mesh;
        Error error = {0};
        if (mesh_parse(rows[row].layout, rows[row].ranks, &mesh, &error))
            fail_msg("'%s' over %d was accepted", name, rows[row].ranks);
        assert_int_equal(error.exit_code, EXIT_CODE_USAGE);
        char option[160];
        snprintf(option, sizeof(option), "--mesh \"%.80s\": ", rows[row].layout ? name : "");
        assert_ptr_equal(strstr(error.what, option), error.what);
        expect_contains(name, error.what, rows[row].what);
        expect_contains(name, error.fix, rows[row].fix);
    }
}

// A layout of any length must neither overflow a buffer nor be taken.
static void test_hostile_layouts(void **state)
{
    (void)state;
    static const size_t lengths[] = {63, 64, 65, 511, 512, 100000};
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        char *text = malloc(lengths[i] + 3);
        assert_non_null(text);
        memset(text, 'e', lengths[i]);
        memcpy(text + lengths[i], "=2", 3);
        Mesh mesh;
        Error error = {0};
        assert_false(mesh_parse(text, 2, &mesh, &error));
        assert_int_equal(error.exit_code, EXIT_CODE_USAGE);
        memset(text, '9', lengths[i] + 2);
        memcpy(text, "ep=", 3);
        error = (Error){0};
        assert_false(mesh_parse(text, 2, &mesh, &error));
        memset(text, ',', lengths[i] + 2);
        error = (Error){0};
        assert_false(mesh_parse(text, 2, &mesh, &error));
        free(text);
    }
}

static void test_any_names(void **state)
{
    (void)state;
    static const struct {
        const char *layout, *what; // NULL: parses
    } rows[] = {
        {"a=2,b=4", NULL},
        {"node_0=4,GPU=*", NULL},
        {"abcdefghijklmno=8", NULL}, // 15 characters
        {"abcdefghijklmnop=8", "'abcdefghijklmnop' is no name for an axis"},
        {"1a=8", "'1a' is no name for an axis"},
        {"a-b=8", "'a-b' is no name for an axis"},
        {"a=2,a=4", "axis 'a' is there twice"},
        {"a=3,b=*", "leave no whole number for b=*"},
    };
    for (size_t row = 0; row < COUNT_OF(rows); row++) {
        Mesh mesh;
        Error error = {0};
        bool good = mesh_parse_any_names(rows[row].layout, 8, &mesh, &error);
        if (good != (rows[row].what == NULL))
            fail_msg("'%s': parsed %d, '%s'", rows[row].layout, good, error.what);
        if (!good)
            expect_contains(rows[row].layout, error.what, rows[row].what);
    }
}

static void test_selections(void **state)
{
    (void)state;
    Mesh mesh;
    Error error = {0};
    assert_true(mesh_parse("dp=2,ep=3,tp=4", 24, &mesh, &error));
    mesh.coord[0] = 1;
    mesh.coord[1] = 2;
    mesh.coord[2] = 3;
    static const struct {
        const char *names;
        int ranks, coord, others_ranks, others_coord;
    } rows[] = {
        {"", 1, 0, 24, 23},         {NULL, 1, 0, 24, 23},  {"dp", 2, 1, 12, 11},
        {"ep", 3, 2, 8, 7},         {"tp", 4, 3, 6, 5},    {"ep*tp", 12, 11, 2, 1},
        {"tp*ep", 12, 11, 2, 1},    {"dp*tp", 8, 7, 3, 2}, {"dp*ep", 6, 5, 4, 3},
        {"dp*ep*tp", 24, 23, 1, 0},
    };
    for (size_t row = 0; row < COUNT_OF(rows); row++) {
        MeshAxes axes;
        assert_true(mesh_select(&mesh, rows[row].names, &axes, &error));
        MeshAxes others = mesh_others(&mesh, &axes);
        assert_int_equal(axes.ranks, rows[row].ranks);
        assert_int_equal(axes.coord, rows[row].coord);
        assert_int_equal(others.ranks, rows[row].others_ranks);
        assert_int_equal(others.coord, rows[row].others_coord);
    }
    // Places by the definition: world rank = (dp * 3 + ep) * 4 + tp.
    MeshAxes ep_tp, dp_tp;
    assert_true(mesh_select(&mesh, "ep*tp", &ep_tp, &error));
    assert_true(mesh_select(&mesh, "dp*tp", &dp_tp, &error));
    for (int rank = 0; rank < 24; rank++) {
        int dp = rank / 12, ep = rank / 4 % 3, tp = rank % 4;
        assert_int_equal(mesh_place(&mesh, &ep_tp, rank), ep * 4 + tp);
        assert_int_equal(mesh_place(&mesh, &dp_tp, rank), dp * 4 + tp);
    }
    assert_int_equal(mesh_find_axis(&mesh, "tp"), 2);
    assert_int_equal(mesh_find_axis(&mesh, "replica"), -1);
}

static void test_selections_that_fail(void **state)
{
    (void)state;
    Mesh mesh;
    Error error = {0};
    assert_true(mesh_parse("replica=2,ep=2", 4, &mesh, &error));
    static const struct {
        const char *names, *what, *fix;
    } rows[] = {
        {"dp", "the mesh has no axis 'dp', only replica, ep", "such as replica*ep"},
        {"replic*ep", "the mesh has no axis 'replic'", "did you mean 'replica'?"},
        {"ep*ep", "axis 'ep' is selected twice", "once"},
        {"ep*", "a name is missing before or behind '*'; the mesh has replica, ep", "replica*ep"},
        {"*", "a name is missing", "replica*ep"},
    };
    for (size_t row = 0; row < COUNT_OF(rows); row++) {
        MeshAxes axes;
        Error found = {0};
        assert_false(mesh_select(&mesh, rows[row].names, &axes, &found));
        assert_int_equal(found.exit_code, EXIT_CODE_USAGE);
        expect_contains(rows[row].names, found.what, rows[row].what);
        expect_contains(rows[row].names, found.fix, rows[row].fix);
    }
}

// The group must hold exactly the ranks whose other coordinates equal ours, in order of place.
static void check_group(const Mesh *mesh, const MeshAxes *axes, Comm comm)
{
    MeshAxes others = mesh_others(mesh, axes);
    assert_int_equal(comm.ranks, axes->ranks);
    assert_int_equal(comm.rank, axes->coord);
    int *members = calloc((size_t)comm.ranks, sizeof(*members));
    assert_non_null(members);
    comm_gather_host(comm, &mesh->world.rank, members, sizeof(int));
    int found = 0;
    for (int rank = 0; rank < mesh->world.ranks; rank++) {
        if (mesh_place(mesh, &others, rank) != others.coord)
            continue;
        assert_in_range(mesh_place(mesh, axes, rank), 0, comm.ranks - 1);
        assert_int_equal(members[mesh_place(mesh, axes, rank)], rank);
        found++;
    }
    assert_int_equal(found, comm.ranks);
    free(members);
}

static void test_groups(void **state)
{
    Comm world = ((const TestJob *)*state)->comm;
    static const char *const layouts[] = {
        "ep=*",          "dp=2,ep=*", "dp=*,ep=2", "dp=3,tp=*", "replica=2,dp=*,ep=1,tp=2",
        "dp=1,ep=*,tp=1"};
    static const char *const selections[] = {"", "ep", "dp", "tp", "ep*tp", "dp*tp", "dp*ep"};
    for (size_t i = 0; i < COUNT_OF(layouts); i++) {
        Mesh trial;
        Error ignored = {0};
        if (!mesh_parse(layouts[i], world.ranks, &trial, &ignored))
            continue; // this layout needs another number of ranks
        Mesh *mesh = mesh_create(layouts[i], world);
        int place = 0;
        for (int axis = 0; axis < mesh->axes; axis++) {
            place = place * mesh->ranks[axis] + mesh->coord[axis];
            MeshAxes one = {.ranks = mesh->ranks[axis], .coord = mesh->coord[axis]};
            one.member[axis] = true;
            check_group(mesh, &one, mesh->comm[axis]);
        }
        assert_int_equal(place, world.rank);
        for (size_t s = 0; s < COUNT_OF(selections); s++) {
            MeshAxes axes;
            Error error = {0};
            if (!mesh_select(mesh, selections[s], &axes, &error))
                continue; // this mesh lacks an axis
            Comm comm = mesh_comm(mesh, &axes);
            check_group(mesh, &axes, comm);
            comm_destroy(&comm);
        }
        mesh_destroy(mesh);
    }
}

int main(int argc, char **argv)
{
    TestJob job = test_job_begin(argc, argv, DEVICE_CPU);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts_that_parse),
        cmocka_unit_test(test_layouts_that_do_not),
        cmocka_unit_test(test_any_names),
        cmocka_unit_test(test_hostile_layouts),
        cmocka_unit_test(test_selections),
        cmocka_unit_test(test_selections_that_fail),
        cmocka_unit_test_prestate(test_groups, &job),
    };
    return test_job_end(&job, cmocka_run_group_tests(tests, NULL, NULL));
}
