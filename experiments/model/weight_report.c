// weight_report.c -- counting codes and scales; quantising the source again to see what the recipe
// promises.
//
// A recipe may itself make NaN of a row of zeros, or lose a row of tiny values: that is what it
// promises. So a weight is judged by what quantising its source gives, not by a bound.
#include "experiments/model/weight_report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const weight_verdict_names[] = {[WEIGHT_SAME] = "same",
                                            [WEIGHT_AS_GOOD] = "as good",
                                            [WEIGHT_WRONG] = "WRONG",
                                            [WEIGHT_ELSEWHERE] = "NOT THERE"};

// What another rounding of the scale may do to a value: half a unit of bf16's last place, and a
// little. Values below `nothing` are lost by some libraries' kernels.
static const double scale_tolerance = 1.0 / 400, nothing = 0x1p-110;
static const int64_t chunk_values = 4 << 20;

static int64_t chunk_rows(int64_t columns, int64_t multiple)
{
    int64_t rows = chunk_values / (columns > 0 ? columns : 1) / multiple * multiple;
    return rows < multiple ? multiple : rows;
}

// ---- what is there ----

static void count_code(WeightReport *report, QuantCode code, uint32_t bits)
{
    static const uint32_t nan[] = {[CODE_E4M3] = 0x7F, [CODE_E2M1] = 0x100, 0x100, 0x100};
    uint32_t magnitude = code == CODE_E4M3 ? bits & 0x7Fu : code == CODE_E2M1 ? bits & 7u : bits;
    bool whole = code == CODE_INT8 || code == CODE_INT4;
    bool saturated = code == CODE_E4M3   ? magnitude == 0x7E
                     : code == CODE_E2M1 ? magnitude == 7
                     : code == CODE_INT8 ? bits == 0x7F || bits == 0x80 || bits == 0x81
                                         : (bits & 15u) == 7 || (bits & 15u) == 8;
    report->codes++;
    report->nan_codes += magnitude == nan[code] && !whole;
    report->zero_codes += whole ? bits == 0 : magnitude == 0;
    report->saturated_codes += saturated;
}

static void count_scale(WeightReport *report, float scale)
{
    bool first = report->scales == report->nan_scales;
    report->scales++;
    if (isnan(scale)) {
        report->nan_scales++;
        return;
    }
    report->scale_min = first || scale < report->scale_min ? scale : report->scale_min;
    report->scale_max = first || scale > report->scale_max ? scale : report->scale_max;
}

static void count_rows(WeightReport *report, const QTensor *rows)
{
    for (int64_t row = 0; row < rows->rows; row++)
        for (int64_t column = 0; column < rows->columns; column++)
            count_code(report, rows->rule.code, qtensor_load_code(rows, 0, row, column));
    for (int64_t row = 0; row < qtensor_grid_rows(rows); row++)
        for (int64_t column = 0; column < qtensor_grid_columns(rows); column++)
            count_scale(report, qtensor_load_block(rows, 0, row, column).scale);
}

static WeightReport report_quantised(const Checkpoint *checkpoint, const Weight *weight)
{
    const Stored *stored = &weight->stored;
    const QTensor *q = &stored->q;
    WeightReport report = {0};
    int64_t block = q->rule.block_rows > 1 ? q->rule.block_rows : 1;
    int64_t step = chunk_rows(q->columns, block);
    Arena *arena = arena_create(MEMORY_HOST, DEVICE_CPU);
    for (int64_t matrix = 0; matrix < q->matrices; matrix++) {
        for (int64_t row = 0; row < q->rows; row += step) {
            ArenaMark mark = arena_mark(arena);
            QTensor rows;
            stored_read_rows(stored, matrix, row, row + step < q->rows ? step : q->rows - row,
                             arena, &rows);
            count_rows(&report, &rows);
            if (rows.tensor_scales && row == 0) {
                float second = rows.tensor_scales[0];
                bool first = matrix == 0;
                report.second_min =
                    first || second < report.second_min ? second : report.second_min;
                report.second_max =
                    first || second > report.second_max ? second : report.second_max;
            }
            arena_release(arena, mark);
        }
    }
    arena_destroy(arena);
    for (int role = 0; role < STORED_ROLES; role++)
        if (stored->part[role].present) {
            const Tensor *part = &stored->part[role].tensor;
            report.bytes += tensor_bytes(part);
            checkpoint_release_pages(checkpoint, part->data, tensor_bytes(part));
        }
    return report;
}

static WeightReport report_plain(const Checkpoint *checkpoint, const Weight *weight)
{
    WeightReport report = {.bytes = tensor_bytes(&weight->tensor)};
    DType dtype = weight->tensor.dtype;
    bool real = weight_is_real(dtype);
    int64_t count = real ? tensor_elements(&weight->tensor) : 0;
    enum { PIECE = 4096 };
    float piece[PIECE];
    for (int64_t first = 0; first < count; first += PIECE) {
        int64_t n = first + PIECE < count ? PIECE : count - first;
        tensor_to_f32(&weight->tensor, first, n, piece);
        for (int64_t i = 0; i < n; i++) {
            report.codes++;
            report.nan_codes += isnan(piece[i]);
            report.zero_codes += piece[i] == 0;
            count_scale(&report, fabsf(piece[i]));
        }
    }
    checkpoint_release_pages(checkpoint, weight->tensor.data, report.bytes);
    return report;
}

WeightReport weight_report(const Checkpoint *checkpoint, const Weight *weight)
{
    return weight->quantised ? report_quantised(checkpoint, weight)
                             : report_plain(checkpoint, weight);
}

// ---- against its source ----

typedef struct Errors {
    double signal, noise, worst;
    int64_t nans;
    int64_t worse; // values further from the source than the recipe's
} Errors;

static void add_errors(Errors *errors, const uint16_t *values, const uint16_t *source,
                       int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        double value = f32_from_bf16(values[i]), wanted = f32_from_bf16(source[i]);
        double error = value - wanted;
        errors->nans += isnan(value);
        if (!isfinite(error))
            continue;
        errors->signal += wanted * wanted;
        errors->noise += error * error;
        errors->worst = fabs(error) > errors->worst ? fabs(error) : errors->worst;
    }
}

static void count_worse(Errors *errors, const uint16_t *mine, const uint16_t *made,
                        const uint16_t *source, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        double x = f32_from_bf16(source[i]), value = f32_from_bf16(mine[i]);
        double promised = f32_from_bf16(made[i]);
        if (mine[i] == made[i] || isnan(promised))
            continue;
        double allowed = fabs(promised - x) + fabs(x) * scale_tolerance + nothing;
        errors->worse += !(fabs(value - x) <= allowed);
    }
}

static double sqnr_db(const Errors *errors)
{
    return errors->noise > 0 ? 10 * log10(errors->signal / errors->noise) : INFINITY;
}

// One slice of what quantising the source gives: compared with the parts, and measured.
static bool compare_slice(const Weight *weight, RewriteValues *values, int tensor, int64_t matrix,
                          int64_t first, int64_t rows, Errors *promised)
{
    const RewriteTensor *again = &values->rewrite->tensor[tensor];
    const QTensor *q = &again->stored.q;
    StoredSlice slice;
    StoredRange ranges[STORED_ROLES];
    ArenaMark mark = arena_mark(values->host);
    stored_slice_push(&again->stored, rows, values->host, &slice);
    rewrite_quantise_rows(values, tensor, matrix, first, &slice.q);
    uint16_t *made = ARENA_PUSH(values->host, uint16_t, rows * q->columns, MEMORY_SCRATCH);
    dequantise(&slice.q, DTYPE_BF16, made);
    const uint16_t *source = rewrite_read_rows(values, again, matrix * q->rows + first, rows);
    add_errors(promised, made, source, rows * q->columns);
    uint16_t *mine = ARENA_PUSH(values->host, uint16_t, rows * q->columns, MEMORY_SCRATCH);
    stored_read_values(&weight->stored, matrix, first, rows, values->host, mine);
    count_worse(promised, mine, made, source, rows * q->columns);
    int count = stored_slice_ranges(&again->stored, matrix, first, &slice, ranges);
    bool same = true;
    for (int i = 0; i < count; i++) {
        const StoredPart *part = &weight->stored.part[ranges[i].role];
        if (ranges[i].role == STORED_INPUT_SCALE)
            continue;
        same = same && part->present &&
               tensor_bytes(&part->tensor) ==
                   tensor_bytes(&again->stored.part[ranges[i].role].tensor) &&
               memcmp((const char *)part->tensor.data + ranges[i].offset, ranges[i].data,
                      ranges[i].bytes) == 0;
    }
    arena_release(values->host, mark);
    return same;
}

static bool compare_recipe(const Weight *weight, RewriteValues *values, Rewrite *source, int tensor,
                           const char *name, Errors *promised)
{
    RewriteTensor *again = &source->tensor[tensor];
    Recipe recipe;
    Error error = {0};
    if (!recipe_parse(name, &recipe, &error))
        return false;
    if (strcmp(name, weight->stored.recipe.name) == 0)
        recipe = weight->stored.recipe;
    StoredPlan plan = {&recipe, weight->stored.layout, weight->stored.q.rank,
                       weight->stored.q.shape, DTYPES};
    if (plan.layout == LAYOUT_TORCHAO_BIN)
        plan.layout = LAYOUT_TORCHAO;
    if (weight->stored.q.rule.scale_dtype == DTYPE_F32 ||
        weight->stored.q.rule.scale_dtype == DTYPE_BF16)
        plan.scale_dtype = weight->stored.q.rule.scale_dtype;
    if (!stored_plan(&plan, &again->stored, &error))
        return false;
    again->action = REWRITE_QUANTISE;
    rewrite_values_forget(values);
    bool same = true;
    const QTensor *q = &again->stored.q;
    int64_t step = stored_row_step(&again->stored);
    int64_t rows = step == 0 ? q->rows : chunk_rows(q->columns, step);
    *promised = (Errors){0};
    for (int64_t matrix = 0; matrix < q->matrices; matrix++)
        for (int64_t first = 0; first < q->rows; first += rows)
            same = compare_slice(weight, values, tensor, matrix, first,
                                 first + rows < q->rows ? rows : q->rows - first, promised) &&
                   same;
    return same;
}

static Errors errors_of(const Weight *weight, RewriteValues *values, const RewriteTensor *tensor)
{
    Errors errors = {0};
    const QTensor *q = &weight->stored.q;
    int64_t step = chunk_rows(q->columns, 1);
    uint16_t *mine = malloc((size_t)(step * q->columns) * sizeof(*mine) + 1);
    CHECK(mine, EXIT_CODE_HARDWARE, "free host memory", "no host memory for values");
    for (int64_t matrix = 0; matrix < q->matrices; matrix++)
        for (int64_t row = 0; row < q->rows; row += step) {
            int64_t rows = row + step < q->rows ? step : q->rows - row;
            stored_read_values(&weight->stored, matrix, row, rows, values->host, mine);
            const uint16_t *source =
                rewrite_read_rows(values, tensor, matrix * q->rows + row, rows);
            add_errors(&errors, mine, source, rows * q->columns);
        }
    free(mine);
    return errors;
}

static bool same_shape(const Tensor *a, const Tensor *b)
{
    return a->rank == b->rank &&
           memcmp(a->shape, b->shape, (size_t)a->rank * sizeof(a->shape[0])) == 0;
}

static void compare_quantised(const Weight *weight, RewriteValues *values, Rewrite *source,
                              int tensor, WeightComparison *result)
{
    Errors errors = errors_of(weight, values, &source->tensor[tensor]), promised = {0}, best = {0};
    const Scheme *own = scheme_find(weight->stored.recipe.name);
    bool same = compare_recipe(weight, values, source, tensor, result->recipe, &promised);
    best = promised;
    bool compressed = weight->stored.layout == LAYOUT_COMPRESSED && own;
    for (const Scheme *row = scheme_table; compressed && !same && row->recipe; row++) {
        if (row == own || !row->scheme || strcmp(row->scheme, own->scheme) != 0)
            continue;
        same = compare_recipe(weight, values, source, tensor, row->recipe, &best);
        if (same) {
            result->recipe = row->recipe;
            promised = best;
        }
    }
    result->max_error = errors.worst;
    result->sqnr_db = sqnr_db(&errors);
    result->promised_db = sqnr_db(&promised);
    result->nans = errors.nans;
    result->promised_nans = promised.nans;
    bool as_good = errors.nans <= promised.nans && promised.worse == 0;
    result->verdict = same ? WEIGHT_SAME : as_good ? WEIGHT_AS_GOOD : WEIGHT_WRONG;
}

static void compare_plain(const Weight *weight, RewriteValues *values, const RewriteTensor *tensor,
                          WeightComparison *result)
{
    DType dtype = weight->tensor.dtype, theirs = tensor->tensor.dtype;
    int64_t rows = rewrite_rows(tensor), columns = rewrite_columns(tensor);
    bool same = true, quantised = tensor->segments > 0 && tensor->segment[0].weight->quantised;
    bool turned = tensor->segments > 0 && tensor->segment[0].turned;
    bool real = weight_is_real(theirs);
    int64_t step = chunk_rows(columns, 1);
    uint64_t row_bytes = dtype_bytes(dtype, (uint64_t)columns);
    for (int64_t row = 0; row < rows; row += step) {
        int64_t count = row + step < rows ? step : rows - row;
        const char *mine = (const char *)weight->tensor.data + (uint64_t)row * row_bytes;
        if (dtype == theirs && !quantised && !turned) {
            for (int64_t done = 0; done < count;) {
                int64_t part = count - done;
                const void *data = rewrite_source_rows(tensor, row + done, &part);
                same = same && memcmp(mine + (uint64_t)done * row_bytes, data,
                                      (uint64_t)part * row_bytes) == 0;
                done += part;
            }
        } else if (real && dtype == DTYPE_BF16) {
            const void *data = rewrite_read_rows(values, tensor, row, count);
            same = same && memcmp(mine, data, (uint64_t)count * row_bytes) == 0;
        } else {
            same = false;
        }
    }
    result->sqnr_db = result->promised_db = same ? INFINITY : NAN;
    result->max_error = same ? 0 : NAN;
    result->verdict = same ? WEIGHT_SAME : WEIGHT_WRONG;
}

WeightComparison weight_compare(const Weight *weight, RewriteValues *values, Rewrite *source,
                                int index)
{
    WeightComparison result = {.verdict = WEIGHT_ELSEWHERE,
                               .recipe = weight->quantised ? weight->stored.recipe.name : "-"};
    if (index < 0)
        return result;
    const RewriteTensor *tensor = &source->tensor[index];
    char ours[48], theirs[48];
    if (!same_shape(&weight->tensor, &tensor->tensor)) {
        snprintf(result.changed, sizeof(result.changed), "%s, source %s",
                 tensor_describe(&weight->tensor, ours, sizeof(ours)),
                 tensor_describe(&tensor->tensor, theirs, sizeof(theirs)));
        return result;
    }
    if (weight->tensor.dtype != tensor->tensor.dtype)
        snprintf(result.changed, sizeof(result.changed), "%s, source %s",
                 dtype_row(weight->tensor.dtype)->name, dtype_row(tensor->tensor.dtype)->name);
    if (weight->quantised)
        compare_quantised(weight, values, source, index, &result);
    else
        compare_plain(weight, values, tensor, &result);
    return result;
}
