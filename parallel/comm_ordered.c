// A sum over ranks in rank order, made of collectives that leave the order of sums to nobody.
#include "kernels/reduce.h"
#include "parallel/comm_link.h"
#include "parallel/shard.h"

// Scratch, in floats: [ranks][shard] to send (only when count does not divide), [ranks][shard]
// received, [shard] summed.
uint64_t comm_ordered_scratch_bytes(Comm comm, int64_t count)
{
    if (!comm.link)
        return 0;
    return (uint64_t)shard_size(count, comm.ranks) * (2 * (uint64_t)comm.ranks + 1) * sizeof(float);
}

// Each rank adds one shard of everybody's partials, in rank order, and all gather the shards: no
// rank's sum is made twice and the order is the same everywhere. Where count does not divide, the
// last shards are filled up with zeros.
void comm_all_reduce_ordered(Comm comm, const float *in, float *out, int64_t count, void *scratch,
                             Stream stream)
{
    if (!comm.link || count == 0) {
        if (out != in && count > 0)
            device_copy(out, in, (uint64_t)count * sizeof(float), stream);
        return;
    }
    int64_t shard = shard_size(count, comm.ranks), padded = shard * comm.ranks;
    uint64_t shard_bytes = (uint64_t)shard * sizeof(float);
    float *whole = scratch, *received = whole + padded, *summed = received + padded;
    bool even = padded == count;
    if (!even) {
        device_copy(whole, in, (uint64_t)count * sizeof(float), stream);
        device_fill(whole + count, 0, (uint64_t)(padded - count) * sizeof(float), stream);
    }
    comm_all_to_all(comm, even ? in : whole, received, shard_bytes, stream);
    SumParts sum = {.parts = comm.ranks,
                    .count = shard,
                    .part_stride = shard,
                    .part = received,
                    .out_dtype = DTYPE_F32,
                    .out = summed};
    sum_parts(&sum, stream);
    comm_all_gather(comm, summed, even ? out : whole, shard_bytes, stream);
    if (!even)
        device_copy(out, whole, (uint64_t)count * sizeof(float), stream);
}
