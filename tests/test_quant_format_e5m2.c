// e5m2: the tests of format_cases.h, and these vectors of specifications and headers.
#include "tests/format_cases.h"

static const Vector vectors[] = {
    {"torch", 0x47600000, 0x7B},          {"torch", 0x476FFFFF, 0x7B},
    {"torch", 0x47700000, 0x7C},          {"torch", 0x7F800000, 0x7C},
    {"torch", 0x7FC00001, 0x7F},          {"torch", 0xFFC00001, 0xFF},
    {"torch_clamp", 0x47700000, 0x7B},    {"torch_clamp", 0xFF800000, 0xFB},
    {"torch_clamp", 0xFFC00001, 0xFF},    {"cuda_satfinite", 0x47700000, 0x7B},
    {"cuda_satfinite", 0x7F800000, 0x7B}, {"cuda_satfinite", 0xFFC00001, 0x7F},
    {"cuda_nosat", 0x47700000, 0x7C},     {"cuda_nosat", 0xFF800000, 0xFC},
    {"cuda_nosat", 0xFFC00001, 0x7F},     {"torch", 0x37000000, 0x00},
    {"torch", 0x37000001, 0x01},          {"torch", 0xB7000000, 0x80},
};

int main(void)
{
    return format_test("e5m2", vectors, COUNT_OF(vectors));
}
