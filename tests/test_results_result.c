// A run writes its result: samples of all ranks, journal before return, HDF5 at the end, and what
// the header holds.
// ranks: 1 2 4
//
// Every step is collective, so all of them stand in one test: after a failure no rank may go on
// without the others.
#include "tests/results_sample.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>

#include "harness/file.h"
#include "results/journal.h"
#include "results/provenance.h"
#include "results/store.h"

enum { PATH_BYTES = 256, MEASUREMENTS = 5, SPANS = 3, SAMPLES_MAX = 40 };

typedef struct Params {
    int64_t tokens;
    bool check;
    const char *out;
    double noise;
} Params;

static const Option options[] = {
    {"tokens", OPTION_INT, offsetof(Params, tokens), "4", .doc = "how many"},
    {"check", OPTION_SWITCH, offsetof(Params, check), "yes", .doc = "whether"},
    {"out", OPTION_TEXT, offsetof(Params, out), .letter = 'o', .doc = "where"},
    {"noise", OPTION_REAL, offsetof(Params, noise), "0.1", .doc = "how much"},
    {.name = "fault", .kind = OPTION_TEXT, .offset = offsetof(Params, out)}, // no doc: for tests
    {.name = NULL},
};

typedef struct Place {
    Run *run;
    uint64_t seed;
    char folder[PATH_BYTES], file[PATH_BYTES + 16], journal[PATH_BYTES + 16];
} Place;

// What rank `rank` measured: any rank can say it of any other.
static double seconds_of(const Place *place, int measurement, int span, int sample, int rank)
{
    Sample stream = {place->seed + (uint64_t)measurement * 1000003u + (uint64_t)span * 10007u +
                     (uint64_t)sample * 101u + (uint64_t)rank};
    return sample_seconds(&stream);
}

static int samples_of(const Place *place, int measurement)
{
    Sample stream = {place->seed + (uint64_t)measurement};
    return measurement == 0 ? 0 : sample_below(&stream, SAMPLES_MAX);
}

static void add_measurement(const Place *place, ResultWriter *writer, int index)
{
    static double seconds[SPANS][SAMPLES_MAX];
    MeasurementSpan spans[SPANS] = {0};
    int rank = place->run->rank;
    Measurement measurement = {.ranks = place->run->ranks,
                               .samples = samples_of(place, index),
                               .warmups = 2,
                               .stop_reason = "count",
                               .span_count = SPANS,
                               .spans = spans,
                               .state_before = {.sm_clock_mhz = 1000 + rank}};
    snprintf(measurement.name, sizeof measurement.name, "m%d", index);
    for (int span = 0; span < SPANS; span++) {
        snprintf(spans[span].name, sizeof spans[span].name, "phase/%d", span);
        spans[span].seconds = seconds[span];
        // Each figure is largest on another rank.
        spans[span].cost.memory_bytes = 1000.0 * (1 + rank);
        spans[span].cost.flops = 1000.0 * (place->run->ranks - rank);
        spans[span].floor_s = rank == place->run->ranks / 2 ? 0.5 : 0.25;
        for (int sample = 0; sample < measurement.samples; sample++)
            seconds[span][sample] = seconds_of(place, index, span, sample, rank);
    }
    result_add_measurement(writer, &measurement);
}

static void check_measurement(const Place *place, const Measurement *measurement, int index)
{
    int ranks = place->run->ranks;
    assert_int_equal(measurement->ranks, ranks);
    assert_int_equal(measurement->samples, samples_of(place, index));
    assert_int_equal(measurement->span_count, SPANS);
    assert_same_double(measurement->state_before.sm_clock_mhz, 1000); // rank 0's
    for (int span = 0; span < SPANS; span++) {
        const MeasurementSpan *from = &measurement->spans[span];
        assert_same_double(from->cost.memory_bytes, 1000.0 * ranks);
        assert_same_double(from->cost.flops, 1000.0 * ranks);
        assert_same_double(from->floor_s, 0.5);
        for (int sample = 0; sample < measurement->samples; sample++)
            for (int rank = 0; rank < ranks; rank++)
                assert_same_double(from->seconds[sample * ranks + rank],
                                   seconds_of(place, index, span, sample, rank));
    }
}

// What a reader would find if the job were killed now.
static void check_journal(const Place *place, int measurements, int checks)
{
    Result read;
    Error error = {0};
    if (!journal_read(place->journal, &read, &error))
        fail_msg("%s", error.what);
    assert_int_equal(read.measurement_count, measurements);
    assert_int_equal(read.check_count, checks);
    assert_false(read.complete);
    for (int i = 0; i < measurements; i++)
        check_measurement(place, &read.measurements[i], i);
    result_destroy(&read);
}

static void check_header(const Place *place, const Json *header)
{
    const Json *ranks = json_find(header, "ranks"), *given = json_find(header, "options_given");
    const Json *values = json_find(header, "options");
    assert_int_equal(json_count(ranks), place->run->ranks);
    for (int rank = 0; rank < place->run->ranks; rank++) {
        const Json *row = json_at(ranks, (uint64_t)rank);
        assert_int_equal(json_integer_of(json_find(row, "rank")), rank);
        assert_int_equal(json_integer_of(json_find(row, "device_index")), rank);
        assert_string_equal(json_text_of(json_find(row, "host")), place->run->host);
        assert_string_equal(json_text_of(json_find(row, "device_name")), "a \"test\" device");
        assert_true(strlen(json_text_of(json_find(row, "cpus"))) > 0);
        assert_true(json_integer_of(json_find(row, "threads")) >= 1);
    }
    assert_int_equal(json_count(given), 3);
    assert_string_equal(json_text_of(json_at(given, 0)), "tokens");
    assert_string_equal(json_text_of(json_at(given, 1)), "check");
    assert_string_equal(json_text_of(json_at(given, 2)), "out");
    assert_string_equal(json_text_of(json_find(values, "tokens")), "5");
    assert_string_equal(json_text_of(json_find(values, "check")), "no");
    assert_string_equal(json_text_of(json_find(values, "noise")), "0.1");
    assert_null(json_find(values, "fault"));
    assert_string_equal(json_text_of(json_find(header, "schema_name")), "meshwork-run");
    assert_string_equal(json_text_of(json_find(header, "uuid")), place->run->id);
    assert_int_equal(json_integer_of(json_find(header, "seed")), 77);
    assert_int_equal(json_integer_of(json_find(header, "restart_count")), 2);
    assert_string_equal(json_text_of(json_find(json_find(header, "slurm"), "job_id")), "4711");
    assert_string_equal(json_text_of(json_find(json_find(header, "mesh"), "text")), "ep=*");
    assert_string_equal(json_text_of(json_find(json_find(header, "versions"), "nccl")), "9.9");
    assert_non_null(json_text_of(json_find(json_find(header, "versions"), "hdf5")));
    const char *created = json_text_of(json_find(header, "created_utc"));
    int year, month, day, hour, minute, second;
    assert_int_equal(
        sscanf(created, "%4d-%2d-%2dT%2d:%2d:%2dZ", &year, &month, &day, &hour, &minute, &second),
        6);
    assert_int_equal(strlen(created), 20);
    const Json *environment = json_find(header, "environment");
    assert_string_equal(json_text_of(json_find(environment, "NCCL_TEST_TOKEN")), "(redacted)");
    assert_string_equal(json_text_of(json_find(environment, "OMP_TEST_BYTES")), "a\xEF\xBF\xBD");
    assert_null(json_find(environment, "PRIVATE_WORD"));
}

static void assert_absent(const char *path, const char *word)
{
    uint64_t bytes;
    Error error = {0};
    char *data = file_read(path, 1ull << 30, &bytes, &error);
    assert_error(error, 0);
    assert_null(memmem(data, bytes, word, strlen(word)));
    free(data);
}

static ResultWriter *start(const Place *place, const char *path)
{
    static char words[][16] = {"meshwork", "test", "--tokens=5", "--no-check", "-o", "r.h5"};
    static char *argv[] = {words[0], words[1], words[2], words[3], words[4], words[5], NULL};
    static const Params params = {.tokens = 5, .check = false, .out = "r.h5", .noise = 0.1};
    DeviceInfo device = {
        .kind = DEVICE_CPU, .index = place->run->rank, .name = "a \"test\" device"};
    Json *extra = json_object(), *versions = json_set(json_object(), "nccl", json_text("9.9"));
    json_set(extra, "mesh", json_set(json_object(), "text", json_text("ep=*")));
    json_set(extra, "versions", versions);
    place->run->argc = 6;
    place->run->argv = argv;
    return result_writer_create(&(ResultStart){.run = place->run,
                                               .options = options,
                                               .params = &params,
                                               .device = &device,
                                               .path = path,
                                               .seed = 77,
                                               .extra = extra});
}

static int files_in(const char *folder)
{
    int count = 0;
    DIR *directory = opendir(folder);
    for (struct dirent *entry; (entry = readdir(directory));)
        count += entry->d_name[0] != '.';
    closedir(directory);
    return count;
}

static void write_and_check(const Place *place)
{
    bool first = place->run->rank == 0;
    ResultWriter *writer = start(place, place->file);
    if (first) {
        assert_non_null(result_of(writer));
        check_header(place, result_of(writer)->header);
        check_journal(place, 0, 0);
    } else {
        assert_null(result_of(writer));
    }
    for (int i = 0; i < MEASUREMENTS; i++) {
        add_measurement(place, writer, i);
        ResultCheck check = {.name = "y", .verdict = "equal", .error = NAN, .bound = NAN};
        if (first)
            check_journal(place, i + 1, i);
        result_add_check(writer, &check);
        if (first)
            check_journal(place, i + 1, i + 1);
    }
    if (first) {
        assert_absent(place->journal, "tr0ub4dor");
        assert_int_equal(files_in(place->folder), 1);
    }
    result_writer_finish(writer);
    if (first) {
        Result read;
        Error error = {0};
        assert_int_equal(files_in(place->folder), 1); // the journal is gone
        if (!store_read(place->file, &read, &error))
            fail_msg("%s", error.what);
        assert_same_result(result_of(writer), &read);
        assert_true(read.complete);
        for (int i = 0; i < MEASUREMENTS; i++)
            check_measurement(place, &read.measurements[i], i);
        assert_absent(place->file, "tr0ub4dor");
        result_destroy(&read);
        unlink(place->file);
    }
    result_writer_destroy(writer);
}

// Without a path nothing is written, and everything else is the same.
static void write_nothing(const Place *place)
{
    ResultWriter *writer = start(place, NULL);
    for (int i = 0; i < 2; i++)
        add_measurement(place, writer, i);
    result_writer_finish(writer);
    if (place->run->rank == 0) {
        assert_int_equal(result_of(writer)->measurement_count, 2);
        assert_true(result_of(writer)->complete);
        for (int i = 0; i < 2; i++)
            check_measurement(place, &result_of(writer)->measurements[i], i);
        assert_int_equal(files_in(place->folder), 0);
    }
    result_writer_destroy(writer);
}

// Somebody who reads stderr so late that the pipe is full: the writer waits in the middle of
// telling.
typedef struct LateReader {
    const Place *place;
    int ends[2], stderr_before;
    pthread_t thread;
    bool journalled; // the measurement was in the journal while the line could not get out
    char text[1024]; // what was told
} LateReader;

static void *read_late(void *context)
{
    enum { TRIES = 1000 };
    LateReader *reader = context;
    for (int i = 0; i < TRIES && !reader->journalled; i++) {
        Result read;
        Error error = {0};
        usleep(10000);
        if (!journal_read(reader->place->journal, &read, &error))
            continue;
        reader->journalled = read.measurement_count == 1;
        result_destroy(&read);
    }
    size_t length = 0;
    char byte;
    while (read(reader->ends[0], &byte, 1) == 1)
        if (byte != '\0' && length + 1 < sizeof reader->text)
            reader->text[length++] = byte;
    return NULL;
}

static void late_reader_begin(LateReader *reader)
{
    assert_int_equal(pipe(reader->ends), 0);
    assert_int_equal(fcntl(reader->ends[1], F_SETFL, O_NONBLOCK), 0);
    while (write(reader->ends[1], "", 1) == 1) {
    }
    assert_int_equal(fcntl(reader->ends[1], F_SETFL, 0), 0);
    fflush(stderr);
    reader->stderr_before = dup(STDERR_FILENO);
    dup2(reader->ends[1], STDERR_FILENO);
    close(reader->ends[1]);
    assert_int_equal(pthread_create(&reader->thread, NULL, read_late, reader), 0);
}

static void late_reader_end(LateReader *reader)
{
    dup2(reader->stderr_before, STDERR_FILENO);
    close(reader->stderr_before);
    pthread_join(reader->thread, NULL);
    close(reader->ends[0]);
}

// What is told is on disk already: it can be found there before its line gets out.
static void tell_after_the_journal(const Place *place)
{
    bool first = place->run->rank == 0;
    LateReader reader = {.place = place};
    ResultWriter *writer = start(place, place->file);
    if (first)
        late_reader_begin(&reader);
    add_measurement(place, writer, 1);
    if (first) {
        late_reader_end(&reader);
        char samples[32];
        snprintf(samples, sizeof samples, ", %d sample", samples_of(place, 1));
        assert_true(reader.journalled);
        assert_non_null(strstr(reader.text, " meshwork: measured m1: phase/0, median "));
        assert_non_null(strstr(reader.text, samples));
        assert_non_null(strstr(reader.text, ", noise "));
        assert_ptr_equal(strchr(reader.text, '\n'), reader.text + strlen(reader.text) - 1);
    }
    result_writer_destroy(writer);
    if (first)
        unlink(place->journal);
}

// A run that is never finished leaves a journal from which the same file is made.
static void leave_unfinished(const Place *place)
{
    ResultWriter *writer = start(place, place->file);
    for (int i = 0; i < 3; i++)
        add_measurement(place, writer, i);
    if (place->run->rank == 0) {
        Result journal, read;
        Error error = {0};
        assert_true(journal_read(place->journal, &journal, &error));
        assert_true(store_write(&journal, place->file, false, &error));
        if (!store_read(place->file, &read, &error))
            fail_msg("%s", error.what);
        assert_false(read.complete);
        assert_string_equal(read.note, journal.note);
        assert_int_equal(read.measurement_count, 3);
        for (int i = 0; i < 3; i++)
            check_measurement(place, &read.measurements[i], i);
        result_destroy(&journal);
        result_destroy(&read);
    }
    result_writer_destroy(writer);
}

static void test_writer(void **state)
{
    Place *place = *state;
    write_nothing(place);
    tell_after_the_journal(place);
    for (int round = 0; round < 3; round++) {
        place->seed += 1000000007u;
        write_and_check(place);
    }
    leave_unfinished(place);
}

static void test_environment_rule(void **state)
{
    (void)state;
    static const struct {
        const char *name, *stored;
    } cases[] = {
        {"SLURM_JOB_ID", "v"},
        {"OMPI_COMM_WORLD_SIZE", "v"},
        {"NCCL_DEBUG", "v"},
        {"CUDA_VISIBLE_DEVICES", "v"},
        {"OMP_NUM_THREADS", "v"},
        {"HDF5_USE_FILE_LOCKING", "v"},
        {"UCX_TLS", "v"},
        {"TORCH_LOGS", "v"},
        {"SLURM_JWT", "(redacted)"},
        {"OMPI_MCA_Password", "(redacted)"},
        {"UCX_auth_x", "(redacted)"},
        {"TORCH_api_key", "(redacted)"},
        {"NCCL_CREDENTIALS", "(redacted)"},
        {"CUDA_SECRET", "(redacted)"},
        {"HOME", NULL},
        {"AWS_SECRET_ACCESS_KEY", NULL},
        {"MYSLURM_X", NULL},
        {"slurm_x", NULL},
        {"", NULL},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const char *stored = provenance_environment(cases[i].name, "v");
        const char *expected = cases[i].stored;
        if ((stored != NULL) != (expected != NULL) || (stored && strcmp(stored, expected) != 0))
            fail_msg("%s is stored as %s, expected %s", cases[i].name, stored ? stored : "nothing",
                     expected ? expected : "nothing");
    }
}

int main(int argc, char **argv)
{
    Place place = {.run = run_create(argc, argv, "test", true)};
    setenv("SLURM_JOB_ID", "4711", 1);
    setenv("SLURM_RESTART_COUNT", "2", 1);
    setenv("NCCL_TEST_TOKEN", "tr0ub4dor", 1);
    setenv("PRIVATE_WORD", "tr0ub4dor", 1);
    setenv("OMP_TEST_BYTES", "a\xFF", 1); // no UTF-8
    if (place.run->rank == 0) {
        place.seed = sample_create().state;
        sample_folder_create(place.folder, sizeof place.folder);
    }
    run_broadcast(place.run, &place.seed, sizeof place.seed);
    snprintf(place.file, sizeof place.file, "%s/r.h5", place.folder);
    snprintf(place.journal, sizeof place.journal, "%s/r.journal", place.folder);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_writer, &place),
        cmocka_unit_test(test_environment_rule),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (place.run->rank == 0)
        sample_folder_destroy(place.folder);
    if (failed)
        _exit(1); // without MPI_Finalize, so that the launcher ends the ranks that wait
    run_destroy(place.run);
    return 0;
}
