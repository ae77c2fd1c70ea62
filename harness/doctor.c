// doctor.c -- one probe per thing that can be missing, each with what its absence costs and how to
// get it.
//
// Nothing here starts MPI or needs it to work: the doctor is for the machine where nothing else
// runs. An absent thing is no fault (the program has a way round it); broken is what is there, is
// needed, and does not work.
#include "harness/doctor.h"

#include "harness/device.h"
#include "meshwork_version.h"

#include <ctype.h>
#include <math.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>
#if MESHWORK_HAVE_PAPI
#include <papi.h>
#endif

enum { OUTPUT_BYTES = 2048, LINE_BYTES = 512, MASK_SETS = 8 };
static const double gib = 1024.0 * 1024.0 * 1024.0;

// Versions of libraries that folders further right wall in. They are asked by symbol, so that
// --version names them while the harness includes nobody; a program without those folders leaves
// them out.
void store_version(char *text, size_t bytes) OPTIONAL_SYMBOL;
void comm_versions(char *text, size_t bytes) OPTIONAL_SYMBOL;

PRINTF_LIKE(2, 3)
static void found(DoctorLine *line, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line->found, sizeof(line->found), format, arguments);
    va_end(arguments);
}

PRINTF_LIKE(3, 4)
static void costs(DoctorLine *line, DoctorVerdict verdict, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line->cost, sizeof(line->cost), format, arguments);
    va_end(arguments);
    line->verdict = verdict;
}

// The value behind "key   : value" in a file of /proc, "" if there is none.
static void read_key(const char *path, const char *key, char *value, size_t bytes)
{
    value[0] = '\0';
    FILE *file = fopen(path, "r");
    if (!file)
        return;
    char line[LINE_BYTES];
    while (fgets(line, sizeof(line), file)) {
        size_t length = strlen(key);
        if (strncmp(line, key, length) != 0)
            continue;
        char *start = line + length + strspn(line + length, "\t :");
        start[strcspn(start, "\n")] = '\0';
        snprintf(value, bytes, "%s", start);
        break;
    }
    fclose(file);
}

// What a command prints, "" if it fails or takes longer than 5 s.
static void read_command(const char *command, char *text, size_t bytes)
{
    char guarded[LINE_BYTES];
    snprintf(guarded, sizeof(guarded), "timeout 5 %s 2>&1", command);
    text[0] = '\0';
    FILE *pipe = popen(guarded, "r");
    if (!pipe)
        return;
    size_t got = fread(text, 1, bytes - 1, pipe);
    text[got] = '\0';
    if (pclose(pipe) != 0)
        text[0] = '\0';
}

static bool on_path(const char *program, char *where, size_t bytes)
{
    const char *path = getenv("PATH");
    for (const char *at = path ? path : ""; *at;) {
        size_t length = strcspn(at, ":");
        snprintf(where, bytes, "%.*s/%s", (int)length, at, program);
        if (access(where, X_OK) == 0)
            return true;
        at += length + (at[length] == ':');
    }
    return false;
}

static void look_build(DoctorLine *line)
{
    found(line, "meshwork %s, git %s, %s, %s", MESHWORK_VERSION, MESHWORK_GIT_DESCRIBE,
          MESHWORK_COMPILER, MESHWORK_FLAGS);
    if (strncmp(MESHWORK_FLAGS, "Release", 7) != 0 && strncmp(MESHWORK_FLAGS, "RelWith", 7) != 0)
        costs(line, DOCTOR_WARNING,
              "timings of a build without optimisation mean nothing: build "
              "with cmake --preset release");
}

static void look_cpu(DoctorLine *line)
{
    char model[128], quota_text[64], nodes[32];
    read_key("/proc/cpuinfo", "model name", model, sizeof(model));
    read_key("/sys/fs/cgroup/cpu.max", "", quota_text, sizeof(quota_text));
    read_key("/sys/devices/system/node/online", "", nodes, sizeof(nodes));
    cpu_set_t mask[MASK_SETS];
    memset(mask, 0, sizeof(mask));
    sched_getaffinity(0, sizeof(mask), mask);
    int cores = CPU_COUNT_S(sizeof(mask), mask);
    long long quota = 0, period = 0;
    bool limited = sscanf(quota_text, "%lld %lld", &quota, &period) == 2 && period > 0;
    found(line, "%s, %d of %ld cores in this process's affinity, NUMA nodes %s",
          model[0] ? model : "unknown model", cores, sysconf(_SC_NPROCESSORS_ONLN),
          nodes[0] ? nodes : "unknown");
    if (limited && quota < period * cores)
        costs(line, DOCTOR_WARNING,
              "the container may use %.1f cores at a time, but shows %d: set OMP_NUM_THREADS, or "
              "raise its CPU limit",
              (double)quota / (double)period, cores);
}

static void look_simd(DoctorLine *line)
{
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    bool bf16 = __builtin_cpu_supports("avx512bf16");
    found(line, "avx2+fma %s, avx512 %s, avx512_bf16 %s", avx2 ? "yes" : "no",
          avx512 ? "yes" : "no", bf16 ? "yes" : "no");
    if (!avx2)
        costs(line, DOCTOR_WARNING,
              "CPU products run several times slower: use a machine made after 2013");
#else
    found(line, "not x86-64: what the compiler makes of plain loops");
#endif
}

static void look_memory(DoctorLine *line)
{
    char total[64], available[64];
    read_key("/proc/meminfo", "MemTotal", total, sizeof(total));
    read_key("/proc/meminfo", "MemAvailable", available, sizeof(available));
    double total_gib = strtod(total, NULL) * 1024 / gib;
    double available_gib = strtod(available, NULL) * 1024 / gib;
    found(line, "%.1f GiB, %.1f GiB of it available", total_gib, available_gib);
    if (available_gib < 2)
        costs(line, DOCTOR_WARNING, "large layers will not fit: end other programs");
}

static void look_shm(DoctorLine *line)
{
    struct statvfs space;
    if (statvfs("/dev/shm", &space) != 0) {
        found(line, "no /dev/shm");
        costs(line, DOCTOR_WARNING,
              "MPI and NCCL between ranks of one host fall back to slower "
              "ways: mount a tmpfs there");
        return;
    }
    double size_gib = (double)space.f_blocks * (double)space.f_frsize / gib;
    double free_gib = (double)space.f_bavail * (double)space.f_frsize / gib;
    found(line, "%.2f GiB, %.2f GiB free", size_gib, free_gib);
    if (free_gib < 0.5)
        costs(line, DOCTOR_WARNING,
              "MPI and NCCL share memory through it and may fail to start: "
              "in a container give --shm-size=8g");
}

static void look_mpi(DoctorLine *line)
{
    char version[128], where[256], answer[OUTPUT_BYTES];
    run_mpi_version(version, sizeof(version));
    if (!on_path("mpirun", where, sizeof(where))) {
        found(line, "%.100s, no mpirun on PATH", version);
        costs(line, DOCTOR_ABSENT,
              "one rank only, unless srun starts the job: put the mpirun of "
              "this MPI on PATH (apt install openmpi-bin)");
        return;
    }
    found(line, "%.100s, %.120s", version, where);
    read_command("mpirun --version", answer, sizeof(answer));
    const char *number = version + strcspn(version, "0123456789");
    size_t length = strspn(number, "0123456789.");
    char digits[32];
    snprintf(digits, sizeof(digits), "%.*s", (int)length, number);
    if (answer[0] && !strstr(answer, digits))
        costs(line, DOCTOR_WARNING,
              "mpirun is of another MPI (%.*s): its ranks may each see only themselves; use the "
              "mpirun of %.60s",
              (int)strcspn(answer, "\n") > 80 ? 80 : (int)strcspn(answer, "\n"), answer, version);
}

static void look_launcher(DoctorLine *line)
{
    RunLaunch launch = run_launch();
    if (launch.launcher)
        found(line, "%s, rank %d of %d", launch.launcher, launch.rank, launch.ranks);
    else
        found(line, "none: this process was started by hand");
    if (launch.conflict[0])
        costs(line, DOCTOR_WARNING, "%s: unset the variables that another program left behind",
              launch.conflict);
}

static void look_slurm(DoctorLine *line)
{
    char where[256], kinds[OUTPUT_BYTES];
    if (!on_path("srun", where, sizeof(where))) {
        found(line, "no srun on PATH");
        costs(line, DOCTOR_ABSENT,
              "jobs start with mpirun only; on a cluster: log in to a submit "
              "host, or apt install slurm-client");
        return;
    }
    read_command("srun --mpi=list", kinds, sizeof(kinds));
    for (char *c = kinds; *c; c++)
        *c = isspace((unsigned char)*c) ? ' ' : *c;
    found(line, "%.80s; %.150s", where, kinds[0] ? kinds : "srun --mpi=list does not answer");
    if (!strstr(kinds, "pmix"))
        costs(line, DOCTOR_WARNING,
              "srun cannot start MPI ranks here (no pmix plug-in): use "
              "mpirun inside the allocation");
}

static void look_cuda(DoctorLine *line)
{
    char why[128] = "";
    int count = device_count(DEVICE_CUDA, why, sizeof(why));
    if (count == 0) {
        found(line, "%s", why[0] ? why : "no GPU");
        costs(line, DOCTOR_ABSENT,
              "everything runs on the CPU: needs an NVIDIA GPU, its driver, "
              "and a build with the CUDA toolkit");
        return;
    }
    DeviceInfo info = device_info(DEVICE_CUDA, 0);
    found(line, "%d x %s, %.0f GiB, compute %d.%d, %s", count, info.name,
          (double)info.memory_bytes / gib, info.major, info.minor, info.driver);
}

static void look_nvml(DoctorLine *line)
{
    char why[128] = "";
    if (device_count(DEVICE_CUDA, why, sizeof(why)) == 0) {
        found(line, "no GPU to ask about");
        costs(line, DOCTOR_ABSENT,
              "no clocks, power and throttling beside GPU timings; comes with "
              "the driver");
        return;
    }
    DeviceState state = device_state(DEVICE_CUDA, 0);
    if (isnan(state.sm_clock_mhz)) {
        found(line, "%s", state.reason);
        costs(line, DOCTOR_ABSENT,
              "no clocks, power and throttling beside GPU timings: install "
              "libnvidia-ml of the driver's version");
        return;
    }
    found(line, "SM clock %.0f MHz, %.0f W, %.0f C, throttle mask 0x%llx", state.sm_clock_mhz,
          state.power_w, state.temperature_c, (unsigned long long)state.throttle_mask);
}

#if MESHWORK_HAVE_PAPI
// Counters that are announced but count nothing are common in virtual machines: so a loop of known
// length is counted.
static int count_known_loop(int rounds, long long *instructions)
{
    int set = PAPI_NULL;
    int code = PAPI_create_eventset(&set);
    code = code == PAPI_OK ? PAPI_add_event(set, PAPI_TOT_INS) : code;
    code = code == PAPI_OK ? PAPI_start(set) : code;
    if (code == PAPI_OK) {
        for (volatile int i = 0; i < rounds; i++) {
        }
        code = PAPI_stop(set, instructions);
    }
    return code;
}

static void look_papi(DoctorLine *line)
{
    enum { ROUNDS = 1000000, PER_ROUND_MAX = 20 };
    char level[16];
    read_key("/proc/sys/kernel/perf_event_paranoid", "", level, sizeof(level));
    int version = PAPI_library_init(PAPI_VER_CURRENT);
    long long instructions = 0;
    int code = version == PAPI_VER_CURRENT ? count_known_loop(ROUNDS, &instructions) : version;
    const char *outcome = code == PAPI_OK ? "counters work" : PAPI_strerror(code);
    found(line, "PAPI %d.%d, perf_event_paranoid %s, %s", PAPI_VERSION_MAJOR(PAPI_VERSION),
          PAPI_VERSION_MINOR(PAPI_VERSION), level[0] ? level : "unknown",
          outcome ? outcome : "it does not start");
    PAPI_shutdown();
    if (code == PAPI_EPERM)
        costs(line, DOCTOR_ABSENT,
              "no CPU counters in profiles: sysctl kernel.perf_event_paranoid=2, "
              "in a container --cap-add PERFMON");
    else if (code != PAPI_OK)
        costs(line, DOCTOR_ABSENT,
              "no CPU counters in profiles: this machine (virtual?) offers "
              "none; a bare machine does");
    else if (instructions < ROUNDS || instructions > (long long)ROUNDS * PER_ROUND_MAX)
        costs(line, DOCTOR_WARNING,
              "CPU counters are not to be trusted: a loop of %d rounds "
              "counted %lld instructions",
              ROUNDS, instructions);
}
#else
static void look_papi(DoctorLine *line)
{
    found(line, "this build has no PAPI");
    costs(line, DOCTOR_ABSENT,
          "no CPU counters in profiles: apt install libpapi-dev and build "
          "again");
}
#endif

const DoctorProbe doctor_harness_probes[] = {
    {"build", look_build},       {"cpu", look_cpu},     {"simd", look_simd},
    {"memory", look_memory},     {"shm", look_shm},     {"mpi", look_mpi},
    {"launcher", look_launcher}, {"slurm", look_slurm}, {"cuda", look_cuda},
    {"nvml", look_nvml},         {"papi", look_papi},   {NULL, NULL},
};

static const char *const verdict_names[] = {"good", "absent", "warning", "broken"};

static void print_line(const char *name, const DoctorLine *line)
{
    printf("%-8s %-9s %s\n", verdict_names[line->verdict], name, line->found);
    if (line->cost[0])
        printf("%-8s %-9s   %s\n", "", "", line->cost);
}

int doctor_report(const DoctorProbe *const *tables, int table_count, bool as_json)
{
    char version[1024];
    doctor_version(version, sizeof(version));
    Json *lines = json_array();
    int broken = 0;
    if (!as_json)
        printf("%s\n\n", version);
    for (int table = 0; table < table_count; table++) {
        for (const DoctorProbe *probe = tables[table]; probe->name; probe++) {
            DoctorLine line = {.verdict = DOCTOR_GOOD};
            probe->look(&line);
            broken += line.verdict == DOCTOR_BROKEN;
            if (!as_json)
                print_line(probe->name, &line);
            Json *row = json_set(json_object(), "name", json_text(probe->name));
            json_set(row, "verdict", json_text(verdict_names[line.verdict]));
            json_set(row, "found", json_text(line.found));
            json_append(lines, json_set(row, "cost", json_text(line.cost)));
        }
    }
    Json *report = json_set(json_object(), "schema_name", json_text("meshwork doctor"));
    json_set(report, "schema_version", json_text("1.0.0"));
    json_set(report, "version", json_text(version));
    json_set(report, "broken", json_integer(broken));
    json_set(report, "probes", lines);
    if (as_json) {
        char *text = json_print(report, true);
        printf("%s\n", text);
        free(text);
    }
    json_destroy(report);
    return broken > 0 ? EXIT_CODE_HARDWARE : EXIT_CODE_GOOD;
}

void doctor_version(char *text, size_t bytes)
{
    char libraries[256] = "", storage[128] = "", why[128] = "", cuda[128] = "no CUDA device";
    if (comm_versions)
        comm_versions(libraries, sizeof(libraries));
    else
        run_mpi_version(libraries, sizeof(libraries));
    if (store_version)
        store_version(storage, sizeof(storage)); // a bare number
    if (device_count(DEVICE_CUDA, why, sizeof(why)) > 0)
        snprintf(cuda, sizeof(cuda), "%s", device_info(DEVICE_CUDA, 0).driver);
    snprintf(text, bytes, "meshwork %s (git %s), %s, %s%s%s, %s, %s PAPI", MESHWORK_VERSION,
             MESHWORK_GIT_DESCRIBE, MESHWORK_COMPILER, libraries, storage[0] ? ", HDF5 " : "",
             storage, cuda, MESHWORK_HAVE_PAPI ? "with" : "without");
}
