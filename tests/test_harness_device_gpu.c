// A CUDA GPU as a device: the same random bytes as the CPU, copies, streams, events, graphs that
// time themselves.
// labels: gpu
#include "harness/arena.h"
#include "harness/random.h"
#include "harness/record.h"
#include "tests/capture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

// What a child process does before this one touches CUDA: a forked child cannot use its parent's
// CUDA context.
static void child_counts(void *context)
{
    char why[DEVICE_TEXT_BYTES];
    (void)context;
    if (device_count(DEVICE_CUDA, why, sizeof(why)) > 0)
        return;
    printf("%s\n", why);
    fflush(stdout);
    _exit(EXIT_CODE_SKIPPED);
}

static void child_allocates_too_much(void *context)
{
    device_allocate(DEVICE_CUDA, *(const uint64_t *)context);
}

static void child_selects_beyond(void *context)
{
    device_select(DEVICE_CUDA, *(const int *)context);
}

static void failures_in_a_child(void **state)
{
    (void)state;
    uint64_t too_much = UINT64_C(1) << 50;
    Captured end = capture(child_allocates_too_much, &too_much);
    assert_int_equal(end.exit_code, EXIT_CODE_HARDWARE);
    ASSERT_CONTAINS(end.text, "no 1048576.000 GiB of GPU memory to be had (");
    int beyond = 1000;
    end = capture(child_selects_beyond, &beyond);
    assert_int_equal(end.exit_code, EXIT_CODE_HARDWARE);
    ASSERT_CONTAINS(end.text, "cuda device 1000 is not there: this process sees ");
}

static void the_gpu_describes_itself(void **state)
{
    (void)state;
    DeviceInfo info = device_info(DEVICE_CUDA, 0);
    print_message("%s, %s, %s, %s, %d.%d, %d SMs\n", info.name, info.uuid, info.pci, info.driver,
                  info.major, info.minor, info.processors);
    assert_int_equal(strncmp(info.uuid, "GPU-", 4), 0);
    assert_int_equal(strlen(info.uuid), 40);
    assert_true(strlen(info.name) > 0 && strlen(info.pci) > 0);
    ASSERT_CONTAINS(info.driver, "runtime ");
    assert_true(info.major >= 9 && info.processors > 0 && info.cache_bytes > 0);
    assert_true(info.memory_free_bytes > 0 && info.memory_free_bytes <= info.memory_bytes);
    DeviceState now = device_state(DEVICE_CUDA, 0);
    print_message("%g MHz, %g MHz, %g W, %g C, throttle %llx, '%s'\n", now.sm_clock_mhz,
                  now.memory_clock_mhz, now.power_w, now.temperature_c,
                  (unsigned long long)now.throttle_mask, now.reason);
    bool complete = !isnan(now.sm_clock_mhz) && !isnan(now.power_w) && !isnan(now.temperature_c);
    assert_true(complete || strlen(now.reason) > 0);
    if (complete)
        assert_true(now.sm_clock_mhz > 50 && now.sm_clock_mhz < 5000 && now.power_w > 1 &&
                    now.temperature_c > 0 && now.temperature_c < 120);
}

// Fills on the GPU and on the CPU, and compares every byte.
static void check_same_fill(RandomFill fill)
{
    uint64_t bytes = dtype_bytes(fill.dtype, (uint64_t)(fill.rows * fill.columns));
    Stream stream = stream_create(DEVICE_CUDA);
    uint8_t *device = device_allocate(DEVICE_CUDA, bytes + 256);
    uint8_t *found = malloc(bytes + 256), *expected = malloc(bytes + 256);
    device_fill(device, 0x5A, bytes + 256, stream);
    memset(expected, 0x5A, bytes + 256);
    fill.out = device;
    random_fill(&fill, stream);
    device_copy(found, device, bytes + 256, stream);
    fill.out = expected;
    random_fill(&fill, stream_create(DEVICE_CPU));
    stream_wait(stream);
    for (uint64_t i = 0; i < bytes + 256; i++)
        if (found[i] != expected[i])
            fail_msg("%s [%lld, %lld] from row %lld, byte %llu: GPU %02X, CPU %02X",
                     dtype_row(fill.dtype)->name, (long long)fill.rows, (long long)fill.columns,
                     (long long)fill.first_row, (unsigned long long)i, found[i], expected[i]);
    free(found);
    free(expected);
    device_free(DEVICE_CUDA, device);
    stream_destroy(stream);
}

static void random_numbers_are_those_of_the_cpu(void **state)
{
    (void)state;
    static const struct {
        int64_t first_row, rows, columns;
    } shapes[] = {
        {0, 1, 1},           {0, 0, 8},          {17, 41, 33},
        {5, 1, 255},         {5, 3, 257},        {0, 2048, 2051},
        {4294967290, 13, 1}, {4194303, 3, 1024}, {INT64_MAX / 4096, 2, 4096},
    };
    uint64_t seed = (uint64_t)time(NULL) * 0x9E3779B97F4A7C15u;
    for (size_t i = 0; i < COUNT_OF(shapes); i++)
        for (int bf16 = 0; bf16 < 2; bf16++)
            check_same_fill((RandomFill){.seed = seed,
                                         .stream = (uint32_t)i,
                                         .first_row = shapes[i].first_row,
                                         .rows = shapes[i].rows,
                                         .columns = shapes[i].columns,
                                         .mean = i % 2 ? 0.3f : 0.0f,
                                         .deviation = i % 3 ? 0.02f : 1.0f,
                                         .dtype = bf16 ? DTYPE_BF16 : DTYPE_F32});
}

enum { WORDS = 1 << 20 };

static void fill_words(uint32_t *words)
{
    for (int i = 0; i < WORDS; i++)
        words[i] = (uint32_t)random();
}

static void copies_go_every_way_and_streams_wait(void **state)
{
    (void)state;
    Arena *pinned = arena_create(MEMORY_PINNED, DEVICE_CUDA);
    Arena *device = arena_create(MEMORY_DEVICE, DEVICE_CUDA);
    uint32_t *from = ARENA_PUSH(pinned, uint32_t, WORDS, MEMORY_SCRATCH);
    uint32_t *to = ARENA_PUSH(pinned, uint32_t, WORDS, MEMORY_SCRATCH);
    uint32_t *a = ARENA_PUSH(device, uint32_t, WORDS, MEMORY_SCRATCH);
    uint32_t *b = ARENA_PUSH(device, uint32_t, WORDS, MEMORY_SCRATCH);
    assert_int_equal((uintptr_t)a % 256 + (uintptr_t)b % 256, 0);
    Stream first = stream_create(DEVICE_CUDA), second = stream_create(DEVICE_CUDA);
    for (int round = 0; round < 20; round++) {
        fill_words(from);
        device_copy(a, from, WORDS * 4, first);
        device_copy(b, a, WORDS * 4, first);
        stream_wait_stream(second, first);
        device_copy(to, b, WORDS * 4, second);
        stream_wait_stream(first, second);
        device_fill(b, 0xEE, WORDS * 4, first);
        stream_wait(second);
        assert_memory_equal(to, from, WORDS * 4);
        stream_wait(first);
    }
    assert_int_equal(arena_peak_bytes(device, MEMORY_SCRATCH), 2 * WORDS * 4);
    arena_destroy(pinned);
    arena_destroy(device);
    stream_destroy(first);
    stream_destroy(second);
}

static void events_measure_what_lies_between(void **state)
{
    (void)state;
    Stream stream = stream_create(DEVICE_CUDA);
    Event begin = event_create(DEVICE_CUDA), end = event_create(DEVICE_CUDA);
    uint64_t bytes = UINT64_C(1) << 30;
    uint8_t *memory = device_allocate(DEVICE_CUDA, bytes);
    device_fill(memory, 1, bytes, stream);
    event_record(&begin, stream);
    for (int i = 0; i < 8; i++)
        device_fill(memory, i, bytes, stream);
    event_record(&end, stream);
    double seconds = event_seconds(&begin, &end);
    // 8 GiB written: faster than 20 TB/s or slower than 20 GB/s would be another quantity.
    if (seconds < 8 * 1.07e9 / 20e12 || seconds > 8 * 1.07e9 / 20e9)
        fail_msg("8 GiB were filled in %g s", seconds);
    device_free(DEVICE_CUDA, memory);
    event_destroy(&begin);
    event_destroy(&end);
    stream_destroy(stream);
}

static void a_graph_replays_and_its_spans_are_timed(void **state)
{
    (void)state;
    Arena *pinned = arena_create(MEMORY_PINNED, DEVICE_CUDA);
    Arena *device = arena_create(MEMORY_DEVICE, DEVICE_CUDA);
    uint32_t *from = ARENA_PUSH(pinned, uint32_t, WORDS, MEMORY_SCRATCH);
    uint32_t *to = ARENA_PUSH(pinned, uint32_t, WORDS, MEMORY_SCRATCH);
    uint32_t *memory = ARENA_PUSH(device, uint32_t, WORDS, MEMORY_SCRATCH);
    Stream stream = stream_create(DEVICE_CUDA), side = stream_create(DEVICE_CUDA);
    Recorder *recorder = recorder_create(stream, 8, true);
    int step = recorder_span(recorder, "step"), up = recorder_span(recorder, "step/up");
    int down = recorder_span(recorder, "step/down");

    assert_true(graph_supported(DEVICE_CUDA));
    fill_words(from);
    memset(to, 0, WORDS * 4);
    graph_begin(stream);
    record_begin(recorder, up);
    device_copy(memory, from, WORDS * 4, stream);
    record_end(recorder, up);
    record_begin(recorder, down);
    stream_wait_stream(side, stream); // a second stream joins the capture and leaves it again
    device_copy(to, memory, WORDS * 4, side);
    stream_wait_stream(stream, side);
    record_end(recorder, down);
    Graph graph = graph_end(stream);
    stream_wait(stream);
    assert_int_equal(to[0] | to[WORDS - 1], 0); // recorded, not run

    for (int i = 0; i < 8; i++) {
        fill_words(from);
        record_begin(recorder, step);
        graph_launch(&graph, stream);
        record_end(recorder, step);
        recorder_iteration(recorder, true);
        assert_memory_equal(to, from, WORDS * 4);
        double whole = recorder_seconds(recorder, step)[i];
        double parts = recorder_seconds(recorder, up)[i] + recorder_seconds(recorder, down)[i];
        if (!(parts > 4e-6 && parts < whole + 2e-6 && whole < 1))
            fail_msg("replay %d: up + down %g s, step %g s", i, parts, whole);
    }
    graph_destroy(&graph);
    assert_null(graph.handle);
    recorder_destroy(recorder);
    stream_destroy(stream);
    stream_destroy(side);
    arena_destroy(pinned);
    arena_destroy(device);
}

static void eager_spans_are_timed(void **state)
{
    (void)state;
    Stream stream = stream_create(DEVICE_CUDA);
    Recorder *recorder = recorder_create(stream, 4, true);
    int step = recorder_span(recorder, "step"), never = recorder_span(recorder, "never");
    uint8_t *memory = device_allocate(DEVICE_CUDA, 256 << 20);
    for (int i = 0; i < 4; i++) {
        record_begin(recorder, step);
        device_fill(memory, i, 256 << 20, stream);
        record_end(recorder, step);
        recorder_iteration(recorder, true);
        double seconds = recorder_seconds(recorder, step)[i];
        if (!(seconds > 1e-5 && seconds < 1))
            fail_msg("256 MiB were filled in %g s", seconds);
        assert_true(isnan(recorder_seconds(recorder, never)[i]));
    }
    device_free(DEVICE_CUDA, memory);
    recorder_destroy(recorder);
    stream_destroy(stream);
}

static void debug_builds_poison_device_memory(void **state)
{
    (void)state;
#ifdef NDEBUG
    skip();
#else
    Arena *device = arena_create(MEMORY_DEVICE, DEVICE_CUDA);
    Stream stream = stream_create(DEVICE_CUDA);
    uint8_t found[1000];
    uint8_t *memory = arena_push(device, sizeof(found), MEMORY_SCRATCH);
    device_copy(found, memory, sizeof(found), stream);
    stream_wait(stream);
    for (size_t i = 0; i < sizeof(found); i++)
        assert_int_equal(found[i], 0xFF);
    stream_destroy(stream);
    arena_destroy(device);
#endif
}

int main(void)
{
    Captured counted = capture(child_counts, NULL);
    if (counted.exit_code == EXIT_CODE_SKIPPED) {
        printf("skipped: %s", counted.text);
        return EXIT_CODE_SKIPPED;
    }
    srandom((unsigned)time(NULL));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(failures_in_a_child), // first: see child_counts
        cmocka_unit_test(the_gpu_describes_itself),
        cmocka_unit_test(random_numbers_are_those_of_the_cpu),
        cmocka_unit_test(copies_go_every_way_and_streams_wait),
        cmocka_unit_test(events_measure_what_lies_between),
        cmocka_unit_test(a_graph_replays_and_its_spans_are_timed),
        cmocka_unit_test(eager_spans_are_timed),
        cmocka_unit_test(debug_builds_poison_device_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
