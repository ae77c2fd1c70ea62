// e2m1: every code against the formula, every encoder against its definition where roundings
// differ, and the vectors of the public specifications and headers.
#include "tests/format_cases.h"

static const Vector vectors[] = {
    {"torchao", 0x3E800000, 0x00}, {"torchao", 0x3F400000, 0x02}, {"torchao", 0x3FA00000, 0x02},
    {"torchao", 0x3FE00000, 0x04}, {"torchao", 0x40200000, 0x04}, {"torchao", 0x40600000, 0x06},
    {"torchao", 0x40A00000, 0x06}, {"torchao", 0x3F800000, 0x02}, {"torchao", 0xC0C00000, 0x0F},
    {"torchao", 0x40E00000, 0x07}, {"torchao", 0xBE800000, 0x08}, {"torchao", 0x80000000, 0x08},
    {"torchao", 0x7149F2CA, 0x07}, {"cuda", 0x3E800000, 0x00},    {"cuda", 0x3F400000, 0x02},
    {"cuda", 0x3FA00000, 0x02},    {"cuda", 0x3FE00000, 0x04},    {"cuda", 0x40200000, 0x04},
    {"cuda", 0x40600000, 0x06},    {"cuda", 0x40A00000, 0x06},    {"cuda", 0x3F800000, 0x02},
    {"cuda", 0xC0C00000, 0x0F},    {"cuda", 0x40E00000, 0x07},    {"cuda", 0xBE800000, 0x08},
    {"cuda", 0x80000000, 0x08},    {"cuda", 0x7149F2CA, 0x07},    {"torchao", 0x3E800001, 0x01},
    {"torchao", 0x3FA00001, 0x03}, {"torchao", 0x40200001, 0x05}, {"torchao", 0x40A00001, 0x07},
    {"cuda", 0x3E800001, 0x01},    {"cuda", 0x3FA00001, 0x03},    {"cuda", 0x40200001, 0x05},
    {"cuda", 0x40A00001, 0x07},    {"torchao", 0x7FC00001, 0x03}, {"torchao", 0xFFC00001, 0x0B},
    {"cuda", 0x7FC00001, 0x07},    {"cuda", 0xFFC00001, 0x07},    {"torchao", 0xFF800000, 0x0F},
    {"cuda", 0x7F800000, 0x07},
};

static void codes_have_the_values_of_the_formula(void **state)
{
    (void)state;
    expect_decoder(format_named("e2m1"));
}

static void encoders_round_as_defined(void **state)
{
    expect_encoders(*state, format_named("e2m1"));
}

static void specified_inputs_give_specified_codes(void **state)
{
    (void)state;
    expect_vectors(format_named("e2m1"), vectors, COUNT_OF(vectors));
}

int main(void)
{
    Data data = data_create();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_have_the_values_of_the_formula),
        cmocka_unit_test_prestate(encoders_round_as_defined, &data),
        cmocka_unit_test(specified_inputs_give_specified_codes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
