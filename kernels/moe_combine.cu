// moe_combine.cu -- expert rows on their way home on the GPU, the sums made there, and row dot
// products.
//
// Everything here moves rows and does a handful of operations per element: the limit is memory
// bandwidth, or the link where rows go to a peer. One warp owns a row of the output; sums are
// chains of fused steps in f32 in the order of the places, so they equal the CPU rows bit for bit.
#include "kernels/cuda_common.cuh"
#include "kernels/moe_combine.h"

enum {
    COMBINE_THREADS = 256,
    COMBINE_WARPS = COMBINE_THREADS / WARP_LANES,
    COMBINE_BLOCKS = 3, // on a multiprocessor at least: no more than 80 registers a thread
    SUM_BYTES = 64,     // of a lane's loads before the first is added: 4 rows in bf16, 2 in f32
    DOT_GROUPS = 2,     // groups of each operand loaded together
    BLOCKS_PER_PROCESSOR = 8,
};

static unsigned combine_grid(int64_t rows)
{
    return cuda_grid((rows + COMBINE_WARPS - 1) / COMBINE_WARPS, BLOCKS_PER_PROCESSOR);
}

// One term of a sum: a row of the matrix and its weight. row -1 = no term.
struct Term {
    int32_t row;
    float weight;
};

// Adds terms `begin` .. `end` of term_of(i) to sum, for the group of elements that starts at
// `element` of each row.
template <typename T, bool VECTOR, typename TermOf>
__device__ __forceinline__ void add_terms(const T *rows, int64_t hidden, int64_t element, int begin,
                                          int end, TermOf term_of, float (&sum)[GROUP_ELEMENTS])
{
    constexpr int together = SUM_BYTES / (int)sizeof(Group<T>);
#pragma unroll 1
    for (int first = begin; first < end; first += together) {
        Term term[together];
        Group<T> group[together];
#pragma unroll
        for (int i = 0; i < together; i++) {
            const Term none = {-1, 0.0f};
            term[i] = first + i < end ? term_of(first + i) : none;
        }
#pragma unroll
        for (int i = 0; i < together; i++)
            if (term[i].row >= 0)
                group[i] = group_load<VECTOR>(rows + (int64_t)term[i].row * hidden + element,
                                              hidden - element);
#pragma unroll
        for (int i = 0; i < together; i++)
            if (term[i].row >= 0)
#pragma unroll
                for (int e = 0; e < GROUP_ELEMENTS; e++)
                    sum[e] = __fmaf_rn(term[i].weight, group_value(group[i], e), sum[e]);
    }
}

// The received rows of all sources, dealt out to warps: item i is row i / ranks of source (i + i /
// ranks) % ranks, so that neighbouring warps write to different homes and no home is written by all
// ranks at once.
struct ReturnRow {
    int home;
    int64_t row; // in [ranks, tokens_max]
    int slots;
    const int32_t *header;
};

__device__ static int32_t return_items(const MoeReturn &args)
{
    int32_t rows_max = 0;
    for (int rank = 0; rank < args.shape.ranks; rank++)
        rows_max =
            max(rows_max, args.counts[(int64_t)rank * args.shape.count_words + MOE_COUNT_ROWS]);
    return rows_max * args.shape.ranks;
}

__device__ static bool return_find(const MoeReturn &args, int32_t item, ReturnRow *found)
{
    const MoeShape &shape = args.shape;
    const int32_t index = item / shape.ranks;
    found->home = (item % shape.ranks + index) % shape.ranks;
    if (index >= args.counts[(int64_t)found->home * shape.count_words + MOE_COUNT_ROWS])
        return false;
    found->row = found->home * shape.tokens_max + index;
    found->header = args.headers + found->row * shape.header_words;
    found->slots = found->header[MOE_HEADER_SLOTS];
    return true;
}

// The gradients of the routing weights go to the slots' places in both modes.
__device__ static void return_dweights(const MoeReturn &args, const ReturnRow &found)
{
    if (!args.dweight_of_expert_row)
        return;
    float *to = args.dweights_to[found.home] + found.header[MOE_HEADER_RETURN_SLOT];
    const int32_t *expert_row = args.expert_row_of_slot + found.row * args.shape.slots_max;
    for (int slot = lane_index(); slot < found.slots; slot += WARP_LANES)
        to[slot] = args.dweight_of_expert_row[expert_row[slot]];
}

// Warps step through the items by an odd stride, so that with a power of 2 ranks each visits every
// home; of an even number of warps one has nothing to do. Items fit 31 bits because
// row_of_expert_row counts the same rows in an int32.
__device__ static int32_t return_stride(void)
{
    return (int32_t)(warp_count() - 1) | 1;
}

__device__ static int32_t return_first(void)
{
    const int32_t warp = (int32_t)warp_index();
    return warp < return_stride() ? warp : INT32_MAX;
}

// Exact: warp copies one row per slot, as the expert stored it.
template <typename Unit>
__global__ void __launch_bounds__(COMBINE_THREADS, COMBINE_BLOCKS)
    return_slots_kernel(MoeReturn args, int64_t units)
{
    const int32_t items = return_items(args), stride = return_stride();
    for (int32_t item = return_first(); item < items; item += stride) {
        ReturnRow found;
        if (!return_find(args, item, &found))
            continue;
        Unit *to = (Unit *)args.rows_to[found.home] +
                   (int64_t)found.header[MOE_HEADER_RETURN_SLOT] * units;
        const int32_t *expert_row = args.expert_row_of_slot + found.row * args.shape.slots_max;
        for (int slot = 0; slot < found.slots; slot++)
            warp_copy(to + slot * units, (const Unit *)args.expert_rows + expert_row[slot] * units,
                      units);
        return_dweights(args, found);
    }
}

// Fast: warp adds the row's slots and writes one row.
template <typename T, bool VECTOR>
__global__ void __launch_bounds__(COMBINE_THREADS, COMBINE_BLOCKS)
    return_rows_kernel(MoeReturn args)
{
    const int32_t items = return_items(args), stride = return_stride();
    const int64_t hidden = args.hidden;
    for (int32_t item = return_first(); item < items; item += stride) {
        ReturnRow found;
        if (!return_find(args, item, &found))
            continue;
        T *to = (T *)args.rows_to[found.home] + found.header[MOE_HEADER_RETURN_ROW] * hidden;
        const int32_t *expert_row = args.expert_row_of_slot + found.row * args.shape.slots_max;
        const float *weight = args.weight_of_expert_row;
#pragma unroll 1
        for (int64_t element = lane_index() * GROUP_ELEMENTS; element < hidden;
             element += WARP_LANES * GROUP_ELEMENTS) {
            float sum[GROUP_ELEMENTS] = {0.0f};
            add_terms<T, VECTOR>((const T *)args.expert_rows, hidden, element, 0, found.slots,
                                 [=](int slot) {
                                     const int32_t row = expert_row[slot];
                                     const Term term = {row, weight ? weight[row] : 1.0f};
                                     return term;
                                 },
                                 sum);
            group_store<VECTOR>(to + element, hidden - element, sum);
        }
        return_dweights(args, found);
    }
}

void moe_return_cuda(const MoeReturn *args, Stream stream)
{
    const int64_t row_bytes = (int64_t)dtype_bytes(args->dtype, (uint64_t)args->hidden);
    const unsigned grid = combine_grid(args->shape.tokens_max * args->shape.ranks);
    const cudaStream_t handle = cuda_stream(stream);
    const bool bf16 = args->dtype == DTYPE_BF16;
    const bool aligned = cuda_aligned(args->expert_rows);
    if (args->exact && row_bytes % 16 == 0 && aligned)
        return_slots_kernel<uint4><<<grid, COMBINE_THREADS, 0, handle>>>(*args, row_bytes / 16);
    else if (args->exact && bf16)
        return_slots_kernel<uint16_t><<<grid, COMBINE_THREADS, 0, handle>>>(*args, args->hidden);
    else if (args->exact)
        return_slots_kernel<uint32_t><<<grid, COMBINE_THREADS, 0, handle>>>(*args, args->hidden);
    else if (row_is_vector(args->hidden) && aligned)
        (bf16 ? return_rows_kernel<Bf16, true>
              : return_rows_kernel<float, true>)<<<grid, COMBINE_THREADS, 0, handle>>>(*args);
    else
        (bf16 ? return_rows_kernel<Bf16, false>
              : return_rows_kernel<float, false>)<<<grid, COMBINE_THREADS, 0, handle>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}

// The sum of a token's places, grouped as ranks of group_size experts would: each group's partial
// is rounded to T.
template <typename T, bool VECTOR, typename TermOf>
__device__ static void add_grouped(const MoeSum &args, int64_t token, int64_t element,
                                   TermOf term_of, float (&total)[GROUP_ELEMENTS])
{
    const int32_t *expert = args.expert_of_slot + token * args.width;
    for (int begin = 0; begin < args.width;) {
        int end = begin;
        while (end < args.width && expert[end] / args.group_size == expert[begin] / args.group_size)
            end++;
        float partial[GROUP_ELEMENTS] = {0.0f};
        add_terms<T, VECTOR>((const T *)args.returned, args.hidden, element, begin, end, term_of,
                             partial);
#pragma unroll
        for (int e = 0; e < GROUP_ELEMENTS; e++)
            total[e] = __fadd_rn(total[e], rounded<T>(partial[e]));
        begin = end;
    }
}

// Warp: one token's row of the output.
template <typename T, bool VECTOR, bool GROUPED>
__global__ void __launch_bounds__(COMBINE_THREADS, COMBINE_BLOCKS) sum_kernel(MoeSum args)
{
    const int64_t hidden = args.hidden;
    for (int64_t token = warp_index(); token < args.tokens; token += warp_count()) {
        const int32_t *index = args.index + token * args.width;
        const float *weight = args.weight ? args.weight + token * args.width : NULL;
        const float addend_weight = args.addend_weight ? args.addend_weight[token] : 1.0f;
        const auto term_of = [=](int place) {
            const Term term = {index[place], weight ? weight[place] : 1.0f};
            return term;
        };
#pragma unroll 1
        for (int64_t element = lane_index() * GROUP_ELEMENTS; element < hidden;
             element += WARP_LANES * GROUP_ELEMENTS) {
            float sum[GROUP_ELEMENTS] = {0.0f};
            if (GROUPED)
                add_grouped<T, VECTOR>(args, token, element, term_of, sum);
            else
                add_terms<T, VECTOR>((const T *)args.returned, hidden, element, 0, args.width,
                                     term_of, sum);
            if (args.addend) {
                const Group<float> addend =
                    group_load<VECTOR>(args.addend + token * hidden + element, hidden - element);
#pragma unroll
                for (int e = 0; e < GROUP_ELEMENTS; e++)
                    sum[e] = __fmaf_rn(addend_weight, group_value(addend, e), sum[e]);
            }
            group_store<VECTOR>((T *)args.out + token * hidden + element, hidden - element, sum);
        }
    }
}

void moe_sum_cuda(const MoeSum *args, Stream stream)
{
    typedef void (*SumKernel)(MoeSum);
    static const SumKernel kernels[2][2][2] = {
        // [bf16][vector][grouped]
        {{sum_kernel<float, false, false>, sum_kernel<float, false, true>},
         {sum_kernel<float, true, false>, sum_kernel<float, true, true>}},
        {{sum_kernel<Bf16, false, false>, sum_kernel<Bf16, false, true>},
         {sum_kernel<Bf16, true, false>, sum_kernel<Bf16, true, true>}},
    };
    if (args->tokens == 0)
        return;
    const bool vector = row_is_vector(args->hidden) && cuda_aligned(args->returned) &&
                        cuda_aligned(args->addend) && cuda_aligned(args->out);
    const SumKernel kernel = kernels[args->dtype == DTYPE_BF16][vector][args->group_size > 0];
    kernel<<<combine_grid(args->tokens), COMBINE_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}

// Warp: one expert row.
template <typename T, bool VECTOR>
__global__ void __launch_bounds__(COMBINE_THREADS) scale_kernel(MoeScaleRows args)
{
    const int64_t rows = *args.rows_total, hidden = args.hidden;
    for (int64_t row = warp_index(); row < rows; row += warp_count()) {
        const int64_t from = args.row_of_expert_row[row];
        if (from < 0)
            continue;
        const float weight = args.weight_of_expert_row ? args.weight_of_expert_row[row] : 1.0f;
#pragma unroll 1
        for (int64_t element = lane_index() * GROUP_ELEMENTS; element < hidden;
             element += WARP_LANES * GROUP_ELEMENTS) {
            const Group<T> group =
                group_load<VECTOR>((const T *)args.x + from * hidden + element, hidden - element);
            float value[GROUP_ELEMENTS];
#pragma unroll
            for (int e = 0; e < GROUP_ELEMENTS; e++)
                value[e] = __fmul_rn(weight, group_value(group, e));
            group_store<VECTOR>((T *)args.out + row * hidden + element, hidden - element, value);
        }
    }
}

void moe_scale_rows_cuda(const MoeScaleRows *args, Stream stream)
{
    typedef void (*ScaleKernel)(MoeScaleRows);
    static const ScaleKernel kernels[2][2] = {
        {scale_kernel<float, false>, scale_kernel<float, true>},
        {scale_kernel<Bf16, false>, scale_kernel<Bf16, true>},
    };
    const bool vector =
        row_is_vector(args->hidden) && cuda_aligned(args->x) && cuda_aligned(args->out);
    const ScaleKernel kernel = kernels[args->dtype == DTYPE_BF16][vector];
    kernel<<<combine_grid(args->rows_max), COMBINE_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}

// Warp: one row. The lane's chain runs through its groups in ascending order; loads run DOT_GROUPS
// ahead.
template <typename A, typename B, bool VECTOR>
__global__ void __launch_bounds__(COMBINE_THREADS, COMBINE_BLOCKS) dot_kernel(RowDot args)
{
    const int64_t rows = *args.rows_total, hidden = args.hidden;
    const int64_t step = WARP_LANES * GROUP_ELEMENTS;
    for (int64_t row = warp_index(); row < rows; row += warp_count()) {
        const int64_t row_of_b = args.b_index ? args.b_index[row] : row;
        if (row_of_b < 0)
            continue;
        const A *a = (const A *)args.a + row * hidden;
        const B *b = (const B *)args.b + row_of_b * hidden;
        float sum = 0.0f;
        for (int64_t first = lane_index() * GROUP_ELEMENTS; first < hidden;
             first += DOT_GROUPS * step) {
            Group<A> group_a[DOT_GROUPS];
            Group<B> group_b[DOT_GROUPS];
#pragma unroll
            for (int g = 0; g < DOT_GROUPS; g++)
                if (first + g * step < hidden) {
                    const int64_t element = first + g * step;
                    group_a[g] = group_load<VECTOR>(a + element, hidden - element);
                    group_b[g] = group_load<VECTOR>(b + element, hidden - element);
                }
#pragma unroll
            for (int g = 0; g < DOT_GROUPS; g++)
                if (first + g * step < hidden)
                    sum = dot_chain(group_a[g], group_b[g],
                                    VECTOR ? GROUP_ELEMENTS : hidden - first - g * step, sum);
        }
        sum = warp_sum(sum);
        if (lane_index() == 0)
            args.out[row] = sum;
    }
}

void row_dot_cuda(const RowDot *args, Stream stream)
{
    typedef void (*DotKernel)(RowDot);
    static const DotKernel kernels[2][2][2] = {
        // [a is bf16][b is bf16][vector]
        {{dot_kernel<float, float, false>, dot_kernel<float, float, true>},
         {dot_kernel<float, Bf16, false>, dot_kernel<float, Bf16, true>}},
        {{dot_kernel<Bf16, float, false>, dot_kernel<Bf16, float, true>},
         {dot_kernel<Bf16, Bf16, false>, dot_kernel<Bf16, Bf16, true>}},
    };
    const bool vector =
        row_is_vector(args->hidden) && cuda_aligned(args->a) && cuda_aligned(args->b);
    const DotKernel kernel =
        kernels[args->dtype_a == DTYPE_BF16][args->dtype_b == DTYPE_BF16][vector];
    kernel<<<combine_grid(args->rows_max), COMBINE_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}
