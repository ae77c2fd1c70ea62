// arena.c -- a stack of pieces over a few chunks.
//
// Chunks never move and keep their place in the list. Small pieces share chunks of 64 MiB, a larger
// one has a chunk to itself, which a later large piece may take over once it was released. A
// release walks the stack of pieces backwards, so every chunk gets back the fill it had at the
// mark, wherever the pieces went.
//
// Debug builds write 0xFF into what is pushed: a NaN in every float type, so that a value nobody
// wrote shows up. Under AddressSanitizer a gap behind every piece, and everything released, is
// forbidden ground.
#include "harness/arena.h"

#include "harness/device_operations.h"

#include <stdlib.h>
#include <string.h>

enum { PIECE_ALIGNMENT = 256, CHUNK_BYTES = 64 << 20, MARKED_BYTES_MAX = 64 << 20 };

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
enum { GAP_BYTES = PIECE_ALIGNMENT };
#else
enum { GAP_BYTES = 0 };
#define ASAN_POISON_MEMORY_REGION(memory, bytes)   ((void)(memory), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(memory, bytes) ((void)(memory), (void)(bytes))
#endif

typedef struct Chunk {
    uint8_t *memory;
    uint64_t bytes, used_bytes;
} Chunk;

typedef struct Piece {
    int chunk;
    MemoryCategory category;
    uint64_t asked_bytes;
    uint64_t chunk_used_before;
} Piece;

struct Arena {
    MemoryPlace place;
    DeviceKind kind;
    bool forbidden;
    int chunk_count, chunk_capacity;
    Chunk *chunks;
    int64_t piece_count, piece_capacity;
    Piece *pieces;
    uint64_t now_bytes[MEMORY_CATEGORIES], peak_bytes[MEMORY_CATEGORIES];
};

static const char *const category_names[MEMORY_CATEGORIES] = {
    [MEMORY_PARAMETERS] = "parameters",       [MEMORY_GRADIENTS] = "gradients",
    [MEMORY_OPTIMISER] = "optimiser",         [MEMORY_ACTIVATIONS] = "activations",
    [MEMORY_COMMUNICATION] = "communication", [MEMORY_SCRATCH] = "scratch",
};

const char *memory_category_name(MemoryCategory category)
{
    return (unsigned)category < MEMORY_CATEGORIES ? category_names[category] : "unknown";
}

// The host's own row for host memory, the device's for the other two.
static const DeviceOperations *owner_operations(const Arena *arena)
{
    return device_operations(arena->place == MEMORY_HOST ? DEVICE_CPU : arena->kind);
}

static bool on_host(const Arena *arena)
{
    return arena->place != MEMORY_DEVICE || arena->kind == DEVICE_CPU;
}

// Worst-case buffers stay untouched: of a piece only this much is poisoned or marked for the
// sanitizer.
static uint64_t marked_bytes(uint64_t bytes)
{
    return bytes < MARKED_BYTES_MAX ? bytes : MARKED_BYTES_MAX;
}

// For the sanitizer: a piece of `bytes` was pushed or released that occupies `taken` bytes with the
// gap behind it.
static void open_ground(uint8_t *memory, uint64_t bytes, uint64_t taken)
{
    ASAN_UNPOISON_MEMORY_REGION(memory, marked_bytes(taken));
    if (GAP_BYTES > 0)
        ASAN_POISON_MEMORY_REGION(memory + bytes, taken - bytes);
}

static void close_ground(uint8_t *memory, uint64_t bytes, uint64_t taken)
{
    ASAN_UNPOISON_MEMORY_REGION(memory + bytes, taken - bytes);
    ASAN_POISON_MEMORY_REGION(memory, marked_bytes(taken));
}

Arena *arena_create(MemoryPlace place, DeviceKind kind)
{
    Arena *arena = calloc(1, sizeof(*arena));
    CHECK(arena, EXIT_CODE_HARDWARE, "free host memory", "no host memory for an arena");
    arena->place = place;
    arena->kind = kind;
    owner_operations(arena);
    return arena;
}

void arena_destroy(Arena *arena)
{
    if (!arena)
        return;
    const DeviceOperations *owner = owner_operations(arena);
    arena_release(arena, (ArenaMark){.pieces = 0});
    for (int i = 0; i < arena->chunk_count; i++) {
        const Chunk *chunk = &arena->chunks[i];
        if (on_host(arena))
            ASAN_UNPOISON_MEMORY_REGION(chunk->memory, marked_bytes(chunk->bytes));
        if (arena->place == MEMORY_PINNED)
            owner->pinned_release(chunk->memory);
        else
            owner->release(chunk->memory);
    }
    free(arena->chunks);
    free(arena->pieces);
    free(arena);
}

// Makes room for one more element behind `count` of them.
static void *grown(void *array, int64_t count, int64_t *capacity, size_t element_bytes)
{
    if (count < *capacity)
        return array;
    *capacity = *capacity > 0 ? 2 * *capacity : 64;
    void *larger = realloc(array, (size_t)*capacity * element_bytes);
    CHECK(larger, EXIT_CODE_HARDWARE, "free host memory", "no host memory for %lld arena entries",
          (long long)*capacity);
    return larger;
}

static int add_chunk(Arena *arena, uint64_t bytes)
{
    const DeviceOperations *owner = owner_operations(arena);
    int64_t capacity = arena->chunk_capacity;
    arena->chunks = grown(arena->chunks, arena->chunk_count, &capacity, sizeof(Chunk));
    arena->chunk_capacity = (int)capacity;
    void *memory =
        arena->place == MEMORY_PINNED ? owner->pinned_allocate(bytes) : owner->allocate(bytes);
    arena->chunks[arena->chunk_count] = (Chunk){.memory = memory, .bytes = bytes};
    return arena->chunk_count++;
}

// The first chunk with room, else a new one. Large chunks are for one large piece each.
static int chunk_for(Arena *arena, uint64_t bytes)
{
    bool large = bytes > CHUNK_BYTES;
    for (int i = 0; i < arena->chunk_count; i++) {
        const Chunk *chunk = &arena->chunks[i];
        bool fits = bytes <= chunk->bytes - chunk->used_bytes;
        bool same_kind = large == (chunk->bytes > CHUNK_BYTES);
        if (fits && same_kind && (!large || chunk->used_bytes == 0))
            return i;
    }
    return add_chunk(arena, large ? bytes : CHUNK_BYTES);
}

static void poison(const Arena *arena, void *memory, uint64_t bytes)
{
#ifndef NDEBUG
    Stream stream = {.device = on_host(arena) ? DEVICE_CPU : arena->kind};
    device_fill(memory, 0xFF, on_host(arena) ? marked_bytes(bytes) : bytes, stream);
    stream_wait(stream);
#else
    (void)arena, (void)memory, (void)bytes;
#endif
}

void *arena_push(Arena *arena, uint64_t bytes, MemoryCategory category)
{
    CHECK(!arena->forbidden, EXIT_CODE_INTERNAL, "push it at set-up, before the first timed span",
          "%llu bytes of %s were asked for inside a timed span", (unsigned long long)bytes,
          memory_category_name(category));
    CHECK_RULE((unsigned)category < MEMORY_CATEGORIES);
    CHECK(bytes < (uint64_t)1 << 62, EXIT_CODE_HARDWARE, "use smaller sizes or more ranks",
          "no memory has %llu bytes (asked for %s)", (unsigned long long)bytes,
          memory_category_name(category));
    uint64_t taken = (bytes > 0 ? bytes : 1) + GAP_BYTES;
    taken = (taken + PIECE_ALIGNMENT - 1) / PIECE_ALIGNMENT * PIECE_ALIGNMENT;

    int index = chunk_for(arena, taken);
    arena->pieces = grown(arena->pieces, arena->piece_count, &arena->piece_capacity, sizeof(Piece));
    Chunk *chunk = &arena->chunks[index];
    arena->pieces[arena->piece_count++] = (Piece){.chunk = index,
                                                  .category = category,
                                                  .asked_bytes = bytes,
                                                  .chunk_used_before = chunk->used_bytes};
    uint8_t *memory = chunk->memory + chunk->used_bytes;
    chunk->used_bytes += taken;
    arena->now_bytes[category] += bytes;
    if (arena->now_bytes[category] > arena->peak_bytes[category])
        arena->peak_bytes[category] = arena->now_bytes[category];
    if (on_host(arena))
        open_ground(memory, bytes, taken);
    poison(arena, memory, bytes);
    return memory;
}

ArenaMark arena_mark(const Arena *arena)
{
    return (ArenaMark){.pieces = arena->piece_count};
}

void arena_release(Arena *arena, ArenaMark mark)
{
    CHECK_RULE(mark.pieces >= 0 && mark.pieces <= arena->piece_count);
    while (arena->piece_count > mark.pieces) {
        const Piece *piece = &arena->pieces[--arena->piece_count];
        Chunk *chunk = &arena->chunks[piece->chunk];
        if (on_host(arena))
            close_ground(chunk->memory + piece->chunk_used_before, piece->asked_bytes,
                         chunk->used_bytes - piece->chunk_used_before);
        chunk->used_bytes = piece->chunk_used_before;
        arena->now_bytes[piece->category] -= piece->asked_bytes;
    }
}

void arena_forbid(Arena *arena, bool forbid)
{
    arena->forbidden = forbid;
}

uint64_t arena_peak_bytes(const Arena *arena, MemoryCategory category)
{
    CHECK_RULE((unsigned)category < MEMORY_CATEGORIES);
    return arena->peak_bytes[category];
}
