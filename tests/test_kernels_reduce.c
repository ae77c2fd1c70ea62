// Ordered sums of parts, bit for bit, and gated rows against double precision.
#include "kernels/reduce.h"
#include "tests/kernels_data.h"

static const int64_t sizes[] = {0, 1, 7, 511, 512, 513, 5000, 70001};

static void parts_are_added_in_order(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 40; round++) {
        int mark = data.blocks;
        SumParts args = {.parts = 1 + (int)data_below(&data, 6),
                         .count = sizes[data_below(&data, COUNT_OF(sizes))],
                         .out_dtype = data_below(&data, 2) ? DTYPE_F32 : DTYPE_BF16};
        args.part_stride = args.count + data_below(&data, 20);
        float *part = data_poisoned(&data, args.parts * args.part_stride, sizeof(float));
        for (int p = 0; p < args.parts; p++)
            for (int64_t i = 0; i < args.count; i++)
                part[p * args.part_stride + i] =
                    ldexpf(data_normal(&data), (int)data_below(&data, 30));
        bool in_place = args.out_dtype == DTYPE_F32 && data_below(&data, 2);
        float *copy = data_poisoned(&data, args.parts * args.part_stride, sizeof(float));
        memcpy(copy, part, sizeof(float) * (size_t)(args.parts * args.part_stride));
        args.part = part;
        args.out = in_place ? (void *)part
                            : data_poisoned(&data, args.count + 9, dtype_bytes(args.out_dtype, 1));
        sum_parts(&args, CPU);
        for (int64_t i = 0; i < args.count; i++) {
            volatile float sum = copy[i]; // one rounding per addition
            for (int p = 1; p < args.parts; p++)
                sum = sum + copy[p * args.part_stride + i];
            float expected = args.out_dtype == DTYPE_F32 ? sum : f32_from_bf16(bf16_from_f32(sum));
            expect_same(value_of(args.out, args.out_dtype, i), expected, "sum", i);
        }
        for (int64_t i = args.count; i < args.count + 9 && !in_place; i++)
            expect_poison(args.out, args.out_dtype, i, "past the end");
        data_release(&data, mark);
    }
    data_destroy(&data);
}

static double gate_of(const GateRows *args, int64_t token)
{
    return args->logits ? 1.0 / (1.0 + exp(-(double)args->logits[token * args->logits_stride]))
                        : 1.0;
}

// gate: 4 ulp (kernels/cpu_math.h); the product: one rounding to f32, one to the storage type.
static void rows_are_gated(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 40; round++) {
        int mark = data.blocks;
        GateRows args = {.tokens = data_below(&data, 70),
                         .hidden = 1 + data_below(&data, 1100),
                         .dtype = data_below(&data, 2) ? DTYPE_F32 : DTYPE_BF16,
                         .logits_stride = 1 + data_below(&data, 5)};
        int64_t elements = args.tokens * args.hidden;
        if (data_below(&data, 4))
            args.logits = data_normals(&data, args.tokens * args.logits_stride, DTYPE_F32, 20.0f);
        if (data_below(&data, 4))
            args.x = data_normals(&data, elements, args.dtype, 1.0f);
        args.out = data_poisoned(&data, elements + 5, dtype_bytes(args.dtype, 1));
        args.gate_out = data_below(&data, 2) ? data_poisoned(&data, args.tokens, 4) : NULL;
        gate_rows(&args, CPU);
        double relative = 5 * FLT_EPSILON + rounding_of(args.dtype);
        for (int64_t t = 0; t < args.tokens && args.gate_out; t++)
            expect_near(args.gate_out[t], gate_of(&args, t), 4 * FLT_EPSILON * gate_of(&args, t),
                        "gate", t);
        for (int64_t i = 0; i < elements && args.x; i++) {
            double exact = gate_of(&args, i / args.hidden) * value_of(args.x, args.dtype, i);
            expect_near(value_of(args.out, args.dtype, i), exact, relative * fabs(exact) + 0x1p-149,
                        "out", i);
        }
        for (int64_t i = args.x ? elements : 0; i < elements + 5; i++)
            expect_poison(args.out, args.dtype, i, "out");
        data_release(&data, mark);
    }
    data_destroy(&data);
}

static void costs(void **state)
{
    (void)state;
    SumParts sum = {.parts = 3, .count = 10, .out_dtype = DTYPE_BF16};
    expect_near(sum_parts_cost(&sum).bytes, 10 * (3 * 4 + 2), 0, "sum bytes", 0);
    expect_near(sum_parts_cost(&sum).flops, 20, 0, "sum flops", 0);
    GateRows gate = {.tokens = 4, .hidden = 6, .dtype = DTYPE_BF16, .x = &sum};
    expect_near(gate_rows_cost(&gate).bytes, 4 * 6 * 2 * 2, 0, "gate bytes", 0);
    expect_near(gate_rows_cost(&gate).flops, 24, 0, "gate flops", 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_are_added_in_order),
        cmocka_unit_test(rows_are_gated),
        cmocka_unit_test(costs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
