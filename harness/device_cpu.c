// device_cpu.c -- the CPU as a device: work is done when the call returns, events are clock
// readings, memory is mapped.
//
// Memory comes from mmap without reservation, so a worst-case buffer that nobody touches costs
// address space only; large blocks ask for huge pages. Every block is preceded by one page that
// remembers the mapping. Facts about the machine: /proc/cpuinfo, the affinity mask, sysfs (Linux
// kernel, Documentation/ABI/testing/sysfs-devices- system-cpu).
#include "harness/clock.h"
#include "harness/device_operations.h"

#include <ctype.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>

enum { PAGE_BYTES = 4096, HUGE_PAGE_BYTES = 2 << 20, CPUS_MAX = 1 << 16 };

static const uint64_t block_magic =
    0x4D455348424C4F43u; // "MESHBLOC": the page before a block is ours

typedef struct BlockHeader {
    uint64_t magic;
    void *map;
    size_t map_bytes;
} BlockHeader;

static int cpu_count(char *why, size_t why_bytes)
{
    (void)why, (void)why_bytes;
    return 1;
}

static void cpu_select(int index)
{
    (void)index;
}

// The value after "key : " in a text of such lines; false if there is none.
static bool find_line(const char *path, const char *key, char *value, size_t bytes)
{
    FILE *file = fopen(path, "r");
    if (!file)
        return false;
    char line[512];
    bool found = false;
    while (!found && fgets(line, sizeof(line), file)) {
        char *colon = strchr(line, ':');
        if (!colon || strncmp(line, key, strlen(key)) != 0)
            continue;
        const char *text = colon + 1 + strspn(colon + 1, " \t");
        snprintf(value, bytes, "%.*s", (int)strcspn(text, "\n"), text);
        found = true;
    }
    fclose(file);
    return found;
}

static bool read_word(const char *path, char *word, size_t bytes)
{
    FILE *file = fopen(path, "r");
    if (!file)
        return false;
    bool found = fgets(word, (int)bytes, file) != NULL;
    fclose(file);
    if (found)
        word[strcspn(word, "\n")] = '\0';
    return found;
}

// CPUs in the affinity mask, and the first of them. Machines may have more CPUs than a cpu_set_t
// holds.
static int affinity(int *first_cpu)
{
    *first_cpu = 0;
    for (int cpus = 1024; cpus <= CPUS_MAX; cpus *= 4) {
        cpu_set_t *set = CPU_ALLOC((size_t)cpus);
        size_t bytes = CPU_ALLOC_SIZE((size_t)cpus);
        if (!set)
            return 1;
        int count = 0;
        if (sched_getaffinity(0, bytes, set) == 0) {
            count = CPU_COUNT_S(bytes, set);
            for (int cpu = cpus - 1; cpu >= 0; cpu--)
                if (CPU_ISSET_S((size_t)cpu, bytes, set))
                    *first_cpu = cpu;
        }
        CPU_FREE(set);
        if (count > 0)
            return count;
    }
    return 1;
}

// Bytes of the largest data or unified cache of that CPU; 0 when sysfs does not say.
static uint64_t last_level_cache(int cpu)
{
    uint64_t largest = 0;
    for (int index = 0; index < 16; index++) {
        char path[128], word[32];
        snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/cache/index%d/type", cpu,
                 index);
        if (!read_word(path, word, sizeof(word)))
            break;
        if (strcmp(word, "Instruction") == 0)
            continue;
        snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/cache/index%d/size", cpu,
                 index);
        if (!read_word(path, word, sizeof(word)))
            continue;
        char *unit;
        uint64_t size = strtoull(word, &unit, 10);
        size <<= *unit == 'K' ? 10 : *unit == 'M' ? 20 : *unit == 'G' ? 30 : 0;
        if (size > largest)
            largest = size;
    }
    return largest;
}

static uint64_t meminfo_bytes(const char *key)
{
    char value[64];
    if (!find_line("/proc/meminfo", key, value, sizeof(value)))
        return 0;
    return strtoull(value, NULL, 10) * 1024; // the file says kB and means KiB
}

static DeviceInfo cpu_info(int index)
{
    DeviceInfo info = {.kind = DEVICE_CPU, .index = index};
    struct utsname system;
    bool named = uname(&system) == 0;
    if (!find_line("/proc/cpuinfo", "model name", info.name, sizeof(info.name)))
        snprintf(info.name, sizeof(info.name), "%s CPU", named ? system.machine : "unknown");
    if (named)
        snprintf(info.driver, sizeof(info.driver), "Linux %.80s", system.release);
    int first_cpu;
    info.processors = affinity(&first_cpu);
    info.cache_bytes = last_level_cache(first_cpu);
    info.memory_bytes = meminfo_bytes("MemTotal");
    info.memory_free_bytes = meminfo_bytes("MemAvailable");
    return info;
}

static DeviceState cpu_state(int index)
{
    (void)index;
    DeviceState state = {.sm_clock_mhz = NAN,
                         .memory_clock_mhz = NAN,
                         .power_w = NAN,
                         .temperature_c = NAN,
                         .throttle_mask = 0};
    int first_cpu;
    affinity(&first_cpu);
    char path[128], word[32];
    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/cpufreq/scaling_cur_freq",
             first_cpu);
    if (read_word(path, word, sizeof(word)) && isdigit((unsigned char)word[0])) {
        state.sm_clock_mhz = strtod(word, NULL) / 1000.0; // the file is in kHz
        snprintf(state.reason, sizeof(state.reason), "a CPU: clock of its first core only");
    } else {
        snprintf(state.reason, sizeof(state.reason),
                 "a CPU without scaling_cur_freq (virtual machine or no cpufreq driver)");
    }
    return state;
}

static Stream cpu_stream_create(void)
{
    return (Stream){.device = DEVICE_CPU, .handle = NULL};
}

static void cpu_stream_nothing(Stream stream)
{
    (void)stream;
}

static void cpu_stream_wait_stream(Stream stream, Stream other)
{
    (void)stream, (void)other;
}

static bool cpu_stream_is_capturing(Stream stream)
{
    (void)stream;
    return false;
}

static Event cpu_event_create(void)
{
    return (Event){.device = DEVICE_CPU};
}

static void cpu_event_destroy(Event *event)
{
    *event = (Event){.device = DEVICE_CPU};
}

static void cpu_event_record(Event *event, Stream stream)
{
    (void)stream;
    event->host_ns = clock_ns();
}

static bool cpu_event_done(const Event *event)
{
    (void)event;
    return true;
}

static double cpu_event_seconds(const Event *begin, const Event *end)
{
    return (double)(end->host_ns - begin->host_ns) * 1e-9;
}

static void *cpu_allocate(uint64_t bytes)
{
    bool large = bytes >= 2 * HUGE_PAGE_BYTES;
    uint64_t alignment = large ? HUGE_PAGE_BYTES : PAGE_BYTES;
    uint64_t map_bytes = bytes + PAGE_BYTES + alignment;
    void *map = MAP_FAILED;
    if (map_bytes > bytes) // else it went round
        map = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(map != MAP_FAILED, EXIT_CODE_HARDWARE,
          "use smaller sizes or more ranks; see also ulimit -v and vm.overcommit_memory",
          "no %.3f GiB of host memory to be had (%.3f GiB available of %.3f GiB)",
          (double)bytes / (1 << 30), (double)meminfo_bytes("MemAvailable") / (1 << 30),
          (double)meminfo_bytes("MemTotal") / (1 << 30));
    uintptr_t first = (uintptr_t)map + PAGE_BYTES;
    uint8_t *block = (uint8_t *)((first + alignment - 1) / alignment * alignment);
    BlockHeader *header = (BlockHeader *)(block - PAGE_BYTES);
    *header = (BlockHeader){.magic = block_magic, .map = map, .map_bytes = map_bytes};
    if (large)
        madvise(block, bytes, MADV_HUGEPAGE); // a wish: kernels without huge pages say no
    return block;
}

static void cpu_release(void *memory)
{
    BlockHeader header = *(BlockHeader *)((uint8_t *)memory - PAGE_BYTES);
    CHECK_RULE(header.magic == block_magic);
    CHECK_RULE(munmap(header.map, header.map_bytes) == 0);
}

static void cpu_copy(void *to, const void *from, uint64_t bytes, Stream stream)
{
    (void)stream;
    memcpy(to, from, bytes);
}

static void cpu_fill(void *memory, int byte, uint64_t bytes, Stream stream)
{
    (void)stream;
    memset(memory, byte, bytes);
}

static void *cpu_ranges_create(void)
{
    return NULL;
}

static void cpu_ranges_nothing(void *ranges)
{
    (void)ranges;
}

static void cpu_range_push(void *ranges, const char *name)
{
    (void)ranges, (void)name;
}

const DeviceOperations device_operations_cpu = {
    .count = cpu_count,
    .select = cpu_select,
    .info = cpu_info,
    .state = cpu_state,
    .stream_create = cpu_stream_create,
    .stream_destroy = cpu_stream_nothing,
    .stream_wait = cpu_stream_nothing,
    .stream_wait_stream = cpu_stream_wait_stream,
    .stream_is_capturing = cpu_stream_is_capturing,
    .event_create = cpu_event_create,
    .event_destroy = cpu_event_destroy,
    .event_record = cpu_event_record,
    .event_done = cpu_event_done,
    .event_seconds = cpu_event_seconds,
    .allocate = cpu_allocate,
    .release = cpu_release,
    .pinned_allocate = cpu_allocate,
    .pinned_release = cpu_release,
    .copy = cpu_copy,
    .fill = cpu_fill,
    .graphs = false,
    .ranges_create = cpu_ranges_create,
    .ranges_destroy = cpu_ranges_nothing,
    .range_push = cpu_range_push,
    .range_pop = cpu_ranges_nothing,
};
