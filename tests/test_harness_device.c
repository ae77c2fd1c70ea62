// The CPU as a device, and the promise that a machine or build without CUDA answers with a reason,
// never with a crash.
#include "harness/device.h"
#include "harness/gpu_driver.h"
#include "tests/capture.h"

#include <math.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

static void missing_devices_are_a_reason(void **state)
{
    (void)state;
    char why[DEVICE_TEXT_BYTES] = "untouched";
    assert_int_equal(device_count(DEVICE_CPU, why, sizeof(why)), 1);
    assert_string_equal(why, "");
    int count = device_count(DEVICE_CUDA, why, sizeof(why));
    if (count == 0 && strlen(why) < 5)
        fail_msg("no CUDA device, and the reason is only '%s'", why);
    if (count > 0)
        assert_string_equal(why, "");
    assert_int_equal(device_count(DEVICE_CUDA, NULL, 0), count);
    assert_string_equal(device_kind_name(DEVICE_CPU), "cpu");
    assert_string_equal(device_kind_name(DEVICE_CUDA), "cuda");
}

static void die_select_beyond(void *context)
{
    device_select(DEVICE_CUDA, *(int *)context);
}

// Runs first: where there is a GPU, a child cannot ask for it after its parent did.
static void selecting_what_is_not_there_stops_with_69(void **state)
{
    (void)state;
    int beyond = 1000;
    Captured end = capture(die_select_beyond, &beyond);
    assert_int_equal(end.exit_code, EXIT_CODE_HARDWARE);
    ASSERT_CONTAINS(end.text, "cuda device");
    ASSERT_CONTAINS(end.text, "fix: ");
    device_select(DEVICE_CPU, 0);
}

static void the_cpu_describes_itself(void **state)
{
    (void)state;
    DeviceInfo info = device_info(DEVICE_CPU, 0);
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof(set), &set), 0);
    assert_int_equal(info.processors, CPU_COUNT(&set));
    assert_true(strlen(info.name) > 0);
    ASSERT_CONTAINS(info.driver, "Linux ");
    assert_true(info.memory_bytes > 0);
    if (info.memory_free_bytes > info.memory_bytes)
        fail_msg("%llu bytes free of %llu", (unsigned long long)info.memory_free_bytes,
                 (unsigned long long)info.memory_bytes);
    assert_string_equal(info.uuid, "");
}

static void absent_readings_are_nan_with_a_reason(void **state)
{
    (void)state;
    DeviceState cpu = device_state(DEVICE_CPU, 0);
    assert_true(isnan(cpu.power_w) && isnan(cpu.temperature_c) && isnan(cpu.memory_clock_mhz));
    assert_true(strlen(cpu.reason) > 0);
    if (!isnan(cpu.sm_clock_mhz) && (cpu.sm_clock_mhz < 100 || cpu.sm_clock_mhz > 10000))
        fail_msg("the CPU runs at %g MHz", cpu.sm_clock_mhz);
    // No machine has a GPU at this address, whether or not it has NVML.
    DeviceState gpu = gpu_driver_state("FFFF:FF:1F.7");
    assert_true(isnan(gpu.sm_clock_mhz) && isnan(gpu.power_w));
    assert_true(strlen(gpu.reason) > 0);
    char version[64] = "", why[DEVICE_TEXT_BYTES] = "";
    bool known = gpu_driver_version(version, sizeof(version), why, sizeof(why));
    assert_true(strlen(known ? version : why) > 0);
}

static void memory_is_aligned_whole_and_returned(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {0, 1, 63, 4096, 100001, (4u << 20) - 1, 4u << 20, 9u << 20};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        uint8_t *memory = device_allocate(DEVICE_CPU, sizes[i]);
        if ((uintptr_t)memory % 64 != 0)
            fail_msg("%llu bytes at %p", (unsigned long long)sizes[i], (void *)memory);
        memset(memory, 0xA5, sizes[i]);
        device_free(DEVICE_CPU, memory);
    }
    device_free(DEVICE_CPU, NULL);
}

static long resident_kib(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    long total = 0, resident = 0;
    int fields = fscanf(file, "%ld %ld", &total, &resident);
    fclose(file);
    return fields == 2 ? resident * 4 : -1;
}

static void untouched_memory_costs_nothing(void **state)
{
    (void)state;
    long before = resident_kib();
    uint8_t *memory = device_allocate(DEVICE_CPU, UINT64_C(64) << 30);
    memory[0] = 1;
    memory[(UINT64_C(64) << 30) - 1] = 2;
    long grown_kib = resident_kib() - before;
    device_free(DEVICE_CPU, memory);
    if (grown_kib > 16 << 10) // two huge pages at most, and their tables
        fail_msg("64 GiB with two bytes touched made the process %ld KiB larger", grown_kib);
    long after = resident_kib() - before;
    if (after > 8 << 10)
        fail_msg("%ld KiB stayed after the free", after);
}

static void die_allocate(void *context)
{
    device_allocate(DEVICE_CPU, *(uint64_t *)context);
}

static void impossible_sizes_stop_with_69(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {UINT64_MAX, UINT64_MAX - 4096, UINT64_C(1) << 62};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        uint64_t bytes = sizes[i];
        Captured end = capture(die_allocate, &bytes);
        assert_int_equal(end.exit_code, EXIT_CODE_HARDWARE);
        ASSERT_CONTAINS(end.text, "GiB of host memory to be had");
    }
}

static void die_free_foreign(void *context)
{
    device_free(DEVICE_CPU, (uint8_t *)context + 8192);
}

static void freeing_what_is_not_ours_stops(void **state)
{
    (void)state;
    uint8_t *memory = calloc(4, 4096);
    Captured end = capture(die_free_foreign, memory);
    free(memory);
    assert_int_equal(end.exit_code, EXIT_CODE_INTERNAL);
    ASSERT_CONTAINS(end.text, "block_magic");
}

static void copies_fills_and_events(void **state)
{
    (void)state;
    Stream stream = stream_create(DEVICE_CPU), other = stream_create(DEVICE_CPU);
    Event begin = event_create(DEVICE_CPU), end = event_create(DEVICE_CPU);
    uint8_t from[300], to[300];
    for (int i = 0; i < 300; i++)
        from[i] = (uint8_t)random();
    event_record(&begin, stream);
    device_fill(to, 0x11, sizeof(to), stream);
    device_copy(to + 1, from, 298, stream);
    device_copy(NULL, NULL, 0, stream); // nothing to do is legal
    device_fill(NULL, 1, 0, stream);
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    event_record(&end, stream);
    stream_wait_stream(other, stream);
    stream_wait(other);
    assert_int_equal(to[0], 0x11);
    assert_int_equal(to[299], 0x11);
    assert_memory_equal(to + 1, from, 298);
    double seconds = event_seconds(&begin, &end);
    if (seconds < 0.02 || seconds > 60)
        fail_msg("20 ms of sleep took %g s", seconds);
    event_destroy(&begin);
    event_destroy(&end);
    stream_destroy(stream);
    stream_destroy(other);
}

static void die_graph(void *context)
{
    (void)context;
    graph_begin(stream_create(DEVICE_CPU));
}

static void the_cpu_records_no_graphs(void **state)
{
    (void)state;
    assert_false(graph_supported(DEVICE_CPU));
    Captured end = capture(die_graph, NULL);
    assert_int_equal(end.exit_code, EXIT_CODE_HARDWARE);
    ASSERT_CONTAINS(end.text, "cpu devices record no graphs");
    Graph none = {NULL};
    graph_destroy(&none);
}

int main(void)
{
    srandom((unsigned)time(NULL));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(selecting_what_is_not_there_stops_with_69),
        cmocka_unit_test(missing_devices_are_a_reason),
        cmocka_unit_test(the_cpu_describes_itself),
        cmocka_unit_test(absent_readings_are_nan_with_a_reason),
        cmocka_unit_test(memory_is_aligned_whole_and_returned),
        cmocka_unit_test(untouched_memory_costs_nothing),
        cmocka_unit_test(impossible_sizes_stop_with_69),
        cmocka_unit_test(freeing_what_is_not_ours_stops),
        cmocka_unit_test(copies_fills_and_events),
        cmocka_unit_test(the_cpu_records_no_graphs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
