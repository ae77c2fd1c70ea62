// cuda_common.cuh -- what the CUDA rows share: storage types, 8-element groups, sums over a warp,
// grids, launches.
//
// A row of a matrix is worked on by one warp in groups of 8 elements: lane l owns the groups l, l +
// 32, l + 64, ... A group is one 16-byte access in bf16 and two in f32. Rows whose groups cannot
// all be aligned (odd widths) take the same path with single elements: template parameter VECTOR
// says which, row_is_vector() decides.
//
// Sums whose order is prescribed use __fmaf_rn, __fadd_rn and __fmul_rn: nvcc never fuses or splits
// those.
#pragma once

#include "kernels/kernel.h"

#include <cuda_runtime.h>

enum {
    WARP_LANES = 32,
    GROUP_ELEMENTS = 8,
    COPY_UNITS = 8,          // loads of a lane before its first store
    BLOCK_SUM_THREADS = 1024 // threads of a block that adds up an array in f64
};
static const unsigned WARP_ALL = 0xFFFFFFFFu;

struct Bf16 {
    uint16_t bits;
};

__device__ __forceinline__ float widen(float value)
{
    return value;
}
__device__ __forceinline__ float widen(Bf16 value)
{
    return __uint_as_float((uint32_t)value.bits << 16);
}

// Two floats to bf16, `low` in the low half: to nearest even, every NaN becomes 7FC0
// (FORMATS.md 1.2). The hardware's NaN is 7FFF, the largest signed 16-bit number, and infinity is
// 7F80: a signed minimum with 7FC0 touches only the NaN.
__device__ __forceinline__ uint32_t bf16_pair(float low, float high)
{
    uint32_t bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return __vmins2(bits, 0x7FC07FC0u);
}

template <typename T> __device__ __forceinline__ T narrow(float value);
template <> __device__ __forceinline__ float narrow<float>(float value)
{
    return value;
}
template <> __device__ __forceinline__ Bf16 narrow<Bf16>(float value)
{
    Bf16 narrowed = {(uint16_t)bf16_pair(value, 0.0f)};
    return narrowed;
}

// The value that storing as T and loading again gives.
template <typename T> __device__ __forceinline__ float rounded(float value)
{
    return widen(narrow<T>(value));
}

// A group as it lies in memory: loads stay in this form until they are used, which keeps registers
// few and loads many.
template <typename T> struct Group;
template <> struct Group<float> {
    float value[GROUP_ELEMENTS];
};
template <> struct Group<Bf16> {
    uint32_t pair[GROUP_ELEMENTS / 2]; // even element in the low half
};

__device__ __forceinline__ float group_value(const Group<float> &group, int element)
{
    return group.value[element];
}
__device__ __forceinline__ float group_value(const Group<Bf16> &group, int element)
{
    const uint32_t pair = group.pair[element / 2];
    return __uint_as_float(element % 2 ? pair & 0xFFFF0000u : pair << 16);
}

// Loads the group that starts at `from`; `left` elements of the row remain (VECTOR: at least 8).
// Missing ones are 0.
template <bool VECTOR>
__device__ __forceinline__ Group<float> group_load(const float *from, int64_t left)
{
    Group<float> group;
    if constexpr (VECTOR) {
        const float4 low = ((const float4 *)from)[0], high = ((const float4 *)from)[1];
        group = {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
    } else {
#pragma unroll
        for (int e = 0; e < GROUP_ELEMENTS; e++)
            group.value[e] = e < left ? from[e] : 0.0f;
    }
    return group;
}

template <bool VECTOR>
__device__ __forceinline__ Group<Bf16> group_load(const Bf16 *from, int64_t left)
{
    Group<Bf16> group;
    if constexpr (VECTOR) {
        const uint4 raw = *(const uint4 *)from;
        group = {{raw.x, raw.y, raw.z, raw.w}};
    } else {
#pragma unroll
        for (int e = 0; e < GROUP_ELEMENTS; e += 2) {
            const uint32_t low = e < left ? from[e].bits : 0,
                           high = e + 1 < left ? from[e + 1].bits : 0;
            group.pair[e / 2] = low | high << 16;
        }
    }
    return group;
}

template <bool VECTOR>
__device__ __forceinline__ void group_store(float *to, int64_t left,
                                            const float (&value)[GROUP_ELEMENTS])
{
    if constexpr (VECTOR) {
        ((float4 *)to)[0] = make_float4(value[0], value[1], value[2], value[3]);
        ((float4 *)to)[1] = make_float4(value[4], value[5], value[6], value[7]);
    } else {
#pragma unroll
        for (int e = 0; e < GROUP_ELEMENTS; e++)
            if (e < left)
                to[e] = value[e];
    }
}

template <bool VECTOR>
__device__ __forceinline__ void group_store(Bf16 *to, int64_t left,
                                            const float (&value)[GROUP_ELEMENTS])
{
    if constexpr (VECTOR) {
        *(uint4 *)to = make_uint4(bf16_pair(value[0], value[1]), bf16_pair(value[2], value[3]),
                                  bf16_pair(value[4], value[5]), bf16_pair(value[6], value[7]));
    } else {
#pragma unroll
        for (int e = 0; e < GROUP_ELEMENTS; e++)
            if (e < left)
                to[e] = narrow<Bf16>(value[e]);
    }
}

__device__ __forceinline__ int lane_index(void)
{
    return (int)(threadIdx.x % WARP_LANES);
}
__device__ __forceinline__ unsigned lanes_below(void)
{
    return (1u << lane_index()) - 1u;
}
// Index of this warp among all of the grid, and how many there are: the stride of a persistent
// loop.
__device__ __forceinline__ int64_t warp_index(void)
{
    return ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP_LANES;
}
__device__ __forceinline__ int64_t warp_count(void)
{
    return (int64_t)gridDim.x * blockDim.x / WARP_LANES;
}

// Pairwise over lanes 16, 8, 4, 2, 1 apart; every lane gets the sum.
__device__ __forceinline__ float warp_sum(float value)
{
#pragma unroll
    for (int apart = WARP_LANES / 2; apart > 0; apart /= 2)
        value = __fadd_rn(value, __shfl_xor_sync(WARP_ALL, value, apart));
    return value;
}

// A group's step of a row's dot product: a chain of fused steps in ascending element order
// (kernels/moe_combine.h).
template <typename A, typename B>
__device__ __forceinline__ float dot_chain(const Group<A> &a, const Group<B> &b, int64_t left,
                                           float sum)
{
#pragma unroll
    for (int e = 0; e < GROUP_ELEMENTS; e++)
        if (e < left)
            sum = __fmaf_rn(group_value(a, e), group_value(b, e), sum);
    return sum;
}

// Warp: `units` of a row from one place to another.
template <typename Unit>
__device__ __forceinline__ void warp_copy(Unit *to, const Unit *from, int64_t units)
{
    for (int64_t begin = lane_index(); begin < units; begin += COPY_UNITS * WARP_LANES) {
        Unit unit[COPY_UNITS];
#pragma unroll
        for (int i = 0; i < COPY_UNITS; i++)
            if (begin + i * WARP_LANES < units)
                unit[i] = from[begin + i * WARP_LANES];
#pragma unroll
        for (int i = 0; i < COPY_UNITS; i++)
            if (begin + i * WARP_LANES < units)
                to[begin + i * WARP_LANES] = unit[i];
    }
}

// Whether a group is whole and aligned, as a type.
template <bool WHOLE> struct GroupKind {
    static constexpr bool vector = WHOLE;
};

// Grid: body(element, left, GroupKind) for the groups of a flat array of `count`; only the last can
// be short.
template <bool VECTOR, typename Body>
__device__ __forceinline__ void for_each_group(int64_t count, Body body)
{
    const int64_t step = (int64_t)gridDim.x * blockDim.x * GROUP_ELEMENTS;
    for (int64_t element = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * GROUP_ELEMENTS;
         element < count; element += step) {
        const int64_t left = count - element;
        if (VECTOR && left >= GROUP_ELEMENTS)
            body(element, left, GroupKind<VECTOR>());
        else
            body(element, left, GroupKind<false>());
    }
}

// Pairwise over the eight values of a lane, 4, 2, 1 apart.
template <typename Number>
__device__ __forceinline__ Number group_sum(const Number (&value)[GROUP_ELEMENTS])
{
    Number sum[GROUP_ELEMENTS / 2];
#pragma unroll
    for (int e = 0; e < GROUP_ELEMENTS / 2; e++)
        sum[e] = value[e] + value[e + GROUP_ELEMENTS / 2];
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

// Block of BLOCK_SUM_THREADS threads: pairwise, 512, 256, ... 1 apart (cpu_pairwise_sum). Thread 0
// gets the sum.
__device__ __forceinline__ double block_sum(double value)
{
    __shared__ double sum[BLOCK_SUM_THREADS];
    sum[threadIdx.x] = value;
    for (int apart = BLOCK_SUM_THREADS / 2; apart >= WARP_LANES; apart /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < apart)
            value = sum[threadIdx.x] = value + sum[threadIdx.x + apart];
    }
#pragma unroll
    for (int apart = WARP_LANES / 2; apart > 0; apart /= 2)
        value += __shfl_xor_sync(WARP_ALL, value, apart);
    return value;
}

static inline cudaStream_t cuda_stream(Stream stream)
{
    return (cudaStream_t)stream.handle;
}

static inline int cuda_processors(void)
{
    int device = 0, processors = 1;
    CHECK_CUDA(cudaGetDevice(&device));
    CHECK_CUDA(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
    return processors;
}

// Blocks of a persistent grid: enough for the work, at most `per_processor` on each multiprocessor,
// at least one.
static inline unsigned cuda_grid(int64_t blocks_wanted, int per_processor)
{
    const int64_t most = (int64_t)cuda_processors() * per_processor;
    const int64_t blocks = blocks_wanted < most ? blocks_wanted : most;
    return (unsigned)(blocks > 1 ? blocks : 1);
}

static inline bool cuda_aligned(const void *pointer)
{
    return (uintptr_t)pointer % 16 == 0;
}
// Every row that starts a multiple of `elements` after an aligned pointer consists of aligned whole
// groups.
static inline bool row_is_vector(int64_t elements)
{
    return elements % GROUP_ELEMENTS == 0;
}
