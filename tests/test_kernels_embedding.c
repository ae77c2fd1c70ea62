// Embedding rows and the gradient of their table, bit for bit against plain loops: whole and
// divided vocabularies, ids that nobody has, crowded ids, any number of threads.
#include "kernels/embedding.h"
#include "tests/kernels_data.h"

#include <omp.h>

typedef struct Case {
    int64_t tokens, hidden, vocab;
    DType dtype;
    int32_t *ids;
    void *table, *dy;
} Case;

// Often crowded onto few ids; sometimes ids that no table has.
static Case make_case(Data *data)
{
    const int64_t widths[] = {1, 7, 8, 100, 511, 512, 513, 1030};
    Case c = {.tokens = data_below(data, 90),
              .hidden = widths[data_below(data, COUNT_OF(widths))],
              .vocab = 1 + data_below(data, 60),
              .dtype = data_below(data, 2) ? DTYPE_F32 : DTYPE_BF16};
    int64_t span = data_below(data, 3) ? c.vocab : 1 + c.vocab / 10;
    c.ids = data_poisoned(data, c.tokens, sizeof(int32_t));
    for (int64_t t = 0; t < c.tokens; t++)
        if (data_below(data, 10))
            c.ids[t] = (int32_t)(data_below(data, 20) ? data_below(data, span) : c.vocab);
    c.table = data_normals(data, c.vocab * c.hidden, c.dtype, 1.0f);
    c.dy = data_normals(data, c.tokens * c.hidden, c.dtype, 1.0f);
    return c;
}

static void *table_from(const Case *c, int64_t first)
{
    return (char *)c->table + dtype_bytes(c->dtype, (uint64_t)(first * c->hidden));
}

static void *run_forward(Data *data, const Case *c, int64_t first, int64_t count)
{
    void *y = data_poisoned(data, c->tokens * c->hidden + 3, dtype_bytes(c->dtype, 1));
    EmbeddingForward args = {.tokens = c->tokens,
                             .hidden = c->hidden,
                             .vocab_first = first,
                             .vocab_count = count,
                             .dtype = c->dtype,
                             .ids = c->ids,
                             .table = table_from(c, first),
                             .y = y};
    embedding_forward(&args, CPU);
    return y;
}

// Parts of the vocabulary from 0 to vocab, some of them empty.
static int64_t next_part(Data *data, const Case *c, int64_t first)
{
    int64_t left = c->vocab - first;
    return data_below(data, 4) ? data_below(data, left + 1) : left;
}

static void rows_are_copied(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 60; round++) {
        int mark = data.blocks;
        Case c = make_case(&data);
        for (int64_t first = 0, count; first < c.vocab; first += count) {
            count = next_part(&data, &c, first);
            const void *y = run_forward(&data, &c, first, count);
            for (int64_t i = 0; i < c.tokens * c.hidden; i++) {
                int64_t row = c.ids[i / c.hidden];
                bool here = row >= first && row < first + count;
                float expected =
                    here ? value_of(c.table, c.dtype, row * c.hidden + i % c.hidden) : 0.0f;
                expect_same(value_of(y, c.dtype, i), expected, "y", i);
            }
            for (int64_t i = c.tokens * c.hidden; i < c.tokens * c.hidden + 3; i++)
                expect_poison(y, c.dtype, i, "past y");
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

static float *run_backward(Data *data, const Case *c, int64_t first, int64_t count,
                           const float *before)
{
    float *dtable = data_poisoned(data, count * c->hidden + 3, sizeof(float));
    if (before)
        memcpy(dtable, before + first * c->hidden, sizeof(float) * (size_t)(count * c->hidden));
    uint64_t bytes = embedding_backward_scratch_bytes(c->tokens, count);
    EmbeddingBackward args = {.tokens = c->tokens,
                              .hidden = c->hidden,
                              .vocab_first = first,
                              .vocab_count = count,
                              .dtype = c->dtype,
                              .ids = c->ids,
                              .dy = c->dy,
                              .dtable = dtable,
                              .accumulate = before,
                              .scratch = data_poisoned(data, (int64_t)bytes, 1)};
    embedding_backward(&args, CPU);
    return dtable;
}

static void gradients_are_chains_in_order_of_tokens(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 60; round++) {
        int mark = data.blocks;
        Case c = make_case(&data);
        float *before =
            data_below(&data, 2) ? data_normals(&data, c.vocab * c.hidden, DTYPE_F32, 1.0f) : NULL;
        for (int64_t first = 0, count; first < c.vocab; first += count) {
            count = next_part(&data, &c, first);
            const float *dtable = run_backward(&data, &c, first, count, before);
            for (int64_t i = 0; i < count * c.hidden; i++) {
                int64_t row = first + i / c.hidden, tokens = 0;
                volatile float sum = 0;
                for (int64_t t = 0; t < c.tokens; t++)
                    if (c.ids[t] == row) {
                        sum = sum + value_of(c.dy, c.dtype, t * c.hidden + i % c.hidden);
                        tokens++;
                    }
                float held = before ? before[row * c.hidden + i % c.hidden] : 0.0f;
                expect_same(dtable[i], !before ? sum : tokens ? held + sum : held, "dtable", i);
            }
            for (int64_t i = count * c.hidden; i < count * c.hidden + 3; i++)
                expect_poison(dtable, DTYPE_F32, i, "past dtable");
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

static void threads_change_nothing(void **state)
{
    (void)state;
    Data data = data_create();
    int threads = omp_get_max_threads();
    Case c = {.tokens = 700, .hidden = 129, .vocab = 301, .dtype = DTYPE_F32};
    c.ids = data_poisoned(&data, c.tokens, sizeof(int32_t));
    for (int64_t t = 0; t < c.tokens; t++)
        c.ids[t] = (int32_t)data_below(&data, t % 2 ? 3 : c.vocab);
    c.dy = data_normals(&data, c.tokens * c.hidden, c.dtype, 1.0f);
    float *dtable[2];
    for (int run = 0; run < 2; run++) {
        omp_set_num_threads(run ? 5 : 1);
        dtable[run] = run_backward(&data, &c, 0, c.vocab, NULL);
    }
    omp_set_num_threads(threads);
    assert_memory_equal(dtable[0], dtable[1], sizeof(float) * (size_t)(c.vocab * c.hidden));
    data_destroy(&data);
}

// NaN and infinity reach the rows of their tokens and no other.
static void extremes(void **state)
{
    (void)state;
    float dy[4] = {NAN, INFINITY, -INFINITY, 3e38f}, dtable[4];
    int32_t ids[4] = {0, 1, 1, 3}, scratch[32];
    assert_true(embedding_backward_scratch_bytes(4, 4) <= sizeof scratch);
    EmbeddingBackward args = {.tokens = 4,
                              .hidden = 1,
                              .vocab_count = 4,
                              .dtype = DTYPE_F32,
                              .ids = ids,
                              .dy = dy,
                              .dtable = dtable,
                              .scratch = scratch};
    embedding_backward(&args, CPU);
    assert_true(isnan(dtable[0]) && isnan(dtable[1]));
    expect_same(dtable[2], 0.0f, "a row without tokens", 2);
    expect_same(dtable[3], 3e38f, "a large gradient", 3);
}

static void costs(void **state)
{
    (void)state;
    EmbeddingForward forward = {.tokens = 7, .hidden = 5, .vocab_count = 3, .dtype = DTYPE_BF16};
    expect_near(embedding_forward_cost(&forward).bytes, (7 + 3) * 5 * 2 + 7 * 4, 0, "forward", 0);
    EmbeddingBackward backward = {.tokens = 7, .hidden = 5, .vocab_count = 20, .dtype = DTYPE_BF16};
    expect_near(embedding_backward_cost(&backward).bytes, 7 * 5 * 2 + 20 * 5 * 4 + 7 * 4, 0,
                "backward", 0);
    backward.accumulate = true;
    expect_near(embedding_backward_cost(&backward).bytes, 7 * 5 * 2 + 2 * 7 * 5 * 4 + 7 * 4, 0,
                "backward, added", 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_copied),
        cmocka_unit_test(gradients_are_chains_in_order_of_tokens),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(extremes),
        cmocka_unit_test(costs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
