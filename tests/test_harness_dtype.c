// The table of element types, and the 16-bit floats against definitions written another way.
#include "harness/bf16.h"
#include "harness/check.h"
#include "harness/dtype.h"
#include "tests/capture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

// Bits as the specification lists them, beside the table's own.
static const struct {
    const char *tag;
    int bits;
} specified[] = {
    {"BOOL", 8},        {"U8", 8},          {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8},
    {"F8_E8M0", 8},     {"I16", 16},        {"U16", 16}, {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},        {"F32", 32}, {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64},        {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6},
    {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8},
};

static void every_tag_is_there_with_its_bits(void **state)
{
    (void)state;
    assert_int_equal(COUNT_OF(specified), DTYPES);
    for (size_t i = 0; i < COUNT_OF(specified); i++) {
        DType by_tag = DTYPES, by_name = DTYPES;
        if (!dtype_find_tag(specified[i].tag, &by_tag))
            fail_msg("no dtype has the tag %s", specified[i].tag);
        assert_int_equal(dtype_row(by_tag)->bits, specified[i].bits);
        assert_true(dtype_find_name(dtype_row(by_tag)->name, &by_name));
        assert_int_equal(by_name, by_tag);
    }
    DType untouched = DTYPE_U16;
    assert_false(dtype_find_tag("f32", &untouched)); // tags are upper case
    assert_false(dtype_find_tag("", &untouched));
    assert_false(dtype_find_name("F32", &untouched));
    assert_int_equal(untouched, DTYPE_U16);
    assert_true(dtype_row(DTYPE_F32)->computes && dtype_row(DTYPE_BF16)->computes);
    assert_false(dtype_row(DTYPE_F64)->computes);
}

static void die_unknown_dtype(void *context)
{
    dtype_row(*(const DType *)context);
}

static void a_dtype_out_of_range_stops(void **state)
{
    (void)state;
    DType beyond = DTYPES;
    Captured end = capture(die_unknown_dtype, &beyond);
    assert_int_equal(end.exit_code, EXIT_CODE_INTERNAL);
    ASSERT_CONTAINS(end.text, "dtype 22 is not in 0 .. 21");
}

static void bytes_round_up_and_do_not_overflow(void **state)
{
    (void)state;
    for (uint64_t elements = 0; elements < 40; elements++) {
        assert_int_equal(dtype_bytes(DTYPE_F4, elements), (elements * 4 + 7) / 8);
        assert_int_equal(dtype_bytes(DTYPE_F6_E2M3, elements), (elements * 6 + 7) / 8);
        assert_int_equal(dtype_bytes(DTYPE_BF16, elements), elements * 2);
        assert_int_equal(dtype_bytes(DTYPE_C64, elements), elements * 8);
    }
    // 2^61 - 1 elements of 64 bits: their number of bits does not fit 64, their number of bytes
    // does.
    uint64_t most = (UINT64_C(1) << 61) - 1;
    assert_true(dtype_bytes(DTYPE_F64, most) == most * 8);
    assert_true(dtype_bytes(DTYPE_F4, most) == (most + 1) / 2);
}

static float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

// The definition: the nearer of the two bf16 neighbours, on a tie the even one; beyond the last the
// spacing goes on.
static uint16_t bf16_by_distance(float value)
{
    if (isnan(value))
        return 0x7FC0;
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    if (isinf(value))
        return (uint16_t)(sign | 0x7F80);
    double magnitude = fabs((double)value);
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    uint16_t low = (uint16_t)((bits & 0x7FFFFFFFu) >> 16);
    double below = float_of((uint32_t)low << 16);
    double above = low == 0x7F7F ? 0x1p128 : (double)float_of((uint32_t)(low + 1) << 16);
    double to_below = magnitude - below, to_above = above - magnitude;
    bool up = to_above < to_below || (to_above == to_below && (low & 1));
    return (uint16_t)(sign | (low + up));
}

static void expect_bf16(uint32_t bits)
{
    uint16_t expected = bf16_by_distance(float_of(bits)), found = bf16_from_f32(float_of(bits));
    if (found != expected)
        fail_msg("f32 %08X gives bf16 %04X, expected %04X", bits, found, expected);
}

static void bf16_is_the_nearest_and_ties_go_to_even(void **state)
{
    (void)state;
    static const uint32_t lows[] = {0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF};
    for (uint32_t high = 0; high < 65536; high++)
        for (size_t i = 0; i < COUNT_OF(lows); i++)
            expect_bf16(high << 16 | lows[i]);
    srandom((unsigned)time(NULL));
    for (int i = 0; i < 300000; i++)
        expect_bf16((uint32_t)random() << 1 ^ (uint32_t)random());
}

static void bf16_widens_exactly(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        float value = f32_from_bf16((uint16_t)bits);
        uint32_t wide;
        memcpy(&wide, &value, sizeof(wide));
        assert_int_equal(wide, bits << 16);
        assert_int_equal(bf16_from_f32(value), isnan(value) ? 0x7FC0 : bits);
    }
}

static void f16_widens_exactly(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        int exponent = (int)(bits >> 10 & 0x1F), mantissa = (int)(bits & 0x3FF);
        double expected =
            exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
        if (exponent == 31)
            expected = mantissa ? (double)NAN : (double)INFINITY;
        float found = f32_from_f16((uint16_t)bits);
        bool sign = bits >> 15;
        if ((signbit(found) != 0) != sign ||
            (isnan(expected) ? !isnan(found) : fabs(found) != expected))
            fail_msg("f16 %04X is %.9g, expected %s%.9g", bits, (double)found, sign ? "-" : "",
                     expected);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_tag_is_there_with_its_bits),
        cmocka_unit_test(a_dtype_out_of_range_stops),
        cmocka_unit_test(bytes_round_up_and_do_not_overflow),
        cmocka_unit_test(bf16_is_the_nearest_and_ties_go_to_even),
        cmocka_unit_test(bf16_widens_exactly),
        cmocka_unit_test(f16_widens_exactly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
