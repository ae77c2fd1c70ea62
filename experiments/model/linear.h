// linear.h -- the smallest demonstration: one Linear 8 -> 16 whose weight is divided, the same 4
// rows on every rank. With FSDP the gradients are averaged, so that each rank's shard must equal
// the 1-rank gradient exactly; tensor parallelism adds input gradients in another order, so a bound
// holds there.
#pragma once

#include "parallel/comm.h"
#include "results/result.h"

enum { LINEAR_CHECKS = 3 };
typedef struct LinearDemo {
    const Run *run;
    Comm world;
    DeviceKind device;
    uint64_t seed;
    bool tensor_parallel; // else FSDP
    Stream stream;
} LinearDemo;
// Collective(all ranks), Waits. checks [LINEAR_CHECKS]: output, weight gradient, input gradient;
// valid on rank 0.
void linear_demo(const LinearDemo *demo, ResultCheck *checks);
