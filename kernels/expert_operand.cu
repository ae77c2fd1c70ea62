// expert_operand.cu -- expert rows transposed, measured and cast on the GPU. All are limited by
// memory.
#include "kernels/cuda_common.cuh"
#include "kernels/expert_operand.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#include "quant/method_symmetric.h"
#include "quant/place.h"
#pragma GCC diagnostic pop

enum {
    SIDE = 64, // of a tile: lines of 128 bytes of bf16
    SIDE_PITCH = SIDE + 1,
    OPERAND_THREADS = 256,
    LINES = OPERAND_THREADS / SIDE, // that a pass over a tile takes
};

static __device__ __forceinline__ int64_t terms_aligned(int64_t terms)
{
    return (terms + EXPERT_TERMS_ALIGN - 1) / EXPERT_TERMS_ALIGN * EXPERT_TERMS_ALIGN;
}

// ---- transpose ----

// Thread block: tiles of 64 x 64 through shared memory, one word of padding to a line.
template <typename Word>
__global__ void __launch_bounds__(OPERAND_THREADS)
    transpose_kernel(const __grid_constant__ RowsTranspose args, int64_t row_tiles,
                     int64_t column_tiles)
{
    __shared__ Word tile[SIDE][SIDE_PITCH];
    const int along = threadIdx.x % SIDE, across = threadIdx.x / SIDE;
    const int64_t rows = args.row_map ? min((int64_t)*args.rows_total, args.rows) : args.rows;
    const int64_t end = args.row_map ? min(terms_aligned(rows), args.to_columns) : args.rows;
    const int64_t tiles = args.matrices * row_tiles * column_tiles;
    for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
        const int64_t matrix = index / (row_tiles * column_tiles);
        const int64_t first_row = index / column_tiles % row_tiles * SIDE;
        const int64_t first_column = index % column_tiles * SIDE;
        if (first_row >= end)
            continue;
        const Word *from = (const Word *)args.from + matrix * args.rows * args.columns;
        for (int line = across; line < SIDE; line += LINES) {
            const int64_t row = first_row + line, column = first_column + along;
            int64_t source = row < rows ? row : -1;
            if (source >= 0 && args.row_map) {
                const int32_t mapped = __ldg(args.row_map + row);
                source = mapped < 0 || args.mapped ? mapped : row;
            }
            const bool real = source >= 0 && column < args.columns;
            tile[line][along] = real ? from[source * args.columns + column] : (Word)0;
        }
        __syncthreads();
        for (int line = across; line < SIDE; line += LINES) {
            const int64_t row = first_row + along, column = first_column + line;
            if (column < args.columns && row < end)
                ((Word *)args.to)[(matrix * args.columns + column) * args.to_columns + row] =
                    tile[along][line];
        }
        __syncthreads();
    }
}

void rows_transpose_cuda(const RowsTranspose *args, Stream stream)
{
    const int64_t rows = args->row_map ? args->to_columns : args->rows;
    const int64_t row_tiles = (rows + SIDE - 1) / SIDE;
    const int64_t column_tiles = (args->columns + SIDE - 1) / SIDE;
    const unsigned grid = cuda_grid(args->matrices * row_tiles * column_tiles, 8);
    cudaStream_t s = cuda_stream(stream);
    CHECK_RULE(args->dtype == DTYPE_F32 || args->dtype == DTYPE_BF16);
    if (args->dtype == DTYPE_BF16)
        transpose_kernel<uint16_t><<<grid, OPERAND_THREADS, 0, s>>>(*args, row_tiles, column_tiles);
    else
        transpose_kernel<uint32_t><<<grid, OPERAND_THREADS, 0, s>>>(*args, row_tiles, column_tiles);
    CHECK_CUDA(cudaGetLastError());
}

// ---- amax ----

static __device__ __forceinline__ uint32_t warp_most(uint32_t bits)
{
    return __reduce_max_sync(WARP_ALL, bits);
}

// Warp: one row after the other.
template <typename T>
__global__ void __launch_bounds__(OPERAND_THREADS)
    amax_kernel(const __grid_constant__ RowsAmax args)
{
    const int64_t rows = min((int64_t)*args.rows_total, args.rows);
    uint32_t most = 0;
    for (int64_t row = warp_index(); row < rows; row += warp_count()) {
        if (__ldg(args.row_map + row) < 0)
            continue;
        const T *values = (const T *)args.values + row * args.columns;
        for (int64_t i = lane_index(); i < args.columns; i += WARP_LANES)
            most = max(most, format_f32_magnitude(widen(values[i])));
    }
    most = warp_most(most);
    if (lane_index() == 0 && most > 0)
        atomicMax((uint32_t *)args.amax, most);
}

void rows_amax_cuda(const RowsAmax *args, Stream stream)
{
    const unsigned grid = cuda_grid((args->rows + 7) / 8, 8);
    cudaStream_t s = cuda_stream(stream);
    if (args->dtype == DTYPE_BF16)
        amax_kernel<Bf16><<<grid, OPERAND_THREADS, 0, s>>>(*args);
    else
        amax_kernel<float><<<grid, OPERAND_THREADS, 0, s>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}

// ---- cast ----

// Warp: a row of one group after the other, read twice, the second time from the L1 or L2.
template <typename T>
__global__ void __launch_bounds__(OPERAND_THREADS)
    group_cast_kernel(const __grid_constant__ GroupCast args)
{
    const QTensor &q = args.to;
    QuantContext context = {};
    context.rule = q.rule;
    context.input = q.input;
    context.tensor_scale = 1.0f;
    const int64_t all = args.groups * q.rows;
    for (int64_t index = warp_index(); index < all; index += warp_count()) {
        const int group = (int)(index / q.rows);
        const int64_t row = index % q.rows, first = __ldg(args.group_first + group);
        const int64_t count = __ldg(args.group_columns + group);
        const int64_t end = min(terms_aligned(count), q.columns - first);
        const T *values = (const T *)args.values + row * q.columns + first;
        uint8_t *codes = (uint8_t *)q.codes + row * q.columns + first;
        uint32_t most = 0;
        for (int64_t i = lane_index(); i < count; i += WARP_LANES)
            most = max(most, format_f32_magnitude(widen(values[i])));
        most = warp_most(most);
        const float amax = most > FORMAT_F32_INFINITY ? quant_nan() : format_f32_value(most);
        const QuantBlock block = quant_symmetric_choose(&context, {amax, -amax, amax});
        if (lane_index() == 0)
            quant_store_bits(q.scales, q.rule.scale_dtype, index, block.scale_bits);
        for (int64_t i = lane_index(); i < end; i += WARP_LANES)
            codes[i] = i < count
                           ? (uint8_t)quant_symmetric_encode(&context, &block, widen(values[i]))
                           : (uint8_t)0;
    }
}

void group_cast_cuda(const GroupCast *args, Stream stream)
{
    const QTensor *q = &args->to;
    CHECK_RULE(q->rule.method == QUANT_SYMMETRIC && q->rule.block_rows == 1 &&
               q->rule.block_columns == 0 && q->code_layout == CODES_BYTES);
    const unsigned grid = cuda_grid((args->groups * q->rows + 7) / 8, 8);
    cudaStream_t s = cuda_stream(stream);
    if (q->input == DTYPE_BF16)
        group_cast_kernel<Bf16><<<grid, OPERAND_THREADS, 0, s>>>(*args);
    else
        group_cast_kernel<float><<<grid, OPERAND_THREADS, 0, s>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}
