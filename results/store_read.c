// store_read.c -- reads a result file, which may come from anyone.
//
// HDF5 is a large parser with a history of crashes on damaged input, so it works in a child process
// with limits on time and memory; the child sends what it read as the lines of a journal through a
// pipe. Whatever happens to it, the caller gets a Result or an error 65. The child works on an
// image in memory, loads no plug-ins, follows no links to other files, and believes no size before
// it has compared it with the limits of result.h.
//
// The child ends when it has read, so it does not close its HDF5 objects one by one.
#include "results/store.h"

#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include "harness/file.h"
#include "results/fields.h"
#include "results/lines.h"

enum { NAME_BYTES = 256, WHERE_BYTES = 640, READ_STEP_BYTES = 1 << 16 };
static const uint64_t file_bytes_max = 1ull << 31, child_bytes_more = 1ull << 33;
// Processor time: far more than reading takes, far less than a user waits for a loop over damaged
// metadata to end.
static const uint64_t child_seconds = 3, child_bytes_per_second = 1 << 20;
static const char fix[] = "restore the file from a copy, or recover it from its journal";

// Where the reader stands; texts and arrays live until the child ends.
typedef struct Reading {
    hid_t file, group;
    char where[WHERE_BYTES]; // path of group, for messages
    Error *error;
} Reading;

static bool refuse(const Reading *reading, const char *name, const char *why)
{
    return error_set(reading->error, EXIT_CODE_DATA, fix, "%s, \"%s\": %s", reading->where, name,
                     why);
}

static hid_t refuse_dataset(const Reading *reading, const char *name, const char *why)
{
    refuse(reading, name, why);
    return -1;
}

static void *room(uint64_t count, size_t element_bytes)
{
    void *memory = calloc(count + 1, element_bytes);
    CHECK(memory, EXIT_CODE_HARDWARE, "free some memory", "no memory for %llu values of a result",
          (unsigned long long)count);
    return memory;
}

// The one text of a string attribute, or NULL.
static char *text_of_attribute(hid_t object, const char *name)
{
    hid_t id = H5Aopen(object, name, H5P_DEFAULT);
    hid_t type = H5Aget_type(id), space = H5Aget_space(id);
    hid_t memory_type = H5Tcopy(H5T_C_S1);
    char *text = NULL;
    H5Tset_size(memory_type, H5T_VARIABLE);
    H5Tset_cset(memory_type, H5Tget_cset(type));
    if (id < 0 || H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) <= 0 ||
        H5Sget_simple_extent_npoints(space) != 1 || H5Aread(id, memory_type, &text) < 0)
        return NULL;
    return text ? text : room(0, 1);
}

// The one number of an attribute as `type` (native int64 or double).
static bool number_of_attribute(hid_t object, const char *name, H5T_class_t class, hid_t type,
                                void *value)
{
    hid_t id = H5Aopen(object, name, H5P_DEFAULT);
    return id >= 0 && H5Tget_class(H5Aget_type(id)) == class &&
           H5Sget_simple_extent_npoints(H5Aget_space(id)) == 1 && H5Aread(id, type, value) >= 0;
}

static bool integer_of_attribute(hid_t object, const char *name, int64_t *value)
{
    return number_of_attribute(object, name, H5T_INTEGER, H5T_NATIVE_INT64, value);
}

static bool read_attribute(hid_t object, const char *name, const Field *field, void *into)
{
    int64_t integer;
    double real;
    if (field->kind == FIELD_TEXT) {
        const char *text = text_of_attribute(object, name);
        return text && field_set_text(field, into, text);
    }
    if (field->kind != FIELD_REAL)
        return integer_of_attribute(object, name, &integer) &&
               field_set_integer(field, into, integer);
    if (!number_of_attribute(object, name, H5T_FLOAT, H5T_NATIVE_DOUBLE, &real))
        return false;
    field_set_real(field, into, real);
    return true;
}

static bool read_attributes(Reading *reading, hid_t object, const char *prefix, const Field *fields,
                            void *into)
{
    for (const Field *field = fields; field->name; field++) {
        char name[NAME_BYTES];
        snprintf(name, sizeof name, "%s%s", prefix, field->name);
        if (!read_attribute(object, name, field, into))
            return refuse(reading, name, "this attribute is missing, of another type or too large");
    }
    return true;
}

// Opens a data set of the group and checks what it claims: class, number of dimensions, extents,
// storage, filters.
static hid_t open_dataset(Reading *reading, const char *name, H5T_class_t class, int dimensions,
                          hsize_t *extent)
{
    static const H5Z_filter_t known[] = {H5Z_FILTER_SHUFFLE, H5Z_FILTER_DEFLATE,
                                         H5Z_FILTER_FLETCHER32};
    hid_t id = H5Dopen2(reading->group, name, H5P_DEFAULT);
    hid_t space = H5Dget_space(id), properties = H5Dget_create_plist(id);
    if (id < 0 || H5Tget_class(H5Dget_type(id)) != class)
        return refuse_dataset(reading, name, "this data set is missing or of another type");
    if (H5Sget_simple_extent_ndims(space) != dimensions ||
        H5Sget_simple_extent_dims(space, extent, NULL) != dimensions)
        return refuse_dataset(reading, name, "this data set has another number of dimensions");
    if (H5Pget_external_count(properties) != 0)
        return refuse_dataset(reading, name, "its values lie in another file");
    for (int i = 0; i < H5Pget_nfilters(properties); i++) {
        unsigned flags, settings;
        size_t count = 0;
        H5Z_filter_t filter =
            H5Pget_filter2(properties, (unsigned)i, &flags, &count, NULL, 0, NULL, &settings);
        bool allowed = false;
        for (size_t j = 0; j < COUNT_OF(known); j++)
            allowed = allowed || filter == known[j];
        if (!allowed)
            return refuse_dataset(reading, name, "it is stored with a filter that we do not use");
    }
    return id;
}

// Texts of a data set (a scalar or one dimension), compared with the checksum beside them.
static char **read_texts(Reading *reading, const char *name, int dimensions, hsize_t *count)
{
    *count = 1;
    hid_t id = open_dataset(reading, name, H5T_STRING, dimensions, count);
    if (id < 0)
        return NULL;
    if (H5Tis_variable_str(H5Dget_type(id)) <= 0 || *count > RESULT_CHECKS_MAX) {
        refuse(reading, name, "its texts are of fixed length, or too many");
        return NULL;
    }
    hid_t memory_type = H5Tcopy(H5T_C_S1);
    H5Tset_size(memory_type, H5T_VARIABLE);
    H5Tset_cset(memory_type, H5T_CSET_UTF8);
    char **texts = room(*count, sizeof *texts);
    int64_t expected = -1;
    uLong crc = 0;
    bool good = *count == 0 || H5Dread(id, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, texts) >= 0;
    for (hsize_t i = 0; good && i < *count; i++) {
        if (!texts[i])
            texts[i] = room(0, 1);
        crc = crc32_z(crc, (const Bytef *)texts[i], strlen(texts[i]) + 1);
    }
    if (good && integer_of_attribute(id, "crc32", &expected) && expected == (int64_t)crc)
        return texts;
    refuse(reading, name, "its texts do not have the checksum that stands beside them");
    return NULL;
}

static bool enter(Reading *reading, hid_t parent, const char *name)
{
    snprintf(reading->where, sizeof reading->where, "group %.*s", NAME_BYTES, name);
    reading->group = H5Gopen2(parent, name, H5P_DEFAULT);
    return reading->group >= 0 || refuse(reading, name, "there is no such group");
}

// The members of a group in the order of their "index" attributes.
typedef struct Children {
    int count, limit;
    H5O_type_t type;
    char (*name)[NAME_BYTES]; // [limit], by index
    bool good;
} Children;

static herr_t visit_child(hid_t group, const char *name, const H5L_info_t *link, void *context)
{
    Children *children = context;
    H5O_info_t info;
    int64_t index;
    if (link->type != H5L_TYPE_HARD || strlen(name) >= NAME_BYTES ||
        H5Oget_info_by_name(group, name, &info, H5P_DEFAULT) < 0 || info.type != children->type)
        return 0;
    hid_t object = H5Oopen(group, name, H5P_DEFAULT);
    if (object < 0 || H5Aexists(object, "index") <= 0)
        return 0; // a dimension scale, or something that others added
    bool good = integer_of_attribute(object, "index", &index) && index >= 0 &&
                index < children->limit && !children->name[index][0];
    H5Oclose(object);
    if (!good)
        return -1;
    snprintf(children->name[index], NAME_BYTES, "%s", name);
    children->count++;
    return 0;
}

static bool list_children(Reading *reading, H5O_type_t type, hsize_t limit, Children *children)
{
    H5G_info_t info = {.nlinks = 0};
    H5Gget_info(reading->group, &info);
    *children =
        (Children){.limit = info.nlinks < limit ? (int)info.nlinks : (int)limit, .type = type};
    children->name = room((uint64_t)children->limit, NAME_BYTES);
    bool good =
        H5Literate(reading->group, H5_INDEX_NAME, H5_ITER_NATIVE, NULL, visit_child, children) >= 0;
    for (int i = 0; good && i < children->count; i++)
        good = children->name[i][0] != '\0';
    return good || refuse(reading, "index", "its members are not numbered 0, 1, 2 ...");
}

static bool read_span(Reading *reading, const char *name, const Measurement *measurement,
                      MeasurementSpan *span)
{
    hsize_t extent[2] = {0, 0};
    hid_t id = open_dataset(reading, name, H5T_FLOAT, 2, extent);
    if (id < 0)
        return false;
    if (extent[0] != (hsize_t)measurement->samples || extent[1] != (hsize_t)measurement->ranks)
        return refuse(reading, name, "its extents are not the samples and ranks of the group");
    const char *original = text_of_attribute(id, "span");
    if (!original || strlen(original) >= sizeof span->name)
        return refuse(reading, name, "the attribute \"span\" is missing or too long");
    snprintf(span->name, sizeof span->name, "%s", original);
    double *seconds = room(extent[0] * extent[1], sizeof *seconds);
    span->seconds = seconds;
    if (extent[0] > 0 && H5Dread(id, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, seconds) < 0)
        return refuse(reading, name, "its values cannot be read (damaged)");
    return read_attributes(reading, id, "", fields_of_span, span);
}

static bool read_measurement(Reading *reading, hid_t parent, const char *name, Result *result)
{
    Measurement measurement = {0};
    Children children;
    if (!enter(reading, parent, name) ||
        !read_attributes(reading, reading->group, "", fields_of_measurement, &measurement) ||
        !read_attributes(reading, reading->group, "before_", fields_of_state,
                         &measurement.state_before) ||
        !read_attributes(reading, reading->group, "after_", fields_of_state,
                         &measurement.state_after))
        return false;
    if ((int64_t)measurement.samples * measurement.ranks > RESULT_VALUES_MAX)
        return refuse(reading, "samples", "more values than a result can have");
    if (!list_children(reading, H5O_TYPE_DATASET, RESULT_SPANS_MAX, &children))
        return false;
    MeasurementSpan *spans = room((uint64_t)children.count, sizeof *spans);
    for (int i = 0; i < children.count; i++)
        if (!read_span(reading, children.name[i], &measurement, &spans[i]))
            return false;
    measurement.spans = spans;
    measurement.span_count = children.count;
    return result_push_measurement(result, &measurement, reading->error);
}

static bool read_measurements(Reading *reading, Result *result)
{
    const char *name = text_of_attribute(reading->file, "measurement_group");
    Children children;
    if (!name || !enter(reading, reading->file, name) ||
        !list_children(reading, H5O_TYPE_GROUP, RESULT_MEASUREMENTS_MAX, &children))
        return name ? false : refuse(reading, "measurement_group", "this attribute is missing");
    hid_t group = reading->group;
    for (int i = 0; i < children.count; i++)
        if (!read_measurement(reading, group, children.name[i], result))
            return false;
    return true;
}

// A numeric column as int64 or double values.
static void *read_numbers(Reading *reading, const Field *field, hsize_t *count)
{
    bool real = field->kind == FIELD_REAL;
    hid_t id = open_dataset(reading, field->name, real ? H5T_FLOAT : H5T_INTEGER, 1, count);
    if (id < 0)
        return NULL;
    void *values = *count <= RESULT_CHECKS_MAX ? room(*count, sizeof(double)) : NULL;
    hid_t type = real ? H5T_NATIVE_DOUBLE : H5T_NATIVE_INT64;
    if (values && (*count == 0 || H5Dread(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0))
        return values;
    refuse(reading, field->name, "its values cannot be read (damaged)");
    return NULL;
}

// One member of all checks. *count is -1 before the first column.
static bool read_check_column(Reading *reading, const Field *field, ResultCheck **checks,
                              int64_t *count)
{
    hsize_t rows = 0;
    char **texts = NULL;
    void *numbers = NULL;
    if (field->kind == FIELD_TEXT)
        texts = read_texts(reading, field->name, 1, &rows);
    else
        numbers = read_numbers(reading, field, &rows);
    if (!texts && !numbers)
        return false;
    if (*count < 0) {
        *count = (int64_t)rows;
        *checks = room(rows, sizeof **checks);
    }
    if (*count != (int64_t)rows)
        return refuse(reading, field->name, "the columns have different lengths");
    bool good = true;
    for (hsize_t i = 0; good && i < rows; i++) {
        if (texts)
            good = field_set_text(field, &(*checks)[i], texts[i]);
        else if (field->kind == FIELD_REAL)
            field_set_real(field, &(*checks)[i], ((double *)numbers)[i]);
        else
            good = field_set_integer(field, &(*checks)[i], ((int64_t *)numbers)[i]);
    }
    return good || refuse(reading, field->name, "a value is out of range");
}

static bool read_checks(Reading *reading, Result *result)
{
    ResultCheck *checks = NULL;
    int64_t count = -1;
    if (!enter(reading, reading->file, "checks"))
        return false;
    for (const Field *field = fields_of_check; field->name; field++)
        if (!read_check_column(reading, field, &checks, &count))
            return false;
    for (int64_t i = 0; i < count; i++)
        if (!result_push_check(result, &checks[i], reading->error))
            return false;
    return true;
}

static bool read_header(Reading *reading, Result *result)
{
    hsize_t count;
    const char *name = text_of_attribute(reading->file, "schema_name");
    if (!name || strcmp(name, RESULT_SCHEMA_NAME) != 0)
        return error_set(reading->error, EXIT_CODE_DATA, "give a result of meshwork (-o r.h5)",
                         "this HDF5 file has no schema_name \"%s\"", RESULT_SCHEMA_NAME);
    if (!schema_version_agrees(RESULT_SCHEMA_NAME,
                               text_of_attribute(reading->file, "schema_version"),
                               RESULT_SCHEMA_VERSION, reading->error))
        return false;
    char **text = read_texts(reading, "header", 0, &count);
    if (!text)
        return false;
    result->header = json_parse(text[0], strlen(text[0]), reading->error);
    const char *note = text_of_attribute(reading->file, "note");
    int64_t complete;
    if (!result->header || !json_is_object(result->header))
        return refuse(reading, "header", "this is no JSON object");
    if (!note || strlen(note) >= sizeof result->note ||
        !integer_of_attribute(reading->file, "complete", &complete))
        return refuse(reading, "complete", "this attribute or \"note\" is missing");
    snprintf(result->note, sizeof result->note, "%s", note);
    result->complete = complete != 0;
    return true;
}

static bool read_image(FileMap image, Result *result, Error *error)
{
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    unsigned no_plugins = 0;
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    H5PLset_loading_state(no_plugins);
    H5Pset_fapl_core(access, READ_STEP_BYTES, false);
    H5Pset_file_image(access, (void *)(uintptr_t)image.data, image.bytes);
    Reading reading = {.file = H5Fopen("result", H5F_ACC_RDONLY, access), .error = error};
    snprintf(reading.where, sizeof reading.where, "the root group");
    reading.group = reading.file;
    if (reading.file < 0)
        return error_set(error, EXIT_CODE_DATA, fix,
                         "HDF5 cannot open it: it is damaged or incomplete");
    return read_header(&reading, result) && read_measurements(&reading, result) &&
           read_checks(&reading, result);
}

// What the child sends: the lines of a journal, then one of kind "read" or "error".
static void send_line(FILE *pipe, Json *line)
{
    char *text = json_print(line, false);
    fprintf(pipe, "%s\n", text);
    free(text);
    json_destroy(line);
}

static void send_result(FILE *pipe, const Result *result)
{
    send_line(pipe, line_of_header(result->header));
    for (int i = 0; i < result->measurement_count; i++)
        send_line(pipe, line_of_measurement(&result->measurements[i]));
    for (int i = 0; i < result->check_count; i++)
        send_line(pipe, line_of_check(&result->checks[i]));
    Json *last = json_set(json_object(), "kind", json_text("read"));
    json_set(last, "complete", json_boolean(result->complete));
    send_line(pipe, json_set(last, "note", json_text(result->note)));
}

static void limit_child(uint64_t file_bytes)
{
    rlim_t seconds = child_seconds + file_bytes / child_bytes_per_second;
    struct rlimit none = {0, 0}, time = {seconds, seconds}, space;
    setrlimit(RLIMIT_CORE, &none);
    setrlimit(RLIMIT_CPU, &time);
    // Beyond what is mapped now: a sanitizer's shadow counts as address space too.
    unsigned long long pages = 0;
    FILE *sizes = fopen("/proc/self/statm", "r");
    if (sizes && fscanf(sizes, "%llu", &pages) == 1 && getrlimit(RLIMIT_AS, &space) == 0) {
        rlim_t limit = pages * (rlim_t)sysconf(_SC_PAGESIZE) + child_bytes_more;
        space.rlim_cur =
            space.rlim_max == RLIM_INFINITY || limit < space.rlim_max ? limit : space.rlim_max;
        setrlimit(RLIMIT_AS, &space);
    }
    if (sizes)
        fclose(sizes);
}

NORETURN static void run_child(FileMap image, int descriptor)
{
    // A crash must end this process, whatever handlers the caller had for it, and without the last
    // words of libc: the caller has a message for it.
    static const int fatal[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGXCPU};
    Result result = {0};
    Error error = {0};
    for (size_t i = 0; i < COUNT_OF(fatal); i++)
        signal(fatal[i], SIG_DFL);
    int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (nowhere >= 0)
        dup2(nowhere, STDERR_FILENO);
    limit_child(image.bytes);
    FILE *pipe = fdopen(descriptor, "w");
    if (!pipe)
        _exit(EXIT_CODE_HARDWARE);
    if (read_image(image, &result, &error)) {
        send_result(pipe, &result);
    } else {
        Json *line = json_set(json_object(), "kind", json_text("error"));
        json_set(line, "what", json_text(error.what));
        send_line(pipe, json_set(line, "fix", json_text(error.fix)));
    }
    fclose(pipe);
    _exit(0);
}

static bool receive_line(const char *text, uint64_t bytes, Result *result, bool *whole,
                         Error *error)
{
    Json *line = json_parse(text, bytes, error);
    const char *kind = json_text_of(json_find(line, "kind"));
    bool good = line && kind;
    if (good && strcmp(kind, "error") == 0) {
        good = error_set(error, EXIT_CODE_DATA, json_text_of(json_find(line, "fix")), "%s",
                         json_text_of(json_find(line, "what")));
    } else if (good && strcmp(kind, "read") == 0) {
        *whole = true;
        result->complete = json_boolean_of(json_find(line, "complete"));
        snprintf(result->note, sizeof result->note, "%s", json_text_of(json_find(line, "note")));
    } else if (good) {
        good = line_read(line, result, error);
    }
    json_destroy(line);
    return good;
}

// Reads lines until the child closes its end; *whole tells whether the last one came.
static bool receive(int descriptor, Result *result, bool *whole, Error *error)
{
    FILE *pipe = fdopen(descriptor, "r");
    char *text = NULL;
    size_t capacity = 0;
    ssize_t length;
    bool good = pipe != NULL;
    while (good && (length = getline(&text, &capacity, pipe)) > 0)
        if (text[length - 1] == '\n') // else the child died while it wrote
            good = receive_line(text, (uint64_t)length - 1, result, whole, error);
    free(text);
    if (pipe)
        fclose(pipe);
    return good;
}

static bool read_contained(FileMap image, Result *result, Error *error)
{
    int ends[2], status = 0;
    bool whole = false;
    pid_t child = -1;
    if (pipe(ends) == 0) {
        child = fork();
        if (child == 0) {
            close(ends[0]);
            run_child(image, ends[1]);
        }
        close(ends[1]);
    }
    if (child < 0)
        return error_set(error, EXIT_CODE_HARDWARE, "see ulimit -u and ulimit -n",
                         "cannot start a process to read the file: %s", strerror(errno));
    bool good = receive(ends[0], result, &whole, error);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        continue;
    if (!good || whole)
        return good;
    if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_CODE_HARDWARE)
        return error_set(error, EXIT_CODE_HARDWARE, "free some memory, or raise ulimit -v",
                         "no memory to read it");
    return error_set(error, EXIT_CODE_DATA, fix,
                     "the HDF5 library stopped while reading it (%s %d): it is damaged",
                     WIFSIGNALED(status) ? "signal" : "exit code",
                     WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

bool store_is_file(const char *path)
{
    static const char signature[] = {'\x89', 'H', 'D', 'F'};
    char start[sizeof signature] = "";
    FILE *file = fopen(path, "rb");
    bool found = file && fread(start, sizeof start, 1, file) == 1 &&
                 memcmp(start, signature, sizeof start) == 0;
    if (file)
        fclose(file);
    return found;
}

bool store_read(const char *path, Result *result, Error *error)
{
    static const uint8_t signature[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1A, '\n'};
    FileMap image = {NULL, 0};
    Error inner = {0};
    *result = (Result){0};
    char *data = file_read(path, file_bytes_max, &image.bytes, error);
    if (!data)
        return false;
    image.data = (const uint8_t *)data;
    bool good = image.bytes > sizeof signature && memcmp(data, signature, sizeof signature) == 0;
    if (!good)
        error_set(&inner, EXIT_CODE_DATA, "give a result of meshwork (-o r.h5)",
                  "this is no HDF5 file");
    good = good && read_contained(image, result, &inner);
    free(data);
    if (!good) {
        result_destroy(result);
        error_set(error, inner.exit_code, inner.fix, "%s: %s", path, inner.what);
    }
    return good;
}
