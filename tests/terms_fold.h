// terms_fold.h -- terms combined in order, one element at a time, by plain C arithmetic: what the
// kernels of kernels/terms.h are compared with.
#pragma once

#include "harness/random.h"
#include "harness/tensor.h"
#include "kernels/terms.h"

#include <math.h>
#include <string.h>

enum { WORD_BYTES = 8 }; // the longest type with arithmetic

// The binary16 nearest to a value, ties to even, by looking at its two neighbours.
static inline uint16_t nearest_f16(double value)
{
    uint16_t sign = signbit(value) ? 0x8000u : 0;
    double magnitude = fabs(value);
    uint32_t low = 0, high = 0x7C00; // codes; the code of infinity stands for 65536
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if ((double)f32_from_f16((uint16_t)middle) <= magnitude)
            low = middle;
        else
            high = middle;
    }
    double below = (double)f32_from_f16((uint16_t)low);
    double above = high == 0x7C00 ? 65536.0 : (double)f32_from_f16((uint16_t)high);
    double to_below = magnitude - below, to_above = above - magnitude;
    bool up = to_above < to_below || (to_above == to_below && low % 2 == 1);
    return (uint16_t)(sign | (up ? high : low));
}

// One rounding per operation, whatever the compiler would like.
#define FOLD_FLOATS(type, name)                                                                    \
    static inline type name(TermsOp op, int count, const type *term)                               \
    {                                                                                              \
        volatile type value = term[0];                                                             \
        for (int i = 1; i < count; i++) {                                                          \
            bool takes =                                                                           \
                !isnan(value) &&                                                                   \
                (isnan(term[i]) || (op == TERMS_MAX ? term[i] >= value : term[i] <= value));       \
            if (op == TERMS_PRODUCT)                                                               \
                value = value * term[i];                                                           \
            else if (op != TERMS_MAX && op != TERMS_MIN)                                           \
                value = value + term[i];                                                           \
            else if (takes)                                                                        \
                value = term[i];                                                                   \
        }                                                                                          \
        return op == TERMS_AVG ? value / (type)count : value;                                      \
    }
FOLD_FLOATS(float, fold_f32)
FOLD_FLOATS(double, fold_f64)

// Two's complement wraps alike in 64 bits and in fewer, so all integers fold in 64.
static inline uint64_t integer_of(DType dtype, const char *bytes)
{
    uint64_t value = 0, size = dtype_bytes(dtype, 1), sign = (uint64_t)1 << (8 * size - 1);
    memcpy(&value, bytes, size);
    bool is_signed = dtype_row(dtype)->name[0] == 'i';
    return is_signed && (value & sign) ? value | ~(2 * sign - 1) : value;
}

static inline uint64_t fold_integers(DType dtype, TermsOp op, int count,
                                     const char (*terms)[WORD_BYTES])
{
    uint64_t value = integer_of(dtype, terms[0]);
    bool is_signed = dtype_row(dtype)->name[0] == 'i';
    for (int i = 1; i < count; i++) {
        uint64_t other = integer_of(dtype, terms[i]);
        bool less = is_signed ? (int64_t)other < (int64_t)value : other < value;
        if (op == TERMS_SUM)
            value += other;
        else if (op == TERMS_PRODUCT)
            value *= other;
        else if (less == (op == TERMS_MIN))
            value = other;
    }
    return value;
}

enum { FOLD_TERMS_MAX = 16 };

// One element: its terms in order, each in the first bytes of a word.
static inline void fold_terms(DType dtype, TermsOp op, int count, const char (*terms)[WORD_BYTES],
                              char *out)
{
    float f32[FOLD_TERMS_MAX] = {0};
    double f64[FOLD_TERMS_MAX] = {0};
    for (int i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, terms[i], sizeof(half));
        memcpy(&f32[i], terms[i], sizeof(f32[i]));
        memcpy(&f64[i], terms[i], sizeof(f64[i]));
        if (dtype == DTYPE_BF16)
            f32[i] = f32_from_bf16(half);
        else if (dtype == DTYPE_F16)
            f32[i] = f32_from_f16(half);
    }
    double wide = dtype == DTYPE_F64 ? fold_f64(op, count, f64) : 0;
    bool is_narrow = dtype == DTYPE_F32 || dtype == DTYPE_BF16 || dtype == DTYPE_F16;
    float narrow = is_narrow ? fold_f32(op, count, f32) : 0;
    uint64_t integer = terms_is_integer(dtype) ? fold_integers(dtype, op, count, terms) : 0;
    uint16_t half = dtype == DTYPE_BF16 ? bf16_from_f32(narrow)
                    : isnan(narrow)     ? 0x7E00u
                                        : nearest_f16((double)narrow);
    const void *bits = dtype == DTYPE_F64        ? (const void *)&wide
                       : dtype == DTYPE_F32      ? (const void *)&narrow
                       : terms_is_integer(dtype) ? (const void *)&integer
                                                 : (const void *)&half;
    memcpy(out, bits, dtype_bytes(dtype, 1));
}

// A value like those that are summed, and NaN every so often where the type has it: number `index`
// of a seed.
static inline void terms_value(uint64_t seed, uint64_t index, DType dtype, void *out)
{
    RandomBlock block = random_block(seed, 3, index);
    float value = ldexpf(random_normal(seed, 4, index), (int)(block.word[2] % 12));
    value = block.word[3] % 50 ? value : NAN;
    double wide = (double)value / 3;
    uint16_t bf16 = bf16_from_f32(value), f16 = isnan(value) ? 0x7E00u : nearest_f16((double)value);
    const void *bits = dtype == DTYPE_F32    ? (const void *)&value
                       : dtype == DTYPE_F64  ? (const void *)&wide
                       : dtype == DTYPE_BF16 ? (const void *)&bf16
                       : dtype == DTYPE_F16  ? (const void *)&f16
                                             : (const void *)&block;
    memcpy(out, bits, dtype_bytes(dtype, 1));
}

static inline bool terms_is_nan(DType dtype, const void *bytes)
{
    Tensor view = {.data = (void *)(uintptr_t)bytes, .dtype = dtype, .rank = 0};
    return !terms_is_integer(dtype) && isnan(tensor_value(&view, 0));
}

// The bits of an element, for messages.
static inline unsigned long long terms_bits(DType dtype, const void *bytes)
{
    unsigned long long bits = 0;
    memcpy(&bits, bytes, dtype_bytes(dtype, 1));
    return bits;
}

// The same bits, or both NaN.
static inline bool terms_same(DType dtype, const void *a, const void *b)
{
    return terms_bits(dtype, a) == terms_bits(dtype, b) ||
           (terms_is_nan(dtype, a) && terms_is_nan(dtype, b));
}
