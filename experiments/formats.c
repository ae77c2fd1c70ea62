// formats.c -- `meshwork formats`: the number formats as a table; with a name, every code and its
// value, and how each library rounds into it.
//
// Everything shown is read from the format's row (quant/format.h), which the tests hold against
// every float there is.
#include "harness/command.h"
#include "harness/json.h"
#include "quant/format.h"
#include "results/table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CELL_BYTES = 64 };

typedef struct Params {
    bool json;
} Params;

static const Option options[] = {
    {.name = "json",
     .kind = OPTION_SWITCH,
     .offset = offsetof(Params, json),
     .fallback = "no",
     .doc = "one JSON object instead of the tables"},
    {.name = NULL},
};

static void name_fields(const Format *format, char *text, size_t bytes)
{
    if (format->exponent_bits == 0)
        snprintf(text, bytes, "two's complement");
    else
        snprintf(text, bytes, "%s%d%s%.0d", format->sign_bits ? "s1 e" : "e", format->exponent_bits,
                 format->mantissa_bits ? " m" : "", format->mantissa_bits);
}

static void name_number(double value, char *text, size_t bytes)
{
    if (isnan(value))
        snprintf(text, bytes, "-");
    else
        snprintf(text, bytes, "%.6g", value);
}

// The code as its fields, "0 1111 110".
static void name_bits(const Format *format, uint32_t code, char *text)
{
    int ends_after[2] = {format->bits - format->sign_bits, format->mantissa_bits};
    for (int bit = format->bits - 1; bit >= 0; bit--) {
        *text++ = (char)('0' + (code >> bit & 1));
        bool field_ends =
            format->exponent_bits > 0 && bit > 0 && (bit == ends_after[0] || bit == ends_after[1]);
        if (field_ends)
            *text++ = ' ';
    }
    *text = '\0';
}

static void name_nan(const Format *format, const FormatEncoder *encoder, char *text, size_t bytes)
{
    snprintf(text, bytes, "%0*X%s%s", (format->bits + 3) / 4, (unsigned)encoder->nan_code,
             encoder->nan_keeps_sign ? ", sign kept" : "",
             encoder->nan_keeps_payload ? ", payload kept" : "");
}

static void name_rounding(const FormatEncoder *encoder, char *text, size_t bytes)
{
    snprintf(text, bytes, "%s%s", format_rounding_name(encoder->rounding),
             encoder->first_step_up ? ", first step up" : "");
}

static const char *yes_or_no(bool value)
{
    return value ? "yes" : "no";
}

static void print_formats(void)
{
    static const char *const columns[] = {
        "format", ">bits", "fields", ">bias",      ">maximum", ">min normal", ">min subnormal",
        "zero",   "Inf",   "NaN",    "rounded as", "note",     NULL};
    Table *table = table_create(columns);
    for (const Format *const *row = format_table; *row; row++) {
        const Format *format = *row;
        char fields[CELL_BYTES], normal[CELL_BYTES], subnormal[CELL_BYTES], encoders[256] = "";
        name_fields(format, fields, sizeof(fields));
        name_number(format->minimum_normal, normal, sizeof(normal));
        name_number(format->minimum_subnormal, subnormal, sizeof(subnormal));
        for (int i = 0; i < format->encoder_count; i++) {
            size_t length = strlen(encoders);
            snprintf(encoders + length, sizeof(encoders) - length, "%s%s", i ? " " : "",
                     format->encoders[i].name);
        }
        table_cell(table, "%s", format->name);
        table_cell(table, "%d", format->bits);
        table_cell(table, "%s", fields);
        table_cell(table, format->exponent_bits ? "%d" : "-", format->bias);
        table_cell(table, "%.9g", format->maximum);
        table_cell(table, "%s", normal);
        table_cell(table, "%s", subnormal);
        table_cell(table, "%s", yes_or_no(format->has_zero));
        table_cell(table, "%s", yes_or_no(format->has_infinity));
        table_cell(table, "%s", yes_or_no(format->has_nan));
        table_cell(table, "%s", encoders);
        table_cell(table, "%s", format->note);
    }
    table_print(table, stdout);
    table_destroy(table);
}

static void print_encoders(const Format *format)
{
    static const char *const columns[] = {"rounded as", "rounding", "overflow", "infinity",
                                          "NaN",        "who",      NULL};
    Table *table = table_create(columns);
    for (int i = 0; i < format->encoder_count; i++) {
        const FormatEncoder *encoder = &format->encoders[i];
        char rounding[CELL_BYTES], nan[CELL_BYTES];
        name_rounding(encoder, rounding, sizeof(rounding));
        name_nan(format, encoder, nan, sizeof(nan));
        table_cell(table, "%s", encoder->name);
        table_cell(table, "%s", rounding);
        table_cell(table, "%s", format_outcome_name(encoder->overflow));
        table_cell(table, "%s", format_outcome_name(encoder->infinity));
        table_cell(table, "%s", nan);
        table_cell(table, "%s", encoder->note);
    }
    table_print(table, stdout);
    table_destroy(table);
}

static void print_codes(const Format *format)
{
    static const char *const columns[] = {">code", "bits", ">value", ">f32 bits", "kind", NULL};
    Table *table = table_create(columns);
    for (uint32_t code = 0; code < UINT32_C(1) << format->bits; code++) {
        char bits[CELL_BYTES];
        float value = format->decode(code);
        uint32_t f32_bits;
        memcpy(&f32_bits, &value, sizeof(f32_bits));
        name_bits(format, code, bits);
        table_cell(table, "%0*X", (format->bits + 3) / 4, (unsigned)code);
        table_cell(table, "%s", bits);
        table_cell(table, isnan(value) ? "nan" : "%.9g", (double)value);
        table_cell(table, "%08X", (unsigned)f32_bits);
        table_cell(table, "%s", format_kind_name(format_kind(format, code)));
    }
    table_print(table, stdout);
    table_destroy(table);
}

static Json *encoder_json(const Format *format, const FormatEncoder *encoder)
{
    char rounding[CELL_BYTES], nan[CELL_BYTES];
    name_rounding(encoder, rounding, sizeof(rounding));
    name_nan(format, encoder, nan, sizeof(nan));
    Json *row = json_set(json_object(), "name", json_text(encoder->name));
    json_set(row, "rounding", json_text(rounding));
    json_set(row, "overflow", json_text(format_outcome_name(encoder->overflow)));
    json_set(row, "infinity", json_text(format_outcome_name(encoder->infinity)));
    json_set(row, "nan", json_text(nan));
    return json_set(row, "note", json_text(encoder->note));
}

static Json *format_json(const Format *format)
{
    Json *row = json_set(json_object(), "name", json_text(format->name));
    Json *encoders = json_array();
    json_set(row, "bits", json_integer(format->bits));
    json_set(row, "sign_bits", json_integer(format->sign_bits));
    json_set(row, "exponent_bits", json_integer(format->exponent_bits));
    json_set(row, "mantissa_bits", json_integer(format->mantissa_bits));
    json_set(row, "bias", json_integer(format->bias));
    json_set(row, "maximum", json_real(format->maximum));
    json_set(row, "minimum_normal", json_real(format->minimum_normal));
    json_set(row, "minimum_subnormal", json_real(format->minimum_subnormal));
    json_set(row, "has_zero", json_boolean(format->has_zero));
    json_set(row, "has_infinity", json_boolean(format->has_infinity));
    json_set(row, "has_nan", json_boolean(format->has_nan));
    json_set(row, "note", json_text(format->note));
    for (int i = 0; i < format->encoder_count; i++)
        json_append(encoders, encoder_json(format, &format->encoders[i]));
    return json_set(row, "encoders", encoders);
}

static Json *codes_json(const Format *format)
{
    Json *codes = json_array();
    for (uint32_t code = 0; code < UINT32_C(1) << format->bits; code++) {
        Json *row = json_set(json_object(), "code", json_integer(code));
        json_set(row, "value", json_real((double)format->decode(code)));
        json_set(row, "kind", json_text(format_kind_name(format_kind(format, code))));
        json_append(codes, row);
    }
    return codes;
}

// With a format: that one and its codes. Without: all of them.
static void print_json(const Format *only)
{
    Json *report = json_set(json_object(), "schema_name", json_text("meshwork formats"));
    json_set(report, "schema_version", json_text("1.0.0"));
    Json *formats = json_array();
    for (const Format *const *row = format_table; *row; row++)
        if (!only || *row == only)
            json_append(formats, format_json(*row));
    json_set(report, "formats", formats);
    if (only)
        json_set(report, "codes", codes_json(only));
    char *text = json_print(report, true);
    printf("%s\n", text);
    free(text);
    json_destroy(report);
}

static bool find(const OptionPositionals *words, const Format **format, Error *error)
{
    *format = NULL;
    if (words->count == 0)
        return true;
    const char *name = words->value[0], *nearest = format_nearest(name);
    *format = format_find(name);
    char fix[128];
    snprintf(fix, sizeof(fix), "%s%s%s`meshwork formats` lists all formats",
             nearest ? "did you mean " : "", nearest ? nearest : "", nearest ? "? " : "");
    return *format || error_set(error, EXIT_CODE_USAGE, fix, "there is no format '%.100s'", name);
}

static int run(Run *job, const void *params, const OptionPositionals *positionals)
{
    const Format *format;
    Error error = {0};
    find(positionals, &format, &error);
    run_agree(job, &error);
    if (((const Params *)params)->json) {
        print_json(format);
    } else if (!format) {
        print_formats();
    } else {
        printf("%s: %s\n\n", format->name, format->note);
        print_encoders(format);
        printf("\n");
        print_codes(format);
    }
    return EXIT_CODE_GOOD;
}

const Command command_formats = {
    .name = "formats",
    .summary = "the number formats; with a name, every code, its value, and how libraries round",
    .usage = "[NAME]",
    .notes =
        "rounding:  where an f32 between two neighbours goes, by magnitude.\n"
        "overflow:  what becomes of a finite f32 that rounds past the largest value.\n"
        "infinity, NaN: what becomes of them. `meshwork e8m0` compares the conventions of e8m0.",
    .options = options,
    .params_bytes = sizeof(Params),
    .positionals_max = 1,
    .spmd = false,
    .run = run,
};
