// safetensors.h -- the safetensors container, read as if a stranger had written it.
//
// Rules: huggingface/safetensors, safetensors/src/tensor.rs. Eight bytes of header length, a JSON
// header, tensor bytes without hole or overlap up to the last byte of the file. Everything is
// checked before anything is used.
#pragma once

#include "harness/file.h"
#include "harness/json.h"
#include "harness/tensor.h"

typedef struct SafetensorsEntry {
    char *name;
    Tensor
        tensor; // data points into the mapped file: read-only, and as unaligned as the file has it
} SafetensorsEntry;

typedef struct Safetensors {
    FileMap map;
    Json *header;
    int64_t count;
    SafetensorsEntry *entries; // sorted by name
} Safetensors;

// Local. Errors: 66 not there, 65 with the file, the byte offset and the rule that broke.
bool safetensors_open(const char *path, Safetensors *file, Error *error);
// Local. The same from memory (fuzzing, tests); `data` must outlive the value and is not freed by
// close.
bool safetensors_parse(const uint8_t *data, uint64_t bytes, Safetensors *file, Error *error);
void safetensors_close(Safetensors *file);
const Tensor *safetensors_find(const Safetensors *file, const char *name);  // NULL if absent
const char *safetensors_metadata(const Safetensors *file, const char *key); // NULL if absent

// One tensor to be written; data in host memory.
typedef struct SafetensorsOutput {
    const char *name;
    Tensor tensor;
} SafetensorsOutput;
// Local. Writes a complete file (temporary name, fsync, rename) in the reference writer's order of
// tensors. metadata: key, value, key, value, ..., NULL; may be NULL. Errors 73, 74; 65 for names
// that are not UTF-8 and parts of bytes.
bool safetensors_write(const char *path, const SafetensorsOutput *tensors, int64_t count,
                       const char *const *metadata, bool force, Error *error);
// Local. The beginning of such a file: everything before the first tensor's bytes; the caller frees
// it. place[i]: the byte of the file where tensor i is to stand. NULL and an error as above.
char *safetensors_header(const SafetensorsOutput *tensors, int64_t count,
                         const char *const *metadata, uint64_t *bytes, uint64_t *place,
                         Error *error);
