// Sharded index arithmetic: the tables of SEMANTICS.md section 2, the strided 8x8 example, all maps
// against lists that are really cut, and dimensions beyond 2^31 without their memory.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "harness/random.h"
#include "parallel_index_lists.h"

static DTensor parse(const char *layout, int ranks, Mesh *mesh, const char *placements,
                     const Tensor *whole)
{
    Error error = {0};
    Placement list[MESH_AXES_MAX];
    if (!mesh_parse_any_names(layout, ranks, mesh, &error) ||
        !placement_parse(placements, "test", mesh, list, &error) ||
        !dtensor_check(mesh, whole, list, &error))
        fail_msg("%s, %s: %s", layout, placements, error.what);
    return dtensor_make(mesh, whole, list);
}

static void test_table_of_sizes(void **state)
{
    (void)state;
    static const struct {
        int64_t total;
        int ranks;
        int64_t sizes[8];
    } rows[] = {
        {20, 8, {3, 3, 3, 3, 3, 3, 2, 0}},
        {10, 4, {3, 3, 3, 1}},
        {5, 4, {2, 2, 1, 0}},
        {7, 4, {2, 2, 2, 1}},
        {3, 4, {1, 1, 1, 0}},
        {60, 8, {8, 8, 8, 8, 8, 8, 8, 4}},
        {1, 8, {1, 0, 0, 0, 0, 0, 0, 0}},
        {0, 3, {0, 0, 0}},
    };
    for (size_t row = 0; row < COUNT_OF(rows); row++) {
        Mesh mesh;
        Tensor whole = {.dtype = DTYPE_F32, .rank = 2, .shape = {rows[row].total, 5}};
        DTensor tensor = parse("a=*", rows[row].ranks, &mesh, "S0", &whole);
        int64_t offset = 0, shape[TENSOR_RANK_MAX];
        for (int rank = 0; rank < rows[row].ranks; rank++) {
            dtensor_local_shape(&tensor, &rank, shape);
            if (shape[0] != rows[row].sizes[rank] || shape[1] != 5)
                fail_msg("%lld over %d, rank %d: found %lld, expected %lld",
                         (long long)rows[row].total, rows[row].ranks, rank, (long long)shape[0],
                         (long long)rows[row].sizes[rank]);
            assert_int_equal(dtensor_offset(&tensor, &rank, 0), offset);
            offset += shape[0];
        }
        assert_int_equal(offset, rows[row].total);
    }
}

// 8 rows on [[0, 1], [2, 3]], written out.
static void test_strided_example(void **state)
{
    (void)state;
    static const struct {
        const char *placements;
        int rows_each, rows[4][4];
    } rows[] = {
        {"S0,S0", 2, {{0, 1}, {2, 3}, {4, 5}, {6, 7}}},
        {"S0x2,S0", 2, {{0, 1}, {4, 5}, {2, 3}, {6, 7}}},
        {"S0x2,R", 4, {{0, 1, 4, 5}, {0, 1, 4, 5}, {2, 3, 6, 7}, {2, 3, 6, 7}}},
        {"R,S0", 4, {{0, 1, 2, 3}, {4, 5, 6, 7}, {0, 1, 2, 3}, {4, 5, 6, 7}}},
    };
    for (size_t row = 0; row < COUNT_OF(rows); row++) {
        Mesh mesh;
        Tensor whole = {.dtype = DTYPE_F32, .rank = 2, .shape = {8, 8}};
        DTensor tensor = parse("a=2,b=2", 4, &mesh, rows[row].placements, &whole);
        for (int rank = 0; rank < 4; rank++) {
            int coord[] = {rank / 2, rank % 2};
            int64_t shape[TENSOR_RANK_MAX];
            dtensor_local_shape(&tensor, coord, shape);
            assert_int_equal(shape[0], rows[row].rows_each);
            for (int i = 0; i < rows[row].rows_each; i++)
                if (dtensor_global_index(&tensor, coord, 0, i) != rows[row].rows[rank][i])
                    fail_msg("%s, rank %d, row %d: found %lld, expected %d", rows[row].placements,
                             rank, i, (long long)dtensor_global_index(&tensor, coord, 0, i),
                             rows[row].rows[rank][i]);
        }
    }
}

// Tensor parallel cuts 9 rows into 5 and 4, FSDP over 4 ranks cuts these: row 8 belongs to tensor
// parallel rank 1, which cutting from left to right would give to rank 0.
static void test_strided_uneven(void **state)
{
    (void)state;
    static const int owners[9][2] = {{0, 0}, {0, 0}, {1, 0}, {1, 0}, {2, 0},
                                     {0, 1}, {1, 1}, {2, 1}, {3, 1}};
    Mesh mesh;
    Tensor whole = {.dtype = DTYPE_F32, .rank = 1, .shape = {9}};
    DTensor tensor = parse("dp=4,tp=2", 8, &mesh, "S0x2,S0", &whole);
    for (int64_t i = 0; i < 9; i++) {
        int owner[2] = {-1, -1};
        dtensor_owner(&tensor, 0, i, owner);
        assert_int_equal(owner[0], owners[i][0]);
        assert_int_equal(owner[1], owners[i][1]);
    }
}

static void check_maps(const Mesh *mesh, const DTensor *tensor, const char *name)
{
    int64_t size = tensor->shape[0];
    for (int rank = 0; rank < 8; rank++) {
        int coord[MESH_AXES_MAX];
        int64_t shape[TENSOR_RANK_MAX], next = 0;
        coordinates_of_rank(mesh, rank, coord);
        IndexList list = list_of(mesh, tensor->placement, coord, 0, size);
        dtensor_local_shape(tensor, coord, shape);
        if (shape[0] != list.count)
            fail_msg("%s, %lld rows, rank %d: %lld local, expected %lld", name, (long long)size,
                     rank, (long long)shape[0], (long long)list.count);
        for (int64_t i = 0; i < list.count; i++) {
            int64_t found = dtensor_global_index(tensor, coord, 0, i);
            int owner[MESH_AXES_MAX];
            if (found != list.index[i])
                fail_msg("%s, %lld rows, rank %d: local %lld is global %lld, expected %lld", name,
                         (long long)size, rank, (long long)i, (long long)found,
                         (long long)list.index[i]);
            memcpy(owner, coord, sizeof(owner));
            dtensor_owner(tensor, 0, list.index[i], owner);
            assert_memory_equal(owner, coord, (size_t)mesh->axes * sizeof(int));
        }
        // The other direction, for all indices: those of the list in order, no others.
        for (int64_t global = 0; global < size; global++) {
            int64_t local = dtensor_local_index(tensor, coord, 0, global);
            bool held = local >= 0;
            assert_true(!held || (local < list.count && list.index[local] == global));
            next += held;
        }
        assert_int_equal(next, list.count);
    }
}

static void test_maps_against_lists(void **state)
{
    (void)state;
    static const char *const meshes[] = {"a=8", "a=2,b=4", "a=4,b=2", "a=2,b=2,c=2",
                                         "a=2,b=1,c=4,d=1"};
    static const char *const words[] = {"S0", "S0", "R", "S0x2", "S0x4", "S0x3", "S1", "P"};
    uint64_t seed = (uint64_t)time(NULL);
    for (uint32_t trial = 0; trial < 600; trial++) {
        RandomBlock block = random_block(seed, trial, 0);
        Mesh mesh;
        Tensor whole = {.dtype = DTYPE_BF16, .rank = 2, .shape = {block.word[0] % 70, 3}};
        const char *layout = meshes[block.word[1] % COUNT_OF(meshes)];
        char text[64] = "";
        int axes = 1;
        for (const char *c = layout; *c; c++)
            axes += *c == ',';
        for (int axis = 0; axis < axes; axis++) {
            strcat(text, axis ? "," : "");
            strcat(text, words[(block.word[2] >> (4 * axis)) % COUNT_OF(words)]);
        }
        DTensor tensor = parse(layout, 8, &mesh, text, &whole);
        check_maps(&mesh, &tensor, text);
    }
}

// 2^40 + 5 rows: maps must be inverse to each other and the parts must cover the whole.
static void test_far_indices(void **state)
{
    (void)state;
    static const int64_t sizes[] = {((int64_t)1 << 31) + 1, ((int64_t)1 << 40) + 5,
                                    ((int64_t)1 << 55) - 3};
    static const char *const lists[] = {"S0,S0", "S0x4,S0", "S0x3,S0", "S0x4,R", "R,S0"};
    for (size_t s = 0; s < COUNT_OF(sizes); s++)
        for (size_t l = 0; l < COUNT_OF(lists); l++) {
            Mesh mesh;
            Tensor whole = {.dtype = DTYPE_F32, .rank = 2, .shape = {1, sizes[s]}};
            char text[16];
            snprintf(text, sizeof(text), "%s", lists[l]);
            for (char *c = text; *c; c++)
                *c = *c == '0' ? '1' : *c;
            DTensor tensor = parse("a=2,b=4", 8, &mesh, text, &whole);
            int64_t covered = 0;
            for (int rank = 0; rank < 8; rank++) {
                int coord[MESH_AXES_MAX];
                int64_t shape[TENSOR_RANK_MAX];
                coordinates_of_rank(&mesh, rank, coord);
                dtensor_local_shape(&tensor, coord, shape);
                covered += shape[1];
                const int64_t some[] = {0, 1, shape[1] / 3, shape[1] / 2 + 1, shape[1] - 1};
                for (size_t i = 0; i < COUNT_OF(some); i++) {
                    int64_t global = dtensor_global_index(&tensor, coord, 1, some[i]);
                    assert_in_range(global, 0, sizes[s] - 1);
                    assert_int_equal(dtensor_local_index(&tensor, coord, 1, global), some[i]);
                }
            }
            int copies = strstr(text, "R") ? (text[0] == 'R' ? 2 : 4) : 1;
            assert_int_equal(covered, sizes[s] * copies);
        }
    // By hand: 2^40 + 5 over 8 ranks, room 2^37 + 1; rank 7 begins at 7 * 2^37 + 7.
    Mesh mesh;
    Tensor whole = {.dtype = DTYPE_F32, .rank = 1, .shape = {sizes[1]}};
    DTensor tensor = parse("a=8", 8, &mesh, "S0", &whole);
    int64_t shape[TENSOR_RANK_MAX];
    dtensor_local_shape(&tensor, (const int[]){7}, shape);
    assert_int_equal(dtensor_offset(&tensor, (const int[]){7}, 0), ((int64_t)7 << 37) + 7);
    assert_int_equal(shape[0], ((int64_t)1 << 37) - 2);
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        Tensor whole;
        Placement placement;
        const char *what;
    } rows[] = {
        {{NULL, DTYPE_F32, 1, {4}}, {PLACEMENT_SHARD, 1, 1, COMM_SUM}, "has no dimension 1"},
        {{NULL, DTYPE_F32, 0, {0}}, {PLACEMENT_SHARD, 0, 1, COMM_SUM}, "has no dimension 0"},
        {{NULL, DTYPE_F4, 1, {4}}, {PLACEMENT_SHARD, 0, 1, COMM_SUM}, "elements of f4 share bytes"},
        {{NULL, DTYPE_F32, 2, {(int64_t)1 << 40, (int64_t)1 << 30}},
         {PLACEMENT_REPLICATE, 0, 0, COMM_SUM},
         "passes 2^63 bits"},
        {{NULL, DTYPE_I32, 1, {4}}, {PLACEMENT_PARTIAL, 0, 0, COMM_AVG}, "average of i32"},
        {{NULL, DTYPE_C64, 1, {4}}, {PLACEMENT_PARTIAL, 0, 0, COMM_SUM}, "no arithmetic for c64"},
    };
    Mesh mesh;
    Error none = {0};
    assert_true(mesh_parse("dp=2", 2, &mesh, &none));
    for (size_t row = 0; row < COUNT_OF(rows); row++) {
        Error error = {0};
        assert_false(dtensor_check(&mesh, &rows[row].whole, &rows[row].placement, &error));
        assert_int_equal(error.exit_code, EXIT_CODE_USAGE);
        if (!strstr(error.what, rows[row].what))
            fail_msg("expected '%s' in '%s'", rows[row].what, error.what);
    }
    Tensor empty = {
        .dtype = DTYPE_F32, .rank = 3, .shape = {(int64_t)1 << 40, (int64_t)1 << 40, 0}};
    Placement replicate = placement_replicate();
    assert_true(dtensor_check(&mesh, &empty, &replicate, &none));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table_of_sizes), cmocka_unit_test(test_strided_example),
        cmocka_unit_test(test_strided_uneven), cmocka_unit_test(test_maps_against_lists),
        cmocka_unit_test(test_far_indices),    cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
