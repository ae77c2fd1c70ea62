// Counted bytes, explained bytes.
#include "experiments/model/lm_cost_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

// The first difference on a rank.
typedef struct Difference {
    bool differs;
    char detail[160];
} Difference;

// ranks: of the group, to recognise bytes that were counted although they never left; 0 = unknown.
static void expect_same(Difference *d, const char *what, double counted, double explained,
                        int ranks)
{
    if (d->differs || counted == explained)
        return;
    bool itself = ranks > 1 && counted == explained * ranks / (ranks - 1);
    d->differs = true;
    snprintf(d->detail, sizeof d->detail, "%s: %.0f bytes counted, %.0f explained%s", what, counted,
             explained, itself ? ": rows for the rank itself are counted as sent" : "");
}

static void compare_dispatch(const LmCostCheck *what, const LmCost *cost, Difference *d)
{
    double sent = (double)what->sent[LM_TRAFFIC_DISPATCH], steps = what->training->steps;
    if (what->device == DEVICE_CUDA) // rows stored into peer memory pass no Comm
        return;
    if (sent < steps * cost->dispatch_least)
        expect_same(d, "dispatch below the least", sent, steps * cost->dispatch_least, 0);
    if (sent > steps * cost->dispatch_most)
        expect_same(d, "dispatch above the most", sent, steps * cost->dispatch_most, 0);
}

static Difference compare(const LmCostCheck *what)
{
    Difference d = {0};
    LmCost cost = lm_cost(what->layout, what->training, what->exact);
    double steps = what->training->steps;
    for (int kind = 0; kind < LM_TRAFFIC_KINDS; kind++)
        if (kind != LM_TRAFFIC_DISPATCH)
            expect_same(&d, lm_traffic_name((LmTrafficKind)kind), (double)what->sent[kind],
                        steps * (double)cost.sent[kind],
                        kind == LM_TRAFFIC_SHARD ? what->layout->shard.ranks : 0);
    compare_dispatch(what, &cost, &d);
    // Expert layers push activations and communication of their own; scratch is not explained.
    int known = lm_is_moe(what->layout->config) ? MEMORY_ACTIVATIONS : MEMORY_SCRATCH;
    for (int category = 0; category < known; category++)
        expect_same(&d, memory_category_name((MemoryCategory)category),
                    (double)arena_peak_bytes(what->arena, (MemoryCategory)category),
                    (double)cost.held[category], 0);
    return d;
}

ResultCheck lm_cost_check(const LmCostCheck *what)
{
    int ranks = what->run->ranks;
    Difference mine = compare(what), *all = calloc((size_t)ranks, sizeof(*all));
    CHECK(all != NULL, EXIT_CODE_HARDWARE, "use --no-check", "no memory for %d ranks", ranks);
    run_gather(what->run, &mine, sizeof mine, all);
    ResultCheck check = {.error = NAN, .bound = NAN, .good = true, .verdict = "equal"};
    snprintf(check.name, sizeof check.name, "bytes and memory as explained");
    snprintf(check.detail, sizeof check.detail, "on %d rank%s", ranks, ranks == 1 ? "" : "s");
    for (int rank = ranks - 1; rank >= 0 && what->run->rank == 0; rank--)
        if (all[rank].differs) {
            check.good = false;
            snprintf(check.verdict, sizeof check.verdict, "differs");
            snprintf(check.detail, sizeof check.detail, "rank %d, %s", rank, all[rank].detail);
        }
    free(all);
    return check;
}
