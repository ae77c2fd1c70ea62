// loop.h -- the loops of the CPU's casts, inline: compiled once per instruction set by cast.c.
//
// Statistics are taken in lanes as wide as the values: largest keys, which are magnitudes or bits
// in the order of the values. For codes, two neighbouring bf16 are one 32-bit word; the even one is
// its low half. Shifted up, each half is an f32, and two codes make the 8 or 16 bits that are
// stored for the word: so lanes of 32 bits do everything and nothing is widened or shuffled but the
// last narrowing. What a block contributes (scale, 1 / scale, zero) is spread over an array with
// one entry per word, so that blocks of 16 and whole rows run through the same loop.
//
// Loops have constant bounds: a piece of the columns at a time, the last one with zeros behind it.
//
// The arithmetic is that of quant/method_*.h, or of cast/lanes.h where that gives the same codes;
// `method`, `code` and the rest of the rule's choices are constants in every copy.
#pragma once

#include "kernels/cast/keys.h"
#include "kernels/cast/lanes.h"
#include "kernels/cpu_math.h"

// A band: one or a few rows of blocks, and where everything of it begins.
struct CastBand {
    QuantContext context;
    const char *values; // [rows, columns], the first row of the band
    int variant;        // of the loops' table
    int64_t rows, columns;
    int64_t group;      // columns of a block; 0 = all
    int64_t block_rows; // rows of a block; the last may have fewer
    bool stacked;       // rows of blocks inside a chunk, else chunks inside a row of blocks
    int64_t row_bytes;  // of values
    uint8_t *codes;     // of the first row
    int64_t code_bytes; // of a row
    // The scale of block (r, c) of the band lies at index
    // scale_first + r * scale_by_row + c / 4 * scale_by_4 + c % 4 * scale_by_1.
    void *scales, *zeros;
    int64_t scale_first, scale_by_row, scale_by_4, scale_by_1;
    int scale_bytes, zero_bytes;  // zero_bytes 0: no zero points
    bool zeros_beside;            // zero points one behind their scales
    const QuantStatistics *given; // of the whole tensor; NULL: of the values here
    int64_t tile_columns;         // TILED: columns with padding; rows beyond `rows` are padding
};

// What a copy of the loops has as constants, and what else all blocks share.
typedef struct CastFixed {
    QuantContext context;
    bool ranged; // the rule needs minimum and maximum
    bool lanes;  // cast/lanes.h is worth it
} CastFixed;

// Per word of a piece.
typedef struct CastScales {
    _Alignas(64) float scale[CAST_PIECE_WORDS];
    float multiplier[CAST_PIECE_WORDS], zero[CAST_PIECE_WORDS];
    bool quick; // cast_lane is right for all of them
} CastScales;

// Blocks of a chunk, one array per member.
typedef struct CastBlocks {
    _Alignas(64) float scale[CAST_GROUPS];
    float multiplier[CAST_GROUPS], zero[CAST_GROUPS];
    uint32_t scale_bits[CAST_GROUPS], zero_bits[CAST_GROUPS];
    bool quick; // cast_lane is right for all of them
} CastBlocks;

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

FORMAT_INLINE int64_t cast_code_bytes(const QuantRule *rule, int64_t count)
{
    return rule->code_layout == CODES_PAIRS ? count / 2 : count;
}

// ---- statistics ----

FORMAT_INLINE QuantStatistics cast_statistics_at(const CastFixed *fixed, const CastKeys *keys,
                                                 int64_t i)
{
    const DType input = fixed->context.input;
    return cast_statistics(input, fixed->ranged, cast_key_at(input, &keys[CAST_HIGH], i),
                           fixed->ranged ? cast_key_at(input, &keys[CAST_LOW], i) : 0);
}

// Of a row.
FORMAT_INLINE QuantStatistics cast_row_statistics(const CastFixed *fixed, const char *values,
                                                  int64_t count)
{
    const DType input = fixed->context.input;
    return cast_statistics(input, fixed->ranged,
                           cast_largest_key(input, fixed->ranged, CAST_HIGH, values, count),
                           cast_largest_key(input, fixed->ranged, CAST_LOW, values, count));
}

// ---- codes ----

// What the arithmetic of elements reads.
FORMAT_INLINE bool cast_reads_scale(const QuantRule *rule, bool quick)
{
    return quick ? rule->method == QUANT_RANGE || rule->method == QUANT_NVFP4_CT
                 : cast_divides(rule);
}

FORMAT_INLINE bool cast_multiplies(const QuantRule *rule, bool quick)
{
    return quick || !cast_divides(rule);
}

// Both codes of each word of a piece: side by side in its low bits as they are stored (PAIRS,
// BYTES), or the odd one at bit 16.
FORMAT_INLINE void cast_code_words(const QuantContext *context, bool quick, const char *values,
                                   const CastScales *scales, uint32_t *restrict codes)
{
    const QuantRule *rule = &context->rule;
    const int odd_at = rule->code_layout == CODES_PAIRS   ? 4
                       : rule->code_layout == CODES_BYTES ? 8
                                                          : 16;
    const uint32_t mask = rule->code_layout == CODES_BYTES ? 0xFFu : 0xFu;
    for (int64_t i = 0; i < CAST_PIECE_WORDS; i++) {
        QuantBlock block = {.scale = cast_reads_scale(rule, quick) ? scales->scale[i] : 0,
                            .zero = cast_shifts(rule) ? scales->zero[i] : 0,
                            .multiplier = cast_multiplies(rule, quick) ? scales->multiplier[i] : 0};
        const float x[2] = {cast_even(context->input, values, i),
                            cast_odd(context->input, values, i)};
        uint32_t code[2];
        for (int e = 0; e < 2; e++)
            code[e] = quick ? cast_lane(context, &block, x[e])
                            : cast_byte(rule, cast_encode(context, &block, x[e]));
        codes[i] = (code[0] & mask) | (code[1] & mask) << odd_at;
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

enum { CAST_TILE_ROWS = 8, CAST_TILE_COLUMNS = 128, CAST_TILE_BYTES = 512, CAST_TILE_CHUNK = 1024 };

// Codes of a piece. In two loops, since in one the compiler narrows every step of the arithmetic.
FORMAT_INLINE void cast_codes(const CastFixed *fixed, const char *values, const CastScales *scales,
                              uint8_t *restrict out)
{
    const CodeLayout layout = fixed->context.rule.code_layout;
    uint32_t codes[CAST_PIECE_WORDS];
    if (fixed->lanes && scales->quick)
        cast_code_words(&fixed->context, true, values, scales, codes);
    else
        cast_code_words(&fixed->context, false, values, scales, codes);
    for (int64_t i = 0; i < CAST_PIECE_WORDS && layout == CODES_PAIRS; i++)
        out[i] = (uint8_t)codes[i];
    for (int64_t i = 0; i < CAST_PIECE_WORDS && layout == CODES_BYTES; i++) {
        uint16_t both = (uint16_t)codes[i];
        memcpy(out + 2 * i, &both, sizeof(both));
    }
    for (int64_t i = 0; i < CAST_PIECE / CAST_TILE_COLUMNS && layout == CODES_TILED; i++)
        cast_tile_words(codes + i * (CAST_TILE_COLUMNS / 2), out + i * CAST_TILE_BYTES);
}

// Values of a piece of which `count` are there: a copy with zeros behind them if that is not all.
FORMAT_INLINE const char *cast_whole_piece(DType input, const char *values, int64_t count,
                                           char *copy)
{
    if (count >= CAST_PIECE)
        return values;
    memset(copy, 0, (size_t)cast_value_bytes(input, CAST_PIECE));
    if (count > 0)
        memcpy(copy, values, (size_t)cast_value_bytes(input, count));
    return copy;
}

// Codes of a piece of which `count` are there.
FORMAT_INLINE void cast_codes_there(const CastFixed *fixed, const char *values, int64_t count,
                                    const CastScales *scales, uint8_t *out)
{
    char copy[CAST_PIECE * sizeof(float)];
    uint8_t codes[CAST_PIECE];
    values = cast_whole_piece(fixed->context.input, values, count, copy);
    if (count >= CAST_PIECE) {
        cast_codes(fixed, values, scales, out);
    } else {
        cast_codes(fixed, values, scales, codes);
        memcpy(out, codes, (size_t)cast_code_bytes(&fixed->context.rule, count));
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

// Chooses for every group of a chunk, 16 at a time; what lies behind them is not looked at.
// 32-bit indices, as wide as all else in the loop.
FORMAT_INLINE void cast_choose_groups(const CastFixed *fixed, const CastKeys *keys, int32_t groups,
                                      CastBlocks *out)
{
    uint32_t quick = fixed->lanes;
    for (int32_t first = 0; first < groups; first += 16)
        for (int32_t i = first; i < first + 16; i++) {
            QuantStatistics statistics = cast_statistics_at(fixed, keys, i);
            QuantBlock block = cast_choose(&fixed->context, statistics);
            if (fixed->lanes) {
                cast_quick_ready(&fixed->context, &block, statistics.amax);
                bool fits = cast_lane_fits(&fixed->context, &block, statistics.amax);
                cast_pairs_ready(&fixed->context, &block);
                quick &= (uint32_t)(fits | (i >= groups));
            }
            out->scale[i] = block.scale;
            out->multiplier[i] = block.multiplier;
            out->zero[i] = block.zero;
            out->scale_bits[i] = block.scale_bits;
            out->zero_bits[i] = block.zero_bits;
        }
    out->quick = quick;
}

// The choices within a method that are worth loops of their own: small groups.
FORMAT_INLINE void cast_choose_chunk(const CastFixed *fixed, const CastKeys *keys, int32_t groups,
                                     CastBlocks *out)
{
    const QuantRule *rule = &fixed->context.rule;
    const bool mx = rule->method == QUANT_MX, nvfp4 = rule->method == QUANT_NVFP4;
    CastFixed f = *fixed;
    if (mx && rule->ct) {
        f.context.rule.ct = true;
        cast_choose_groups(&f, keys, groups, out);
    } else if (mx && rule->mx_mode == MX_RCEIL) {
        f.context.rule.ct = false;
        f.context.rule.mx_mode = MX_RCEIL;
        cast_choose_groups(&f, keys, groups, out);
    } else if (mx && rule->mx_mode == MX_FLOOR) {
        f.context.rule.ct = false;
        f.context.rule.mx_mode = MX_FLOOR;
        cast_choose_groups(&f, keys, groups, out);
    } else if (nvfp4 && rule->two_level) {
        f.context.rule.two_level = true;
        cast_choose_groups(&f, keys, groups, out);
    } else if (nvfp4) {
        f.context.rule.two_level = false;
        cast_choose_groups(&f, keys, groups, out);
    } else {
        cast_choose_groups(&f, keys, groups, out);
    }
}

FORMAT_INLINE void cast_store_run(int bytes, void *data, int64_t index, const uint32_t *bits,
                                  int64_t count)
{
    for (int64_t i = 0; i < count && bytes == 4; i++)
        ((uint32_t *)data)[index + i] = bits[i];
    for (int64_t i = 0; i < count && bytes == 2; i++)
        ((uint16_t *)data)[index + i] = (uint16_t)bits[i];
    for (int64_t i = 0; i < count && bytes == 1; i++)
        ((uint8_t *)data)[index + i] = (uint8_t)bits[i];
}

// Neighbours lie together in a whole row, by fours, or not.
FORMAT_INLINE void cast_store_scales(const CastBand *band, const CastBlocks *blocks, int64_t row,
                                     int64_t first_group, int64_t groups)
{
    const bool fours = band->scale_bytes == 1 && band->zero_bytes == 0 && band->scale_by_1 == 1;
    int64_t i = 0, index = band->scale_first + row * band->scale_by_row +
                           first_group / 4 * band->scale_by_4;
    if (band->scale_by_1 == 1 && band->scale_by_4 == 4) {
        index += first_group % 4;
        cast_store_run(band->scale_bytes, band->scales, index, blocks->scale_bits, groups);
        cast_store_run(band->zero_bytes, band->zeros, index, blocks->zero_bits, groups);
        return;
    }
    for (; fours && i + 4 <= groups; i += 4, index += band->scale_by_4)
        cast_store_run(1, band->scales, index, blocks->scale_bits + i, 4);
    for (; i < groups; i++)
        cast_store_scale(band, row, first_group + i, blocks->scale_bits[i], blocks->zero_bits[i]);
}

// What the groups of a piece, from `of_group` on, contribute to its words.
FORMAT_INLINE void cast_repeat(const float *of_group, int64_t group, float *restrict of_word)
{
    const int shift = __builtin_ctzll((unsigned long long)group) - 5;
    for (int64_t i = 0; i < CAST_PIECE / 16 && group == 16; i++)
        for (int64_t word = 0; word < 8; word++)
            of_word[8 * i + word] = of_group[i];
    for (int64_t i = 0; i < CAST_PIECE / 32 && group > 16; i++)
        for (int64_t word = 0; word < 16; word++)
            of_word[16 * i + word] = of_group[i >> shift];
}

FORMAT_INLINE void cast_spread(const QuantRule *rule, const CastBlocks *blocks, int64_t first_group,
                               int64_t group, CastScales *out)
{
    out->quick = blocks->quick;
    if (cast_reads_scale(rule, out->quick))
        cast_repeat(blocks->scale + first_group, group, out->scale);
    if (cast_multiplies(rule, out->quick))
        cast_repeat(blocks->multiplier + first_group, group, out->multiplier);
    if (cast_shifts(rule))
        cast_repeat(blocks->zero + first_group, group, out->zero);
}

// Statistics wait for memory, codes for arithmetic: what the next statistics read, and the lines
// that the next codes are written to, are asked for while codes are made. They may lie beyond the
// tensor; nothing is read or written then.
enum { CAST_ROWS_AHEAD = 2 }; // codes of blocks of several rows

FORMAT_INLINE void cast_fetch(const char *values, int64_t bytes)
{
    for (int64_t at = 0; at < bytes; at += 64)
        __builtin_prefetch((const void *)((uintptr_t)values + (uintptr_t)at), 0, 2);
}

FORMAT_INLINE void cast_fetch_codes(const uint8_t *codes, int64_t bytes)
{
    for (int64_t at = 0; at < bytes; at += 64)
        __builtin_prefetch((const void *)((uintptr_t)codes + (uintptr_t)at), 1, 3);
}

// ---- bands ----

// Rows with a block each, or under that of the tensor.
FORMAT_INLINE void cast_uniform(const CastBand *band, const CastFixed *fixed)
{
    const QuantContext *context = &fixed->context;
    CastScales scales;
    for (int64_t row = 0; row < band->rows; row++) {
        const char *values = band->values + row * band->row_bytes;
        if (row == 0 || !band->given) {
            const QuantStatistics s =
                band->given ? *band->given : cast_row_statistics(fixed, values, band->columns);
            QuantBlock block = cast_choose(context, s);
            if (!band->given)
                cast_store_scale(band, row, 0, block.scale_bits, block.zero_bits);
            cast_quick_ready(context, &block, s.amax);
            const CastBlocks blocks = {.quick =
                                           fixed->lanes && cast_lane_fits(context, &block, s.amax),
                                       .scale = {block.scale},
                                       .multiplier = {block.multiplier},
                                       .zero = {block.zero}};
            cast_spread(&context->rule, &blocks, 0, CAST_PIECE, &scales);
        }
        for (int64_t first = 0; first < band->columns; first += CAST_PIECE) {
            const char *at = values + cast_value_bytes(context->input, first);
            cast_fetch(at + band->row_bytes, cast_value_bytes(context->input, CAST_PIECE));
            cast_codes_there(fixed, at, band->columns - first, &scales,
                             band->codes + row * band->code_bytes +
                                 cast_code_bytes(&context->rule, first));
        }
    }
}

// A chunk of a row of blocks.
typedef struct CastPart {
    const char *values;
    int64_t rows, row_bytes;
    int64_t columns; // behind those that are `there`, zeros
    int64_t there;
} CastPart;

FORMAT_INLINE void cast_choose_part(const CastFixed *fixed, const CastPart *part, int64_t group,
                                    CastBlocks *out)
{
    const DType input = fixed->context.input;
    const int64_t pieces = (part->columns + CAST_PIECE - 1) / CAST_PIECE;
    const int64_t piece_keys = CAST_PIECE / group * CAST_KEYS;
    CastKeys keys[CAST_ENDS];
    char copy[CAST_PIECE * sizeof(float)];
    cast_clear(input, fixed->ranged, pieces * piece_keys, keys);
    for (int64_t i = 0; i < pieces; i++)
        for (int64_t row = 0; row < part->rows; row++) {
            const char *piece = part->values + row * part->row_bytes;
            piece += cast_value_bytes(input, i * CAST_PIECE);
            piece = cast_whole_piece(input, piece, part->there - i * CAST_PIECE, copy);
            cast_join(input, fixed->ranged, group, piece, i * piece_keys, keys);
        }
    cast_reduce(input, pieces * piece_keys, &keys[CAST_HIGH]);
    if (fixed->ranged)
        cast_reduce(input, pieces * piece_keys, &keys[CAST_LOW]);
    cast_choose_chunk(fixed, keys, (int32_t)((part->columns + group - 1) / group), out);
}

// Up to `chunk` columns of a row of blocks.
FORMAT_INLINE void cast_chunk(const CastBand *band, const CastFixed *fixed, int64_t block_row,
                              int64_t first, int64_t chunk)
{
    const QuantRule *rule = &fixed->context.rule;
    const DType input = fixed->context.input;
    const int64_t first_row = block_row * band->block_rows, rows_left = band->rows - first_row;
    const int64_t group = band->group, left = band->columns - first;
    const int64_t count = left < chunk ? left : chunk;
    const CastPart part = {
        .values = band->values + first_row * band->row_bytes + cast_value_bytes(input, first),
        .rows = rows_left < band->block_rows ? rows_left : band->block_rows,
        .row_bytes = band->row_bytes,
        .columns = count,
        .there = count,
    };
    uint8_t *codes = band->codes + first_row * band->code_bytes + cast_code_bytes(rule, first);
    CastBlocks blocks;
    CastScales scales;
    cast_choose_part(fixed, &part, group, &blocks);
    cast_store_scales(band, &blocks, block_row, first / group, (count + group - 1) / group);
    const int64_t next = band->stacked ? band->row_bytes : cast_value_bytes(input, chunk);
    for (int64_t piece = 0; piece < count; piece += CAST_PIECE) {
        cast_spread(rule, &blocks, piece / group, group, &scales);
        for (int64_t row = 0; row < part.rows; row++) {
            const char *at = part.values + row * part.row_bytes + cast_value_bytes(input, piece);
            uint8_t *out = codes + row * band->code_bytes + cast_code_bytes(rule, piece);
            cast_fetch(at + next, cast_value_bytes(input, CAST_PIECE));
            if (part.rows > 1) // else lines follow each other, which the processor sees
                cast_fetch_codes(out + CAST_ROWS_AHEAD * band->code_bytes,
                                 cast_code_bytes(rule, CAST_PIECE));
            cast_codes_there(fixed, at, count - piece, &scales, out);
        }
    }
}

// Groups of columns: blocks of 1 x 16 up to 128 x 128.
FORMAT_INLINE void cast_groups(const CastBand *band, const CastFixed *fixed)
{
    const int64_t rows = (band->rows + band->block_rows - 1) / band->block_rows;
    // What is read twice stays in the second cache, also if it is many rows.
    const int64_t chunk = band->block_rows > 1 ? 2 * CAST_PIECE : CAST_CHUNK;
    const int64_t chunks = (band->columns + chunk - 1) / chunk;
    for (int64_t i = 0; i < rows * chunks; i++) {
        const int64_t row = band->stacked ? i % rows : i / chunks;
        const int64_t at = band->stacked ? i / rows : i % chunks;
        cast_chunk(band, fixed, row, at * chunk, chunk);
    }
}

// Eight rows, padded; so are columns.
FORMAT_INLINE void cast_tile(const CastBand *band, const CastFixed *fixed)
{
    const DType input = fixed->context.input;
    const int64_t group = band->group;
    char copy[CAST_PIECE * sizeof(float)];
    CastBlocks blocks;
    CastScales scales;
    for (int64_t first = 0; first < band->tile_columns; first += CAST_TILE_CHUNK)
        for (int64_t row = 0; row < CAST_TILE_ROWS; row++) {
            const int64_t left = row < band->rows ? band->columns - first : 0;
            CastPart part = {band->values, 1, 0, CAST_TILE_CHUNK, left};
            if (left > 0)
                part.values += row * band->row_bytes + cast_value_bytes(input, first);
            cast_choose_part(fixed, &part, group, &blocks);
            cast_store_scales(band, &blocks, row, first / group, CAST_TILE_CHUNK / group);
            for (int64_t piece = 0; piece < CAST_TILE_CHUNK; piece += CAST_PIECE) {
                const char *at = part.values + cast_value_bytes(input, piece);
                cast_fetch(at + band->row_bytes, cast_value_bytes(input, CAST_PIECE));
                cast_spread(&fixed->context.rule, &blocks, piece / group, group, &scales);
                cast_codes(fixed, cast_whole_piece(input, at, left - piece, copy), &scales,
                           band->codes + (first + piece) * CAST_TILE_ROWS / 2 +
                               row * (CAST_TILE_BYTES / CAST_TILE_ROWS));
            }
        }
}
