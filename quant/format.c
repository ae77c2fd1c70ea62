// format.c -- looking a number format up, and telling what kind of value a code stands for.
//
// The kinds follow from the fields alone: positive codes ascend with their values, so everything
// above maximum_code is special (IEEE 754-2019, 3.4; OCP Microscaling Formats 1.0, 5.3).
#include "quant/format.h"

#include "harness/option.h"

#include <string.h>

enum { FORMATS_MAX = 64 };

const Format *format_find(const char *name)
{
    for (const Format *const *row = format_table; *row; row++)
        if (strcmp((*row)->name, name) == 0)
            return *row;
    return NULL;
}

const char *format_nearest(const char *name)
{
    const char *candidates[FORMATS_MAX + 1] = {NULL};
    for (int i = 0; format_table[i] && i < FORMATS_MAX; i++)
        candidates[i] = format_table[i]->name;
    return option_nearest(name, candidates);
}

FormatKind format_kind(const Format *format, uint32_t code)
{
    int magnitude_bits = format->bits - format->sign_bits;
    if (format->exponent_bits == 0)
        return FORMAT_KIND_INTEGER;
    uint32_t magnitude = code & ((UINT32_C(1) << magnitude_bits) - 1);
    if (magnitude > format->maximum_code)
        return format->has_infinity && magnitude == format->maximum_code + 1 ? FORMAT_KIND_INFINITY
                                                                             : FORMAT_KIND_NAN;
    if (magnitude == 0 && format->has_zero)
        return FORMAT_KIND_ZERO;
    // Without mantissa bits there is nothing to be subnormal: exponent 0 is a value like all
    // others.
    bool normal = magnitude >> format->mantissa_bits > 0 || format->mantissa_bits == 0;
    return normal ? FORMAT_KIND_NORMAL : FORMAT_KIND_SUBNORMAL;
}

const char *format_kind_name(FormatKind kind)
{
    static const char *const names[] = {
        [FORMAT_KIND_ZERO] = "zero",         [FORMAT_KIND_SUBNORMAL] = "subnormal",
        [FORMAT_KIND_NORMAL] = "normal",     [FORMAT_KIND_INTEGER] = "integer",
        [FORMAT_KIND_INFINITY] = "infinity", [FORMAT_KIND_NAN] = "NaN",
    };
    return names[kind];
}

const char *format_rounding_name(FormatRounding rounding)
{
    static const char *const names[] = {
        [FORMAT_NEAREST_EVEN] = "nearest, ties to even",
        [FORMAT_NEAREST_UP] = "nearest, ties up",
        [FORMAT_DOWN] = "down",
        [FORMAT_UP] = "up",
    };
    return names[rounding];
}

const char *format_outcome_name(FormatOutcome outcome)
{
    static const char *const names[] = {
        [FORMAT_LARGEST] = "largest",
        [FORMAT_INFINITY] = "infinity",
        [FORMAT_NAN] = "NaN",
    };
    return names[outcome];
}
