// expand.cu -- codes become bf16, e4m3 or int8 in rows; scales become f32.
//
// A warp owns a row at a time, a lane 16 bytes of it. Limited by memory where decoding is cheap.
#include "kernels/quant_gemm/expand.cuh"

enum { EXPAND_THREADS = 256 };

static __device__ __forceinline__ uint32_t byte_of(QuantUnit unit, float value)
{
    return unit == QUANT_UNIT_E4M3 ? quant_e4m3(value) : (uint32_t)(int32_t)value & 0xFFu;
}

// 16 bytes of the row's units from `column` on.
template <QuantUnit UNIT>
static __device__ __forceinline__ uint4 expand_16(const QuantView &v, bool scaled, int matrix,
                                                  int64_t row, int64_t column)
{
    constexpr int COUNT = UNIT == QUANT_UNIT_BF16 ? 8 : 16; // units
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
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

template <QuantUnit UNIT>
__global__ void __launch_bounds__(EXPAND_THREADS)
    expand_rows(const __grid_constant__ QuantView v, const __grid_constant__ GroupedGemm groups,
                int64_t rows, int64_t all_rows, bool scaled, uint4 *to)
{
    constexpr int COUNT = UNIT == QUANT_UNIT_BF16 ? 8 : 16;
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
        uint4 *line = to + (matrix * rows + row) * (v.columns / COUNT);
        for (int64_t i = lane_index(); i < v.columns / COUNT; i += WARP_LANES)
            line[i] = expand_16<UNIT>(v, scaled, (int)matrix, row, i * COUNT);
    }
}

void quant_expand(const QuantExpand *args, cudaStream_t stream)
{
    const GroupedGemm none = {}, *groups = args->groups ? args->groups : &none;
    const int64_t all_rows = args->rows * args->matrices;
    const unsigned grid = cuda_grid((all_rows + 7) / 8, 8); // 8 warps a block
    uint4 *to = (uint4 *)args->to;
    if (args->unit == QUANT_UNIT_BF16)
        expand_rows<QUANT_UNIT_BF16><<<grid, EXPAND_THREADS, 0, stream>>>(
            args->from, *groups, args->rows, all_rows, args->scaled, to);
    else if (args->unit == QUANT_UNIT_E4M3)
        expand_rows<QUANT_UNIT_E4M3><<<grid, EXPAND_THREADS, 0, stream>>>(
            args->from, *groups, args->rows, all_rows, args->scaled, to);
    else
        expand_rows<QUANT_UNIT_S8><<<grid, EXPAND_THREADS, 0, stream>>>(
            args->from, *groups, args->rows, all_rows, args->scaled, to);
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
