// The CUDA row of grouped_gemm against sums in double on the CPU: all forms and types, shapes that
// suit the tensor cores and shapes that do not, gathered rows, empty and odd groups; unwritten,
// overwritten and wrongly read memory.
// labels: gpu
#include "tests/gemm_product.h"
#include "tests/select_gpu.h"

static void test_small_shapes(void **state)
{
    (void)state;
    uint64_t seed = seed_of_run();
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        for (size_t t = 0; t < COUNT_OF(types); t++) {
            for (int gathered = 0; gathered < (shapes[i].form == GEMM_TN ? 4 : 2); gathered++) {
                Case c = case_make(&shapes[i], &types[t]);
                c.a_gathered = gathered & 1;
                c.b_gathered = gathered & 2;
                run_case(&c, 4e6, seed++);
            }
        }
    }
}

static void test_random_shapes(void **state)
{
    (void)state;
    Numbers numbers = {seed_of_run()};
    for (int i = 0; i < 60; i++) {
        const Types *t = &types[numbers_next(&numbers) % COUNT_OF(types)];
        const int unit = numbers_next(&numbers) % 4 ? 8 : 1;
        const Shape shape = {.form = (GemmForm)(i % 3),
                             .m = unit * (1 + numbers_next(&numbers) % (400 / unit)),
                             .n = unit * (1 + numbers_next(&numbers) % (600 / unit)),
                             .k = unit * (1 + numbers_next(&numbers) % (500 / unit)),
                             .align = 1 << numbers_next(&numbers) % 8};
        Case c = case_make(&shape, t);
        c.a_gathered = numbers_next(&numbers) % 2;
        c.b_gathered = shape.form == GEMM_TN && numbers_next(&numbers) % 2;
        c.shape.groups = 1 + numbers_next(&numbers) % GROUPS_MAX;
        for (int g = 0; g < c.shape.groups; g++)
            c.rows[g] = numbers_next(&numbers) % 3 ? numbers_next(&numbers) % 150 : 0;
        run_case(&c, 4e6, numbers_next(&numbers));
    }
}

// More tiles than multiprocessors, so that blocks go on to further tiles, groups and bands.
static void test_many_tiles(void **state)
{
    (void)state;
    uint64_t seed = seed_of_run();
    for (int form = 0; form < 3; form++) {
        for (int gathered = 0; gathered < 2; gathered++) {
            const Shape shape = {(GemmForm)form, 1408, 2048 + 128, 1408, 0, 0, 8, 9};
            Case c = case_make(&shape, &types[form == GEMM_TN]);
            c.a_gathered = gathered;
            for (int g = 0; g < c.shape.groups; g++)
                c.rows[g] = g == 4 ? 2500 : 77 * g;
            run_case(&c, 2e7, seed++);
        }
    }
}

static void test_nothing_to_do(void **state)
{
    (void)state;
    const uint64_t seed = seed_of_run();
    for (int form = 0; form < 3; form++) {
        const Shape shape = {(GemmForm)form, 16, 24, 8, 0, 0, 1, 3};
        Case empty = case_make(&shape, &types[1]);
        memset(empty.rows, 0, sizeof(empty.rows));
        run_case(&empty, 4e6, seed); // TN: zeros
        Case added = empty;
        added.accumulate = true;
        run_case(&added, 4e6, seed); // TN: c stays
    }
}

int main(void)
{
    if (!select_gpu())
        return EXIT_CODE_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_shapes),
        cmocka_unit_test(test_random_shapes),
        cmocka_unit_test(test_many_tiles),
        cmocka_unit_test(test_nothing_to_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
