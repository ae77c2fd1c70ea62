// grouped_gemm.cu -- the CUDA row of grouped_gemm: one of two kernels, chosen by what the shapes
// allow.
//
//   gemm_hopper   bf16, everything a multiple of 8 elements, compute capability 9.0: wgmma tensor
//   cores gemm_simt     all the rest: f32, odd sizes, other GPUs
//
// The choice depends on dtype, shape and alignment only, never on how many rows there are, so a row
// always gets the same bits. Within a kernel the order of sums is fixed for all rows.
#include "kernels/gemm/hopper.cuh"
#include "kernels/gemm/simt.cuh"

typedef void (*SimtKernel)(GroupedGemm);

static void simt_run(const GroupedGemm *args, cudaStream_t stream)
{
    static const SimtKernel kernel_of_form[][3] = {
        {gemm_simt<GEMM_NT, float>, gemm_simt<GEMM_NN, float>, gemm_simt<GEMM_TN, float>},
        {gemm_simt<GEMM_NT, Bf16>, gemm_simt<GEMM_NN, Bf16>, gemm_simt<GEMM_TN, Bf16>},
    };
    const int blocks_per_processor = 3; // of 256 threads with at most 80 registers
    const unsigned grid =
        gemm_grid(args, SIMT_TILE, SIMT_TILE, cuda_processors() * blocks_per_processor);
    kernel_of_form[args->dtype == DTYPE_BF16][args->form]<<<grid, SIMT_THREADS, 0, stream>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}

static void grouped_gemm_check(const GroupedGemm *args)
{
    CHECK_RULE(args->dtype == DTYPE_F32 || args->dtype == DTYPE_BF16);
    CHECK_RULE(args->out_dtype == args->dtype || args->out_dtype == DTYPE_F32);
    CHECK_RULE(!args->accumulate || args->out_dtype == DTYPE_F32);
    CHECK_RULE(args->groups >= 0 && args->n >= 0 && args->rows_max >= 0);
    CHECK_RULE(args->form == GEMM_TN ? args->m >= 0 : args->k >= 0);
    const int64_t most = INT32_MAX - 255; // coordinates inside a matrix are 32 bits wide
    CHECK_RULE(args->n <= most && args->m <= most && args->k <= most && args->rows_max <= most);
}

void grouped_gemm_cuda(const GroupedGemm *args, Stream stream)
{
    grouped_gemm_check(args);
    const bool nothing = args->form == GEMM_TN ? args->m == 0 : args->rows_max == 0;
    if (nothing || args->groups == 0 || args->n == 0)
        return;
    if (gemm_hopper_suits(args))
        gemm_hopper(args, cuda_stream(stream));
    else
        simt_run(args, cuda_stream(stream));
}
