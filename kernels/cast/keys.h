// keys.h -- the largest of many values, in lanes as wide as the values themselves: keys are
// magnitudes, or integers in the order of the values; NaN lies beyond the infinities.
//
// Each group has CAST_KEYS keys first, of the columns that are alike modulo CAST_KEYS, so that
// neighbours are compared, which takes shuffling, only where few are left.
#pragma once

#include "kernels/cast/variant.h"

enum {
    CAST_PIECE = 256,  // columns that are joined, and whose codes are made, at once
    CAST_CHUNK = 2048, // columns whose blocks are chosen at once, at most
    CAST_KEYS = 16,    // of a group before they are reduced to one; the least group
    CAST_HALVED = 32,  // keys that are halved at once
    CAST_PIECE_WORDS = CAST_PIECE / 2,
    CAST_GROUPS = CAST_CHUNK / CAST_KEYS,
};

// Which of the input's types is there, the input says.
typedef union CastKeys {
    _Alignas(64) int16_t bf16[CAST_CHUNK];
    int32_t f32[CAST_CHUNK];
} CastKeys;

// Where a rule needs both ends of the range, their keys: those of the least ascend as it falls.
// Else magnitudes, as HIGH.
typedef enum CastEnd { CAST_HIGH, CAST_LOW, CAST_ENDS } CastEnd;

FORMAT_INLINE int64_t cast_value_bytes(DType input, int64_t count)
{
    return count * (input == DTYPE_BF16 ? 2 : 4);
}

// Functions of keys of so many bits. A bound of 16 is kept from being unrolled: that comes before
// vectors are made, and hinders it.
#define CAST_KEY_TYPE(bits_, input_)                                                               \
    FORMAT_INLINE int##bits_##_t cast_key_##input_(bool ranged, CastEnd end, const char *values,   \
                                                   int64_t i)                                      \
    {                                                                                              \
        int##bits_##_t bits;                                                                       \
        memcpy(&bits, values + i * (bits_ / 8), sizeof(bits));                                     \
        if (!ranged)                                                                               \
            return bits & INT##bits_##_MAX;                                                        \
        bits ^= bits >> (bits_ - 1) & INT##bits_##_MAX;                                            \
        return end == CAST_HIGH ? bits : ~bits;                                                    \
    }                                                                                              \
    FORMAT_INLINE int##bits_##_t cast_larger_##input_(int##bits_##_t a, int##bits_##_t b)          \
    {                                                                                              \
        return a > b ? a : b;                                                                      \
    }                                                                                              \
    FORMAT_INLINE int32_t cast_largest_##input_(bool ranged, CastEnd end, const char *values,      \
                                                int64_t count)                                     \
    {                                                                                              \
        int##bits_##_t most = ranged && count > 0 ? INT##bits_##_MIN : 0;                          \
        for (int64_t i = 0; i < count; i++)                                                        \
            most = cast_larger_##input_(most, cast_key_##input_(ranged, end, values, i));          \
        return most;                                                                               \
    }                                                                                              \
    FORMAT_INLINE int##bits_##_t cast_most_##input_(bool ranged, CastEnd end, int64_t columns,     \
                                                    const char *values, int64_t i)                 \
    {                                                                                              \
        int##bits_##_t most = cast_key_##input_(ranged, end, values, i);                           \
        for (int64_t at = CAST_KEYS; at < columns; at += CAST_KEYS)                                \
            most = cast_larger_##input_(most, cast_key_##input_(ranged, end, values, at + i));     \
        return most;                                                                               \
    }                                                                                              \
    FORMAT_INLINE void cast_join_##input_(bool ranged, int64_t columns, const char *values,        \
                                          int##bits_##_t *restrict high,                           \
                                          int##bits_##_t *restrict low)                            \
    {                                                                                              \
        _Pragma("GCC unroll 1") for (int64_t i = 0; i < CAST_KEYS; i++)                            \
        {                                                                                          \
            high[i] = cast_larger_##input_(                                                        \
                high[i], cast_most_##input_(ranged, CAST_HIGH, columns, values, i));               \
            if (ranged)                                                                            \
                low[i] = cast_larger_##input_(                                                     \
                    low[i], cast_most_##input_(ranged, CAST_LOW, columns, values, i));             \
        }                                                                                          \
    }                                                                                              \
    FORMAT_INLINE void cast_halve_##input_(const int##bits_##_t *restrict from, int64_t count,     \
                                           int##bits_##_t *restrict to)                            \
    {                                                                                              \
        for (int64_t first = 0; first < count; first += CAST_HALVED)                               \
            for (int64_t i = first; i < first + CAST_HALVED; i++)                                  \
                to[i] = cast_larger_##input_(from[2 * i], from[2 * i + 1]);                        \
    }
CAST_KEY_TYPE(16, bf16)
CAST_KEY_TYPE(32, f32)

FORMAT_INLINE int32_t cast_largest_key(DType input, bool ranged, CastEnd end, const char *values,
                                       int64_t count)
{
    if (!ranged && end == CAST_LOW)
        return 0;
    return input == DTYPE_BF16 ? cast_largest_bf16(ranged, end, values, count)
                               : cast_largest_f32(ranged, end, values, count);
}

// `count` keys of each end that no value's key is below.
FORMAT_INLINE void cast_clear(DType input, bool ranged, int64_t count, CastKeys *keys)
{
    for (int end = CAST_HIGH; end <= (ranged ? CAST_LOW : CAST_HIGH); end++) {
        for (int64_t i = 0; i < count && input == DTYPE_BF16; i++)
            keys[end].bf16[i] = ranged ? INT16_MIN : 0;
        for (int64_t i = 0; i < count && input == DTYPE_F32; i++)
            keys[end].f32[i] = ranged ? INT32_MIN : 0;
    }
}

FORMAT_INLINE void cast_join_by(int64_t columns, DType input, bool ranged, int64_t group,
                                const char *values, int64_t first_key, CastKeys *keys)
{
    for (int64_t column = 0; column < CAST_PIECE; column += columns) {
        const char *from = values + cast_value_bytes(input, column);
        const int64_t key = first_key + column / group * CAST_KEYS;
        if (input == DTYPE_BF16)
            cast_join_bf16(ranged, columns, from, keys[CAST_HIGH].bf16 + key,
                           keys[CAST_LOW].bf16 + key);
        else
            cast_join_f32(ranged, columns, from, keys[CAST_HIGH].f32 + key,
                          keys[CAST_LOW].f32 + key);
    }
}

// Joins a piece to the keys of its groups.
FORMAT_INLINE void cast_join(DType input, bool ranged, int64_t group, const char *values,
                             int64_t first_key, CastKeys *keys)
{
    if (group == 16) // constants
        cast_join_by(16, input, ranged, 16, values, first_key, keys);
    else if (group == 32)
        cast_join_by(32, input, ranged, 32, values, first_key, keys);
    else
        cast_join_by(64, input, ranged, group, values, first_key, keys);
}

// Halves `count` keys until there is one per group, into another array and back: in one alone the
// compiler fears that writing overtakes reading. What lies behind the groups has no meaning.
FORMAT_INLINE void cast_reduce(DType input, int64_t count, CastKeys *keys)
{
    CastKeys other;
    for (int width = CAST_KEYS; width > 1; width /= 4, count /= 4) {
        if (input == DTYPE_BF16) {
            cast_halve_bf16(keys->bf16, count / 2, other.bf16);
            cast_halve_bf16(other.bf16, count / 4, keys->bf16);
        } else {
            cast_halve_f32(keys->f32, count / 2, other.f32);
            cast_halve_f32(other.f32, count / 4, keys->f32);
        }
    }
}

FORMAT_INLINE int32_t cast_key_at(DType input, const CastKeys *keys, int64_t i)
{
    return input == DTYPE_BF16 ? keys->bf16[i] : keys->f32[i];
}

FORMAT_INLINE float cast_value_of_key(DType input, int32_t key)
{
    key ^= key >> 31 & (input == DTYPE_BF16 ? INT16_MAX : INT32_MAX);
    return format_f32_value((uint32_t)key << (input == DTYPE_BF16 ? 16 : 0));
}

// Of the keys of both ends, or of magnitudes.
FORMAT_INLINE QuantStatistics cast_statistics(DType input, bool ranged, int32_t high, int32_t low)
{
    const float maximum = cast_value_of_key(input, high);
    const float minimum = ranged ? cast_value_of_key(input, ~low) : maximum;
    const uint32_t a = format_f32_magnitude(minimum), b = format_f32_magnitude(maximum);
    const uint32_t most = a > b ? a : b;
    const bool is_nan = most > FORMAT_F32_INFINITY;
    return (QuantStatistics){.amax = quant_select_f32(is_nan, quant_nan(), format_f32_value(most)),
                             .minimum = quant_select_f32(is_nan, quant_nan(), minimum),
                             .maximum = quant_select_f32(is_nan, quant_nan(), maximum)};
}
