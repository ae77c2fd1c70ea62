// e4m3fn: every encoder over all 2^32 floats against its definition.
// labels: slow
#include "tests/format_cases.h"

static void all_floats_round_as_defined(void **state)
{
    (void)state;
    expect_all_floats(format_named("e4m3fn"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_floats_round_as_defined)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
