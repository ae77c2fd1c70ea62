// Buffers of a model on one rank, and the helpers that its two passes share.
#include "experiments/model/lm_run.h"
#include "experiments/model/lm_state.h"
#include "kernels/cross_entropy.h"
#include "kernels/dense_gemm.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/rms_norm.h"
#include "parallel/ordered.h"
#include "parallel/shard.h"

#include <stdlib.h>

enum { ALIGN_BYTES = 256 }; // of tensors in the room, as in an arena

static const LmConfig *config_of(const Lm *lm)
{
    return lm->settings.layout->config;
}

static void *clear(size_t count, size_t bytes)
{
    void *memory = calloc(count + 1, bytes);
    CHECK(memory != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for a model");
    return memory;
}

// Without an arena the bytes are only counted (lm_memory).
static void *take(Lm *lm, uint64_t bytes, MemoryCategory category)
{
    lm->bytes[category] += bytes;
    return lm->settings.arena ? arena_push(lm->settings.arena, bytes, category) : NULL;
}

static void *push_rows(Lm *lm, int64_t rows, int64_t columns)
{
    uint64_t bytes = dtype_bytes(config_of(lm)->dtype, (uint64_t)(rows * columns));
    return take(lm, bytes, MEMORY_ACTIVATIONS);
}

static float *push_floats(Lm *lm, int64_t count)
{
    return take(lm, (uint64_t)count * sizeof(float), MEMORY_ACTIVATIONS);
}

static int32_t *push_words(Lm *lm, int64_t count)
{
    return take(lm, (uint64_t)count * sizeof(int32_t), MEMORY_ACTIVATIONS);
}

static uint64_t rounded_up(uint64_t bytes)
{
    return (bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
}

// What a unit saves in its forward for its backward; units follow each other by rising number.
static void *push_saved(Lm *lm, DType dtype, int64_t rows, int64_t columns)
{
    const LmSettings *s = &lm->settings;
    uint64_t first = lm->saved_bytes, bytes = dtype_bytes(dtype, (uint64_t)(rows * columns));
    lm->saved_bytes += rounded_up(bytes);
    if (s->room)
        return (char *)s->room + first;
    return s->arena ? arena_push(s->arena, bytes, MEMORY_ACTIVATIONS) : NULL;
}

static void make_ranges(Lm *lm, Stream stream)
{
    const LmSettings *s = &lm->settings;
    CHECK_RULE(s->parts == 1 || (s->tp.ranks == 1 && s->part_tokens));
    for (int kind = 0; kind < LM_ROWS_KINDS; kind++) {
        int64_t rows = kind == LM_ROWS_MINE ? lm->rows : s->tokens, first = 0;
        int32_t *host = clear(2 * ((size_t)s->parts + 1), sizeof(int32_t));
        lm->range[kind] = clear((size_t)s->parts, sizeof(LmRange));
        for (int part = 0; part < s->parts; part++) {
            int64_t count = s->part_tokens ? s->part_tokens[part] : rows;
            lm->range[kind][part] = (LmRange){first, count};
            host[part] = (int32_t)first;
            host[s->parts + 1 + part] = (int32_t)count;
            first += count;
        }
        CHECK_RULE(first == rows);
        host[2 * s->parts + 1] = (int32_t)rows;
        int64_t words = 2 * s->parts + 2;
        int32_t *device = push_words(lm, words);
        if (s->arena)
            device_copy(device, host, (uint64_t)words * sizeof(int32_t), stream);
        stream_wait(stream);
        free(host);
        if (!device)
            continue;
        lm->part_first[kind] = device;
        lm->part_rows[kind] = device + s->parts + 1;
        lm->all_first[kind] = device + s->parts; // 0
        lm->all_rows[kind] = device + 2 * s->parts + 1;
    }
}

// Parts of a group, and their tokens by part.
static int64_t group_tokens(const Lm *lm, int group, int64_t *tokens, int *parts)
{
    const LmSettings *s = &lm->settings;
    int64_t sum = 0;
    *parts = 0;
    for (int part = 0; part < s->parts; part++) {
        if (s->group_of_part && s->group_of_part[part] != group)
            continue;
        tokens[(*parts)++] = lm->range[LM_ROWS_MINE][part].count;
        sum += lm->range[LM_ROWS_MINE][part].count;
    }
    return sum;
}

static void make_moe(Lm *lm, int layer, LmBlock *block)
{
    const LmSettings *s = &lm->settings;
    LmFlow flow = s->layout->flow[layer];
    Comm alone = {.rank = 0, .ranks = 1};
    bool divided = s->layout->style[lm_block_parameter(layer, LM_BLOCK_IN)] == STYLE_EXPERT;
    int64_t *tokens = clear((size_t)s->parts, sizeof(int64_t));
    block->moe = clear((size_t)s->groups, sizeof(Moe *));
    block->expert_bias = push_floats(lm, config_of(lm)->moe.experts);
    if (!s->arena) {
        free(tokens);
        return;
    }
    for (int group = 0; group < s->groups; group++) {
        int parts;
        int64_t count = group_tokens(lm, group, tokens, &parts);
        if (flow == LM_FLOW_SPLIT_INNER)
            count = s->tokens;
        if (flow == LM_FLOW_SPLIT_TOKENS)
            count = shard_of(s->tokens, s->tp.ranks, s->tp.rank).count;
        MoeConfig config = config_of(lm)->moe;
        config.inner = block->inner;
        Comm experts = divided ? s->experts : alone;
        bool many = s->parts > 1;
        block->moe[group] =
            moe_create(&(MoeSettings){.config = config,
                                      .experts_comm = experts,
                                      .replicas_comm = alone,
                                      .tokens_comm = alone,
                                      .tokens = count,
                                      .align = s->align,
                                      .exact = s->exact,
                                      .transport = experts.ranks == 1 ? EP_LOCAL : s->transport,
                                      .device = s->device,
                                      .arena = s->arena,
                                      .threads = s->threads,
                                      .group_size = s->group_size,
                                      .parts = many ? parts : 0,
                                      .part_tokens = many ? tokens : NULL});
    }
    free(tokens);
}

static void make_block(Lm *lm, int layer)
{
    const LmSettings *s = &lm->settings;
    const LmLayout *l = s->layout;
    const LmConfig *c = config_of(lm);
    LmBlock *block = &lm->block[layer];
    bool last = layer == c->layers;
    bool needs_all = last ? l->split_head : l->flow[layer] == LM_FLOW_SPLIT_INNER;
    lm->saved_first_bytes[layer + 1] = lm->saved_bytes;
    block->h = push_saved(lm, c->dtype, lm->rows_padded, c->dim);
    block->n = push_saved(lm, c->dtype, lm->rows_padded, c->dim);
    block->n_all =
        l->sequence && needs_all ? push_saved(lm, c->dtype, lm->all_padded, c->dim) : block->n;
    block->rstd = push_saved(lm, DTYPE_F32, lm->rows_padded, 1);
    if (last) {
        lm->logits = push_saved(lm, c->dtype, lm->all_padded, lm->vocab_count);
        lm->row_max = push_saved(lm, DTYPE_F32, lm->all_padded, 1);
        lm->row_sum = push_saved(lm, DTYPE_F32, lm->all_padded, 2);
        return;
    }
    DTensor out = lm_gathered(l, lm_block_parameter(layer, LM_BLOCK_OUT));
    block->inner = out.local.shape[out.local.rank - 1];
    if (lm_is_moe(c)) {
        make_moe(lm, layer, block);
        return;
    }
    block->gu = push_saved(lm, c->dtype, lm->all_padded, 2 * block->inner);
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static void make_scratch(Lm *lm)
{
    const LmSettings *s = &lm->settings;
    const LmConfig *c = config_of(lm);
    int64_t rows = lm->all_padded, inner = 0;
    for (int layer = 0; layer < c->layers; layer++)
        inner = lm->block[layer].inner > inner ? lm->block[layer].inner : inner;
    lm->y = push_rows(lm, rows, c->dim);
    lm->dy_all = push_rows(lm, s->layout->sequence ? rows : 0, c->dim);
    lm->dh = push_rows(lm, rows, c->dim);
    lm->dn = push_rows(lm, rows, c->dim);
    lm->a = push_rows(lm, lm_is_moe(c) ? 0 : rows, inner);
    lm->wide = push_floats(lm, s->tp.ranks > 1 ? rows * c->dim : 0);
    uint64_t totals_bytes = (uint64_t)s->parts * CROSS_ENTROPY_TOTALS * sizeof(double);
    lm->totals = take(lm, totals_bytes, MEMORY_ACTIVATIONS);
    lm->norm_scratch = take(lm, rms_norm_backward_scratch_bytes(rows, c->dim), MEMORY_SCRATCH);
    lm->embedding_scratch =
        take(lm, embedding_backward_scratch_bytes(rows, lm->table_count), MEMORY_SCRATCH);
    if (!s->exact && s->device == DEVICE_CUDA)
        lm->product_workspace = take(lm, DENSE_GEMM_WORKSPACE_BYTES, MEMORY_SCRATCH);
    if (lm_is_moe(c))
        lm->router_gradient =
            take(lm, (uint64_t)(s->parts * moe_router_rows(&c->moe) * c->dim) * sizeof(float),
                 MEMORY_SCRATCH);
    if (s->parts > 1) {
        lm->group_x = push_rows(lm, s->tokens, c->dim);
        lm->group_y = push_rows(lm, s->tokens, c->dim);
    }
    DType wire = lm_tp_wire(s->layout, s->exact);
    lm->narrow = push_rows(lm, s->tp.ranks > 1 && wire != DTYPE_F32 ? rows : 0, c->dim);
    uint64_t bytes = ordered_scatter_scratch_bytes(s->tp, lm->rows_padded * c->dim, wire);
    bytes = larger(bytes, ordered_reduce_scratch_bytes(s->tp, s->tokens * c->dim, wire));
    bytes = larger(bytes, ordered_reduce_scratch_bytes(s->tp, 2 * s->tokens, DTYPE_F32));
    lm->tp_scratch = take(lm, bytes, MEMORY_COMMUNICATION);
}

Lm *lm_create(const LmSettings *settings)
{
    Lm *lm = clear(1, sizeof(*lm));
    lm->settings = *settings;
    const LmLayout *l = settings->layout;
    const LmConfig *c = l->config;
    Shard share = shard_of(settings->tokens, settings->tp.ranks, settings->tp.rank);
    int64_t share_padded = shard_size(settings->tokens, settings->tp.ranks);
    lm->first_row = l->sequence ? share.first : 0;
    lm->rows = l->sequence ? share.count : settings->tokens;
    lm->all_padded = share_padded * settings->tp.ranks;
    lm->rows_padded = l->sequence ? share_padded : lm->all_padded;
    DTensor head = lm_gathered(l, lm_head_parameter(c)), table = lm_gathered(l, 0);
    lm->vocab_count = head.local.shape[0];
    lm->vocab_first = dtensor_offset(&head, head.mesh->coord, 0);
    lm->table_count = table.local.shape[0];
    lm->table_first = dtensor_offset(&table, table.mesh->coord, 0);
    Stream stream = stream_create(settings->device);
    make_ranges(lm, stream);
    lm->ids = push_words(lm, lm->all_padded);
    lm->targets = push_words(lm, lm->all_padded);
    lm->block = clear((size_t)c->layers + 1, sizeof(LmBlock));
    lm->saved_first_bytes = clear((size_t)c->layers + 3, sizeof(uint64_t)); // embedding: nothing
    for (int layer = 0; layer <= c->layers; layer++)
        make_block(lm, layer);
    lm->saved_first_bytes[c->layers + 2] = lm->saved_bytes;
    make_scratch(lm);
    if (settings->arena)
        lm->choices = clear((size_t)(settings->tokens * c->moe.top_k), sizeof(int32_t));
    for (int layer = 0; layer < c->layers && lm_is_moe(c) && settings->arena; layer++)
        device_fill(lm->block[layer].expert_bias, 0, (uint64_t)c->moe.experts * sizeof(float),
                    stream);
    stream_wait(stream);
    stream_destroy(stream);
    return lm;
}

void lm_destroy(Lm *lm)
{
    if (!lm)
        return;
    for (int layer = 0; layer < config_of(lm)->layers; layer++) {
        LmBlock *block = &lm->block[layer];
        for (int group = 0; block->moe && group < lm->settings.groups; group++)
            moe_destroy(block->moe[group]);
        free(block->moe);
    }
    for (int kind = 0; kind < LM_ROWS_KINDS; kind++)
        free(lm->range[kind]);
    free(lm->block);
    free(lm->saved_first_bytes);
    free(lm->choices);
    free(lm);
}

// Where in the room the shards' gradients may begin, so that none reaches down to what is needed
// when it is written.
static uint64_t gradients_first_bytes(const Lm *lm, const FsdpPlan *plan)
{
    uint64_t first = 0;
    for (int unit = 0; unit < config_of(lm)->layers + 2; unit++)
        for (int group = 0; group < FSDP_GROUPS; group++) {
            const FsdpBucket *bucket = &plan->unit[unit].bucket[group];
            uint64_t before = dtype_bytes(DTYPE_F32, (uint64_t)bucket->flat);
            uint64_t saved = lm->saved_first_bytes[bucket->made_in_shard ? unit + 1 : unit];
            if (bucket->shard > 0 && saved > before)
                first = larger(first, saved - before);
        }
    return rounded_up(first);
}

LmMemory lm_memory(const LmSettings *settings, const FsdpPlan *plan)
{
    LmSettings counting = *settings;
    counting.arena = NULL;
    counting.room = NULL;
    Lm *lm = lm_create(&counting);
    LmMemory memory = {.room_bytes = lm->saved_bytes};
    for (int category = 0; category < MEMORY_CATEGORIES; category++)
        memory.bytes[category] = lm->bytes[category];
    if (plan) {
        memory.gradients_first_bytes = gradients_first_bytes(lm, plan);
        uint64_t gradients = dtype_bytes(DTYPE_F32, (uint64_t)plan->flat);
        memory.room_bytes = larger(memory.room_bytes, memory.gradients_first_bytes + gradients);
    }
    memory.bytes[MEMORY_ACTIVATIONS] += memory.room_bytes;
    lm_destroy(lm);
    return memory;
}

const Moe *lm_moe(const Lm *lm, int layer)
{
    return lm->block[layer].moe ? lm->block[layer].moe[0] : NULL;
}

bool lm_loss_is_split(const LmLayout *layout)
{
    return layout->sequence && !layout->split_head;
}

bool lm_choices_are_split(const LmLayout *layout)
{
    return layout->tp.ranks > 1 && (layout->flow[0] == LM_FLOW_SPLIT_TOKENS ||
                                    (layout->sequence && layout->flow[0] == LM_FLOW_LOCAL));
}

void lm_set_tokens(Lm *lm, const int32_t *ids, const int32_t *targets, Stream stream)
{
    uint64_t bytes = (uint64_t)lm->settings.tokens * sizeof(int32_t);
    if (bytes == 0)
        return;
    device_copy(lm->ids, ids, bytes, stream);
    device_copy(lm->targets, targets, bytes, stream);
    stream_wait(stream);
}

double lm_loss_sum(const Lm *lm, int part, Stream stream)
{
    double totals[CROSS_ENTROPY_TOTALS];
    device_copy(totals, lm->totals + part * CROSS_ENTROPY_TOTALS, sizeof totals, stream);
    stream_wait(stream);
    return totals[CROSS_ENTROPY_SUM];
}

void lm_count_choices(const Lm *lm, int64_t *counts, Stream stream)
{
    const MoeConfig *c = &config_of(lm)->moe;
    for (int layer = 0; layer < config_of(lm)->layers; layer++)
        for (int group = 0; group < lm->settings.groups; group++) {
            const Moe *moe = lm->block[layer].moe[group];
            int64_t choices = moe_tokens(moe) * c->top_k;
            int32_t *host = lm->choices;
            if (choices > 0)
                device_copy(host, moe_expert_of_choice(moe), (uint64_t)choices * sizeof(int32_t),
                            stream);
            stream_wait(stream);
            for (int64_t i = 0; i < choices; i++)
                counts[layer * c->experts + host[i]]++;
        }
}

void lm_set_expert_bias(Lm *lm, int layer, const float *bias, Stream stream)
{
    device_copy(lm->block[layer].expert_bias, bias,
                (uint64_t)config_of(lm)->moe.experts * sizeof(float), stream);
    stream_wait(stream);
}

GroupedGemm lm_product(const Lm *lm, GemmForm form, LmRows rows)
{
    int64_t count = rows == LM_ROWS_MINE ? lm->rows : lm->settings.tokens;
    return (GroupedGemm){.form = form,
                         .dtype = config_of(lm)->dtype,
                         .out_dtype = config_of(lm)->dtype,
                         .groups = 1,
                         .rows_max = count,
                         .rows_expected = count,
                         .group_first = lm->all_first[rows],
                         .group_rows = lm->all_rows[rows],
                         .threads = lm->settings.threads};
}

GroupedGemm lm_part_product(const Lm *lm, LmRows rows, int part)
{
    GroupedGemm product = lm_product(lm, GEMM_TN, rows);
    product.out_dtype = DTYPE_F32;
    product.accumulate = lm->again;
    product.rows_expected = lm->range[rows][part].count;
    product.group_first = lm->part_first[rows] + part;
    product.group_rows = lm->part_rows[rows] + part;
    return product;
}

static const void *row_at(const void *matrix, DType dtype, int64_t row, int64_t stride)
{
    return (const char *)matrix + dtype_bytes(dtype, (uint64_t)(row * stride));
}

void lm_multiply(const Lm *lm, const GroupedGemm *product, int64_t first_row, Stream stream)
{
    const GroupedGemm *p = product;
    CHECK_RULE(p->form == GEMM_TN || first_row == 0);
    if (lm->settings.exact) {
        grouped_gemm(product, stream);
        return;
    }
    dense_gemm(&(DenseGemm){.form = p->form,
                            .dtype = p->dtype,
                            .out_dtype = p->out_dtype,
                            .accumulate = p->accumulate,
                            .rows = p->rows_expected,
                            .m = p->m,
                            .n = p->n,
                            .k = p->k,
                            .a = row_at(p->a, p->dtype, first_row, p->a_stride),
                            .b = row_at(p->b, p->dtype, first_row, p->b_stride),
                            .c = p->c,
                            .workspace = lm->product_workspace,
                            .threads = p->threads},
               stream);
}

void lm_cast(const Lm *lm, const void *from, DType from_dtype, void *to, DType to_dtype,
             int64_t rows, Stream stream)
{
    cast_copy(&(CastCopy){.count = rows * config_of(lm)->dim,
                          .from_dtype = from_dtype,
                          .to_dtype = to_dtype,
                          .from = from,
                          .to = to},
              stream);
}

void lm_sum_over_tp(Lm *lm, void *out, Stream stream)
{
    const LmSettings *s = &lm->settings;
    int64_t dim = config_of(lm)->dim;
    DType wire = lm_tp_wire(s->layout, s->exact);
    float *sum = lm->wide;
    if (s->layout->sequence) {
        const void *terms = lm->wide;
        if (wire != DTYPE_F32) {
            lm_cast(lm, lm->wide, DTYPE_F32, lm->narrow, wire, lm->all_padded, stream);
            terms = lm->narrow;
        }
        sum = lm->wide + s->tp.rank * lm->rows_padded * dim;
        ordered_reduce_scatter(&(OrderedScatter){.comm = s->tp,
                                                 .count = lm->rows_padded * dim,
                                                 .wire = wire,
                                                 .in = terms,
                                                 .out = sum,
                                                 .scratch = lm->tp_scratch},
                               stream);
    } else {
        ordered_all_reduce(&(OrderedReduce){.comm = s->tp,
                                            .count = s->tokens * dim,
                                            .wire = wire,
                                            .values = sum,
                                            .scratch = lm->tp_scratch},
                           stream);
    }
    lm_cast(lm, sum, DTYPE_F32, out, config_of(lm)->dtype, lm->rows, stream);
}

void lm_gather_over_tp(Lm *lm, const void *mine, void *all, Stream stream)
{
    int64_t share = lm->all_padded / lm->settings.tp.ranks;
    uint64_t bytes = dtype_bytes(config_of(lm)->dtype, (uint64_t)(share * config_of(lm)->dim));
    comm_all_gather(lm->settings.tp, mine, all, bytes, stream);
}

void lm_group_rows(const Lm *lm, int group, void *whole, void *packed, bool pack, Stream stream)
{
    const LmSettings *s = &lm->settings;
    int64_t at = 0;
    for (int part = 0; part < s->parts; part++) {
        LmRange range = lm->range[LM_ROWS_MINE][part];
        if ((s->group_of_part && s->group_of_part[part] != group) || range.count == 0)
            continue;
        char *one = lm_rows_at(lm, whole, range.first), *other = lm_rows_at(lm, packed, at);
        uint64_t bytes =
            dtype_bytes(config_of(lm)->dtype, (uint64_t)(range.count * config_of(lm)->dim));
        device_copy(pack ? other : one, pack ? one : other, bytes, stream);
        at += range.count;
    }
}
