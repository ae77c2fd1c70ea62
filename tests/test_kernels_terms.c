// Terms combined in order against plain arithmetic, bit for bit, for every type and operation:
// empty and odd lengths, the own term anywhere, results in place, NaN, and the terms that change
// nothing.
#include "tests/kernels_data.h"
#include "tests/terms_fold.h"

static const int64_t sizes[] = {0, 1, 3, 7, 8, 511, 512, 513, 1500};

static void expect_element(const TermsCombine *args, const char *copy, const char *found,
                           int64_t index)
{
    uint64_t size = dtype_bytes(args->dtype, 1);
    char terms[FOLD_TERMS_MAX][WORD_BYTES] = {0}, expected[WORD_BYTES] = {0};
    for (int term = 0; term < args->terms; term++)
        memcpy(terms[term], copy + (uint64_t)(term * args->stride + index) * size, size);
    fold_terms(args->dtype, args->op, args->terms, (const char(*)[WORD_BYTES])terms, expected);
    if (!terms_same(args->dtype, found, expected))
        fail_msg("%s, op %d, %d terms, [%lld]: found %llx, expected %llx",
                 dtype_row(args->dtype)->name, (int)args->op, args->terms, (long long)index,
                 terms_bits(args->dtype, found), terms_bits(args->dtype, expected));
}

// copy: [terms][stride], all terms in order. The own one is taken out of the row of the others.
static void check_one(Data *data, DType dtype, TermsOp op)
{
    int mark = data->blocks;
    uint64_t size = dtype_bytes(dtype, 1);
    TermsCombine args = {.dtype = dtype,
                         .op = op,
                         .terms = 1 + (int)data_below(data, 9),
                         .count = sizes[data_below(data, COUNT_OF(sizes))]};
    args.own_index = (int)data_below(data, args.terms);
    args.stride = args.count + data_below(data, 20);
    char *copy = data_poisoned(data, args.terms * args.stride, size);
    char *others = data_poisoned(data, (args.terms - 1) * args.stride, size), *next = others;
    char *own = data_poisoned(data, args.count, size), *out = NULL;
    for (int term = 0; term < args.terms; term++) {
        char *row = copy + (uint64_t)(term * args.stride) * size;
        for (int64_t i = 0; i < args.count; i++)
            terms_value(data->seed, data->drawn++, dtype, row + (uint64_t)i * size);
        if (term == args.own_index && args.count > 0)
            memcpy(own, row, (uint64_t)args.count * size);
        if (term != args.own_index && args.stride > 0) {
            memcpy(next, row, (uint64_t)args.stride * size);
            next += (uint64_t)args.stride * size;
        }
    }
    int64_t place = data_below(data, 3);
    out = place == 0 ? own : place == 1 && args.terms > 1 ? others : NULL;
    if (!out)
        out = data_poisoned(data, args.count, size);
    args.own = own;
    args.others = others;
    args.out = out;
    terms_combine(&args, CPU);
    for (int64_t i = 0; i < args.count; i++)
        expect_element(&args, copy, out + (uint64_t)i * size, i);
    data_release(data, mark);
}

static void terms_are_combined_in_order(void **state)
{
    (void)state;
    Data data = data_create();
    for (int dtype = 0; dtype < DTYPES; dtype++)
        for (int op = 0; op < TERMS_OPS; op++) {
            bool rounds = op == TERMS_AVG && terms_is_integer((DType)dtype);
            for (int round = 0; round < 12 && terms_has_arithmetic((DType)dtype) && !rounds;
                 round++)
                check_one(&data, (DType)dtype, (TermsOp)op);
        }
    data_destroy(&data);
}

// Large enough for threads: nothing else changes.
static void long_terms(void **state)
{
    (void)state;
    enum { COUNT = 100003 };
    Data data = data_create();
    float *terms = data_normals(&data, 3 * COUNT, DTYPE_F32, 1);
    float *out = data_poisoned(&data, COUNT, sizeof(float));
    const TermsCombine args = {.dtype = DTYPE_F32,
                               .op = TERMS_SUM,
                               .terms = 3,
                               .own_index = 1,
                               .count = COUNT,
                               .stride = 2 * COUNT,
                               .own = terms + COUNT,
                               .others = terms,
                               .out = out};
    terms_combine(&args, CPU);
    for (int64_t i = 0; i < COUNT; i++) {
        volatile float sum = terms[i] + terms[COUNT + i];
        expect_same(out[i], sum + terms[2 * COUNT + i], "sum", i);
    }
    data_destroy(&data);
}

static void identities_change_nothing(void **state)
{
    (void)state;
    Data data = data_create();
    for (int dtype = 0; dtype < DTYPES; dtype++)
        for (int op = TERMS_SUM; op <= TERMS_PRODUCT; op += TERMS_PRODUCT - TERMS_SUM) {
            enum { COUNT = 37 };
            uint64_t size = dtype_bytes((DType)dtype, 1);
            if (!terms_has_arithmetic((DType)dtype))
                continue;
            char *one = data_poisoned(&data, COUNT + 1, size), values[COUNT * WORD_BYTES];
            const TermsIdentity args = {
                .dtype = (DType)dtype, .op = (TermsOp)op, .count = COUNT, .out = one};
            terms_identity(&args, CPU);
            for (uint64_t byte = 0; byte < size; byte++)
                assert_int_equal((uint8_t)one[COUNT * size + byte], 0xFF);
            for (int i = 0; i < COUNT; i++) {
                do
                    terms_value(data.seed, data.drawn++, (DType)dtype, values + (uint64_t)i * size);
                while (terms_is_nan((DType)dtype, values + (uint64_t)i * size));
            }
            char out[COUNT * WORD_BYTES];
            const TermsCombine combine = {.dtype = (DType)dtype,
                                          .op = (TermsOp)op,
                                          .terms = 2,
                                          .count = COUNT,
                                          .stride = COUNT,
                                          .own = one,
                                          .others = values,
                                          .out = out};
            terms_combine(&combine, CPU);
            if (memcmp(out, values, COUNT * size) != 0)
                fail_msg("%s: the identity of op %d changed a value", dtype_row((DType)dtype)->name,
                         op);
        }
    data_destroy(&data);
}

static void costs(void **state)
{
    (void)state;
    TermsCombine combine = {.dtype = DTYPE_BF16, .op = TERMS_AVG, .terms = 4, .count = 10};
    expect_near(terms_combine_cost(&combine).bytes, 10 * 2 * 5, 0, "bytes", 0);
    expect_near(terms_combine_cost(&combine).flops, 10 * 4, 0, "flops", 0);
    TermsIdentity identity = {.dtype = DTYPE_F64, .count = 10};
    expect_near(terms_identity_cost(&identity).bytes, 80, 0, "bytes", 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(terms_are_combined_in_order),
        cmocka_unit_test(long_terms),
        cmocka_unit_test(identities_change_nothing),
        cmocka_unit_test(costs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
