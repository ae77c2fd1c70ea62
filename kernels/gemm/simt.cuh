// simt.cuh -- the grouped product on the ordinary arithmetic units: any shape, any stride, f32
// and bf16.
//
// A block of 256 threads owns a 64 x 64 tile of c at a time, a thread 4 x 4 of it. Pieces of 16
// terms of a and b are widened to f32 and laid out [term][row] in shared memory, so that a thread
// reads four rows and four columns with one 16-byte load each. Every element is one chain of fmaf
// in ascending order of terms, starting from 0: the definition, and the same bits as the CPU row.
// Limited by the fma pipe and by the shared memory loads that feed it (2 per 16 fma).
#pragma once

#include "kernels/cuda_common.cuh"
#include "kernels/gemm/walk.cuh"

enum { SIMT_TILE = 64, SIMT_TERMS = 16, SIMT_THREADS = 256, SIMT_PITCH = SIMT_TILE + 4 };

// One operand of the tile: its lines are c's rows (a) or columns (b). Element (line, term) lies at
// base + line * line_stride + term * term_stride, with the line or the term looked up in an index
// first.
template <typename T> struct SimtOperand {
    const T *base;
    int64_t line_stride, term_stride; // elements
    const int32_t *line_index;        // replaces the line by line_index[line], or NULL
    const int32_t *term_index;        // replaces the term by term_index[term], or NULL
    int64_t lines, terms;             // that exist; zeros past them
    bool terms_contiguous;
};

template <typename T>
static __device__ __forceinline__ float simt_load(const SimtOperand<T> &operand, int64_t line,
                                                  int64_t term)
{
    if (line >= operand.lines || term >= operand.terms)
        return 0.0f;
    if (operand.line_index)
        line = operand.line_index[line];
    if (operand.term_index)
        term = operand.term_index[term];
    return widen(operand.base[line * operand.line_stride + term * operand.term_stride]);
}

// Neighbouring threads read neighbouring addresses, whichever way the operand lies.
template <typename T>
static __device__ __forceinline__ void simt_stage(float (*to)[SIMT_PITCH],
                                                  const SimtOperand<T> &operand, int64_t term)
{
    for (int i = threadIdx.x; i < SIMT_TILE * SIMT_TERMS; i += SIMT_THREADS) {
        const int t = operand.terms_contiguous ? i % SIMT_TERMS : i / SIMT_TILE;
        const int line = operand.terms_contiguous ? i / SIMT_TERMS : i % SIMT_TILE;
        to[t][line] = simt_load(operand, line, term + t);
    }
}

template <GemmForm FORM, typename T>
static __device__ __forceinline__ SimtOperand<T> simt_operand_a(const GroupedGemm &args,
                                                                const GemmTile &tile)
{
    const T *a = (const T *)args.a;
    SimtOperand<T> operand = {};
    operand.lines = tile.rows_left;
    operand.terms = tile.sum_length;
    const int64_t first = (int64_t)tile.group_first + (FORM == GEMM_TN ? 0 : tile.row);
    const int32_t *index = args.a_index ? args.a_index + first : NULL;
    operand.base = a + (index ? 0 : first * args.a_stride) + (FORM == GEMM_TN ? tile.row : 0);
    operand.line_stride = FORM == GEMM_TN ? 1 : args.a_stride;
    operand.term_stride = FORM == GEMM_TN ? args.a_stride : 1;
    operand.line_index = FORM == GEMM_TN ? NULL : index;
    operand.term_index = FORM == GEMM_TN ? index : NULL;
    operand.terms_contiguous = FORM != GEMM_TN;
    return operand;
}

template <GemmForm FORM, typename T>
static __device__ __forceinline__ SimtOperand<T> simt_operand_b(const GroupedGemm &args,
                                                                const GemmTile &tile)
{
    const T *b = (const T *)args.b;
    SimtOperand<T> operand = {};
    operand.lines = args.n - tile.column;
    operand.terms = tile.sum_length;
    if (FORM == GEMM_NT) {
        operand.base = b + (tile.group * args.n + tile.column) * args.k;
        operand.line_stride = args.k;
        operand.term_stride = 1;
    } else if (FORM == GEMM_NN) {
        operand.base = b + tile.group * args.k * args.n + tile.column;
        operand.line_stride = 1;
        operand.term_stride = args.n;
    } else {
        const int32_t *index = args.b_index ? args.b_index + tile.group_first : NULL;
        operand.base = b + (index ? 0 : tile.group_first * args.b_stride) + tile.column;
        operand.line_stride = 1;
        operand.term_stride = args.b_stride;
        operand.term_index = index;
    }
    operand.terms_contiguous = FORM == GEMM_NT;
    return operand;
}

static __device__ __forceinline__ void simt_store(const GroupedGemm &args, int64_t at, float sum)
{
    if (args.out_dtype == DTYPE_BF16)
        ((Bf16 *)args.c)[at] = narrow<Bf16>(sum);
    else if (args.accumulate)
        ((float *)args.c)[at] += sum;
    else
        ((float *)args.c)[at] = sum;
}

template <GemmForm FORM, typename T>
__global__ void __launch_bounds__(SIMT_THREADS) gemm_simt(const GroupedGemm args)
{
    __shared__ __align__(16) float a_terms[SIMT_TERMS][SIMT_PITCH];
    __shared__ __align__(16) float b_terms[SIMT_TERMS][SIMT_PITCH];
    const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4; // of the thread's 4 x 4
    GemmWalk walk = gemm_walk_begin();
    GemmTile tile;
    while (gemm_walk_next<FORM, SIMT_TILE, SIMT_TILE>(args, &walk, &tile)) {
        const SimtOperand<T> a = simt_operand_a<FORM, T>(args, tile);
        const SimtOperand<T> b = simt_operand_b<FORM, T>(args, tile);
        float sum[4][4] = {};
        for (int64_t term = 0; term < tile.sum_length; term += SIMT_TERMS) {
            simt_stage(a_terms, a, term);
            simt_stage(b_terms, b, term);
            __syncthreads();
#pragma unroll
            for (int t = 0; t < SIMT_TERMS; t++) {
                const float4 x = *(const float4 *)&a_terms[t][row];
                const float4 y = *(const float4 *)&b_terms[t][column];
                const float left[4] = {x.x, x.y, x.z, x.w}, right[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
                for (int i = 0; i < 16; i++)
                    sum[i / 4][i % 4] = fmaf(left[i / 4], right[i % 4], sum[i / 4][i % 4]);
            }
            __syncthreads();
        }
        const int64_t c_row = gemm_c_row<FORM>(args, tile);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const int r = row + i / 4, n = column + i % 4;
            if (r < tile.rows_left && tile.column + n < args.n)
                simt_store(args, (c_row + r) * args.n + tile.column + n, sum[i / 4][i % 4]);
        }
    }
}
