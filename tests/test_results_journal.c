// The journal: round trip, every way a file can be cut or damaged, a full disk, and kill -9 at
// random moments.
#include "tests/results_folder.h"

#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "results/journal.h"

enum { KILLS = 100 };

// Writes what a run would: header, measurements and checks in turn, the end if complete.
static void write_journal(const char *path, const Result *result)
{
    Error error = {0};
    Journal *journal = journal_create(path, true, &error);
    assert_error(error, 0);
    assert_true(journal_append(journal, line_of_header(result->header), &error));
    for (int i = 0; i < result->measurement_count; i++)
        assert_true(journal_append(journal, line_of_measurement(&result->measurements[i]), &error));
    for (int i = 0; i < result->check_count; i++)
        assert_true(journal_append(journal, line_of_check(&result->checks[i]), &error));
    if (result->complete)
        assert_true(journal_append(journal, line_of_end(result), &error));
    assert_error(error, 0);
    journal_destroy(journal);
}

static void test_round_trip(void **state)
{
    Folder *folder = *state;
    for (int round = 0; round < 10; round++) {
        Result written = sample_result(folder->sample, round % 4, round % 3), read;
        Error error = {0};
        written.complete = round % 2 == 0;
        write_journal(folder->journal, &written);
        assert_true(journal_read(folder->journal, &read, &error));
        assert_same_result(&written, &read);
        assert_int_equal(read.note[0] == '\0', written.complete);
        result_destroy(&written);
        result_destroy(&read);
    }
}

static void test_header_only(void **state)
{
    Folder *folder = *state;
    Result written = {.header = sample_header(folder->sample)}, read;
    Error error = {0};
    write_journal(folder->journal, &written);
    assert_true(journal_read(folder->journal, &read, &error));
    assert_int_equal(read.measurement_count, 0);
    assert_false(read.complete);
    assert_text_has(read.note, "no closing line");
    assert_same_json(read.header, written.header);
    result_destroy(&written);
    result_destroy(&read);
}

// The lines that stand whole in the first `bytes` bytes.
static int whole_lines(const char *data, uint64_t bytes)
{
    int lines = 0;
    for (uint64_t i = 0; i < bytes; i++)
        lines += data[i] == '\n';
    return lines;
}

// Cut anywhere: what stood whole before the cut is read, and nothing else.
static void test_every_cut(void **state)
{
    Folder *folder = *state;
    Result written = sample_result(folder->sample, 1, 3);
    uint64_t bytes = 0;
    write_journal(folder->journal, &written);
    char *data = read_bytes(folder->journal, &bytes);
    int64_t step = bytes > 3000 ? (int64_t)bytes / 1500 : 1;
    for (uint64_t cut = 0; cut <= bytes;
         cut += 1 + (uint64_t)sample_below(folder->sample, (int)step)) {
        Result read;
        Error error = {0};
        write_bytes(folder->journal, data, cut);
        int lines = whole_lines(data, cut);
        bool good = journal_read(folder->journal, &read, &error);
        assert_int_equal(good, lines > 0);
        if (!good) {
            assert_error(error, EXIT_CODE_DATA);
            continue;
        }
        bool torn = cut > 0 && data[cut - 1] != '\n';
        assert_int_equal(strstr(read.note, "torn") != NULL, torn);
        assert_int_equal(read.measurement_count, lines >= 2);
        assert_int_equal(read.check_count, lines >= 5 ? 3 : lines >= 2 ? lines - 2 : 0);
        assert_int_equal(read.complete, lines == 6);
        if (lines >= 2)
            assert_same_measurement(&written.measurements[0], &read.measurements[0]);
        result_destroy(&read);
    }
    free(data);
    result_destroy(&written);
}

// One bit flipped anywhere: refused with the offset of its line, or, in the last line, dropped.
// Never other data.
static void test_flipped_bits(void **state)
{
    Folder *folder = *state;
    Result written = sample_result(folder->sample, 2, 2);
    uint64_t bytes = 0;
    write_journal(folder->journal, &written);
    char *data = read_bytes(folder->journal, &bytes);
    uint64_t last = bytes - 1;
    while (data[last - 1] != '\n')
        last--;
    for (int round = 0; round < 500; round++) {
        uint64_t at = sample_bits(folder->sample) % bytes, start = at;
        char bit = (char)(1 << sample_below(folder->sample, 8));
        while (start > 0 && data[start - 1] != '\n')
            start--;
        Result read;
        Error error = {0};
        data[at] = (char)(data[at] ^ bit);
        write_bytes(folder->journal, data, bytes);
        bool good = journal_read(folder->journal, &read, &error);
        bool splits = data[at] == '\n'; // the rest of the last line then counts as a line
        data[at] = (char)(data[at] ^ bit);
        if (start == 0 || (start < last && at != last - 1)) {
            assert_false(good);
            assert_error(error, EXIT_CODE_DATA);
            if (start > 0) {
                char offset[64];
                snprintf(offset, sizeof offset, "at byte %llu,", (unsigned long long)start);
                assert_text_has(error.what, offset);
            }
        } else if (good) {
            assert_text_has(read.note, "torn");
            assert_false(read.complete);
            assert_int_equal(read.measurement_count, 2);
            assert_same_check(&read.checks[0], &written.checks[0]);
            result_destroy(&read);
        } else {
            assert_true(splits);
            assert_error(error, EXIT_CODE_DATA);
        }
    }
    free(data);
    result_destroy(&written);
}

static void test_foreign(void **state)
{
    Folder *folder = *state;
    static const char *const texts[] = {
        "",
        "what is left of a run",
        "what is left of a run\n",
        "00000000 0 \n", // the checksum of nothing, and no JSON
        "\n\n\n",
        "5c37a6d9 2 {}\n",
        "ffffffff 99999999999999999999 {}\n",
    };
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        Result read;
        Error error = {0};
        write_bytes(folder->journal, texts[i], strlen(texts[i]));
        assert_false(journal_read(folder->journal, &read, &error));
        assert_error(error, EXIT_CODE_DATA);
        assert_text_has(error.what, folder->journal);
    }
    Result read;
    Error absent = {0};
    assert_false(journal_read("/no/such/r.journal", &read, &absent));
    assert_error(absent, EXIT_CODE_NO_INPUT);
}

// Lines whose checksum is right but which say what cannot be: written by a hand that knows the
// format.
static void test_impossible_lines(void **state)
{
    Folder *folder = *state;
    static const struct {
        const char *line, *part;
    } cases[] = {
        {"{\"kind\": \"check\"}", "\"name\" is missing"},
        {"{\"no\": \"kind\"}", "without a kind"},
        {"[1, 2]", "without a kind"},
        {"{\"kind\": \"header\", \"run\": {}}", "second header"},
        {"{\"kind\": \"end\", \"measurements\": 3, \"checks\": 0}", "counts 3"},
        {"{\"kind\": \"measurement\", \"name\": \"x\", \"ranks\": -1}", "\"ranks\""},
        {"{\"kind\": \"measurement\", \"name\": \"x\", \"ranks\": 4294967297}", "\"ranks\""},
        {"{\"kind\": \"measurement\", \"name\": 7}", "\"name\""},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Result written = {.header = sample_header(folder->sample)}, read;
        Error error = {0};
        Journal *journal = journal_create(folder->journal, true, &error);
        assert_true(journal_append(journal, line_of_header(written.header), &error));
        Json *line = json_parse(cases[i].line, strlen(cases[i].line), &error);
        assert_true(journal_append(journal, line, &error));
        journal_destroy(journal);
        assert_error(error, 0);
        assert_false(journal_read(folder->journal, &read, &error));
        assert_error(error, EXIT_CODE_DATA);
        assert_text_has(error.what, cases[i].part);
        result_destroy(&written);
    }
}

// A claim of a million samples with none behind it must not cost the memory it names.
static void test_claims_without_data(void **state)
{
    Folder *folder = *state;
    Result written = sample_result(folder->sample, 1, 0), read;
    const char *names[] = {"samples", "ranks"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        Error error = {0};
        Journal *journal = journal_create(folder->journal, true, &error);
        Json *line = line_of_measurement(&written.measurements[0]);
        json_set(line, names[i], json_integer(INT32_MAX));
        assert_true(journal_append(journal, line_of_header(written.header), &error));
        assert_true(journal_append(journal, line, &error));
        journal_destroy(journal);
        assert_false(journal_read(folder->journal, &read, &error));
        assert_error(error, EXIT_CODE_DATA);
    }
    result_destroy(&written);
}

static void test_unknown_kind_and_version(void **state)
{
    Folder *folder = *state;
    Result written = {.header = sample_header(folder->sample)}, read;
    Error error = {0}, refused = {0};
    Journal *journal = journal_create(folder->journal, true, &error);
    assert_true(journal_append(journal, line_of_header(written.header), &error));
    Json *later = json_set(json_object(), "kind", json_text("of a later minor version"));
    assert_true(journal_append(journal, later, &error));
    journal_destroy(journal);
    assert_true(journal_read(folder->journal, &read, &error));
    result_destroy(&read);

    journal = journal_create(folder->journal, true, &error);
    Json *header = line_of_header(written.header);
    assert_true(
        journal_append(journal, json_set(header, "schema_version", json_text("2.0.0")), &error));
    journal_destroy(journal);
    assert_false(journal_read(folder->journal, &read, &refused));
    assert_error(refused, EXIT_CODE_DATA);
    assert_text_has(refused.what, "2.0.0");
    result_destroy(&written);
}

static void test_creation(void **state)
{
    Folder *folder = *state;
    Error error = {0}, exists = {0}, held = {0}, absent = {0}, directory = {0};
    Journal *first = journal_create(folder->journal, false, &error);
    assert_non_null(first);
    assert_null(journal_create(folder->journal, false, &exists));
    assert_error(exists, EXIT_CODE_CANT_CREATE);
    assert_text_has(exists.fix, "results recover");
    // Even --force does not take it from a run that is alive.
    assert_null(journal_create(folder->journal, true, &held));
    assert_error(held, EXIT_CODE_CANT_CREATE);
    assert_text_has(held.what, "another run");
    journal_destroy(first);
    Journal *second = journal_create(folder->journal, true, &error);
    assert_non_null(second);
    journal_destroy(second);
    assert_null(journal_create("/no/such/folder/r.journal", false, &absent));
    assert_error(absent, EXIT_CODE_CANT_CREATE);
    assert_null(journal_create(folder->path, true, &directory));
    assert_error(directory, EXIT_CODE_CANT_CREATE);
}

static void test_path_for(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"r.h5", "r.journal"},      {"a.b/r.hdf5", "a.b/r.journal"},
        {"r", "r.journal"},         {"r.h5.old", "r.h5.old.journal"},
        {"x/.h5", "x/.h5.journal"}, {".h5", ".h5.journal"},
    };
    char path[64];
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        journal_path_for(cases[i][0], path, sizeof path);
        assert_string_equal(path, cases[i][1]);
    }
}

// Appends until the disk is full: the failing line is an error 74 that names its bytes, all before
// it are there.
static void fill_up(Sample *sample, const char *path)
{
    Result written = {.header = sample_header(sample)}, read;
    Error error = {0};
    Journal *journal = journal_create(path, true, &error);
    assert_error(error, 0);
    assert_true(journal_append(journal, line_of_header(written.header), &error));
    int fitted = 0;
    while (fitted < 10000) {
        sample_push_measurement(sample, &written, 2, 20);
        if (!journal_append(journal, line_of_measurement(&written.measurements[fitted]), &error))
            break;
        fitted++;
    }
    assert_error(error, EXIT_CODE_IO);
    assert_text_has(error.what, "bytes more");
    journal_destroy(journal);
    Error none = {0};
    assert_true(journal_read(path, &read, &none));
    assert_int_equal(read.measurement_count, fitted);
    assert_text_has(read.note, "no closing line"); // the torn line was cut off, not left
    for (int i = 0; i < fitted; i++)
        assert_same_measurement(&written.measurements[i], &read.measurements[i]);
    result_destroy(&read);
    result_destroy(&written);
}

static void test_size_limit(void **state)
{
    Folder *folder = *state;
    struct rlimit before = size_limit_begin(60000);
    fill_up(folder->sample, folder->journal);
    size_limit_end(&before);
}

static void test_full_disk(void **state)
{
    Folder *folder = *state;
    char disk[PATH_BYTES + 16], path[PATH_BYTES + 32];
    snprintf(disk, sizeof disk, "%s/disk", folder->path);
    snprintf(path, sizeof path, "%s/r.journal", disk);
    assert_int_equal(mkdir(disk, 0700), 0);
    if (mount("tmpfs", disk, "tmpfs", 0, "size=64k") != 0) {
        print_message("no tmpfs may be mounted here: only the size limit was tried\n");
        skip();
    }
    fill_up(folder->sample, path);
    assert_int_equal(umount(disk), 0);
}

// A process that measures and prints, until it is killed. Measurement i has i + 1 samples of value
// i.
static void write_forever(const char *path, int pipe_end)
{
    Error error = {0};
    Json *header = json_set(json_object(), "command", json_text("kill"));
    Journal *journal = journal_create(path, true, &error);
    bool good = journal && journal_append(journal, line_of_header(header), &error);
    for (int i = 0; good; i++) {
        double seconds[64];
        MeasurementSpan span = {.name = "step", .seconds = seconds};
        Measurement measurement = {
            .ranks = 1, .samples = 1 + i % 64, .span_count = 1, .spans = &span};
        for (int j = 0; j < 64; j++)
            seconds[j] = i;
        snprintf(measurement.name, sizeof measurement.name, "m%d", i);
        good = journal_append(journal, line_of_measurement(&measurement), &error);
        // The promise: on disk before it is shown.
        good = good && write(pipe_end, &i, sizeof i) == (ssize_t)sizeof i;
    }
    _exit(1);
}

static int count_printed(int pipe_end, int printed)
{
    int index;
    while (read(pipe_end, &index, sizeof index) == (ssize_t)sizeof index) {
        assert_int_equal(index, printed);
        printed++;
    }
    return printed;
}

static void test_kill(void **state)
{
    Folder *folder = *state;
    int with_lines = 0, before_header = 0;
    for (int round = 0; round < KILLS; round++) {
        int ends[2];
        assert_int_equal(pipe(ends), 0);
        pid_t child = fork();
        if (child == 0) {
            close(ends[0]);
            write_forever(folder->journal, ends[1]);
        }
        close(ends[1]);
        int first = -1;
        if (round % 2) // on a slow disk too, half of the kills come after a line was printed
            assert_int_equal(read(ends[0], &first, sizeof first), sizeof first);
        usleep((useconds_t)sample_below(folder->sample, 8000));
        kill(child, SIGKILL);
        int status = 0;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        int printed = count_printed(ends[0], first + 1);
        close(ends[0]);
        Result back;
        Error error = {0};
        if (!journal_read(folder->journal, &back, &error)) {
            assert_int_equal(printed, 0); // killed before the first line was there
            before_header++;
        } else {
            assert_in_range(back.measurement_count, printed, printed + 1);
            for (int i = 0; i < printed; i++) {
                assert_int_equal(back.measurements[i].samples, 1 + i % 64);
                assert_same_double(back.measurements[i].spans[0].seconds[i % 64], i);
            }
            with_lines += printed > 0;
            result_destroy(&back);
        }
        unlink(folder->journal);
    }
    print_message("%d kills: %d after lines were printed, %d before the header\n", KILLS,
                  with_lines, before_header);
    assert_in_range(with_lines, KILLS / 2, KILLS);
}

int main(void)
{
    Sample sample = sample_create();
    const struct CMUnitTest tests[] = {
        FOLDER_TEST(test_round_trip, &sample),
        FOLDER_TEST(test_header_only, &sample),
        FOLDER_TEST(test_every_cut, &sample),
        FOLDER_TEST(test_flipped_bits, &sample),
        FOLDER_TEST(test_foreign, &sample),
        FOLDER_TEST(test_impossible_lines, &sample),
        FOLDER_TEST(test_claims_without_data, &sample),
        FOLDER_TEST(test_unknown_kind_and_version, &sample),
        FOLDER_TEST(test_creation, &sample),
        cmocka_unit_test(test_path_for),
        FOLDER_TEST(test_size_limit, &sample),
        FOLDER_TEST(test_full_disk, &sample),
        FOLDER_TEST(test_kill, &sample),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
