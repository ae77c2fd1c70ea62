// format_cases.h -- the tests of a number format; a format's own file brings its name and vectors
// from specifications and headers.
//
// Decoder: every code against the formula. Encoders: against rounding_reference.h where roundings
// differ, and, in the slow tests, for all 2^32 floats.
#pragma once

#include "quant/format.h"
#include "quant/format_bits.h"
#include "quant/rounding_reference.h"
#include "tests/kernels_data.h"

typedef struct Vector {
    const char *encoder;
    uint32_t f32_bits, code;
} Vector;

static inline const Format *format_named(const char *name)
{
    const Format *format = format_find(name);
    if (!format)
        fail_msg("there is no format '%s'", name);
    return format;
}

// The value of each code is sign * formula; codes above maximum_code are infinity or NaN.
static inline void expect_decoder(const Format *format)
{
    uint32_t sign_bit = format->sign_bits ? UINT32_C(1) << (format->bits - 1) : 0;
    for (uint32_t code = 0; code < UINT32_C(1) << format->bits; code++) {
        bool negative = code & sign_bit, integer = format->exponent_bits == 0;
        uint32_t magnitude = code & ~sign_bit;
        double expected = rounding_reference_value(format, magnitude);
        if (integer && negative)
            expected = sign_bit - magnitude;
        if (!integer && magnitude > format->maximum_code)
            expected =
                format->has_infinity && magnitude == format->maximum_code + 1 ? INFINITY : NAN;
        expected = negative ? -expected : expected;
        double found = (double)format->decode(code);
        bool same = isnan(expected) ? isnan(found)
                                    : found == expected && !signbit(found) == !signbit(expected);
        if (!same)
            fail_msg("%s code %X is %.9g, expected %.9g", format->name, (unsigned)code, found,
                     expected);
        FormatKind kind = format_kind(format, code);
        assert_int_equal(kind == FORMAT_KIND_NAN, isnan(expected) != 0);
        assert_int_equal(kind == FORMAT_KIND_INFINITY, isinf(expected) != 0);
        if (kind == FORMAT_KIND_SUBNORMAL || kind == FORMAT_KIND_NORMAL)
            assert_int_equal(kind == FORMAT_KIND_SUBNORMAL,
                             fabs(expected) < format->minimum_normal);
    }
    assert_true((double)format->decode(format->maximum_code) == format->maximum);
    if (format->exponent_bits == 0 || format->mantissa_bits == 0)
        return;
    assert_true((double)format->decode(1) == format->minimum_subnormal);
    assert_true((double)format->decode(1u << format->mantissa_bits) == format->minimum_normal);
}

static inline void expect_code(const RoundingReference *reference, const Format *format,
                               const FormatEncoder *encoder, uint32_t f32_bits)
{
    uint32_t found = encoder->encode(format_f32_value(f32_bits));
    uint32_t expected = rounding_reference_encode(reference, f32_bits);
    if (found != expected)
        fail_msg("%s %s: f32 %08X gives %X, expected %X", format->name, encoder->name,
                 (unsigned)f32_bits, (unsigned)found, (unsigned)expected);
}

// Two floats to each side of it, of either sign.
static inline void expect_around(const RoundingReference *reference, const Format *format,
                                 const FormatEncoder *encoder, double value)
{
    uint32_t bits = format_f32_bits((float)value);
    for (int step = -2; step <= 2; step++)
        for (uint32_t sign = 0; sign < 2; sign++)
            expect_code(reference, format, encoder,
                        ((bits + (uint32_t)step) & 0x7FFFFFFFu) | sign << 31);
}

// All signs and exponents with telling mantissas (NaN payloads among them), the neighbourhood of
// every value and every tie, and fresh random floats.
static inline void expect_encoder(Data *data, const Format *format, const FormatEncoder *encoder)
{
    enum { RANDOM_FLOATS = 200000 };
    RoundingReference *reference = rounding_reference_create(format, encoder);
    for (uint32_t high = 0; high < 512; high++)
        for (int bit = 0; bit <= 23; bit++)
            for (uint32_t other = 0; other < 24; other++) {
                uint32_t mantissa = (1u << bit | 1u << other) & 0x7FFFFFu;
                expect_code(reference, format, encoder, high << 23 | mantissa);
                expect_code(reference, format, encoder, high << 23 | (mantissa ^ 0x7FFFFFu));
            }
    for (uint32_t code = 0; code <= format->maximum_code + 1; code++) {
        double below = rounding_reference_value(format, code);
        double above = rounding_reference_value(format, code + 1);
        expect_around(reference, format, encoder, below);
        expect_around(reference, format, encoder, (below + above) / 2);
    }
    for (int i = 0; i < RANDOM_FLOATS; i++) {
        RandomBlock block = random_block(data->seed, 3, data->drawn++);
        expect_code(reference, format, encoder, block.word[0]);
    }
    rounding_reference_destroy(reference);
}

static inline void expect_encoders(Data *data, const Format *format)
{
    for (int i = 0; i < format->encoder_count; i++)
        expect_encoder(data, format, &format->encoders[i]);
}

// All 2^32 of them, for each encoder.
static inline void expect_all_floats(const Format *format)
{
    for (int i = 0; i < format->encoder_count; i++) {
        const FormatEncoder *encoder = &format->encoders[i];
        RoundingReference *reference = rounding_reference_create(format, encoder);
        RoundingCheck check = rounding_reference_check(reference, 0, ROUNDING_BLOCKS);
        rounding_reference_destroy(reference);
        assert_true(check.floats == UINT64_C(1) << 32);
        if (check.differences)
            fail_msg("%s %s: %llu differences; f32 %08X gives %X, expected %X", format->name,
                     encoder->name, (unsigned long long)check.differences, (unsigned)check.f32_bits,
                     (unsigned)check.found, (unsigned)check.expected);
    }
}

static inline void expect_vectors(const Format *format, const Vector *vectors, size_t count)
{
    for (size_t v = 0; v < count; v++) {
        const FormatEncoder *encoder = NULL;
        for (int i = 0; i < format->encoder_count; i++)
            if (strcmp(format->encoders[i].name, vectors[v].encoder) == 0)
                encoder = &format->encoders[i];
        if (!encoder)
            fail_msg("%s has no encoder '%s'", format->name, vectors[v].encoder);
        uint32_t found = encoder->encode(format_f32_value(vectors[v].f32_bits));
        if (found != vectors[v].code)
            fail_msg("%s %s: f32 %08X gives %X, specified %X", format->name, encoder->name,
                     (unsigned)vectors[v].f32_bits, (unsigned)found, (unsigned)vectors[v].code);
    }
}

typedef struct FormatSuite {
    const Format *format;
    const Vector *vectors;
    size_t vector_count;
    Data data;
} FormatSuite;

static inline void codes_have_the_values_of_the_formula(void **state)
{
    const FormatSuite *suite = *state;
    expect_decoder(suite->format);
}

static inline void encoders_round_as_defined(void **state)
{
    FormatSuite *suite = *state;
    expect_encoders(&suite->data, suite->format);
}

static inline void specified_inputs_give_specified_codes(void **state)
{
    const FormatSuite *suite = *state;
    expect_vectors(suite->format, suite->vectors, suite->vector_count);
}

static inline void all_floats_round_as_defined(void **state)
{
    const FormatSuite *suite = *state;
    expect_all_floats(suite->format);
}

// The whole of a format's main().
static inline int format_test(const char *name, const Vector *vectors, size_t vector_count)
{
    FormatSuite suite = {format_named(name), vectors, vector_count, data_create()};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(codes_have_the_values_of_the_formula, &suite),
        cmocka_unit_test_prestate(encoders_round_as_defined, &suite),
        cmocka_unit_test_prestate(specified_inputs_give_specified_codes, &suite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

static inline int format_test_all_floats(const char *name)
{
    FormatSuite suite = {.format = format_named(name)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(all_floats_round_as_defined, &suite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
