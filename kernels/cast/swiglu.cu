// swiglu.cu -- the host side of the gated activation with a cast (cast/swiglu.cuh).
#include "kernels/cast/launch.cuh"

enum { SWIGLU_CAST_BLOCKS = 4 }; // on a multiprocessor, at most

bool swiglu_casts_cuda(const QTensor *cast, int64_t inner)
{
    const CastKernels *kernels = cast_kernels_for(cast);
    return kernels && kernels->swiglu_forward && cast->matrices == 1 &&
           cast_span_of(cast) == SPAN_ROW && inner % GROUP_ELEMENTS == 0 &&
           inner <= SWIGLU_CAST_INNER;
}

static unsigned grid_for(int64_t rows)
{
    return cuda_grid((rows + CAST_WARPS - 1) / CAST_WARPS, SWIGLU_CAST_BLOCKS);
}

void cast_swiglu_forward(const SwigluForward *args, Stream stream)
{
    const QTensor *q = args->cast;
    CHECK_RULE(swiglu_casts_cuda(q, args->inner) && args->dtype == q->input &&
               q->columns == args->inner && cuda_aligned(args->gu) && cuda_aligned(args->a));
    cast_kernels_for(q)
        ->swiglu_forward<<<grid_for(args->rows_max), CAST_THREADS, 0, cuda_stream(stream)>>>(
            *args, cast_work_of(args->a, q));
    CHECK_CUDA(cudaGetLastError());
}

void cast_swiglu_backward(const SwigluBackward *args, Stream stream)
{
    const QTensor *q = args->cast;
    CHECK_RULE(swiglu_casts_cuda(q, args->inner) && args->dtype == q->input &&
               q->columns == 2 * args->inner && cuda_aligned(args->gu) && cuda_aligned(args->da) &&
               cuda_aligned(args->dgu) && cuda_aligned(args->a_weighted));
    cast_kernels_for(q)
        ->swiglu_backward<<<grid_for(args->rows_max), CAST_THREADS, 0, cuda_stream(stream)>>>(
            *args, cast_work_of(args->dgu, q));
    CHECK_CUDA(cudaGetLastError());
}
