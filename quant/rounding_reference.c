// rounding_reference.c -- rounding by the definition: find the neighbours in the list of all
// values, choose one.
//
// Every value of these formats and every middle between two of them is exact in double, so the
// comparisons are too. Consecutive bit patterns of one sign ascend, so that a block of them walks
// the list instead of searching it.
#include "quant/rounding_reference.h"

#include "harness/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// One sign of a format: magnitudes ascending, and behind the largest one the value that the next
// code would have, whose code is the row's outcome of overflow.
typedef struct Side {
    int64_t count;
    double *value;  // [count + 1]
    uint32_t *code; // [count + 1]
    uint32_t infinity_code, nan_sign;
} Side;

struct RoundingReference {
    const Format *format;
    const FormatEncoder *encoder;
    Side side[2]; // without and with the sign bit of the f32
};

double rounding_reference_value(const Format *format, uint32_t magnitude)
{
    if (format->exponent_bits == 0)
        return magnitude;
    int exponent = (int)(magnitude >> format->mantissa_bits);
    uint32_t mantissa = magnitude & ((UINT32_C(1) << format->mantissa_bits) - 1);
    double fraction = ldexp(mantissa, -format->mantissa_bits);
    if (exponent == 0 && format->mantissa_bits > 0)
        return ldexp(fraction, 1 - format->bias);
    return ldexp(1 + fraction, exponent - format->bias);
}

// The code of a magnitude on a side: sign and magnitude, two's complement, or no sign at all.
static uint32_t code_on_side(const Format *format, uint32_t magnitude, bool negative)
{
    uint32_t mask = (UINT32_C(1) << format->bits) - 1;
    if (!negative || format->sign_bits == 0)
        return magnitude;
    if (format->exponent_bits == 0)
        return (0 - magnitude) & mask;
    return magnitude | UINT32_C(1) << (format->bits - 1);
}

static uint32_t code_of_outcome(const Format *format, FormatOutcome outcome, uint32_t largest,
                                bool negative)
{
    uint32_t all_set = (UINT32_C(1) << (format->bits - format->sign_bits)) - 1;
    if (outcome == FORMAT_LARGEST)
        return largest;
    if (outcome == FORMAT_INFINITY)
        return code_on_side(format, format->maximum_code + 1, negative);
    return code_on_side(format, all_set, negative);
}

static Side side_create(const Format *format, const FormatEncoder *encoder, bool negative)
{
    bool twos_complement = format->exponent_bits == 0;
    Side side = {.count = (int64_t)format->maximum_code + 1 + (negative && twos_complement)};
    side.value = malloc((size_t)(side.count + 1) * sizeof(*side.value));
    side.code = malloc((size_t)(side.count + 1) * sizeof(*side.code));
    CHECK(side.value && side.code, EXIT_CODE_HARDWARE, "free some memory",
          "no memory for the %lld values of %s", (long long)side.count, format->name);
    for (int64_t i = 0; i <= side.count; i++) {
        side.value[i] = rounding_reference_value(format, (uint32_t)i);
        side.code[i] = code_on_side(format, (uint32_t)i, negative);
    }
    uint32_t largest = side.code[side.count - 1];
    side.code[side.count] = code_of_outcome(format, encoder->overflow, largest, negative);
    side.infinity_code = code_of_outcome(format, encoder->infinity, largest, negative);
    side.nan_sign = encoder->nan_keeps_sign && negative ? UINT32_C(1) << (format->bits - 1) : 0;
    return side;
}

RoundingReference *rounding_reference_create(const Format *format, const FormatEncoder *encoder)
{
    RoundingReference *reference = calloc(1, sizeof(*reference));
    CHECK(reference, EXIT_CODE_HARDWARE, "free some memory", "no memory for a reference");
    reference->format = format;
    reference->encoder = encoder;
    for (int negative = 0; negative < 2; negative++)
        reference->side[negative] = side_create(format, encoder, negative);
    return reference;
}

void rounding_reference_destroy(RoundingReference *reference)
{
    for (int negative = 0; reference && negative < 2; negative++) {
        free(reference->side[negative].value);
        free(reference->side[negative].code);
    }
    free(reference);
}

static double magnitude_of(uint32_t f32_bits)
{
    float value;
    f32_bits &= 0x7FFFFFFFu;
    memcpy(&value, &f32_bits, sizeof(value));
    return value;
}

// value[index] <= magnitude, or index = 0; and magnitude < value[index + 1], or index = count.
static uint32_t code_near(const RoundingReference *reference, const Side *side, int64_t index,
                          double magnitude)
{
    FormatRounding rounding = reference->encoder->rounding;
    if (index == side->count)
        return side->code[rounding == FORMAT_DOWN ? index - 1 : index];
    double below = side->value[index], above = side->value[index + 1];
    if (magnitude <= below)
        return side->code[index];
    double middle = (below + above) / 2;
    bool tie_up = rounding == FORMAT_NEAREST_UP || index % 2 == 1;
    bool up = magnitude > middle || (magnitude == middle && tie_up);
    up = rounding == FORMAT_UP || (up && rounding != FORMAT_DOWN);
    up = up || (index == 0 && reference->encoder->first_step_up);
    return side->code[index + up];
}

static uint32_t code_of_nan(const RoundingReference *reference, const Side *side, uint32_t f32_bits)
{
    uint32_t code = reference->encoder->nan_code | side->nan_sign;
    if (reference->encoder->nan_keeps_payload)
        code |= (f32_bits & 0x7FFFFFu) >> (23 - reference->format->mantissa_bits);
    return code;
}

// Infinity and NaN; false for numbers.
static bool code_of_special(const RoundingReference *reference, uint32_t f32_bits, uint32_t *code)
{
    const Side *side = &reference->side[f32_bits >> 31];
    uint32_t magnitude = f32_bits & 0x7FFFFFFFu;
    if (magnitude < 0x7F800000u)
        return false;
    *code = magnitude == 0x7F800000u ? side->infinity_code : code_of_nan(reference, side, f32_bits);
    return true;
}

static int64_t search(const Side *side, double magnitude)
{
    int64_t low = 0, high = side->count + 1; // value[low] <= magnitude < value[high]
    while (high - low > 1) {
        int64_t between = (low + high) / 2;
        if (side->value[between] <= magnitude)
            low = between;
        else
            high = between;
    }
    return low;
}

uint32_t rounding_reference_encode(const RoundingReference *reference, uint32_t f32_bits)
{
    const Side *side = &reference->side[f32_bits >> 31];
    double magnitude = magnitude_of(f32_bits);
    uint32_t code;
    if (code_of_special(reference, f32_bits, &code))
        return code;
    return code_near(reference, side, search(side, magnitude), magnitude);
}

static RoundingCheck check_block(const RoundingReference *reference, uint32_t first)
{
    RoundingCheck check = {.floats = ROUNDING_BLOCK_FLOATS};
    const Side *side = &reference->side[first >> 31];
    uint32_t (*encode)(float) = reference->encoder->encode;
    int64_t index = search(side, magnitude_of(first));
    for (uint32_t i = 0; i < ROUNDING_BLOCK_FLOATS; i++) {
        uint32_t bits = first + i, expected;
        float value;
        memcpy(&value, &bits, sizeof(value));
        if (!code_of_special(reference, bits, &expected)) {
            double magnitude = fabs((double)value);
            while (index < side->count && side->value[index + 1] <= magnitude)
                index++;
            expected = code_near(reference, side, index, magnitude);
        }
        uint32_t found = encode(value);
        if (found != expected && check.differences++ == 0) {
            check.f32_bits = bits;
            check.found = found;
            check.expected = expected;
        }
    }
    return check;
}

static void merge(RoundingCheck *into, const RoundingCheck *block)
{
    bool earlier =
        block->differences > 0 && (into->differences == 0 || block->f32_bits < into->f32_bits);
    if (earlier) {
        into->f32_bits = block->f32_bits;
        into->found = block->found;
        into->expected = block->expected;
    }
    into->floats += block->floats;
    into->differences += block->differences;
}

RoundingCheck rounding_reference_check(const RoundingReference *reference, int64_t first,
                                       int64_t blocks)
{
    CHECK_RULE(first >= 0 && blocks >= 0 && first + blocks <= ROUNDING_BLOCKS);
    RoundingCheck check = {0};
#pragma omp parallel for schedule(dynamic, 4)
    for (int64_t i = first; i < first + blocks; i++) {
        RoundingCheck block = check_block(reference, (uint32_t)i * ROUNDING_BLOCK_FLOATS);
#pragma omp critical
        merge(&check, &block);
    }
    return check;
}
