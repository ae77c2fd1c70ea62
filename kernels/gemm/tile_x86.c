// tile_x86.c -- tiles for AVX-512 and for AVX2 with FMA, chosen at run time.
//
// AVX-512: 14 x 32 sums fill 28 of the 32 registers; a step of k is 2 loads of b, 14 broadcasts of
// a and 28 fused multiply-adds, so the multiply-add pipes limit it, not the loads. AVX2: 6 x 16
// sums fill 12 of 16 registers. Packing across transposes 8 x 8 blocks, with half of the shuffling
// done by 128-bit loads.

#include "kernels/gemm/tile_x86.h"

#if defined(__x86_64__)

#include <immintrin.h>

enum {
    AVX512_ROWS = 14,
    AVX512_COLUMNS = 32,
    AVX512_A_WIDTH = 16,
    AVX2_ROWS = 6,
    AVX2_COLUMNS = 16,
    AVX2_A_WIDTH = 8,
    FETCH_EVERY = 4, // steps of k
    LINE_BYTES = 64,
    ACROSS_K = 64,
    LINES_AHEAD = 6,
};
#define TARGET_AVX512 __attribute__((target("avx512f")))
#define TARGET_AVX2   __attribute__((target("avx2,fma")))
#define ALWAYS_INLINE static inline __attribute__((always_inline))

static bool avx512_supported(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx2") &&
           __builtin_cpu_supports("fma");
}

static bool avx2_supported(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

// The cache line that step k of a call asks for, counted from its first.
ALWAYS_INLINE const char *fetch_line(const GemmTileCall *call, int64_t k)
{
    int64_t line = k / FETCH_EVERY;
    int64_t run = line >> call->fetch_shift;
    return call->fetch + run * call->fetch_stride +
           (line - (run << call->fetch_shift)) * LINE_BYTES;
}

// `rows` is a constant in every copy, so the loops unroll and the sums stay in registers.
ALWAYS_INLINE TARGET_AVX512 void avx512_rows(const int rows, const GemmTileCall *call)
{
    __m512 sum[AVX512_ROWS][2];
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
        const float *at = call->sum + i * call->sum_stride;
        sum[i][0] = call->first ? _mm512_setzero_ps() : _mm512_loadu_ps(at);
        sum[i][1] = call->first ? _mm512_setzero_ps() : _mm512_loadu_ps(at + 16);
    }
    const float *a = call->a, *b = call->b;
    for (int64_t k = 0; k < call->k; k++) {
        if (k % FETCH_EVERY == 0 && call->fetch)
            _mm_prefetch(fetch_line(call, k), _MM_HINT_T1);
        __m512 b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16);
#pragma GCC unroll 14
        for (int i = 0; i < rows; i++) {
            __m512 value = _mm512_set1_ps(a[i]);
            sum[i][0] = _mm512_fmadd_ps(value, b0, sum[i][0]);
            sum[i][1] = _mm512_fmadd_ps(value, b1, sum[i][1]);
        }
        a += AVX512_A_WIDTH;
        b += AVX512_COLUMNS;
    }
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
        float *at = call->sum + i * call->sum_stride;
        _mm512_storeu_ps(at, sum[i][0]);
        _mm512_storeu_ps(at + 16, sum[i][1]);
    }
}

TARGET_AVX512 static void avx512_multiply(const GemmTileCall *call)
{
#define ROWS(n)                                                                                    \
    case n:                                                                                        \
        avx512_rows(n, call);                                                                      \
        break
    switch (call->rows) {
        ROWS(1);
        ROWS(2);
        ROWS(3);
        ROWS(4);
        ROWS(5);
        ROWS(6);
        ROWS(7);
        ROWS(8);
        ROWS(9);
        ROWS(10);
        ROWS(11);
        ROWS(12);
        ROWS(13);
        ROWS(14);
    }
#undef ROWS
}

ALWAYS_INLINE TARGET_AVX2 void avx2_rows(const int rows, const GemmTileCall *call)
{
    __m256 sum[AVX2_ROWS][2];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        const float *at = call->sum + i * call->sum_stride;
        sum[i][0] = call->first ? _mm256_setzero_ps() : _mm256_loadu_ps(at);
        sum[i][1] = call->first ? _mm256_setzero_ps() : _mm256_loadu_ps(at + 8);
    }
    const float *a = call->a, *b = call->b;
    for (int64_t k = 0; k < call->k; k++) {
        if (k % FETCH_EVERY == 0 && call->fetch)
            _mm_prefetch(fetch_line(call, k), _MM_HINT_T1);
        __m256 b0 = _mm256_load_ps(b), b1 = _mm256_load_ps(b + 8);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            __m256 value = _mm256_broadcast_ss(a + i);
            sum[i][0] = _mm256_fmadd_ps(value, b0, sum[i][0]);
            sum[i][1] = _mm256_fmadd_ps(value, b1, sum[i][1]);
        }
        a += AVX2_A_WIDTH;
        b += AVX2_COLUMNS;
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        float *at = call->sum + i * call->sum_stride;
        _mm256_storeu_ps(at, sum[i][0]);
        _mm256_storeu_ps(at + 8, sum[i][1]);
    }
}

TARGET_AVX2 static void avx2_multiply(const GemmTileCall *call)
{
#define ROWS(n)                                                                                    \
    case n:                                                                                        \
        avx2_rows(n, call);                                                                        \
        break
    switch (call->rows) {
        ROWS(1);
        ROWS(2);
        ROWS(3);
        ROWS(4);
        ROWS(5);
        ROWS(6);
    }
#undef ROWS
}

// Elements at .. at + 3, or at .. at + 7, as f32.
ALWAYS_INLINE TARGET_AVX2 __m128 load4(const void *data, const bool f32, int64_t at)
{
    if (f32)
        return _mm_loadu_ps((const float *)data + at);
    __m128i bits = _mm_loadl_epi64((const __m128i *)((const uint16_t *)data + at));
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16));
}

ALWAYS_INLINE TARGET_AVX2 __m256 load8(const void *data, const bool f32, int64_t at)
{
    if (f32)
        return _mm256_loadu_ps((const float *)data + at);
    __m128i bits = _mm_loadu_si128((const __m128i *)((const uint16_t *)data + at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

ALWAYS_INLINE TARGET_AVX2 float load1(const void *data, const bool f32, int64_t at)
{
    if (f32)
        return ((const float *)data)[at];
    union {
        uint32_t bits;
        float value;
    } widened = {.bits = (uint32_t)((const uint16_t *)data)[at] << 16};
    return widened.value;
}

ALWAYS_INLINE int64_t line_start(const GemmPack *pack, int64_t line)
{
    int64_t at = pack->first_line + line;
    return (pack->index ? pack->index[at] : at) * pack->stride + pack->first_element;
}

// Four columns of eight lines: out[c * width .. + 8] = column c. Lines i and i + 4 share a
// register's halves.
ALWAYS_INLINE TARGET_AVX2 void transpose_8x4(const void *data, const bool f32, const int64_t *start,
                                             int64_t k, float *out, int width)
{
    __m256 line[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        line[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(load4(data, f32, start[i] + k)),
                                       load4(data, f32, start[i + 4] + k), 1);
    __m256 low01 = _mm256_unpacklo_ps(line[0], line[1]);
    __m256 low23 = _mm256_unpacklo_ps(line[2], line[3]);
    __m256 high01 = _mm256_unpackhi_ps(line[0], line[1]);
    __m256 high23 = _mm256_unpackhi_ps(line[2], line[3]);
    _mm256_store_ps(out, _mm256_shuffle_ps(low01, low23, 0x44));
    _mm256_store_ps(out + width, _mm256_shuffle_ps(low01, low23, 0xEE));
    _mm256_store_ps(out + 2 * width, _mm256_shuffle_ps(high01, high23, 0x44));
    _mm256_store_ps(out + 3 * width, _mm256_shuffle_ps(high01, high23, 0xEE));
}

// Eight lines at a time and a few cache lines of each: weights often lie a power of two apart, so
// eight is what one set of L1 holds, and the written part of the panel should still be there when
// the next eight lines add to it.
ALWAYS_INLINE TARGET_AVX2 void pack_across(const GemmPack *pack, const bool f32)
{
    const void *data = pack->data;
    float *out = pack->out;
    const int width = pack->width;
    const int64_t elements = pack->elements, whole = elements / 4 * 4;
    int64_t start[GEMM_TILE_COLUMNS_MAX];
    for (int i = 0; i < width; i++) // past the last line: any line that exists
        start[i] = line_start(pack, i < pack->lines ? i : 0);
    for (int64_t first = 0; first < whole; first += ACROSS_K) {
        int64_t end = first + ACROSS_K < whole ? first + ACROSS_K : whole;
        for (int line = 0; line < width; line += 8)
            for (int64_t k = first; k < end; k += 4)
                transpose_8x4(data, f32, start + line, k, out + k * width + line, width);
    }
    for (int64_t k = whole; k < elements; k++)
        for (int i = 0; i < width; i++)
            out[k * width + i] = load1(data, f32, start[i] + k);
}

// `width` is a constant in every copy. Lines ahead are fetched: their addresses jump, which no
// hardware guesses.
ALWAYS_INLINE TARGET_AVX2 void pack_along(const GemmPack *pack, const bool f32, const int width)
{
    const void *data = pack->data;
    const int64_t lines = pack->lines, elements = pack->elements, per_panel = pack->per_panel;
    const int64_t element_bytes = f32 ? 4 : 2, panel_floats = pack->panel_floats;
    for (int64_t line = 0; line < lines; line++) {
        int64_t start = line_start(pack, line);
        if (line + LINES_AHEAD < lines) {
            const char *ahead =
                (const char *)data + line_start(pack, line + LINES_AHEAD) * element_bytes;
            for (int64_t byte = 0; byte < elements * element_bytes; byte += LINE_BYTES)
                _mm_prefetch(ahead + byte, _MM_HINT_T0);
        }
        float *out = pack->out + line * width;
        for (int64_t first = 0; first < elements; first += per_panel, out += panel_floats) {
            if (first + width <= elements) {
#pragma GCC unroll 4
                for (int i = 0; i < width; i += 8)
                    _mm256_store_ps(out + i, load8(data, f32, start + first + i));
            } else {
                for (int64_t i = first; i < elements && i < first + per_panel; i++)
                    out[i - first] = load1(data, f32, start + i);
            }
        }
    }
}

TARGET_AVX2 static void avx2_pack_across(const GemmPack *pack)
{
    if (pack->dtype == DTYPE_F32)
        pack_across(pack, true);
    else
        pack_across(pack, false);
}

TARGET_AVX2 static void avx2_pack_along(const GemmPack *pack)
{
    bool f32 = pack->dtype == DTYPE_F32;
    if (pack->width == 32)
        f32 ? pack_along(pack, true, 32) : pack_along(pack, false, 32);
    else if (pack->width == 16)
        f32 ? pack_along(pack, true, 16) : pack_along(pack, false, 16);
    else
        f32 ? pack_along(pack, true, 8) : pack_along(pack, false, 8);
}

const GemmTile gemm_tile_avx512 = {
    .name = "avx512",
    .rows = AVX512_ROWS,
    .columns = AVX512_COLUMNS,
    .a_width = AVX512_A_WIDTH,
    .supported = avx512_supported,
    .multiply = avx512_multiply,
    .pack_across = avx2_pack_across,
    .pack_along = avx2_pack_along,
};

const GemmTile gemm_tile_avx2 = {
    .name = "avx2",
    .rows = AVX2_ROWS,
    .columns = AVX2_COLUMNS,
    .a_width = AVX2_A_WIDTH,
    .supported = avx2_supported,
    .multiply = avx2_multiply,
    .pack_across = avx2_pack_across,
    .pack_along = avx2_pack_along,
};

#endif
