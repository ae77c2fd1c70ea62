// swiglu.cu -- the gated activation on the GPU: one warp per real row of an expert-major matrix.
//
// Limit: memory bandwidth. A lane works on groups of 8 elements, 16 bytes each in bf16, with all
// loads of a step under way before the first is used; padding rows are skipped without touching
// their elements. In place is legal (dgu = gu, a_weighted = da): a lane stores only what it alone
// has read. With a cast: cast/swiglu.cuh.
#include "kernels/swiglu.cuh"

enum {
    SWIGLU_THREADS = 256,
    SWIGLU_WARPS = SWIGLU_THREADS / WARP_LANES,
    SWIGLU_BLOCKS = 3,  // on a multiprocessor at least: no more than 80 registers a thread
    FORWARD_GROUPS = 2, // groups of each operand loaded together
    SWIGLU_BLOCKS_MOST = 8,
};

static unsigned swiglu_grid(int64_t rows)
{
    return cuda_grid((rows + SWIGLU_WARPS - 1) / SWIGLU_WARPS, SWIGLU_BLOCKS_MOST);
}

// Warp: one row.
template <typename T, bool VECTOR>
__global__ void __launch_bounds__(SWIGLU_THREADS, SWIGLU_BLOCKS)
    swiglu_forward_kernel(SwigluForward args)
{
    const int64_t rows = *args.rows_total, inner = args.inner, step = WARP_LANES * GROUP_ELEMENTS;
    for (int64_t row = warp_index(); row < rows; row += warp_count()) {
        if (swiglu_is_padding(args.row_map, row))
            continue;
        const T *g = (const T *)args.gu + row * 2 * inner, *u = g + inner;
        T *a = (T *)args.a + row * inner;
        for (int64_t first = lane_index() * GROUP_ELEMENTS; first < inner;
             first += FORWARD_GROUPS * step) {
            Group<T> gate[FORWARD_GROUPS], up[FORWARD_GROUPS];
#pragma unroll
            for (int i = 0; i < FORWARD_GROUPS; i++)
                if (first + i * step < inner) {
                    const int64_t element = first + i * step;
                    gate[i] = group_load<VECTOR>(g + element, inner - element);
                    up[i] = group_load<VECTOR>(u + element, inner - element);
                }
#pragma unroll
            for (int i = 0; i < FORWARD_GROUPS; i++)
                if (first + i * step < inner) {
                    float out[GROUP_ELEMENTS];
                    forward_group(gate[i], up[i], out);
                    group_store<VECTOR>(a + first + i * step, inner - first - i * step, out);
                }
        }
    }
}

void swiglu_forward_cuda(const SwigluForward *args, Stream stream)
{
    if (args->cast) {
        cast_swiglu_forward(args, stream);
        return;
    }
    typedef void (*ForwardKernel)(SwigluForward);
    static const ForwardKernel kernels[2][2] = {
        {swiglu_forward_kernel<float, false>, swiglu_forward_kernel<float, true>},
        {swiglu_forward_kernel<Bf16, false>, swiglu_forward_kernel<Bf16, true>},
    };
    const bool vector =
        row_is_vector(args->inner) && cuda_aligned(args->gu) && cuda_aligned(args->a);
    const ForwardKernel kernel = kernels[args->dtype == DTYPE_BF16][vector];
    kernel<<<swiglu_grid(args->rows_max), SWIGLU_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}

// Warp: one row.
template <typename T, bool VECTOR>
__global__ void __launch_bounds__(SWIGLU_THREADS, SWIGLU_BLOCKS)
    swiglu_backward_kernel(SwigluBackward args)
{
    const int64_t rows = *args.rows_total, inner = args.inner, step = WARP_LANES * GROUP_ELEMENTS;
    for (int64_t row = warp_index(); row < rows; row += warp_count()) {
        if (swiglu_is_padding(args.row_map, row))
            continue;
        const T *g = (const T *)args.gu + row * 2 * inner, *u = g + inner;
        const T *da = (const T *)args.da + row * inner;
        T *dg = (T *)args.dgu + row * 2 * inner, *du = dg + inner;
        T *a_weighted = (T *)args.a_weighted + row * inner;
        const float w = args.weight ? args.weight[row] : 1.0f;
        float dweight = 0.0f;
        for (int64_t element = lane_index() * GROUP_ELEMENTS; element < inner; element += step) {
            const int64_t left = VECTOR ? GROUP_ELEMENTS : inner - element;
            const Group<T> gate = group_load<VECTOR>(g + element, left);
            const Group<T> up = group_load<VECTOR>(u + element, left);
            const Group<T> grad = group_load<VECTOR>(da + element, left);
            BackwardGroup out;
            dweight = backward_group<T>(gate, up, grad, left, w, &out, dweight);
            group_store<VECTOR>(dg + element, left, out.dg);
            group_store<VECTOR>(du + element, left, out.du);
            group_store<VECTOR>(a_weighted + element, left, out.a_weighted);
        }
        if (args.dweight) {
            dweight = warp_sum(dweight);
            if (lane_index() == 0)
                args.dweight[row] = dweight;
        }
    }
}

void swiglu_backward_cuda(const SwigluBackward *args, Stream stream)
{
    if (args->cast) {
        cast_swiglu_backward(args, stream);
        return;
    }
    typedef void (*BackwardKernel)(SwigluBackward);
    static const BackwardKernel kernels[2][2] = {
        {swiglu_backward_kernel<float, false>, swiglu_backward_kernel<float, true>},
        {swiglu_backward_kernel<Bf16, false>, swiglu_backward_kernel<Bf16, true>},
    };
    const bool vector = row_is_vector(args->inner) && cuda_aligned(args->gu) &&
                        cuda_aligned(args->da) && cuda_aligned(args->dgu) &&
                        cuda_aligned(args->a_weighted);
    const BackwardKernel kernel = kernels[args->dtype == DTYPE_BF16][vector];
    kernel<<<swiglu_grid(args->rows_max), SWIGLU_THREADS, 0, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}
