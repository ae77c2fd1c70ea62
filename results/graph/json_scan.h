// json_scan.h -- JSON text walked over without being taken apart: where values begin and end, so
// that a file can be passed on byte for byte with something added.
//
// A library that hands out values would change numbers, order and white space, and cannot keep up
// with a disk. What is accepted: RFC 8259, and NaN, Infinity and -Infinity, which Python writes;
// bytes within strings need not be UTF-8. Nesting is limited.
#pragma once

#include "results/graph/slice.h"

enum { JSON_SCAN_DEPTH_MAX = 512 };

typedef enum JsonOutcome {
    JSON_GOOD,
    JSON_MORE, // the text ends within the value
    JSON_BAD,
} JsonOutcome;

typedef struct JsonScan {
    const char *at, *end; // bytes [at, end)
    const char *why;      // of JSON_BAD
} JsonScan;

// Local. Skips white space, then one value. GOOD: `at` stands behind it; BAD: at the byte that
// cannot be there; MORE: anywhere. A number at the very end of the text may go on: MORE.
JsonOutcome json_scan_value(JsonScan *scan);
// Local. The same for a string only; `content` is what stands between the quotes, as written.
JsonOutcome json_scan_string(JsonScan *scan, Slice *content);
void json_scan_space(JsonScan *scan);

// Called for every member of an object, with its key and its value as written. The visitor may
// descend: `scan` stands before the value and is to be left behind it.
typedef JsonOutcome JsonVisit(JsonScan *scan, Slice key, void *context);
// Local. Skips white space, then an object whose values `visit` skips.
JsonOutcome json_scan_members(JsonScan *scan, JsonVisit *visit, void *context);
