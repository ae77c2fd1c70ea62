// Random numbers: the published Philox vectors, a bit-at-a-time second implementation, moments, and
// the promise that a shard holds what the whole tensor holds there.
#include "harness/bf16.h"
#include "harness/random.h"
#include "tests/capture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

static uint64_t fresh_seed(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t seed = (uint64_t)now.tv_sec * 1000003u ^ (uint64_t)now.tv_nsec << 20;
    print_message("seed %llu\n", (unsigned long long)seed);
    return seed;
}

static const struct {
    uint32_t counter[4], key[2], expected[4];
} published[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

static void philox_gives_the_published_vectors(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(published); i++) {
        PhiloxBlock counter;
        memcpy(counter.word, published[i].counter, sizeof(counter.word));
        PhiloxBlock block = philox_block(counter, published[i].key[0], published[i].key[1]);
        for (int word = 0; word < 4; word++)
            assert_int_equal(block.word[word], published[i].expected[word]);
    }
}

// Philox once more, from the paper's description, with long multiplication by 16-bit digits.
static void wide_product(uint32_t a, uint32_t b, uint32_t *high, uint32_t *low)
{
    uint32_t a0 = a & 0xFFFF, a1 = a >> 16, b0 = b & 0xFFFF, b1 = b >> 16;
    uint32_t p00 = a0 * b0, p01 = a0 * b1, p10 = a1 * b0, p11 = a1 * b1;
    uint32_t middle = (p00 >> 16) + (p01 & 0xFFFF) + (p10 & 0xFFFF);
    *low = middle << 16 | (p00 & 0xFFFF);
    *high = p11 + (p01 >> 16) + (p10 >> 16) + (middle >> 16);
}

static double reference_normal(uint64_t seed, uint32_t stream, uint64_t index)
{
    uint32_t c[4] = {(uint32_t)index, (uint32_t)(index >> 32), stream, 0};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        uint32_t high0, low0, high1, low1;
        wide_product(0xD2511F53u, c[0], &high0, &low0);
        wide_product(0xCD9E8D57u, c[2], &high1, &low1);
        uint32_t next[4] = {high1 ^ c[1] ^ key[0], low1, high0 ^ c[3] ^ key[1], low0};
        memcpy(c, next, sizeof(c));
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    double sum = 0;
    for (int word = 0; word < 4; word++)
        sum += (c[word] & 0xFFFF) + (c[word] >> 16);
    return (sum - 8 * 65535.0 / 2) / sqrt(8 * (65536.0 * 65536.0 - 1) / 12);
}

static void values_follow_their_definition(void **state)
{
    (void)state;
    uint64_t seed = fresh_seed();
    srandom((unsigned)seed);
    for (int i = 0; i < 20000; i++) {
        uint32_t stream = (uint32_t)random();
        uint64_t index = (uint64_t)random() << 33 ^ (uint64_t)random();
        double expected = reference_normal(seed, stream, index);
        float found = random_normal(seed, stream, index);
        if (fabs(found - expected) > 1e-7 * fabs(expected))
            fail_msg("normal(%llu, %u, %llu) is %.9g, expected %.9g", (unsigned long long)seed,
                     stream, (unsigned long long)index, (double)found, expected);
        RandomBlock block = random_block(seed, stream, index);
        float uniform = random_uniform(seed, stream, index);
        assert_true(uniform == (float)(block.word[0] >> 8) / 16777216.0f);
        assert_true(uniform >= 0 && uniform < 1);
    }
}

enum { SAMPLES = 1 << 20 };

// Mean of a[i] b[i]; for independent unit normals its deviation is 1 / sqrt(samples).
static double product_mean(const float *a, const float *b, int count)
{
    double sum = 0;
    for (int i = 0; i < count; i++)
        sum += (double)a[i] * (double)b[i];
    return sum / count;
}

static float *make_normals(uint64_t seed, uint32_t stream, int64_t first_row, int64_t columns)
{
    float *out = malloc(SAMPLES * sizeof(float));
    RandomFill fill = {.seed = seed,
                       .stream = stream,
                       .first_row = first_row,
                       .rows = SAMPLES / columns,
                       .columns = columns,
                       .deviation = 1,
                       .dtype = DTYPE_F32,
                       .out = out};
    random_fill(&fill, stream_create(DEVICE_CPU));
    return out;
}

static void expect_near(const char *what, double found, double expected, double deviation)
{
    // Six deviations: a good generator fails once in 5e8 runs.
    if (fabs(found - expected) > 6 * deviation)
        fail_msg("%s is %.6g, expected %.6g +- %.2g", what, found, expected, 6 * deviation);
}

static void moments_and_independence(void **state)
{
    (void)state;
    uint64_t seed = fresh_seed();
    float *a = make_normals(seed, 7, 0, 1024);
    float *other_stream = make_normals(seed, 8, 0, 1024);
    float *other_seed = make_normals(seed + 1, 7, 0, 1024);
    double root = 1 / sqrt((double)SAMPLES), mean = 0, fourth = 0, largest = 0;
    for (int i = 0; i < SAMPLES; i++) {
        mean += (double)a[i] / SAMPLES;
        fourth += pow((double)a[i], 4) / SAMPLES;
        largest = fmax(largest, fabs((double)a[i]));
    }
    expect_near("mean", mean, 0, root);
    expect_near("variance", product_mean(a, a, SAMPLES), 1, root * sqrt(1.85));
    // Irwin-Hall of n has kurtosis 3 - 6 / (5 n); the fourth power's own deviation is below 10.
    expect_near("fourth moment", fourth, 3 - 6.0 / 40, root * 10);
    expect_near("neighbours", product_mean(a, a + 1, SAMPLES - 1), 0, root);
    expect_near("neighbours at 2", product_mean(a, a + 2, SAMPLES - 2), 0, root);
    expect_near("rows", product_mean(a, a + 1024, SAMPLES - 1024), 0, root);
    expect_near("streams", product_mean(a, other_stream, SAMPLES), 0, root);
    expect_near("seeds", product_mean(a, other_seed, SAMPLES), 0, root);
    if (largest >= 4.9 || largest < 4)
        fail_msg("the largest of %d normals is %.6g, expected 4 .. 4.9", SAMPLES, largest);
    free(a);
    free(other_stream);
    free(other_seed);
}

static void uniforms_fill_their_interval(void **state)
{
    (void)state;
    uint64_t seed = fresh_seed();
    enum { BINS = 64, COUNT = 1 << 18 };
    int hits[BINS] = {0};
    for (uint64_t i = 0; i < COUNT; i++)
        hits[(int)(random_uniform(seed, 3, i) * BINS)]++;
    double chi_squared = 0, expected = (double)COUNT / BINS;
    for (int i = 0; i < BINS; i++)
        chi_squared += (hits[i] - expected) * (hits[i] - expected) / expected;
    // 63 degrees of freedom: mean 63, deviation 11.2.
    if (chi_squared > 150 || chi_squared < 20)
        fail_msg("chi squared of %d bins is %.1f, expected about 63", BINS, chi_squared);
}

static float expected_value(const RandomFill *fill, int64_t row, int64_t column)
{
    uint64_t index = (uint64_t)(fill->first_row + row) * (uint64_t)fill->columns + (uint64_t)column;
    float product = fill->deviation * random_normal(fill->seed, fill->stream, index);
    return fill->mean + product;
}

static void check_fill(RandomFill fill)
{
    size_t bytes = dtype_bytes(fill.dtype, (uint64_t)(fill.rows * fill.columns));
    fill.out = malloc(bytes + 1);
    ((char *)fill.out)[bytes] = 0x5A;
    random_fill(&fill, stream_create(DEVICE_CPU));
    assert_int_equal(((char *)fill.out)[bytes], 0x5A);
    for (int64_t i = 0; i < fill.rows * fill.columns; i++) {
        float value = expected_value(&fill, i / fill.columns, i % fill.columns);
        bool bf16 = fill.dtype == DTYPE_BF16;
        float expected = bf16 ? f32_from_bf16(bf16_from_f32(value)) : value;
        float found = bf16 ? f32_from_bf16(((uint16_t *)fill.out)[i]) : ((float *)fill.out)[i];
        if (found != expected)
            fail_msg("%s [%lld, %lld] from row %lld: element %lld is %.9g, expected %.9g",
                     dtype_row(fill.dtype)->name, (long long)fill.rows, (long long)fill.columns,
                     (long long)fill.first_row, (long long)i, (double)found, (double)expected);
    }
    free(fill.out);
}

static void a_shard_holds_what_the_whole_holds_there(void **state)
{
    (void)state;
    uint64_t seed = fresh_seed();
    static const struct {
        int64_t first_row, rows, columns;
    } shapes[] = {
        {0, 1, 1},
        {0, 3, 5},
        {17, 41, 33},
        {5, 1, 1023},
        {5, 1, 1024},
        {5, 1, 1025},
        {1000, 64, 2049},
        {123456789, 7, 0},
        {0, 0, 9},
        // The upper word of the index changes inside the piece, at and off a tile's end.
        {4194303, 3, 1024},
        {4294967290, 13, 1},
        {0xFFFFFFFF, 2, 700},
        {INT64_MAX / 4096, 2, 4096},
    };
    for (size_t i = 0; i < COUNT_OF(shapes); i++)
        for (int bf16 = 0; bf16 < 2; bf16++)
            check_fill((RandomFill){.seed = seed,
                                    .stream = (uint32_t)i,
                                    .first_row = shapes[i].first_row,
                                    .rows = shapes[i].rows,
                                    .columns = shapes[i].columns,
                                    .mean = i % 2 ? 0.25f : 0.0f,
                                    .deviation = i % 3 ? 1.0f / 3 : 1.0f,
                                    .dtype = bf16 ? DTYPE_BF16 : DTYPE_F32});
}

static void die_wrong_dtype(void *context)
{
    RandomFill fill = {.rows = 1, .columns = 1, .dtype = DTYPE_F16, .out = context};
    random_fill(&fill, stream_create(DEVICE_CPU));
}

static void other_dtypes_are_refused(void **state)
{
    (void)state;
    float out = 0;
    Captured end = capture(die_wrong_dtype, &out);
    assert_int_equal(end.exit_code, EXIT_CODE_INTERNAL);
    ASSERT_CONTAINS(end.text, "broken rule: fill->dtype");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_published_vectors),
        cmocka_unit_test(values_follow_their_definition),
        cmocka_unit_test(moments_and_independence),
        cmocka_unit_test(uniforms_fill_their_interval),
        cmocka_unit_test(a_shard_holds_what_the_whole_holds_there),
        cmocka_unit_test(other_dtypes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
