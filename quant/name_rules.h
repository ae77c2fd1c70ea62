// name_rules.h -- which weights are quantised how: patterns on names, the first that matches wins.
//
// A pattern is tried on the parameter's name ("a.b.weight") and on its module's ("a.b"). Experts
// have two spellings: one Linear per expert ("experts.3.up_proj") or one array for all
// ("experts.gate_up_proj"); a rule means the same on both.
#pragma once

#include "quant/checkpoint.h"
#include "quant/pattern.h"

enum { NAME_RULES_MAX = 4096, EXPERT_NAME_BYTES = 2048, EXPERTS_MAX = 1 << 16 };

typedef struct NameRule {
    Pattern *pattern; // NULL: _default, whatever no other rule names
    bool skip;        // stays as it is
    Recipe recipe;
} NameRule;

typedef struct NameRules {
    int count;
    NameRule *rule;
} NameRules;

// Local. recipe NULL: names that stay as they are. Errors: exit_code, 2 or 65.
bool name_rules_add(NameRules *rules, const char *pattern, const Recipe *recipe, int exit_code,
                    Error *error);
// Local. A JSON object of patterns in order: {"re:.*experts.*": "nvfp4", "lm_head": null,
// "_default": "fp8_row"}. null, "skip" and "none" leave as is. Errors 66, 65.
bool name_rules_read(NameRules *rules, const char *path, Error *error);
// Local. The same from memory.
bool name_rules_parse(NameRules *rules, const char *path, const char *text, uint64_t bytes,
                      Error *error);
void name_rules_release(NameRules *rules);

// ---- names of experts ----

typedef enum ExpertPart { EXPERT_GATE, EXPERT_UP, EXPERT_DOWN, EXPERT_GATE_UP } ExpertPart;
typedef struct ExpertName {
    char prefix[EXPERT_NAME_BYTES]; // "model.layers.0.mlp.experts"
    int64_t expert;                 // -1: all of them in one array
    ExpertPart part;
} ExpertName;
// Local. False if the parameter is none of an expert. rank tells "experts.down_proj" (3).
bool expert_name_read(const char *parameter, int rank, ExpertName *name);
// Local. The parameter's name: ".3.up_proj.weight" or ".gate_up_proj" behind the prefix.
void expert_name_write(const ExpertName *name, char *text, size_t bytes);

// Matrices of an array of experts, [experts, rows, columns]; where gate and up share the rows, two
// of each expert. A turned array is [experts, columns, rows], as Llama 4 has them.
typedef struct ExpertMatrix {
    char name[EXPERT_NAME_BYTES + 64]; // as if each were a parameter of its own
    int64_t first, rows, columns;      // first: of the array's rows, counted through all experts
    bool turned;
} ExpertMatrix;
// Local. Whether an array is turned, which the shapes of gate_up and down together tell.
bool expert_array_is_turned(const ExpertName *array, const Checkpoint *checkpoint);
// Local. Whether its gate and up stand in turns, row by row: such arrays have biases (gpt-oss).
bool expert_array_has_bias(const ExpertName *array, const Checkpoint *checkpoint);
// Local. How many; error 65 if its shape is none of experts.
bool expert_matrices(const ExpertName *array, const Weight *weight, const Checkpoint *checkpoint,
                     int64_t *count, Error *error);
// Local. turned: of expert_array_is_turned.
void expert_matrix(const ExpertName *array, const Weight *weight, int64_t index, bool turned,
                   ExpertMatrix *matrix);

// Local. The index of the rule for a weight, or -1. experts: how many a fused array holds. Error 2
// if rules name only some of what a fused array holds.
bool name_rules_find(const NameRules *rules, const char *parameter, int rank, int64_t experts,
                     int *index, Error *error);

// Local. What a parameter is, by its name and rank: why no recipe should take it when no pattern
// says so; NULL if one should. An embedding is left alone even where an expression names it.
const char *weight_is_special(const char *parameter, const Tensor *tensor);
bool weight_is_embedding(const char *parameter);
// Local. Of a type that models keep unquantised weights in: f32, f16, bf16.
bool weight_is_real(DType dtype);
