// kernel.h -- the contract of everything in kernels/: compute on one device, no allocation, no
// wait, no files, no ranks.
//
// A kernel is a struct of named arguments and a function that enqueues it. Its CPU row is the
// reference (obvious loops, stated order of sums) or bit for bit equal to one; its CUDA row exists
// in builds with CUDA. Every kernel states its cost: the bytes it must move and the operations it
// must do.
#pragma once

#include "harness/device.h"

DECLARATIONS_BEGIN

typedef struct KernelCost {
    double bytes; // each input read once, each output written once
    double flops;
} KernelCost;

// Local; stops with 69: this build or machine has no row of the kernel for that device.
NORETURN void kernel_missing(const char *name, DeviceKind device);

// In the header: declares `name(args, stream)`, its rows, and `name_cost(args)`. Enqueues(stream).
#define KERNEL_DECLARE(name, Args)                                                                 \
    void name(const Args *args, Stream stream);                                                    \
    void name##_cpu(const Args *args, Stream stream);                                              \
    OPTIONAL_SYMBOL void name##_cuda(const Args *args, Stream stream);                             \
    KernelCost name##_cost(const Args *args)

// In the .c file: the table of rows behind `name`.
#define KERNEL_DEFINE(name, Args)                                                                  \
    void name(const Args *args, Stream stream)                                                     \
    {                                                                                              \
        void (*const row[DEVICE_KINDS])(const Args *, Stream) = {                                  \
            [DEVICE_CPU] = name##_cpu, [DEVICE_CUDA] = name##_cuda};                               \
        if (!row[stream.device])                                                                   \
            kernel_missing(#name, stream.device);                                                  \
        row[stream.device](args, stream);                                                          \
    }

DECLARATIONS_END
