// decode.cuh -- words of codes become pairs of bf16 in registers, for quant_gemm/rows.cu.
//
// As long as both operands of a product agree, terms may be taken in any order, so codes leave
// their words in the order in which that is cheapest:
//
//   4 bits   a word gives (0, 4), (1, 5), (2, 6), (3, 7), shifted by 0, 4, 8, 12
//   8 bits   a word gives (0, 1), (2, 3)
//
// int4 becomes 128 + code + 8 where it ends its half of the word, and 2^-129 (code + 8) four bits
// up, since bf16's smallest exponent and the one below have the same steps; e2m1 2^-126 of its
// value. Scales and offsets follow in bf16 pairs, rounded once, or in f32.
//
// Source: the trick with 128 + code is FasterTransformer's (interleaved_numeric_conversion.h).
#pragma once

#include "kernels/gemm/ptx.cuh"
#include "kernels/quant_gemm/view.cuh"

enum RowsCode { ROWS_INT4, ROWS_INT4_TILED, ROWS_E2M1, ROWS_INT8, ROWS_E4M3 };
enum RowsScale {
    ROWS_NO_SCALE,
    ROWS_BF16,       // with bf16 zero points, or none
    ROWS_BF16_STAGE, // the same, one for all of a row's columns in a stage
    ROWS_BF16_WHOLE, // zero points are whole numbers, in units of codes
    ROWS_F32,
    ROWS_E8M0,
    ROWS_E4M3_SCALE
};

enum {
    ROWS_AHEAD = 4,          // stages of a warp on their way
    ROWS_CODES_BYTES = 1024, // of a stage of a warp
};

static constexpr int rows_scale_bytes(RowsScale scale)
{
    return scale == ROWS_F32 ? 4 : scale >= ROWS_BF16 && scale <= ROWS_BF16_WHOLE ? 2 : 1;
}

template <RowsCode CODE, RowsScale SCALE, int ROW_SETS> struct RowsKind {
    static constexpr RowsCode code = CODE;
    static constexpr RowsScale scale = SCALE;
    static constexpr int row_sets = ROW_SETS; // of 8 rows of a
    static constexpr int scale_bytes = rows_scale_bytes(SCALE);
    static constexpr bool four_bits = CODE <= ROWS_E2M1;
    static constexpr int chunk = four_bits ? 32 : 16, stage = 4 * chunk; // columns
    static constexpr int stage_words = stage / 2;                        // of a row of a
    // In shared memory, of a warp: codes of 16 rows and a lane's words with scales and zero points.
    static constexpr int scale_words = SCALE == ROWS_NO_SCALE         ? 0
                                       : rows_scale_bytes(SCALE) == 2 ? 4
                                                                      : 2;
    static constexpr bool quads = SCALE == ROWS_BF16_STAGE; // four lanes share a row's words
    static constexpr int ring_stage =
        ROWS_CODES_BYTES + scale_words * 4 * (quads ? WARP_LANES / 4 : WARP_LANES);
    static constexpr int ring_bytes = ROWS_AHEAD * ring_stage;
    static constexpr int step = CODE == ROWS_INT4_TILED ? 512 : 64; // bytes from stage to stage
    static constexpr bool near = SCALE == ROWS_E8M0 && !four_bits;  // see RowsArgs
    static constexpr int subs = SCALE == ROWS_E4M3_SCALE ? 2 : 1;   // scales of a chunk
};

// Scales and zero points of a chunk.
struct RowsScales {
    uint32_t scale; // bits: bf16 or two e4m3 bytes, in both halves; f32; or a byte
    uint32_t zero;  // bits of bf16 in both halves, or a whole number
};

// The second level of nvfp4's values. Scales are multiplied by `before`, a power of two that makes
// up for e2m1's 2^-126 (below) as far as the largest scale allows, and sums by `after`.
struct RowsLevels {
    bool divides; // else multiplies
    float tensor, reciprocal, before, after;
};

// cvt leaves NaN as it likes, which is enough for an operand of the tensor cores.
static __device__ __forceinline__ uint32_t pair_of(float low, float high)
{
    uint32_t bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

// The second level of nvfp4 where values have it. The quotient is corrected once, which rounds it
// as a division does.
static __device__ __forceinline__ float whole_scale(const RowsLevels &levels, float scale)
{
    const float product = __fmul_rn(scale, levels.reciprocal);
    const float rest = __fmaf_rn(-product, levels.tensor, scale);
    const float quotient = __fmaf_rn(rest, levels.reciprocal, product);
    return levels.divides && rest == rest ? quotient : product;
}

static __device__ __forceinline__ RowsLevels levels_of(const QuantView &v, int matrix)
{
    RowsLevels levels = {false, 1.0f, 1.0f, 0.0f, 0.0f};
    if (!v.codes && v.operand.q.rule.two_level) {
        levels.divides = v.operand.q.rule.method == QUANT_NVFP4_CT;
        levels.tensor = view_tensor_scale(v, matrix);
        levels.reciprocal = levels.divides ? __fdiv_rn(1.0f, levels.tensor) : levels.tensor;
    }
    const uint32_t largest = __float_as_uint(fabsf(448.0f * levels.reciprocal)) >> 23;
    const uint32_t excess = max(largest, 127u) - 127; // 2^excess <= it, at most 128
    levels.before = __uint_as_float((127 + 126 - excess) << 23);
    levels.after = __uint_as_float((127 + excess) << 23);
    return levels;
}

// 4 bits: what codes are combined with, in pairs.
struct RowsFactors {
    uint32_t high, low;              // scale; e2m1: what its bf16 leaves of it; int4: 4 times it
    uint32_t shift, shift_4, offset; // int4: what is taken from 128 + code; -1/4 of its rest
};

// For half `sub` of a chunk.
template <typename K>
static __device__ __forceinline__ RowsFactors factors_of(const RowsLevels &levels,
                                                         const RowsScales &s, int sub)
{
    RowsFactors f = {};
    if (K::scale == ROWS_E8M0) { // a power of two: 2^-127 lies below bf16's exponents, 255 is NaN
        f.high = max(s.scale * 0x00800080u, 0x00400040u) + (s.scale == 255 ? 0x00400040u : 0u);
    } else if (K::scale == ROWS_E4M3_SCALE) {
        const float2 both = ptx_e4m3_pair(s.scale & 0xFFFFu);
        const float all = whole_scale(levels, sub ? both.y : both.x) * levels.before;
        f.high = pair_of(all, all);
        const float rest = all - __uint_as_float(f.high & 0xFFFF0000u);
        f.low = pair_of(rest, rest);
    } else { // from 128 to 255 a step of bf16 is 1
        f.high = s.scale;
        f.low = ptx_bf16_multiply(f.high, 0x40804080u);
        f.shift = 0x43084308u + (K::scale == ROWS_BF16_WHOLE ? s.zero * 0x00010001u : 0u);
        f.shift_4 = K::scale == ROWS_BF16_WHOLE ? ptx_bf16_fma(f.shift, 0xBE80BE80u, 0x42004200u)
                                                : 0xC000C000u;
        f.offset = K::scale == ROWS_BF16_WHOLE ? 0u : s.zero;
    }
    return f;
}

// x & y ^ z by one instruction: with two constants the compiler takes two.
static __device__ __forceinline__ uint32_t lop3_and_xor(uint32_t x, uint32_t y, uint32_t z)
{
    uint32_t result;
    asm("lop3.b32 %0, %1, %2, %3, 0x6A;" : "=r"(result) : "r"(x), "r"(y), "r"(z));
    return result;
}

template <typename K>
static __device__ __forceinline__ void decode_e2m1(uint32_t word, const RowsFactors &f,
                                                   uint32_t (&pair)[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t sign = i < 3 ? word << (12 - 4 * i) : word;
        const uint32_t rest = (i < 2 ? word << (6 - 4 * i) : word >> (4 * i - 6)) & 0x01C001C0u;
        const uint32_t tiny = (sign & 0x80008000u) | rest; // 2^-126 of the code
        pair[i] = K::scale == ROWS_E8M0
                      ? ptx_bf16_multiply(ptx_bf16_multiply(tiny, 0x7E807E80u), f.high)
                      : ptx_bf16_fma(tiny, f.high, ptx_bf16_multiply(tiny, f.low));
    }
}

// Four pairs of a word of 4-bit codes.
template <typename K>
static __device__ __forceinline__ void decode_four_bits(uint32_t word, const RowsFactors &f,
                                                        uint32_t (&pair)[4])
{
    if constexpr (K::code == ROWS_E2M1) {
        decode_e2m1<K>(word, f, pair);
        return;
    }
    // Tiled codes have the 8 that signed ones get from bit 3.
    constexpr uint32_t EIGHT = K::code == ROWS_INT4 ? 8 : 0;
#pragma unroll
    for (int i = 0; i < 4; i += 2, word >>= 8) {
        const uint32_t above = lop3_and_xor(word, 0x000F000Fu, 0x43004300u + EIGHT * 0x00010001u);
        pair[i] = ptx_bf16_fma(ptx_bf16_subtract(above, f.shift), f.high, f.offset);
        const uint32_t tiny = lop3_and_xor(word, 0x00F000F0u, EIGHT * 0x00100010u);
        const uint32_t quarter = ptx_bf16_fma(tiny, 0x7F007F00u, f.shift_4);
        pair[i + 1] = ptx_bf16_fma(quarter, f.low, f.offset);
    }
}

// The f32 scale and zero point of bytes.
template <typename K> static __device__ __forceinline__ float byte_scale(const RowsScales &s)
{
    return K::scale == ROWS_NO_SCALE ? 1.0f
           : K::scale_bytes == 2     ? __uint_as_float(s.scale << 16)
           : K::scale == ROWS_E8M0   ? quant_mx_power(s.scale)
                                     : __uint_as_float(s.scale);
}

// No recipe has bytes with zero points in units of values.
template <typename K> static __device__ __forceinline__ float byte_zero(const RowsScales &s)
{
    return K::scale == ROWS_BF16_WHOLE ? (float)(int32_t)s.zero : 0.0f;
}

// Two pairs of a word of bytes.
template <typename K>
static __device__ __forceinline__ void decode_bytes(uint32_t word, float scale, float zero,
                                                    uint32_t (&pair)[2])
{
    if (K::code == ROWS_E4M3) {
        const float2 low = ptx_e4m3_pair(word & 0xFFFFu), high = ptx_e4m3_pair(word >> 16);
        pair[0] = pair_of(low.x * scale, low.y * scale);
        pair[1] = pair_of(high.x * scale, high.y * scale);
        return;
    }
    if (K::scale == ROWS_NO_SCALE) { // (128 + 7 bits) - (128, or 256 under the sign)
        const uint32_t low = __byte_perm(word, 0x43434343u, 0x4140);
        const uint32_t high = __byte_perm(word, 0x43434343u, 0x4342);
        pair[0] = ptx_bf16_subtract(low & 0xFF7FFF7Fu, low & 0xFF80FF80u);
        pair[1] = ptx_bf16_subtract(high & 0xFF7FFF7Fu, high & 0xFF80FF80u);
        return;
    }
    const uint32_t above = word ^ 0x80808080u;      // code + 128
    const float shift = 8388608.0f + 128.0f + zero; // 2^23: the byte is the end of its mantissa
    float x[4];
    x[0] = __uint_as_float(__byte_perm(above, 0x4B000000u, 0x7540)) - shift;
    x[1] = __uint_as_float(__byte_perm(above, 0x4B000000u, 0x7541)) - shift;
    x[2] = __uint_as_float(__byte_perm(above, 0x4B000000u, 0x7542)) - shift;
    x[3] = __uint_as_float(__byte_perm(above, 0x4B000000u, 0x7543)) - shift;
    pair[0] = pair_of(x[0] * scale, x[1] * scale);
    pair[1] = pair_of(x[2] * scale, x[3] * scale);
}

static __device__ __forceinline__ uint32_t word_of(const uint4 &x, int i)
{
    return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
}
