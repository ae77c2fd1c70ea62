// ordered.h -- sums over ranks in rank order whose terms may travel narrower than they are added.
//
// Terms are rounded to the wire type (f32: not at all), added in f32 from rank 0 upwards. A group
// of one neither sends nor rounds. comm_all_reduce_ordered (comm.h) is the all-reduce for f32.
#pragma once

#include "parallel/comm.h"

// in: [ranks][count] of the wire type. out: [count] f32, the sum of everybody's part for this rank.
// Collective(comm), Enqueues(stream). scratch: ordered_scatter_scratch_bytes.
typedef struct OrderedScatter {
    Comm comm;
    int64_t count;
    DType wire; // DTYPE_F32 or DTYPE_BF16
    const void *in;
    float *out;
    void *scratch;
} OrderedScatter;
void ordered_reduce_scatter(const OrderedScatter *what, Stream stream);
uint64_t ordered_scatter_scratch_bytes(Comm comm, int64_t count, DType wire); // Local
uint64_t ordered_scatter_wire_bytes(Comm comm, int64_t count, DType wire);    // Local

// values: [count] f32, in place: round(sum of round(values)) over ranks.
// Collective(comm), Enqueues(stream). scratch: ordered_reduce_scratch_bytes.
typedef struct OrderedReduce {
    Comm comm;
    int64_t count;
    DType wire;
    float *values;
    void *scratch;
} OrderedReduce;
void ordered_all_reduce(const OrderedReduce *what, Stream stream);
uint64_t ordered_reduce_scratch_bytes(Comm comm, int64_t count, DType wire); // Local
uint64_t ordered_reduce_wire_bytes(Comm comm, int64_t count, DType wire);    // Local
