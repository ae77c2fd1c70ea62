// format_float.h -- every small binary float is a row of numbers, and so is every convention of
// rounding into it; here are the one encoder and the one decoder over such rows.
//
// Positive codes ascend with their values: the finite ones up to the largest, then the infinity
// where there is one, then NaN. All conventions round to nearest even and differ in two things:
// which code stands for what lies past the largest value (infinity included), and what becomes of
// NaN. The numbers are constants wherever a row is used and everything is inline, so that a row
// becomes the code one would write by hand, in C and in CUDA.
//
// A format defines FORMAT_<NAME>_NUMBERS and a list FORMAT_<NAME>_ENCODERS(ROW) with
//     ROW(format, encoder, past the largest, NaN, what NaN keeps, who rounds like this)
// and expands FORMAT_FLOAT(name, numbers) and the list of FORMAT_FLOAT_ENCODER into inline
// functions, the list of FORMAT_FLOAT_ROW into its table.
#pragma once

#include "quant/format.h"
#include "quant/format_bits.h"

typedef struct FormatFloat {
    uint32_t bits, exponent_bits, mantissa_bits, bias; // one sign bit
    uint32_t maximum_code;                             // of the largest finite value
} FormatFloat;

typedef enum FormatNanKeeps {
    FORMAT_NAN_KEEPS_NOTHING,
    FORMAT_NAN_KEEPS_SIGN,
    FORMAT_NAN_KEEPS_PAYLOAD, // its leading bits; and the sign
} FormatNanKeeps;

typedef struct FormatFloatRule {
    FormatOutcome past; // the largest value
    uint32_t nan_code;
    FormatNanKeeps nan_keeps;
} FormatFloatRule;

FORMAT_INLINE uint32_t format_float_outcome(FormatFloat format, FormatOutcome outcome)
{
    uint32_t all_set = (1u << (format.bits - 1)) - 1;
    uint32_t finite_or_infinity = format.maximum_code + (outcome == FORMAT_INFINITY ? 1 : 0);
    return outcome == FORMAT_NAN ? all_set : finite_or_infinity;
}

FORMAT_INLINE uint32_t format_float_encode(FormatFloat format, FormatFloatRule rule, float value)
{
    uint32_t magnitude = format_f32_magnitude(value);
    uint32_t most = format_float_outcome(format, rule.past);
    uint32_t sign = format_f32_bits(value) >> (32 - format.bits) & 1u << (format.bits - 1);
    uint32_t code = format_round_even(magnitude, format.bias, format.mantissa_bits);
    code = format_minimum(code, most); // NaN's too
    bool is_nan = magnitude > FORMAT_F32_INFINITY;
    if (rule.nan_keeps == FORMAT_NAN_KEEPS_NOTHING)
        return is_nan ? rule.nan_code : code | sign;
    uint32_t nan = rule.nan_code;
    if (rule.nan_keeps == FORMAT_NAN_KEEPS_PAYLOAD)
        nan |= (magnitude & 0x7FFFFFu) >> (FORMAT_F32_MANTISSA_BITS - format.mantissa_bits);
    else if (rule.nan_code == most)
        return code | sign;
    return (is_nan ? nan : code) | sign;
}

// Exact; NaN keeps sign and payload and becomes quiet, as torch has it.
FORMAT_INLINE float format_float_decode(FormatFloat format, uint32_t code)
{
    uint32_t sign_bit = 1u << (format.bits - 1), magnitude = code & (sign_bit - 1);
    uint32_t sign = (code & sign_bit) << (32 - format.bits);
    uint32_t mantissa = magnitude & ((1u << format.mantissa_bits) - 1);
    uint32_t special = FORMAT_F32_INFINITY | mantissa << (23 - format.mantissa_bits);
    special |= mantissa != 0 ? 0x400000u : 0;
    bool finite = magnitude <= format.maximum_code;
    uint32_t bits = finite ? format_widen(magnitude, format.bias, format.mantissa_bits) : special;
    return format_f32_value(sign | bits);
}

#define FORMAT_FLOAT(name_, ...)                                                                   \
    FORMAT_INLINE FormatFloat format_##name_##_numbers(void)                                       \
    {                                                                                              \
        FormatFloat numbers = {__VA_ARGS__};                                                       \
        return numbers;                                                                            \
    }                                                                                              \
    FORMAT_INLINE float format_##name_##_decode(uint32_t code)                                     \
    {                                                                                              \
        return format_float_decode(format_##name_##_numbers(), code);                              \
    }

#define FORMAT_FLOAT_ENCODER(of_, name_, past_, nan_, keeps_, note_)                               \
    FORMAT_INLINE uint32_t format_##of_##_encode_##name_(float value)                              \
    {                                                                                              \
        FormatFloatRule rule = {past_, nan_, keeps_};                                              \
        return format_float_encode(format_##of_##_numbers(), rule, value);                         \
    }

#define FORMAT_FLOAT_ROW(of_, name_, past_, nan_, keeps_, note_)                                   \
    {.name = #name_,                                                                               \
     .encode = format_##of_##_encode_##name_,                                                      \
     .overflow = (past_),                                                                          \
     .infinity = (past_),                                                                          \
     .nan_code = (nan_),                                                                           \
     .nan_keeps_sign = (keeps_) != FORMAT_NAN_KEEPS_NOTHING,                                       \
     .nan_keeps_payload = (keeps_) == FORMAT_NAN_KEEPS_PAYLOAD,                                    \
     .note = (note_)},

// The numbers as members of a Format.
#define FORMAT_FLOAT_MEMBERS(...) FORMAT_FLOAT_MEMBERS_OF(__VA_ARGS__)
#define FORMAT_FLOAT_MEMBERS_OF(bits_, exponent_bits_, mantissa_bits_, bias_, maximum_code_)       \
    .bits = (bits_), .sign_bits = 1, .exponent_bits = (exponent_bits_),                            \
    .mantissa_bits = (mantissa_bits_), .bias = (bias_), .maximum_code = (maximum_code_)
