// slice.h -- pieces of somebody else's text, and a pool for the copies that must stay.
#pragma once

#include "harness/base.h"

// Bytes that belong to somebody else; no closing NUL.
typedef struct Slice {
    const char *at;
    size_t bytes;
} Slice;

Slice slice_of(const char *text); // Local
bool slice_is(Slice slice, const char *text);
bool slice_same(Slice a, Slice b);
bool slice_starts(Slice slice, const char *text);
bool slice_ends(Slice slice, const char *text);
// Local. Takes `text` off the front if it stands there.
bool slice_take(Slice *slice, const char *text);
Slice slice_after(Slice slice, size_t bytes); // without its first bytes, at most all of them
Slice slice_until(Slice slice, size_t bytes); // its first bytes, at most all of them
Slice slice_trim(Slice slice);                // without white space at both ends
// Local. Offset of the first occurrence, slice.bytes if there is none.
size_t slice_find(Slice slice, const char *text);
size_t slice_find_char(Slice slice, char c);
// Local. Takes a decimal number off the front; false (and nothing taken) without a digit or beyond
// int64.
bool slice_take_number(Slice *slice, int64_t *value);
// Local. Takes a name off the front: letters, digits, '_', not beginning with a digit. Empty if
// there is none.
Slice slice_take_name(Slice *slice);
// Local. Takes everything up to a comma outside brackets and quotes, and the comma. False at the
// end. So "a, f(b, c), 'x,y'" gives three pieces.
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
        int64_t index;
    } * entries;
    int64_t count, capacity;
} NameMap;
// Local. Adds or replaces; -1 from find when it is not there.
void name_map_put(NameMap *map, const char *name, int64_t index);
int64_t name_map_find(const NameMap *map, Slice name);
void name_map_destroy(NameMap *map);
