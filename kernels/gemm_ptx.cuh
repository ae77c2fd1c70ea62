// gemm_ptx.cuh -- the Hopper instructions that CUDA C has no name for, one short function each.
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

static __device__ __forceinline__ void ptx_copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// All but the newest PENDING groups of this thread's 16-byte copies have landed.
template <int PENDING> static __device__ __forceinline__ void ptx_copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
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
#define PTX_SUM_4(d, i) "+f"((d)[i]), "+f"((d)[(i) + 1]), "+f"((d)[(i) + 2]), "+f"((d)[(i) + 3])
#define PTX_SUM_16(d, i)                                                                           \
    PTX_SUM_4(d, i), PTX_SUM_4(d, (i) + 4), PTX_SUM_4(d, (i) + 8), PTX_SUM_4(d, (i) + 12)
#define PTX_SUM_64(d, i)                                                                           \
    PTX_SUM_16(d, i), PTX_SUM_16(d, (i) + 16), PTX_SUM_16(d, (i) + 32), PTX_SUM_16(d, (i) + 48)

// sum[64 rows, COLUMNS] = a[64, 16] b[16, COLUMNS] + sum. a and b are described by 64-bit words
// (gemm_hopper.cu); TRANSPOSED operands have the summed index outermost. Thread t of the group has
// in sum[i] column 8 (i / 4) + 2 (t % 4) + i % 2 of row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2).
template <int COLUMNS, int A_TRANSPOSED, int B_TRANSPOSED>
static __device__ __forceinline__ void ptx_mma(float *sum, uint64_t a, uint64_t b)
{
    static_assert(COLUMNS == 128 || COLUMNS == 256, "the two widths in use");
    if (COLUMNS == 256)
        asm volatile(
            "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
            "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
            "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
            "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, "
            "%108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, "
            "%120, %121, %122, %123, %124, %125, %126, %127}, "
            "%128, %129, 1, 1, 1, %130, %131;"
            : PTX_SUM_64(sum, 0), PTX_SUM_64(sum, 64)
            : "l"(a), "l"(b), "n"(A_TRANSPOSED), "n"(B_TRANSPOSED));
    else
        asm volatile(
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
            "%64, %65, 1, 1, 1, %66, %67;"
            : PTX_SUM_64(sum, 0)
            : "l"(a), "l"(b), "n"(A_TRANSPOSED), "n"(B_TRANSPOSED));
}
// clang-format on

// Keeps the compiler from touching the sums before what stands above this line.
template <int COUNT> static __device__ __forceinline__ void ptx_sums_ready(float *sum)
{
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        asm volatile("" : "+f"(sum[i])::"memory");
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
