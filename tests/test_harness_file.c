// Files that appear complete or not at all, and every reason why one cannot be read or written.
#include "harness/file.h"
#include "tests/capture.h"

#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>

#include <cmocka.h>

static char folder[64];

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/meshwork_file_XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[96];
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    return system(command);
}

static const char *at(const char *name)
{
    static char path[4][160];
    static int turn;
    char *text = path[turn = (turn + 1) % 4];
    snprintf(text, sizeof(path[0]), "%s/%s", folder, name);
    return text;
}

static void put(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static int files_in_folder(void)
{
    char command[128];
    int count = -1;
    snprintf(command, sizeof(command), "ls -A %s | wc -l", folder);
    FILE *pipe = popen(command, "r");
    assert_int_equal(fscanf(pipe, "%d", &count), 1);
    pclose(pipe);
    return count;
}

#define ASSERT_ERROR(error, code, part)                                                            \
    do {                                                                                           \
        assert_int_equal((error).exit_code, (code));                                               \
        ASSERT_CONTAINS((error).what, (part));                                                     \
        assert_true((error).fix[0] != '\0');                                                       \
        (error) = (Error){0};                                                                      \
    } while (0)

static void written_files_appear_whole_at_commit(void **state)
{
    (void)state;
    enum { BYTES = 300001 };
    unsigned char *data = malloc(BYTES);
    size_t filled = 0;
    while (filled < BYTES)
        filled += (size_t)getrandom(data + filled, BYTES - filled, 0);
    const char *path = at("whole");
    FileWriter writer;
    Error error = {0};
    assert_true(file_writer_open(&writer, path, false, &error));
    assert_true(file_writer_write(&writer, data, 1000, &error));
    assert_true(file_writer_write(&writer, NULL, 0, &error));
    assert_true(file_writer_write(&writer, data + 1000, BYTES - 1000, &error));
    assert_false(file_exists(path)); // nothing there before the commit
    assert_true(file_exists(writer.temporary));
    assert_true(file_writer_commit(&writer, &error));
    assert_true(file_exists(path));

    FileMap map;
    assert_true(file_map(path, &map, &error));
    assert_int_equal(map.bytes, BYTES);
    assert_memory_equal(map.data, data, BYTES);
    file_unmap(&map);
    assert_null(map.data);
    uint64_t bytes = 0;
    char *text = file_read(path, BYTES, &bytes, &error);
    assert_non_null(text);
    assert_int_equal(bytes, BYTES);
    assert_memory_equal(text, data, BYTES);
    assert_int_equal(text[BYTES], 0);
    free(text);
    free(data);
    unlink(path);
    assert_int_equal(files_in_folder(), 0);
}

static void an_existing_file_needs_force(void **state)
{
    (void)state;
    const char *path = at("there");
    put(path, "old");
    FileWriter writer;
    Error error = {0};
    assert_false(file_writer_open(&writer, path, false, &error));
    ASSERT_CONTAINS(error.fix, "--force");
    ASSERT_ERROR(error, EXIT_CODE_CANT_CREATE, "exists already (3 bytes)");
    assert_false(file_check_creatable(path, false, &error));
    ASSERT_ERROR(error, EXIT_CODE_CANT_CREATE, "there exists already");
    assert_true(file_check_creatable(path, true, &error));
    assert_true(file_writer_open(&writer, path, true, &error));
    assert_true(file_writer_write(&writer, "new!", 4, &error));
    file_writer_abandon(&writer);
    char *text = file_read(path, 100, NULL, &error);
    assert_string_equal(text, "old"); // an abandoned file changes nothing
    free(text);
    assert_true(file_writer_open(&writer, path, true, &error));
    assert_true(file_writer_write(&writer, "new!", 4, &error));
    assert_true(file_writer_commit(&writer, &error));
    text = file_read(path, 100, NULL, &error);
    assert_string_equal(text, "new!");
    free(text);
    unlink(path);
    assert_int_equal(files_in_folder(), 0);
}

static void a_file_that_appears_meanwhile_is_not_overwritten(void **state)
{
    (void)state;
    const char *path = at("race");
    FileWriter writer;
    Error error = {0};
    assert_true(file_writer_open(&writer, path, false, &error));
    assert_true(file_writer_write(&writer, "mine", 4, &error));
    put(path, "theirs");
    assert_false(file_writer_commit(&writer, &error));
    ASSERT_ERROR(error, EXIT_CODE_CANT_CREATE, "appeared while it was being written");
    char *text = file_read(path, 100, NULL, &error);
    assert_string_equal(text, "theirs");
    free(text);
    assert_int_equal(files_in_folder(), 1); // the temporary file is gone
    unlink(path);
}

static void a_leftover_of_a_killed_run_is_no_obstacle(void **state)
{
    (void)state;
    FileWriter writer;
    Error error = {0};
    char leftover[200];
    snprintf(leftover, sizeof(leftover), "%s.tmp.%ld", at("again"), (long)getpid());
    put(leftover, "a longer text of a run that was killed");
    assert_true(file_writer_open(&writer, at("again"), false, &error));
    assert_true(file_writer_write(&writer, "short", 5, &error));
    assert_true(file_writer_commit(&writer, &error));
    char *text = file_read(at("again"), 100, NULL, &error);
    assert_string_equal(text, "short");
    free(text);
    unlink(at("again"));
}

static void places_where_no_file_can_be_are_refused(void **state)
{
    (void)state;
    Error error = {0};
    put(at("file"), "x");
    mkdir(at("sub"), 0700);
    char longest[1300], name[400];
    memset(longest, 'a', sizeof(longest) - 1);
    longest[sizeof(longest) - 1] = '\0';
    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    char too_long_name[512];
    snprintf(too_long_name, sizeof(too_long_name), "%s/%s", folder, name);
    const struct {
        const char *path, *part;
    } rows[] = {
        {"", "no name for a file"},
        {at("sub/"), "no name for a file"},
        {at("sub"), "a folder or a device"},
        {"/dev/null", "a folder or a device"},
        {longest, "too long"},
        {too_long_name, "cannot create"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        assert_false(file_check_creatable(rows[i].path, true, &error));
        ASSERT_ERROR(error, EXIT_CODE_CANT_CREATE, rows[i].part);
    }
    assert_false(file_check_creatable(at("no/such/r.h5"), false, &error));
    ASSERT_CONTAINS(error.fix, "mkdir -p");
    ASSERT_ERROR(error, EXIT_CODE_CANT_CREATE, "no/such");
    assert_false(file_check_creatable(at("file/r.h5"), false, &error));
    ASSERT_ERROR(error, EXIT_CODE_CANT_CREATE, "file");
    FileWriter writer;
    assert_false(file_writer_open(&writer, at("no/such/r.h5"), true, &error));
    ASSERT_ERROR(error, EXIT_CODE_CANT_CREATE, "no/such");
    assert_false(file_writer_write(&writer, "x", 1, &error)); // not open: an error, not a crash
    error = (Error){0};
    assert_false(file_writer_commit(&writer, &error));
    error = (Error){0};
    file_writer_abandon(&writer);
    unlink(at("file"));
    rmdir(at("sub"));
    assert_int_equal(files_in_folder(), 0);
}

static void unreadable_input_says_why(void **state)
{
    (void)state;
    Error error = {0};
    FileMap map;
    assert_false(file_map(at("absent"), &map, &error));
    ASSERT_ERROR(error, EXIT_CODE_NO_INPUT, "absent");
    put(at("plain"), "x");
    assert_false(file_map(at("plain/below"), &map, &error));
    ASSERT_ERROR(error, EXIT_CODE_NO_INPUT, "below");
    assert_false(file_map(folder, &map, &error));
    ASSERT_ERROR(error, EXIT_CODE_DATA, "no regular file");
    assert_null(file_read(folder, 100, NULL, &error));
    ASSERT_ERROR(error, EXIT_CODE_DATA, "folder");
    put(at("empty"), "");
    assert_false(file_map(at("empty"), &map, &error));
    ASSERT_ERROR(error, EXIT_CODE_DATA, "empty (0 bytes)");
    assert_int_equal(mkfifo(at("fifo"), 0600), 0);
    assert_false(file_map(at("fifo"), &map, &error)); // does not wait for a writer
    ASSERT_ERROR(error, EXIT_CODE_DATA, "no regular file");
    assert_int_equal(symlink(at("loop"), at("loop")), 0);
    assert_false(file_map(at("loop"), &map, &error));
    ASSERT_ERROR(error, EXIT_CODE_IO, "loop");
    assert_null(file_read(at("absent"), 100, NULL, &error));
    ASSERT_ERROR(error, EXIT_CODE_NO_INPUT, "absent");
    assert_false(file_exists(at("absent")));
    assert_true(file_exists(at("plain")));
    static const char *const names[] = {"plain", "empty", "fifo", "loop"};
    for (size_t i = 0; i < COUNT_OF(names); i++)
        unlink(at(names[i]));
}

static void reading_stops_at_the_limit(void **state)
{
    (void)state;
    Error error = {0};
    uint64_t bytes = 99;
    put(at("ten"), "0123456789");
    char *text = file_read(at("ten"), 10, &bytes, &error);
    assert_string_equal(text, "0123456789");
    assert_int_equal(bytes, 10);
    free(text);
    assert_null(file_read(at("ten"), 9, &bytes, &error));
    ASSERT_ERROR(error, EXIT_CODE_DATA, "larger than the 9 bytes");
    assert_null(file_read("/dev/zero", 1 << 20, &bytes, &error)); // endless
    ASSERT_ERROR(error, EXIT_CODE_DATA, "larger than the 1048576 bytes");
    put(at("ten"), "");
    text = file_read(at("ten"), 10, &bytes, &error);
    assert_string_equal(text, "");
    assert_int_equal(bytes, 0);
    free(text);
    unlink(at("ten"));
    text = file_read("/proc/self/status", 1 << 20, &bytes, &error); // its size is 0 for stat
    assert_non_null(text);
    assert_in_range(bytes, 100, 1 << 20);
    free(text);
}

static void a_full_device_is_said_with_its_bytes(void **state)
{
    (void)state;
    FileWriter writer = {.descriptor = open("/dev/full", O_WRONLY), .path = "r.h5"};
    assert_true(writer.descriptor >= 0);
    Error error = {0};
    assert_false(file_writer_write(&writer, "0123456789", 10, &error));
    ASSERT_CONTAINS(error.what, "0 of 10 bytes written");
    ASSERT_ERROR(error, EXIT_CODE_IO, "the disk is full");
    assert_int_equal(writer.descriptor, -1);
}

// In a file system of its own (a namespace of the test's child): what is full is really a disk.
static void fill_a_disk(void *context)
{
    (void)context;
    enum { DISK = 1 << 20, PIECE = 300000 };
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", folder, "tmpfs", 0, "size=1m") != 0)
        _exit(77);
    static char data[PIECE];
    FileWriter writer;
    Error error = {0};
    if (!file_writer_open(&writer, at("r.h5"), false, &error))
        _exit(1);
    char temporary[1200];
    snprintf(temporary, sizeof(temporary), "%s", writer.temporary);
    int pieces = 0;
    while (pieces < 10 && file_writer_write(&writer, data, PIECE, &error))
        pieces++;
    printf("pieces %d, exit code %d, left behind %d: %s\n", pieces, error.exit_code,
           file_exists(temporary) || file_exists(at("r.h5")), error.what);
    umount(folder);
}

static void a_full_disk_leaves_nothing_behind(void **state)
{
    (void)state;
    Captured end = capture(fill_a_disk, NULL);
    if (end.exit_code == 77)
        skip(); // mounting is not allowed here
    assert_int_equal(end.exit_code, 0);
    ASSERT_CONTAINS(end.text, "pieces 3, exit code 74, left behind 0: the disk is full");
    const char *counts = strstr(end.text, "of 300000 bytes written");
    assert_non_null(counts);
    ASSERT_CONTAINS(end.text, ": 148576 of 300000"); // 1 MiB less three pieces
}

static void count_interruptions(int number)
{
    (void)number;
}

// A pipe that is read slowly, while a timer interrupts the writer: short writes and EINTR on every
// turn.
static void partial_and_interrupted_writes_lose_nothing(void **state)
{
    (void)state;
    enum { BYTES = 1 << 20 };
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    unsigned char *data = malloc(BYTES);
    for (int i = 0; i < BYTES; i++)
        data[i] = (unsigned char)(i * 2654435761u >> 13);
    pid_t writer_child = fork();
    if (writer_child == 0) {
        close(ends[0]);
        struct sigaction action = {.sa_handler = count_interruptions}; // no SA_RESTART
        sigaction(SIGALRM, &action, NULL);
        struct itimerval often = {{0, 500}, {0, 500}};
        setitimer(ITIMER_REAL, &often, NULL);
        FileWriter writer = {.descriptor = ends[1], .path = "pipe"};
        Error error = {0};
        _exit(file_writer_write(&writer, data, BYTES, &error) ? 0 : 1);
    }
    close(ends[1]);
    uint64_t got = 0;
    unsigned char piece[7777];
    for (;;) {
        ssize_t count = read(ends[0], piece, sizeof(piece));
        if (count <= 0)
            break;
        assert_memory_equal(piece, data + got, (size_t)count);
        got += (uint64_t)count;
        usleep(100);
    }
    assert_int_equal(got, BYTES);
    int status = 0;
    waitpid(writer_child, &status, 0);
    assert_int_equal(capture_exit_code(status), 0);
    close(ends[0]);
    free(data);
}

static void publish_renames_and_reports(void **state)
{
    (void)state;
    Error error = {0};
    put(at("t"), "done");
    assert_true(file_publish(at("t"), at("final"), &error));
    assert_false(file_exists(at("t")));
    char *text = file_read(at("final"), 10, NULL, &error);
    assert_string_equal(text, "done");
    free(text);
    assert_false(file_publish(at("t"), at("final"), &error));
    ASSERT_ERROR(error, EXIT_CODE_IO, "cannot open");
    put(at("t"), "more");
    assert_false(file_publish(at("t"), at("no/such/final"), &error));
    ASSERT_ERROR(error, EXIT_CODE_CANT_CREATE, "no/such/final");
    unlink(at("t"));
    unlink(at("final"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(written_files_appear_whole_at_commit),
        cmocka_unit_test(an_existing_file_needs_force),
        cmocka_unit_test(a_file_that_appears_meanwhile_is_not_overwritten),
        cmocka_unit_test(a_leftover_of_a_killed_run_is_no_obstacle),
        cmocka_unit_test(places_where_no_file_can_be_are_refused),
        cmocka_unit_test(unreadable_input_says_why),
        cmocka_unit_test(reading_stops_at_the_limit),
        cmocka_unit_test(a_full_device_is_said_with_its_bytes),
        cmocka_unit_test(a_full_disk_leaves_nothing_behind),
        cmocka_unit_test(partial_and_interrupted_writes_lose_nothing),
        cmocka_unit_test(publish_renames_and_reports),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
