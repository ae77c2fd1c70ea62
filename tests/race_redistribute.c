// Redistribute against what it cannot do without: the bare MPI collective and one memcpy of the
// packed bytes on each side, in turns, in one process. Prints one row of the table in
// results/measured/redistribute_cpu.md for each change of placements and type.
//
//   mpirun -n 4 race_redistribute [ROUNDS [ROWS COLUMNS]]
//
// The peer for bf16 sums adds 16-bit integers: MPI has no bf16, and an integer sum moves the same
// bytes for less arithmetic.
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/redistribute.h"
#include "results/statistics.h"

enum { ROUNDS_MAX = 1000, WARM_UP = 2 };

typedef enum Peer { PEER_GATHER, PEER_TO_ALL, PEER_REDUCE, PEER_SCATTER, PEER_NONE } Peer;

typedef struct Change {
    const char *from, *to, *collective;
    Peer peer;
} Change;

static const Change changes[] = {
    {"S0", "R", "MPI_Allgatherv", PEER_GATHER},
    {"S1", "R", "MPI_Allgatherv", PEER_GATHER},
    {"S0", "S1", "MPI_Alltoall", PEER_TO_ALL},
    {"S1", "S0", "MPI_Alltoall", PEER_TO_ALL},
    {"P", "R", "MPI_Allreduce", PEER_REDUCE},
    {"P", "S0", "MPI_Reduce_scatter", PEER_SCATTER},
    {"P", "S1", "MPI_Reduce_scatter", PEER_SCATTER},
    {"R", "S0", "none", PEER_NONE},
    {"R", "S1", "none", PEER_NONE},
};

typedef struct Race {
    const Change *change;
    Run *run;
    Mesh *mesh;
    Tensor whole;
    Redistribute *plan;
    Arena *arena;
    char *in, *out, *packed, *received; // of the peer: room for a whole tensor each
    int *counts, *offsets;              // elements of each rank's shard of dimension 0
    uint64_t in_bytes, out_bytes;
} Race;

static MPI_Datatype type_of(const Race *race)
{
    return race->whole.dtype == DTYPE_F32 ? MPI_FLOAT : MPI_UINT16_T;
}

static void bare_to_all(const Race *race)
{
    // What one rank of an even division sends to another, wherever it lies.
    int ranks = race->run->ranks;
    int each = (int)(tensor_elements(&race->whole) / ranks / ranks);
    MPI_Alltoall(race->packed, each, type_of(race), race->received, each, type_of(race),
                 MPI_COMM_WORLD);
}

static void bare(const Race *race)
{
    int mine = race->counts[race->run->rank], all = (int)tensor_elements(&race->whole);
    switch (race->change->peer) {
    case PEER_GATHER:
        MPI_Allgatherv(race->packed, mine, type_of(race), race->received, race->counts,
                       race->offsets, type_of(race), MPI_COMM_WORLD);
        break;
    case PEER_TO_ALL:
        bare_to_all(race);
        break;
    case PEER_REDUCE:
        MPI_Allreduce(race->packed, race->received, all, type_of(race), MPI_SUM, MPI_COMM_WORLD);
        break;
    case PEER_SCATTER:
        MPI_Reduce_scatter(race->packed, race->received, race->counts, type_of(race), MPI_SUM,
                           MPI_COMM_WORLD);
        break;
    case PEER_NONE: // one copy, not two: there is only one side
        memcpy(race->received, race->in, race->out_bytes);
        break;
    }
}

// The bare collective between two copies of what is packed.
static double time_peer(const Race *race, bool copies)
{
    run_barrier(race->run);
    double begin = MPI_Wtime();
    if (copies && race->change->peer != PEER_NONE)
        memcpy(race->packed, race->in, race->in_bytes);
    bare(race);
    if (copies && race->change->peer != PEER_NONE)
        memcpy(race->out, race->received, race->out_bytes);
    return run_maximum(race->run, MPI_Wtime() - begin);
}

static double time_ours(const Race *race)
{
    Stream stream = {.device = DEVICE_CPU};
    run_barrier(race->run);
    double begin = MPI_Wtime();
    redistribute_run(race->plan, race->in, race->out, stream);
    return run_maximum(race->run, MPI_Wtime() - begin);
}

static void race_rounds(const Race *race, int rounds)
{
    double ours[ROUNDS_MAX], peer[ROUNDS_MAX], alone[ROUNDS_MAX], ratio[ROUNDS_MAX];
    for (int round = -WARM_UP; round < rounds; round++) {
        int at = round < 0 ? 0 : round;
        // Forwards and backwards in turn, so that a drift of the machine meets all alike.
        for (int turn = 0; turn < 3; turn++) {
            int who = round % 2 ? 2 - turn : turn;
            if (who == 0)
                ours[at] = time_ours(race);
            else
                *(who == 1 ? &peer[at] : &alone[at]) = time_peer(race, who == 1);
        }
        ratio[at] = ours[at] / peer[at];
    }
    Statistics o = statistics_of(ours, rounds), p = statistics_of(peer, rounds),
               a = statistics_of(alone, rounds), r = statistics_of(ratio, rounds);
    if (race->run->rank == 0)
        printf("| %d | %s | %s -> %s | %s | %.2f | %.2f | %.2f | **%.2f** | %.2f .. %.2f |\n",
               race->run->ranks, dtype_row(race->whole.dtype)->name, race->change->from,
               race->change->to, race->change->collective, a.median * 1e3, p.median * 1e3,
               o.median * 1e3, r.median, r.q1, r.q3);
}

static void race_change(Race *race, int rounds)
{
    Error error = {0};
    Placement from, to;
    CHECK_RULE(placement_parse(race->change->from, "from", race->mesh, &from, &error));
    CHECK_RULE(placement_parse(race->change->to, "to", race->mesh, &to, &error));
    ArenaMark mark = arena_mark(race->arena);
    race->plan = redistribute_create(&(RedistributeSettings){
        .mesh = race->mesh, .whole = &race->whole, .from = &from, .to = &to, .arena = race->arena});
    race->in_bytes = tensor_bytes(&redistribute_from(race->plan)->local);
    race->out_bytes = tensor_bytes(&redistribute_to(race->plan)->local);
    uint64_t whole_bytes = tensor_bytes(&race->whole);
    char **const buffers[] = {&race->in, &race->out, &race->packed, &race->received};
    for (size_t i = 0; i < COUNT_OF(buffers); i++) {
        *buffers[i] = arena_push(race->arena, whole_bytes, MEMORY_ACTIVATIONS);
        memset(*buffers[i], 0, whole_bytes); // pages that are there; zeros are ordinary numbers
    }
    race_rounds(race, rounds);
    redistribute_destroy(race->plan);
    arena_release(race->arena, mark);
}

int main(int argc, char **argv)
{
    static const DType dtypes[] = {DTYPE_F32, DTYPE_BF16};
    int rounds = argc > 1 ? atoi(argv[1]) : 21;
    Run *run = run_create(argc, argv, "race_redistribute", true);
    CHECK_ALL(rounds > 0 && rounds <= ROUNDS_MAX && (argc <= 2 || argc == 4), EXIT_CODE_USAGE,
              "race_redistribute [ROUNDS [ROWS COLUMNS]]", "cannot read the arguments");
    Comm world = comm_create_world(run, DEVICE_CPU, 0);
    Race race = {.run = run,
                 .mesh = mesh_create_any_names("x=*", world),
                 .whole = {.rank = 2, .shape = {4096, 4096}},
                 .arena = arena_create(MEMORY_DEVICE, DEVICE_CPU),
                 .counts = calloc((size_t)run->ranks, sizeof(int)),
                 .offsets = calloc((size_t)run->ranks, sizeof(int))};
    for (int dim = 0; dim < 2 && argc == 4; dim++)
        race.whole.shape[dim] = atoll(argv[2 + dim]);
    int64_t square = (int64_t)run->ranks * run->ranks;
    CHECK_ALL(race.counts && race.offsets && tensor_elements(&race.whole) % square == 0,
              EXIT_CODE_USAGE, "give sizes that the ranks divide", "%d ranks", run->ranks);
    for (int rank = 0; rank < run->ranks; rank++) {
        race.counts[rank] = (int)(tensor_elements(&race.whole) / run->ranks);
        race.offsets[rank] = rank * race.counts[rank];
    }
    for (size_t i = 0; i < COUNT_OF(changes); i++)
        for (size_t d = 0; d < COUNT_OF(dtypes); d++) {
            race.change = &changes[i];
            race.whole.dtype = dtypes[d];
            race_change(&race, rounds);
        }
    free(race.counts);
    free(race.offsets);
    arena_destroy(race.arena);
    mesh_destroy(race.mesh);
    comm_destroy(&world);
    run_destroy(run);
    return EXIT_CODE_GOOD;
}
