// compressed.h -- compressed-tensors' description of a model: groups of schemes in config.json that
// say which modules are quantised and how, and the parts of each.
#pragma once

#include "harness/json.h"
#include "quant/pattern.h"
#include "quant/stored.h"

// One side of a scheme, as QuantizationArgs of compressed-tensors.
typedef struct CompressedArgs {
    bool present;
    int64_t num_bits, group_size; // group_size 0 = none
    int64_t block_rows, block_columns;
    bool is_float, symmetric;
    char strategy[16], dynamic[8]; // "true", "false", "local"
} CompressedArgs;

enum { COMPRESSED_GROUPS_MAX = 64 };

typedef struct CompressedGroup {
    char name[64];
    PackFormat format;
    CompressedArgs weights, inputs;
    int targets;
    Pattern **target;
} CompressedGroup;

typedef struct CompressedConfig {
    int groups;
    CompressedGroup group[COMPRESSED_GROUPS_MAX];
    int ignores;
    Pattern **ignore;
} CompressedConfig;

// Local. Reads quantization_config. Error 65 names the file and the field. Release it either way.
bool compressed_config_read(const char *path, const Json *config, CompressedConfig *out,
                            Error *error);
void compressed_config_release(CompressedConfig *config);
// Local. The group whose targets name the module, NULL if none does or it is ignored. A target that
// is a class, such as Linear, names every module.
bool compressed_group_of(const CompressedConfig *config, const char *module,
                         const CompressedGroup **group, Error *error);

// The tensors of one module, found by role; data NULL where there is none.
typedef struct CompressedParts {
    const Tensor *part[STORED_ROLES];
} CompressedParts;
// Local. The role of "weight_packed" and so on; false for others (bias, plain weight).
bool compressed_role(const char *suffix, StoredRole *role);
// Local. Error 65 if the parts are not what the group says.
bool compressed_read(const char *path, const char *parameter, const CompressedGroup *group,
                     const CompressedParts *parts, Stored *stored, Error *error);

// Local. A group of config.json: args of both sides and the format; targets is taken over.
Json *compressed_group_json(const Stored *stored, Json *targets);
// Local. quantization_config around groups; both are taken over.
Json *compressed_config_json(Json *groups, Json *ignore);
