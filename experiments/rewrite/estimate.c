// estimate.c -- one thread casts real rows of every recipe and makes a digest; threads and
// ranks are taken to add up, except on the way to a GPU, which they share.
//
// The disk is not tried: a second of it says nothing about the minutes that follow, and a dry run
// writes nothing. Its rate is a stated guess that a user can correct by scaling.
#include "experiments/rewrite/estimate.h"

#include "experiments/rewrite/units.h"
#include "experiments/rewrite/values.h"
#include "harness/clock.h"
#include "quant/digest.h"

#include <stdlib.h>
#include <string.h>

enum { RATES_MAX = 16, TRIES = 3, DIGEST_BYTES = 4 << 20 };
static const double assumed_disk_bytes_per_s = 1e9;
static const double assumed_bus_bytes_per_s = 25e9; // to a GPU, of all threads of a rank

typedef struct KnownRate {
    const char *recipe;
    double seconds_per_byte;
} KnownRate;

// The best of a few: the first also brings pages in and, of a tensor in pieces, measures it.
static double cast_seconds_per_byte(RewriteValues *values, int index)
{
    const RewriteTensor *tensor = &values->rewrite->tensor[index];
    int64_t rows = rewrite_unit_rows(values->rewrite, tensor, values->device);
    double best = 0;
    for (int i = 0; i < TRIES; i++) {
        ArenaMark mark = arena_mark(values->host);
        StoredSlice slice;
        stored_slice_push(&tensor->stored, rows, values->host, &slice);
        double start = clock_s();
        rewrite_quantise_rows(values, index, 0, 0, &slice.q);
        double seconds = clock_s() - start;
        best = i == 0 || seconds < best ? seconds : best;
        arena_release(values->host, mark);
    }
    return best / (double)(rows * rewrite_columns(tensor) * 2);
}

// What all casts of the plan would take one thread.
static double cast_seconds(RewriteValues *values, double *bytes)
{
    const Rewrite *rewrite = values->rewrite;
    KnownRate known[RATES_MAX];
    int count = 0;
    double seconds = 0;
    for (int i = 0; i < rewrite->count; i++) {
        const RewriteTensor *tensor = &rewrite->tensor[i];
        int64_t elements = tensor_elements(&tensor->tensor);
        if (tensor->action != REWRITE_QUANTISE || elements == 0)
            continue;
        int k = 0;
        while (k < count && strcmp(known[k].recipe, tensor->stored.recipe.name) != 0)
            k++;
        if (k == count && count < RATES_MAX)
            known[count++] =
                (KnownRate){tensor->stored.recipe.name, cast_seconds_per_byte(values, i)};
        k = k < count ? k : count - 1;
        *bytes += 2.0 * (double)elements;
        seconds += 2.0 * (double)elements * known[k].seconds_per_byte;
    }
    return seconds;
}

static double digest_rate(void)
{
    char text[DIGEST_TEXT_BYTES], *data = calloc(1, DIGEST_BYTES);
    CHECK(data, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a digest");
    Digest *digest = digest_create();
    double start = clock_s();
    digest_add(digest, data, DIGEST_BYTES);
    digest_finish(digest, text);
    free(data);
    return DIGEST_BYTES / (clock_s() - start);
}

// Each thread a unit's values and its codes; and the program itself.
static uint64_t memory_of(const Rewrite *rewrite, const RewriteEstimate *estimate)
{
    uint64_t largest = 0;
    for (int i = 0; i < rewrite->count; i++) {
        const RewriteTensor *tensor = &rewrite->tensor[i];
        uint64_t values = (uint64_t)(rewrite_unit_rows(rewrite, tensor, estimate->device) *
                                     rewrite_columns(tensor));
        uint64_t unit = dtype_bytes(tensor->tensor.dtype, values);
        largest = unit > largest ? unit : largest;
    }
    return 2 * (uint64_t)estimate->workers * largest + ((uint64_t)64 << 20);
}

static void measure(const Run *run, RewriteValues *values, RewriteEstimate *estimate)
{
    const Rewrite *rewrite = values->rewrite;
    double quantised = 0, casts = cast_seconds(values, &quantised);
    casts /= (double)estimate->workers * run->ranks;
    double bus = quantised / (assumed_bus_bytes_per_s * run->ranks);
    if (estimate->device != DEVICE_CPU && casts < bus)
        casts = bus;
    estimate->cast_bytes_per_s = casts > 0 ? quantised / casts : 0;
    estimate->seconds =
        (double)(rewrite->source.bytes + rewrite->bytes) / estimate->disk_bytes_per_s;
    if (casts > estimate->seconds) {
        estimate->seconds = casts;
        estimate->limit = "the casting";
    }
    if (!rewrite->request->hash)
        return;
    estimate->digest_bytes_per_s = digest_rate();
    double digests = (double)rewrite->bytes / estimate->digest_bytes_per_s;
    if (digests > estimate->seconds) {
        estimate->seconds = digests;
        estimate->limit = "SHA-256";
    }
}

RewriteEstimate rewrite_estimate(const Run *run, const Rewrite *rewrite)
{
    RewriteValues values;
    rewrite_values_create(run, rewrite, &values);
    values.threads = 1;
    RewriteEstimate estimate = {.disk_bytes_per_s = assumed_disk_bytes_per_s,
                                .limit = "the disk",
                                .device = values.device,
                                .workers = rewrite_workers(run, values.device)};
    estimate.memory_bytes = memory_of(rewrite, &estimate);
    if (run->rank == 0)
        measure(run, &values, &estimate);
    rewrite_values_destroy(&values);
    return estimate;
}
