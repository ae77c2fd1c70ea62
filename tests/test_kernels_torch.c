// RMS norm, embedding, cross-entropy, the optimisers and clipping against what PyTorch computed
// (golden/lm_kernels): the formulas and options mean the same there. Bounds are a few f32 roundings
// of the largest element; how close a kernel is to its formula its own test says.
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/optimizer.h"
#include "kernels/rms_norm.h"
#include "quant/safetensors.h"
#include "tests/kernels_data.h"

typedef struct Golden {
    Safetensors file;
    Data data;
} Golden;

static Golden golden_open(void)
{
    const char *folder = getenv("MESHWORK_GOLDEN");
    char path[512];
    Golden golden = {.data = data_create()};
    Error error = {0};
    snprintf(path, sizeof path, "%s/lm_kernels/lm_kernels.safetensors",
             folder ? folder : "tests/golden");
    if (!safetensors_open(path, &golden.file, &error))
        fail_msg("exit code %d: %s", error.exit_code, error.what);
    return golden;
}

static void golden_close(Golden *golden)
{
    safetensors_close(&golden->file);
    data_destroy(&golden->data);
}

static const Tensor *golden_find(const Golden *golden, const char *name)
{
    const Tensor *tensor = safetensors_find(&golden->file, name);
    if (!tensor)
        fail_msg("the golden file has no %s", name);
    return tensor;
}

// The file's tensors need not be aligned.
static void *golden_copy(Golden *golden, const char *name)
{
    const Tensor *tensor = golden_find(golden, name);
    void *copy = data_poisoned(&golden->data, (int64_t)tensor_bytes(tensor), 1);
    memcpy(copy, tensor->data, tensor_bytes(tensor));
    return copy;
}

static double golden_option(const Golden *golden, const char *name, const char *option)
{
    char key[64];
    snprintf(key, sizeof key, "%s.%s", name, option);
    const char *text = safetensors_metadata(&golden->file, key);
    return text ? strtod(text, NULL) : 0.0;
}

// |ours - expected| <= share * largest |expected|, elements first .. first + count of the tensor.
static void expect_golden(const Golden *golden, const char *name, int64_t first, int64_t count,
                          const float *ours, double share)
{
    const Tensor *expected = golden_find(golden, name);
    double largest = 0;
    assert_true(first + count <= tensor_elements(expected));
    for (int64_t i = 0; i < count; i++)
        largest = fmax(largest, fabs(tensor_value(expected, first + i)));
    for (int64_t i = 0; i < count; i++)
        expect_near(ours[i], tensor_value(expected, first + i), share * largest, name, first + i);
}

static void norm_is_that_of_torch(void **state)
{
    (void)state;
    Golden golden = golden_open();
    const Tensor *shape = golden_find(&golden, "norm.x");
    int64_t rows = shape->shape[0], hidden = shape->shape[1];
    float *y = data_poisoned(&golden.data, rows * hidden, 4);
    float *rstd = data_poisoned(&golden.data, rows, 4);
    float *dweight = data_poisoned(&golden.data, hidden, 4);
    uint64_t scratch = rms_norm_backward_scratch_bytes(rows, hidden);
    RmsNormForward forward = {.rows = rows,
                              .hidden = hidden,
                              .dtype = DTYPE_F32,
                              .eps = (float)golden_option(&golden, "norm", "eps"),
                              .x = golden_copy(&golden, "norm.x"),
                              .weight = golden_copy(&golden, "norm.weight"),
                              .y = y,
                              .rstd_out = rstd};
    rms_norm_forward(&forward, CPU);
    expect_golden(&golden, "norm.y", 0, rows * hidden, y, 1e-6);
    RmsNormBackward backward = {.rows = rows,
                                .hidden = hidden,
                                .dtype = DTYPE_F32,
                                .x = forward.x,
                                .weight = forward.weight,
                                .rstd = rstd,
                                .dy = golden_copy(&golden, "norm.dy"),
                                .dx = y,
                                .dweight = dweight,
                                .scratch = data_poisoned(&golden.data, (int64_t)scratch, 1)};
    rms_norm_backward(&backward, CPU);
    expect_golden(&golden, "norm.x.grad", 0, rows * hidden, y, 1e-6);
    expect_golden(&golden, "norm.weight.grad", 0, hidden, dweight, 1e-6);
    golden_close(&golden);
}

static void embedding_is_that_of_torch(void **state)
{
    (void)state;
    Golden golden = golden_open();
    const Tensor *shape = golden_find(&golden, "embedding.table");
    int64_t vocab = shape->shape[0], hidden = shape->shape[1];
    int64_t tokens = tensor_elements(golden_find(&golden, "embedding.ids"));
    float *y = data_poisoned(&golden.data, tokens * hidden, 4);
    float *dtable = data_poisoned(&golden.data, vocab * hidden, 4);
    uint64_t scratch = embedding_backward_scratch_bytes(tokens, vocab);
    EmbeddingForward forward = {.tokens = tokens,
                                .hidden = hidden,
                                .vocab_count = vocab,
                                .dtype = DTYPE_F32,
                                .ids = golden_copy(&golden, "embedding.ids"),
                                .table = golden_copy(&golden, "embedding.table"),
                                .y = y};
    embedding_forward(&forward, CPU);
    expect_golden(&golden, "embedding.y", 0, tokens * hidden, y, 0);
    EmbeddingBackward backward = {.tokens = tokens,
                                  .hidden = hidden,
                                  .vocab_count = vocab,
                                  .dtype = DTYPE_F32,
                                  .ids = forward.ids,
                                  .dy = golden_copy(&golden, "embedding.dy"),
                                  .dtable = dtable,
                                  .scratch = data_poisoned(&golden.data, (int64_t)scratch, 1)};
    embedding_backward(&backward, CPU);
    expect_golden(&golden, "embedding.table.grad", 0, vocab * hidden, dtable, 1e-6);
    golden_close(&golden);
}

static void loss_is_that_of_torch(void **state)
{
    (void)state;
    Golden golden = golden_open();
    const Tensor *shape = golden_find(&golden, "loss.logits");
    int64_t rows = shape->shape[0], vocab = shape->shape[1];
    float *logits = golden_copy(&golden, "loss.logits");
    int32_t *targets = golden_copy(&golden, "loss.targets");
    float *row_max = data_poisoned(&golden.data, rows, 4);
    float *row_sum = data_poisoned(&golden.data, rows, 4);
    float *target_logit = data_poisoned(&golden.data, rows, 4);
    float *loss = data_poisoned(&golden.data, rows, 4);
    double totals[CROSS_ENTROPY_TOTALS];
    CrossEntropyRowMax largest = {.rows = rows,
                                  .vocab_count = vocab,
                                  .dtype = DTYPE_F32,
                                  .logits = logits,
                                  .row_max = row_max};
    cross_entropy_row_max(&largest, CPU);
    CrossEntropyRowSum sum = {.rows = rows,
                              .vocab_count = vocab,
                              .dtype = DTYPE_F32,
                              .logits = logits,
                              .row_max = row_max,
                              .targets = targets,
                              .row_sum = row_sum,
                              .target_logit = target_logit};
    cross_entropy_row_sum(&sum, CPU);
    CrossEntropyLoss losses = {.rows = rows,
                               .row_max = row_max,
                               .row_sum = row_sum,
                               .target_logit = target_logit,
                               .targets = targets,
                               .loss = loss,
                               .totals = totals};
    cross_entropy_loss(&losses, CPU);
    expect_golden(&golden, "loss.losses", 0, rows, loss, 1e-6);
    float mean = (float)(totals[CROSS_ENTROPY_SUM] / totals[CROSS_ENTROPY_COUNT]);
    expect_golden(&golden, "loss.mean", 0, 1, &mean, 1e-6);
    CrossEntropyBackward backward = {.rows = rows,
                                     .vocab_count = vocab,
                                     .dtype = DTYPE_F32,
                                     .logits = logits,
                                     .row_max = row_max,
                                     .row_sum = row_sum,
                                     .targets = targets,
                                     .scale = 1.0f,
                                     .count = &totals[CROSS_ENTROPY_COUNT],
                                     .dlogits = logits};
    cross_entropy_backward(&backward, CPU);
    expect_golden(&golden, "loss.logits.grad", 0, rows * vocab, logits, 2e-6);
    golden_close(&golden);
}

// Runs the case's steps and compares the parameters after each with PyTorch's in f64 and f32.
static void expect_trajectory(Golden *golden, const char *name, bool adamw)
{
    const Tensor *shape = golden_find(golden, "optimizer.grads");
    int64_t steps = shape->shape[0], count = shape->shape[1];
    const float *grads = golden_copy(golden, "optimizer.grads");
    float *param = golden_copy(golden, "optimizer.param"), *state[2];
    char in_f32[64];
    snprintf(in_f32, sizeof in_f32, "%s.f32", name);
    for (int i = 0; i < 2; i++)
        state[i] = data_normals(&golden->data, count, DTYPE_F32, 0.0f);
    double momentum = golden_option(golden, name, "momentum");
    for (int64_t step = 0; step < steps; step++) {
        SgdStep sgd = {.count = count,
                       .dtype = DTYPE_F32,
                       .lr = golden_option(golden, name, "lr"),
                       .momentum = momentum,
                       .weight_decay = golden_option(golden, name, "weight_decay"),
                       .grad = grads + step * count,
                       .param = param,
                       .momentum_buffer = momentum != 0.0 ? state[0] : NULL};
        AdamwStep adam = {.count = count,
                          .dtype = DTYPE_F32,
                          .lr = sgd.lr,
                          .beta1 = golden_option(golden, name, "beta1"),
                          .beta2 = golden_option(golden, name, "beta2"),
                          .eps = golden_option(golden, name, "eps"),
                          .weight_decay = sgd.weight_decay,
                          .step = step + 1,
                          .grad = sgd.grad,
                          .param = param,
                          .exp_avg = state[0],
                          .exp_avg_sq = state[1]};
        if (adamw)
            adamw_step(&adam, CPU);
        else
            sgd_step(&sgd, CPU);
        double share = (double)(step + 4) * FLT_EPSILON;
        expect_golden(golden, name, step * count, count, param, share);
        expect_golden(golden, in_f32, step * count, count, param, 2 * share);
    }
}

static void optimizers_are_those_of_torch(void **state)
{
    (void)state;
    Golden golden = golden_open();
    expect_trajectory(&golden, "sgd", false);
    expect_trajectory(&golden, "sgd-momentum", false);
    expect_trajectory(&golden, "adamw", true);
    expect_trajectory(&golden, "adamw-eps", true);
    golden_close(&golden);
}

// The gradients of several parameters are clipped together; the factor acts where a step reads
// them: with lr -1, parameters that start at zero become the clipped gradients.
static void clipping_is_that_of_torch(void **state)
{
    (void)state;
    static const char *const cases[] = {"below", "above"};
    Golden golden = golden_open();
    const Tensor *shape = golden_find(&golden, "optimizer.grads");
    int64_t arrays = shape->shape[0], count = shape->shape[1];
    const float *grads = golden_copy(&golden, "optimizer.grads");
    double sum = 0, scratch;
    assert_int_equal(sum_squares_scratch_bytes(count), sizeof scratch);
    for (int64_t array = 0; array < arrays; array++) {
        SumSquares squares = {.count = count,
                              .dtype = DTYPE_F32,
                              .x = grads + array * count,
                              .sum = &sum,
                              .accumulate = true,
                              .scratch = &scratch};
        sum_squares(&squares, CPU);
    }
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char name[32];
        float scale, norm;
        ClipScale clip = {.sum = &sum,
                          .max_norm = golden_option(&golden, "clip", cases[i]),
                          .scale = &scale,
                          .norm = &norm};
        clip_scale(&clip, CPU);
        expect_golden(&golden, "clip.norm", 0, 1, &norm, FLT_EPSILON);
        float *param = data_normals(&golden.data, arrays * count, DTYPE_F32, 0.0f);
        SgdStep sgd = {.count = arrays * count,
                       .dtype = DTYPE_F32,
                       .lr = -1.0,
                       .grad = grads,
                       .grad_scale = &scale,
                       .param = param};
        sgd_step(&sgd, CPU);
        snprintf(name, sizeof name, "clip.%s", cases[i]);
        expect_golden(&golden, name, 0, arrays * count, param, FLT_EPSILON);
    }
    golden_close(&golden);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norm_is_that_of_torch),
        cmocka_unit_test(embedding_is_that_of_torch),
        cmocka_unit_test(loss_is_that_of_torch),
        cmocka_unit_test(optimizers_are_those_of_torch),
        cmocka_unit_test(clipping_is_that_of_torch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
