// SGD and AdamW: the stated steps bit for bit, on parameters of both types with and without a
// master copy; scaled gradients; what the factors are; NaN stays in its element; any number of
// threads. Against PyTorch: test_kernels_torch.c.
#include "kernels/optimizer.h"
#include "tests/kernels_data.h"

#include <omp.h>

static const int64_t sizes[] = {0, 1, 7, 511, 512, 513, 5000, 70001};

// Everything a step reads and writes; `param` is master rounded where there is a master.
typedef struct Case {
    int64_t count;
    DType dtype;
    void *param;
    float *master, *grad, *first, *second; // first: momentum or m
    float scale;
    bool scaled;
} Case;

static Case make_case(Data *data, int64_t count)
{
    Case c = {.count = count,
              .dtype = data_below(data, 2) ? DTYPE_F32 : DTYPE_BF16,
              .scale = 0.25f + (float)data_below(data, 100) / 128.0f,
              .scaled = data_below(data, 2)};
    c.param = data_normals(data, count, c.dtype, 1.0f);
    c.grad = data_normals(data, count, DTYPE_F32, 1.0f);
    c.first = data_normals(data, count, DTYPE_F32, 0.5f);
    c.second = data_normals(data, count, DTYPE_F32, 0.5f);
    for (int64_t i = 0; i < count; i++)
        c.second[i] *= c.second[i];
    if (data_below(data, 2)) {
        c.master = data_normals(data, count, DTYPE_F32, 1.0f);
        for (int64_t i = 0; i < count; i++)
            put_value(c.param, c.dtype, i, c.master[i]);
    }
    return c;
}

static void *copy_of(Data *data, const void *from, int64_t count, uint64_t element_bytes)
{
    void *copy = data_poisoned(data, count, element_bytes);
    if (count)
        memcpy(copy, from, (size_t)count * element_bytes);
    return copy;
}

static Case case_copy(Data *data, const Case *c)
{
    Case copy = *c;
    copy.param = copy_of(data, c->param, c->count, dtype_bytes(c->dtype, 1));
    copy.master = c->master ? copy_of(data, c->master, c->count, sizeof(float)) : NULL;
    copy.first = copy_of(data, c->first, c->count, sizeof(float));
    copy.second = copy_of(data, c->second, c->count, sizeof(float));
    return copy;
}

static SgdStep sgd_args(const Case *c, bool momentum)
{
    return (SgdStep){.count = c->count,
                     .dtype = c->dtype,
                     .lr = 0.03,
                     .momentum = momentum ? 0.9 : 0.0,
                     .weight_decay = 0.01,
                     .grad = c->grad,
                     .grad_scale = c->scaled ? &c->scale : NULL,
                     .param = c->param,
                     .master = c->master,
                     .momentum_buffer = momentum ? c->first : NULL};
}

static AdamwStep adamw_args(const Case *c, int64_t step)
{
    return (AdamwStep){.count = c->count,
                       .dtype = c->dtype,
                       .lr = 1e-2,
                       .beta1 = 0.9,
                       .beta2 = 0.95,
                       .eps = 1e-8,
                       .weight_decay = 0.1,
                       .step = step,
                       .grad = c->grad,
                       .grad_scale = c->scaled ? &c->scale : NULL,
                       .param = c->param,
                       .master = c->master,
                       .exp_avg = c->first,
                       .exp_avg_sq = c->second};
}

static float parameter(const Case *c, int64_t i)
{
    return c->master ? c->master[i] : value_of(c->param, c->dtype, i);
}

// `after` holds the parameter that `value` gives, rounded.
static void expect_parameter(const Case *after, int64_t i, float value)
{
    float narrowed = after->dtype == DTYPE_F32 ? value : f32_from_bf16(bf16_from_f32(value));
    expect_same(value_of(after->param, after->dtype, i), narrowed, "param", i);
    if (after->master)
        expect_same(after->master[i], value, "master", i);
}

static void sgd_makes_the_stated_steps(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 40; round++) {
        int mark = data.blocks;
        bool momentum = data_below(&data, 2);
        Case before = make_case(&data, sizes[data_below(&data, COUNT_OF(sizes))]);
        Case after = case_copy(&data, &before);
        SgdStep args = sgd_args(&after, momentum);
        sgd_step(&args, CPU);
        for (int64_t i = 0; i < before.count; i++) {
            volatile float g = before.scaled ? before.scale * before.grad[i] : before.grad[i];
            float p = parameter(&before, i), b = fmaf(0.01f, p, g);
            if (momentum) {
                b = fmaf(0.9f, before.first[i], b);
                expect_same(after.first[i], b, "momentum", i);
            }
            expect_parameter(&after, i, fmaf(-0.03f, b, p));
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

static void adamw_makes_the_stated_steps(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 40; round++) {
        int mark = data.blocks;
        int64_t step = 1 + data_below(&data, round % 2 ? 5 : 1000000);
        Case before = make_case(&data, sizes[data_below(&data, COUNT_OF(sizes))]);
        Case after = case_copy(&data, &before);
        AdamwStep args = adamw_args(&after, step);
        const AdamwFactors f = adamw_factors(&args, step);
        if (data_below(&data, 2)) {
            args.step = -1; // not to be used
            args.step_device = &step;
        }
        adamw_step(&args, CPU);
        for (int64_t i = 0; i < before.count; i++) {
            volatile float g = before.scaled ? before.scale * before.grad[i] : before.grad[i];
            volatile float apart = g - before.first[i], kept = parameter(&before, i) * f.keep;
            volatile float part = f.blend2 * g, old = f.beta2 * before.second[i];
            float m = fmaf(f.blend1, apart, before.first[i]), v = fmaf(part, g, old);
            volatile float root = sqrtf(v) / f.correction, below = root + f.eps;
            volatile float ratio = m / below;
            expect_same(after.first[i], m, "exp_avg", i);
            expect_same(after.second[i], v, "exp_avg_sq", i);
            expect_parameter(&after, i, fmaf(-f.step_size, ratio, kept));
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

// One rounding to f32 and what squaring loses in f64 are all that is between them and long double.
static void factors_are_rounded_once(void **state)
{
    (void)state;
    const int64_t steps[] = {1, 2, 3, 7, 100, 1023, 1000000, 1000000000000};
    for (size_t s = 0; s < COUNT_OF(steps); s++) {
        AdamwStep args = {
            .lr = 3e-4, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.1};
        AdamwFactors f = adamw_factors(&args, steps[s]);
        long double rest1 = 1 - powl(args.beta1, steps[s]), rest2 = 1 - powl(args.beta2, steps[s]);
        double size = args.lr / (double)rest1, correction = sqrt((double)rest2);
        expect_near(f.step_size, size, 0.501 * FLT_EPSILON * size, "step_size", steps[s]);
        expect_near(f.correction, correction, 0.501 * FLT_EPSILON * correction, "correction",
                    steps[s]);
        expect_same(f.keep, (float)(1 - 3e-4 * 0.1), "keep", steps[s]);
        expect_same(f.blend1, (float)(1 - 0.9), "blend1", steps[s]);
        expect_same(f.blend2, (float)(1 - 0.999), "blend2", steps[s]);
    }
}

static void threads_change_nothing(void **state)
{
    (void)state;
    Data data = data_create();
    int threads = omp_get_max_threads();
    Case one = make_case(&data, 70001), many = case_copy(&data, &one);
    for (int run = 0; run < 2; run++) {
        omp_set_num_threads(run ? 5 : 1);
        AdamwStep adamw = adamw_args(run ? &many : &one, 3);
        adamw_step(&adamw, CPU);
        SgdStep sgd = sgd_args(run ? &many : &one, true);
        sgd_step(&sgd, CPU);
    }
    omp_set_num_threads(threads);
    size_t count = (size_t)one.count;
    assert_memory_equal(one.param, many.param, dtype_bytes(one.dtype, count));
    assert_memory_equal(one.first, many.first, count * sizeof(float));
    assert_memory_equal(one.second, many.second, count * sizeof(float));
    data_destroy(&data);
}

// NaN and infinity change their element and no other; a zero gradient moves nothing but decay.
static void extremes(void **state)
{
    (void)state;
    float grad[4] = {NAN, INFINITY, 0.0f, 1e30f};
    float param[4] = {1, 1, 1, 1}, m[4] = {0}, v[4] = {0}, sgd[4] = {1, 1, 1, 1};
    AdamwStep adamw = {.count = 4,
                       .dtype = DTYPE_F32,
                       .lr = 0.1,
                       .beta1 = 0.9,
                       .beta2 = 0.99,
                       .eps = 1e-8,
                       .step = 1,
                       .grad = grad,
                       .param = param,
                       .exp_avg = m,
                       .exp_avg_sq = v};
    adamw_step(&adamw, CPU);
    assert_true(isnan(param[0]) && isnan(param[1]));
    expect_same(param[2], 1.0f, "param without gradient", 2);
    expect_same(param[3], 1.0f, "param, v overflows", 3);
    SgdStep plain = {.count = 4, .dtype = DTYPE_F32, .lr = 0.5, .grad = grad, .param = sgd};
    sgd_step(&plain, CPU);
    assert_true(isnan(sgd[0]));
    expect_same(sgd[1], -INFINITY, "param, infinite gradient", 1);
    expect_same(sgd[2], 1.0f, "param without gradient", 2);
    expect_same(sgd[3], -5e29f, "param, large gradient", 3);
}

static void costs(void **state)
{
    (void)state;
    float value = 0;
    SgdStep sgd = {.count = 10, .dtype = DTYPE_BF16};
    expect_near(sgd_step_cost(&sgd).bytes, 10 * (2 + 2 + 4), 0, "sgd", 0);
    sgd.momentum_buffer = &value;
    expect_near(sgd_step_cost(&sgd).bytes, 10 * (2 + 2 + 4 + 8), 0, "sgd, momentum", 0);
    AdamwStep adamw = {.count = 10, .dtype = DTYPE_BF16, .master = &value};
    expect_near(adamw_step_cost(&adamw).bytes, 10 * (8 + 2 + 4 + 16), 0, "adamw", 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sgd_makes_the_stated_steps),
        cmocka_unit_test(adamw_makes_the_stated_steps),
        cmocka_unit_test(factors_are_rounded_once),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(extremes),
        cmocka_unit_test(costs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
