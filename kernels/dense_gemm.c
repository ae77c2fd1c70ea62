// dense_gemm.c -- on the CPU a dense product is a grouped one of one group.
#include "kernels/dense_gemm.h"

KERNEL_DEFINE(dense_gemm, DenseGemm)

void dense_gemm_cpu(const DenseGemm *args, Stream stream)
{
    const int32_t first = 0, rows = (int32_t)args->rows;
    CHECK_RULE(args->rows == rows);
    grouped_gemm_cpu(&(GroupedGemm){.form = args->form,
                                    .dtype = args->dtype,
                                    .out_dtype = args->out_dtype,
                                    .accumulate = args->accumulate,
                                    .groups = 1,
                                    .rows_max = rows,
                                    .m = args->m,
                                    .n = args->n,
                                    .k = args->k,
                                    .group_first = &first,
                                    .group_rows = &rows,
                                    .a = args->a,
                                    .a_stride = args->form == GEMM_TN ? args->m : args->k,
                                    .b = args->b,
                                    .b_stride = args->n,
                                    .c = args->c,
                                    .rows_expected = rows,
                                    .threads = args->threads},
                     stream);
}

KernelCost dense_gemm_cost(const DenseGemm *args)
{
    const bool tn = args->form == GEMM_TN;
    const double across = (double)(tn ? args->m : args->k), n = (double)args->n;
    const double rows = (double)args->rows;
    const double in = (double)dtype_bytes(args->dtype, 1);
    const double out = (double)dtype_bytes(args->out_dtype, 1) * (args->accumulate ? 2 : 1);
    const double c = tn ? across * n : rows * n, b = tn ? rows * n : across * n;
    return (KernelCost){.bytes = in * (rows * across + b) + out * c,
                        .flops = 2.0 * rows * across * n};
}
