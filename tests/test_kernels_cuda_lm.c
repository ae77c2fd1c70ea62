// The CUDA rows of rms_norm, embedding and cross_entropy against their CPU rows on fresh random
// data: bit for bit where the order of operations is prescribed, else within the bounds of the
// header (the exponentials of the loss differ). Rows of 0, odd and large lengths, pointers that are
// not aligned, crowded ids, divided vocabularies, offsets beyond 2^31 elements.
// labels: gpu
#include "tests/twin.h"

#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/rms_norm.h"

#include <float.h>

static const DType dtypes[] = {DTYPE_F32, DTYPE_BF16};
static const int64_t widths[] = {1, 7, 8, 96, 1408, 2048, 7168};

// Pointer into one side of a twin.
#define ON(cuda, twin) ((cuda) ? (twin).device : (twin).host)

// The same `skip` elements further on: never aligned with 1.
static void *skipped(void *pointer, DType dtype, int64_t skip)
{
    return (char *)pointer + dtype_bytes(dtype, (uint64_t)skip);
}

typedef struct NormCase {
    DType dtype;
    int64_t rows, hidden, skip;
    bool added, in_place, weighted, accumulate; // weighted: dweight is wanted
} NormCase;

typedef struct NormTwins {
    Twin x, weight, dy, addend, y, rstd, dx, dweight, scratch;
} NormTwins;

static NormTwins norm_twins(Twins *twins, NormCase c)
{
    const int64_t elements = c.rows * c.hidden + c.skip;
    const uint64_t scratch = rms_norm_backward_scratch_bytes(c.rows, c.hidden);
    return (NormTwins){.x = twin_normals(twins, elements, c.dtype, 3),
                       .weight = twin_normals(twins, c.hidden + c.skip, c.dtype, 1),
                       .dy = twin_normals(twins, elements, c.dtype, 1),
                       .addend = twin_normals(twins, elements, c.dtype, 1),
                       .y = twin_create(twins, elements, dtype_bytes(c.dtype, 1)),
                       .rstd = twin_create(twins, c.rows, sizeof(float)),
                       .dx = twin_create(twins, elements, dtype_bytes(c.dtype, 1)),
                       .dweight = twin_normals(twins, c.hidden, DTYPE_F32, 1),
                       .scratch = twin_create(twins, (int64_t)scratch, 1)};
}

static void norm_run(Twins *twins, NormCase c, const NormTwins *t, bool cuda)
{
    const Stream stream = cuda ? twins->cuda : twins->cpu;
    const RmsNormForward forward = {.rows = c.rows,
                                    .hidden = c.hidden,
                                    .dtype = c.dtype,
                                    .eps = 1e-5f,
                                    .x = skipped(ON(cuda, t->x), c.dtype, c.skip),
                                    .weight = skipped(ON(cuda, t->weight), c.dtype, c.skip),
                                    .y = skipped(ON(cuda, t->y), c.dtype, c.skip),
                                    .rstd_out = ON(cuda, t->rstd)};
    rms_norm_forward(&forward, stream);
    const Twin *dx = c.in_place ? (c.added ? &t->addend : &t->dy) : &t->dx;
    const RmsNormBackward backward = {
        .rows = c.rows,
        .hidden = c.hidden,
        .dtype = c.dtype,
        .x = forward.x,
        .weight = forward.weight,
        .rstd = forward.rstd_out,
        .dy = skipped(ON(cuda, t->dy), c.dtype, c.skip),
        .addend = c.added ? skipped(ON(cuda, t->addend), c.dtype, c.skip) : NULL,
        .dx = skipped(ON(cuda, *dx), c.dtype, c.skip),
        .dweight = c.weighted ? ON(cuda, t->dweight) : NULL,
        .accumulate = c.accumulate,
        .scratch = ON(cuda, t->scratch)};
    rms_norm_backward(&backward, stream);
}

static void norm_case(Twins *twins, NormCase c)
{
    snprintf(twins->text, sizeof(twins->text), "rms_norm %s rows=%lld hidden=%lld%s%s%s%s%s",
             dtype_row(c.dtype)->name, (long long)c.rows, (long long)c.hidden,
             c.skip ? " unaligned" : "", c.added ? " with addend" : "",
             c.in_place ? " in place" : "", c.weighted ? " dweight" : "",
             c.accumulate ? " added" : "");
    const TwinsMark mark = twins_mark(twins);
    NormTwins t = norm_twins(twins, c);
    norm_run(twins, c, &t, false);
    norm_run(twins, c, &t, true);
    twin_expect_same(twins, &t.y, c.dtype, "y");
    twin_expect_same(twins, &t.rstd, DTYPE_F32, "rstd");
    twin_expect_same(twins, &t.dx, c.dtype, "dx");
    twin_expect_same(twins, &t.dy, c.dtype, "dy");
    twin_expect_same(twins, &t.addend, c.dtype, "addend");
    twin_expect_same(twins, &t.dweight, DTYPE_F32, "dweight");
    twins_release(twins, mark);
}

static void test_rms_norm(void **state)
{
    (void)state;
    static const int64_t rows[] = {0, 1, 8, 33, 100};
    Twins twins = twins_create();
    for (size_t d = 0; d < COUNT_OF(dtypes); d++)
        for (size_t w = 0; w < COUNT_OF(widths); w++)
            for (size_t r = 0; r < COUNT_OF(rows); r++) {
                NormCase c = {.dtype = dtypes[d], .rows = rows[r], .hidden = widths[w]};
                norm_case(&twins, c);
                c.weighted = c.added = true;
                norm_case(&twins, c);
                c.in_place = c.accumulate = true;
                norm_case(&twins, c);
                c.added = false;
                c.skip = 1;
                norm_case(&twins, c);
            }
    norm_case(&twins,
              (NormCase){.dtype = DTYPE_BF16, .rows = 20011, .hidden = 88, .weighted = true});
    twins_destroy(&twins);
}

typedef struct EmbeddingCase {
    DType dtype;
    int64_t tokens, hidden, vocab, vocab_first, span, skip; // ids are drawn below span
    bool accumulate;
} EmbeddingCase;

static void embedding_case(Twins *twins, EmbeddingCase c)
{
    snprintf(twins->text, sizeof(twins->text),
             "embedding %s tokens=%lld hidden=%lld rows %lld + %lld of %lld%s%s",
             dtype_row(c.dtype)->name, (long long)c.tokens, (long long)c.hidden,
             (long long)c.vocab_first, (long long)c.vocab, (long long)c.span,
             c.skip ? " unaligned" : "", c.accumulate ? " added" : "");
    const TwinsMark mark = twins_mark(twins);
    const int64_t elements = c.tokens * c.hidden + c.skip;
    const uint64_t scratch_bytes = embedding_backward_scratch_bytes(c.tokens, c.vocab);
    Twin ids = twin_map(twins, c.tokens, c.span, 0.05);
    Twin table = twin_normals(twins, c.vocab * c.hidden + c.skip, c.dtype, 1);
    Twin y = twin_create(twins, elements, dtype_bytes(c.dtype, 1));
    Twin dy = twin_normals(twins, elements, c.dtype, 1);
    Twin dtable = twin_normals(twins, c.vocab * c.hidden + c.skip, DTYPE_F32, 1);
    Twin scratch = twin_create(twins, (int64_t)scratch_bytes, 1);
    for (int cuda = 0; cuda < 2; cuda++) {
        const Stream stream = cuda ? twins->cuda : twins->cpu;
        const EmbeddingForward forward = {.tokens = c.tokens,
                                          .hidden = c.hidden,
                                          .vocab_first = c.vocab_first,
                                          .vocab_count = c.vocab,
                                          .dtype = c.dtype,
                                          .ids = ON(cuda, ids),
                                          .table = skipped(ON(cuda, table), c.dtype, c.skip),
                                          .y = skipped(ON(cuda, y), c.dtype, c.skip)};
        const EmbeddingBackward backward = {.tokens = c.tokens,
                                            .hidden = c.hidden,
                                            .vocab_first = c.vocab_first,
                                            .vocab_count = c.vocab,
                                            .dtype = c.dtype,
                                            .ids = ON(cuda, ids),
                                            .dy = skipped(ON(cuda, dy), c.dtype, c.skip),
                                            .dtable = skipped(ON(cuda, dtable), DTYPE_F32, c.skip),
                                            .accumulate = c.accumulate,
                                            .scratch = ON(cuda, scratch)};
        embedding_forward(&forward, stream);
        embedding_backward(&backward, stream);
    }
    twin_expect_same(twins, &y, c.dtype, "y");
    twin_expect_same(twins, &dtable, DTYPE_F32, "dtable");
    twins_release(twins, mark);
}

static void test_embedding(void **state)
{
    (void)state;
    static const int64_t tokens[] = {0, 1, 31, 33, 1025};
    static const int64_t vocabs[] = {0, 1, 255, 256, 300};
    Twins twins = twins_create();
    for (size_t d = 0; d < COUNT_OF(dtypes); d++)
        for (size_t t = 0; t < COUNT_OF(tokens); t++)
            for (size_t v = 0; v < COUNT_OF(vocabs); v++) {
                EmbeddingCase c = {.dtype = dtypes[d],
                                   .tokens = tokens[t],
                                   .hidden = widths[(t + v) % COUNT_OF(widths)],
                                   .vocab = vocabs[v],
                                   .span = vocabs[v]};
                embedding_case(&twins, c);
                c.vocab_first = 100;
                c.span = 500;
                c.accumulate = true;
                embedding_case(&twins, c);
                c.span = 101 + (int64_t)t; // few ids, long runs
                c.skip = 1;
                embedding_case(&twins, c);
            }
    // Two and three digits of the sort, several rounds of a warp's share.
    const EmbeddingCase many = {
        .dtype = DTYPE_BF16, .tokens = 20011, .hidden = 40, .vocab = 65536, .span = 65536};
    EmbeddingCase more = many, crowded = many;
    more.vocab = more.span = 151936;
    more.hidden = 8;
    crowded.span = 3;
    embedding_case(&twins, many);
    embedding_case(&twins, more);
    embedding_case(&twins, crowded);
    twins_destroy(&twins);
}

typedef struct LossCase {
    DType dtype;
    int64_t rows, vocab, vocab_first, skip; // targets are drawn below 2 * vocab
    float deviation;
    bool in_place;
} LossCase;

typedef struct LossTwins {
    Twin logits, targets, row_max, row_sum, target_logit, loss, totals, dlogits;
} LossTwins;

static void loss_run(Twins *twins, LossCase c, const LossTwins *t, bool cuda)
{
    const Stream stream = cuda ? twins->cuda : twins->cpu;
    void *logits = skipped(ON(cuda, t->logits), c.dtype, c.skip);
    const CrossEntropyRowMax largest = {.rows = c.rows,
                                        .vocab_count = c.vocab,
                                        .dtype = c.dtype,
                                        .logits = logits,
                                        .row_max = ON(cuda, t->row_max)};
    const CrossEntropyRowSum sum = {.rows = c.rows,
                                    .vocab_first = c.vocab_first,
                                    .vocab_count = c.vocab,
                                    .dtype = c.dtype,
                                    .logits = logits,
                                    .row_max = largest.row_max,
                                    .targets = ON(cuda, t->targets),
                                    .row_sum = ON(cuda, t->row_sum),
                                    .target_logit = ON(cuda, t->target_logit)};
    const CrossEntropyLoss loss = {.rows = c.rows,
                                   .row_max = largest.row_max,
                                   .row_sum = sum.row_sum,
                                   .target_logit = sum.target_logit,
                                   .targets = sum.targets,
                                   .loss = ON(cuda, t->loss),
                                   .totals = ON(cuda, t->totals)};
    const CrossEntropyBackward backward = {
        .rows = c.rows,
        .vocab_first = c.vocab_first,
        .vocab_count = c.vocab,
        .dtype = c.dtype,
        .logits = logits,
        .row_max = largest.row_max,
        .row_sum = sum.row_sum,
        .targets = sum.targets,
        .scale = 3.0f,
        .count = loss.totals + CROSS_ENTROPY_COUNT,
        .dlogits = c.in_place ? logits : skipped(ON(cuda, t->dlogits), c.dtype, c.skip)};
    cross_entropy_row_max(&largest, stream);
    cross_entropy_row_sum(&sum, stream);
    cross_entropy_loss(&loss, stream);
    cross_entropy_backward(&backward, stream);
}

// What the header allows the sum of a row, relative.
static double sum_share(const float *logit, int64_t columns, double largest)
{
    double sum = 0, error = 0;
    for (int64_t v = 0; v < columns; v++) {
        const double d = (double)logit[v] - largest;
        sum += exp(d);
        error += (3 + 2 * fabs(d)) * exp(d);
    }
    return (columns ? error / sum : 0) * FLT_EPSILON + ((double)columns / 512 + 8) * FLT_EPSILON;
}

static void expect_apart(const Twins *twins, const char *name, int64_t index, double cpu,
                         double cuda, double allowed)
{
    if (!(fabs(cpu - cuda) <= allowed) && cpu != cuda && !(isnan(cpu) && isnan(cuda)))
        fail_msg("%s: %s[%lld] is %.9g on the CPU, %.9g on CUDA: %.3g apart, allowed %.3g",
                 twins->text, name, (long long)index, cpu, cuda, fabs(cpu - cuda), allowed);
}

// One row, its logits as they were: each side may be as far from the truth as the header says.
static void expect_loss_row(const Twins *twins, LossCase c, const LossTwins *t, int64_t row,
                            const float *logit)
{
    const float *cpu_sum = t->row_sum.host, *cuda_sum = t->row_sum.back;
    const float *cpu_loss = t->loss.host, *cuda_loss = t->loss.back;
    const double largest = ((const float *)t->row_max.host)[row];
    const double share = sum_share(logit, c.vocab, largest), sum = cpu_sum[row];
    const double loss = cpu_loss[row], last = c.dtype == DTYPE_F32 ? FLT_EPSILON : 0x1p-7;
    const double counted = ((const double *)t->totals.host)[CROSS_ENTROPY_COUNT];
    expect_apart(twins, "row_sum", row, sum, cuda_sum[row], 2.1 * share * sum);
    expect_apart(twins, "loss", row, loss, cuda_loss[row], 2.1 * share + FLT_EPSILON * fabs(loss));
    const Twin *dlogits = c.in_place ? &t->logits : &t->dlogits;
    for (int64_t v = 0; v < c.vocab; v++) {
        const int64_t at = c.skip + row * c.vocab + v;
        const double d = (double)logit[v] - largest, probability = exp(d) / sum * 3 / counted;
        const double cpu = twin_value(dlogits->host, c.dtype, at);
        const double error = probability * ((4 + 2 * fabs(d)) * FLT_EPSILON + share);
        expect_apart(twins, "dlogits", at, cpu, twin_value(dlogits->back, c.dtype, at),
                     2.1 * error + (4 * FLT_EPSILON + last) * fabs(cpu) +
                         1.01 * FLT_MIN * 3 / counted + 0x1p-140);
    }
}

static void loss_case(Twins *twins, LossCase c)
{
    snprintf(twins->text, sizeof(twins->text),
             "cross_entropy %s rows=%lld columns %lld + %lld deviation %g%s%s",
             dtype_row(c.dtype)->name, (long long)c.rows, (long long)c.vocab_first,
             (long long)c.vocab, (double)c.deviation, c.skip ? " unaligned" : "",
             c.in_place ? " in place" : "");
    const TwinsMark mark = twins_mark(twins);
    const int64_t elements = c.rows * c.vocab + c.skip;
    LossTwins t = {.logits = twin_normals(twins, elements, c.dtype, c.deviation),
                   .targets = twin_map(twins, c.rows, c.vocab_first + c.vocab + 10, 0),
                   .row_max = twin_create(twins, c.rows, sizeof(float)),
                   .row_sum = twin_create(twins, c.rows, sizeof(float)),
                   .target_logit = twin_create(twins, c.rows, sizeof(float)),
                   .loss = twin_create(twins, c.rows, sizeof(float)),
                   .totals = twin_create(twins, CROSS_ENTROPY_TOTALS, sizeof(double)),
                   .dlogits = twin_create(twins, elements, dtype_bytes(c.dtype, 1))};
    float *logit = arena_push(twins->host, (uint64_t)elements * sizeof(float) + 16, MEMORY_SCRATCH);
    for (int64_t i = 0; i < c.rows * c.vocab; i++)
        logit[i] = twin_value(t.logits.host, c.dtype, c.skip + i);
    for (int64_t row = 2; row < c.rows; row += 3)
        ((int32_t *)t.targets.host)[row] = CROSS_ENTROPY_IGNORED;
    twin_upload(twins, &t.targets);
    loss_run(twins, c, &t, false);
    loss_run(twins, c, &t, true);
    twin_expect_near(twins, &t.row_max, DTYPE_F32, (Bound){.share = 0, .rare = 1}, "row_max");
    twin_expect_same(twins, &t.target_logit, DTYPE_F32, "target_logit");
    Twin *const rest[] = {&t.row_sum, &t.loss, &t.totals, &t.logits, &t.dlogits};
    for (size_t i = 0; i < COUNT_OF(rest); i++)
        twin_fetch(twins, rest[i]);
    for (int64_t row = 0; row < c.rows; row++)
        expect_loss_row(twins, c, &t, row, logit + row * c.vocab);
    const double *cpu = t.totals.host, *cuda = t.totals.back;
    expect_apart(twins, "count", 0, cpu[CROSS_ENTROPY_COUNT], cuda[CROSS_ENTROPY_COUNT], 0);
    expect_apart(twins, "sum of losses", 0, cpu[CROSS_ENTROPY_SUM], cuda[CROSS_ENTROPY_SUM],
                 1e-4 * fabs(cpu[CROSS_ENTROPY_SUM]));
    twins_release(twins, mark);
}

static void test_cross_entropy(void **state)
{
    (void)state;
    static const int64_t rows[] = {0, 1, 37}, columns[] = {1, 7, 8, 255, 1024, 1025, 32000};
    Twins twins = twins_create();
    for (size_t d = 0; d < COUNT_OF(dtypes); d++)
        for (size_t r = 0; r < COUNT_OF(rows); r++)
            for (size_t v = 0; v < COUNT_OF(columns); v++) {
                LossCase c = {
                    .dtype = dtypes[d], .rows = rows[r], .vocab = columns[v], .deviation = 2};
                loss_case(&twins, c);
                c.vocab_first = 5;
                c.deviation = 30;
                c.in_place = true;
                loss_case(&twins, c);
                c.skip = 1;
                loss_case(&twins, c);
            }
    loss_case(&twins, (LossCase){.dtype = DTYPE_BF16, .rows = 9001, .vocab = 264, .deviation = 1});
    twins_destroy(&twins);
}

// NaN, infinities and empty vocabularies give what the CPU row gives.
static void test_cross_entropy_extremes(void **state)
{
    (void)state;
    enum { ROWS = 6, COLUMNS = 3 };
    static const float logit[ROWS][COLUMNS] = {{NAN, 1, 2},
                                               {INFINITY, 0, 5},
                                               {-INFINITY, -INFINITY, -INFINITY},
                                               {-INFINITY, 3, -INFINITY},
                                               {1e38f, 1e38f, -3e38f},
                                               {-200, 100, -3e38f}};
    static const int32_t target[ROWS] = {1, 1, 0, 1, 0, CROSS_ENTROPY_IGNORED};
    Twins twins = twins_create();
    for (int vocab = 0; vocab <= COLUMNS; vocab += COLUMNS) {
        const LossCase c = {.dtype = DTYPE_F32, .rows = ROWS, .vocab = vocab};
        snprintf(twins.text, sizeof(twins.text), "cross_entropy of extremes, %d columns", vocab);
        LossTwins t = {.logits = twin_create(&twins, (int64_t)ROWS * vocab, sizeof(float)),
                       .targets = twin_create(&twins, ROWS, sizeof(int32_t)),
                       .row_max = twin_create(&twins, ROWS, sizeof(float)),
                       .row_sum = twin_create(&twins, ROWS, sizeof(float)),
                       .target_logit = twin_create(&twins, ROWS, sizeof(float)),
                       .loss = twin_create(&twins, ROWS, sizeof(float)),
                       .totals = twin_create(&twins, CROSS_ENTROPY_TOTALS, sizeof(double)),
                       .dlogits = twin_create(&twins, (int64_t)ROWS * vocab, sizeof(float))};
        memcpy(t.logits.host, logit, t.logits.bytes);
        memcpy(t.targets.host, target, sizeof(target));
        twin_upload(&twins, &t.logits);
        twin_upload(&twins, &t.targets);
        loss_run(&twins, c, &t, false);
        loss_run(&twins, c, &t, true);
        Twin *const all[] = {&t.row_max, &t.row_sum, &t.target_logit, &t.loss, &t.dlogits};
        for (size_t i = 0; i < COUNT_OF(all); i++) {
            twin_fetch(&twins, all[i]);
            for (int64_t k = 0; k < (int64_t)(all[i]->bytes / sizeof(float)); k++) {
                const double cpu = twin_value(all[i]->host, DTYPE_F32, k);
                const double cuda = twin_value(all[i]->back, DTYPE_F32, k);
                expect_apart(&twins, "result", k, cpu, cuda, 1e-6 * fabs(cpu));
            }
        }
    }
    twins_destroy(&twins);
}

// A last row so far into the logits that its elements have no 32-bit index. Only the device holds
// them.
static void test_offsets_beyond_31_bits(void **state)
{
    (void)state;
    enum { COLUMNS = 151936, ROWS = 14200 }; // 2.16e9 elements, 4.3 GB
    Twins twins = twins_create();
    snprintf(twins.text, sizeof(twins.text), "cross_entropy of row %d", ROWS - 1);
    uint16_t *logits = ARENA_PUSH(twins.device, uint16_t, (uint64_t)ROWS * COLUMNS, MEMORY_SCRATCH);
    uint16_t *last = logits + (int64_t)(ROWS - 1) * COLUMNS;
    Twin row = twin_normals(&twins, COLUMNS, DTYPE_BF16, 3);
    Twin largest = twin_create(&twins, 1, sizeof(float)),
         sum = twin_create(&twins, 1, sizeof(float));
    Twin target_logit = twin_create(&twins, 1, sizeof(float)), target = twin_integer(&twins, 77);
    Twin device_max = twin_create(&twins, ROWS, sizeof(float));
    Twin device_sum = twin_create(&twins, ROWS, sizeof(float));
    Twin device_target = twin_create(&twins, ROWS, sizeof(float));
    Twin targets = twin_create(&twins, ROWS, sizeof(int32_t));
    ((int32_t *)targets.host)[ROWS - 1] = 77;
    twin_upload(&twins, &targets);
    device_copy(last, row.device, row.bytes, twins.cuda);
    for (int cuda = 0; cuda < 2; cuda++) {
        const Stream stream = cuda ? twins.cuda : twins.cpu;
        const int64_t rows = cuda ? ROWS : 1;
        const CrossEntropyRowMax max_args = {.rows = rows,
                                             .vocab_count = COLUMNS,
                                             .dtype = DTYPE_BF16,
                                             .logits = cuda ? (void *)logits : row.host,
                                             .row_max = cuda ? device_max.device : largest.host};
        const CrossEntropyRowSum sum_args = {.rows = rows,
                                             .vocab_count = COLUMNS,
                                             .dtype = DTYPE_BF16,
                                             .logits = max_args.logits,
                                             .row_max = max_args.row_max,
                                             .targets = cuda ? targets.device : target.host,
                                             .row_sum = cuda ? device_sum.device : sum.host,
                                             .target_logit =
                                                 cuda ? device_target.device : target_logit.host};
        cross_entropy_row_max(&max_args, stream);
        cross_entropy_row_sum(&sum_args, stream);
    }
    twin_fetch(&twins, &device_max);
    twin_fetch(&twins, &device_sum);
    twin_fetch(&twins, &device_target);
    const float *max_back = device_max.back, *sum_back = device_sum.back;
    const float *target_back = device_target.back;
    expect_apart(&twins, "row_max", ROWS - 1, *(float *)largest.host, max_back[ROWS - 1], 0);
    expect_apart(&twins, "row_sum", ROWS - 1, *(float *)sum.host, sum_back[ROWS - 1],
                 1e-3 * (double)*(float *)sum.host);
    expect_apart(&twins, "target_logit", ROWS - 1, *(float *)target_logit.host,
                 target_back[ROWS - 1], 0);
    twins_destroy(&twins);
}

int main(void)
{
    if (!select_gpu())
        return EXIT_CODE_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rms_norm),
        cmocka_unit_test(test_embedding),
        cmocka_unit_test(test_cross_entropy),
        cmocka_unit_test(test_cross_entropy_extremes),
        cmocka_unit_test(test_offsets_beyond_31_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
