// Combining terms, element by element. One function per type comes from one template: load to the
// type that computes, combine in rank order, store with one rounding.
#include "parallel/partial.h"

#include <math.h>
#include <string.h>

#include "harness/bf16.h"
#include "parallel/placement.h"

// binary16 with round to nearest even: the value is scaled so that one f32 unit in the last place
// is one of binary16, lrintf rounds, and the integer carries into the exponent as the format wants
// it.
static uint16_t f16_bits_from_f32(float value)
{
    uint16_t sign = signbit(value) ? 0x8000u : 0;
    float magnitude = fabsf(value);
    if (isnan(value))
        return 0x7E00u;
    if (magnitude >= 65520.0f)
        return (uint16_t)(sign | 0x7C00u);
    if (magnitude < 0x1p-14f)
        return (uint16_t)(sign | (uint16_t)lrintf(magnitude * 0x1p24f));
    int exponent;
    float fraction = frexpf(magnitude, &exponent); // [0.5, 1)
    long mantissa = lrintf(fraction * 2048.0f);    // 1024 .. 2048
    return (uint16_t)(sign | (uint16_t)(((exponent + 13) << 10) + mantissa));
}

#define SAME(value)     (value)
#define SUM(a, b)       ((a) + (b))
#define PRODUCT(a, b)   ((a) * (b))
#define IS_NAN(a)       ((a) != (a))
#define LARGER(a, b)    (IS_NAN(a) || (a) > (b) ? (a) : (b))
#define SMALLER(a, b)   (IS_NAN(a) || (a) < (b) ? (a) : (b))
#define AVERAGE(sum, n) ((sum) / (n))

#define FOLD(storage, compute, load, store, combine, finish)                                       \
    for (int64_t i = 0; i < count; i++) {                                                          \
        compute value = (compute)load(term[i]);                                                    \
        for (int rank = 1; rank < ranks; rank++) {                                                 \
            compute other = (compute)load(term[(int64_t)rank * count + i]);                        \
            value = (compute)combine(value, other);                                                \
        }                                                                                          \
        result[i] = (storage)store(finish);                                                        \
    }

// wrap: the unsigned type in which sums and products of integers cannot overflow.
#define DEFINE_COMBINE(name, storage, compute, wrap, load, store)                                  \
    static void combine_##name(CommOp op, int ranks, const void *terms, int64_t count, void *out)  \
    {                                                                                              \
        const storage *term = terms;                                                               \
        storage *result = out;                                                                     \
        if (op == COMM_SUM)                                                                        \
            FOLD(storage, wrap, load, store, SUM, value)                                           \
        else if (op == COMM_AVG)                                                                   \
            FOLD(storage, wrap, load, store, SUM, AVERAGE(value, (wrap)ranks))                     \
        else if (op == COMM_PRODUCT)                                                               \
            FOLD(storage, wrap, load, store, PRODUCT, value)                                       \
        else if (op == COMM_MAX)                                                                   \
            FOLD(storage, compute, load, store, LARGER, value)                                     \
        else                                                                                       \
            FOLD(storage, compute, load, store, SMALLER, value)                                    \
    }

DEFINE_COMBINE(f32, float, float, float, SAME, SAME)
DEFINE_COMBINE(f64, double, double, double, SAME, SAME)
DEFINE_COMBINE(bf16, uint16_t, float, float, f32_from_bf16_bits, bf16_bits_from_f32)
DEFINE_COMBINE(f16, uint16_t, float, float, f32_from_f16, f16_bits_from_f32)
DEFINE_COMBINE(i64, int64_t, int64_t, uint64_t, SAME, SAME)
DEFINE_COMBINE(i32, int32_t, int32_t, uint32_t, SAME, SAME)
DEFINE_COMBINE(i16, int16_t, int16_t, uint32_t, SAME, SAME)
DEFINE_COMBINE(i8, int8_t, int8_t, uint32_t, SAME, SAME)
DEFINE_COMBINE(u64, uint64_t, uint64_t, uint64_t, SAME, SAME)
DEFINE_COMBINE(u32, uint32_t, uint32_t, uint32_t, SAME, SAME)
DEFINE_COMBINE(u16, uint16_t, uint16_t, uint32_t, SAME, SAME)
DEFINE_COMBINE(u8, uint8_t, uint8_t, uint32_t, SAME, SAME)

typedef struct PartialRow {
    void (*combine)(CommOp op, int ranks, const void *terms, int64_t count, void *out);
    bool is_float;
    uint64_t one; // its bits, little-endian
} PartialRow;

static const PartialRow rows[DTYPES] = {
    [DTYPE_F32] = {combine_f32, true, 0x3F800000u},
    [DTYPE_F64] = {combine_f64, true, 0x3FF0000000000000u},
    [DTYPE_BF16] = {combine_bf16, true, 0x3F80u},
    [DTYPE_F16] = {combine_f16, true, 0x3C00u},
    [DTYPE_I64] = {combine_i64, false, 1},
    [DTYPE_I32] = {combine_i32, false, 1},
    [DTYPE_I16] = {combine_i16, false, 1},
    [DTYPE_I8] = {combine_i8, false, 1},
    [DTYPE_U64] = {combine_u64, false, 1},
    [DTYPE_U32] = {combine_u32, false, 1},
    [DTYPE_U16] = {combine_u16, false, 1},
    [DTYPE_U8] = {combine_u8, false, 1},
};

bool partial_check(DType dtype, CommOp op, Error *error)
{
    const char *name = dtype_row(dtype)->name;
    if (!rows[dtype].combine)
        return error_set(error, EXIT_CODE_USAGE,
                         "use f32, f64, bf16, f16 or an integer type, or no P",
                         "P(%s): there is no arithmetic for %s", placement_op_name(op), name);
    if (op == COMM_AVG && !rows[dtype].is_float)
        return error_set(error, EXIT_CODE_USAGE, "use P(sum), or a floating-point type",
                         "P(avg): the average of %s would be rounded", name);
    return true;
}

void partial_combine(DType dtype, CommOp op, int ranks, const void *terms, int64_t count, void *out)
{
    CHECK_RULE(rows[dtype].combine != NULL && ranks >= 1);
    rows[dtype].combine(op, ranks, terms, count, out);
}

bool partial_has_identity(CommOp op)
{
    return op == COMM_SUM || op == COMM_PRODUCT;
}

void partial_fill_identity(DType dtype, CommOp op, int64_t count, void *out)
{
    CHECK_RULE(partial_has_identity(op));
    uint64_t size = dtype_bytes(dtype, 1);
    if (count == 0)
        return;
    if (op == COMM_SUM) {
        memset(out, 0, size * (uint64_t)count);
        return;
    }
    for (int64_t i = 0; i < count; i++)
        memcpy((char *)out + (uint64_t)i * size, &rows[dtype].one, size);
}
