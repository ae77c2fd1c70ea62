// rows_flow.cuh -- how quant_gemm/rows.cu gets weights: codes and scales of the stages that a warp
// multiplies next come by asynchronous copies to its ring of ROWS_AHEAD places in shared memory.
//
// Registers would not do: a warp counts its loads by six counters, so that it waits for the newest
// with the oldest. Copies are of 4 bytes at least: of scales whole words come, and what begins
// inside one is shifted out when it is used.
//
// Source: PTX ISA, cp.async.
#pragma once

#include "kernels/quant_gemm/rows_tiles.cuh"

// A lane's chunks of rows g and g + 8 of a tile come by copies to a ring in shared memory: 16 bytes
// of codes of either row, and the words that their scales and zero points lie in. Where the four
// lanes of a row have the same, each copies one word, else all its own.
struct RowsFlow {
    const uint8_t *codes;  // of row g, of the lane's first chunk
    const uint8_t *scales; // the word of the lane's first scale, or what this lane copies with it
    const uint8_t *zeros;  // ROWS_BF16_WHOLE: the first zero point
    int skew;              // bytes from the word to the first scale
    int code_rows, scale_rows; // bytes from row g to row g + 8
    int stages; // that have columns for this lane; elsewhere any codes will do: a is 0 there
    RowsLevels levels;
};

// What a lane finds at its place of the ring.
template <typename K> struct RowsChunks {
    uint4 codes[2];
    RowsScales scales[2];
};

// In a matrix of scales; block: the first of the lane's.
static __device__ __forceinline__ int64_t scale_place(const QuantView &v, int64_t row, int block)
{
    const int64_t block_row = v.block_rows == 1           ? row
                              : v.block_rows == INT64_MAX ? 0
                                                          : row / v.block_rows;
    const QuantGrid grid = {v.operand.q.scale_layout, v.grid_rows, v.grid_columns};
    return quant_scale_place(grid, block_row, block);
}

// Where lane t's first codes of a row lie, and their scales.
struct RowsLine {
    const uint8_t *codes, *scales;
};

template <typename K>
static __device__ __forceinline__ RowsLine line_of(const RowsArgs &args, int group, int64_t row,
                                                   int t)
{
    const QuantView &v = args.given.work.b;
    const QTensor &q = v.operand.q;
    row = min(row, args.given.work.frame.n - 1); // what comes of rows that do not exist is dropped
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

// Bytes from a lane's first word of scales to its scale in a stage.
template <typename K>
static __device__ __forceinline__ int scale_at(const RowsArgs &args, const RowsFlow &flow,
                                               int stage)
{
    const int at = K::quads || stage < flow.stages ? stage : 0;
    const int near = K::scale_bytes == 1 ? (at & args.near_mask) * args.near : 0; // swizzled
    return flow.skew + (at >> args.far_shift) * args.far + near;
}

// Words may end after the last scale, as memory does.
template <typename K>
static __device__ __forceinline__ void copy_scales(const RowsArgs &args, const RowsFlow &flow,
                                                   int stage, uint32_t to)
{
    const int at = scale_at<K>(args, flow, stage);
    const uint8_t *word = flow.scales + (at & ~3);
    if (K::quads) {
        ptx_copy_4(to + lane_index() % 4 * 4, word);
        return;
    }
    ptx_copy_4(to, word);
    ptx_copy_4(to + 4, word + flow.scale_rows);
    if (K::scale == ROWS_BF16_WHOLE) {
        const uintptr_t zero = (uintptr_t)flow.zeros + ((at - flow.skew) >> 1);
        const uint8_t *zero_word = (const uint8_t *)(zero & ~(uintptr_t)3);
        ptx_copy_4(to + 8, zero_word);
        ptx_copy_4(to + 12, zero_word + (flow.scale_rows >> 1 & ~3));
    } else if (K::scale_words == 4) {
        ptx_copy_4(to + 8, word + args.zero_words);
        ptx_copy_4(to + 12, word + args.zero_words + flow.scale_rows);
    }
}

// A lane's places in a slot of the ring: of its codes, and of its scales' words.
struct RowsSlot {
    uint32_t codes, words;
};

template <typename K> static __device__ __forceinline__ RowsSlot slot_of(uint32_t ring)
{
    const int owner = K::quads ? lane_index() / 4 : lane_index();
    return {ring + lane_index() * 16, ring + ROWS_CODES_BYTES + owner * K::scale_words * 4};
}

// One group of copies; all lanes have read the slot.
template <typename K>
static __device__ __forceinline__ void load_stage(const RowsArgs &args, const RowsFlow &flow,
                                                  int stage, RowsSlot slot)
{
    constexpr int STEP = K::code == ROWS_INT4_TILED ? 32 * 16 : ROWS_STAGE_BYTES;
    const uint8_t *codes = flow.codes + (stage < flow.stages ? stage : 0) * STEP;
    ptx_copy_16(slot.codes, codes, 16);
    ptx_copy_16(slot.codes + WARP_LANES * 16, codes + flow.code_rows, 16);
    if (K::scale_words > 0)
        copy_scales<K>(args, flow, stage, slot.words);
}

// 8 rows on a scale lies as far into its word, and a zero point too.
template <typename K>
static __device__ __forceinline__ RowsChunks<K>
read_stage(const RowsArgs &args, const RowsFlow &flow, int stage, RowsSlot slot)
{
    RowsChunks<K> chunks = {};
    chunks.codes[0] = ptx_load_16(slot.codes);
    chunks.codes[1] = ptx_load_16(slot.codes + WARP_LANES * 16);
    if (K::scale_words == 0)
        return chunks;
    const int at = scale_at<K>(args, flow, stage);
    uint4 words = {};
    if (K::scale_words == 4) {
        words = ptx_load_16(slot.words);
    } else {
        const uint2 two = ptx_load_8(slot.words);
        words.x = two.x, words.y = two.y;
    }
    chunks.scales[0].scale = scale_of_word<K>(words.x, at);
    chunks.scales[1].scale = scale_of_word<K>(words.y, at);
    if (K::scale_words == 4) {
        const int zero_at = K::scale == ROWS_BF16_WHOLE
                                ? (int)(uintptr_t)flow.zeros + ((at - flow.skew) >> 1)
                                : at + args.zero_skew;
        chunks.scales[0].zero = zero_of_word<K>(words.z, zero_at, args.zero_mask);
        chunks.scales[1].zero = zero_of_word<K>(words.w, zero_at, args.zero_mask);
    }
    return chunks;
}

// The first stages of a tile set out.
template <typename K>
static __device__ __forceinline__ void flow_begin(const RowsArgs &args, const RowsShare &share,
                                                  int group, int64_t first_n, uint32_t ring,
                                                  RowsFlow *flow)
{
    const int64_t k = args.given.work.frame.k, first_column = lane_index() % 4 * K::chunk;
    flow->stages = K::code == ROWS_INT4_TILED // padded to whole stages
                       ? args.stages
                       : (int)max((k - first_column + K::stage - 1) / K::stage, (int64_t)0);
    const int64_t row = first_n + lane_index() / 4;
    const int t = flow->stages > 0 ? lane_index() % 4 : 0;
    const RowsLine line = line_of<K>(args, group, row, t);
    const RowsLine line_8 = line_of<K>(args, group, row + 8, t);
    flow->codes = line.codes;
    flow->code_rows = (int)(line_8.codes - line.codes);
    flow->scale_rows = (int)(line_8.scales - line.scales) & ~3; // else row g + 8 does not exist
    flow->skew = (int)((uintptr_t)line.scales & 3);
    flow->scales = line.scales - flow->skew;
    if (K::quads)
        flow->scales +=
            (lane_index() & 1 ? flow->scale_rows : 0) + (lane_index() & 2 ? args.zero_words : 0);
    if (K::scale == ROWS_BF16_WHOLE) {
        const QTensor &q = args.given.work.b.operand.q;
        flow->zeros = (const uint8_t *)q.zeros + (line.scales - (const uint8_t *)q.scales) / 2;
    }
    flow->levels = levels_of(args.given.work.b, group);
    __syncwarp();
#pragma unroll 1
    for (int i = 0; i < ROWS_AHEAD; i++) {
        const int stage = share.first + i * args.slices;
        if (stage < share.end)
            load_stage<K>(args, *flow, stage, slot_of<K>(ring + i * K::ring_stage));
        ptx_copy_commit();
    }
}
