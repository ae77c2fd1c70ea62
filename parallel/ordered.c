// An all-to-all of everybody's terms, then an ordered sum: no rank's order of arrival matters, and
// as many bytes travel as in a ring's reduce-scatter.
#include "parallel/ordered.h"

#include "kernels/elementwise.h"
#include "kernels/reduce.h"
#include "parallel/shard.h"

static void cast(const void *from, DType from_dtype, void *to, DType to_dtype, int64_t count,
                 Stream stream)
{
    cast_copy(
        &(CastCopy){
            .count = count, .from_dtype = from_dtype, .to_dtype = to_dtype, .from = from, .to = to},
        stream);
}

static uint64_t wire_size(DType wire, int64_t count)
{
    return dtype_bytes(wire, (uint64_t)count);
}

// [ranks][count] received, then the same widened where the wire is narrow.
uint64_t ordered_scatter_scratch_bytes(Comm comm, int64_t count, DType wire)
{
    if (comm.ranks == 1)
        return 0;
    int64_t all = count * comm.ranks;
    return wire_size(wire, all) + (wire == DTYPE_F32 ? 0 : wire_size(DTYPE_F32, all) + 256);
}

uint64_t ordered_scatter_wire_bytes(Comm comm, int64_t count, DType wire)
{
    return wire_size(wire, count) * (uint64_t)(comm.ranks - 1);
}

// Aligned, so that f32 may follow bf16.
static float *widened(void *received, DType wire, int64_t all)
{
    return (float *)((char *)received + (wire_size(wire, all) + 255) / 256 * 256);
}

void ordered_reduce_scatter(const OrderedScatter *what, Stream stream)
{
    int64_t count = what->count, all = count * what->comm.ranks;
    CHECK_RULE(what->wire == DTYPE_F32 || what->wire == DTYPE_BF16);
    if (count == 0)
        return;
    if (what->comm.ranks == 1) {
        cast(what->in, what->wire, what->out, DTYPE_F32, count, stream);
        return;
    }
    comm_all_to_all(what->comm, what->in, what->scratch, wire_size(what->wire, count), stream);
    const float *terms = what->scratch;
    if (what->wire != DTYPE_F32) {
        float *wide = widened(what->scratch, what->wire, all);
        cast(what->scratch, what->wire, wide, DTYPE_F32, all, stream);
        terms = wide;
    }
    sum_parts(&(SumParts){.parts = what->comm.ranks,
                          .count = count,
                          .part_stride = count,
                          .part = terms,
                          .out_dtype = DTYPE_F32,
                          .out = what->out},
              stream);
}

uint64_t ordered_reduce_wire_bytes(Comm comm, int64_t count, DType wire)
{
    return 2 * ordered_scatter_wire_bytes(comm, shard_size(count, comm.ranks), wire);
}

// [ranks][shard] of the wire type, the scatter's scratch, [shard] summed, [shard] to send.
uint64_t ordered_reduce_scratch_bytes(Comm comm, int64_t count, DType wire)
{
    if (comm.ranks == 1)
        return 0;
    int64_t shard = shard_size(count, comm.ranks);
    return 4 * 256 + wire_size(wire, shard * comm.ranks) +
           ordered_scatter_scratch_bytes(comm, shard, wire) + 2 * wire_size(DTYPE_F32, shard);
}

static char *take(char **free_bytes, uint64_t bytes)
{
    char *piece = *free_bytes;
    *free_bytes += (bytes + 255) / 256 * 256;
    return piece;
}

void ordered_all_reduce(const OrderedReduce *what, Stream stream)
{
    Comm comm = what->comm;
    DType wire = what->wire;
    int64_t count = what->count, shard = shard_size(count, comm.ranks), all = shard * comm.ranks;
    if (comm.ranks == 1 || count == 0)
        return;
    char *at = what->scratch;
    char *whole = take(&at, wire_size(wire, all));
    float *sum = (float *)take(&at, wire_size(DTYPE_F32, shard));
    char *mine = take(&at, wire_size(wire, shard));
    cast(what->values, DTYPE_F32, whole, wire, count, stream);
    device_fill(whole + wire_size(wire, count), 0, wire_size(wire, all - count), stream);
    ordered_reduce_scatter(
        &(OrderedScatter){
            .comm = comm, .count = shard, .wire = wire, .in = whole, .out = sum, .scratch = at},
        stream);
    cast(sum, DTYPE_F32, mine, wire, shard, stream);
    comm_all_gather(comm, mine, whole, wire_size(wire, shard), stream);
    cast(whole, wire, what->values, DTYPE_F32, count, stream);
}
