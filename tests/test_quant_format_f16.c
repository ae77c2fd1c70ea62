// f16: every code against the formula, every encoder against its definition where roundings differ,
// and the vectors of the public specifications and headers.
#include "tests/format_cases.h"

static const Vector vectors[] = {
    {"torch", 0x477FE000, 0x7BFF}, {"torch", 0x477FEFFF, 0x7BFF}, {"torch", 0x477FF000, 0x7C00},
    {"torch", 0xFF800000, 0xFC00}, {"torch", 0x7F800001, 0x7E00}, {"torch", 0xFFFFFFFF, 0xFFFF},
    {"cuda", 0xFF800001, 0x7FFF},  {"cuda", 0xC77FF000, 0xFC00},  {"torch", 0x33000000, 0x00},
    {"torch", 0x33000001, 0x01},   {"torch", 0x80000000, 0x8000},
};

static void codes_have_the_values_of_the_formula(void **state)
{
    (void)state;
    expect_decoder(format_named("f16"));
}

static void encoders_round_as_defined(void **state)
{
    expect_encoders(*state, format_named("f16"));
}

static void specified_inputs_give_specified_codes(void **state)
{
    (void)state;
    expect_vectors(format_named("f16"), vectors, COUNT_OF(vectors));
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
