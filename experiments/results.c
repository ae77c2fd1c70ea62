// results.c -- `meshwork results`: shows a result file, and makes one from the journal of a run
// that did not finish.
//
// A file is known by its first bytes, not by its name: what is no HDF5 is read as a journal.
#include <stdio.h>
#include <string.h>

#include "harness/command.h"
#include "harness/file.h"
#include "results/journal.h"
#include "results/store.h"

enum { PATH_BYTES = 1088 };

typedef struct Params {
    const char *out;
    bool force, json;
} Params;

static const Option options[] = {
    {.name = "out",
     .kind = OPTION_TEXT,
     .offset = offsetof(Params, out),
     .value = "FILE.h5",
     .doc = "recover: the result file to write",
     .letter = 'o'},
    {.name = "force",
     .kind = OPTION_SWITCH,
     .offset = offsetof(Params, force),
     .fallback = "no",
     .doc = "recover: overwrite that file"},
    {.name = "json",
     .kind = OPTION_SWITCH,
     .offset = offsetof(Params, json),
     .fallback = "no",
     .doc = "show: one JSON object instead of the tables"},
    {.name = NULL},
};

// A run that was killed leaves its journal where the result should be: say so.
static void mention_journal(const char *path, Error *error)
{
    char journal[PATH_BYTES];
    journal_path_for(path, journal, sizeof journal);
    if (error->exit_code == EXIT_CODE_NO_INPUT && strcmp(journal, path) != 0 &&
        file_exists(journal))
        snprintf(error->fix, sizeof error->fix,
                 "its run did not finish, but left a journal: meshwork results recover %.80s -o"
                 " %.80s",
                 journal, path);
}

static bool show(const char *path, const Params *params, Error *error)
{
    Result result;
    bool good =
        store_is_file(path) ? store_read(path, &result, error) : journal_read(path, &result, error);
    if (!good) {
        mention_journal(path, error);
        return false;
    }
    result_show(&result, params->json);
    result_destroy(&result);
    return true;
}

static bool recover(const char *path, const Params *params, Error *error)
{
    Result result;
    if (!params->out)
        return error_set(error, EXIT_CODE_USAGE, "add -o FILE.h5",
                         "recover needs the name of the result to write");
    if (!journal_read(path, &result, error))
        return false;
    if (result.note[0])
        check_warn("%s: %s", path, result.note);
    bool good = store_write(&result, params->out, params->force, error);
    if (good)
        printf("%s: %d measurements, %d checks, %s; %s stays\n", params->out,
               result.measurement_count, result.check_count,
               result.complete ? "complete" : "not finished", path);
    result_destroy(&result);
    return good;
}

typedef struct Verb {
    const char *name;
    bool (*act)(const char *path, const Params *params, Error *error);
} Verb;

static const Verb verbs[] = {{"show", show}, {"recover", recover}};

static bool act(const Params *params, const OptionPositionals *words, Error *error)
{
    const char *names[COUNT_OF(verbs) + 1] = {NULL};
    for (size_t i = 0; i < COUNT_OF(verbs); i++)
        names[i] = verbs[i].name;
    if (words->count != 2)
        return error_set(error, EXIT_CODE_USAGE,
                         "meshwork results show FILE, or recover FILE.journal -o FILE.h5",
                         "results takes a verb and one file, not %d words", words->count);
    for (size_t i = 0; i < COUNT_OF(verbs); i++)
        if (strcmp(words->value[0], verbs[i].name) == 0)
            return verbs[i].act(words->value[1], params, error);
    char fix[128];
    const char *nearest = option_nearest(words->value[0], names);
    snprintf(fix, sizeof fix, "%s%s%sthe verbs are show and recover",
             nearest ? "did you mean " : "", nearest ? nearest : "", nearest ? "? " : "");
    return error_set(error, EXIT_CODE_USAGE, fix, "results has no verb '%.100s'", words->value[0]);
}

static int run(Run *job, const void *params, const OptionPositionals *positionals)
{
    Error error = {0};
    act(params, positionals, &error);
    run_agree(job, &error);
    return EXIT_CODE_GOOD;
}

const Command command_results = {
    .name = "results",
    .summary = "show a result file; recover one from the journal of an interrupted run",
    .usage = "show FILE | recover FILE.journal -o FILE.h5",
    .notes = "show reads an HDF5 result or a journal and prints medians with their 95 % interval,\n"
             "noise, spread over ranks, and rates beside the ceilings measured in the same run.\n"
             "recover keeps the journal; remove it yourself.",
    .options = options,
    .params_bytes = sizeof(Params),
    .positionals_max = 2,
    .spmd = false,
    .run = run,
};
