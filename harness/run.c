// run.c -- MPI started and stopped once, and the few agreements that need no mesh.
//
// The order of belief about ranks: MPI after its start; before that the launcher's variables
// (run_launch). The singleton trap is the classic mistake of launching an MPI program with a
// launcher that its MPI library cannot talk to: n copies start, each believes to be alone, and n
// results are written over each other (open-mpi/ompi issue 13523).
#include "harness/run.h"

#include <errno.h>
#include <mpi.h>
#include <omp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum {
    MASK_SETS = 8,         // 8 x 1024 cores
    PIECE_BYTES = 1 << 30, // MPI counts are int
    PIECE_TAG = 7,
    END_MARGIN_S = 120, // stop that long before Slurm would
    RANKS_MAX = 1 << 24,
};

// The BLAS that is linked may be OpenBLAS; it made its thread pool when it was loaded, for every
// core it saw.
void openblas_set_num_threads(int threads) OPTIONAL_SYMBOL;

const Option run_option_rows[] = {
    {"watchdog_s", OPTION_REAL, offsetof(RunOptions, watchdog_s), "60", 0, 1e6, .value = "SECONDS",
     .doc = "end the job when a rank stops or leaves the common order of collectives, at most this "
            "long after; 0 = never"},
    {"fault", OPTION_TEXT, offsetof(RunOptions, fault), NULL, .value = "KIND@RANK:WHERE"},
    {NULL},
};

// A signal handler gets no argument and may touch nothing but an object of this type: so it lives
// at file scope.
static volatile sig_atomic_t stop_signal;

typedef struct LaunchSource {
    const char *launcher, *rank_key, *ranks_key;
    bool starts_mpi;
} LaunchSource;

// In the order of belief. SLURM_NTASKS is not asked: the batch shell has it too, where one process
// runs.
static const LaunchSource launch_sources[] = {
    {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", true},
    {"PMIx", "PMIX_RANK", NULL, true},
    {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", true},
    {"PMI", "PMI_RANK", "PMI_SIZE", true},
    {"MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", true},
    {"torchrun", "RANK", "WORLD_SIZE", false},
};

static bool read_number(const char *text, int64_t maximum, int64_t *value)
{
    size_t length = text ? strlen(text) : 0;
    if (length == 0 || length > 18 || strspn(text, "0123456789") != length)
        return false;
    *value = strtoll(text, NULL, 10);
    return *value <= maximum;
}

// True if this source speaks; malformed values are noted and count as silence.
static bool read_source(const LaunchSource *source, int64_t *rank, int64_t *ranks, char *note,
                        size_t note_bytes)
{
    const char *rank_text = getenv(source->rank_key);
    const char *ranks_text = source->ranks_key ? getenv(source->ranks_key) : NULL;
    *ranks = 0; // unknown
    if (!rank_text || (source->ranks_key && !ranks_text))
        return false;
    bool good = read_number(rank_text, RANKS_MAX, rank);
    if (source->ranks_key)
        good = good && read_number(ranks_text, RANKS_MAX, ranks) && *rank < *ranks;
    if (!good)
        snprintf(note, note_bytes, "%s=%.40s, %s=%.40s make no sense and are ignored",
                 source->rank_key, rank_text, source->ranks_key ? source->ranks_key : "",
                 ranks_text ? ranks_text : "");
    return good;
}

RunLaunch run_launch(void)
{
    RunLaunch launch = {.rank = 0, .ranks = 1, .variable = ""};
    bool under_mpirun = getenv("OMPI_COMM_WORLD_RANK") != NULL;
    const char *rank_key = NULL;
    for (size_t i = 0; i < COUNT_OF(launch_sources); i++) {
        const LaunchSource *source = &launch_sources[i];
        int64_t rank, ranks;
        // Inside a Slurm job mpirun starts its helpers by srun, and their variables leak to us.
        if (under_mpirun && strcmp(source->launcher, "srun") == 0)
            continue;
        if (!read_source(source, &rank, &ranks, launch.conflict, sizeof(launch.conflict)))
            continue;
        if (!rank_key) {
            launch.rank = (int)rank;
            rank_key = source->rank_key;
        } else if (rank != launch.rank) {
            snprintf(launch.conflict, sizeof(launch.conflict), "%s=%d, but %s=%d", rank_key,
                     launch.rank, source->rank_key, (int)rank);
        }
        if (!launch.variable[0]) { // PMIx gives a rank only: who tells the ranks is the launcher
            launch.launcher = source->launcher;
            launch.starts_mpi = source->starts_mpi;
        }
        if (ranks > 0 && !launch.variable[0]) {
            launch.ranks = (int)ranks;
            launch.variable = source->ranks_key;
        } else if (ranks > 0 && ranks != launch.ranks) {
            snprintf(launch.conflict, sizeof(launch.conflict), "%s=%d, but %s=%d", launch.variable,
                     launch.ranks, source->ranks_key, (int)ranks);
        }
    }
    return launch;
}

void run_mpi_version(char *text, size_t bytes)
{
    char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length = 0;
    MPI_Get_library_version(version, &length);
    version[strcspn(version, ",\n")] = '\0'; // the rest names who built it, and where
    snprintf(text, bytes, "%s", version);
}

static void note_signal(int number)
{
    stop_signal = number;
}

// The second Ctrl-C ends the program the usual way, for a phase that does not look at the flag.
static void install_handlers(void)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2};
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        struct sigaction action = {.sa_handler = note_signal, .sa_flags = SA_RESTART};
        if (numbers[i] == SIGINT)
            action.sa_flags |= (int)SA_RESETHAND;
        sigaction(numbers[i], &action, NULL);
    }
}

// Every agreement is a call of the group "job". False: a planted fault keeps it from being made.
static bool enter(const Run *run, Call *call)
{
    if (calls_enter(run->job, call))
        return true;
    if (call->fault == CALL_FAULT_OTHER && call->op == CALL_BARRIER)
        run_maximum(run, 0);
    else if (call->fault == CALL_FAULT_OTHER)
        run_barrier(run);
    return false;
}

static void abort_job(int exit_code)
{
    MPI_Abort(MPI_COMM_WORLD, exit_code);
}

static void leave_together(int exit_code)
{
    const Run *run = check_context()->run;
    fflush(stdout);
    run_barrier(run); // nobody may leave (and let mpirun kill the rest) before rank 0 has printed
    if (run->ledger)
        run_watch.leave(run);
    MPI_Finalize();
    _exit(exit_code);
}

static bool may_speak(char *others, size_t bytes)
{
    const Run *run = check_context()->run;
    return !run->ledger || run_watch.may_speak(run, others, bytes);
}

// n copies of one rank each, who cannot talk to each other. The first to leave takes down the
// others where the launcher is told to, so those with a higher rank wait: then the message comes
// once. Without such a launcher each says it.
NORETURN static void refuse_singletons(const RunLaunch *launch)
{
    if (launch->rank != 0)
        nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
    char fix[256], version[64];
    run_mpi_version(version, sizeof(version));
    snprintf(fix, sizeof(fix),
             "start with `mpirun -n %d ...` of %s, or under Slurm with `srun --mpi=pmix ...` "
             "(`srun --mpi=list` shows what there is)",
             launch->ranks, version);
    check_print(__FILE__, __LINE__, fix,
                "%s started %d copies (%s=%d), but each sees only itself: MPI has 1 rank",
                launch->launcher, launch->ranks, launch->variable, launch->ranks);
    int started = 0;
    MPI_Initialized(&started);
    if (started)
        MPI_Finalize();
    _exit(EXIT_CODE_USAGE);
}

// A process that nothing launched has nobody to talk to. Open MPI would start a daemon for it all
// the same and wait 0.2 s for networks to answer; what a user has set stands.
static const char *const alone_keys[] = {"OMPI_MCA_ess_singleton_isolated", "OMPI_MCA_pml"};
static const char *const alone_values[] = {"1", "ob1"};

static unsigned hide_networks(void)
{
    unsigned set = 0;
    for (unsigned i = 0; i < COUNT_OF(alone_keys); i++)
        if (!getenv(alone_keys[i]) && setenv(alone_keys[i], alone_values[i], 0) == 0)
            set |= 1u << i;
    return set;
}

static void show_networks(unsigned set)
{
    for (unsigned i = 0; i < COUNT_OF(alone_keys); i++)
        if (set >> i & 1u)
            unsetenv(alone_keys[i]);
}

// In a step of srun without a PMI server Open MPI does not become a job of one rank but ends the
// process with a page of its own. So several tasks are refused before; and for one task the step's
// id is hidden while MPI starts.
static void init_mpi(const RunLaunch *launch)
{
    static const char *const server_keys[] = {"PMIX_RANK", "PMIX_NAMESPACE", "PMI_RANK", "PMI_FD"};
    bool served = false;
    for (size_t i = 0; i < COUNT_OF(server_keys); i++)
        served = served || getenv(server_keys[i]) != NULL;
    const char *step = getenv("SLURM_STEP_ID");
    bool hide = !served && step != NULL;
    if (!served && launch->ranks > 1 && launch->starts_mpi)
        refuse_singletons(launch);
    char kept[32] = "";
    if (hide) {
        snprintf(kept, sizeof(kept), "%s", step);
        unsetenv("SLURM_STEP_ID");
    }
    bool alone = !served && !step && !launch->launcher;
    unsigned networks = alone ? hide_networks() : 0;
    int provided = 0;
    CHECK_MPI(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided));
    show_networks(networks);
    CHECK_MPI(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    CHECK_MPI(MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN));
    if (hide)
        setenv("SLURM_STEP_ID", kept, 1);
    CHECK(provided >= MPI_THREAD_FUNNELED, EXIT_CODE_HARDWARE,
          "use an MPI library that was built with threads", "MPI offers thread level %d < %d",
          provided, MPI_THREAD_FUNNELED);
}

static void start_mpi(Run *run)
{
    RunLaunch launch = run_launch();
    init_mpi(&launch);
    CheckContext *context = check_context();
    context->run = run;
    context->abort_job = abort_job;
    context->leave_together = leave_together;
    context->may_speak = may_speak;
    CHECK_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &run->rank));
    CHECK_MPI(MPI_Comm_size(MPI_COMM_WORLD, &run->ranks));
    if (run->ranks == 1 && launch.ranks > 1 && launch.starts_mpi)
        refuse_singletons(&launch);
    context->rank = run->rank;
    context->ranks = run->ranks;
    if (run->rank == 0 && launch.conflict[0])
        check_warn("the launcher's variables disagree: %s; going by MPI: rank %d of %d",
                   launch.conflict, run->rank, run->ranks);
    bool known = launch.variable[0] && launch.starts_mpi;
    if (run->rank == 0 && known && launch.ranks != run->ranks)
        check_warn("%s=%d, but MPI has %d ranks; going by MPI", launch.variable, launch.ranks,
                   run->ranks);
}

// Who shares a host: local ranks in job order, hosts numbered by their lowest rank.
static void find_hosts(Run *run, cpu_set_t *host_cores)
{
    MPI_Comm local;
    CHECK_MPI(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, run->rank, MPI_INFO_NULL,
                                  &local));
    CHECK_MPI(MPI_Comm_rank(local, &run->local_rank));
    CHECK_MPI(MPI_Comm_size(local, &run->local_ranks));
    int leader = run->rank;
    CHECK_MPI(MPI_Bcast(&leader, 1, MPI_INT, 0, local));
    // mpirun binds each rank to its own cores: the host's are the union.
    CHECK_MPI(MPI_Allreduce(MPI_IN_PLACE, host_cores, MASK_SETS * sizeof(cpu_set_t) / 8,
                            MPI_UINT64_T, MPI_BOR, local));
    CHECK_MPI(MPI_Comm_free(&local));
    int is_leader = run->local_rank == 0, before = 0;
    CHECK_MPI(MPI_Allreduce(&is_leader, &run->hosts, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD));
    CHECK_MPI(MPI_Exscan(&is_leader, &before, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD));
    if (run->rank == 0)
        before = 0; // MPI_Exscan leaves rank 0's undefined
    int *index_of_rank = malloc(sizeof(int) * (size_t)run->ranks);
    CHECK(index_of_rank, EXIT_CODE_HARDWARE, "free memory", "no memory for %d ranks", run->ranks);
    CHECK_MPI(MPI_Allgather(&before, 1, MPI_INT, index_of_rank, 1, MPI_INT, MPI_COMM_WORLD));
    run->host_index = index_of_rank[leader];
    free(index_of_rank);
}

static void make_id(char *id)
{
    uint8_t byte[16];
    CHECK(getrandom(byte, sizeof(byte), 0) == (ssize_t)sizeof(byte), EXIT_CODE_HARDWARE,
          "the kernel must offer getrandom(2)", "no random bytes: %s", strerror(errno));
    byte[6] = (uint8_t)((byte[6] & 0x0F) | 0x40); // RFC 9562: version 4, variant 10
    byte[8] = (uint8_t)((byte[8] & 0x3F) | 0x80);
    for (int i = 0, at = 0; i < 16; i++) {
        bool dash = i == 4 || i == 6 || i == 8 || i == 10;
        at += snprintf(id + at, (size_t)(RUN_ID_BYTES - at), "%s%02x", dash ? "-" : "", byte[i]);
    }
}

// Ranks on a host times library threads stay within its cores, unless OMP_NUM_THREADS asks for
// more.
static void set_threads(Run *run, int own_cores, int host_cores)
{
    int share = host_cores / run->local_ranks;
    run->threads = share < own_cores ? share : own_cores;
    if (run->threads < 1)
        run->threads = 1;
    const char *asked = getenv("OMP_NUM_THREADS");
    if (asked) {
        char first[24]; // "4,2" means 4 in the outermost parallel region
        int64_t threads = 0;
        snprintf(first, sizeof(first), "%.*s", (int)strcspn(asked, ","), asked);
        if (read_number(first, 4096, &threads) && threads > 0)
            run->threads = (int)threads;
        else if (run->rank == 0)
            check_warn("OMP_NUM_THREADS=%.40s is no number from 1 to 4096: %d threads are used",
                       asked, run->threads);
        if (threads > 1 && run->rank == 0 && run->local_ranks * run->threads > host_cores)
            check_warn("%d ranks x OMP_NUM_THREADS=%d exceed the %d cores of %s: timings will "
                       "suffer",
                       run->local_ranks, run->threads, host_cores, run->host);
    }
    omp_set_num_threads(run->threads);
    if (openblas_set_num_threads)
        openblas_set_num_threads(run->threads);
}

Run *run_create(int argc, char **argv, const char *command, bool spmd)
{
    Run *run = calloc(1, sizeof(*run));
    CHECK(run, EXIT_CODE_HARDWARE, "free memory", "no memory to start");
    *run = (Run){.ranks = 1, .local_ranks = 1, .hosts = 1, .argc = argc, .argv = argv};
    run->command = command;
    run->spmd = spmd;
    cpu_set_t own[MASK_SETS], host[MASK_SETS];
    memset(own, 0, sizeof(own));
    CHECK(sched_getaffinity(0, sizeof(own), own) == 0, EXIT_CODE_HARDWARE,
          "this machine has more cores than meshwork counts", "no core affinity: %s",
          strerror(errno));
    memcpy(host, own, sizeof(own));
    if (spmd)
        start_mpi(run);
    if (gethostname(run->host, sizeof(run->host)) != 0)
        snprintf(run->host, sizeof(run->host), "unknown");
    run->host[sizeof(run->host) - 1] = '\0';
    if (spmd)
        find_hosts(run, host);
    if (run->rank == 0)
        make_id(run->id);
    run_broadcast(run, run->id, sizeof(run->id));
    set_threads(run, CPU_COUNT_S(sizeof(own), own), CPU_COUNT_S(sizeof(host), host));
    if (spmd)
        install_handlers(); // after MPI, whose start has its own use for signals
    return run;
}

void run_start_watch(Run *run)
{
    if (run->spmd && &run_watch != NULL)
        run_watch.start(run);
}

void run_destroy(Run *run)
{
    if (!run)
        return;
    if (run->ledger)
        run_watch.stop(run);
    if (run->spmd) {
        fflush(stdout);
        CheckContext *context = check_context();
        context->abort_job = NULL;
        context->leave_together = NULL;
        context->may_speak = NULL;
        context->run = NULL;
        MPI_Finalize();
    }
    free(run);
}

void run_barrier(const Run *run)
{
    Call call = {.op = CALL_BARRIER};
    if (!run->spmd || !enter(run, &call))
        return;
    CHECK_MPI(MPI_Barrier(MPI_COMM_WORLD));
    calls_leave(run->job);
}

static int piece_at(uint64_t done, uint64_t bytes)
{
    return bytes - done < PIECE_BYTES ? (int)(bytes - done) : PIECE_BYTES;
}

void run_broadcast(const Run *run, void *data, uint64_t bytes)
{
    Call call = {.op = CALL_BROADCAST, .dtype = DTYPE_U8, .count = bytes};
    if (!run->spmd || !enter(run, &call))
        return;
    for (uint64_t done = 0; done < call.count; done += PIECE_BYTES)
        CHECK_MPI(MPI_Bcast((char *)data + done, piece_at(done, call.count), MPI_BYTE, 0,
                            MPI_COMM_WORLD));
    calls_leave(run->job);
}

static void send_to_zero(const void *data, uint64_t bytes)
{
    for (uint64_t done = 0; done < bytes; done += PIECE_BYTES)
        CHECK_MPI(MPI_Send((const char *)data + done, piece_at(done, bytes), MPI_BYTE, 0, PIECE_TAG,
                           MPI_COMM_WORLD));
}

static void receive_from(int rank, void *data, uint64_t bytes)
{
    for (uint64_t done = 0; done < bytes; done += PIECE_BYTES)
        CHECK_MPI(MPI_Recv((char *)data + done, piece_at(done, bytes), MPI_BYTE, rank, PIECE_TAG,
                           MPI_COMM_WORLD, MPI_STATUS_IGNORE));
}

// Messages instead of MPI_Gather, whose count is int.
static void gather_large(const Run *run, const void *mine, uint64_t bytes, void *all)
{
    if (run->rank != 0) {
        send_to_zero(mine, bytes);
        return;
    }
    if (bytes > 0)
        memcpy(all, mine, bytes);
    for (int rank = 1; rank < run->ranks; rank++)
        receive_from(rank, (char *)all + (uint64_t)rank * bytes, bytes);
}

void run_gather(const Run *run, const void *mine, uint64_t bytes, void *all)
{
    Call call = {.op = CALL_GATHER, .dtype = DTYPE_U8, .count = bytes};
    if (run->spmd && !enter(run, &call))
        return;
    bytes = call.count;
    if (run->spmd && bytes <= PIECE_BYTES)
        CHECK_MPI(
            MPI_Gather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, 0, MPI_COMM_WORLD));
    else
        gather_large(run, mine, bytes, all);
    calls_leave(run->job);
}

// Sizes differ between ranks, so it is pieces that must agree: what a rank sends and what rank 0
// expects.
static void gather_pieces(const Run *run, const void *mine, uint64_t bytes, char *all,
                          const uint64_t *size_of_rank)
{
    Call call = {.op = CALL_GATHER_PIECES, .dtype = DTYPE_U8};
    if (run->rank != 0)
        call_piece(&call, run->rank, 0, bytes, 0);
    for (int rank = 1; run->rank == 0 && rank < run->ranks; rank++)
        call_piece(&call, 0, rank, 0, size_of_rank[rank]);
    if (run->spmd && !enter(run, &call))
        return;
    if (run->rank != 0)
        send_to_zero(mine, call.fault == CALL_FAULT_COUNT ? bytes / 2 : bytes);
    uint64_t at = bytes;
    for (int rank = 1; run->rank == 0 && rank < run->ranks; rank++) {
        receive_from(rank, all + at, size_of_rank[rank]);
        at += size_of_rank[rank];
    }
    calls_leave(run->job);
}

void *run_gather_pieces(const Run *run, const void *mine, uint64_t bytes, uint64_t *sizes)
{
    uint64_t only = 0;
    uint64_t *size_of_rank = sizes ? sizes : &only; // ranks other than 0 may pass NULL
    run_gather(run, &bytes, sizeof(bytes), size_of_rank);
    uint64_t total = 0;
    for (int rank = 0; run->rank == 0 && rank < run->ranks; rank++)
        total += size_of_rank[rank];
    char *all = run->rank == 0 ? malloc(total > 0 ? total : 1) : NULL;
    CHECK(all || run->rank != 0, EXIT_CODE_HARDWARE, "gather less at once, or free memory",
          "no memory for %llu bytes of %d ranks", (unsigned long long)total, run->ranks);
    if (all && bytes > 0)
        memcpy(all, mine, bytes);
    gather_pieces(run, mine, bytes, all, size_of_rank);
    return all;
}

void run_agree(const Run *run, const Error *error)
{
    int exit_code = error ? error->exit_code : EXIT_CODE_GOOD;
    int first = exit_code != EXIT_CODE_GOOD ? run->rank : run->ranks;
    Call call = {.op = CALL_AGREE, .dtype = DTYPE_I32, .count = 1};
    if (run->spmd && enter(run, &call)) {
        CHECK_MPI(
            MPI_Allreduce(MPI_IN_PLACE, &first, (int)call.count, MPI_INT, MPI_MIN, MPI_COMM_WORLD));
        calls_leave(run->job);
    }
    if (first == run->ranks)
        return;
    Call tell = {.op = CALL_BROADCAST, .dtype = DTYPE_I32, .count = 1};
    if (run->spmd && enter(run, &tell)) {
        CHECK_MPI(MPI_Bcast(&exit_code, (int)tell.count, MPI_INT, first, MPI_COMM_WORLD));
        calls_leave(run->job);
    }
    if (run->rank == first)
        check_print(error->file, error->line, error->fix, "%s", error->what);
    if (run->spmd)
        leave_together(exit_code);
    fflush(stdout);
    _exit(exit_code);
}

static bool slurm_end_is_near(void)
{
    int64_t end = 0;
    return read_number(getenv("SLURM_JOB_END_TIME"), INT64_MAX, &end) &&
           (int64_t)time(NULL) + END_MARGIN_S >= end;
}

bool run_stop_requested(const Run *run)
{
    int stop = stop_signal != 0 || slurm_end_is_near();
    Call call = {.op = CALL_STOP_REQUESTED, .dtype = DTYPE_I32, .count = 1};
    if (run->spmd && enter(run, &call)) {
        CHECK_MPI(
            MPI_Allreduce(MPI_IN_PLACE, &stop, (int)call.count, MPI_INT, MPI_MAX, MPI_COMM_WORLD));
        calls_leave(run->job);
    }
    return stop != 0;
}

double run_maximum(const Run *run, double value)
{
    Call call = {.op = CALL_MAXIMUM, .dtype = DTYPE_F64, .count = 1};
    if (run->spmd && enter(run, &call)) {
        CHECK_MPI(MPI_Allreduce(MPI_IN_PLACE, &value, (int)call.count, MPI_DOUBLE, MPI_MAX,
                                MPI_COMM_WORLD));
        calls_leave(run->job);
    }
    return value;
}
