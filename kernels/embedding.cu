// embedding.cu -- table lookup on the GPU, and the gradient of the table.
//
// Forward: a warp copies the row of a token. Backward: one block sorts (row of the table, token) by
// row with a stable radix sort, digit by digit of 8 bits: each warp counts the digits of its share
// of the tokens, the counts are scanned over (digit, warp), and each warp places its share in
// order, 32 at a time, where a match over the warp gives the earlier lanes with the same digit.
// Nothing depends on the order of atomics, for there are none. Then a warp owns 256 columns of each
// run of equal rows and adds the run's tokens in order. Limit: memory bandwidth, but for the sort
// (some 10 us for 8192 tokens) and for a row with thousands of tokens, whose chain is a latency
// each few tokens. The sort's method: Satish, Harris, Garland, "Designing efficient sorting
// algorithms for manycore GPUs" (IPDPS 2009).
#include "kernels/cuda_common.cuh"
#include "kernels/embedding.h"

enum {
    LOOKUP_THREADS = 256,
    LOOKUP_WARPS = LOOKUP_THREADS / WARP_LANES,
    LOOKUP_BLOCKS_MOST = 8,
    SORT_THREADS = 1024,
    SORT_WARPS = SORT_THREADS / WARP_LANES,
    DIGIT_BITS = 8,
    DIGITS = 1 << DIGIT_BITS,
    SORT_TOGETHER = 4, // rounds of 32 tokens loaded before the first is used
    RUN_TOGETHER = 8,  // tokens of a run loaded together
    RUN_COLUMNS = WARP_LANES * GROUP_ELEMENTS,
};

template <typename Unit>
__global__ void __launch_bounds__(LOOKUP_THREADS)
    lookup_kernel(EmbeddingForward args, int64_t units)
{
    for (int64_t token = warp_index(); token < args.tokens; token += warp_count()) {
        const int64_t row = args.ids[token] - args.vocab_first;
        Unit *to = (Unit *)args.y + token * units;
        if (row >= 0 && row < args.vocab_count) {
            warp_copy(to, (const Unit *)args.table + row * units, units);
        } else {
            const Unit zero = {};
            for (int64_t i = lane_index(); i < units; i += WARP_LANES)
                to[i] = zero;
        }
    }
}

void embedding_forward_cuda(const EmbeddingForward *args, Stream stream)
{
    const int64_t row_bytes = (int64_t)dtype_bytes(args->dtype, (uint64_t)args->hidden);
    const unsigned grid =
        cuda_grid((args->tokens + LOOKUP_WARPS - 1) / LOOKUP_WARPS, LOOKUP_BLOCKS_MOST);
    const cudaStream_t handle = cuda_stream(stream);
    if (row_bytes % 16 == 0 && cuda_aligned(args->table) && cuda_aligned(args->y))
        lookup_kernel<uint4><<<grid, LOOKUP_THREADS, 0, handle>>>(*args, row_bytes / 16);
    else if (args->dtype == DTYPE_BF16)
        lookup_kernel<uint16_t><<<grid, LOOKUP_THREADS, 0, handle>>>(*args, args->hidden);
    else
        lookup_kernel<uint32_t><<<grid, LOOKUP_THREADS, 0, handle>>>(*args, args->hidden);
    CHECK_CUDA(cudaGetLastError());
}

// Rows of the table and their tokens, in the scratch memory. Tokens without a row here have row
// vocab_count and end up last.
struct SortBuffer {
    int32_t *row, *token; // [tokens]
};

__host__ __device__ static inline SortBuffer sort_buffer(const EmbeddingBackward &args, int which)
{
    SortBuffer buffer;
    buffer.row = args.scratch + (int64_t)which * 2 * args.tokens;
    buffer.token = buffer.row + args.tokens;
    return buffer;
}

__host__ __device__ static inline int sort_passes(int64_t vocab_count)
{
    int passes = 1;
    while (vocab_count >> (passes * DIGIT_BITS))
        passes++;
    return passes;
}

// Element i as the pass finds it; the first pass makes it from the ids.
__device__ __forceinline__ int32_t row_of(const EmbeddingBackward &args, int pass, int64_t i)
{
    if (pass > 0)
        return sort_buffer(args, (pass - 1) % 2).row[i];
    const int64_t row = args.ids[i] - args.vocab_first;
    return (int32_t)(row >= 0 && row < args.vocab_count ? row : args.vocab_count);
}

__device__ __forceinline__ int32_t token_of(const EmbeddingBackward &args, int pass, int64_t i)
{
    return pass > 0 ? sort_buffer(args, (pass - 1) % 2).token[i] : (int32_t)i;
}

// Warp: its share of the tokens, 32 at a time, in order. PLACE: each goes to where `bin` of its
// digit says; either way the bins count on.
template <bool PLACE>
__device__ static void sort_share(const EmbeddingBackward &args, int pass, int32_t *bin)
{
    const int64_t rounds = (args.tokens + SORT_THREADS - 1) / SORT_THREADS;
    const int64_t begin = threadIdx.x / WARP_LANES * rounds * WARP_LANES;
    const int64_t end = min(begin + rounds * WARP_LANES, args.tokens);
    const SortBuffer to = sort_buffer(args, pass % 2);
    const unsigned below = lanes_below();
    for (int64_t first = begin; first < end; first += SORT_TOGETHER * WARP_LANES) {
        int32_t row[SORT_TOGETHER], token[SORT_TOGETHER];
#pragma unroll
        for (int r = 0; r < SORT_TOGETHER; r++) {
            const int64_t i = first + r * WARP_LANES + lane_index();
            row[r] = i < end ? row_of(args, pass, i) : -1;
            token[r] = PLACE && i < end ? token_of(args, pass, i) : -1;
        }
#pragma unroll
        for (int r = 0; r < SORT_TOGETHER; r++) {
            const bool real = row[r] >= 0;
            const int digit = real ? row[r] >> (pass * DIGIT_BITS) & (DIGITS - 1) : -1;
            const unsigned same = __match_any_sync(WARP_ALL, digit);
            if (PLACE && real) {
                const int32_t at = bin[digit] + __popc(same & below);
                to.row[at] = row[r];
                to.token[at] = token[r];
            }
            __syncwarp();
            if (real && !(same & below))
                bin[digit] += __popc(same);
            __syncwarp();
        }
    }
}

// Block: bins [SORT_WARPS][DIGITS] from counts to first places: all of a lower digit first, then
// the same digit of lower warps.
__device__ static void scan_bins(int32_t (*bins)[DIGITS], int32_t *total_of_warp)
{
    const int digit = threadIdx.x;
    int32_t total = 0;
    for (int warp = 0; warp < SORT_WARPS && digit < DIGITS; warp++)
        total += bins[warp][digit];
    int32_t before = total; // inclusive sum over the digits of the warp
#pragma unroll
    for (int apart = 1; apart < WARP_LANES; apart *= 2) {
        const int32_t other = __shfl_up_sync(WARP_ALL, before, apart);
        if (lane_index() >= apart)
            before += other;
    }
    if (lane_index() == WARP_LANES - 1)
        total_of_warp[threadIdx.x / WARP_LANES] = before;
    __syncthreads();
    int32_t place = before - total;
    for (int warp = 0; warp < digit / WARP_LANES; warp++)
        place += total_of_warp[warp];
    for (int warp = 0; warp < SORT_WARPS && digit < DIGITS; warp++) {
        const int32_t count = bins[warp][digit];
        bins[warp][digit] = place;
        place += count;
    }
    __syncthreads();
}

// One block.
__global__ void __launch_bounds__(SORT_THREADS) sort_kernel(EmbeddingBackward args, int passes)
{
    __shared__ int32_t bins[SORT_WARPS][DIGITS], total_of_warp[SORT_WARPS];
    for (int pass = 0; pass < passes; pass++) {
        for (int i = threadIdx.x; i < SORT_WARPS * DIGITS; i += SORT_THREADS)
            bins[i / DIGITS][i % DIGITS] = 0;
        __syncthreads();
        sort_share<false>(args, pass, bins[threadIdx.x / WARP_LANES]);
        __syncthreads();
        scan_bins(bins, total_of_warp);
        sort_share<true>(args, pass, bins[threadIdx.x / WARP_LANES]);
        __syncthreads();
    }
}

// Warp: the columns from `element` on of the run that begins at `begin`; the lane owns one group.
template <typename T, bool VECTOR>
__device__ __forceinline__ void add_run(const EmbeddingBackward &args, const SortBuffer &sorted,
                                        int64_t begin, int64_t element)
{
    const int64_t hidden = args.hidden, left = hidden - element;
    const int32_t row = sorted.row[begin];
    float sum[GROUP_ELEMENTS] = {0.0f};
    bool more = true;
    for (int64_t first = begin; more; first += RUN_TOGETHER) {
        Group<T> group[RUN_TOGETHER];
        int together = 0; // tokens of this run among the next
#pragma unroll
        for (int i = 0; i < RUN_TOGETHER; i++)
            together += first + i < args.tokens && sorted.row[first + i] == row;
#pragma unroll
        for (int i = 0; i < RUN_TOGETHER; i++)
            if (i < together)
                group[i] = group_load<VECTOR>(
                    (const T *)args.dy + sorted.token[first + i] * hidden + element, left);
#pragma unroll
        for (int i = 0; i < RUN_TOGETHER; i++)
            if (i < together)
#pragma unroll
                for (int e = 0; e < GROUP_ELEMENTS; e++)
                    sum[e] = __fadd_rn(sum[e], group_value(group[i], e));
        more = together == RUN_TOGETHER;
    }
    float *to = args.dtable + row * hidden + element;
    if (args.accumulate) {
        const Group<float> held = group_load<VECTOR>(to, left);
#pragma unroll
        for (int e = 0; e < GROUP_ELEMENTS; e++)
            sum[e] = __fadd_rn(group_value(held, e), sum[e]);
    }
    group_store<VECTOR>(to, left, sum);
}

// Warp: one tile of columns of the run that begins at a place, where one does.
template <typename T, bool VECTOR>
__global__ void __launch_bounds__(LOOKUP_THREADS)
    add_runs_kernel(EmbeddingBackward args, int last, int64_t tiles)
{
    const SortBuffer sorted = sort_buffer(args, last);
    for (int64_t item = warp_index(); item < args.tokens * tiles; item += warp_count()) {
        const int64_t place = item / tiles;
        const int64_t element = item % tiles * RUN_COLUMNS + lane_index() * GROUP_ELEMENTS;
        const int32_t row = sorted.row[place];
        const bool begins = place == 0 || sorted.row[place - 1] != row;
        if (begins && row < args.vocab_count && element < args.hidden)
            add_run<T, VECTOR>(args, sorted, place, element);
    }
}

void embedding_backward_cuda(const EmbeddingBackward *args, Stream stream)
{
    typedef void (*RunsKernel)(EmbeddingBackward, int, int64_t);
    static const RunsKernel kernels[2][2] = {
        {add_runs_kernel<float, false>, add_runs_kernel<float, true>},
        {add_runs_kernel<Bf16, false>, add_runs_kernel<Bf16, true>},
    };
    CHECK_RULE(args->tokens <= INT32_MAX && args->vocab_count < INT32_MAX);
    const cudaStream_t handle = cuda_stream(stream);
    const size_t table_bytes = (size_t)args->vocab_count * (size_t)args->hidden * sizeof(float);
    if (!args->accumulate && table_bytes > 0)
        CHECK_CUDA(cudaMemsetAsync(args->dtable, 0, table_bytes, handle));
    if (args->tokens == 0)
        return;
    const int passes = sort_passes(args->vocab_count);
    const int64_t tiles = (args->hidden + RUN_COLUMNS - 1) / RUN_COLUMNS;
    const bool vector =
        row_is_vector(args->hidden) && cuda_aligned(args->dy) && cuda_aligned(args->dtable);
    const unsigned grid =
        cuda_grid((args->tokens * tiles + LOOKUP_WARPS - 1) / LOOKUP_WARPS, LOOKUP_BLOCKS_MOST);
    sort_kernel<<<1, SORT_THREADS, 0, handle>>>(*args, passes);
    CHECK_CUDA(cudaGetLastError());
    kernels[args->dtype == DTYPE_BF16][vector]<<<grid, LOOKUP_THREADS, 0, handle>>>(
        *args, (passes - 1) % 2, tiles);
    CHECK_CUDA(cudaGetLastError());
}
