// grouped_gemm.c -- matrix products of many experts on the CPU: a plain reference, and a blocked
// version with its bits.
//
// Two numbers first. An expert of the Qwen1.5-MoE shape has 136 rows at 2048 tokens, so a weight is
// read once for 272 operations: 8.5 cycles per float at 32 operations a cycle. Reading it from
// memory costs a good cycle per float if one waits for it, transposing it into a panel 0.4
// (measured on Zen 4). Hence: each weight is packed once, just before use, as a panel of 32 columns
// x 256 k that stays in L1 and L2 while all rows of the expert pass by, and meanwhile the lines of
// the next panel are fetched. The rows of a are packed per block of k and stay in L2.
//
// Work is cut into tasks of one group, at most TASK_ROWS rows and about TASK_COLUMNS columns;
// threads take the next task as they become free, so skewed groups balance. Sums of one element
// never cross a task.

#include "kernels/cpu_math.h"
#include "kernels/gemm/tile.h"

KERNEL_DEFINE(grouped_gemm, GroupedGemm)

enum {
    BLOCK_K = 256,
    TASK_ROWS = 252, // a multiple of every tile's rows but the portable one's
    TASK_COLUMNS = 512,
    PACK_COLUMNS = 128,   // of b at once, where lines of b run along the columns
    TASKS_PER_THREAD = 8, // fewer tasks than this are cut smaller
    A_FLOATS = BLOCK_K * (TASK_ROWS / 6 + 1) * 8,
    PARALLEL_FLOPS = 1 << 18, // below this, waking threads costs more than the product
};

// Buffers of one thread, on its stack: 1 MB, so OMP_STACKSIZE must not be below 2 MB (usual: 8 MB).
typedef struct GemmScratch {
    _Alignas(64) float a[A_FLOATS];
    _Alignas(64) float b[BLOCK_K * PACK_COLUMNS];
    _Alignas(64) float sum[TASK_ROWS * TASK_COLUMNS];
} GemmScratch;

// One group as one product: out[i, j] = sum_k a(i, k) b(k, j). `across`: k runs along the operand's
// lines.
typedef struct Operand {
    GemmPack pack; // data, dtype, stride, index
    int64_t base_line;
    bool across;
} Operand;
typedef struct Product {
    int64_t rows, columns, k;
    Operand a, b;
    int64_t first_element; // of this group in c; rows of c are `columns` apart
} Product;

static const void *element_address(const void *data, DType dtype, int64_t element)
{
    return (const char *)data + element * (int64_t)dtype_bytes(dtype, 1);
}

static Product product_of_group(const GroupedGemm *args, int group)
{
    const GemmPack a = {
        .data = args->a, .dtype = args->dtype, .stride = args->a_stride, .index = args->a_index};
    int64_t first = args->group_first[group], rows = args->group_rows[group];
    if (args->form == GEMM_TN) {
        const GemmPack b = {.data = args->b,
                            .dtype = args->dtype,
                            .stride = args->b_stride,
                            .index = args->b_index};
        return (Product){.rows = args->m,
                         .columns = args->n,
                         .k = rows,
                         .a = {a, first, false},
                         .b = {b, first, false},
                         .first_element = group * args->m * args->n};
    }
    bool transposed = args->form == GEMM_NT;
    const GemmPack b = {.data = element_address(args->b, args->dtype, group * args->n * args->k),
                        .dtype = args->dtype,
                        .stride = transposed ? args->k : args->n};
    return (Product){.rows = rows,
                     .columns = args->n,
                     .k = args->k,
                     .a = {a, first, true},
                     .b = {b, 0, transposed},
                     .first_element = first * args->n};
}

// Rows or columns first .. first + count of one side of a task.
typedef struct Span {
    int64_t first, count;
} Span;

static Span share_of(int64_t total, int64_t shares, int64_t share)
{
    int64_t first = total * share / shares;
    return (Span){first, total * (share + 1) / shares - first};
}

// How the work is cut. The number of tasks of a group follows from its rows.
typedef struct TaskPlan {
    int64_t rows_max;      // of a task
    int64_t column_chunks; // tasks side by side
    int64_t panels;        // of tile->columns, the last may be narrower
} TaskPlan;

static int64_t divide_up(int64_t value, int64_t by)
{
    return (value + by - 1) / by;
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t tasks_of_group(const GroupedGemm *args, const TaskPlan *plan, int group)
{
    int64_t rows = args->form == GEMM_TN ? args->m : args->group_rows[group];
    return divide_up(rows, plan->rows_max) * plan->column_chunks;
}

static TaskPlan plan_tasks(const GroupedGemm *args, const GemmTile *tile)
{
    TaskPlan plan = {.rows_max = TASK_ROWS, .panels = divide_up(args->n, tile->columns)};
    plan.column_chunks = divide_up(plan.panels, TASK_COLUMNS / tile->columns);
    int64_t tasks = 0, wanted = TASKS_PER_THREAD * args->threads;
    for (int group = 0; group < args->groups && tasks < wanted; group++)
        tasks += tasks_of_group(args, &plan, group);
    if (tasks < wanted && args->threads > 1) {
        // Equal shares for every thread beat large tasks once there are few of them.
        int64_t even = divide_up(plan.column_chunks, args->threads) * args->threads;
        plan.column_chunks = smaller(even, plan.panels);
        if (plan.panels < even)
            plan.rows_max = TASK_ROWS / 6;
    }
    return plan;
}

// Packs elements first .. first + count of an operand's side (rows of the result for a, columns for
// b), in panels of `per_panel`, for k.first .. k.first + k.count.
static void pack_side(const GemmTile *tile, const Operand *operand, Span side, Span k, float *out,
                      int width, int per_panel)
{
    GemmPack pack = operand->pack;
    pack.out = out;
    pack.width = width;
    pack.per_panel = per_panel;
    pack.panel_floats = (int64_t)BLOCK_K * width;
    if (!operand->across) {
        pack.first_line = operand->base_line + k.first;
        pack.first_element = side.first;
        pack.lines = k.count;
        pack.elements = side.count;
        tile->pack_along(&pack);
        return;
    }
    pack.first_element = k.first;
    pack.elements = k.count;
    for (int64_t done = 0; done < side.count; done += per_panel, pack.out += pack.panel_floats) {
        pack.first_line = operand->base_line + side.first + done;
        pack.lines = smaller(per_panel, side.count - done);
        tile->pack_across(&pack);
    }
}

typedef struct Task {
    const GroupedGemm *args;
    const GemmTile *tile;
    const Product *product;
    Span rows, columns;
    GemmScratch *scratch;
} Task;

// Writes finished sums [rows, columns] to c: rounding, or adding to what is there.
static void store_sums(const Task *task, int64_t column, int64_t columns, const float *sum,
                       int64_t sum_stride)
{
    const GroupedGemm *args = task->args;
    for (int64_t i = 0; i < task->rows.count; i++) {
        int64_t at =
            task->product->first_element + (task->rows.first + i) * task->product->columns + column;
        const float *from = sum + i * sum_stride;
        if (args->out_dtype != DTYPE_F32) {
            uint16_t *to = (uint16_t *)args->c + at;
            for (int64_t j = 0; j < columns; j++)
                to[j] = bf16_bits_from_f32(from[j]);
        } else if (args->accumulate) {
            float *to = (float *)args->c + at;
            for (int64_t j = 0; j < columns; j++)
                to[j] += from[j];
        } else {
            memcpy((float *)args->c + at, from, (size_t)columns * sizeof(float));
        }
    }
}

// What the panel at `column` will be packed from, for GemmTileCall.fetch: call `sliver` fetches its
// share. Only where k runs across the lines: the other kind is packed several panels at once and
// fetches for itself.
static void plan_fetch(GemmTileCall *call, const Operand *b, int64_t sliver, Span columns, Span k)
{
    int64_t element_bytes = (int64_t)dtype_bytes(b->pack.dtype, 1);
    call->fetch = NULL;
    call->fetch_shift = 0;
    while ((64 << call->fetch_shift) < k.count * element_bytes)
        call->fetch_shift++;
    int64_t runs = (call->k / 4) >> call->fetch_shift;
    int64_t run = sliver * runs;
    if (!b->across || runs == 0 || run >= columns.count)
        return;
    int64_t line = b->base_line + columns.first + run;
    call->fetch = element_address(b->pack.data, b->pack.dtype, line * b->pack.stride + k.first);
    call->fetch_stride = b->pack.stride * element_bytes;
}

// All rows of a task times one block of k of one panel of b.
static void run_panel(const Task *task, int64_t column, Span k, const float *b, float *sum,
                      int64_t sum_stride)
{
    const GemmTile *tile = task->tile;
    int64_t columns_end = task->columns.first + task->columns.count;
    Span next = {column + tile->columns, tile->columns}, next_k = k;
    if (next.first >= columns_end) {
        next.first = task->columns.first;
        next_k.first = k.first + k.count;
    }
    next.count = smaller(next.count, columns_end - next.first);
    next_k.count = smaller(next_k.count, task->product->k - next_k.first);
    GemmTileCall call = {
        .k = k.count, .first = k.first == 0, .a = task->scratch->a, .b = b, .sum = sum};
    call.sum_stride = sum_stride;
    for (int64_t done = 0, sliver = 0; done < task->rows.count; done += tile->rows, sliver++) {
        call.rows = (int)smaller(tile->rows, task->rows.count - done);
        if (next_k.count > 0)
            plan_fetch(&call, &task->product->b, sliver, next, next_k);
        tile->multiply(&call);
        call.a += (int64_t)BLOCK_K * tile->a_width;
        call.sum += tile->rows * sum_stride;
    }
}

// The panels of one block of k: into c itself where its type allows, else into the scratch sums
// until k is complete.
static void run_block(const Task *task, Span k)
{
    const GemmTile *tile = task->tile;
    const Product *product = task->product;
    const GroupedGemm *args = task->args;
    bool in_place = args->out_dtype == DTYPE_F32 && !args->accumulate;
    int64_t packed = product->b.across ? tile->columns : PACK_COLUMNS;
    pack_side(tile, &product->a, task->rows, k, task->scratch->a, tile->a_width, tile->rows);
    for (int64_t done = 0; done < task->columns.count; done += tile->columns) {
        float *b = task->scratch->b + done % packed * BLOCK_K;
        if (done % packed == 0) {
            Span side = {task->columns.first + done, smaller(packed, task->columns.count - done)};
            pack_side(tile, &product->b, side, k, b, tile->columns, tile->columns);
        }
        int64_t column = task->columns.first + done;
        int64_t columns = smaller(tile->columns, task->columns.count - done);
        bool direct = in_place && columns == tile->columns;
        float *sum = direct ? (float *)args->c + product->first_element +
                                  task->rows.first * product->columns + column
                            : task->scratch->sum + done;
        int64_t sum_stride = direct ? product->columns : TASK_COLUMNS;
        run_panel(task, column, k, b, sum, sum_stride);
        if (!direct && k.first + k.count == product->k)
            store_sums(task, column, columns, sum, sum_stride);
    }
}

static void run_task(const Task *task)
{
    int64_t blocks = divide_up(task->product->k, BLOCK_K);
    for (int64_t block = 0; block < blocks; block++)
        run_block(task, share_of(task->product->k, blocks, block));
}

// No term to add: the sum is zero.
static void clear_task(const Task *task)
{
    const GroupedGemm *args = task->args;
    for (int64_t i = 0; i < task->rows.count && !args->accumulate; i++) {
        int64_t at = task->product->first_element +
                     (task->rows.first + i) * task->product->columns + task->columns.first;
        memset((char *)args->c + at * (int64_t)dtype_bytes(args->out_dtype, 1), 0,
               dtype_bytes(args->out_dtype, (uint64_t)task->columns.count));
    }
}

// Takes tasks by a shared counter until none is left. The counter only grows, so each thread walks
// the groups once.
static void run_tasks(const GroupedGemm *args, const GemmTile *tile, const TaskPlan *plan,
                      int64_t *next_task)
{
    GemmScratch scratch;
    int group = 0;
    int64_t group_first_task = 0;
    for (;;) {
        int64_t task_index;
#pragma omp atomic capture
        task_index = (*next_task)++;
        int64_t tasks = 0;
        for (; group < args->groups; group++, group_first_task += tasks) {
            tasks = tasks_of_group(args, plan, group);
            if (task_index < group_first_task + tasks)
                break;
        }
        if (group == args->groups)
            return;
        Product product = product_of_group(args, group);
        int64_t in_group = task_index - group_first_task;
        int64_t row_chunks = tasks / plan->column_chunks;
        Span panels = share_of(plan->panels, plan->column_chunks, in_group % plan->column_chunks);
        int64_t first_column = panels.first * tile->columns;
        Task task = {.args = args,
                     .tile = tile,
                     .product = &product,
                     .rows = share_of(product.rows, row_chunks, in_group / plan->column_chunks),
                     .columns = {first_column, smaller(panels.count * tile->columns,
                                                       product.columns - first_column)},
                     .scratch = &scratch};
        if (product.k > 0)
            run_task(&task);
        else
            clear_task(&task);
    }
}

void grouped_gemm_with_tile(const GroupedGemm *args, const GemmTile *tile)
{
    CHECK_RULE(args->dtype == DTYPE_F32 || args->dtype == DTYPE_BF16);
    CHECK_RULE(args->out_dtype == DTYPE_F32 || args->out_dtype == args->dtype);
    CHECK_RULE(!args->accumulate || args->out_dtype == DTYPE_F32);
    CHECK_RULE(args->threads >= 1);
    if (args->n == 0)
        return;
    TaskPlan plan = plan_tasks(args, tile);
    int64_t next_task = 0;
    bool parallel = args->threads > 1 && grouped_gemm_cost(args).flops >= PARALLEL_FLOPS;
#pragma omp parallel num_threads(args->threads) if (parallel)
    run_tasks(args, tile, &plan, &next_task);
}

void grouped_gemm_cpu(const GroupedGemm *args, Stream stream)
{
    (void)stream;
    grouped_gemm_with_tile(args, gemm_tile_best());
}

static float reference_value(const Operand *operand, int64_t position, int64_t k)
{
    int64_t line = operand->base_line + (operand->across ? position : k);
    int64_t element = operand->across ? k : position;
    int64_t row = operand->pack.index ? operand->pack.index[line] : line;
    return cpu_load(operand->pack.data, operand->pack.dtype, row * operand->pack.stride + element);
}

void grouped_gemm_reference(const GroupedGemm *args)
{
    for (int group = 0; group < args->groups; group++) {
        Product product = product_of_group(args, group);
        if (args->accumulate && product.k == 0)
            continue;
        for (int64_t i = 0; i < product.rows; i++) {
            for (int64_t j = 0; j < product.columns; j++) {
                float sum = 0.0f;
                for (int64_t k = 0; k < product.k; k++)
                    sum = fmaf(reference_value(&product.a, i, k), reference_value(&product.b, j, k),
                               sum);
                int64_t at = product.first_element + i * product.columns + j;
                if (args->accumulate)
                    sum += ((const float *)args->c)[at];
                cpu_store(args->c, args->out_dtype, at, sum);
            }
        }
    }
}

KernelCost grouped_gemm_cost(const GroupedGemm *args)
{
    double in_bytes = (double)dtype_bytes(args->dtype, 1);
    double out_bytes = (double)dtype_bytes(args->out_dtype, 1) * (args->accumulate ? 2.0 : 1.0);
    double rows = (double)args->rows_expected, n = (double)args->n;
    double other = args->form == GEMM_TN ? (double)args->m : (double)args->k;
    double matrices = (double)args->groups * n * other; // weights, or their gradients
    KernelCost cost = {.flops = 2.0 * rows * n * other};
    if (args->form == GEMM_TN)
        cost.bytes = in_bytes * rows * (n + other) + out_bytes * matrices;
    else
        cost.bytes = in_bytes * (rows * other + matrices) + out_bytes * rows * n;
    return cost;
}
