// ceiling_cuda.c -- the ceilings of a CUDA device: its copy engine path in device memory, and
// cuBLASLt's matrix product.
//
// Everything of cuBLASLt that the program uses is here. A quirk: it works in column-major order,
// where the product below reads C (n x m) = B^T A; for square matrices of random numbers the rate
// is the same whichever way one looks at it. Random data, because the rate on zeros is higher than
// on anything real (less power).
#include "harness/random.h"
#include "kernels/ceiling.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>

enum { REPETITIONS = 5, BF16_SIDE = 8192, F32_SIDE = 4096 };
static const uint64_t copy_bytes = 256u << 20, workspace_bytes = 32u << 20;

static void check_cublas(cublasStatus_t status, const char *call)
{
    CHECK(status == CUBLAS_STATUS_SUCCESS, EXIT_CODE_HARDWARE,
          "run `meshwork doctor`: cuBLASLt and driver may not fit together", "%s failed: %s", call,
          cublasLtGetStatusString(status));
}
#define CHECK_CUBLAS(call) check_cublas(call, #call)

// Seconds of the fastest repetition after one that warms up.
static double fastest_s(void (*run)(const void *context, Stream stream), const void *context,
                        Stream stream)
{
    Event begin = event_create(DEVICE_CUDA), end = event_create(DEVICE_CUDA);
    double fastest = 0;
    run(context, stream);
    for (int i = 0; i < REPETITIONS; i++) {
        event_record(&begin, stream);
        run(context, stream);
        event_record(&end, stream);
        const double taken = event_seconds(&begin, &end);
        if (i == 0 || taken < fastest)
            fastest = taken;
    }
    event_destroy(&begin);
    event_destroy(&end);
    return fastest > 0 ? fastest : 1e-9;
}

typedef struct Copy {
    void *to;
    const void *from;
} Copy;

static void copy_run(const void *context, Stream stream)
{
    const Copy *copy = context;
    device_copy(copy->to, copy->from, copy_bytes, stream);
}

typedef struct Matmul {
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t layout;
    cublasLtMatmulAlgo_t algorithm;
    const void *a, *b;
    void *c, *workspace;
} Matmul;

static void matmul_run(const void *context, Stream stream)
{
    const Matmul *m = context;
    const float one = 1.0f, zero = 0.0f;
    CHECK_CUBLAS(cublasLtMatmul(m->handle, m->operation, &one, m->a, m->layout, m->b, m->layout,
                                &zero, m->c, m->layout, m->c, m->layout, &m->algorithm,
                                m->workspace, workspace_bytes, (cudaStream_t)stream.handle));
}

static cublasLtMatmulAlgo_t matmul_choose(const Matmul *m)
{
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    CHECK_CUBLAS(cublasLtMatmulPreferenceCreate(&preference));
    CHECK_CUBLAS(cublasLtMatmulPreferenceSetAttribute(preference,
                                                      CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                      &workspace_bytes, sizeof(workspace_bytes)));
    CHECK_CUBLAS(cublasLtMatmulAlgoGetHeuristic(m->handle, m->operation, m->layout, m->layout,
                                                m->layout, m->layout, preference, 1, &result,
                                                &found));
    CHECK_CUBLAS(cublasLtMatmulPreferenceDestroy(preference));
    CHECK(found > 0, EXIT_CODE_HARDWARE, "update cuBLAS or the driver",
          "cuBLASLt knows no algorithm for a square matrix product");
    return result.algo;
}

static void matrix_fill(void *matrix, int64_t side, DType dtype, uint32_t number, Stream stream)
{
    random_fill(&(RandomFill){.seed = 1,
                              .stream = number,
                              .rows = side,
                              .columns = side,
                              .deviation = 1.0f,
                              .dtype = dtype,
                              .out = matrix},
                stream);
}

// `memory` holds the workspace and three matrices.
static double matmul_measure(cublasLtHandle_t handle, DType dtype, int64_t side, char *memory,
                             Stream stream)
{
    const uint64_t matrix_bytes = dtype_bytes(dtype, (uint64_t)(side * side));
    const cudaDataType_t type = dtype == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    Matmul matmul = {.handle = handle, .workspace = memory};
    matmul.a = memory + workspace_bytes;
    matmul.b = memory + workspace_bytes + matrix_bytes;
    matmul.c = memory + workspace_bytes + 2 * matrix_bytes;
    matrix_fill(memory + workspace_bytes, side, dtype, 0, stream);
    matrix_fill(memory + workspace_bytes + matrix_bytes, side, dtype, 1, stream);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    CHECK_CUBLAS(cublasLtMatmulDescCreate(&matmul.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    CHECK_CUBLAS(cublasLtMatmulDescSetAttribute(matmul.operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                                &transposed, sizeof(transposed)));
    CHECK_CUBLAS(
        cublasLtMatrixLayoutCreate(&matmul.layout, type, (uint64_t)side, (uint64_t)side, side));
    matmul.algorithm = matmul_choose(&matmul);
    const double seconds = fastest_s(matmul_run, &matmul, stream);
    CHECK_CUBLAS(cublasLtMatrixLayoutDestroy(matmul.layout));
    CHECK_CUBLAS(cublasLtMatmulDescDestroy(matmul.operation));
    return 2.0 * (double)side * (double)side * (double)side / seconds;
}

DeviceCeilings ceiling_measure_cuda(int threads, Arena *scratch)
{
    (void)threads;
    const ArenaMark mark = arena_mark(scratch);
    const Stream stream = stream_create(DEVICE_CUDA);
    const uint64_t matrices_bytes = 3 * dtype_bytes(DTYPE_BF16, (uint64_t)BF16_SIDE * BF16_SIDE);
    char *memory = ARENA_PUSH(scratch, char, workspace_bytes + 2 * copy_bytes, MEMORY_SCRATCH);
    CHECK_RULE(matrices_bytes <= 2 * copy_bytes);
    CHECK_RULE(3 * dtype_bytes(DTYPE_F32, (uint64_t)F32_SIDE * F32_SIDE) <= 2 * copy_bytes);
    cublasLtHandle_t handle;
    CHECK_CUBLAS(cublasLtCreate(&handle));
    DeviceCeilings ceilings = {0};
    ceilings.bf16_flops_per_s = matmul_measure(handle, DTYPE_BF16, BF16_SIDE, memory, stream);
    ceilings.f32_flops_per_s = matmul_measure(handle, DTYPE_F32, F32_SIDE, memory, stream);
    const Copy copy = {.to = memory + copy_bytes, .from = memory};
    ceilings.copy_bytes_per_s = 2.0 * (double)copy_bytes / fastest_s(copy_run, &copy, stream);
    stream_wait(stream);
    CHECK_CUBLAS(cublasLtDestroy(handle));
    stream_destroy(stream);
    arena_release(scratch, mark);
    return ceilings;
}
