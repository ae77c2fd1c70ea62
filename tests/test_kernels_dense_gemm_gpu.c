// The CUDA row of dense_gemm against sums in double on the CPU: all forms and types, rows that
// begin at any address, no rows, no terms, more sizes than plans are kept.
// labels: gpu
#include "kernels/dense_gemm.h"
#include "tests/gemm_product.h"
#include "tests/select_gpu.h"

// The one group of a grouped product, as a dense one.
static void run_dense(const Case *c, uint64_t seed)
{
    const Stream stream = stream_create(DEVICE_CUDA);
    const Both workspace = both_create(DENSE_GEMM_WORKSPACE_BYTES);
    Product p = product_create(c, seed, stream);
    const GroupedGemm *g = &p.args;
    const bool tn = g->form == GEMM_TN;
    const int64_t first = first_row(&p, 0), in = (int64_t)dtype_bytes(g->dtype, 1);
    const int64_t out = (int64_t)dtype_bytes(g->out_dtype, 1);
    dense_gemm(&(DenseGemm){.form = g->form,
                            .dtype = g->dtype,
                            .out_dtype = g->out_dtype,
                            .accumulate = g->accumulate,
                            .rows = c->rows[0],
                            .m = g->m,
                            .n = g->n,
                            .k = g->k,
                            .a = (const char *)g->a + first * g->a_stride * in,
                            .b = (const char *)g->b + (tn ? first * g->b_stride * in : 0),
                            .c = (char *)g->c + (tn ? 0 : first * g->n * out),
                            .workspace = workspace.device,
                            .threads = 1},
               stream);
    both_download(&p.c, stream);
    check_places(&p);
    check_values(&p, 4e6, seed);
    product_destroy(&p);
    both_destroy((Both *)&workspace);
    stream_destroy(stream);
}

static Case dense_case(GemmForm form, const Types *t, int rows, int64_t width, int64_t n)
{
    const Shape shape = {.form = form, .m = width, .n = n, .k = width, .align = 1, .groups = 1};
    Case c = case_make(&shape, t);
    c.rows[0] = rows;
    return c;
}

static void test_sizes(void **state)
{
    (void)state;
    static const struct {
        int rows;
        int64_t width, n;
    } sizes[] = {{1, 8, 8}, {64, 64, 256},   {200, 392, 200}, {37, 53, 41},
                 {1, 1, 1}, {1000, 128, 72}, {0, 64, 32},     {513, 2048, 640}};
    uint64_t seed = seed_of_run();
    for (size_t i = 0; i < COUNT_OF(sizes); i++)
        for (size_t t = 0; t < COUNT_OF(types); t++)
            for (int form = 0; form < 3; form++) {
                const Case c = dense_case((GemmForm)form, &types[t], sizes[i].rows, sizes[i].width,
                                          sizes[i].n);
                run_dense(&c, seed++);
            }
}

// Plans are made anew when their room is full, and the old ones found while it is not.
static void test_many_sizes(void **state)
{
    (void)state;
    uint64_t seed = seed_of_run();
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 100; i++) {
            const Case c =
                dense_case((GemmForm)(i % 3), &types[i % 2], 8 + i, 16 + 8 * (i % 5), 24);
            run_dense(&c, seed++);
        }
}

int main(void)
{
    if (!select_gpu())
        return EXIT_CODE_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_many_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
