// The way home: what moe_return puts where, on 1 to 9 ranks in one process; sums at home in their
// stated order, bit for bit; exact and fast modes against the 1-rank reference of each; scaled rows
// and row dot products.
#include "tests/kernels_ranks.h"

// ---- sums, written out from the header: chains of fmaf

typedef struct Term {
    float weight, value;
    int expert;
} Term;

static float round_to(float value, DType dtype)
{
    return dtype == DTYPE_F32 ? value : f32_from_bf16(bf16_from_f32(value));
}

// Sum of the terms; with group_size the partial of each group is rounded and added.
static float chain(const Term *term, int count, int group_size, DType dtype)
{
    float total = 0, partial = 0;
    for (int i = 0; i < count; i++) {
        partial = fmaf(term[i].weight, term[i].value, partial);
        bool last = i + 1 == count;
        if (group_size &&
            (last || term[i + 1].expert / group_size != term[i].expert / group_size)) {
            total += round_to(partial, dtype);
            partial = 0;
        }
    }
    return group_size ? total : partial;
}

static MoeSum random_sum(Data *data, int64_t returned_rows)
{
    const int64_t widths[] = {1, 3, 8, 31, 511, 512, 513, 900};
    MoeSum args = {.tokens = data_below(data, 20),
                   .hidden = widths[data_below(data, COUNT_OF(widths))],
                   .width = 1 + (int)data_below(data, 6),
                   .dtype = data_below(data, 2) ? DTYPE_F32 : DTYPE_BF16};
    args.returned = data_normals(data, returned_rows * args.hidden, args.dtype, 1.0f);
    int64_t places = args.tokens * args.width, elements = args.tokens * args.hidden;
    int32_t *index = data_poisoned(data, places, sizeof(int32_t));
    int32_t *expert = data_poisoned(data, places, sizeof(int32_t));
    args.group_size = data_below(data, 2) ? 1 + (int)data_below(data, 4) : 0;
    for (int64_t i = 0; i < places; i++) {
        bool none = !args.group_size && data_below(data, 3) == 0;
        index[i] = none ? -1 : (int32_t)data_below(data, returned_rows);
        bool opens = i % args.width == 0;
        expert[i] = (int32_t)data_below(data, 4) + (opens ? 0 : expert[i - 1] + 1);
    }
    args.index = index;
    args.expert_of_slot = expert;
    if (data_below(data, 3))
        args.weight = data_normals(data, places, DTYPE_F32, 1.0f);
    if (data_below(data, 2))
        args.addend = data_normals(data, elements, DTYPE_F32, 1.0f);
    if (data_below(data, 2))
        args.addend_weight = data_normals(data, args.tokens, DTYPE_F32, 1.0f);
    args.out = data_poisoned(data, elements + 7, dtype_bytes(args.dtype, 1));
    return args;
}

static void sums_have_the_stated_bits(void **state)
{
    (void)state;
    Data data = data_create();
    enum { ROWS = 13 };
    for (int round = 0; round < 120; round++) {
        int mark = data.blocks;
        MoeSum args = random_sum(&data, ROWS);
        moe_sum(&args, CPU);
        int64_t elements = args.tokens * args.hidden;
        for (int64_t i = 0; i < elements; i++) {
            int64_t token = i / args.hidden, h = i % args.hidden;
            Term term[8];
            int terms = 0;
            for (int64_t place = token * args.width; place < (token + 1) * args.width; place++)
                if (args.index[place] >= 0)
                    term[terms++] = (Term){
                        args.weight ? args.weight[place] : 1.0f,
                        value_of(args.returned, args.dtype, args.index[place] * args.hidden + h),
                        args.expert_of_slot[place]};
            float expected = chain(term, terms, args.group_size, args.dtype);
            if (args.addend)
                expected = fmaf(args.addend_weight ? args.addend_weight[token] : 1.0f,
                                args.addend[i], expected);
            expect_same(value_of(args.out, args.dtype, i), round_to(expected, args.dtype), "sum",
                        i);
        }
        for (int64_t i = elements; i < elements + 7; i++)
            expect_poison(args.out, args.dtype, i, "past the end");
        data_release(&data, mark);
    }
    data_destroy(&data);
}

// ---- there and back

// The result of an expert for a token: any function of both, so that a misplaced row shows.
static float result_of(int expert, const float *x, int64_t h)
{
    return x[h] * (1.0f + (float)expert) - (float)h * 0.125f;
}

typedef struct Journey {
    DType dtype;
    void *expert_rows[RANKS_MAX]; // [expert_rows_max, hidden]; padding is NaN
    float *dweight[RANKS_MAX];    // [expert_rows_max]
    void *returned[RANKS_MAX];    // return buffers
    float *dweights_in[RANKS_MAX];
} Journey;

static Journey start_journey(Data *data, const TestRanks *all, DType dtype)
{
    Journey journey = {.dtype = dtype};
    const MoeShape *shape = &all->shape;
    int64_t places = shape->ranks * shape->tokens_max * shape->top_k;
    for (int r = 0; r < shape->ranks; r++) {
        const MoeMaps *maps = &all->rank[r].maps;
        void *rows =
            data_poisoned(data, maps->expert_rows_max * all->hidden, dtype_bytes(dtype, 1));
        journey.dweight[r] = data_poisoned(data, maps->expert_rows_max, sizeof(float));
        for (int local = 0; local < maps->experts_local; local++) {
            int32_t first = maps->group_first[local], end = first + maps->group_rows[local];
            for (int64_t at = first; at < end; at++) {
                const float *x = all->rank[r].rows_in + maps->row_of_expert_row[at] * all->hidden;
                int expert = r * shape->experts_per_rank + local;
                for (int64_t h = 0; h < all->hidden; h++)
                    put_value(rows, dtype, at * all->hidden + h, result_of(expert, x, h));
                journey.dweight[r][at] = x[0] + (float)expert;
            }
        }
        journey.expert_rows[r] = rows;
        journey.returned[r] = data_poisoned(data, places * all->hidden, dtype_bytes(dtype, 1));
        journey.dweights_in[r] = data_poisoned(data, places, sizeof(float));
    }
    return journey;
}

static void travel_home(const TestRanks *all, Journey *journey, bool exact, bool weighted)
{
    for (int r = 0; r < all->shape.ranks; r++) {
        const MoeMaps *maps = &all->rank[r].maps;
        MoeReturn args = {.shape = all->shape,
                          .exact = exact,
                          .hidden = all->hidden,
                          .dtype = journey->dtype,
                          .expert_rows = journey->expert_rows[r],
                          .counts = maps->counts,
                          .headers = maps->headers,
                          .expert_row_of_slot = maps->expert_row_of_slot,
                          .weight_of_expert_row =
                              weighted && !exact ? maps->weight_of_expert_row : NULL,
                          .rows_to = journey->returned,
                          .dweight_of_expert_row = journey->dweight[r],
                          .dweights_to = journey->dweights_in};
        moe_return(&args, CPU);
    }
}

// y of rank `home`, [tokens, hidden], from what came.
static const void *sum_at_home(Data *data, const TestRanks *all, const Journey *journey, int home,
                               bool exact, bool weighted)
{
    const TestRank *rank = &all->rank[home];
    const MoePlan *plan = &rank->plan;
    MoeSum args = {.tokens = rank->tokens,
                   .hidden = all->hidden,
                   .width = exact ? all->shape.top_k : all->shape.ranks,
                   .dtype = journey->dtype,
                   .returned = journey->returned[home],
                   .index = exact ? plan->return_of_slot : plan->return_of_row,
                   .weight = exact && weighted ? rank->weight_of_slot : NULL};
    args.out = data_poisoned(data, rank->tokens * all->hidden, dtype_bytes(journey->dtype, 1));
    moe_sum(&args, CPU);
    return args.out;
}

// Both modes against the sum that a single rank makes: exact in one chain over the experts, fast
// grouped by rank.
static void expect_home(Data *data, const TestRanks *all, const Journey *journey, int home,
                        bool exact, bool weighted)
{
    const TestRank *rank = &all->rank[home];
    const MoeShape *shape = &all->shape;
    const void *y = sum_at_home(data, all, journey, home, exact, weighted);
    for (int64_t i = 0; i < rank->tokens * all->hidden; i++) {
        int64_t token = i / all->hidden, h = i % all->hidden;
        Term term[32];
        for (int j = 0; j < shape->top_k; j++) {
            int64_t slot = token * shape->top_k + j;
            int expert = rank->expert_of_slot[slot];
            float value = result_of(expert, rank->x + token * all->hidden, h);
            term[j] = (Term){weighted ? rank->weight_of_slot[slot] : 1.0f,
                             round_to(value, journey->dtype), expert};
        }
        float expected =
            chain(term, shape->top_k, exact ? 0 : shape->experts_per_rank, journey->dtype);
        expect_same(value_of(y, journey->dtype, i), round_to(expected, journey->dtype),
                    exact ? "exact y" : "fast y", i);
    }
    for (int64_t slot = 0; slot < rank->tokens * shape->top_k; slot++)
        expect_same(journey->dweights_in[home][rank->plan.return_of_slot[slot]],
                    rank->x[slot / shape->top_k * all->hidden] + (float)rank->expert_of_slot[slot],
                    "dweight", slot);
}

static void results_come_home(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 120; round++) {
        int mark = data.blocks;
        TestRanks all = ranks_random(&data);
        bool exact = data_below(&data, 2), weighted = data_below(&data, 2);
        ranks_dispatch(&data, &all);
        Journey journey = start_journey(&data, &all, data_below(&data, 2) ? DTYPE_F32 : DTYPE_BF16);
        travel_home(&all, &journey, exact, weighted);
        for (int home = 0; home < all.shape.ranks; home++)
            expect_home(&data, &all, &journey, home, exact, weighted);
        data_release(&data, mark);
    }
    data_destroy(&data);
}

// ---- rows on their way into an expert

static void rows_are_scaled(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 40; round++) {
        int mark = data.blocks;
        enum { SOURCES = 11 };
        int32_t total = (int32_t)data_below(&data, 30);
        MoeScaleRows args = {.hidden = 1 + data_below(&data, 700),
                             .rows_max = total + data_below(&data, 4),
                             .dtype = data_below(&data, 2) ? DTYPE_F32 : DTYPE_BF16,
                             .rows_total = &total};
        args.x = data_normals(&data, SOURCES * args.hidden, args.dtype, 1.0f);
        int32_t *row = data_poisoned(&data, args.rows_max, sizeof(int32_t));
        for (int32_t i = 0; i < total; i++)
            row[i] = (int32_t)data_below(&data, SOURCES + 1) - 1;
        args.row_of_expert_row = row;
        args.weight_of_expert_row = data_normals(&data, args.rows_max, DTYPE_F32, 1.0f);
        args.out = data_poisoned(&data, args.rows_max * args.hidden, dtype_bytes(args.dtype, 1));
        moe_scale_rows(&args, CPU);
        for (int64_t i = 0; i < args.rows_max * args.hidden; i++) {
            int64_t at = i / args.hidden;
            if (at >= total || row[at] < 0) {
                expect_poison(args.out, args.dtype, i, "scaled");
                continue;
            }
            float x = value_of(args.x, args.dtype, row[at] * args.hidden + i % args.hidden);
            expect_same(value_of(args.out, args.dtype, i),
                        round_to(args.weight_of_expert_row[at] * x, args.dtype), "scaled", i);
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

// The order of sums as moe_combine.h has it, and the distance to double.
static void expect_dot(const RowDot *args, int64_t row, int64_t row_of_b)
{
    float lane[32] = {0};
    double exact = 0, size = 0;
    for (int64_t h = 0; h < args->hidden; h++) {
        float a = value_of(args->a, args->dtype_a, row * args->hidden + h);
        float b = value_of(args->b, args->dtype_b, row_of_b * args->hidden + h);
        lane[h / 8 % 32] = fmaf(a, b, lane[h / 8 % 32]);
        exact += (double)a * b;
        size += fabs((double)a * b);
    }
    for (int apart = 16; apart > 0; apart /= 2)
        for (int i = 0; i < apart; i++)
            lane[i] += lane[i + apart];
    expect_same(args->out[row], lane[0], "dot", row);
    expect_near(args->out[row], exact, (double)(args->hidden / 32 + 14) * FLT_EPSILON * size, "dot",
                row);
}

static void dots_have_the_stated_order(void **state)
{
    (void)state;
    Data data = data_create();
    const int64_t widths[] = {1, 7, 8, 9, 255, 256, 257, 511, 512, 513, 1408};
    for (int round = 0; round < 60; round++) {
        int mark = data.blocks;
        enum { SOURCES = 9 };
        int32_t total = (int32_t)data_below(&data, SOURCES);
        RowDot args = {.hidden = widths[data_below(&data, COUNT_OF(widths))],
                       .rows_max = total + data_below(&data, 3),
                       .dtype_a = data_below(&data, 2) ? DTYPE_F32 : DTYPE_BF16,
                       .dtype_b = data_below(&data, 2) ? DTYPE_F32 : DTYPE_BF16,
                       .rows_total = &total};
        args.a = data_normals(&data, args.rows_max * args.hidden, args.dtype_a, 1.0f);
        args.b = data_normals(&data, SOURCES * args.hidden, args.dtype_b, 1.0f);
        int32_t *index = data_poisoned(&data, args.rows_max, sizeof(int32_t));
        for (int32_t i = 0; i < total; i++)
            index[i] = (int32_t)data_below(&data, SOURCES + 1) - 1;
        args.b_index = data_below(&data, 3) ? index : NULL;
        args.out = data_poisoned(&data, args.rows_max, sizeof(float));
        row_dot(&args, CPU);
        for (int64_t row = 0; row < args.rows_max; row++) {
            int64_t row_of_b = row >= total ? -1 : args.b_index ? args.b_index[row] : row;
            if (row_of_b < 0)
                expect_poison(args.out, DTYPE_F32, row, "dot");
            else
                expect_dot(&args, row, row_of_b);
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

static void costs(void **state)
{
    (void)state;
    MoeShape shape = moe_shape(2, 4, 2, 8);
    MoeReturn back = {.shape = shape, .exact = true, .hidden = 10, .dtype = DTYPE_BF16};
    expect_near(moe_return_cost(&back).bytes, 2.0 * 32 * 20 + 4 * (16 * 3 + 32), 0, "return", 0);
    MoeSum sum = {.tokens = 3, .hidden = 5, .width = 2, .dtype = DTYPE_F32};
    expect_near(moe_sum_cost(&sum).bytes, 4.0 * 9 * 5 + 4 * 6, 0, "sum bytes", 0);
    expect_near(moe_sum_cost(&sum).flops, 2.0 * 5 * 6, 0, "sum flops", 0);
    MoeScaleRows scale = {.hidden = 5, .rows_max = 3, .dtype = DTYPE_F32};
    expect_near(moe_scale_rows_cost(&scale).bytes, 2.0 * 15 * 4 + 24, 0, "scale bytes", 0);
    RowDot dot = {.hidden = 5, .rows_max = 3, .dtype_a = DTYPE_F32, .dtype_b = DTYPE_BF16};
    expect_near(row_dot_cost(&dot).bytes, 15 * 6 + 12, 0, "dot bytes", 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_have_the_stated_bits),
        cmocka_unit_test(results_come_home),
        cmocka_unit_test(rows_are_scaled),
        cmocka_unit_test(dots_have_the_stated_order),
        cmocka_unit_test(costs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
