// Shards, gathers and reductions at work. fsdp_plan.c says where everything stands.
//
// Three streams: the caller's computes; `gather` brings the next unit while the present one
// computes; `reduce` sums gradients while the next unit's backward computes. The buffers between
// them come in pairs:
//
//   slot       the unit in use, and the next one as it arrives: in its final form, and then the
//              slots change roles, or as staged buckets, which are put in order into the slot that
//              was in use. A gather waits for all computing before it, so its slot is free.
//   gradients  of whole parameters, unless they are made in their shards: units of even and odd
//              number have one each. fsdp_reduce makes the computing stream wait for the reductions
//              before its own, so that the unit that comes next finds its buffer free. Gradients
//              that are packed wait in `send`.
#include "parallel/fsdp.h"

#include <stdlib.h>

#include "kernels/elementwise.h"
#include "kernels/reduce.h"
#include "parallel/intervals.h"
#include "parallel/ordered.h"
#include "parallel/shard.h"

enum { NO_UNIT = -1 };

struct Fsdp {
    FsdpSettings settings;
    FsdpPlan plan;
    float *values, *gradients; // [plan.flat]
    char *cast;                // [cast_max] of the parameter type, where that is not f32
    char *slot[FSDP_SLOTS];
    char *kept;            // with reshard K: pieces of all units
    float *full_gradients; // two units, or all
    char *send;
    char *scratch;
    Stream gather, reduce;
    Intervals at_gather, at_reduce, wait_gather, wait_reduce; // no room until fsdp_measure
    int in_use;   // slot of the resident unit; with reshard off slot 0 holds all units
    int resident; // unit that is in use
    int coming;   // unit that is on its way
    bool coming_from_kept, coming_in_place;
    bool *present;  // [units] with reshard off: gathered since the step began
    bool *has_kept; // [units] with reshard K: its piece is kept
};

static void *push(Fsdp *fsdp, uint64_t bytes, MemoryCategory category)
{
    return arena_push(fsdp->settings.arena, bytes, category);
}

static uint64_t bytes_of(DType dtype, int64_t count)
{
    return dtype_bytes(dtype, (uint64_t)count);
}

Fsdp *fsdp_create(const FsdpSettings *settings)
{
    Fsdp *fsdp = calloc(1, sizeof(*fsdp));
    CHECK_RULE(fsdp != NULL);
    fsdp->settings = *settings;
    fsdp->plan = fsdp_plan_create(settings);
    const FsdpPlan *plan = &fsdp->plan;
    FsdpMemory memory = fsdp_memory(settings, plan);
    CHECK_RULE(settings->reshard != FSDP_RESHARD_YES ||
               memory.gathered_bytes <= 2 * memory.largest_bytes);
    size_t units = (size_t)settings->units;
    fsdp->present = calloc(units, sizeof(bool));
    fsdp->has_kept = calloc(units, sizeof(bool));
    CHECK_RULE(fsdp->present && fsdp->has_kept);
    fsdp->values = push(fsdp, memory.shard_bytes, MEMORY_PARAMETERS);
    for (int slot = 0; slot < FSDP_SLOTS; slot++)
        fsdp->slot[slot] = push(fsdp, memory.slot_bytes[slot], MEMORY_PARAMETERS);
    fsdp->kept = push(fsdp, bytes_of(settings->param_dtype, plan->kept), MEMORY_PARAMETERS);
    fsdp->gradients = settings->gradients;
    if (!fsdp->gradients)
        fsdp->gradients = push(fsdp, memory.shard_bytes, MEMORY_GRADIENTS);
    fsdp->full_gradients = push(fsdp, memory.full_gradient_bytes, MEMORY_GRADIENTS);
    fsdp->send = push(fsdp, memory.send_bytes, MEMORY_COMMUNICATION);
    fsdp->scratch = push(fsdp, memory.scratch_bytes, MEMORY_COMMUNICATION);
    fsdp->cast = push(fsdp, memory.cast_bytes, MEMORY_COMMUNICATION);
    fsdp->gather = stream_create(settings->device);
    fsdp->reduce = stream_create(settings->device);
    device_fill(fsdp->values, 0, memory.shard_bytes, fsdp->gather);
    stream_wait(fsdp->gather);
    fsdp->resident = fsdp->coming = NO_UNIT;
    return fsdp;
}

void fsdp_destroy(Fsdp *fsdp)
{
    if (!fsdp)
        return;
    Intervals *const lists[] = {&fsdp->at_gather, &fsdp->at_reduce, &fsdp->wait_gather,
                                &fsdp->wait_reduce};
    for (size_t i = 0; i < COUNT_OF(lists); i++)
        intervals_destroy(lists[i]);
    stream_destroy(fsdp->gather);
    stream_destroy(fsdp->reduce);
    free(fsdp->present);
    free(fsdp->has_kept);
    fsdp_plan_destroy(&fsdp->plan);
    free(fsdp);
}

void fsdp_measure(Fsdp *fsdp)
{
    Intervals *const lists[] = {&fsdp->at_gather, &fsdp->at_reduce, &fsdp->wait_gather,
                                &fsdp->wait_reduce};
    for (size_t i = 0; i < COUNT_OF(lists); i++) { // both passes, and the end of the step
        intervals_destroy(lists[i]);
        *lists[i] = intervals_create(2 * fsdp->settings.units + 2, fsdp->settings.device);
    }
}

FsdpTimes fsdp_take_times(Fsdp *fsdp)
{
    return (FsdpTimes){.gather_s = intervals_take(&fsdp->at_gather),
                       .reduce_s = intervals_take(&fsdp->at_reduce),
                       .gather_wait_s = intervals_take(&fsdp->wait_gather),
                       .reduce_wait_s = intervals_take(&fsdp->wait_reduce)};
}

const FsdpPlan *fsdp_plan(const Fsdp *fsdp)
{
    return &fsdp->plan;
}

float *fsdp_values(const Fsdp *fsdp)
{
    return fsdp->values;
}

float *fsdp_gradients(const Fsdp *fsdp)
{
    return fsdp->gradients;
}

int64_t fsdp_shard_offset(const Fsdp *fsdp, int parameter)
{
    const FsdpParameter *p = &fsdp->settings.parameter[parameter];
    return fsdp->plan.unit[p->unit].bucket[p->group].flat + fsdp->plan.place[parameter].shard;
}

static bool stays(const Fsdp *fsdp)
{
    return fsdp->settings.reshard == FSDP_RESHARD_NO;
}

// Where the unit in use stands, and any unit with reshard off.
static char *full_of(const Fsdp *fsdp, int unit)
{
    int64_t first = stays(fsdp) ? fsdp->plan.unit[unit].full_first : 0;
    return fsdp->slot[fsdp->in_use] + bytes_of(fsdp->settings.param_dtype, first);
}

void *fsdp_value(const Fsdp *fsdp, int parameter)
{
    const FsdpParameter *p = &fsdp->settings.parameter[parameter];
    CHECK_RULE(stays(fsdp) ? fsdp->present[p->unit] : fsdp->resident == p->unit);
    return full_of(fsdp, p->unit) +
           bytes_of(fsdp->settings.param_dtype, fsdp->plan.place[parameter].full);
}

float *fsdp_gradient(const Fsdp *fsdp, int parameter)
{
    const FsdpParameter *p = &fsdp->settings.parameter[parameter];
    const FsdpUnit *unit = &fsdp->plan.unit[p->unit];
    if (unit->bucket[p->group].made_in_shard)
        return fsdp->gradients + fsdp_shard_offset(fsdp, parameter);
    int64_t slot = p->unit % FSDP_SLOTS;
    int64_t first = fsdp->settings.accumulates ? unit->full_first : slot * fsdp->plan.full_made_max;
    return fsdp->full_gradients + first + fsdp->plan.place[parameter].full;
}

void fsdp_step_begin(Fsdp *fsdp)
{
    fsdp->resident = fsdp->coming = NO_UNIT;
    for (int unit = 0; unit < fsdp->settings.units; unit++)
        fsdp->present[unit] = fsdp->has_kept[unit] = false;
}

static bool is_there(const Fsdp *fsdp, int unit)
{
    return stays(fsdp) ? fsdp->present[unit] : fsdp->resident == unit;
}

static void cast_values(const Fsdp *fsdp, const float *values, void *to, int64_t count)
{
    cast_copy(&(CastCopy){.count = count,
                          .from_dtype = DTYPE_F32,
                          .to_dtype = fsdp->settings.param_dtype,
                          .from = values,
                          .to = to},
              fsdp->gather);
}

// Rows beyond those of the parameter, in a gathered unit at `full`.
static void clear_room(const Fsdp *fsdp, int index, char *full, Stream stream)
{
    const FsdpParameter *p = &fsdp->settings.parameter[index];
    DType dtype = fsdp->settings.param_dtype;
    int64_t first = fsdp->plan.place[index].full + p->rows * p->columns;
    if (p->room_rows > p->rows)
        device_fill(full + bytes_of(dtype, first), 0,
                    bytes_of(dtype, (p->room_rows - p->rows) * p->columns), stream);
}

// Every parameter of an even unit into its place.
static void gather_in_place(Fsdp *fsdp, int unit, char *full)
{
    const FsdpSettings *s = &fsdp->settings;
    const FsdpUnit *u = &fsdp->plan.unit[unit];
    for (int i = u->first; i < u->first + u->count; i++) {
        const FsdpParameter *p = &s->parameter[i];
        const FsdpPlace *place = &fsdp->plan.place[i];
        int64_t count = fsdp_shard_elements(p, place);
        int64_t own = place->full + s->group[p->group].shard.rank * count;
        if (count > 0)
            cast_values(fsdp, fsdp->values + fsdp_shard_offset(fsdp, i),
                        full + bytes_of(s->param_dtype, own), count);
        clear_room(fsdp, i, full, fsdp->gather);
    }
    for (int g = 0; g < FSDP_GROUPS; g++) {
        Comm comm = s->group[g].shard;
        comm_group_begin(comm, fsdp->gather);
        for (int i = u->first; i < u->first + u->count; i++) {
            const FsdpParameter *p = &s->parameter[i];
            uint64_t bytes = bytes_of(s->param_dtype, fsdp_shard_elements(p, &fsdp->plan.place[i]));
            char *all = full + bytes_of(s->param_dtype, fsdp->plan.place[i].full);
            if (p->group == g && bytes > 0)
                comm_all_gather(comm, all + (uint64_t)comm.rank * bytes, all, bytes, fsdp->gather);
        }
        comm_group_end(comm, fsdp->gather);
    }
}

// Bucket by bucket, shards of all parameters of a rank together.
static void gather_staged(Fsdp *fsdp, int unit, char *staging)
{
    const FsdpSettings *s = &fsdp->settings;
    for (int g = 0; g < FSDP_GROUPS; g++) {
        const FsdpBucket *bucket = &fsdp->plan.unit[unit].bucket[g];
        const void *mine = fsdp->values + bucket->flat;
        if (bucket->shard == 0)
            continue;
        if (s->param_dtype != DTYPE_F32) {
            cast_values(fsdp, mine, fsdp->cast, bucket->shard);
            mine = fsdp->cast;
        }
        comm_all_gather(s->group[g].shard, mine, staging + bucket->staged_bytes,
                        bytes_of(s->param_dtype, bucket->shard), fsdp->gather);
    }
}

void fsdp_prefetch(Fsdp *fsdp, int unit, bool backward, Stream stream)
{
    if (unit < 0 || unit >= fsdp->settings.units || is_there(fsdp, unit) || fsdp->coming == unit)
        return;
    const FsdpSettings *s = &fsdp->settings;
    const FsdpUnit *u = &fsdp->plan.unit[unit];
    char *other = fsdp->slot[1 - fsdp->in_use];
    stream_wait_stream(fsdp->gather, stream);
    fsdp->coming = unit;
    fsdp->coming_from_kept = backward && fsdp->has_kept[unit];
    fsdp->coming_in_place = fsdp->coming_from_kept || u->in_place;
    intervals_begin(&fsdp->at_gather, fsdp->gather);
    if (fsdp->coming_from_kept)
        comm_all_gather(s->kept, fsdp->kept + bytes_of(s->param_dtype, u->kept_first), other,
                        bytes_of(s->param_dtype, u->kept), fsdp->gather);
    else if (u->in_place)
        gather_in_place(fsdp, unit, stays(fsdp) ? full_of(fsdp, unit) : other);
    else
        gather_staged(fsdp, unit, other);
    intervals_end(&fsdp->at_gather, fsdp->gather);
}

// Rows of every rank's shard of one parameter, from staging to their places.
static void place_rows(Fsdp *fsdp, int index, Stream stream)
{
    const FsdpSettings *s = &fsdp->settings;
    const FsdpParameter *p = &s->parameter[index];
    const FsdpPlace *place = &fsdp->plan.place[index];
    const FsdpBucket *bucket = &fsdp->plan.unit[p->unit].bucket[p->group];
    int ranks = s->group[p->group].shard.ranks;
    char *full = full_of(fsdp, p->unit), *to = full + bytes_of(s->param_dtype, place->full);
    for (int rank = 0; rank < ranks; rank++) {
        Shard rows = shard_of(p->rows, ranks, rank);
        const char *from = fsdp->slot[1 - fsdp->in_use] + bucket->staged_bytes +
                           bytes_of(s->param_dtype, rank * bucket->shard + place->shard);
        uint64_t bytes = bytes_of(s->param_dtype, rows.count * p->columns);
        for (int64_t block = 0; block < p->outer && bytes > 0; block++, from += bytes)
            device_copy(to + bytes_of(s->param_dtype, (block * p->rows + rows.first) * p->columns),
                        from, bytes, stream);
    }
    clear_room(fsdp, index, full, stream);
}

void fsdp_use(Fsdp *fsdp, int unit, bool backward, Stream stream)
{
    const FsdpUnit *u = &fsdp->plan.unit[unit];
    if (is_there(fsdp, unit))
        return;
    fsdp_prefetch(fsdp, unit, backward, stream);
    intervals_begin(&fsdp->wait_gather, stream);
    stream_wait_stream(stream, fsdp->gather);
    intervals_end(&fsdp->wait_gather, stream);
    fsdp->resident = unit;
    fsdp->present[unit] = true;
    fsdp->coming = NO_UNIT;
    if (!fsdp->coming_in_place)
        for (int i = u->first; i < u->first + u->count; i++)
            place_rows(fsdp, i, stream);
    else if (!stays(fsdp))
        fsdp->in_use = 1 - fsdp->in_use;
}

void fsdp_release(Fsdp *fsdp, int unit, Stream stream)
{
    const FsdpUnit *u = &fsdp->plan.unit[unit];
    DType dtype = fsdp->settings.param_dtype;
    if (fsdp->settings.reshard <= 1 || fsdp->has_kept[unit])
        return;
    fsdp->has_kept[unit] = true;
    device_copy(fsdp->kept + bytes_of(dtype, u->kept_first),
                full_of(fsdp, unit) + bytes_of(dtype, fsdp->settings.kept.rank * u->kept),
                bytes_of(dtype, u->kept), stream);
}

// One parameter's gradient into the send buffer: rank r's rows at r * bucket, zeros behind them.
static void pack_gradient(Fsdp *fsdp, int index, char *send, Stream stream)
{
    const FsdpSettings *s = &fsdp->settings;
    const FsdpParameter *p = &s->parameter[index];
    const FsdpPlace *place = &fsdp->plan.place[index];
    const FsdpBucket *bucket = &fsdp->plan.unit[p->unit].bucket[p->group];
    const float *gradient = fsdp_gradient(fsdp, index);
    int ranks = s->group[p->group].shard.ranks;
    for (int rank = 0; rank < ranks; rank++) {
        Shard rows = shard_of(p->rows, ranks, rank);
        int64_t count = rows.count * p->columns, all = p->outer * place->shard_rows * p->columns;
        char *to = send + bytes_of(s->wire_dtype, rank * bucket->shard + place->shard);
        for (int64_t block = 0; block < p->outer && count > 0; block++)
            cast_copy(&(CastCopy){.count = count,
                                  .from_dtype = DTYPE_F32,
                                  .to_dtype = s->wire_dtype,
                                  .from = gradient + (block * p->rows + rows.first) * p->columns,
                                  .to = to + bytes_of(s->wire_dtype, block * count)},
                      stream);
        count *= p->outer;
        if (all > count)
            device_fill(to + bytes_of(s->wire_dtype, count), 0,
                        bytes_of(s->wire_dtype, all - count), stream);
    }
}

static void reduce_scatter(const Fsdp *fsdp, int g, const void *in, int64_t count, float *out)
{
    ordered_reduce_scatter(&(OrderedScatter){.comm = fsdp->settings.group[g].shard,
                                             .count = count,
                                             .wire = fsdp->settings.wire_dtype,
                                             .in = in,
                                             .out = out,
                                             .scratch = fsdp->scratch},
                           fsdp->reduce);
}

// The sum over the group of what stands packed at `send`, or of gradients where they were made,
// into the shards, unless they were made there.
static void reduce_bucket(Fsdp *fsdp, int unit, int g, const char *send)
{
    const FsdpSettings *s = &fsdp->settings;
    const FsdpUnit *u = &fsdp->plan.unit[unit];
    const FsdpBucket *bucket = &u->bucket[g];
    float *shard = fsdp->gradients + bucket->flat;
    if (!fsdp_reduces_in_place(s, bucket))
        reduce_scatter(fsdp, g, send, bucket->shard, shard);
    else if (!bucket->made_in_shard)
        for (int i = u->first; i < u->first + u->count; i++)
            if (s->parameter[i].group == g)
                reduce_scatter(fsdp, g, fsdp_gradient(fsdp, i),
                               fsdp_shard_elements(&s->parameter[i], &fsdp->plan.place[i]),
                               shard + fsdp->plan.place[i].shard);
    ordered_all_reduce(&(OrderedReduce){.comm = s->group[g].replica,
                                        .count = bucket->shard,
                                        .wire = s->wire_dtype,
                                        .values = shard,
                                        .scratch = fsdp->scratch},
                       fsdp->reduce);
}

static void wait_for_reductions(Fsdp *fsdp, Stream stream)
{
    intervals_begin(&fsdp->wait_reduce, stream);
    stream_wait_stream(stream, fsdp->reduce);
    intervals_end(&fsdp->wait_reduce, stream);
}

void fsdp_reduce(Fsdp *fsdp, int unit, bool last, Stream stream)
{
    const FsdpSettings *s = &fsdp->settings;
    const FsdpUnit *u = &fsdp->plan.unit[unit];
    if (!last)
        return;
    wait_for_reductions(fsdp, stream);
    for (int i = u->first; i < u->first + u->count; i++) {
        const FsdpParameter *p = &s->parameter[i];
        if (p->partial)
            ordered_all_reduce(&(OrderedReduce){.comm = s->partial,
                                                .count = fsdp_elements(p),
                                                .wire = DTYPE_F32,
                                                .values = fsdp_gradient(fsdp, i),
                                                .scratch = fsdp->scratch},
                               stream);
    }
    char *send[FSDP_GROUPS], *at = fsdp->send;
    for (int g = 0; g < FSDP_GROUPS; g++) {
        send[g] = at;
        int64_t all = u->bucket[g].shard * s->group[g].shard.ranks;
        if (fsdp_reduces_in_place(s, &u->bucket[g]))
            continue;
        at += (bytes_of(s->wire_dtype, all) + 255) / 256 * 256;
    }
    for (int i = u->first; i < u->first + u->count; i++)
        if (!fsdp_reduces_in_place(s, &u->bucket[s->parameter[i].group]))
            pack_gradient(fsdp, i, send[s->parameter[i].group], stream);
    stream_wait_stream(fsdp->reduce, stream);
    intervals_begin(&fsdp->at_reduce, fsdp->reduce);
    for (int g = 0; g < FSDP_GROUPS; g++)
        if (u->bucket[g].shard > 0)
            reduce_bucket(fsdp, unit, g, send[g]);
    intervals_end(&fsdp->at_reduce, fsdp->reduce);
}

void fsdp_step_end(Fsdp *fsdp, Stream stream)
{
    wait_for_reductions(fsdp, stream);
}
