// expand.cu -- codes become bf16, e4m3 or int8 in rows; scales become f32.
//
// A warp owns a row at a time, a lane 16 bytes of it. Limited by memory where decoding is cheap:
// that of the recipes whose activations are expanded, too, has its code and its scale as constants.
#include "kernels/quant_gemm/expand.cuh"

#include "kernels/gemm/ptx.cuh"

enum { EXPAND_THREADS = 256 };

static __device__ __forceinline__ uint32_t byte_of(QuantUnit unit, float value)
{
    return unit == QUANT_UNIT_E4M3 ? quant_e4m3(value) : (uint32_t)(int32_t)value & 0xFFu;
}

// How a lane finds 16 bytes of a row's units, from `column` on: any operand.
template <QuantUnit UNIT> struct AnyCodes {
    static constexpr int count = UNIT == QUANT_UNIT_BF16 ? 8 : 16; // units
    static __device__ __forceinline__ uint4 units(const QuantView &v, bool scaled, int matrix,
                                                  int64_t row, int64_t column)
    {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < count; i += 4) {
            float four[4] = {};
            view_four(v, matrix, row, column + i, four);
            const float scale = scaled ? view_block(v, matrix, row, column + i).scale : 1.0f;
            if constexpr (UNIT == QUANT_UNIT_BF16) {
                words[i / 2] = bf16_pair(four[0] * scale, four[1] * scale);
                words[i / 2 + 1] = bf16_pair(four[2] * scale, four[3] * scale);
            } else {
                words[i / 4] = byte_of(UNIT, four[0]) | byte_of(UNIT, four[1]) << 8 |
                               byte_of(UNIT, four[2]) << 16 | byte_of(UNIT, four[3]) << 24;
            }
        }
        return make_uint4(words[0], words[1], words[2], words[3]);
    }
};

// The value of the lowest of some e2m1 codes: its bits as those of a float are 2^-126 of it.
static __device__ __forceinline__ float e2m1_value(uint32_t codes)
{
    const uint32_t bits = (codes & 8u) << 28 | (codes & 7u) << 22;
    return __uint_as_float(bits) * 0x1p126f;
}

// Codes times the scale of their block, both of one byte: e4m3 or e2m1 in pairs.
template <QuantCode CODE, DType SCALE> struct ScaledCodes {
    static constexpr int count = 8;
    static __device__ __forceinline__ uint4 units(const QuantView &v, bool, int matrix, int64_t row,
                                                  int64_t column)
    {
        const QTensor &q = v.operand.q;
        const int64_t all_row = matrix * v.matrix_rows + row;
        const uint8_t *codes = (const uint8_t *)q.codes +
                               (all_row * v.code_columns + column) / (CODE == CODE_E2M1 ? 2 : 1);
        const uint32_t block = (uint32_t)column / (uint32_t)v.block_columns;
        const QuantGrid grid = {q.scale_layout, v.grid_rows, v.grid_columns};
        const uint8_t scale_bits = __ldg((const uint8_t *)q.scales + matrix * v.scale_matrix +
                                         quant_scale_place(grid, row, block));
        const float scale =
            SCALE == DTYPE_F8_E8M0 ? quant_mx_power(scale_bits) : ptx_e4m3_pair(scale_bits).x;
        float x[count];
        if constexpr (CODE == CODE_E2M1) {
            const uint32_t word = __ldg((const uint32_t *)codes);
#pragma unroll
            for (int i = 0; i < count; i++)
                x[i] = e2m1_value(word >> 4 * i) * scale;
        } else {
            const uint2 words = __ldg((const uint2 *)codes);
#pragma unroll
            for (int i = 0; i < count; i += 2) {
                const float2 two = ptx_e4m3_pair((i < 4 ? words.x : words.y) >> i % 4 * 8 & 0xFFFF);
                x[i] = two.x * scale;
                x[i + 1] = two.y * scale;
            }
        }
        return make_uint4(bf16_pair(x[0], x[1]), bf16_pair(x[2], x[3]), bf16_pair(x[4], x[5]),
                          bf16_pair(x[6], x[7]));
    }
    static bool suits(const QuantExpand *args)
    {
        const QuantView *v = &args->from;
        const QTensor *q = &v->operand.q;
        return args->scaled && args->unit == QUANT_UNIT_BF16 && q->rule.code == CODE &&
               q->rule.scale_dtype == SCALE &&
               q->code_layout == (CODE == CODE_E2M1 ? CODES_PAIRS : CODES_BYTES) &&
               q->scale_layout != SCALES_PAIRED && v->block_rows == 1 &&
               v->block_columns % count == 0 && v->code_columns % count == 0 &&
               v->columns < INT32_MAX && (uintptr_t)q->codes % count == 0;
    }
};

// The groups' row number `index`, counted through all groups; false past the last. `group` and
// `passed` (rows of the groups before it) go on from call to call.
static __device__ __forceinline__ bool row_of_groups(const GroupedGemm &g, int64_t index,
                                                     int *group, int64_t *passed, int64_t *row)
{
    for (; *group < g.groups; ++*group) {
        const int rows = __ldg(g.group_rows + *group);
        if (index < *passed + rows) {
            *row = __ldg(g.group_first + *group) + index - *passed;
            return true;
        }
        *passed += rows;
    }
    return false;
}

template <typename Codes>
__global__ void __launch_bounds__(EXPAND_THREADS)
    expand_rows(const __grid_constant__ QuantView v, const __grid_constant__ GroupedGemm groups,
                int64_t rows, int64_t all_rows, bool scaled, uint4 *to)
{
    int group = 0;
    int64_t passed = 0;
    for (int64_t index = warp_index(); index < all_rows; index += warp_count()) {
        int64_t matrix = 0, row = index;
        if (groups.group_rows) {
            if (!row_of_groups(groups, index, &group, &passed, &row))
                return;
        } else {
            matrix = index / rows;
            row = index - matrix * rows;
        }
        uint4 *line = to + (matrix * rows + row) * (v.columns / Codes::count);
        for (int64_t i = lane_index(); i < v.columns / Codes::count; i += WARP_LANES)
            line[i] = Codes::units(v, scaled, (int)matrix, row, i * Codes::count);
    }
}

typedef void (*ExpandKernel)(QuantView, GroupedGemm, int64_t, int64_t, bool, uint4 *);

static ExpandKernel kernel_for(const QuantExpand *args)
{
    typedef ScaledCodes<CODE_E4M3, DTYPE_F8_E8M0> Mxfp8;
    typedef ScaledCodes<CODE_E2M1, DTYPE_F8_E8M0> Mxfp4;
    typedef ScaledCodes<CODE_E2M1, DTYPE_F8_E4M3> Nvfp4;
    return Mxfp8::suits(args)              ? expand_rows<Mxfp8>
           : Mxfp4::suits(args)            ? expand_rows<Mxfp4>
           : Nvfp4::suits(args)            ? expand_rows<Nvfp4>
           : args->unit == QUANT_UNIT_BF16 ? expand_rows<AnyCodes<QUANT_UNIT_BF16>>
           : args->unit == QUANT_UNIT_E4M3 ? expand_rows<AnyCodes<QUANT_UNIT_E4M3>>
                                           : expand_rows<AnyCodes<QUANT_UNIT_S8>>;
}

void quant_expand(const QuantExpand *args, cudaStream_t stream)
{
    const GroupedGemm none = {}, *groups = args->groups ? args->groups : &none;
    const int64_t all_rows = args->rows * args->matrices;
    const unsigned grid = cuda_grid((all_rows + 7) / 8, 8); // 8 warps a block
    kernel_for(args)<<<grid, EXPAND_THREADS, 0, stream>>>(args->from, *groups, args->rows, all_rows,
                                                          args->scaled, (uint4 *)args->to);
    CHECK_CUDA(cudaGetLastError());
}

// A thread owns a scale at a time.
__global__ void __launch_bounds__(EXPAND_THREADS)
    gather_scales(const __grid_constant__ QuantView v, int64_t count, QuantFactors places,
                  float *to)
{
    const int64_t step = (int64_t)gridDim.x * EXPAND_THREADS;
    for (int64_t i = (int64_t)blockIdx.x * EXPAND_THREADS + threadIdx.x; i < count; i += step) {
        const int64_t block = i % v.grid_columns, row = i / v.grid_columns % v.grid_rows;
        const int64_t matrix = i / v.grid_columns / v.grid_rows;
        const int64_t block_rows = v.block_rows == INT64_MAX ? 0 : v.block_rows;
        to[matrix * places.matrix + row * places.row + block * places.block] =
            view_block(v, (int)matrix, row * block_rows, block * v.block_columns).scale;
    }
}

void quant_gather_scales(const QuantView *from, int64_t matrices, QuantFactors places, float *to,
                         cudaStream_t stream)
{
    const int64_t count = matrices * from->grid_rows * from->grid_columns;
    const unsigned grid = cuda_grid((count + EXPAND_THREADS - 1) / EXPAND_THREADS, 8);
    gather_scales<<<grid, EXPAND_THREADS, 0, stream>>>(*from, count, places, to);
    CHECK_CUDA(cudaGetLastError());
}
