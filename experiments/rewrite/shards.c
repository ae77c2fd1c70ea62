// shards.c -- which tensors go into which file, and at which byte each part begins.
//
// Files are filled in the order of names until the next weight would not fit; the parts of a weight
// stay together. Since every size is known before a value is read, headers come first and all ranks
// write in place.
#include "experiments/rewrite/rewrite.h"

#include "experiments/rewrite/torch.h"
#include "quant/torchao.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES = 4096, SHARDS_MAX = 99999 };

static uint64_t data_bytes(const RewriteTensor *tensor)
{
    if (!rewrite_is_quantised(tensor))
        return tensor_bytes(&tensor->tensor);
    uint64_t bytes = 0;
    for (int role = 0; role < STORED_ROLES; role++)
        if (tensor->stored.part[role].present)
            bytes += tensor_bytes(&tensor->stored.part[role].tensor);
    return bytes;
}

static bool divide(Rewrite *rewrite, Error *error)
{
    uint64_t filled = 0;
    for (int i = 0; i < rewrite->count; i++) {
        uint64_t bytes = data_bytes(&rewrite->tensor[i]);
        bool full =
            rewrite->shards > 0 && filled > 0 && filled + bytes > rewrite->request->shard_bytes_max;
        if (rewrite->shards == 0 || full) {
            rewrite->shard =
                realloc(rewrite->shard, (size_t)(rewrite->shards + 1) * sizeof(*rewrite->shard));
            CHECK(rewrite->shard, EXIT_CODE_HARDWARE, "free host memory",
                  "no host memory for a plan");
            rewrite->shard[rewrite->shards++] = (RewriteShard){.first = i};
            filled = 0;
        }
        if (rewrite->shards > SHARDS_MAX)
            return error_set(error, EXIT_CODE_USAGE, "raise --max_shard", "more than %d files",
                             SHARDS_MAX);
        filled += bytes;
        rewrite->tensor[i].shard = rewrite->shards - 1;
        rewrite->shard[rewrite->shards - 1].count++;
    }
    bool torch = rewrite->request->layout == LAYOUT_TORCHAO_BIN;
    const char *stem = torch ? "pytorch_model" : "model", *tail = torch ? "bin" : "safetensors";
    for (int i = 0; i < rewrite->shards; i++) {
        RewriteShard *shard = &rewrite->shard[i];
        if (rewrite->shards == 1)
            snprintf(shard->name, sizeof(shard->name), "%s.%s", stem, tail);
        else
            snprintf(shard->name, sizeof(shard->name), "%s-%05d-of-%05d.%s", stem, i + 1,
                     rewrite->shards, tail);
    }
    return true;
}

// ---- metadata of torchao's files: the same in every shard ----

typedef struct Texts {
    int count;
    char **text; // key, value, key, value, ..., NULL
} Texts;

static void add_text(Texts *texts, char *text)
{
    texts->text[texts->count++] = text;
    texts->text[texts->count] = NULL;
}

static Texts make_metadata(const Rewrite *rewrite)
{
    Texts texts = {0};
    texts.text = calloc((size_t)rewrite->count * 2 + 8, sizeof(*texts.text));
    CHECK(texts.text, EXIT_CODE_HARDWARE, "free host memory", "no host memory for metadata");
    add_text(&texts, strdup("format"));
    add_text(&texts, strdup("pt"));
    if (rewrite->request->layout != LAYOUT_TORCHAO || rewrite->quantised == 0)
        return texts;
    char *names = NULL;
    size_t bytes = 0;
    FILE *list = open_memstream(&names, &bytes);
    CHECK(list, EXIT_CODE_HARDWARE, "free host memory", "no host memory for metadata");
    fputc('[', list);
    for (int i = 0; i < rewrite->count; i++) {
        const RewriteTensor *tensor = &rewrite->tensor[i];
        Json *name = json_text(tensor->name);
        char *text = json_print(name, false);
        fprintf(list, "%s%s", i > 0 ? ", " : "", text);
        free(text);
        json_destroy(name);
        add_text(&texts, strdup(tensor->name));
        add_text(&texts, rewrite_is_quantised(tensor) ? torchao_metadata(&tensor->stored)
                                                      : strdup("{\"_type\": \"Tensor\"}"));
    }
    fputc(']', list);
    CHECK(fclose(list) == 0, EXIT_CODE_HARDWARE, "free host memory", "no host memory for metadata");
    add_text(&texts, strdup("tensor_names"));
    add_text(&texts, names);
    return texts;
}

static void release_texts(Texts *texts)
{
    for (int i = 0; i < texts->count; i++)
        free(texts->text[i]);
    free(texts->text);
}

// ---- headers ----

typedef struct Outputs {
    SafetensorsOutput *output;
    uint64_t **target; // where each place goes
    int64_t count;
} Outputs;

static void add_output(Outputs *outputs, char *name, const Tensor *tensor, uint64_t *target)
{
    outputs->output[outputs->count] = (SafetensorsOutput){name, *tensor};
    outputs->target[outputs->count++] = target;
}

static Outputs list_outputs(Rewrite *rewrite, const RewriteShard *shard)
{
    size_t most = (size_t)shard->count * STORED_ROLES;
    Outputs outputs = {calloc(most, sizeof(SafetensorsOutput)), calloc(most, sizeof(uint64_t *)),
                       0};
    CHECK(outputs.output && outputs.target, EXIT_CODE_HARDWARE, "free host memory",
          "no host memory for a header");
    for (int i = shard->first; i < shard->first + shard->count; i++) {
        RewriteTensor *tensor = &rewrite->tensor[i];
        if (!rewrite_is_quantised(tensor)) {
            add_output(&outputs, strdup(tensor->name), &tensor->tensor, &tensor->place[0]);
            continue;
        }
        for (int role = 0; role < STORED_ROLES; role++) {
            char name[NAME_BYTES];
            if (!tensor->stored.part[role].present)
                continue;
            stored_part_name(&tensor->stored, (StoredRole)role, tensor->name, name, sizeof(name));
            add_output(&outputs, strdup(name), &tensor->stored.part[role].tensor,
                       &tensor->place[role]);
        }
    }
    return outputs;
}

static bool make_header(Rewrite *rewrite, RewriteShard *shard, const Texts *metadata, Json *map,
                        Error *error)
{
    Outputs outputs = list_outputs(rewrite, shard);
    uint64_t *place = calloc((size_t)outputs.count + 1, sizeof(*place));
    CHECK(place, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a header");
    shard->header =
        safetensors_header(outputs.output, outputs.count, (const char *const *)metadata->text,
                           &shard->header_bytes, place, error);
    shard->bytes = shard->header_bytes;
    for (int64_t i = 0; i < outputs.count; i++) {
        *outputs.target[i] = place[i];
        shard->bytes += tensor_bytes(&outputs.output[i].tensor);
        json_set(map, outputs.output[i].name, json_text(shard->name));
        free((char *)(uintptr_t)outputs.output[i].name);
    }
    rewrite->bytes += shard->bytes;
    free(place);
    free(outputs.output);
    free(outputs.target);
    return shard->header != NULL;
}

static void make_index(Rewrite *rewrite, Json *map)
{
    bool always = rewrite->request->layout == LAYOUT_COMPRESSED;
    if (rewrite->shards < 2 && !always) {
        json_destroy(map);
        return;
    }
    uint64_t total = 0;
    for (int i = 0; i < rewrite->count; i++)
        total += data_bytes(&rewrite->tensor[i]);
    Json *metadata = json_set(json_object(), "total_size", json_integer((int64_t)total));
    Json *index = // keys as Hugging Face's writers order them
        json_set(json_set(json_object(), "metadata", metadata), "weight_map", json_sorted(map));
    json_destroy(map);
    rewrite->index = json_print(index, true);
    json_destroy(index);
}

bool rewrite_place(Rewrite *rewrite, Error *error)
{
    if (!divide(rewrite, error))
        return false;
    Json *map = json_object();
    bool good = true;
    Texts metadata = make_metadata(rewrite);
    for (int i = 0; good && i < rewrite->shards; i++) {
        RewriteShard *shard = &rewrite->shard[i];
        good = rewrite->request->layout == LAYOUT_TORCHAO_BIN
                   ? rewrite_torch_header(rewrite, shard, map, error)
                   : make_header(rewrite, shard, &metadata, map, error);
    }
    release_texts(&metadata);
    if (good)
        make_index(rewrite, map);
    else
        json_destroy(map);
    return good;
}
