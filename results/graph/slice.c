// slice.c -- see slice.h. Everything is linear in the bytes looked at: logs have lines of a
// megabyte.
#include "results/graph/slice.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "harness/check.h"

enum {
    PIECE_BYTES_MIN = 1 << 12,
    PIECE_BYTES_MAX = 1 << 22,
    HUGE_PAGE_BYTES = 1 << 21,
    NAME_MAP_START = 64,
    LIST_START = 8
};

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

Slice slice_trim(Slice slice)
{
    while (slice.bytes > 0 && is_space(slice.at[0]))
        slice = slice_after(slice, 1);
    while (slice.bytes > 0 && is_space(slice.at[slice.bytes - 1]))
        slice.bytes--;
    return slice;
}

size_t slice_find(Slice slice, const char *text)
{
    const char *found = slice.bytes ? memmem(slice.at, slice.bytes, text, strlen(text)) : NULL;
    return found ? (size_t)(found - slice.at) : slice.bytes;
}

bool slice_take_number(Slice *slice, int64_t *value)
{
    int64_t number = 0;
    size_t digits = 0;
    for (; digits < slice->bytes; digits++) {
        int digit = slice->at[digits] - '0';
        if (digit < 0 || digit > 9)
            break;
        if (number > (INT64_MAX - digit) / 10)
            return false;
        number = number * 10 + digit;
    }
    if (digits == 0)
        return false;
    *value = number;
    *slice = slice_after(*slice, digits);
    return true;
}

static bool is_name_char(char c, bool first)
{
    return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (!first && c >= '0' && c <= '9');
}

Slice slice_take_name(Slice *slice)
{
    size_t bytes = 0;
    while (bytes < slice->bytes && is_name_char(slice->at[bytes], bytes == 0))
        bytes++;
    Slice name = slice_until(*slice, bytes);
    *slice = slice_after(*slice, bytes);
    return name;
}

// Length of the Python string that begins at slice.at[0], which is a quote; to the end of the slice
// when it is not closed.
static size_t quoted_bytes(Slice slice)
{
    char quote = slice.at[0];
    for (size_t i = 1; i < slice.bytes; i++) {
        if (slice.at[i] == '\\')
            i++;
        else if (slice.at[i] == quote)
            return i + 1;
    }
    return slice.bytes;
}

// Offset of the first `stop` (a comma or a closing bracket) outside brackets and quotes; a closing
// bracket that was not opened here stops too.
static size_t find_outside(Slice slice, char stop)
{
    static const bool special[256] = {
        ['\''] = true, ['"'] = true, ['('] = true, [')'] = true, ['['] = true,
        [']'] = true,  ['{'] = true, ['}'] = true, [','] = true,
    };
    int depth = 0;
    for (size_t i = 0; i < slice.bytes; i++) {
        char c = slice.at[i];
        if (!special[(unsigned char)c])
            continue;
        if (depth == 0 && c == stop)
            return i;
        if (c == '\'' || c == '"')
            i += quoted_bytes(slice_after(slice, i)) - 1;
        else if (c == '(' || c == '[' || c == '{')
            depth++;
        else if (c != ',' && --depth < 0)
            return i;
    }
    return slice.bytes;
}

bool slice_take_item(Slice *list, Slice *item)
{
    Slice rest = slice_trim(*list);
    *item = slice_until(rest, 0);
    if (rest.bytes == 0)
        return false;
    size_t bytes = find_outside(rest, ',');
    *item = slice_trim(slice_until(rest, bytes));
    *list = slice_after(rest, bytes + 1);
    return true;
}

Slice slice_inside(Slice slice, char open)
{
    Slice rest = slice_after(slice, slice_find_char(slice, open));
    rest = slice_after(rest, 1);
    char close = open == '(' ? ')' : open == '[' ? ']' : '}';
    return slice_until(rest, find_outside(rest, close));
}

// ---- pool ----

typedef struct Piece {
    struct Piece *previous;
    size_t used, bytes;
    char text[];
} Piece;

struct Pool {
    Piece *last;
};

static void *taken(void *memory, size_t bytes)
{
    CHECK(memory, EXIT_CODE_HARDWARE, "free memory, or give a smaller log",
          "no memory for %zu bytes of what the log says", bytes);
    return memory;
}

Pool *pool_create(void)
{
    return taken(calloc(1, sizeof(Pool)), sizeof(Pool));
}

void pool_destroy(Pool *pool)
{
    if (!pool)
        return;
    for (Piece *piece = pool->last; piece;) {
        Piece *previous = piece->previous;
        free(piece);
        piece = previous;
    }
    free(pool);
}

// Large pieces on huge pages: a log of gigabytes costs that many page faults less.
static Piece *new_piece(size_t bytes)
{
    if (bytes < PIECE_BYTES_MAX)
        return taken(malloc(bytes), bytes);
    size_t rounded = (bytes + HUGE_PAGE_BYTES - 1) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    Piece *piece = taken(aligned_alloc(HUGE_PAGE_BYTES, rounded), rounded);
    madvise(piece, rounded, MADV_HUGEPAGE);
    return piece;
}

const char *pool_keep(Pool *pool, Slice slice)
{
    size_t needed = slice.bytes + 1;
    if (!pool->last || pool->last->bytes - pool->last->used < needed) {
        size_t bytes = pool->last ? 2 * pool->last->bytes : PIECE_BYTES_MIN;
        bytes = bytes > PIECE_BYTES_MAX ? PIECE_BYTES_MAX : bytes;
        bytes = needed > bytes ? needed : bytes;
        Piece *piece = new_piece(sizeof(Piece) + bytes);
        piece->previous = pool->last;
        piece->used = 0;
        piece->bytes = bytes;
        pool->last = piece;
    }
    char *copy = pool->last->text + pool->last->used;
    if (slice.bytes)
        memcpy(copy, slice.at, slice.bytes);
    copy[slice.bytes] = '\0';
    for (char *nul = copy;
         slice.bytes && (nul = memchr(nul, 0, slice.bytes - (size_t)(nul - copy)));)
        *nul = '?';
    pool->last->used += needed;
    return copy;
}

void *grown(void *items, int64_t count, int64_t *capacity, size_t item_bytes)
{
    if (count == *capacity) {
        *capacity = *capacity ? *capacity * 2 : LIST_START;
        items =
            taken(realloc(items, (size_t)*capacity * item_bytes), (size_t)*capacity * item_bytes);
    }
    memset((char *)items + (size_t)count * item_bytes, 0, item_bytes);
    return items;
}

// ---- names ----

// FNV-1a: short names, no attacker who gains anything but a slow page.
static uint64_t hash_of(Slice name)
{
    uint64_t hash = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < name.bytes; i++)
        hash = (hash ^ (unsigned char)name.at[i]) * UINT64_C(1099511628211);
    return hash ^ hash >> 32;
}

static struct NameMapEntry *entry_of(const NameMap *map, Slice name)
{
    uint64_t mask = (uint64_t)map->capacity - 1;
    for (uint64_t at = hash_of(name) & mask;; at = (at + 1) & mask) {
        struct NameMapEntry *entry = &map->entries[at];
        if (!entry->name || slice_same(name, (Slice){entry->name, entry->bytes}))
            return entry;
    }
}

void name_map_put(NameMap *map, const char *name, int64_t index)
{
    if (2 * (map->count + 1) > map->capacity) {
        NameMap larger = {.capacity = map->capacity ? map->capacity * 2 : NAME_MAP_START};
        size_t bytes = (size_t)larger.capacity * sizeof(*larger.entries);
        larger.entries = taken(calloc(1, bytes), bytes);
        larger.count = map->count;
        for (int64_t i = 0; i < map->capacity; i++)
            if (map->entries[i].name)
                *entry_of(&larger, (Slice){map->entries[i].name, map->entries[i].bytes}) =
                    map->entries[i];
        free(map->entries);
        *map = larger;
    }
    Slice key = slice_of(name);
    struct NameMapEntry *entry = entry_of(map, key);
    map->count += entry->name == NULL;
    *entry = (struct NameMapEntry){name, key.bytes, index};
}

int64_t name_map_find(const NameMap *map, Slice name)
{
    if (map->count == 0)
        return -1;
    const struct NameMapEntry *entry = entry_of(map, name);
    return entry->name ? entry->index : -1;
}

void name_map_destroy(NameMap *map)
{
    free(map->entries);
    *map = (NameMap){NULL, 0, 0};
}
