// isa.h -- the loops of cast/loop.h once per instruction set, variant and input type: what a
// family's file (cast_<family>.c) defines and the table of them.
#pragma once

#include "kernels/cast/loop.h"

// fused: the instruction set has fused steps.
FORMAT_INLINE void cast_band_run(const CastBand *band, const CastVariant *constant, DType input,
                                 bool fused)
{
    CastFixed fixed = {.context = band->context,
                       .ranged = constant->ranged,
                       .lanes = fused && input == DTYPE_BF16};
    fixed.context.input = input;
    fixed.context.rule.method = constant->method;
    fixed.context.rule.code = constant->code;
    fixed.context.rule.code_layout = constant->layout;
    fixed.context.rule.quotient = constant->quotient;
    if (constant->layout == CODES_TILED)
        cast_tile(band, &fixed);
    else if (band->group)
        cast_groups(band, &fixed);
    else
        cast_uniform(band, &fixed);
}

typedef void (*CastBandRun)(const CastBand *band);
typedef enum CastIsa { CAST_AVX512, CAST_AVX2, CAST_ISAS } CastIsa;

#if defined(__x86_64__)
#define CAST_TARGET_AVX2 __attribute__((target("avx2,fma")))
#define CAST_TARGET_AVX512                                                                         \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")))

#define CAST_BAND(name, target, input, ...)                                                        \
    target static void name(const CastBand *band)                                                  \
    {                                                                                              \
        cast_band_run(band, &(const CastVariant){__VA_ARGS__}, input, true);                       \
    }
#define CAST_BANDS(name, ...)                                                                      \
    CAST_BAND(name##_avx512_bf16, CAST_TARGET_AVX512, DTYPE_BF16, __VA_ARGS__)                     \
    CAST_BAND(name##_avx512_f32, CAST_TARGET_AVX512, DTYPE_F32, __VA_ARGS__)                       \
    CAST_BAND(name##_avx2_bf16, CAST_TARGET_AVX2, DTYPE_BF16, __VA_ARGS__)                         \
    CAST_BAND(name##_avx2_f32, CAST_TARGET_AVX2, DTYPE_F32, __VA_ARGS__)
#define CAST_BAND_ENTRY(name, ...)                                                                 \
    {{name##_avx512_bf16, name##_avx512_f32}, {name##_avx2_bf16, name##_avx2_f32}},

// [variant of the family][instruction set][f32]
typedef CastBandRun CastBandTable[CAST_ISAS][2];
extern const CastBandTable cast_bands_fp8[], cast_bands_fp4[], cast_bands_int8[], cast_bands_int4[];
#define CAST_FAMILY(family, variants)                                                              \
    variants(CAST_BANDS) const CastBandTable cast_bands_##family[] = {variants(CAST_BAND_ENTRY)};
#endif
