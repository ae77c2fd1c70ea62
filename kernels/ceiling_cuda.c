// ceiling_cuda.c -- the ceilings of a CUDA device: its copy engine path in device memory, and the
// library's dense product. Random data, because the rate on zeros is higher than on anything real
// (less power).
#include "harness/random.h"
#include "kernels/ceiling.h"
#include "kernels/dense_gemm.h"

enum { REPETITIONS = 5, BF16_SIDE = 8192, F32_SIDE = 4096 };
static const uint64_t copy_bytes = 256u << 20;

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

static void product_run(const void *context, Stream stream)
{
    dense_gemm(context, stream);
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
static double product_measure(DType dtype, int64_t side, char *memory, Stream stream)
{
    const uint64_t matrix_bytes = dtype_bytes(dtype, (uint64_t)(side * side));
    char *const first = memory + DENSE_GEMM_WORKSPACE_BYTES;
    const DenseGemm product = {.form = GEMM_NT,
                               .dtype = dtype,
                               .out_dtype = dtype,
                               .rows = side,
                               .n = side,
                               .k = side,
                               .a = first,
                               .b = first + matrix_bytes,
                               .c = first + 2 * matrix_bytes,
                               .workspace = memory,
                               .threads = 1};
    matrix_fill(first, side, dtype, 0, stream);
    matrix_fill(first + matrix_bytes, side, dtype, 1, stream);
    return dense_gemm_cost(&product).flops / fastest_s(product_run, &product, stream);
}

DeviceCeilings ceiling_measure_cuda(int threads, Arena *scratch)
{
    (void)threads;
    const ArenaMark mark = arena_mark(scratch);
    const Stream stream = stream_create(DEVICE_CUDA);
    const uint64_t matrices_bytes = 3 * dtype_bytes(DTYPE_BF16, (uint64_t)BF16_SIDE * BF16_SIDE);
    char *memory =
        ARENA_PUSH(scratch, char, DENSE_GEMM_WORKSPACE_BYTES + 2 * copy_bytes, MEMORY_SCRATCH);
    CHECK_RULE(matrices_bytes <= 2 * copy_bytes);
    CHECK_RULE(3 * dtype_bytes(DTYPE_F32, (uint64_t)F32_SIDE * F32_SIDE) <= 2 * copy_bytes);
    DeviceCeilings ceilings = {0};
    ceilings.bf16_flops_per_s = product_measure(DTYPE_BF16, BF16_SIDE, memory, stream);
    ceilings.f32_flops_per_s = product_measure(DTYPE_F32, F32_SIDE, memory, stream);
    const Copy copy = {.to = memory + copy_bytes, .from = memory};
    ceilings.copy_bytes_per_s = 2.0 * (double)copy_bytes / fastest_s(copy_run, &copy, stream);
    stream_wait(stream);
    stream_destroy(stream);
    arena_release(scratch, mark);
    return ceilings;
}
