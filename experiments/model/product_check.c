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
    const QuantGemm *product;
    const void *b; // unquantised
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

// What the operand's row stands for.
static void load_quantised(const QuantGemm *p, const QuantOperand *o, UnitRow at, int64_t rows,
                           float *out)
{
    DType rounding = p->product == PRODUCT_VALUES ? p->dtype : DTYPE_F32;
    if (o->quantised)
        units_of_values(&o->q, rounding, at, out, 1);
    else
        load_plain(p, o->values, at.matrix * rows + at.row, out);
}

static double bound_of(const QuantGemm *p, double exact, double size)
{
    double unit = p->dtype == DTYPE_BF16 ? 1.0 / 256 : FLT_EPSILON / 2.0;
    bool two_levels = p->product == PRODUCT_SCALED && p->a.quantised && p->a.q.rule.two_level;
    int roundings = 1 + (p->product == PRODUCT_ROUNDED) + 2 * two_levels;
    int64_t block = p->k;
    if (p->product == PRODUCT_SCALED && p->b.q.rule.block_columns > 0)
        block = p->b.q.rule.block_columns;
    double blocks = block > 0 ? (double)p->k / (double)block + 1 : 1;
    return ((double)p->k + 4 * blocks) * FLT_EPSILON * size +
           1.02 * roundings * unit * fabs(exact) + FLT_MIN;
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
    double error = fabs(ours - exact) / bound_of(p, exact, size);
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
        load_quantised(p, &p->b, (UnitRow){group, n}, p->n, rows);
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

// Rows first, first + step, ... of all groups' rows, counted through.
static void choose_rows(Check *check, const void *a, int64_t rows_max)
{
    const QuantGemm *p = check->product;
    int64_t all = 0, count = 0;
    for (int group = 0; group < p->groups; group++)
        all += p->group_rows[group];
    int64_t step = all > rows_max ? all / rows_max : 1;
    for (int group = 0; group < p->groups; group++)
        for (int64_t i = 0; i < p->group_rows[group]; i++, count++) {
            if (count % step != 0 || check->samples == rows_max)
                continue;
            Sample *s = &check->sample[check->samples++];
            s->row = p->group_first[group] + i;
            s->group = group;
            s->quantised = malloc(2 * (size_t)p->k * sizeof(float) + 1);
            CHECK(s->quantised != NULL, EXIT_CODE_HARDWARE, "free some memory",
                  "no memory for two rows");
            s->plain = s->quantised + p->k;
            load_quantised(p, &p->a, (UnitRow){0, s->row}, p->rows_max, s->quantised);
            load_plain(p, a, s->row, s->plain);
        }
}

ProductCheck product_check(const QuantGemm *product, const void *a, const void *b, int64_t rows_max)
{
    Check check = {.product = product, .b = b};
    check.sample = calloc((size_t)rows_max, sizeof(Sample));
    CHECK(check.sample != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for %lld rows",
          (long long)rows_max);
    choose_rows(&check, a, rows_max);
    for (int group = 0; group < product->groups; group++)
        compare_group(&check, group);
    for (int i = 0; i < check.samples; i++)
        free(check.sample[i].quantised);
    free(check.sample);
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
