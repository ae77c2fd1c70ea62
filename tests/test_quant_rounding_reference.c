// The judge of the encoders is judged: an encoder that is wrong for one float, for infinities, or
// for NaN must be found, in the one place where it is wrong.
#include "quant/format_e4m3fn.h"

#include "tests/format_cases.h"

static const uint32_t wrong_bits[] = {0x3F880000, 0xBF880001, 0x43E80001, 0xFF800000, 0x7FC12345};
static const uint32_t wrong_kinds = COUNT_OF(wrong_bits);

static uint32_t wrong_at(float value, uint32_t which)
{
    return format_e4m3fn_encode_torch(value) ^ (format_f32_bits(value) == wrong_bits[which]);
}

#define WRONG(n)                                                                                   \
    static uint32_t encode_wrong_##n(float value)                                                  \
    {                                                                                              \
        return wrong_at(value, n);                                                                 \
    }
WRONG(0)
WRONG(1)
WRONG(2)
WRONG(3)
WRONG(4)

static void one_wrong_float_is_found(void **state)
{
    (void)state;
    uint32_t (*const encode[])(float) = {encode_wrong_0, encode_wrong_1, encode_wrong_2,
                                         encode_wrong_3, encode_wrong_4};
    const Format *format = format_named("e4m3fn");
    FormatEncoder encoder = format->encoders[1];
    assert_string_equal(encoder.name, "torch");
    for (uint32_t i = 0; i < wrong_kinds; i++) {
        encoder.encode = encode[i];
        RoundingReference *reference = rounding_reference_create(format, &encoder);
        RoundingCheck check =
            rounding_reference_check(reference, wrong_bits[i] / ROUNDING_BLOCK_FLOATS, 1);
        assert_true(check.floats == ROUNDING_BLOCK_FLOATS);
        if (check.differences != 1 || check.f32_bits != wrong_bits[i])
            fail_msg("%llu differences, first at %08X, expected one at %08X",
                     (unsigned long long)check.differences, (unsigned)check.f32_bits,
                     (unsigned)wrong_bits[i]);
        assert_int_equal(check.found ^ 1u, check.expected);
        rounding_reference_destroy(reference);
    }
}

// Walking a block and searching the list are two ways to the same code.
static void walking_and_searching_agree(void **state)
{
    Data *data = *state;
    for (const Format *const *row = format_table; *row; row++) {
        RoundingReference *reference = rounding_reference_create(*row, (*row)->encoders);
        int64_t block = data_below(data, ROUNDING_BLOCKS);
        RoundingCheck check = rounding_reference_check(reference, block, 1);
        if (check.differences)
            fail_msg("%s, f32 %08X: walked to %X, encoder gives %X", (*row)->name,
                     (unsigned)check.f32_bits, (unsigned)check.expected, (unsigned)check.found);
        for (uint32_t i = 0; i < 4096; i++)
            expect_code(reference, *row, (*row)->encoders,
                        (uint32_t)block * ROUNDING_BLOCK_FLOATS + 255 * i);
        rounding_reference_destroy(reference);
    }
}

int main(void)
{
    Data data = data_create();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_wrong_float_is_found),
        cmocka_unit_test_prestate(walking_and_searching_agree, &data),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
