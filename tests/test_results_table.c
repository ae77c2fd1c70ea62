// Text tables (alignment, UTF-8, hostile cells) and numbers with fitting units.
#include "tests/results_sample.h"

#include "results/table.h"

static void print_to(const Table *table, char *text, size_t bytes)
{
    FILE *file = fmemopen(text, bytes, "w");
    table_print(table, file);
    fclose(file);
}

static void test_layout(void **state)
{
    (void)state;
    const char *const titles[] = {"span", ">median", "note", NULL};
    char text[512] = "";
    Table *table = table_create(titles);
    table_cell(table, "step");
    table_cell(table, "%d ms", 12);
    table_cell(table, "first");
    table_cell(table, "forward/dispatch");
    table_cell(table, "%s", "1.24 ms");
    table_cell(table, " ");
    print_to(table, text, sizeof text);
    table_destroy(table);
    assert_string_equal(text, "span               median  note\n"
                              "step                12 ms  first\n"
                              "forward/dispatch  1.24 ms   \n");
}

static void test_characters(void **state)
{
    (void)state;
    const char *const titles[] = {"name", ">value", NULL};
    char text[512] = "";
    Table *table = table_create(titles);
    table_cell(table, "caf\xC3\xA9");         // four characters, five bytes
    table_cell(table, "\x1B[31mred\n\x7F\t"); // what a file may bring
    table_cell(table, "plain");
    table_cell(table, "1");
    print_to(table, text, sizeof text);
    table_destroy(table);
    assert_string_equal(text, "name         value\n"
                              "caf\xC3\xA9   ?[31mred???\n"
                              "plain            1\n");
}

static void test_no_rows(void **state)
{
    (void)state;
    const char *const titles[] = {"name", ">value", NULL}, *const none[] = {NULL};
    char text[64] = "";
    Table *table = table_create(titles);
    print_to(table, text, sizeof text);
    table_destroy(table);
    assert_string_equal(text, "name  value\n");
    Table *empty = table_create(none);
    table_destroy(empty);
    table_destroy(NULL);
}

static void test_many_rows(void **state)
{
    (void)state;
    const char *const titles[] = {">n", NULL};
    enum { ROWS = 1000, BYTES = 8192 };
    char *text = calloc(BYTES, 1);
    Table *table = table_create(titles);
    for (int i = 0; i < ROWS; i++)
        table_cell(table, "%d", i);
    print_to(table, text, BYTES);
    table_destroy(table);
    char *line = strtok(text, "\n");
    assert_string_equal(line, "  n");
    for (int i = 0; i < ROWS; i++) {
        line = strtok(NULL, "\n");
        assert_non_null(line);
        assert_int_equal(strlen(line), 3);
        assert_int_equal(strtol(line, NULL, 10), i);
    }
    assert_null(strtok(NULL, "\n"));
    free(text);
}

static void test_seconds(void **state)
{
    (void)state;
    static const struct {
        double seconds;
        const char *text;
    } cases[] = {
        {1.24e-3, "1.24 ms"},  {0.01236, "12.4 ms"}, {0.1236, "124 ms"},    {1.5e-9, "1.50 ns"},
        {9.996e-6, "10.0 us"}, {999.4e-6, "999 us"}, {999.7e-6, "1.00 ms"}, {0.99999, "1.00 s"},
        {1, "1.00 s"},         {3725, "3725 s"},     {0, "0.00 ns"},        {NAN, "-"},
        {-2.5e-3, "-2.50 ms"}, {INFINITY, "inf"},    {9.994e-3, "9.99 ms"},
    };
    char text[64];
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        assert_string_equal(table_seconds(cases[i].seconds, text, sizeof text), cases[i].text);
}

static void test_bytes_and_rates(void **state)
{
    (void)state;
    char text[64];
    assert_string_equal(table_bytes(0, text, sizeof text), "0 B");
    assert_string_equal(table_bytes(512, text, sizeof text), "512 B");
    assert_string_equal(table_bytes(1023, text, sizeof text), "1023 B");
    assert_string_equal(table_bytes(1024, text, sizeof text), "1.0 KiB");
    assert_string_equal(table_bytes(3.1 * 0x1p30, text, sizeof text), "3.1 GiB");
    assert_string_equal(table_bytes(1023.9 * 0x1p20, text, sizeof text), "1.0 GiB");
    assert_string_equal(table_bytes(NAN, text, sizeof text), "-");
    assert_string_equal(table_rate(3.94e12, "B", text, sizeof text), "3.9 TB/s");
    assert_string_equal(table_rate(612.4e12, "FLOP", text, sizeof text), "612 TFLOP/s");
    assert_string_equal(table_rate(61.24e12, "FLOP", text, sizeof text), "61.2 TFLOP/s");
    assert_string_equal(table_rate(5, "B", text, sizeof text), "5.0 B/s");
    assert_string_equal(table_rate(NAN, "B", text, sizeof text), "-");
}

// What is printed reads back to the value within half of its last digit, and never shows "1000".
static void test_seconds_read_back(void **state)
{
    Sample *sample = *state;
    for (int round = 0; round < 20000; round++) {
        double value = pow(10, -9 + 12 * sample_uniform(sample)), scale = 1;
        char text[64], unit[8] = "";
        double number = 0;
        table_seconds(value, text, sizeof text);
        assert_int_equal(sscanf(text, "%lf %7s", &number, unit), 2);
        scale = unit[0] == 'n' ? 1e-9 : unit[0] == 'u' ? 1e-6 : unit[0] == 'm' ? 1e-3 : 1;
        assert_near(number * scale / value, 1, 5.1e-3);
        if (number >= 1000 && unit[0] != 's')
            fail_msg("%.17g s is printed as %s", value, text);
    }
}

static void test_shares(void **state)
{
    (void)state;
    char text[64];
    assert_string_equal(table_percent(0.0312, text, sizeof text), "3.1 %");
    assert_string_equal(table_percent(0.312, text, sizeof text), "31 %");
    assert_string_equal(table_percent(NAN, text, sizeof text), "-");
}

int main(void)
{
    Sample sample = sample_create();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),  cmocka_unit_test(test_characters),
        cmocka_unit_test(test_no_rows), cmocka_unit_test(test_many_rows),
        cmocka_unit_test(test_seconds), cmocka_unit_test(test_bytes_and_rates),
        cmocka_unit_test(test_shares),  cmocka_unit_test_prestate(test_seconds_read_back, &sample),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
