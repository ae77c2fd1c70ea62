// parallel_ep_cases.h -- steps of expert parallelism with known experts, on any device and
// transport, compared bit for bit with sums made here from the definition. The tests that go
// through them are in parallel_ep_tests.h.
//
// Expert e turns a row into round(scale(e) * row rotated by e), so a result says which expert made
// it. Every input is a function of the global token index; so is what is expected, whatever the
// ranks.
#pragma once

#include <math.h>

#include "parallel/ep.h"
#include "parallel/shard.h"
#include "tests/parallel_job.h"

enum { EP_CASE_EXPERTS_MAX = 64, EP_CASE_TOP_K_MAX = 8, EP_CASE_HIDDEN_MAX = 256 };
enum { STREAM_CHOICE = 1, STREAM_WEIGHT, STREAM_X, STREAM_DY, STREAM_ADDEND, STREAM_GATE };

typedef struct EpCase {
    const char *name;
    int experts, top_k;
    int64_t hidden;
    DType dtype;
    int align;
    int64_t tokens[8]; // of rank r: tokens[r % 8]
    bool crowded;      // every token takes expert 0
} EpCase;

typedef struct EpSetting {
    Comm comm;
    Stream stream;
    Arena *arena;
    uint64_t seed;
    EpTransport transport;
} EpSetting;

// How one run of a case differs from another.
typedef struct EpMode {
    bool exact, score_before;
    int group_size; // of the sums: experts per (virtual) rank, 0 = by slot
} EpMode;

// Device memory of one rank.
typedef struct EpStep {
    int64_t tokens, first_token;
    void *x, *dy, *y, *dx, *expert_rows;
    int32_t *expert_of_slot;
    float *weight_of_slot, *dweight_of_slot, *dweight_of_expert_row, *addend, *addend_weight;
} EpStep;

static inline float case_round(DType dtype, float value)
{
    return dtype == DTYPE_BF16 ? f32_from_bf16(bf16_from_f32(value)) : value;
}

static inline float case_get(const void *array, DType dtype, int64_t i)
{
    return dtype == DTYPE_BF16 ? f32_from_bf16(((const uint16_t *)array)[i])
                               : ((const float *)array)[i];
}

static inline void case_set(void *array, DType dtype, int64_t i, float value)
{
    if (dtype == DTYPE_BF16)
        ((uint16_t *)array)[i] = bf16_from_f32(value);
    else
        ((float *)array)[i] = value;
}

static inline int64_t case_first_token(const EpCase *c, int rank)
{
    int64_t first = 0;
    for (int before = 0; before < rank; before++)
        first += c->tokens[before % 8];
    return first;
}

// The token's slots: distinct experts, ascending, each with a weight.
static inline void case_slots(const EpCase *c, uint64_t seed, int64_t token, int32_t *expert,
                              float *weight)
{
    int32_t order[EP_CASE_EXPERTS_MAX];
    for (int e = 0; e < c->experts; e++)
        order[e] = e;
    for (int j = c->crowded; j < c->top_k; j++) {
        uint64_t draw = (uint64_t)token * EP_CASE_TOP_K_MAX + (uint64_t)j;
        int other =
            j + (int)(random_block(seed, STREAM_CHOICE, draw).word[0] % (uint32_t)(c->experts - j));
        int32_t swap = order[j];
        order[j] = order[other];
        order[other] = swap;
    }
    for (int j = 0; j < c->top_k; j++) {
        int at = j;
        for (; at > 0 && expert[at - 1] > order[j]; at--)
            expert[at] = expert[at - 1];
        expert[at] = order[j];
        uint64_t draw = (uint64_t)token * EP_CASE_TOP_K_MAX + (uint64_t)j;
        weight[j] = 0.05f + random_uniform(seed, STREAM_WEIGHT, draw);
    }
}

static inline void case_row(const EpCase *c, uint64_t seed, uint32_t what, int64_t token,
                            float *row)
{
    for (int64_t h = 0; h < c->hidden; h++)
        row[h] = case_round(c->dtype, random_normal(seed, what, (uint64_t)(token * c->hidden + h)));
}

static inline float expert_scale(int expert)
{
    return 0.25f * (float)(1 + expert % 7);
}

// turns: 1 forward, 2 backward.
static inline void expert_run(const EpCase *c, int expert, int turns, const float *in, float *out)
{
    for (int64_t h = 0; h < c->hidden; h++)
        out[h] = case_round(c->dtype, expert_scale(expert) * in[(h + turns * expert) % c->hidden]);
}

static inline float expert_dweight(const EpCase *c, int expert, const float *x, const float *dy)
{
    return expert_scale(expert) * x[0] * dy[c->hidden - 1];
}

static inline void expect_same(const char *what, const EpCase *c, int64_t token, int64_t i,
                               float found, float expected)
{
    if (memcmp(&found, &expected, sizeof(float)) != 0 && !(found == 0 && expected == 0))
        fail_msg("%s: %s of token %lld [%lld] is %.9g, expected %.9g", c->name, what,
                 (long long)token, (long long)i, (double)found, (double)expected);
}

static inline EpStep case_allocate(const EpSetting *s, const EpCase *c, const Ep *ep)
{
    int rank = s->comm.rank;
    int64_t tokens = c->tokens[rank % 8], slots = tokens * c->top_k;
    int64_t rows = ep_rows(ep)->expert_rows_max;
    uint64_t row_bytes = dtype_bytes(c->dtype, (uint64_t)c->hidden);
    Arena *a = s->arena;
    return (EpStep){
        .tokens = tokens,
        .first_token = case_first_token(c, rank),
        .x = arena_push(a, (uint64_t)tokens * row_bytes, MEMORY_ACTIVATIONS),
        .dy = arena_push(a, (uint64_t)tokens * row_bytes, MEMORY_ACTIVATIONS),
        .y = arena_push(a, (uint64_t)tokens * row_bytes, MEMORY_ACTIVATIONS),
        .dx = arena_push(a, (uint64_t)tokens * row_bytes, MEMORY_ACTIVATIONS),
        .expert_rows = arena_push(a, (uint64_t)rows * row_bytes, MEMORY_ACTIVATIONS),
        .expert_of_slot = ARENA_PUSH(a, int32_t, slots, MEMORY_ACTIVATIONS),
        .weight_of_slot = ARENA_PUSH(a, float, slots, MEMORY_ACTIVATIONS),
        .dweight_of_slot = ARENA_PUSH(a, float, slots, MEMORY_ACTIVATIONS),
        .dweight_of_expert_row = ARENA_PUSH(a, float, rows, MEMORY_ACTIVATIONS),
        .addend = ARENA_PUSH(a, float, tokens * c->hidden, MEMORY_ACTIVATIONS),
        .addend_weight = ARENA_PUSH(a, float, tokens, MEMORY_ACTIVATIONS),
    };
}

static inline void fill_rows(const EpSetting *s, const EpCase *c, const EpStep *step, uint64_t seed,
                             uint32_t what, void *out)
{
    float row[EP_CASE_HIDDEN_MAX];
    uint64_t bytes = dtype_bytes(c->dtype, (uint64_t)(step->tokens * c->hidden));
    void *host = host_memory(bytes);
    for (int64_t t = 0; t < step->tokens; t++) {
        case_row(c, seed, what, step->first_token + t, row);
        for (int64_t h = 0; h < c->hidden; h++)
            case_set(host, c->dtype, t * c->hidden + h, row[h]);
    }
    put_and_free(out, host, bytes, s->stream);
}

// Puts this step's routing and inputs into device memory.
static inline void case_fill(const EpSetting *s, const EpCase *c, const EpStep *step, uint64_t seed)
{
    uint64_t slots = (uint64_t)(step->tokens * c->top_k);
    uint64_t elements = (uint64_t)(step->tokens * c->hidden), tokens = (uint64_t)step->tokens;
    int32_t *expert = host_memory(slots * sizeof(int32_t));
    float *weight = host_memory(slots * sizeof(float));
    float *addend = host_memory(elements * sizeof(float));
    float *gate = host_memory(tokens * sizeof(float));
    for (int64_t t = 0; t < step->tokens; t++) {
        int64_t token = step->first_token + t;
        case_slots(c, seed, token, expert + t * c->top_k, weight + t * c->top_k);
        gate[t] = random_uniform(seed, STREAM_GATE, (uint64_t)token);
        for (int64_t h = 0; h < c->hidden; h++)
            addend[t * c->hidden + h] =
                random_normal(seed, STREAM_ADDEND, (uint64_t)(token * c->hidden + h));
    }
    put_and_free(step->expert_of_slot, expert, slots * sizeof(int32_t), s->stream);
    put_and_free(step->weight_of_slot, weight, slots * sizeof(float), s->stream);
    put_and_free(step->addend, addend, elements * sizeof(float), s->stream);
    put_and_free(step->addend_weight, gate, tokens * sizeof(float), s->stream);
    fill_rows(s, c, step, seed, STREAM_X, step->x);
    fill_rows(s, c, step, seed, STREAM_DY, step->dy);
}

// Compares what arrived with what every token of every rank sends: rows, weights, order (source
// rank, token), padding.
static inline void check_dispatch(const EpSetting *s, const EpCase *c, const Ep *ep, uint64_t seed,
                                  bool backward)
{
    const EpRows *rows = ep_rows(ep);
    uint64_t room = (uint64_t)rows->expert_rows_max, row_elements = (uint64_t)c->hidden;
    bool local = ep_transport(ep) == EP_LOCAL;
    uint64_t received = local ? (uint64_t)c->tokens[s->comm.rank % 8]
                              : (uint64_t)(rows->shape.ranks * rows->shape.tokens_max);
    uint64_t groups = (uint64_t)rows->experts_local * sizeof(int32_t);
    int32_t *group_first = host_copy(rows->group_first, groups, s->stream);
    int32_t *group_rows = host_copy(rows->group_rows, groups, s->stream);
    int32_t *row_of = host_copy(rows->row_of_expert_row, room * sizeof(int32_t), s->stream);
    float *weight_of = host_copy(rows->weight_of_expert_row, room * sizeof(float), s->stream);
    int32_t *total = host_copy(rows->rows_total, sizeof(int32_t), s->stream);
    void *data = host_copy(backward ? rows->dy_rows : rows->x_rows,
                           dtype_bytes(c->dtype, received * row_elements), s->stream);
    Shard shard = shard_of(c->experts, s->comm.ranks, s->comm.rank);
    assert_int_equal(rows->experts_local, shard.count);
    assert_int_equal(rows->first_expert, shard.first);
    int64_t tokens_all = case_first_token(c, s->comm.ranks), next = 0;
    for (int local_expert = 0; local_expert < rows->experts_local; local_expert++) {
        int64_t at = next;
        assert_int_equal(group_first[local_expert], next);
        for (int64_t token = 0; token < tokens_all; token++) {
            int32_t expert[EP_CASE_TOP_K_MAX];
            float weight[EP_CASE_TOP_K_MAX], row[EP_CASE_HIDDEN_MAX];
            case_slots(c, seed, token, expert, weight);
            for (int j = 0; j < c->top_k; j++) {
                if (expert[j] != rows->first_expert + local_expert)
                    continue;
                assert_in_range(row_of[at], 0, received - 1);
                expect_same("routing weight", c, token, j, weight_of[at], weight[j]);
                case_row(c, seed, backward ? STREAM_DY : STREAM_X, token, row);
                for (int64_t h = 0; h < c->hidden; h++)
                    expect_same(backward ? "dy row" : "x row", c, token, h,
                                case_get(data, c->dtype, row_of[at] * c->hidden + h), row[h]);
                at++;
            }
        }
        int64_t real = at - next, padded = (real + c->align - 1) / c->align * c->align;
        padded = c->align > 1 && real == 0 ? c->align : padded;
        assert_int_equal(group_rows[local_expert], real);
        for (; at < next + padded; at++)
            assert_int_equal(row_of[at], -1);
        next += padded;
    }
    assert_int_equal(*total, next);
    assert_true(next <= rows->expert_rows_max);
    free(group_first);
    free(group_rows);
    free(row_of);
    free(weight_of);
    free(total);
    free(data);
}

// The experts of this rank, on the host: reads the rows that arrived, leaves results (and dweights)
// in device memory.
static inline void run_experts(const EpSetting *s, const EpCase *c, const Ep *ep,
                               const EpStep *step, int turns)
{
    const EpRows *rows = ep_rows(ep);
    bool local = ep_transport(ep) == EP_LOCAL, backward = turns == 2;
    uint64_t room = (uint64_t)rows->expert_rows_max;
    uint64_t received =
        local ? (uint64_t)step->tokens : (uint64_t)(rows->shape.ranks * rows->shape.tokens_max);
    uint64_t received_bytes = dtype_bytes(c->dtype, received * (uint64_t)c->hidden);
    uint64_t result_bytes = dtype_bytes(c->dtype, room * (uint64_t)c->hidden);
    uint64_t groups = (uint64_t)rows->experts_local * sizeof(int32_t);
    int32_t *group_first = host_copy(rows->group_first, groups, s->stream);
    int32_t *group_rows = host_copy(rows->group_rows, groups, s->stream);
    int32_t *row_of = host_copy(rows->row_of_expert_row, room * sizeof(int32_t), s->stream);
    void *x = host_copy(rows->x_rows, received_bytes, s->stream);
    void *dy = backward ? host_copy(rows->dy_rows, received_bytes, s->stream) : NULL;
    void *result = host_memory(result_bytes);
    float *dweight = host_memory(room * sizeof(float));
    memset(result, 0xFF, result_bytes); // NaN wherever nothing is computed
    memset(dweight, 0xFF, room * sizeof(float));
    for (int e = 0; e < rows->experts_local; e++)
        for (int64_t at = group_first[e]; at < group_first[e] + group_rows[e]; at++) {
            float x_row[EP_CASE_HIDDEN_MAX], dy_row[EP_CASE_HIDDEN_MAX], out[EP_CASE_HIDDEN_MAX];
            int expert = rows->first_expert + e;
            for (int64_t h = 0; h < c->hidden; h++) {
                x_row[h] = case_get(x, c->dtype, row_of[at] * c->hidden + h);
                dy_row[h] = backward ? case_get(dy, c->dtype, row_of[at] * c->hidden + h) : 0;
            }
            expert_run(c, expert, turns, backward ? dy_row : x_row, out);
            for (int64_t h = 0; h < c->hidden; h++)
                case_set(result, c->dtype, at * c->hidden + h, out[h]);
            dweight[at] = expert_dweight(c, expert, x_row, dy_row);
        }
    put_and_free(step->expert_rows, result, result_bytes, s->stream);
    put_and_free(step->dweight_of_expert_row, dweight, room * sizeof(float), s->stream);
    free(group_first);
    free(group_rows);
    free(row_of);
    free(x);
    free(dy);
}

// One element of a token's sum by the definition: f32, slots by ascending expert, in groups that
// are rounded; beside it the same in double, which no order can spoil, and the bound between the
// two.
static inline float reference_sum(const EpCase *c, const EpMode *mode, const int32_t *expert,
                                  const float *term, const float *weight, float addend, float gate)
{
    float total = 0, partial = 0;
    double wide = (double)gate * (double)addend, magnitude = fabs(wide);
    for (int j = 0; j < c->top_k; j++) {
        if (mode->group_size > 0 && j > 0 &&
            expert[j] / mode->group_size != expert[j - 1] / mode->group_size) {
            total += case_round(c->dtype, partial);
            partial = 0;
        }
        float w = weight ? weight[j] : 1;
        partial = fmaf(w, term[j], partial);
        wide += (double)w * (double)term[j];
        magnitude += fabs((double)w * (double)term[j]);
    }
    total = mode->group_size > 0 ? total + case_round(c->dtype, partial) : partial;
    float sum = case_round(c->dtype, fmaf(gate, addend, total));
    double roundings = c->top_k + 3, unit = c->dtype == DTYPE_BF16 ? 0x1p-8 : 0x1p-24;
    if (fabs(sum - wide) > roundings * unit * magnitude)
        fail_msg("%s: the reference %.9g is off from %.17g in double", c->name, (double)sum, wide);
    return sum;
}

// Compares y or dx of this rank's tokens, bit for bit.
static inline void check_sums(const EpSetting *s, const EpCase *c, const EpMode *mode,
                              const EpStep *step, uint64_t seed, int turns, const void *out)
{
    bool backward = turns == 2, weighted = backward == mode->score_before;
    void *found =
        host_copy(out, dtype_bytes(c->dtype, (uint64_t)(step->tokens * c->hidden)), s->stream);
    for (int64_t t = 0; t < step->tokens; t++) {
        int64_t token = step->first_token + t;
        int32_t expert[EP_CASE_TOP_K_MAX];
        float weight[EP_CASE_TOP_K_MAX], in[EP_CASE_HIDDEN_MAX];
        float result[EP_CASE_TOP_K_MAX][EP_CASE_HIDDEN_MAX];
        case_slots(c, seed, token, expert, weight);
        case_row(c, seed, backward ? STREAM_DY : STREAM_X, token, in);
        for (int j = 0; j < c->top_k; j++)
            expert_run(c, expert[j], turns, in, result[j]);
        float gate = backward ? 1 : random_uniform(seed, STREAM_GATE, (uint64_t)token);
        for (int64_t h = 0; h < c->hidden; h++) {
            float term[EP_CASE_TOP_K_MAX];
            for (int j = 0; j < c->top_k; j++)
                term[j] = result[j][h];
            float addend = random_normal(seed, STREAM_ADDEND, (uint64_t)(token * c->hidden + h));
            float expected =
                reference_sum(c, mode, expert, term, weighted ? weight : NULL, addend, gate);
            expect_same(backward ? "dx" : "y", c, token, h,
                        case_get(found, c->dtype, t * c->hidden + h), expected);
        }
    }
    free(found);
}

static inline void check_dweights(const EpSetting *s, const EpCase *c, const EpStep *step,
                                  uint64_t seed)
{
    float *found = host_copy(step->dweight_of_slot,
                             (uint64_t)(step->tokens * c->top_k) * sizeof(float), s->stream);
    for (int64_t t = 0; t < step->tokens; t++) {
        int64_t token = step->first_token + t;
        int32_t expert[EP_CASE_TOP_K_MAX];
        float weight[EP_CASE_TOP_K_MAX], x[EP_CASE_HIDDEN_MAX], dy[EP_CASE_HIDDEN_MAX];
        case_slots(c, seed, token, expert, weight);
        case_row(c, seed, STREAM_X, token, x);
        case_row(c, seed, STREAM_DY, token, dy);
        for (int j = 0; j < c->top_k; j++)
            expect_same("dweight", c, token, j, found[t * c->top_k + j],
                        expert_dweight(c, expert[j], x, dy));
    }
    free(found);
}

// One step, forward and (unless forward_only) backward, with every stage checked.
static inline void run_step(const EpSetting *s, const EpCase *c, const EpMode *mode, Ep *ep,
                            const EpStep *step, uint64_t seed, bool forward_only)
{
    bool local = ep_transport(ep) == EP_LOCAL;
    case_fill(s, c, step, seed);
    ep_plan(ep, step->expert_of_slot, step->weight_of_slot, s->stream);
    ep_dispatch(ep, step->x, s->stream);
    check_dispatch(s, c, ep, seed, false);
    run_experts(s, c, ep, step, 1);
    EpReturn forward = {.expert_rows = step->expert_rows, .weighted = !mode->score_before};
    ep_return(ep, &forward, s->stream);
    EpSum forward_sum = {.expert_rows = step->expert_rows,
                         .weighted = !mode->score_before,
                         .addend = step->addend,
                         .addend_weight = step->addend_weight,
                         .group_size = local ? mode->group_size : 0,
                         .out = step->y};
    ep_sum(ep, &forward_sum, s->stream);
    check_sums(s, c, mode, step, seed, 1, step->y);
    if (forward_only)
        return;
    ep_dispatch_back(ep, step->dy, s->stream);
    check_dispatch(s, c, ep, seed, true);
    run_experts(s, c, ep, step, 2);
    EpReturn backward = {.expert_rows = step->expert_rows,
                         .weighted = mode->score_before,
                         .dweight_of_expert_row = step->dweight_of_expert_row,
                         .dweight_of_slot = step->dweight_of_slot};
    ep_return(ep, &backward, s->stream);
    EpSum backward_sum = {.expert_rows = step->expert_rows,
                          .weighted = mode->score_before,
                          .addend = step->addend,
                          .group_size = local ? mode->group_size : 0,
                          .out = step->dx};
    ep_sum(ep, &backward_sum, s->stream);
    check_sums(s, c, mode, step, seed, 2, step->dx);
    check_dweights(s, c, step, seed);
}

// Rows and slots that `source` sends to `target`, counted token by token.
typedef struct EpCount {
    uint64_t rows, slots;
} EpCount;
static inline EpCount count_between(const EpSetting *s, const EpCase *c, uint64_t seed, int source,
                                    int target)
{
    EpCount count = {0};
    Shard shard = shard_of(c->experts, s->comm.ranks, target);
    for (int64_t t = 0; t < c->tokens[source % 8]; t++) {
        int32_t expert[EP_CASE_TOP_K_MAX];
        float weight[EP_CASE_TOP_K_MAX];
        case_slots(c, seed, case_first_token(c, source) + t, expert, weight);
        uint64_t slots = 0;
        for (int j = 0; j < c->top_k; j++)
            slots += expert[j] >= shard.first && expert[j] < shard.first + shard.count;
        count.slots += slots;
        count.rows += slots > 0;
    }
    return count;
}

static inline void check_traffic(const EpSetting *s, const EpCase *c, const EpMode *mode,
                                 const Ep *ep, uint64_t seed)
{
    EpTraffic found = ep_traffic(ep, s->stream), expected = {0};
    const MoeShape *shape = &ep_rows(ep)->shape;
    EpTransport transport = ep_transport(ep);
    uint64_t row_bytes = dtype_bytes(c->dtype, (uint64_t)c->hidden);
    uint64_t experts_per_rank = (uint64_t)shard_size(c->experts, s->comm.ranks);
    uint64_t slots_max =
        experts_per_rank < (uint64_t)c->top_k ? experts_per_rank : (uint64_t)c->top_k;
    uint64_t record_bytes = 4 * (2 + experts_per_rank), header_bytes = 4 * (4 + 3 * slots_max);
    uint64_t tokens_max = (uint64_t)shape->tokens_max;
    for (int rank = 0; rank < s->comm.ranks; rank++) {
        EpCount to = count_between(s, c, seed, s->comm.rank, rank);
        EpCount from = count_between(s, c, seed, rank, s->comm.rank);
        expected.expert_rows += (int64_t)from.slots;
        if (rank == s->comm.rank)
            continue;
        expected.dispatch_logical_bytes += to.slots * row_bytes;
        expected.combine_logical_bytes += from.slots * row_bytes;
        if (transport == EP_NCCL) {
            expected.dispatch_wire_bytes += record_bytes + tokens_max * (header_bytes + row_bytes);
            expected.combine_wire_bytes += tokens_max * (mode->exact ? slots_max : 1) * row_bytes;
            continue;
        }
        uint64_t headers =
            transport == EP_MPI ? to.rows * header_bytes : 4 * (4 * to.rows + 3 * to.slots);
        expected.dispatch_wire_bytes += record_bytes + headers + to.rows * row_bytes;
        expected.combine_wire_bytes += (mode->exact ? from.slots : from.rows) * row_bytes;
    }
    assert_int_equal(found.expert_rows, expected.expert_rows);
    assert_int_equal(found.dispatch_logical_bytes, expected.dispatch_logical_bytes);
    assert_int_equal(found.combine_logical_bytes, expected.combine_logical_bytes);
    assert_int_equal(found.dispatch_wire_bytes, expected.dispatch_wire_bytes);
    assert_int_equal(found.combine_wire_bytes, expected.combine_wire_bytes);
}

static inline Ep *case_create(const EpSetting *s, const EpCase *c, const EpMode *mode)
{
    EpSettings settings = {
        .comm = s->comm,
        .experts = c->experts,
        .top_k = c->top_k,
        .hidden = c->hidden,
        .tokens = c->tokens[s->comm.rank % 8],
        .dtype = c->dtype,
        .align = c->align,
        .exact = mode->exact,
        .transport = s->transport,
        .arena = s->arena,
        .device = s->stream.device,
    };
    return ep_create(&settings);
}

// Several steps with fresh routing through the same buffers: nothing of an earlier step may show in
// a later one.
static inline void run_case(const EpSetting *s, const EpCase *c, const EpMode *mode, int steps)
{
    ArenaMark mark = arena_mark(s->arena);
    Ep *ep = case_create(s, c, mode);
    if (s->comm.ranks > 1 && s->transport != EP_AUTO)
        assert_int_equal(ep_transport(ep), s->transport);
    EpStep step = case_allocate(s, c, ep);
    for (int i = 0; i < steps; i++) {
        uint64_t seed = s->seed + (uint64_t)i * 1000003;
        run_step(s, c, mode, ep, &step, seed, i % 2 == 1);
        check_traffic(s, c, mode, ep, seed);
    }
    ep_destroy(ep);
    arena_release(s->arena, mark);
}

static const EpCase ep_cases[] = {
    {"one expert a token", 4, 1, 8, DTYPE_BF16, 8, {4, 4, 4, 4, 4, 4, 4, 4}, false},
    {"60 experts, top-4", 60, 4, 24, DTYPE_F32, 1, {13, 7, 13, 11, 1, 13, 2, 9}, false},
    {"60 experts, top-4, bf16", 60, 4, 64, DTYPE_BF16, 16, {9, 14, 3, 3, 8, 0, 5, 6}, false},
    {"ranks without tokens", 8, 2, 16, DTYPE_F32, 1, {5, 0, 3, 1, 0, 0, 7, 0}, false},
    {"nobody has tokens", 8, 2, 16, DTYPE_F32, 8, {0}, false},
    {"ranks without experts", 3, 2, 12, DTYPE_F32, 4, {6, 5, 4, 3, 2, 1, 2, 3}, false},
    {"every expert every token", 8, 8, 20, DTYPE_BF16, 1, {3, 3, 0, 5, 3, 3, 3, 3}, false},
    {"all crowd to one expert", 16, 1, 16, DTYPE_F32, 1, {17, 9, 8, 1, 3, 2, 11, 5}, true},
    {"crowded, top-6", 37, 6, 40, DTYPE_F32, 32, {6, 12, 1, 0, 9, 4, 4, 4}, true},
    {"odd row", 5, 3, 7, DTYPE_BF16, 1, {4, 1, 2, 9, 1, 1, 3, 2}, false},
};

// Every case in both modes, with the score before and after the experts.
static inline void run_cases(const EpSetting *s)
{
    for (size_t i = 0; i < COUNT_OF(ep_cases); i++)
        for (int exact = 0; exact < 2; exact++)
            for (int before = 0; before < 2; before++) {
                const EpCase *c = &ep_cases[i];
                bool grouped = !exact && s->comm.ranks > 1;
                EpMode mode = {.exact = exact,
                               .score_before = before,
                               .group_size =
                                   grouped ? (int)shard_size(c->experts, s->comm.ranks) : 0};
                run_case(s, c, &mode, 3);
            }
}
