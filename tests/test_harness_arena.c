// Arenas: pieces never overlap and stay put, releases give back exactly what was pushed, peaks,
// poison, refusals.
#include "harness/arena.h"
#include "tests/capture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

static void pieces_are_aligned_and_apart(void **state)
{
    (void)state;
    enum { PIECES = 400 };
    Arena *arena = arena_create(MEMORY_HOST, DEVICE_CPU);
    uint8_t *piece[PIECES];
    uint64_t bytes[PIECES];
    for (int i = 0; i < PIECES; i++) {
        bytes[i] = (uint64_t)(random() % (i % 7 == 0 ? 3000000 : 2000));
        piece[i] = arena_push(arena, bytes[i], MEMORY_SCRATCH);
        if ((uintptr_t)piece[i] % 256 != 0)
            fail_msg("%llu bytes at %p", (unsigned long long)bytes[i], (void *)piece[i]);
        memset(piece[i], i & 0xFF, bytes[i]);
    }
    for (int i = 0; i < PIECES; i++)
        for (uint64_t at = 0; at < bytes[i]; at += 97)
            if (piece[i][at] != (i & 0xFF))
                fail_msg("byte %llu of piece %d is %d", (unsigned long long)at, i, piece[i][at]);
    arena_destroy(arena);
    arena_destroy(NULL);
}

static void empty_pieces_are_valid_pointers(void **state)
{
    (void)state;
    Arena *arena = arena_create(MEMORY_DEVICE, DEVICE_CPU);
    void *first = arena_push(arena, 0, MEMORY_GRADIENTS);
    void *second = arena_push(arena, 0, MEMORY_GRADIENTS);
    assert_non_null(first);
    assert_ptr_not_equal(first, second);
    assert_int_equal(arena_peak_bytes(arena, MEMORY_GRADIENTS), 0);
    arena_destroy(arena);
}

static void releases_return_to_the_mark(void **state)
{
    (void)state;
    Arena *arena = arena_create(MEMORY_PINNED, DEVICE_CPU);
    ArenaMark start = arena_mark(arena); // before there is any chunk
    double *kept = ARENA_PUSH(arena, double, 1000, MEMORY_PARAMETERS);
    kept[999] = 4.5;
    ArenaMark mark = arena_mark(arena);
    void *small = arena_push(arena, 1000, MEMORY_SCRATCH);
    void *large = arena_push(arena, 100 << 20, MEMORY_SCRATCH); // a chunk of its own
    void *after = arena_push(arena, 2000, MEMORY_ACTIVATIONS);
    arena_release(arena, mark);
    assert_ptr_equal(arena_push(arena, 1000, MEMORY_SCRATCH), small);
    assert_ptr_equal(arena_push(arena, 90 << 20, MEMORY_SCRATCH), large); // taken over
    assert_ptr_equal(arena_push(arena, 2000, MEMORY_ACTIVATIONS), after);
    assert_true(kept[999] == 4.5);
    assert_true(arena_peak_bytes(arena, MEMORY_SCRATCH) == 1000 + (100 << 20));
    arena_release(arena, start);
    assert_ptr_equal(arena_push(arena, 8000, MEMORY_PARAMETERS), kept);
    arena_destroy(arena);
}

static void small_pieces_share_chunks_around_large_ones(void **state)
{
    (void)state;
    Arena *arena = arena_create(MEMORY_HOST, DEVICE_CPU);
    uint8_t *before = NULL;
    for (int i = 0; i < 8; i++) {
        uint8_t *small = arena_push(arena, 1000, MEMORY_PARAMETERS);
        arena_push(arena, 65 << 20, MEMORY_PARAMETERS);
        if (before && (small < before || small > before + 4096))
            fail_msg("small piece %d went to %p, the one before is at %p", i, (void *)small,
                     (void *)before);
        before = small;
    }
    arena_destroy(arena);
}

// Random pushes and releases beside a model that only counts.
static void peaks_are_kept_per_category(void **state)
{
    (void)state;
    enum { DEPTH = 12 };
    Arena *arena = arena_create(MEMORY_HOST, DEVICE_CPU);
    uint64_t now[MEMORY_CATEGORIES] = {0}, peak[MEMORY_CATEGORIES] = {0};
    uint64_t saved[DEPTH][MEMORY_CATEGORIES];
    ArenaMark marks[DEPTH];
    int depth = 0;
    for (int i = 0; i < 3000; i++) {
        int what = (int)(random() % 10);
        if (what == 0 && depth < DEPTH) {
            marks[depth] = arena_mark(arena);
            memcpy(saved[depth++], now, sizeof(now));
        } else if (what == 1 && depth > 0) {
            depth -= 1 + (int)(random() % depth); // several levels at once are legal
            arena_release(arena, marks[depth]);
            memcpy(now, saved[depth], sizeof(now));
        } else {
            MemoryCategory category = (MemoryCategory)(random() % MEMORY_CATEGORIES);
            uint64_t bytes = (uint64_t)(random() % 5000);
            arena_push(arena, bytes, category);
            now[category] += bytes;
            if (now[category] > peak[category])
                peak[category] = now[category];
        }
    }
    for (int c = 0; c < MEMORY_CATEGORIES; c++)
        if (arena_peak_bytes(arena, (MemoryCategory)c) != peak[c])
            fail_msg("peak of %s is %llu, expected %llu", memory_category_name((MemoryCategory)c),
                     (unsigned long long)arena_peak_bytes(arena, (MemoryCategory)c),
                     (unsigned long long)peak[c]);
    arena_destroy(arena);
}

static void debug_builds_push_nans(void **state)
{
    (void)state;
#ifdef NDEBUG
    skip(); // release builds do not write what they hand out
#else
    Arena *arena = arena_create(MEMORY_HOST, DEVICE_CPU);
    ArenaMark mark = arena_mark(arena);
    for (int turn = 0; turn < 2; turn++) {
        float *values = ARENA_PUSH(arena, float, 5000, MEMORY_ACTIVATIONS);
        for (int i = 0; i < 5000; i++) {
            if (values[i] == values[i])
                fail_msg("value %d is %g, not NaN", i, (double)values[i]);
            values[i] = 1;
        }
        arena_release(arena, mark);
    }
    arena_destroy(arena);
#endif
}

static void worst_case_buffers_stay_untouched(void **state)
{
    (void)state;
    long pages[2], total;
    Arena *arena = arena_create(MEMORY_DEVICE, DEVICE_CPU);
    for (int i = 0; i < 2; i++) {
        FILE *file = fopen("/proc/self/statm", "r");
        assert_int_equal(fscanf(file, "%ld %ld", &total, &pages[i]), 2);
        fclose(file);
        if (i == 0)
            arena_push(arena, UINT64_C(32) << 30, MEMORY_COMMUNICATION);
    }
    long grown_mib = (pages[1] - pages[0]) * 4 / 1024;
    arena_destroy(arena);
    if (grown_mib > 100) // debug builds poison its first 64 MiB
        fail_msg("an untouched 32 GiB piece took %ld MiB", grown_mib);
}

static void die_push_forbidden(void *context)
{
    arena_forbid(context, true);
    arena_push(context, 4096, MEMORY_ACTIVATIONS);
}

static void pushing_in_a_timed_span_stops_with_70(void **state)
{
    (void)state;
    Arena *arena = arena_create(MEMORY_HOST, DEVICE_CPU);
    Arena *other = arena_create(MEMORY_HOST, DEVICE_CPU);
    snprintf(check_context()->span, CHECK_SPAN_BYTES, "forward/router");
    Captured end = capture(die_push_forbidden, arena);
    check_context()->span[0] = '\0';
    assert_int_equal(end.exit_code, EXIT_CODE_INTERNAL);
    ASSERT_CONTAINS(end.text, "4096 bytes of activations were asked for inside a timed span");
    ASSERT_CONTAINS(end.text, "span forward/router");
    arena_forbid(arena, true);
    arena_push(other, 1, MEMORY_SCRATCH); // per arena
    arena_forbid(arena, false);
    arena_push(arena, 1, MEMORY_SCRATCH);
    arena_destroy(arena);
    arena_destroy(other);
}

static void die_push_impossible(void *context)
{
    arena_push(context, UINT64_C(1) << 61, MEMORY_COMMUNICATION);
}

static void die_push_overflow(void *context)
{
    arena_push(context, UINT64_MAX, MEMORY_COMMUNICATION);
}

static void impossible_pieces_stop_with_69(void **state)
{
    (void)state;
    Arena *arena = arena_create(MEMORY_HOST, DEVICE_CPU);
    assert_int_equal(capture(die_push_impossible, arena).exit_code, EXIT_CODE_HARDWARE);
    Captured end = capture(die_push_overflow, arena);
    assert_int_equal(end.exit_code, EXIT_CODE_HARDWARE);
    ASSERT_CONTAINS(end.text, "asked for communication");
    arena_destroy(arena);
}

static void die_create_without_device(void *context)
{
    (void)context;
    arena_create(MEMORY_DEVICE, DEVICE_KINDS);
}

static void an_arena_needs_its_device(void **state)
{
    (void)state;
    Captured end = capture(die_create_without_device, NULL);
    assert_int_equal(end.exit_code, EXIT_CODE_HARDWARE);
    ASSERT_CONTAINS(end.text, "this build has no unknown devices");
}

static void die_write_behind(void *context)
{
    uint8_t *piece = arena_push(context, 1024, MEMORY_SCRATCH);
    arena_push(context, 1024, MEMORY_SCRATCH);
    *(volatile uint8_t *)(piece + 1024) = 1;
}

static void die_write_released(void *context)
{
    ArenaMark mark = arena_mark(context);
    uint8_t *piece = arena_push(context, 1024, MEMORY_SCRATCH);
    arena_release(context, mark);
    *(volatile uint8_t *)piece = 1;
}

static void the_sanitizer_sees_stray_writes(void **state)
{
    (void)state;
#ifdef __SANITIZE_ADDRESS__
    Arena *arena = arena_create(MEMORY_HOST, DEVICE_CPU);
    ASSERT_CONTAINS(capture(die_write_behind, arena).text, "use-after-poison");
    ASSERT_CONTAINS(capture(die_write_released, arena).text, "use-after-poison");
    arena_destroy(arena);
#else
    (void)die_write_behind, (void)die_write_released;
    skip();
#endif
}

int main(void)
{
    srandom((unsigned)time(NULL));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_are_aligned_and_apart),
        cmocka_unit_test(empty_pieces_are_valid_pointers),
        cmocka_unit_test(releases_return_to_the_mark),
        cmocka_unit_test(small_pieces_share_chunks_around_large_ones),
        cmocka_unit_test(peaks_are_kept_per_category),
        cmocka_unit_test(debug_builds_push_nans),
        cmocka_unit_test(worst_case_buffers_stay_untouched),
        cmocka_unit_test(pushing_in_a_timed_span_stops_with_70),
        cmocka_unit_test(impossible_pieces_stop_with_69),
        cmocka_unit_test(an_arena_needs_its_device),
        cmocka_unit_test(the_sanitizer_sees_stray_writes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
