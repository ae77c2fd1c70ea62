// json.h -- JSON read and written in one place (jansson behind it).
//
// Reading is for files from strangers: depth and size are limited, duplicate keys are errors.
// Writing keeps the order in which keys were set; numbers are written so that they read back to the
// same double; NaN becomes null.
#pragma once

#include "harness/check.h"

// jansson exports functions of these names too: ours get other names at link level, so that neither
// calls the other's.
#define json_object  meshwork_json_object
#define json_array   meshwork_json_array
#define json_integer meshwork_json_integer
#define json_real    meshwork_json_real
#define json_null    meshwork_json_null

typedef struct json_t Json; // jansson's own type, opaque to everyone else

// Local. NULL and an error (65, with line and column) if the text is not one JSON value. Owner: the
// caller.
Json *json_parse(const char *text, uint64_t bytes, Error *error);
void json_destroy(Json *json);

Json *json_object(void);
Json *json_array(void);
Json *json_text(const char *value); // bytes that are not UTF-8 are replaced by U+FFFD
Json *json_integer(int64_t value);
Json *json_real(double value); // NaN and infinities become null
Json *json_boolean(bool value);
Json *json_null(void);
// The setters take over `value` and return `object`/`array`, so that calls can be chained.
Json *json_set(Json *object, const char *key, Json *value);
Json *json_append(Json *array, Json *value);

bool json_is_object(const Json *json);
bool json_is_array(const Json *json);
bool json_is_text(const Json *json);
bool json_is_integer(const Json *json);
bool json_is_number(const Json *json);
bool json_is_boolean(const Json *json);
bool json_is_null(const Json *json);
const Json *json_find(const Json *object, const char *key); // NULL if absent
const char *json_text_of(const Json *json);                 // NULL if it is no text
int64_t json_integer_of(const Json *json);                  // 0 if it is no integer
double json_real_of(const Json *json);                      // NaN if it is no number
bool json_boolean_of(const Json *json);
uint64_t json_count(const Json *array_or_object);
const Json *json_at(const Json *array, uint64_t index);
// Calls visit for every member in file order until it returns false.
void json_each(const Json *object, bool (*visit)(const char *key, const Json *value, void *context),
               void *context);
// Local. A copy with the members of every object in the order of their keys. Owner: the caller
Json *json_sorted(const Json *json);
// Local. One line, or indented by 2. The caller frees it.
char *json_print(const Json *json, bool indented);
