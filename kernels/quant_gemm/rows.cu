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
// Stages come through shared memory, four on their way (quant_gemm/rows_flow.cuh). Eight warps
// share a block; where there are few rows of b, `slices` of them share 16 rows, one taking every
// slices-th stage; where rows of a are long or rows of b few, the blocks of a cluster have a part
// of k each. Slices and parts are added up in ascending order, through shared memory. A block goes
// through neighbouring tiles, so that it seldom needs other rows of a. Limited by memory; the issue
// slots come next: of int4 a lane's 64 codes of a stage take 179 instructions, 104 of them to make
// bf16 of codes.
//
// Source: PTX ISA, mma.m16n8k16.
#include "kernels/quant_gemm/rows.cuh"

#include "kernels/quant_gemm/rows_flow.cuh"

// ---- rows of a ----

// Eight neighbouring elements of a quantised row as bf16.
static __device__ __forceinline__ uint4 load_eight(const QuantRows &q, int64_t row, int64_t column)
{
    const QuantView &v = q.work.a;
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

// The part's columns of the rows; 0 past the end of k. A quantised row is the only one.
template <typename K>
static __device__ __forceinline__ void stage_rows(const RowsArgs &args, const RowsPlace &p,
                                                  int part, uint32_t *lines)
{
    constexpr int AT_ONCE = 8; // rows
    const QuantOperand &a = args.given.work.a.operand;
    const int64_t k = args.given.work.frame.k, first = (int64_t)part * args.part_stages * K::stage;
    for (int column = threadIdx.x * 8; column < args.part_stages * K::stage;
         column += ROWS_THREADS * 8) {
        const bool inside = first + column < k;
        if (K::row_sets == 1 && a.quantised) {
            place_eight<K>(lines, column,
                           inside ? load_eight(args.given, p.first_row, first + column)
                                  : make_uint4(0, 0, 0, 0));
            continue;
        }
        const Bf16 *from = (const Bf16 *)a.values + p.first_row * k + first + column;
#pragma unroll 1
        for (int row = 0; row < p.rows; row += AT_ONCE) {
            uint4 x[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                x[i] = inside && row + i < p.rows ? *(const uint4 *)(from + (row + i) * k)
                                                  : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                if (row + i < p.rows)
                    place_eight<K>(lines + (row + i) * args.line_words, column, x[i]);
        }
    }
}

// ---- a tile ----

// One stage of rows g and g + 8 of b with the rows of a; line: of row g, at the stage.
template <typename K, int SETS>
static __device__ __forceinline__ void
multiply_stage(const RowsArgs &args, const RowsChunks<K> &chunks, const RowsLevels &levels,
               const uint32_t *line, float (&sum)[K::row_sets][4])
{
    constexpr int PIECES = K::chunk / 8;
    RowsFactors factors[2];
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
        uint32_t x[2][4]; // four pairs of each row of b
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const RowsScales &s = chunks.scales[r];
            if constexpr (K::four_bits) {
                if (piece % (PIECES / K::subs) == 0)
                    factors[r] = factors_of<K>(levels, s, piece * K::subs / PIECES);
                decode_four_bits<K>(word_of(chunks.codes[r], piece), factors[r], x[r]);
            } else {
                const float scale = byte_scale<K>(s), zero = byte_zero<K>(s);
                uint32_t low[2], high[2];
                decode_bytes<K>(word_of(chunks.codes[r], 2 * piece), scale, zero, low);
                decode_bytes<K>(word_of(chunks.codes[r], 2 * piece + 1), scale, zero, high);
                x[r][0] = low[0], x[r][1] = low[1], x[r][2] = high[0], x[r][3] = high[1];
            }
        }
#pragma unroll
        for (int set = 0; set < SETS; set++) {
            const uint4 y = *(const uint4 *)(line + set * 8 * args.line_words + piece * 16);
            ptx_mma_warp(sum[set], x[0][0], x[1][0], x[0][1], x[1][1], y.x, y.y);
            ptx_mma_warp(sum[set], x[0][2], x[1][2], x[0][3], x[1][3], y.z, y.w);
        }
    }
}

template <typename K, int SETS>
static __device__ __forceinline__ void
multiply_tile(const RowsArgs &args, const RowsShare &share, const RowsLane &lane,
              const uint32_t *lines, const RowsGroup &group, RowsRing *ring, RowsSender *sender,
              float (&sum)[K::row_sets][4])
{
    const uint32_t *line = lines + lane_index() / 4 * args.line_words + lane_index() % 4 * 4 +
                           (share.first - share.part * args.part_stages) * K::stage_words;
#pragma unroll 1
    for (int stage = share.first; stage < share.end; stage += args.slices) {
        ptx_copy_wait<ROWS_AHEAD - 1>();
        if (K::quads)
            __syncwarp();
        const RowsChunks<K> chunks = read_stage<K>(args, group, lane, stage, *ring);
        multiply_stage<K, SETS>(args, chunks, group.levels, line, sum);
        if (K::quads)
            __syncwarp();
        send_stage<K>(args, share, lane, sender, *ring);
        ring_turn<K>(ring);
        line += args.slices * K::stage_words;
    }
}

// ---- out of a tile ----

static __device__ __forceinline__ float rows_factor(const QuantFactors &f, int64_t at)
{
    return f.of ? __ldg(f.of + at) : 1.0f;
}

static __device__ __forceinline__ void store_one(const QuantRows &q, const RowsPlace &p, int row,
                                                 int n, float sum)
{
    const GroupedGemm &g = q.work.frame;
    if (row >= p.rows || n >= (int)g.n)
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

// Adds up slices and parts of each tile; sums [warps][row sets][32 lanes][4], which the next tile
// leaves alone. The blocks of a cluster share the elements.
template <typename K>
static __device__ __forceinline__ void add_slices(const RowsArgs &args, const RowsPlace &p,
                                                  int part, float *sums,
                                                  const float (&sum)[K::row_sets][4])
{
    constexpr int SUMS = K::row_sets * WARP_LANES * 4; // of a warp
    const int warp = threadIdx.x / WARP_LANES;
#pragma unroll
    for (int set = 0; set < K::row_sets; set++)
        *(float4 *)(sums + warp * SUMS + (set * WARP_LANES + lane_index()) * 4) =
            make_float4(sum[set][0], sum[set][1], sum[set][2], sum[set][3]);
    cluster_wait(args.parts);
    const int tiles = ROWS_WARPS / args.slices, step = ROWS_THREADS * args.parts;
    for (int i = (int)threadIdx.x + part * ROWS_THREADS; i < tiles * SUMS; i += step) {
        const int tile = i / SUMS, at = i % SUMS;
        const int lane = at / 4 % WARP_LANES, e = at % 4;
        const int row = at / (4 * WARP_LANES) * 8 + lane % 4 * 2 + e % 2;
        if (row >= p.rows)
            continue;
        const float *from = sums + tile * args.slices * SUMS + at;
        float total = 0;
        for (int slice = 0; slice < args.slices; slice++, from += SUMS)
            for (int other = 0; other < args.parts; other++)
                total += args.parts == 1 ? *from : cluster_read(from, other);
        store_one(args.given, p, row,
                  p.set * args.set_rows + tile * ROWS_TILE + lane / 4 + e / 2 * 8, total);
    }
}

template <typename K>
__global__ void __launch_bounds__(ROWS_THREADS, 2)
    quant_rows_kernel(const __grid_constant__ RowsArgs args)
{
    extern __shared__ __align__(16) uint8_t shared[];
    constexpr int ROWS_MAX = 8 * K::row_sets, SUMS = ROWS_WARPS * K::row_sets * WARP_LANES * 4;
    uint32_t *lines = (uint32_t *)(shared + ROWS_WARPS * K::ring_bytes);
    float *sums = (float *)(lines + ROWS_MAX * args.line_words); // [2][SUMS], taken in turn
    const GroupedGemm &g = args.given.work.frame;
    const int warp = threadIdx.x / WARP_LANES;
    const RowsShare share = share_of(args, warp, args.parts == 1 ? 0 : cluster_part());
    const int64_t clusters = gridDim.x / args.parts, cluster = blockIdx.x / args.parts;
    const int64_t all = (int64_t)count_chunks(g, ROWS_MAX) * args.tile_sets;
    const int end = (int)(all * (cluster + 1) / clusters);
    int index = (int)(all * cluster / clusters);
    int staged_row = -1;
    const RowsLane lane = lane_of<K>(args);
    RowsRing ring = ring_at<K>(ptx_shared_address(shared + warp * K::ring_bytes));
    RowsSender sender = {};
    RowsGroup group;
    RowsPlace p = {};
    sender.stage = share.end;
    if (index < end) {
        p = place_of(args, ROWS_MAX, index);
        sender.p = p, sender.index = index, sender.end = end;
        aim<K>(args, share, lane, &sender);
    }
#pragma unroll 1
    for (int i = 0; i < ROWS_AHEAD; i++, ring_turn<K>(&ring))
        send_stage<K>(args, share, lane, &sender, ring);
    for (int turn = 0; index < end; turn ^= 1) {
        if (p.first_row != staged_row) {
            group = group_of<K>(args, lane, p.group);
            __syncthreads();
            stage_rows<K>(args, p, share.part, lines);
            __syncthreads();
            staged_row = p.first_row;
        }
        float sum[K::row_sets][4] = {};
        if (K::row_sets == 1 || p.rows <= 8)
            multiply_tile<K, 1>(args, share, lane, lines, group, &ring, &sender, sum);
        else
            multiply_tile<K, K::row_sets>(args, share, lane, lines, group, &ring, &sender, sum);
        if (K::scale == ROWS_E4M3_SCALE)
#pragma unroll
            for (int i = 0; i < 4 * K::row_sets; i++)
                sum[i / 4][i % 4] *= group.levels.after;
        if (args.slices * args.parts > 1) {
            add_slices<K>(args, p, share.part, sums + turn * SUMS, sum);
        } else {
            const int n = p.set * args.set_rows + share.row;
#pragma unroll
            for (int i = 0; i < 4 * K::row_sets; i++)
                store_one(args.given, p, i / 4 * 8 + lane_index() % 4 * 2 + i % 2,
                          n + i / 2 % 2 * 8, sum[i / 4][i % 4]);
        }
        if (++index < end)
            p = next_place(args, ROWS_MAX, index, p);
    }
    if (args.parts > 1)
        cluster_wait(args.parts); // until nobody reads this block's sums
}

// ---- host ----

typedef void (*RowsKernel)(RowsArgs);
typedef struct RowsRow {
    RowsCode code;
    RowsScale scale;
    RowsKernel kernel[2];  // for 8 and for 16 rows
    int stage, ring_bytes; // columns; of a block
} RowsRow;
#define ROWS_ROW(code, scale)                                                                      \
    {                                                                                              \
        code, scale,                                                                               \
            {quant_rows_kernel<RowsKind<code, scale, 1>>,                                          \
             quant_rows_kernel<RowsKind<code, scale, 2>>},                                         \
            RowsKind<code, scale, 1>::stage, ROWS_WARPS *RowsKind<code, scale, 1>::ring_bytes      \
    }
static const RowsRow rows_table[] = {
    ROWS_ROW(ROWS_INT4, ROWS_BF16_STAGE), ROWS_ROW(ROWS_INT4_TILED, ROWS_BF16_STAGE),
    ROWS_ROW(ROWS_INT4, ROWS_BF16),       ROWS_ROW(ROWS_E2M1, ROWS_E8M0),
    ROWS_ROW(ROWS_E2M1, ROWS_E4M3_SCALE), ROWS_ROW(ROWS_INT8, ROWS_NO_SCALE),
    ROWS_ROW(ROWS_INT8, ROWS_BF16),       ROWS_ROW(ROWS_E4M3, ROWS_F32),
    ROWS_ROW(ROWS_E4M3, ROWS_E8M0),       ROWS_ROW(ROWS_E4M3, ROWS_NO_SCALE),
    ROWS_ROW(ROWS_INT8, ROWS_BF16_WHOLE), ROWS_ROW(ROWS_INT4, ROWS_BF16_WHOLE),
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
    if (code == ROWS_INT8 && scaled && rule->has_zeros && rule->zero_dtype != DTYPE_I8)
        return NULL;
    if (scale == ROWS_BF16 && rule->method == QUANT_ZERO_POINT_CT) {
        if (!rule->has_zeros || rule->zero_dtype != DTYPE_I8)
            return NULL;
        scale = ROWS_BF16_WHOLE;
    }
    if (scale == ROWS_BF16 && (pairs || tiled) && b->block_columns >= 128)
        scale = ROWS_BF16_STAGE;
    const int least = scale == ROWS_E4M3_SCALE                 ? 16
                      : tiled                                  ? 128
                      : code == ROWS_INT8 || code == ROWS_E4M3 ? 16
                                                               : 32;
    const int most = scale == ROWS_E4M3_SCALE ? 16 : INT32_MAX; // a chunk has two scales
    // 8 rows on, as far into a word, or the same.
    const bool words =
        b->block_rows == 1 ||
        (scale == ROWS_F32 && (b->block_rows == INT64_MAX || b->block_rows % ROWS_TILE == 0));
    if (scaled && scale != ROWS_NO_SCALE && (!words || (uintptr_t)q->zeros % 4 != 0))
        return NULL;
    if (scaled && (b->block_columns < least || b->block_columns > most ||
                   (rule->block_columns && !power_of_two(b->block_columns))))
        return NULL;
    for (size_t i = 0; i < COUNT_OF(rows_table); i++)
        if (rows_table[i].code == code && rows_table[i].scale == scale)
            return &rows_table[i];
    return NULL;
}

// Where the codes and scales of rows and stages lie (RowsArgs); false: not so.
static bool plan_scales(const QuantView *b, int stage_columns, RowsScale scale, RowsArgs *plan)
{
    const QTensor *q = &b->operand.q;
    const int64_t bytes = rows_scale_bytes(scale);
    const bool swizzled = q->scale_layout == SCALES_SWIZZLED;
    int64_t step = q->scale_layout == SCALES_PLAIN ? 1 : b->grid_rows; // from block to block
    step *= q->scale_layout == SCALES_PAIRED ? 2 : 1;
    plan->code_rows = (int)(8 * b->code_columns / (stage_columns / 64));
    plan->scale_rows = (int)((scale_place(*b, 8, 0) - scale_place(*b, 0, 0)) * bytes);
    plan->block_shift = 31;
    if (scale == ROWS_NO_SCALE || q->rule.block_columns == 0)
        return true;
    for (int shift = 0; shift < 31; shift++)
        if (b->block_columns == (int64_t)1 << shift)
            plan->block_shift = shift;
    const int64_t blocks = stage_columns / b->block_columns; // of a stage
    if (scale == ROWS_E4M3_SCALE && !swizzled && step != 1)
        return false;
    if (!swizzled) {
        while (b->block_columns > (int64_t)stage_columns << plan->far_shift)
            plan->far_shift++;
        plan->far = (int)(step * (blocks > 1 ? blocks : 1) * bytes);
        return b->grid_rows * b->grid_columns * 8 <= INT32_MAX;
    }
    plan->far = 512; // tiles of 4 blocks of 128 rows
    if (blocks == 2) {
        plan->far_shift = plan->near_mask = 1;
        plan->near = 2;
    } else {
        plan->far *= (int)blocks / 4;
    }
    return blocks >= (stage_columns == 128 ? 4 : 2) && bytes == 1 && b->grid_columns < 1 << 20;
}

// Shared memory with that many parts; `tiles` times parts are fewer than `warps` if slices share
// tiles.
static int plan_parts(int64_t tiles, int64_t warps, const RowsRow *row, int parts, int row_sets,
                      RowsArgs *plan)
{
    plan->parts = parts;
    plan->part_stages = (plan->stages + parts - 1) / parts;
    const bool adds = parts > 1 || tiles < warps;
    const int64_t line_bytes = (int64_t)plan->part_stages * row->stage * 2 + ROWS_LINE_EXTRA;
    const int64_t sums_bytes = adds ? 2 * ROWS_WARPS * WARP_LANES * 16 : 0;
    const int64_t bytes = row->ring_bytes + row_sets * (8 * line_bytes + sums_bytes);
    plan->line_words = (int)(line_bytes / 4);
    return (int)(bytes < INT32_MAX ? bytes : INT32_MAX);
}

static RowsArgs plan_of(const QuantRows *args, const RowsRow *row, int *shared_bytes, int *row_sets)
{
    const GroupedGemm *g = &args->work.frame;
    RowsArgs plan = {};
    plan.given = *args;
    plan.stages = (int)((g->k + row->stage - 1) / row->stage);
    const QTensor *q = &args->work.b.operand.q;
    plan.zero_flip = 0x4444; // no zero points: 0
    if ((row->scale == ROWS_BF16 || row->scale == ROWS_BF16_STAGE) && q->rule.has_zeros &&
        q->rule.zero_dtype == DTYPE_BF16) {
        plan.zero_keep = 0xFFFF;
        plan.zero_words = q->zeros ? (const uint8_t *)q->zeros - (const uint8_t *)q->scales : 0;
        plan.zero_flip = q->zeros ? 0 : 0x2222; // else beside the scale, in the upper half
    }
    // Groups that can have rows, times tiles: as many warps as the GPU runs at once. Where few rows
    // come together, more than 8 are so rare that b may be read twice for them.
    const int64_t rows = g->rows_expected > 0 ? g->rows_expected : g->rows_max;
    const int64_t groups = rows < g->groups ? rows : g->groups;
    const int64_t tiles = groups * ((g->n + ROWS_TILE - 1) / ROWS_TILE);
    const int64_t warps = (int64_t)cuda_processors() * 15;
    *row_sets = g->rows_max <= 8 || (g->group_rows && rows <= 4 * groups) ? 1 : 2;
    int parts = 1;
    *shared_bytes = plan_parts(tiles, warps, row, parts, *row_sets, &plan);
    while (parts < ROWS_PARTS_MAX &&
           (*shared_bytes > ROWS_SHARED_HALF ||
            (tiles * ROWS_WARPS * parts * 2 <= warps && plan.part_stages > ROWS_WARPS * 2)))
        *shared_bytes = plan_parts(tiles, warps, row, parts *= 2, *row_sets, &plan);
    if (*shared_bytes > ROWS_SHARED_MAX && *row_sets == 2)
        *shared_bytes = plan_parts(tiles, warps, row, parts, *row_sets = 1, &plan);
    plan.slices = 1;
    while (plan.slices < ROWS_WARPS && tiles * plan.slices * parts < warps)
        plan.slices *= 2;
    plan.set_rows = ROWS_TILE * ROWS_WARPS / plan.slices;
    plan.tile_sets = (int)((g->n + plan.set_rows - 1) / plan.set_rows);
    return plan;
}

bool quant_rows_suits(const QuantRows *args)
{
    const GroupedGemm *g = &args->work.frame;
    const QuantView *a = &args->work.a, *b = &args->work.b;
    if (a->operand.quantised && g->rows_max > 1)
        return false;
    if (!b->operand.quantised || args->work.dtype != DTYPE_BF16 || g->k == 0)
        return false;
    const RowsRow *row = row_of(args);
    if (!row)
        return false;
    int shared_bytes, row_sets;
    RowsArgs plan = plan_of(args, row, &shared_bytes, &row_sets);
    const uintptr_t addresses =
        (uintptr_t)b->operand.q.codes | (a->operand.quantised ? 0 : (uintptr_t)a->operand.values);
    const int64_t unit = row->code == ROWS_INT4_TILED ? 8 : row->stage / 4;
    return g->k % unit == 0 && addresses % 16 == 0 && (uintptr_t)b->operand.q.scales % 4 == 0 &&
           shared_bytes <= ROWS_SHARED_MAX && g->k < 1 << 20 &&
           (g->rows_max / 8 + g->groups) * plan.tile_sets <= INT32_MAX &&
           plan_scales(b, row->stage, row->scale, &plan);
}

void quant_rows(const QuantRows *args, cudaStream_t stream)
{
    const RowsRow *row = row_of(args);
    int shared_bytes, row_sets;
    RowsArgs plan = plan_of(args, row, &shared_bytes, &row_sets);
    CHECK_RULE(plan_scales(&args->work.b, row->stage, row->scale, &plan));
    const RowsKernel kernel = row->kernel[row_sets - 1];
    CHECK_CUDA(cudaFuncSetAttribute((const void *)kernel,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    const GroupedGemm *g = &args->work.frame;
    const int64_t most = (g->rows_max / 8 + g->groups) * (int64_t)plan.tile_sets;
    const unsigned clusters = // two clusters' blocks on as many multiprocessors
        cuda_grid(most * plan.parts, shared_bytes <= ROWS_SHARED_HALF ? 2 : 1) / plan.parts;
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = (unsigned)plan.parts;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t launch = {};
    launch.gridDim = dim3((clusters > 0 ? clusters : 1) * plan.parts);
    launch.blockDim = dim3(ROWS_THREADS);
    launch.dynamicSmemBytes = (size_t)shared_bytes;
    launch.stream = stream;
    launch.attrs = &cluster;
    launch.numAttrs = plan.parts > 1 ? 1 : 0;
    CHECK_CUDA(cudaLaunchKernelEx(&launch, kernel, plan));
    CHECK_CUDA(cudaGetLastError());
}
