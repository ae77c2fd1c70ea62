// checkpoint.c -- opening a model folder: index, files, configuration.
//
// An index names files of its own folder only; a link to a file elsewhere is followed, since that
// is how the hub's cache is made.
#include "quant/checkpoint.h"

#include "quant/message.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { JSON_BYTES_MAX = 256 << 20, FILES_MAX = 100000 };

typedef struct Reader {
    Checkpoint *checkpoint;
    char index[CHECKPOINT_PATH_BYTES + 64];
    int files_capacity;
    Error *error;
} Reader;

int checkpoint_compare_names(const char *a, const char *b)
{
    while (*a && *b) {
        if (isdigit((unsigned char)*a) && isdigit((unsigned char)*b)) {
            const char *x = a + strspn(a, "0"), *y = b + strspn(b, "0");
            size_t x_digits = strspn(x, "0123456789"), y_digits = strspn(y, "0123456789");
            if (x_digits != y_digits)
                return x_digits < y_digits ? -1 : 1;
            int order = memcmp(x, y, x_digits);
            if (order != 0)
                return order;
            size_t a_digits = strspn(a, "0123456789"), b_digits = strspn(b, "0123456789");
            if (a_digits != b_digits)
                return a_digits < b_digits ? -1 : 1;
            a += a_digits;
            b += b_digits;
        } else if (*a != *b) {
            return (unsigned char)*a < (unsigned char)*b ? -1 : 1;
        } else {
            a++;
            b++;
        }
    }
    return *a ? 1 : *b ? -1 : 0;
}

static bool ends_with(const char *name, const char *tail)
{
    size_t length = strlen(name), bytes = strlen(tail);
    return length >= bytes && strcmp(name + length - bytes, tail) == 0;
}

bool checkpoint_is_weights_file(const char *name)
{
    static const char *const tails[] = {".safetensors", ".safetensors.index.json",
                                        ".bin",         ".bin.index.json",
                                        ".pt",          ".pth",
                                        ".gguf",        ".h5",
                                        ".msgpack",     ".onnx",
                                        ".ckpt"};
    for (size_t i = 0; i < COUNT_OF(tails); i++)
        if (ends_with(name, tails[i]))
            return true;
    return false;
}

bool checkpoint_is_plain_name(const char *name)
{
    bool good = *name && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && strlen(name) < 256;
    for (const unsigned char *c = (const unsigned char *)name; good && *c; c++)
        good = *c >= 0x20 && *c != 0x7F && *c != '/' && *c != '\\';
    return good;
}

static bool is_there(const char *folder, const char *name)
{
    char path[CHECKPOINT_PATH_BYTES + 300];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return access(path, F_OK) == 0;
}

// ---- files ----

static int find_file(const Checkpoint *checkpoint, const char *name)
{
    for (int i = 0; i < checkpoint->files; i++)
        if (strcmp(checkpoint->file[i].name, name) == 0)
            return i;
    return -1;
}

static bool add_file(Reader *reader, const char *name)
{
    Checkpoint *checkpoint = reader->checkpoint;
    if (checkpoint->files > 0 && strcmp(checkpoint->file[checkpoint->files - 1].name, name) == 0)
        return true; // most tensors follow one of the same file
    if (find_file(checkpoint, name) >= 0)
        return true;
    if (checkpoint->files == FILES_MAX)
        return bad_file(reader->error, reader->index, "it names more than %d files", FILES_MAX);
    if (checkpoint->files == reader->files_capacity) {
        reader->files_capacity = reader->files_capacity ? 2 * reader->files_capacity : 4;
        checkpoint->file =
            realloc(checkpoint->file, (size_t)reader->files_capacity * sizeof(*checkpoint->file));
        CHECK(checkpoint->file, EXIT_CODE_HARDWARE, "free host memory", "no host memory for files");
    }
    CheckpointFile *file = &checkpoint->file[checkpoint->files++];
    *file = (CheckpointFile){.is_torch = !ends_with(name, ".safetensors")};
    snprintf(file->name, sizeof(file->name), "%s", name);
    return true;
}

static bool visit_map(const char *key, const Json *value, void *context)
{
    Reader *reader = context;
    char shown[QUOTED_BYTES], file[QUOTED_BYTES];
    const char *name = json_text_of(value);
    if (!name)
        return bad_tensor(reader->error, reader->index, key, "its file is no text");
    if (!checkpoint_is_plain_name(name))
        return bad_tensor(reader->error, reader->index, key,
                          "its file \"%s\" is not the plain name of a file in this folder",
                          quoted_name(name, file));
    if (!ends_with(name, ".safetensors") && !ends_with(name, ".bin"))
        return bad_tensor(reader->error, reader->index, quoted_name(key, shown),
                          "its file \"%s\" is neither .safetensors nor .bin",
                          quoted_name(name, file));
    return add_file(reader, name);
}

static Json *parse_object(const char *path, const char *text, uint64_t bytes, Error *error)
{
    Error cause = {0};
    Json *json = json_parse(text, bytes, &cause);
    if (!json)
        bad_file(error, path, "%.300s", cause.what);
    else if (!json_is_object(json)) {
        json_destroy(json);
        json = NULL;
        bad_file(error, path, "it is no JSON object");
    }
    return json;
}

static Json *read_json(const char *path, Error *error)
{
    uint64_t bytes = 0;
    char *text = file_read(path, JSON_BYTES_MAX, &bytes, error);
    Json *json = text ? parse_object(path, text, bytes, error) : NULL;
    free(text);
    return json;
}

static int compare_files(const void *a, const void *b)
{
    return checkpoint_compare_names(((const CheckpointFile *)a)->name,
                                    ((const CheckpointFile *)b)->name);
}

static bool list_files(Reader *reader, const Json *index)
{
    const Json *map = json_find(index, "weight_map");
    if (!map || !json_is_object(map))
        return bad_file(reader->error, reader->index, "it has no weight_map");
    json_each(map, visit_map, reader);
    if (reader->error->exit_code == 0 && reader->checkpoint->files > 1)
        qsort(reader->checkpoint->file, (size_t)reader->checkpoint->files,
              sizeof(*reader->checkpoint->file), compare_files);
    return reader->error->exit_code == 0;
}

static bool read_index(Reader *reader, const char *name, Json **index)
{
    snprintf(reader->index, sizeof(reader->index), "%s/%s", reader->checkpoint->folder, name);
    *index = read_json(reader->index, reader->error);
    return *index && list_files(reader, *index);
}

// The first of these that is there is the model; the others are left alone.
static bool find_files(Reader *reader, Json **index)
{
    static const char *const names[] = {"model.safetensors.index.json", "model.safetensors",
                                        "pytorch_model.bin.index.json", "pytorch_model.bin"};
    const char *folder = reader->checkpoint->folder;
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        if (!is_there(folder, names[i]))
            continue;
        return ends_with(names[i], ".json") ? read_index(reader, names[i], index)
                                            : add_file(reader, names[i]);
    }
    struct stat status;
    if (stat(folder, &status) != 0)
        return error_set(reader->error, EXIT_CODE_NO_INPUT, "check the spelling of the path",
                         "there is no folder %.300s", folder);
    return error_set(reader->error, EXIT_CODE_NO_INPUT,
                     "give the folder of a model as Hugging Face libraries write it",
                     "%.300s has no model: neither %s nor %s, with or without an index", folder,
                     names[1], names[3]);
}

static bool open_files(Reader *reader)
{
    Checkpoint *checkpoint = reader->checkpoint;
    for (int i = 0; i < checkpoint->files; i++) {
        CheckpointFile *file = &checkpoint->file[i];
        char path[CHECKPOINT_PATH_BYTES + 300];
        snprintf(path, sizeof(path), "%s/%s", checkpoint->folder, file->name);
        bool good = file->is_torch ? torch_file_open(path, &file->torch, reader->error)
                                   : safetensors_open(path, &file->safetensors, reader->error);
        if (!good) // a file that the index names is missing: the index lies
            return false;
    }
    return true;
}

// ---- raw tensors ----

static int compare_raws(const void *a, const void *b)
{
    return strcmp(((const RawTensor *)a)->name, ((const RawTensor *)b)->name);
}

static void collect_raws(Checkpoint *checkpoint)
{
    int64_t count = 0;
    for (int i = 0; i < checkpoint->files; i++)
        count += checkpoint->file[i].safetensors.count;
    checkpoint->raw = calloc((size_t)count + 1, sizeof(*checkpoint->raw));
    CHECK(checkpoint->raw, EXIT_CODE_HARDWARE, "free host memory",
          "no host memory for %lld tensors", (long long)count);
    for (int i = 0; i < checkpoint->files; i++) {
        const Safetensors *file = &checkpoint->file[i].safetensors;
        for (int64_t k = 0; k < file->count; k++) {
            checkpoint->raw[checkpoint->raws++] =
                (RawTensor){file->entries[k].name, file->entries[k].tensor, i, false};
            checkpoint->bytes += tensor_bytes(&file->entries[k].tensor);
        }
    }
    qsort(checkpoint->raw, (size_t)checkpoint->raws, sizeof(*checkpoint->raw), compare_raws);
}

static bool check_raws(Reader *reader)
{
    const Checkpoint *checkpoint = reader->checkpoint;
    for (int64_t i = 1; i < checkpoint->raws; i++) {
        const RawTensor *raw = &checkpoint->raw[i];
        if (strcmp(raw->name, raw[-1].name) == 0)
            return bad_tensor(reader->error, checkpoint->file[raw->file].name, raw->name,
                              "file %.80s has one of this name too",
                              checkpoint->file[raw[-1].file].name);
    }
    return true;
}

static bool visit_presence(const char *key, const Json *value, void *context)
{
    Reader *reader = context;
    const Checkpoint *checkpoint = reader->checkpoint;
    int file = find_file(checkpoint, json_text_of(value));
    if (checkpoint->file[file].is_torch)
        return true;
    if (safetensors_find(&checkpoint->file[file].safetensors, key))
        return true;
    return bad_tensor(reader->error, reader->index, key, "file %.80s has no such tensor",
                      checkpoint->file[file].name);
}

const RawTensor *checkpoint_find_raw(const Checkpoint *checkpoint, const char *name)
{
    RawTensor key = {.name = name};
    if (checkpoint->raws == 0)
        return NULL;
    return bsearch(&key, checkpoint->raw, (size_t)checkpoint->raws, sizeof(key), compare_raws);
}

// ---- open and close ----

static bool read_config(Reader *reader)
{
    char path[CHECKPOINT_PATH_BYTES + 64];
    snprintf(path, sizeof(path), "%s/config.json", reader->checkpoint->folder);
    if (access(path, F_OK) != 0)
        return true;
    reader->checkpoint->config = read_json(path, reader->error);
    return reader->checkpoint->config != NULL;
}

bool checkpoint_open(const char *folder, Checkpoint *checkpoint, Error *error)
{
    *checkpoint = (Checkpoint){.layout = LAYOUT_PLAIN};
    Error first = {0};
    Reader reader = {.checkpoint = checkpoint, .error = &first};
    Json *index = NULL;
    bool good = strlen(folder) < sizeof(checkpoint->folder) ||
                error_set(&first, EXIT_CODE_NO_INPUT, "choose a shorter path",
                          "a path of %zu bytes is too long", strlen(folder));
    if (good) {
        snprintf(checkpoint->folder, sizeof(checkpoint->folder), "%s", folder);
        good = find_files(&reader, &index) && open_files(&reader);
    }
    if (good) {
        collect_raws(checkpoint);
        if (index)
            json_each(json_find(index, "weight_map"), visit_presence, &reader);
        good = first.exit_code == 0 && check_raws(&reader) && read_config(&reader) &&
               checkpoint_read_weights(checkpoint, &first);
    }
    if (index)
        json_destroy(index);
    if (!good) {
        checkpoint_close(checkpoint);
        if (error->exit_code == 0)
            *error = first;
    }
    return good;
}

bool checkpoint_parse(const CheckpointImage *image, Checkpoint *checkpoint, Error *error)
{
    *checkpoint = (Checkpoint){.layout = LAYOUT_PLAIN, .folder = "(memory)", .files = 1};
    checkpoint->file = calloc(1, sizeof(*checkpoint->file));
    CHECK(checkpoint->file, EXIT_CODE_HARDWARE, "free host memory", "no host memory for files");
    CheckpointFile *file = checkpoint->file;
    Error first = {0};
    Reader reader = {.checkpoint = checkpoint, .error = &first};
    file->is_torch = image->is_torch;
    bool good = image->is_torch
                    ? torch_file_parse("(memory)", image->data, image->bytes, &file->torch, &first)
                    : safetensors_parse(image->data, image->bytes, &file->safetensors, &first);
    if (good && image->config_bytes > 0)
        good = (checkpoint->config = parse_object("config.json", image->config, image->config_bytes,
                                                  &first)) != NULL;
    if (good) {
        collect_raws(checkpoint);
        good = check_raws(&reader) && checkpoint_read_weights(checkpoint, &first);
    }
    if (!good) {
        checkpoint_close(checkpoint);
        *error = first;
    }
    return good;
}

bool checkpoint_parse_index(const char *text, uint64_t bytes, Checkpoint *checkpoint, Error *error)
{
    *checkpoint = (Checkpoint){.layout = LAYOUT_PLAIN};
    Error first = {0};
    Reader reader = {.checkpoint = checkpoint, .index = "(index)", .error = &first};
    Json *index = parse_object(reader.index, text, bytes, &first);
    bool good = index && list_files(&reader, index);
    if (index)
        json_destroy(index);
    if (!good) {
        checkpoint_close(checkpoint);
        *error = first;
    }
    return good;
}

void checkpoint_close(Checkpoint *checkpoint)
{
    for (int i = 0; i < checkpoint->files; i++) {
        safetensors_close(&checkpoint->file[i].safetensors);
        torch_file_close(&checkpoint->file[i].torch);
    }
    for (int64_t i = 0; i < checkpoint->count; i++)
        free(checkpoint->weights[i].name);
    free(checkpoint->file);
    free(checkpoint->raw);
    free(checkpoint->weights);
    if (checkpoint->config)
        json_destroy(checkpoint->config);
    *checkpoint = (Checkpoint){.layout = LAYOUT_PLAIN};
}

// ---- pages ----

// Tensors of a .bin file may lie in memory of their own, which must not be given away.
static bool is_mapped(const Checkpoint *checkpoint, const uint8_t *data, uint64_t bytes)
{
    for (int i = 0; i < checkpoint->files; i++) {
        const CheckpointFile *file = &checkpoint->file[i];
        const FileMap *map = file->is_torch ? &file->torch.zip.map : &file->safetensors.map;
        if (data >= map->data && bytes <= map->bytes &&
            (uint64_t)(data - map->data) <= map->bytes - bytes)
            return true;
    }
    return false;
}

static void advise(uintptr_t first, uintptr_t last, int advice)
{
    if (last > first) // a wish: nothing is lost where the system does not follow it
        madvise((void *)first, last - first, advice);
}

void checkpoint_release_pages(const Checkpoint *checkpoint, const void *data, uint64_t bytes)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = (uintptr_t)data, last = first + bytes;
    if (is_mapped(checkpoint, data, bytes))
        advise((first + page - 1) / page * page, last / page * page, MADV_DONTNEED);
}

void checkpoint_read_ahead(const Checkpoint *checkpoint, const void *data, uint64_t bytes)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = (uintptr_t)data;
    if (is_mapped(checkpoint, data, bytes))
        advise(first / page * page, first + bytes, MADV_WILLNEED);
}
