// work.cuh -- what the CUDA casts share: the work as a kernel sees it, eight elements at a
// time, and the statistics of them.
//
// A unit is 8 neighbouring elements of a row: 16 bytes of bf16, 32 of f32. A lane loads several
// units before it uses the first. bf16 stay packed until they are multiplied.
#pragma once

#include "kernels/cast/pairs.h"
#include "kernels/cuda_common.cuh"
#include "quant/place.h"

enum {
    CAST_THREADS = 256,
    CAST_UNITS = 4,        // of a lane, in groups
    CAST_TILE_SIDE = 128,  // of tiles that are transposed, and of square blocks
    CAST_BLOCK_BYTES = 128 // of a thread's part of a block
};

// Of numbers below 2^31, by multiplication: ceil(2^(31 + bits) / n), bits = ceil(log2 n), is off by
// less than n, which 2^31 of them do not make a whole.
struct CastDivisor {
    uint32_t multiplier;
    int bits;
};
static inline CastDivisor cast_divisor(int64_t n)
{
    int bits = 0;
    while ((int64_t)1 << bits < n)
        bits++;
    const uint64_t power = (uint64_t)1 << (31 + bits);
    return {n > 0 ? (uint32_t)((power + (uint64_t)n - 1) / (uint64_t)n) : 0, 31 + bits};
}
__device__ __forceinline__ uint32_t divided(uint32_t value, CastDivisor by)
{
    return (uint32_t)((uint64_t)value * by.multiplier >> by.bits);
}

// A cast as the kernels see it: one of QTensors' walks (quantise.h), sizes counted out.
struct CastWork {
    QuantContext context; // tensor_scale: see tensor_scales
    const void *values;
    uint8_t *codes;
    void *scales, *zeros;
    const float *tensor_scales;          // [matrices], or NULL
    int64_t rows, columns;               // of a matrix
    int64_t padded_rows, padded_columns; // of its codes
    int64_t all_rows;                    // matrices * padded_rows
    int64_t block_rows, block_columns;   // of a block
    int64_t scale_stride;                // from matrix to matrix
    QuantGrid grid;                      // of a matrix's scales
    bool given;                          // one block for everything, its scale is there already
    int group_bits;                      // log2 of block_columns, where that is a power of two
    // Of groups in a tensor that is one sequence of them:
    int64_t count; // elements; or blocks that thread blocks or warps have one by one
    CastDivisor by_grid_columns, by_rows;
    bool gathers;          // thread blocks take eight rows, and store scales 16 bytes at a time
    CastDivisor by_across; // thread blocks that lie beside each other, where they do
    // Of rows of experts (expert_operand.h): NULL, or which are real, and of which values.
    const int32_t *row_map, *rows_total;
    bool mapped;
};

// The row of the values that is cast as row `row` of a matrix; -1: none.
__device__ __forceinline__ int64_t work_source(const CastWork &work, int64_t row)
{
    if (!work.row_map)
        return row;
    const int64_t mapped = row < __ldg(work.rows_total) ? __ldg(work.row_map + row) : -1;
    return mapped < 0 || work.mapped ? mapped : row;
}

// In which layout, if it has it, a variant's scales are gathered before they are stored; PLAIN:
// none, since the scales of a warp lie side by side.
static constexpr ScaleLayout cast_gathered(QuantMethod method, QuantCode code, CodeLayout layout,
                                           QuantQuotient quotient)
{
    const bool divides = method == QUANT_SYMMETRIC && code == CODE_INT4 && layout == CODES_PAIRS &&
                         quotient == QUOTIENT_DIVIDE;
    return method == QUANT_MX || method == QUANT_NVFP4 ? SCALES_SWIZZLED
           : method == QUANT_RANGE || divides          ? SCALES_TRANSPOSED
                                                       : SCALES_PLAIN;
}

// A variant as a type; constants of it leave one path through cast_choose and cast_encode.
template <QuantMethod METHOD, QuantCode CODE, CodeLayout LAYOUT, QuantQuotient QUOTIENT,
          bool RANGED, DType INPUT>
struct CastKind {
    static constexpr QuantMethod method = METHOD;
    static constexpr QuantCode code = CODE;
    static constexpr CodeLayout layout = LAYOUT;
    static constexpr QuantQuotient quotient = QUOTIENT;
    static constexpr bool ranged = RANGED;
    static constexpr DType input = INPUT;
    // Whether there can be a second scale of the matrix.
    static constexpr bool second = METHOD == QUANT_NVFP4 || METHOD == QUANT_NVFP4_CT;
    // Columns of a block; 0: known at run time, 32 or more.
    static constexpr int group = METHOD == QUANT_MX ? 32 : second ? 16 : 0;
    static constexpr ScaleLayout gathered = cast_gathered(METHOD, CODE, LAYOUT, QUOTIENT);
    static constexpr bool banded = gathered != SCALES_PLAIN || second;
};
template <DType INPUT> struct CastElement {
    typedef float type;
};
template <> struct CastElement<DTYPE_BF16> {
    typedef Bf16 type;
};

typedef void (*CastKernel)(CastWork work);

template <typename Kind> __device__ __forceinline__ QuantRule cast_rule(QuantRule rule)
{
    rule.method = Kind::method;
    rule.code = Kind::code;
    rule.code_layout = Kind::layout;
    rule.quotient = Kind::quotient;
    if (Kind::method == QUANT_MX || Kind::second) {
        rule.scale_dtype = Kind::second ? DTYPE_F8_E4M3 : DTYPE_F8_E8M0; // or U8: a byte
        rule.has_zeros = false;
    }
    if (Kind::method == QUANT_TILE)
        rule.scale_dtype = rule.zero_dtype = DTYPE_BF16;
    return rule;
}

template <typename Kind>
__device__ __forceinline__ QuantContext cast_context(const CastWork &work, int64_t matrix)
{
    QuantContext context = work.context;
    context.rule = cast_rule<Kind>(context.rule);
    context.input = Kind::input;
    if (Kind::second)
        context.tensor_scale = work.tensor_scales ? __ldg(work.tensor_scales + matrix) : 1.0f;
    return context;
}

// ---- units ----

// Read once: not kept in the caches longer than others.
__device__ __forceinline__ Group<Bf16> unit_load(const Bf16 *from)
{
    const uint4 raw = __ldcs((const uint4 *)from);
    return {{raw.x, raw.y, raw.z, raw.w}};
}
__device__ __forceinline__ Group<float> unit_load(const float *from)
{
    const float4 low = __ldcs((const float4 *)from), high = __ldcs((const float4 *)from + 1);
    return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}

// Read again soon, from the L2.
__device__ __forceinline__ Group<Bf16> unit_load_again(const Bf16 *from)
{
    const uint4 raw = __ldcg((const uint4 *)from);
    return {{raw.x, raw.y, raw.z, raw.w}};
}
__device__ __forceinline__ Group<float> unit_load_again(const float *from)
{
    const float4 low = __ldcg((const float4 *)from), high = __ldcg((const float4 *)from + 1);
    return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}

__device__ __forceinline__ void unit_clear(Group<Bf16> *unit)
{
    *unit = {{0, 0, 0, 0}};
}
__device__ __forceinline__ void unit_clear(Group<float> *unit)
{
    *unit = {{0, 0, 0, 0, 0, 0, 0, 0}};
}

// ---- statistics ----
//
// Peak: of some elements the largest magnitude, as bits, which order like the numbers, NaN above
// all; or (ranged) the largest and the largest negated, NaN if any is.

__device__ __forceinline__ float larger_or_nan(float a, float b)
{
    float most;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(a), "f"(b));
    return most;
}
__device__ __forceinline__ uint32_t larger_pair_or_nan(uint32_t a, uint32_t b)
{
    uint32_t most;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(most) : "r"(a), "r"(b));
    return most;
}

__device__ __forceinline__ uint32_t smaller_pair_or_nan(uint32_t a, uint32_t b)
{
    uint32_t least;
    asm("min.NaN.bf16x2 %0, %1, %2;" : "=r"(least) : "r"(a), "r"(b));
    return least;
}

template <bool RANGED, DType INPUT> struct Peak;

template <DType INPUT> struct Peak<false, INPUT> {
    uint32_t bits;
    __device__ static Peak none()
    {
        return {0};
    }
    __device__ static Peak of(const Group<Bf16> &unit)
    {
        const uint32_t all = 0x7FFF7FFFu;
        const uint32_t pairs = __vmaxu2(__vmaxu2(unit.pair[0] & all, unit.pair[1] & all),
                                        __vmaxu2(unit.pair[2] & all, unit.pair[3] & all));
        return {max(pairs << 16, pairs & 0xFFFF0000u)};
    }
    __device__ static Peak of(const Group<float> &unit)
    {
        uint32_t most = 0;
#pragma unroll
        for (int e = 0; e < GROUP_ELEMENTS; e++)
            most = max(most, format_f32_magnitude(unit.value[e]));
        return {most};
    }
    __device__ Peak joined(Peak other) const
    {
        return {max(bits, other.bits)};
    }
    __device__ Peak from_lane(int apart) const
    {
        return {__shfl_xor_sync(WARP_ALL, bits, apart)};
    }
    __device__ QuantStatistics statistics() const
    {
        const float amax = bits > FORMAT_F32_INFINITY ? quant_nan() : format_f32_value(bits);
        return {amax, -amax, amax};
    }
};

template <> struct Peak<true, DTYPE_BF16> {
    uint32_t pair; // largest, largest negated
    __device__ static Peak none()
    {
        return {0xFF80FF80u};
    }
    __device__ static Peak of(const Group<Bf16> &unit)
    {
        const uint32_t high = larger_pair_or_nan(larger_pair_or_nan(unit.pair[0], unit.pair[1]),
                                                 larger_pair_or_nan(unit.pair[2], unit.pair[3]));
        const uint32_t low = smaller_pair_or_nan(smaller_pair_or_nan(unit.pair[0], unit.pair[1]),
                                                 smaller_pair_or_nan(unit.pair[2], unit.pair[3])) ^
                             0x80008000u;
        return {larger_pair_or_nan(__byte_perm(high, low, 0x5410), __byte_perm(high, low, 0x7632))};
    }
    __device__ Peak joined(Peak other) const
    {
        return {larger_pair_or_nan(pair, other.pair)};
    }
    __device__ Peak from_lane(int apart) const
    {
        return {__shfl_xor_sync(WARP_ALL, pair, apart)};
    }
    __device__ QuantStatistics statistics() const
    {
        const float high = __uint_as_float(pair << 16);
        const float low = -__uint_as_float(pair & 0xFFFF0000u);
        if (quant_is_nan(high) || quant_is_nan(low))
            return {quant_nan(), quant_nan(), quant_nan()};
        return {fmaxf(fabsf(high), fabsf(low)), low, high};
    }
};

template <> struct Peak<true, DTYPE_F32> {
    float high, low_negated;
    __device__ static Peak none()
    {
        return {-INFINITY, -INFINITY};
    }
    __device__ static Peak of(const Group<float> &unit)
    {
        Peak peak = {unit.value[0], -unit.value[0]};
#pragma unroll
        for (int e = 1; e < GROUP_ELEMENTS; e++)
            peak = peak.joined({unit.value[e], -unit.value[e]});
        return peak;
    }
    __device__ Peak joined(Peak other) const
    {
        return {larger_or_nan(high, other.high), larger_or_nan(low_negated, other.low_negated)};
    }
    __device__ Peak from_lane(int apart) const
    {
        return {__shfl_xor_sync(WARP_ALL, high, apart),
                __shfl_xor_sync(WARP_ALL, low_negated, apart)};
    }
    __device__ QuantStatistics statistics() const
    {
        const float low = -low_negated;
        if (quant_is_nan(high) || quant_is_nan(low))
            return {quant_nan(), quant_nan(), quant_nan()};
        return {fmaxf(fabsf(high), fabsf(low)), low, high};
    }
};

// ---- codes ----

// The codes of a unit that the quick arithmetic does not have: one after the other, from memory,
// which takes no registers from those that do.
template <typename Kind>
__device__ __forceinline__ void
unit_codes_slow(const QuantContext &context, const QuantBlock &block,
                const typename CastElement<Kind::input>::type *from, uint32_t (&words)[2])
{
    const int bits = Kind::layout == CODES_BYTES ? 8 : 4;
    uint64_t all = 0;
#pragma unroll 1
    for (int e = GROUP_ELEMENTS - 1; e >= 0; e--)
        all = all << bits | cast_byte(&context.rule, cast_encode(&context, &block, widen(from[e])));
    words[0] = (uint32_t)all;
    words[1] = (uint32_t)(all >> 32);
}

template <typename Kind>
__device__ __forceinline__ bool unit_fits(const QuantContext &context, const QuantBlock &block,
                                          float amax)
{
    if (cast_pairs_has(&context))
        return cast_pairs_fits(&context, &block, amax);
    return cast_quick_fits(&context, &block, amax);
}

template <typename Kind, typename Unit>
__device__ __forceinline__ void unit_codes_quick(const QuantContext &context,
                                                 const QuantBlock &block, const Unit &unit,
                                                 uint32_t (&words)[2])
{
    float q[GROUP_ELEMENTS];
#pragma unroll
    for (int e = 0; e < GROUP_ELEMENTS; e++)
        q[e] = cast_quick_scaled(&context, &block, group_value(unit, e));
    cast_quick_pack(&context.rule, q, words);
}

template <typename Kind>
__device__ __forceinline__ void unit_codes(const QuantContext &context, const QuantBlock &block,
                                           const Group<float> &unit, uint32_t (&words)[2])
{
    unit_codes_quick<Kind>(context, block, unit, words);
}
template <typename Kind>
__device__ __forceinline__ void unit_codes(const QuantContext &context, const QuantBlock &block,
                                           const Group<Bf16> &unit, uint32_t (&words)[2])
{
    if (cast_pairs_has(&context))
        cast_pairs_codes(&context, &block, unit.pair, words);
    else
        unit_codes_quick<Kind>(context, block, unit, words);
}

// element: of the codes. BYTES and PAIRS.
template <CodeLayout LAYOUT>
__device__ __forceinline__ void unit_store(uint8_t *codes, int64_t element,
                                           const uint32_t (&words)[2])
{
    if (LAYOUT == CODES_BYTES)
        *(uint2 *)(codes + element) = make_uint2(words[0], words[1]);
    else
        *(uint32_t *)(codes + element / 2) = words[0];
}

// The second time, from memory. quick: by the arithmetic of cast/quick.h.
template <typename Kind>
__device__ __forceinline__ void
unit_words_again(const QuantContext &context, const QuantBlock &block, bool quick,
                 const typename CastElement<Kind::input>::type *from, uint32_t (&words)[2])
{
    if (quick)
        unit_codes_quick<Kind>(context, block, unit_load(from), words);
    else
        unit_codes_slow<Kind>(context, block, from, words);
}
template <typename Kind>
__device__ __forceinline__ void
unit_again(const CastWork &work, const QuantContext &context, const QuantBlock &block, bool quick,
           const typename CastElement<Kind::input>::type *from, int64_t element)
{
    uint32_t words[2];
    unit_words_again<Kind>(context, block, quick, from, words);
    unit_store<Kind::layout>(work.codes, element, words);
}

// A block of the grid of scales.
struct BlockPlace {
    int64_t matrix, row, column;
    bool there;
};

__device__ __forceinline__ void block_put(const CastWork &work, const QuantRule &rule,
                                          const BlockPlace &place, const QuantBlock &block)
{
    const int64_t index =
        place.matrix * work.scale_stride + quant_scale_place(work.grid, place.row, place.column);
    quant_store_bits(work.scales, rule.scale_dtype, index, block.scale_bits);
    if (rule.has_zeros && work.zeros)
        quant_store_bits(work.zeros, rule.zero_dtype, index, block.zero_bits);
    else if (rule.has_zeros)
        quant_store_bits(work.scales, rule.zero_dtype, index + 1, block.zero_bits);
}
template <typename Kind>
__device__ __forceinline__ void block_store(const CastWork &work, const BlockPlace &place,
                                            const QuantBlock &block)
{
    block_put(work, cast_rule<Kind>(work.context.rule), place, block);
}

// What arithmetic needs of a block whose scale was stored in f32.
__device__ __forceinline__ QuantBlock block_of_scale(const QuantContext &context, float scale)
{
    QuantBlock block = {scale, 0.0f, 1.0f / scale, 0, 0};
    if (context.rule.quotient == QUOTIENT_RECIPROCAL_INPUT)
        block.multiplier = quant_round(context.input, block.multiplier);
    return block;
}
