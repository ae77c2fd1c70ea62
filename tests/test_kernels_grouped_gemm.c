// Grouped products on the CPU: every vector version equals the plain loops bit for bit, whatever
// the shape, the types, the threads and the numbers; the plain loops equal sums in double within
// their bound; padding is neither read nor written.
#include "kernels/gemm/tile.h"
#include "tests/kernels_data.h"

#include <sys/mman.h>

enum { GROUPS_MAX = 6, GUARD = 40 };

// One problem with all its memory. The row space has NaN between the groups.
typedef struct Problem {
    GroupedGemm args;
    int32_t first[GROUPS_MAX], rows[GROUPS_MAX];
    int64_t c_count; // elements of c, guard included
    void *c_before;
} Problem;

static int64_t one_of(Data *data, const int64_t *values, int count)
{
    return values[data_below(data, count)];
}

// Fills `count` elements; `special` puts subnormals, zeros of both signs, infinities and NaN among
// them.
static void fill(Data *data, void *out, DType dtype, int64_t count, bool special)
{
    const float specials[] = {0.0f,      -0.0f, 1e-41f,  -3e-39f, INFINITY,
                              -INFINITY, NAN,   FLT_MAX, FLT_MIN, -1e-45f};
    for (int64_t i = 0; i < count; i++) {
        bool plain = !special || data_below(data, 40) > 0;
        put_value(out, dtype, i, plain ? data_normal(data) : specials[data_below(data, 10)]);
    }
}

static void make_groups(Data *data, Problem *problem, int64_t rows_max_each)
{
    int64_t at = data_below(data, 3);
    for (int group = 0; group < problem->args.groups; group++) {
        bool skewed = data_below(data, 4) == 0;
        int64_t rows = data_below(data, 4) == 0 ? 0 : data_below(data, skewed ? rows_max_each : 9);
        problem->first[group] = (int32_t)at;
        problem->rows[group] = (int32_t)rows;
        at += rows + data_below(data, 5);
        problem->args.rows_expected += rows;
    }
    problem->args.rows_max = at;
}

// Row indices of a permutation-like gather into `lines` lines; rows outside the groups point at
// line `lines`, all NaN.
static const int32_t *make_index(Data *data, const Problem *problem, int64_t lines)
{
    int32_t *index = data_poisoned(data, problem->args.rows_max, sizeof(int32_t));
    for (int64_t row = 0; row < problem->args.rows_max; row++)
        index[row] = (int32_t)lines;
    for (int group = 0; group < problem->args.groups; group++)
        for (int64_t row = 0; row < problem->rows[group]; row++)
            index[problem->first[group] + row] = (int32_t)data_below(data, lines);
    return index;
}

// An operand whose lines are rows of the row space, gathered or not. Lines that belong to no group
// stay NaN.
static const void *make_rows(Data *data, const Problem *problem, int64_t width, int64_t stride,
                             bool special, const int32_t **index)
{
    int64_t lines = problem->args.rows_max;
    bool gathered = lines > 0 && data_below(data, 2);
    DType dtype = problem->args.dtype;
    *index = gathered ? make_index(data, problem, lines) : NULL;
    char *rows = data_poisoned(data, (lines + 1) * stride, dtype_bytes(dtype, 1));
    uint64_t stride_bytes = dtype_bytes(dtype, (uint64_t)stride);
    for (int group = 0; group < (gathered ? 1 : problem->args.groups); group++) {
        int64_t first = gathered ? 0 : problem->first[group];
        int64_t count = gathered ? lines : problem->rows[group];
        for (int64_t row = first; row < first + count; row++)
            fill(data, rows + (uint64_t)row * stride_bytes, dtype, width, special);
    }
    return rows;
}

static Problem make_problem(Data *data, bool special)
{
    const int64_t columns[] = {1, 7, 8, 15, 16, 17, 31, 32, 33, 48, 100, 129, 200};
    const int64_t depths[] = {1, 2, 3, 5, 15, 16, 17, 40, 63, 64, 65, 255, 256, 257, 300};
    Problem problem = {0};
    GroupedGemm *args = &problem.args;
    args->form = (GemmForm)data_below(data, 3);
    args->dtype = data_below(data, 2) ? DTYPE_F32 : DTYPE_BF16;
    args->out_dtype = data_below(data, 2) ? DTYPE_F32 : args->dtype;
    args->accumulate = args->out_dtype == DTYPE_F32 && data_below(data, 3) == 0;
    args->groups = 1 + (int)data_below(data, GROUPS_MAX);
    args->n = one_of(data, columns, COUNT_OF(columns));
    args->threads = 1 + (int)data_below(data, 3);
    make_groups(data, &problem, args->form == GEMM_TN ? 300 : 60);
    bool tn = args->form == GEMM_TN;
    if (tn)
        args->m = one_of(data, columns, COUNT_OF(columns));
    else
        args->k = one_of(data, depths, COUNT_OF(depths));
    int64_t width = tn ? args->m : args->k;
    args->a_stride = width + data_below(data, 9);
    args->b_stride = args->n + data_below(data, 9);
    args->a = make_rows(data, &problem, width, args->a_stride, special, &args->a_index);
    if (tn) {
        args->b = make_rows(data, &problem, args->n, args->b_stride, special, &args->b_index);
    } else {
        int64_t count = args->groups * args->n * args->k;
        void *b = data_poisoned(data, count, dtype_bytes(args->dtype, 1));
        fill(data, b, args->dtype, count, special);
        args->b = b;
    }
    problem.c_count = (tn ? args->groups * args->m : args->rows_max) * args->n + GUARD;
    uint64_t element_bytes = dtype_bytes(args->out_dtype, 1);
    problem.c_before = data_poisoned(data, problem.c_count, element_bytes);
    if (args->accumulate)
        fill(data, problem.c_before, DTYPE_F32, problem.c_count - GUARD, special);
    return problem;
}

// c after `run` on a fresh copy of what was there before.
static void *run_problem(Data *data, const Problem *problem, const GemmTile *tile)
{
    GroupedGemm args = problem->args;
    uint64_t bytes = dtype_bytes(args.out_dtype, (uint64_t)problem->c_count);
    args.group_first = problem->first;
    args.group_rows = problem->rows;
    args.c = data_poisoned(data, problem->c_count, dtype_bytes(args.out_dtype, 1));
    memcpy(args.c, problem->c_before, bytes);
    if (tile)
        grouped_gemm_with_tile(&args, tile);
    else
        grouped_gemm_reference(&args);
    return args.c;
}

static void every_tile_equals_the_plain_loops(Data *data, const Problem *problem)
{
    const GroupedGemm *args = &problem->args;
    const void *expected = run_problem(data, problem, NULL);
    for (int row = 0; gemm_tile_row(row); row++) {
        const GemmTile *tile = gemm_tile_row(row);
        if (!tile->supported())
            continue;
        const void *ours = run_problem(data, problem, tile);
        for (int64_t i = 0; i < problem->c_count; i++)
            if (!same_value(value_of(ours, args->out_dtype, i),
                            value_of(expected, args->out_dtype, i)))
                fail_msg("%s, form %d, n %lld, m %lld, k %lld, groups %d, threads %d: c[%lld] is "
                         "%.9g, expected exactly %.9g",
                         tile->name, (int)args->form, (long long)args->n, (long long)args->m,
                         (long long)args->k, args->groups, args->threads, (long long)i,
                         (double)value_of(ours, args->out_dtype, i),
                         (double)value_of(expected, args->out_dtype, i));
    }
}

static void tiles_equal_the_reference(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 90; round++) {
        int mark = data.blocks;
        Problem problem = make_problem(&data, round % 3 == 0);
        every_tile_equals_the_plain_loops(&data, &problem);
        data_release(&data, mark);
    }
    data_destroy(&data);
}

// Several row and column tasks, several blocks of k, more threads than tasks' columns.
static void large_tiles_equal_the_reference(void **state)
{
    (void)state;
    Data data = data_create();
    for (int form = GEMM_NT; form <= GEMM_TN; form++) {
        int mark = data.blocks;
        Problem problem = {.first = {0, 1, 1}, .rows = {1, 0, 261}};
        GroupedGemm *args = &problem.args;
        *args = (GroupedGemm){.form = (GemmForm)form, .groups = 3, .rows_max = 262, .n = 530};
        args->rows_expected = 262;
        args->m = 20;
        args->k = 37;
        args->threads = 3;
        args->a_stride = 37;
        args->b_stride = args->n;
        args->a = data_normals(&data, 262 * 37, DTYPE_F32, 1.0f);
        args->b = data_normals(&data, 3 * 530 * 262, DTYPE_F32, 1.0f);
        problem.c_count = (form == GEMM_TN ? 3 * args->m : 262) * args->n;
        problem.c_before = data_poisoned(&data, problem.c_count, sizeof(float));
        every_tile_equals_the_plain_loops(&data, &problem);
        data_release(&data, mark);
    }
    data_destroy(&data);
}

// The definition once more, in double, written from the header alone.
static void expect_definition(const Problem *problem, const void *c, int group, int64_t i,
                              int64_t j)
{
    const GroupedGemm *args = &problem->args;
    bool tn = args->form == GEMM_TN;
    int64_t terms = tn ? problem->rows[group] : args->k, at = 0;
    double sum = 0, size = 0;
    for (int64_t k = 0; k < terms; k++) {
        int64_t row = problem->first[group] + (tn ? k : i);
        int64_t row_a = args->a_index ? args->a_index[row] : row;
        int64_t row_b = tn && args->b_index ? args->b_index[row] : row;
        double a = value_of(args->a, args->dtype, row_a * args->a_stride + (tn ? i : k));
        int64_t b_at = tn                      ? row_b * args->b_stride + j
                       : args->form == GEMM_NT ? (group * args->n + j) * args->k + k
                                               : (group * args->k + k) * args->n + j;
        double b = value_of(args->b, args->dtype, b_at);
        sum += a * b;
        size += fabs(a * b);
    }
    at = (tn ? group * args->m + i : problem->first[group] + i) * args->n + j;
    double bound = 2.0 * (double)terms * FLT_EPSILON * size;
    if (args->accumulate)
        sum += (double)value_of(problem->c_before, DTYPE_F32, at);
    bound += (args->accumulate ? 2.0 : 1.0) * rounding_of(args->out_dtype) * (fabs(sum) + bound);
    expect_near(value_of(c, args->out_dtype, at), sum, bound, "c", at);
}

static void reference_meets_the_definition(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 40; round++) {
        int mark = data.blocks;
        Problem problem = make_problem(&data, false);
        const void *c = run_problem(&data, &problem, NULL);
        for (int group = 0; group < problem.args.groups; group++) {
            int64_t rows = problem.args.form == GEMM_TN ? problem.args.m : problem.rows[group];
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < problem.args.n; j++)
                    expect_definition(&problem, c, group, i, j);
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

// Rows between groups keep their poison; so do the elements past the end.
static void padding_stays_untouched(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 30; round++) {
        int mark = data.blocks;
        Problem problem = make_problem(&data, false);
        const GroupedGemm *args = &problem.args;
        const void *c = run_problem(&data, &problem, gemm_tile_best());
        for (int64_t i = problem.c_count - GUARD; i < problem.c_count; i++)
            expect_poison(c, args->out_dtype, i, "guard");
        for (int64_t row = 0; row < args->rows_max && args->form != GEMM_TN; row++) {
            bool owned = false;
            for (int group = 0; group < args->groups; group++)
                owned |=
                    row >= problem.first[group] && row < problem.first[group] + problem.rows[group];
            for (int64_t j = 0; j < args->n && !owned && !args->accumulate; j++)
                expect_poison(c, args->out_dtype, row * args->n + j, "padding");
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

// A row alone and the same row deep inside a large group, in another place of memory.
static void a_row_does_not_depend_on_its_place(void **state)
{
    (void)state;
    Data data = data_create();
    enum { ROWS = 77, K = 333, N = 50 };
    const float *b = data_normals(&data, N * K, DTYPE_F32, 1.0f);
    const float *a = data_normals(&data, ROWS * K, DTYPE_F32, 1.0f);
    float *all = data_poisoned(&data, ROWS * N, sizeof(float));
    float *one = data_poisoned(&data, N, sizeof(float));
    int32_t first = 0, rows = ROWS;
    GroupedGemm args = {.form = GEMM_NT,
                        .groups = 1,
                        .rows_max = ROWS,
                        .n = N,
                        .k = K,
                        .group_first = &first,
                        .group_rows = &rows,
                        .a = a,
                        .a_stride = K,
                        .b = b,
                        .c = all,
                        .rows_expected = ROWS,
                        .threads = 2};
    grouped_gemm(&args, CPU);
    rows = 1;
    args.c = one;
    for (int row = 0; row < ROWS; row++) {
        args.a = a + row * K;
        grouped_gemm(&args, CPU);
        for (int j = 0; j < N; j++)
            expect_same(one[j], all[row * N + j], "row alone", row * N + j);
    }
    data_destroy(&data);
}

// Three lines 2^30 + 64 elements apart: offsets pass 2^31 elements and 2^32 bytes. The pages in
// between do not exist.
static void offsets_are_64_bits_wide(void **state)
{
    (void)state;
    enum { K = 20, N = 3, ROWS = 3 };
    const int64_t stride = ((int64_t)1 << 30) + 64;
    size_t bytes = (size_t)(stride * ROWS) * sizeof(float);
    float *a = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (a == MAP_FAILED) {
        print_message("no %zu bytes of address space: skipped\n", bytes);
        skip();
    }
    float b[N * K], c[ROWS * N];
    int32_t first = 0, rows = ROWS;
    for (int i = 0; i < N * K; i++)
        b[i] = (float)(i % 7) - 3.0f;
    for (int row = 0; row < ROWS; row++)
        for (int k = 0; k < K; k++)
            a[row * stride + k] = (float)(row * 10 + k);
    GroupedGemm args = {.form = GEMM_NT,
                        .groups = 1,
                        .rows_max = ROWS,
                        .n = N,
                        .k = K,
                        .group_first = &first,
                        .group_rows = &rows,
                        .a = a,
                        .a_stride = stride,
                        .b = b,
                        .c = c,
                        .threads = 1};
    for (int row = 0; gemm_tile_row(row); row++) {
        if (!gemm_tile_row(row)->supported())
            continue;
        grouped_gemm_with_tile(&args, gemm_tile_row(row));
        for (int i = 0; i < ROWS * N; i++) {
            float expected = 0;
            for (int k = 0; k < K; k++)
                expected += (float)(i / N * 10 + k) * b[i % N * K + k];
            expect_same(c[i], expected, "far row", i);
        }
    }
    munmap(a, bytes);
}

// No rows, no terms: zeros, or with accumulate not a bit of c changes (-0 + 0 would).
static void empty_groups_write_zeros_or_nothing(void **state)
{
    (void)state;
    enum { GROUPS = 2, M = 3, N = 40, COUNT = GROUPS * M * N };
    int32_t first[GROUPS] = {0, 0}, rows[GROUPS] = {0, M};
    float c[COUNT], none = NAN;
    GroupedGemm args = {.groups = GROUPS,
                        .rows_max = M,
                        .n = N,
                        .m = M,
                        .group_first = first,
                        .group_rows = rows,
                        .a = &none,
                        .b = &none,
                        .b_stride = N,
                        .c = c,
                        .threads = 1};
    for (int round = 0; round < 8; round++) {
        // TN without rows in any group; NT with k = 0.
        args.form = round % 2 ? GEMM_TN : GEMM_NT;
        args.accumulate = round / 2 % 2;
        rows[1] = round % 2 ? 0 : M;
        for (int i = 0; i < COUNT; i++)
            c[i] = -0.0f;
        if (round / 4)
            grouped_gemm_reference(&args);
        else
            grouped_gemm(&args, CPU);
        int64_t written = args.accumulate ? 0 : round % 2 ? COUNT : M * N;
        for (int64_t i = 0; i < COUNT; i++)
            expect_same(c[i], i < written ? 0.0f : -0.0f, "c", i);
    }
}

static void cost_counts_every_operand_once(void **state)
{
    (void)state;
    GroupedGemm args = {.form = GEMM_NT,
                        .dtype = DTYPE_BF16,
                        .out_dtype = DTYPE_BF16,
                        .groups = 3,
                        .n = 10,
                        .k = 7,
                        .rows_expected = 5};
    KernelCost nt = grouped_gemm_cost(&args);
    expect_near(nt.flops, 2.0 * 5 * 10 * 7, 0, "flops", 0);
    expect_near(nt.bytes, 2.0 * (5 * 7 + 3 * 10 * 7 + 5 * 10), 0, "bytes", 0);
    args.form = GEMM_TN;
    args.m = 4;
    args.out_dtype = DTYPE_F32;
    args.accumulate = true;
    KernelCost tn = grouped_gemm_cost(&args);
    expect_near(tn.flops, 2.0 * 5 * 10 * 4, 0, "flops", 1);
    expect_near(tn.bytes, 2.0 * 5 * (10 + 4) + 8.0 * 3 * 10 * 4, 0, "bytes", 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiles_equal_the_reference),
        cmocka_unit_test(large_tiles_equal_the_reference),
        cmocka_unit_test(reference_meets_the_definition),
        cmocka_unit_test(padding_stays_untouched),
        cmocka_unit_test(a_row_does_not_depend_on_its_place),
        cmocka_unit_test(offsets_are_64_bits_wide),
        cmocka_unit_test(empty_groups_write_zeros_or_nothing),
        cmocka_unit_test(cost_counts_every_operand_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
