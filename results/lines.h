// lines.h -- the parts of a Result as JSON objects: what a journal line holds, and what --json
// prints.
//
// Every line has a "kind": header, measurement, check, end. SCHEMA.md lists their members.
#pragma once

#include "results/result.h"

#define LINES_SCHEMA_NAME     "meshwork-journal"
#define LINES_SCHEMA_VERSION  "1.0.0"
#define RESULT_SCHEMA_NAME    "meshwork-run"
#define RESULT_SCHEMA_VERSION "1.0.0"

// Local. Owner: the caller.
Json *line_of_header(const Json *header);
Json *line_of_measurement(const Measurement *measurement);
// The parts of a measurement's line, for --json: its members but the spans; one span with its
// samples.
void json_set_measurement(Json *json, const Measurement *measurement);
Json *json_of_span(const Measurement *measurement, int index);
Json *line_of_check(const ResultCheck *check);
Json *line_of_end(const Result *result);
// Local. What the line says becomes part of the result; kinds of a later minor version are passed
// over. Error 65 when it says something that cannot be: a wrong member, a second header, anything
// after the end.
bool line_read(const Json *line, Result *result, Error *error);

// Local. A second owner's copy of a value. Owner: the caller.
Json *json_copy_of(const Json *json);
// Local. Error 65 unless `version` (semver text) has the major number of `expected`.
bool schema_version_agrees(const char *name, const char *version, const char *expected,
                           Error *error);
