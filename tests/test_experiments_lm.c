// The language model against PyTorch in float64 (tests/golden/lm): loss and every gradient, as one
// rank and as one that stands for several.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "experiments/model/lm_run.h"
#include "quant/safetensors.h"

// f32 sums of some tens of terms, through two blocks.
#define BOUND 2e-6

enum { PARTS = 3 };

typedef struct Model {
    Safetensors file;
    LmConfig config;
    LmParameters list;
    Mesh mesh;
    LmLayout layout;
    int64_t tokens;
    int64_t *offset; // [parameters] in the gathered copy
    int64_t room;
    float *values, *gradients; // [room], [PARTS][room]
} Model;

static void nothing(void *context, int unit, bool backward, Stream stream)
{
    (void)context;
    (void)unit;
    (void)backward;
    (void)stream;
}

static const void *value(void *context, int parameter)
{
    const Model *m = context;
    return m->values + m->offset[parameter];
}

static float *gradient(void *context, int parameter, int part)
{
    const Model *m = context;
    return m->gradients + part * m->room + m->offset[parameter];
}

static int64_t size_of(const Model *m, const char *name, int dim)
{
    const Tensor *tensor = safetensors_find(&m->file, name);
    assert_non_null(tensor);
    return tensor->shape[dim];
}

static void read_config(Model *m)
{
    m->config = (LmConfig){.layers = atoi(safetensors_metadata(&m->file, "layers")),
                           .dim = size_of(m, "lm_head.weight", 1),
                           .vocab = size_of(m, "lm_head.weight", 0),
                           .dtype = DTYPE_F32,
                           .eps = 1e-6f};
    int top_k = atoi(safetensors_metadata(&m->file, "top_k"));
    if (top_k == 0) {
        m->config.inner = size_of(m, "model.layers.0.mlp.up_proj.weight", 0);
        return;
    }
    m->config.moe =
        (MoeConfig){.hidden = m->config.dim,
                    .inner = size_of(m, "model.layers.0.mlp.experts.down_proj", 2),
                    .experts = (int)size_of(m, "model.layers.0.mlp.experts.down_proj", 0),
                    .top_k = top_k,
                    .score = ROUTER_SOFTMAX,
                    .normalise_top_k = true,
                    .route_scale = 1,
                    .dtype = DTYPE_F32};
}

static Model open_model(const char *name)
{
    Model m = {0};
    Error error = {0};
    char path[512], tokens[32];
    snprintf(path, sizeof path, "%s/lm/%s.safetensors", getenv("MESHWORK_GOLDEN"), name);
    assert_true(safetensors_open(path, &m.file, &error));
    read_config(&m);
    m.tokens = size_of(&m, "ids", 0);
    m.list = lm_parameters_create(&m.config);
    m.offset = calloc((size_t)m.list.count, sizeof(int64_t));
    for (int i = 0; i < m.list.count; i++) {
        const LmParameter *p = &m.list.parameter[i];
        m.offset[i] = m.room;
        m.room += p->role == LM_ROUTER ? moe_router_rows(&m.config.moe) * m.config.dim
                                       : tensor_elements(&p->whole);
    }
    m.values = calloc((size_t)m.room, sizeof(float));
    m.gradients = calloc((size_t)m.room * PARTS, sizeof(float));
    for (int i = 0; i < m.list.count; i++) {
        const Tensor *tensor = safetensors_find(&m.file, m.list.parameter[i].name);
        assert_non_null(tensor);
        tensor_to_f32(tensor, 0, tensor_elements(tensor), m.values + m.offset[i]);
    }
    snprintf(tokens, sizeof tokens, "%lld", (long long)m.tokens);
    assert_true(mesh_parse("dp=1", 1, &m.mesh, &error));
    return m;
}

static void close_model(Model *m)
{
    free(m->offset);
    free(m->values);
    free(m->gradients);
    lm_layout_destroy(&m->layout);
    lm_parameters_destroy(&m->list);
    safetensors_close(&m->file);
}

static void expect_near(const char *name, const float *ours, const Tensor *expected)
{
    double worst = 0, scale = 0;
    assert_non_null(expected);
    for (int64_t i = 0; i < tensor_elements(expected); i++) {
        double theirs = tensor_value(expected, i);
        worst = fmax(worst, fabs(ours[i] - theirs));
        scale = fmax(scale, fabs(theirs));
    }
    if (!(worst <= BOUND * scale))
        fail_msg("%s: error %.3g of %.3g", name, worst, scale);
}

static void run_model(const char *name, int parts)
{
    Model m = open_model(name);
    char tokens[32];
    Error error = {0};
    const int64_t part_tokens[PARTS] = {5, 0, m.tokens - 5};
    const int group_of_part[PARTS] = {0, 1, 0};
    Comm alone = {.rank = 0, .ranks = 1};
    snprintf(tokens, sizeof tokens, "%lld", (long long)m.tokens);
    assert_true(lm_layout_create(
        &(LmLayoutRequest){
            .mesh = &m.mesh, .config = &m.config, .parameters = &m.list, .tokens = tokens},
        &m.layout, &error));
    Arena *arena = arena_create(MEMORY_DEVICE, DEVICE_CPU);
    Stream stream = stream_create(DEVICE_CPU);
    LmSettings settings = {.layout = &m.layout,
                           .store = {nothing, nothing, value, gradient, &m},
                           .tp = alone,
                           .experts = alone,
                           .tokens = m.tokens,
                           .parts = parts,
                           .groups = 1,
                           .tokens_of_step = m.tokens,
                           .align = 4,
                           .threads = 1,
                           .exact = true,
                           .transport = EP_LOCAL,
                           .device = DEVICE_CPU,
                           .arena = arena};
    if (parts > 1) {
        settings.part_tokens = part_tokens;
        settings.groups = 2;
        settings.group_of_part = group_of_part;
    }
    Lm *lm = lm_create(&settings);
    lm_set_tokens(lm, safetensors_find(&m.file, "ids")->data,
                  safetensors_find(&m.file, "targets")->data, stream);
    lm_forward(lm, false, stream);
    double loss = 0;
    for (int part = 0; part < parts; part++)
        loss += lm_loss_sum(lm, part, stream);
    float mean = (float)(loss / (double)m.tokens);
    expect_near("loss", &mean, safetensors_find(&m.file, "expect.loss"));
    lm_backward(lm, false, stream);
    for (int64_t i = 0; i < m.room; i++)
        for (int part = 1; part < parts; part++)
            m.gradients[i] += m.gradients[part * m.room + i];
    for (int i = 0; i < m.list.count; i++) {
        char what[96];
        snprintf(what, sizeof what, "expect.grad.%s", m.list.parameter[i].name);
        expect_near(what, m.gradients + m.offset[i], safetensors_find(&m.file, what));
    }
    lm_destroy(lm);
    stream_destroy(stream);
    arena_destroy(arena);
    close_model(&m);
}

static void test_golden(void **state)
{
    (void)state;
    run_model("mlp", 1);
    run_model("moe", 1);
}

static void test_golden_in_parts(void **state)
{
    (void)state;
    run_model("mlp", PARTS);
    run_model("moe", PARTS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_golden_in_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
