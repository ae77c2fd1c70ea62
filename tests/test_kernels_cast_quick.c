// The arithmetic that the CUDA casts have of their own (kernels/cast/quick.h,
// kernels/cast/pairs.h), compiled for the CPU, and that of the CPU's loops (kernels/cast/lanes.h):
// the codes of cast_encode for every recipe and operand, wherever it says that it fits, in odd
// blocks and over every bf16 of ordinary ones; that it fits ordinary blocks; e2m1 over all floats
// (a strided subset of the bits); and the numbers that its proofs lean on.
#include "kernels/cast/lanes.h"
#include "quant/recipe.h"
#include "tests/kernels_data.h"

enum { BLOCK = 64, ROUNDS = 3000 };

typedef struct Tally {
    int64_t blocks, fitting, pairs, lanes;
} Tally;

static float value_at(Data *data, int kind, int exponent)
{
    static const float quarters[] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f, 6.0f};
    float value = ldexpf(data_normal(data), exponent);
    int64_t pick = data_below(data, 16);
    if (kind == 1 && pick < 3)
        value = pick == 0 ? 0.0f : -0.0f;
    if (kind == 2) // halves of codes: ties where the scale is a power of two
        value = ldexpf(quarters[pick % 8] * (pick < 8 ? 1.0f : -1.0f), exponent);
    if (kind == 3 && pick == 0)
        value = pick % 2 ? INFINITY : NAN;
    if (kind == 4)
        value = 0.0f;
    if (kind == 5)
        value = ldexpf(data_normal(data), -140 + (int)data_below(data, 20));
    if (kind == 6 && pick < 8)
        value = ldexpf(data_normal(data), exponent - 24 - (int)data_below(data, 100));
    return value;
}

static void fill(Data *data, DType input, float *x)
{
    int kind = (int)data_below(data, 8);
    int exponent =
        data_below(data, 4) ? (int)data_below(data, 12) - 6 : (int)data_below(data, 240) - 120;
    for (int i = 0; i < BLOCK; i++)
        x[i] = quant_round(input, value_at(data, kind, exponent));
}

static QuantStatistics statistics_of(const float *x)
{
    QuantStatistics s = {fabsf(x[0]), x[0], x[0]};
    for (int i = 0; i < BLOCK; i++) {
        if (isnan(x[i]))
            return (QuantStatistics){NAN, NAN, NAN};
        s.amax = fmaxf(s.amax, fabsf(x[i]));
        s.minimum = fminf(s.minimum, x[i]);
        s.maximum = fmaxf(s.maximum, x[i]);
    }
    return s;
}

static void check_words(const char *name, const QuantContext *context, const QuantBlock *block,
                        const float *x, const uint32_t *words)
{
    const QuantRule *rule = &context->rule;
    for (int e = 0; e < CAST_QUICK; e++) {
        uint32_t code = cast_byte(rule, cast_encode(context, block, x[e]));
        uint32_t ours = rule->code_layout == CODES_BYTES ? words[e / 4] >> e % 4 * 8 & 0xFFu
                                                         : words[0] >> e * 4 & 15u;
        if (ours != code)
            fail_msg("%s, %s: %a (scale %a, zero %a) has code %02X, quick %02X", name,
                     dtype_row(context->input)->name, x[e], block->scale, block->zero, code, ours);
    }
}

static void check_pairs(const char *name, const QuantContext *context, const QuantBlock *block,
                        const float *x)
{
    uint32_t pair[4], words[2];
    for (int p = 0; p < 4; p++)
        pair[p] = format_f32_bits(x[2 * p]) >> 16 | (format_f32_bits(x[2 * p + 1]) & 0xFFFF0000u);
    cast_pairs_codes(context, block, pair, words);
    check_words(name, context, block, x, words);
}

static void check_lane(const char *name, const QuantContext *context, const QuantBlock *block,
                       float x)
{
    const QuantRule *rule = &context->rule;
    const uint32_t mask = rule->code_layout == CODES_BYTES ? 0xFFu : 0xFu;
    uint32_t code = cast_byte(rule, cast_encode(context, block, x));
    uint32_t ours = cast_lane(context, block, x) & mask;
    if (ours != code)
        fail_msg("%s: %a under scale %a, zero %a has code %02X in its lane, not %02X", name, x,
                 block->scale, block->zero, ours, code);
}

static QuantBlock chosen(const char *name, const QuantContext *context, QuantStatistics s)
{
    QuantBlock plain = cast_choose(context, s), block = cast_quick_choose(context, s);
    if (plain.scale_bits != block.scale_bits || plain.zero_bits != block.zero_bits ||
        format_f32_bits(plain.scale) != format_f32_bits(block.scale) ||
        format_f32_bits(plain.multiplier) != format_f32_bits(block.multiplier))
        fail_msg(
            "%s: an amax of %a under %a has scale %a (%02X), 1 / scale %a; quick %a (%02X), %a",
            name, s.amax, context->tensor_scale, plain.scale, plain.scale_bits, plain.multiplier,
            block.scale, block.scale_bits, block.multiplier);
    cast_quick_ready(context, &block, s.amax);
    return block;
}

static void check_block(Data *data, const char *name, QuantContext *context, Tally *tally)
{
    const QuantRule *rule = &context->rule;
    float x[BLOCK], q[CAST_QUICK];
    fill(data, context->input, x);
    QuantStatistics s = statistics_of(x);
    context->tensor_scale = 1.0f;
    if (rule->method == QUANT_NVFP4 && rule->two_level)
        context->tensor_scale = quant_nvfp4_tensor_scale(s.amax * 3);
    if (rule->method == QUANT_NVFP4_CT)
        context->tensor_scale = quant_nvfp4_ct_tensor_scale(context->input, s.amax * 3);
    QuantBlock block = chosen(name, context, s);
    tally->blocks++;
    QuantBlock ready = block;
    cast_pairs_ready(context, &ready);
    if (cast_pairs_has(context) && cast_pairs_fits(context, &block, s.amax)) {
        tally->pairs++;
        for (int first = 0; first < BLOCK; first += CAST_QUICK)
            check_pairs(name, context, &ready, x + first);
    }
    if (context->input == DTYPE_BF16 && cast_lane_fits(context, &block, s.amax)) {
        tally->lanes++;
        for (int i = 0; i < BLOCK; i++)
            check_lane(name, context, &ready, x[i]);
    }
    if (!cast_quick_fits(context, &block, s.amax))
        return;
    tally->fitting++;
    for (int first = 0; first < BLOCK; first += CAST_QUICK) {
        uint32_t words[2];
        for (int e = 0; e < CAST_QUICK; e++)
            q[e] = cast_quick_scaled(context, &block, x[first + e]);
        cast_quick_pack(rule, q, words);
        check_words(name, context, &block, x + first, words);
    }
}

static void check_rule(Data *data, const char *name, const QuantRule *rule, DType input)
{
    Tally tally = {0};
    if (rule->method == QUANT_NONE)
        return;
    QuantContext context = {.rule = *rule, .input = input};
    for (int round = 0; round < ROUNDS; round++)
        check_block(data, name, &context, &tally);
    if (tally.fitting < tally.blocks / 3) // most kinds of blocks here are odd ones
        fail_msg("%s, %s: only %lld of %lld blocks fit", name, dtype_row(input)->name,
                 (long long)tally.fitting, (long long)tally.blocks);
    if (input == DTYPE_BF16 && cast_lane_has(rule) && tally.lanes < tally.blocks / 3)
        fail_msg("%s: only %lld of %lld blocks fit lanes", name, (long long)tally.lanes,
                 (long long)tally.blocks);
    if (cast_pairs_has(&context) && tally.pairs < tally.blocks / 4)
        fail_msg("%s: only %lld of %lld blocks fit pairs", name, (long long)tally.pairs,
                 (long long)tally.blocks);
}

// Every bf16 that the block may have, in lanes and in pairs.
static void check_bf16s(const char *name, const QuantContext *context, const QuantBlock *block,
                        QuantStatistics s, Tally *tally)
{
    const QuantMethod method = context->rule.method;
    const bool ranged = method == QUANT_RANGE || method == QUANT_TILE;
    const bool lanes = cast_lane_fits(context, block, s.amax);
    const bool pairs = cast_pairs_has(context) && cast_pairs_fits(context, block, s.amax);
    float x[CAST_QUICK];
    int count = 0;
    tally->blocks++;
    tally->lanes += lanes;
    tally->pairs += pairs;
    QuantBlock ready = *block;
    cast_pairs_ready(context, &ready);
    for (uint32_t bits = 0; bits < 0x10000u; bits++) {
        x[count] = format_f32_value(bits << 16);
        if (!(ranged ? x[count] >= s.minimum && x[count] <= s.maximum : fabsf(x[count]) <= s.amax))
            continue;
        if (lanes)
            check_lane(name, context, &ready, x[count]);
        count = (count + 1) % CAST_QUICK;
        if (pairs && count == 0)
            check_pairs(name, context, &ready, x);
    }
}

// Under blocks of ordinary tensors.
static void check_every_bf16(Data *data, const char *name, const QuantRule *rule, int blocks)
{
    QuantContext context = {.rule = *rule, .input = DTYPE_BF16};
    Tally tally = {0};
    if (rule->method == QUANT_NONE)
        return;
    for (int round = 0; round < blocks; round++) {
        int exponent = (int)data_below(data, 12) - 8;
        float high = quant_round(DTYPE_BF16, ldexpf(fabsf(data_normal(data)), exponent));
        float low = quant_round(DTYPE_BF16, -ldexpf(fabsf(data_normal(data)), exponent));
        QuantStatistics s = {fmaxf(high, -low), low, high};
        context.tensor_scale = 1.0f;
        if (rule->method == QUANT_NVFP4 && rule->two_level)
            context.tensor_scale =
                quant_nvfp4_tensor_scale(s.amax * (1 + fabsf(data_normal(data))));
        if (rule->method == QUANT_NVFP4_CT)
            context.tensor_scale =
                quant_nvfp4_ct_tensor_scale(DTYPE_BF16, quant_round(DTYPE_BF16, s.amax * 3));
        QuantBlock block = chosen(name, &context, s);
        check_bf16s(name, &context, &block, s, &tally);
    }
    const bool has_lanes = cast_lane_has(rule), has_pairs = cast_pairs_has(&context);
    if ((has_lanes && tally.lanes < tally.blocks * 3 / 4) ||
        (has_pairs && tally.pairs < tally.blocks * 3 / 4))
        fail_msg("%s: lanes fit %lld of %lld blocks, pairs %lld", name, (long long)tally.lanes,
                 (long long)tally.blocks, (long long)tally.pairs);
}

static void codes_of_every_bf16(void **state)
{
    (void)state;
    const char *given = getenv("MESHWORK_TEST_BLOCKS");
    const int blocks = given ? atoi(given) : 6;
    Data data = data_create();
    for (const Recipe *recipe = recipe_table; recipe->name; recipe++) {
        check_every_bf16(&data, recipe->name, &recipe->weights, blocks);
        check_every_bf16(&data, recipe->name, &recipe->activations, blocks);
    }
    data_destroy(&data);
}

// Where a number lies among the ties of e4m3, which have five bits at most: the bits down to the
// fifth, and whether there are more.
static uint32_t among_ties(float value)
{
    const uint32_t bits = format_f32_bits(value), below = (1u << 19) - 1;
    return (bits & ~below) | ((bits & below) != 0);
}

// All significands of bf16 over all of scales (MESHWORK_TEST_ALL=1; else a strided subset).
static void one_correction_finds_the_side_of_ties(void **state)
{
    (void)state;
    const uint32_t step = getenv("MESHWORK_TEST_ALL") ? 1 : 61;
    for (uint32_t s = 0; s < 1u << 23; s += step) {
        const float scale = format_f32_value(0x3F800000u | s), reciprocal = 1.0f / scale;
        uint32_t wrong = 0;
        for (uint32_t i = 0; i < 128; i++) {
            const float x = format_f32_value(0x3F800000u | i << 16);
            const float q = cast_quick_corrected(x * reciprocal, x, scale, reciprocal);
            wrong |= among_ties(q) ^ among_ties(x / scale);
        }
        if (wrong)
            fail_msg("some x / %a lies elsewhere among the ties of e4m3", scale);
    }
}

// What snapping and rounding to bf16 lean on: every significand over every other.
static void quotients_of_every_bf16(void **state)
{
    (void)state;
    for (const Recipe *recipe = recipe_table; recipe->name; recipe++) {
        const QuantContext context = {.rule = recipe->weights, .input = DTYPE_BF16};
        if (context.rule.method != QUANT_SYMMETRIC || !cast_divides(&context.rule))
            continue;
        for (uint32_t s = 0; s < 128; s++)
            for (uint32_t x = 0; x < 128 * 20; x++) {
                const float scale = format_f32_value(0x3F800000u + (s << 16));
                const float value = format_f32_value(0x39800000u + (x << 16)); // from 2^-12 on
                const QuantBlock block = {scale, 0, 1.0f / scale, 0, 0};
                if (cast_lane_fits(&context, &block, value))
                    check_lane(recipe->name, &context, &block, value);
            }
    }
}

static float off_by(float value, int ulps)
{
    return format_f32_value(format_f32_bits(value) + (uint32_t)ulps);
}

// compressed-tensors' nvfp4: e2m1(f32(x / f32(e4m3 / G))) from a reciprocal that may be an ulp off,
// for every bf16 G and x and every e4m3, but for powers of two. Some of the scales need
// cast_pairs_ready.
static void ties_over_scales_are_found(void **state)
{
    (void)state;
    const QuantContext context = {.rule = {.method = QUANT_NVFP4_CT, .code = CODE_E2M1},
                                  .input = DTYPE_BF16};
    int lessened = 0;
    for (uint32_t g = 0; g < 128; g++)
        for (uint32_t e4m3 = 0x38; e4m3 < 0x40; e4m3++)
            for (int ulps = -1; ulps <= 1; ulps++) {
                const float scale = quant_of_e4m3(e4m3) / format_f32_value(0x3F800000u + (g << 16));
                QuantBlock block = {scale, 0, 1.0f / scale, 0, 0};
                cast_pairs_ready(&context, &block);
                lessened += block.multiplier < 1.0f / scale;
                block.multiplier = off_by(block.multiplier, ulps);
                for (uint32_t x = 0; x < 128 * 8; x++) {
                    const float value = format_f32_value(0x3E000000u + (x << 16));
                    const uint32_t code = quant_e2m1(value / scale);
                    if (value / scale < 7.0f &&
                        (cast_one_e2m1(&context.rule, &block, value) & 7u) != code)
                        fail_msg("%a / %a has code %X", value, scale, code);
                }
            }
    assert_true(lessened > 0);
}

// rint(f32(a / s)) where a / s is nearest to a half: of scales of every kind, many of them at the
// edge of what cast_pairs_is_even leaves out.
static void quotients_of_ranges_decide(void **state)
{
    (void)state;
    int64_t checked = 0;
    for (uint32_t i = 0; i < 1u << 17; i++) {
        const uint32_t edge = (i % 8u << 20) + i / 8u % 128u - 64u;
        const float s = format_f32_value(0x3F800000u + (i % 3u ? edge : i * 64u));
        if (cast_pairs_is_even(s))
            continue;
        const QuantBlock block = {s, 0, 1.0f / s, 0, 0};
        for (int k = 0; k < 15; k++)
            for (int ulps = -2; ulps <= 2; ulps++) {
                const float a = off_by(s * ((float)k + 0.5f), ulps);
                const float code = rintf(cast_pairs_over(&block, cast_pairs_rest(&block), a));
                if (code != rintf(a / s))
                    fail_msg("%a / %a has code %a", a, s, code);
                checked++;
            }
    }
    assert_true(checked > 1 << 20);
}

// cast_quick_reciprocal of an e4m3 from an approximation that is some ulps off.
static void reciprocals_of_e4m3_are_rounded(void **state)
{
    (void)state;
    for (uint32_t code = 1; code < 0x7F; code++)
        for (int ulps = -2; ulps <= 2; ulps++) {
            const float b = quant_of_e4m3(code), y = off_by(1.0f / b, ulps);
            assert_true(cast_quick_of_e4m3(code) == b);
            if (fmaf(-fmaf(y, b, -1.0f), y, y) != 1.0f / b)
                fail_msg("1 / %a from %a is not rounded correctly", b, y);
        }
}

static void codes_equal_the_plain_ones(void **state)
{
    (void)state;
    static const char *const more[] = {"mxfp8:mode=floor", "mxfp4:mode=floor", "mxfp4:mode=even",
                                       "mxfp8:mode=ceil", "fp8_row:lower_bound=0"};
    Data data = data_create();
    for (const Recipe *recipe = recipe_table; recipe->name; recipe++)
        for (int f32 = 0; f32 < 2; f32++) {
            check_rule(&data, recipe->name, &recipe->weights, f32 ? DTYPE_F32 : DTYPE_BF16);
            check_rule(&data, recipe->name, &recipe->activations, f32 ? DTYPE_F32 : DTYPE_BF16);
        }
    for (size_t i = 0; i < COUNT_OF(more); i++) {
        Recipe recipe;
        Error error = {0};
        assert_true(recipe_parse(more[i], &recipe, &error));
        check_rule(&data, more[i], &recipe.weights, DTYPE_BF16);
    }
    data_destroy(&data);
}

// Every float but NaN; 2^16 of them densely around each boundary, the others strided.
static void e2m1_of_every_float(void **state)
{
    (void)state;
    for (uint64_t bits = 0; bits < 1ull << 32; bits += bits % 0x8000u < 0x40u ? 1 : 61) {
        float value = format_f32_value((uint32_t)bits);
        uint32_t code = (cast_quick_e2m1(value) & 7u) | ((uint32_t)bits >> 28 & 8u);
        if (!isnan(value) && code != quant_e2m1(value))
            fail_msg("%a: %X, not %X", value, code, quant_e2m1(value));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_equal_the_plain_ones),
        cmocka_unit_test(codes_of_every_bf16),
        cmocka_unit_test(quotients_of_every_bf16),
        cmocka_unit_test(one_correction_finds_the_side_of_ties),
        cmocka_unit_test(ties_over_scales_are_found),
        cmocka_unit_test(quotients_of_ranges_decide),
        cmocka_unit_test(reciprocals_of_e4m3_are_rounded),
        cmocka_unit_test(e2m1_of_every_float),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
