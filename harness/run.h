// run.h -- the job: which ranks it has, how it starts, how it stops, and the few agreements that
// need no mesh.
//
// Start: MPI_Init, ranks and hosts, and the guards against the classic mistakes: the singleton trap
// (srun or mpirun started n copies that each see one rank) is refused with the fix line. Stop:
// TERM, INT, HUP, USR1, USR2 mean "stop soon": the handler only sets a flag, run_stop_requested
// agrees over ranks. Every agreement below is a call of the group "job" (calls.h), so the watchdog
// sees it.
#pragma once

#include "harness/calls.h"
#include "harness/option.h"

DECLARATIONS_BEGIN

enum { RUN_HOST_BYTES = 64, RUN_ID_BYTES = 37 };

// Options of every command that starts a job. Rows without a line of help are for tests.
typedef struct RunOptions {
    double watchdog_s;
    const char *fault; // see calls_create
} RunOptions;
extern const Option run_option_rows[];

typedef struct Run {
    int rank, ranks;             // in the job
    int local_rank, local_ranks; // on this host
    int host_index, hosts;
    char host[RUN_HOST_BYTES];
    char id[RUN_ID_BYTES]; // UUID of the run, the same on all ranks
    int threads;           // library threads of this rank: its cores / local ranks, at least 1
    int argc;
    char **argv;
    const char *command;
    bool spmd;
    RunOptions options;
    CallGroup *job;        // NULL: nobody watches
    struct Ledger *ledger; // who does
} Run;

// Who watches the job: parallel/ledger.h. This folder reaches it through a table, since parallel/
// stands to its right.
typedef struct RunWatch {
    // Collective(all ranks). By run->options; sets run->job and run->ledger, or leaves them NULL.
    void (*start)(Run *run);
    void (*stop)(Run *run);        // Collective(all ranks), after the last agreement
    void (*leave)(const Run *run); // Local. The job ends here, on purpose and with its message
    bool (*may_speak)(const Run *run, char *others, size_t bytes); // Local. See check.h
} RunWatch;
OPTIONAL_SYMBOL extern const RunWatch run_watch;

// What the launcher's environment says about this process, before and without MPI. Guards and the
// commands that never start MPI go by it; in a job MPI itself has the last word.
typedef struct RunLaunch {
    int rank, ranks;      // 0 of 1 when there is no launcher
    const char *launcher; // "mpirun", "srun", ...; NULL when there is none
    const char *variable; // the one that told the ranks, "SLURM_STEP_NUM_TASKS"
    bool starts_mpi;    // false: a launcher of other programs (torchrun), whose word is only a hint
    char conflict[256]; // what disagrees or cannot be read; "" if nothing
} RunLaunch;
RunLaunch run_launch(void); // Local
void run_mpi_version(char *text,
                     size_t bytes); // Local. Of the linked library; MPI need not be started

// Collective(all ranks) when spmd, else Local. Owner: the caller. Stops with 2 in the singleton
// trap.
Run *run_create(int argc, char **argv, const char *command, bool spmd);
// Collective(all ranks).
void run_destroy(Run *run);
// Collective(all ranks). From here on a rank that makes another call than the others, or none, ends
// the job (run->options.watchdog_s > 0 and several ranks).
void run_start_watch(Run *run);
// Collective(all ranks).
void run_barrier(const Run *run);
void run_broadcast(const Run *run, void *data, uint64_t bytes); // from rank 0
void run_gather(const Run *run, const void *mine, uint64_t bytes,
                void *all); // all: [ranks][bytes] on rank 0
// Pieces of different size to rank 0: returns on rank 0 a malloc'd block with all pieces in rank
// order (the caller frees it) and sizes[ranks]; NULL elsewhere.
void *run_gather_pieces(const Run *run, const void *mine, uint64_t bytes, uint64_t *sizes);
// Collective(all ranks). Every rank brings its error (exit_code 0 = none): if any has one, the
// first such rank's message is printed once and the whole job stops with its code.
void run_agree(const Run *run, const Error *error);
// Collective(all ranks). True on all when any rank was asked to stop (signal, or Slurm's end time
// is near).
bool run_stop_requested(const Run *run);
// Collective(all ranks). The maximum over ranks; how local decisions become common ones.
double run_maximum(const Run *run, double value);

DECLARATIONS_END
