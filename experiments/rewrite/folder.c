// folder.c -- the new folder is made beside its place, under the name "<out>.partial", and
// renamed when everything in it is on disk.
//
// Shards in it have their final names once they are complete, so a later run with --resume knows
// which are; plan.json holds the digest of everything that decides their bytes, so it does not go
// on with another plan's.
#include "experiments/rewrite/rewrite.h"

#include "meshwork_version.h"
#include "quant/digest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES = CHECKPOINT_PATH_BYTES + 300, COPY_BYTES = 1 << 20 };
static const char *const plan_name = "plan.json", *const manifest_name = "manifest.json";

static void join(char path[PATH_BYTES], const char *folder, const char *name)
{
    snprintf(path, PATH_BYTES, "%s/%s", folder, name);
}

// ---- what decides the bytes ----

static void digest_plan(const Rewrite *rewrite, char text[DIGEST_TEXT_BYTES])
{
    Digest *digest = digest_create();
    for (int i = 0; i < rewrite->source.files; i++) {
        char path[PATH_BYTES], line[PATH_BYTES + 128];
        struct stat status = {.st_size = 0};
        join(path, rewrite->source.folder, rewrite->source.file[i].name);
        stat(path, &status);
        int length = snprintf(line, sizeof(line), "%s %lld %lld.%09ld\n",
                              rewrite->source.file[i].name, (long long)status.st_size,
                              (long long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
        digest_add(digest, line, (uint64_t)length);
    }
    for (int i = 0; i < rewrite->shards; i++)
        digest_add(digest, rewrite->shard[i].header, rewrite->shard[i].header_bytes);
    for (int i = 0; i < rewrite->count; i++) {
        const RewriteTensor *tensor = &rewrite->tensor[i];
        char line[512];
        int length = snprintf(line, sizeof(line), "%d %d %d %s\n", (int)tensor->action,
                              tensor->amax_group, tensor->shard, tensor->why);
        digest_add(digest, line, (uint64_t)length);
    }
    char *config = json_print(rewrite->config, false);
    digest_add(digest, config, strlen(config));
    free(config);
    digest_finish(digest, text);
}

// ---- beginning ----

static bool same_folder(const char *a, const char *b)
{
    char x[PATH_MAX], y[PATH_MAX];
    return realpath(a, x) && realpath(b, y) && strcmp(x, y) == 0;
}

// Only what this program puts there: files, and no folder in it.
static bool remove_folder(const char *path, Error *error)
{
    DIR *directory = opendir(path);
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        char file[PATH_BYTES];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        join(file, path, entry->d_name);
        unlink(file);
    }
    if (directory)
        closedir(directory);
    if (rmdir(path) == 0 || errno == ENOENT)
        return true;
    return error_set(error, EXIT_CODE_CANT_CREATE, "remove it by hand, or choose another --out",
                     "cannot remove %.300s: %s", path, strerror(errno));
}

void rewrite_folder_remove(const RewriteFolder *folder)
{
    Error ignored = {0};
    remove_folder(folder->staging, &ignored);
}

static bool write_text(const char *folder, const char *name, const char *text, Error *error)
{
    char path[PATH_BYTES];
    FileWriter writer;
    join(path, folder, name);
    return file_writer_open(&writer, path, true, error) &&
           file_writer_write(&writer, text, strlen(text), error) &&
           file_writer_commit(&writer, error);
}

static bool continue_staging(const Rewrite *rewrite, const RewriteFolder *folder, Error *error)
{
    char path[PATH_BYTES], digest[DIGEST_TEXT_BYTES];
    uint64_t bytes = 0;
    Error cause = {0};
    join(path, folder->staging, plan_name);
    char *text = file_read(path, 4096, &bytes, &cause);
    digest_plan(rewrite, digest);
    bool same = text && strstr(text, digest);
    free(text);
    return same || error_set(error, EXIT_CODE_CANT_CREATE,
                             "start anew with --force, or give the options of the first run",
                             "%.300s is of another command, source or version: it cannot be "
                             "resumed",
                             folder->staging);
}

static bool make_staging(const Rewrite *rewrite, const RewriteFolder *folder, Error *error)
{
    char digest[DIGEST_TEXT_BYTES], text[DIGEST_TEXT_BYTES + 32];
    if (mkdir(folder->staging, 0777) != 0)
        return error_set(error, EXIT_CODE_CANT_CREATE, "choose a folder that you may write",
                         "cannot make the folder %.300s: %s", folder->staging, strerror(errno));
    digest_plan(rewrite, digest);
    snprintf(text, sizeof(text), "{\"digest\": \"%s\"}\n", digest);
    return write_text(folder->staging, plan_name, text, error);
}

// A folder that --force may replace: one with a model in it and no folders.
static bool check_replaceable(const char *path, Error *error)
{
    bool weights = false, config = false, folders = false;
    DIR *directory = opendir(path);
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        char file[PATH_BYTES];
        struct stat status;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        join(file, path, entry->d_name);
        folders = folders || (lstat(file, &status) == 0 && S_ISDIR(status.st_mode));
        weights = weights || checkpoint_is_weights_file(entry->d_name);
        config = config || strcmp(entry->d_name, "config.json") == 0;
    }
    if (directory)
        closedir(directory);
    return (directory && weights && config && !folders) ||
           error_set(error, EXIT_CODE_CANT_CREATE, "choose another --out",
                     "%.300s is there and is no model folder: --force does not replace it", path);
}

bool rewrite_folder_begin(const Rewrite *rewrite, RewriteFolder *folder, Error *error)
{
    const RewriteRequest *request = rewrite->request;
    size_t length = strlen(request->out);
    while (length > 1 && request->out[length - 1] == '/')
        length--;
    if (length == 0 || length >= sizeof(folder->path))
        return error_set(error, EXIT_CODE_CANT_CREATE, "choose another --out",
                         "'%.100s' is no path for a folder", request->out);
    snprintf(folder->path, sizeof(folder->path), "%.*s", (int)length, request->out);
    snprintf(folder->staging, sizeof(folder->staging), "%s.partial", folder->path);
    if (same_folder(request->model, folder->path))
        return error_set(error, EXIT_CODE_USAGE, "choose another --out",
                         "--out is the folder of the source, %.300s", folder->path);
    if (file_exists(folder->path) && !request->force)
        return error_set(error, EXIT_CODE_CANT_CREATE,
                         "choose another --out, or replace it with --force",
                         "%.300s exists already", folder->path);
    if (file_exists(folder->path) && !check_replaceable(folder->path, error))
        return false;
    if (!file_exists(folder->staging))
        return make_staging(rewrite, folder, error);
    if (request->resume)
        return continue_staging(rewrite, folder, error);
    if (!request->force)
        return error_set(error, EXIT_CODE_CANT_CREATE,
                         "go on with --resume, or start anew with --force",
                         "%.300s is there: an earlier run was interrupted", folder->staging);
    return remove_folder(folder->staging, error) && make_staging(rewrite, folder, error);
}

bool rewrite_folder_has(const RewriteFolder *folder, const RewriteShard *shard)
{
    char path[PATH_BYTES];
    struct stat status;
    join(path, folder->staging, shard->name);
    return stat(path, &status) == 0 && (uint64_t)status.st_size == shard->bytes;
}

// ---- other files ----

static bool is_ours(const Rewrite *rewrite, const char *name)
{
    bool ours = strcmp(name, "config.json") == 0 || strcmp(name, plan_name) == 0 ||
                strcmp(name, manifest_name) == 0 || strstr(name, ".index.json");
    for (int i = 0; i < rewrite->source.files && !ours; i++)
        ours = strcmp(name, rewrite->source.file[i].name) == 0;
    for (int i = 0; i < rewrite->shards && !ours; i++)
        ours = strcmp(name, rewrite->shard[i].name) == 0;
    return ours;
}

static bool copy_file(const char *from, const char *to, Error *error)
{
    FileWriter writer;
    int descriptor = open(from, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return error_set(error, EXIT_CODE_IO, "check its permissions", "cannot open %.300s: %s",
                         from, strerror(errno));
    char *buffer = malloc(COPY_BYTES);
    CHECK(buffer, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a copy");
    bool good = file_writer_open(&writer, to, true, error);
    ssize_t count = 0;
    while (good &&
           ((count = read(descriptor, buffer, COPY_BYTES)) > 0 || (count < 0 && errno == EINTR)))
        good = count < 0 || file_writer_write(&writer, buffer, (uint64_t)count, error);
    if (good && count < 0) {
        good = error_set(error, EXIT_CODE_IO, "check the disk", "cannot read %.300s: %s", from,
                         strerror(errno));
        file_writer_abandon(&writer);
    }
    close(descriptor);
    free(buffer);
    return good && file_writer_commit(&writer, error);
}

typedef struct FileList {
    int count;
    char **name;
} FileList;

static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

// Tokenizer, generation_config and whatever else is no weights; with --copy_all every file.
static bool copy_others(const Rewrite *rewrite, const RewriteFolder *folder, FileList *list,
                        Error *error)
{
    DIR *directory = opendir(rewrite->source.folder);
    bool good = directory != NULL;
    for (struct dirent *entry; good && (entry = readdir(directory));) {
        char from[PATH_BYTES], to[PATH_BYTES];
        struct stat status;
        const char *name = entry->d_name;
        join(from, rewrite->source.folder, name);
        join(to, folder->staging, name);
        bool wanted = !checkpoint_is_weights_file(name) || rewrite->request->copy_all;
        if (is_ours(rewrite, name) || !wanted || stat(from, &status) != 0 ||
            !S_ISREG(status.st_mode))
            continue;
        good = copy_file(from, to, error);
        list->name = realloc(list->name, (size_t)(list->count + 1) * sizeof(*list->name));
        CHECK(list->name, EXIT_CODE_HARDWARE, "free host memory", "no host memory for names");
        list->name[list->count++] = strdup(name);
    }
    if (directory)
        closedir(directory);
    if (list->count > 0)
        qsort(list->name, (size_t)list->count, sizeof(*list->name), compare_texts);
    return good || error_set(error, EXIT_CODE_IO, "check its permissions", "cannot read %.300s",
                             rewrite->source.folder);
}

// ---- manifest ----

static bool add_file(const Rewrite *rewrite, const RewriteFolder *folder, Json *files,
                     const char *name, const char *digest, Error *error)
{
    char path[PATH_BYTES], text[DIGEST_TEXT_BYTES];
    struct stat status = {.st_size = 0};
    join(path, folder->staging, name);
    stat(path, &status);
    Json *file = json_set(json_object(), "bytes", json_integer(status.st_size));
    json_set(files, name, file);
    if (!rewrite->request->hash)
        return true;
    if (!digest && !digest_file(path, text, error))
        return false;
    json_set(file, "sha256", json_text(digest ? digest : text));
    return true;
}

static Json *rules_json(const Rewrite *rewrite)
{
    Json *array = json_array();
    const NameRules *rules = rewrite->request->rules;
    for (int i = 0; rules && i < rules->count; i++) {
        const NameRule *rule = &rules->rule[i];
        char recipe[RECIPE_NAME_BYTES];
        Json *row = json_object();
        json_set(row, "pattern",
                 json_text(rule->pattern ? pattern_text(rule->pattern) : "_default"));
        if (!rule->skip)
            recipe_format(&rule->recipe, recipe, sizeof(recipe));
        json_set(row, "recipe", rule->skip ? json_null() : json_text(recipe));
        json_append(array, row);
    }
    return array;
}

static bool write_manifest(const Rewrite *rewrite, const RewriteFolder *folder,
                           const char (*digests)[65], const FileList *others, Error *error)
{
    Json *files = json_object();
    bool good = add_file(rewrite, folder, files, "config.json", NULL, error);
    for (int i = 0; good && i < rewrite->shards; i++)
        good = add_file(rewrite, folder, files, rewrite->shard[i].name, digests[i], error);
    if (good && rewrite->index)
        good = add_file(rewrite, folder, files,
                        rewrite->request->layout == LAYOUT_TORCHAO_BIN
                            ? "pytorch_model.bin.index.json"
                            : "model.safetensors.index.json",
                        NULL, error);
    for (int i = 0; good && i < others->count; i++)
        good = add_file(rewrite, folder, files, others->name[i], NULL, error);
    Json *manifest = json_set(json_object(), "files", files);
    json_set(manifest, "layout", json_text(layout_name(rewrite->request->layout)));
    json_set(manifest, "program", json_text("meshwork"));
    json_set(manifest, "rules", rules_json(rewrite));
    json_set(manifest, "version", json_text(MESHWORK_VERSION));
    char *text = json_print(manifest, true);
    json_destroy(manifest);
    good = good && write_text(folder->staging, manifest_name, text, error);
    free(text);
    return good;
}

// ---- the end ----

static bool sync_folder(const char *path, Error *error)
{
    int descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool good = descriptor >= 0 && (fsync(descriptor) == 0 || errno == EINVAL || errno == EROFS);
    if (descriptor >= 0)
        close(descriptor);
    return good || error_set(error, EXIT_CODE_IO, "check the disk and the file system",
                             "cannot sync the folder %.300s", path);
}

// An old folder of that name changes places with the new one and is then removed.
static bool publish(const RewriteFolder *folder, bool force, Error *error)
{
    char parent[CHECKPOINT_PATH_BYTES];
    snprintf(parent, sizeof(parent), "%s", folder->path);
    bool exchanged = false, good = false;
    if (force && file_exists(folder->path))
        good = exchanged =
            renameat2(AT_FDCWD, folder->staging, AT_FDCWD, folder->path, RENAME_EXCHANGE) == 0;
    else
        good = renameat2(AT_FDCWD, folder->staging, AT_FDCWD, folder->path, RENAME_NOREPLACE) == 0;
    if (!good && (errno == EINVAL || errno == ENOSYS) && !file_exists(folder->path))
        good = rename(folder->staging, folder->path) == 0;
    if (!good)
        return error_set(error, EXIT_CODE_CANT_CREATE, "choose another --out",
                         "cannot rename %.200s to %.200s: %s", folder->staging, folder->path,
                         strerror(errno));
    return sync_folder(dirname(parent), error) &&
           (!exchanged || remove_folder(folder->staging, error));
}

static bool write_json(const RewriteFolder *folder, const char *name, const Json *json,
                       Error *error)
{
    char *text = json_print(json, true);
    bool good = write_text(folder->staging, name, text, error);
    free(text);
    return good;
}

bool rewrite_folder_finish(const Rewrite *rewrite, const RewriteFolder *folder,
                           const char (*digests)[65], Error *error)
{
    FileList others = {0};
    char path[PATH_BYTES];
    const char *index = rewrite->request->layout == LAYOUT_TORCHAO_BIN
                            ? "pytorch_model.bin.index.json"
                            : "model.safetensors.index.json";
    bool good = write_json(folder, "config.json", rewrite->config, error) &&
                (!rewrite->index || write_text(folder->staging, index, rewrite->index, error)) &&
                copy_others(rewrite, folder, &others, error) &&
                write_manifest(rewrite, folder, digests, &others, error);
    for (int i = 0; i < others.count; i++)
        free(others.name[i]);
    free(others.name);
    if (!good)
        return false;
    join(path, folder->staging, plan_name);
    unlink(path);
    return sync_folder(folder->staging, error) && publish(folder, rewrite->request->force, error);
}
