// e8m0.c -- `meshwork e8m0`: how torch, OCP, CUDA, torchao and LLVM round an f32 to a power-of-two
// scale, side by side.
//
// An f32 between two powers of two is told by its guard bit (the half), its round bit (the quarter)
// and its sticky bit (anything below): eight cases in each of 256 exponent fields, in which every
// rule that looks at the mantissa from above shows itself. --exhaustive then leaves out the
// argument and tries all 2^32 floats.
// Idea: llvm_e8m0 of vkuzo/pytorch_scripts, which asks LLVM alone.
#include "harness/command.h"
#include "harness/json.h"
#include "quant/format.h"
#include "quant/format_e8m0.h"
#include "quant/format_e8m0_llvm.h"
#include "quant/rounding_reference.h"
#include "results/table.h"

#include <stdio.h>
#include <stdlib.h>

enum { EXPONENTS = 256, CASES = 8, COLUMNS_MAX = 24, CELL_BYTES = 32, NOT_RECORDED = -1 };

typedef struct Params {
    bool every, exhaustive, json;
} Params;

static const Option options[] = {
    {.name = "every",
     .kind = OPTION_SWITCH,
     .offset = offsetof(Params, every),
     .fallback = "no",
     .doc = "all 256 x 8 cases, not ranges of exponents that behave alike"},
    {.name = "exhaustive",
     .kind = OPTION_SWITCH,
     .offset = offsetof(Params, exhaustive),
     .fallback = "no",
     .doc = "check every convention over all 2^32 floats against its definition"},
    {.name = "json",
     .kind = OPTION_SWITCH,
     .offset = offsetof(Params, json),
     .fallback = "no",
     .doc = "one JSON object instead of the tables; always with all 256 x 8 cases"},
    {.name = NULL},
};

static const Format *e8m0(void)
{
    const Format *format = format_find("e8m0");
    CHECK_RULE(format && format->encoder_count > 0);
    return format;
}

// Case 4 g + 2 r + s: guard is mantissa bit 22, round bit 21; sticky stands for all below, here
// bit 0.
static uint32_t case_bits(int exponent, int grs)
{
    return (uint32_t)exponent << 23 | (uint32_t)(grs >> 1) << 21 | (uint32_t)(grs & 1);
}

static int code_of(const Format *format, int encoder, uint32_t f32_bits)
{
    return (int)format->encoders[encoder].encode(format_f32_value(f32_bits));
}

static bool has_llvm(void)
{
    return format_e8m0_llvm_code != NULL;
}

// Of the LLVM that was there when this was built; else as recorded.
static int llvm_code_of(uint32_t f32_bits)
{
    if (has_llvm())
        return format_e8m0_llvm_code(format_f32_value(f32_bits));
    for (const FormatE8m0Record *record = format_e8m0_llvm; record->what; record++)
        if (record->f32_bits == f32_bits)
            return record->code;
    return NOT_RECORDED;
}

// Titles: the given ones, the conventions, LLVM.
static Table *create_table(const Format *format, const char *const *titles, int title_count)
{
    char convention[COLUMNS_MAX][CELL_BYTES];
    const char *columns[COLUMNS_MAX + 1] = {NULL};
    CHECK_RULE(title_count + format->encoder_count + 1 <= COLUMNS_MAX);
    int count = 0;
    for (int i = 0; i < title_count; i++)
        columns[count++] = titles[i];
    for (int i = 0; i < format->encoder_count; i++) {
        snprintf(convention[i], CELL_BYTES, ">%s", format->encoders[i].name);
        columns[count++] = convention[i];
    }
    char llvm[CELL_BYTES] = ">llvm";
    if (has_llvm())
        snprintf(llvm, sizeof(llvm), ">llvm %s", format_e8m0_llvm_version());
    columns[count] = llvm;
    return table_create(columns);
}

// A star where a code is not that of the first convention.
static void code_cells(Table *table, const Format *format, uint32_t f32_bits)
{
    int first = code_of(format, 0, f32_bits), llvm = llvm_code_of(f32_bits);
    for (int i = 0; i < format->encoder_count; i++) {
        int code = code_of(format, i, f32_bits);
        table_cell(table, "%s%02X", code == first ? "" : "*", (unsigned)code);
    }
    if (llvm == NOT_RECORDED)
        table_cell(table, "-");
    else
        table_cell(table, "%s%02X", llvm == first ? "" : "*", (unsigned)llvm);
}

static void print_records(const Format *format)
{
    static const char *const titles[] = {"input", ">f32 bits"};
    Table *table = create_table(format, titles, COUNT_OF(titles));
    for (const FormatE8m0Record *record = format_e8m0_llvm; record->what; record++) {
        table_cell(table, "%s", record->what);
        table_cell(table, "%08X", (unsigned)record->f32_bits);
        code_cells(table, format, record->f32_bits);
    }
    table_print(table, stdout);
    table_destroy(table);
}

static void print_every_case(const Format *format)
{
    static const char *const titles[] = {">exponent", "g r s", ">f32 bits"};
    Table *table = create_table(format, titles, COUNT_OF(titles));
    for (int exponent = 0; exponent < EXPONENTS; exponent++)
        for (int grs = 0; grs < CASES; grs++) {
            table_cell(table, "%d", exponent);
            table_cell(table, "%d %d %d", grs >> 2, grs >> 1 & 1, grs & 1);
            table_cell(table, "%08X", (unsigned)case_bits(exponent, grs));
            code_cells(table, format, case_bits(exponent, grs));
        }
    table_print(table, stdout);
    table_destroy(table);
}

// Code minus exponent field: 0 is down, 1 is up.
static int step_of(const Format *format, int encoder, int exponent, int grs)
{
    return code_of(format, encoder, case_bits(exponent, grs)) - exponent;
}

static bool behave_alike(const Format *format, int exponent, int other)
{
    for (int grs = 0; grs < CASES; grs++)
        for (int i = 0; i < format->encoder_count; i++)
            if (step_of(format, i, exponent, grs) != step_of(format, i, other, grs))
                return false;
    return true;
}

// What LLVM was seen to do in this case at the exponents of the range: one step if it was always
// the same.
static void llvm_cell(Table *table, int first, int last, int grs, int torch_step)
{
    int records = 0, low = 0, high = 0;
    for (int exponent = first; exponent <= last; exponent++) {
        int code = llvm_code_of(case_bits(exponent, grs));
        if (code == NOT_RECORDED)
            continue;
        int step = code - exponent;
        low = records == 0 || step < low ? step : low;
        high = records == 0 || step > high ? step : high;
        records++;
    }
    if (records == 0)
        table_cell(table, "-");
    else if (low != high)
        table_cell(table, "*E%+d..%+d (%d)", low, high, records);
    else
        table_cell(table, "%sE%+d (%d)", low == torch_step ? "" : "*", low, records);
}

static void print_range(Table *table, const Format *format, int first, int last)
{
    char exponents[CELL_BYTES];
    snprintf(exponents, sizeof(exponents), first == last ? "%d" : "%d..%d", first, last);
    for (int grs = 0; grs < CASES; grs++) {
        int torch_step = step_of(format, 0, first, grs);
        table_cell(table, "%s", exponents);
        table_cell(table, "%d %d %d", grs >> 2, grs >> 1 & 1, grs & 1);
        for (int i = 0; i < format->encoder_count; i++) {
            int step = step_of(format, i, first, grs);
            table_cell(table, "%sE%+d", step == torch_step ? "" : "*", step);
        }
        llvm_cell(table, first, last, grs, torch_step);
    }
}

static void print_ranges(const Format *format)
{
    static const char *const titles[] = {">exponents", "g r s"};
    Table *table = create_table(format, titles, COUNT_OF(titles));
    for (int first = 0, last; first < EXPONENTS; first = last + 1) {
        for (last = first; last + 1 < EXPONENTS && behave_alike(format, first, last + 1);)
            last++;
        print_range(table, format, first, last);
    }
    table_print(table, stdout);
    table_destroy(table);
}

static void check_all(const Format *format, RoundingCheck *checks)
{
    for (int i = 0; i < format->encoder_count; i++) {
        RoundingReference *reference = rounding_reference_create(format, &format->encoders[i]);
        checks[i] = rounding_reference_check(reference, 0, ROUNDING_BLOCKS);
        rounding_reference_destroy(reference);
    }
}

static void print_checks(const Format *format, const RoundingCheck *checks)
{
    static const char *const columns[] = {"convention",   "definition",       ">floats checked",
                                          ">differences", "first difference", NULL};
    Table *table = table_create(columns);
    for (int i = 0; i < format->encoder_count; i++) {
        const FormatEncoder *encoder = &format->encoders[i];
        const RoundingCheck *check = &checks[i];
        table_cell(table, "%s", encoder->name);
        table_cell(table, "%s%s; beyond: %s", format_rounding_name(encoder->rounding),
                   encoder->first_step_up ? ", first step up" : "",
                   format_outcome_name(encoder->overflow));
        table_cell(table, "%llu", (unsigned long long)check->floats);
        table_cell(table, "%llu", (unsigned long long)check->differences);
        if (check->differences == 0)
            table_cell(table, "none");
        else
            table_cell(table, "f32 %08X gives %02X, defined as %02X", (unsigned)check->f32_bits,
                       (unsigned)check->found, (unsigned)check->expected);
    }
    table_print(table, stdout);
    table_destroy(table);
}

static void print_tables(const Format *format, const Params *params, const RoundingCheck *checks)
{
    printf("f32 to e8m0, code in hex; * marks what torch does otherwise; llvm: %s results\n\n",
           has_llvm() ? "its own" : "recorded");
    print_records(format);
    printf("\nguard, round and sticky bit in every exponent field E; E+0 is down, E+1 up; behind"
           " llvm: how many exponents were %s\n\n",
           has_llvm() ? "asked" : "recorded");
    if (params->every)
        print_every_case(format);
    else
        print_ranges(format);
    if (!params->exhaustive)
        return;
    printf("\nall 2^32 floats against the definition\n\n");
    print_checks(format, checks);
}

static Json *codes_json(const Format *format, uint32_t f32_bits)
{
    Json *codes = json_object();
    int llvm = llvm_code_of(f32_bits);
    for (int i = 0; i < format->encoder_count; i++)
        json_set(codes, format->encoders[i].name, json_integer(code_of(format, i, f32_bits)));
    return json_set(codes, "llvm", llvm == NOT_RECORDED ? json_null() : json_integer(llvm));
}

static Json *cases_json(const Format *format)
{
    Json *cases = json_array();
    for (int exponent = 0; exponent < EXPONENTS; exponent++)
        for (int grs = 0; grs < CASES; grs++) {
            uint32_t bits = case_bits(exponent, grs);
            Json *row = json_set(json_object(), "exponent", json_integer(exponent));
            json_set(row, "guard", json_integer(grs >> 2));
            json_set(row, "round", json_integer(grs >> 1 & 1));
            json_set(row, "sticky", json_integer(grs & 1));
            json_set(row, "f32_bits", json_integer(bits));
            json_append(cases, json_set(row, "codes", codes_json(format, bits)));
        }
    return cases;
}

static Json *checks_json(const Format *format, const RoundingCheck *checks)
{
    Json *rows = json_array();
    for (int i = 0; i < format->encoder_count; i++) {
        const RoundingCheck *check = &checks[i];
        bool differs = check->differences > 0;
        Json *row = json_set(json_object(), "convention", json_text(format->encoders[i].name));
        json_set(row, "floats", json_integer((int64_t)check->floats));
        json_set(row, "differences", json_integer((int64_t)check->differences));
        json_set(row, "first_f32_bits", differs ? json_integer(check->f32_bits) : json_null());
        json_set(row, "found", differs ? json_integer(check->found) : json_null());
        json_append(
            rows, json_set(row, "defined", differs ? json_integer(check->expected) : json_null()));
    }
    return rows;
}

static void print_json(const Format *format, const Params *params, const RoundingCheck *checks)
{
    Json *report = json_set(json_object(), "schema_name", json_text("meshwork e8m0"));
    Json *inputs = json_array();
    json_set(report, "schema_version", json_text("1.0.0"));
    for (const FormatE8m0Record *record = format_e8m0_llvm; record->what; record++) {
        Json *row = json_set(json_object(), "input", json_text(record->what));
        json_set(row, "f32_bits", json_integer(record->f32_bits));
        json_append(inputs, json_set(row, "codes", codes_json(format, record->f32_bits)));
    }
    json_set(report, "inputs", inputs);
    json_set(report, "llvm_version",
             has_llvm() ? json_text(format_e8m0_llvm_version()) : json_null());
    json_set(report, "cases", cases_json(format));
    json_set(report, "exhaustive", params->exhaustive ? checks_json(format, checks) : json_null());
    char *text = json_print(report, true);
    printf("%s\n", text);
    free(text);
    json_destroy(report);
}

static int run(Run *job, const void *params_, const OptionPositionals *positionals)
{
    (void)job;
    (void)positionals;
    const Params *params = params_;
    const Format *format = e8m0();
    RoundingCheck checks[COLUMNS_MAX] = {0};
    uint64_t differences = 0;
    CHECK_RULE(format->encoder_count <= COLUMNS_MAX);
    if (params->exhaustive)
        check_all(format, checks);
    for (int i = 0; i < format->encoder_count; i++)
        differences += checks[i].differences;
    if (params->json)
        print_json(format, params, checks);
    else
        print_tables(format, params, checks);
    return differences > 0 ? EXIT_CODE_CHECK : EXIT_CODE_GOOD;
}

const Command command_e8m0 = {
    .name = "e8m0",
    .summary = "how libraries round an f32 to a power-of-two scale, all conventions side by side",
    .usage = "",
    .notes =
        "llvm: of the LLVM (20 or later) that was found when this was built; without one, what a\n"
        "development build before LLVM 20 gave, and - was not recorded.\n"
        "--exhaustive: exit code 1 if a float is not rounded as its convention defines.",
    .options = options,
    .params_bytes = sizeof(Params),
    .positionals_max = 0,
    .spmd = false,
    .run = run,
};
