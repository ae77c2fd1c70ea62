// int8: every code against the formula, every encoder against its definition where roundings
// differ, and the vectors of the public specifications and headers.
#include "tests/format_cases.h"

static const Vector vectors[] = {
    {"torchao", 0x42FF0000, 0x7F}, {"torchao", 0xC3000000, 0x80}, {"torchao", 0xC47A0000, 0x80},
    {"torchao", 0x3F000000, 0x00}, {"torchao", 0x3FC00000, 0x02}, {"torchao", 0xBF000000, 0x00},
    {"torchao", 0xBFC00000, 0xFE}, {"torchao", 0xC0200000, 0xFE}, {"torchao", 0x42FD0000, 0x7E},
    {"torchao", 0x7FC00001, 0x00}, {"torchao", 0x7F800000, 0x7F}, {"torchao", 0xFF800000, 0x80},
};

static void codes_have_the_values_of_the_formula(void **state)
{
    (void)state;
    expect_decoder(format_named("int8"));
}

static void encoders_round_as_defined(void **state)
{
    expect_encoders(*state, format_named("int8"));
}

static void specified_inputs_give_specified_codes(void **state)
{
    (void)state;
    expect_vectors(format_named("int8"), vectors, COUNT_OF(vectors));
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
