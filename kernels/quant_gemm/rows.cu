// rows.cu -- few rows times many quantised weights: every code is read from memory once, 16
// bytes a lane, and becomes bf16 in registers on its way to the tensor cores.
//
// A warp multiplies 16 rows of b, as the left operand of mma m16n8k16, with 8 or 16 rows of a. Lane
// 4 g + t holds codes of rows g and g + 8 of b: 16 bytes as they lie, its chunk; four lanes' chunks
// are a stage, 64 bytes of a row. (Of tinygemm's tiles a lane takes what it would take there:
// columns 2t, 2t + 1 of each 8.) Rows of a lie in shared memory in the order in which codes leave
// their words (quant_gemm/decode.cuh). There, 16-byte pieces of the four chunks of a stage
// alternate, and rows start 64 bytes apart modulo 128, so that a warp's loads touch every bank as
// often.
//
// Eight warps share a block; where there are few rows of b, `slices` of them share 16 rows, one
// taking every slices-th stage, and add up in shared memory. A block goes through neighbouring
// tiles, so that it seldom needs other rows of a. Limited by memory; the issue slots come next,
// with about 2.5 instructions for a 4-bit code.
//
// Source: PTX ISA, mma.m16n8k16.
#include "kernels/quant_gemm/rows.cuh"

#include "kernels/quant_gemm/decode.cuh"

enum {
    ROWS_THREADS = 256,
    ROWS_WARPS = ROWS_THREADS / WARP_LANES,
    ROWS_TILE = 16,        // rows of b
    ROWS_STAGE_BYTES = 64, // of a row of b
    ROWS_AHEAD = 4,        // stages in flight
    ROWS_SHARED_MAX = 200 * 1024,
    ROWS_LINE_EXTRA = 64, // bytes from one row of a to the next, beyond its terms
};

struct RowsArgs {
    QuantRows given;
    int slices;
    int stages;      // of k
    int line_words;  // from one row of a in shared memory to the next
    int tile_sets;   // of ROWS_WARPS / slices tiles each, in one group
    int block_shift; // columns of b's blocks; 31: one block
};

// ---- which tiles ----

// Tile sets are counted group by group, for every chunk of rows of a.
struct RowsPlace {
    int group, first_row, rows; // of a; rows 0: past the end
    int set;
};

static __device__ __forceinline__ int chunks_of_group(const GroupedGemm &g, int group, int rows_max)
{
    const int rows = group >= g.groups ? 0
                     : g.group_rows    ? __ldg(g.group_rows + group)
                                       : (int)g.rows_max;
    return (rows + rows_max - 1) / rows_max;
}

// Warp: all chunks of rows.
static __device__ __forceinline__ int count_chunks(const GroupedGemm &g, int rows_max)
{
    int chunks = 0;
    for (int group = lane_index(); group < g.groups; group += WARP_LANES)
        chunks += chunks_of_group(g, group, rows_max);
    return __reduce_add_sync(WARP_ALL, chunks);
}

// Warp: the group that chunk `*number` lies in; *number becomes its number there.
static __device__ __forceinline__ int find_chunk(const GroupedGemm &g, int rows_max, int *number)
{
    for (int first = 0; first < g.groups; first += WARP_LANES) {
        const int chunks = chunks_of_group(g, first + lane_index(), rows_max);
        int sum = chunks; // of this lane and those below
#pragma unroll
        for (int apart = 1; apart < WARP_LANES; apart *= 2) {
            const int below = __shfl_up_sync(WARP_ALL, sum, apart);
            sum += lane_index() >= apart ? below : 0;
        }
        const unsigned found = __ballot_sync(WARP_ALL, sum > *number);
        if (found) {
            const int lane = __ffs(found) - 1;
            *number -= __shfl_sync(WARP_ALL, sum - chunks, lane);
            return first + lane;
        }
        *number -= __shfl_sync(WARP_ALL, sum, WARP_LANES - 1);
    }
    return g.groups;
}

static __device__ __forceinline__ RowsPlace place_of(const RowsArgs &args, int rows_max,
                                                     int64_t index)
{
    const GroupedGemm &g = args.given.work.frame;
    RowsPlace p = {};
    int chunk = (int)(index / args.tile_sets);
    p.set = (int)(index - (int64_t)chunk * args.tile_sets);
    p.group = find_chunk(g, rows_max, &chunk);
    const int rows = g.group_rows ? __ldg(g.group_rows + p.group) : (int)g.rows_max;
    p.first_row = (g.group_first ? __ldg(g.group_first + p.group) : 0) + chunk * rows_max;
    p.rows = min(rows - chunk * rows_max, rows_max);
    return p;
}

// ---- rows of a ----

// Eight neighbouring elements as bf16.
static __device__ __forceinline__ uint4 load_eight(const QuantRows &q, int64_t row, int64_t column)
{
    const QuantView &v = q.work.a;
    if (!v.operand.quantised) // rows of k, which 8 divides
        return *(const uint4 *)((const Bf16 *)v.operand.values + row * v.columns + column);
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float four[4];
        view_four(v, 0, row, column + 4 * i, four);
        const float scale = q.a_scaled ? view_block(v, 0, row, column + 4 * i).scale : 1.0f;
        word[2 * i] = bf16_pair(four[0] * scale, four[1] * scale);
        word[2 * i + 1] = bf16_pair(four[2] * scale, four[3] * scale);
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

// Where eight elements, from a column that 8 divides on, go in a row of shared memory.
template <typename K>
static __device__ __forceinline__ void place_eight(uint32_t *line, int64_t column, uint4 x)
{
    uint32_t *stage = line + column / K::stage * K::stage_words;
    const int within = (int)(column % K::stage);
    if (K::code == ROWS_INT4_TILED) {
        uint32_t *to = stage + within / 32 * 16 + within % 32 / 8;
        to[0] = x.x;
        to[4] = x.y;
        to[8] = x.z;
        to[12] = x.w;
        return;
    }
    if (K::four_bits) // 0 4, 1 5, 2 6, 3 7
        x = make_uint4(__byte_perm(x.x, x.z, 0x5410), __byte_perm(x.x, x.z, 0x7632),
                       __byte_perm(x.y, x.w, 0x5410), __byte_perm(x.y, x.w, 0x7632));
    const int t = within / K::chunk, piece = within % K::chunk / 8;
    *(uint4 *)(stage + piece * 16 + t * 4) = x;
}

template <typename K>
static __device__ __forceinline__ void stage_rows(const RowsArgs &args, const RowsPlace &p,
                                                  uint32_t *lines)
{
    const int64_t k = args.given.work.frame.k;
    const int eights = args.stages * K::stage / 8;
    for (int i = threadIdx.x; i < 8 * K::row_sets * eights; i += ROWS_THREADS) {
        const int row = i / eights, column = (i - row * eights) * 8;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (row < p.rows && column < k)
            x = load_eight(args.given, (int64_t)p.first_row + row, column);
        place_eight<K>(lines + row * args.line_words, column, x);
    }
}

// ---- codes of b ----

struct RowsScales { // of a lane's chunk
    float scale[2], zero[2];
};

template <typename K> struct RowsChunk {
    uint4 codes;
    RowsScales scales;
};

// What a lane needs to find its chunks of one row of b.
struct RowsLine {
    const uint8_t *codes;
    int64_t scale_first, scale_step; // elements; swizzled: step 0
};

template <typename K>
static __device__ __forceinline__ RowsLine line_of(const RowsArgs &args, int group, int64_t row)
{
    const QuantView &v = args.given.work.b;
    const QTensor &q = v.operand.q;
    row = min(row, args.given.work.frame.n - 1); // what comes of rows that do not exist is dropped
    const int64_t all_row = group * v.matrix_rows + row;
    RowsLine line;
    if (K::code == ROWS_INT4_TILED)
        line.codes = (const uint8_t *)q.codes +
                     (all_row / CODE_TILE_ROWS * (v.code_columns / CODE_TILE_COLUMNS) * 32 +
                      row % CODE_TILE_ROWS * 4 + lane_index() % 4) *
                         16;
    else
        line.codes = (const uint8_t *)q.codes + all_row * v.code_columns / (K::four_bits ? 2 : 1) +
                     lane_index() % 4 * 16;
    const int64_t block_row = v.block_rows == 1           ? row
                              : v.block_rows == INT64_MAX ? 0
                                                          : row / v.block_rows;
    const int64_t first = group * v.scale_matrix, pair = q.scale_layout == SCALES_PAIRED ? 2 : 1;
    line.scale_step = pair * v.grid_rows;
    line.scale_first = first + pair * block_row;
    if (q.scale_layout == SCALES_PLAIN) {
        line.scale_first = first + block_row * v.grid_columns;
        line.scale_step = 1;
    } else if (q.scale_layout == SCALES_SWIZZLED) {
        line.scale_first = first + quant_swizzled_place(v.grid_columns, block_row, 0);
        line.scale_step = 0;
    }
    return line;
}

template <typename K>
static __device__ __forceinline__ float scale_at(const QTensor &q, int64_t index)
{
    if (K::scale == ROWS_BF16)
        return widen(((const Bf16 *)q.scales)[index]);
    if (K::scale == ROWS_F32)
        return ((const float *)q.scales)[index];
    const uint32_t byte = ((const uint8_t *)q.scales)[index];
    return K::scale == ROWS_E8M0 ? quant_mx_power(byte) : quant_of_e4m3(byte);
}

template <typename K>
static __device__ __forceinline__ RowsScales load_scales(const RowsArgs &args, const RowsLine &line,
                                                         int column)
{
    const QTensor &q = args.given.work.b.operand.q;
    RowsScales s = {{1.0f, 1.0f}, {0.0f, 0.0f}};
#pragma unroll
    for (int sub = 0; sub < K::subs && K::scale != ROWS_NO_SCALE; sub++) {
        const int block = (column + sub * 16) >> args.block_shift;
        const int64_t index = line.scale_step == 0 ? line.scale_first + block / 4 * 512 + block % 4
                                                   : line.scale_first + block * line.scale_step;
        s.scale[sub] = scale_at<K>(q, index);
        if (K::scale != ROWS_BF16 || !q.rule.has_zeros)
            continue;
        if (q.rule.zero_dtype == DTYPE_I8)
            s.zero[sub] = q.rule.method == QUANT_ZERO_POINT_CT
                              ? (float)((const int8_t *)q.zeros)[index]
                              : 0.0f;
        else
            s.zero[sub] = widen(q.zeros ? ((const Bf16 *)q.zeros)[index]
                                        : ((const Bf16 *)q.scales)[index + 1]);
    }
    return s;
}

template <typename K>
static __device__ __forceinline__ RowsChunk<K> load_chunk(const RowsArgs &args,
                                                          const RowsLine &line, int stage)
{
    RowsChunk<K> chunk;
    int column = stage * K::stage;
    int64_t at = (int64_t)stage * ROWS_STAGE_BYTES;
    if (K::code == ROWS_INT4_TILED) { // padded to whole stages; blocks are whole stages, too
        at = (int64_t)stage * 512;
    } else {
        column += lane_index() % 4 * K::chunk;
        if (column >= args.given.work.frame.k) { // any codes will do: a is 0 there
            column = 0;
            at = -(lane_index() % 4 * 16);
        }
    }
    chunk.codes = __ldg((const uint4 *)(line.codes + at));
    chunk.scales = load_scales<K>(args, line, column);
    return chunk;
}

// ---- a tile ----

// One stage of rows g and g + 8 of b with the rows of a.
template <typename K>
static __device__ __forceinline__ void
multiply_stage(const RowsArgs &args, const RowsChunk<K> (&chunk)[2], int stage,
               const uint32_t *lines, float tensor, float (&sum)[K::row_sets][4])
{
    const uint32_t *line =
        lines + lane_index() / 4 * args.line_words + stage * K::stage_words + lane_index() % 4 * 4;
#pragma unroll
    for (int piece = 0; piece < K::chunk / 8; piece++) {
        uint32_t x[2][4]; // four pairs of each row of b
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const RowsScales &s = chunk[r].scales;
            const int sub = K::subs == 2 ? piece / 2 : 0;
            if constexpr (K::four_bits) {
                decode_four_bits<K>(args.given.work.b, word_of(chunk[r].codes, piece), s.scale[sub],
                                    s.zero[sub], tensor, x[r]);
            } else {
                uint32_t low[2], high[2];
                decode_bytes<K>(word_of(chunk[r].codes, 2 * piece), s.scale[0], s.zero[0], low);
                decode_bytes<K>(word_of(chunk[r].codes, 2 * piece + 1), s.scale[0], s.zero[0],
                                high);
                x[r][0] = low[0], x[r][1] = low[1], x[r][2] = high[0], x[r][3] = high[1];
            }
        }
#pragma unroll
        for (int set = 0; set < K::row_sets; set++) {
            const uint4 y = *(const uint4 *)(line + set * 8 * args.line_words + piece * 16);
            ptx_mma_warp(sum[set], x[0][0], x[1][0], x[0][1], x[1][1], y.x, y.y);
            ptx_mma_warp(sum[set], x[0][2], x[1][2], x[0][3], x[1][3], y.z, y.w);
        }
    }
}

template <typename K>
static __device__ __forceinline__ void
multiply_tile(const RowsArgs &args, const RowsPlace &p, int64_t first_n, int slice,
              const uint32_t *lines, float (&sum)[K::row_sets][4])
{
    const int g = lane_index() / 4;
    const RowsLine line[2] = {line_of<K>(args, p.group, first_n + g),
                              line_of<K>(args, p.group, first_n + g + 8)};
    const float tensor = view_tensor_scale(args.given.work.b, p.group);
    for (int first = slice; first < args.stages; first += args.slices * ROWS_AHEAD) {
        RowsChunk<K> chunk[ROWS_AHEAD][2];
#pragma unroll
        for (int i = 0; i < ROWS_AHEAD; i++) {
            const int stage = min(first + i * args.slices, args.stages - 1);
            chunk[i][0] = load_chunk<K>(args, line[0], stage);
            chunk[i][1] = load_chunk<K>(args, line[1], stage);
        }
#pragma unroll
        for (int i = 0; i < ROWS_AHEAD; i++)
            if (first + i * args.slices < args.stages)
                multiply_stage<K>(args, chunk[i], first + i * args.slices, lines, tensor, sum);
    }
}

static __device__ __forceinline__ float rows_factor(const QuantFactors &f, int64_t at)
{
    return f.of ? __ldg(f.of + at) : 1.0f;
}

static __device__ __forceinline__ void store_one(const QuantRows &q, const RowsPlace &p, int row,
                                                 int64_t n, float sum)
{
    const GroupedGemm &g = q.work.frame;
    if (row >= p.rows || n >= g.n)
        return;
    const int64_t c_row = (int64_t)p.first_row + row;
    if (q.finish != QUANT_FINISH_NONE) {
        const float fa = rows_factor(q.fa, c_row * q.fa.row);
        const float fb = rows_factor(q.fb, p.group * q.fb.matrix + n * q.fb.row);
        const DType dtype = q.work.dtype;
        sum = q.finish == QUANT_FINISH_TIMES ? __fmul_rn(sum, __fmul_rn(fa, fb))
              : q.finish == QUANT_FINISH_ROUNDED
                  ? __fmul_rn(quant_round(dtype, __fmul_rn(sum, fa)), quant_round(dtype, fb))
                  : __fmul_rn(quant_round(dtype, sum), quant_round(dtype, __fmul_rn(fa, fb)));
    }
    const int64_t at = c_row * g.n + n;
    if (g.out_dtype == DTYPE_BF16)
        ((Bf16 *)g.c)[at] = narrow<Bf16>(sum);
    else
        ((float *)g.c)[at] = g.accumulate ? __fadd_rn(((float *)g.c)[at], sum) : sum;
}

// Adds up the slices of each tile; part [warps][row sets][32 lanes][4].
template <typename K>
static __device__ __forceinline__ void add_slices(const RowsArgs &args, const RowsPlace &p,
                                                  float *part, const float (&sum)[K::row_sets][4])
{
    constexpr int SUMS = K::row_sets * WARP_LANES * 4; // of a warp
    const int warp = threadIdx.x / WARP_LANES;
#pragma unroll
    for (int set = 0; set < K::row_sets; set++)
        *(float4 *)(part + warp * SUMS + (set * WARP_LANES + lane_index()) * 4) =
            make_float4(sum[set][0], sum[set][1], sum[set][2], sum[set][3]);
    __syncthreads();
    const int tiles = ROWS_WARPS / args.slices;
    for (int i = threadIdx.x; i < tiles * SUMS; i += ROWS_THREADS) {
        const int tile = i / SUMS, at = i % SUMS;
        float total = 0;
        for (int slice = 0; slice < args.slices; slice++)
            total += part[(tile * args.slices + slice) * SUMS + at];
        const int lane = at / 4 % WARP_LANES, e = at % 4;
        const int row = at / (4 * WARP_LANES) * 8 + lane % 4 * 2 + e % 2;
        store_one(args.given, p, row,
                  ((int64_t)p.set * tiles + tile) * ROWS_TILE + lane / 4 + e / 2 * 8, total);
    }
    __syncthreads();
}

template <typename K>
__global__ void __launch_bounds__(ROWS_THREADS, 2)
    quant_rows_kernel(const __grid_constant__ RowsArgs args)
{
    extern __shared__ __align__(16) uint32_t lines[];
    float *part = (float *)(lines + 8 * K::row_sets * args.line_words);
    constexpr int ROWS_MAX = 8 * K::row_sets;
    const GroupedGemm &g = args.given.work.frame;
    const int64_t all = (int64_t)count_chunks(g, ROWS_MAX) * args.tile_sets;
    const int64_t end = all * (blockIdx.x + 1) / gridDim.x;
    const int warp = threadIdx.x / WARP_LANES, tiles = ROWS_WARPS / args.slices;
    int staged_row = -1;
    for (int64_t index = all * blockIdx.x / gridDim.x; index < end; index++) {
        const RowsPlace p = place_of(args, ROWS_MAX, index);
        if (p.first_row != staged_row) {
            __syncthreads();
            stage_rows<K>(args, p, lines);
            __syncthreads();
            staged_row = p.first_row;
        }
        const int64_t first_n = ((int64_t)p.set * tiles + warp / args.slices) * ROWS_TILE;
        float sum[K::row_sets][4] = {};
        if (first_n < g.n)
            multiply_tile<K>(args, p, first_n, warp % args.slices, lines, sum);
        if (args.slices > 1) {
            add_slices<K>(args, p, part, sum);
            continue;
        }
#pragma unroll
        for (int i = 0; i < 4 * K::row_sets; i++)
            store_one(args.given, p, i / 4 * 8 + lane_index() % 4 * 2 + i % 2,
                      first_n + lane_index() / 4 + i / 2 % 2 * 8, sum[i / 4][i % 4]);
    }
}

// ---- host ----

typedef void (*RowsKernel)(RowsArgs);
typedef struct RowsRow {
    RowsCode code;
    RowsScale scale;
    RowsKernel kernel[2]; // for 8 and for 16 rows
    int stage;
} RowsRow;
#define ROWS_ROW(code, scale)                                                                      \
    {                                                                                              \
        code, scale,                                                                               \
            {quant_rows_kernel<RowsKind<code, scale, 1>>,                                          \
             quant_rows_kernel<RowsKind<code, scale, 2>>},                                         \
            RowsKind<code, scale, 1>::stage                                                        \
    }
static const RowsRow rows_table[] = {
    ROWS_ROW(ROWS_INT4, ROWS_BF16),     ROWS_ROW(ROWS_INT4_TILED, ROWS_BF16),
    ROWS_ROW(ROWS_E2M1, ROWS_E8M0),     ROWS_ROW(ROWS_E2M1, ROWS_E4M3_SCALE),
    ROWS_ROW(ROWS_INT8, ROWS_NO_SCALE), ROWS_ROW(ROWS_INT8, ROWS_BF16),
    ROWS_ROW(ROWS_E4M3, ROWS_F32),      ROWS_ROW(ROWS_E4M3, ROWS_E8M0),
    ROWS_ROW(ROWS_E4M3, ROWS_NO_SCALE),
};

static bool power_of_two(int64_t value)
{
    return value > 0 && (value & (value - 1)) == 0;
}

// NULL: none. `scaled`: codes become values here, in the products of values and of blocks that bf16
// holds exactly.
static const RowsRow *row_of(const QuantRows *args)
{
    const QuantView *b = &args->work.b;
    const QTensor *q = &b->operand.q;
    const QuantRule *rule = &q->rule;
    const bool scaled = !b->codes || args->a_scaled;
    const bool pairs = q->code_layout == CODES_PAIRS, tiled = q->code_layout == CODES_TILED;
    RowsCode code = tiled ? ROWS_INT4_TILED : ROWS_INT4;
    if (rule->code == CODE_E2M1)
        code = ROWS_E2M1;
    else if (!pairs && !tiled)
        code = rule->code == CODE_E4M3 ? ROWS_E4M3 : ROWS_INT8;
    RowsScale scale = ROWS_NO_SCALE;
    if (scaled)
        scale = rule->scale_dtype == DTYPE_BF16      ? ROWS_BF16
                : rule->scale_dtype == DTYPE_F32     ? ROWS_F32
                : rule->scale_dtype == DTYPE_F8_E4M3 ? ROWS_E4M3_SCALE
                                                     : ROWS_E8M0;
    const int least = scale == ROWS_E4M3_SCALE                 ? 16
                      : tiled                                  ? 128
                      : code == ROWS_INT8 || code == ROWS_E4M3 ? 16
                                                               : 32;
    if (scaled &&
        (b->block_columns < least || (rule->block_columns && !power_of_two(b->block_columns))))
        return NULL;
    for (size_t i = 0; i < COUNT_OF(rows_table); i++)
        if (rows_table[i].code == code && rows_table[i].scale == scale)
            return &rows_table[i];
    return NULL;
}

static RowsArgs plan_of(const QuantRows *args, const RowsRow *row, int *shared_bytes, int *row_sets)
{
    const GroupedGemm *g = &args->work.frame;
    const QuantView *b = &args->work.b;
    RowsArgs plan = {};
    plan.given = *args;
    plan.stages = (int)((g->k + row->stage - 1) / row->stage);
    plan.line_words = (plan.stages * row->stage * 2 + ROWS_LINE_EXTRA) / 4;
    plan.block_shift = 31;
    for (int shift = 0; shift < 31 && b->operand.q.rule.block_columns; shift++)
        if (b->block_columns == (int64_t)1 << shift)
            plan.block_shift = shift;
    *row_sets = g->rows_max <= 8 || 16 * plan.line_words * 4 > ROWS_SHARED_MAX ? 1 : 2;
    *shared_bytes = 8 * *row_sets * plan.line_words * 4 + ROWS_WARPS * *row_sets * WARP_LANES * 16;
    // Groups that can have rows, times tiles: as many warps as the GPU runs at once.
    const int64_t rows = g->rows_expected > 0 ? g->rows_expected : g->rows_max;
    const int64_t groups = rows < g->groups ? rows : g->groups;
    const int64_t tiles = groups * ((g->n + ROWS_TILE - 1) / ROWS_TILE);
    plan.slices = 1;
    while (plan.slices < ROWS_WARPS && tiles * plan.slices < (int64_t)cuda_processors() * 16)
        plan.slices *= 2;
    const int64_t set_rows = ROWS_TILE * ROWS_WARPS / plan.slices;
    plan.tile_sets = (int)((g->n + set_rows - 1) / set_rows);
    return plan;
}

bool quant_rows_suits(const QuantRows *args)
{
    const GroupedGemm *g = &args->work.frame;
    const QuantView *a = &args->work.a, *b = &args->work.b;
    if (!b->operand.quantised || args->work.dtype != DTYPE_BF16 || g->k == 0)
        return false;
    const RowsRow *row = row_of(args);
    if (!row)
        return false;
    int shared_bytes, row_sets;
    plan_of(args, row, &shared_bytes, &row_sets);
    const uintptr_t addresses =
        (uintptr_t)b->operand.q.codes | (a->operand.quantised ? 0 : (uintptr_t)a->operand.values);
    const int64_t unit = row->code == ROWS_INT4_TILED ? 8 : row->stage / 4;
    return g->k % unit == 0 && addresses % 16 == 0 && shared_bytes <= 227 * 1024 && g->k < 1 << 20;
}

void quant_rows(const QuantRows *args, cudaStream_t stream)
{
    const RowsRow *row = row_of(args);
    int shared_bytes, row_sets;
    const RowsArgs plan = plan_of(args, row, &shared_bytes, &row_sets);
    const RowsKernel kernel = row->kernel[row_sets - 1];
    CHECK_CUDA(cudaFuncSetAttribute((const void *)kernel,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    const GroupedGemm *g = &args->work.frame;
    const int64_t most = (g->rows_max / 8 + g->groups) * (int64_t)plan.tile_sets;
    const unsigned grid = cuda_grid(most, shared_bytes <= 110 * 1024 ? 2 : 1);
    kernel<<<grid, ROWS_THREADS, (size_t)shared_bytes, stream>>>(plan);
    CHECK_CUDA(cudaGetLastError());
}
