// layer.c -- where a layer's inputs come from and which rank holds what. Putting results together
// is in layer_result.c.
#include "experiments/model/layer.h"
#include "harness/random.h"
#include "parallel/shard.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const tensor_names[LAYER_TENSORS] = {
    [LAYER_X] = "x",
    [LAYER_ROUTER] = "router",
    [LAYER_EXPERT_BIAS] = "expert_bias",
    [LAYER_W1] = "w1",
    [LAYER_W3] = "w3",
    [LAYER_W2] = "w2",
    [LAYER_SHARED_W1] = "shared_w1",
    [LAYER_SHARED_W3] = "shared_w3",
    [LAYER_SHARED_W2] = "shared_w2",
    [LAYER_SHARED_GATE] = "shared_gate",
    [LAYER_GRAD_Y] = "grad_y",
};

const char *layer_tensor_name(LayerTensor tensor)
{
    return tensor_names[tensor];
}

void layer_tensor_shape(const LayerSource *source, LayerTensor tensor, int64_t *rows,
                        int64_t *columns)
{
    const MoeConfig *c = &source->config;
    int64_t experts = c->experts;
    int64_t shared_gate = c->shared_gate ? 1 : 0, shared_down = c->shared_inner ? c->hidden : 0;
    const int64_t shape[LAYER_TENSORS][2] = {
        [LAYER_X] = {source->tokens, c->hidden},
        [LAYER_ROUTER] = {experts, c->hidden},
        [LAYER_EXPERT_BIAS] = {c->expert_bias ? experts : 0, 1},
        [LAYER_W1] = {experts * c->inner, c->hidden},
        [LAYER_W3] = {experts * c->inner, c->hidden},
        [LAYER_W2] = {experts * c->hidden, c->inner},
        [LAYER_SHARED_W1] = {c->shared_inner, c->hidden},
        [LAYER_SHARED_W3] = {c->shared_inner, c->hidden},
        [LAYER_SHARED_W2] = {shared_down, c->shared_inner},
        [LAYER_SHARED_GATE] = {shared_gate, c->hidden},
        [LAYER_GRAD_Y] = {source->tokens, c->hidden},
    };
    *rows = shape[tensor][0];
    *columns = shape[tensor][1];
}

static bool read_metadata(const Safetensors *file, MoeConfig *c, Error *error)
{
    const char *const keys[] = {"score", "top_k", "score_before_experts", "normalise_top_k",
                                "route_scale"};
    const char *value[COUNT_OF(keys)];
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        value[i] = safetensors_metadata(file, keys[i]);
        if (!value[i])
            return error_set(error, EXIT_CODE_DATA, "write it into the file's __metadata__",
                             "the file has no metadata \"%s\"", keys[i]);
    }
    bool sigmoid = strcmp(value[0], "sigmoid") == 0;
    if (!sigmoid && strcmp(value[0], "softmax") != 0)
        return error_set(error, EXIT_CODE_DATA, "sigmoid or softmax", "metadata score is \"%.40s\"",
                         value[0]);
    char *end = NULL;
    long top_k = strtol(value[1], &end, 10);
    if (*end != '\0' || top_k < 1 || top_k > c->experts)
        return error_set(error, EXIT_CODE_DATA, "a number from 1 to the number of experts",
                         "metadata top_k is \"%.40s\" with %d experts", value[1], c->experts);
    double scale = strtod(value[4], &end);
    if (*end != '\0' || !isfinite(scale))
        return error_set(error, EXIT_CODE_DATA, "a finite number",
                         "metadata route_scale is \"%.40s\"", value[4]);
    for (int i = 2; i <= 3; i++)
        if (strcmp(value[i], "true") != 0 && strcmp(value[i], "false") != 0)
            return error_set(error, EXIT_CODE_DATA, "true or false", "metadata %s is \"%.40s\"",
                             keys[i], value[i]);
    c->score = sigmoid ? ROUTER_SIGMOID : ROUTER_SOFTMAX;
    c->top_k = (int)top_k;
    c->score_before_experts = strcmp(value[2], "true") == 0;
    c->normalise_top_k = strcmp(value[3], "true") == 0;
    c->route_scale = scale;
    return true;
}

// The shape of a tensor with everything but the first dimensions folded: [rows, columns].
static void fold(const Tensor *tensor, int64_t *rows, int64_t *columns)
{
    *columns = tensor->rank > 1 ? tensor->shape[tensor->rank - 1] : 1;
    *rows = 1;
    for (int d = 0; d < (tensor->rank > 1 ? tensor->rank - 1 : tensor->rank); d++)
        *rows *= tensor->shape[d];
}

static bool check_shapes(const Safetensors *file, const LayerSource *source, Error *error)
{
    for (int i = 0; i < LAYER_TENSORS; i++) {
        int64_t rows, columns, found_rows, found_columns;
        layer_tensor_shape(source, (LayerTensor)i, &rows, &columns);
        if (rows == 0)
            continue;
        const Tensor *tensor = safetensors_find(file, tensor_names[i]);
        if (!tensor)
            return error_set(error, EXIT_CODE_DATA, "add it, or load another file",
                             "the file has no tensor \"%s\"", tensor_names[i]);
        fold(tensor, &found_rows, &found_columns);
        char text[128];
        if (found_rows != rows || found_columns != columns)
            return error_set(error, EXIT_CODE_DATA, "all tensors must fit x, router and w1",
                             "tensor \"%s\" is %s, not %lld x %lld", tensor_names[i],
                             tensor_describe(tensor, text, sizeof text), (long long)rows,
                             (long long)columns);
        if (tensor->dtype != DTYPE_F32 && tensor->dtype != DTYPE_BF16 &&
            tensor->dtype != DTYPE_F16 && tensor->dtype != DTYPE_F64)
            return error_set(error, EXIT_CODE_DATA, "f32, bf16, f16 or f64", "tensor \"%s\" is %s",
                             tensor_names[i], tensor_describe(tensor, text, sizeof text));
    }
    return true;
}

bool layer_source_read(const Safetensors *file, LayerSource *source, Error *error)
{
    const char *const needed[] = {"x", "router", "w1"};
    const Tensor *found[COUNT_OF(needed)];
    const int ranks[COUNT_OF(needed)] = {2, 2, 3};
    for (size_t i = 0; i < COUNT_OF(needed); i++) {
        found[i] = safetensors_find(file, needed[i]);
        if (!found[i] || found[i]->rank != ranks[i] || tensor_elements(found[i]) == 0)
            return error_set(error, EXIT_CODE_DATA, "load a file that holds one MoE layer",
                             "tensor \"%s\" is %s", needed[i],
                             !found[i] ? "missing" : "empty or of the wrong rank");
    }
    if (found[1]->shape[0] > 1 << 20 || found[0]->shape[0] > INT32_MAX)
        return error_set(error, EXIT_CODE_DATA, "at most 2^20 experts and 2^31 tokens",
                         "router has %lld experts, x %lld tokens", (long long)found[1]->shape[0],
                         (long long)found[0]->shape[0]);
    MoeConfig *c = &source->config;
    const Tensor *shared = safetensors_find(file, "shared_w1");
    source->file = file;
    source->tokens = found[0]->shape[0];
    c->hidden = found[0]->shape[1];
    c->experts = (int)found[1]->shape[0];
    c->inner = found[2]->shape[1];
    c->expert_bias = safetensors_find(file, "expert_bias") != NULL;
    c->shared_inner = shared && shared->rank == 2 ? shared->shape[0] : 0;
    c->shared_gate = c->shared_inner > 0 && safetensors_find(file, "shared_gate") != NULL;
    c->dtype = found[0]->dtype == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_F32;
    return read_metadata(file, c, error) && check_shapes(file, source, error);
}

static void fill_from_file(const LayerSource *source, LayerTensor tensor, int64_t first,
                           int64_t count, DType dtype, void *out, Stream stream)
{
    const Tensor *from = safetensors_find(source->file, tensor_names[tensor]);
    CHECK_RULE(from != NULL);
    float *values = malloc(((size_t)count + 1) * sizeof(float));
    CHECK(values != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for %lld values of %s",
          (long long)count, tensor_names[tensor]);
    tensor_to_f32(from, first, count, values);
    if (dtype == DTYPE_BF16) {
        uint16_t *narrow =
            (uint16_t *)values; // in place: element i is read before byte 2 i is written
        for (int64_t i = 0; i < count; i++) {
            float value;
            memcpy(&value, values + i, sizeof value);
            uint16_t bits = bf16_from_f32(value);
            memcpy(narrow + i, &bits, sizeof bits);
        }
    }
    device_copy(out, values, dtype_bytes(dtype, (uint64_t)count), stream);
    stream_wait(stream);
    free(values);
}

void layer_fill(const LayerSource *source, LayerTensor tensor, int64_t first_row, int64_t rows,
                DType dtype, void *out, Stream stream)
{
    int64_t all_rows, columns;
    layer_tensor_shape(source, tensor, &all_rows, &columns);
    CHECK_RULE(first_row >= 0 && first_row + rows <= all_rows);
    if (rows == 0)
        return;
    if (source->file) {
        fill_from_file(source, tensor, first_row * columns, rows * columns, dtype, out, stream);
        return;
    }
    bool activation = tensor == LAYER_X || tensor == LAYER_GRAD_Y;
    bool bias = tensor == LAYER_EXPERT_BIAS;
    float deviation = activation ? 1.0f : bias ? 0.1f : 1.0f / sqrtf((float)columns);
    random_fill(&(RandomFill){.seed = source->seed,
                              .stream = (uint32_t)tensor + 1,
                              .first_row = first_row,
                              .rows = rows,
                              .columns = columns,
                              .deviation = deviation,
                              .dtype = dtype,
                              .out = out},
                stream);
}

typedef struct WeightSizes {
    uint64_t router, expert_bias, w13, w2, shared_w13, shared_w2; // bytes
} WeightSizes;

static WeightSizes weight_sizes(const LayerWeightsSize *size)
{
    const MoeConfig *c = size->config;
    uint64_t parts = (uint64_t)size->parts, hidden = (uint64_t)c->hidden;
    uint64_t expert = (uint64_t)size->experts * (uint64_t)c->inner * hidden;
    uint64_t shared = parts * (uint64_t)c->shared_inner * hidden;
    return (WeightSizes){
        .router = dtype_bytes(size->dense_dtype, parts * (uint64_t)moe_router_rows(c) * hidden),
        .expert_bias = c->expert_bias ? sizeof(float) * (uint64_t)c->experts : 0,
        .w13 = dtype_bytes(size->experts_dtype, 2 * expert),
        .w2 = dtype_bytes(size->experts_dtype, expert),
        .shared_w13 = dtype_bytes(size->dense_dtype, 2 * shared),
        .shared_w2 = dtype_bytes(size->dense_dtype, shared),
    };
}

uint64_t layer_weights_bytes(const LayerWeightsSize *size)
{
    WeightSizes s = weight_sizes(size);
    return s.router + s.expert_bias + s.w13 + s.w2 + s.shared_w13 + s.shared_w2;
}

MoeWeights layer_weights_push(const LayerWeightsSize *size, Arena *arena)
{
    WeightSizes s = weight_sizes(size);
    return (MoeWeights){
        .router = arena_push(arena, s.router, size->category),
        .expert_bias = s.expert_bias ? arena_push(arena, s.expert_bias, size->category) : NULL,
        .w13 = arena_push(arena, s.w13, size->category),
        .w2 = arena_push(arena, s.w2, size->category),
        .shared_w13 = s.shared_w13 ? arena_push(arena, s.shared_w13, size->category) : NULL,
        .shared_w2 = s.shared_w2 ? arena_push(arena, s.shared_w2, size->category) : NULL,
    };
}

static void *element(void *base, DType dtype, int64_t index)
{
    return (char *)base + dtype_bytes(dtype, (uint64_t)index);
}

// Gate rows then up rows, block after block: [blocks, 2 * inner, hidden] from two [blocks * inner,
// hidden].
static void fill_gate_up(const LayerSource *source, LayerTensor gate, LayerTensor up, int64_t first,
                         int64_t blocks, int64_t inner, void *out, Stream stream)
{
    DType dtype = source->config.dtype;
    int64_t half = inner * source->config.hidden;
    for (int64_t b = 0; b < blocks; b++) {
        void *block = element(out, dtype, 2 * b * half);
        layer_fill(source, gate, (first + b) * inner, inner, dtype, block, stream);
        layer_fill(source, up, (first + b) * inner, inner, dtype, element(block, dtype, half),
                   stream);
    }
}

void layer_weights_fill(const LayerSource *source, int first_expert, int experts,
                        const MoeWeights *weights, Stream stream)
{
    const MoeConfig *c = &source->config;
    int64_t rows = moe_router_rows(c) * c->hidden;
    device_fill(weights->router, 0, dtype_bytes(c->dtype, (uint64_t)rows), stream);
    layer_fill(source, LAYER_ROUTER, 0, c->experts, c->dtype, weights->router, stream);
    if (c->shared_gate)
        layer_fill(source, LAYER_SHARED_GATE, 0, 1, c->dtype,
                   element(weights->router, c->dtype, c->experts * c->hidden), stream);
    if (c->expert_bias)
        layer_fill(source, LAYER_EXPERT_BIAS, 0, c->experts, DTYPE_F32, weights->expert_bias,
                   stream);
    fill_gate_up(source, LAYER_W1, LAYER_W3, first_expert, experts, c->inner, weights->w13, stream);
    layer_fill(source, LAYER_W2, first_expert * c->hidden, experts * c->hidden, c->dtype,
               weights->w2, stream);
    if (c->shared_inner > 0) {
        fill_gate_up(source, LAYER_SHARED_W1, LAYER_SHARED_W3, 0, 1, c->shared_inner,
                     weights->shared_w13, stream);
        layer_fill(source, LAYER_SHARED_W2, 0, c->hidden, c->dtype, weights->shared_w2, stream);
    }
    stream_wait(stream);
}

bool layer_read_tokens(const char *list, int data_ranks, int64_t *tokens, Error *error)
{
    const char *fix = "write one number for all, or one per data rank, such as --tokens 5,0,3,1";
    int count = 0;
    for (const char *at = list; at; count++) {
        char *end = NULL;
        long long value = strtoll(at, &end, 10);
        if (end == at || value < 0 || value > INT32_MAX || (*end != ',' && *end != '\0'))
            return error_set(error, EXIT_CODE_USAGE, fix,
                             "--tokens \"%.80s\": no number from 0 to 2147483647 at \"%.20s\"",
                             list, at);
        if (count < data_ranks)
            tokens[count] = value;
        at = *end == ',' ? end + 1 : NULL;
    }
    if (count != 1 && count != data_ranks)
        return error_set(error, EXIT_CODE_USAGE, fix,
                         "--tokens \"%.80s\" has %d numbers for %d data rank%s", list, count,
                         data_ranks, data_ranks == 1 ? "" : "s");
    for (int i = 1; i < data_ranks && count == 1; i++)
        tokens[i] = tokens[0];
    return true;
}

bool layer_spread_create(const Mesh *mesh, const char *experts_on, const char *tokens_list,
                         int64_t tokens_total, LayerSpread *spread, Error *error)
{
    *spread = (LayerSpread){.mesh = mesh};
    MeshAxes tensor, data;
    const char *tp = mesh_find_axis(mesh, "tp") >= 0 ? "tp" : NULL;
    const char *default_experts = mesh_find_axis(mesh, "ep") >= 0 ? "ep" : NULL;
    if (!mesh_select(mesh, experts_on ? experts_on : default_experts, &spread->experts_axes, error))
        return error_prefix(error, "--experts_on \"%.80s\"", experts_on);
    if (!mesh_select(mesh, tp, &tensor, error))
        return false;
    spread->replica_axes = mesh_others(mesh, &spread->experts_axes);
    data = mesh_others(mesh, &tensor);
    int ranks = mesh->world.ranks;
    int64_t *of_data = calloc((size_t)data.ranks, sizeof(int64_t));
    spread->tokens_of_rank = calloc((size_t)ranks, sizeof(int64_t));
    spread->first_token_of_rank = calloc((size_t)ranks, sizeof(int64_t));
    CHECK(of_data && spread->tokens_of_rank && spread->first_token_of_rank, EXIT_CODE_HARDWARE,
          "free some memory", "no memory for %d ranks", ranks);
    bool good = true;
    for (int d = 0; d < data.ranks && tokens_total >= 0; d++)
        of_data[d] = shard_of(tokens_total, data.ranks, d).count;
    if (tokens_total < 0)
        good = layer_read_tokens(tokens_list, data.ranks, of_data, error);
    for (int rank = 0; good && rank < ranks; rank++) {
        int64_t of_group = of_data[mesh_place(mesh, &data, rank)];
        spread->tokens_of_rank[rank] =
            shard_of(of_group, tensor.ranks, mesh_place(mesh, &tensor, rank)).count;
        spread->first_token_of_rank[rank] = spread->tokens;
        spread->tokens += spread->tokens_of_rank[rank];
    }
    free(of_data);
    if (good && spread->tokens > INT32_MAX)
        good = error_set(error, EXIT_CODE_USAGE, "lower --tokens",
                         "--tokens \"%.80s\" makes %lld tokens in all, more than 2147483647",
                         tokens_list, (long long)spread->tokens);
    return good;
}

bool layer_groups_are_contiguous(const LayerSpread *spread)
{
    for (int rank = 1; rank < spread->mesh->world.ranks; rank++) {
        int replica = mesh_place(spread->mesh, &spread->replica_axes, rank);
        int place = mesh_place(spread->mesh, &spread->experts_axes, rank);
        bool next_place = mesh_place(spread->mesh, &spread->experts_axes, rank - 1) + 1 == place &&
                          mesh_place(spread->mesh, &spread->replica_axes, rank - 1) == replica;
        if (place != 0 && !next_place)
            return false;
    }
    return true;
}

void layer_spread_destroy(LayerSpread *spread)
{
    free(spread->tokens_of_rank);
    free(spread->first_token_of_rank);
    *spread = (LayerSpread){0};
}
