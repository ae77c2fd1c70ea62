// simt.cuh -- products of quantised operands on the ordinary arithmetic units: every recipe,
// any shape, f32 and bf16, with the bits of the CPU.
//
// The tiles of gemm/simt.cuh: a block of 256 threads owns 64 x 64 of c, a thread 4 x 4 of it. Every
// thread turns four neighbouring codes of each operand into f32 per piece of 16 columns. A chain of
// fmaf runs in ascending k to the end of a block of columns and is then multiplied by the scales of
// its rows, which lie in shared memory. Whole numbers are added in f32 while that is exact, and in
// double beyond. Limited by the fma pipe and by decoding (about a third of the instructions).
#pragma once

#include "kernels/gemm/simt.cuh"
#include "kernels/quant_gemm/view.cuh"

enum { WHOLE_COLUMNS = 1024 }; // so many products of int8 are exact in f32

struct SimtShared {
    float a[SIMT_TERMS][SIMT_PITCH], b[SIMT_TERMS][SIMT_PITCH];
    float a_scale[SIMT_TILE], b_scale[SIMT_TILE];
};

// The tile's first row of a.
template <GemmForm FORM> static __device__ __forceinline__ int64_t a_row(const GemmTile &tile)
{
    return (FORM == GEMM_TN ? 0 : (int64_t)tile.group_first) + tile.row;
}

// Row `line` of the tile's operand, where it exists; a's rows are those of one matrix.
static __device__ __forceinline__ void quant_simt_stage(const QuantView &v, int matrix,
                                                        int64_t first_row, int rows, int64_t column,
                                                        float (*to)[SIMT_PITCH])
{
    const int line = threadIdx.x / 4, terms = threadIdx.x % 4 * 4;
    float four[4] = {};
    if (line < rows && column + terms < v.columns)
        view_four(v, matrix, first_row + line, column + terms, four);
#pragma unroll
    for (int i = 0; i < 4; i++)
        to[terms + i][line] = four[i];
}

static __device__ __forceinline__ void quant_simt_terms(const SimtShared &shared, int row,
                                                        int column, int terms, float (&chain)[4][4])
{
#pragma unroll
    for (int t = 0; t < SIMT_TERMS; t++) {
        if (t >= terms)
            break;
        const float4 x = *(const float4 *)&shared.a[t][row];
        const float4 y = *(const float4 *)&shared.b[t][column];
        const float left[4] = {x.x, x.y, x.z, x.w}, right[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int i = 0; i < 16; i++)
            chain[i / 4][i % 4] = __fmaf_rn(left[i / 4], right[i % 4], chain[i / 4][i % 4]);
    }
}

// The sums over columns [first, last) of the thread's 4 x 4. FORM here and below: GEMM_TN for sums
// over the columns of groups, whose tiles lie as those of weights' gradients.
template <bool WHOLE, GemmForm FORM>
static __device__ __forceinline__ void quant_simt_block(const QuantWork &w, const GemmTile &tile,
                                                        SimtShared *shared, int64_t first,
                                                        int64_t last, float (&chain)[4][4])
{
    const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
    const int columns = (int)min((int64_t)SIMT_TILE, w.frame.n - tile.column);
    double whole[4][4] = {};
    for (int64_t k = first; k < last; k += SIMT_TERMS) {
        quant_simt_stage(w.a, 0, a_row<FORM>(tile), tile.rows_left, k, shared->a);
        quant_simt_stage(w.b, FORM == GEMM_TN ? 0 : tile.group, tile.column, columns, k, shared->b);
        __syncthreads();
        const int64_t left = last - k;
        quant_simt_terms(*shared, row, column, left < SIMT_TERMS ? (int)left : SIMT_TERMS, chain);
        __syncthreads();
        if (WHOLE &&
            ((k - first) % WHOLE_COLUMNS == WHOLE_COLUMNS - SIMT_TERMS || left <= SIMT_TERMS)) {
#pragma unroll
            for (int i = 0; i < 16; i++) {
                whole[i / 4][i % 4] += (double)chain[i / 4][i % 4];
                chain[i / 4][i % 4] = 0.0f;
            }
        }
    }
    if (WHOLE) {
#pragma unroll
        for (int i = 0; i < 16; i++)
            chain[i / 4][i % 4] = (float)whole[i / 4][i % 4];
    }
}

template <bool WHOLE, GemmForm FORM>
static __device__ __forceinline__ void quant_simt_tile(const QuantWork &w, const GemmTile &tile,
                                                       SimtShared *shared, float (&total)[4][4])
{
    const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
    const bool scaled = w.product == PRODUCT_SCALED;
    const int64_t begin = FORM == GEMM_TN ? tile.group_first : 0, end = begin + tile.sum_length;
    for (int64_t first = begin; first < end; first += w.block) {
        const int64_t last = min(first + w.block, end);
        const int line = threadIdx.x % SIMT_TILE;
        if (scaled && threadIdx.x < SIMT_TILE && line < tile.rows_left)
            shared->a_scale[line] =
                view_scale(w.a, FORM == GEMM_TN ? tile.group : 0, a_row<FORM>(tile) + line, first);
        else if (scaled && threadIdx.x >= SIMT_TILE && threadIdx.x < 2 * SIMT_TILE &&
                 tile.column + line < w.frame.n)
            shared->b_scale[line] = view_scale(w.b, tile.group, tile.column + line, first);
        float chain[4][4] = {};
        quant_simt_block<WHOLE, FORM>(w, tile, shared, first, last, chain);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            float *sum = &total[i / 4][i % 4];
            const float x = chain[i / 4][i % 4];
            *sum = scaled
                       ? __fadd_rn(*sum, __fmul_rn(x, __fmul_rn(shared->a_scale[row + i / 4],
                                                                shared->b_scale[column + i % 4])))
                       : x;
        }
        __syncthreads();
    }
}

template <bool WHOLE, GemmForm FORM>
__global__ void __launch_bounds__(SIMT_THREADS) quant_simt(const __grid_constant__ QuantWork w)
{
    __shared__ __align__(16) SimtShared shared;
    const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
    GemmWalk walk = gemm_walk_begin();
    GemmTile tile;
    while (gemm_walk_next<FORM, SIMT_TILE, SIMT_TILE, true>(w.frame, &walk, &tile)) {
        float total[4][4] = {};
        quant_simt_tile<WHOLE, FORM>(w, tile, &shared, total);
        const int64_t first_row = a_row<FORM>(tile), c_row = gemm_c_row<FORM>(w.frame, tile);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const int r = row + i / 4, n = column + i % 4;
            if (r >= tile.rows_left || tile.column + n >= w.frame.n)
                continue;
            const float value =
                quant_finish(w, total[i / 4][i % 4], quant_factor(w, w.a, 0, first_row + r),
                             quant_factor(w, w.b, tile.group, tile.column + n));
            simt_store(w.frame, (c_row + r) * w.frame.n + tile.column + n, value);
        }
    }
}
