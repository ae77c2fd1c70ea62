// tensor.c -- shapes, and every element type read as a double.
//
// Readers never assume alignment: tensors of a safetensors file lie wherever its header ends. Types
// below a byte are a little-endian bit stream, which for F4 means even elements in the low nibble.
// Small floats are decoded from a table of their layouts (OCP 8-bit Floating Point 1.0; OCP
// Microscaling Formats 1.0; FNUZ: Noune et al., arXiv:2206.02915).
#include "harness/tensor.h"

#include "harness/bf16.h"
#include "harness/check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

// Which codes are no ordinary numbers.
typedef enum SmallSpecial {
    SPECIAL_IEEE,   // largest exponent: infinity, NaN
    SPECIAL_FN,     // all ones: NaN; no infinity
    SPECIAL_FNUZ,   // the code of -0: NaN; no infinity
    SPECIAL_FINITE, // none
} SmallSpecial;

typedef struct SmallFloat {
    int exponent_bits, mantissa_bits, bias; // and one sign bit above
    SmallSpecial special;
} SmallFloat;

static const SmallFloat small_floats[DTYPES] = {
    [DTYPE_F8_E4M3] = {4, 3, 7, SPECIAL_FN},       [DTYPE_F8_E5M2] = {5, 2, 15, SPECIAL_IEEE},
    [DTYPE_F8_E4M3FNUZ] = {4, 3, 8, SPECIAL_FNUZ}, [DTYPE_F8_E5M2FNUZ] = {5, 2, 16, SPECIAL_FNUZ},
    [DTYPE_F6_E2M3] = {2, 3, 1, SPECIAL_FINITE},   [DTYPE_F6_E3M2] = {3, 2, 3, SPECIAL_FINITE},
    [DTYPE_F4] = {2, 1, 1, SPECIAL_FINITE},
};

static double decode_small(const SmallFloat *layout, uint32_t code)
{
    uint32_t magnitude_mask = (1u << (layout->exponent_bits + layout->mantissa_bits)) - 1;
    uint32_t magnitude = code & magnitude_mask;
    uint32_t exponent = magnitude >> layout->mantissa_bits;
    uint32_t mantissa = magnitude & ((1u << layout->mantissa_bits) - 1);
    bool negative = (code & ~magnitude_mask) != 0;

    if (layout->special == SPECIAL_FNUZ && negative && magnitude == 0)
        return NAN;
    if (layout->special == SPECIAL_FN && magnitude == magnitude_mask)
        return NAN;
    if (layout->special == SPECIAL_IEEE && exponent == (1u << layout->exponent_bits) - 1) {
        if (mantissa != 0)
            return NAN;
        return negative ? -INFINITY : INFINITY;
    }
    uint32_t hidden_bit = exponent > 0 ? 1u << layout->mantissa_bits : 0;
    int scale = (exponent > 0 ? (int)exponent : 1) - layout->bias - layout->mantissa_bits;
    double value = ldexp((double)(hidden_bit + mantissa), scale);
    return negative ? -value : value;
}

// `bits` (at most 8) bits of a little-endian bit stream; reads only the bytes that hold them.
static uint32_t read_bits(const uint8_t *data, uint64_t first_bit, int bits)
{
    const uint8_t *byte = data + first_bit / 8;
    int shift = (int)(first_bit % 8);
    uint32_t word = byte[0];
    if (shift + bits > 8)
        word |= (uint32_t)byte[1] << 8;
    return (word >> shift) & ((1u << bits) - 1);
}

#define READ_AS(type, data, index, value)                                                          \
    do {                                                                                           \
        type element_;                                                                             \
        memcpy(&element_, (data) + (uint64_t)(index) * sizeof(type), sizeof(type));                \
        (value) = (double)element_;                                                                \
    } while (0)

// The types that C knows. False for the others.
static bool read_plain(const uint8_t *data, DType dtype, int64_t index, double *value)
{
    switch (dtype) {
    case DTYPE_F32:
        READ_AS(float, data, index, *value);
        return true;
    case DTYPE_F64:
        READ_AS(double, data, index, *value);
        return true;
    case DTYPE_I64:
        READ_AS(int64_t, data, index, *value);
        return true;
    case DTYPE_I32:
        READ_AS(int32_t, data, index, *value);
        return true;
    case DTYPE_I16:
        READ_AS(int16_t, data, index, *value);
        return true;
    case DTYPE_I8:
        READ_AS(int8_t, data, index, *value);
        return true;
    case DTYPE_U64:
        READ_AS(uint64_t, data, index, *value);
        return true;
    case DTYPE_U32:
        READ_AS(uint32_t, data, index, *value);
        return true;
    case DTYPE_U16:
        READ_AS(uint16_t, data, index, *value);
        return true;
    case DTYPE_U8:
        READ_AS(uint8_t, data, index, *value);
        return true;
    case DTYPE_BOOL:
        *value = data[index] != 0;
        return true;
    default:
        return false;
    }
}

static uint16_t read_half(const uint8_t *data, int64_t index)
{
    uint16_t bits;
    memcpy(&bits, data + 2 * (uint64_t)index, sizeof(bits));
    return bits;
}

int64_t tensor_elements(const Tensor *tensor)
{
    int64_t elements = 1;
    for (int i = 0; i < tensor->rank; i++)
        elements *= tensor->shape[i];
    return elements;
}

uint64_t tensor_bytes(const Tensor *tensor)
{
    return dtype_bytes(tensor->dtype, (uint64_t)tensor_elements(tensor));
}

const char *tensor_describe(const Tensor *tensor, char *text, size_t bytes)
{
    char shape[TENSOR_RANK_MAX * 22 + 1] = ""; // "-9223372036854775808, " is the longest
    size_t length = 0;
    for (int i = 0; i < tensor->rank; i++)
        length += (size_t)snprintf(shape + length, sizeof(shape) - length, "%s%lld",
                                   i > 0 ? ", " : "", (long long)tensor->shape[i]);
    snprintf(text, bytes, "[%s] %s", shape, dtype_row(tensor->dtype)->name);
    return text;
}

double tensor_value(const Tensor *tensor, int64_t index)
{
    const uint8_t *data = tensor->data;
    double value;
    if (read_plain(data, tensor->dtype, index, &value))
        return value;
    if (tensor->dtype == DTYPE_BF16)
        return (double)f32_from_bf16_bits(read_half(data, index));
    if (tensor->dtype == DTYPE_F16)
        return (double)f32_from_f16(read_half(data, index));
    if (tensor->dtype == DTYPE_F8_E8M0)
        return data[index] == 0xFF ? (double)NAN : ldexp(1.0, data[index] - 127);
    const SmallFloat *layout = &small_floats[tensor->dtype];
    CHECK(layout->exponent_bits > 0, EXIT_CODE_INTERNAL,
          "this is a bug of meshwork: please report it", "%s has no single real value",
          dtype_row(tensor->dtype)->name);
    int bits = dtype_row(tensor->dtype)->bits;
    return decode_small(layout, read_bits(data, (uint64_t)index * (uint64_t)bits, bits));
}

void tensor_to_f32(const Tensor *tensor, int64_t first, int64_t count, float *out)
{
    const uint8_t *data = tensor->data;
    if (count <= 0)
        return;
    if (tensor->dtype == DTYPE_F32) {
        memcpy(out, data + 4 * (uint64_t)first, 4 * (uint64_t)count);
    } else if (tensor->dtype == DTYPE_BF16) {
        for (int64_t i = 0; i < count; i++)
            out[i] = f32_from_bf16_bits(read_half(data, first + i));
    } else {
        for (int64_t i = 0; i < count; i++)
            out[i] = (float)tensor_value(tensor, first + i);
    }
}
