// Tensors: sizes, descriptions, and every element type read as a number, also where it is not
// aligned.
#include "harness/check.h"
#include "harness/tensor.h"
#include "tests/capture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

static void sizes_follow_the_shape(void **state)
{
    (void)state;
    Tensor scalar = {.dtype = DTYPE_F64};
    assert_int_equal(tensor_elements(&scalar), 1);
    assert_int_equal(tensor_bytes(&scalar), 8);
    Tensor empty = {.dtype = DTYPE_F32, .rank = 3, .shape = {4, 0, 9}};
    assert_int_equal(tensor_elements(&empty), 0);
    assert_int_equal(tensor_bytes(&empty), 0);
    Tensor packed = {.dtype = DTYPE_F4, .rank = 2, .shape = {3, 5}};
    assert_int_equal(tensor_bytes(&packed), 8);
    // 524288 x 7168 elements: beyond 2^31.
    Tensor large = {.dtype = DTYPE_BF16, .rank = 2, .shape = {524288, 7168}};
    assert_true(tensor_elements(&large) == INT64_C(3758096384));
    assert_true(tensor_bytes(&large) == UINT64_C(7516192768));
}

static void descriptions_are_readable_and_bounded(void **state)
{
    (void)state;
    char text[64], tiny[8];
    Tensor experts = {.dtype = DTYPE_BF16, .rank = 3, .shape = {60, 1408, 2048}};
    assert_string_equal(tensor_describe(&experts, text, sizeof(text)), "[60, 1408, 2048] bf16");
    Tensor scalar = {.dtype = DTYPE_U8};
    assert_string_equal(tensor_describe(&scalar, text, sizeof(text)), "[] u8");
    assert_string_equal(tensor_describe(&experts, tiny, sizeof(tiny)), "[60, 14");
    Tensor widest = {.dtype = DTYPE_F8_E4M3FNUZ, .rank = TENSOR_RANK_MAX};
    for (int i = 0; i < TENSOR_RANK_MAX; i++)
        widest.shape[i] = INT64_MAX;
    char long_text[256];
    tensor_describe(&widest, long_text, sizeof(long_text));
    assert_string_equal(long_text + strlen(long_text) - 12, " f8_e4m3fnuz");
}

// Codes and values as the OCP tables list them (and FNUZ: bias one higher, 80 is NaN).
static const struct {
    DType dtype;
    uint8_t code;
    double value;
} listed[] = {
    {DTYPE_F8_E4M3, 0x7E, 448},
    {DTYPE_F8_E4M3, 0x01, 0x1p-9},
    {DTYPE_F8_E4M3, 0x08, 0x1p-6},
    {DTYPE_F8_E4M3, 0xFF, NAN},
    {DTYPE_F8_E5M2, 0x7B, 57344},
    {DTYPE_F8_E5M2, 0xFC, -INFINITY},
    {DTYPE_F8_E5M2, 0x7D, NAN},
    {DTYPE_F8_E5M2, 0x83, -0x3p-16},
    {DTYPE_F8_E4M3FNUZ, 0x7F, 240},
    {DTYPE_F8_E4M3FNUZ, 0x80, NAN},
    {DTYPE_F8_E4M3FNUZ, 0x01, 0x1p-10},
    {DTYPE_F8_E5M2FNUZ, 0x7F, 57344},
    {DTYPE_F8_E5M2FNUZ, 0x80, NAN},
    {DTYPE_F8_E5M2FNUZ, 0x81, -0x1p-17},
    {DTYPE_F8_E8M0, 0x00, 0x1p-127},
    {DTYPE_F8_E8M0, 0x7F, 1},
    {DTYPE_F8_E8M0, 0xFE, 0x1p127},
    {DTYPE_F8_E8M0, 0xFF, NAN},
    {DTYPE_BOOL, 2, 1},
    {DTYPE_I8, 0x80, -128},
    {DTYPE_U8, 0x80, 128},
};

static void listed_codes_have_their_values(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(listed); i++) {
        uint8_t code = listed[i].code;
        Tensor tensor = {.data = &code, .dtype = listed[i].dtype, .rank = 1, .shape = {1}};
        double found = tensor_value(&tensor, 0);
        bool same = isnan(listed[i].value) ? isnan(found) : found == listed[i].value;
        if (!same)
            fail_msg("%s %02X is %.17g, expected %.17g", dtype_row(tensor.dtype)->name, code, found,
                     listed[i].value);
    }
}

static const double f4_values[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
static const double e2m3_values[32] = {
    0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875,
    2, 2.25,  2.5,  2.75,  3,   3.25,  3.5,  3.75,  4, 4.5,   5,    5.5,   6,   6.5,   7,    7.5};
static const double e3m2_values[32] = {0,   0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375,
                                       0.5, 0.625,  0.75,  0.875,  1,    1.25,   1.5,   1.75,
                                       2,   2.5,    3,     3.5,    4,    5,      6,     7,
                                       8,   10,     12,    14,     16,   20,     24,    28};

// Packs random codes as a little-endian bit stream, one bit at a time, into exactly as many bytes
// as they need.
static void check_packed(DType dtype, int bits, const double *magnitudes)
{
    int count = 37, sign_bit = 1 << (bits - 1);
    size_t bytes = dtype_bytes(dtype, (uint64_t)count);
    uint8_t *data = calloc(bytes, 1);
    int codes[37];
    for (int i = 0; i < count; i++) {
        codes[i] = (int)(random() % (1 << bits));
        for (int bit = 0; bit < bits; bit++)
            if (codes[i] >> bit & 1)
                data[(i * bits + bit) / 8] |= (uint8_t)(1 << (i * bits + bit) % 8);
    }
    Tensor tensor = {.data = data, .dtype = dtype, .rank = 1, .shape = {count}};
    float widened[37];
    tensor_to_f32(&tensor, 0, count, widened);
    for (int i = 0; i < count; i++) {
        double magnitude = magnitudes[codes[i] & (sign_bit - 1)];
        double expected = codes[i] & sign_bit ? -magnitude : magnitude;
        double found = tensor_value(&tensor, i);
        if (found != expected || signbit(found) != signbit(expected) || widened[i] != found)
            fail_msg("%s code %02X at %d is %.9g, expected %.9g", dtype_row(dtype)->name, codes[i],
                     i, found, expected);
    }
    free(data);
}

static void types_below_a_byte_are_a_bit_stream(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        check_packed(DTYPE_F4, 4, f4_values);
        check_packed(DTYPE_F6_E2M3, 6, e2m3_values);
        check_packed(DTYPE_F6_E3M2, 6, e3m2_values);
    }
    uint8_t even_low = 0xF2; // 1.0 then -6.0
    Tensor pair = {.data = &even_low, .dtype = DTYPE_F4, .rank = 1, .shape = {2}};
    assert_true(tensor_value(&pair, 0) == 1.0 && tensor_value(&pair, 1) == -6.0);
}

#define CHECK_PLAIN(tag, type, value0, value1)                                                     \
    do {                                                                                           \
        const type pair_[2] = {(value0), (value1)};                                                \
        char bytes_[2 * sizeof(type) + 1];                                                         \
        memcpy(bytes_ + 1, pair_, sizeof(pair_)); /* odd address: files have those */              \
        Tensor tensor_ = {.data = bytes_ + 1, .dtype = (tag), .rank = 1, .shape = {2}};            \
        float widened_[2] = {0, 0};                                                                \
        tensor_to_f32(&tensor_, 0, 2, widened_);                                                   \
        for (int i_ = 0; i_ < 2; i_++)                                                             \
            if (tensor_value(&tensor_, i_) != (double)pair_[i_] ||                                 \
                widened_[i_] != (float)pair_[i_])                                                  \
                fail_msg("%s element %d is %.17g (f32 %.9g), expected %.17g",                      \
                         dtype_row(tag)->name, i_, tensor_value(&tensor_, i_),                     \
                         (double)widened_[i_], (double)pair_[i_]);                                 \
    } while (0)

static void plain_types_are_read_at_any_address(void **state)
{
    (void)state;
    for (int i = 0; i < 100; i++) {
        CHECK_PLAIN(DTYPE_F32, float, (float)drand48(), -(float)drand48());
        CHECK_PLAIN(DTYPE_F64, double, drand48(), -1e300 * drand48());
        CHECK_PLAIN(DTYPE_I64, int64_t, random(), INT64_MIN);
        CHECK_PLAIN(DTYPE_U64, uint64_t, random(), UINT64_MAX);
        CHECK_PLAIN(DTYPE_I32, int32_t, (int32_t)random(), INT32_MIN);
        CHECK_PLAIN(DTYPE_U32, uint32_t, (uint32_t)random(), UINT32_MAX);
        CHECK_PLAIN(DTYPE_I16, int16_t, (int16_t)random(), INT16_MIN);
        CHECK_PLAIN(DTYPE_U16, uint16_t, (uint16_t)random(), UINT16_MAX);
        CHECK_PLAIN(DTYPE_I8, int8_t, (int8_t)random(), INT8_MIN);
        CHECK_PLAIN(DTYPE_U8, uint8_t, (uint8_t)random(), UINT8_MAX);
    }
}

static void halves_are_read_at_any_address(void **state)
{
    (void)state;
    uint8_t bytes[5] = {0, 0x80, 0x3F, 0x00, 0xC0}; // from byte 1: 3F80, C000
    Tensor wide = {.data = bytes + 1, .dtype = DTYPE_BF16, .rank = 1, .shape = {2}};
    assert_true(tensor_value(&wide, 0) == 1.0 && tensor_value(&wide, 1) == -2.0);
    Tensor half = {.data = bytes + 1, .dtype = DTYPE_F16, .rank = 1, .shape = {2}};
    assert_true(tensor_value(&half, 0) == 1.875 && tensor_value(&half, 1) == -2.0);
    float one;
    tensor_to_f32(&wide, 1, 1, &one); // from the middle
    assert_true(one == -2.0f);
    tensor_to_f32(&half, 0, 0, NULL); // nothing asked, nothing touched
}

static void die_complex(void *context)
{
    float pair[2] = {1, 2};
    Tensor tensor = {.data = pair, .dtype = DTYPE_C64, .rank = 1, .shape = {1}};
    *(double *)context = tensor_value(&tensor, 0);
}

static void a_complex_number_is_no_double(void **state)
{
    (void)state;
    double value = 0;
    Captured end = capture(die_complex, &value);
    assert_int_equal(end.exit_code, EXIT_CODE_INTERNAL);
    ASSERT_CONTAINS(end.text, "c64 has no single real value");
}

int main(void)
{
    srandom((unsigned)time(NULL));
    srand48(time(NULL));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_follow_the_shape),
        cmocka_unit_test(descriptions_are_readable_and_bounded),
        cmocka_unit_test(listed_codes_have_their_values),
        cmocka_unit_test(types_below_a_byte_are_a_bit_stream),
        cmocka_unit_test(plain_types_are_read_at_any_address),
        cmocka_unit_test(halves_are_read_at_any_address),
        cmocka_unit_test(a_complex_number_is_no_double),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
