// What must not change a bit of the CUDA row of grouped_gemm: where a row lies, how many others
// there are, gathering, and (f32) the device; and one captured launch must follow the group sizes
// in device memory.
// labels: gpu
#include "tests/gemm_product.h"
#include "tests/select_gpu.h"

// f32 is one chain of fused steps in the order of the definition: the bits of the CPU row.
static void test_f32_has_the_bits_of_the_cpu(void **state)
{
    (void)state;
    uint64_t seed = seed_of_run();
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        const Case c = case_make(&shapes[i], &types[3]);
        if (c.shape.groups == 2) // too long for plain loops
            continue;
        const Stream stream = stream_create(DEVICE_CUDA);
        Product p = product_create(&c, seed++, stream);
        grouped_gemm(&p.args, stream);
        both_download(&p.c, stream);
        GroupedGemm on_host = p.args;
        on_host.group_first = p.first.host;
        on_host.group_rows = p.rows.host;
        on_host.a = p.a.host;
        on_host.b = p.b.host;
        on_host.c = (float *)p.c_before + GUARD_ELEMENTS;
        grouped_gemm_reference(&on_host);
        for (int64_t e = 0; e < p.c_elements + 2 * GUARD_ELEMENTS; e++) {
            const float *found = (const float *)p.c.host + e;
            const float *expected = (const float *)p.c_before + e;
            char text[256];
            if (memcmp(found, expected, sizeof(float)) != 0)
                fail_msg("%s: element %lld of c is %.9g, on the CPU %.9g",
                         case_text(&c, text, sizeof(text)), (long long)(e - GUARD_ELEMENTS), *found,
                         *expected);
        }
        product_destroy(&p);
        stream_destroy(stream);
    }
}

// The same rows once in one group and once scattered over groups with equal weights, gathered: the
// same bits.
static void check_bits_by_place(GemmForm form, DType dtype, uint64_t seed)
{
    const Stream stream = stream_create(DEVICE_CUDA);
    const Shape shape = {form, 0, 392, 712, 0, 0, 1, 1};
    Case one = case_make(&shape, &(Types){dtype, DTYPE_F32, false});
    one.rows[0] = 300;
    Case many = one;
    many.shape.groups = 6;
    many.a_gathered = true;
    memcpy(many.rows, (int[]){1, 64, 0, 77, 130, 28}, 6 * sizeof(int));
    Product p = product_create(&one, seed, stream), q = product_create(&many, seed, stream);
    const int64_t weight_bytes = (int64_t)p.b.bytes;
    for (int g = 0; g < many.shape.groups; g++)
        memcpy((char *)q.b.host + g * weight_bytes, p.b.host, (size_t)weight_bytes);
    both_upload(&q.b, stream);
    const int64_t p_first = first_row(&p, 0);
    int32_t *index = q.a_index.host;
    int64_t taken = 0;
    for (int g = 0; g < many.shape.groups; g++)
        for (int r = 0; r < many.rows[g]; r++, taken++)
            index[first_row(&q, g) + r] = (int32_t)(p_first + taken * 77 % 300);
    assert_int_equal(taken, 300);
    both_upload(&q.a_index, stream);
    q.args.a = p.args.a;
    product_run(&p, stream);
    product_run(&q, stream);
    taken = 0;
    for (int g = 0; g < many.shape.groups; g++) {
        for (int r = 0; r < many.rows[g]; r++, taken++) {
            const float *x = (const float *)p.c.host + c_place(&p, 0, taken * 77 % 300, 0);
            const float *y = (const float *)q.c.host + c_place(&q, g, r, 0);
            for (int64_t i = 0; i < one.shape.n; i++)
                if (memcmp(x + i, y + i, sizeof(float)) != 0)
                    fail_msg("form %d %s: row %lld column %lld is %.9g in one group and %.9g in "
                             "group %d of %d",
                             (int)form, dtype_row(dtype)->name, (long long)(taken * 77 % 300),
                             (long long)i, x[i], y[i], g, many.shape.groups);
        }
    }
    product_destroy(&p);
    product_destroy(&q);
    stream_destroy(stream);
}

static void test_bits_do_not_depend_on_place(void **state)
{
    (void)state;
    const uint64_t seed = seed_of_run();
    check_bits_by_place(GEMM_NT, DTYPE_BF16, seed);
    check_bits_by_place(GEMM_NN, DTYPE_BF16, seed + 1);
    check_bits_by_place(GEMM_NT, DTYPE_F32, seed + 2);
    check_bits_by_place(GEMM_NN, DTYPE_F32, seed + 3);
}

// A group's weight gradient: alone, and among others with its rows gathered from elsewhere: the
// same bits.
static void test_gradient_bits_do_not_depend_on_neighbours(void **state)
{
    (void)state;
    const uint64_t seed = seed_of_run();
    for (int i = 0; i < 4; i++) {
        const Stream stream = stream_create(DEVICE_CUDA);
        const int rows = (int[]){1, 77, 128, 1000}[i];
        const Shape shape = {GEMM_TN, 200, 392, 0, 0, 0, 1, 1};
        Case one = case_make(&shape, &types[1]);
        one.rows[0] = rows;
        Case many = one;
        many.shape.groups = 3;
        many.a_gathered = many.b_gathered = true;
        memcpy(many.rows, (int[]){131, rows, 55}, 3 * sizeof(int));
        Product p = product_create(&one, seed, stream), q = product_create(&many, seed, stream);
        const int64_t p_first = first_row(&p, 0);
        const int64_t q_first = first_row(&q, 1);
        for (int32_t r = 0; r < many.rows[0] + many.rows[1] + many.rows[2] + 2; r++) {
            const int64_t at = first_row(&q, 0) + r;
            const int64_t row = at - q_first;
            const int64_t source = row >= 0 && row < rows ? p_first + row : p_first;
            ((int32_t *)q.a_index.host)[at] = ((int32_t *)q.b_index.host)[at] = (int32_t)source;
        }
        both_upload(&q.a_index, stream);
        both_upload(&q.b_index, stream);
        q.args.a = p.args.a;
        q.args.b = p.args.b;
        product_run(&p, stream);
        product_run(&q, stream);
        const float *x = (const float *)p.c.host + c_place(&p, 0, 0, 0);
        const float *y = (const float *)q.c.host + c_place(&q, 1, 0, 0);
        for (int64_t e = 0; e < one.shape.m * one.shape.n; e++)
            if (memcmp(x + e, y + e, sizeof(float)) != 0)
                fail_msg("%d rows: element %lld is %.9g alone and %.9g among others", rows,
                         (long long)e, x[e], y[e]);
        product_destroy(&p);
        product_destroy(&q);
        stream_destroy(stream);
    }
}

// One captured launch, replayed with other group sizes: nothing of them was fixed at capture.
static void test_sizes_change_under_a_graph(void **state)
{
    (void)state;
    Numbers numbers = {seed_of_run()};
    for (int form = 0; form < 3; form++) {
        const Stream stream = stream_create(DEVICE_CUDA);
        const Shape shape = {(GemmForm)form, 136, 264, 72, 0, 0, 200, 4};
        Case c = case_make(&shape, &types[0]);
        for (int g = 0; g < c.shape.groups; g++)
            c.rows[g] = 199;
        Product p = product_create(&c, numbers_next(&numbers), stream);
        graph_begin(stream);
        grouped_gemm(&p.args, stream);
        Graph graph = graph_end(stream);
        for (int round = 0; round < 4; round++) {
            for (int g = 0; g < c.shape.groups; g++)
                p.made_from.rows[g] = ((int32_t *)p.rows.host)[g] =
                    round == 2 ? 0 : (int32_t)(numbers_next(&numbers) % 200);
            both_upload(&p.rows, stream);
            memcpy(p.c.host, p.c_before, p.c.bytes);
            both_upload(&p.c, stream);
            graph_launch(&graph, stream);
            both_download(&p.c, stream);
            check_places(&p);
            check_values(&p, 4e6, numbers_next(&numbers));
        }
        graph_destroy(&graph);
        product_destroy(&p);
        stream_destroy(stream);
    }
}

int main(void)
{
    if (!select_gpu())
        return EXIT_CODE_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32_has_the_bits_of_the_cpu),
        cmocka_unit_test(test_bits_do_not_depend_on_place),
        cmocka_unit_test(test_gradient_bits_do_not_depend_on_neighbours),
        cmocka_unit_test(test_sizes_change_under_a_graph),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
