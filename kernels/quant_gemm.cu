// quant_gemm.cu -- the CUDA row of quant_gemm: chooses a kernel.
//
//   quant_simt   any recipe, any shape, the bits of the CPU
#include "kernels/quant_simt.cuh"

static void simt_run(const QuantWork *w, cudaStream_t stream)
{
    const int blocks_per_processor = 2; // of 256 threads with at most 128 registers
    const unsigned grid =
        gemm_grid(&w->frame, SIMT_TILE, SIMT_TILE, cuda_processors() * blocks_per_processor);
    if (w->whole)
        quant_simt<true><<<grid, SIMT_THREADS, 0, stream>>>(*w);
    else
        quant_simt<false><<<grid, SIMT_THREADS, 0, stream>>>(*w);
    CHECK_CUDA(cudaGetLastError());
}

static void quant_gemm_check(const QuantGemm *args)
{
    CHECK_RULE(args->dtype == DTYPE_F32 || args->dtype == DTYPE_BF16);
    CHECK_RULE(args->out_dtype == args->dtype || args->out_dtype == DTYPE_F32);
    CHECK_RULE(!args->accumulate || args->out_dtype == DTYPE_F32);
    CHECK_RULE(!args->group_rows == !args->group_first && (args->group_rows || args->groups == 1));
    const int64_t most = INT32_MAX - 255; // coordinates inside a matrix are 32 bits wide
    CHECK_RULE(args->n <= most && args->k <= most && args->rows_max <= most);
}

uint64_t quant_gemm_workspace_bytes_cuda(const QuantGemm *args)
{
    (void)args;
    return 0;
}

void quant_gemm_cuda(const QuantGemm *args, Stream stream)
{
    quant_gemm_check(args);
    if (args->rows_max == 0 || args->groups == 0 || args->n == 0)
        return;
    const QuantWork w = quant_work(args);
    simt_run(&w, cuda_stream(stream));
}
