// bf16: the tests of format_cases.h, and these vectors of specifications and headers.
#include "harness/bf16.h"
#include "tests/format_cases.h"

static const Vector vectors[] = {
    {"torch", 0x3F800000, 0x3F80}, {"torch", 0x7F7F7FFF, 0x7F7F}, {"torch", 0x7F7F8000, 0x7F80},
    {"torch", 0xFFC00001, 0x7FC0}, {"cuda", 0xFFC00001, 0x7FFF},  {"torch", 0x00000001, 0x00},
    {"torch", 0x00008001, 0x01},   {"torch", 0x00008000, 0x00},
};

// Tensors are rounded by harness/bf16.h, without a table: it must be the torch row. All signs and
// exponents and upper mantissas, with what is cut off around its middle and at its ends.
static void the_harness_rounds_like_the_torch_row(void **state)
{
    (void)state;
    static const uint32_t cut_off[] = {0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF};
    const FormatEncoder *torch = format_named("bf16")->encoders;
    assert_string_equal(torch->name, "torch");
    for (uint32_t upper = 0; upper < 1u << 16; upper++)
        for (size_t i = 0; i < COUNT_OF(cut_off); i++) {
            float value = format_f32_value(upper << 16 | cut_off[i]);
            if (bf16_bits_from_f32(value) != torch->encode(value))
                fail_msg("f32 %08X: %X, in the table %X", (unsigned)(upper << 16 | cut_off[i]),
                         (unsigned)bf16_bits_from_f32(value), (unsigned)torch->encode(value));
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_harness_rounds_like_the_torch_row)};
    return format_test("bf16", vectors, COUNT_OF(vectors)) +
           cmocka_run_group_tests(tests, NULL, NULL);
}
