// The arithmetic that the CUDA casts have of their own (kernels/cast/quick.h), compiled for the
// CPU: the codes of cast_encode for every recipe and operand, wherever it says that it fits; that
// it fits ordinary blocks; and e2m1 over all floats (a strided subset of the bits).
#include "kernels/cast/quick.h"
#include "quant/recipe.h"
#include "tests/kernels_data.h"

enum { BLOCK = 64, ROUNDS = 3000 };

typedef struct Tally {
    int64_t blocks, fitting;
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
    QuantBlock block = cast_choose(context, s);
    cast_quick_ready(context, &block);
    tally->blocks++;
    if (!cast_quick_fits(context, &block, s.amax))
        return;
    tally->fitting++;
    for (int first = 0; first < BLOCK; first += CAST_QUICK) {
        uint32_t words[2];
        for (int e = 0; e < CAST_QUICK; e++)
            q[e] = cast_quick_scaled(context, &block, x[first + e]);
        cast_quick_pack(rule, q, words);
        for (int e = 0; e < CAST_QUICK; e++) {
            uint32_t code = cast_byte(rule, cast_encode(context, &block, x[first + e]));
            uint32_t ours = rule->code_layout == CODES_BYTES ? words[e / 4] >> e % 4 * 8 & 0xFFu
                                                             : words[0] >> e * 4 & 15u;
            if (ours != code)
                fail_msg("%s, %s: %a (scale %a, zero %a, amax %a) has code %02X, quick %02X", name,
                         dtype_row(context->input)->name, x[first + e], block.scale, block.zero,
                         s.amax, code, ours);
        }
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
        cmocka_unit_test(e2m1_of_every_float),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
