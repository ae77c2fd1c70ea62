// rows_flow.cuh -- how quant_gemm/rows.cu gets weights: codes and scales of the stages that a warp
// multiplies next come by asynchronous copies to its ring of ROWS_AHEAD places in shared memory,
// which runs on from tile to tile.
//
// Registers would not do: a warp counts its loads by six counters, so that it waits for the newest
// with the oldest. Copies are of 4 bytes at least: of scales whole words come, and what begins
// inside one is picked out when it is used. Where in its word a scale begins, tiles of a group have
// in common: they start a multiple of 16 rows apart.
//
// Source: PTX ISA, cp.async.
#pragma once

#include "kernels/quant_gemm/rows_tiles.cuh"

// ---- where codes and scales lie ----

// In a matrix of scales; block: the first of the lane's.
static __host__ __device__ __forceinline__ int64_t scale_place(const QuantView &v, int64_t row,
                                                               int block)
{
    const int64_t block_row = v.block_rows == 1           ? row
                              : v.block_rows == INT64_MAX ? 0
                                                          : row / v.block_rows;
    const QuantGrid grid = {v.operand.q.scale_layout, v.grid_rows, v.grid_columns};
    return quant_scale_place(grid, block_row, block);
}

// Where the lane's first codes of a row lie, and their scales.
struct RowsLine {
    const uint8_t *codes, *scales;
};

// The stages that have columns for a lane. In others any codes of the row will do: a is 0 there.
struct RowsLane {
    int t;    // its chunk in a stage, 0 if it has no stages
    int last; // of them, or 0
};

template <typename K> static __device__ __forceinline__ RowsLane lane_of(const RowsArgs &args)
{
    const int t = lane_index() % 4, left = (int)args.given.work.frame.k - t * K::chunk;
    if (K::code == ROWS_INT4_TILED) // padded to whole stages
        return {t, args.stages - 1};
    return left > 0 ? RowsLane{t, (left - 1) / K::stage} : RowsLane{0, 0};
}

template <typename K>
static __device__ __forceinline__ RowsLine line_of(const RowsArgs &args, int group, int64_t row,
                                                   int t)
{
    const QuantView &v = args.given.work.b;
    const QTensor &q = v.operand.q;
    const int64_t all_row = group * v.matrix_rows + row;
    int64_t at = all_row * v.code_columns / (K::four_bits ? 2 : 1) + t * 16;
    if (K::code == ROWS_INT4_TILED)
        at = (all_row / CODE_TILE_ROWS * (v.code_columns / CODE_TILE_COLUMNS) * 32 +
              row % CODE_TILE_ROWS * 4 + t) *
             16;
    RowsLine line = {(const uint8_t *)q.codes + at, (const uint8_t *)q.scales};
    if (K::scale != ROWS_NO_SCALE)
        line.scales +=
            (group * v.scale_matrix + scale_place(v, row, t * K::chunk >> args.block_shift)) *
            K::scale_bytes;
    return line;
}

static __device__ __forceinline__ const uint8_t *whole_zeros(const RowsArgs &args,
                                                             const RowsLine &line)
{
    const QTensor &q = args.given.work.b.operand.q;
    return (const uint8_t *)q.zeros + (line.scales - (const uint8_t *)q.scales) / 2;
}

// Bytes from a lane's first scale to that of a stage.
template <typename K>
static __device__ __forceinline__ int scale_step(const RowsArgs &args, int stage)
{
    const int far = (stage >> args.far_shift) * args.far;
    return K::near ? far + (stage & args.near_mask) * args.near : far;
}

// ---- the ring ----

// The place whose turn it is: of the lane's codes, of its words with scales and zero points, and of
// the word that it copies where four lanes share them.
struct RowsRing {
    uint32_t codes, words, copied, last; // last: codes in the last place
};

template <typename K> static __device__ __forceinline__ RowsRing ring_at(uint32_t ring)
{
    const int lane = lane_index(), owner = K::quads ? lane / 4 : lane;
    const uint32_t codes = ring + lane * 16, words = ring + ROWS_CODES_BYTES;
    return {codes, words + owner * K::scale_words * 4, words + lane * 4,
            codes + K::ring_bytes - K::ring_stage};
}

template <typename K> static __device__ __forceinline__ void ring_turn(RowsRing *ring)
{
    const int step = ring->codes == ring->last ? K::ring_stage - K::ring_bytes : K::ring_stage;
    ring->codes += step;
    ring->words += step;
    ring->copied += step;
}

// ---- into the ring ----

// The next stage to set out, of tile set `index`.
struct RowsSender {
    RowsPlace p;
    int index, end; // of tile sets
    int stage;
    const uint8_t *codes, *codes_8;   // of rows g and g + 8, the lane's first chunk
    const uint8_t *scales, *scales_8; // their words, or, of four lanes that share them, one each
    const uint8_t *zeros;             // ROWS_BF16_WHOLE: of row g
    int zero_rows;                    // and bytes to those of row g + 8
    int skew;                         // bytes from the first word to the first scale
};

// To the start of a tile. What comes of rows that do not exist is dropped: others take their place.
template <typename K>
static __device__ __forceinline__ void aim(const RowsArgs &args, const RowsShare &share,
                                           const RowsLane &lane, RowsSender *s)
{
    const int n = (int)args.given.work.frame.n;
    const int row = min(s->p.set * args.set_rows + share.row, n - 1);
    const bool both = row + 8 < n;
    const RowsLine line = line_of<K>(args, s->p.group, row, lane.t);
    const int scale_rows = both ? args.scale_rows : 0;
    s->stage = share.first;
    s->codes = line.codes;
    s->codes_8 = line.codes + (both ? args.code_rows : 0);
    s->skew = (int)((uintptr_t)line.scales & 3);
    s->scales = line.scales - s->skew;
    if (K::quads)
        s->scales += (lane_index() & 1 ? scale_rows : 0) + (lane_index() & 2 ? args.zero_words : 0);
    s->scales_8 = s->scales + scale_rows;
    if (K::scale == ROWS_BF16_WHOLE) {
        s->zeros = whole_zeros(args, line);
        s->zero_rows = scale_rows / 2;
    }
}

// Words may end after the last scale, as memory does.
template <typename K>
static __device__ __forceinline__ void copy_scales(const RowsArgs &args, const RowsSender &s,
                                                   int stage, const RowsRing &ring)
{
    const int step = scale_step<K>(args, stage);
    const uint32_t at = (uint32_t)(s.skew + step) & ~3u;
    if (K::quads) {
        ptx_copy_4(ring.copied, s.scales + at);
        return;
    }
    ptx_copy_4(ring.words, s.scales + at);
    ptx_copy_4(ring.words + 4, s.scales_8 + at);
    if (K::scale == ROWS_BF16_WHOLE) {
        const uintptr_t zero = (uintptr_t)s.zeros + (step >> 1);
        const uint8_t *word = (const uint8_t *)(zero & ~(uintptr_t)3);
        ptx_copy_4(ring.words + 8, word);
        ptx_copy_4(ring.words + 12, word + s.zero_rows);
    } else if (K::scale_words == 4) {
        ptx_copy_4(ring.words + 8, s.scales + at + args.zero_words);
        ptx_copy_4(ring.words + 12, s.scales_8 + at + args.zero_words);
    }
}

// One group of copies, empty after the warp's last stage.
template <typename K>
static __device__ __forceinline__ void send_stage(const RowsArgs &args, const RowsShare &share,
                                                  const RowsLane &lane, RowsSender *s,
                                                  const RowsRing &ring)
{
    if (s->stage < share.end) {
        const int stage = min(s->stage, lane.last);
        const uint64_t at = (uint64_t)(uint32_t)stage * K::step;
        ptx_copy_16(ring.codes, s->codes + at, 16);
        ptx_copy_16(ring.codes + WARP_LANES * 16, s->codes_8 + at, 16);
        if (K::scale_words > 0)
            copy_scales<K>(args, *s, stage, ring);
        s->stage += args.slices;
        if (s->stage >= share.end && ++s->index < s->end) {
            s->p = next_place(args, 8 * K::row_sets, s->index, s->p);
            aim<K>(args, share, lane, s);
        }
    }
    ptx_copy_commit();
}

// ---- out of the ring ----

// What tiles of a group have in common: places in words, of the lane's first scale and zero point.
struct RowsGroup {
    int scale, zero;
    RowsLevels levels;
};

template <typename K>
static __device__ __forceinline__ RowsGroup group_of(const RowsArgs &args, const RowsLane &lane,
                                                     int group)
{
    const int64_t row = min((int64_t)lane_index() / 4, args.given.work.frame.n - 1);
    const RowsLine line = line_of<K>(args, group, row, lane.t);
    RowsGroup g = {};
    g.scale = (int)((uintptr_t)line.scales & 3);
    if (K::scale == ROWS_BF16_WHOLE)
        g.zero = (int)((uintptr_t)whole_zeros(args, line) & 3);
    g.levels = levels_of(args.given.work.b, group);
    return g;
}

// What a lane finds at its place of the ring.
template <typename K> struct RowsChunks {
    uint4 codes[2];
    RowsScales scales[2];
};

// What ptx_permute makes a scale of its word by.
template <typename K> static __device__ __forceinline__ uint32_t scale_selector(int at)
{
    return K::scale == ROWS_E8M0  ? 0x4440u | (at & 3)
           : K::scale == ROWS_F32 ? 0x3210u
                                  : 0x1010u + (at & 2) * 0x1111u;
}

// 8 rows on a scale lies as far into its word, and a zero point too.
template <typename K>
static __device__ __forceinline__ RowsChunks<K>
read_stage(const RowsArgs &args, const RowsGroup &group, const RowsLane &lane, int stage,
           const RowsRing &ring)
{
    RowsChunks<K> chunks = {};
    chunks.codes[0] = ptx_load_16(ring.codes);
    chunks.codes[1] = ptx_load_16(ring.codes + WARP_LANES * 16);
    if (K::scale_words == 0)
        return chunks;
    const int step = scale_step<K>(args, K::quads ? stage : min(stage, lane.last));
    const uint32_t selector = scale_selector<K>(group.scale + step);
    uint4 words = {};
    if (K::scale_words == 4) {
        words = ptx_load_16(ring.words);
    } else {
        const uint2 two = ptx_load_8(ring.words);
        words.x = two.x, words.y = two.y;
    }
    chunks.scales[0].scale = ptx_permute(words.x, selector);
    chunks.scales[1].scale = ptx_permute(words.y, selector);
    if (K::scale == ROWS_BF16_WHOLE) {
        const int shift = ((group.zero + (step >> 1)) & 3) * 8;
        chunks.scales[0].zero = (uint32_t)(int8_t)(words.z >> shift);
        chunks.scales[1].zero = (uint32_t)(int8_t)(words.w >> shift);
    } else if (K::scale_words == 4) {
        const uint32_t zero_selector = (selector & args.zero_keep) ^ args.zero_flip;
        chunks.scales[0].zero = ptx_permute(words.z, zero_selector);
        chunks.scales[1].zero = ptx_permute(words.w, zero_selector);
    }
    return chunks;
}
