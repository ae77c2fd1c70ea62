// rewrite.h -- a checkpoint made from another: the plan, tensor by tensor, and its execution over
// the ranks of the job.
//
// plan.c decides what each weight becomes, move.c what can change its layout without loss, shards.c
// where each part stands in which file, config.c what config.json says; then run.c lets every rank
// make its units (units.c) of every file, in place, and folder.c makes the folder appear. Every
// number of the plan is the same on all ranks, so the bytes do not depend on how many there are.
#pragma once

#include "harness/run.h"
#include "harness/run_device.h"
#include "quant/checkpoint.h"
#include "quant/name_rules.h"

typedef enum ExpertsChoice { EXPERTS_AS_SOURCE, EXPERTS_SEPARATE, EXPERTS_FUSED } ExpertsChoice;

typedef struct RewriteRequest {
    const char *model, *out, *input_scales;
    Layout layout;
    ExpertsChoice experts;
    const NameRules *rules; // quantize; NULL: convert
    bool rules_are_default; // no pattern was given
    bool requantize, share_scales;
    uint64_t shard_bytes_max;
    uint64_t unit_bytes; // of source values that are made at a time; 0 = as the device likes
    bool resume, force, copy_all, hash;
    DeviceChoice device;
} RewriteRequest;

typedef enum RewriteAction {
    REWRITE_COPY,
    REWRITE_ROUND,      // f16 and f32 become bf16
    REWRITE_DEQUANTISE, // codes become bf16
    REWRITE_QUANTISE,
    REWRITE_MOVE, // codes and scales change their places only
} RewriteAction;

// Rows of a source weight: of its matrices one after another.
typedef struct RewriteSegment {
    const Weight *weight;
    int64_t first, rows;
    bool turned; // they are the columns of its matrices
} RewriteSegment;

typedef struct RewriteTensor {
    char *name;
    Tensor tensor; // what it stands for; plain: what is written
    RewriteAction action;
    Stored stored; // QUANTISE, MOVE
    int segments;
    RewriteSegment *segment; // their rows together are the tensor's
    bool lossless;
    bool may_split; // its codes may be measured and made in pieces
    int rule;       // of the rules; -1 = none
    int amax_group; // tensors with the same one share a second scale; -1 = its own
    char why[200];
    int shard;
    uint64_t place[STORED_ROLES]; // bytes of the file; plain: place[STORED_CODES]
} RewriteTensor;

// Bytes of a header that stand together in the file.
typedef struct RewritePiece {
    uint64_t place, offset, bytes; // offset: in the header
} RewritePiece;

// A member of a zip archive and where its check sum goes.
typedef struct RewriteMember {
    uint64_t local_sum, directory_sum, place, bytes;
    bool known;
} RewriteMember;

typedef struct RewriteShard {
    char name[64];
    int first, count; // tensors
    char *header;
    uint64_t header_bytes, bytes; // bytes: of the file
    int pieces;                   // 0: the header is the file's beginning
    RewritePiece *piece;
    int members; // pytorch_model.bin only
    RewriteMember *member;
} RewriteShard;

typedef struct Rewrite {
    const RewriteRequest *request;
    Checkpoint source;
    int count;
    RewriteTensor *tensor; // in the order of their names
    int shards;
    RewriteShard *shard;
    Json *config;        // of the new folder
    char *index;         // model.safetensors.index.json; NULL if there is none
    uint64_t bytes;      // of all shards
    int quantised, left; // tensors quantised; left as they are though a rule names them
    bool one_level;      // convert: no second scale of the source says anything
    int rounded;         // f16 or f32 that became bf16
    char notes[4096];    // lines for the user
} Rewrite;

// Local. The whole plan; nothing is written. Errors 2, 65, 66. Release it either way.
bool rewrite_plan(const RewriteRequest *request, Rewrite *rewrite, Error *error);
// Local. Only its first step: which weights there are, under their new names.
bool rewrite_list(const RewriteRequest *request, Rewrite *rewrite, Error *error);
void rewrite_release(Rewrite *rewrite);
void rewrite_note(Rewrite *rewrite, const char *format, ...) PRINTF_LIKE(2, 3);

// The steps of rewrite_plan.
bool rewrite_choose(Rewrite *rewrite, Error *error);       // quantize: recipes by rules
bool rewrite_choose_moves(Rewrite *rewrite, Error *error); // convert
bool rewrite_place(Rewrite *rewrite, Error *error);        // shards and headers
bool rewrite_make_config(Rewrite *rewrite, Error *error);  // config.json
bool rewrite_is_quantised(const RewriteTensor *tensor);    // its parts are a Stored
// Local. Tensors that share a second scale: q, k, v of one attention and, with `mlp`, gate and up.
void rewrite_group_amaxes(Rewrite *rewrite, bool mlp);

// Rows and columns as slices count them.
int64_t rewrite_rows(const RewriteTensor *tensor);
int64_t rewrite_columns(const RewriteTensor *tensor);

typedef struct RewriteReport {
    double seconds;
    uint64_t bytes_read, bytes_written;
} RewriteReport;
// Collective(all ranks). Makes the folder; stops the job on errors, with everything temporary gone
// unless --resume can go on from it.
RewriteReport rewrite_run(const Run *run, Rewrite *rewrite);

// Local. How many threads a rank has.
int rewrite_workers(const Run *run, DeviceKind device);

// ---- folder.c: rank 0, or as said ----
typedef struct RewriteFolder {
    char path[CHECKPOINT_PATH_BYTES], staging[CHECKPOINT_PATH_BYTES + 16];
} RewriteFolder;
// Local. Checks that the folder may be made; makes the staging folder or, resuming, looks at it.
bool rewrite_folder_begin(const Rewrite *rewrite, RewriteFolder *folder, Error *error);
bool rewrite_folder_has(const RewriteFolder *folder, const RewriteShard *shard);
// Local. config.json, index, other files, manifest; then the folder gets its name.
bool rewrite_folder_finish(const Rewrite *rewrite, const RewriteFolder *folder,
                           const char (*digests)[65], Error *error);
void rewrite_folder_remove(const RewriteFolder *folder);
