// dense_gemm on the CPU: the bits of grouped_gemm's reference, and its cost.
#include "harness/bf16.h"
#include "harness/random.h"
#include "kernels/dense_gemm.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { ELEMENTS_MAX = 70 * 90 };

static void fill(void *data, DType dtype, uint32_t stream)
{
    random_fill(&(RandomFill){.seed = 3,
                              .stream = stream,
                              .rows = ELEMENTS_MAX,
                              .columns = 1,
                              .deviation = 1.0f,
                              .dtype = dtype,
                              .out = data},
                stream_create(DEVICE_CPU));
}

static void compare(GemmForm form, DType dtype, DType out_dtype, bool accumulate, int32_t rows)
{
    static float a[ELEMENTS_MAX], b[ELEMENTS_MAX], c[ELEMENTS_MAX], expected[ELEMENTS_MAX];
    const int32_t zero = 0;
    const int64_t width = 53, n = 41;
    fill(a, dtype, 1);
    fill(b, dtype, 2);
    fill(c, out_dtype, 3);
    memcpy(expected, c, sizeof(c));
    grouped_gemm_reference(&(GroupedGemm){.form = form,
                                          .dtype = dtype,
                                          .out_dtype = out_dtype,
                                          .accumulate = accumulate,
                                          .groups = 1,
                                          .rows_max = rows,
                                          .m = width,
                                          .n = n,
                                          .k = width,
                                          .group_first = &zero,
                                          .group_rows = &rows,
                                          .a = a,
                                          .a_stride = width,
                                          .b = b,
                                          .b_stride = n,
                                          .c = expected,
                                          .threads = 1});
    dense_gemm(&(DenseGemm){.form = form,
                            .dtype = dtype,
                            .out_dtype = out_dtype,
                            .accumulate = accumulate,
                            .rows = rows,
                            .m = width,
                            .n = n,
                            .k = width,
                            .a = a,
                            .b = b,
                            .c = c,
                            .threads = 2},
               stream_create(DEVICE_CPU));
    assert_memory_equal(c, expected, sizeof(c));
}

static void test_the_bits_of_grouped_gemm(void **state)
{
    (void)state;
    static const int32_t rows[] = {0, 1, 8, 67};
    for (int form = 0; form < 3; form++)
        for (size_t i = 0; i < COUNT_OF(rows); i++) {
            compare((GemmForm)form, DTYPE_F32, DTYPE_F32, false, rows[i]);
            compare((GemmForm)form, DTYPE_F32, DTYPE_F32, true, rows[i]);
            compare((GemmForm)form, DTYPE_BF16, DTYPE_BF16, false, rows[i]);
            compare((GemmForm)form, DTYPE_BF16, DTYPE_F32, true, rows[i]);
        }
}

static void test_cost(void **state)
{
    (void)state;
    const KernelCost forward = dense_gemm_cost(&(DenseGemm){
        .form = GEMM_NT, .dtype = DTYPE_BF16, .out_dtype = DTYPE_F32, .rows = 3, .n = 5, .k = 7});
    assert_true(forward.flops == 2 * 3 * 5 * 7);
    assert_true(forward.bytes == 2 * (3 * 7 + 5 * 7) + 4 * 3 * 5);
    const KernelCost gradient = dense_gemm_cost(&(DenseGemm){.form = GEMM_TN,
                                                             .dtype = DTYPE_BF16,
                                                             .out_dtype = DTYPE_F32,
                                                             .accumulate = true,
                                                             .rows = 3,
                                                             .m = 7,
                                                             .n = 5});
    assert_true(gradient.flops == 2 * 3 * 5 * 7);
    assert_true(gradient.bytes == 2 * (3 * 7 + 3 * 5) + 8 * 7 * 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_bits_of_grouped_gemm),
        cmocka_unit_test(test_cost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
