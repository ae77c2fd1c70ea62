// Comparison of wholes, and what a difference looks like.
#include "experiments/model/lm_oracle.h"
#include "results/table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// How well a hypothesis must explain a difference, relative to the norm.
#define FIT           2e-3
#define RATIO_ALARM   2.5e-3
#define ROWS_COMPARED 4096

typedef struct Pair {
    const LmOracle *oracle;
    LmSubject subject;
    int parameter;
    const float *ours, *theirs, *sum_of_copies;
    int64_t count, rows;
} Pair;

static const LmWhole *whole_of(const LmResult *result, LmSubject subject)
{
    const LmWhole *const wholes[LM_SUBJECTS] = {[LM_FIRST_GRADIENT] = &result->first_gradient,
                                                [LM_LAST_GRADIENT] = &result->last_gradient,
                                                [LM_VALUE] = &result->values};
    return wholes[subject];
}

static double product(const float *a, const float *b, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

// |a - k b| / |b|
static double misfit(const float *a, double k, const float *b, int64_t count)
{
    double sum = 0, norm = product(b, b, count);
    for (int64_t i = 0; i < count; i++) {
        double d = (double)a[i] - k * b[i];
        sum += d * d;
    }
    return norm > 0 ? sqrt(sum / norm) : sum > 0 ? INFINITY : 0;
}

static bool name_not_finite(const Pair *pair, char *cause, size_t bytes)
{
    for (int64_t i = 0; i < pair->count; i++)
        if (!isfinite(pair->ours[i])) {
            snprintf(cause, bytes,
                     "not finite from element %lld on: unwritten rows or padding "
                     "were read",
                     (long long)i);
            return true;
        }
    return false;
}

// The axes along which the parameter has copies, as text.
static void copied_axes(const Pair *pair, char *text, size_t bytes)
{
    const LmLayout *l = pair->oracle->layout;
    DTensor shard = lm_shard(l, pair->parameter);
    size_t used = 0;
    text[0] = '\0';
    for (int axis = 0; axis < shard.mesh->axes && used < bytes; axis++)
        if (shard.placement[axis].kind == PLACEMENT_REPLICATE && shard.mesh->ranks[axis] > 1)
            used += (size_t)snprintf(text + used, bytes - used, "%s%s", used ? "*" : "",
                                     shard.mesh->name[axis]);
}

static bool name_copies(const Pair *pair, char *cause, size_t bytes)
{
    char axes[64];
    if (!pair->sum_of_copies)
        return false;
    copied_axes(pair, axes, sizeof axes);
    if (misfit(pair->sum_of_copies, 1, pair->theirs, pair->count) < FIT)
        snprintf(cause, bytes,
                 "not reduced over %s: its copies are terms of a sum that nobody made", axes);
    else
        snprintf(cause, bytes, "its copies along %s differ", axes);
    return true;
}

static void append(char *text, size_t bytes, const char *between, const char *what)
{
    size_t used = strlen(text);
    snprintf(text + used, bytes - used, "%s%s", used ? between : "", what);
}

// k times the reference: which axes have that extent?
static bool name_factor(const Pair *pair, char *cause, size_t bytes)
{
    const Mesh *mesh = pair->oracle->layout->mesh;
    double norm = product(pair->theirs, pair->theirs, pair->count);
    double k = norm > 0 ? product(pair->ours, pair->theirs, pair->count) / norm : 1;
    if (fabs(k - 1) <= RATIO_ALARM ||
        misfit(pair->ours, k, pair->theirs, pair->count) > FIT * fabs(k))
        return false;
    char large[96] = "", small[96] = "";
    for (int members = 1; members < 1 << mesh->axes; members++) {
        char axes[64] = "";
        double extent = 1;
        for (int axis = 0; axis < mesh->axes; axis++)
            if (members >> axis & 1) {
                append(axes, sizeof axes, "*", mesh->name[axis]);
                extent *= mesh->ranks[axis];
                if (mesh->ranks[axis] == 1)
                    extent = NAN; // an axis of one rank explains nothing
            }
        if (fabs(k / extent - 1) < RATIO_ALARM)
            append(large, sizeof large, " or ", axes);
        if (fabs(k * extent - 1) < RATIO_ALARM)
            append(small, sizeof small, " or ", axes);
    }
    if (large[0])
        snprintf(cause, bytes, "%.0f times too large: off by %s (summed twice, or not divided)", k,
                 large);
    else if (small[0])
        snprintf(cause, bytes, "%.0f times too small: off by %s (divided, or not summed)", 1 / k,
                 small);
    else
        snprintf(cause, bytes, "%.6g times the reference, which is no extent of the mesh", k);
    return true;
}

static bool rows_equal(const float *a, const float *b, int64_t columns)
{
    float largest = 0;
    for (int64_t i = 0; i < columns; i++)
        largest = fmaxf(largest, fabsf(b[i]));
    for (int64_t i = 0; i < columns; i++)
        if (!(fabsf(a[i] - b[i]) <= 1e-3f * largest))
            return false;
    return true;
}

static int64_t count_zero_rows(const float *values, int64_t rows, int64_t columns)
{
    int64_t zeros = 0;
    for (int64_t row = 0; row < rows; row++) {
        int64_t i = 0;
        while (i < columns && values[row * columns + i] == 0)
            i++;
        zeros += i == columns;
    }
    return zeros;
}

static bool name_rows(const Pair *pair, char *cause, size_t bytes)
{
    int64_t rows = pair->rows, columns = rows > 0 ? pair->count / rows : 0, moved = 0, lost = 0;
    if (columns == 0 || rows > ROWS_COMPARED)
        return false;
    for (int64_t row = 0; row < rows; row++) {
        const float *ours = pair->ours + row * columns;
        if (rows_equal(ours, pair->theirs + row * columns, columns))
            continue;
        int64_t from = 0;
        while (from < rows && !rows_equal(ours, pair->theirs + from * columns, columns))
            from++;
        moved += from < rows;
        lost += from == rows;
    }
    int64_t zeros =
        count_zero_rows(pair->ours, rows, columns) - count_zero_rows(pair->theirs, rows, columns);
    if (zeros > 0 && lost <= zeros)
        snprintf(cause, bytes,
                 "padding leaked in: %lld rows of zeros too many, %lld rows displaced",
                 (long long)zeros, (long long)moved);
    else if (moved > 0 && lost == 0)
        snprintf(cause, bytes,
                 "rows permuted (%lld of %lld): a strided shard was read or written as a plain one",
                 (long long)moved, (long long)rows);
    else
        return false;
    return true;
}

static void name_cause(const Pair *pair, LmFinding *finding)
{
    typedef bool Name(const Pair *pair, char *cause, size_t bytes);
    static Name *const names[] = {name_not_finite, name_copies, name_factor, name_rows};
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (names[i](pair, finding->cause, sizeof finding->cause))
            return;
    snprintf(finding->cause, sizeof finding->cause, "no classic cause");
}

static double bound_of(const LmOracle *oracle, bool first)
{
    return first || oracle->bound < 0 ? oracle->bound : oracle->bound_later;
}

static LmFinding compare(const Pair *pair)
{
    LmFinding finding = {.ratio = 1, .good = true};
    double largest = 0, scale = 0;
    for (int64_t i = 0; i < pair->count; i++) {
        double error = fabs((double)pair->ours[i] - pair->theirs[i]);
        scale = fmax(scale, fabs(pair->theirs[i]));
        if (!(error <= largest)) {
            largest = isnan(error) ? INFINITY : error;
            finding.worst = i;
        }
    }
    bool first = pair->subject == LM_FIRST_GRADIENT;
    if (first || pair->oracle->bound < 0)
        finding.error = largest == 0 ? 0 : scale > 0 ? largest / scale : INFINITY;
    else
        finding.error = misfit(pair->ours, 1, pair->theirs, pair->count);
    double norm = product(pair->theirs, pair->theirs, pair->count);
    if (norm > 0)
        finding.ratio = sqrt(product(pair->ours, pair->ours, pair->count) / norm);
    if (pair->oracle->bound < 0)
        finding.good = memcmp(pair->ours, pair->theirs, (size_t)pair->count * sizeof(float)) == 0;
    else
        finding.good = finding.error <= bound_of(pair->oracle, first);
    finding.good = finding.good && !pair->sum_of_copies;
    if (!finding.good)
        name_cause(pair, &finding);
    return finding;
}

void lm_oracle_compare(const LmOracle *oracle, LmSubject subject, LmFinding *findings)
{
    const LmWhole *ours = whole_of(oracle->ours, subject),
                  *theirs = whole_of(oracle->theirs, subject);
    for (int i = 0; i < ours->count; i++) {
        const Tensor *whole = &oracle->layout->parameters->parameter[i].whole;
        Pair pair = {.oracle = oracle,
                     .subject = subject,
                     .parameter = i,
                     .ours = ours->tensor[i],
                     .theirs = theirs->tensor[i],
                     .sum_of_copies = ours->sum_of_copies[i],
                     .count = tensor_elements(whole),
                     .rows = whole->shape[0]};
        findings[i] = compare(&pair);
    }
}

static double relative(double a, double b)
{
    return a == b || (isnan(a) && isnan(b)) ? 0 : fabs(a - b) / fmax(fabs(b), 1e-30);
}

static bool agrees(const LmOracle *oracle, int step, double ours, double theirs)
{
    if (oracle->bound < 0)
        return ours == theirs || (isnan(ours) && isnan(theirs));
    return relative(ours, theirs) <= bound_of(oracle, step == 0);
}

// Causes that one parameter alone does not show.
static const char *common_cause(const LmOracle *oracle, const LmFinding *all)
{
    const LmResult *ours = oracle->ours, *theirs = oracle->theirs;
    const LmLayout *l = oracle->layout;
    int count = l->parameters->count, bad[LM_SUBJECTS] = {0};
    bool uneven = false;
    for (int subject = 0; subject < LM_SUBJECTS; subject++)
        for (int i = 0; i < count; i++)
            bad[subject] += !all[subject * count + i].good;
    for (int d = 1; d < l->data.ranks; d++)
        uneven = uneven || l->tokens_of_data[d] != l->tokens_of_data[0];
    if (bad[LM_FIRST_GRADIENT] == 0 && !agrees(oracle, 0, ours->norm[0], theirs->norm[0]))
        return "gradients agree, their norm does not: elements counted twice or not at all across "
               "meshes";
    if (bad[LM_FIRST_GRADIENT] == 0 && ours->steps > 1 &&
        agrees(oracle, 0, ours->loss[0], theirs->loss[0]) &&
        !agrees(oracle, 1, ours->loss[1], theirs->loss[1]))
        return "step 1 agrees, the next loss does not: a forward used parameters of an earlier "
               "step";
    if (bad[LM_FIRST_GRADIENT] == count && uneven &&
        agrees(oracle, 0, ours->loss[0], theirs->loss[0]))
        return "the loss agrees, no gradient does, tokens are uneven: divided by a rank's own "
               "tokens";
    return NULL;
}

// Differences that stand at the beginning: those of the first gradients; where there are none,
// those of the rest, unless all have one cause.
static bool is_root(const LmOracle *oracle, const LmFinding *all, int index)
{
    int count = oracle->layout->parameters->count, bad = 0;
    for (int i = 0; i < count; i++)
        bad += !all[i].good;
    if (bad > 0)
        return index < count && !all[index].good;
    return !all[index].good && !common_cause(oracle, all);
}

// ---- checks ----

static const char *subject_name(const LmOracle *oracle, LmSubject subject, char *text, size_t bytes)
{
    const char *const formats[LM_SUBJECTS] = {[LM_FIRST_GRADIENT] = "gradients of step 1",
                                              [LM_LAST_GRADIENT] = "gradients of step %d",
                                              [LM_VALUE] = "parameters after step %d"};
    if (subject == LM_FIRST_GRADIENT)
        snprintf(text, bytes, "%s", formats[subject]);
    else if (subject == LM_LAST_GRADIENT)
        snprintf(text, bytes, "gradients of step %d", oracle->ours->steps);
    else
        snprintf(text, bytes, "parameters after step %d", oracle->ours->steps);
    return text;
}

static void set_verdict(const LmOracle *oracle, bool first, ResultCheck *check)
{
    bool bits = oracle->bound < 0;
    check->bound = bits ? NAN : bound_of(oracle, first);
    if (bits)
        check->error = NAN;
    snprintf(check->verdict, sizeof check->verdict, "%s",
             !check->good ? "differs"
             : bits       ? "equal"
                          : "within bound");
}

static ResultCheck check_numbers(const LmOracle *oracle, const char *name, const double *ours,
                                 const double *theirs)
{
    ResultCheck check = {.good = true};
    snprintf(check.name, sizeof check.name, "%s", name);
    for (int step = 0; step < oracle->ours->steps; step++) {
        check.error = fmax(check.error, relative(ours[step], theirs[step]));
        if (!check.good || agrees(oracle, step, ours[step], theirs[step]))
            continue;
        check.good = false;
        snprintf(check.detail, sizeof check.detail, "step %d: %.9g here, %.9g on one rank",
                 step + 1, ours[step], theirs[step]);
    }
    if (check.good)
        snprintf(check.detail, sizeof check.detail, "%.9g ... %.9g", ours[0],
                 ours[oracle->ours->steps - 1]);
    set_verdict(oracle, oracle->ours->steps == 1, &check);
    return check;
}

// The bias moves by signs of counts: the same on every mesh as long as tokens choose alike.
static ResultCheck check_bias(const LmOracle *oracle)
{
    const LmConfig *c = oracle->layout->config;
    ResultCheck check = {.error = NAN, .bound = NAN, .name = "experts' bias", .good = true};
    int differ = 0, count = c->layers * c->moe.experts;
    for (int i = 0; i < count; i++)
        differ += oracle->ours->bias[i] != oracle->theirs->bias[i];
    // Where sums are in another order, a token between two experts may tip a count over the mean.
    check.good = oracle->bound < 0 ? differ == 0 : differ * 10 <= count;
    snprintf(check.verdict, sizeof check.verdict, "%s",
             differ == 0  ? "equal"
             : check.good ? "within bound"
                          : "differs");
    snprintf(check.detail, sizeof check.detail, "%d of %d values differ", differ, count);
    return check;
}

static ResultCheck check_subject(const LmOracle *oracle, LmSubject subject,
                                 const LmFinding *findings)
{
    ResultCheck check = {.good = true};
    int count = oracle->layout->parameters->count, bad = 0, worst = 0;
    subject_name(oracle, subject, check.name, sizeof check.name);
    for (int i = 0; i < count; i++) {
        bad += !findings[i].good;
        if (findings[i].error > findings[worst].error)
            worst = i;
        check.error = fmax(check.error, findings[i].error);
    }
    check.good = bad == 0;
    if (bad)
        snprintf(check.detail, sizeof check.detail, "%d of %d tensors differ", bad, count);
    else if (oracle->bound < 0)
        snprintf(check.detail, sizeof check.detail, "%d tensors", count);
    else
        snprintf(check.detail, sizeof check.detail, "%d tensors, worst %s", count,
                 oracle->layout->parameters->parameter[worst].name);
    set_verdict(oracle, subject == LM_FIRST_GRADIENT, &check);
    return check;
}

int lm_oracle_check(const LmOracle *oracle, LmFinding *all, ResultCheck *checks)
{
    int used = 0, count = oracle->layout->parameters->count;
    checks[used++] = check_numbers(oracle, "losses", oracle->ours->loss, oracle->theirs->loss);
    if (!isnan(oracle->theirs->norm[0]))
        checks[used++] =
            check_numbers(oracle, "gradient norms", oracle->ours->norm, oracle->theirs->norm);
    if (oracle->layout->config->moe.expert_bias)
        checks[used++] = check_bias(oracle);
    for (int subject = 0; subject < LM_SUBJECTS; subject++) {
        LmFinding *findings = all + subject * count;
        lm_oracle_compare(oracle, (LmSubject)subject, findings);
        if (subject == LM_LAST_GRADIENT && oracle->ours->steps == 1)
            continue;
        checks[used++] = check_subject(oracle, (LmSubject)subject, findings);
    }
    const char *common = common_cause(oracle, all);
    if (common) {
        ResultCheck check = {.error = NAN, .bound = NAN, .verdict = "cause"};
        snprintf(check.name, sizeof check.name, "all parameters");
        snprintf(check.detail, sizeof check.detail, "%s", common);
        checks[used++] = check;
    }
    for (int i = 0; i < LM_SUBJECTS * count && used < LM_CHECKS_MAX; i++) {
        if (!is_root(oracle, all, i))
            continue;
        ResultCheck check = {.error = all[i].error, .bound = NAN, .verdict = "cause"};
        snprintf(check.name, sizeof check.name, "%s",
                 oracle->layout->parameters->parameter[i % count].name);
        snprintf(check.detail, sizeof check.detail, "%s", all[i].cause);
        checks[used++] = check;
    }
    return used;
}

void lm_oracle_print(const LmOracle *oracle, const LmFinding *all)
{
    static const char *const columns[] = {
        "parameter", "placement", ">|ours|/|theirs|", ">error", "worst at", "cause", NULL};
    int count = oracle->layout->parameters->count;
    Table *table = table_create(columns);
    for (int i = 0; i < LM_SUBJECTS * count; i++) {
        char text[128];
        const LmFinding *f = &all[i];
        if (!is_root(oracle, all, i))
            continue;
        table_cell(table, "%s", oracle->layout->parameters->parameter[i % count].name);
        table_cell(table, "%s", lm_describe(oracle->layout, i % count, text, sizeof text));
        table_cell(table, "%.6g", f->ratio);
        table_cell(table, "%.3g", f->error);
        table_cell(table, "%lld", (long long)f->worst);
        table_cell(table, "%s", f->cause);
    }
    table_print(table, stdout);
    table_destroy(table);
}
