// gemm_product.h -- one grouped product on the GPU with everything around it that could go wrong,
// for the tests of the CUDA row: random numbers where groups are, NaN in padding, between rows and
// in rows no index names, poison or known values in c and on both sides of it, and the exact sums
// in double.
#pragma once

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

// ---- host and device copies of one array ----

typedef struct Both {
    void *host, *device;
    uint64_t bytes;
} Both;

static inline Both both_create(uint64_t bytes)
{
    Both both = {malloc(bytes + 16), device_allocate(DEVICE_CUDA, bytes + 16), bytes};
    assert_non_null(both.host);
    memset(both.host, POISON_BYTE, bytes);
    return both;
}

static inline void both_destroy(Both *both)
{
    free(both->host);
    device_free(DEVICE_CUDA, both->device);
}

static inline void both_upload(const Both *both, Stream stream)
{
    device_copy(both->device, both->host, both->bytes, stream);
    stream_wait(stream);
}

static inline void both_download(const Both *both, Stream stream)
{
    device_copy(both->host, both->device, both->bytes, stream);
    stream_wait(stream);
}

// ---- numbers ----

typedef struct Numbers {
    uint64_t state;
} Numbers;

static inline uint32_t numbers_next(Numbers *numbers)
{
    numbers->state = numbers->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(numbers->state >> 32);
}

static inline void element_put(void *data, DType dtype, int64_t at, float value)
{
    if (dtype == DTYPE_F32)
        ((float *)data)[at] = value;
    else
        ((uint16_t *)data)[at] = bf16_from_f32(value);
}

static inline double element_get(const void *data, DType dtype, int64_t at)
{
    return dtype == DTYPE_F32 ? ((const float *)data)[at]
                              : f32_from_bf16(((const uint16_t *)data)[at]);
}

// Random values over a few powers of two, both signs.
static inline void fill(void *data, DType dtype, int64_t first, int64_t count, Numbers *numbers)
{
    for (int64_t i = first; i < first + count; i++) {
        const float value = (float)(int32_t)numbers_next(numbers) * 0x1p-31f;
        element_put(data, dtype, i, value * (float)(1 << numbers_next(numbers) % 3));
    }
}

// ---- one product ----

typedef struct Shape {
    GemmForm form;
    int64_t m, n, k;
    int a_extra, b_extra; // elements between the end of a row and the next
    int align;            // groups start at multiples of this
    int groups;
} Shape;

typedef struct Types {
    DType dtype, out_dtype;
    bool accumulate;
} Types;

typedef struct Case {
    DType dtype, out_dtype;
    bool accumulate, a_gathered, b_gathered;
    Shape shape;
    int rows[GROUPS_MAX];
} Case;

typedef struct Product {
    Case made_from;
    GroupedGemm args; // pointers into device memory
    Both first, rows, a, b, c, a_index, b_index;
    int64_t c_elements;
    void *c_before;
} Product;

static inline int64_t first_row(const Product *p, int g)
{
    return ((const int32_t *)p->first.host)[g];
}

static const char *case_text(const Case *c, char *text, size_t bytes)
{
    static const char *const forms[] = {"NT", "NN", "TN"};
    snprintf(text, bytes, "%s %s -> %s%s%s%s m=%lld n=%lld k=%lld groups=%d first rows %d %d %d",
             forms[c->shape.form], dtype_row(c->dtype)->name, dtype_row(c->out_dtype)->name,
             c->accumulate ? " accumulate" : "", c->a_gathered ? " a_index" : "",
             c->b_gathered ? " b_index" : "", (long long)c->shape.m, (long long)c->shape.n,
             (long long)c->shape.k, c->shape.groups, c->rows[0], c->rows[1], c->rows[2]);
    return text;
}

// Where groups begin, with at least one row of padding after each and odd places unless aligned.
static inline int64_t place_groups(const Case *c, int32_t *first, int32_t *rows)
{
    int64_t at = c->shape.align > 1 ? c->shape.align : 3;
    for (int g = 0; g < c->shape.groups; g++) {
        at = (at + c->shape.align - 1) / c->shape.align * c->shape.align;
        first[g] = (int32_t)at;
        rows[g] = c->rows[g];
        at += c->rows[g] + 1;
    }
    return (at + c->shape.align - 1) / c->shape.align * c->shape.align;
}

// A matrix whose rows of the row space are random where a group needs them and NaN everywhere else.
static inline Both make_rows(Product *p, int64_t width, int64_t stride, bool gathered, Both *index,
                             Numbers *numbers)
{
    const int64_t rows_max = p->args.rows_max;
    const int64_t source_rows = gathered ? rows_max + 17 : rows_max;
    Both matrix = both_create((uint64_t)(source_rows * stride) * dtype_bytes(p->args.dtype, 1));
    *index = both_create((uint64_t)rows_max * sizeof(int32_t)); // poisoned: -1 in padding
    const int32_t *first = p->first.host, *rows = p->rows.host;
    for (int g = 0; g < p->args.groups; g++) {
        for (int64_t r = first[g]; r < first[g] + rows[g]; r++) {
            int64_t source = gathered ? numbers_next(numbers) % source_rows : r;
            ((int32_t *)index->host)[r] = (int32_t)source;
            fill(matrix.host, p->args.dtype, source * stride, width, numbers);
        }
    }
    return matrix;
}

static inline Product product_create(const Case *c, uint64_t seed, Stream stream)
{
    Numbers numbers = {seed};
    Product p = {.made_from = *c};
    p.first = both_create(sizeof(int32_t) * (uint64_t)c->shape.groups);
    p.rows = both_create(sizeof(int32_t) * (uint64_t)c->shape.groups);
    const bool tn = c->shape.form == GEMM_TN;
    p.args = (GroupedGemm){.form = c->shape.form,
                           .dtype = c->dtype,
                           .out_dtype = c->out_dtype,
                           .accumulate = c->accumulate,
                           .groups = c->shape.groups,
                           .m = c->shape.m,
                           .n = c->shape.n,
                           .k = c->shape.k,
                           .threads = 1};
    p.args.rows_max = place_groups(c, p.first.host, p.rows.host);
    const int64_t a_width = tn ? c->shape.m : c->shape.k;
    p.args.a_stride = a_width + c->shape.a_extra;
    p.a = make_rows(&p, a_width, p.args.a_stride, c->a_gathered, &p.a_index, &numbers);
    if (tn) {
        p.args.b_stride = c->shape.n + c->shape.b_extra;
        p.b = make_rows(&p, c->shape.n, p.args.b_stride, c->b_gathered, &p.b_index, &numbers);
    } else {
        const int64_t weights = c->shape.groups * c->shape.n * c->shape.k;
        p.b = both_create((uint64_t)weights * dtype_bytes(c->dtype, 1));
        p.b_index = both_create(4);
        fill(p.b.host, c->dtype, 0, weights, &numbers);
    }
    p.c_elements = tn ? c->shape.groups * c->shape.m * c->shape.n : p.args.rows_max * c->shape.n;
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

static inline void product_run(Product *p, Stream stream)
{
    grouped_gemm(&p->args, stream);
    both_download(&p->c, stream);
}

static inline void product_destroy(Product *p)
{
    Both *const all[] = {&p->first, &p->rows, &p->a, &p->b, &p->c, &p->a_index, &p->b_index};
    for (size_t i = 0; i < COUNT_OF(all); i++)
        both_destroy(all[i]);
    free(p->c_before);
}

// The sum of products, and of their magnitudes, for element (row, column) of group g: row of the
// group or of m.
static inline double exact(const Product *p, int g, int64_t row, int64_t column, double *magnitude)
{
    const Case *c = &p->made_from;
    const int64_t first = first_row(p, g);
    const int32_t *a_index = p->a_index.host, *b_index = p->b_index.host;
    const int64_t terms = c->shape.form == GEMM_TN ? c->rows[g] : c->shape.k;
    double sum = 0;
    *magnitude = 0;
    for (int64_t t = 0; t < terms; t++) {
        int64_t a_at = 0, b_at = 0;
        if (c->shape.form == GEMM_TN) {
            a_at = a_index[first + t] * p->args.a_stride + row;
            b_at = b_index[first + t] * p->args.b_stride + column;
        } else {
            a_at = a_index[first + row] * p->args.a_stride + t;
            b_at = c->shape.form == GEMM_NT ? (g * c->shape.n + column) * c->shape.k + t
                                            : (g * c->shape.k + t) * c->shape.n + column;
        }
        const double x = element_get(p->a.host, c->dtype, a_at);
        const double y = element_get(p->b.host, c->dtype, b_at);
        sum += x * y;
        *magnitude += fabs(x * y);
    }
    return sum;
}

static inline int64_t c_place(const Product *p, int g, int64_t row, int64_t column)
{
    const Case *c = &p->made_from;
    const int64_t c_row = c->shape.form == GEMM_TN ? g * c->shape.m + row : first_row(p, g) + row;
    return GUARD_ELEMENTS + c_row * c->shape.n + column;
}

static inline void check_element(const Product *p, int g, int64_t row, int64_t column)
{
    const Case *c = &p->made_from;
    const int64_t at = c_place(p, g, row, column);
    double magnitude = 0, expected = exact(p, g, row, column, &magnitude);
    const double terms = (double)(c->shape.form == GEMM_TN ? c->rows[g] : c->shape.k);
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
static inline void check_values(const Product *p, double budget, uint64_t seed)
{
    const Case *c = &p->made_from;
    Numbers numbers = {seed};
    for (int g = 0; g < c->shape.groups; g++) {
        const int64_t rows = c->shape.form == GEMM_TN ? c->shape.m : c->rows[g];
        const double terms = 1.0 + (double)(c->shape.form == GEMM_TN ? c->rows[g] : c->shape.k);
        const double affordable = budget / c->shape.groups / terms;
        const bool all = (double)(rows * c->shape.n) <= affordable;
        const int64_t count = rows == 0 ? 0 : all ? rows * c->shape.n : (int64_t)affordable;
        for (int64_t i = 0; i < count; i++) {
            int64_t row = i / c->shape.n, column = i % c->shape.n;
            if (!all) {
                row = i < 4 ? (i & 1) * (rows - 1) : numbers_next(&numbers) % rows;
                column = i < 4 ? (i >> 1) * (c->shape.n - 1) : numbers_next(&numbers) % c->shape.n;
            }
            check_element(p, g, row, column);
        }
    }
}

// Elements that belong to no group keep their bits; the others are numbers.
static inline void check_places(const Product *p)
{
    const Case *c = &p->made_from;
    const size_t size = (size_t)dtype_bytes(c->out_dtype, 1);
    const int64_t all = p->c_elements + 2 * GUARD_ELEMENTS;
    char *owned = calloc((size_t)all, 1), text[256];
    assert_non_null(owned);
    for (int g = 0; g < c->shape.groups; g++) {
        const int64_t rows = c->shape.form == GEMM_TN ? c->shape.m : c->rows[g];
        if (rows > 0)
            memset(owned + c_place(p, g, 0, 0), 1, (size_t)(rows * c->shape.n));
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

static inline void run_case(const Case *c, double budget, uint64_t seed)
{
    const Stream stream = stream_create(DEVICE_CUDA);
    Product p = product_create(c, seed, stream);
    product_run(&p, stream);
    check_places(&p);
    check_values(&p, budget, seed);
    product_destroy(&p);
    stream_destroy(stream);
}

static inline uint64_t seed_of_run(void)
{
    const char *given = getenv("MESHWORK_TEST_SEED");
    const uint64_t seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    print_message("MESHWORK_TEST_SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

// Sizes on both sides of every tile, chunk and step; some widths need 128 columns or fewer of a
// tile.
static const Shape shapes[] = {
    {GEMM_NT, 0, 256, 64, 0, 0, 8, 12},  {GEMM_NT, 0, 392, 200, 8, 0, 1, 12},
    {GEMM_NT, 0, 8, 8, 0, 0, 128, 12},   {GEMM_NT, 0, 37, 53, 3, 0, 1, 12},
    {GEMM_NT, 0, 640, 1000, 0, 0, 1, 2}, {GEMM_NN, 0, 256, 64, 0, 0, 8, 12},
    {GEMM_NN, 0, 392, 200, 8, 0, 1, 12}, {GEMM_NN, 0, 8, 8, 0, 0, 128, 12},
    {GEMM_NN, 0, 37, 53, 3, 0, 1, 12},   {GEMM_NN, 0, 640, 1000, 0, 0, 1, 2},
    {GEMM_TN, 128, 256, 0, 0, 0, 8, 12}, {GEMM_TN, 200, 392, 0, 8, 16, 1, 12},
    {GEMM_TN, 8, 8, 0, 0, 0, 128, 12},   {GEMM_TN, 37, 53, 0, 3, 1, 1, 12},
    {GEMM_TN, 320, 640, 0, 0, 0, 1, 2},
};

static const Types types[] = {
    {DTYPE_BF16, DTYPE_BF16, false}, {DTYPE_BF16, DTYPE_F32, false}, {DTYPE_BF16, DTYPE_F32, true},
    {DTYPE_F32, DTYPE_F32, false},   {DTYPE_F32, DTYPE_F32, true},
};

// With as many of the odd group sizes as there are groups (2: long and short).
static inline Case case_make(const Shape *shape, const Types *t)
{
    static const int odd_rows[12] = {0, 1, 7, 63, 64, 65, 127, 0, 129, 128, 200, 0};
    static const int long_rows[2] = {1000, 3};
    Case c = {t->dtype, t->out_dtype, t->accumulate, false, false, *shape, {0}};
    memcpy(c.rows, shape->groups == 2 ? long_rows : odd_rows, sizeof(int) * (size_t)shape->groups);
    return c;
}
