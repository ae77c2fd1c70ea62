// pickle.h -- a pickle read as data: nothing is imported, nothing is called.
//
// The opcodes that torch.save writes build a tree of values. A call (REDUCE, NEWOBJ) stays a value
// that names what would have been called; names outside the list of what tensors are made of are
// refused where they stand. Source: CPython, Lib/pickletools.py.
#pragma once

#include "harness/check.h"

typedef enum PickleKind {
    PICKLE_NONE,
    PICKLE_BOOLEAN,
    PICKLE_INTEGER,
    PICKLE_REAL,
    PICKLE_TEXT,
    PICKLE_BYTES,
    PICKLE_TUPLE,
    PICKLE_LIST,
    PICKLE_DICT,    // items: key, value, key, value, ...
    PICKLE_GLOBAL,  // text: "module name"
    PICKLE_CALL,    // items[0]: a global; items[1]: the tuple of arguments
    PICKLE_STORAGE, // a persistent id; items[0]: what it is
} PickleKind;

typedef struct PickleValue PickleValue;
struct PickleValue {
    PickleKind kind;
    uint32_t count; // of items, or bytes of text
    uint32_t capacity;
    uint32_t byte; // where in the pickle it began
    union {
        int64_t integer; // booleans too
        double real;
        char *text;
        const PickleValue **items;
    };
    const PickleValue *state; // of a call: what BUILD gave it; NULL if nothing
};

typedef struct Pickle Pickle; // owns all values

// Local. NULL and error 65 with the byte and the rule. Owner: the caller.
Pickle *pickle_parse(const char *path, const uint8_t *data, uint64_t bytes, Error *error);
// Local. Whether a pickle of tensors may speak of a global; both is "module name".
bool pickle_allows(const char *module, const char *name, const char *both);
void pickle_destroy(Pickle *pickle);
const PickleValue *pickle_root(const Pickle *pickle);

// Local. The value of a text key; NULL if there is none or it is no dict.
const PickleValue *pickle_find(const PickleValue *dict, const char *key);
// Local. Item of a tuple, list or call; NULL beyond its end or for other kinds.
const PickleValue *pickle_item(const PickleValue *value, uint32_t index);
bool pickle_is_global(const PickleValue *value, const char *name); // "module name"
// Local. The arguments if it is a call of that global, else NULL.
const PickleValue *pickle_arguments(const PickleValue *value, const char *name);
