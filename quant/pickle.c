// pickle.c -- the machine of a pickle with its stack and memo, but no objects.
//
// Every opcode takes at least one byte and makes at most one value, so memory is bounded by the
// size of the pickle; values that refer to each other in a circle are possible, so whoever walks
// the tree bounds its depth.
#include "quant/pickle.h"

#include "quant/message.h"

#include <stdlib.h>
#include <string.h>

enum {
    VALUES_MAX = 8 << 20,
    BLOCK_VALUES = 1024,
    PICKLE_BYTES_MAX = 256 << 20,
    GLOBAL_BYTES = 256,
};

typedef struct Block {
    struct Block *next;
    int used;
    PickleValue values[BLOCK_VALUES];
} Block;

struct Pickle {
    Block *blocks;
    int64_t count;
    const PickleValue *root;
};

typedef struct Stack {
    PickleValue **values; // NULL is a mark
    size_t count, capacity;
} Stack;

typedef struct Machine {
    const char *path;
    const uint8_t *data, *at, *end;
    uint64_t opcode_byte;
    Pickle *pickle;
    Stack stack, memo;
    bool stopped;
    Error *error;
} Machine;

#define BAD(machine, ...)                                                                          \
    bad_byte((machine)->error, (machine)->path, (machine)->opcode_byte, __VA_ARGS__)

// ---- values ----

static PickleValue *make(Machine *machine, PickleKind kind)
{
    Pickle *pickle = machine->pickle;
    if (pickle->count == VALUES_MAX) {
        BAD(machine, "more than %d values", VALUES_MAX);
        return NULL;
    }
    if (!pickle->blocks || pickle->blocks->used == BLOCK_VALUES) {
        Block *block = calloc(1, sizeof(*block));
        CHECK(block, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a pickle");
        block->next = pickle->blocks;
        pickle->blocks = block;
    }
    PickleValue *value = &pickle->blocks->values[pickle->blocks->used++];
    pickle->count++;
    *value = (PickleValue){.kind = kind, .byte = (uint32_t)machine->opcode_byte};
    return value;
}

static void grow(Stack *stack)
{
    if (stack->count < stack->capacity)
        return;
    stack->capacity = stack->capacity ? 2 * stack->capacity : 64;
    stack->values = realloc(stack->values, stack->capacity * sizeof(*stack->values));
    CHECK(stack->values, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a pickle");
}

static bool push(Machine *machine, PickleValue *value)
{
    grow(&machine->stack);
    machine->stack.values[machine->stack.count++] = value;
    return true;
}

static bool push_new(Machine *machine, PickleValue *value)
{
    return value && push(machine, value);
}

// Values above the last mark; *first is the index of the first.
static bool find_mark(Machine *machine, size_t *first)
{
    for (size_t i = machine->stack.count; i-- > 0;)
        if (!machine->stack.values[i]) {
            *first = i + 1;
            return true;
        }
    return BAD(machine, "no mark on the stack");
}

static PickleValue *pop(Machine *machine)
{
    Stack *stack = &machine->stack;
    if (stack->count == 0 || !stack->values[stack->count - 1]) {
        BAD(machine, "the stack is empty");
        return NULL;
    }
    return stack->values[--stack->count];
}

static PickleValue *top(Machine *machine)
{
    PickleValue *value = pop(machine);
    if (value)
        machine->stack.count++;
    return value;
}

static void append(PickleValue *list, const PickleValue *item)
{
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 4;
        list->items = realloc(list->items, list->capacity * sizeof(*list->items));
        CHECK(list->items, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a pickle");
    }
    list->items[list->count++] = item;
}

// The top n values become a tuple in their place.
static bool make_tuple(Machine *machine, size_t count)
{
    Stack *stack = &machine->stack;
    PickleValue *value = make(machine, PICKLE_TUPLE);
    if (!value)
        return false;
    for (size_t i = 0; i < count; i++)
        if (stack->count < count || !stack->values[stack->count - count + i])
            return BAD(machine, "the stack is empty");
    for (size_t i = 0; i < count; i++)
        append(value, stack->values[stack->count - count + i]);
    stack->count -= count;
    return push(machine, value);
}

// ---- reading ----

static bool take(Machine *machine, uint64_t bytes, const uint8_t **data)
{
    if ((uint64_t)(machine->end - machine->at) < bytes)
        return BAD(machine, "%llu more bytes are needed, %llu are left (truncated?)",
                   (unsigned long long)bytes, (unsigned long long)(machine->end - machine->at));
    *data = machine->at;
    machine->at += bytes;
    return true;
}

static bool take_number(Machine *machine, int bytes, uint64_t *value)
{
    const uint8_t *data = NULL;
    *value = 0;
    if (!take(machine, (uint64_t)bytes, &data))
        return false;
    for (int i = bytes - 1; i >= 0; i--)
        *value = *value << 8 | data[i];
    return true;
}

static bool push_integer(Machine *machine, int64_t integer, PickleKind kind)
{
    PickleValue *value = make(machine, kind);
    if (value)
        value->integer = integer;
    return push_new(machine, value);
}

static bool push_small(Machine *machine, int bytes)
{
    uint64_t number = 0;
    if (!take_number(machine, bytes, &number))
        return false;
    int64_t integer = bytes == 4 ? (int64_t)(int32_t)(uint32_t)number : (int64_t)number;
    return push_integer(machine, integer, PICKLE_INTEGER);
}

// Two's complement of any length; only what fits 64 bits can be a size.
static bool push_long(Machine *machine, int length_bytes)
{
    uint64_t length = 0, integer = 0;
    const uint8_t *data = NULL;
    if (!take_number(machine, length_bytes, &length) || !take(machine, length, &data))
        return false;
    if (length > 8)
        return BAD(machine, "an integer of %llu bytes", (unsigned long long)length);
    for (uint64_t i = length; i-- > 0;)
        integer = integer << 8 | data[i];
    if (length > 0 && length < 8 && data[length - 1] & 0x80)
        integer |= ~UINT64_C(0) << (8 * length);
    return push_integer(machine, (int64_t)integer, PICKLE_INTEGER);
}

static bool push_real(Machine *machine)
{
    const uint8_t *data = NULL;
    uint64_t bits = 0;
    if (!take(machine, 8, &data))
        return false;
    for (int i = 0; i < 8; i++)
        bits = bits << 8 | data[i];
    PickleValue *value = make(machine, PICKLE_REAL);
    if (value)
        memcpy(&value->real, &bits, sizeof(bits));
    return push_new(machine, value);
}

static bool push_text(Machine *machine, int length_bytes, PickleKind kind)
{
    uint64_t length = 0;
    const uint8_t *data = NULL;
    if (!take_number(machine, length_bytes, &length) || !take(machine, length, &data))
        return false;
    if (kind == PICKLE_TEXT && memchr(data, 0, length))
        return BAD(machine, "a text with a NUL in it");
    PickleValue *value = make(machine, kind);
    if (!value)
        return false;
    value->text = malloc(length + 1);
    CHECK(value->text, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a pickle");
    memcpy(value->text, data, length);
    value->text[length] = '\0';
    value->count = (uint32_t)length;
    return push(machine, value);
}

static bool push_global(Machine *machine, const char *module, size_t module_bytes, const char *name,
                        size_t name_bytes)
{
    char both[GLOBAL_BYTES], shown[QUOTED_BYTES];
    if (module_bytes + name_bytes + 2 > sizeof(both))
        return BAD(machine, "a global's name of %zu bytes", module_bytes + name_bytes);
    memcpy(both, module, module_bytes);
    both[module_bytes] = '\0';
    char *second = both + module_bytes + 1;
    memcpy(second, name, name_bytes);
    second[name_bytes] = '\0';
    char *copy = malloc(module_bytes + name_bytes + 2);
    CHECK(copy, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a pickle");
    memcpy(copy, both, module_bytes + name_bytes + 2);
    copy[module_bytes] = ' ';
    if (!pickle_allows(both, second, copy)) {
        BAD(machine, "it asks for \"%s\", which no tensor needs; nothing was run",
            quoted_name(copy, shown));
        free(copy);
        return false;
    }
    PickleValue *value = make(machine, PICKLE_GLOBAL);
    if (!value) {
        free(copy);
        return false;
    }
    value->text = copy;
    value->count = (uint32_t)(module_bytes + name_bytes + 1);
    return push(machine, value);
}

// Two lines of text.
static bool read_global(Machine *machine)
{
    const uint8_t *start = machine->at;
    const uint8_t *middle = memchr(start, '\n', (size_t)(machine->end - start));
    const uint8_t *last =
        middle ? memchr(middle + 1, '\n', (size_t)(machine->end - middle - 1)) : NULL;
    if (!last)
        return BAD(machine, "a global without its two lines");
    if (memchr(start, 0, (size_t)(last - start)))
        return BAD(machine, "a global with a NUL in its name");
    machine->at = last + 1;
    return push_global(machine, (const char *)start, (size_t)(middle - start),
                       (const char *)middle + 1, (size_t)(last - middle - 1));
}

static bool read_stack_global(Machine *machine)
{
    PickleValue *name = pop(machine);
    PickleValue *module = name ? pop(machine) : NULL;
    if (!module)
        return false;
    if (name->kind != PICKLE_TEXT || module->kind != PICKLE_TEXT)
        return BAD(machine, "a global whose name is no text");
    return push_global(machine, module->text, module->count, name->text, name->count);
}

// ---- opcodes with an effect on other values ----

static bool put(Machine *machine, uint64_t index)
{
    PickleValue *value = top(machine);
    Stack *memo = &machine->memo;
    if (!value)
        return false;
    if (index > memo->count) // writers number them one after another
        return BAD(machine, "memo %llu before memo %zu", (unsigned long long)index, memo->count);
    if (index == memo->count) {
        grow(memo);
        memo->count++;
    }
    memo->values[index] = value;
    return true;
}

static bool get(Machine *machine, uint64_t index)
{
    if (index >= machine->memo.count)
        return BAD(machine, "there is no memo %llu", (unsigned long long)index);
    return push(machine, machine->memo.values[index]);
}

static bool read_memo(Machine *machine, int bytes, bool (*use)(Machine *, uint64_t))
{
    uint64_t index = 0;
    return take_number(machine, bytes, &index) && use(machine, index);
}

static bool call(Machine *machine)
{
    PickleValue *arguments = pop(machine);
    PickleValue *callee = arguments ? pop(machine) : NULL;
    if (!callee)
        return false;
    if (callee->kind != PICKLE_GLOBAL || arguments->kind != PICKLE_TUPLE)
        return BAD(machine, "a call of something that is no global, or without a tuple");
    PickleValue *value = make(machine, PICKLE_CALL);
    if (!value)
        return false;
    append(value, callee);
    append(value, arguments);
    return push(machine, value);
}

static bool build(Machine *machine)
{
    PickleValue *state = pop(machine);
    PickleValue *object = state ? top(machine) : NULL;
    if (!object)
        return false;
    if (object->kind != PICKLE_CALL || object->state)
        return BAD(machine, "a state for something that has none");
    object->state = state;
    return true;
}

static bool persistent(Machine *machine)
{
    PickleValue *id = pop(machine);
    PickleValue *value = id ? make(machine, PICKLE_STORAGE) : NULL;
    if (!value)
        return false;
    append(value, id);
    return push(machine, value);
}

// Appends everything from `first` to the list or dict below it.
static bool extend(Machine *machine, size_t first, bool marked, bool dict)
{
    size_t below = first - (marked ? 1 : 0), count = machine->stack.count - first;
    PickleValue *target = below > 0 ? machine->stack.values[below - 1] : NULL;
    bool ordered = target && target->kind == PICKLE_CALL; // an OrderedDict: items are its state
    if (!target || (target->kind != (dict ? PICKLE_DICT : PICKLE_LIST) && !(dict && ordered)))
        return BAD(machine, dict ? "items for something that is no dict"
                                 : "items for something that is no list");
    if (dict && count % 2 != 0)
        return BAD(machine, "a key without a value");
    if (ordered && target->state && target->state->kind != PICKLE_DICT)
        return BAD(machine, "items for something that is no dict");
    if (ordered && !target->state && !(target->state = make(machine, PICKLE_DICT)))
        return false;
    PickleValue *holder = ordered ? (PickleValue *)(uintptr_t)target->state : target;
    for (size_t i = 0; i < count; i++)
        append(holder, machine->stack.values[first + i]);
    machine->stack.count = below;
    return true;
}

static bool extend_marked(Machine *machine, bool dict)
{
    size_t first = 0;
    return find_mark(machine, &first) && extend(machine, first, true, dict);
}

static bool extend_some(Machine *machine, size_t count, bool dict)
{
    Stack *stack = &machine->stack;
    for (size_t i = 1; i <= count; i++)
        if (stack->count < i || !stack->values[stack->count - i])
            return BAD(machine, "the stack is empty");
    return extend(machine, stack->count - count, false, dict);
}

static bool tuple_marked(Machine *machine)
{
    size_t first = 0;
    PickleValue *value;
    if (!find_mark(machine, &first) || !(value = make(machine, PICKLE_TUPLE)))
        return false;
    for (size_t i = first; i < machine->stack.count; i++)
        append(value, machine->stack.values[i]);
    machine->stack.count = first - 1;
    return push(machine, value);
}

static bool stop(Machine *machine)
{
    machine->pickle->root = pop(machine);
    machine->stopped = true;
    return machine->pickle->root != NULL;
}

static bool skip(Machine *machine, int bytes)
{
    const uint8_t *data = NULL;
    return take(machine, (uint64_t)bytes, &data);
}

static bool pop_one(Machine *machine)
{
    if (machine->stack.count == 0)
        return BAD(machine, "the stack is empty");
    machine->stack.count--;
    return true;
}

static bool step_value(Machine *machine, uint8_t opcode)
{
    switch (opcode) {
    case 'N':
        return push_new(machine, make(machine, PICKLE_NONE));
    case 0x88:
    case 0x89:
        return push_integer(machine, opcode == 0x88, PICKLE_BOOLEAN);
    case 'J':
        return push_small(machine, 4);
    case 'K':
    case 'M':
        return push_small(machine, opcode == 'K' ? 1 : 2);
    case 0x8A:
    case 0x8B:
        return push_long(machine, opcode == 0x8A ? 1 : 4);
    case 'G':
        return push_real(machine);
    case 'X':
    case 0x8C:
    case 0x8D:
        return push_text(machine, opcode == 'X' ? 4 : opcode == 0x8C ? 1 : 8, PICKLE_TEXT);
    case 'U':
    case 'C':
        return push_text(machine, 1, PICKLE_BYTES);
    case 'T':
    case 'B':
        return push_text(machine, 4, PICKLE_BYTES);
    case 'c':
        return read_global(machine);
    case 0x93:
        return read_stack_global(machine);
    case ')':
        return push_new(machine, make(machine, PICKLE_TUPLE));
    case ']':
        return push_new(machine, make(machine, PICKLE_LIST));
    case '}':
        return push_new(machine, make(machine, PICKLE_DICT));
    default:
        return BAD(machine, "opcode %02X is not one that tensors need", opcode);
    }
}

static bool step(Machine *machine, uint8_t opcode)
{
    switch (opcode) {
    case 0x80:
        return skip(machine, 1);
    case 0x95:
        return skip(machine, 8);
    case '(':
        return push(machine, NULL);
    case 't':
        return tuple_marked(machine);
    case 0x85:
    case 0x86:
    case 0x87:
        return make_tuple(machine, (size_t)opcode - 0x84);
    case 'q':
    case 'r':
        return read_memo(machine, opcode == 'q' ? 1 : 4, put);
    case 0x94:
        return put(machine, machine->memo.count);
    case 'h':
    case 'j':
        return read_memo(machine, opcode == 'h' ? 1 : 4, get);
    case 'R':
    case 0x81:
        return call(machine);
    case 'b':
        return build(machine);
    case 'Q':
        return persistent(machine);
    case 'a':
        return extend_some(machine, 1, false);
    case 'e':
        return extend_marked(machine, false);
    case 's':
        return extend_some(machine, 2, true);
    case 'u':
        return extend_marked(machine, true);
    case '0':
        return pop_one(machine);
    case '.':
        return stop(machine);
    default:
        return step_value(machine, opcode);
    }
}

Pickle *pickle_parse(const char *path, const uint8_t *data, uint64_t bytes, Error *error)
{
    Machine machine = {.path = path, .data = data, .at = data, .end = data + bytes, .error = error};
    machine.pickle = calloc(1, sizeof(*machine.pickle));
    CHECK(machine.pickle, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a pickle");
    bool good =
        bytes <= PICKLE_BYTES_MAX || BAD(&machine, "%llu bytes, a pickle of tensors has at most %d",
                                         (unsigned long long)bytes, PICKLE_BYTES_MAX);
    while (good && !machine.stopped) {
        machine.opcode_byte = (uint64_t)(machine.at - data);
        if (machine.at == machine.end)
            good = BAD(&machine, "the pickle ends without its stop (truncated?)");
        else
            good = step(&machine, *machine.at++);
    }
    free(machine.stack.values);
    free(machine.memo.values);
    if (!good) {
        pickle_destroy(machine.pickle);
        return NULL;
    }
    return machine.pickle;
}

static bool has_items(const PickleValue *value)
{
    return value->kind == PICKLE_TUPLE || value->kind == PICKLE_LIST ||
           value->kind == PICKLE_DICT || value->kind == PICKLE_CALL ||
           value->kind == PICKLE_STORAGE;
}

void pickle_destroy(Pickle *pickle)
{
    while (pickle->blocks) {
        Block *block = pickle->blocks;
        for (int i = 0; i < block->used; i++) {
            PickleValue *value = &block->values[i];
            if (has_items(value))
                free(value->items);
            else if (value->kind == PICKLE_TEXT || value->kind == PICKLE_BYTES ||
                     value->kind == PICKLE_GLOBAL)
                free(value->text);
        }
        pickle->blocks = block->next;
        free(block);
    }
    free(pickle);
}

const PickleValue *pickle_root(const Pickle *pickle)
{
    return pickle->root;
}

const PickleValue *pickle_find(const PickleValue *dict, const char *key)
{
    for (uint32_t i = 0; dict && dict->kind == PICKLE_DICT && i + 1 < dict->count; i += 2)
        if (dict->items[i]->kind == PICKLE_TEXT && strcmp(dict->items[i]->text, key) == 0)
            return dict->items[i + 1];
    return NULL;
}

const PickleValue *pickle_item(const PickleValue *value, uint32_t index)
{
    return value && has_items(value) && index < value->count ? value->items[index] : NULL;
}

bool pickle_is_global(const PickleValue *value, const char *name)
{
    return value && value->kind == PICKLE_GLOBAL && strcmp(value->text, name) == 0;
}

const PickleValue *pickle_arguments(const PickleValue *value, const char *name)
{
    if (!value || value->kind != PICKLE_CALL || !pickle_is_global(value->items[0], name))
        return NULL;
    return value->items[1];
}
