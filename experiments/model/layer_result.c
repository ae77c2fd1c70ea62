// layer_result.c -- the whole result of a layer, put together on rank 0 and written to a file.
#include "experiments/model/layer.h"
#include "parallel/shard.h"

#include <stdlib.h>
#include <string.h>

static const char *const output_names[LAYER_OUTPUTS] = {
    [OUTPUT_Y] = "y",
    [OUTPUT_EXPERT_OF_TOKEN] = "expert_of_token",
    [OUTPUT_GRAD_X] = "grad.x",
    [OUTPUT_GRAD_ROUTER] = "grad.router",
    [OUTPUT_GRAD_W1] = "grad.w1",
    [OUTPUT_GRAD_W3] = "grad.w3",
    [OUTPUT_GRAD_W2] = "grad.w2",
    [OUTPUT_GRAD_SHARED_W1] = "grad.shared_w1",
    [OUTPUT_GRAD_SHARED_W3] = "grad.shared_w3",
    [OUTPUT_GRAD_SHARED_W2] = "grad.shared_w2",
    [OUTPUT_GRAD_SHARED_GATE] = "grad.shared_gate",
};

const char *layer_output_name(LayerOutput output)
{
    return output_names[output];
}

LayerResult layer_result_create(const LayerSource *source, bool forward_only)
{
    const MoeConfig *c = &source->config;
    int64_t shared = c->shared_inner, gate = c->shared_gate ? 1 : 0;
    const Tensor shapes[LAYER_OUTPUTS] = {
        [OUTPUT_Y] = {NULL, c->dtype, 2, {source->tokens, c->hidden}},
        [OUTPUT_EXPERT_OF_TOKEN] = {NULL, DTYPE_I64, 2, {source->tokens, c->top_k}},
        [OUTPUT_GRAD_X] = {NULL, c->dtype, 2, {source->tokens, c->hidden}},
        [OUTPUT_GRAD_ROUTER] = {NULL, c->dtype, 2, {c->experts, c->hidden}},
        [OUTPUT_GRAD_W1] = {NULL, c->dtype, 3, {c->experts, c->inner, c->hidden}},
        [OUTPUT_GRAD_W3] = {NULL, c->dtype, 3, {c->experts, c->inner, c->hidden}},
        [OUTPUT_GRAD_W2] = {NULL, c->dtype, 3, {c->experts, c->hidden, c->inner}},
        [OUTPUT_GRAD_SHARED_W1] = {NULL, c->dtype, 2, {shared, c->hidden}},
        [OUTPUT_GRAD_SHARED_W3] = {NULL, c->dtype, 2, {shared, c->hidden}},
        [OUTPUT_GRAD_SHARED_W2] = {NULL, c->dtype, 2, {shared ? c->hidden : 0, shared}},
        [OUTPUT_GRAD_SHARED_GATE] = {NULL, c->dtype, 2, {gate, c->hidden}},
    };
    LayerResult result = {0};
    for (int i = 0; i < LAYER_OUTPUTS; i++) {
        bool gradient = i >= OUTPUT_GRAD_X, always = i == OUTPUT_Y || i == OUTPUT_GRAD_X;
        result.tensor[i] = shapes[i];
        if ((gradient && forward_only) || (tensor_elements(&shapes[i]) == 0 && !always))
            continue;
        uint64_t bytes = tensor_bytes(&shapes[i]);
        result.tensor[i].data = malloc(bytes ? bytes : 1);
        CHECK(result.tensor[i].data != NULL, EXIT_CODE_HARDWARE, "use --no-check and no --save",
              "no memory for %s, %llu bytes", output_names[i], (unsigned long long)bytes);
    }
    return result;
}

void layer_result_destroy(LayerResult *result)
{
    for (int i = 0; i < LAYER_OUTPUTS; i++)
        free(result->tensor[i].data);
    *result = (LayerResult){0};
}

static void copy_rows(Tensor *to, int64_t first, const void *from, int64_t elements)
{
    uint64_t size = dtype_bytes(to->dtype, 1);
    memcpy((char *)to->data + (uint64_t)first * size, from, (uint64_t)elements * size);
}

static const void *element(const void *base, DType dtype, int64_t index)
{
    return (const char *)base + dtype_bytes(dtype, (uint64_t)index);
}

void layer_place_experts(LayerResult *result, const LayerSource *source, const void *w13,
                         const void *w2, int first_expert, int experts)
{
    const MoeConfig *c = &source->config;
    int64_t half = c->inner * c->hidden;
    for (int64_t e = 0; e < experts; e++) {
        int64_t to = (first_expert + e) * half;
        copy_rows(&result->tensor[OUTPUT_GRAD_W1], to, element(w13, c->dtype, 2 * e * half), half);
        copy_rows(&result->tensor[OUTPUT_GRAD_W3], to, element(w13, c->dtype, (2 * e + 1) * half),
                  half);
    }
    copy_rows(&result->tensor[OUTPUT_GRAD_W2], first_expert * half, w2, experts * half);
}

void layer_place_dense(LayerResult *result, const LayerSource *source, const void *router,
                       const void *shared_w13, const void *shared_w2)
{
    const MoeConfig *c = &source->config;
    copy_rows(&result->tensor[OUTPUT_GRAD_ROUTER], 0, router, c->experts * c->hidden);
    if (c->shared_gate)
        copy_rows(&result->tensor[OUTPUT_GRAD_SHARED_GATE], 0,
                  element(router, c->dtype, c->experts * c->hidden), c->hidden);
    if (c->shared_inner > 0) {
        int64_t half = c->shared_inner * c->hidden;
        copy_rows(&result->tensor[OUTPUT_GRAD_SHARED_W1], 0, shared_w13, half);
        copy_rows(&result->tensor[OUTPUT_GRAD_SHARED_W3], 0, element(shared_w13, c->dtype, half),
                  half);
        copy_rows(&result->tensor[OUTPUT_GRAD_SHARED_W2], 0, shared_w2, half);
    }
}

// Device memory to a host copy; the caller frees it.
static void *to_host(const void *device, uint64_t bytes, Stream stream)
{
    void *host = malloc(bytes ? bytes : 1);
    CHECK(host != NULL, EXIT_CODE_HARDWARE, "use --no-check and no --save",
          "no memory for %llu bytes of results", (unsigned long long)bytes);
    if (bytes > 0)
        device_copy(host, device, bytes, stream);
    stream_wait(stream);
    return host;
}

// Every rank's rows, in rank order, into a whole tensor on rank 0.
static void gather_rows(const Run *run, const void *mine, uint64_t bytes, Tensor *whole,
                        Stream stream)
{
    void *host = to_host(mine, bytes, stream);
    uint64_t *sizes = calloc((size_t)run->ranks, sizeof(uint64_t));
    char *all = run_gather_pieces(run, host, bytes, sizes);
    if (run->rank == 0) {
        uint64_t total = 0;
        for (int rank = 0; rank < run->ranks; rank++)
            total += sizes[rank];
        CHECK_RULE(total == tensor_bytes(whole));
        memcpy(whole->data, all, total);
    }
    free(all);
    free(sizes);
    free(host);
}

static void gather_choices(const Run *run, const int32_t *mine, int64_t count, Tensor *whole,
                           Stream stream)
{
    int32_t *host = to_host(mine, (uint64_t)count * sizeof(int32_t), stream);
    uint64_t *sizes = calloc((size_t)run->ranks, sizeof(uint64_t));
    int32_t *all = run_gather_pieces(run, host, (uint64_t)count * sizeof(int32_t), sizes);
    int64_t *out = run->rank == 0 ? whole->data : NULL;
    for (int64_t i = 0; out && i < tensor_elements(whole); i++)
        out[i] = all[i];
    free(all);
    free(sizes);
    free(host);
}

static void gather_experts(const Run *run, const LayerSpread *spread, const LayerSource *source,
                           const LayerPart *part, LayerResult *result, Stream stream)
{
    const MoeConfig *c = &source->config;
    int64_t half = c->inner * c->hidden;
    bool sends = mesh_place(spread->mesh, &spread->replica_axes, run->rank) == 0;
    int64_t mine = sends ? part->experts * half : 0;
    void *w13 = to_host(part->gradients->w13, dtype_bytes(c->dtype, (uint64_t)(2 * mine)), stream);
    void *w2 = to_host(part->gradients->w2, dtype_bytes(c->dtype, (uint64_t)mine), stream);
    uint64_t *sizes = calloc(2 * (size_t)run->ranks, sizeof(uint64_t));
    uint64_t *w2_sizes = sizes + run->ranks;
    char *all13 = run_gather_pieces(run, w13, dtype_bytes(c->dtype, (uint64_t)(2 * mine)), sizes);
    char *all2 = run_gather_pieces(run, w2, dtype_bytes(c->dtype, (uint64_t)mine), w2_sizes);
    const char *at13 = all13, *at2 = all2;
    for (int rank = 0; run->rank == 0 && rank < run->ranks; rank++) {
        if (w2_sizes[rank] > 0) {
            int place = mesh_place(spread->mesh, &spread->experts_axes, rank);
            Shard shard = shard_of(c->experts, spread->experts_axes.ranks, place);
            layer_place_experts(result, source, at13, at2, (int)shard.first, (int)shard.count);
        }
        at13 += sizes[rank];
        at2 += w2_sizes[rank];
    }
    free(all13);
    free(all2);
    free(sizes);
    free(w13);
    free(w2);
}

static void gather_dense(const Run *run, const LayerSource *source, const LayerPart *part,
                         LayerResult *result, Stream stream)
{
    const MoeConfig *c = &source->config;
    uint64_t hidden = (uint64_t)c->hidden, shared = (uint64_t)c->shared_inner;
    const MoeWeights *g = part->gradients;
    void *router =
        to_host(g->router, dtype_bytes(c->dtype, (uint64_t)moe_router_rows(c) * hidden), stream);
    void *w13 = to_host(g->shared_w13, dtype_bytes(c->dtype, 2 * shared * hidden), stream);
    void *w2 = to_host(g->shared_w2, dtype_bytes(c->dtype, shared * hidden), stream);
    if (run->rank == 0)
        layer_place_dense(result, source, router, w13, w2);
    free(router);
    free(w13);
    free(w2);
}

void layer_gather(const Run *run, const LayerSpread *spread, const LayerSource *source,
                  const LayerPart *part, LayerResult *result, Stream stream)
{
    const MoeConfig *c = &source->config;
    int64_t tokens = spread->tokens_of_rank[run->rank];
    uint64_t bytes = dtype_bytes(c->dtype, (uint64_t)(tokens * c->hidden));
    gather_rows(run, part->y, bytes, &result->tensor[OUTPUT_Y], stream);
    gather_choices(run, part->expert_of_choice, tokens * c->top_k,
                   &result->tensor[OUTPUT_EXPERT_OF_TOKEN], stream);
    if (!part->gradients)
        return;
    gather_rows(run, part->dx, bytes, &result->tensor[OUTPUT_GRAD_X], stream);
    gather_experts(run, spread, source, part, result, stream);
    gather_dense(run, source, part, result, stream);
}

bool layer_save(const LayerResult *result, const char *path, bool force, Error *error)
{
    SafetensorsOutput outputs[LAYER_OUTPUTS];
    float *widened[LAYER_OUTPUTS] = {0};
    int64_t count = 0;
    for (int i = 0; i < LAYER_OUTPUTS; i++) {
        Tensor tensor = result->tensor[i];
        if (!tensor.data)
            continue;
        if (tensor.dtype == DTYPE_BF16) {
            int64_t elements = tensor_elements(&tensor);
            widened[i] = malloc(((size_t)elements + 1) * sizeof(float));
            CHECK(widened[i] != NULL, EXIT_CODE_HARDWARE, "free some memory",
                  "no memory for %lld values of %s", (long long)elements, output_names[i]);
            tensor_to_f32(&result->tensor[i], 0, elements, widened[i]);
            tensor.dtype = DTYPE_F32;
            tensor.data = widened[i];
        }
        outputs[count++] = (SafetensorsOutput){.name = output_names[i], .tensor = tensor};
    }
    bool good = safetensors_write(path, outputs, count, NULL, force, error);
    for (int i = 0; i < LAYER_OUTPUTS; i++)
        free(widened[i]);
    return good;
}
