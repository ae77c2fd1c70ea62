// The CUDA row of grouped_gemm against sums in double on the CPU: all forms, types, shapes that
// suit the tensor cores and shapes that do not, gathered rows, empty and odd groups; unwritten,
// overwritten and wrongly read memory; bits that do not depend on where a row lies; group sizes
// that change under a captured graph.
// labels: gpu
#include "kernels/grouped_gemm.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

enum { GROUPS_MAX = 64, GUARD_ELEMENTS = 64, POISON_BYTE = 0xFF };

// ---- host and device copies of one array
// -------------------------------------------------------------------------------

typedef struct Both {
    void *host, *device;
    uint64_t bytes;
} Both;

static Both both_create(uint64_t bytes)
{
    Both both = {malloc(bytes + 16), device_allocate(DEVICE_CUDA, bytes + 16), bytes};
    assert_non_null(both.host);
    memset(both.host, POISON_BYTE, bytes);
    return both;
}

static void both_destroy(Both *both)
{
    free(both->host);
    device_free(DEVICE_CUDA, both->device);
}

static void both_upload(const Both *both, Stream stream)
{
    device_copy(both->device, both->host, both->bytes, stream);
    stream_wait(stream);
}

static void both_download(const Both *both, Stream stream)
{
    device_copy(both->host, both->device, both->bytes, stream);
    stream_wait(stream);
}

// ---- numbers
// -----------------------------------------------------------------------------------------------------------

typedef struct Numbers {
    uint64_t state;
} Numbers;

static uint32_t numbers_next(Numbers *numbers)
{
    numbers->state = numbers->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(numbers->state >> 32);
}

static void element_put(void *data, DType dtype, int64_t at, float value)
{
    if (dtype == DTYPE_F32)
        ((float *)data)[at] = value;
    else
        ((uint16_t *)data)[at] = bf16_from_f32(value);
}

static double element_get(const void *data, DType dtype, int64_t at)
{
    return dtype == DTYPE_F32 ? ((const float *)data)[at]
                              : f32_from_bf16(((const uint16_t *)data)[at]);
}

// Random values over a few powers of two, both signs.
static void fill(void *data, DType dtype, int64_t first, int64_t count, Numbers *numbers)
{
    for (int64_t i = first; i < first + count; i++) {
        const float value = (float)(int32_t)numbers_next(numbers) * 0x1p-31f;
        element_put(data, dtype, i, value * (float)(1 << numbers_next(numbers) % 3));
    }
}

// ---- one product
// -------------------------------------------------------------------------------------------------------

typedef struct Case {
    GemmForm form;
    DType dtype, out_dtype;
    bool accumulate, a_gathered, b_gathered;
    int64_t m, n, k;
    int a_extra, b_extra; // elements between the end of a row and the next
    int align;            // groups start at multiples of this
    int groups;
    int rows[GROUPS_MAX];
} Case;

typedef struct Product {
    Case made_from;
    GroupedGemm args; // pointers into device memory
    Both first, rows, a, b, c, a_index, b_index;
    int64_t a_rows, b_rows;   // rows that exist
    int64_t a_width, b_width; // elements of a row
    int64_t c_elements;
    void *c_before;
} Product;

static const char *case_text(const Case *c, char *text, size_t bytes)
{
    static const char *const forms[] = {"NT", "NN", "TN"};
    snprintf(text, bytes, "%s %s -> %s%s%s%s m=%lld n=%lld k=%lld groups=%d first rows %d %d %d",
             forms[c->form], dtype_row(c->dtype)->name, dtype_row(c->out_dtype)->name,
             c->accumulate ? " accumulate" : "", c->a_gathered ? " a_index" : "",
             c->b_gathered ? " b_index" : "", (long long)c->m, (long long)c->n, (long long)c->k,
             c->groups, c->rows[0], c->rows[1], c->rows[2]);
    return text;
}

// Where groups begin, with at least one row of padding after each and odd places unless aligned.
static int64_t place_groups(const Case *c, int32_t *first, int32_t *rows)
{
    int64_t at = c->align > 1 ? c->align : 3;
    for (int g = 0; g < c->groups; g++) {
        at = (at + c->align - 1) / c->align * c->align;
        first[g] = (int32_t)at;
        rows[g] = c->rows[g];
        at += c->rows[g] + 1;
    }
    return (at + c->align - 1) / c->align * c->align;
}

// A matrix whose rows of the row space are random where a group needs them and NaN everywhere else.
static Both make_rows(Product *p, int64_t width, int64_t stride, bool gathered,
                      int64_t *source_rows, Both *index, Numbers *numbers)
{
    const int64_t rows_max = p->args.rows_max;
    *source_rows = gathered ? rows_max + 17 : rows_max;
    Both matrix = both_create((uint64_t)(*source_rows * stride) * dtype_bytes(p->args.dtype, 1));
    *index = both_create((uint64_t)rows_max * sizeof(int32_t)); // poisoned: -1 in padding
    const int32_t *first = p->first.host, *rows = p->rows.host;
    for (int g = 0; g < p->args.groups; g++) {
        for (int64_t r = first[g]; r < first[g] + rows[g]; r++) {
            int64_t source = gathered ? numbers_next(numbers) % *source_rows : r;
            ((int32_t *)index->host)[r] = (int32_t)source;
            fill(matrix.host, p->args.dtype, source * stride, width, numbers);
        }
    }
    return matrix;
}

static Product product_create(const Case *c, uint64_t seed, Stream stream)
{
    Numbers numbers = {seed};
    Product p = {.made_from = *c};
    p.first = both_create(sizeof(int32_t) * (uint64_t)c->groups);
    p.rows = both_create(sizeof(int32_t) * (uint64_t)c->groups);
    const bool tn = c->form == GEMM_TN;
    p.args = (GroupedGemm){.form = c->form,
                           .dtype = c->dtype,
                           .out_dtype = c->out_dtype,
                           .accumulate = c->accumulate,
                           .groups = c->groups,
                           .m = c->m,
                           .n = c->n,
                           .k = c->k,
                           .threads = 1};
    p.args.rows_max = place_groups(c, p.first.host, p.rows.host);
    p.a_width = tn ? c->m : c->k;
    p.args.a_stride = p.a_width + c->a_extra;
    p.a = make_rows(&p, p.a_width, p.args.a_stride, c->a_gathered, &p.a_rows, &p.a_index, &numbers);
    if (tn) {
        p.args.b_stride = c->n + c->b_extra;
        p.b = make_rows(&p, c->n, p.args.b_stride, c->b_gathered, &p.b_rows, &p.b_index, &numbers);
    } else {
        const int64_t weights = c->groups * c->n * c->k;
        p.b = both_create((uint64_t)weights * dtype_bytes(c->dtype, 1));
        p.b_index = both_create(4);
        fill(p.b.host, c->dtype, 0, weights, &numbers);
    }
    p.c_elements = tn ? c->groups * c->m * c->n : p.args.rows_max * c->n;
    p.c = both_create((uint64_t)(p.c_elements + 2 * GUARD_ELEMENTS) * dtype_bytes(c->out_dtype, 1));
    if (c->accumulate)
        fill(p.c.host, c->out_dtype, 0, p.c_elements + 2 * GUARD_ELEMENTS, &numbers);
    p.c_before = malloc(p.c.bytes);
    assert_non_null(p.c_before);
    memcpy(p.c_before, p.c.host, p.c.bytes);
    const Both *const all[] = {&p.first, &p.rows, &p.a, &p.b, &p.c, &p.a_index, &p.b_index};
    for (size_t i = 0; i < COUNT_OF(all); i++)
        both_upload(all[i], stream);
    p.args.group_first = p.first.device;
    p.args.group_rows = p.rows.device;
    p.args.a = p.a.device;
    p.args.b = p.b.device;
    p.args.a_index = c->a_gathered ? p.a_index.device : NULL;
    p.args.b_index = c->b_gathered ? p.b_index.device : NULL;
    p.args.c = (char *)p.c.device + GUARD_ELEMENTS * dtype_bytes(c->out_dtype, 1);
    return p;
}

static void product_destroy(Product *p)
{
    Both *const all[] = {&p->first, &p->rows, &p->a, &p->b, &p->c, &p->a_index, &p->b_index};
    for (size_t i = 0; i < COUNT_OF(all); i++)
        both_destroy(all[i]);
    free(p->c_before);
}

// The sum of products, and of their magnitudes, for element (row, column) of group g: row of the
// group or of m.
static double exact(const Product *p, int g, int64_t row, int64_t column, double *magnitude)
{
    const Case *c = &p->made_from;
    const int64_t first = ((const int32_t *)p->first.host)[g];
    const int32_t *a_index = p->a_index.host, *b_index = p->b_index.host;
    const int64_t terms = c->form == GEMM_TN ? c->rows[g] : c->k;
    double sum = 0;
    *magnitude = 0;
    for (int64_t t = 0; t < terms; t++) {
        int64_t a_at = 0, b_at = 0;
        if (c->form == GEMM_TN) {
            a_at = a_index[first + t] * p->args.a_stride + row;
            b_at = b_index[first + t] * p->args.b_stride + column;
        } else {
            a_at = a_index[first + row] * p->args.a_stride + t;
            b_at = c->form == GEMM_NT ? (g * c->n + column) * c->k + t
                                      : (g * c->k + t) * c->n + column;
        }
        const double x = element_get(p->a.host, c->dtype, a_at);
        const double y = element_get(p->b.host, c->dtype, b_at);
        sum += x * y;
        *magnitude += fabs(x * y);
    }
    return sum;
}

static int64_t c_place(const Product *p, int g, int64_t row, int64_t column)
{
    const Case *c = &p->made_from;
    const int64_t c_row =
        c->form == GEMM_TN ? g * c->m + row : ((const int32_t *)p->first.host)[g] + row;
    return GUARD_ELEMENTS + c_row * c->n + column;
}

static void check_element(const Product *p, int g, int64_t row, int64_t column)
{
    const Case *c = &p->made_from;
    const int64_t at = c_place(p, g, row, column);
    double magnitude = 0, expected = exact(p, g, row, column, &magnitude);
    const double terms = (double)(c->form == GEMM_TN ? c->rows[g] : c->k);
    const double rounding = c->out_dtype == DTYPE_F32 ? 0x1p-24 : 0x1p-8;
    double bound = 2 * terms * 0x1p-23 * magnitude;
    if (c->accumulate)
        expected += element_get(p->c_before, c->out_dtype, at);
    bound += rounding * (fabs(expected) + bound) + 0x1p-126;
    const double found = element_get(p->c.host, c->out_dtype, at);
    if (!(fabs(found - expected) <= bound)) {
        char text[256];
        fail_msg("%s: group %d row %lld column %lld is %.9g, expected %.9g +- %.3g",
                 case_text(c, text, sizeof(text)), g, (long long)row, (long long)column, found,
                 expected, bound);
    }
}

// Every element when that is cheap, else the corners and random ones; about `budget`
// multiplications.
static void check_values(const Product *p, double budget, uint64_t seed)
{
    const Case *c = &p->made_from;
    Numbers numbers = {seed};
    for (int g = 0; g < c->groups; g++) {
        const int64_t rows = c->form == GEMM_TN ? c->m : c->rows[g];
        const double terms = 1.0 + (double)(c->form == GEMM_TN ? c->rows[g] : c->k);
        const double affordable = budget / c->groups / terms;
        const bool all = (double)(rows * c->n) <= affordable;
        const int64_t count = rows == 0 ? 0 : all ? rows * c->n : (int64_t)affordable;
        for (int64_t i = 0; i < count; i++) {
            int64_t row = i / c->n, column = i % c->n;
            if (!all) {
                row = i < 4 ? (i & 1) * (rows - 1) : numbers_next(&numbers) % rows;
                column = i < 4 ? (i >> 1) * (c->n - 1) : numbers_next(&numbers) % c->n;
            }
            check_element(p, g, row, column);
        }
    }
}

// Elements that belong to no group keep their bits; the others are numbers.
static void check_places(const Product *p)
{
    const Case *c = &p->made_from;
    const size_t size = (size_t)dtype_bytes(c->out_dtype, 1);
    const int64_t all = p->c_elements + 2 * GUARD_ELEMENTS;
    char *owned = calloc((size_t)all, 1), text[256];
    assert_non_null(owned);
    for (int g = 0; g < c->groups; g++) {
        const int64_t rows = c->form == GEMM_TN ? c->m : c->rows[g];
        if (rows > 0)
            memset(owned + c_place(p, g, 0, 0), 1, (size_t)(rows * c->n));
    }
    for (int64_t i = 0; i < all; i++) {
        const char *now = (const char *)p->c.host + (size_t)i * size;
        const char *before = (const char *)p->c_before + (size_t)i * size;
        const double value = element_get(p->c.host, c->out_dtype, i);
        if (owned[i] && !isfinite(value))
            fail_msg("%s: element %lld of c is %g", case_text(c, text, sizeof(text)),
                     (long long)(i - GUARD_ELEMENTS), value);
        if (!owned[i] && memcmp(now, before, size) != 0)
            fail_msg("%s: element %lld of c belongs to no group, but was written: %g, was %g",
                     case_text(c, text, sizeof(text)), (long long)(i - GUARD_ELEMENTS), value,
                     element_get(p->c_before, c->out_dtype, i));
    }
    free(owned);
}

static void run_case(const Case *c, double budget, uint64_t seed)
{
    const Stream stream = stream_create(DEVICE_CUDA);
    Product p = product_create(c, seed, stream);
    grouped_gemm(&p.args, stream);
    both_download(&p.c, stream);
    check_places(&p);
    check_values(&p, budget, seed);
    product_destroy(&p);
    stream_destroy(stream);
}

// ---- tests
// -------------------------------------------------------------------------------------------------------------

static uint64_t seed_of_run(void)
{
    const char *given = getenv("MESHWORK_TEST_SEED");
    const uint64_t seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    print_message("MESHWORK_TEST_SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

#define ODD_ROWS .groups = 12, .rows = {0, 1, 7, 63, 64, 65, 127, 0, 129, 128, 200, 0}

// Sizes on both sides of every tile, chunk and step; one width in each row needs 128 columns or
// fewer of a tile.
static const Case base_cases[] = {
    {.form = GEMM_NT, .m = 0, .n = 256, .k = 64, .align = 8, ODD_ROWS},
    {.form = GEMM_NT, .m = 0, .n = 392, .k = 200, .align = 1, .a_extra = 8, ODD_ROWS},
    {.form = GEMM_NT, .m = 0, .n = 8, .k = 8, .align = 128, ODD_ROWS},
    {.form = GEMM_NT, .m = 0, .n = 37, .k = 53, .align = 1, .a_extra = 3, ODD_ROWS},
    {.form = GEMM_NT, .m = 0, .n = 640, .k = 1000, .align = 16, .groups = 2, .rows = {1000, 3}},
    {.form = GEMM_NN, .m = 0, .n = 256, .k = 64, .align = 8, ODD_ROWS},
    {.form = GEMM_NN, .m = 0, .n = 392, .k = 200, .align = 1, .a_extra = 8, ODD_ROWS},
    {.form = GEMM_NN, .m = 0, .n = 8, .k = 8, .align = 128, ODD_ROWS},
    {.form = GEMM_NN, .m = 0, .n = 37, .k = 53, .align = 1, .a_extra = 3, ODD_ROWS},
    {.form = GEMM_NN, .m = 0, .n = 640, .k = 1000, .align = 16, .groups = 2, .rows = {1000, 3}},
    {.form = GEMM_TN, .m = 128, .n = 256, .align = 8, ODD_ROWS},
    {.form = GEMM_TN, .m = 200, .n = 392, .align = 1, .a_extra = 8, .b_extra = 16, ODD_ROWS},
    {.form = GEMM_TN, .m = 8, .n = 8, .align = 128, ODD_ROWS},
    {.form = GEMM_TN, .m = 37, .n = 53, .align = 1, .a_extra = 3, .b_extra = 1, ODD_ROWS},
    {.form = GEMM_TN, .m = 320, .n = 640, .align = 16, .groups = 2, .rows = {1000, 3}},
};

typedef struct Types {
    DType dtype, out_dtype;
    bool accumulate;
} Types;
static const Types types[] = {
    {DTYPE_BF16, DTYPE_BF16, false}, {DTYPE_BF16, DTYPE_F32, false}, {DTYPE_BF16, DTYPE_F32, true},
    {DTYPE_F32, DTYPE_F32, false},   {DTYPE_F32, DTYPE_F32, true},
};

static void test_small_shapes(void **state)
{
    (void)state;
    uint64_t seed = seed_of_run();
    for (size_t i = 0; i < COUNT_OF(base_cases); i++) {
        for (size_t t = 0; t < COUNT_OF(types); t++) {
            for (int gathered = 0; gathered < (base_cases[i].form == GEMM_TN ? 4 : 2); gathered++) {
                Case c = base_cases[i];
                c.dtype = types[t].dtype;
                c.out_dtype = types[t].out_dtype;
                c.accumulate = types[t].accumulate;
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
        Case c = {.form = (GemmForm)(i % 3),
                  .dtype = t->dtype,
                  .out_dtype = t->out_dtype,
                  .accumulate = t->accumulate,
                  .a_gathered = numbers_next(&numbers) % 2,
                  .b_gathered = i % 3 == GEMM_TN && numbers_next(&numbers) % 2,
                  .m = unit * (1 + numbers_next(&numbers) % (400 / unit)),
                  .n = unit * (1 + numbers_next(&numbers) % (600 / unit)),
                  .k = unit * (1 + numbers_next(&numbers) % (500 / unit)),
                  .align = 1 << numbers_next(&numbers) % 8,
                  .groups = 1 + numbers_next(&numbers) % GROUPS_MAX};
        for (int g = 0; g < c.groups; g++)
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
            Case c = {.form = (GemmForm)form,
                      .dtype = DTYPE_BF16,
                      .out_dtype = form == GEMM_TN ? DTYPE_F32 : DTYPE_BF16,
                      .a_gathered = gathered,
                      .m = 1408,
                      .n = 2048 + 128,
                      .k = 1408,
                      .align = 8,
                      .groups = 9};
            for (int g = 0; g < c.groups; g++)
                c.rows[g] = g == 4 ? 2500 : 77 * g;
            run_case(&c, 2e7, seed++);
        }
    }
}

// f32 is one chain of fused steps in the order of the definition: the bits of the CPU row.
static void test_f32_has_the_bits_of_the_cpu(void **state)
{
    (void)state;
    uint64_t seed = seed_of_run();
    for (size_t i = 0; i < COUNT_OF(base_cases); i++) {
        Case c = base_cases[i];
        c.dtype = c.out_dtype = DTYPE_F32;
        if (c.groups == 2) // too long for plain loops
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
    const Case one = {.form = form,
                      .dtype = dtype,
                      .out_dtype = DTYPE_F32,
                      .n = 392,
                      .k = 712,
                      .align = 1,
                      .groups = 1,
                      .rows = {300}};
    Case many = one;
    many.groups = 6;
    many.a_gathered = true;
    memcpy(many.rows, (int[]){1, 64, 0, 77, 130, 28}, 6 * sizeof(int));
    Product p = product_create(&one, seed, stream), q = product_create(&many, seed, stream);
    const int64_t weight_bytes = (int64_t)p.b.bytes;
    for (int g = 0; g < many.groups; g++)
        memcpy((char *)q.b.host + g * weight_bytes, p.b.host, (size_t)weight_bytes);
    both_upload(&q.b, stream);
    const int64_t p_first = ((const int32_t *)p.first.host)[0];
    int32_t *index = q.a_index.host;
    int64_t taken = 0;
    for (int g = 0; g < many.groups; g++)
        for (int r = 0; r < many.rows[g]; r++, taken++)
            index[((const int32_t *)q.first.host)[g] + r] = (int32_t)(p_first + taken * 77 % 300);
    assert_int_equal(taken, 300);
    both_upload(&q.a_index, stream);
    q.args.a = p.args.a;
    grouped_gemm(&p.args, stream);
    grouped_gemm(&q.args, stream);
    both_download(&p.c, stream);
    both_download(&q.c, stream);
    taken = 0;
    for (int g = 0; g < many.groups; g++) {
        for (int r = 0; r < many.rows[g]; r++, taken++) {
            const float *x = (const float *)p.c.host + c_place(&p, 0, taken * 77 % 300, 0);
            const float *y = (const float *)q.c.host + c_place(&q, g, r, 0);
            for (int64_t i = 0; i < one.n; i++)
                if (memcmp(x + i, y + i, sizeof(float)) != 0)
                    fail_msg("form %d %s: row %lld column %lld is %.9g in one group and %.9g in "
                             "group %d of %d",
                             (int)form, dtype_row(dtype)->name, (long long)(taken * 77 % 300),
                             (long long)i, x[i], y[i], g, many.groups);
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
        const Case one = {.form = GEMM_TN,
                          .dtype = DTYPE_BF16,
                          .out_dtype = DTYPE_F32,
                          .m = 200,
                          .n = 392,
                          .align = 1,
                          .groups = 1,
                          .rows = {rows}};
        Case many = one;
        many.groups = 3;
        many.a_gathered = many.b_gathered = true;
        memcpy(many.rows, (int[]){131, rows, 55}, 3 * sizeof(int));
        Product p = product_create(&one, seed, stream), q = product_create(&many, seed, stream);
        const int64_t p_first = ((const int32_t *)p.first.host)[0];
        const int64_t q_first = ((const int32_t *)q.first.host)[1];
        for (int32_t r = 0; r < many.rows[0] + many.rows[1] + many.rows[2] + 2; r++) {
            const int64_t at = ((const int32_t *)q.first.host)[0] + r;
            const int64_t row = at - q_first;
            const int64_t source = row >= 0 && row < rows ? p_first + row : p_first;
            ((int32_t *)q.a_index.host)[at] = ((int32_t *)q.b_index.host)[at] = (int32_t)source;
        }
        both_upload(&q.a_index, stream);
        both_upload(&q.b_index, stream);
        q.args.a = p.args.a;
        q.args.b = p.args.b;
        grouped_gemm(&p.args, stream);
        grouped_gemm(&q.args, stream);
        both_download(&p.c, stream);
        both_download(&q.c, stream);
        const float *x = (const float *)p.c.host + c_place(&p, 0, 0, 0);
        const float *y = (const float *)q.c.host + c_place(&q, 1, 0, 0);
        for (int64_t e = 0; e < one.m * one.n; e++)
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
        const Case c = {.form = (GemmForm)form,
                        .dtype = DTYPE_BF16,
                        .out_dtype = DTYPE_BF16,
                        .m = 136,
                        .n = 264,
                        .k = 72,
                        .align = 200,
                        .groups = 4,
                        .rows = {199, 199, 199, 199}};
        Product p = product_create(&c, numbers_next(&numbers), stream);
        graph_begin(stream);
        grouped_gemm(&p.args, stream);
        const Graph captured = graph_end(stream);
        Graph graph = captured;
        for (int round = 0; round < 4; round++) {
            for (int g = 0; g < c.groups; g++)
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

static void test_nothing_to_do(void **state)
{
    (void)state;
    const uint64_t seed = seed_of_run();
    for (int form = 0; form < 3; form++) {
        const Case empty = {.form = (GemmForm)form,
                            .dtype = DTYPE_BF16,
                            .out_dtype = DTYPE_F32,
                            .m = 16,
                            .n = 24,
                            .k = 8,
                            .align = 1,
                            .groups = 3,
                            .rows = {0, 0, 0}};
        run_case(&empty, 4e6, seed); // TN: zeros
        Case added = empty;
        added.accumulate = true;
        run_case(&added, 4e6, seed); // TN: c stays
    }
}

int main(void)
{
    char why[DEVICE_TEXT_BYTES];
    if (device_count(DEVICE_CUDA, why, sizeof(why)) == 0) {
        print_message("skipped: no CUDA device: %s\n", why);
        return EXIT_CODE_SKIPPED;
    }
    device_select(DEVICE_CUDA, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_shapes),
        cmocka_unit_test(test_random_shapes),
        cmocka_unit_test(test_many_tiles),
        cmocka_unit_test(test_f32_has_the_bits_of_the_cpu),
        cmocka_unit_test(test_bits_do_not_depend_on_place),
        cmocka_unit_test(test_gradient_bits_do_not_depend_on_neighbours),
        cmocka_unit_test(test_sizes_change_under_a_graph),
        cmocka_unit_test(test_nothing_to_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
