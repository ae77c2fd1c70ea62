// trial.h -- one weight under one recipe: what it costs and what it loses.
#pragma once

#include "experiments/ao/modules.h"
#include "experiments/model/kernel_timing.h"
#include "quant/recipe.h"

// What all trials of a run share. Inputs are random, one deviation per row.
typedef struct AoBench {
    Run *run;
    Stream stream;
    Arena *arena;
    DeviceCeilings ceilings;
    ResultWriter *writer;
    int64_t rows; // of the input
    uint64_t seed;
    StopRule rule; // samples_max 0: no timing
} AoBench;

typedef struct AoTrial {
    char refused[AO_WHY_BYTES]; // "" = the recipe takes the weight, and the rest is valid
    uint64_t bytes;             // of the weight under the recipe
    double weight_db;           // SQNR of the weight,
    double output_db;           // and of the output, against the unquantised ones
    double error;               // of the output, relative to its bound: good up to 1
    Statistics time;            // of cast of the input and product; count 0 = not timed
} AoTrial;

// Waits. label: of the measurement; NULL = not timed.
void ao_trial(const AoBench *bench, const AoModule *module, const Recipe *recipe, const char *label,
              AoTrial *trial);

// Local. Whether two medians differ by more than both are known to: -1 if a is less, 0 if nobody
// can tell, 1 if a is more. drift: how far two runs of the same lay apart (relative), or 0.
int ao_compare(const Statistics *a, const Statistics *b, double drift);
