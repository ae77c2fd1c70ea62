// decode.cuh -- words of codes become pairs of bf16 in registers, for quant_gemm/rows.cu.
//
// As long as both operands of a product agree, terms may be taken in any order, so codes leave
// their words in the order in which that is cheapest:
//
//   4 bits   a word gives (0, 4), (1, 5), (2, 6), (3, 7), shifted by 0, 4, 8, 12
//   8 bits   a word gives (0, 1), (2, 3)
//
// int4 becomes 128 + code + 8 by two logical operations, e2m1 2^-126 of its value; scales and
// offsets follow in bf16 pairs, rounded once, or in f32.
//
// Source: the trick with 128 + code is FasterTransformer's (interleaved_numeric_conversion.h).
#pragma once

#include "kernels/gemm/ptx.cuh"
#include "kernels/quant_gemm/view.cuh"

enum RowsCode { ROWS_INT4, ROWS_INT4_TILED, ROWS_E2M1, ROWS_INT8, ROWS_E4M3 };
enum RowsScale { ROWS_NO_SCALE, ROWS_BF16, ROWS_F32, ROWS_E8M0, ROWS_E4M3_SCALE };

template <RowsCode CODE, RowsScale SCALE, int ROW_SETS> struct RowsKind {
    static constexpr RowsCode code = CODE;
    static constexpr RowsScale scale = SCALE;
    static constexpr int row_sets = ROW_SETS; // of 8 rows of a
    static constexpr bool four_bits = CODE <= ROWS_E2M1;
    static constexpr int chunk = four_bits ? 32 : 16, stage = 4 * chunk; // columns
    static constexpr int stage_words = stage / 2;                        // of a row of a
    static constexpr int subs = SCALE == ROWS_E4M3_SCALE ? 2 : 1;        // scales of a chunk
};

// The second level of nvfp4 where values have it.
static __device__ __forceinline__ float whole_scale(const QuantView &v, float scale, float tensor)
{
    if (v.codes || !v.operand.q.rule.two_level)
        return scale;
    return v.operand.q.rule.method == QUANT_NVFP4_CT ? scale / tensor : tensor * scale;
}

static __device__ __forceinline__ uint32_t twice(float value)
{
    return bf16_pair(value, value);
}

// Four pairs of a word of 4-bit codes.
template <typename K>
static __device__ __forceinline__ void decode_four_bits(const QuantView &v, uint32_t word,
                                                        float scale, float zero, float tensor,
                                                        uint32_t (&pair)[4])
{
    if (K::code == ROWS_E2M1) {
        const float all = whole_scale(v, scale, tensor);
        const uint32_t high = twice(all);
        const uint32_t low = twice(all - __uint_as_float(high & 0xFFFF0000u));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t x = word >> 4 * i;
            const uint32_t tiny = (x << 12 & 0x80008000u) | (x << 6 & 0x01C001C0u);
            const uint32_t code = ptx_bf16_multiply(tiny, 0x7E807E80u); // 2^126
            pair[i] = K::scale == ROWS_E8M0
                          ? ptx_bf16_multiply(code, high)
                          : ptx_bf16_fma(code, high, ptx_bf16_multiply(code, low));
        }
        return;
    }
    const bool whole_zero = v.operand.q.rule.method == QUANT_ZERO_POINT_CT;
    const uint32_t shift = twice(136.0f + (whole_zero ? zero : 0.0f));
    const uint32_t factor = twice(scale), offset = twice(whole_zero ? 0.0f : zero);
    word ^= K::code == ROWS_INT4 ? 0x88888888u : 0u; // two's complement + 8; tiled codes are so
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t above = (word >> 4 * i & 0x000F000Fu) | 0x43004300u; // 128 + code + 8
        pair[i] = ptx_bf16_fma(ptx_bf16_subtract(above, shift), factor, offset);
    }
}

// Two pairs of a word of bytes.
template <typename K>
static __device__ __forceinline__ void decode_bytes(uint32_t word, float scale, float zero,
                                                    uint32_t (&pair)[2])
{
    if (K::code == ROWS_E4M3) {
        const float2 low = ptx_e4m3_pair(word & 0xFFFFu), high = ptx_e4m3_pair(word >> 16);
        pair[0] = bf16_pair(low.x * scale, low.y * scale);
        pair[1] = bf16_pair(high.x * scale, high.y * scale);
        return;
    }
    const uint32_t above = word ^ 0x80808080u;      // code + 128
    const float shift = 8388608.0f + 128.0f + zero; // 2^23: the byte is the end of its mantissa
    float x[4];
    x[0] = __uint_as_float(__byte_perm(above, 0x4B000000u, 0x7540)) - shift;
    x[1] = __uint_as_float(__byte_perm(above, 0x4B000000u, 0x7541)) - shift;
    x[2] = __uint_as_float(__byte_perm(above, 0x4B000000u, 0x7542)) - shift;
    x[3] = __uint_as_float(__byte_perm(above, 0x4B000000u, 0x7543)) - shift;
    pair[0] = bf16_pair(x[0] * scale, x[1] * scale);
    pair[1] = bf16_pair(x[2] * scale, x[3] * scale);
}

static __device__ __forceinline__ uint32_t word_of(const uint4 &x, int i)
{
    return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
}
