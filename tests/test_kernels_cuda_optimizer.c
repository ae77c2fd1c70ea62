// The CUDA rows of optimizer and elementwise against their CPU rows on fresh random data, bit for
// bit: odd and large sizes, pointers that are not aligned, NaN and infinity, arrays beyond 2^31
// elements; and a training step's tail captured in a graph and replayed.
// labels: gpu
#include "tests/twin.h"

#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/optimizer.h"
#include "kernels/rms_norm.h"

static const DType dtypes[] = {DTYPE_F32, DTYPE_BF16};
static const int64_t counts[] = {0, 1, 7, 8, 11, 4099, 8192, 262147};

// Pointer into one side of a twin, `skip` elements further on: never aligned with 1.
#define ON(cuda, twin) ((cuda) ? (twin).device : (twin).host)
static void *skipped(void *pointer, DType dtype, int64_t skip)
{
    return (char *)pointer + dtype_bytes(dtype, (uint64_t)skip);
}

// Puts numbers that are no ordinary ones in front.
static void put_extremes(Twins *twins, const Twin *twin, DType dtype, int64_t count)
{
    static const float extremes[] = {INFINITY, -INFINITY, 3.38e38f, 1e-40f, -0.0f};
    for (int64_t i = 0; i < (int64_t)COUNT_OF(extremes) && i < count; i++)
        twin_put(twin->host, dtype, i, extremes[i]);
    twin_upload(twins, twin);
}

static void add_case(Twins *twins, DType dtype, int64_t count, int64_t skip, bool in_place)
{
    snprintf(twins->text, sizeof(twins->text), "add_rows %s %lld%s%s", dtype_row(dtype)->name,
             (long long)count, skip ? " unaligned" : "", in_place ? " in place" : "");
    const TwinsMark mark = twins_mark(twins);
    Twin a = twin_normals(twins, count + skip, dtype, 1);
    Twin b = twin_normals(twins, count + skip, dtype, 1);
    Twin y = twin_create(twins, count + skip, dtype_bytes(dtype, 1));
    put_extremes(twins, &a, dtype, count + skip);
    for (int cuda = 0; cuda < 2; cuda++) {
        const AddRows args = {.count = count,
                              .dtype = dtype,
                              .a = skipped(ON(cuda, a), dtype, skip),
                              .b = skipped(ON(cuda, b), dtype, skip),
                              .y = skipped(ON(cuda, in_place ? b : y), dtype, skip)};
        add_rows(&args, cuda ? twins->cuda : twins->cpu);
    }
    twin_expect_same(twins, &b, dtype, "b");
    twin_expect_same(twins, &y, dtype, "y");
    twins_release(twins, mark);
}

static void cast_case(Twins *twins, DType from_dtype, DType to_dtype, int64_t count, int64_t skip)
{
    snprintf(twins->text, sizeof(twins->text), "cast_copy %s to %s %lld%s",
             dtype_row(from_dtype)->name, dtype_row(to_dtype)->name, (long long)count,
             skip ? " unaligned" : "");
    const TwinsMark mark = twins_mark(twins);
    Twin from = twin_normals(twins, count + skip, from_dtype, 1);
    Twin to = twin_create(twins, count, dtype_bytes(to_dtype, 1));
    put_extremes(twins, &from, from_dtype, count + skip);
    for (int cuda = 0; cuda < 2; cuda++) {
        const CastCopy args = {.count = count,
                               .from_dtype = from_dtype,
                               .to_dtype = to_dtype,
                               .from = skipped(ON(cuda, from), from_dtype, skip),
                               .to = ON(cuda, to)};
        cast_copy(&args, cuda ? twins->cuda : twins->cpu);
    }
    twin_expect_same(twins, &to, to_dtype, "to");
    twins_release(twins, mark);
}

static void test_add_and_cast(void **state)
{
    (void)state;
    Twins twins = twins_create();
    for (size_t d = 0; d < COUNT_OF(dtypes); d++)
        for (size_t n = 0; n < COUNT_OF(counts); n++)
            for (int skip = 0; skip < 2; skip++) {
                add_case(&twins, dtypes[d], counts[n], skip, false);
                add_case(&twins, dtypes[d], counts[n], skip, true);
                cast_case(&twins, dtypes[d], DTYPE_F32, counts[n], skip);
                cast_case(&twins, dtypes[d], DTYPE_BF16, counts[n], skip);
            }
    twins_destroy(&twins);
}

// Sum, norm and clip factor of one array.
static void squares_case(Twins *twins, DType dtype, int64_t count, int64_t skip, bool accumulate)
{
    snprintf(twins->text, sizeof(twins->text), "sum_squares %s %lld%s%s", dtype_row(dtype)->name,
             (long long)count, skip ? " unaligned" : "", accumulate ? " added" : "");
    const TwinsMark mark = twins_mark(twins);
    Twin x = twin_normals(twins, count + skip, dtype, 1);
    Twin sum = twin_create(twins, 1, sizeof(double));
    Twin scratch = twin_create(twins, (int64_t)sum_squares_scratch_bytes(count), 1);
    Twin scale = twin_create(twins, 1, sizeof(float)), norm = twin_create(twins, 1, sizeof(float));
    *(double *)sum.host = 1.25;
    twin_upload(twins, &sum);
    for (int cuda = 0; cuda < 2; cuda++) {
        const Stream stream = cuda ? twins->cuda : twins->cpu;
        const SumSquares squares = {.count = count,
                                    .dtype = dtype,
                                    .x = skipped(ON(cuda, x), dtype, skip),
                                    .sum = ON(cuda, sum),
                                    .accumulate = accumulate,
                                    .scratch = ON(cuda, scratch)};
        const ClipScale clip = {
            .sum = squares.sum, .max_norm = 3.0, .scale = ON(cuda, scale), .norm = ON(cuda, norm)};
        sum_squares(&squares, stream);
        clip_scale(&clip, stream);
    }
    twin_expect_same(twins, &sum, DTYPE_F64, "sum");
    twin_expect_same(twins, &scale, DTYPE_F32, "scale");
    twin_expect_same(twins, &norm, DTYPE_F32, "norm");
    twins_release(twins, mark);
}

static void test_sum_squares(void **state)
{
    (void)state;
    Twins twins = twins_create();
    for (size_t d = 0; d < COUNT_OF(dtypes); d++) {
        for (size_t n = 0; n < COUNT_OF(counts); n++) {
            squares_case(&twins, dtypes[d], counts[n], 0, false);
            squares_case(&twins, dtypes[d], counts[n], 1, true);
        }
        squares_case(&twins, dtypes[d], 1030 * (int64_t)SUM_SQUARES_PIECE + 17, 0, true);
    }
    twins_destroy(&twins);
}

typedef struct StepCase {
    DType dtype;
    int64_t count, skip;
    bool master, scaled, momentum;
} StepCase;

typedef struct StepTwins {
    Twin param, master, grad, first, second, scale, step;
} StepTwins;

static StepTwins step_twins(Twins *twins, StepCase c)
{
    const int64_t count = c.count + c.skip;
    StepTwins t = {.param = twin_normals(twins, count, c.dtype, 1),
                   .master = twin_normals(twins, count, DTYPE_F32, 1),
                   .grad = twin_normals(twins, count, DTYPE_F32, 1),
                   .first = twin_normals(twins, count, DTYPE_F32, 1),
                   .second = twin_normals(twins, count, DTYPE_F32, 1),
                   .scale = twin_create(twins, 1, sizeof(float)),
                   .step = twin_create(twins, 1, sizeof(int64_t))};
    for (int64_t i = 0; i < count; i++)
        ((float *)t.second.host)[i] *= ((float *)t.second.host)[i];
    *(float *)t.scale.host = 0.37f;
    *(int64_t *)t.step.host = 1 + twins_below(twins, 100000);
    twin_upload(twins, &t.second);
    twin_upload(twins, &t.scale);
    twin_upload(twins, &t.step);
    return t;
}

static void step_run(Twins *twins, StepCase c, const StepTwins *t, bool adamw, bool cuda)
{
    const Stream stream = cuda ? twins->cuda : twins->cpu;
    const SgdStep sgd = {
        .count = c.count,
        .dtype = c.dtype,
        .lr = 0.03,
        .momentum = c.momentum ? 0.9 : 0.0,
        .weight_decay = 0.01,
        .grad = skipped(ON(cuda, t->grad), DTYPE_F32, c.skip),
        .grad_scale = c.scaled ? ON(cuda, t->scale) : NULL,
        .param = skipped(ON(cuda, t->param), c.dtype, c.skip),
        .master = c.master ? skipped(ON(cuda, t->master), DTYPE_F32, c.skip) : NULL,
        .momentum_buffer = c.momentum ? skipped(ON(cuda, t->first), DTYPE_F32, c.skip) : NULL};
    const AdamwStep adam = {.count = c.count,
                            .dtype = c.dtype,
                            .lr = 1e-2,
                            .beta1 = 0.9,
                            .beta2 = 0.95,
                            .eps = 1e-8,
                            .weight_decay = 0.1,
                            .step = *(const int64_t *)t->step.host,
                            .step_device = c.momentum ? ON(cuda, t->step) : NULL,
                            .grad = sgd.grad,
                            .grad_scale = sgd.grad_scale,
                            .param = sgd.param,
                            .master = sgd.master,
                            .exp_avg = skipped(ON(cuda, t->first), DTYPE_F32, c.skip),
                            .exp_avg_sq = skipped(ON(cuda, t->second), DTYPE_F32, c.skip)};
    if (adamw)
        adamw_step(&adam, stream);
    else
        sgd_step(&sgd, stream);
}

static void step_case(Twins *twins, StepCase c)
{
    const TwinsMark mark = twins_mark(twins);
    StepTwins t = step_twins(twins, c);
    for (int adamw = 0; adamw < 2; adamw++) {
        snprintf(twins->text, sizeof(twins->text), "%s %s %lld%s%s%s%s",
                 adamw ? "adamw_step" : "sgd_step", dtype_row(c.dtype)->name, (long long)c.count,
                 c.skip ? " unaligned" : "", c.master ? " master" : "", c.scaled ? " scaled" : "",
                 c.momentum ? " momentum or device step" : "");
        step_run(twins, c, &t, adamw, false);
        step_run(twins, c, &t, adamw, true);
        twin_expect_same(twins, &t.param, c.dtype, "param");
        twin_expect_same(twins, &t.master, DTYPE_F32, "master");
        twin_expect_same(twins, &t.first, DTYPE_F32, "momentum or exp_avg");
        twin_expect_same(twins, &t.second, DTYPE_F32, "exp_avg_sq");
    }
    twins_release(twins, mark);
}

static void test_optimizers(void **state)
{
    (void)state;
    Twins twins = twins_create();
    for (size_t d = 0; d < COUNT_OF(dtypes); d++)
        for (size_t n = 0; n < COUNT_OF(counts); n++)
            for (int flags = 0; flags < 16; flags++)
                step_case(&twins, (StepCase){.dtype = dtypes[d],
                                             .count = counts[n],
                                             .skip = flags & 1,
                                             .master = flags & 2,
                                             .scaled = flags & 4,
                                             .momentum = flags & 8});
    twins_destroy(&twins);
}

// The tail of a training step: gradients of a norm and an embedding, their squares, the clip
// factor, AdamW with its number on the device.
typedef struct Tail {
    Twin x, weight, rstd, dy, dx, dweight, norm_scratch, ids, dtable, sort_scratch, sum, scratch;
    Twin scale, step, table, first, second;
} Tail;

enum { TAIL_ROWS = 300, TAIL_HIDDEN = 256, TAIL_VOCAB = 1000 };

static Tail tail_create(Twins *twins)
{
    const int64_t elements = TAIL_ROWS * TAIL_HIDDEN, table = TAIL_VOCAB * TAIL_HIDDEN;
    return (Tail){.x = twin_normals(twins, elements, DTYPE_BF16, 1),
                  .weight = twin_normals(twins, TAIL_HIDDEN, DTYPE_BF16, 1),
                  .rstd = twin_normals(twins, TAIL_ROWS, DTYPE_F32, 1),
                  .dy = twin_normals(twins, elements, DTYPE_BF16, 1),
                  .dx = twin_create(twins, elements, 2),
                  .dweight = twin_create(twins, TAIL_HIDDEN, 4),
                  .norm_scratch = twin_create(
                      twins, (int64_t)rms_norm_backward_scratch_bytes(TAIL_ROWS, TAIL_HIDDEN), 1),
                  .ids = twin_map(twins, TAIL_ROWS, TAIL_VOCAB, 0.1),
                  .dtable = twin_create(twins, table, 4),
                  .sort_scratch = twin_create(
                      twins, (int64_t)embedding_backward_scratch_bytes(TAIL_ROWS, TAIL_VOCAB), 1),
                  .sum = twin_create(twins, 1, sizeof(double)),
                  .scratch = twin_create(twins, (int64_t)sum_squares_scratch_bytes(table), 1),
                  .scale = twin_create(twins, 1, 4),
                  .step = twin_create(twins, 1, sizeof(int64_t)),
                  .table = twin_normals(twins, table, DTYPE_BF16, 1),
                  .first = twin_normals(twins, table, DTYPE_F32, 0),
                  .second = twin_normals(twins, table, DTYPE_F32, 0)};
}

static void tail_enqueue(const Tail *t, bool cuda, Stream stream)
{
    const RmsNormBackward norm = {.rows = TAIL_ROWS,
                                  .hidden = TAIL_HIDDEN,
                                  .dtype = DTYPE_BF16,
                                  .x = ON(cuda, t->x),
                                  .weight = ON(cuda, t->weight),
                                  .rstd = ON(cuda, t->rstd),
                                  .dy = ON(cuda, t->dy),
                                  .dx = ON(cuda, t->dx),
                                  .dweight = ON(cuda, t->dweight),
                                  .scratch = ON(cuda, t->norm_scratch)};
    const EmbeddingBackward embedding = {.tokens = TAIL_ROWS,
                                         .hidden = TAIL_HIDDEN,
                                         .vocab_count = TAIL_VOCAB,
                                         .dtype = DTYPE_BF16,
                                         .ids = ON(cuda, t->ids),
                                         .dy = ON(cuda, t->dx),
                                         .dtable = ON(cuda, t->dtable),
                                         .scratch = ON(cuda, t->sort_scratch)};
    SumSquares squares = {.count = TAIL_HIDDEN,
                          .dtype = DTYPE_F32,
                          .x = ON(cuda, t->dweight),
                          .sum = ON(cuda, t->sum),
                          .scratch = ON(cuda, t->scratch)};
    const ClipScale clip = {.sum = squares.sum, .max_norm = 1.0, .scale = ON(cuda, t->scale)};
    const AdamwStep adamw = {.count = TAIL_VOCAB * TAIL_HIDDEN,
                             .dtype = DTYPE_BF16,
                             .lr = 1e-2,
                             .beta1 = 0.9,
                             .beta2 = 0.95,
                             .eps = 1e-8,
                             .weight_decay = 0.1,
                             .step_device = ON(cuda, t->step),
                             .grad = ON(cuda, t->dtable),
                             .grad_scale = ON(cuda, t->scale),
                             .param = ON(cuda, t->table),
                             .exp_avg = ON(cuda, t->first),
                             .exp_avg_sq = ON(cuda, t->second)};
    rms_norm_backward(&norm, stream);
    embedding_backward(&embedding, stream);
    sum_squares(&squares, stream);
    squares.count = TAIL_VOCAB * TAIL_HIDDEN;
    squares.x = ON(cuda, t->dtable);
    squares.accumulate = true;
    sum_squares(&squares, stream);
    clip_scale(&clip, stream);
    adamw_step(&adamw, stream);
}

static void test_graph_replays_a_step(void **state)
{
    (void)state;
    Twins twins = twins_create();
    snprintf(twins.text, sizeof(twins.text), "replayed step");
    assert_true(graph_supported(DEVICE_CUDA));
    Tail tail = tail_create(&twins);
    graph_begin(twins.cuda);
    tail_enqueue(&tail, true, twins.cuda);
    Graph graph = graph_end(twins.cuda);
    for (int64_t step = 1; step <= 3; step++) {
        *(int64_t *)tail.step.host = step;
        twin_upload(&twins, &tail.step);
        tail_enqueue(&tail, false, twins.cpu);
        graph_launch(&graph, twins.cuda);
    }
    twin_expect_same(&twins, &tail.dweight, DTYPE_F32, "dweight");
    twin_expect_same(&twins, &tail.dtable, DTYPE_F32, "dtable");
    twin_expect_same(&twins, &tail.scale, DTYPE_F32, "scale");
    twin_expect_same(&twins, &tail.table, DTYPE_BF16, "param");
    twin_expect_same(&twins, &tail.second, DTYPE_F32, "exp_avg_sq");
    graph_destroy(&graph);
    twins_destroy(&twins);
}

// An array whose last elements have no 32-bit index. Only the device holds it.
static void test_offsets_beyond_31_bits(void **state)
{
    (void)state;
    const int64_t count = ((int64_t)1 << 31) + 8195, tail = 4099;
    Twins twins = twins_create();
    snprintf(twins.text, sizeof(twins.text), "the end of %lld elements", (long long)count);
    uint16_t *x = ARENA_PUSH(twins.device, uint16_t, (uint64_t)count, MEMORY_SCRATCH);
    Twin end = twin_normals(&twins, tail, DTYPE_BF16, 1);
    Twin sum = twin_create(&twins, 1, sizeof(double));
    Twin piece = twin_create(&twins, 1, sizeof(double));
    double *scratch =
        ARENA_PUSH(twins.device, double, sum_squares_scratch_bytes(count) / 8, MEMORY_SCRATCH);
    device_fill(x, 0, (uint64_t)count * 2, twins.cuda);
    device_copy(x + count - tail, end.device, end.bytes, twins.cuda);
    AddRows add = {.count = tail, .dtype = DTYPE_BF16, .a = end.host, .b = end.host, .y = end.host};
    SumSquares squares = {
        .count = tail, .dtype = DTYPE_BF16, .x = end.host, .sum = sum.host, .scratch = piece.host};
    add_rows(&add, twins.cpu);
    sum_squares(&squares, twins.cpu);
    add.count = squares.count = count;
    add.a = add.b = add.y = x;
    squares.x = x;
    squares.sum = sum.device;
    squares.scratch = scratch;
    add_rows(&add, twins.cuda);
    sum_squares(&squares, twins.cuda);
    device_copy(end.device, x + count - tail, end.bytes, twins.cuda);
    twin_expect_same(&twins, &end, DTYPE_BF16, "y");
    twin_fetch(&twins, &sum); // in another order than the tail alone
    const double cpu = *(double *)sum.host, cuda = *(double *)sum.back;
    if (!(fabs(cpu - cuda) <= 1e-13 * cpu))
        fail_msg("%s: sum of squares %.17g, expected %.17g", twins.text, cuda, cpu);
    twins_destroy(&twins);
}

int main(void)
{
    if (!select_gpu())
        return EXIT_CODE_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_add_and_cast),
        cmocka_unit_test(test_sum_squares),
        cmocka_unit_test(test_optimizers),
        cmocka_unit_test(test_graph_replays_a_step),
        cmocka_unit_test(test_offsets_beyond_31_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
