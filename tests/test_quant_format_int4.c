// int4: the tests of format_cases.h, and these vectors of specifications and headers.
#include "tests/format_cases.h"

static const Vector vectors[] = {
    {"torchao", 0x40F00000, 0x07}, {"torchao", 0xC1000000, 0x08}, {"torchao", 0xC47A0000, 0x08},
    {"torchao", 0x3F000000, 0x00}, {"torchao", 0x3FC00000, 0x02}, {"torchao", 0xBFC00000, 0x0E},
    {"torchao", 0x40D00000, 0x06}, {"torchao", 0x7FC00001, 0x00}, {"torchao", 0xFF800000, 0x08},
};

int main(void)
{
    return format_test("int4", vectors, COUNT_OF(vectors));
}
