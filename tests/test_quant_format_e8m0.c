// e8m0: every code against the formula, every encoder against its definition where roundings
// differ, and the vectors of the public specifications and headers.
#include "tests/format_cases.h"

static const Vector vectors[] = {
    {"torch", 0x7FC00001, 0xFF},         {"ocp_floor", 0x7FC00001, 0xFF},
    {"cuda_rz", 0x7FC00001, 0xFF},       {"cuda_rz_nosat", 0x7FC00001, 0xFF},
    {"cuda_rp", 0x7FC00001, 0xFF},       {"cuda_rp_nosat", 0x7FC00001, 0xFF},
    {"torchao_rceil", 0x7FC00001, 0xFF}, {"torch", 0xFFC00001, 0xFF},
    {"ocp_floor", 0xFFC00001, 0xFF},     {"cuda_rz", 0xFFC00001, 0xFF},
    {"cuda_rz_nosat", 0xFFC00001, 0xFF}, {"cuda_rp", 0xFFC00001, 0xFF},
    {"cuda_rp_nosat", 0xFFC00001, 0xFF}, {"torchao_rceil", 0xFFC00001, 0xFF},
    {"torch", 0x7F800000, 0xFF},         {"ocp_floor", 0x7F800000, 0xFF},
    {"cuda_rz", 0x7F800000, 0xFE},       {"cuda_rz_nosat", 0x7F800000, 0xFF},
    {"cuda_rp", 0x7F800000, 0xFE},       {"cuda_rp_nosat", 0x7F800000, 0xFF},
    {"torchao_rceil", 0x7F800000, 0xFF}, {"torch", 0x00000000, 0x00},
    {"ocp_floor", 0x00000000, 0x00},     {"cuda_rz", 0x00000000, 0x00},
    {"cuda_rz_nosat", 0x00000000, 0x00}, {"cuda_rp", 0x00000000, 0x00},
    {"cuda_rp_nosat", 0x00000000, 0x00}, {"torchao_rceil", 0x00000000, 0x00},
    {"torch", 0x00000001, 0x00},         {"ocp_floor", 0x00000001, 0x00},
    {"cuda_rz", 0x00000001, 0x00},       {"cuda_rz_nosat", 0x00000001, 0x00},
    {"cuda_rp", 0x00000001, 0x00},       {"cuda_rp_nosat", 0x00000001, 0x00},
    {"torchao_rceil", 0x00000001, 0x00}, {"torch", 0x00400000, 0x00},
    {"ocp_floor", 0x00400000, 0x00},     {"cuda_rz", 0x00400000, 0x00},
    {"cuda_rz_nosat", 0x00400000, 0x00}, {"cuda_rp", 0x00400000, 0x00},
    {"cuda_rp_nosat", 0x00400000, 0x00}, {"torchao_rceil", 0x00400000, 0x00},
    {"torch", 0x00400001, 0x01},         {"ocp_floor", 0x00400001, 0x00},
    {"cuda_rz", 0x00400001, 0x00},       {"cuda_rz_nosat", 0x00400001, 0x00},
    {"cuda_rp", 0x00400001, 0x01},       {"cuda_rp_nosat", 0x00400001, 0x01},
    {"torchao_rceil", 0x00400001, 0x01}, {"torch", 0x00500000, 0x01},
    {"ocp_floor", 0x00500000, 0x00},     {"cuda_rz", 0x00500000, 0x00},
    {"cuda_rz_nosat", 0x00500000, 0x00}, {"cuda_rp", 0x00500000, 0x01},
    {"cuda_rp_nosat", 0x00500000, 0x01}, {"torchao_rceil", 0x00500000, 0x01},
    {"torch", 0x00600000, 0x01},         {"ocp_floor", 0x00600000, 0x00},
    {"cuda_rz", 0x00600000, 0x00},       {"cuda_rz_nosat", 0x00600000, 0x00},
    {"cuda_rp", 0x00600000, 0x01},       {"cuda_rp_nosat", 0x00600000, 0x01},
    {"torchao_rceil", 0x00600000, 0x01}, {"torch", 0x007FFFFF, 0x01},
    {"ocp_floor", 0x007FFFFF, 0x00},     {"cuda_rz", 0x007FFFFF, 0x00},
    {"cuda_rz_nosat", 0x007FFFFF, 0x00}, {"cuda_rp", 0x007FFFFF, 0x01},
    {"cuda_rp_nosat", 0x007FFFFF, 0x01}, {"torchao_rceil", 0x007FFFFF, 0x01},
    {"torch", 0x00800000, 0x01},         {"ocp_floor", 0x00800000, 0x01},
    {"cuda_rz", 0x00800000, 0x01},       {"cuda_rz_nosat", 0x00800000, 0x01},
    {"cuda_rp", 0x00800000, 0x01},       {"cuda_rp_nosat", 0x00800000, 0x01},
    {"torchao_rceil", 0x00800000, 0x01}, {"torch", 0x3F800000, 0x7F},
    {"ocp_floor", 0x3F800000, 0x7F},     {"cuda_rz", 0x3F800000, 0x7F},
    {"cuda_rz_nosat", 0x3F800000, 0x7F}, {"cuda_rp", 0x3F800000, 0x7F},
    {"cuda_rp_nosat", 0x3F800000, 0x7F}, {"torchao_rceil", 0x3F800000, 0x7F},
    {"torch", 0x3FBFFFFF, 0x7F},         {"ocp_floor", 0x3FBFFFFF, 0x7F},
    {"cuda_rz", 0x3FBFFFFF, 0x7F},       {"cuda_rz_nosat", 0x3FBFFFFF, 0x7F},
    {"cuda_rp", 0x3FBFFFFF, 0x80},       {"cuda_rp_nosat", 0x3FBFFFFF, 0x80},
    {"torchao_rceil", 0x3FBFFFFF, 0x80}, {"torch", 0x3FC00000, 0x80},
    {"ocp_floor", 0x3FC00000, 0x7F},     {"cuda_rz", 0x3FC00000, 0x7F},
    {"cuda_rz_nosat", 0x3FC00000, 0x7F}, {"cuda_rp", 0x3FC00000, 0x80},
    {"cuda_rp_nosat", 0x3FC00000, 0x80}, {"torchao_rceil", 0x3FC00000, 0x80},
    {"torch", 0xBFC00000, 0x80},         {"ocp_floor", 0xBFC00000, 0x7F},
    {"cuda_rz", 0xBFC00000, 0x7F},       {"cuda_rz_nosat", 0xBFC00000, 0x7F},
    {"cuda_rp", 0xBFC00000, 0x80},       {"cuda_rp_nosat", 0xBFC00000, 0x80},
    {"torchao_rceil", 0xBFC00000, 0x80}, {"torch", 0x7F3FFFFF, 0xFE},
    {"ocp_floor", 0x7F3FFFFF, 0xFE},     {"cuda_rz", 0x7F3FFFFF, 0xFE},
    {"cuda_rz_nosat", 0x7F3FFFFF, 0xFE}, {"cuda_rp", 0x7F3FFFFF, 0xFE},
    {"cuda_rp_nosat", 0x7F3FFFFF, 0xFF}, {"torchao_rceil", 0x7F3FFFFF, 0xFF},
    {"torch", 0x7F400000, 0xFF},         {"ocp_floor", 0x7F400000, 0xFE},
    {"cuda_rz", 0x7F400000, 0xFE},       {"cuda_rz_nosat", 0x7F400000, 0xFE},
    {"cuda_rp", 0x7F400000, 0xFE},       {"cuda_rp_nosat", 0x7F400000, 0xFF},
    {"torchao_rceil", 0x7F400000, 0xFF}, {"torch", 0x7F7FFFFF, 0xFF},
    {"ocp_floor", 0x7F7FFFFF, 0xFE},     {"cuda_rz", 0x7F7FFFFF, 0xFE},
    {"cuda_rz_nosat", 0x7F7FFFFF, 0xFE}, {"cuda_rp", 0x7F7FFFFF, 0xFE},
    {"cuda_rp_nosat", 0x7F7FFFFF, 0xFF}, {"torchao_rceil", 0x7F7FFFFF, 0xFF},
};

static void codes_have_the_values_of_the_formula(void **state)
{
    (void)state;
    expect_decoder(format_named("e8m0"));
}

static void encoders_round_as_defined(void **state)
{
    expect_encoders(*state, format_named("e8m0"));
}

static void specified_inputs_give_specified_codes(void **state)
{
    (void)state;
    expect_vectors(format_named("e8m0"), vectors, COUNT_OF(vectors));
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
