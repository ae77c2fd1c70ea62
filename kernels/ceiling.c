// ceiling.c -- the choice of the row, and the CPU's: copies with all threads of this rank, and our
// own matrix product.
//
// The copy works on twice the last-level cache (bounded), so that it measures memory; each thread
// copies its own part, as STREAM does (McCalpin, "Memory bandwidth and machine balance in current
// high performance computers", 1995).
#include "kernels/ceiling.h"
#include "harness/clock.h"

#include "harness/random.h"
#include "kernels/grouped_gemm.h"

#include <string.h>

enum {
    REPETITIONS_MAX = 5,
    MATMUL_ROWS = 384, // operands of 384 x 512 and 512 x 512: 1.5 MiB in f32
    MATMUL_COLUMNS = 512,
    MATMUL_DEPTH = 512,
};
static const uint64_t copy_bytes_min = 16u << 20, copy_bytes_max = 128u << 20;
static const double time_limit_s = 0.12; // for one ceiling

DeviceCeilings ceiling_measure(DeviceKind kind, int threads, Arena *scratch)
{
    DeviceCeilings (*const row[DEVICE_KINDS])(int, Arena *) = {
        [DEVICE_CPU] = ceiling_measure_cpu, [DEVICE_CUDA] = ceiling_measure_cuda};
    if (!row[kind])
        kernel_missing("ceiling_measure", kind);
    return row[kind](threads, scratch);
}

typedef struct Work {
    void (*run)(const void *context);
    const void *context;
} Work;

// Seconds of the fastest repetition after one that warms up; stops early when the time is used up.
static double fastest_s(Work work)
{
    work.run(work.context);
    double began = clock_s(), fastest = 0;
    for (int i = 0; i < REPETITIONS_MAX && (i == 0 || clock_s() - began < time_limit_s); i++) {
        double before = clock_s();
        work.run(work.context);
        double taken = clock_s() - before;
        if (i == 0 || taken < fastest)
            fastest = taken;
    }
    return fastest > 0 ? fastest : 1e-9;
}

typedef struct Copy {
    char *to;
    const char *from;
    uint64_t bytes;
    int threads;
} Copy;

static void copy_run(const void *context)
{
    const Copy *copy = context;
    uint64_t part = (copy->bytes + (uint64_t)copy->threads - 1) / (uint64_t)copy->threads;
#pragma omp parallel for num_threads(copy->threads) schedule(static, 1)
    for (int thread = 0; thread < copy->threads; thread++) {
        uint64_t first = part * (uint64_t)thread;
        uint64_t last = first + part < copy->bytes ? first + part : copy->bytes;
        if (first < last)
            memcpy(copy->to + first, copy->from + first, last - first);
    }
}

static double copy_measure(int threads, Arena *scratch)
{
    uint64_t bytes = 2 * device_info(DEVICE_CPU, 0).cache_bytes;
    if (bytes < copy_bytes_min)
        bytes = copy_bytes_min;
    if (bytes > copy_bytes_max)
        bytes = copy_bytes_max;
    char *from = ARENA_PUSH(scratch, char, bytes, MEMORY_SCRATCH);
    char *to = ARENA_PUSH(scratch, char, bytes, MEMORY_SCRATCH);
    memset(from, 0x5A, bytes);
    Copy copy = {.to = to, .from = from, .bytes = bytes, .threads = threads};
    return 2.0 * (double)bytes / fastest_s((Work){copy_run, &copy});
}

static void matmul_run(const void *context)
{
    grouped_gemm_cpu(context, (Stream){.device = DEVICE_CPU});
}

static double matmul_measure(DType dtype, int threads, Arena *scratch)
{
    const int64_t rows = MATMUL_ROWS, columns = MATMUL_COLUMNS, depth = MATMUL_DEPTH;
    const Stream stream = {.device = DEVICE_CPU};
    const int32_t first = 0, count = MATMUL_ROWS;
    void *a = arena_push(scratch, dtype_bytes(dtype, (uint64_t)(rows * depth)), MEMORY_SCRATCH);
    void *b = arena_push(scratch, dtype_bytes(dtype, (uint64_t)(columns * depth)), MEMORY_SCRATCH);
    void *c = arena_push(scratch, dtype_bytes(dtype, (uint64_t)(rows * columns)), MEMORY_SCRATCH);
    random_fill(
        &(RandomFill){
            .seed = 1, .rows = rows, .columns = depth, .deviation = 1.0f, .dtype = dtype, .out = a},
        stream);
    random_fill(&(RandomFill){.seed = 2,
                              .rows = columns,
                              .columns = depth,
                              .deviation = 1.0f,
                              .dtype = dtype,
                              .out = b},
                stream);
    GroupedGemm gemm = {.form = GEMM_NT,
                        .dtype = dtype,
                        .out_dtype = dtype,
                        .groups = 1,
                        .rows_max = rows,
                        .n = columns,
                        .k = depth,
                        .group_first = &first,
                        .group_rows = &count,
                        .a = a,
                        .a_stride = depth,
                        .b = b,
                        .c = c,
                        .rows_expected = rows,
                        .threads = threads};
    return 2.0 * (double)(rows * columns * depth) / fastest_s((Work){matmul_run, &gemm});
}

DeviceCeilings ceiling_measure_cpu(int threads, Arena *scratch)
{
    CHECK_RULE(threads >= 1);
    const ArenaMark mark = arena_mark(scratch);
    DeviceCeilings ceilings = {
        .copy_bytes_per_s = copy_measure(threads, scratch),
        .f32_flops_per_s = matmul_measure(DTYPE_F32, threads, scratch),
        .bf16_flops_per_s = matmul_measure(DTYPE_BF16, threads, scratch),
    };
    arena_release(scratch, mark);
    return ceilings;
}
