// fields.c -- the schema's members as data, so that the journal, HDF5 and --json cannot drift
// apart.
#include "results/fields.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#define MEMBER(type, member) offsetof(type, member), sizeof(((type *)NULL)->member)

const Field fields_of_measurement[] = {
    {"name", FIELD_TEXT, MEMBER(Measurement, name), NULL, "name of the measurement"},
    {"ranks", FIELD_INT, MEMBER(Measurement, ranks), "1", "ranks that took part"},
    {"samples", FIELD_INT, MEMBER(Measurement, samples), "1", "timed iterations"},
    {"warmups", FIELD_INT, MEMBER(Measurement, warmups), "1", "untimed iterations before"},
    {"stop_reason", FIELD_TEXT, MEMBER(Measurement, stop_reason), NULL, "why sampling ended"},
    {0},
};

const Field fields_of_state[] = {
    {"sm_clock_mhz", FIELD_REAL, MEMBER(DeviceState, sm_clock_mhz), "MHz", "processor clock"},
    {"memory_clock_mhz", FIELD_REAL, MEMBER(DeviceState, memory_clock_mhz), "MHz", "memory clock"},
    {"power_w", FIELD_REAL, MEMBER(DeviceState, power_w), "W", "power draw"},
    {"temperature_c", FIELD_REAL, MEMBER(DeviceState, temperature_c), "degC", "temperature"},
    {"throttle_mask", FIELD_U64, MEMBER(DeviceState, throttle_mask), "1", "throttle reasons, bits"},
    {"reason", FIELD_TEXT, MEMBER(DeviceState, reason), NULL, "why a value is absent"},
    {0},
};

const Field fields_of_span[] = {
    {"memory_bytes", FIELD_REAL, MEMBER(MeasurementSpan, cost.memory_bytes), "byte",
     "bytes that must pass device memory"},
    {"flops", FIELD_REAL, MEMBER(MeasurementSpan, cost.flops), "1",
     "floating-point operations that must happen"},
    {"wire_bytes", FIELD_REAL, MEMBER(MeasurementSpan, cost.wire_bytes), "byte",
     "bytes that leave the rank over a link"},
    {"logical_bytes", FIELD_REAL, MEMBER(MeasurementSpan, cost.logical_bytes), "byte",
     "bytes of one row per token and expert"},
    {"floor_s", FIELD_REAL, MEMBER(MeasurementSpan, floor_s), "s",
     "time the cost implies at the measured ceilings; 0 = unknown"},
    {0},
};

const Field fields_of_check[] = {
    {"name", FIELD_TEXT, MEMBER(ResultCheck, name), NULL, "what was compared"},
    {"verdict", FIELD_TEXT, MEMBER(ResultCheck, verdict), NULL, "outcome in words"},
    {"good", FIELD_BOOL, MEMBER(ResultCheck, good), NULL, "1 = passed"},
    {"error", FIELD_REAL, MEMBER(ResultCheck, error), "1", "measured error; NaN when bit for bit"},
    {"bound", FIELD_REAL, MEMBER(ResultCheck, bound), "1", "allowed error; NaN when bit for bit"},
    {"detail", FIELD_TEXT, MEMBER(ResultCheck, detail), NULL, "first difference, or figures"},
    {0},
};

static const char *member(const Field *field, const void *object)
{
    return (const char *)object + field->offset;
}

const char *field_text(const Field *field, const void *object)
{
    return member(field, object);
}

int64_t field_integer(const Field *field, const void *object)
{
    const char *from = member(field, object);
    int number = 0;
    uint64_t large = 0;
    bool truth = false;
    switch (field->kind) {
    case FIELD_INT:
        memcpy(&number, from, sizeof number);
        return number;
    case FIELD_U64:
        memcpy(&large, from, sizeof large);
        return (int64_t)large;
    default:
        memcpy(&truth, from, sizeof truth);
        return truth;
    }
}

double field_real(const Field *field, const void *object)
{
    double value;
    memcpy(&value, member(field, object), sizeof value);
    return value;
}

bool field_set_text(const Field *field, void *object, const char *value)
{
    size_t length = strlen(value);
    if (length >= field->bytes)
        return false;
    memcpy((char *)object + field->offset, value, length + 1);
    return true;
}

bool field_set_integer(const Field *field, void *object, int64_t value)
{
    char *to = (char *)object + field->offset;
    int number = (int)value;
    uint64_t large = (uint64_t)value;
    bool truth = value != 0;
    switch (field->kind) {
    case FIELD_INT:
        memcpy(to, &number, sizeof number);
        return value >= 0 && value <= INT_MAX;
    case FIELD_U64:
        memcpy(to, &large, sizeof large);
        return true;
    default:
        memcpy(to, &truth, sizeof truth);
        return value == 0 || value == 1;
    }
}

void field_set_real(const Field *field, void *object, double value)
{
    memcpy((char *)object + field->offset, &value, sizeof value);
}

Json *json_of_double(double value)
{
    if (isinf(value))
        return json_text(value > 0 ? "inf" : "-inf");
    return json_real(value);
}

bool double_of_json(const Json *json, double *value)
{
    const char *text = json_text_of(json);
    if (json_is_number(json) || json_is_null(json))
        *value = json_real_of(json);
    else if (text && strcmp(text, "inf") == 0)
        *value = INFINITY;
    else if (text && strcmp(text, "-inf") == 0)
        *value = -INFINITY;
    else
        return false;
    return true;
}

static Json *field_to_json(const Field *field, const void *object)
{
    switch (field->kind) {
    case FIELD_TEXT:
        return json_text(field_text(field, object));
    case FIELD_REAL:
        return json_of_double(field_real(field, object));
    case FIELD_BOOL:
        return json_boolean(field_integer(field, object) != 0);
    default:
        return json_integer(field_integer(field, object));
    }
}

void fields_to_json(const Field *fields, const void *object, Json *json)
{
    for (; fields->name; fields++)
        json_set(json, fields->name, field_to_json(fields, object));
}

static bool field_from_json(const Field *field, const Json *value, void *object)
{
    double real;
    switch (field->kind) {
    case FIELD_TEXT:
        return json_is_text(value) && field_set_text(field, object, json_text_of(value));
    case FIELD_REAL:
        if (!double_of_json(value, &real))
            return false;
        field_set_real(field, object, real);
        return true;
    case FIELD_BOOL:
        return json_is_boolean(value) && field_set_integer(field, object, json_boolean_of(value));
    default:
        return json_is_integer(value) && field_set_integer(field, object, json_integer_of(value));
    }
}

bool fields_from_json(const Field *fields, const Json *json, void *object, Error *error)
{
    for (; fields->name; fields++) {
        const Json *value = json_find(json, fields->name);
        if (!value || !field_from_json(fields, value, object))
            return error_set(error, EXIT_CODE_DATA, "make the file again, or recover its journal",
                             "the member \"%s\" is %s", fields->name,
                             value ? "of the wrong type or out of range" : "missing");
    }
    return true;
}
