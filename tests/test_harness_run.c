// The job and its agreements: discovery, gathering, stopping together, and what the launcher says.
//
// ranks: 1 2 4
#include "harness/run.h"
#include "tests/capture.h"

#include <ctype.h>
#include <omp.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

#include <cmocka.h>

typedef struct Fixture {
    Run *run;
} Fixture;

static const Run *run_of(void **state)
{
    return ((Fixture *)*state)->run;
}

// Bytes that differ by rank and place, known to whoever checks them.
static void fill(unsigned char *data, uint64_t bytes, int rank)
{
    for (uint64_t i = 0; i < bytes; i++)
        data[i] = (unsigned char)((i * 131 + (uint64_t)rank * 977) >> 3);
}

static void ranks_and_hosts_are_known(void **state)
{
    const Run *run = run_of(state);
    assert_in_range(run->rank, 0, run->ranks - 1);
    assert_int_equal(check_context()->rank, run->rank);
    assert_int_equal(check_context()->ranks, run->ranks);
    // The tests run on one host.
    assert_int_equal(run->hosts, 1);
    assert_int_equal(run->host_index, 0);
    assert_int_equal(run->local_ranks, run->ranks);
    assert_int_equal(run->local_rank, run->rank);
    assert_in_range(strlen(run->host), 1, RUN_HOST_BYTES - 1);
    assert_string_equal(run->command, "test");
    int ranks[8] = {0};
    run_gather(run, &run->rank, sizeof(int), ranks);
    if (run->rank == 0)
        for (int rank = 0; rank < run->ranks; rank++)
            assert_int_equal(ranks[rank], rank);
    const char *told = getenv("OMPI_COMM_WORLD_SIZE");
    if (told)
        assert_int_equal(run->ranks, atoi(told)); // an independent witness
}

static void the_id_is_one_uuid_for_all(void **state)
{
    const Run *run = run_of(state);
    assert_int_equal(strlen(run->id), 36);
    for (int i = 0; i < 36; i++) {
        if (i == 8 || i == 13 || i == 18 || i == 23)
            assert_int_equal(run->id[i], '-');
        else
            assert_true(isxdigit((unsigned char)run->id[i]));
    }
    assert_int_equal(run->id[14], '4');
    assert_non_null(strchr("89ab", run->id[19]));
    char ids[8][RUN_ID_BYTES];
    run_gather(run, run->id, RUN_ID_BYTES, ids);
    if (run->rank == 0)
        for (int rank = 0; rank < run->ranks; rank++)
            assert_string_equal(ids[rank], run->id);
}

static void threads_stay_within_the_cores(void **state)
{
    const Run *run = run_of(state);
    cpu_set_t mask;
    CPU_ZERO(&mask);
    assert_int_equal(sched_getaffinity(0, sizeof(mask), &mask), 0);
    int own = CPU_COUNT(&mask);
    assert_int_equal(omp_get_max_threads(), run->threads);
    assert_in_range(run->threads, 1, own);
    int threads[8] = {0}, sum = 0, cores = (int)run_maximum(run, own);
    run_gather(run, &run->threads, sizeof(int), threads);
    for (int rank = 0; run->rank == 0 && rank < run->ranks; rank++)
        sum += threads[rank];
    // The launcher of the tests binds nobody, so every rank sees the host's cores.
    int allowed = cores > run->ranks ? cores : run->ranks;
    if (run->rank == 0 && !getenv("OMP_NUM_THREADS"))
        assert_in_range(sum, run->ranks, allowed);
}

static void broadcast_brings_rank_0s_bytes(void **state)
{
    const Run *run = run_of(state);
    enum { BYTES = 100003 };
    unsigned char *data = malloc(BYTES), *expected = malloc(BYTES);
    fill(data, BYTES, run->rank);
    fill(expected, BYTES, 0);
    run_broadcast(run, data, BYTES);
    assert_memory_equal(data, expected, BYTES);
    run_broadcast(run, NULL, 0);
    free(data);
    free(expected);
}

static void gather_keeps_rank_order(void **state)
{
    const Run *run = run_of(state);
    static const uint64_t sizes[] = {0, 1, 7, 4096, 70001};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        uint64_t bytes = sizes[i];
        unsigned char *mine = malloc(bytes + 1), *expected = malloc(bytes + 1);
        unsigned char *all = run->rank == 0 ? malloc(bytes * (uint64_t)run->ranks + 1) : NULL;
        fill(mine, bytes, run->rank);
        run_gather(run, mine, bytes, all);
        for (int rank = 0; run->rank == 0 && rank < run->ranks; rank++) {
            fill(expected, bytes, rank);
            assert_memory_equal(all + (uint64_t)rank * bytes, expected, bytes);
        }
        free(mine);
        free(expected);
        free(all);
    }
}

// Sizes are drawn on rank 0 and told to all, so that everyone knows what must arrive.
static void pieces_of_any_size_arrive_whole(void **state)
{
    const Run *run = run_of(state);
    for (int round = 0; round < 20; round++) {
        uint16_t drawn[8];
        assert_int_equal(getrandom(drawn, sizeof(drawn), 0), sizeof(drawn));
        run_broadcast(run, drawn, sizeof(drawn));
        if (round % 3 == 0)
            drawn[round % run->ranks] = 0; // a rank with nothing
        if (round == 1)
            memset(drawn, 0, sizeof(drawn)); // nobody has anything
        uint64_t bytes = drawn[run->rank], sizes[8] = {0}, at = 0;
        unsigned char *mine = malloc(bytes + 1);
        fill(mine, bytes, run->rank + round);
        unsigned char *all =
            run_gather_pieces(run, bytes > 0 ? mine : NULL, bytes, run->rank == 0 ? sizes : NULL);
        assert_int_equal(all != NULL, run->rank == 0);
        for (int rank = 0; run->rank == 0 && rank < run->ranks; rank++) {
            unsigned char *expected = malloc((size_t)drawn[rank] + 1);
            fill(expected, drawn[rank], rank + round);
            assert_int_equal(sizes[rank], drawn[rank]);
            assert_memory_equal(all + at, expected, drawn[rank]);
            at += sizes[rank];
            free(expected);
        }
        free(mine);
        free(all);
    }
}

static void the_maximum_is_common(void **state)
{
    const Run *run = run_of(state);
    for (int top = 0; top < run->ranks; top++) {
        double mine = run->rank == top ? 2.5 : -1e30 * (run->rank + 1);
        double maximum = run_maximum(run, mine);
        if (maximum != 2.5)
            fail_msg("maximum %g, expected 2.5", maximum);
    }
}

static void agreement_without_errors_goes_on(void **state)
{
    const Error none = {0};
    for (int i = 0; i < 3; i++)
        run_agree(run_of(state), i == 0 ? NULL : &none);
    run_barrier(run_of(state));
}

static void slurms_end_time_stops_all_ranks(void **state)
{
    const Run *run = run_of(state);
    char text[32];
    assert_false(run_stop_requested(run));
    static const char *const nonsense[] = {"", "soon", "-5", "12x", "99999999999999999999"};
    for (size_t i = 0; i < COUNT_OF(nonsense); i++) {
        setenv("SLURM_JOB_END_TIME", nonsense[i], 1);
        assert_false(run_stop_requested(run));
    }
    snprintf(text, sizeof(text), "%lld", (long long)time(NULL) + 3600);
    setenv("SLURM_JOB_END_TIME", text, 1);
    assert_false(run_stop_requested(run));
    if (run->rank == run->ranks - 1) { // one host's clock is enough
        snprintf(text, sizeof(text), "%lld", (long long)time(NULL) + 100);
        setenv("SLURM_JOB_END_TIME", text, 1);
    }
    assert_true(run_stop_requested(run));
    unsetenv("SLURM_JOB_END_TIME");
    assert_false(run_stop_requested(run));
}

// Last, since a request stays: one rank is signalled, all of them know.
static void a_signal_on_one_rank_stops_all(void **state)
{
    const Run *run = run_of(state);
    assert_false(run_stop_requested(run));
    if (run->rank == run->ranks - 1)
        assert_int_equal(raise(SIGUSR1), 0);
    assert_true(run_stop_requested(run));
    assert_true(run_stop_requested(run));
    // The others neither end the process nor withdraw the request.
    static const int numbers[] = {SIGTERM, SIGHUP, SIGUSR2, SIGUSR1, SIGINT};
    for (size_t i = 0; i < COUNT_OF(numbers); i++)
        assert_int_equal(raise(numbers[i]), 0);
    assert_true(run_stop_requested(run));
}

static void one_process_needs_no_mpi(void **state)
{
    const Run *job = run_of(state);
    char *argv[] = {"meshwork", NULL};
    Run *run = run_create(1, argv, "alone", false);
    assert_int_equal(run->rank, 0);
    assert_int_equal(run->ranks, 1);
    assert_int_equal(run->hosts, 1);
    assert_int_equal(strlen(run->id), 36);
    int mine = 7, all = 0;
    run_gather(run, &mine, sizeof(mine), &all);
    assert_int_equal(all, 7);
    uint64_t size = 0;
    char *piece = run_gather_pieces(run, "abc", 3, &size);
    assert_int_equal(size, 3);
    assert_memory_equal(piece, "abc", 3);
    free(piece);
    run_barrier(run);
    run_broadcast(run, &mine, sizeof(mine));
    if (run_maximum(run, -3.0) != -3.0)
        fail_msg("the maximum of one value is not it");
    run_destroy(run);
    run_barrier(job); // the job is still there
}

typedef struct Launch {
    const char *variables[8]; // NAME=value
    int rank, ranks;
    const char *launcher;
    const char *conflict; // part of it; NULL = none
    bool starts_mpi;
} Launch;

static void clear_launcher(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK",
                                        "OMPI_COMM_WORLD_SIZE",
                                        "PMIX_RANK",
                                        "PMIX_NAMESPACE",
                                        "SLURM_PROCID",
                                        "SLURM_STEP_NUM_TASKS",
                                        "SLURM_NTASKS",
                                        "PMI_RANK",
                                        "PMI_SIZE",
                                        "MV2_COMM_WORLD_RANK",
                                        "MV2_COMM_WORLD_SIZE",
                                        "RANK",
                                        "WORLD_SIZE"};
    for (size_t i = 0; i < COUNT_OF(names); i++)
        unsetenv(names[i]);
}

static void print_launch(void *context)
{
    const Launch *row = context;
    clear_launcher();
    for (int i = 0; row->variables[i]; i++)
        putenv((char *)(uintptr_t)row->variables[i]);
    RunLaunch launch = run_launch();
    printf("rank %d of %d by %s, starts MPI %d, conflict '%s'", launch.rank, launch.ranks,
           launch.launcher ? launch.launcher : "nobody", launch.starts_mpi, launch.conflict);
}

static void the_launcher_is_read_strictly(void **state)
{
    (void)state;
    static const Launch rows[] = {
        {{NULL}, 0, 1, "nobody", NULL, false},
        {{"OMPI_COMM_WORLD_RANK=3", "OMPI_COMM_WORLD_SIZE=8"}, 3, 8, "mpirun", NULL, true},
        {{"SLURM_PROCID=2", "SLURM_STEP_NUM_TASKS=4"}, 2, 4, "srun", NULL, true},
        {{"SLURM_PROCID=0", "SLURM_NTASKS=4"}, 0, 1, "nobody", NULL, false}, // the batch shell
        {{"PMIX_RANK=2", "SLURM_PROCID=2", "SLURM_STEP_NUM_TASKS=4"}, 2, 4, "srun", NULL, true},
        {{"PMIX_RANK=5"}, 5, 1, "PMIx", NULL, true},
        {{"PMI_RANK=1", "PMI_SIZE=2"}, 1, 2, "PMI", NULL, true},
        {{"MV2_COMM_WORLD_RANK=1", "MV2_COMM_WORLD_SIZE=2"}, 1, 2, "MVAPICH", NULL, true},
        {{"RANK=1", "WORLD_SIZE=2"}, 1, 2, "torchrun", NULL, false},
        // mpirun's helpers are started by srun: what they leak is no second opinion.
        {{"OMPI_COMM_WORLD_RANK=3", "OMPI_COMM_WORLD_SIZE=8", "SLURM_PROCID=0",
          "SLURM_STEP_NUM_TASKS=2"},
         3,
         8,
         "mpirun",
         NULL,
         true},
        {{"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2", "PMIX_RANK=0"},
         1,
         2,
         "mpirun",
         "OMPI_COMM_WORLD_RANK=1, but PMIX_RANK=0",
         true},
        {{"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2", "RANK=1", "WORLD_SIZE=16"},
         1,
         2,
         "mpirun",
         "OMPI_COMM_WORLD_SIZE=2, but WORLD_SIZE=16",
         true},
        {{"SLURM_PROCID=0", "SLURM_STEP_NUM_TASKS=many"},
         0,
         1,
         "nobody",
         "SLURM_STEP_NUM_TASKS=many make no sense",
         false},
        {{"PMI_RANK=2", "PMI_SIZE=2"}, 0, 1, "nobody", "PMI_RANK=2, PMI_SIZE=2", false},
        {{"PMI_RANK=-1", "PMI_SIZE=2"}, 0, 1, "nobody", "PMI_RANK=-1", false},
        {{"PMI_RANK=", "PMI_SIZE=2"}, 0, 1, "nobody", "PMI_RANK=,", false},
        {{"PMI_RANK=0", "PMI_SIZE=99999999999"}, 0, 1, "nobody", "PMI_SIZE=99999999999", false},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        Captured answer = capture(print_launch, (void *)(uintptr_t)&rows[i]);
        char expected[128];
        snprintf(expected, sizeof(expected), "rank %d of %d by %s, starts MPI %d, conflict '%s",
                 rows[i].rank, rows[i].ranks, rows[i].launcher, rows[i].starts_mpi,
                 rows[i].conflict ? "" : "'");
        ASSERT_CONTAINS(answer.text, expected);
        if (rows[i].conflict)
            ASSERT_CONTAINS(answer.text, rows[i].conflict);
    }
}

static void the_mpi_library_has_a_name(void **state)
{
    (void)state;
    char text[64] = "";
    run_mpi_version(text, sizeof(text));
    assert_in_range(strlen(text), 5, sizeof(text) - 1);
    assert_true(strpbrk(text, "0123456789") != NULL);
    assert_null(strpbrk(text, "\n,"));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_and_hosts_are_known),
        cmocka_unit_test(the_id_is_one_uuid_for_all),
        cmocka_unit_test(threads_stay_within_the_cores),
        cmocka_unit_test(broadcast_brings_rank_0s_bytes),
        cmocka_unit_test(gather_keeps_rank_order),
        cmocka_unit_test(pieces_of_any_size_arrive_whole),
        cmocka_unit_test(the_maximum_is_common),
        cmocka_unit_test(agreement_without_errors_goes_on),
        cmocka_unit_test(one_process_needs_no_mpi),
        cmocka_unit_test(the_launcher_is_read_strictly),
        cmocka_unit_test(the_mpi_library_has_a_name),
        cmocka_unit_test(slurms_end_time_stops_all_ranks),
        cmocka_unit_test(a_signal_on_one_rank_stops_all),
    };
    Fixture fixture = {.run = run_create(argc, argv, "test", true)};
    void *initial = &fixture;
    struct CMUnitTest with_run[COUNT_OF(tests)];
    for (size_t i = 0; i < COUNT_OF(tests); i++) {
        with_run[i] = tests[i];
        with_run[i].initial_state = initial;
    }
    int failed = cmocka_run_group_tests(with_run, NULL, NULL);
    run_destroy(fixture.run);
    return failed;
}
