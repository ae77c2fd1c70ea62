// slice.h -- pieces of somebody else's text, and a pool for the copies that must stay.
#pragma once

#include <string.h>

#include "harness/base.h"

// Bytes that belong to somebody else; no closing NUL.
typedef struct Slice {
    const char *at;
    size_t bytes;
} Slice;

// Local, all. Here and not in slice.c so that literals are compared as such: these run for every
// line of a log.
static inline Slice slice_of(const char *text)
{
    return (Slice){text, strlen(text)};
}

static inline bool slice_same(Slice a, Slice b)
{
    return a.bytes == b.bytes && (a.bytes == 0 || memcmp(a.at, b.at, a.bytes) == 0);
}

static inline bool slice_is(Slice slice, const char *text)
{
    return slice_same(slice, slice_of(text));
}

static inline bool slice_starts(Slice slice, const char *text)
{
    size_t bytes = strlen(text);
    return slice.bytes >= bytes && memcmp(slice.at, text, bytes) == 0;
}

static inline bool slice_ends(Slice slice, const char *text)
{
    size_t bytes = strlen(text);
    return slice.bytes >= bytes && memcmp(slice.at + slice.bytes - bytes, text, bytes) == 0;
}

// Without its first bytes, at most all of them.
static inline Slice slice_after(Slice slice, size_t bytes)
{
    size_t skipped = bytes < slice.bytes ? bytes : slice.bytes;
    return skipped ? (Slice){slice.at + skipped, slice.bytes - skipped} : slice; // NULL + 0 is none
}

// Its first bytes, at most all of them.
static inline Slice slice_until(Slice slice, size_t bytes)
{
    return (Slice){slice.at, bytes < slice.bytes ? bytes : slice.bytes};
}

// Takes `text` off the front if it stands there.
static inline bool slice_take(Slice *slice, const char *text)
{
    if (!slice_starts(*slice, text))
        return false;
    *slice = slice_after(*slice, strlen(text));
    return true;
}

// Offset of the first occurrence, slice.bytes if there is none.
static inline size_t slice_find_char(Slice slice, char c)
{
    const char *found = slice.bytes ? memchr(slice.at, c, slice.bytes) : NULL;
    return found ? (size_t)(found - slice.at) : slice.bytes;
}

Slice slice_trim(Slice slice); // without white space at both ends
// Local. Offset of the first occurrence, slice.bytes if there is none.
size_t slice_find(Slice slice, const char *text);
// Local. Takes a decimal number off the front; false (and nothing taken) without a digit or beyond
// int64.
bool slice_take_number(Slice *slice, int64_t *value);
// Local. Takes a name off the front: letters, digits, '_', not beginning with a digit. Empty if
// there is none.
Slice slice_take_name(Slice *slice);
// Local. Takes everything up to a comma outside brackets and quotes, and the comma. False, and an
// empty item, at the end. So "a, f(b, c), 'x,y'" gives three pieces.
bool slice_take_item(Slice *list, Slice *item);
// Local. The inside of the first bracketed part, "[a, (b)] c" gives "a, (b)"; the rest when the
// bracket is not closed; empty when there is none.
Slice slice_inside(Slice slice, char open);

// Strings that live as long as their pool.
typedef struct Pool Pool;
Pool *pool_create(void); // Local. Owner: the caller
void pool_destroy(Pool *pool);
// Local. A copy with a closing NUL; NUL bytes within become '?'.
const char *pool_keep(Pool *pool, Slice slice);

// Local. Makes room for one more item behind `count` and returns the array, which may have moved.
void *grown(void *items, int64_t count, int64_t *capacity, size_t item_bytes);
// GROW(list) for a struct with items, count and capacity: the address of a new, zeroed item.
#define GROW(list)                                                                                 \
    ((list).items = grown((list).items, (list).count, &(list).capacity, sizeof(*(list).items)),    \
     &(list).items[(list).count++])

// Name -> index, for names that outlive the map. Open addressing.
typedef struct NameMap {
    struct NameMapEntry {
        const char *name;
        size_t bytes; // of the name
        int64_t index;
    } * entries;
    int64_t count, capacity;
} NameMap;
// Local. Adds or replaces; -1 from find when it is not there.
void name_map_put(NameMap *map, const char *name, int64_t index);
int64_t name_map_find(const NameMap *map, Slice name);
void name_map_destroy(NameMap *map);
