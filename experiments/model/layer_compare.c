// layer_compare.c -- whole results side by side, and fingerprints of what one rank has.
#include "experiments/model/layer_compare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DISTANCE_BLOCK = 4096 };

// "[3, 17]" of a flat index.
static void coordinate(const Tensor *tensor, int64_t index, char *text, size_t bytes)
{
    int64_t at[TENSOR_RANK_MAX];
    for (int d = tensor->rank - 1; d >= 0; d--) {
        at[d] = index % tensor->shape[d];
        index /= tensor->shape[d];
    }
    size_t used = 0;
    text[0] = '\0';
    for (int d = 0; d < tensor->rank && used < bytes; d++)
        used += (size_t)snprintf(text + used, bytes - used, "%s%lld%s", d ? ", " : "[",
                                 (long long)at[d], d == tensor->rank - 1 ? "]" : "");
}

// NaN is equal to NaN of the same bits: the comparison is of bytes, values are only printed.
static bool describe_difference(const Tensor *ours, const Tensor *theirs, const char *name,
                                ResultCheck *check)
{
    uint64_t bytes = tensor_bytes(ours), size = dtype_bytes(ours->dtype, 1);
    if (memcmp(ours->data, theirs->data, bytes) == 0)
        return false;
    const uint8_t *a = ours->data, *b = theirs->data;
    int64_t first = -1, differing = 0, count = tensor_elements(ours);
    for (int64_t i = 0; i < count; i++) {
        if (memcmp(a + (uint64_t)i * size, b + (uint64_t)i * size, size) == 0)
            continue;
        first = first < 0 ? i : first;
        differing++;
    }
    char where[96];
    coordinate(ours, first, where, sizeof where);
    snprintf(check->detail, sizeof check->detail,
             "%s%s: %.9g here, %.9g in the reference; %lld of %lld values differ", name, where,
             tensor_value(ours, first), tensor_value(theirs, first), (long long)differing,
             (long long)count);
    return true;
}

ResultCheck layer_compare_bits(const char *name, const LayerResult *ours, const LayerResult *theirs)
{
    ResultCheck check = {.error = NAN, .bound = NAN, .good = true};
    snprintf(check.name, sizeof check.name, "%s", name);
    size_t used = 0;
    for (int i = 0; i < LAYER_OUTPUTS && check.good; i++) {
        const Tensor *a = &ours->tensor[i], *b = &theirs->tensor[i];
        if (!a->data || !b->data)
            continue;
        if (describe_difference(a, b, layer_output_name((LayerOutput)i), &check))
            check.good = false;
        else if (used < sizeof check.detail)
            used += (size_t)snprintf(check.detail + used, sizeof check.detail - used, "%s%s",
                                     used ? " " : "", layer_output_name((LayerOutput)i));
    }
    snprintf(check.verdict, sizeof check.verdict, "%s", check.good ? "equal" : "differs");
    return check;
}

// max |ours - expected| / max |expected| over the rows that are not skipped (skip may be NULL), and
// where it is largest. Infinite when anything is not finite. Threads look at blocks; the result
// does not depend on how many there are, except for which of several equal worst places is named.
typedef struct Distance {
    double largest, scale;
    int64_t worst;
} Distance;

static Distance distance_of_block(const Tensor *ours, const Tensor *expected, const bool *skip,
                                  int64_t first, int64_t count)
{
    float a[DISTANCE_BLOCK], b[DISTANCE_BLOCK];
    bool wide = expected->dtype == DTYPE_F64;
    int64_t columns = ours->shape[ours->rank - 1];
    Distance distance = {.worst = first};
    tensor_to_f32(ours, first, count, a);
    if (!wide)
        tensor_to_f32(expected, first, count, b);
    for (int64_t i = 0; i < count; i++) {
        if (skip && skip[(first + i) / columns])
            continue;
        double theirs = wide ? tensor_value(expected, first + i) : b[i];
        double error = fabs((double)a[i] - theirs);
        distance.scale = fmax(distance.scale, fabs(theirs));
        if (!(error <= distance.largest)) { // also true for NaN
            distance.largest = isnan(error) ? INFINITY : error;
            distance.worst = first + i;
        }
    }
    return distance;
}

static double relative_error(const Tensor *ours, const Tensor *expected, const bool *skip,
                             int64_t *worst)
{
    Distance whole = {0};
    int64_t count = tensor_elements(ours);
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < count; first += DISTANCE_BLOCK) {
        int64_t length = count - first < DISTANCE_BLOCK ? count - first : DISTANCE_BLOCK;
        Distance block = distance_of_block(ours, expected, skip, first, length);
#pragma omp critical(whole_distance)
        {
            whole.scale = fmax(whole.scale, block.scale);
            bool worse = block.largest > whole.largest ||
                         (block.largest == whole.largest && block.worst < whole.worst);
            if (worse) {
                whole.largest = block.largest;
                whole.worst = block.worst;
            }
        }
    }
    *worst = whole.worst;
    if (whole.largest == 0)
        return 0;
    if (isinf(whole.largest)) // an infinite scale would make NaN of it, which passes every bound
        return INFINITY;
    return whole.scale > 0 ? whole.largest / whole.scale : INFINITY;
}

// Marks the tokens whose experts differ; the caller frees the marks. Returns how many there are.
static int64_t find_other_choices(const LayerResult *ours, const LayerResult *theirs, bool **other)
{
    const Tensor *a = &ours->tensor[OUTPUT_EXPERT_OF_TOKEN];
    const Tensor *b = &theirs->tensor[OUTPUT_EXPERT_OF_TOKEN];
    int64_t tokens = a->shape[0], top_k = a->shape[1], count = 0;
    *other = calloc((size_t)tokens + 1, sizeof(bool));
    CHECK(*other != NULL, EXIT_CODE_HARDWARE, "use --no-check", "no memory for %lld marks",
          (long long)tokens);
    size_t row_bytes = (size_t)top_k * sizeof(int64_t);
    for (int64_t t = 0; t < tokens; t++) {
        (*other)[t] = memcmp((char *)a->data + (size_t)t * row_bytes,
                             (char *)b->data + (size_t)t * row_bytes, row_bytes) != 0;
        count += (*other)[t];
    }
    return count;
}

ResultCheck layer_compare_within(const char *name, const LayerResult *ours,
                                 const LayerResult *theirs, double bound)
{
    ResultCheck check = {.error = 0, .bound = bound};
    bool *other = NULL;
    int64_t tokens = ours->tensor[OUTPUT_Y].shape[0], worst;
    int64_t others = find_other_choices(ours, theirs, &other);
    const char *worst_name = "y";
    for (int i = 0; i < LAYER_OUTPUTS; i++) {
        const Tensor *a = &ours->tensor[i], *b = &theirs->tensor[i];
        bool by_token = i == OUTPUT_Y || i == OUTPUT_GRAD_X;
        if (!a->data || !b->data || i == OUTPUT_EXPERT_OF_TOKEN || (others > 0 && !by_token))
            continue;
        double error = relative_error(a, b, by_token ? other : NULL, &worst);
        if (error > check.error) {
            check.error = error;
            worst_name = layer_output_name((LayerOutput)i);
        }
    }
    free(other);
    check.good = check.error <= bound && others * 1000 <= tokens;
    snprintf(check.name, sizeof check.name, "%s", name);
    snprintf(check.verdict, sizeof check.verdict, "%s", check.good ? "within bound" : "differs");
    snprintf(check.detail, sizeof check.detail, "worst in %s; %lld of %lld tokens chose otherwise",
             worst_name, (long long)others, (long long)tokens);
    return check;
}

static ResultCheck compare_one(const Tensor *ours, const Tensor *expected, LayerOutput output,
                               double bound)
{
    ResultCheck check = {.error = NAN, .bound = NAN};
    snprintf(check.name, sizeof check.name, "expect.%s", layer_output_name(output));
    if (tensor_elements(ours) != tensor_elements(expected)) {
        char a[128], b[128];
        snprintf(check.verdict, sizeof check.verdict, "differs");
        snprintf(check.detail, sizeof check.detail, "shape %s, expected %s",
                 tensor_describe(ours, a, sizeof a), tensor_describe(expected, b, sizeof b));
        return check;
    }
    int64_t worst;
    char where[96];
    bool exact = output == OUTPUT_EXPERT_OF_TOKEN;
    check.error = relative_error(ours, expected, NULL, &worst);
    check.bound = exact ? 0 : bound;
    check.good = check.error <= check.bound;
    coordinate(ours, worst, where, sizeof where);
    snprintf(check.verdict, sizeof check.verdict, "%s",
             !check.good ? "differs"
             : exact     ? "equal"
                         : "within bound");
    snprintf(check.detail, sizeof check.detail, "worst at %s: %.9g, expected %.9g", where,
             tensor_elements(ours) ? tensor_value(ours, worst) : 0.0,
             tensor_elements(ours) ? tensor_value(expected, worst) : 0.0);
    return check;
}

int layer_compare_expected(const Safetensors *file, const LayerResult *ours, double bound,
                           ResultCheck *checks)
{
    int count = 0;
    for (int i = 0; i < LAYER_OUTPUTS; i++) {
        char name[64];
        snprintf(name, sizeof name, "expect.%s", layer_output_name((LayerOutput)i));
        const Tensor *expected = safetensors_find(file, name);
        if (expected && ours->tensor[i].data)
            checks[count++] = compare_one(&ours->tensor[i], expected, (LayerOutput)i, bound);
    }
    return count;
}

// 64-bit FNV-1a over words of eight bytes, the rest byte by byte.
static uint64_t print_of(const void *device, uint64_t bytes, Stream stream)
{
    uint64_t print = 0xcbf29ce484222325u, word;
    if (bytes == 0)
        return print;
    uint8_t *host = malloc(bytes);
    CHECK(host != NULL, EXIT_CODE_HARDWARE, "use --no-check", "no memory for %llu bytes of results",
          (unsigned long long)bytes);
    device_copy(host, device, bytes, stream);
    stream_wait(stream);
    for (uint64_t i = 0; i + sizeof word <= bytes; i += sizeof word) {
        memcpy(&word, host + i, sizeof word);
        print = (print ^ word) * 0x100000001b3u;
    }
    for (uint64_t i = bytes / sizeof word * sizeof word; i < bytes; i++)
        print = (print ^ host[i]) * 0x100000001b3u;
    free(host);
    return print;
}

const char *layer_print_name(LayerPrint print)
{
    static const char *const names[LAYER_PRINTS] = {
        [PRINT_Y] = "y",
        [PRINT_CHOICES] = "expert_of_token",
        [PRINT_DX] = "grad.x",
        [PRINT_ROUTER] = "grad.router",
        [PRINT_W13] = "grad.w1 or grad.w3",
        [PRINT_W2] = "grad.w2",
        [PRINT_SHARED_W13] = "grad.shared_w1 or grad.shared_w3",
        [PRINT_SHARED_W2] = "grad.shared_w2",
    };
    return names[print];
}

void layer_fingerprint(const LayerSource *source, const LayerPart *part, int64_t tokens,
                       uint64_t prints[LAYER_PRINTS], Stream stream)
{
    const MoeConfig *c = &source->config;
    uint64_t rows = (uint64_t)(tokens * c->hidden), hidden = (uint64_t)c->hidden;
    uint64_t expert = (uint64_t)part->experts * (uint64_t)c->inner * hidden;
    uint64_t shared = (uint64_t)c->shared_inner * hidden;
    const MoeWeights none = {0}, *g = part->gradients ? part->gradients : &none;
    bool back = part->gradients != NULL;
    const struct {
        const void *data;
        uint64_t bytes;
    } piece[LAYER_PRINTS] = {
        [PRINT_Y] = {part->y, dtype_bytes(c->dtype, rows)},
        [PRINT_CHOICES] = {part->expert_of_choice, (uint64_t)(tokens * c->top_k) * sizeof(int32_t)},
        [PRINT_DX] = {part->dx, back ? dtype_bytes(c->dtype, rows) : 0},
        [PRINT_ROUTER] = {g->router,
                          back ? dtype_bytes(c->dtype, (uint64_t)moe_router_rows(c) * hidden) : 0},
        [PRINT_W13] = {g->w13, back ? dtype_bytes(c->dtype, 2 * expert) : 0},
        [PRINT_W2] = {g->w2, back ? dtype_bytes(c->dtype, expert) : 0},
        [PRINT_SHARED_W13] = {g->shared_w13, back ? dtype_bytes(c->dtype, 2 * shared) : 0},
        [PRINT_SHARED_W2] = {g->shared_w2, back ? dtype_bytes(c->dtype, shared) : 0},
    };
    for (int i = 0; i < LAYER_PRINTS; i++)
        prints[i] = print_of(piece[i].data, piece[i].bytes, stream);
}

double layer_compare_sqnr(const LayerResult *ours, const LayerResult *exact, LayerOutput output)
{
    const Tensor *a = &ours->tensor[output], *b = &exact->tensor[output];
    double signal = 0, noise = 0;
    for (int64_t i = 0; a->data && b->data && i < tensor_elements(b); i++) {
        double value = tensor_value(b, i), difference = tensor_value(a, i) - value;
        signal += value * value;
        noise += difference * difference;
    }
    return signal > 0 ? 10 * log10(signal / noise) : NAN;
}
