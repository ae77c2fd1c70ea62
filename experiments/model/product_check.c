// product_check.c -- sampled rows of a product, recomputed in double.
#include "experiments/model/product_check.h"
#include "kernels/cpu_math.h"
#include "quant/quantise.h"
#include "quant/units.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

enum { STRIP = 32 };

// A sampled row of the product, what it was made of, and its group.
typedef struct Sample {
    int64_t row;
    int group;
    float *quantised, *plain; // [k] of a
} Sample;

typedef struct Check {
    const QuantGemm *product; // on the host
    bool tensor_cores;
    const void *a, *b; // unquantised
    Sample *sample;
    int samples;
    double signal, noise;
    ProductCheck worst;
} Check;

static void load_plain(const QuantGemm *p, const void *values, int64_t row, float *out)
{
    for (int64_t k = 0; k < p->k; k++)
        out[k] = cpu_load(values, p->dtype, row * p->k + k);
}

// What the operand's row stands for; `values`: the operand before quantising.
static void load_quantised(const QuantGemm *p, const QuantOperand *o, const void *values,
                           UnitRow at, int64_t rows, float *out)
{
    DType rounding = p->product == PRODUCT_VALUES ? p->dtype : DTYPE_F32;
    if (o->quantised)
        units_of_values(&o->q, rounding, at, out, 1);
    else
        load_plain(p, values, at.matrix * rows + at.row, out);
}

static bool is_whole(const QuantOperand *o)
{
    return o->quantised && (o->q.rule.code == CODE_INT8 || o->q.rule.code == CODE_INT4);
}

static double bound_of(const QuantGemm *p, bool tensor_cores, double exact, double size)
{
    const QuantRule *a = &p->a.q.rule;
    bool whole = p->product != PRODUCT_VALUES && is_whole(&p->a) && is_whole(&p->b);
    bool few_bits = p->product == PRODUCT_SCALED && p->a.quantised && a->code == CODE_E4M3 &&
                    a->method != QUANT_MX;
    double unit = p->dtype == DTYPE_BF16 ? 1.0 / 256 : FLT_EPSILON / 2.0;
    bool two_levels = p->product == PRODUCT_SCALED && p->a.quantised && p->a.q.rule.two_level;
    int roundings = 1 + (p->product == PRODUCT_ROUNDED) + 2 * two_levels;
    int64_t block = p->k;
    if (p->product == PRODUCT_SCALED && p->b.q.rule.block_columns > 0)
        block = p->b.q.rule.block_columns;
    double blocks = block > 0 ? (double)p->k / (double)block + 1 : 1;
    double sums = ((double)p->k + 4 * blocks) * FLT_EPSILON;
    if (tensor_cores && !whole)
        sums = 2 * sums + (few_bits ? 0x1p-10 : 0);
    return sums * size + 1.02 * roundings * unit * fabs(exact) + FLT_MIN;
}

static void compare(Check *check, const Sample *s, int64_t n, const float *b, const float *plain_b)
{
    const QuantGemm *p = check->product;
    double exact = 0, size = 0, plain = 0;
    for (int64_t k = 0; k < p->k; k++) {
        double term = (double)s->quantised[k] * (double)b[k];
        exact += term;
        size += fabs(term);
        plain += (double)s->plain[k] * (double)plain_b[k];
    }
    double ours = cpu_load(p->c, p->out_dtype, s->row * p->n + n);
    double error = fabs(ours - exact) / bound_of(p, check->tensor_cores, exact, size);
    if (isnan(exact) || isinf(exact)) // nothing is promised but that it shows
        error = isfinite(ours) ? INFINITY : 0;
#pragma omp critical(product_check)
    {
        check->signal += plain * plain;
        check->noise += (ours - plain) * (ours - plain);
        check->worst.values++;
        if (!(error <= check->worst.error)) {
            check->worst.error = error;
            check->worst.row = s->row;
            check->worst.n = n;
            check->worst.ours = ours;
            check->worst.exact = exact;
        }
    }
}

static void compare_strip(Check *check, int group, int64_t first, float *rows)
{
    const QuantGemm *p = check->product;
    for (int64_t n = first; n < first + STRIP && n < p->n; n++) {
        load_quantised(p, &p->b, check->b, (UnitRow){group, n}, p->n, rows);
        load_plain(p, check->b, group * p->n + n, rows + p->k);
        for (int i = 0; i < check->samples; i++)
            if (check->sample[i].group == group)
                compare(check, &check->sample[i], n, rows, rows + p->k);
    }
}

static void compare_group(Check *check, int group)
{
    const QuantGemm *p = check->product;
    bool sampled = false;
    for (int i = 0; i < check->samples; i++)
        sampled = sampled || check->sample[i].group == group;
    if (!sampled)
        return;
#pragma omp parallel num_threads(p->threads)
    {
        float *rows = malloc(2 * (size_t)p->k * sizeof(float) + 1);
        CHECK(rows != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for two rows");
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < p->n; first += STRIP)
            compare_strip(check, group, first, rows);
        free(rows);
    }
}

static int64_t rows_of(const QuantGemm *p, int group)
{
    return p->group_rows ? p->group_rows[group] : p->rows_max;
}

// Rows first, first + step, ... of all groups' rows, counted through.
static void choose_rows(Check *check, int64_t rows_max)
{
    const QuantGemm *p = check->product;
    int64_t all = 0, count = 0;
    for (int group = 0; group < p->groups; group++)
        all += rows_of(p, group);
    int64_t step = all > rows_max ? all / rows_max : 1;
    for (int group = 0; group < p->groups; group++)
        for (int64_t i = 0; i < rows_of(p, group); i++, count++) {
            if (count % step != 0 || check->samples == rows_max)
                continue;
            Sample *s = &check->sample[check->samples++];
            s->row = (p->group_first ? p->group_first[group] : 0) + i;
            s->group = group;
            s->quantised = malloc(2 * (size_t)p->k * sizeof(float) + 1);
            CHECK(s->quantised != NULL, EXIT_CODE_HARDWARE, "free some memory",
                  "no memory for two rows");
            s->plain = s->quantised + p->k;
            load_quantised(p, &p->a, check->a, (UnitRow){0, s->row}, p->rows_max, s->quantised);
            load_plain(p, check->a, s->row, s->plain);
        }
}

// ---- from the device ----

// Host memory with the same bytes, or NULL for nothing.
static void *download(const void *from, uint64_t bytes, Stream stream)
{
    if (!from || stream.device == DEVICE_CPU)
        return (void *)(uintptr_t)from;
    void *to = device_allocate(DEVICE_CPU, bytes);
    device_copy(to, from, bytes, stream);
    stream_wait(stream);
    return to;
}

static void forget(const void *memory, const void *device)
{
    if (memory != device)
        device_free(DEVICE_CPU, (void *)(uintptr_t)memory);
}

// All of the product that a check reads.
static QuantGemm product_on_host(const QuantGemm *p, Stream stream)
{
    QuantGemm host = *p;
    uint64_t list = (uint64_t)p->groups * sizeof(int32_t);
    host.group_first = download(p->group_first, list, stream);
    host.group_rows = download(p->group_rows, list, stream);
    host.c = download(p->c, dtype_bytes(p->out_dtype, (uint64_t)(p->rows_max * p->n)), stream);
    if (p->a.quantised)
        host.a.q = qtensor_on_host(&p->a.q, stream);
    if (p->b.quantised)
        host.b.q = qtensor_on_host(&p->b.q, stream);
    return host;
}

static void host_free(const QuantGemm *p, QuantGemm *host)
{
    forget(host->group_first, p->group_first);
    forget(host->group_rows, p->group_rows);
    forget(host->c, p->c);
    if (p->a.quantised)
        qtensor_host_free(&p->a.q, &host->a.q);
    if (p->b.quantised)
        qtensor_host_free(&p->b.q, &host->b.q);
}

ProductCheck product_check(const QuantGemm *product, const void *a, const void *b, int64_t rows_max,
                           Stream stream)
{
    QuantGemm host = product_on_host(product, stream);
    Check check = {.product = &host,
                   .tensor_cores = stream.device == DEVICE_CUDA && !product->bits_of_cpu,
                   .a = a,
                   .b = b};
    check.sample = calloc((size_t)rows_max, sizeof(Sample));
    CHECK(check.sample != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for %lld rows",
          (long long)rows_max);
    choose_rows(&check, rows_max);
    for (int group = 0; group < product->groups; group++)
        compare_group(&check, group);
    for (int i = 0; i < check.samples; i++)
        free(check.sample[i].quantised);
    free(check.sample);
    host_free(product, &host);
    check.worst.sqnr_db = 10 * log10(check.signal / check.noise);
    return check.worst;
}

double cast_sqnr_db(const QTensor *q, const void *values)
{
    double signal = 0, noise = 0;
#pragma omp parallel for schedule(static) reduction(+ : signal, noise)
    for (int64_t i = 0; i < q->matrices * q->rows; i++)
        for (int64_t column = 0; column < q->columns; column++) {
            double value = cpu_load(values, q->input, i * q->columns + column);
            double error = dequantise_element(q, i / q->rows, i % q->rows, column) - value;
            signal += value * value;
            noise += error * error;
        }
    return 10 * log10(signal / noise);
}
