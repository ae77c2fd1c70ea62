// Is a layer's result right? Equal bits; the first difference with tensor, place and both values;
// NaN and infinities; errors at a bound and just above it; tokens that chose otherwise; what a file
// expects; and fingerprints that change with any bit.
#include "experiments/model/layer_compare.h"
#include "tests/kernels_data.h"
#include "tests/safetensors_fixture.h"

#include <unistd.h>

static LayerSource source_of(DType dtype, int64_t tokens)
{
    return (LayerSource){.config = {.hidden = 6,
                                    .inner = 5,
                                    .experts = 3,
                                    .top_k = 2,
                                    .shared_inner = 7,
                                    .shared_gate = true,
                                    .dtype = dtype},
                         .tokens = tokens};
}

static void set(Tensor *tensor, int64_t i, double value)
{
    if (tensor->dtype == DTYPE_I64)
        ((int64_t *)tensor->data)[i] = (int64_t)value;
    else
        put_value(tensor->data, tensor->dtype, i, (float)value);
}

static LayerResult random_result(Data *data, const LayerSource *source, bool forward_only)
{
    LayerResult result = layer_result_create(source, forward_only);
    for (int i = 0; i < LAYER_OUTPUTS; i++)
        for (int64_t j = 0; result.tensor[i].data && j < tensor_elements(&result.tensor[i]); j++)
            set(&result.tensor[i], j,
                i == OUTPUT_EXPERT_OF_TOKEN ? (double)data_below(data, source->config.experts)
                                            : (double)data_normal(data));
    return result;
}

static LayerResult copy_of(const LayerSource *source, const LayerResult *result)
{
    LayerResult copy = layer_result_create(source, result->tensor[OUTPUT_GRAD_X].data == NULL);
    for (int i = 0; i < LAYER_OUTPUTS; i++)
        if (result->tensor[i].data)
            memcpy(copy.tensor[i].data, result->tensor[i].data, tensor_bytes(&result->tensor[i]));
    return copy;
}

static void expect_verdict(const ResultCheck *check, bool good, const char *verdict)
{
    if (check->good != good || strcmp(check->verdict, verdict) != 0)
        fail_msg("%s: '%s' (%s), expected '%s': %s, error %g, bound %g", check->name,
                 check->verdict, check->good ? "good" : "bad", verdict, check->detail, check->error,
                 check->bound);
}

static void expect_detail(const ResultCheck *check, const char *part)
{
    if (!strstr(check->detail, part))
        fail_msg("'%s' is not in '%s'", part, check->detail);
}

static void equal_results_are_called_equal(void **state)
{
    for (int forward_only = 0; forward_only < 2; forward_only++) {
        LayerSource source = source_of(forward_only ? DTYPE_BF16 : DTYPE_F32, 4);
        LayerResult ours = random_result(*state, &source, forward_only);
        LayerResult theirs = copy_of(&source, &ours);
        ResultCheck check = layer_compare_bits("1 rank", &ours, &theirs);
        expect_verdict(&check, true, "equal");
        assert_string_equal(check.name, "1 rank");
        assert_string_equal(check.detail, forward_only
                                              ? "y expert_of_token"
                                              : "y expert_of_token grad.x grad.router grad.w1 "
                                                "grad.w3 grad.w2 grad.shared_w1 grad.shared_w3 "
                                                "grad.shared_w2 grad.shared_gate");
        assert_true(isnan(check.error) && isnan(check.bound));
        layer_result_destroy(&ours);
        layer_result_destroy(&theirs);
    }
}

// "name[1, 2, 3]: 2.5 here, -1 in the reference; 1 of 90 values differ"
static void describe(const Tensor *tensor, LayerOutput output, int64_t index, double ours,
                     double theirs, int64_t differing, char *text, size_t bytes)
{
    char first[32] = "";
    int64_t columns = tensor->shape[tensor->rank - 1], rows = tensor->shape[tensor->rank - 2];
    if (tensor->rank == 3)
        snprintf(first, sizeof first, "%lld, ", (long long)(index / columns / rows));
    snprintf(text, bytes,
             "%s[%s%lld, %lld]: %.9g here, %.9g in the reference; %lld of %lld values differ",
             layer_output_name(output), first, (long long)(index / columns % rows),
             (long long)(index % columns), ours, theirs, (long long)differing,
             (long long)tensor_elements(tensor));
}

// Each tensor in turn, at a place of its own, and with a second difference behind it in the same
// tensor and in every later one: only the first is named.
static void the_first_difference_is_named(void **state)
{
    Data *data = *state;
    for (int round = 0; round < 20; round++)
        for (int i = 0; i < LAYER_OUTPUTS; i++) {
            LayerSource source = source_of(round % 2 ? DTYPE_BF16 : DTYPE_F32, 5);
            LayerResult ours = random_result(data, &source, false);
            LayerResult theirs = copy_of(&source, &ours);
            Tensor *tensor = &ours.tensor[i];
            int64_t count = tensor_elements(tensor), at = data_below(data, count - 1);
            double old = tensor_value(tensor, at);
            set(tensor, at, 100);
            set(tensor, count - 1, 100);
            for (int later = i + 1; later < LAYER_OUTPUTS; later++)
                set(&ours.tensor[later], 0, 100);
            char expected[512];
            describe(tensor, (LayerOutput)i, at, 100, old, 2, expected, sizeof expected);
            ResultCheck check = layer_compare_bits("1 rank", &ours, &theirs);
            expect_verdict(&check, false, "differs");
            assert_string_equal(check.detail, expected);
            layer_result_destroy(&ours);
            layer_result_destroy(&theirs);
        }
}

// Bits are compared, not values: a NaN equals itself, and neither another NaN nor a number; 0 is
// not -0.
static void bits_decide_about_nan_and_zero(void **state)
{
    static const struct {
        uint32_t ours, theirs;
        bool equal;
    } rows[] = {
        {0x7FC00000, 0x7FC00000, true},  {0x7FC00001, 0x7FC00001, true},
        {0x7FC00000, 0x7FC00001, false}, {0x7FC00000, 0xFFC00000, false},
        {0x7FC00000, 0x3F800000, false}, {0x3F800000, 0x7FC00000, false},
        {0x7F800000, 0x7F800000, true},  {0x7F800000, 0xFF800000, false},
        {0x00000000, 0x80000000, false}, {0x3F800000, 0x3F800001, false},
    };
    LayerSource source = source_of(DTYPE_F32, 3);
    for (size_t row = 0; row < COUNT_OF(rows); row++) {
        LayerResult ours = random_result(*state, &source, false);
        LayerResult theirs = copy_of(&source, &ours);
        memcpy((uint32_t *)ours.tensor[OUTPUT_GRAD_W2].data + 7, &rows[row].ours, 4);
        memcpy((uint32_t *)theirs.tensor[OUTPUT_GRAD_W2].data + 7, &rows[row].theirs, 4);
        ResultCheck check = layer_compare_bits("bits", &ours, &theirs);
        expect_verdict(&check, rows[row].equal, rows[row].equal ? "equal" : "differs");
        if (!rows[row].equal)
            expect_detail(&check, "grad.w2[0, 1, 2]: ");
        layer_result_destroy(&ours);
        layer_result_destroy(&theirs);
    }
}

// The error by its definition, a bound that it just meets, and one that it just does not.
static void errors_are_held_against_the_bound(void **state)
{
    Data *data = *state;
    for (int i = 0; i < LAYER_OUTPUTS; i++) {
        if (i == OUTPUT_EXPERT_OF_TOKEN)
            continue;
        LayerSource source = source_of(DTYPE_F32, 5000); // more than one block of values
        LayerResult theirs = random_result(data, &source, false);
        LayerResult ours = copy_of(&source, &theirs);
        const Tensor *tensor = &theirs.tensor[i];
        int64_t count = tensor_elements(tensor);
        double scale = 0;
        for (int64_t j = 0; j < count; j++)
            scale = fmax(scale, fabs(tensor_value(tensor, j)));
        int64_t at = data_below(data, count);
        set(&ours.tensor[i], at, tensor_value(tensor, at) + 0.25);
        double error = fabs(tensor_value(&ours.tensor[i], at) - tensor_value(tensor, at)) / scale;
        ResultCheck met = layer_compare_within("order", &ours, &theirs, error);
        ResultCheck missed = layer_compare_within("order", &ours, &theirs, nextafter(error, 0));
        expect_verdict(&met, true, "within bound");
        expect_verdict(&missed, false, "differs");
        char worst[64];
        snprintf(worst, sizeof worst, "worst in %s; 0 of 5000", layer_output_name((LayerOutput)i));
        expect_detail(&missed, worst);
        assert_true(met.error == error && missed.error == error);
        assert_true(met.bound == error);
        layer_result_destroy(&ours);
        layer_result_destroy(&theirs);
    }
}

// No bound excuses what is not a number: on either side, or on both.
static void nothing_that_is_not_finite_is_within_a_bound(void **state)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    LayerSource source = source_of(DTYPE_F32, 3);
    for (int i = 0; i < LAYER_OUTPUTS; i++)
        for (size_t o = 0; o < 3 * COUNT_OF(odd) && i != OUTPUT_EXPERT_OF_TOKEN; o++) {
            LayerResult ours = random_result(*state, &source, false);
            LayerResult theirs = copy_of(&source, &ours);
            size_t who = o / COUNT_OF(odd);
            if (who != 1)
                set(&ours.tensor[i], 4, (double)odd[o % COUNT_OF(odd)]);
            if (who != 0)
                set(&theirs.tensor[i], 4, (double)odd[o % COUNT_OF(odd)]);
            ResultCheck check = layer_compare_within("finite", &ours, &theirs, 1e30);
            expect_verdict(&check, false, "differs");
            expect_detail(&check, layer_output_name((LayerOutput)i));
            assert_true(isinf(check.error));
            layer_result_destroy(&ours);
            layer_result_destroy(&theirs);
        }
    // Where all is zero there is no scale: equal is no error, anything else too much.
    LayerResult ours = random_result(*state, &source, true), theirs = copy_of(&source, &ours);
    Tensor *y = &ours.tensor[OUTPUT_Y];
    memset(y->data, 0, tensor_bytes(y));
    memset(theirs.tensor[OUTPUT_Y].data, 0, tensor_bytes(y));
    ResultCheck check = layer_compare_within("zero", &ours, &theirs, 0);
    expect_verdict(&check, true, "within bound");
    set(y, 3, 1e-30);
    check = layer_compare_within("zero", &ours, &theirs, 1e30);
    expect_verdict(&check, false, "differs");
    layer_result_destroy(&ours);
    layer_result_destroy(&theirs);
}

// One token in a thousand may choose another expert: its rows are left out, and so are all weights'
// gradients; of the other tokens' rows none is.
static void a_token_in_a_thousand_may_choose_otherwise(void **state)
{
    static const struct {
        int64_t tokens;
        int others;
        bool good;
    } rows[] = {{1000, 1, true}, {999, 1, false}, {2000, 2, true}, {2000, 3, false}};
    for (size_t row = 0; row < COUNT_OF(rows); row++) {
        LayerSource source = source_of(DTYPE_F32, rows[row].tokens);
        LayerResult ours = random_result(*state, &source, false);
        LayerResult theirs = copy_of(&source, &ours);
        for (int64_t token = 0; token < rows[row].others; token++) {
            int64_t *choice = ours.tensor[OUTPUT_EXPERT_OF_TOKEN].data;
            choice[2 * (100 * token + 7) + 1] += 1;
            set(&ours.tensor[OUTPUT_Y], 6 * (100 * token + 7) + 5, NAN);
            set(&ours.tensor[OUTPUT_GRAD_X], 6 * (100 * token + 7), 1e9);
        }
        set(&ours.tensor[OUTPUT_GRAD_W1], 0, 1e9);
        ResultCheck check = layer_compare_within("choice", &ours, &theirs, 0);
        expect_verdict(&check, rows[row].good, rows[row].good ? "within bound" : "differs");
        assert_true(check.error == 0);
        char counted[64];
        snprintf(counted, sizeof counted, "%d of %lld tokens chose otherwise", rows[row].others,
                 (long long)rows[row].tokens);
        expect_detail(&check, counted);
        set(&ours.tensor[OUTPUT_GRAD_X], 6 * 8, 1e9); // the next token's
        check = layer_compare_within("choice", &ours, &theirs, 1);
        expect_verdict(&check, false, "differs");
        layer_result_destroy(&ours);
        layer_result_destroy(&theirs);
    }
}

static int compare_with_file(const LayerResult *ours, const SafetensorsOutput *tensors, int count,
                             double bound, ResultCheck *checks)
{
    char folder[PATH_BYTES], path[PATH_BYTES];
    Error error = {0};
    Safetensors file;
    make_folder(folder);
    expect_good(safetensors_write(join(path, folder, "layer.safetensors"), tensors, count, NULL,
                                  false, &error),
                &error);
    expect_good(safetensors_open(path, &file, &error), &error);
    int found = layer_compare_expected(&file, ours, bound, checks);
    safetensors_close(&file);
    unlink(path);
    rmdir(folder);
    return found;
}

// One check for each tensor that both have; choices exactly, the others within the bound; shapes
// and NaN.
static void a_file_says_what_is_expected(void **state)
{
    LayerSource source = source_of(DTYPE_F32, 4);
    LayerResult ours = random_result(*state, &source, true);
    double y[24], gradient[24] = {0};
    int64_t choice[8];
    ResultCheck checks[LAYER_OUTPUTS];
    for (int i = 0; i < 24; i++)
        y[i] = tensor_value(&ours.tensor[OUTPUT_Y], i);
    memcpy(choice, ours.tensor[OUTPUT_EXPERT_OF_TOKEN].data, sizeof choice);
    SafetensorsOutput tensors[] = {
        {"expect.y", {y, DTYPE_F64, 2, {4, 6}}},
        {"expect.expert_of_token", {choice, DTYPE_I64, 2, {4, 2}}},
        {"expect.grad.x", {gradient, DTYPE_F64, 2, {4, 6}}}, // ours is forward only
        {"y", {gradient, DTYPE_F64, 2, {4, 6}}},
    };
    assert_int_equal(compare_with_file(&ours, tensors, 4, 1e-5, checks), 2);
    assert_string_equal(checks[0].name, "expect.y");
    expect_verdict(&checks[0], true, "within bound");
    assert_true(checks[0].error == 0 && checks[0].bound == 1e-5);
    expect_verdict(&checks[1], true, "equal");

    y[9] += 100;
    choice[5] += 1;
    assert_int_equal(compare_with_file(&ours, tensors, 4, 0.5, checks), 2);
    expect_verdict(&checks[0], false, "differs");
    expect_detail(&checks[0], "worst at [1, 3]: ");
    expect_verdict(&checks[1], false, "differs");
    expect_detail(&checks[1], "worst at [2, 1]: ");
    y[9] = NAN;
    compare_with_file(&ours, tensors, 4, 1e30, checks);
    expect_verdict(&checks[0], false, "differs");
    tensors[0].tensor.shape[0] = 3;
    compare_with_file(&ours, tensors, 4, 1e30, checks);
    expect_verdict(&checks[0], false, "differs");
    expect_detail(&checks[0], "shape [4, 6] f32, expected [3, 6] f64");
    layer_result_destroy(&ours);
}

// What one rank has, each piece in a block of exactly its size.
typedef struct Part {
    LayerPart part;
    MoeWeights gradients;
    void *piece[LAYER_PRINTS];
    uint64_t bytes[LAYER_PRINTS];
} Part;

static void part_create(Data *data, const LayerSource *source, int experts, bool forward_only,
                        Part *out)
{
    const MoeConfig *c = &source->config;
    int64_t weights = c->inner * c->hidden, shared = c->shared_inner * c->hidden;
    const int64_t elements[LAYER_PRINTS] = {
        [PRINT_Y] = source->tokens * c->hidden,  [PRINT_CHOICES] = source->tokens * c->top_k,
        [PRINT_DX] = source->tokens * c->hidden, [PRINT_ROUTER] = moe_router_rows(c) * c->hidden,
        [PRINT_W13] = 2 * experts * weights,     [PRINT_W2] = experts * weights,
        [PRINT_SHARED_W13] = 2 * shared,         [PRINT_SHARED_W2] = shared,
    };
    for (int i = 0; i < LAYER_PRINTS; i++) {
        bool there = i == PRINT_Y || i == PRINT_CHOICES || !forward_only;
        uint64_t each = i == PRINT_CHOICES ? sizeof(int32_t) : dtype_bytes(c->dtype, 1);
        out->bytes[i] = there ? (uint64_t)elements[i] * each : 0;
        uint8_t *bytes = data_poisoned(data, (int64_t)out->bytes[i], 1);
        for (uint64_t b = 0; b < out->bytes[i]; b++)
            bytes[b] = (uint8_t)data_below(data, 256);
        out->piece[i] = bytes;
    }
    out->gradients = (MoeWeights){.router = out->piece[PRINT_ROUTER],
                                  .w13 = out->piece[PRINT_W13],
                                  .w2 = out->piece[PRINT_W2],
                                  .shared_w13 = out->piece[PRINT_SHARED_W13],
                                  .shared_w2 = out->piece[PRINT_SHARED_W2]};
    out->part = (LayerPart){.y = out->piece[PRINT_Y],
                            .dx = out->piece[PRINT_DX],
                            .expert_of_choice = out->piece[PRINT_CHOICES],
                            .gradients = forward_only ? NULL : &out->gradients,
                            .experts = experts};
}

// Every bit of every piece changes the print of that piece and no other; the same bits give the
// same prints.
static void any_bit_changes_the_print_of_its_piece(void **state)
{
    Data *data = *state;
    for (int round = 0; round < 4; round++) {
        LayerSource source = source_of(round % 2 ? DTYPE_BF16 : DTYPE_F32, 3); // odd bytes in bf16
        Part p = {0};
        uint64_t before[LAYER_PRINTS], again[LAYER_PRINTS], after[LAYER_PRINTS];
        part_create(data, &source, 1, round >= 2, &p);
        layer_fingerprint(&source, &p.part, source.tokens, before, CPU);
        layer_fingerprint(&source, &p.part, source.tokens, again, CPU);
        assert_memory_equal(before, again, sizeof before);
        for (int i = 0; i < LAYER_PRINTS; i++)
            for (uint64_t bit = 0; bit < 8 * p.bytes[i]; bit++) {
                uint8_t *byte = (uint8_t *)p.piece[i] + bit / 8;
                *byte ^= (uint8_t)(1u << bit % 8);
                layer_fingerprint(&source, &p.part, source.tokens, after, CPU);
                *byte ^= (uint8_t)(1u << bit % 8);
                for (int j = 0; j < LAYER_PRINTS; j++)
                    if ((before[j] != after[j]) != (i == j))
                        fail_msg("bit %llu of %s: the print of %s %s", (unsigned long long)bit,
                                 layer_print_name((LayerPrint)i), layer_print_name((LayerPrint)j),
                                 i == j ? "is the same" : "changes");
            }
        data_destroy(data);
    }
}

static void what_is_not_there_has_the_print_of_nothing(void **state)
{
    LayerSource source = source_of(DTYPE_F32, 0);
    Part p = {0};
    uint64_t prints[LAYER_PRINTS];
    source.config.shared_inner = 0;
    part_create(*state, &source, 0, true, &p); // no tokens, no experts, no backward
    layer_fingerprint(&source, &p.part, 0, prints, CPU);
    for (int i = 1; i < LAYER_PRINTS; i++)
        assert_int_equal(prints[i], prints[0]);
    data_destroy(*state);
}

int main(void)
{
    Data data = data_create();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(equal_results_are_called_equal, &data),
        cmocka_unit_test_prestate(the_first_difference_is_named, &data),
        cmocka_unit_test_prestate(bits_decide_about_nan_and_zero, &data),
        cmocka_unit_test_prestate(errors_are_held_against_the_bound, &data),
        cmocka_unit_test_prestate(nothing_that_is_not_finite_is_within_a_bound, &data),
        cmocka_unit_test_prestate(a_token_in_a_thousand_may_choose_otherwise, &data),
        cmocka_unit_test_prestate(a_file_says_what_is_expected, &data),
        cmocka_unit_test_prestate(any_bit_changes_the_print_of_its_piece, &data),
        cmocka_unit_test_prestate(what_is_not_there_has_the_print_of_nothing, &data),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
