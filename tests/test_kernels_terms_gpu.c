// The CUDA rows of terms_combine and terms_identity against the CPU rows, bit for bit (any NaN for
// a NaN), for every type and operation: empty, odd and long arrays, addresses that allow 16 bytes
// at a time and others, the own term anywhere, results in place.
// labels: gpu
#include "tests/terms_fold.h"
#include "tests/twin.h"

typedef struct CombineCase {
    DType dtype;
    TermsOp op;
    int terms, own_index;
    int64_t count, stride;
    int64_t shift; // elements that every array begins late
    int place;     // of the result: 0 own term, 1 first of the others, 2 apart
} CombineCase;

static Twin twin_terms(Twins *twins, int64_t count, DType dtype)
{
    Twin twin = twin_create(twins, count, dtype_bytes(dtype, 1));
    for (int64_t i = 0; i < count; i++)
        terms_value(twins->seed, twins->drawn++, dtype,
                    (char *)twin.host + (uint64_t)i * dtype_bytes(dtype, 1));
    twin_upload(twins, &twin);
    return twin;
}

static void expect_elements(Twins *twins, Twin *twin, DType dtype, const char *name)
{
    uint64_t size = dtype_bytes(dtype, 1);
    twin_fetch(twins, twin);
    for (uint64_t i = 0; i < twin->bytes / size; i++) {
        const char *cpu = (const char *)twin->host + i * size;
        const char *cuda = (const char *)twin->back + i * size;
        if (!terms_same(dtype, cpu, cuda))
            fail_msg("%s: %s[%llu] is %llx on the CPU, %llx on CUDA", twins->text, name,
                     (unsigned long long)i, terms_bits(dtype, cpu), terms_bits(dtype, cuda));
    }
}

static void combine_case(Twins *twins, const CombineCase *c)
{
    snprintf(twins->text, sizeof(twins->text),
             "terms_combine %s op %d, %d terms of %lld, own %d, stride %lld, shift %lld, place %d",
             dtype_row(c->dtype)->name, (int)c->op, c->terms, (long long)c->count, c->own_index,
             (long long)c->stride, (long long)c->shift, c->place);
    const TwinsMark mark = twins_mark(twins);
    uint64_t late = (uint64_t)c->shift * dtype_bytes(c->dtype, 1);
    Twin own = twin_terms(twins, c->shift + c->count, c->dtype);
    Twin others = twin_terms(twins, c->shift + (c->terms - 1) * c->stride, c->dtype);
    Twin apart = twin_create(twins, c->shift + c->count, dtype_bytes(c->dtype, 1));
    Twin *out = c->place == 0 ? &own : c->place == 1 && c->terms > 1 ? &others : &apart;
    for (int cuda = 0; cuda < 2; cuda++) {
        const TermsCombine args = {
            .dtype = c->dtype,
            .op = c->op,
            .terms = c->terms,
            .own_index = c->own_index,
            .count = c->count,
            .stride = c->stride,
            .own = (const char *)(cuda ? own.device : own.host) + late,
            .others = (const char *)(cuda ? others.device : others.host) + late,
            .out = (char *)(cuda ? out->device : out->host) + late,
        };
        terms_combine(&args, cuda ? twins->cuda : twins->cpu);
    }
    expect_elements(twins, &own, c->dtype, "own");
    expect_elements(twins, &others, c->dtype, "others");
    expect_elements(twins, &apart, c->dtype, "out");
    twins_release(twins, mark);
}

static void test_combine(void **state)
{
    (void)state;
    static const int64_t counts[] = {0, 1, 7, 16, 1000, 4099, 70001};
    static const int term_counts[] = {1, 2, 3, 4, 5, 8, 9};
    Twins twins = twins_create();
    for (int dtype = 0; dtype < DTYPES; dtype++)
        for (int op = 0; op < TERMS_OPS; op++)
            for (int round = 0; round < 14; round++) {
                bool rounds = op == TERMS_AVG && terms_is_integer((DType)dtype);
                if (!terms_has_arithmetic((DType)dtype) || rounds)
                    continue;
                CombineCase c = {.dtype = (DType)dtype, .op = (TermsOp)op};
                c.terms = term_counts[round % 7];
                c.own_index = (int)twins_below(&twins, c.terms);
                c.count = counts[twins_below(&twins, 7)];
                // Even rounds: all of 16 bytes. Odd ones: an odd stride or a late beginning.
                c.stride =
                    round % 2 ? c.count + twins_below(&twins, 5) : (c.count + 255) / 256 * 256;
                c.shift = round % 2 ? twins_below(&twins, 3) : 0;
                c.place = (int)twins_below(&twins, 3);
                combine_case(&twins, &c);
            }
    twins_destroy(&twins);
}

static void test_identity(void **state)
{
    (void)state;
    Twins twins = twins_create();
    for (int dtype = 0; dtype < DTYPES; dtype++)
        for (int product = 0; product < 2; product++)
            for (int64_t count = 0; count < 100000; count = 7 * count + 3) {
                if (!terms_has_arithmetic((DType)dtype))
                    continue;
                snprintf(twins.text, sizeof(twins.text), "terms_identity %s product %d count %lld",
                         dtype_row((DType)dtype)->name, product, (long long)count);
                const TwinsMark mark = twins_mark(&twins);
                Twin out = twin_create(&twins, count + 5, dtype_bytes((DType)dtype, 1));
                for (int cuda = 0; cuda < 2; cuda++) {
                    const TermsIdentity args = {.dtype = (DType)dtype,
                                                .op = product ? TERMS_PRODUCT : TERMS_SUM,
                                                .count = count,
                                                .out = cuda ? out.device : out.host};
                    terms_identity(&args, cuda ? twins.cuda : twins.cpu);
                }
                expect_elements(&twins, &out, (DType)dtype, "out");
                twins_release(&twins, mark);
            }
    twins_destroy(&twins);
}

// Terms so far apart that their elements have no 32-bit index: bytes, 3 GB between the others.
static void test_offsets_beyond_31_bits(void **state)
{
    (void)state;
    enum { COUNT = 1003 };
    const int64_t stride = (int64_t)3 << 30;
    Twins twins = twins_create();
    snprintf(twins.text, sizeof(twins.text), "terms_combine of u8, 3 terms, 2^31.6 apart");
    Twin own = twin_terms(&twins, COUNT, DTYPE_U8), near = twin_terms(&twins, COUNT, DTYPE_U8);
    Twin far = twin_terms(&twins, COUNT, DTYPE_U8), out = twin_create(&twins, COUNT, 1);
    uint8_t *others = ARENA_PUSH(twins.device, uint8_t, stride + COUNT, MEMORY_SCRATCH);
    device_copy(others, near.device, COUNT, twins.cuda);
    device_copy(others + stride, far.device, COUNT, twins.cuda);
    const TermsCombine args = {.dtype = DTYPE_U8,
                               .op = TERMS_SUM,
                               .terms = 3,
                               .count = COUNT,
                               .stride = stride,
                               .own = own.device,
                               .others = others,
                               .out = out.device};
    terms_combine(&args, twins.cuda);
    for (int i = 0; i < COUNT; i++)
        ((uint8_t *)out.host)[i] =
            (uint8_t)(((const uint8_t *)own.host)[i] + ((const uint8_t *)near.host)[i] +
                      ((const uint8_t *)far.host)[i]);
    expect_elements(&twins, &out, DTYPE_U8, "out");
    twins_destroy(&twins);
}

int main(void)
{
    if (!select_gpu())
        return EXIT_CODE_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_combine),
        cmocka_unit_test(test_identity),
        cmocka_unit_test(test_offsets_beyond_31_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
