// embedding.c -- table lookup on the CPU, and the gradient of the table.
//
// Backward sorts the tokens by id (a counting sort, which keeps their order), so that a row of the
// table belongs to one thread and is written once. Memory bandwidth is the limit.

#include "kernels/embedding.h"
#include "kernels/cpu_math.h"

KERNEL_DEFINE(embedding_forward, EmbeddingForward)
KERNEL_DEFINE(embedding_backward, EmbeddingBackward)

enum {
    ROWS_TOGETHER = 64,   // neighbouring rows of the table that a thread takes
    CUDA_SORT_ARRAYS = 4, // [tokens] each: ids and tokens, twice (embedding.cu)
};

uint64_t embedding_backward_scratch_bytes(int64_t tokens, int64_t vocab_count)
{
    int64_t cpu = vocab_count + 1 + tokens, cuda = CUDA_SORT_ARRAYS * tokens;
    return (uint64_t)(cpu > cuda ? cpu : cuda) * sizeof(int32_t);
}

void embedding_forward_cpu(const EmbeddingForward *args, Stream stream)
{
    (void)stream;
    size_t row_bytes = dtype_bytes(args->dtype, (uint64_t)args->hidden);
    char *to = args->y;
    const char *from = args->table;
#pragma omp parallel for schedule(static) if (args->tokens * args->hidden >= CPU_PARALLEL_MIN)
    for (int64_t token = 0; token < args->tokens; token++) {
        int64_t row = args->ids[token] - args->vocab_first;
        if (row >= 0 && row < args->vocab_count)
            memcpy(to + (size_t)token * row_bytes, from + (size_t)row * row_bytes, row_bytes);
        else
            memset(to + (size_t)token * row_bytes, 0, row_bytes);
    }
}

// A different row of the table for each token, which the vocabulary must have.
KernelCost embedding_forward_cost(const EmbeddingForward *args)
{
    double tokens = (double)args->tokens, vocab = (double)args->vocab_count;
    double rows = tokens + (tokens < vocab ? tokens : vocab);
    double row_bytes = (double)dtype_bytes(args->dtype, (uint64_t)args->hidden);
    return (KernelCost){.bytes = rows * row_bytes + 4.0 * tokens};
}

// Leaves in order[first[row] .. first[row + 1]] the tokens of each row, ascending.
static void sort_tokens(const EmbeddingBackward *args, int32_t *first, int32_t *order)
{
    memset(first, 0, (size_t)(args->vocab_count + 1) * sizeof(int32_t));
    for (int64_t token = 0; token < args->tokens; token++) {
        int64_t row = args->ids[token] - args->vocab_first;
        if (row >= 0 && row < args->vocab_count)
            first[row]++;
    }
    for (int64_t row = 1; row <= args->vocab_count; row++)
        first[row] += first[row - 1];
    // Every entry is the end of its row now, and becomes the beginning by counting down.
    for (int64_t token = args->tokens - 1; token >= 0; token--) {
        int64_t row = args->ids[token] - args->vocab_first;
        if (row >= 0 && row < args->vocab_count)
            order[--first[row]] = (int32_t)token;
    }
}

CPU_CLONES
static void add_tokens(const EmbeddingBackward *args, int64_t row, const int32_t *token, int count)
{
    int64_t hidden = args->hidden;
    for (int64_t first = 0; first < hidden; first += CPU_BLOCK) {
        int64_t length = cpu_block_length(first, hidden);
        float sum[CPU_BLOCK] = {0}, dy[CPU_BLOCK];
        float *restrict to = args->dtable + row * hidden + first;
        for (int i = 0; i < count; i++) {
            cpu_load_block(args->dy, args->dtype, token[i] * hidden + first, length, dy);
            for (int64_t h = 0; h < length; h++)
                sum[h] += dy[h];
        }
        for (int64_t h = 0; h < length; h++)
            to[h] = args->accumulate ? to[h] + sum[h] : sum[h];
    }
}

void embedding_backward_cpu(const EmbeddingBackward *args, Stream stream)
{
    (void)stream;
    CHECK_RULE(args->tokens <= INT32_MAX);
    int32_t *first = args->scratch, *order = first + args->vocab_count + 1;
    sort_tokens(args, first, order);
#pragma omp parallel for schedule(dynamic, ROWS_TOGETHER) if (args->tokens * args->hidden >=       \
                                                              CPU_PARALLEL_MIN)
    for (int64_t row = 0; row < args->vocab_count; row++) {
        int count = first[row + 1] - first[row];
        if (count > 0 || !args->accumulate)
            add_tokens(args, row, order + first[row], count);
    }
}

// A different row of the table for each token; the gradient is stored whole without accumulate.
KernelCost embedding_backward_cost(const EmbeddingBackward *args)
{
    double tokens = (double)args->tokens, vocab = (double)args->vocab_count;
    double hidden = (double)args->hidden, elements = tokens * hidden;
    double rows = args->accumulate ? 2.0 * (tokens < vocab ? tokens : vocab) : vocab;
    return (KernelCost){.bytes = elements * (double)dtype_bytes(args->dtype, 1) +
                                 4.0 * (rows * hidden + tokens),
                        .flops = elements};
}
