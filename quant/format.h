// format.h -- the number formats, one row each, and for each format the ways in which libraries
// round an f32 into it.
//
// Widening is unambiguous: one decode per format. Narrowing is not: torch, CUDA and the OCP
// specification agree about ordinary values and differ about overflow, infinities, NaN and, for
// e8m0, ties. So every such convention is an encoder with a name, and its row states what it does;
// rounding_reference.h holds each encoder to its row, float by float.
//
// A format is one file, quant/format_<name>.c, that defines `const Format format_<name>`; CMake
// collects the files by name into format_table[].
#pragma once

#include "harness/base.h"

DECLARATIONS_BEGIN

// Where the magnitude goes between two neighbours of the format.
typedef enum FormatRounding {
    FORMAT_NEAREST_EVEN, // ties to the even code
    FORMAT_NEAREST_UP,   // ties away from zero
    FORMAT_DOWN,         // towards zero
    FORMAT_UP,           // away from zero
} FormatRounding;

typedef enum FormatOutcome {
    FORMAT_LARGEST,  // the largest finite value of that sign
    FORMAT_INFINITY, // the infinity of that sign
    FORMAT_NAN,      // the NaN of that sign: all exponent and mantissa bits set
} FormatOutcome;

typedef struct FormatEncoder {
    const char *name;                // "cuda_satfinite"
    uint32_t (*encode)(float value); // the code in the low bits
    FormatRounding rounding;
    bool first_step_up;     // between the two smallest values everything rounds up
    FormatOutcome overflow; // finite values that round past the largest
    FormatOutcome infinity;
    uint32_t nan_code; // of a NaN without sign
    bool nan_keeps_sign;
    bool nan_keeps_payload; // as many leading bits as fit, below the quiet bit
    const char *note;       // who rounds like this, one line
} FormatEncoder;

typedef struct Format {
    const char *name;                                  // "e4m3fn"
    int bits, sign_bits, exponent_bits, mantissa_bits; // no exponent bits: two's complement
    int bias;
    uint32_t maximum_code; // positive codes above it are the infinity, if there is one, then NaN
    double maximum, minimum_normal, minimum_subnormal; // NaN = the format has none
    bool has_zero, has_infinity, has_nan;
    float (*decode)(uint32_t code); // exact; bits above the code are ignored
    const FormatEncoder *encoders;  // the first is the usual one
    int encoder_count;
    const char *note; // one line
} Format;

extern const Format *const format_table[]; // NULL-terminated, sorted by name

typedef enum FormatKind {
    FORMAT_KIND_ZERO,
    FORMAT_KIND_SUBNORMAL,
    FORMAT_KIND_NORMAL,
    FORMAT_KIND_INTEGER,
    FORMAT_KIND_INFINITY,
    FORMAT_KIND_NAN,
} FormatKind;

const Format *format_find(const char *name);  // Local. NULL if there is none
const char *format_nearest(const char *name); // Local. For messages; NULL if none is near
FormatKind format_kind(const Format *format, uint32_t code); // Local
const char *format_kind_name(FormatKind kind);               // Local. "subnormal"
// Local. The encoder's row in words: "nearest, ties to even", "largest", "7F, sign kept".
const char *format_rounding_name(FormatRounding rounding);
const char *format_outcome_name(FormatOutcome outcome);

DECLARATIONS_END
