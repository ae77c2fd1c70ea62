// fields.h -- the members of a measurement, a device state, a span's cost and a check, as tables.
//
// One row names a member everywhere it is written: the key in journal lines and in --json, the
// attribute or column in HDF5, the line in SCHEMA.md. Adding a figure to the schema is adding a
// row.
#pragma once

#include "harness/json.h"
#include "results/result.h"

typedef enum FieldKind { FIELD_TEXT, FIELD_INT, FIELD_U64, FIELD_REAL, FIELD_BOOL } FieldKind;

typedef struct Field {
    const char *name;
    FieldKind kind;
    size_t offset, bytes; // of the member; bytes bounds a text
    const char *units;    // of the unit of a number, CF style; NULL for texts and switches
    const char *meaning;  // HDF5 long_name
} Field;

// Each ends with a NULL name.
extern const Field fields_of_measurement[]; // Measurement, without its spans and states
extern const Field fields_of_state[];       // DeviceState
extern const Field fields_of_span[];        // MeasurementSpan, without its name and samples
extern const Field fields_of_check[];       // ResultCheck

// A member as text, whole number or real; which one depends on the kind.
const char *field_text(const Field *field, const void *object);
int64_t field_integer(const Field *field, const void *object); // FIELD_INT, FIELD_U64, FIELD_BOOL
double field_real(const Field *field, const void *object);     // FIELD_REAL
// Local. False when the value does not fit the member (text too long, number out of range).
bool field_set_text(const Field *field, void *object, const char *value);
bool field_set_integer(const Field *field, void *object, int64_t value);
void field_set_real(const Field *field, void *object, double value);

// Local. All rows of a table as members of a JSON object, and back. Reading is strict: every row
// must be there, of the right type and in range, else error 65.
void fields_to_json(const Field *fields, const void *object, Json *json);
bool fields_from_json(const Field *fields, const Json *json, void *object, Error *error);
// Local. A double that JSON cannot write as a number is null (NaN) or the text "inf", "-inf".
Json *json_of_double(double value);
bool double_of_json(const Json *json, double *value);
