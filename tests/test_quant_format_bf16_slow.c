// bf16: every encoder over all 2^32 floats against its definition.
// labels: slow
#include "tests/format_cases.h"

int main(void)
{
    return format_test_all_floats("bf16");
}
