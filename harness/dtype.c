// dtype.c -- the table of element types and the conversions that everything else is built on.
//
// Tags and bit widths: huggingface/safetensors, safetensors/src/tensor.rs.
#include "harness/dtype.h"

#include "harness/bf16.h"
#include "harness/check.h"

#include <string.h>

static const DTypeRow rows[DTYPES] = {
    [DTYPE_F32] = {"f32", "F32", 32, true},
    [DTYPE_BF16] = {"bf16", "BF16", 16, true},
    [DTYPE_F16] = {"f16", "F16", 16, false},
    [DTYPE_F64] = {"f64", "F64", 64, false},
    [DTYPE_I64] = {"i64", "I64", 64, false},
    [DTYPE_I32] = {"i32", "I32", 32, false},
    [DTYPE_I16] = {"i16", "I16", 16, false},
    [DTYPE_I8] = {"i8", "I8", 8, false},
    [DTYPE_U64] = {"u64", "U64", 64, false},
    [DTYPE_U32] = {"u32", "U32", 32, false},
    [DTYPE_U16] = {"u16", "U16", 16, false},
    [DTYPE_U8] = {"u8", "U8", 8, false},
    [DTYPE_BOOL] = {"bool", "BOOL", 8, false},
    [DTYPE_F8_E4M3] = {"f8_e4m3", "F8_E4M3", 8, false},
    [DTYPE_F8_E5M2] = {"f8_e5m2", "F8_E5M2", 8, false},
    [DTYPE_F8_E8M0] = {"f8_e8m0", "F8_E8M0", 8, false},
    [DTYPE_F8_E4M3FNUZ] = {"f8_e4m3fnuz", "F8_E4M3FNUZ", 8, false},
    [DTYPE_F8_E5M2FNUZ] = {"f8_e5m2fnuz", "F8_E5M2FNUZ", 8, false},
    [DTYPE_F6_E2M3] = {"f6_e2m3", "F6_E2M3", 6, false},
    [DTYPE_F6_E3M2] = {"f6_e3m2", "F6_E3M2", 6, false},
    [DTYPE_F4] = {"f4", "F4", 4, false},
    [DTYPE_C64] = {"c64", "C64", 64, false},
};

const DTypeRow *dtype_row(DType dtype)
{
    CHECK((unsigned)dtype < DTYPES, EXIT_CODE_INTERNAL,
          "this is a bug of meshwork: please report it", "dtype %d is not in 0 .. %d", (int)dtype,
          DTYPES - 1);
    return &rows[dtype];
}

bool dtype_find_tag(const char *tag, DType *dtype)
{
    for (int i = 0; i < DTYPES; i++)
        if (strcmp(rows[i].tag, tag) == 0) {
            *dtype = (DType)i;
            return true;
        }
    return false;
}

bool dtype_find_name(const char *name, DType *dtype)
{
    for (int i = 0; i < DTYPES; i++)
        if (strcmp(rows[i].name, name) == 0) {
            *dtype = (DType)i;
            return true;
        }
    return false;
}

// Whole groups of eight elements first, so that elements * bits cannot overflow before the bytes
// do.
uint64_t dtype_bytes(DType dtype, uint64_t elements)
{
    uint64_t bits = (uint64_t)dtype_row(dtype)->bits;
    return elements / 8 * bits + (elements % 8 * bits + 7) / 8;
}

uint16_t bf16_from_f32(float value)
{
    return bf16_bits_from_f32(value);
}

float f32_from_bf16(uint16_t bits)
{
    return f32_from_bf16_bits(bits);
}

// IEEE binary16: s1 e5 m10, bias 15. Exact. Subnormals are mantissa * 2^-24; a NaN keeps sign and
// payload.
float f32_from_f16(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16;
    uint32_t exponent = (bits >> 10) & 0x1Fu, mantissa = bits & 0x3FFu;
    float value;
    if (exponent == 0) {
        value = (float)mantissa * 0x1p-24f;
        return sign ? -value : value;
    }
    uint32_t wide_exponent = exponent == 0x1F ? 0xFFu : exponent + (127 - 15);
    uint32_t wide = sign | wide_exponent << 23 | mantissa << 13;
    memcpy(&value, &wide, sizeof(value));
    return value;
}
