// f16: the tests of format_cases.h, and these vectors of specifications and headers.
#include "tests/format_cases.h"

static const Vector vectors[] = {
    {"torch", 0x477FE000, 0x7BFF}, {"torch", 0x477FEFFF, 0x7BFF}, {"torch", 0x477FF000, 0x7C00},
    {"torch", 0xFF800000, 0xFC00}, {"torch", 0x7F800001, 0x7E00}, {"torch", 0xFFFFFFFF, 0xFFFF},
    {"cuda", 0xFF800001, 0x7FFF},  {"cuda", 0xC77FF000, 0xFC00},  {"torch", 0x33000000, 0x00},
    {"torch", 0x33000001, 0x01},   {"torch", 0x80000000, 0x8000},
};

int main(void)
{
    return format_test("f16", vectors, COUNT_OF(vectors));
}
