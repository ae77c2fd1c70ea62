// Where every shard and every gathered row stands, and what it costs: numbers only, no memory.
#include <stdlib.h>

#include "harness/check.h"
#include "parallel/fsdp.h"
#include "parallel/ordered.h"
#include "parallel/shard.h"

enum { ALIGN_ELEMENTS = 64 }; // gathered parameters begin at multiples of 256 bytes of f32

static int64_t round_up(int64_t value, int64_t to)
{
    return (value + to - 1) / to * to;
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

int64_t fsdp_elements(const FsdpParameter *p)
{
    return p->outer * p->rows * p->columns;
}

int64_t fsdp_shard_elements(const FsdpParameter *p, const FsdpPlace *place)
{
    return p->outer * place->shard_rows * p->columns;
}

static void place_parameter(const FsdpSettings *settings, FsdpPlan *plan, int index)
{
    const FsdpParameter *p = &settings->parameter[index];
    Comm shard = settings->group[p->group].shard;
    FsdpUnit *unit = &plan->unit[p->unit];
    FsdpPlace *place = &plan->place[index];
    CHECK_RULE(p->outer >= 1 && p->room_rows >= p->rows);
    CHECK_RULE(p->outer == 1 || p->room_rows == p->rows);
    Shard mine = shard_of(p->rows, shard.ranks, shard.rank);
    place->shard_rows = shard_size(p->rows, shard.ranks);
    place->first_row = mine.first;
    place->rows = mine.count;
    place->shard = unit->bucket[p->group].shard;
    unit->bucket[p->group].shard += fsdp_shard_elements(p, place);
    place->full = p->joined ? unit->full : round_up(unit->full, ALIGN_ELEMENTS);
    unit->full = place->full + p->outer * p->room_rows * p->columns;
    if (unit->count++ == 0)
        unit->first = index;
    bool even = shard.ranks == 1 || (p->outer == 1 && p->rows % shard.ranks == 0);
    unit->bucket[p->group].even = unit->bucket[p->group].even && even;
}

static uint64_t rounded_bytes(DType dtype, int64_t count)
{
    return (dtype_bytes(dtype, (uint64_t)count) + 255) / 256 * 256;
}

bool fsdp_reduces_in_place(const FsdpSettings *settings, const FsdpBucket *bucket)
{
    return bucket->even && settings->wire_dtype == DTYPE_F32;
}

// Gradients begin at multiples of 256 bytes wherever they are made.
static bool is_made_in_shard(const FsdpSettings *settings, const FsdpPlan *plan,
                             const FsdpUnit *unit, int group)
{
    const FsdpBucket *bucket = &unit->bucket[group];
    if (settings->group[group].shard.ranks > 1 || settings->accumulates ||
        !fsdp_reduces_in_place(settings, bucket))
        return false;
    for (int i = unit->first; i < unit->first + unit->count; i++) {
        const FsdpParameter *p = &settings->parameter[i];
        bool aligned = (bucket->flat + plan->place[i].shard) % ALIGN_ELEMENTS == 0;
        if (p->group == group && !p->joined && !aligned)
            return false;
    }
    return true;
}

// Sizes of a unit whose parameters stand, and its place among the others.
static void finish_unit(const FsdpSettings *settings, FsdpPlan *plan, FsdpUnit *unit)
{
    uint64_t send_bytes = 0;
    bool made_in_shards = true;
    unit->full = round_up(unit->full, ALIGN_ELEMENTS);
    unit->in_place = true;
    for (int g = 0; g < FSDP_GROUPS; g++)
        unit->in_place = unit->in_place && unit->bucket[g].even;
    for (int g = 0; g < FSDP_GROUPS; g++) {
        FsdpBucket *bucket = &unit->bucket[g];
        bucket->flat = plan->flat;
        plan->flat += bucket->shard;
        bucket->made_in_shard = is_made_in_shard(settings, plan, unit, g);
        made_in_shards = made_in_shards && (bucket->shard == 0 || bucket->made_in_shard);
        bucket->staged_bytes = (int64_t)unit->staged_bytes;
        int64_t all = bucket->shard * settings->group[g].shard.ranks;
        if (!unit->in_place) {
            unit->staged_bytes += rounded_bytes(settings->param_dtype, all);
            plan->cast_max = bucket->shard > plan->cast_max ? bucket->shard : plan->cast_max;
        }
        if (!fsdp_reduces_in_place(settings, bucket))
            send_bytes += rounded_bytes(settings->wire_dtype, all);
    }
    if (settings->reshard > 1) {
        unit->kept = round_up(shard_size(unit->full, settings->kept.ranks), ALIGN_ELEMENTS);
        unit->full = unit->kept * settings->kept.ranks;
    }
    unit->full_first = plan->full;
    unit->kept_first = plan->kept;
    plan->full += unit->full;
    plan->kept += unit->kept;
    plan->full_max = unit->full > plan->full_max ? unit->full : plan->full_max;
    if (!made_in_shards && unit->full > plan->full_made_max)
        plan->full_made_max = unit->full;
    plan->staged_bytes_max = larger(plan->staged_bytes_max, unit->staged_bytes);
    plan->send_bytes_max = larger(plan->send_bytes_max, send_bytes);
}

FsdpPlan fsdp_plan_create(const FsdpSettings *settings)
{
    FsdpPlan plan = {.unit = calloc((size_t)settings->units, sizeof(FsdpUnit)),
                     .place = calloc((size_t)settings->parameters, sizeof(FsdpPlace))};
    CHECK(plan.unit && plan.place, EXIT_CODE_HARDWARE, "free some memory",
          "no memory for a plan of %d parameters", settings->parameters);
    for (int unit = 0; unit < settings->units; unit++)
        for (int g = 0; g < FSDP_GROUPS; g++)
            plan.unit[unit].bucket[g].even = true;
    for (int i = 0; i < settings->parameters; i++) {
        CHECK_RULE(i == 0 || settings->parameter[i].unit >= settings->parameter[i - 1].unit);
        place_parameter(settings, &plan, i);
    }
    for (int unit = 0; unit < settings->units; unit++)
        finish_unit(settings, &plan, &plan.unit[unit]);
    return plan;
}

void fsdp_plan_destroy(FsdpPlan *plan)
{
    free(plan->unit);
    free(plan->place);
    *plan = (FsdpPlan){0};
}

FsdpTraffic fsdp_traffic(const FsdpSettings *settings, const FsdpPlan *plan, int unit_index)
{
    const FsdpUnit *unit = &plan->unit[unit_index];
    FsdpTraffic traffic = {0};
    for (int g = 0; g < FSDP_GROUPS; g++) {
        FsdpGroup group = settings->group[g];
        int64_t shard = unit->bucket[g].shard;
        traffic.gather_bytes[g] =
            dtype_bytes(settings->param_dtype, (uint64_t)shard) * (uint64_t)(group.shard.ranks - 1);
        traffic.scatter_bytes[g] =
            ordered_scatter_wire_bytes(group.shard, shard, settings->wire_dtype);
        traffic.replica_bytes[g] =
            ordered_reduce_wire_bytes(group.replica, shard, settings->wire_dtype);
    }
    if (settings->reshard > 1)
        traffic.regather_bytes = dtype_bytes(settings->param_dtype, (uint64_t)unit->kept) *
                                 (uint64_t)(settings->kept.ranks - 1);
    for (int i = unit->first; i < unit->first + unit->count; i++) {
        const FsdpParameter *p = &settings->parameter[i];
        if (!p->partial)
            continue;
        traffic.partial_calls++;
        traffic.partial_bytes +=
            ordered_reduce_wire_bytes(settings->partial, fsdp_elements(p), DTYPE_F32);
    }
    return traffic;
}

// Of the sums that one bucket's gradients pass through, one after the other.
static uint64_t scratch_bytes(const FsdpSettings *settings, const FsdpPlan *plan,
                              const FsdpUnit *unit, int group)
{
    DType wire = settings->wire_dtype;
    Comm shard = settings->group[group].shard, replica = settings->group[group].replica;
    const FsdpBucket *bucket = &unit->bucket[group];
    bool packed = !fsdp_reduces_in_place(settings, bucket);
    int64_t most = packed ? bucket->shard : 0; // that travel together
    uint64_t partial = 0;
    for (int i = unit->first; i < unit->first + unit->count; i++) {
        const FsdpParameter *p = &settings->parameter[i];
        if (p->group != group)
            continue;
        int64_t elements = fsdp_shard_elements(p, &plan->place[i]);
        most = elements > most ? elements : most;
        if (p->partial)
            partial = larger(partial, ordered_reduce_scratch_bytes(settings->partial,
                                                                   fsdp_elements(p), DTYPE_F32));
    }
    uint64_t scatter = ordered_scatter_scratch_bytes(shard, most, wire);
    return larger(larger(scatter, partial),
                  ordered_reduce_scratch_bytes(replica, bucket->shard, wire));
}

FsdpMemory fsdp_memory(const FsdpSettings *settings, const FsdpPlan *plan)
{
    DType dtype = settings->param_dtype;
    FsdpMemory memory = {.shard_bytes = dtype_bytes(DTYPE_F32, (uint64_t)plan->flat),
                         .send_bytes = plan->send_bytes_max};
    memory.largest_bytes =
        larger(plan->staged_bytes_max, dtype_bytes(dtype, (uint64_t)plan->full_max));
    bool stay = settings->reshard == FSDP_RESHARD_NO;
    memory.slot_bytes[0] = stay ? dtype_bytes(dtype, (uint64_t)plan->full) : memory.largest_bytes;
    memory.slot_bytes[1] = stay ? plan->staged_bytes_max : memory.largest_bytes;
    memory.gathered_bytes =
        memory.slot_bytes[0] + memory.slot_bytes[1] + dtype_bytes(dtype, (uint64_t)plan->kept);
    int64_t full = settings->accumulates ? plan->full : FSDP_SLOTS * plan->full_made_max;
    memory.full_gradient_bytes = dtype_bytes(DTYPE_F32, (uint64_t)full);
    memory.gradient_bytes =
        memory.full_gradient_bytes + (settings->gradients ? 0 : memory.shard_bytes);
    for (int unit = 0; unit < settings->units; unit++)
        for (int g = 0; g < FSDP_GROUPS; g++)
            memory.scratch_bytes =
                larger(memory.scratch_bytes, scratch_bytes(settings, plan, &plan->unit[unit], g));
    if (dtype != DTYPE_F32)
        memory.cast_bytes = dtype_bytes(dtype, (uint64_t)plan->cast_max);
    return memory;
}
