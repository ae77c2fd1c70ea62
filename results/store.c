// store.c -- writes a Result as HDF5 (the layout is in SCHEMA.md; store_read.c reads it back).
//
// The library works on memory only: the file is built with the core driver, its image taken, and
// harness/file.h puts the image on disk under a temporary name. So HDF5 never sees a full disk (its
// close cannot be undone half way) and never asks for file locks (which NFS, Lustre and BeeGFS may
// refuse).
//
// Calls are not checked one by one. A failed call leaves its mark in the Build and returns a
// negative id; calls on a negative id fail quietly, and the mark is looked at once, at the end.
#include "results/store.h"

#include <hdf5.h>
#include <hdf5_hl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "harness/file.h"
#include "results/fields.h"
#include "results/lines.h"

enum { LINK_NAME_BYTES = 96, CHUNK_VALUES = 1 << 16, DEFLATE_LEVEL = 4, PATH_BYTES = 256 };
static const size_t core_step_bytes = 1 << 20;

typedef struct Build {
    hid_t file, text_type;
    const char *failed; // the first call that failed; NULL = none
} Build;

static int64_t mark(Build *build, int64_t code, const char *call)
{
    if (code < 0 && !build->failed)
        build->failed = call;
    return code;
}
#define STEP(build, call) mark(build, call, #call)

static void put_attribute(Build *build, hid_t object, const char *name, hid_t type,
                          const void *value)
{
    hid_t space = STEP(build, H5Screate(H5S_SCALAR));
    hid_t id = STEP(build, H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT));
    STEP(build, H5Awrite(id, type, value));
    if (id >= 0)
        H5Aclose(id);
    if (space >= 0)
        H5Sclose(space);
}

static hid_t create_group(Build *build, hid_t parent, const char *name)
{
    return STEP(build, H5Gcreate2(parent, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
}

static void put_text(Build *build, hid_t object, const char *name, const char *value)
{
    put_attribute(build, object, name, build->text_type, &value);
}

static void put_integer(Build *build, hid_t object, const char *name, int64_t value)
{
    put_attribute(build, object, name, H5T_NATIVE_INT64, &value);
}

static void put_real(Build *build, hid_t object, const char *name, double value)
{
    put_attribute(build, object, name, H5T_NATIVE_DOUBLE, &value);
}

static void put_fields(Build *build, hid_t object, const char *prefix, const Field *fields,
                       const void *from)
{
    for (const Field *field = fields; field->name; field++) {
        char name[LINK_NAME_BYTES];
        snprintf(name, sizeof name, "%s%s", prefix, field->name);
        if (field->kind == FIELD_TEXT)
            put_text(build, object, name, field_text(field, from));
        else if (field->kind == FIELD_REAL)
            put_real(build, object, name, field_real(field, from));
        else
            put_integer(build, object, name, field_integer(field, from));
    }
}

// Strings lie in HDF5's global heap, which has no checksum of its own: theirs covers each text with
// its closing NUL.
static int64_t checksum_of_texts(const char *const *texts, int count)
{
    uLong crc = 0;
    for (int i = 0; i < count; i++)
        crc = crc32_z(crc, (const Bytef *)texts[i], strlen(texts[i]) + 1);
    return (int64_t)crc;
}

static hid_t put_dataset(Build *build, hid_t group, const char *name, hid_t type, hid_t space,
                         hid_t properties, const void *values)
{
    hid_t id =
        STEP(build, H5Dcreate2(group, name, type, space, H5P_DEFAULT, properties, H5P_DEFAULT));
    if (H5Sget_simple_extent_npoints(space) > 0)
        STEP(build, H5Dwrite(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values));
    return id;
}

// Any text as the name of a link: nesting becomes dots ("forward/dispatch" is "forward.dispatch",
// since '/' would make a group), other characters that need quoting somewhere become '_'. The
// original stands in an attribute.
static void link_name(const char *original, char *name)
{
    size_t length = 0;
    for (const char *c = original; *c && length < LINK_NAME_BYTES - 8; c++) {
        bool plain = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') ||
                     (*c >= '0' && *c <= '9') || *c == '_' || *c == '-';
        bool dot = (*c == '/' || *c == '.') && length > 0;
        name[length] = dot ? '.' : plain ? *c : '_';
        length++;
    }
    if (length == 0)
        name[length++] = '_';
    name[length] = '\0';
}

// The same, made different from the links that the group has already.
static void free_link_name(hid_t group, const char *original, char *name)
{
    link_name(original, name);
    size_t length = strlen(name);
    for (int i = 2; i < 1000 && H5Lexists(group, name, H5P_DEFAULT) > 0; i++)
        snprintf(name + length, LINK_NAME_BYTES - length, "_%d", i);
}

// A dimension scale 0, 1, 2 ... that gives the dimension its name.
static hid_t put_scale(Build *build, hid_t group, const char *name, const char *long_name,
                       int count)
{
    hsize_t extent = (hsize_t)count;
    int64_t *values = calloc((size_t)count + 1, sizeof *values);
    CHECK(values, EXIT_CODE_HARDWARE, "free some memory", "no memory for %d numbers", count);
    for (int i = 0; i < count; i++)
        values[i] = i;
    hid_t space = STEP(build, H5Screate_simple(1, &extent, NULL));
    hid_t id = put_dataset(build, group, name, H5T_NATIVE_INT64, space, H5P_DEFAULT, values);
    STEP(build, H5DSset_scale(id, name));
    put_text(build, id, "long_name", long_name);
    put_text(build, id, "units", "1");
    H5Sclose(space);
    free(values);
    return id;
}

static void attach(Build *build, hid_t dataset, hid_t scale, unsigned dimension)
{
    STEP(build, H5DSattach_scale(dataset, scale, dimension));
}

static hsize_t smaller(hsize_t a, hsize_t b)
{
    return a < b ? a : b;
}

// Chunks of whole rows, up to half a MiB. Empty data cannot have chunks.
static hid_t sample_properties(Build *build, const hsize_t *extent)
{
    hid_t properties = STEP(build, H5Pcreate(H5P_DATASET_CREATE));
    double missing = NAN;
    STEP(build, H5Pset_fill_value(properties, H5T_NATIVE_DOUBLE, &missing));
    if (extent[0] == 0)
        return properties;
    hsize_t chunk[2] = {0, smaller(extent[1], CHUNK_VALUES)};
    chunk[0] = smaller(extent[0], CHUNK_VALUES / chunk[1]);
    STEP(build, H5Pset_chunk(properties, 2, chunk));
    STEP(build, H5Pset_shuffle(properties));
    STEP(build, H5Pset_deflate(properties, DEFLATE_LEVEL));
    STEP(build, H5Pset_fletcher32(properties));
    return properties;
}

static void put_span(Build *build, hid_t group, const Measurement *measurement, int index,
                     const hid_t *scales)
{
    const MeasurementSpan *span = &measurement->spans[index];
    hsize_t extent[2] = {(hsize_t)measurement->samples, (hsize_t)measurement->ranks};
    char name[LINK_NAME_BYTES], long_name[2 * LINK_NAME_BYTES];
    free_link_name(group, span->name, name);
    snprintf(long_name, sizeof long_name, "duration of %s", span->name);
    hid_t space = STEP(build, H5Screate_simple(2, extent, NULL));
    hid_t properties = sample_properties(build, extent);
    hid_t id = put_dataset(build, group, name, H5T_NATIVE_DOUBLE, space, properties, span->seconds);
    put_text(build, id, "span", span->name);
    put_integer(build, id, "index", index);
    put_text(build, id, "units", "s");
    put_text(build, id, "long_name", long_name);
    put_real(build, id, "_FillValue", NAN);
    put_fields(build, id, "", fields_of_span, span);
    attach(build, id, scales[0], 0);
    attach(build, id, scales[1], 1);
    H5Pclose(properties);
    H5Sclose(space);
    if (id >= 0)
        H5Dclose(id);
}

static void put_measurement(Build *build, hid_t parent, const Measurement *measurement, int index)
{
    char name[LINK_NAME_BYTES];
    free_link_name(parent, measurement->name, name);
    hid_t group = create_group(build, parent, name);
    put_integer(build, group, "index", index);
    put_fields(build, group, "", fields_of_measurement, measurement);
    put_fields(build, group, "before_", fields_of_state, &measurement->state_before);
    put_fields(build, group, "after_", fields_of_state, &measurement->state_after);
    hid_t scales[2] = {
        put_scale(build, group, "iteration", "timed iteration", measurement->samples),
        put_scale(build, group, "rank", "rank in the job", measurement->ranks)};
    for (int i = 0; i < measurement->span_count; i++)
        put_span(build, group, measurement, i, scales);
}

// One column over `scale`; texts carry their checksum, numbers their units.
typedef struct Column {
    const char *name, *units, *long_name;
    int count;
    const char *const *texts; // one of the three
    const int64_t *integers;
    const double *reals;
} Column;

static void put_column(Build *build, hid_t group, const Column *column, hid_t scale)
{
    hsize_t extent = (hsize_t)column->count;
    hid_t space = STEP(build, H5Screate_simple(1, &extent, NULL));
    hid_t type = column->texts   ? build->text_type
                 : column->reals ? H5T_NATIVE_DOUBLE
                                 : H5T_NATIVE_INT64;
    const void *values = column->texts   ? (const void *)column->texts
                         : column->reals ? (const void *)column->reals
                                         : (const void *)column->integers;
    hid_t id = put_dataset(build, group, column->name, type, space, H5P_DEFAULT, values);
    if (column->texts)
        put_integer(build, id, "crc32", checksum_of_texts(column->texts, column->count));
    if (column->reals)
        put_real(build, id, "_FillValue", NAN);
    if (column->units)
        put_text(build, id, "units", column->units);
    if (column->long_name)
        put_text(build, id, "long_name", column->long_name);
    attach(build, id, scale, 0);
    H5Sclose(space);
}

// Room for one column of any kind.
typedef struct ColumnRoom {
    const char **texts;
    int64_t *integers;
    double *reals;
} ColumnRoom;

static ColumnRoom room_create(int count)
{
    size_t rows = (size_t)count + 1;
    ColumnRoom room = {calloc(rows, sizeof *room.texts), calloc(rows, sizeof *room.integers),
                       calloc(rows, sizeof *room.reals)};
    CHECK(room.texts && room.integers && room.reals, EXIT_CODE_HARDWARE, "free some memory",
          "no memory for a column of %d rows", count);
    return room;
}

static void room_destroy(ColumnRoom *room)
{
    free(room->texts);
    free(room->integers);
    free(room->reals);
}

static void put_checks(Build *build, const Result *result)
{
    int count = result->check_count;
    hid_t group = create_group(build, build->file, "checks");
    hid_t scale = put_scale(build, group, "check", "check, in order of the run", count);
    ColumnRoom room = room_create(count);
    for (const Field *field = fields_of_check; field->name; field++) {
        Column column = {field->name, field->units, field->meaning, count, NULL, NULL, NULL};
        for (int i = 0; i < count; i++) {
            if (field->kind == FIELD_TEXT)
                room.texts[i] = field_text(field, &result->checks[i]);
            else if (field->kind == FIELD_REAL)
                room.reals[i] = field_real(field, &result->checks[i]);
            else
                room.integers[i] = field_integer(field, &result->checks[i]);
        }
        column.texts = field->kind == FIELD_TEXT ? room.texts : NULL;
        column.reals = field->kind == FIELD_REAL ? room.reals : NULL;
        column.integers = room.integers;
        put_column(build, group, &column, scale);
    }
    room_destroy(&room);
}

typedef struct RankColumns {
    Build *build;
    const Json *rows;
    hid_t group, scale;
    ColumnRoom room;
} RankColumns;

// A column for every member of the first row that all rows have with the same type.
static bool put_rank_column(const char *key, const Json *first, void *context)
{
    RankColumns *columns = context;
    int count = (int)json_count(columns->rows);
    bool texts = json_is_text(first), same = texts || json_is_integer(first);
    for (int i = 0; same && i < count; i++) {
        const Json *value = json_find(json_at(columns->rows, (uint64_t)i), key);
        same = value && json_is_text(value) == texts && json_is_integer(value) == !texts;
        columns->room.texts[i] = json_text_of(value);
        columns->room.integers[i] = json_integer_of(value);
    }
    if (same && strcmp(key, "rank") != 0) { // that one is the scale
        Column column = {
            key, NULL, NULL, count, texts ? columns->room.texts : NULL, columns->room.integers,
            NULL};
        put_column(columns->build, columns->group, &column, columns->scale);
    }
    return true;
}

static void put_ranks(Build *build, const Json *header)
{
    const Json *rows = json_find(header, "ranks");
    uint64_t count = json_is_array(rows) ? json_count(rows) : 0;
    if (count == 0 || count > RESULT_RANKS_MAX)
        return;
    hid_t group = create_group(build, build->file, "ranks");
    hid_t scale = put_scale(build, group, "rank", "rank in the job", (int)count);
    RankColumns columns = {build, rows, group, scale, room_create((int)count)};
    json_each(json_at(rows, 0), put_rank_column, &columns);
    room_destroy(&columns.room);
}

typedef struct AttributePlace {
    Build *build;
    hid_t object;
    char prefix[PATH_BYTES]; // of members of nested objects: "matmul_flops_per_s."
} AttributePlace;

// Scalars become attributes, nested objects attributes with a dotted name, lists their JSON text. A
// name that is taken (or empty) is passed over: the whole header stands in /header anyway.
static bool put_json_attribute(const char *key, const Json *value, void *context)
{
    AttributePlace *place = context;
    char name[2 * PATH_BYTES];
    snprintf(name, sizeof name, "%s%s", place->prefix, key);
    if (!key[0] || H5Aexists(place->object, name) > 0)
        return true;
    if (json_is_object(value)) {
        AttributePlace inner = {place->build, place->object, ""};
        snprintf(inner.prefix, sizeof inner.prefix, "%.200s.", name);
        json_each(value, put_json_attribute, &inner);
    } else if (json_is_text(value)) {
        put_text(place->build, place->object, name, json_text_of(value));
    } else if (json_is_integer(value)) {
        put_integer(place->build, place->object, name, json_integer_of(value));
    } else if (json_is_boolean(value)) {
        put_integer(place->build, place->object, name, json_boolean_of(value));
    } else if (json_is_array(value)) {
        char *text = json_print(value, false);
        put_text(place->build, place->object, name, text);
        free(text);
    } else {
        put_real(place->build, place->object, name, json_real_of(value));
    }
    return true;
}

typedef struct HeaderPlace {
    AttributePlace root;
    hid_t provenance; // group
} HeaderPlace;

// The header's scalars and lists become root attributes, its objects groups under /provenance.
static bool put_header_member(const char *key, const Json *value, void *context)
{
    HeaderPlace *place = context;
    Build *build = place->root.build;
    if (strcmp(key, "ranks") == 0 || strcmp(key, "measurement_group") == 0)
        return true; // a table (put_ranks), and a name that put_result needs
    if (!json_is_object(value))
        return put_json_attribute(key, value, &place->root);
    char name[LINK_NAME_BYTES];
    free_link_name(place->provenance, key, name);
    AttributePlace inner = {build, create_group(build, place->provenance, name), ""};
    json_each(value, put_json_attribute, &inner);
    return true;
}

static void put_header(Build *build, const Result *result)
{
    char *text = json_print(result->header, false);
    const char *value = text;
    hid_t space = STEP(build, H5Screate(H5S_SCALAR));
    hid_t id =
        put_dataset(build, build->file, "header", build->text_type, space, H5P_DEFAULT, &value);
    put_integer(build, id, "crc32", checksum_of_texts(&value, 1));
    put_text(build, id, "long_name", "the header of the run, one JSON object");
    H5Sclose(space);
    free(text);
    put_integer(build, build->file, "complete", result->complete);
    put_text(build, build->file, "note", result->note);
    put_text(build, build->file, "conventions",
             "SI units; netCDF-4 dimension scales; layout in results/SCHEMA.md of meshwork");
    HeaderPlace place = {{build, build->file, ""}, create_group(build, build->file, "provenance")};
    json_each(result->header, put_header_member, &place);
}

static void put_result(Build *build, const Result *result)
{
    const char *command = json_text_of(json_find(result->header, "command"));
    char name[LINK_NAME_BYTES];
    put_header(build, result);
    put_ranks(build, result->header);
    put_checks(build, result);
    free_link_name(build->file, command ? command : "run", name);
    hid_t group = create_group(build, build->file, name);
    put_text(build, build->file, "measurement_group", name);
    for (int i = 0; i < result->measurement_count; i++)
        put_measurement(build, group, &result->measurements[i], i);
}

// A file in memory whose close takes every object in it along, in the format of HDF5 1.8.
static void open_in_memory(Build *build)
{
    hid_t access = STEP(build, H5Pcreate(H5P_FILE_ACCESS));
    STEP(build, H5Pset_fapl_core(access, core_step_bytes, false));
    STEP(build, H5Pset_fclose_degree(access, H5F_CLOSE_STRONG));
    STEP(build, H5Pset_libver_bounds(access, H5F_LIBVER_EARLIEST, H5F_LIBVER_V18));
    build->text_type = STEP(build, H5Tcopy(H5T_C_S1));
    STEP(build, H5Tset_size(build->text_type, H5T_VARIABLE));
    STEP(build, H5Tset_cset(build->text_type, H5T_CSET_UTF8));
    build->file = STEP(build, H5Fcreate("result", H5F_ACC_TRUNC, H5P_DEFAULT, access));
    H5Pclose(access);
}

// The bytes of the file; the caller frees them.
static void *take_image(Build *build, uint64_t *bytes)
{
    STEP(build, H5Fflush(build->file, H5F_SCOPE_GLOBAL));
    int64_t size = STEP(build, H5Fget_file_image(build->file, NULL, 0));
    void *image = size > 0 ? malloc((size_t)size) : NULL;
    if (image)
        STEP(build, H5Fget_file_image(build->file, image, (size_t)size));
    *bytes = size > 0 ? (uint64_t)size : 0;
    return image;
}

bool store_write(const Result *result, const char *path, bool force, Error *error)
{
    FileWriter writer;
    if (!file_writer_open(&writer, path, force, error))
        return false;
    Build build = {.file = -1, .text_type = -1};
    uint64_t bytes = 0;
    void *image = NULL;
    H5E_BEGIN_TRY
    {
        open_in_memory(&build);
        put_result(&build, result);
        image = take_image(&build, &bytes);
        H5Tclose(build.text_type);
        H5Fclose(build.file);
    }
    H5E_END_TRY;
    bool good = image && !build.failed;
    if (!good) {
        error_set(error, EXIT_CODE_IO, "free some memory; the journal keeps the result",
                  "HDF5 could not build %s: %.200s failed", path,
                  build.failed ? build.failed : "its image");
        file_writer_abandon(&writer);
    }
    good = good && file_writer_write(&writer, image, bytes, error) &&
           file_writer_commit(&writer, error);
    free(image);
    return good;
}

void store_version(char *text, size_t bytes)
{
    unsigned major = 0, minor = 0, release = 0;
    H5get_libversion(&major, &minor, &release);
    snprintf(text, bytes, "%u.%u.%u", major, minor, release);
}
