// moe_options.h -- the command line options that describe one MoE layer, for every command that has
// one.
//
// A command puts a MoeOptions into its Params struct and MOE_OPTION_ROWS(Params, member) into its
// option table.
#pragma once

#include "experiments/model/moe.h"
#include "harness/option.h"

// Fields named as the options; the defaults are the toy of SEMANTICS section 5 (EP=2 equals EP=1).
typedef struct MoeOptions {
    int64_t experts, top_k, dim, hidden, shared_hidden;
    const char *routing;
    double route_scale;
    int score, dtype;
    bool score_before_experts, normalise_top_k, expert_bias, shared_gate;
} MoeOptions;

// Local. Error 2 names what cannot be: top_k > experts, a gate without a shared expert, an unknown
// routing.
bool moe_options_read(const MoeOptions *options, MoeConfig *config, Error *error);
// Local. Error 2 when an option that a layer file decides was set as well (it would be ignored).
bool moe_options_untouched(const Option *table, const void *params, Error *error);

// clang-format off
#define MOE_OPTION_AT(Params, member, field) (offsetof(Params, member) + offsetof(MoeOptions, field))
#define MOE_OPTION_ROWS(Params, member) \
    {"experts", OPTION_INT, MOE_OPTION_AT(Params, member, experts), "4", 1, 1 << 20, \
     .doc = "experts of the layer"}, \
    {"top_k", OPTION_INT, MOE_OPTION_AT(Params, member, top_k), "1", 1, 1024, \
     .doc = "experts per token"}, \
    {"dim", OPTION_INT, MOE_OPTION_AT(Params, member, dim), "8", 1, 1 << 20, \
     .doc = "width of a token"}, \
    {"hidden", OPTION_INT, MOE_OPTION_AT(Params, member, hidden), "16", 1, 1 << 20, \
     .doc = "inner width of an expert"}, \
    {"shared_hidden", OPTION_INT, MOE_OPTION_AT(Params, member, shared_hidden), "0", 0, 1 << 20, \
     .doc = "inner width of the shared expert, 0 = none"}, \
    {"shared_gate", OPTION_SWITCH, MOE_OPTION_AT(Params, member, shared_gate), "no", \
     .doc = "a sigmoid gate on the shared expert"}, \
    {"score", OPTION_CHOICE, MOE_OPTION_AT(Params, member, score), "sigmoid", \
     .choices = "sigmoid|softmax", .doc = "how router logits become scores"}, \
    {"score_before_experts", OPTION_SWITCH, MOE_OPTION_AT(Params, member, score_before_experts), \
     "no", .doc = "the score multiplies an expert's input, not its output"}, \
    {"normalise_top_k", OPTION_SWITCH, MOE_OPTION_AT(Params, member, normalise_top_k), "no", \
     .doc = "divide a token's scores by their sum"}, \
    {"route_scale", OPTION_REAL, MOE_OPTION_AT(Params, member, route_scale), "1", -1e6, 1e6, \
     .doc = "factor on the scores, applied last"}, \
    {"expert_bias", OPTION_SWITCH, MOE_OPTION_AT(Params, member, expert_bias), "no", \
     .doc = "a bias per expert, for choosing only"}, \
    {"routing", OPTION_TEXT, MOE_OPTION_AT(Params, member, routing), "model", \
     .value = "even|model|skew:X", \
     .doc = "who chooses: round robin, the scores, or the busiest expert at X times the mean"}, \
    {"dtype", OPTION_CHOICE, MOE_OPTION_AT(Params, member, dtype), "bf16", .choices = "f32|bf16", \
     .doc = "storage type; sums are f32"}
// clang-format on
