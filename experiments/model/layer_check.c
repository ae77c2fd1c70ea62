// layer_check.c -- which references, which bounds.
#include "experiments/model/layer_check.h"

#include <math.h>
#include <stdio.h>

#include "experiments/model/layer_compare.h"

#define BOUND_F32           1e-5
#define BOUND_BF16          2e-2
#define BOUND_CODES         6.25e-2 // another order of sums may choose the code next to it
#define CPU_REFERENCE_FLOPS 2e10
#define QUALITY_DB          6 // of any recipe; 4-bit weights have some 20, products of both some 12

static double bound_of(const LayerCheck *check)
{
    const MoeConfig *c = &check->source->config;
    if (check->device == DEVICE_CUDA && c->recipe && c->recipe->activations.method != QUANT_NONE)
        return BOUND_CODES;
    return c->dtype == DTYPE_F32 ? BOUND_F32 : BOUND_BF16;
}

static ResultCheck skipped(void)
{
    return (ResultCheck){.error = NAN, .bound = NAN, .good = true, .verdict = "skipped"};
}

static bool report(const LayerCheck *check, const ResultCheck *result)
{
    result_add_check(check->writer, result);
    return result->good;
}

// What a reference needs against what there is.
static bool reference_fits(const LayerReference *reference, char *why, size_t size)
{
    DeviceInfo info = device_info(reference->device, 0); // the references are rank 0's
    uint64_t needed = layer_reference_bytes(reference);
    if ((double)needed <= 0.8 * (double)info.memory_free_bytes)
        return true;
    snprintf(why, size, "it needs %.1f GiB, %.1f GiB are free", (double)needed / 1073741824.0,
             (double)info.memory_free_bytes / 1073741824.0);
    return false;
}

static LayerReference reference_of(const LayerCheck *check)
{
    return (LayerReference){.source = check->source,
                            .spread = check->spread,
                            .exact = check->exact,
                            .forward_only = check->forward_only,
                            .align = check->align,
                            .threads = check->threads,
                            .device = check->device};
}

// One comparison with a 1-rank reference, or the reason why there is none. bound < 0: bit for bit.
static bool compare_with(const LayerCheck *check, const LayerResult *ours, const char *name,
                         const LayerReference *reference, double bound)
{
    ResultCheck result = skipped();
    snprintf(result.name, sizeof result.name, "%s", name);
    bool scattered = check->source->config.routing != ROUTING_MODEL &&
                     !layer_groups_are_contiguous(check->spread);
    if (scattered)
        snprintf(result.detail, sizeof result.detail,
                 "even and skewed routing go by token number, and this mesh scatters them");
    else if (reference_fits(reference, result.detail, sizeof result.detail)) {
        LayerResult theirs = layer_reference(reference);
        result = bound < 0 ? layer_compare_bits(name, ours, &theirs)
                           : layer_compare_within(name, ours, &theirs, bound);
        layer_result_destroy(&theirs);
    }
    return report(check, &result);
}

// What the recipe costs: signal over noise against the same layer without it.
static bool check_quality(const LayerCheck *check, const LayerResult *ours)
{
    static const LayerOutput compared[] = {OUTPUT_Y, OUTPUT_GRAD_X, OUTPUT_GRAD_W1, OUTPUT_GRAD_W3,
                                           OUTPUT_GRAD_W2};
    LayerSource plain = *check->source;
    plain.config.recipe = NULL;
    LayerReference reference = reference_of(check);
    reference.source = &plain;
    ResultCheck result = skipped();
    snprintf(result.name, sizeof result.name, "quality of %.40s",
             check->source->config.recipe->name);
    if (reference_fits(&reference, result.detail, sizeof result.detail)) {
        LayerResult exact = layer_reference(&reference);
        size_t length = 0;
        for (size_t i = 0; i < COUNT_OF(compared); i++) {
            double db = layer_compare_sqnr(ours, &exact, compared[i]);
            if (isnan(db))
                continue;
            length += (size_t)snprintf(
                result.detail + length, sizeof result.detail - length, "%s%s %.1f dB",
                length ? ", " : "SQNR: ", layer_output_name(compared[i]), db);
            result.good = result.good && db >= QUALITY_DB;
        }
        snprintf(result.verdict, sizeof result.verdict, result.good ? "within bound" : "differs");
        layer_result_destroy(&exact);
    }
    return report(check, &result);
}

bool layer_check_references(const LayerCheck *check, const LayerResult *ours)
{
    const char *alike =
        check->exact ? "1 rank, bit for bit" : "1 rank, sums grouped alike, bit for bit";
    LayerReference reference = reference_of(check);
    bool good = compare_with(check, ours, alike, &reference, -1);
    reference.exact = true;
    if (!check->exact)
        good = compare_with(check, ours, "1 rank, canonical order", &reference, bound_of(check)) &&
               good;
    const MoeConfig *c = &check->source->config;
    if (c->recipe)
        good = check_quality(check, ours) && good;
    double flops = 18.0 * (double)check->source->tokens * c->top_k * (double)(c->hidden * c->inner);
    if (check->device != DEVICE_CUDA || flops > CPU_REFERENCE_FLOPS)
        return good;
    reference.device = DEVICE_CPU;
    return compare_with(check, ours, "1 rank on the CPU", &reference, bound_of(check)) && good;
}

// On several ranks without a 1-rank order the canonical result differs by rounding only.
bool layer_check_expectations(const LayerCheck *check, const LayerResult *ours)
{
    ResultCheck results[LAYER_OUTPUTS];
    int count = layer_compare_expected(check->file, ours, bound_of(check), results);
    bool good = true;
    for (int i = 0; i < count; i++)
        good = report(check, &results[i]) && good;
    return good;
}
