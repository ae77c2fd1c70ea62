// moe_combine.c -- results on their way home, and the sums made there, on the CPU.
//
// Every sum is a chain of fmaf in the order of its places, started from 0, in blocks of a row that
// stay in L1; memory bandwidth is the limit. Rows of the output belong to one thread each.

#include "kernels/moe_combine.h"
#include "kernels/cpu_math.h"

KERNEL_DEFINE(moe_return, MoeReturn)
KERNEL_DEFINE(moe_sum, MoeSum)
KERNEL_DEFINE(moe_scale_rows, MoeScaleRows)
KERNEL_DEFINE(row_dot, RowDot)

// sum[i] = fmaf(weight, data[first + i], sum[i])
CPU_INLINE void add_row(float *restrict sum, const void *data, DType dtype, int64_t first,
                        int64_t count, float weight)
{
    if (dtype == DTYPE_F32) {
        const float *restrict from = (const float *)data + first;
        for (int64_t i = 0; i < count; i++)
            sum[i] = fmaf(weight, from[i], sum[i]);
    } else {
        const uint16_t *restrict from = (const uint16_t *)data + first;
        for (int64_t i = 0; i < count; i++)
            sum[i] = fmaf(weight, f32_from_bf16_bits(from[i]), sum[i]);
    }
}

// A received row: its header and its slots' expert rows.
typedef struct Received {
    int home;
    const int32_t *header;
    const int32_t *expert_row; // [slots]
} Received;

// Fast: the weighted sum of the row's slots, one row.
CPU_CLONES
static void return_sum(const MoeReturn *args, const Received *row)
{
    int64_t hidden = args->hidden, to = row->header[MOE_HEADER_RETURN_ROW] * hidden;
    for (int64_t first = 0; first < hidden; first += CPU_BLOCK) {
        int64_t count = cpu_block_length(first, hidden);
        float sum[CPU_BLOCK];
        memset(sum, 0, (size_t)count * sizeof(float));
        for (int slot = 0; slot < row->header[MOE_HEADER_SLOTS]; slot++) {
            int64_t from = row->expert_row[slot];
            float weight = args->weight_of_expert_row ? args->weight_of_expert_row[from] : 1.0f;
            add_row(sum, args->expert_rows, args->dtype, from * hidden + first, count, weight);
        }
        cpu_store_block(args->rows_to[row->home], args->dtype, to + first, count, sum);
    }
}

// Exact: one row per slot, as it is.
static void return_copies(const MoeReturn *args, const Received *row)
{
    int64_t row_bytes = (int64_t)dtype_bytes(args->dtype, (uint64_t)args->hidden);
    char *to = (char *)args->rows_to[row->home] + row->header[MOE_HEADER_RETURN_SLOT] * row_bytes;
    for (int slot = 0; slot < row->header[MOE_HEADER_SLOTS]; slot++)
        memcpy(to + slot * row_bytes,
               (const char *)args->expert_rows + row->expert_row[slot] * row_bytes,
               (size_t)row_bytes);
}

static void return_row(const MoeReturn *args, int home, int64_t index)
{
    const MoeShape *shape = &args->shape;
    int64_t at = home * shape->tokens_max + index;
    Received row = {.home = home,
                    .header = args->headers + at * shape->header_words,
                    .expert_row = args->expert_row_of_slot + at * shape->slots_max};
    if (args->exact)
        return_copies(args, &row);
    else
        return_sum(args, &row);
    for (int slot = 0; slot < row.header[MOE_HEADER_SLOTS] && args->dweight_of_expert_row; slot++)
        args->dweights_to[home][row.header[MOE_HEADER_RETURN_SLOT] + slot] =
            args->dweight_of_expert_row[row.expert_row[slot]];
}

void moe_return_cpu(const MoeReturn *args, Stream stream)
{
    (void)stream;
    for (int home = 0; home < args->shape.ranks; home++) {
        int64_t rows = args->counts[(int64_t)home * args->shape.count_words + MOE_COUNT_ROWS];
#pragma omp parallel for schedule(static) if (rows * args->hidden >= CPU_PARALLEL_MIN)
        for (int64_t index = 0; index < rows; index++)
            return_row(args, home, index);
    }
}

// All segments full, every row with all its slots: the received counts are known on the device
// only.
KernelCost moe_return_cost(const MoeReturn *args)
{
    const MoeShape *shape = &args->shape;
    double rows = (double)shape->ranks * (double)shape->tokens_max;
    double slots = rows * (double)shape->slots_max;
    double row_bytes = (double)dtype_bytes(args->dtype, (uint64_t)args->hidden);
    double dweights = args->dweight_of_expert_row ? 2.0 * slots : 0.0;
    double weights = !args->exact && args->weight_of_expert_row ? slots : 0.0;
    double words = rows * 3.0 + slots + dweights + weights;
    return (KernelCost){.bytes = (slots + (args->exact ? slots : rows)) * row_bytes + 4.0 * words,
                        .flops = args->exact ? 0.0 : 2.0 * slots * (double)args->hidden};
}

// The places begin .. end of a token added to sum.
CPU_INLINE void add_places(const MoeSum *args, int64_t token, int begin, int end, int64_t first,
                           int64_t count, float *sum)
{
    for (int place = begin; place < end; place++) {
        int64_t at = token * args->width + place, row = args->index[at];
        if (row >= 0)
            add_row(sum, args->returned, args->dtype, row * args->hidden + first, count,
                    args->weight ? args->weight[at] : 1.0f);
    }
}

// End of the places from `begin` on whose experts one rank of group_size experts would hold.
static int group_end(const MoeSum *args, int64_t token, int begin)
{
    const int32_t *expert = args->expert_of_slot + token * args->width;
    int end = begin + 1;
    while (end < args->width && expert[end] / args->group_size == expert[begin] / args->group_size)
        end++;
    return end;
}

CPU_CLONES
static void sum_token(const MoeSum *args, int64_t token)
{
    int64_t hidden = args->hidden;
    for (int64_t first = 0; first < hidden; first += CPU_BLOCK) {
        int64_t count = cpu_block_length(first, hidden);
        float sum[CPU_BLOCK], partial[CPU_BLOCK];
        memset(sum, 0, (size_t)count * sizeof(float));
        if (args->group_size == 0)
            add_places(args, token, 0, args->width, first, count, sum);
        for (int begin = 0, end; begin < args->width && args->group_size > 0; begin = end) {
            end = group_end(args, token, begin);
            memset(partial, 0, (size_t)count * sizeof(float));
            add_places(args, token, begin, end, first, count, partial);
            cpu_round_block(partial, args->dtype, count);
            for (int64_t i = 0; i < count; i++)
                sum[i] += partial[i];
        }
        if (args->addend)
            add_row(sum, args->addend, DTYPE_F32, token * hidden + first, count,
                    args->addend_weight ? args->addend_weight[token] : 1.0f);
        cpu_store_block(args->out, args->dtype, token * hidden + first, count, sum);
    }
}

void moe_sum_cpu(const MoeSum *args, Stream stream)
{
    (void)stream;
#pragma omp parallel for schedule(static) if (args->tokens * args->hidden >= CPU_PARALLEL_MIN)
    for (int64_t token = 0; token < args->tokens; token++)
        sum_token(args, token);
}

// Every place taken.
KernelCost moe_sum_cost(const MoeSum *args)
{
    double tokens = (double)args->tokens, places = tokens * (double)args->width;
    double hidden = (double)args->hidden, element_bytes = (double)dtype_bytes(args->dtype, 1);
    double words = places * (args->weight ? 2.0 : 1.0) + (args->addend ? tokens * hidden : 0.0) +
                   (args->addend_weight ? tokens : 0.0);
    return (KernelCost){.bytes = (places + tokens) * hidden * element_bytes + 4.0 * words,
                        .flops = 2.0 * hidden * (places + (args->addend ? tokens : 0.0))};
}

CPU_CLONES
static void scale_row(const MoeScaleRows *args, int64_t row)
{
    int64_t hidden = args->hidden, from = args->row_of_expert_row[row];
    float weight = args->weight_of_expert_row ? args->weight_of_expert_row[row] : 1.0f;
    for (int64_t first = 0; first < hidden; first += CPU_BLOCK) {
        int64_t count = cpu_block_length(first, hidden);
        float value[CPU_BLOCK];
        cpu_load_block(args->x, args->dtype, from * hidden + first, count, value);
        for (int64_t i = 0; i < count; i++)
            value[i] *= weight;
        cpu_store_block(args->out, args->dtype, row * hidden + first, count, value);
    }
}

void moe_scale_rows_cpu(const MoeScaleRows *args, Stream stream)
{
    (void)stream;
    int64_t rows = *args->rows_total;
    CHECK_RULE(rows <= args->rows_max);
#pragma omp parallel for schedule(static) if (rows * args->hidden >= CPU_PARALLEL_MIN)
    for (int64_t row = 0; row < rows; row++)
        if (args->row_of_expert_row[row] >= 0)
            scale_row(args, row);
}

// rows_max rows: what is real is known on the device only.
KernelCost moe_scale_rows_cost(const MoeScaleRows *args)
{
    double rows = (double)args->rows_max, elements = rows * (double)args->hidden;
    return (KernelCost){.bytes = 2.0 * elements * (double)dtype_bytes(args->dtype, 1) + 8.0 * rows,
                        .flops = elements};
}

CPU_CLONES
static float dot_rows(const RowDot *args, int64_t row, int64_t row_of_b)
{
    int64_t hidden = args->hidden;
    float lane[CPU_DOT_LANES] = {0};
    for (int64_t first = 0; first < hidden; first += CPU_BLOCK) {
        int64_t count = cpu_block_length(first, hidden);
        float a[CPU_BLOCK], b[CPU_BLOCK];
        cpu_load_block(args->a, args->dtype_a, row * hidden + first, count, a);
        cpu_load_block(args->b, args->dtype_b, row_of_b * hidden + first, count, b);
        cpu_dot_block(lane, a, b, count);
    }
    return cpu_lane_sum(lane);
}

void row_dot_cpu(const RowDot *args, Stream stream)
{
    (void)stream;
    int64_t rows = *args->rows_total;
    CHECK_RULE(rows <= args->rows_max);
#pragma omp parallel for schedule(static) if (rows * args->hidden >= CPU_PARALLEL_MIN)
    for (int64_t row = 0; row < rows; row++) {
        int64_t row_of_b = args->b_index ? args->b_index[row] : row;
        if (row_of_b >= 0)
            args->out[row] = dot_rows(args, row, row_of_b);
    }
}

KernelCost row_dot_cost(const RowDot *args)
{
    double rows = (double)args->rows_max, elements = rows * (double)args->hidden;
    double bytes = (double)dtype_bytes(args->dtype_a, 1) + (double)dtype_bytes(args->dtype_b, 1);
    return (KernelCost){.bytes = elements * bytes + rows * (args->b_index ? 8.0 : 4.0),
                        .flops = 2.0 * elements};
}
