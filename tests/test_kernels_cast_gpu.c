// The CUDA casts give the bytes of the reference: every recipe and operand, bf16 and f32, shapes
// from nothing to odd ones, several matrices, rows longer than a thread block holds, addresses that
// no vector access allows; as values lie, transposed and both at once; NaN, infinities, zeros,
// subnormals and ties; amaxes given and measured; nothing is written beyond the tensor. And e4m3 of
// all 2^32 floats.
// labels: gpu
#include "kernels/cast.h"
#include "quant/recipe.h"
#include "tests/twin.h"

static const int64_t shapes[][3] = {{1, 0, 128},   {1, 1, 128},   {1, 3, 1280},   {2, 16, 256},
                                    {3, 16, 64},   {1, 130, 32},  {1, 5, 34},     {1, 7, 33},
                                    {1, 128, 256}, {1, 34, 256},  {0, 16, 256},   {1, 16, 0},
                                    {2, 48, 1408}, {1, 16, 2816}, {3, 144, 560},  {1, 256, 640},
                                    {1, 9, 16},    {2, 16, 1416}, {3, 128, 2048}, {2, 40, 1024}};

// Rows of different size, among them rows of zeros, of subnormals, of ties, and now and then
// something that is not finite.
static void fill(Twins *twins, DType input, int64_t rows, int64_t columns, void *values)
{
    for (int64_t row = 0; row < rows; row++) {
        int kind = (int)twins_below(twins, 10), exponent = (int)twins_below(twins, 60) - 30;
        for (int64_t column = 0; column < columns; column++) {
            float value = ldexpf(twins_normal(twins), exponent);
            value = kind == 0 ? (column % 2 ? -0.0f : 0.0f) : value;
            value = kind == 1 ? ldexpf(value, -126 - exponent) : value;
            value = kind == 2 && column % 100 == 40 ? INFINITY : value;
            value = kind == 3 && column % 100 == 77 ? NAN : value;
            value = kind == 4 && column % 50 == 13 ? -1e38f : value;
            value = kind == 5 && column / 16 % 3 == 1 ? 0.0f : value;
            value = kind == 6 ? ldexpf((float)(column % 49 - 24) / 4.0f, exponent) : value;
            value = kind == 7 && column % 9 == 2 ? -0.0f : value;
            twin_put(values, input, row * columns + column, value);
        }
    }
}

// A tensor twice, parts apart from each other.
typedef struct Tensors {
    Twin codes, scales, zeros, tensor_scales;
    QTensor host, device;
} Tensors;

enum { GUARD_BYTES = 64 };

static Tensors tensors_create(Twins *twins, const QTensor *plan, int64_t late)
{
    QTensorBytes bytes = qtensor_bytes(plan);
    Tensors t = {.host = *plan, .device = *plan};
    t.codes = twin_create(twins, (int64_t)bytes.codes + GUARD_BYTES + late, 1);
    t.scales = twin_create(twins, (int64_t)bytes.scales + GUARD_BYTES, 1);
    t.zeros = twin_create(twins, (int64_t)bytes.zeros + GUARD_BYTES, 1);
    t.tensor_scales = twin_create(twins, (int64_t)bytes.tensor_scales + GUARD_BYTES, 1);
    t.host.codes = (char *)t.codes.host + late;
    t.device.codes = (char *)t.codes.device + late;
    t.host.scales = t.scales.host;
    t.device.scales = t.scales.device;
    if (plan->rule.has_zeros && plan->scale_layout != SCALES_PAIRED) {
        t.host.zeros = t.zeros.host;
        t.device.zeros = t.zeros.device;
    }
    if (plan->rule.two_level) {
        t.host.tensor_scales = t.tensor_scales.host;
        t.device.tensor_scales = t.tensor_scales.device;
    }
    return t;
}

static void tensors_expect_same(Twins *twins, Tensors *t)
{
    struct {
        Twin *twin;
        const char *name;
    } parts[] = {{&t->tensor_scales, "second scales"},
                 {&t->scales, "scales"},
                 {&t->zeros, "zeros"},
                 {&t->codes, "codes"}};
    for (size_t part = 0; part < COUNT_OF(parts); part++) {
        Twin *twin = parts[part].twin;
        twin_fetch(twins, twin);
        const uint8_t *cpu = twin->host, *cuda = twin->back;
        for (uint64_t i = 0; i < twin->bytes; i++)
            if (cpu[i] != cuda[i])
                fail_msg("%s: byte %llu of %llu of the %s is %02X, the reference has %02X",
                         twins->text, (unsigned long long)i, (unsigned long long)twin->bytes,
                         parts[part].name, cuda[i], cpu[i]);
    }
}

// What is cast: as the values lie, transposed, or both.
typedef enum Which { TO, TRANSPOSED, BOTH, WHICHES } Which;

// late: elements that the values begin late, and bytes of the codes.
typedef struct Case {
    const char *name;
    const QuantRule *rule;
    DType input;
    const int64_t *shape;
    int late;
    Which which;
} Case;

static void check_amax(Twins *twins, const Case *c, const Twin *values, const Twin *amax,
                       const QTensor *plans)
{
    const uint64_t offset = (uint64_t)c->late * dtype_bytes(c->input, 1);
    const void *host = (const char *)values->host + offset;
    Tensors t[2];
    Cast args = {.values = (const char *)values->device + offset,
                 .amax = amax ? amax->device : NULL};
    snprintf(twins->text, sizeof(twins->text), "%s, %s, [%lld, %lld, %lld]%s%s%s", c->name,
             dtype_row(c->input)->name, (long long)c->shape[0], (long long)c->shape[1],
             (long long)c->shape[2], c->late ? ", late" : "", amax ? ", amax given" : "",
             c->which == TO           ? ""
             : c->which == TRANSPOSED ? ", transposed"
                                      : ", both");
    for (int transposed = 0; transposed < 2; transposed++) {
        t[transposed] = tensors_create(twins, &plans[transposed], c->late * 4);
        if (c->which == (transposed ? TO : TRANSPOSED))
            continue;
        *(transposed ? &args.transposed : &args.to) = t[transposed].device;
        (transposed ? quantise_transposed : quantise)(host, amax ? amax->host : NULL,
                                                      &t[transposed].host);
    }
    cast(&args, twins->cuda);
    tensors_expect_same(twins, &t[0]);
    tensors_expect_same(twins, &t[1]);
    int64_t marks =
        c->which == TO ? 0 : cast_marks(&args.transposed, args.transposed.matrices, DEVICE_CUDA);
    if (marks == 0)
        return;
    Twin room = twin_create(twins, marks, sizeof(uint32_t)); // the same from one reading
    args.marks = room.device;
    args.to = (QTensor){0};
    device_fill(args.transposed.codes, 0x5A, qtensor_bytes(&args.transposed).codes, twins->cuda);
    device_fill(args.transposed.scales, 0x5A, qtensor_bytes(&args.transposed).scales, twins->cuda);
    cast(&args, twins->cuda);
    tensors_expect_same(twins, &t[1]);
}

static void check(Twins *twins, const Case *c)
{
    const int64_t *shape = c->shape, turned[] = {shape[0], shape[2], shape[1]};
    const int64_t rows = shape[0] * shape[1], count = rows * shape[2];
    QTensor plans[2];
    Error error = {0};
    // Shapes that the recipe refuses: tests/test_quant_recipe.c.
    if (!qtensor_plan(c->rule, c->input, 3, shape, &plans[0], &error) && c->which != TRANSPOSED)
        return;
    if (!qtensor_plan(c->rule, c->input, 3, turned, &plans[1], &error) && c->which != TO)
        return;
    const TwinsMark mark = twins_mark(twins);
    const uint64_t size = dtype_bytes(c->input, 1);
    const QTensor *q = &plans[c->which == TRANSPOSED];
    Twin values = twin_create(twins, count + c->late, size);
    fill(twins, c->input, rows, shape[2], (char *)values.host + (uint64_t)c->late * size);
    twin_upload(twins, &values);
    Twin amax = twin_create(twins, quantise_amaxes(q), sizeof(float));
    for (int64_t i = 0; i < quantise_amaxes(q); i++)
        ((float *)amax.host)[i] = ldexpf(1.75f, (int)twins_below(twins, 20) - 10);
    twin_upload(twins, &amax);
    check_amax(twins, c, &values, NULL, plans);
    if (quantise_amaxes(q) > 0)
        check_amax(twins, c, &values, &amax, plans);
    twins_release(twins, mark);
}

static void check_recipe(Twins *twins, const char *name, const Recipe *recipe, const int64_t *shape,
                         Which which)
{
    for (int operand = 0; operand < 2; operand++) {
        const QuantRule *rule = operand ? &recipe->activations : &recipe->weights;
        if (rule->method == QUANT_NONE)
            continue;
        check(twins, &(Case){name, rule, DTYPE_BF16, shape, 0, which});
        check(twins, &(Case){name, rule, DTYPE_F32, shape, 0, which});
        check(twins, &(Case){name, rule, DTYPE_BF16, shape, 1, which});
    }
}

static void test_every_recipe(void **state)
{
    (void)state;
    Twins twins = twins_create();
    for (const Recipe *recipe = recipe_table; recipe->name; recipe++)
        for (size_t i = 0; i < COUNT_OF(shapes); i++)
            check_recipe(&twins, recipe->name, recipe, shapes[i], TO);
    twins_destroy(&twins);
}

// Tiles that are cut on either side, more of them than one, matrices, and shapes without tiles.
static void test_transposed(void **state)
{
    (void)state;
    static const int64_t tiles[][3] = {{1, 128, 128},  {1, 32, 16},   {2, 256, 384}, {3, 96, 40},
                                       {1, 160, 1360}, {1, 20, 24},   {2, 16, 17},   {1, 0, 128},
                                       {1, 128, 0},    {2, 128, 256}, {1, 2176, 8}};
    Twins twins = twins_create();
    for (const Recipe *recipe = recipe_table; recipe->name; recipe++)
        for (size_t i = 0; i < COUNT_OF(tiles); i++) {
            check_recipe(&twins, recipe->name, recipe, tiles[i], TRANSPOSED);
            check_recipe(&twins, recipe->name, recipe, tiles[i], BOTH);
        }
    twins_destroy(&twins);
}

// More tiles than run at once, strips longer than a band, bands cut on the right.
static void test_strips(void **state)
{
    (void)state;
    static const int64_t strips[][3] = {
        {1, 4224, 1032}, {3, 640, 2568}, {1, 25600, 136}, {40, 136, 264}};
    static const char *const names[] = {"fp8_row", "int8_dynamic"};
    Twins twins = twins_create();
    for (size_t n = 0; n < COUNT_OF(names); n++)
        for (size_t i = 0; i < COUNT_OF(strips); i++) {
            Recipe recipe;
            Error error = {0};
            assert_true(recipe_parse(names[n], &recipe, &error));
            check_recipe(&twins, names[n], &recipe, strips[i], TRANSPOSED);
        }
    twins_destroy(&twins);
}

// Groups and modes that no row has as its default.
static void test_options(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "mxfp8:mode=floor",          "mxfp8:mode=ceil",           "mxfp8:mode=even",
        "mxfp4:mode=floor",          "mxfp4:mode=ceil",           "mxfp4:mode=even",
        "int4_weight_only:group=32", "int4_weight_only:group=64", "int4_weight_only:group=256",
        "int4_tile:group=32",        "int4_tile:group=256",       "int8_int4:group=128",
        "fp8_int4:group=32",         "fp8_row:lower_bound=0",
    };
    Twins twins = twins_create();
    for (size_t t = 0; t < COUNT_OF(texts); t++) {
        Recipe recipe;
        Error error = {0};
        assert_true(recipe_parse(texts[t], &recipe, &error));
        for (size_t i = 0; i < COUNT_OF(shapes); i++)
            check_recipe(&twins, texts[t], &recipe, shapes[i], TO);
    }
    twins_destroy(&twins);
}

// Rows that take 2, 4, ... 32 warps, and rows that even a whole thread block reads twice.
static void test_long_rows(void **state)
{
    (void)state;
    static const int64_t long_shapes[][3] = {{1, 16, 4096},  {1, 16, 8208},  {1, 16, 16384},
                                             {1, 16, 32784}, {1, 16, 70016}, {1, 16, 140032}};
    static const char *const texts[] = {"fp8_row",   "int8_dynamic", "int4_int4",
                                        "int8_int4", "fp8_tensor",   "W8A8"};
    Twins twins = twins_create();
    for (size_t t = 0; t < COUNT_OF(texts); t++)
        for (size_t i = 0; i < COUNT_OF(long_shapes); i++) {
            Recipe recipe;
            Error error = {0};
            assert_true(recipe_parse(texts[t], &recipe, &error));
            check_recipe(&twins, texts[t], &recipe, long_shapes[i], TO);
        }
    twins_destroy(&twins);
}

// The amax of a tensor in two pieces, at addresses that allow vectors and at others.
static void test_largest(void **state)
{
    (void)state;
    static const int64_t counts[] = {0, 1, 77, 65536, 200001, 5 << 20};
    Twins twins = twins_create();
    for (size_t i = 0; i < COUNT_OF(counts); i++)
        for (int kind = 0; kind < 8; kind++) {
            const TwinsMark mark = twins_mark(&twins);
            const DType dtype = kind % 2 ? DTYPE_F32 : DTYPE_BF16;
            const int64_t count = counts[i], cut = kind / 4 ? count / 3 : count / 128 * 64;
            Twin values = twin_normals(&twins, count, dtype, 1.0f);
            Twin amax = twin_create(&twins, 1, sizeof(float));
            *(float *)amax.host = 0;
            if (kind / 2 % 2 && count > 0)
                twin_put(values.host, dtype, twins_below(&twins, count), NAN);
            twin_upload(&twins, &values);
            twin_upload(&twins, &amax);
            for (int device = 0; device < 2; device++) {
                const char *data = device ? values.device : values.host;
                CastLargest args = {.values = data,
                                    .dtype = dtype,
                                    .count = cut,
                                    .amax = device ? amax.device : amax.host};
                const Stream stream = device ? twins.cuda : twins.cpu;
                cast_largest(&args, stream);
                args.values = data + dtype_bytes(dtype, (uint64_t)cut);
                args.count = count - cut;
                cast_largest(&args, stream);
            }
            twin_fetch(&twins, &amax);
            const float ours = *(float *)amax.back, reference = *(float *)amax.host;
            if (!(ours == reference || (isnan(ours) && isnan(reference))))
                fail_msg("%lld %s: %g on CUDA, %g on the CPU", (long long)count,
                         dtype_row(dtype)->name, (double)ours, (double)reference);
            twins_release(&twins, mark);
        }
    twins_destroy(&twins);
}

// All floats, 2^26 at a time, times 1 / scale = 1 (an amax of 448 given): the one conversion that
// the device does in hardware. Infinities and NaN as well. The host compares every 61st.
static void test_e4m3_of_every_float(void **state)
{
    (void)state;
    const int64_t part = (int64_t)1 << 26, shape[] = {1, part / 4096, 4096};
    Recipe recipe;
    Error error = {0};
    assert_true(recipe_parse("fp8_tensor", &recipe, &error));
    recipe.weights.quotient = QUOTIENT_RECIPROCAL;
    Twins twins = twins_create();
    Twin values = twin_create(&twins, part, sizeof(float));
    Twin amax = twin_create(&twins, 1, sizeof(float));
    *(float *)amax.host = 448.0f;
    twin_upload(&twins, &amax);
    QTensor plan;
    assert_true(qtensor_plan(&recipe.weights, DTYPE_F32, 3, shape, &plan, &error));
    Tensors t = tensors_create(&twins, &plan, 0);
    for (uint64_t first = 0; first < 1ull << 32; first += (uint64_t)part) {
        for (int64_t i = 0; i < part; i++)
            ((uint32_t *)values.host)[i] = (uint32_t)(first + (uint64_t)i);
        twin_upload(&twins, &values);
        cast(&(Cast){.values = values.device, .amax = amax.device, .to = t.device}, twins.cuda);
        twin_fetch(&twins, &t.codes);
        for (int64_t i = (int64_t)(first % 61); i < part; i += 61) {
            const uint32_t bits = (uint32_t)(first + (uint64_t)i);
            const uint32_t code = quant_e4m3(format_f32_value(bits));
            if (((const uint8_t *)t.codes.back)[i] != code)
                fail_msg("float %08X has e4m3 %02X, on CUDA %02X", bits, code,
                         ((const uint8_t *)t.codes.back)[i]);
        }
    }
    twins_destroy(&twins);
}

int main(void)
{
    if (!select_gpu())
        return EXIT_CODE_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_recipe),
        cmocka_unit_test(test_transposed),
        cmocka_unit_test(test_strips),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_long_rows),
        cmocka_unit_test(test_largest),
        cmocka_unit_test(test_e4m3_of_every_float),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
