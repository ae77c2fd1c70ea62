// ring.cuh -- the ring of stages in shared memory between the warps that load and the warps
// that multiply, and the ways into it: tensor maps on the host, descriptors for wgmma.
//
// A stage holds a piece of a and a piece of b in lines of 128 bytes with the 128-byte swizzle:
// 16-byte piece p of line l at place p ^ (l % 8). It passes from one job to the other by two
// mbarriers: `full` (bytes have come) and `empty` (all multiplying warps have read it).
#pragma once

#include "kernels/cuda_common.cuh"
#include "kernels/gemm/ptx.cuh"

enum {
    LINE_BYTES = 128,
    PANEL_BYTES = 64 * LINE_BYTES,
    RING_BARRIER_BYTES = 128,
};

// Addresses in shared memory.
template <int STAGES, int A_BYTES, int B_BYTES> struct GemmRing {
    static_assert(STAGES * 16 <= RING_BARRIER_BYTES, "two barriers a stage");
    static constexpr uint32_t stages = STAGES;
    uint32_t base;
    __device__ uint32_t a(uint32_t stage) const
    {
        return base + stage * (A_BYTES + B_BYTES);
    }
    __device__ uint32_t b(uint32_t stage) const
    {
        return a(stage) + A_BYTES;
    }
    __device__ uint32_t full(uint32_t stage) const
    {
        return a(STAGES) + stage * 16;
    }
    __device__ uint32_t empty(uint32_t stage) const
    {
        return full(stage) + 8;
    }
};

// One thread, before anybody uses the ring.
template <typename Ring>
static __device__ __forceinline__ void ring_init(const Ring &ring, uint32_t full_arrivals,
                                                 uint32_t empty_arrivals)
{
    if (ring.base % 1024 != 0)
        __trap(); // the swizzle counts lines from addresses that are multiples of 1024
    for (uint32_t stage = 0; stage < Ring::stages; stage++) {
        ptx_barrier_init(ring.full(stage), full_arrivals);
        ptx_barrier_init(ring.empty(stage), empty_arrivals);
    }
    ptx_barrier_init_done();
}

// A warp that has no rows to multiply keeps `chunks` stages moving.
template <typename Ring>
static __device__ __forceinline__ void ring_skip(const Ring &ring, uint32_t chunks,
                                                 uint32_t *number)
{
    for (uint32_t i = 0; i < chunks; i++, ++*number) {
        const uint32_t stage = *number % Ring::stages;
        ptx_barrier_wait(ring.full(stage), *number / Ring::stages & 1);
        if (threadIdx.x % 32 == 0)
            ptx_barrier_arrive(ring.empty(stage));
    }
}

// The descriptor of an operand for wgmma: start / 16; at bit 16 the distance between panels / 16
// (MN-major only); at bit 32 the distance between groups of 8 lines / 16; at bit 62 a 1 for the
// swizzle.
template <bool MN_MAJOR> static __device__ __forceinline__ uint64_t operand_words(uint32_t address)
{
    const uint64_t swizzle_128 = 1ull << 62, eight_lines = (uint64_t)(8 * LINE_BYTES / 16) << 32;
    const uint64_t panel = (uint64_t)(MN_MAJOR ? PANEL_BYTES / 16 : 1) << 16;
    return swizzle_128 | eight_lines | panel | (address & 0x3ffff) / 16;
}

// ---- host ----

static inline bool cuda_is_hopper(void)
{
    int device = 0, major = 0, minor = 0;
    CHECK_CUDA(cudaGetDevice(&device));
    CHECK_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    CHECK_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    return major == 9 && minor == 0;
}

typedef decltype(&cuTensorMapEncodeTiled) EncodeTensorMap;

// The driver's function, found at run time so that the program needs no libcuda to start.
static inline EncodeTensorMap ring_find_encode(void)
{
    void *function = NULL;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    CHECK_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                cudaEnableDefault, &result));
    CHECK(result == cudaDriverEntryPointSuccess && function, EXIT_CODE_HARDWARE,
          "install an NVIDIA driver for CUDA 12 or later",
          "the driver has no cuTensorMapEncodeTiled (query result %d)", (int)result);
    return (EncodeTensorMap)function;
}

// A matrix [planes, rows, columns] from which boxes of box_rows x one line are taken, zeros
// outside.
typedef struct RingOperand {
    const void *data;
    DType type;                    // DTYPE_BF16, or any of one byte
    int64_t columns, rows, planes; // planes 0: two dimensions
    int64_t stride;                // elements between rows
    int box_rows;
} RingOperand;

static inline CUtensorMap ring_map(const RingOperand *operand)
{
    CUtensorMap map;
    const int64_t bytes = operand->type == DTYPE_BF16 ? 2 : 1;
    const cuuint64_t extents[3] = {(cuuint64_t)operand->columns, (cuuint64_t)operand->rows,
                                   (cuuint64_t)operand->planes};
    const cuuint64_t stride_bytes[2] = {(cuuint64_t)(operand->stride * bytes),
                                        (cuuint64_t)(operand->rows * operand->stride * bytes)};
    const cuuint32_t box[3] = {(cuuint32_t)(LINE_BYTES / bytes), (cuuint32_t)operand->box_rows, 1};
    const cuuint32_t steps[3] = {1, 1, 1};
    const CUresult result = ring_find_encode()(
        &map, bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8,
        operand->planes ? 3 : 2, (void *)(uintptr_t)operand->data, extents, stride_bytes, box,
        steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    CHECK(result == CUDA_SUCCESS, EXIT_CODE_INTERNAL, "this is a bug of meshwork: please report it",
          "cuTensorMapEncodeTiled refused [%lld, %lld, %lld] of %s, rows %lld apart: CUresult %d",
          (long long)operand->planes, (long long)operand->rows, (long long)operand->columns,
          dtype_row(operand->type)->name, (long long)operand->stride, (int)result);
    return map;
}
