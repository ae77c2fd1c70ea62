// layer_reference.c -- one rank computes what all ranks together must give.
//
// The reference repeats the real run's sums in the real run's order: each group of ranks that share
// experts is one layer over the group's tokens, in order of place; expert gradients of the groups
// are added in f32 in replica order; dense gradients are made per virtual rank and added in rank
// order; everything is rounded once.
#include "experiments/model/layer_reference.h"
#include "experiments/model/moe_quant.h"
#include "kernels/reduce.h"
#include "parallel/shard.h"

#include <stdlib.h>
#include <string.h>

// The ranks that share experts with replica place `replica`, in order of experts place.
typedef struct Group {
    int ranks;
    int *rank;            // [ranks] world ranks
    int64_t *part_tokens; // [ranks]
    int64_t tokens;
} Group;

// What is kept over all groups: gradients as f32, dense ones once per world rank.
typedef struct Sums {
    Arena *arena;
    Stream stream;
    MoeWeights weights; // storage dtype, all experts
    MoeGradients
        experts; // w13 and w2 summed over groups; the dense members are those of the current group
    MoeWeights *of_rank;   // [world ranks] dense partials
    float *amax;           // [MOE_AMAXES] device: over all groups, where a scale needs it
    bool spans, only_amax; // it does; this pass is only to find it
} Sums;

static Group group_create(const LayerSpread *spread, int replica)
{
    const Mesh *mesh = spread->mesh;
    Group group = {.ranks = spread->experts_axes.ranks};
    group.rank = calloc((size_t)group.ranks, sizeof(int));
    group.part_tokens = calloc((size_t)group.ranks, sizeof(int64_t));
    CHECK(group.rank && group.part_tokens, EXIT_CODE_HARDWARE, "free some memory",
          "no memory for %d ranks", group.ranks);
    for (int rank = 0; rank < mesh->world.ranks; rank++) {
        if (mesh_place(mesh, &spread->replica_axes, rank) != replica)
            continue;
        int place = mesh_place(mesh, &spread->experts_axes, rank);
        group.rank[place] = rank;
        group.part_tokens[place] = spread->tokens_of_rank[rank];
        group.tokens += group.part_tokens[place];
    }
    return group;
}

static void group_destroy(Group *group)
{
    free(group->rank);
    free(group->part_tokens);
}

static MoeConfig config_of(const LayerReference *reference)
{
    return reference->source->config;
}

uint64_t layer_reference_bytes(const LayerReference *reference)
{
    MoeConfig c = config_of(reference);
    int ranks = reference->spread->mesh->world.ranks;
    LayerWeightsSize weights = {&c, c.experts, 1, c.dtype, c.dtype, MEMORY_PARAMETERS};
    LayerWeightsSize sums = {&c, c.experts, ranks, DTYPE_F32, DTYPE_F32, MEMORY_GRADIENTS};
    uint64_t tokens = (uint64_t)reference->source->tokens, element = dtype_bytes(c.dtype, 1);
    uint64_t rows = tokens * (uint64_t)c.top_k + (uint64_t)(c.experts * reference->align);
    uint64_t row = (uint64_t)(3 * c.inner + 2 * c.hidden) * element + 32;
    uint64_t token = (uint64_t)(6 * c.hidden + 3 * c.shared_inner) * element +
                     (uint64_t)(2 * c.hidden) * sizeof(float);
    uint64_t gradients = reference->forward_only ? 0 : 2 * layer_weights_bytes(&sums);
    if (c.recipe) { // operands as codes, transposed and as f32
        row += (uint64_t)(3 * c.inner + 2 * c.hidden) * 8;
        gradients += 2 * layer_weights_bytes(&weights);
    }
    return 2 * layer_weights_bytes(&weights) + gradients + rows * row + tokens * token;
}

// Copies the tokens of a group's ranks from global row order into group order, or back.
static void fill_tokens(const LayerReference *reference, const Group *group, LayerTensor tensor,
                        void *out, Stream stream)
{
    MoeConfig c = config_of(reference);
    uint64_t row_bytes = dtype_bytes(c.dtype, (uint64_t)c.hidden), offset = 0;
    for (int place = 0; place < group->ranks; place++) {
        int64_t first = reference->spread->first_token_of_rank[group->rank[place]];
        layer_fill(reference->source, tensor, first, group->part_tokens[place], c.dtype,
                   (char *)out + offset, stream);
        offset += (uint64_t)group->part_tokens[place] * row_bytes;
    }
}

static void place_tokens(const LayerReference *reference, const Group *group, const void *device,
                         uint64_t row_bytes, void *whole, Stream stream)
{
    uint64_t offset = 0;
    for (int place = 0; place < group->ranks; place++) {
        uint64_t first = (uint64_t)reference->spread->first_token_of_rank[group->rank[place]];
        uint64_t bytes = (uint64_t)group->part_tokens[place] * row_bytes;
        if (bytes > 0)
            device_copy((char *)whole + first * row_bytes, (const char *)device + offset, bytes,
                        stream);
        offset += bytes;
    }
    stream_wait(stream);
}

static void place_choices(const LayerReference *reference, const Group *group,
                          const int32_t *device, LayerResult *result, Stream stream)
{
    uint64_t row = (uint64_t)config_of(reference).top_k * sizeof(int32_t);
    int64_t count = tensor_elements(&result->tensor[OUTPUT_EXPERT_OF_TOKEN]);
    int64_t *out = result->tensor[OUTPUT_EXPERT_OF_TOKEN].data;
    int32_t *narrow = calloc((size_t)count + 1, sizeof(int32_t));
    if (!out || !narrow) {
        free(narrow);
        return;
    }
    for (int64_t i = 0; i < count; i++)
        narrow[i] = -1;
    place_tokens(reference, group, device, row, narrow, stream);
    for (int64_t i = 0; i < count; i++)
        if (narrow[i] >= 0)
            out[i] = narrow[i];
    free(narrow);
}

// The dense members of the group's gradients are [parts, ...]; each rank's part is remembered.
static void remember_dense(const LayerReference *reference, const Group *group, Sums *sums,
                           const MoeWeights *dense)
{
    MoeConfig c = config_of(reference);
    int64_t router = moe_router_rows(&c) * c.hidden, shared = c.shared_inner * c.hidden;
    for (int place = 0; place < group->ranks; place++)
        sums->of_rank[group->rank[place]] = (MoeWeights){
            .router = (float *)dense->router + place * router,
            .shared_w13 = shared ? (float *)dense->shared_w13 + place * 2 * shared : NULL,
            .shared_w2 = shared ? (float *)dense->shared_w2 + place * shared : NULL,
        };
}

static void run_group(const LayerReference *reference, const Group *group, int replica, Sums *sums,
                      LayerResult *result)
{
    MoeConfig c = config_of(reference);
    const LayerSpread *spread = reference->spread;
    Comm alone = {.rank = 0, .ranks = 1};
    Arena *arena = arena_create(MEMORY_DEVICE, reference->device);
    bool fast = !reference->exact && spread->experts_axes.ranks > 1;
    Moe *moe = moe_create(&(MoeSettings){
        .config = c,
        .experts_comm = alone,
        .replicas_comm = alone,
        .tokens_comm = alone,
        .tokens = group->tokens,
        .first_token = spread->first_token_of_rank[group->rank[0]],
        .align = reference->align,
        .exact = reference->exact,
        .forward_only = reference->forward_only || sums->only_amax,
        .transport = EP_LOCAL,
        .device = reference->device,
        .arena = arena,
        .seed = reference->source->seed,
        .threads = reference->threads,
        .group_size = fast ? (int)shard_size(c.experts, spread->experts_axes.ranks) : 0,
        .parts = group->ranks,
        .part_tokens = group->part_tokens,
        .amax = sums->spans ? sums->amax : NULL});
    uint64_t row_bytes = dtype_bytes(c.dtype, (uint64_t)c.hidden);
    uint64_t bytes = (uint64_t)group->tokens * row_bytes;
    char *x = arena_push(arena, 4 * bytes, MEMORY_ACTIVATIONS);
    char *y = x + bytes, *dy = y + bytes, *dx = dy + bytes;
    fill_tokens(reference, group, LAYER_X, x, sums->stream);
    moe_forward(moe, &sums->weights, x, y, sums->stream);
    place_tokens(reference, group, y, row_bytes, result->tensor[OUTPUT_Y].data, sums->stream);
    place_choices(reference, group, moe_expert_of_choice(moe), result, sums->stream);
    if (!reference->forward_only && !sums->only_amax) {
        LayerWeightsSize size = {&c, 0, group->ranks, DTYPE_F32, DTYPE_F32, MEMORY_GRADIENTS};
        MoeWeights dense = layer_weights_push(&size, sums->arena);
        sums->experts.accumulate_experts = replica > 0;
        MoeGradients gradients = sums->experts;
        gradients.sum.router = dense.router;
        gradients.sum.shared_w13 = dense.shared_w13;
        gradients.sum.shared_w2 = dense.shared_w2;
        fill_tokens(reference, group, LAYER_GRAD_Y, dy, sums->stream);
        moe_backward(moe, &sums->weights, x, dy, dx, &gradients, sums->stream);
        place_tokens(reference, group, dx, row_bytes, result->tensor[OUTPUT_GRAD_X].data,
                     sums->stream);
        remember_dense(reference, group, sums, &dense);
    }
    stream_wait(sums->stream);
    moe_destroy(moe);
    arena_destroy(arena);
}

// ((rank 0 + rank 1) + rank 2) + ..., into rank 0's partial, then rounded in a second buffer.
static void *sum_over_ranks(Sums *sums, int ranks, size_t member, int64_t count, DType dtype)
{
    float *total = NULL;
    for (int rank = 0; rank < ranks; rank++) {
        float *part;
        memcpy(&part, (char *)&sums->of_rank[rank] + member, sizeof part);
        if (rank == 0)
            total = part;
        else
            sum_parts(&(SumParts){.parts = 2,
                                  .count = count,
                                  .part_stride = part - total,
                                  .part = total,
                                  .out_dtype = DTYPE_F32,
                                  .out = total},
                      sums->stream);
    }
    void *out = arena_push(sums->arena, dtype_bytes(dtype, (uint64_t)count), MEMORY_GRADIENTS);
    sum_parts(
        &(SumParts){.parts = 1, .count = count, .part = total, .out_dtype = dtype, .out = out},
        sums->stream);
    return out;
}

static void *host_copy(const void *device, uint64_t bytes, Stream stream)
{
    void *host = malloc(bytes ? bytes : 1);
    CHECK(host != NULL, EXIT_CODE_HARDWARE, "use --no-check", "no memory for a reference");
    if (bytes)
        device_copy(host, device, bytes, stream);
    stream_wait(stream);
    return host;
}

static void finish_gradients(const LayerReference *reference, Sums *sums, LayerResult *result)
{
    MoeConfig c = config_of(reference);
    int ranks = reference->spread->mesh->world.ranks;
    int64_t shared = c.shared_inner * c.hidden, experts = c.experts * c.inner * c.hidden;
    int64_t router = moe_router_rows(&c) * c.hidden;
    const struct {
        size_t member;
        int64_t count;
    } dense[] = {{offsetof(MoeWeights, router), router},
                 {offsetof(MoeWeights, shared_w13), 2 * shared},
                 {offsetof(MoeWeights, shared_w2), shared}};
    void *host[COUNT_OF(dense)];
    for (size_t i = 0; i < COUNT_OF(dense); i++) {
        void *sum = NULL;
        if (dense[i].count > 0)
            sum = sum_over_ranks(sums, ranks, dense[i].member, dense[i].count, c.dtype);
        host[i] = host_copy(sum, dtype_bytes(c.dtype, (uint64_t)dense[i].count), sums->stream);
    }
    layer_place_dense(result, reference->source, host[0], host[1], host[2]);
    for (size_t i = 0; i < COUNT_OF(dense); i++)
        free(host[i]);

    void *const sum[2] = {sums->experts.sum.w13, sums->experts.sum.w2};
    void *whole[2];
    for (int i = 0; i < 2; i++) {
        int64_t count = i == 0 ? 2 * experts : experts;
        uint64_t bytes = dtype_bytes(c.dtype, (uint64_t)count);
        void *rounded = arena_push(sums->arena, bytes, MEMORY_GRADIENTS);
        sum_parts(
            &(SumParts){
                .parts = 1, .count = count, .part = sum[i], .out_dtype = c.dtype, .out = rounded},
            sums->stream);
        whole[i] = host_copy(rounded, bytes, sums->stream);
    }
    layer_place_experts(result, reference->source, whole[0], whole[1], 0, c.experts);
    free(whole[0]);
    free(whole[1]);
}

static void run_groups(const LayerReference *reference, Sums *sums, LayerResult *result)
{
    for (int replica = 0; replica < reference->spread->replica_axes.ranks; replica++) {
        Group group = group_create(reference->spread, replica);
        run_group(reference, &group, replica, sums, result);
        group_destroy(&group);
    }
}

// A scale over all ranks' activations: of the first product it is known after all groups ran, of
// the second, which sees what the first gave, after they ran again.
static void find_amaxes(const LayerReference *reference, Sums *sums, LayerResult *result)
{
    MoeConfig c = config_of(reference);
    sums->spans = moe_quant_spans_replicas(&c);
    sums->amax = ARENA_PUSH(sums->arena, float, MOE_AMAXES, MEMORY_ACTIVATIONS);
    device_fill(sums->amax, 0, MOE_AMAXES * sizeof(float), sums->stream);
    if (!sums->spans || reference->spread->replica_axes.ranks == 1)
        return;
    sums->only_amax = true;
    for (int i = 0; i < MOE_AMAXES; i++) {
        device_fill(sums->amax + i, 0, (uint64_t)(MOE_AMAXES - i) * sizeof(float), sums->stream);
        run_groups(reference, sums, result);
    }
    sums->only_amax = false;
}

LayerResult layer_reference(const LayerReference *reference)
{
    MoeConfig c = config_of(reference);
    int ranks = reference->spread->mesh->world.ranks;
    LayerResult result = layer_result_create(reference->source, reference->forward_only);
    Sums sums = {.arena = arena_create(MEMORY_DEVICE, reference->device),
                 .stream = stream_create(reference->device),
                 .experts = {.experts_dtype = DTYPE_F32},
                 .of_rank = calloc((size_t)ranks, sizeof(MoeWeights))};
    CHECK(sums.of_rank != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for %d ranks",
          ranks);
    LayerWeightsSize size = {&c, c.experts, 1, c.dtype, c.dtype, MEMORY_PARAMETERS};
    sums.weights = layer_weights_push(&size, sums.arena);
    layer_weights_fill(reference->source, 0, c.experts, &sums.weights, sums.stream);
    if (!reference->forward_only) {
        LayerWeightsSize sum_size = {&c, c.experts, 1, DTYPE_F32, DTYPE_F32, MEMORY_GRADIENTS};
        sums.experts.sum = layer_weights_push(&sum_size, sums.arena);
    }
    find_amaxes(reference, &sums, &result);
    run_groups(reference, &sums, &result);
    if (!reference->forward_only)
        finish_gradients(reference, &sums, &result);
    stream_destroy(sums.stream);
    arena_destroy(sums.arena);
    free(sums.of_rank);
    return result;
}
