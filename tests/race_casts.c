// The CPU's casts beside memcpy: for every recipe, casts and copies of as many bytes alternate, so
// that what else the machine does slows both.
//
//   race_casts ROWS COLUMNS THREADS ROUNDS [RECIPE]     one JSON object per line
//
// Of each the fastest and the middle time by the clock, and the least time of the processor (all
// threads together), which does not count what other programs took. results/measured/casts_cpu.py
// calls it.
#include "kernels/cast.h"
#include "quant/recipe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS_MAX = 10000 };

typedef struct Times {
    double wall[ROUNDS_MAX], cpu[ROUNDS_MAX];
} Times;

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_times(const char *name, Times *times, int rounds)
{
    qsort(times->wall, (size_t)rounds, sizeof(double), by_size);
    qsort(times->cpu, (size_t)rounds, sizeof(double), by_size);
    printf(", \"%s_s\": %.9g, \"%s_median_s\": %.9g, \"%s_cpu_s\": %.9g", name, times->wall[0],
           name, times->wall[rounds / 2], name, times->cpu[0]);
}

// Half the cast's bytes are read and half are written.
static void copy(char *to, const char *from, uint64_t bytes, int threads)
{
    uint64_t part = bytes / 2 / (uint64_t)threads;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; t++)
        memcpy(to + part * (uint64_t)t, from + part * (uint64_t)t, part);
}

typedef struct Race {
    int64_t shape[2];
    int threads, rounds;
    char *values, *target;
} Race;

static void race(const Race *race, const Recipe *recipe)
{
    static Times ours, theirs;
    Cast args = {.values = race->values, .threads = race->threads};
    Error error = {0};
    if (!qtensor_plan(&recipe->weights, DTYPE_BF16, 2, race->shape, &args.to, &error)) {
        fprintf(stderr, "%s: %s\n", recipe->name, error.what);
        return;
    }
    qtensor_allocate(&args.to);
    KernelCost cost = cast_cost(&args);
    for (int round = -1; round < race->rounds; round++) {
        int i = round < 0 ? 0 : round;
        double wall = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
        cast_with_loops(&args, cast_loops_best());
        ours.cpu[i] = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
        ours.wall[i] = now(CLOCK_MONOTONIC) - wall;
        wall = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
        copy(race->target, race->values, (uint64_t)cost.bytes, race->threads);
        theirs.cpu[i] = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
        theirs.wall[i] = now(CLOCK_MONOTONIC) - wall;
    }
    printf("{\"recipe\": \"%s\", \"loops\": \"%s\", \"threads\": %d, \"bytes\": %.0f", recipe->name,
           cast_loops_best()->name, race->threads, cost.bytes);
    print_times("cast", &ours, race->rounds);
    print_times("copy", &theirs, race->rounds);
    printf("}\n");
    qtensor_free(&args.to);
}

int main(int count, char **words)
{
    if (count < 5) {
        fprintf(stderr, "usage: race_casts ROWS COLUMNS THREADS ROUNDS [RECIPE]\n");
        return 2;
    }
    Race job = {.shape = {atoll(words[1]), atoll(words[2])},
                .threads = atoi(words[3]),
                .rounds = atoi(words[4])};
    if (job.threads < 1 || job.rounds < 1 || job.rounds > ROUNDS_MAX)
        return 2;
    int64_t elements = job.shape[0] * job.shape[1];
    job.values = malloc((size_t)elements * 4); // a copy may move more than the values
    job.target = malloc((size_t)elements * 4);
    if (!job.values || !job.target)
        return 69;
    memset(job.target, 0, (size_t)elements * 4);
    for (int64_t i = 0; i < 2 * elements; i++) {
        uint16_t bits = bf16_bits_from_f32((float)rand() / (float)RAND_MAX - 0.5f);
        memcpy(job.values + 2 * i, &bits, sizeof(bits));
    }
    for (const Recipe *recipe = recipe_table; recipe->name; recipe++)
        if (recipe->weights.method != QUANT_NONE &&
            (count < 6 || strcmp(words[5], recipe->name) == 0))
            race(&job, recipe);
    free(job.values);
    free(job.target);
    return 0;
}
