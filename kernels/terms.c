// terms.c -- combining terms on the CPU, block by block: load to the type that computes, combine in
// order, store with one rounding. One function per type comes from one template.
#include "kernels/terms.h"

#include "kernels/cpu_math.h"
#include "quant/format_bits.h"

KERNEL_DEFINE(terms_combine, TermsCombine)
KERNEL_DEFINE(terms_identity, TermsIdentity)

enum { F16_BIAS = 15, F16_MANTISSA_BITS = 10, F16_INFINITY = 0x7C00, F16_NAN = 0x7E00 };

CPU_INLINE uint16_t f16_bits_from_f32(float value)
{
    uint32_t magnitude = format_f32_magnitude(value);
    uint32_t code = format_round_even(magnitude, F16_BIAS, F16_MANTISSA_BITS);
    uint32_t sign = format_f32_bits(value) >> 16 & 0x8000u;
    return (uint16_t)(magnitude > FORMAT_F32_INFINITY ? F16_NAN
                                                      : format_minimum(code, F16_INFINITY) | sign);
}

static const char *term_at(const TermsCombine *args, int term)
{
    uint64_t bytes = dtype_bytes(args->dtype, (uint64_t)args->stride);
    if (term == args->own_index)
        return args->own;
    return (const char *)args->others + bytes * (uint64_t)(term - (term > args->own_index));
}

#define SAME(value)   (value)
#define IS_NAN(a)     ((a) != (a))
#define LARGER(a, b)  (IS_NAN(a) || (a) > (b) ? (a) : (b))
#define SMALLER(a, b) (IS_NAN(a) || (a) < (b) ? (a) : (b))

#define EACH(statement)                                                                            \
    for (int64_t i = 0; i < count; i++)                                                            \
    statement

// wrap: the unsigned type in which sums and products of integers cannot overflow. All terms of a
// block are read before the block is stored, so `out` may be a term.
#define DEFINE_BLOCK(name, storage, compute, wrap, load, store)                                    \
    CPU_CLONES                                                                                     \
    static void block_##name(const TermsCombine *args, int64_t first, int64_t count)               \
    {                                                                                              \
        compute value[CPU_BLOCK];                                                                  \
        const storage *term = (const storage *)(const void *)term_at(args, 0) + first;             \
        EACH(value[i] = (compute)load(term[i]);)                                                   \
        for (int index = 1; index < args->terms; index++) {                                        \
            term = (const storage *)(const void *)term_at(args, index) + first;                    \
            if (args->op == TERMS_PRODUCT)                                                         \
                EACH(value[i] = (compute)((wrap)value[i] * (wrap)load(term[i]));)                  \
            else if (args->op == TERMS_MAX)                                                        \
                EACH(value[i] = LARGER(value[i], (compute)load(term[i]));)                         \
            else if (args->op == TERMS_MIN)                                                        \
                EACH(value[i] = SMALLER(value[i], (compute)load(term[i]));)                        \
            else                                                                                   \
                EACH(value[i] = (compute)((wrap)value[i] + (wrap)load(term[i]));)                  \
        }                                                                                          \
        if (args->op == TERMS_AVG)                                                                 \
            EACH(value[i] /= (compute)args->terms;)                                                \
        storage *out = (storage *)args->out + first;                                               \
        EACH(out[i] = (storage)store(value[i]);)                                                   \
    }

DEFINE_BLOCK(f32, float, float, float, SAME, SAME)
DEFINE_BLOCK(f64, double, double, double, SAME, SAME)
DEFINE_BLOCK(bf16, uint16_t, float, float, f32_from_bf16_bits, bf16_bits_from_f32)
DEFINE_BLOCK(f16, uint16_t, float, float, f32_from_f16, f16_bits_from_f32)
DEFINE_BLOCK(i64, int64_t, int64_t, uint64_t, SAME, SAME)
DEFINE_BLOCK(i32, int32_t, int32_t, uint32_t, SAME, SAME)
DEFINE_BLOCK(i16, int16_t, int16_t, uint32_t, SAME, SAME)
DEFINE_BLOCK(i8, int8_t, int8_t, uint32_t, SAME, SAME)
DEFINE_BLOCK(u64, uint64_t, uint64_t, uint64_t, SAME, SAME)
DEFINE_BLOCK(u32, uint32_t, uint32_t, uint32_t, SAME, SAME)
DEFINE_BLOCK(u16, uint16_t, uint16_t, uint32_t, SAME, SAME)
DEFINE_BLOCK(u8, uint8_t, uint8_t, uint32_t, SAME, SAME)

typedef struct TermsRow {
    void (*block)(const TermsCombine *args, int64_t first, int64_t count);
    bool is_integer;
    uint64_t one; // its bits, little-endian
} TermsRow;

static const TermsRow rows[DTYPES] = {
    [DTYPE_F32] = {block_f32, false, 0x3F800000u},
    [DTYPE_F64] = {block_f64, false, 0x3FF0000000000000u},
    [DTYPE_BF16] = {block_bf16, false, 0x3F80u},
    [DTYPE_F16] = {block_f16, false, 0x3C00u},
    [DTYPE_I64] = {block_i64, true, 1},
    [DTYPE_I32] = {block_i32, true, 1},
    [DTYPE_I16] = {block_i16, true, 1},
    [DTYPE_I8] = {block_i8, true, 1},
    [DTYPE_U64] = {block_u64, true, 1},
    [DTYPE_U32] = {block_u32, true, 1},
    [DTYPE_U16] = {block_u16, true, 1},
    [DTYPE_U8] = {block_u8, true, 1},
};

bool terms_has_arithmetic(DType dtype)
{
    return rows[dtype].block != NULL;
}

bool terms_is_integer(DType dtype)
{
    return rows[dtype].is_integer;
}

uint64_t terms_one(DType dtype)
{
    return rows[dtype].one;
}

void terms_combine_cpu(const TermsCombine *args, Stream stream)
{
    (void)stream;
    CHECK_RULE(terms_has_arithmetic(args->dtype) && args->terms >= 1 && args->own_index >= 0 &&
               args->own_index < args->terms);
#pragma omp parallel for schedule(static) if (args->count >= CPU_PARALLEL_MIN)
    for (int64_t first = 0; first < args->count; first += CPU_BLOCK)
        rows[args->dtype].block(args, first, cpu_block_length(first, args->count));
}

KernelCost terms_combine_cost(const TermsCombine *args)
{
    double count = (double)args->count, terms = (double)args->terms;
    double bytes = (double)dtype_bytes(args->dtype, 1);
    return (KernelCost){.bytes = count * (terms + 1.0) * bytes,
                        .flops = count * (terms - 1.0 + (args->op == TERMS_AVG ? 1.0 : 0.0))};
}

void terms_identity_cpu(const TermsIdentity *args, Stream stream)
{
    (void)stream;
    CHECK_RULE(args->op == TERMS_SUM || args->op == TERMS_PRODUCT);
    uint64_t size = dtype_bytes(args->dtype, 1), one = terms_one(args->dtype);
    if (args->count > 0 && args->op == TERMS_SUM)
        memset(args->out, 0, size * (uint64_t)args->count);
    for (int64_t i = 0; i < args->count && args->op == TERMS_PRODUCT; i++)
        memcpy((char *)args->out + (uint64_t)i * size, &one, size);
}

KernelCost terms_identity_cost(const TermsIdentity *args)
{
    return (KernelCost){.bytes = (double)dtype_bytes(args->dtype, (uint64_t)args->count)};
}
