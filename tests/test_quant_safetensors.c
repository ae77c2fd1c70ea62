// The safetensors reader: what the reference library wrote is read as it was meant; every rule that
// a file can break has its message; no file, however damaged, makes the reader look outside it.
#include "tests/capture.h"
#include "tests/safetensors_fixture.h"

#include <math.h>
#include <time.h>

// The tensors must be exactly the bytes behind the header, each inside it.
static void check_cover(const Safetensors *file, const uint8_t *image, uint64_t bytes)
{
    uint64_t header = 0, total = 0;
    memcpy(&header, image, 8);
    for (int64_t i = 0; i < file->count; i++) {
        const Tensor *tensor = &file->entries[i].tensor;
        const uint8_t *data = tensor->data;
        assert_true(data >= image + 8 + header && data + tensor_bytes(tensor) <= image + bytes);
        total += tensor_bytes(tensor);
        if (i > 0)
            assert_true(strcmp(file->entries[i - 1].name, file->entries[i].name) < 0);
    }
    if (8 + header + total != bytes)
        fail_msg("%llu bytes of tensors and %llu of header in a file of %llu",
                 (unsigned long long)total, (unsigned long long)header, (unsigned long long)bytes);
}

static Image make_image(const char *header, size_t header_bytes, uint64_t data_bytes)
{
    Image image = {.count = 8 + header_bytes + data_bytes};
    image.bytes = malloc(image.count);
    uint64_t length = header_bytes;
    memcpy(image.bytes, &length, 8);
    memcpy(image.bytes + 8, header, header_bytes);
    for (uint64_t i = 0; i < data_bytes; i++)
        image.bytes[8 + header_bytes + i] = (uint8_t)(i * 7 + 1);
    return image;
}

static void reads_what_the_reference_wrote(void **state)
{
    (void)state;
    char path[PATH_BYTES];
    Safetensors file;
    Error error = {0};
    expect_good(safetensors_open(golden_path(path), &file, &error), &error);
    check_cover(&file, file.map.data, file.map.bytes);
    static const char *const small[] = {"f8_e4m3", "f8_e5m2", "f8_e4m3fnuz", "f8_e5m2fnuz",
                                        "f8_e8m0"};
    for (size_t i = 0; i < COUNT_OF(small); i++) {
        char name[32];
        snprintf(name, sizeof(name), "%s.value", small[i]);
        const Tensor *codes = safetensors_find(&file, small[i]);
        const Tensor *values = safetensors_find(&file, name);
        assert_true(codes && values && tensor_elements(codes) == 256);
        assert_string_equal(dtype_row(codes->dtype)->name, small[i]);
        for (int code = 0; code < 256; code++) {
            double found = tensor_value(codes, code), expected = tensor_value(values, code);
            if (isnan(expected) ? !isnan(found) : found != expected)
                fail_msg("%s code %02X is %.9g, torch says %.9g", small[i], code, found, expected);
        }
    }
    const Tensor *scalar = safetensors_find(&file, "scalar");
    assert_true(scalar && scalar->rank == 0 && tensor_value(scalar, 0) == -2.5);
    const Tensor *empty = safetensors_find(&file, "empty too");
    assert_true(empty && empty->rank == 3 && empty->shape[0] == 3 && empty->shape[1] == 0);
    const Tensor *odd =
        safetensors_find(&file, "quote\" back\\slash, new\nline, tab\t, \xC3\xA4\xE4\xB8\xAD");
    assert_true(odd && odd->dtype == DTYPE_I64 && tensor_value(odd, 2) == 3);
    assert_null(safetensors_find(&file, "nobody"));
    assert_null(safetensors_find(&file, "__metadata__"));
    assert_string_equal(safetensors_metadata(&file, "made by"), "make_every_dtype.py \xE2\x9C\x93");
    assert_null(safetensors_metadata(&file, "nothing"));
    safetensors_close(&file);
    assert_int_equal(file.count, 0);
}

// Parsing must fail with exit code 65 and these words, and leave nothing behind.
static void expect_bad(const Image *image, const char *words)
{
    Safetensors file;
    Error error = {0};
    if (safetensors_parse(image->bytes, image->count, &file, &error))
        fail_msg("accepted, though it should say '%s'", words);
    assert_int_equal(error.exit_code, EXIT_CODE_DATA);
    ASSERT_CONTAINS(error.what, words);
    ASSERT_CONTAINS(error.what, "(memory): byte ");
    assert_true(strlen(error.fix) > 0);
    assert_true(file.count == 0 && !file.entries && !file.header);
}

// Cut after every `step`th byte, and grown by three.
static void check_other_lengths(const Image *whole, uint64_t step)
{
    uint64_t header_bytes = 0;
    memcpy(&header_bytes, whole->bytes, 8);
    for (uint64_t bytes = 0; bytes < whole->count; bytes += step) {
        Image part = {.bytes = malloc(bytes > 0 ? bytes : 1), .count = bytes};
        memcpy(part.bytes, whole->bytes, bytes);
        expect_bad(&part, bytes < 8                  ? "the header length alone takes 8"
                          : bytes < 8 + header_bytes ? "bytes follow it"
                                                     : "(truncated?)");
        free(part.bytes);
    }
    Image longer = {.bytes = calloc(1, whole->count + 3), .count = whole->count + 3};
    memcpy(longer.bytes, whole->bytes, whole->count);
    expect_bad(&longer, "3 bytes at the end of the file belong to no tensor");
    free(longer.bytes);
}

static void every_truncation_is_refused(void **state)
{
    (void)state;
    static const char header[] =
        "{\"__metadata__\":{\"k\":\"v\"},\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],"
        "\"data_offsets\":[0,24]},\"b\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[24,29]}}"
        " ";
    Image small = make_image(header, strlen(header), 29), golden = read_golden();
    Safetensors file;
    Error error = {0};
    expect_good(safetensors_parse(small.bytes, small.count, &file, &error), &error);
    safetensors_close(&file);
    check_other_lengths(&small, 1);
    check_other_lengths(&golden, 37);
    free(small.bytes);
    free(golden.bytes);
}

static void a_lying_header_length_is_refused(void **state)
{
    (void)state;
    static const struct {
        uint64_t length;
        const char *words;
    } lies[] = {
        {0, "byte 8: the header does not begin with '{'"},
        {1, "no valid JSON"},
        {50, "no valid JSON"},
        {10000000, "only 9322 bytes follow it"},
        {100000000, "only 9322 bytes follow it"},
        {100000001, "at most 100000000 are allowed"},
        {UINT64_C(1) << 63, "at most 100000000"},
        {UINT64_MAX, "the header length is 18446744073709551615 bytes"},
        {UINT64_MAX - 7, "at most 100000000"}, // 8 + N goes round to 0
    };
    Image golden = read_golden();
    for (size_t i = 0; i < COUNT_OF(lies); i++) {
        memcpy(golden.bytes, &lies[i].length, 8);
        expect_bad(&golden, lies[i].words);
    }
    free(golden.bytes);
}

#define ENTRY(dtype, shape, offsets)                                                               \
    "{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}"

// Header, bytes of data behind it, and what the message must say. Offsets count from the start of
// the file.
static const struct {
    const char *header;
    uint64_t data_bytes;
    const char *words;
} broken[] = {
    // The text itself.
    {"[]", 0, "byte 8: the header does not begin with '{'"},
    {" {}", 0, "byte 8: the header does not begin with '{'"},
    {"{", 0, "no valid JSON"},
    {"{} x", 0, "no valid JSON"},
    {"{\"a\":1,}", 0, "no valid JSON"},
    {"{\"\xff\":1}", 0, "no valid JSON"},
    {"{\"a\\u0000b\":" ENTRY("\"U8\"", "[]", "[0,1]") "}", 1, "no valid JSON"},
    {"{\"a\nb\":" ENTRY("\"U8\"", "[]", "[0,1]") "}", 1, "no valid JSON"},
    {"{\"a\":[[[0]]]}", 0, "byte 15: the header is nested deeper than 3 levels"},
    {"{}}", 0, "byte 10: '}' closes nothing"},
    {"{\"a\":" ENTRY("\"U8\"", "[]", "[0,1]") ",\"a\":" ENTRY("\"U8\"", "[]", "[1,2]") "}", 2,
     "duplicate"},
    {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", 1,
     "duplicate"},
    // Entries.
    {"{\"a\":7}", 0, "byte 9: tensor \"a\": its entry is no JSON object"},
    {"{\"a\":{}}", 0, "its entry has no dtype"},
    {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "its entry has no shape"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[]}}", 1, "its entry has no data_offsets"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1],\"x\":0}}", 1, "4 members"},
    {"{\"a\":" ENTRY("\"F33\"", "[]", "[0,4]") "}", 4, "there is no dtype \"F33\""},
    {"{\"a\":" ENTRY("\"f32\"", "[]", "[0,4]") "}", 4, "there is no dtype \"f32\""},
    {"{\"a\":" ENTRY("32", "[]", "[0,4]") "}", 4, "dtype is no text"},
    {"{\"a\":" ENTRY("\"F32\"", "4", "[0,4]") "}", 4, "shape is no JSON array"},
    {"{\"a\":" ENTRY("\"F32\"", "{}", "[0,4]") "}", 4, "shape is no JSON array"},
    {"{\"a\":" ENTRY("\"F32\"", "[-1]", "[0,4]") "}", 4, "an extent in shape is negative (-1)"},
    {"{\"a\":" ENTRY("\"F32\"", "[1.0]", "[0,4]") "}", 4, "an extent in shape is a fraction"},
    {"{\"a\":" ENTRY("\"F32\"", "[1e0]", "[0,4]") "}", 4, "an extent in shape is a fraction"},
    {"{\"a\":" ENTRY("\"F32\"", "[\"1\"]", "[0,4]") "}", 4, "an extent in shape is no number"},
    {"{\"a\":" ENTRY("\"F32\"", "[null]", "[0,4]") "}", 4, "an extent in shape is no number"},
    {"{\"a\":" ENTRY("\"F32\"", "[18446744073709551617]", "[0,4]") "}", 4, "no valid JSON"},
    {"{\"a\":" ENTRY("\"F32\"", "[1e999]", "[0,4]") "}", 4, "no valid JSON"},
    {"{\"a\":" ENTRY("\"U8\"", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", 1,
     "byte 51: an array has more than 8 elements, the highest rank of a tensor"},
    {"{\"a\":" ENTRY("\"U8\"", "[4294967296,4294967296]", "[0,0]") "}", 0,
     "the product of its shape does not fit 63 bits"},
    {"{\"a\":" ENTRY("\"U8\"", "[4294967296,4294967296,0]", "[0,0]") "}", 0,
     "the product of its shape does not fit 63 bits"},
    {"{\"a\":" ENTRY("\"U8\"", "[4611686018427387904,3]", "[0,0]") "}", 0, "63 bits"},
    {"{\"a\":" ENTRY("\"F64\"", "[2305843009213693952]", "[0,0]") "}", 0,
     "2305843009213693952 elements of 64 bits do not fit 64 bits"},
    {"{\"a\":" ENTRY("\"F4\"", "[3]", "[0,2]") "}", 2, "3 elements of 4 bits are no whole number"},
    {"{\"a\":" ENTRY("\"F6_E2M3\"", "[2]", "[0,2]") "}", 2, "2 elements of 6 bits"},
    {"{\"a\":" ENTRY("\"F32\"", "[2]", "[0,4]") "}", 4, "need 8 bytes, data_offsets hold 4"},
    {"{\"a\":" ENTRY("\"F32\"", "[0]", "[0,4]") "}", 4, "need 0 bytes, data_offsets hold 4"},
    // Offsets.
    {"{\"a\":" ENTRY("\"U8\"", "[]", "[0]") "}", 1, "no JSON array of two numbers"},
    {"{\"a\":" ENTRY("\"U8\"", "[]", "[0,1,2]") "}", 1, "no JSON array of two numbers"},
    {"{\"a\":" ENTRY("\"U8\"", "[]", "\"0,1\"") "}", 1, "no JSON array of two numbers"},
    {"{\"a\":" ENTRY("\"U8\"", "[]", "[-1,0]") "}", 1, "data_offsets[0] is negative (-1)"},
    {"{\"a\":" ENTRY("\"U8\"", "[]", "[0,1.5]") "}", 1, "data_offsets[1] is a fraction"},
    {"{\"a\":" ENTRY("\"U8\"", "[]", "[0,true]") "}", 1, "data_offsets[1] is no number"},
    {"{\"a\":" ENTRY("\"U8\"", "[]", "[1,0]") "}", 1, "data_offsets [1, 0] end before they begin"},
    {"{\"a\":" ENTRY("\"U8\"", "[2]", "[0,2]") "}", 1, "reach beyond the 1 bytes of data"},
    {"{\"a\":" ENTRY("\"U8\"", "[1]", "[9223372036854775806,9223372036854775807]") "}", 1,
     "reach beyond the 1 bytes"},
    // All together.
    {"{\"a\":" ENTRY("\"U8\"", "[2]", "[0,2]") ",\"b\":" ENTRY("\"U8\"", "[2]", "[1,3]") "}", 3,
     "tensor \"b\": its data begin at 1, inside those of tensor \"a\", which end at 2 (overlap)"},
    {"{\"a\":" ENTRY("\"U8\"", "[2]", "[0,2]") ",\"b\":" ENTRY("\"U8\"", "[2]", "[0,2]") "}", 2,
     "(overlap)"},
    {"{\"a\":" ENTRY("\"U8\"", "[2]", "[0,2]") ",\"b\":" ENTRY("\"U8\"", "[0]", "[1,1]") "}", 2,
     "(overlap)"},
    {"{\"a\":" ENTRY("\"U8\"", "[2]", "[0,2]") ",\"b\":" ENTRY("\"U8\"", "[1]", "[3,4]") "}", 4,
     "tensor \"b\": its data begin at 3, but those before end at 2 (hole)"},
    {"{\"a\":" ENTRY("\"U8\"", "[1]", "[1,2]") "}", 2, "begin at 1, but those before end at 0"},
    {"{\"a\":" ENTRY("\"U8\"", "[1]", "[0,1]") "}", 3, "2 bytes at the end of the file belong to"},
    {"{}", 1, "byte 10: 1 bytes at the end of the file belong to no tensor"},
    // Metadata.
    {"{\"__metadata__\":[]}", 0, "byte 9: __metadata__ is no JSON object"},
    {"{\"__metadata__\":null}", 0, "__metadata__ is no JSON object"},
    {"{\"__metadata__\":{\"k\":1}}", 0, "may only hold texts, and its \"k\" is something else"},
    {"{\"__metadata__\":{\"k\":{\"l\":\"m\"}}}", 0, "may only hold texts"},
    {"{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "duplicate"},
    // Names are shown so that they cannot forge lines, and cut.
    {"{\"x\\nmeshwork: error: no\\u001b[2J\":7}", 0,
     "tensor \"x\\x0Ameshwork: error: no\\x1B[2J\": its entry"},
};

static void every_broken_rule_has_its_message(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(broken); i++) {
        const char *header = broken[i].header;
        Image image = make_image(header, strlen(header), broken[i].data_bytes);
        Error error = {0};
        Safetensors file;
        bool good = safetensors_parse(image.bytes, image.count, &file, &error);
        if (good || error.exit_code != EXIT_CODE_DATA || !strstr(error.what, broken[i].words))
            fail_msg("%s with %llu bytes\n  should say '%s'\n  says       '%s' (%d)", header,
                     (unsigned long long)broken[i].data_bytes, broken[i].words,
                     good ? "nothing: accepted" : error.what, error.exit_code);
        free(image.bytes);
    }
}

static const struct {
    const char *header;
    uint64_t data_bytes;
    int64_t tensors;
} unusual[] = {
    {"{}", 0, 0},
    {"{}      \n\t ", 0, 0},
    {"{\"__metadata__\":{}}", 0, 0},
    {"{\"a\":" ENTRY("\"U8\"", "[]", "[0,1]") "}", 1, 1}, // data begin at an odd place
    {"{\"a\":" ENTRY("\"F32\"", "[0,9223372036854775807]", "[0,0]") "}", 0, 1},
    {"{\"a\":" ENTRY("\"F64\"", "[1,1,1,1,1,1,1,1]", "[0,8]") "}", 8, 1},
    {"{\"a\":" ENTRY("\"F4\"", "[3,2]", "[0,3]") "}", 3, 1},
    {"{\"a\":" ENTRY("\"F6_E3M2\"", "[4]", "[0,3]") "}", 3, 1},
    {"{\"\":" ENTRY("\"U8\"", "[]", "[0,1]") "}", 1, 1},
    {"{\"b\":" ENTRY("\"U8\"", "[1]", "[2,3]") ",\"a\":" ENTRY("\"I16\"", "[1]", "[0,2]") "}", 3,
     2}, // the header is in no order
    {"{\"b\":" ENTRY("\"U8\"", "[2]", "[0,2]") ",\"z\":" ENTRY(
         "\"U8\"", "[0]", "[0,0]") ",\"y\":" ENTRY("\"F32\"", "[0]", "[2,2]") "}",
     2, 3},
    {"{\"a\" : { \"data_offsets\":[ 0 , 4 ], \"shape\": [1] , "
     "\"dtype\":\"\\u0046\\u0033\\u0032\"}}",
     4, 1},
};

static void unusual_files_that_keep_the_rules_are_read(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(unusual); i++) {
        const char *header = unusual[i].header;
        Image image = make_image(header, strlen(header), unusual[i].data_bytes);
        Safetensors file;
        Error error = {0};
        if (!safetensors_parse(image.bytes, image.count, &file, &error))
            fail_msg("%s\n  is refused: %s", header, error.what);
        assert_int_equal(file.count, unusual[i].tensors);
        check_cover(&file, image.bytes, image.count);
        for (int64_t t = 0; t < file.count; t++) {
            const Tensor *tensor = safetensors_find(&file, file.entries[t].name);
            assert_ptr_equal(tensor, &file.entries[t].tensor);
            if (tensor_elements(tensor) > 0)
                assert_false(isinf(tensor_value(tensor, tensor_elements(tensor) - 1)));
        }
        safetensors_close(&file);
        free(image.bytes);
    }
}

static void a_name_of_a_megabyte_is_only_a_name(void **state)
{
    (void)state;
    enum { NAME_BYTES = 1 << 20 };
    char *header = malloc(NAME_BYTES + 128), *name = malloc(NAME_BYTES + 1);
    memset(name, 'n', NAME_BYTES);
    name[NAME_BYTES] = '\0';
    for (int broken_dtype = 0; broken_dtype < 2; broken_dtype++) {
        snprintf(header, NAME_BYTES + 128, "{\"%s\":%s}", name,
                 broken_dtype ? ENTRY("\"X\"", "[]", "[0,1]") : ENTRY("\"U8\"", "[]", "[0,1]"));
        Image image = make_image(header, strlen(header), 1);
        if (broken_dtype) {
            expect_bad(&image, "nnnnnn...\": there is no dtype \"X\"");
        } else {
            Safetensors file;
            Error error = {0};
            expect_good(safetensors_parse(image.bytes, image.count, &file, &error), &error);
            assert_non_null(safetensors_find(&file, name));
            safetensors_close(&file);
        }
        free(image.bytes);
    }
    free(header);
    free(name);
}

// Headers whose parsed form would be many times their size are refused while they are still text.
static void memory_bombs_are_refused_before_parsing(void **state)
{
    (void)state;
    static const struct {
        const char *start, *repeated;
        int times;
        const char *words;
    } bombs[] = {
        {"{\"a\":[0", ",0", 1000000, "byte 29: an array has more than 8 elements"},
        {"{\"a\":[{}", ",{}", 1000000, "an array has more than 8 elements"},
        {"{\"a\":", "[", 1000000, "nested deeper than 3 levels"},
        {"{", ":", (7 << 20) + 1, "enough for 1048576 tensors"},
        {"{", "[],", (7 << 20) + 1, "enough for 1048576 tensors"},
    };
    for (size_t i = 0; i < COUNT_OF(bombs); i++) {
        size_t start = strlen(bombs[i].start), step = strlen(bombs[i].repeated);
        size_t bytes = start + step * (size_t)bombs[i].times;
        char *header = malloc(bytes + 1);
        memcpy(header, bombs[i].start, start);
        for (int t = 0; t < bombs[i].times; t++)
            memcpy(header + start + step * (size_t)t, bombs[i].repeated, step);
        Image image = make_image(header, bytes, 0);
        expect_bad(&image, bombs[i].words);
        free(image.bytes);
        free(header);
    }
}

// Random damage to a good file: it is refused, or what is accepted keeps every rule.
static void random_damage_never_escapes_the_file(void **state)
{
    (void)state;
    unsigned seed = (unsigned)time(NULL);
    print_message("seed %u\n", seed);
    srandom(seed);
    Image golden = read_golden();
    uint64_t header_bytes = 0;
    memcpy(&header_bytes, golden.bytes, 8);
    uint8_t *copy = malloc(golden.count);
    static const char spice[] = "0123456789-.,:{}[]\"\\eEnull";
    int accepted = 0;
    for (int round = 0; round < 4000; round++) {
        memcpy(copy, golden.bytes, golden.count);
        for (int edits = 1 + (int)(random() % 3); edits > 0; edits--) {
            uint64_t at = (uint64_t)random() % (8 + header_bytes);
            copy[at] = random() % 4 == 0 ? (uint8_t)random()
                                         : (uint8_t)spice[random() % (long)(sizeof(spice) - 1)];
        }
        Safetensors file;
        Error error = {0};
        if (safetensors_parse(copy, golden.count, &file, &error)) {
            accepted++;
            check_cover(&file, copy, golden.count);
            safetensors_close(&file);
        } else {
            assert_int_equal(error.exit_code, EXIT_CODE_DATA);
        }
    }
    print_message("%d of 4000 damaged files still keep the rules\n", accepted);
    free(copy);
    free(golden.bytes);
}

static void files_that_are_none(void **state)
{
    (void)state;
    char folder[PATH_BYTES], path[PATH_BYTES];
    make_folder(folder);
    Safetensors file;
    Error missing = {0}, directory = {0}, empty = {0}, damaged = {0};
    assert_false(safetensors_open(join(path, folder, "nothing"), &file, &missing));
    assert_int_equal(missing.exit_code, EXIT_CODE_NO_INPUT);
    assert_false(safetensors_open(folder, &file, &directory));
    assert_int_equal(directory.exit_code, EXIT_CODE_DATA);
    join(path, folder, "file");
    FILE *out = fopen(path, "w");
    fclose(out);
    assert_false(safetensors_open(path, &file, &empty));
    assert_int_equal(empty.exit_code, EXIT_CODE_DATA);
    out = fopen(path, "w");
    fputs("this is no safetensors file", out);
    fclose(out);
    assert_false(safetensors_open(path, &file, &damaged));
    assert_int_equal(damaged.exit_code, EXIT_CODE_DATA);
    ASSERT_CONTAINS(damaged.what, "/file: byte 0: the header length is ");
    assert_null(safetensors_find(&file, "x"));
    safetensors_close(&file);
    remove(path);
    remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_what_the_reference_wrote),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(a_lying_header_length_is_refused),
        cmocka_unit_test(every_broken_rule_has_its_message),
        cmocka_unit_test(unusual_files_that_keep_the_rules_are_read),
        cmocka_unit_test(a_name_of_a_megabyte_is_only_a_name),
        cmocka_unit_test(memory_bombs_are_refused_before_parsing),
        cmocka_unit_test(random_damage_never_escapes_the_file),
        cmocka_unit_test(files_that_are_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
