// Placements: every word of the grammar there and back, every message of those that are none; and
// the arithmetic of Partial against definitions of its own.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "harness/random.h"
#include "harness/tensor.h"
#include "parallel/partial.h"
#include "parallel/placement.h"
#include "tests/terms_fold.h"

static void test_words(void **state)
{
    (void)state;
    static const struct {
        const char *word, *again; // as placement_format writes it
        Placement value;
    } rows[] = {
        {"R", "R", {.kind = PLACEMENT_REPLICATE}},
        {"S0", "S0", {PLACEMENT_SHARD, 0, 1, COMM_SUM}},
        {"S7", "S7", {PLACEMENT_SHARD, 7, 1, COMM_SUM}},
        {"S1x2", "S1x2", {PLACEMENT_SHARD, 1, 2, COMM_SUM}},
        {"S0x1", "S0", {PLACEMENT_SHARD, 0, 1, COMM_SUM}},
        {"S0x999999", "S0x999999", {PLACEMENT_SHARD, 0, 999999, COMM_SUM}},
        {"P", "P(sum)", {.kind = PLACEMENT_PARTIAL, .op = COMM_SUM}},
        {"P(sum)", "P(sum)", {.kind = PLACEMENT_PARTIAL, .op = COMM_SUM}},
        {"P(avg)", "P(avg)", {.kind = PLACEMENT_PARTIAL, .op = COMM_AVG}},
        {"P(product)", "P(product)", {.kind = PLACEMENT_PARTIAL, .op = COMM_PRODUCT}},
        {"P(max)", "P(max)", {.kind = PLACEMENT_PARTIAL, .op = COMM_MAX}},
        {"P(min)", "P(min)", {.kind = PLACEMENT_PARTIAL, .op = COMM_MIN}},
    };
    Mesh mesh = {0};
    Error error = {0};
    assert_true(mesh_parse_any_names("a=1", 1, &mesh, &error));
    for (size_t row = 0; row < COUNT_OF(rows); row++) {
        Placement found[MESH_AXES_MAX];
        char text[PLACEMENT_TEXT_BYTES];
        if (!placement_parse(rows[row].word, "--from", &mesh, found, &error))
            fail_msg("'%s': %s", rows[row].word, error.what);
        if (!placement_equal(&found[0], &rows[row].value))
            fail_msg("'%s' was read as %s", rows[row].word,
                     placement_format(&found[0], text, sizeof(text)));
        assert_string_equal(placement_format(&found[0], text, sizeof(text)), rows[row].again);
        for (size_t other = 0; other < COUNT_OF(rows); other++)
            assert_int_equal(placement_equal(&rows[row].value, &rows[other].value),
                             strcmp(rows[row].again, rows[other].again) == 0);
    }
}

static void test_lists_that_fail(void **state)
{
    (void)state;
    static const struct {
        const char *text, *what, *fix;
    } rows[] = {
        {"", "'' has 1 placement, but the mesh has 2 axes", "one placement per mesh axis"},
        {"R,R,R", "'R,R,R' has 3 placements, but the mesh has 2 axes", "left to right"},
        {"R,", "--from, axis tp: '' is no placement", "write R, S0"},
        {"s0,R", "--from, axis dp: 's0' is no placement", "did you mean 'S0'?"},
        {"p,R", "'p' is no placement", "did you mean 'P'?"},
        {"Replicate,R", "'Replicate' is no placement", "did you mean 'R'?"},
        {"R,X", "axis tp: 'X' is no placement", "write R, S0"},
        {"S,R", "'S' is no shard", "S0x4"},
        {"S-1,R", "'S-1' is no shard", "S0x4"},
        {"S0x,R", "'S0x' is no shard", "S0x4"},
        {"S0x0,R", "'S0x0' is no shard", "S0x4"},
        {"S0x1000000,R", "'S0x1000000' is no shard: S", "S0x4"},
        {"S0y2,R", "'S0y2' is no shard", "S0x4"},
        {"S8,R", "'S8' shards dimension 8, but tensors have at most 8", "from 0"},
        {"Shard(0),R", "'Shard(0)' is no shard", "S0"},
        {"P(),R", "there is no operation ''", "sum, avg, product"},
        {"P(summ),R", "there is no operation 'summ'", "did you mean 'P(sum)'?"},
        {"P(mix),R", "there is no operation 'mix'", "max"},
        {"P(sum,R", "'P(sum' is no partial", "P(sum|avg"},
        {"Psum,R", "'Psum' is no partial", "P(sum|avg"},
    };
    Mesh mesh = {0};
    Error none = {0};
    assert_true(mesh_parse("dp=1,tp=1", 1, &mesh, &none));
    for (size_t row = 0; row < COUNT_OF(rows); row++) {
        Placement found[MESH_AXES_MAX];
        Error error = {0};
        if (placement_parse(rows[row].text, "--from", &mesh, found, &error))
            fail_msg("'%s' was accepted", rows[row].text);
        assert_int_equal(error.exit_code, EXIT_CODE_USAGE);
        if (!strstr(error.what, rows[row].what) || !strstr(error.fix, rows[row].fix))
            fail_msg("'%s': expected '%s' and '%s', found '%s' and '%s'", rows[row].text,
                     rows[row].what, rows[row].fix, error.what, error.fix);
    }
    char *text = malloc(100001);
    assert_non_null(text);
    memset(text, 'S', 100000);
    memcpy(text + 99996, ",R", 2);
    text[100000] = 0;
    Placement found[MESH_AXES_MAX];
    Error error = {0};
    assert_false(placement_parse(text, "--from", &mesh, found, &error));
    free(text);
}

static void test_half_sums(void **state)
{
    (void)state;
    uint64_t seed = (uint64_t)time(NULL);
    for (uint64_t i = 0; i < 200000; i++) {
        RandomBlock block = random_block(seed, 1, i);
        uint16_t terms[2] = {(uint16_t)block.word[0], (uint16_t)block.word[1]}, found;
        if ((terms[0] & 0x7C00u) == 0x7C00u || (terms[1] & 0x7C00u) == 0x7C00u)
            continue; // infinities and NaN are not what is tested here
        if (i % 2)    // near each other, so that low bits matter
            terms[1] = (uint16_t)((terms[1] & 0x83FFu) | (terms[0] & 0x7C00u));
        double sum = (double)(f32_from_f16(terms[0]) + f32_from_f16(terms[1]));
        uint16_t expected = nearest_f16(sum);
        partial_combine(DTYPE_F16, COMM_SUM, 2, terms, 1, &found);
        if (found != expected && !(sum == 0 && (found & 0x7FFFu) == 0))
            fail_msg("%04x + %04x: found %04x, expected %04x (seed %llu)", terms[0], terms[1],
                     found, expected, (unsigned long long)seed);
    }
}

static void test_operations(void **state)
{
    (void)state;
    static const struct {
        CommOp op;
        float f32;
        int8_t i8;
    } rows[] = {
        // 1e8 + 1 - 1e8 in rank order loses the 1; 100 + 100 wraps to -56.
        {COMM_SUM, 0.0f, 90},  {COMM_PRODUCT, -1e16f, (int8_t)(100 * 100 * -110)},
        {COMM_MAX, 1e8f, 100}, {COMM_MIN, -1e8f, -110},
        {COMM_AVG, 0.0f, 0},
    };
    float f32[] = {1e8f, 1.0f, -1e8f}, sum;
    int8_t i8[] = {100, 100, -110}, small;
    Error error = {0};
    for (size_t row = 0; row < COUNT_OF(rows); row++) {
        partial_combine(DTYPE_F32, rows[row].op, 3, f32, 1, &sum);
        if (sum != rows[row].f32)
            fail_msg("%s of f32: found %.9g, expected %.9g", placement_op_name(rows[row].op),
                     (double)sum, (double)rows[row].f32);
        if (rows[row].op == COMM_AVG)
            continue;
        partial_combine(DTYPE_I8, rows[row].op, 3, i8, 1, &small);
        if (small != rows[row].i8)
            fail_msg("%s of i8: found %d, expected %d", placement_op_name(rows[row].op), small,
                     rows[row].i8);
    }
    uint32_t nan[] = {0x7FC00000u, 0x3F800000u}, swapped[] = {0x3F800000u, 0x7FC00000u}, found;
    for (int op = COMM_MAX; op <= COMM_MIN; op++) {
        partial_combine(DTYPE_F32, (CommOp)op, 2, nan, 1, &found);
        assert_int_equal(found, 0x7FC00000u);
        partial_combine(DTYPE_F32, (CommOp)op, 2, swapped, 1, &found);
        assert_int_equal(found, 0x7FC00000u);
    }
    assert_false(partial_check(DTYPE_I32, COMM_AVG, &error));
    assert_non_null(strstr(error.what, "P(avg)"));
    error = (Error){0};
    assert_false(partial_check(DTYPE_F8_E4M3, COMM_SUM, &error));
    assert_non_null(strstr(error.what, "f8_e4m3"));
    error = (Error){0};
    assert_true(partial_check(DTYPE_F16, COMM_AVG, &error));
}

// Whatever is combined with an identity stays.
static void test_identities(void **state)
{
    (void)state;
    for (int dtype = 0; dtype < DTYPES; dtype++) {
        Error error = {0};
        if (!partial_check((DType)dtype, COMM_SUM, &error))
            continue;
        uint64_t size = dtype_bytes((DType)dtype, 1);
        for (int op = COMM_SUM; op <= COMM_MIN; op++) {
            uint8_t terms[24] = {0}, found[8];
            if (!partial_has_identity((CommOp)op))
                continue;
            partial_fill_identity((DType)dtype, (CommOp)op, 3, terms);
            Tensor view = {.data = terms, .dtype = (DType)dtype, .rank = 1, .shape = {3}};
            assert_true(tensor_value(&view, 2) == (op == COMM_SUM ? 0.0 : 1.0));
            uint8_t value[8] = {0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3A, 0x3B}; // finite anywhere
            memcpy(terms + size, value, size);
            partial_combine((DType)dtype, (CommOp)op, 3, terms, 1, found);
            if (memcmp(found, value, size) != 0)
                fail_msg("%s of %s: the identity changed a value", placement_op_name((CommOp)op),
                         dtype_row((DType)dtype)->name);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words),      cmocka_unit_test(test_lists_that_fail),
        cmocka_unit_test(test_half_sums),  cmocka_unit_test(test_operations),
        cmocka_unit_test(test_identities),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
