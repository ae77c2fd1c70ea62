// bf16: every code against the formula, every encoder against its definition where roundings
// differ, and the vectors of the public specifications and headers.
#include "tests/format_cases.h"

static const Vector vectors[] = {
    {"torch", 0x3F800000, 0x3F80}, {"torch", 0x7F7F7FFF, 0x7F7F}, {"torch", 0x7F7F8000, 0x7F80},
    {"torch", 0xFFC00001, 0x7FC0}, {"cuda", 0xFFC00001, 0x7FFF},  {"torch", 0x00000001, 0x00},
    {"torch", 0x00008001, 0x01},   {"torch", 0x00008000, 0x00},
};

static void codes_have_the_values_of_the_formula(void **state)
{
    (void)state;
    expect_decoder(format_named("bf16"));
}

static void encoders_round_as_defined(void **state)
{
    expect_encoders(*state, format_named("bf16"));
}

static void specified_inputs_give_specified_codes(void **state)
{
    (void)state;
    expect_vectors(format_named("bf16"), vectors, COUNT_OF(vectors));
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
