// Linear 8 -> 16 over ranks against one rank.
#include "experiments/model/linear.h"
#include "harness/random.h"
#include "kernels/grouped_gemm.h"
#include "parallel/fsdp.h"
#include "parallel/ordered.h"
#include "parallel/shard.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 4, IN = 8, OUT = 16 };
enum { STREAM_X = 1, STREAM_W, STREAM_DY };
#define TENSOR_BOUND 1e-6

// Buffers of one rank: its columns of the output are first .. first + count.
typedef struct Linear {
    Shard columns;
    uint64_t seed;
    Arena *arena;
    Stream stream;
    int32_t *range; // [2] device: rows 0 .. ROWS
    float *x, *dy, *y, *dx;
} Linear;

static float *push(Linear *l, int64_t count)
{
    return ARENA_PUSH(l->arena, float, count, MEMORY_ACTIVATIONS);
}

static void fill(Linear *l, uint32_t stream, int64_t first, int64_t rows, int64_t columns,
                 float *out)
{
    random_fill(&(RandomFill){.seed = l->seed,
                              .stream = stream,
                              .first_row = first,
                              .rows = rows,
                              .columns = columns,
                              .deviation = 1,
                              .dtype = DTYPE_F32,
                              .out = out},
                l->stream);
}

// x is [ROWS, IN]; dy is drawn as [OUT, ROWS] so that a share of its columns is rows there.
static Linear linear_create(const LinearDemo *demo, Shard columns)
{
    Stream stream = demo->stream;
    const int32_t range[2] = {0, ROWS};
    Linear l = {.columns = columns,
                .seed = demo->seed,
                .arena = arena_create(MEMORY_DEVICE, demo->device),
                .stream = stream};
    l.range = ARENA_PUSH(l.arena, int32_t, 2, MEMORY_ACTIVATIONS);
    device_copy(l.range, range, sizeof range, stream);
    l.x = push(&l, ROWS * IN);
    l.dx = push(&l, ROWS * IN);
    l.dy = push(&l, ROWS * columns.count);
    l.y = push(&l, ROWS * columns.count);
    fill(&l, STREAM_X, 0, ROWS, IN, l.x);
    float *across = push(&l, ROWS * columns.count);
    float host[OUT * ROWS], turned[OUT * ROWS];
    fill(&l, STREAM_DY, columns.first, columns.count, ROWS, across);
    uint64_t bytes = (uint64_t)(ROWS * columns.count) * sizeof(float);
    device_copy(host, across, bytes, stream);
    stream_wait(stream);
    for (int64_t row = 0; row < ROWS; row++)
        for (int64_t column = 0; column < columns.count; column++)
            turned[row * columns.count + column] = host[column * ROWS + row];
    device_copy(l.dy, turned, bytes, stream);
    stream_wait(stream);
    return l;
}

// y = x w^T, dx = dy w, dw = dy^T x, over this rank's columns of the output.
static void linear_step(Linear *l, const float *w, float *dw)
{
    GroupedGemm common = {.dtype = DTYPE_F32,
                          .out_dtype = DTYPE_F32,
                          .groups = 1,
                          .rows_max = ROWS,
                          .rows_expected = ROWS,
                          .group_first = l->range,
                          .group_rows = l->range + 1,
                          .threads = 1};
    GroupedGemm y = common, dx = common, gradient = common;
    y.form = GEMM_NT;
    y.n = l->columns.count;
    y.k = IN;
    y.a = l->x;
    y.a_stride = IN;
    y.b = w;
    y.c = l->y;
    dx.form = GEMM_NN;
    dx.n = IN;
    dx.k = l->columns.count;
    dx.a = l->dy;
    dx.a_stride = l->columns.count;
    dx.b = w;
    dx.c = l->dx;
    gradient.form = GEMM_TN;
    gradient.m = l->columns.count;
    gradient.n = IN;
    gradient.a = l->dy;
    gradient.a_stride = l->columns.count;
    gradient.b = l->x;
    gradient.b_stride = IN;
    gradient.c = dw;
    grouped_gemm(&y, l->stream);
    grouped_gemm(&dx, l->stream);
    grouped_gemm(&gradient, l->stream);
}

// What a rank has, host: [ROWS][count] of y, [count][IN] of dw, [ROWS][IN] of dx.
typedef struct Piece {
    Shard columns, rows; // of y; of dw
    float y[ROWS * OUT], dw[OUT * IN], dx[ROWS * IN];
} Piece;

static void take(Linear *l, const float *dw, Shard rows, Piece *piece)
{
    piece->columns = l->columns;
    piece->rows = rows;
    device_copy(piece->y, l->y, (uint64_t)(ROWS * l->columns.count) * sizeof(float), l->stream);
    device_copy(piece->dx, l->dx, sizeof piece->dx, l->stream);
    device_copy(piece->dw, dw, (uint64_t)(rows.count * IN) * sizeof(float), l->stream);
    stream_wait(l->stream);
}

static Piece run_fsdp(const LinearDemo *demo)
{
    Piece piece;
    Linear l = linear_create(demo, (Shard){0, OUT});
    const FsdpParameter weight = {.outer = 1, .rows = OUT, .columns = IN, .room_rows = OUT};
    Comm alone = {.rank = 0, .ranks = 1};
    Fsdp *fsdp = fsdp_create(&(FsdpSettings){.units = 1,
                                             .parameters = 1,
                                             .parameter = &weight,
                                             .group = {{demo->world, alone}, {alone, alone}},
                                             .partial = alone,
                                             .kept = alone,
                                             .param_dtype = DTYPE_F32,
                                             .wire_dtype = DTYPE_F32,
                                             .reshard = FSDP_RESHARD_YES,
                                             .device = demo->device,
                                             .arena = l.arena});
    const FsdpPlace *place = &fsdp_plan(fsdp)->place[0];
    fill(&l, STREAM_W, place->first_row, place->rows, IN, fsdp_values(fsdp));
    stream_wait(l.stream);
    fsdp_step_begin(fsdp);
    fsdp_use(fsdp, 0, false, l.stream);
    linear_step(&l, fsdp_value(fsdp, 0), fsdp_gradient(fsdp, 0));
    fsdp_reduce(fsdp, 0, true, l.stream);
    fsdp_step_end(fsdp, l.stream);
    take(&l, fsdp_gradients(fsdp), (Shard){place->first_row, place->rows}, &piece);
    for (int64_t i = 0; i < place->rows * IN; i++)
        piece.dw[i] /= (float)demo->world.ranks;
    fsdp_destroy(fsdp);
    arena_destroy(l.arena);
    return piece;
}

static Piece run_tensor_parallel(const LinearDemo *demo)
{
    Piece piece;
    Shard mine = shard_of(OUT, demo->world.ranks, demo->world.rank);
    Linear l = linear_create(demo, mine);
    float *w = push(&l, mine.count * IN), *dw = push(&l, mine.count * IN);
    fill(&l, STREAM_W, mine.first, mine.count, IN, w);
    linear_step(&l, w, dw);
    ordered_all_reduce(
        &(OrderedReduce){
            .comm = demo->world,
            .count = ROWS * IN,
            .wire = DTYPE_F32,
            .values = l.dx,
            .scratch =
                arena_push(l.arena, ordered_reduce_scratch_bytes(demo->world, ROWS * IN, DTYPE_F32),
                           MEMORY_COMMUNICATION)},
        l.stream);
    take(&l, dw, mine, &piece);
    arena_destroy(l.arena);
    return piece;
}

static Piece run_one_rank(const LinearDemo *demo)
{
    LinearDemo one = *demo;
    one.world = (Comm){.rank = 0, .ranks = 1};
    return run_tensor_parallel(&one);
}

static ResultCheck compare(const char *name, const float *ours, const float *theirs, int count,
                           double bound)
{
    ResultCheck check = {.error = 0, .bound = bound, .good = true};
    double scale = 0;
    for (int i = 0; i < count; i++) {
        check.error = fmax(check.error, fabs((double)ours[i] - theirs[i]));
        scale = fmax(scale, fabs(theirs[i]));
    }
    check.error /= scale;
    bool equal = memcmp(ours, theirs, (size_t)count * sizeof(float)) == 0;
    check.good = bound > 0 ? check.error <= bound : equal;
    if (bound == 0)
        check.error = check.bound = NAN;
    snprintf(check.name, sizeof check.name, "%s", name);
    snprintf(check.verdict, sizeof check.verdict, "%s",
             !check.good  ? "differs"
             : bound == 0 ? "equal"
                          : "within bound");
    snprintf(check.detail, sizeof check.detail, "%d values", count);
    return check;
}

void linear_demo(const LinearDemo *demo, ResultCheck *checks)
{
    int ranks = demo->run->ranks;
    Piece mine = demo->tensor_parallel ? run_tensor_parallel(demo) : run_fsdp(demo);
    Piece *all = calloc((size_t)ranks, sizeof(Piece));
    CHECK(all != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for %d ranks", ranks);
    run_gather(demo->run, &mine, sizeof mine, all);
    if (demo->run->rank == 0) {
        Piece whole = {.columns = {0, OUT}, .rows = {0, OUT}}, one = run_one_rank(demo);
        for (int rank = 0; rank < ranks; rank++) {
            const Piece *p = &all[rank];
            for (int64_t row = 0; row < ROWS; row++)
                memcpy(whole.y + row * OUT + p->columns.first, p->y + row * p->columns.count,
                       (size_t)p->columns.count * sizeof(float));
            memcpy(whole.dw + p->rows.first * IN, p->dw,
                   (size_t)(p->rows.count * IN) * sizeof(float));
            memcpy(whole.dx, p->dx, sizeof whole.dx);
        }
        // n equal terms added one by one make n times the term exactly for 1, 2 and 4; 3 and 5 of
        // them are rounded, and 8 do not find back.
        bool rounds = !demo->tensor_parallel && (ranks == 3 || ranks > 4);
        checks[0] = compare("output", whole.y, one.y, ROWS * OUT, 0);
        checks[1] =
            compare("weight gradient", whole.dw, one.dw, OUT * IN, rounds ? TENSOR_BOUND : 0);
        checks[2] = compare("input gradient", whole.dx, one.dx, ROWS * IN,
                            demo->tensor_parallel && ranks > 1 ? TENSOR_BOUND : 0);
    }
    free(all);
}
