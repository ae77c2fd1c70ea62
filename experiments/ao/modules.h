// modules.h -- the modules of a model as quantising sees them: names, kinds, weights.
#pragma once

#include "harness/check.h"
#include "harness/tensor.h"
#include "quant/checkpoint.h"
#include "quant/pattern.h"

enum { AO_NAME_BYTES = 256, AO_WHY_BYTES = 384 };

typedef struct AoModule {
    char name[AO_NAME_BYTES]; // "model.layers.0.mlp.experts.3.up_proj"
    const char *kind;         // "Linear", "Embedding", "Norm", "parameter"
    int64_t rows, columns;    // of the weight, (out, in)
    const Weight *source;     // NULL: random, deviation columns^-1/2
    int64_t first;            // row of the source, of its matrices one after another
    uint64_t seed;
    bool chosen;            // a recipe is to be applied
    char why[AO_WHY_BYTES]; // not chosen: the rule that refused it
} AoModule;

typedef struct AoModules {
    int count;
    AoModule *module;      // owned
    Checkpoint checkpoint; // of a folder
    bool loaded;
} AoModules;

// Local. The built-in model: two blocks of a Mixture-of-Experts decoder with the names of a Qwen
// model, experts one by one.
AoModules ao_modules_built_in(uint64_t seed);
// Local. Of a model's folder, whatever layout checkpoint.h reads: every weight. Experts that stand
// in one array are modules of their own, named as if each had its file entries. Errors 66, 65, 74.
bool ao_modules_read(const char *folder, AoModules *modules, Error *error);
void ao_modules_destroy(AoModules *modules);

// Local. Chooses the Linear modules that `match` names (the module, its parameter, or the array
// that it stands in; NULL = all) and `skip` does not, and says why the others stay. Error 2: a
// pattern that no module's name fits, with the nearest.
bool ao_modules_choose(AoModules *modules, const char *match, const char *skip, Error *error);
// Local. The module's weight as bf16, [rows, columns].
void ao_module_values(const AoModule *module, uint16_t *values);
