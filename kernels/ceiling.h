// ceiling.h -- how fast this device can go at all: what measured times are held against.
//
// Measured, not taken from a data sheet, in well under a second: the fastest of a few repetitions,
// with random data.
//
//   copy    bytes read + written per second. CPU: memcpy by `threads` threads; CUDA: a device-to-
//           device copy.
//   matmul  floating-point operations per second. CPU: the grouped_gemm kernel on a shape that
//           stays in the cache; CUDA: dense_gemm on square matrices, bf16 and f32.
#pragma once

#include "harness/arena.h"

DECLARATIONS_BEGIN

typedef struct DeviceCeilings {
    double copy_bytes_per_s;
    double f32_flops_per_s;
    double bf16_flops_per_s;
    double link_bytes_per_s; // out of this rank to others, while all send: for those who
                             // communicate to fill in; ceiling_measure leaves 0 = unknown
} DeviceCeilings;

// Waits. Uses the current device of that kind and about 0.6 GB (CPU: at most 0.3 GB) of `scratch`,
// an arena of its memory, given back before it returns. threads: CPU only, at least 1. Stops with
// 69 where the build has no such device.
DeviceCeilings ceiling_measure(DeviceKind kind, int threads, Arena *scratch);

// Local. The rows behind it; the second exists in builds with CUDA.
DeviceCeilings ceiling_measure_cpu(int threads, Arena *scratch);
OPTIONAL_SYMBOL DeviceCeilings ceiling_measure_cuda(int threads, Arena *scratch);

DECLARATIONS_END
