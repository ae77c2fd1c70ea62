// What entering a collective in the ledger costs the rank that makes it: the same small collective
// with and without its group in the ledger, in turns, in one job with the watchdog on. Prints one
// row of the table in results/measured/watchdog_cost.md for each collective and size.
//
//   mpirun -n 2 race_ledger [ROUNDS]
//
// The first row is the bare cost: calls_enter and calls_leave, with no collective between them.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "parallel/comm_link.h"
#include "results/statistics.h"

enum { ROUNDS_MAX = 20000, BATCH = 40, BYTES_MAX = 1 << 20, WARM_UP = 2 };

typedef struct Race {
    Run *run;
    Comm comm;
    Stream stream;
    CallGroup *group;
    char *send, *receive;
} Race;

typedef struct Row {
    const char *name;
    void (*collective)(const Race *race, uint64_t bytes);
    uint64_t bytes;
    int batch;
} Row;

static void nothing(const Race *race, uint64_t bytes)
{
    Call call = {.op = CALL_ALL_GATHER, .dtype = DTYPE_U8, .count = bytes};
    calls_enter(race->comm.link->group, &call);
    calls_leave(race->comm.link->group);
}

static void all_gather(const Race *race, uint64_t bytes)
{
    comm_all_gather(race->comm, race->send, race->receive, bytes, race->stream);
}

static void all_reduce(const Race *race, uint64_t bytes)
{
    comm_all_reduce(race->comm, race->send, race->receive, (int64_t)(bytes / sizeof(float)),
                    DTYPE_F32, COMM_SUM, race->stream);
}

static void all_to_all_v(const Race *race, uint64_t bytes)
{
    uint64_t each[64], offsets[64];
    for (int rank = 0; rank < race->comm.ranks; rank++) {
        each[rank] = bytes;
        offsets[rank] = (uint64_t)rank * bytes;
    }
    const CommSplit split = {each, offsets, each, offsets};
    comm_all_to_all_v(race->comm, &split, race->send, race->receive, race->stream);
}

static const Row rows[] = {
    {"nothing", nothing, 8, BATCH},
    {"all_gather", all_gather, 8, BATCH},
    {"all_gather", all_gather, 4096, BATCH},
    {"all_gather", all_gather, 65536, BATCH / 4},
    {"all_gather", all_gather, BYTES_MAX, 1},
    {"all_reduce", all_reduce, 8, BATCH},
    {"all_reduce", all_reduce, 4096, BATCH},
    {"all_to_all_v", all_to_all_v, 8, BATCH},
    {"all_to_all_v", all_to_all_v, 4096, BATCH},
};

// Nanoseconds a call, of the slowest rank.
static double time_batch(const Race *race, const Row *row, bool entered)
{
    struct timespec begin, end;
    race->comm.link->group = entered ? race->group : NULL;
    run_barrier(race->run);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (int i = 0; i < row->batch; i++)
        row->collective(race, row->bytes);
    clock_gettime(CLOCK_MONOTONIC, &end);
    double ns = 1e9 * (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec);
    race->comm.link->group = race->group;
    return run_maximum(race->run, ns / row->batch);
}

// Lower quartiles: batches are shorter than a turn of the scheduler, so on a shared machine these
// are the ones that nobody else took time from.
static void race_row(const Race *race, const Row *row, int rounds)
{
    static double ns[2][ROUNDS_MAX], more[ROUNDS_MAX];
    for (int round = -WARM_UP; round < rounds; round++) {
        double now[2];
        for (int turn = 0; turn < 2; turn++) {
            int entered = (turn + round) & 1;
            now[entered] = time_batch(race, row, entered);
        }
        if (round < 0)
            continue;
        ns[0][round] = now[0];
        ns[1][round] = now[1];
        more[round] = now[1] - now[0];
    }
    Statistics without = statistics_of(ns[0], rounds), with = statistics_of(ns[1], rounds);
    Statistics extra = statistics_of(more, rounds);
    if (race->run->rank == 0)
        printf("| %s | %llu | %d | %.0f | %.0f | %+.2f %% | %.0f | %+.0f | %+.0f .. %+.0f |\n",
               row->name, (unsigned long long)row->bytes, race->run->ranks, without.q1, with.q1,
               100 * (with.q1 / without.q1 - 1), without.median, extra.median, extra.ci95_low,
               extra.ci95_high);
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 1001;
    Run *run = run_create(argc, argv, "race_ledger", true);
    CHECK_ALL(rounds > 0 && rounds <= ROUNDS_MAX && run->ranks > 1 && run->ranks <= 64,
              EXIT_CODE_USAGE, "mpirun -n 2 race_ledger [ROUNDS]", "cannot read the arguments");
    run->options.watchdog_s = 60;
    run_start_watch(run);
    Race race = {.run = run,
                 .comm = comm_create_world(run, DEVICE_CPU, 0),
                 .stream = stream_create(DEVICE_CPU),
                 .send = calloc((size_t)run->ranks, BYTES_MAX),
                 .receive = calloc((size_t)run->ranks, BYTES_MAX)};
    CHECK_RULE(race.comm.link->group && race.send && race.receive);
    race.group = race.comm.link->group;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        race_row(&race, &rows[i], rounds);
    free(race.send);
    free(race.receive);
    stream_destroy(race.stream);
    comm_destroy(&race.comm);
    run_destroy(run);
    return EXIT_CODE_GOOD;
}
