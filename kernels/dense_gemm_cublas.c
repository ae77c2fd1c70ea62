// dense_gemm_cublas.c -- the CUDA row of dense_gemm: cuBLASLt, and everything of it that the
// program uses.
//
// A quirk: it works in column-major order. A row-major matrix is its transpose there, so the
// product is asked for as c^T = op(b) op(a), with the operands changed round.
#include "kernels/gemm/cublas_product.h"

#include <cublasLt.h>
#include <string.h>

static void check_cublas(cublasStatus_t status, const char *call)
{
    CHECK(status == CUBLAS_STATUS_SUCCESS, EXIT_CODE_HARDWARE,
          "run `meshwork doctor`: cuBLASLt and driver may not fit together", "%s failed: %s", call,
          cublasLtGetStatusString(status));
}
#define CHECK_CUBLAS(call) check_cublas(call, #call)

// What a choice of algorithm depends on.
typedef enum KeyPart {
    KEY_FORM,
    KEY_TYPES,
    KEY_ROWS,
    KEY_M,
    KEY_N,
    KEY_K,
    KEY_ALIGN_A,
    KEY_ALIGN_B,
    KEY_ALIGN_C,
    KEY_SCALES,
    KEY_PARTS
} KeyPart;

typedef struct Plan {
    int64_t key[KEY_PARTS];
    bool found; // an algorithm
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, c; // row-major a and b, as column-major matrices
    cublasLtMatmulAlgo_t algorithm;
} Plan;

// Of the process: a model has a dozen sizes. When full, the oldest makes room.
enum { PLANS_MAX = 64 };
static struct {
    cublasLtHandle_t handle;
    Plan plan[PLANS_MAX];
    int count, next;
} lt;

static cudaDataType_t type_of(DType dtype)
{
    return dtype == DTYPE_BF16 ? CUDA_R_16BF : dtype == DTYPE_F8_E4M3 ? CUDA_R_8F_E4M3 : CUDA_R_32F;
}

// The largest power of two that divides the address, at most 256.
static uint32_t alignment_of(const void *address)
{
    const uintptr_t bits = (uintptr_t)address | 256;
    return (uint32_t)(bits & (~bits + 1));
}

static void plan_destroy(Plan *plan)
{
    CHECK_CUBLAS(cublasLtMatrixLayoutDestroy(plan->a));
    CHECK_CUBLAS(cublasLtMatrixLayoutDestroy(plan->b));
    CHECK_CUBLAS(cublasLtMatrixLayoutDestroy(plan->c));
    CHECK_CUBLAS(cublasLtMatmulDescDestroy(plan->operation));
}

// [lines, columns] row-major.
static cublasLtMatrixLayout_t layout_of(DType dtype, int64_t lines, int64_t columns)
{
    cublasLtMatrixLayout_t layout;
    CHECK_CUBLAS(cublasLtMatrixLayoutCreate(&layout, type_of(dtype), (uint64_t)columns,
                                            (uint64_t)lines, columns));
    return layout;
}

static void choose(const DenseGemm *args, Plan *plan)
{
    const uint64_t workspace = DENSE_GEMM_WORKSPACE_BYTES;
    const uint32_t align[] = {alignment_of(args->b), alignment_of(args->a), alignment_of(args->c)};
    static const cublasLtMatmulPreferenceAttributes_t attribute[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    cublasLtMatmulPreference_t preference;
    CHECK_CUBLAS(cublasLtMatmulPreferenceCreate(&preference));
    CHECK_CUBLAS(cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace)));
    for (size_t i = 0; i < COUNT_OF(attribute); i++)
        CHECK_CUBLAS(cublasLtMatmulPreferenceSetAttribute(preference, attribute[i],
                                                          &align[i < 2 ? i : 2], sizeof(align[0])));
    cublasLtMatmulHeuristicResult_t result = {0};
    int found = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(lt.handle, plan->operation, plan->b, plan->a, plan->c,
                                       plan->c, preference, 1, &result, &found);
    CHECK_CUBLAS(cublasLtMatmulPreferenceDestroy(preference));
    plan->found = status == CUBLAS_STATUS_SUCCESS && found > 0;
    plan->algorithm = result.algo;
}

// The library's a is our b.
static void set_scales(const CublasProduct *args, const Plan *plan)
{
    static const cublasLtMatmulMatrixScale_t mode_of_kind[] = {
        [CUBLAS_SCALE_TENSOR] = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F,
        [CUBLAS_SCALE_ROW] = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F,
        [CUBLAS_SCALE_128] = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F,
        [CUBLAS_SCALE_128_128] = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F,
    };
    static const cublasLtMatmulDescAttributes_t mode_attribute[] = {
        CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_DESC_B_SCALE_MODE};
    static const cublasLtMatmulDescAttributes_t pointer_attribute[] = {
        CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER};
    const CublasScale kind[] = {args->kind_b, args->kind_a};
    const float *const scale[] = {args->scale_b, args->scale_a};
    for (int i = 0; i < 2; i++) {
        if (kind[i] == CUBLAS_SCALE_NONE)
            continue;
        CHECK_CUBLAS(cublasLtMatmulDescSetAttribute(
            plan->operation, mode_attribute[i], &mode_of_kind[kind[i]], sizeof(mode_of_kind[0])));
        CHECK_CUBLAS(cublasLtMatmulDescSetAttribute(plan->operation, pointer_attribute[i],
                                                    &scale[i], sizeof(scale[i])));
    }
}

static void plan_create(const CublasProduct *product, Plan *plan)
{
    const DenseGemm *args = &product->gemm;
    const int8_t fast_sums = product->fast_sums;
    const bool tn = args->form == GEMM_TN, nt = args->form == GEMM_NT;
    const cublasOperation_t of_a = tn ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t of_b = nt ? CUBLAS_OP_T : CUBLAS_OP_N;
    CHECK_CUBLAS(cublasLtMatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    CHECK_CUBLAS(cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, &of_b,
                                                sizeof(of_b)));
    CHECK_CUBLAS(cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, &of_a,
                                                sizeof(of_a)));
    CHECK_CUBLAS(cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_FAST_ACCUM,
                                                &fast_sums, sizeof(fast_sums)));
    set_scales(product, plan);
    plan->a = layout_of(args->dtype, args->rows, tn ? args->m : args->k);
    plan->b = nt ? layout_of(args->dtype, args->n, args->k)
                 : layout_of(args->dtype, tn ? args->rows : args->k, args->n);
    plan->c = layout_of(args->out_dtype, tn ? args->m : args->rows, args->n);
    choose(args, plan);
}

static const Plan *plan_for(const CublasProduct *product)
{
    const DenseGemm *args = &product->gemm;
    const int64_t key[KEY_PARTS] = {
        [KEY_FORM] = args->form,
        [KEY_TYPES] = args->dtype * DTYPES + args->out_dtype,
        [KEY_ROWS] = args->rows,
        [KEY_M] = args->form == GEMM_TN ? args->m : 0,
        [KEY_N] = args->n,
        [KEY_K] = args->form == GEMM_TN ? 0 : args->k,
        [KEY_ALIGN_A] = alignment_of(args->a),
        [KEY_ALIGN_B] = alignment_of(args->b),
        [KEY_ALIGN_C] = alignment_of(args->c),
        [KEY_SCALES] = product->kind_a * 100 + product->kind_b * 10 + product->fast_sums,
    };
    for (int i = 0; i < lt.count; i++)
        if (memcmp(lt.plan[i].key, key, sizeof(key)) == 0)
            return &lt.plan[i];
    if (!lt.handle)
        CHECK_CUBLAS(cublasLtCreate(&lt.handle));
    Plan *plan = &lt.plan[lt.next];
    if (lt.count == PLANS_MAX)
        plan_destroy(plan);
    else
        lt.count++;
    lt.next = (lt.next + 1) % PLANS_MAX;
    memcpy(plan->key, key, sizeof(key));
    plan_create(product, plan);
    return plan;
}

bool cublas_product(const CublasProduct *product, Stream stream)
{
    const DenseGemm *args = &product->gemm;
    const Plan *plan = plan_for(product);
    if (!plan->found)
        return false;
    const float one = 1.0f, before = args->accumulate ? 1.0f : 0.0f;
    set_scales(product, plan);
    CHECK_CUBLAS(cublasLtMatmul(lt.handle, plan->operation, &one, args->b, plan->b, args->a,
                                plan->a, &before, args->c, plan->c, args->c, plan->c,
                                &plan->algorithm, args->workspace, DENSE_GEMM_WORKSPACE_BYTES,
                                stream.handle));
    return true;
}

void dense_gemm_cuda(const DenseGemm *args, Stream stream)
{
    static const char *const form_name[] = {[GEMM_NT] = "NT", [GEMM_NN] = "NN", [GEMM_TN] = "TN"};
    const bool tn = args->form == GEMM_TN;
    const int64_t lines = tn ? args->m : args->rows, terms = tn ? args->rows : args->k;
    CHECK_RULE(args->dtype == DTYPE_F32 || args->dtype == DTYPE_BF16);
    CHECK_RULE(args->out_dtype == args->dtype || args->out_dtype == DTYPE_F32);
    CHECK_RULE(!args->accumulate || args->out_dtype == DTYPE_F32);
    if (lines == 0 || args->n == 0)
        return;
    if (terms == 0) { // cuBLASLt has no empty sums
        if (!args->accumulate)
            device_fill(args->c, 0, dtype_bytes(args->out_dtype, (uint64_t)(lines * args->n)),
                        stream);
        return;
    }
    CHECK(cublas_product(&(CublasProduct){.gemm = *args}, stream), EXIT_CODE_HARDWARE,
          "update cuBLAS or the driver, or use --exact, which does without cuBLASLt",
          "cuBLASLt knows no algorithm for a product of form %s, rows=%lld m=%lld n=%lld k=%lld",
          form_name[args->form], (long long)args->rows, (long long)args->m, (long long)args->n,
          (long long)args->k);
}
