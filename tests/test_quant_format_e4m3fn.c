// e4m3fn: the tests of format_cases.h, and these vectors of specifications and headers.
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

int main(void)
{
    return format_test("e4m3fn", vectors, COUNT_OF(vectors));
}
