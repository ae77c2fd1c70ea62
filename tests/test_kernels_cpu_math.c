// The exponential and the sigmoid of the CPU rows against double precision, over all magnitudes,
// with subnormals, zeros, infinities and NaN; blocks of bf16 against single values.
#include "kernels/cpu_math.h"
#include "tests/kernels_data.h"

// Distance in units of the last place of the exact value, which for subnormals is 2^-149.
static double ulps(double ours, double exact)
{
    int exponent;
    frexp(exact, &exponent);
    double unit = exact == 0 ? 0x1p-149 : ldexp(1.0, exponent - 24);
    return fabs(ours - exact) / (unit < 0x1p-149 ? 0x1p-149 : unit);
}

static void exponential_is_close(void **state)
{
    (void)state;
    Data data = data_create();
    for (int i = 0; i < 400000; i++) {
        // Uniform over 0 .. -110, and over all magnitudes.
        float x = i % 2 ? -110.0f * random_uniform(data.seed, 3, (uint64_t)i)
                        : -ldexpf(1.0f + random_uniform(data.seed, 3, (uint64_t)i), i % 60 - 50);
        double exact = exp((double)x), ours = cpu_exp_negative(x);
        if (ulps(ours, exact) > 1.1)
            fail_msg("exp(%.9g) = %.9g, expected %.9g: %.3f ulp > 1.1", (double)x, ours, exact,
                     ulps(ours, exact));
    }
    expect_same(cpu_exp_negative(0.0f), 1.0f, "exp(0)", 0);
    expect_same(cpu_exp_negative(-0.0f), 1.0f, "exp(-0)", 0);
    expect_same(cpu_exp_negative(-INFINITY), 0.0f, "exp(-inf)", 0);
    expect_same(cpu_exp_negative(-1e30f), 0.0f, "exp(-1e30)", 0);
    expect_same(cpu_exp_negative(NAN), NAN, "exp(NaN)", 0);
    data_destroy(&data);
}

static void sigmoid_is_close_at_both_ends(void **state)
{
    (void)state;
    Data data = data_create();
    for (int i = 0; i < 400000; i++) {
        float z = (random_uniform(data.seed, 4, (uint64_t)i) - 0.5f) * (i % 2 ? 220.0f : 4.0f);
        double exact = 1.0 / (1.0 + exp(-(double)z)), ours = cpu_sigmoid(z);
        if (ulps(ours, exact) > 2.5)
            fail_msg("sigmoid(%.9g) = %.9g, expected %.9g: %.3f ulp > 2.5", (double)z, ours, exact,
                     ulps(ours, exact));
    }
    expect_same(cpu_sigmoid(0.0f), 0.5f, "sigmoid(0)", 0);
    expect_same(cpu_sigmoid(INFINITY), 1.0f, "sigmoid(inf)", 0);
    expect_same(cpu_sigmoid(-INFINITY), 0.0f, "sigmoid(-inf)", 0);
    expect_same(cpu_sigmoid(NAN), NAN, "sigmoid(NaN)", 0);
    data_destroy(&data);
}

static void blocks_convert_like_single_values(void **state)
{
    (void)state;
    Data data = data_create();
    enum { COUNT = 300 };
    uint16_t *bf16 = data_poisoned(&data, COUNT, sizeof(uint16_t));
    float *value = data_poisoned(&data, COUNT, sizeof(float)), back[COUNT];
    for (int i = 0; i < COUNT; i++) {
        RandomBlock block = random_block(data.seed, 5, (uint64_t)i);
        memcpy(&value[i], &block.word[0], sizeof(float)); // any bits: NaN and infinities too
    }
    cpu_store_block(bf16, DTYPE_BF16, 0, COUNT, value);
    cpu_load_block(bf16, DTYPE_BF16, 0, COUNT, back);
    cpu_round_block(value, DTYPE_BF16, COUNT);
    for (int i = 0; i < COUNT; i++) {
        expect_same(back[i], f32_from_bf16(bf16[i]), "load", i);
        expect_same(value[i], back[i], "round", i);
        expect_equal(bf16[i], bf16_from_f32(value[i]), "store", i);
    }
    data_destroy(&data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exponential_is_close),
        cmocka_unit_test(sigmoid_is_close_at_both_ends),
        cmocka_unit_test(blocks_convert_like_single_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
