// dtype.h -- the element types that tensors and files may have, as one table.
//
// Names and tags are those of the safetensors container (huggingface/safetensors), which is also
// what users see.
#pragma once

#include "harness/base.h"

DECLARATIONS_BEGIN

typedef enum DType {
    DTYPE_F32,
    DTYPE_BF16,
    DTYPE_F16,
    DTYPE_F64,
    DTYPE_I64,
    DTYPE_I32,
    DTYPE_I16,
    DTYPE_I8,
    DTYPE_U64,
    DTYPE_U32,
    DTYPE_U16,
    DTYPE_U8,
    DTYPE_BOOL,
    DTYPE_F8_E4M3,
    DTYPE_F8_E5M2,
    DTYPE_F8_E8M0,
    DTYPE_F8_E4M3FNUZ,
    DTYPE_F8_E5M2FNUZ,
    DTYPE_F6_E2M3,
    DTYPE_F6_E3M2,
    DTYPE_F4,
    DTYPE_C64,
    DTYPES,
} DType;

typedef struct DTypeRow {
    const char *name; // "bf16": what options take and tables print
    const char *tag;  // "BF16": safetensors header
    int bits;         // per element; sub-byte types are packed
    bool computes;    // storage type of dp2ep and friends (f32, bf16)
} DTypeRow;

const DTypeRow *dtype_row(DType dtype);               // Local
bool dtype_find_tag(const char *tag, DType *dtype);   // Local. False if there is no such tag
bool dtype_find_name(const char *name, DType *dtype); // Local
// Local. Bytes of `elements` values; sub-byte types round up to whole bytes.
uint64_t dtype_bytes(DType dtype, uint64_t elements);

// Local. One f32 to bf16 and back, as torch does it: round to nearest even, every NaN becomes 7FC0.
uint16_t bf16_from_f32(float value);
float f32_from_bf16(uint16_t bits);
float f32_from_f16(uint16_t bits);

DECLARATIONS_END
