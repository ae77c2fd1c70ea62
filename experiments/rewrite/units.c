// units.c -- shards cut into units, and units dealt to ranks.
#include "experiments/rewrite/units.h"

#include <stdlib.h>

static void add_unit(RewriteUnits *units, RewriteUnit unit)
{
    if (units->count == units->capacity) {
        units->capacity = units->capacity ? 2 * units->capacity : 1024;
        units->unit = realloc(units->unit, (size_t)units->capacity * sizeof(*units->unit));
        CHECK(units->unit, EXIT_CODE_HARDWARE, "free host memory", "no host memory for units");
    }
    units->unit[units->count++] = unit;
}

// Large enough for the disk, small enough for the cache between a cast and its write. On a GPU a
// launch and two copies should cost little beside, and whole matrices of experts fit.
static uint64_t unit_bytes_of(const Rewrite *rewrite, DeviceKind device)
{
    uint64_t usual = device == DEVICE_CPU ? 4 << 20 : 8 << 20;
    return rewrite->request->unit_bytes > 0 ? rewrite->request->unit_bytes : usual;
}

int64_t rewrite_unit_rows(const Rewrite *rewrite, const RewriteTensor *tensor, DeviceKind device)
{
    bool quantised = rewrite_is_quantised(tensor);
    uint64_t columns = (uint64_t)rewrite_columns(tensor);
    int64_t rows = quantised ? tensor->stored.q.rows : rewrite_rows(tensor);
    int64_t step = quantised ? stored_row_step(&tensor->stored) : 1;
    uint64_t row_bytes = dtype_bytes(tensor->tensor.dtype, columns);
    int64_t most = (int64_t)(unit_bytes_of(rewrite, device) / (row_bytes > 0 ? row_bytes : 1));
    int64_t least = step > 0 ? step : rows;
    if (least == 0 || dtype_row(tensor->tensor.dtype)->bits < 8) // rows may end inside a byte
        return rows;
    int64_t each = most < least ? least : most / least * least;
    return each < rows ? each : rows;
}

// Whether scales are units of their own.
static bool is_apart(const RewriteTensor *tensor)
{
    return rewrite_is_quantised(tensor) && tensor->action == REWRITE_MOVE &&
           tensor->stored.q.code_layout != CODES_TILED &&
           tensor->stored.part[STORED_SCALES].present &&
           tensor->place[STORED_SCALES] < tensor->place[STORED_CODES];
}

// Of the bytes of a whole unit, those of what is picked.
static uint64_t picked_bytes(const RewriteTensor *tensor, StoredPick pick, uint64_t bytes)
{
    if (pick == STORED_ALL)
        return bytes;
    double codes = (double)tensor_bytes(&tensor->stored.part[STORED_CODES].tensor);
    double scales = (double)tensor_bytes(&tensor->stored.part[STORED_SCALES].tensor);
    uint64_t of_scales = (uint64_t)((double)bytes * (scales / (codes + scales)));
    return pick == STORED_ONLY_CODES ? bytes - of_scales : of_scales;
}

static void add_units(const Rewrite *rewrite, int index, StoredPick pick, DeviceKind device,
                      RewriteUnits *units)
{
    const RewriteTensor *tensor = &rewrite->tensor[index];
    bool quantised = rewrite_is_quantised(tensor);
    int64_t columns = rewrite_columns(tensor);
    int64_t matrices = quantised ? tensor->stored.q.matrices : 1;
    int64_t rows = quantised ? tensor->stored.q.rows : rewrite_rows(tensor);
    uint64_t row_bytes = dtype_bytes(tensor->tensor.dtype, (uint64_t)columns);
    if (rows == 0 || columns == 0)
        return;
    int64_t each = rewrite_unit_rows(rewrite, tensor, device);
    for (int64_t matrix = 0; matrix < matrices; matrix++)
        for (int64_t first = 0; first < rows; first += each) {
            int64_t count = first + each < rows ? each : rows - first;
            uint64_t bytes = (uint64_t)count * row_bytes;
            add_unit(units, (RewriteUnit){.tensor = index,
                                          .pick = pick,
                                          .matrix = matrix,
                                          .first = first,
                                          .rows = count,
                                          .bytes = picked_bytes(tensor, pick, bytes)});
        }
}

// The first byte that a unit may write.
static uint64_t first_byte(const Rewrite *rewrite, const RewriteUnit *unit)
{
    const RewriteTensor *tensor = &rewrite->tensor[unit->tensor];
    uint64_t place = tensor->place[STORED_CODES];
    if (!rewrite_is_quantised(tensor))
        return place +
               dtype_bytes(tensor->tensor.dtype, (uint64_t)(unit->first * rewrite_columns(tensor)));
    if (unit->pick == STORED_ONLY_CODES)
        return place;
    for (int role = 0; role < STORED_ROLES; role++)
        if (tensor->stored.part[role].present && tensor->place[role] < place)
            place = tensor->place[role];
    return place;
}

typedef struct Placed {
    uint64_t place; // of the tensor's codes or values, or of its scales
    int tensor;
    StoredPick pick;
} Placed;

static int compare_places(const void *a, const void *b)
{
    uint64_t x = ((const Placed *)a)->place, y = ((const Placed *)b)->place;
    return x < y ? -1 : x > y;
}

// A file's order is not that of the names: experts.10 is before experts.2 there.
static void add_shard(const Rewrite *rewrite, const RewriteShard *shard, DeviceKind device,
                      RewriteUnits *units)
{
    Placed *order = calloc(2 * (size_t)shard->count + 1, sizeof(*order));
    int count = 0;
    CHECK(order, EXIT_CODE_HARDWARE, "free host memory", "no host memory for units");
    for (int i = 0; i < shard->count; i++) {
        int index = shard->first + i;
        const RewriteTensor *tensor = &rewrite->tensor[index];
        bool apart = is_apart(tensor);
        if (apart)
            order[count++] = (Placed){tensor->place[STORED_SCALES], index, STORED_ALL_BUT_CODES};
        order[count++] =
            (Placed){tensor->place[STORED_CODES], index, apart ? STORED_ONLY_CODES : STORED_ALL};
    }
    qsort(order, (size_t)count, sizeof(*order), compare_places);
    for (int i = 0; i < count; i++)
        add_units(rewrite, order[i].tensor, order[i].pick, device, units);
    free(order);
}

void rewrite_units_make(const Rewrite *rewrite, const RewriteShard *shard, DeviceKind device,
                        RewriteUnits *units)
{
    units->count = 0;
    add_shard(rewrite, shard, device, units);
    uint64_t ahead = shard->bytes;
    for (int64_t i = units->count - 1; i >= 0; i--) {
        uint64_t first = first_byte(rewrite, &units->unit[i]);
        units->unit[i].ahead = ahead = first < ahead ? first : ahead;
    }
}

// A rank's are those whose middle lies in its share of the bytes.
void rewrite_units_share(const RewriteUnits *units, int rank, int ranks, int64_t *first,
                         int64_t *last)
{
    uint64_t total = 0, before = 0;
    for (int64_t i = 0; i < units->count; i++)
        total += units->unit[i].bytes;
    *first = *last = units->count;
    for (int64_t i = 0; i < units->count; i++) {
        double middle = (double)before + (double)units->unit[i].bytes / 2;
        int of = (int)(middle * ranks / (double)(total > 0 ? total : 1));
        before += units->unit[i].bytes;
        if ((of < ranks ? of : ranks - 1) != rank)
            continue;
        *first = *first == units->count ? i : *first;
        *last = i + 1;
    }
}

void rewrite_units_release(RewriteUnits *units)
{
    free(units->unit);
    *units = (RewriteUnits){0};
}
