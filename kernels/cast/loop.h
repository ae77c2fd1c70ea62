// loop.h -- the loops of the CPU's casts, inline: compiled once per instruction set by cast.c.
//
// Two neighbouring bf16 are one 32-bit word; the even one is its low half. Shifted up, each half is
// an f32, and two codes make the 8 or 16 bits that are stored for the word: so lanes of 32 bits do
// everything and nothing is widened or shuffled but the last narrowing. What a block contributes
// (scale, 1 / scale, zero) is spread over an array with one entry per word of a chunk, so that
// blocks of 16 and whole rows run through the same loop.
//
// The arithmetic is that of quant/method_*.h; `method`, `code` and the rest of the rule's choices
// are constants in every copy.
#pragma once

#include "kernels/cast/variant.h"
#include "kernels/cpu_math.h"

enum {
    CAST_WORDS = 512, // of a chunk
    CAST_CHUNK = 2 * CAST_WORDS,
    CAST_GROUPS = CAST_CHUNK / 16,
};

// A band: one or a few rows of blocks, and where everything of it begins.
struct CastBand {
    QuantContext context;
    const char *values; // [rows, columns], the first row of the band
    int variant;        // of the loops' table
    int64_t rows, columns;
    int64_t group;      // columns of a block; 0 = all
    int64_t block_rows; // rows of a block; the last may have fewer
    int64_t row_bytes;  // of values
    uint8_t *codes;     // of the first row
    int64_t code_bytes; // of a row
    // The scale of block (r, c) of the band lies at index
    // scale_first + r * scale_by_row + c / 4 * scale_by_4 + c % 4 * scale_by_1.
    void *scales, *zeros;
    int64_t scale_first, scale_by_row, scale_by_4, scale_by_1;
    int scale_bytes, zero_bytes; // zero_bytes 0: no zero points
    bool zeros_beside;           // zero points one behind their scales
    const QuantBlock *given;     // the block of the whole tensor; NULL: from the values
    int64_t tile_columns;        // TILED: columns with padding; rows beyond `rows` are padding
};

// Per word of a chunk, or per group of it.
typedef struct CastScales {
    float scale[CAST_WORDS], multiplier[CAST_WORDS], zero[CAST_WORDS];
} CastScales;

typedef struct CastStatistics {
    int32_t amax[CAST_WORDS], low[CAST_WORDS], high[CAST_WORDS];
} CastStatistics;

FORMAT_INLINE uint32_t cast_load(const char *from)
{
    uint32_t word;
    memcpy(&word, from, sizeof(word));
    return word;
}

// Elements 2 i and 2 i + 1.
FORMAT_INLINE float cast_even(DType input, const char *values, int64_t i)
{
    return input == DTYPE_BF16 ? format_f32_value(cast_load(values + 4 * i) << 16)
                               : format_f32_value(cast_load(values + 8 * i));
}

FORMAT_INLINE float cast_odd(DType input, const char *values, int64_t i)
{
    return input == DTYPE_BF16 ? format_f32_value(cast_load(values + 4 * i) & 0xFFFF0000u)
                               : format_f32_value(cast_load(values + 8 * i + 4));
}

FORMAT_INLINE int32_t cast_larger(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

FORMAT_INLINE int32_t cast_smaller(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

// f32 bits as an integer of the same order; NaN lies beyond the infinities.
FORMAT_INLINE int32_t cast_key(float value)
{
    int32_t bits = (int32_t)format_f32_bits(value);
    return bits ^ (bits >> 31 & 0x7FFFFFFF);
}

FORMAT_INLINE float cast_value_of_key(int32_t key)
{
    return format_f32_value((uint32_t)(key ^ (key >> 31 & 0x7FFFFFFF)));
}

FORMAT_INLINE QuantStatistics cast_statistics(bool ranged, int32_t amax, int32_t low, int32_t high)
{
    const int32_t infinity = FORMAT_F32_INFINITY;
    bool above = ranged ? high > infinity : amax > infinity;
    bool is_nan = above | (ranged & (low < (infinity ^ -1)));
    float minimum = cast_value_of_key(low), maximum = cast_value_of_key(high);
    float most = format_f32_value((uint32_t)amax);
    return (QuantStatistics){.amax = quant_select_f32(is_nan, quant_nan(), most),
                             .minimum = quant_select_f32(is_nan, quant_nan(), minimum),
                             .maximum = quant_select_f32(is_nan, quant_nan(), maximum)};
}

// ---- statistics ----

// Largest magnitude of an even count of values.
FORMAT_INLINE float cast_amax(DType input, const char *values, int64_t count)
{
    int32_t most = 0;
    for (int64_t i = 0; i < count / 2; i++) {
        int32_t even = (int32_t)format_f32_magnitude(cast_even(input, values, i));
        int32_t odd = (int32_t)format_f32_magnitude(cast_odd(input, values, i));
        most = cast_larger(most, cast_larger(even, odd));
    }
    return cast_statistics(false, most, 0, 0).amax;
}

// Of each word of a chunk, joined with what `s` holds unless `first`.
FORMAT_INLINE void cast_measure(bool ranged, bool first, DType input, const char *values,
                                int64_t words, CastStatistics *s)
{
    for (int64_t i = 0; i < words; i++) {
        float even = cast_even(input, values, i), odd = cast_odd(input, values, i);
        int32_t most =
            cast_larger((int32_t)format_f32_magnitude(even), (int32_t)format_f32_magnitude(odd));
        s->amax[i] = first ? most : cast_larger(s->amax[i], most);
        if (ranged) {
            int32_t low = cast_smaller(cast_key(even), cast_key(odd));
            int32_t high = cast_larger(cast_key(even), cast_key(odd));
            s->low[i] = first ? low : cast_smaller(s->low[i], low);
            s->high[i] = first ? high : cast_larger(s->high[i], high);
        }
    }
}

FORMAT_INLINE void cast_halve(bool largest, const int32_t *restrict from, int64_t count,
                              int32_t *restrict to)
{
    for (int64_t i = 0; i < count; i++)
        to[i] = largest ? cast_larger(from[2 * i], from[2 * i + 1])
                        : cast_smaller(from[2 * i], from[2 * i + 1]);
}

// Halves the entries until there is one per group of `words_per_group`, a power of two. Two arrays
// in turn: in one alone the compiler fears that writing overtakes reading.
FORMAT_INLINE void cast_reduce_one(bool largest, int64_t words, int64_t words_per_group,
                                   int32_t *entries)
{
    int32_t other[CAST_WORDS / 2];
    for (; words_per_group > 1; words_per_group /= 4, words /= 4) {
        cast_halve(largest, entries, words / 2, other);
        if (words_per_group == 2)
            memcpy(entries, other, (size_t)(words / 2) * sizeof(*entries));
        else
            cast_halve(largest, other, words / 4, entries);
    }
}

FORMAT_INLINE void cast_reduce(bool ranged, int64_t words, int64_t words_per_group,
                               CastStatistics *s)
{
    cast_reduce_one(true, words, words_per_group, s->amax);
    if (ranged) {
        cast_reduce_one(false, words, words_per_group, s->low);
        cast_reduce_one(true, words, words_per_group, s->high);
    }
}

// Both codes of each word: side by side as they are stored (PAIRS, BYTES), or the odd one at
// bit 16.
FORMAT_INLINE void cast_code_words(const QuantContext *context, const char *values, int64_t words,
                                   const CastScales *scales, uint32_t *restrict codes)
{
    const QuantRule *rule = &context->rule;
    const int odd_at = rule->code_layout == CODES_PAIRS   ? 4
                       : rule->code_layout == CODES_BYTES ? 8
                                                          : 16;
    for (int64_t i = 0; i < words; i++) {
        QuantBlock block = {.scale = cast_divides(rule) ? scales->scale[i] : 0,
                            .zero = cast_shifts(rule) ? scales->zero[i] : 0,
                            .multiplier = cast_divides(rule) ? 0 : scales->multiplier[i]};
        uint32_t even = cast_encode(context, &block, cast_even(context->input, values, i));
        uint32_t odd = cast_encode(context, &block, cast_odd(context->input, values, i));
        codes[i] = cast_byte(rule, even) | cast_byte(rule, odd) << odd_at;
    }
}

// Codes of at most CAST_WORDS words, one byte (PAIRS) or two per word. In two loops, since in one
// the compiler narrows every step of the arithmetic.
FORMAT_INLINE void cast_codes(const QuantContext *context, const char *values, int64_t words,
                              const CastScales *scales, uint8_t *restrict out)
{
    const QuantRule *rule = &context->rule;
    uint32_t codes[CAST_WORDS];
    cast_code_words(context, values, words, scales, codes);
    for (int64_t i = 0; i < words && rule->code_layout == CODES_PAIRS; i++)
        out[i] = (uint8_t)codes[i];
    for (int64_t i = 0; i < words && rule->code_layout != CODES_PAIRS; i++) {
        uint16_t both = (uint16_t)codes[i];
        memcpy(out + 2 * i, &both, sizeof(both));
    }
}

// ---- blocks of a chunk ----

FORMAT_INLINE void cast_store(int bytes, void *data, int64_t index, uint32_t bits)
{
    if (bytes == 4)
        ((uint32_t *)data)[index] = bits;
    else if (bytes == 2)
        ((uint16_t *)data)[index] = (uint16_t)bits;
    else
        ((uint8_t *)data)[index] = (uint8_t)bits;
}

FORMAT_INLINE void cast_store_scale(const CastBand *band, int64_t row, int64_t column,
                                    uint32_t scale_bits, uint32_t zero_bits)
{
    int64_t index = band->scale_first + row * band->scale_by_row + column / 4 * band->scale_by_4 +
                    column % 4 * band->scale_by_1;
    cast_store(band->scale_bytes, band->scales, index, scale_bits);
    if (band->zero_bytes && band->zeros_beside)
        cast_store(band->zero_bytes, band->scales, index + 1, zero_bits);
    else if (band->zero_bytes)
        cast_store(band->zero_bytes, band->zeros, index, zero_bits);
}

// Blocks of a chunk, one array per member.
typedef struct CastBlocks {
    float scale[CAST_GROUPS], multiplier[CAST_GROUPS], zero[CAST_GROUPS];
    uint32_t scale_bits[CAST_GROUPS], zero_bits[CAST_GROUPS];
} CastBlocks;

FORMAT_INLINE void cast_choose_groups(const QuantContext *context, bool ranged,
                                      const CastStatistics *s, int64_t groups, CastBlocks *out)
{
    for (int64_t i = 0; i < groups; i++) {
        QuantStatistics statistics =
            cast_statistics(ranged, s->amax[i], ranged ? s->low[i] : 0, ranged ? s->high[i] : 0);
        QuantBlock block = cast_choose(context, statistics);
        out->scale[i] = block.scale;
        out->multiplier[i] = block.multiplier;
        out->zero[i] = block.zero;
        out->scale_bits[i] = block.scale_bits;
        out->zero_bits[i] = block.zero_bits;
    }
}

// The choices within a method that are worth loops of their own: small groups.
FORMAT_INLINE void cast_choose_chunk(const QuantContext *context, bool ranged,
                                     const CastStatistics *s, int64_t groups, CastBlocks *out)
{
    QuantContext c = *context;
    const bool mx = context->rule.method == QUANT_MX, nvfp4 = context->rule.method == QUANT_NVFP4;
    if (mx && context->rule.ct) {
        c.rule.ct = true;
        cast_choose_groups(&c, ranged, s, groups, out);
    } else if (mx && context->rule.mx_mode == MX_RCEIL) {
        c.rule.ct = false;
        c.rule.mx_mode = MX_RCEIL;
        cast_choose_groups(&c, ranged, s, groups, out);
    } else if (mx && context->rule.mx_mode == MX_FLOOR) {
        c.rule.ct = false;
        c.rule.mx_mode = MX_FLOOR;
        cast_choose_groups(&c, ranged, s, groups, out);
    } else if (nvfp4 && context->rule.two_level) {
        c.rule.two_level = true;
        cast_choose_groups(&c, ranged, s, groups, out);
    } else if (nvfp4) {
        c.rule.two_level = false;
        cast_choose_groups(&c, ranged, s, groups, out);
    } else {
        cast_choose_groups(&c, ranged, s, groups, out);
    }
}

FORMAT_INLINE void cast_store_scales(const CastBand *band, const CastBlocks *blocks, int64_t row,
                                     int64_t first_group, int64_t groups)
{
    int64_t i = 0;
    bool fours = band->scale_bytes == 1 && band->zero_bytes == 0 && band->scale_by_1 == 1;
    uint8_t *at = (uint8_t *)band->scales + band->scale_first + row * band->scale_by_row +
                  first_group / 4 * band->scale_by_4;
    for (; fours && i + 4 <= groups; i += 4, at += band->scale_by_4) {
        uint32_t four = blocks->scale_bits[i] | blocks->scale_bits[i + 1] << 8 |
                        blocks->scale_bits[i + 2] << 16 | blocks->scale_bits[i + 3] << 24;
        memcpy(at, &four, sizeof(four));
    }
    for (; i < groups; i++)
        cast_store_scale(band, row, first_group + i, blocks->scale_bits[i], blocks->zero_bits[i]);
}

FORMAT_INLINE void cast_repeat(const float *of_group, int64_t groups, int64_t words_per_group,
                               float *restrict of_word)
{
    if (words_per_group == 8) { // constants, so that each group is a few stores
        for (int64_t i = 0; i < groups; i++)
            for (int word = 0; word < 8; word++)
                of_word[i * 8 + word] = of_group[i];
    } else if (words_per_group == 16) {
        for (int64_t i = 0; i < groups; i++)
            for (int word = 0; word < 16; word++)
                of_word[i * 16 + word] = of_group[i];
    } else {
        for (int64_t i = 0; i < groups; i++)
            for (int64_t word = 0; word < words_per_group; word++)
                of_word[i * words_per_group + word] = of_group[i];
    }
}

// A chunk: its first block is (row, column) of the band's blocks.
typedef struct CastPlace {
    int64_t row, column, groups, words_per_group;
} CastPlace;

// Chooses for every group of the chunk, stores, and spreads over the words.
FORMAT_INLINE void cast_settle(const CastBand *band, const QuantContext *context, bool ranged,
                               const CastStatistics *s, CastPlace place, CastScales *out)
{
    CastBlocks blocks;
    cast_choose_chunk(context, ranged, s, place.groups, &blocks);
    cast_store_scales(band, &blocks, place.row, place.column, place.groups);
    if (cast_divides(&context->rule))
        cast_repeat(blocks.scale, place.groups, place.words_per_group, out->scale);
    else
        cast_repeat(blocks.multiplier, place.groups, place.words_per_group, out->multiplier);
    if (cast_shifts(&context->rule))
        cast_repeat(blocks.zero, place.groups, place.words_per_group, out->zero);
}

// Statistics wait for memory, codes for arithmetic: what the next statistics read is asked for
// while codes are made. It may lie beyond the tensor; nothing is read then.
FORMAT_INLINE void cast_fetch(const char *values, int64_t bytes)
{
    for (int64_t at = 0; at < bytes; at += 64)
        __builtin_prefetch((const void *)((uintptr_t)values + (uintptr_t)at), 0, 2);
}

FORMAT_INLINE void cast_spread(const QuantBlock *block, CastScales *out)
{
    for (int64_t word = 0; word < CAST_WORDS; word++) {
        out->scale[word] = block->scale;
        out->multiplier[word] = block->multiplier;
        out->zero[word] = block->zero;
    }
}

// ---- bands ----

FORMAT_INLINE int64_t cast_value_bytes(DType input, int64_t count)
{
    return count * (input == DTYPE_BF16 ? 2 : 4);
}

FORMAT_INLINE int64_t cast_code_bytes(const QuantRule *rule, int64_t count)
{
    return rule->code_layout == CODES_PAIRS ? count / 2 : count;
}

FORMAT_INLINE QuantBlock cast_row_block(const CastBand *band, const QuantContext *context,
                                        bool ranged)
{
    int32_t amax = 0, low = INT32_MAX, high = INT32_MIN;
    for (int64_t i = 0; i < band->columns / 2; i++) {
        float even = cast_even(context->input, band->values, i);
        float odd = cast_odd(context->input, band->values, i);
        amax = cast_larger(amax, (int32_t)format_f32_magnitude(even));
        amax = cast_larger(amax, (int32_t)format_f32_magnitude(odd));
        if (ranged) {
            low = cast_smaller(low, cast_smaller(cast_key(even), cast_key(odd)));
            high = cast_larger(high, cast_larger(cast_key(even), cast_key(odd)));
        }
    }
    if (band->columns == 0)
        low = high = 0;
    QuantBlock block = cast_choose(context, cast_statistics(ranged, amax, low, high));
    cast_store_scale(band, 0, 0, block.scale_bits, block.zero_bits);
    return block;
}

// All rows of the band under one block: the one of a row, or what the tensor has.
FORMAT_INLINE void cast_uniform(const CastBand *band, const QuantContext *context, bool ranged)
{
    CastScales scales;
    QuantBlock block = band->given ? *band->given : cast_row_block(band, context, ranged);
    cast_spread(&block, &scales);
    for (int64_t row = 0; row < band->rows; row++)
        for (int64_t first = 0; first < band->columns; first += CAST_CHUNK) {
            int64_t left = band->columns - first, count = left < CAST_CHUNK ? left : CAST_CHUNK;
            const char *values =
                band->values + row * band->row_bytes + cast_value_bytes(context->input, first);
            cast_fetch(values + band->row_bytes, cast_value_bytes(context->input, count));
            cast_codes(context, values, count / 2, &scales,
                       band->codes + row * band->code_bytes +
                           cast_code_bytes(&context->rule, first));
        }
}

// One chunk of one row of blocks: `rows` rows of `count` columns. What the last group lacks counts
// as zeros.
FORMAT_INLINE void cast_chunk(const CastBand *band, const QuantContext *context, bool ranged,
                              CastPlace place, int64_t count)
{
    const DType input = context->input;
    const int64_t chunk_bytes = cast_value_bytes(input, CAST_CHUNK);
    int64_t first_row = place.row * band->block_rows, first = place.column * band->group;
    int64_t left = band->rows - first_row, words = place.groups * place.words_per_group;
    int64_t rows = left < band->block_rows ? left : band->block_rows;
    const char *values =
        band->values + first_row * band->row_bytes + cast_value_bytes(input, first);
    uint8_t *codes =
        band->codes + first_row * band->code_bytes + cast_code_bytes(&context->rule, first);
    CastStatistics statistics;
    CastScales scales;
    for (int64_t row = 0; row < rows; row++)
        cast_measure(ranged, row == 0, input, values + row * band->row_bytes, count / 2,
                     &statistics);
    for (int64_t i = count / 2; i < words; i++)
        statistics.amax[i] = statistics.low[i] = statistics.high[i] = 0;
    cast_reduce(ranged, words, place.words_per_group, &statistics);
    cast_settle(band, context, ranged, &statistics, place, &scales);
    bool stacked = band->block_rows == 1 && band->rows > 1;
    const char *next = stacked ? values + band->row_bytes : values + chunk_bytes;
    for (int64_t row = 0; row < rows; row++) {
        cast_fetch(next + row * band->row_bytes, chunk_bytes);
        cast_codes(context, values + row * band->row_bytes, count / 2, &scales,
                   codes + row * band->code_bytes);
    }
}

// Groups of columns: blocks of 1 x 16 up to 128 x 128.
FORMAT_INLINE void cast_groups(const CastBand *band, const QuantContext *context, bool ranged)
{
    const int64_t group = band->group;
    for (int64_t first = 0; first < band->columns; first += CAST_CHUNK) {
        int64_t left = band->columns - first, count = left < CAST_CHUNK ? left : CAST_CHUNK;
        CastPlace place = {.column = first / group,
                           .groups = (count + group - 1) / group,
                           .words_per_group = group / 2};
        for (; place.row * band->block_rows < band->rows; place.row++)
            cast_chunk(band, context, ranged, place, count);
    }
}

// tinygemm's words: of the 16 words w of a run of 32 codes, word t of its four is
// w[t] | w[t + 4] << 4 | w[t + 8] << 8 | w[t + 12] << 12, where w has the even code at bit 0 and
// the odd one at bit 16. Word t of four neighbouring runs lie together.
FORMAT_INLINE void cast_tile_words(const uint32_t *codes, uint8_t *out)
{
    uint32_t word[16];
    for (int t = 0; t < 4; t++)
        for (int run = 0; run < 4; run++) {
            const uint32_t *w = codes + 16 * run + t;
            word[4 * t + run] = w[0] | w[4] << 4 | w[8] << 8 | w[12] << 12;
        }
    memcpy(out, word, sizeof(word));
}

enum { CAST_TILE_ROWS = 8, CAST_TILE_COLUMNS = 128, CAST_TILE_BYTES = 512 };

// One row's chunk, from `values` on which there are enough.
FORMAT_INLINE void cast_tile_chunk(const CastBand *band, const QuantContext *context,
                                   const char *values, CastPlace place)
{
    CastStatistics statistics;
    CastScales scales;
    uint32_t codes[CAST_WORDS];
    cast_measure(true, true, context->input, values, CAST_WORDS, &statistics);
    cast_reduce(true, CAST_WORDS, place.words_per_group, &statistics);
    cast_settle(band, context, true, &statistics, place, &scales);
    cast_code_words(context, values, CAST_WORDS, &scales, codes);
    uint8_t *out = band->codes + place.column * band->group / CAST_TILE_COLUMNS * CAST_TILE_BYTES +
                   place.row * (CAST_TILE_BYTES / CAST_TILE_ROWS);
    for (int64_t tile = 0; tile < CAST_CHUNK / CAST_TILE_COLUMNS; tile++)
        cast_tile_words(codes + tile * (CAST_TILE_COLUMNS / 2), out + tile * CAST_TILE_BYTES);
}

// Eight rows, padded: chunks that reach beyond the tensor are copied.
FORMAT_INLINE void cast_tile(const CastBand *band, const QuantContext *context)
{
    const int64_t group = band->group;
    char copy[4 * CAST_CHUNK];
    for (int64_t first = 0; first < band->tile_columns; first += CAST_CHUNK)
        for (int64_t row = 0; row < CAST_TILE_ROWS; row++) {
            int64_t left = row < band->rows && first < band->columns ? band->columns - first : 0;
            int64_t bytes = cast_value_bytes(context->input, left);
            const char *values = copy;
            if (left > 0)
                values =
                    band->values + row * band->row_bytes + cast_value_bytes(context->input, first);
            if (left < CAST_CHUNK) {
                memset(copy, 0, sizeof(copy));
                memmove(copy, values, (size_t)bytes);
                values = copy;
            }
            cast_fetch(values + band->row_bytes, cast_value_bytes(context->input, CAST_CHUNK));
            cast_tile_chunk(band, context, values,
                            (CastPlace){.row = row,
                                        .column = first / group,
                                        .groups = CAST_CHUNK / group,
                                        .words_per_group = group / 2});
        }
}
