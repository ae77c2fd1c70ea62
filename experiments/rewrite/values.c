// values.c -- rows of values between a source and a slice.
#include "experiments/rewrite/values.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static const int64_t measured_values = 4 << 20;       // at a time
static const uint64_t usual_staging_bytes = 13 << 20; // a usual unit and its codes of 8 bits

enum { KNOWN_AMAXES = 64 }; // units of a tensor, and tensors of a group, follow one another

typedef struct KnownAmax {
    int key; // the tensor, or its group
    int64_t matrix;
    float amax;
} KnownAmax;

struct RewriteShared {
    pthread_mutex_t lock;
    KnownAmax known[KNOWN_AMAXES]; // the latest
    int count;                     // of all so far
    pthread_mutex_t staging_lock;
    Arena *staging; // pinned
};

static void create_memory(RewriteValues *values)
{
    values->stream = stream_create(values->device);
    values->arena = arena_create(MEMORY_DEVICE, values->device);
    values->host = arena_create(MEMORY_HOST, DEVICE_CPU);
}

// A GPU takes a second to start; in it a processor casts this much.
static const double auto_bytes_min = 2e9;

static DeviceChoice device_for(const Run *run, const Rewrite *rewrite)
{
    DeviceChoice choice = rewrite->request->device;
    double bytes = 0;
    if (choice != DEVICE_CHOICE_AUTO || rewrite->shards == 0) // no plan: its caller knows why
        return choice;
    for (int i = 0; i < rewrite->count; i++)
        if (rewrite->tensor[i].action == REWRITE_QUANTISE)
            bytes += (double)tensor_bytes(&rewrite->tensor[i].tensor);
    return bytes < auto_bytes_min * run->ranks ? DEVICE_CHOICE_CPU : choice;
}

void rewrite_values_create(const Run *run, const Rewrite *rewrite, RewriteValues *values)
{
    *values = (RewriteValues){.rewrite = rewrite, .threads = run->threads, .owns_shared = true};
    values->device = run_choose_device(run, device_for(run, rewrite), &values->device_index);
    values->shared = calloc(1, sizeof(*values->shared));
    CHECK(values->shared, EXIT_CODE_HARDWARE, "free host memory", "no host memory for scales");
    pthread_mutex_init(&values->shared->lock, NULL);
    pthread_mutex_init(&values->shared->staging_lock, NULL);
    values->shared->staging = arena_create(MEMORY_PINNED, values->device);
    create_memory(values);
}

void rewrite_values_create_beside(const RewriteValues *first, RewriteValues *values)
{
    *values = (RewriteValues){.rewrite = first->rewrite,
                              .device = first->device,
                              .device_index = first->device_index,
                              .threads = 1,
                              .shared = first->shared};
    create_memory(values);
}

void rewrite_values_destroy(RewriteValues *values)
{
    arena_destroy(values->host);
    arena_destroy(values->arena);
    stream_destroy(values->stream);
    free(values->buffer);
    if (!values->owns_shared)
        return;
    arena_destroy(values->shared->staging);
    pthread_mutex_destroy(&values->shared->staging_lock);
    pthread_mutex_destroy(&values->shared->lock);
    free(values->shared);
}

void rewrite_values_forget(RewriteValues *values)
{
    values->shared->count = 0;
}

static void *buffer_of(RewriteValues *values, uint64_t bytes)
{
    if (bytes > values->capacity) {
        free(values->buffer);
        values->buffer = aligned_alloc(256, (bytes + 255) / 256 * 256);
        CHECK(values->buffer, EXIT_CODE_HARDWARE, "free host memory, or run on more ranks",
              "no host memory for %llu bytes of values", (unsigned long long)bytes);
        values->capacity = bytes;
    }
    return values->buffer;
}

// ---- where rows come from ----

static const RewriteSegment *segment_of(const RewriteTensor *tensor, int64_t row, int64_t *within)
{
    const RewriteSegment *segment = tensor->segment;
    while (row >= segment->rows) {
        row -= segment->rows;
        segment++;
    }
    *within = row;
    return segment;
}

const void *rewrite_source_rows(const RewriteTensor *tensor, int64_t first, int64_t *rows)
{
    int64_t within;
    const RewriteSegment *segment = segment_of(tensor, first, &within);
    const Tensor *source = &segment->weight->tensor;
    uint64_t row_bytes = dtype_bytes(source->dtype, (uint64_t)rewrite_columns(tensor));
    if (*rows > segment->rows - within)
        *rows = segment->rows - within;
    return (const char *)source->data + (uint64_t)(segment->first + within) * row_bytes;
}

// The matrix of a turned segment in the source, [columns, rows of the matrix].
typedef struct TurnedMatrix {
    const char *data;
    int64_t rows, first; // first: the segment's
} TurnedMatrix;

static TurnedMatrix turned_matrix(const RewriteSegment *segment)
{
    const Tensor *array = &segment->weight->tensor;
    int64_t rows = array->shape[2], expert = segment->first / rows;
    uint64_t bytes = dtype_bytes(array->dtype, (uint64_t)(array->shape[1] * rows));
    return (TurnedMatrix){(const char *)array->data + (uint64_t)expert * bytes, rows,
                          segment->first % rows};
}

typedef void RowsVisit(const Checkpoint *source, const void *data, uint64_t bytes);

// The share of scales and zero points that goes with rows of codes, in pages about.
static void visit_scales(const RewriteValues *values, const Stored *stored, int64_t first,
                         int64_t rows, RowsVisit *visit)
{
    static const StoredRole roles[] = {STORED_SCALES, STORED_ZEROS};
    int64_t all = stored->q.matrices * stored->q.rows;
    for (size_t i = 0; i < COUNT_OF(roles); i++) {
        const StoredPart *part = &stored->part[roles[i]];
        double bytes = part->present ? (double)tensor_bytes(&part->tensor) / (double)all : 0;
        uint64_t begin = (uint64_t)((double)first * bytes);
        uint64_t end = (uint64_t)((double)(first + rows) * bytes);
        if (end > begin)
            visit(&values->rewrite->source, (const char *)part->tensor.data + begin, end - begin);
    }
}

// The bytes behind rows: values, or codes and their scales.
static void visit_rows(const RewriteValues *values, const RewriteTensor *tensor, StoredPick pick,
                       int64_t first, int64_t rows, RowsVisit *visit)
{
    for (int64_t end = first + rows; first < end;) {
        int64_t within, count = end - first;
        const RewriteSegment *segment = segment_of(tensor, first, &within);
        const Weight *weight = segment->weight;
        if (segment->turned) { // every column of the matrix has some of them
            TurnedMatrix matrix = turned_matrix(segment);
            int64_t elements = matrix.rows * rewrite_columns(tensor);
            visit(&values->rewrite->source, matrix.data,
                  dtype_bytes(weight->tensor.dtype, (uint64_t)elements));
            return; // a tensor has one such segment
        }
        const Tensor *source =
            weight->quantised ? &weight->stored.part[STORED_CODES].tensor : &weight->tensor;
        uint64_t total_rows =
            (uint64_t)(weight->quantised ? weight->stored.q.matrices * weight->stored.q.rows
                                         : rewrite_rows(tensor));
        if (!weight->quantised)
            total_rows = (uint64_t)tensor_elements(source) / (uint64_t)rewrite_columns(tensor);
        uint64_t row_bytes = tensor_bytes(source) / (total_rows > 0 ? total_rows : 1);
        if (count > segment->rows - within)
            count = segment->rows - within;
        if (!weight->quantised || pick != STORED_ALL_BUT_CODES)
            visit(&values->rewrite->source,
                  (const char *)source->data + (uint64_t)(segment->first + within) * row_bytes,
                  (uint64_t)count * row_bytes);
        if (weight->quantised && pick != STORED_ONLY_CODES)
            visit_scales(values, &weight->stored, segment->first + within, count, visit);
        first += count;
    }
}

void rewrite_read_ahead(const RewriteValues *values, const RewriteTensor *tensor, StoredPick pick,
                        int64_t first, int64_t rows)
{
    visit_rows(values, tensor, pick, first, rows, checkpoint_read_ahead);
}

void rewrite_release_rows(const RewriteValues *values, const RewriteTensor *tensor, StoredPick pick,
                          int64_t first, int64_t rows)
{
    visit_rows(values, tensor, pick, first, rows, checkpoint_release_pages);
}

// ---- values ----

static void round_values(const void *data, DType dtype, int64_t count, uint16_t *out)
{
#pragma omp parallel for schedule(static) if (count > 1 << 16)
    for (int64_t i = 0; i < count; i++) {
        uint32_t wide;
        uint16_t narrow;
        float value;
        if (dtype == DTYPE_F32) {
            memcpy(&wide, (const char *)data + 4 * i, sizeof(wide));
            memcpy(&value, &wide, sizeof(value));
        } else {
            memcpy(&narrow, (const char *)data + 2 * i, sizeof(narrow));
            value = f32_from_f16(narrow);
        }
        out[i] = bf16_from_f32(value);
    }
}

static void read_quantised(const Stored *stored, int64_t first, int64_t rows, Arena *arena,
                           uint16_t *out)
{
    const QTensor *q = &stored->q;
    for (int64_t end = first + rows; first < end;) {
        int64_t row = first % q->rows, count = q->rows - row;
        count = count < end - first ? count : end - first;
        stored_read_values(stored, first / q->rows, row, count, arena, out);
        out += count * q->columns;
        first += count;
    }
}

// Where the source has these rows as they are wanted; NULL if it has not.
static const void *rows_in_place(const RewriteTensor *tensor, int64_t first, int64_t rows)
{
    int64_t within, there = rows;
    const RewriteSegment *segment = segment_of(tensor, first, &within);
    const Weight *weight = segment->weight;
    if (rows == 0 || segment->turned || weight->quantised || weight->tensor.dtype != DTYPE_BF16)
        return NULL;
    const void *data = rewrite_source_rows(tensor, first, &there);
    return there == rows && (uintptr_t)data % sizeof(uint16_t) == 0 ? data : NULL;
}

// Rows of a turned matrix: piece by piece of a column, so that both sides stay in the cache.
static void read_turned(const RewriteSegment *segment, int64_t within, int64_t rows,
                        int64_t columns, uint16_t *out)
{
    enum { PIECE = 64 };
    TurnedMatrix matrix = turned_matrix(segment);
    DType dtype = segment->weight->tensor.dtype;
    uint16_t piece[PIECE];
    for (int64_t row = 0; row < rows; row += PIECE) {
        int64_t count = row + PIECE < rows ? PIECE : rows - row;
        for (int64_t column = 0; column < columns; column++) {
            uint64_t at = (uint64_t)(column * matrix.rows + matrix.first + within + row);
            const char *data = matrix.data + dtype_bytes(dtype, at);
            if (dtype == DTYPE_BF16)
                memcpy(piece, data, (size_t)count * sizeof(*piece));
            else
                round_values(data, dtype, count, piece);
            for (int64_t i = 0; i < count; i++)
                out[(row + i) * columns + column] = piece[i];
        }
    }
}

const void *rewrite_read_rows(RewriteValues *values, const RewriteTensor *tensor, int64_t first,
                              int64_t rows)
{
    const void *data = rows_in_place(tensor, first, rows);
    if (data)
        return data;
    int64_t columns = rewrite_columns(tensor);
    uint16_t *out = buffer_of(values, (uint64_t)(rows * columns) * sizeof(*out)), *start = out;
    for (int64_t end = first + rows; first < end;) {
        int64_t within, count = end - first;
        const RewriteSegment *segment = segment_of(tensor, first, &within);
        const Weight *weight = segment->weight;
        if (count > segment->rows - within)
            count = segment->rows - within;
        int64_t elements = count * columns, row = segment->first + within;
        if (segment->turned)
            read_turned(segment, within, count, columns, out);
        else if (weight->quantised)
            read_quantised(&weight->stored, row, count, values->host, out);
        else if (weight->tensor.dtype == DTYPE_BF16)
            memcpy(out, (const char *)weight->tensor.data + row * columns * 2,
                   (size_t)elements * 2);
        else
            round_values((const char *)weight->tensor.data +
                             dtype_bytes(weight->tensor.dtype, (uint64_t)(row * columns)),
                         weight->tensor.dtype, elements, out);
        out += elements;
        first += count;
    }
    return start;
}

// ---- quantising ----

static bool needs_amax(const Stored *stored)
{
    return stored->q.rule.two_level || stored->q.rule.block_rows == 0;
}

static float larger(float a, float b)
{
    return isnan(a) || a > b ? a : isnan(b) || b > a ? b : a;
}

// Of pinned memory, which alone is copied to and from a GPU while the processor goes on.
static char *staging_of(RewriteValues *values, uint64_t bytes)
{
    if (bytes <= values->staging_bytes)
        return values->staging;
    values->staging_bytes = bytes > usual_staging_bytes ? bytes : usual_staging_bytes;
    pthread_mutex_lock(&values->shared->staging_lock);
    values->staging = arena_push(values->shared->staging, values->staging_bytes, MEMORY_SCRATCH);
    pthread_mutex_unlock(&values->shared->staging_lock);
    return values->staging;
}

// On a GPU in device memory, to be read when all pieces were given.
typedef struct Largest {
    RewriteValues *values;
    ArenaMark mark;
    float *amax, on_host;
} Largest;

static void begin_largest(RewriteValues *values, Largest *largest)
{
    *largest = (Largest){.values = values, .mark = arena_mark(values->arena)};
    largest->amax = &largest->on_host;
    if (values->device == DEVICE_CPU)
        return;
    largest->amax = arena_push(values->arena, sizeof(float), MEMORY_SCRATCH);
    device_fill(largest->amax, 0, sizeof(float), values->stream);
}

static void add_to_largest(Largest *largest, const void *data, int64_t count)
{
    RewriteValues *values = largest->values;
    CastLargest args = {.values = data, .dtype = DTYPE_BF16, .count = count, .amax = largest->amax};
    uint64_t bytes = (uint64_t)count * sizeof(uint16_t);
    ArenaMark mark = arena_mark(values->arena);
    if (values->device != DEVICE_CPU) {
        stream_wait(values->stream); // the piece before has left staging and device memory
        void *there = arena_push(values->arena, bytes, MEMORY_SCRATCH);
        char *staging = staging_of(values, bytes);
        memcpy(staging, data, bytes);
        device_copy(there, staging, bytes, values->stream);
        args.values = there;
    }
    cast_largest(&args, values->stream);
    arena_release(values->arena, mark);
}

static float end_largest(Largest *largest)
{
    RewriteValues *values = largest->values;
    if (values->device != DEVICE_CPU) {
        device_copy(&largest->on_host, largest->amax, sizeof(float), values->stream);
        stream_wait(values->stream);
    }
    arena_release(values->arena, largest->mark);
    return largest->on_host;
}

static float measure(RewriteValues *values, const RewriteTensor *tensor, int64_t matrix)
{
    const QTensor *q = &tensor->stored.q;
    int64_t step = measured_values / (q->columns > 0 ? q->columns : 1) + 1;
    Largest largest;
    begin_largest(values, &largest);
    for (int64_t row = 0; row < q->rows; row += step) {
        int64_t rows = row + step < q->rows ? step : q->rows - row;
        int64_t first = matrix * q->rows + row;
        add_to_largest(&largest, rewrite_read_rows(values, tensor, first, rows), rows * q->columns);
        if (rows < q->rows) // else they are read again at once
            rewrite_release_rows(values, tensor, STORED_ALL, first, rows);
    }
    return end_largest(&largest);
}

static const KnownAmax *find_known(const RewriteShared *shared, int key, int64_t matrix)
{
    int count = shared->count < KNOWN_AMAXES ? shared->count : KNOWN_AMAXES;
    for (int i = 0; i < count; i++)
        if (shared->known[i].key == key && shared->known[i].matrix == matrix)
            return &shared->known[i];
    return NULL;
}

static float measure_group(RewriteValues *values, int index, int64_t matrix)
{
    const Rewrite *rewrite = values->rewrite;
    int group = rewrite->tensor[index].amax_group;
    float amax = 0;
    for (int i = 0; i < rewrite->count; i++)
        if (i == index || (group >= 0 && rewrite->tensor[i].amax_group == group))
            amax = larger(amax, measure(values, &rewrite->tensor[i], matrix));
    return amax;
}

// Whether a slice of that many rows is all that its scales depend on.
static bool is_whole(const RewriteTensor *tensor, int64_t rows)
{
    return tensor->amax_group < 0 && rows == tensor->stored.q.rows;
}

// Of a slice of that many rows. What others need too is measured once, while they wait.
static float amax_of(RewriteValues *values, int index, int64_t matrix, int64_t rows)
{
    const RewriteTensor *tensor = &values->rewrite->tensor[index];
    RewriteShared *shared = values->shared;
    int group = tensor->amax_group, key = group >= 0 ? group : index;
    if (is_whole(tensor, rows))
        return measure(values, tensor, matrix);
    pthread_mutex_lock(&shared->lock);
    const KnownAmax *known = find_known(shared, key, matrix);
    float amax = known ? known->amax : measure_group(values, index, matrix);
    if (!known)
        shared->known[shared->count++ % KNOWN_AMAXES] = (KnownAmax){key, matrix, amax};
    pthread_mutex_unlock(&shared->lock);
    return amax;
}

static uint64_t aligned(uint64_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

// A part of a slice comes back into staging memory, where the slice has it from then on.
static void bring_back(void **part, const void *there, uint64_t bytes, char **staging,
                       Stream stream)
{
    if (!*part)
        return;
    device_copy(*staging, there, bytes, stream);
    *part = *staging;
    *staging += aligned(bytes);
}

// The slice's values go to the device, its codes and scales come back. While one thread waits here,
// others read, write or have their own slices on the device.
static void cast_on_device(RewriteValues *values, const void *data, uint64_t bytes,
                           const float *amax, QTensor *slice)
{
    ArenaMark mark = arena_mark(values->arena);
    QTensor there = *slice;
    QTensorBytes parts = qtensor_bytes(slice);
    char *staging = staging_of(values, aligned(bytes) + aligned(parts.codes) +
                                           aligned(parts.scales) + aligned(parts.zeros));
    void *copy = arena_push(values->arena, bytes, MEMORY_SCRATCH);
    float *amax_there = amax ? arena_push(values->arena, sizeof(*amax), MEMORY_SCRATCH) : NULL;
    qtensor_push(&there, values->arena, MEMORY_SCRATCH);
    memcpy(staging, data, bytes);
    device_copy(copy, staging, bytes, values->stream);
    if (amax)
        device_copy(amax_there, amax, sizeof(*amax), values->stream);
    cast(&(Cast){.values = copy, .amax = amax_there, .to = there}, values->stream);
    staging += aligned(bytes);
    bring_back(&slice->codes, there.codes, parts.codes, &staging, values->stream);
    bring_back(&slice->scales, there.scales, parts.scales, &staging, values->stream);
    bring_back(&slice->zeros, there.zeros, parts.zeros, &staging, values->stream);
    if (slice->tensor_scales)
        device_copy(slice->tensor_scales, there.tensor_scales, parts.tensor_scales, values->stream);
    stream_wait(values->stream);
    arena_release(values->arena, mark);
}

void rewrite_quantise_rows(RewriteValues *values, int index, int64_t matrix, int64_t first,
                           QTensor *slice)
{
    const RewriteTensor *tensor = &values->rewrite->tensor[index];
    bool on_device = values->device != DEVICE_CPU, whole = is_whole(tensor, slice->rows);
    // A GPU has all values of a whole matrix at once: the cast measures them there.
    bool needs = needs_amax(&tensor->stored) && !(on_device && whole);
    float amax = needs ? amax_of(values, index, matrix, slice->rows) : 0;
    const float *given = needs ? &amax : NULL;
    const void *data =
        rewrite_read_rows(values, tensor, matrix * tensor->stored.q.rows + first, slice->rows);
    uint64_t bytes = (uint64_t)(slice->rows * slice->columns) * 2;
    if (on_device)
        cast_on_device(values, data, bytes, given, slice);
    else
        cast(&(Cast){.values = data, .amax = given, .to = *slice, .threads = values->threads},
             values->stream);
}

// ---- moving ----

// torchao's T from G: bf16(2688 / G) / 2688 where that gives G again, else 1 / G.
static float second_scale_of(float g)
{
    float t = f32_from_bf16(bf16_from_f32(2688.0f / g)) * (1.0f / 2688.0f);
    return 1.0f / t == g ? t : 1.0f / g;
}

// Packed tiles are copied whole: the layouts are the same and so are the rows.
static void move_tiles(const Stored *stored, int64_t matrix, QTensor *slice)
{
    QTensorBytes bytes = qtensor_bytes(slice);
    const char *codes = stored->part[STORED_CODES].tensor.data;
    const char *scales = stored->part[STORED_SCALES].tensor.data;
    memcpy(slice->codes, codes + (uint64_t)matrix * bytes.codes, bytes.codes);
    memcpy(slice->scales, scales + (uint64_t)matrix * bytes.scales, bytes.scales);
}

void rewrite_move_rows(RewriteValues *values, const RewriteTensor *tensor, int64_t matrix,
                       int64_t first, StoredSlice *whole)
{
    QTensor *slice = &whole->q;
    if (slice->code_layout == CODES_TILED) {
        move_tiles(&tensor->segment[0].weight->stored, matrix, slice);
        return;
    }
    qtensor_clear_padding(slice);
    int64_t row = 0, start = matrix * tensor->stored.q.rows + first;
    while (row < slice->rows) {
        int64_t within, count = slice->rows - row;
        const RewriteSegment *segment = segment_of(tensor, start + row, &within);
        const Stored *stored = &segment->weight->stored;
        int64_t source = segment->first + within, rows = stored->q.rows;
        if (count > segment->rows - within)
            count = segment->rows - within;
        if (count > rows - source % rows)
            count = rows - source % rows;
        ArenaMark mark = arena_mark(values->host);
        QTensor part;
        stored_pick_rows(stored, whole->pick, source / rows, source % rows, count, values->host,
                         &part);
        qtensor_copy_rows(&part, slice, row);
        if (slice->tensor_scales && part.tensor_scales && stored->q.rule.method == QUANT_NVFP4_CT &&
            slice->rule.method == QUANT_NVFP4)
            slice->tensor_scales[0] = second_scale_of(part.tensor_scales[0]);
        arena_release(values->host, mark);
        row += count;
    }
}
