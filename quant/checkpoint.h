// checkpoint.h -- a model folder: its files, its configuration, its weights, whatever library wrote
// it.
//
// safetensors or pytorch_model.bin, one file or several with an index; plain, torchao's,
// compressed-tensors' or DeepSeek's quantised tensors. A weight is a parameter of the model by its
// name; a quantised one knows its parts. Data stay in the mapped files.
#pragma once

#include "quant/compressed.h"
#include "quant/safetensors.h"
#include "quant/stored.h"
#include "quant/torch_file.h"

enum { CHECKPOINT_PATH_BYTES = 2048 };

typedef struct CheckpointFile {
    char name[256];
    bool is_torch;
    Safetensors safetensors;
    TorchFile torch;
} CheckpointFile;

// A tensor as a file has it.
typedef struct RawTensor {
    const char *name;
    Tensor tensor;
    int file;
    bool used; // as a part of a weight
} RawTensor;

typedef struct Weight {
    char *name; // "model.layers.0.mlp.gate.weight"
    bool quantised;
    Tensor tensor; // plain: the values; quantised: dtype and shape of what it stands for
    Stored stored;
    int file; // where its codes or values lie
} Weight;

typedef struct Checkpoint {
    char folder[CHECKPOINT_PATH_BYTES];
    Layout layout;
    Json *config; // NULL if there is no config.json
    int files;
    CheckpointFile *file;
    int64_t raws;
    RawTensor *raw; // sorted by name
    int64_t count;
    Weight *weights; // sorted by checkpoint_compare_names
    uint64_t bytes;  // of all tensors
    char note[256];  // for the user; "" if there is nothing to say
} Checkpoint;

// Local. Errors: 66 no folder or no model in it, 65 with file and rule, 74.
bool checkpoint_open(const char *folder, Checkpoint *checkpoint, Error *error);
// Local. The same of one file in memory, which must outlive the value (fuzzing, tests). config: the
// text of config.json.
typedef struct CheckpointImage {
    const uint8_t *data;
    uint64_t bytes;
    bool is_torch;
    const char *config;
    uint64_t config_bytes; // 0: none
} CheckpointImage;
bool checkpoint_parse(const CheckpointImage *image, Checkpoint *checkpoint, Error *error);
// Local. Which files an index in memory names; the files are not opened.
bool checkpoint_parse_index(const char *text, uint64_t bytes, Checkpoint *checkpoint, Error *error);
void checkpoint_close(Checkpoint *checkpoint);
const Weight *checkpoint_find(const Checkpoint *checkpoint, const char *name); // NULL if absent
const RawTensor *checkpoint_find_raw(const Checkpoint *checkpoint, const char *name);

// Local. Numbers inside names by value: layer 2 before layer 10.
int checkpoint_compare_names(const char *a, const char *b);
// Local. Whether a file of that name in a model folder holds weights or their index.
bool checkpoint_is_weights_file(const char *name);
// Local. A file's name that stays inside its folder: no separator, not "..", no control characters.
bool checkpoint_is_plain_name(const char *name);
// Local. Lets whole pages of those bytes go from this process, where they lie in a mapped file;
// they stay in the system's cache.
void checkpoint_release_pages(const Checkpoint *checkpoint, const void *data, uint64_t bytes);
// Local. Asks the system to read those bytes ahead, where they lie in a mapped file.
void checkpoint_read_ahead(const Checkpoint *checkpoint, const void *data, uint64_t bytes);

// checkpoint_weights.c: what the raw tensors stand for.
bool checkpoint_read_weights(Checkpoint *checkpoint, Error *error);
