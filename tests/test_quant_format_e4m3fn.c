// e4m3fn: every code against the formula, every encoder against its definition where roundings
// differ, and the vectors of the public specifications and headers.
#include "tests/format_cases.h"

static const Vector vectors[] = {
    {"torch_clamp", 0x43E00000, 0x7E},    {"torch", 0x43E00000, 0x7E},
    {"cuda_satfinite", 0x43E00000, 0x7E}, {"cuda_nosat", 0x43E00000, 0x7E},
    {"torch", 0x43E80000, 0x7E},          {"cuda_nosat", 0x43E80000, 0x7E},
    {"torch", 0x43E80001, 0x7F},          {"torch", 0x43F00000, 0x7F},
    {"torch", 0x7F800000, 0x7F},          {"torch", 0xFF800000, 0xFF},
    {"torch", 0x7FC00001, 0x7F},          {"torch", 0xFFC00001, 0xFF},
    {"torch_clamp", 0x43F00000, 0x7E},    {"torch_clamp", 0x7F800000, 0x7E},
    {"torch_clamp", 0xFF800000, 0xFE},    {"torch_clamp", 0x7FC00001, 0x7F},
    {"torch_clamp", 0xFFC00001, 0xFF},    {"cuda_satfinite", 0x43E80001, 0x7E},
    {"cuda_satfinite", 0x7F800000, 0x7E}, {"cuda_satfinite", 0x7FC00001, 0x7F},
    {"cuda_satfinite", 0xFFC00001, 0x7F}, {"cuda_nosat", 0x43F00000, 0x7F},
    {"cuda_nosat", 0xC3F00000, 0xFF},     {"cuda_nosat", 0x7F800000, 0x7F},
    {"cuda_nosat", 0xFFC00001, 0x7F},     {"torch", 0x3A800000, 0x00},
    {"torch", 0x3A800001, 0x01},          {"torch", 0x80000000, 0x80},
    {"torch", 0xBA800000, 0x80},
};

static void codes_have_the_values_of_the_formula(void **state)
{
    (void)state;
    expect_decoder(format_named("e4m3fn"));
}

static void encoders_round_as_defined(void **state)
{
    expect_encoders(*state, format_named("e4m3fn"));
}

static void specified_inputs_give_specified_codes(void **state)
{
    (void)state;
    expect_vectors(format_named("e4m3fn"), vectors, COUNT_OF(vectors));
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
