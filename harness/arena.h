// arena.h -- memory comes in arenas: pushed at set-up, released together, never inside a timed
// span.
//
// An arena takes chunks from its device and hands out aligned pieces; peak bytes are kept per
// category for the report. Chunks of host memory are mapped lazily, so a worst-case buffer that is
// never touched costs no memory.
#pragma once

#include "harness/device.h"

DECLARATIONS_BEGIN

typedef enum MemoryCategory {
    MEMORY_PARAMETERS,
    MEMORY_GRADIENTS,
    MEMORY_OPTIMISER,
    MEMORY_ACTIVATIONS,
    MEMORY_COMMUNICATION,
    MEMORY_SCRATCH,
    MEMORY_CATEGORIES,
} MemoryCategory;

typedef enum MemoryPlace { MEMORY_HOST, MEMORY_PINNED, MEMORY_DEVICE } MemoryPlace;

typedef struct Arena Arena;
typedef struct ArenaMark {
    int64_t pieces; // pushed so far and not released
} ArenaMark;

// Local. MEMORY_DEVICE means memory of `kind` (on the CPU that is host memory). Owner: the caller.
Arena *arena_create(MemoryPlace place, DeviceKind kind);
void arena_destroy(Arena *arena);
// Local. 256-byte aligned, not cleared (debug builds poison it with NaN bytes 0xFF). 0 bytes give a
// valid pointer. Stops with 69 when the device has no more, and with 70 inside a timed span
// (arena_forbid).
void *arena_push(Arena *arena, uint64_t bytes, MemoryCategory category);
ArenaMark arena_mark(const Arena *arena); // Local
void arena_release(Arena *arena,
                   ArenaMark mark); // Local. Everything pushed since the mark is gone; peaks stay
void arena_forbid(Arena *arena, bool forbid); // Local. While true, a push is an error (70)
uint64_t arena_peak_bytes(const Arena *arena, MemoryCategory category); // Local
const char *memory_category_name(MemoryCategory category);              // Local

#define ARENA_PUSH(arena, type, count, category)                                                   \
    ((type *)arena_push(arena, (uint64_t)(count) * sizeof(type), category))

DECLARATIONS_END
