// The program from outside: help, version, typos; and how a job of several ranks stops: once, with
// one exit code.
//
// This program starts itself again, alone or under mpirun: `program WORDS` is meshwork itself, `job
// WHAT` a small job.
#include "harness/command.h"
#include "tests/capture.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

static char self[512];

enum { WORDS_MAX = 16 };
typedef struct Start {
    int ranks;                    // 0 = without mpirun
    const char *variable;         // NAME=value for the environment, or NULL
    const char *words[WORDS_MAX]; // after the program's name
    const char *output;           // where stdout goes instead, or NULL
} Start;

static void start(void *context)
{
    const Start *how = context;
    char *argv[WORDS_MAX + 10], ranks[16];
    int count = 0;
    snprintf(ranks, sizeof(ranks), "%d", how->ranks);
    const char *const launcher[] = {"mpirun", "--oversubscribe", "--bind-to", "none", "-n", ranks};
    for (size_t i = 0; how->ranks > 0 && i < COUNT_OF(launcher); i++)
        argv[count++] = (char *)(uintptr_t)launcher[i];
    argv[count++] = self;
    for (int i = 0; how->words[i]; i++)
        argv[count++] = (char *)(uintptr_t)how->words[i];
    argv[count] = NULL;
    if (how->variable)
        putenv((char *)(uintptr_t)how->variable);
    if (how->output)
        dup2(open(how->output, O_WRONLY), STDOUT_FILENO);
    execvp(argv[0], argv);
    _exit(126);
}

static Captured run_start(Start how)
{
    return capture(start, &how);
}

#define PROGRAM(...)                                                                               \
    (Start)                                                                                        \
    {                                                                                              \
        .words = { "program", __VA_ARGS__ }                                                        \
    }
#define PROGRAM_ON(count, ...)                                                                     \
    (Start)                                                                                        \
    {                                                                                              \
        .ranks = (count), .words = { "program", __VA_ARGS__ }                                      \
    }
#define JOB_ON(count, ...)                                                                         \
    (Start)                                                                                        \
    {                                                                                              \
        .ranks = (count), .words = { "job", __VA_ARGS__ }                                          \
    }

static bool need_mpirun(void)
{
    return system("command -v mpirun >/dev/null 2>&1") == 0;
}

// One message of ours, in its form, with this exit code.
#define ASSERT_STOPPED(end, code, part)                                                            \
    do {                                                                                           \
        if ((end).exit_code != (code))                                                             \
            fail_msg("exit code %d, expected %d:\n%s", (end).exit_code, (code), (end).text);       \
        ASSERT_CONTAINS((end).text, "meshwork: error: ");                                          \
        ASSERT_CONTAINS((end).text, (part));                                                       \
        if (capture_count((end).text, "meshwork: error: ") != 1 ||                                 \
            capture_count((end).text, "\nfix: ") != 1)                                             \
            fail_msg("not one message:\n%s", (end).text);                                          \
    } while (0)

static void help_goes_to_stdout_and_is_good(void **state)
{
    (void)state;
    static const char *const spellings[] = {"--help", "-h", "help"};
    for (size_t i = 0; i < COUNT_OF(spellings); i++) {
        Captured help = run_start(PROGRAM(spellings[i]));
        assert_int_equal(help.exit_code, 0);
        for (const Command *const *row = command_table; *row; row++) {
            ASSERT_CONTAINS(help.text, (*row)->name);
            ASSERT_CONTAINS(help.text, (*row)->summary);
        }
    }
}

static void every_command_explains_its_options(void **state)
{
    (void)state;
    for (const Command *const *row = command_table; *row; row++) {
        Captured after = run_start(PROGRAM((*row)->name, "--help"));
        Captured before = run_start(PROGRAM("help", (*row)->name));
        assert_int_equal(after.exit_code, 0);
        assert_int_equal(before.exit_code, 0);
        assert_string_equal(after.text, before.text);
        ASSERT_CONTAINS(after.text, (*row)->summary);
        for (const Option *option = (*row)->options; option->name; option++)
            ASSERT_CONTAINS(after.text, option->name);
    }
    // Also among wrong options, but not behind the end of options.
    assert_int_equal(run_start(PROGRAM("doctor", "--bogus", "--help")).exit_code, 0);
    assert_int_equal(run_start(PROGRAM("doctor", "--", "--help")).exit_code, EXIT_CODE_USAGE);
}

static void the_table_is_sorted_and_whole(void **state)
{
    (void)state;
    for (int i = 0; command_table[i]; i++) {
        const Command *row = command_table[i];
        assert_true(row->name && row->summary && row->options && row->run);
        if (i > 0)
            assert_true(strcmp(command_table[i - 1]->name, row->name) < 0);
    }
    assert_non_null(command_table[0]);
}

static void version_names_the_libraries(void **state)
{
    (void)state;
    Captured version = run_start(PROGRAM("--version"));
    assert_int_equal(version.exit_code, 0);
    assert_int_equal(strncmp(version.text, "meshwork ", 9), 0);
    ASSERT_CONTAINS(version.text, "MPI");
    ASSERT_CONTAINS(version.text, "git ");
    assert_int_equal(capture_count(version.text, "\n"), 1);
}

static void typos_get_the_nearest_command(void **state)
{
    (void)state;
    Captured end = run_start(PROGRAM("dcotor"));
    ASSERT_STOPPED(end, EXIT_CODE_USAGE, "there is no command 'dcotor'");
    ASSERT_CONTAINS(end.text, "did you mean doctor?");
    end = run_start(PROGRAM("help", "doctr"));
    ASSERT_STOPPED(end, EXIT_CODE_USAGE, "there is no command 'doctr'");
    ASSERT_CONTAINS(end.text, "did you mean doctor?");
    end = run_start(PROGRAM("xyzzy"));
    ASSERT_STOPPED(end, EXIT_CODE_USAGE, "there is no command 'xyzzy'");
    ASSERT_LACKS(end.text, "did you mean");
    end = run_start(PROGRAM("--json", "doctor"));
    ASSERT_STOPPED(end, EXIT_CODE_USAGE, "an option stands where the command should be");
    end = run_start(PROGRAM(NULL));
    ASSERT_STOPPED(end, EXIT_CODE_USAGE, "no command was given");
    end = run_start(PROGRAM("doctor", "--jsn"));
    ASSERT_STOPPED(end, EXIT_CODE_USAGE, "there is no option --jsn");
    ASSERT_CONTAINS(end.text, "did you mean --json?");
    end = run_start(PROGRAM("doctor", "extra"));
    ASSERT_STOPPED(end, EXIT_CODE_USAGE, "unexpected word 'extra'");
}

static void other_ranks_of_a_launcher_keep_silent(void **state)
{
    (void)state;
    static const char *const words[] = {"--help", "--version", "doctor"};
    for (size_t i = 0; i < COUNT_OF(words); i++) {
        Start how = PROGRAM(words[i]);
        how.variable = "PMIX_RANK=1";
        Captured end = run_start(how);
        assert_string_equal(end.text, "");
        assert_int_equal(end.exit_code, 0);
    }
}

static void a_full_stdout_is_an_error(void **state)
{
    (void)state;
    Start how = PROGRAM("doctor");
    how.output = "/dev/full";
    Captured end = run_start(how);
    ASSERT_STOPPED(end, EXIT_CODE_IO, "could not be written to standard output");
}

static void a_singleton_of_a_launched_job_is_refused(void **state)
{
    (void)state;
    static const char *const variables[] = {"SLURM_STEP_NUM_TASKS=4", "PMI_SIZE=4"};
    for (size_t i = 0; i < COUNT_OF(variables); i++) {
        Start how = PROGRAM("dp2ep");
        how.variable = variables[i];
        setenv(i == 0 ? "SLURM_PROCID" : "PMI_RANK", "0", 1);
        Captured end = run_start(how);
        unsetenv("SLURM_PROCID");
        unsetenv("PMI_RANK");
        ASSERT_STOPPED(end, EXIT_CODE_USAGE, "started 4 copies");
        ASSERT_CONTAINS(end.text, variables[i]);
        ASSERT_CONTAINS(end.text, "srun --mpi=pmix");
        ASSERT_CONTAINS(end.text, "mpirun -n 4");
    }
}

// One task in a step of srun that offers no PMI: Open MPI would end the process, we run as a job of
// one rank.
static void one_task_of_a_slurm_step_runs(void **state)
{
    (void)state;
    setenv("SLURM_JOBID", "7", 1);
    setenv("SLURM_JOB_ID", "7", 1);
    setenv("SLURM_STEP_ID", "0", 1);
    setenv("SLURM_NODELIST", "somewhere", 1);
    setenv("SLURM_PROCID", "0", 1);
    Start how = {.variable = "SLURM_STEP_NUM_TASKS=1", .words = {"job", "good"}};
    Captured end = run_start(how);
    static const char *const names[] = {"SLURM_JOBID", "SLURM_JOB_ID", "SLURM_STEP_ID",
                                        "SLURM_NODELIST", "SLURM_PROCID"};
    for (size_t i = 0; i < COUNT_OF(names); i++)
        unsetenv(names[i]);
    assert_string_equal(end.text, "good on 1, step 0\n");
    assert_int_equal(end.exit_code, 0);
}

static void under_mpirun_help_comes_once(void **state)
{
    (void)state;
    if (!need_mpirun())
        skip();
    Captured help = run_start(PROGRAM_ON(3, "--help"));
    assert_int_equal(help.exit_code, 0);
    assert_int_equal(capture_count(help.text, "usage: meshwork"), 1);
    Captured doctor = run_start(PROGRAM_ON(2, "doctor", "--json"));
    assert_int_equal(doctor.exit_code, 0);
    assert_int_equal(capture_count(doctor.text, "\"schema_name\""), 1);
}

static void under_mpirun_usage_errors_come_once(void **state)
{
    (void)state;
    if (!need_mpirun())
        skip();
    Captured end = run_start(PROGRAM_ON(3, "dp2ep", "--expert", "4"));
    ASSERT_STOPPED(end, EXIT_CODE_USAGE, "there is no option --expert");
    ASSERT_CONTAINS(end.text, "rank 0 of 3)\nfix: did you mean --experts?");
    end = run_start(PROGRAM_ON(3, "dp2pe"));
    ASSERT_STOPPED(end, EXIT_CODE_USAGE, "there is no command 'dp2pe'");
    end = run_start(PROGRAM_ON(2, "doctor", "--jsn"));
    ASSERT_STOPPED(end, EXIT_CODE_USAGE, "there is no option --jsn");
}

static void a_failed_check_prints_how_to_reproduce_it(void **state)
{
    (void)state;
    if (!need_mpirun())
        skip();
    Captured end = run_start(PROGRAM_ON(2, "dp2ep", "--mesh", "ep=3, x"));
    assert_int_equal(end.exit_code, EXIT_CODE_USAGE);
    ASSERT_CONTAINS(end.text, "\nreproduce: mpirun -n 2 ");
    ASSERT_CONTAINS(end.text, " dp2ep --mesh 'ep=3, x'\n");
}

static void one_failing_rank_takes_the_job_down(void **state)
{
    (void)state;
    if (!need_mpirun())
        skip();
    Captured end = run_start(JOB_ON(3, "abort"));
    ASSERT_STOPPED(end, EXIT_CODE_DATA, "rank 1 has bad bytes (");
    ASSERT_CONTAINS(end.text, "rank 1 of 3, span load)");
}

static void failing_ranks_agree_on_the_first(void **state)
{
    (void)state;
    if (!need_mpirun())
        skip();
    Captured end = run_start(JOB_ON(4, "agree"));
    ASSERT_STOPPED(end, EXIT_CODE_CANT_CREATE, "rank 1 cannot 100% go on");
    ASSERT_CONTAINS(end.text, "rank 1 of 4)");
    ASSERT_CONTAINS(end.text, "test_harness_command.c:");
    ASSERT_LACKS(end.text, "rank 2 cannot");
}

static void a_common_condition_prints_once(void **state)
{
    (void)state;
    if (!need_mpirun())
        skip();
    Captured end = run_start(JOB_ON(4, "all"));
    ASSERT_STOPPED(end, EXIT_CODE_HARDWARE, "no such device");
    ASSERT_CONTAINS(end.text, "rank 0 of 4)");
}

static void the_job_of_one_stops_too(void **state)
{
    (void)state;
    Captured end = run_start(JOB_ON(0, "agree"));
    assert_int_equal(end.exit_code, 0); // rank 0 has no error there
    end = run_start(JOB_ON(0, "all"));
    ASSERT_STOPPED(end, EXIT_CODE_HARDWARE, "rank 0 of 1)");
}

static void threads_are_as_asked_with_a_warning(void **state)
{
    (void)state;
    if (!need_mpirun())
        skip();
    Start how = JOB_ON(2, "threads");
    how.variable = "OMP_NUM_THREADS=512,2";
    Captured end = run_start(how);
    assert_int_equal(end.exit_code, 0);
    assert_int_equal(capture_count(end.text, "threads 512\n"), 2);
    assert_int_equal(capture_count(end.text, "2 ranks x OMP_NUM_THREADS=512 exceed the "), 1);
    how.variable = "OMP_NUM_THREADS=lots";
    end = run_start(how);
    assert_int_equal(capture_count(end.text, "OMP_NUM_THREADS=lots is no number"), 1);
    ASSERT_LACKS(end.text, "threads 512");
}

// mpirun forwards USR1, as Slurm's --signal=USR1@120 would bring it: the ranks end together
// with 75.
static void a_signal_to_the_launcher_stops_the_job(void **state)
{
    (void)state;
    if (!need_mpirun())
        skip();
    Start how = JOB_ON(3, "wait");
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t launcher = fork();
    if (launcher == 0) {
        dup2(ends[1], STDOUT_FILENO);
        start(&how);
    }
    close(ends[1]);
    char ready[32] = "";
    size_t got = 0;
    while (!strchr(ready, '\n') && got < sizeof(ready) - 1) {
        ssize_t count = read(ends[0], ready + got, sizeof(ready) - 1 - got);
        if (count <= 0)
            break;
        got += (size_t)count;
    }
    assert_string_equal(ready, "ready\n");
    assert_int_equal(kill(launcher, SIGUSR1), 0);
    int status = 0;
    assert_int_equal(waitpid(launcher, &status, 0), launcher);
    assert_int_equal(capture_exit_code(status), EXIT_CODE_RESUMABLE);
    close(ends[0]);
}

static int run_job(Run *run, const char *what)
{
    if (strcmp(what, "good") == 0) {
        const char *step = getenv("SLURM_STEP_ID");
        printf("good on %d, step %s\n", run->ranks, step ? step : "none");
    } else if (strcmp(what, "abort") == 0) {
        snprintf(check_context()->span, CHECK_SPAN_BYTES, "load");
        CHECK(run->rank != 1, EXIT_CODE_DATA, "copy it again", "rank %d has bad bytes", run->rank);
        run_barrier(run);
    } else if (strcmp(what, "agree") == 0) {
        Error error = {0};
        if (run->rank == 1 || run->rank == 2)
            error_set(&error, run->rank == 1 ? EXIT_CODE_CANT_CREATE : EXIT_CODE_DATA, "wait",
                      "rank %d cannot 100%% go on", run->rank);
        run_agree(run, &error);
    } else if (strcmp(what, "all") == 0) {
        CHECK_ALL(run->ranks == 0, EXIT_CODE_HARDWARE, "buy one", "no such device");
    } else if (strcmp(what, "threads") == 0) {
        printf("threads %d\n", run->threads);
    } else if (strcmp(what, "wait") == 0) {
        run_barrier(run);
        if (run->rank == 0)
            printf("ready\n");
        fflush(stdout);
        for (int i = 0; i < 3000; i++) { // 30 s at most
            if (run_stop_requested(run))
                return EXIT_CODE_RESUMABLE;
            nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
        }
        return EXIT_CODE_CHECK;
    }
    return EXIT_CODE_GOOD;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "program") == 0)
        return command_main(argc - 1, argv + 1);
    if (argc > 2 && strcmp(argv[1], "job") == 0) {
        Run *run = run_create(argc, argv, "job", true);
        int exit_code = run_job(run, argv[2]);
        run_destroy(run);
        return exit_code;
    }
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (length <= 0)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(help_goes_to_stdout_and_is_good),
        cmocka_unit_test(every_command_explains_its_options),
        cmocka_unit_test(the_table_is_sorted_and_whole),
        cmocka_unit_test(version_names_the_libraries),
        cmocka_unit_test(typos_get_the_nearest_command),
        cmocka_unit_test(other_ranks_of_a_launcher_keep_silent),
        cmocka_unit_test(a_full_stdout_is_an_error),
        cmocka_unit_test(a_singleton_of_a_launched_job_is_refused),
        cmocka_unit_test(one_task_of_a_slurm_step_runs),
        cmocka_unit_test(under_mpirun_help_comes_once),
        cmocka_unit_test(under_mpirun_usage_errors_come_once),
        cmocka_unit_test(a_failed_check_prints_how_to_reproduce_it),
        cmocka_unit_test(one_failing_rank_takes_the_job_down),
        cmocka_unit_test(failing_ranks_agree_on_the_first),
        cmocka_unit_test(a_common_condition_prints_once),
        cmocka_unit_test(the_job_of_one_stops_too),
        cmocka_unit_test(threads_are_as_asked_with_a_warning),
        cmocka_unit_test(a_signal_to_the_launcher_stops_the_job),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
