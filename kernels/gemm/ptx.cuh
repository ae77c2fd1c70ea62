// ptx.cuh -- the Hopper instructions that CUDA C has no name for, one short function each.
//
// Source: PTX ISA 8.0 and later: mbarrier, cp.async, cp.async.bulk.tensor, wgmma.mma_async,
// stmatrix, setmaxnreg.
#pragma once

#include <cuda.h>
#include <stdint.h>

static __device__ __forceinline__ uint32_t ptx_shared_address(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

// ---- mbarrier: counts arrivals and bytes; a phase completes when both have come ----

static __device__ __forceinline__ void ptx_barrier_init(uint32_t barrier, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}

static __device__ __forceinline__ void ptx_barrier_init_done(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

static __device__ __forceinline__ void ptx_barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

static __device__ __forceinline__ void ptx_barrier_arrive_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

// Waits until the phase of this parity has completed.
static __device__ __forceinline__ void ptx_barrier_wait(uint32_t barrier, uint32_t parity)
{
    uint32_t done = 0;
    while (!done)
        asm volatile("{\n\t.reg .pred p;\n\t"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
                     "selp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
}

// ---- copies into shared memory ----

// 16 bytes; the bytes past source_bytes are zeros (0: nothing is read).
static __device__ __forceinline__ void ptx_copy_16(uint32_t to, const void *from,
                                                   uint32_t source_bytes)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(source_bytes)
                 : "memory");
}

static __device__ __forceinline__ void ptx_copy_4(uint32_t to, const void *from)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

static __device__ __forceinline__ void ptx_copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// All but the newest PENDING groups of this thread's 16-byte copies have landed.
template <int PENDING> static __device__ __forceinline__ void ptx_copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

static __device__ __forceinline__ uint4 ptx_load_16(uint32_t from)
{
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(from)
                 : "memory");
    return x;
}

static __device__ __forceinline__ uint2 ptx_load_8(uint32_t from)
{
    uint2 x;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(from) : "memory");
    return x;
}

static __device__ __forceinline__ void ptx_store_zeros(uint32_t to)
{
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory");
}

// Waits for the 128 threads that use this barrier (1 .. 15).
static __device__ __forceinline__ void ptx_warpgroup_wait(int barrier)
{
    asm volatile("bar.sync %0, 128;" ::"r"(barrier) : "memory");
}

// What this thread wrote to shared memory becomes visible to wgmma and the copy engine.
static __device__ __forceinline__ void ptx_proxy_fence(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

static __device__ __forceinline__ void ptx_prefetch(const void *line)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
}

// Sees all that was written before the value was.
static __device__ __forceinline__ uint32_t ptx_load_acquire(const uint32_t *from)
{
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

static __device__ __forceinline__ void ptx_tensor_prefetch(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"((uint64_t)map) : "memory");
}

static __device__ __forceinline__ void ptx_tensor_load_2d(uint32_t to, const CUtensorMap *map,
                                                          int x, int y, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"((uint64_t)map), "r"(x), "r"(y), "r"(barrier)
                 : "memory");
}

static __device__ __forceinline__ void ptx_tensor_load_3d(uint32_t to, const CUtensorMap *map,
                                                          int x, int y, int z, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
                 "l"((uint64_t)map), "r"(x), "r"(y), "r"(z), "r"(barrier)
                 : "memory");
}

// ---- registers ----

// Byte i: the one of `bytes` that nibble i of `selector` names, 0 for 4. __byte_perm would take an
// instruction more, to mask the selector.
static __device__ __forceinline__ uint32_t ptx_permute(uint32_t bytes, uint32_t selector)
{
    uint32_t result;
    asm("prmt.b32 %0, %1, 0, %2;" : "=r"(result) : "r"(bytes), "r"(selector));
    return result;
}

template <int REGISTERS> static __device__ __forceinline__ void ptx_registers_take(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS> static __device__ __forceinline__ void ptx_registers_give(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// ---- matrix product of a warpgroup (4 warps) ----

static __device__ __forceinline__ void ptx_mma_fence(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void ptx_mma_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int PENDING> static __device__ __forceinline__ void ptx_mma_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// clang-format off
#define PTX_SUM_4(c, d, i) c((d)[i]), c((d)[(i) + 1]), c((d)[(i) + 2]), c((d)[(i) + 3])
#define PTX_SUM_16(c, d, i)                                                                        \
    PTX_SUM_4(c, d, i), PTX_SUM_4(c, d, (i) + 4), PTX_SUM_4(c, d, (i) + 8), PTX_SUM_4(c, d, (i) + 12)
#define PTX_SUM_64(c, d, i)                                                                        \
    PTX_SUM_16(c, d, i), PTX_SUM_16(c, d, (i) + 16), PTX_SUM_16(c, d, (i) + 32), PTX_SUM_16(c, d, (i) + 48)
#define PTX_NAMES_64                                                                               \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "             \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PTX_NAMES_128                                                                              \
    PTX_NAMES_64                                                                                   \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, "                         \
    "%108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, "                     \
    "%120, %121, %122, %123, %124, %125, %126, %127"
#define PTX_FLOAT(x) "+f"(x)
#define PTX_INT(x) "+r"(x)

// sum[64 rows, COLUMNS] = a[64, 16] b[16, COLUMNS] + sum. a and b are described by 64-bit words
// (gemm/ring.cuh); TRANSPOSED operands have the summed index outermost. Thread t of the group has
// in sum[i] column 8 (i / 4) + 2 (t % 4) + i % 2 of row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2).
template <int COLUMNS, int A_TRANSPOSED, int B_TRANSPOSED>
static __device__ __forceinline__ void ptx_mma(float *sum, uint64_t a, uint64_t b)
{
    static_assert(COLUMNS == 128 || COLUMNS == 256, "the two widths in use");
    if constexpr (COLUMNS == 256)
        asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" PTX_NAMES_128
                     "}, %128, %129, 1, 1, 1, %130, %131;"
                     : PTX_SUM_64(PTX_FLOAT, sum, 0), PTX_SUM_64(PTX_FLOAT, sum, 64)
                     : "l"(a), "l"(b), "n"(A_TRANSPOSED), "n"(B_TRANSPOSED));
    else
        asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" PTX_NAMES_64
                     "}, %64, %65, 1, 1, 1, %66, %67;"
                     : PTX_SUM_64(PTX_FLOAT, sum, 0)
                     : "l"(a), "l"(b), "n"(A_TRANSPOSED), "n"(B_TRANSPOSED));
}

// The same with 32 terms of e4m3; `add` 0: sum begins anew. The sums are kept to some 13 bits.
template <int COLUMNS>
static __device__ __forceinline__ void ptx_mma_e4m3(float *sum, uint64_t a, uint64_t b, int add)
{
    static_assert(COLUMNS == 128 || COLUMNS == 256, "the two widths in use");
    if constexpr (COLUMNS == 256)
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %130, 0; "
                     "wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3 {" PTX_NAMES_128
                     "}, %128, %129, p, 1, 1; }"
                     : PTX_SUM_64(PTX_FLOAT, sum, 0), PTX_SUM_64(PTX_FLOAT, sum, 64)
                     : "l"(a), "l"(b), "r"(add));
    else
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0; "
                     "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" PTX_NAMES_64
                     "}, %64, %65, p, 1, 1; }"
                     : PTX_SUM_64(PTX_FLOAT, sum, 0)
                     : "l"(a), "l"(b), "r"(add));
}

// The same with int8 and int32, exact.
template <int COLUMNS>
static __device__ __forceinline__ void ptx_mma_s8(int32_t *sum, uint64_t a, uint64_t b, int add)
{
    static_assert(COLUMNS == 128 || COLUMNS == 256, "the two widths in use");
    if constexpr (COLUMNS == 256)
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %130, 0; "
                     "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {" PTX_NAMES_128
                     "}, %128, %129, p; }"
                     : PTX_SUM_64(PTX_INT, sum, 0), PTX_SUM_64(PTX_INT, sum, 64)
                     : "l"(a), "l"(b), "r"(add));
    else
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0; "
                     "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {" PTX_NAMES_64
                     "}, %64, %65, p; }"
                     : PTX_SUM_64(PTX_INT, sum, 0)
                     : "l"(a), "l"(b), "r"(add));
}
// clang-format on

// ---- matrix product of a warp, and pairs of bf16 ----

// sum[16, 8] += a[16, 16] b[16, 8] in bf16. With g = lane / 4, t = lane % 4: a0 and a2 are columns
// 2t, 2t + 1 and 2t + 8, 2t + 9 of row g, a1 and a3 those of row g + 8; b0 and b1 the same rows of
// column g; sums 0, 1 are columns 2t, 2t + 1 of row g, sums 2, 3 of row g + 8.
static __device__ __forceinline__ void ptx_mma_warp(float (&sum)[4], uint32_t a0, uint32_t a1,
                                                    uint32_t a2, uint32_t a3, uint32_t b0,
                                                    uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ uint32_t ptx_bf16_subtract(uint32_t x, uint32_t y)
{
    uint32_t result;
    asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(x), "r"(y));
    return result;
}

static __device__ __forceinline__ uint32_t ptx_bf16_multiply(uint32_t x, uint32_t y)
{
    uint32_t result;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(x), "r"(y));
    return result;
}

// x y + z, rounded once.
static __device__ __forceinline__ uint32_t ptx_bf16_fma(uint32_t x, uint32_t y, uint32_t z)
{
    uint32_t result;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(y), "r"(z));
    return result;
}

// Two e4m3 codes, the first in the low byte.
static __device__ __forceinline__ float2 ptx_e4m3_pair(uint32_t codes)
{
    float2 pair;
    asm("{ .reg .b32 both; .reg .b16 low, high; cvt.rn.f16x2.e4m3x2 both, %2; "
        "mov.b32 {low, high}, both; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
        : "=f"(pair.x), "=f"(pair.y)
        : "h"((uint16_t)codes));
    return pair;
}

// Keeps the compiler from touching the sums before what stands above this line.
template <int COUNT> static __device__ __forceinline__ void ptx_sums_ready(float *sum)
{
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        asm volatile("" : "+f"(sum[i])::"memory");
}

template <int COUNT> static __device__ __forceinline__ void ptx_sums_ready(int32_t *sum)
{
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        asm volatile("" : "+r"(sum[i])::"memory");
}

// ---- out of registers ----

// Four 8 x 8 blocks of 2-byte elements; lane l gives the address of row l % 8 of block l / 8.
static __device__ __forceinline__ void
ptx_store_blocks(uint32_t to, uint32_t block0, uint32_t block1, uint32_t block2, uint32_t block3)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
                 "r"(block0), "r"(block1), "r"(block2), "r"(block3)
                 : "memory");
}
