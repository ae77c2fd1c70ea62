// elementwise.cu -- sums and copies of flat arrays, and sums of squares, on the GPU.
//
// Limit: memory bandwidth. A thread owns groups of 8 elements. Of a sum of squares a warp owns a
// piece: lane l has the sums 8 l .. 8 l + 7 of its 256, one per element of a group; one block adds
// the pieces.
#include "kernels/cuda_common.cuh"
#include "kernels/elementwise.h"

enum {
    FLAT_THREADS = 256,
    FLAT_BLOCKS_MOST = 8,
    SQUARES_GROUPS = 4, // loaded together by a lane
    PIECE_STEP = WARP_LANES * GROUP_ELEMENTS,
};

static unsigned flat_grid(int64_t count)
{
    const int64_t block_elements = FLAT_THREADS * GROUP_ELEMENTS;
    return cuda_grid((count + block_elements - 1) / block_elements, FLAT_BLOCKS_MOST);
}

template <typename T, bool VECTOR>
__global__ void __launch_bounds__(FLAT_THREADS) add_rows_kernel(AddRows args)
{
    for_each_group<VECTOR>(args.count, [&](int64_t element, int64_t left, auto kind) {
        constexpr bool vector = decltype(kind)::vector;
        const Group<T> a = group_load<vector>((const T *)args.a + element, left);
        const Group<T> b = group_load<vector>((const T *)args.b + element, left);
        float sum[GROUP_ELEMENTS];
#pragma unroll
        for (int e = 0; e < GROUP_ELEMENTS; e++)
            sum[e] = __fadd_rn(group_value(a, e), group_value(b, e));
        group_store<vector>((T *)args.y + element, left, sum);
    });
}

void add_rows_cuda(const AddRows *args, Stream stream)
{
    typedef void (*AddKernel)(AddRows);
    static const AddKernel kernels[2][2] = {
        {add_rows_kernel<float, false>, add_rows_kernel<float, true>},
        {add_rows_kernel<Bf16, false>, add_rows_kernel<Bf16, true>},
    };
    const bool vector = cuda_aligned(args->a) && cuda_aligned(args->b) && cuda_aligned(args->y);
    const AddKernel kernel = kernels[args->dtype == DTYPE_BF16][vector];
    kernel<<<flat_grid(args->count), FLAT_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}

template <typename From, typename To, bool VECTOR>
__global__ void __launch_bounds__(FLAT_THREADS) cast_copy_kernel(CastCopy args)
{
    for_each_group<VECTOR>(args.count, [&](int64_t element, int64_t left, auto kind) {
        constexpr bool vector = decltype(kind)::vector;
        const Group<From> group = group_load<vector>((const From *)args.from + element, left);
        float value[GROUP_ELEMENTS];
#pragma unroll
        for (int e = 0; e < GROUP_ELEMENTS; e++)
            value[e] = group_value(group, e);
        group_store<vector>((To *)args.to + element, left, value);
    });
}

void cast_copy_cuda(const CastCopy *args, Stream stream)
{
    typedef void (*CastKernel)(CastCopy);
    static const CastKernel kernels[2][2][2] = {
        // [from bf16][to bf16][vector]
        {{cast_copy_kernel<float, float, false>, cast_copy_kernel<float, float, true>},
         {cast_copy_kernel<float, Bf16, false>, cast_copy_kernel<float, Bf16, true>}},
        {{cast_copy_kernel<Bf16, float, false>, cast_copy_kernel<Bf16, float, true>},
         {cast_copy_kernel<Bf16, Bf16, false>, cast_copy_kernel<Bf16, Bf16, true>}},
    };
    const bool vector = cuda_aligned(args->from) && cuda_aligned(args->to);
    const CastKernel kernel =
        kernels[args->from_dtype == DTYPE_BF16][args->to_dtype == DTYPE_BF16][vector];
    kernel<<<flat_grid(args->count), FLAT_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}

// Adds the squares of a group to the lane's eight sums.
template <typename T>
__device__ __forceinline__ void add_squares(const Group<T> &group, int64_t left,
                                            double (&sum)[GROUP_ELEMENTS])
{
#pragma unroll
    for (int e = 0; e < GROUP_ELEMENTS; e++)
        if (e < left) {
            const double value = (double)group_value(group, e);
            sum[e] = __fma_rn(value, value, sum[e]); // the product is exact
        }
}

// Warp: one piece of SUM_SQUARES_PIECE elements, at `x`, of which `count` are there.
template <typename T, bool VECTOR>
__device__ __forceinline__ double piece_squares(const T *x, int64_t count)
{
    double sum[GROUP_ELEMENTS] = {0.0};
    for (int64_t first = lane_index() * GROUP_ELEMENTS; first < count;
         first += SQUARES_GROUPS * PIECE_STEP) {
        Group<T> group[SQUARES_GROUPS];
#pragma unroll
        for (int g = 0; g < SQUARES_GROUPS; g++)
            if (first + g * PIECE_STEP < count)
                group[g] =
                    group_load<VECTOR>(x + first + g * PIECE_STEP, count - first - g * PIECE_STEP);
#pragma unroll
        for (int g = 0; g < SQUARES_GROUPS; g++)
            if (first + g * PIECE_STEP < count)
                add_squares(group[g], VECTOR ? GROUP_ELEMENTS : count - first - g * PIECE_STEP,
                            sum);
    }
    double total = group_sum(sum);
#pragma unroll
    for (int apart = WARP_LANES / 2; apart > 0; apart /= 2)
        total += __shfl_xor_sync(WARP_ALL, total, apart);
    return total;
}

template <typename T, bool VECTOR>
__global__ void __launch_bounds__(FLAT_THREADS) squares_kernel(SumSquares args, int64_t pieces)
{
    for (int64_t piece = warp_index(); piece < pieces; piece += warp_count()) {
        const T *x = (const T *)args.x + piece * SUM_SQUARES_PIECE;
        const int64_t left = args.count - piece * SUM_SQUARES_PIECE;
        double sum;
        if (VECTOR && left >= SUM_SQUARES_PIECE)
            sum = piece_squares<T, VECTOR>(x, SUM_SQUARES_PIECE);
        else
            sum = piece_squares<T, false>(x, left < SUM_SQUARES_PIECE ? left : SUM_SQUARES_PIECE);
        if (lane_index() == 0)
            args.scratch[piece] = sum;
    }
}

// One block: thread t adds the pieces t, t + 1024, ...
__global__ void __launch_bounds__(BLOCK_SUM_THREADS)
    add_pieces_kernel(SumSquares args, int64_t pieces)
{
    double sum = 0.0;
#pragma unroll 4
    for (int64_t piece = threadIdx.x; piece < pieces; piece += BLOCK_SUM_THREADS)
        sum += args.scratch[piece];
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        *args.sum = args.accumulate ? *args.sum + sum : sum;
}

void sum_squares_cuda(const SumSquares *args, Stream stream)
{
    typedef void (*SquaresKernel)(SumSquares, int64_t);
    static const SquaresKernel kernels[2][2] = {
        {squares_kernel<float, false>, squares_kernel<float, true>},
        {squares_kernel<Bf16, false>, squares_kernel<Bf16, true>},
    };
    const int64_t pieces = (args->count + SUM_SQUARES_PIECE - 1) / SUM_SQUARES_PIECE;
    const int64_t warps_per_block = FLAT_THREADS / WARP_LANES;
    const SquaresKernel kernel = kernels[args->dtype == DTYPE_BF16][cuda_aligned(args->x)];
    const unsigned grid =
        cuda_grid((pieces + warps_per_block - 1) / warps_per_block, FLAT_BLOCKS_MOST);
    kernel<<<grid, FLAT_THREADS, 0, cuda_stream(stream)>>>(*args, pieces);
    CHECK_CUDA(cudaGetLastError());
    add_pieces_kernel<<<1, BLOCK_SUM_THREADS, 0, cuda_stream(stream)>>>(*args, pieces);
    CHECK_CUDA(cudaGetLastError());
}

__global__ void clip_scale_kernel(ClipScale args)
{
    const double norm = sqrt(*args.sum), scale = args.max_norm / (norm + CLIP_SCALE_EPSILON);
    *args.scale = scale > 1.0 ? 1.0f : (float)scale;
    if (args.norm)
        *args.norm = (float)norm;
}

void clip_scale_cuda(const ClipScale *args, Stream stream)
{
    clip_scale_kernel<<<1, 1, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}
