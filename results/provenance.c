// provenance.c -- the header: everything a reader needs to know to trust the figures, or to measure
// them again.
//
// Nothing is stored that was not asked for by name: the environment passes an allow-list, secrets
// in it are replaced, and of the working folder only its last name is kept, so that a file can be
// handed on.
#include "results/provenance.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "harness/doctor.h"
#include "meshwork_version.h"
#include "results/lines.h"
#include "results/store.h"

enum { TEXT_BYTES = 4096, CPUS_MAX = 8192, CPU_LIST_BYTES = 256, VARIABLE_NAME_BYTES = 256 };

extern char **environ;

// What every rank says about itself.
typedef struct RankRow {
    char host[RUN_HOST_BYTES], cpus[CPU_LIST_BYTES];
    char device_name[DEVICE_TEXT_BYTES], device_uuid[DEVICE_TEXT_BYTES];
    char device_pci[DEVICE_TEXT_BYTES];
    int local_rank, device_kind, device_index, threads;
} RankRow;

const char *provenance_environment(const char *name, const char *value)
{
    static const char *const allowed[] = {"SLURM_", "OMPI_", "NCCL_",  "CUDA_",     "OMP_",
                                          "HDF5_",  "UCX_",  "TORCH_", "OPENBLAS_", "MESHWORK_"};
    static const char *const secret[] = {"TOKEN", "SECRET", "KEY", "PASS",
                                         "AUTH",  "CRED",   "JWT", "COOKIE"};
    bool stored = false;
    for (size_t i = 0; i < COUNT_OF(allowed); i++)
        stored = stored || strncmp(name, allowed[i], strlen(allowed[i])) == 0;
    if (!stored)
        return NULL;
    for (size_t i = 0; i < COUNT_OF(secret); i++)
        if (strcasestr(name, secret[i]))
            return "(redacted)";
    return value;
}

static int by_name(const void *left, const void *right)
{
    return strcmp(*(char *const *)left, *(char *const *)right);
}

static Json *environment_of_process(void)
{
    size_t count = 0;
    while (environ && environ[count])
        count++;
    char **sorted = malloc((count + 1) * sizeof *sorted);
    CHECK(sorted, EXIT_CODE_HARDWARE, "free some memory", "no memory for the environment");
    if (count > 0)
        memcpy(sorted, environ, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_name);
    Json *environment = json_object();
    for (size_t i = 0; i < count; i++) {
        const char *equals = strchr(sorted[i], '=');
        char name[VARIABLE_NAME_BYTES], text[TEXT_BYTES];
        if (!equals || equals - sorted[i] >= VARIABLE_NAME_BYTES)
            continue;
        snprintf(name, sizeof name, "%.*s", (int)(equals - sorted[i]), sorted[i]);
        const char *value = provenance_environment(name, equals + 1);
        if (!value)
            continue;
        snprintf(text, sizeof text, "%s", value);
        json_set(environment, name, json_text(text));
    }
    free(sorted);
    return environment;
}

static Json *slurm_ids(void)
{
    static const char *const ids[][2] = {
        {"job_id", "SLURM_JOB_ID"},
        {"job_name", "SLURM_JOB_NAME"},
        {"step_id", "SLURM_STEP_ID"},
        {"array_job_id", "SLURM_ARRAY_JOB_ID"},
        {"array_task_id", "SLURM_ARRAY_TASK_ID"},
        {"cluster", "SLURM_CLUSTER_NAME"},
        {"nodes", "SLURM_JOB_NODELIST"},
    };
    Json *slurm = json_object();
    for (size_t i = 0; i < COUNT_OF(ids); i++) {
        const char *value = getenv(ids[i][1]);
        if (value)
            json_set(slurm, ids[i][0], json_text(value));
    }
    return slurm;
}

// The cores this process may run on, as taskset writes them: "0-3,8".
static void write_cpu_list(char *text, size_t bytes)
{
    cpu_set_t *set = CPU_ALLOC(CPUS_MAX);
    size_t set_bytes = CPU_ALLOC_SIZE(CPUS_MAX), length = 0;
    text[0] = '\0';
    bool known = set && sched_getaffinity(0, set_bytes, set) == 0;
    for (int cpu = 0; known && cpu < CPUS_MAX && length + 16 < bytes; cpu++) {
        if (!CPU_ISSET_S((size_t)cpu, set_bytes, set))
            continue;
        int last = cpu;
        while (last + 1 < CPUS_MAX && CPU_ISSET_S((size_t)last + 1, set_bytes, set))
            last++;
        const char *comma = length > 0 ? "," : "";
        int written = last > cpu
                          ? snprintf(text + length, bytes - length, "%s%d-%d", comma, cpu, last)
                          : snprintf(text + length, bytes - length, "%s%d", comma, cpu);
        length += (size_t)written;
        cpu = last;
    }
    if (set)
        CPU_FREE(set);
}

static RankRow row_of_rank(const ResultStart *start)
{
    RankRow row = {.local_rank = start->run->local_rank, .threads = start->run->threads};
    snprintf(row.host, sizeof row.host, "%s", start->run->host);
    write_cpu_list(row.cpus, sizeof row.cpus);
    if (start->device) {
        row.device_kind = (int)start->device->kind;
        row.device_index = start->device->index;
        snprintf(row.device_name, sizeof row.device_name, "%s", start->device->name);
        snprintf(row.device_uuid, sizeof row.device_uuid, "%s", start->device->uuid);
        snprintf(row.device_pci, sizeof row.device_pci, "%s", start->device->pci);
    }
    return row;
}

static Json *rank_table(const RankRow *rows, int ranks)
{
    Json *table = json_array();
    for (int rank = 0; rank < ranks; rank++) {
        const RankRow *from = &rows[rank];
        Json *row = json_set(json_object(), "rank", json_integer(rank));
        json_set(row, "host", json_text(from->host));
        json_set(row, "local_rank", json_integer(from->local_rank));
        json_set(row, "device_kind", json_text(device_kind_name((DeviceKind)from->device_kind)));
        json_set(row, "device_index", json_integer(from->device_index));
        json_set(row, "device_name", json_text(from->device_name));
        json_set(row, "device_uuid", json_text(from->device_uuid));
        json_set(row, "device_pci", json_text(from->device_pci));
        json_set(row, "cpus", json_text(from->cpus));
        json_set(row, "threads", json_integer(from->threads));
        json_append(table, row);
    }
    return table;
}

// Whether the user typed the option: --name, --name=value, --no-name, or its letter.
static bool option_was_given(const Option *option, int argc, char *const *argv)
{
    size_t length = strlen(option->name);
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        const char *word = argv[i];
        bool short_form = option->letter && word[0] == '-' && word[1] == option->letter;
        bool negated = option->kind == OPTION_SWITCH && strncmp(word, "--no-", 5) == 0 &&
                       strcmp(word + 5, option->name) == 0;
        bool long_form = strncmp(word, "--", 2) == 0 &&
                         strncmp(word + 2, option->name, length) == 0 &&
                         (word[2 + length] == '\0' || word[2 + length] == '=');
        if (short_form || negated || long_form)
            return true;
    }
    return false;
}

static void add_options(const Run *run, const Option *table, const void *params, Json *options,
                        Json *given)
{
    for (const Option *option = table; option && option->name; option++) {
        if (!option->doc)
            continue;
        char text[TEXT_BYTES] = "";
        option_format(option, params, text, sizeof text);
        json_set(options, option->name, json_text(text));
        if (option_was_given(option, run->argc, run->argv))
            json_append(given, json_text(option->name));
    }
}

static void set_options(Json *header, const ResultStart *start)
{
    Json *options = json_object(), *given = json_array();
    add_options(start->run, start->options, start->params, options, given);
    if (start->run->spmd)
        add_options(start->run, run_option_rows, &start->run->options, options, given);
    json_set(header, "options", options);
    json_set(header, "options_given", given);
}

static void set_time_and_place(Json *header)
{
    char text[TEXT_BYTES] = "", folder[TEXT_BYTES] = "";
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
    json_set(header, "created_utc", json_text(text));
    const char *last = getcwd(folder, sizeof folder) ? strrchr(folder, '/') : NULL;
    json_set(header, "cwd", json_text(last && last[1] ? last + 1 : folder));
}

static void set_build(Json *header)
{
    size_t length = strlen(MESHWORK_GIT_DESCRIBE);
    bool known = strcmp(MESHWORK_GIT_DESCRIBE, "unknown") != 0;
    bool dirty = length > 6 && strcmp(&MESHWORK_GIT_DESCRIBE[length - 6], "-dirty") == 0;
    Json *build = json_set(json_object(), "git", json_text(MESHWORK_GIT_DESCRIBE));
    json_set(build, "git_dirty", known ? json_boolean(dirty) : json_null());
    json_set(build, "compiler", json_text(MESHWORK_COMPILER));
    json_set(build, "flags", json_text(MESHWORK_FLAGS));
    json_set(header, "build", build);
}

static bool copy_member(const char *key, const Json *value, void *object)
{
    json_set(object, key, json_copy_of(value));
    return true;
}

// The libraries that folders to our right wrap (NCCL) add their versions through extra.
static void set_versions(Json *header, const ResultStart *start)
{
    char linked[TEXT_BYTES] = "", mpi[512] = "", hdf5[64] = "", kernel[512] = "";
    struct utsname machine;
    doctor_version(linked, sizeof linked);
    run_mpi_version(mpi, sizeof mpi);
    store_version(hdf5, sizeof hdf5);
    if (uname(&machine) == 0)
        snprintf(kernel, sizeof kernel, "%s %s %s", machine.sysname, machine.release,
                 machine.machine);
    Json *versions = json_set(json_object(), "meshwork", json_text(MESHWORK_VERSION));
    json_set(versions, "linked", json_text(linked));
    json_set(versions, "mpi", json_text(mpi));
    json_set(versions, "driver", json_text(start->device ? start->device->driver : ""));
    json_set(versions, "hdf5", json_text(hdf5));
    json_set(versions, "kernel", json_text(kernel));
    json_each(json_find(start->extra, "versions"), copy_member, versions);
    json_set(header, "versions", versions);
}

static void set_job(Json *header, const Run *run, const RankRow *rows)
{
    const char *restarts = getenv("SLURM_RESTART_COUNT");
    json_set(header, "rank_count", json_integer(run->ranks));
    json_set(header, "host_count", json_integer(run->hosts));
    json_set(header, "restart_count", json_integer(restarts ? strtol(restarts, NULL, 10) : 0));
    json_set(header, "slurm", slurm_ids());
    json_set(header, "ranks", rank_table(rows, run->ranks));
    json_set(header, "environment", environment_of_process());
}

static bool copy_extra(const char *key, const Json *value, void *header)
{
    if (strcmp(key, "versions") == 0)
        return true;
    CHECK(!json_find(header, key), EXIT_CODE_INTERNAL, "give it another name in ResultStart.extra",
          "the header has a member \"%s\" already", key);
    return copy_member(key, value, header);
}

static Json *header_of(const ResultStart *start, const RankRow *rows)
{
    const Run *run = start->run;
    Json *header = json_object(), *argv = json_array();
    json_set(header, "schema_name", json_text(RESULT_SCHEMA_NAME));
    json_set(header, "schema_version", json_text(RESULT_SCHEMA_VERSION));
    json_set(header, "creator", json_text("meshwork " MESHWORK_VERSION " " MESHWORK_GIT_DESCRIBE));
    set_time_and_place(header);
    json_set(header, "uuid", json_text(run->id));
    json_set(header, "command", json_text(run->command));
    for (int i = 0; i < run->argc; i++)
        json_append(argv, json_text(run->argv[i]));
    json_set(header, "reproduce", json_text(check_context()->reproduce));
    json_set(header, "argv", argv);
    json_set(header, "seed", json_integer((int64_t)start->seed));
    set_options(header, start);
    set_build(header);
    set_versions(header, start);
    set_job(header, run, rows);
    json_each(start->extra, copy_extra, header);
    return header;
}

Json *provenance_create(const ResultStart *start)
{
    const Run *run = start->run;
    RankRow mine = row_of_rank(start);
    RankRow *rows = NULL;
    if (run->rank == 0) {
        rows = calloc((size_t)run->ranks, sizeof *rows);
        CHECK(rows, EXIT_CODE_HARDWARE, "free some memory", "no memory for %d ranks", run->ranks);
    }
    run_gather(run, &mine, sizeof mine, rows);
    Json *header = run->rank == 0 ? header_of(start, rows) : NULL;
    free(rows);
    json_destroy(start->extra);
    return header;
}
