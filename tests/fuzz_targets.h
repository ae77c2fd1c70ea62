// fuzz_targets.h -- every parser of files from strangers as a function of bytes. Nothing may crash,
// hang, or take memory beyond a multiple of the input; a refusal must come with a message and 65.
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quant/checkpoint.h"
#include "quant/name_rules.h"

static inline void fuzz_check(bool good, const Error *error)
{
    if (good == (error->exit_code == 0) &&
        (good || (error->exit_code == EXIT_CODE_DATA && error->what[0] && error->fix[0])))
        return;
    fprintf(stderr, "accepted %d, exit code %d: %s\n", good, error->exit_code, error->what);
    abort();
}

static inline void fuzz_safetensors(const uint8_t *data, size_t bytes)
{
    Safetensors file;
    Error error = {0};
    bool good = safetensors_parse(data, bytes, &file, &error);
    fuzz_check(good, &error);
    if (good)
        safetensors_close(&file);
}

static inline void fuzz_zip(const uint8_t *data, size_t bytes)
{
    Zip zip;
    Error error = {0};
    bool good = zip_parse("(memory)", data, bytes, &zip, &error);
    fuzz_check(good, &error);
    uint64_t sum = 0;
    for (int64_t i = 0; good && i < zip.count; i++)
        for (uint64_t k = 0; k < zip.entries[i].bytes; k++)
            sum += zip.entries[i].data[k];
    if (good && sum == UINT64_MAX) // never: the sum is only there so that every byte is read
        abort();
    if (good)
        zip_close(&zip);
}

static inline void fuzz_pickle(const uint8_t *data, size_t bytes)
{
    Error error = {0};
    Pickle *pickle = pickle_parse("(memory)", data, bytes, &error);
    fuzz_check(pickle != NULL, &error);
    if (pickle)
        pickle_destroy(pickle);
}

static inline void fuzz_index(const uint8_t *data, size_t bytes)
{
    Checkpoint checkpoint;
    Error error = {0};
    bool good = checkpoint_parse_index((const char *)data, bytes, &checkpoint, &error);
    fuzz_check(good, &error);
    for (int i = 0; good && i < checkpoint.files; i++)
        if (strchr(checkpoint.file[i].name, '/') || strcmp(checkpoint.file[i].name, "..") == 0)
            abort();
    if (good)
        checkpoint_close(&checkpoint);
}

static inline void fuzz_rules(const uint8_t *data, size_t bytes)
{
    NameRules rules = {0};
    Error error = {0};
    bool good = name_rules_parse(&rules, "(memory)", (const char *)data, bytes, &error);
    fuzz_check(good, &error);
    int index;
    if (good && !name_rules_find(&rules, "model.layers.3.mlp.experts.12.up_proj.weight", 2, 0,
                                 &index, &error))
        fuzz_check(false, &error);
    name_rules_release(&rules);
}

// Four bytes: how long config.json is; config.json; a file of weights.
static inline void fuzz_checkpoint_as(const uint8_t *data, size_t bytes, bool is_torch)
{
    uint32_t config_bytes = 0;
    Checkpoint checkpoint;
    Error error = {0};
    if (bytes < sizeof(config_bytes))
        return;
    memcpy(&config_bytes, data, sizeof(config_bytes));
    data += sizeof(config_bytes);
    bytes -= sizeof(config_bytes);
    if (config_bytes > bytes)
        config_bytes = (uint32_t)bytes;
    CheckpointImage image = {data + config_bytes, bytes - config_bytes, is_torch,
                             (const char *)data, config_bytes};
    bool good = checkpoint_parse(&image, &checkpoint, &error);
    fuzz_check(good, &error);
    for (int64_t i = 0; good && i < checkpoint.count; i++) {
        const Weight *weight = &checkpoint.weights[i];
        const QTensor *q = &weight->stored.q;
        int64_t elements = weight->quantised ? tensor_elements(&weight->tensor) : 0;
        if (elements == 0 || elements > 1 << 16)
            continue;
        uint16_t *values = malloc((size_t)(q->rows * q->columns) * sizeof(*values));
        if (!values)
            abort();
        static Arena *arena; // of all inputs: its first page costs more than most of them
        arena = arena ? arena : arena_create(MEMORY_HOST, DEVICE_CPU);
        stored_read_values(&weight->stored, q->matrices - 1, 0, q->rows, arena, values);
        free(values);
    }
    if (good)
        checkpoint_close(&checkpoint);
}

static inline void fuzz_checkpoint(const uint8_t *data, size_t bytes)
{
    fuzz_checkpoint_as(data, bytes, false);
}

static inline void fuzz_torch(const uint8_t *data, size_t bytes)
{
    fuzz_checkpoint_as(data, bytes, true);
}

typedef struct FuzzTarget {
    const char *name; // its seeds: tests/golden/fuzz/<name>/
    void (*run)(const uint8_t *data, size_t bytes);
} FuzzTarget;

static const FuzzTarget fuzz_targets[] = {
    {"safetensors", fuzz_safetensors},
    {"zip", fuzz_zip},
    {"pickle", fuzz_pickle},
    {"index", fuzz_index},
    {"rules", fuzz_rules},
    {"checkpoint", fuzz_checkpoint},
    {"torch", fuzz_torch},
};
