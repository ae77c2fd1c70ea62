// terms.cu -- combining terms on the GPU.
//
// Limit: memory bandwidth. Each thread owns 16 bytes of every term and combines them in order;
// nvcc neither fuses nor reorders the _rn operations, so the bits are the CPU's. Where the
// addresses do not allow 16 bytes at a time, the same elements are loaded one by one.
#include "kernels/cuda_common.cuh"
#include "kernels/terms.h"

enum { TERMS_THREADS = 256, TERMS_BLOCKS_MOST = 8, TERMS_TOGETHER = 4, TERMS_PACK_BYTES = 16 };

// A storage type, the type that computes, and the way between. Wrap: where integers wrap.
template <typename T, typename W> struct Plain {
    typedef T Storage;
    typedef T Compute;
    static __device__ __forceinline__ T load(T value)
    {
        return value;
    }
    static __device__ __forceinline__ T store(T value)
    {
        return value;
    }
    static __device__ __forceinline__ T add(T a, T b)
    {
        return (T)((W)a + (W)b);
    }
    static __device__ __forceinline__ T multiply(T a, T b)
    {
        return (T)((W)a * (W)b);
    }
    static __device__ __forceinline__ T divide(T a, int terms) // averages are of floats only
    {
        return a;
    }
};

struct InF32 {
    typedef float Compute;
    static __device__ __forceinline__ float add(float a, float b)
    {
        return __fadd_rn(a, b);
    }
    static __device__ __forceinline__ float multiply(float a, float b)
    {
        return __fmul_rn(a, b);
    }
    static __device__ __forceinline__ float divide(float a, int terms)
    {
        return __fdiv_rn(a, (float)terms);
    }
};

struct RowF32 : InF32 {
    typedef float Storage;
    static __device__ __forceinline__ float load(float value)
    {
        return value;
    }
    static __device__ __forceinline__ float store(float value)
    {
        return value;
    }
};

struct RowBf16 : InF32 {
    typedef Bf16 Storage;
    static __device__ __forceinline__ float load(Bf16 value)
    {
        return widen(value);
    }
    static __device__ __forceinline__ Bf16 store(float value)
    {
        return narrow<Bf16>(value);
    }
};

struct RowF16 : InF32 {
    typedef uint16_t Storage;
    static __device__ __forceinline__ float load(uint16_t bits)
    {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
        return value;
    }
    static __device__ __forceinline__ uint16_t store(float value)
    {
        uint16_t bits;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
        return (bits & 0x7FFFu) > 0x7C00u ? 0x7E00u : bits;
    }
};

struct RowF64 {
    typedef double Storage;
    typedef double Compute;
    static __device__ __forceinline__ double load(double value)
    {
        return value;
    }
    static __device__ __forceinline__ double store(double value)
    {
        return value;
    }
    static __device__ __forceinline__ double add(double a, double b)
    {
        return __dadd_rn(a, b);
    }
    static __device__ __forceinline__ double multiply(double a, double b)
    {
        return __dmul_rn(a, b);
    }
    static __device__ __forceinline__ double divide(double a, int terms)
    {
        return __ddiv_rn(a, (double)terms);
    }
};

// 16 bytes of storage. Only the last pack of an array can be short.
template <typename Row> struct Pack {
    enum { ELEMENTS = TERMS_PACK_BYTES / sizeof(typename Row::Storage) };
    alignas(TERMS_PACK_BYTES) typename Row::Storage element[ELEMENTS];
};

template <typename Row, bool VECTOR>
__device__ __forceinline__ Pack<Row> pack_load(const typename Row::Storage *from, int64_t left)
{
    Pack<Row> pack;
    if constexpr (VECTOR) {
        pack = *(const Pack<Row> *)from;
    } else {
#pragma unroll
        for (int e = 0; e < Pack<Row>::ELEMENTS; e++)
            if (e < left)
                pack.element[e] = from[e];
    }
    return pack;
}

template <typename Row>
__device__ __forceinline__ typename Row::Compute terms_step(TermsOp op, typename Row::Compute a,
                                                            typename Row::Compute b)
{
    const bool a_is_nan = a != a;
    switch (op) {
    case TERMS_PRODUCT:
        return Row::multiply(a, b);
    case TERMS_MAX:
        return a_is_nan || a > b ? a : b;
    case TERMS_MIN:
        return a_is_nan || a < b ? a : b;
    default:
        return Row::add(a, b);
    }
}

// The own term is at own_index, the others stand around it.
template <typename Row>
__device__ __forceinline__ const typename Row::Storage *term_at(const TermsCombine &args, int term)
{
    typedef typename Row::Storage Storage;
    if (term == args.own_index)
        return (const Storage *)args.own;
    return (const Storage *)args.others + (term - (term > args.own_index)) * args.stride;
}

template <typename Row, bool VECTOR>
__device__ __forceinline__ void combine_pack(const TermsCombine &args, int64_t first, int64_t left)
{
    enum { ELEMENTS = Pack<Row>::ELEMENTS };
    typename Row::Compute value[ELEMENTS];
    for (int begin = 0; begin < args.terms; begin += TERMS_TOGETHER) {
        Pack<Row> pack[TERMS_TOGETHER];
#pragma unroll
        for (int k = 0; k < TERMS_TOGETHER; k++)
            if (begin + k < args.terms)
                pack[k] = pack_load<Row, VECTOR>(term_at<Row>(args, begin + k) + first, left);
#pragma unroll
        for (int k = 0; k < TERMS_TOGETHER; k++)
            if (begin + k < args.terms)
#pragma unroll
                for (int e = 0; e < ELEMENTS; e++) {
                    const typename Row::Compute other = Row::load(pack[k].element[e]);
                    value[e] = begin + k == 0 ? other : terms_step<Row>(args.op, value[e], other);
                }
    }
    Pack<Row> result;
#pragma unroll
    for (int e = 0; e < ELEMENTS; e++)
        result.element[e] =
            Row::store(args.op == TERMS_AVG ? Row::divide(value[e], args.terms) : value[e]);
    typename Row::Storage *const out = (typename Row::Storage *)args.out + first;
    if constexpr (VECTOR) {
        *(Pack<Row> *)out = result;
    } else {
#pragma unroll
        for (int e = 0; e < ELEMENTS; e++)
            if (e < left)
                out[e] = result.element[e];
    }
}

template <typename Row, bool VECTOR>
__global__ void __launch_bounds__(TERMS_THREADS) terms_combine_kernel(TermsCombine args)
{
    const int64_t thread = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    const int64_t step = (int64_t)gridDim.x * blockDim.x * Pack<Row>::ELEMENTS;
    for (int64_t first = thread * Pack<Row>::ELEMENTS; first < args.count; first += step) {
        const int64_t left = args.count - first;
        if (VECTOR && left >= Pack<Row>::ELEMENTS)
            combine_pack<Row, VECTOR>(args, first, left);
        else
            combine_pack<Row, false>(args, first, left);
    }
}

template <typename Row> static void combine_launch(const TermsCombine *args, Stream stream)
{
    const int64_t elements = Pack<Row>::ELEMENTS, size = TERMS_PACK_BYTES / elements;
    const bool vector = cuda_aligned(args->own) && cuda_aligned(args->out) &&
                        (args->terms == 1 || cuda_aligned(args->others)) &&
                        (args->terms <= 2 || args->stride * size % TERMS_PACK_BYTES == 0);
    const int64_t packs = (args->count + elements - 1) / elements;
    const unsigned grid = cuda_grid((packs + TERMS_THREADS - 1) / TERMS_THREADS, TERMS_BLOCKS_MOST);
    if (vector)
        terms_combine_kernel<Row, true><<<grid, TERMS_THREADS, 0, cuda_stream(stream)>>>(*args);
    else
        terms_combine_kernel<Row, false><<<grid, TERMS_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}

void terms_combine_cuda(const TermsCombine *args, Stream stream)
{
    static const struct {
        DType dtype;
        void (*launch)(const TermsCombine *args, Stream stream);
    } rows[] = {
        {DTYPE_F32, combine_launch<RowF32>},
        {DTYPE_F64, combine_launch<RowF64>},
        {DTYPE_BF16, combine_launch<RowBf16>},
        {DTYPE_F16, combine_launch<RowF16>},
        {DTYPE_I64, combine_launch<Plain<int64_t, uint64_t>>},
        {DTYPE_I32, combine_launch<Plain<int32_t, uint32_t>>},
        {DTYPE_I16, combine_launch<Plain<int16_t, uint32_t>>},
        {DTYPE_I8, combine_launch<Plain<int8_t, uint32_t>>},
        {DTYPE_U64, combine_launch<Plain<uint64_t, uint64_t>>},
        {DTYPE_U32, combine_launch<Plain<uint32_t, uint32_t>>},
        {DTYPE_U16, combine_launch<Plain<uint16_t, uint32_t>>},
        {DTYPE_U8, combine_launch<Plain<uint8_t, uint32_t>>},
    };
    CHECK_RULE(args->terms >= 1 && args->own_index >= 0 && args->own_index < args->terms);
    size_t row = 0;
    while (row < COUNT_OF(rows) && rows[row].dtype != args->dtype)
        row++;
    CHECK_RULE(row < COUNT_OF(rows));
    if (args->count > 0)
        rows[row].launch(args, stream);
}

template <typename Bits>
__global__ void __launch_bounds__(TERMS_THREADS)
    terms_fill_kernel(Bits *out, int64_t count, Bits value)
{
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step)
        out[i] = value;
}

template <typename Bits> static void fill_launch(const TermsIdentity *args, Stream stream)
{
    const unsigned grid =
        cuda_grid((args->count + TERMS_THREADS - 1) / TERMS_THREADS, TERMS_BLOCKS_MOST);
    terms_fill_kernel<Bits><<<grid, TERMS_THREADS, 0, cuda_stream(stream)>>>(
        (Bits *)args->out, args->count, (Bits)terms_one(args->dtype));
    CHECK_CUDA(cudaGetLastError());
}

void terms_identity_cuda(const TermsIdentity *args, Stream stream)
{
    CHECK_RULE(args->op == TERMS_SUM || args->op == TERMS_PRODUCT);
    const uint64_t size = dtype_bytes(args->dtype, 1);
    if (args->count == 0)
        return;
    if (args->op == TERMS_SUM)
        device_fill(args->out, 0, size * (uint64_t)args->count, stream);
    else if (size == 1)
        fill_launch<uint8_t>(args, stream);
    else if (size == 2)
        fill_launch<uint16_t>(args, stream);
    else if (size == 4)
        fill_launch<uint32_t>(args, stream);
    else
        fill_launch<uint64_t>(args, stream);
}
