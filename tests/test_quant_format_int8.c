// int8: the tests of format_cases.h, and these vectors of specifications and headers.
#include "tests/format_cases.h"

static const Vector vectors[] = {
    {"torchao", 0x42FF0000, 0x7F}, {"torchao", 0xC3000000, 0x80}, {"torchao", 0xC47A0000, 0x80},
    {"torchao", 0x3F000000, 0x00}, {"torchao", 0x3FC00000, 0x02}, {"torchao", 0xBF000000, 0x00},
    {"torchao", 0xBFC00000, 0xFE}, {"torchao", 0xC0200000, 0xFE}, {"torchao", 0x42FD0000, 0x7E},
    {"torchao", 0x7FC00001, 0x00}, {"torchao", 0x7F800000, 0x7F}, {"torchao", 0xFF800000, 0x80},
};

int main(void)
{
    return format_test("int8", vectors, COUNT_OF(vectors));
}
