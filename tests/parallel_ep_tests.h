// parallel_ep_tests.h -- the tests of expert parallelism, the same on the CPU (MPI) and on GPUs
// (window, IPC, NCCL): every case over every transport, one rank in the place of many, and whole
// steps that are only enqueued, on GPUs as one CUDA graph that is replayed with other routing.
#pragma once

#include <unistd.h>

#include "kernels/grouped_gemm.h"
#include "tests/parallel_ep_cases.h"

enum { STEPS = 4, GRAPH_REPLAYS = 6, REPEATS = 2 };

static inline EpSetting without_others(const EpSetting *setting)
{
    EpSetting alone = *setting;
    alone.comm = (Comm){.rank = 0, .ranks = 1};
    return alone;
}

static inline void check_transport(const EpSetting *setting, EpTransport transport)
{
    EpSetting s = *setting;
    s.transport = transport;
    run_cases(&s);
}

static inline void test_mpi(void **state)
{
    check_transport(*state, EP_MPI);
}

static inline void test_window(void **state)
{
    check_transport(*state, EP_WINDOW);
}

static inline void test_ipc(void **state)
{
    check_transport(*state, EP_IPC);
}

static inline void test_nccl(void **state)
{
    check_transport(*state, EP_NCCL);
}

// One rank that groups its sums as 2 .. 8 ranks would gives what those ranks give in fast mode:
// both are compared with the same reference, so they equal each other.
static inline void test_one_rank_stands_for_many(void **state)
{
    EpSetting alone = without_others(*state);
    run_cases(&alone);
    for (size_t i = 0; i < COUNT_OF(ep_cases); i++)
        for (int ranks = 2; ranks <= 8; ranks += 3) {
            const EpCase *c = &ep_cases[i];
            EpMode mode = {.group_size = (int)shard_size(c->experts, ranks)};
            run_case(&alone, c, &mode, 2);
        }
}

// dx of one exact step of the case, in host memory.
static inline void *dx_of_step(const EpSetting *s, const EpCase *c, int64_t tokens)
{
    const EpMode mode = {.exact = true};
    ArenaMark mark = arena_mark(s->arena);
    Ep *ep = case_create(s, c, &mode);
    EpStep step = case_allocate(s, c, ep);
    run_step(s, c, &mode, ep, &step, s->seed, false);
    void *dx = host_copy(step.dx, dtype_bytes(c->dtype, (uint64_t)(tokens * c->hidden)), s->stream);
    ep_destroy(ep);
    arena_release(s->arena, mark);
    return dx;
}

// dx of all tokens, gathered, must be the same bytes on every mesh: here the world against this
// rank alone.
static inline void test_world_equals_one(void **state)
{
    enum { TOKENS = 4 }; // of each rank
    const EpSetting *world = *state;
    EpSetting alone = without_others(world);
    EpCase c = {"world", 12, 3, 32, DTYPE_F32, 1, {0}, false};
    for (int rank = 0; rank < 8; rank++)
        c.tokens[rank] = TOKENS;
    uint64_t bytes = TOKENS * 32 * sizeof(float), all = bytes * (uint64_t)world->comm.ranks;
    char *gathered = host_memory(all), *mine = dx_of_step(world, &c, TOKENS);
    comm_gather_host(world->comm, mine, gathered, bytes);
    c.tokens[0] = TOKENS * world->comm.ranks;
    char *whole = dx_of_step(&alone, &c, c.tokens[0]);
    assert_memory_equal(gathered, whole, all);
    free(gathered);
    free(mine);
    free(whole);
}

static inline void expect_transport(const EpSetting *s, EpTransport expected, const char *note)
{
    const EpMode mode = {.exact = true};
    ArenaMark mark = arena_mark(s->arena);
    Ep *ep = case_create(s, &ep_cases[1], &mode);
    assert_int_equal(ep_transport(ep), expected);
    assert_string_equal(ep_transport_note(ep), note);
    ep_destroy(ep);
    arena_release(s->arena, mark);
}

static inline void test_choice_of_transport(void **state)
{
    const EpSetting *s = *state;
    static const char *const names[EP_TRANSPORTS] = {"auto", "window", "ipc",
                                                     "nccl", "mpi",    "local"};
    for (EpTransport transport = EP_AUTO; transport < EP_TRANSPORTS; transport++)
        assert_string_equal(ep_transport_name(transport), names[transport]);
    EpTransport first = s->stream.device == DEVICE_CUDA ? EP_WINDOW : EP_MPI;
    expect_transport(s, s->comm.ranks == 1 ? EP_LOCAL : first, "");
    EpSetting alone = without_others(s);
    alone.transport = EP_NCCL;
    expect_transport(&alone, EP_LOCAL, "nccl was asked for, but one rank sends nothing");
}

// The experts of the cases as matrices: row n of expert e has scale(e) in column (n + turns * e) %
// hidden.
static inline void *expert_matrices(const EpSetting *s, const EpCase *c, const EpRows *rows,
                                    int turns)
{
    int64_t square = c->hidden * c->hidden;
    uint64_t bytes = dtype_bytes(c->dtype, (uint64_t)(rows->experts_local * square));
    void *host = host_memory(bytes);
    for (int e = 0; e < rows->experts_local; e++)
        for (int64_t n = 0; n < c->hidden; n++) {
            int expert = rows->first_expert + e;
            int64_t column = (n + (int64_t)turns * expert) % c->hidden;
            case_set(host, c->dtype, e * square + n * c->hidden + column, expert_scale(expert));
        }
    void *device = arena_push(s->arena, bytes, MEMORY_PARAMETERS);
    put_and_free(device, host, bytes, s->stream);
    return device;
}

static inline void enqueue_experts(const EpSetting *s, const EpCase *c, const EpRows *rows,
                                   const void *input, const void *matrices, void *out)
{
    GroupedGemm gemm = {
        .form = GEMM_NT,
        .dtype = c->dtype,
        .out_dtype = c->dtype,
        .groups = rows->experts_local,
        .rows_max = rows->expert_rows_max,
        .n = c->hidden,
        .k = c->hidden,
        .group_first = rows->group_first,
        .group_rows = rows->group_rows,
        .a = input,
        .a_stride = c->hidden,
        .a_index = rows->row_of_expert_row,
        .b = matrices,
        .c = out,
        .rows_expected = rows->expert_rows_max,
        .threads = 1,
    };
    grouped_gemm(&gemm, s->stream);
}

// A whole step on the device. The routing weights themselves take the place of their gradients on
// the way home.
static inline void enqueue_step(const EpSetting *s, const EpCase *c, Ep *ep, const EpStep *step,
                                void *const *matrices)
{
    const EpRows *rows = ep_rows(ep);
    ep_plan(ep, step->expert_of_slot, step->weight_of_slot, s->stream);
    ep_dispatch(ep, step->x, s->stream);
    enqueue_experts(s, c, rows, rows->x_rows, matrices[0], step->expert_rows);
    EpReturn forward = {.expert_rows = step->expert_rows, .weighted = true};
    ep_return(ep, &forward, s->stream);
    EpSum y = {.expert_rows = step->expert_rows,
               .weighted = true,
               .addend = step->addend,
               .addend_weight = step->addend_weight,
               .out = step->y};
    ep_sum(ep, &y, s->stream);
    ep_dispatch_back(ep, step->dy, s->stream);
    enqueue_experts(s, c, rows, rows->dy_rows, matrices[1], step->expert_rows);
    EpReturn backward = {.expert_rows = step->expert_rows,
                         .dweight_of_expert_row = rows->weight_of_expert_row,
                         .dweight_of_slot = step->dweight_of_slot};
    ep_return(ep, &backward, s->stream);
    EpSum dx = {.expert_rows = step->expert_rows, .addend = step->addend, .out = step->dx};
    ep_sum(ep, &dx, s->stream);
}

static inline void check_step(const EpSetting *s, const EpCase *c, const EpMode *mode,
                              const EpStep *step, uint64_t seed)
{
    check_sums(s, c, mode, step, seed, 1, step->y);
    check_sums(s, c, mode, step, seed, 2, step->dx);
    uint64_t bytes = (uint64_t)(step->tokens * c->top_k) * sizeof(float);
    float *found = host_copy(step->dweight_of_slot, bytes, s->stream);
    float *expected = host_copy(step->weight_of_slot, bytes, s->stream);
    for (int64_t i = 0; i < step->tokens * c->top_k; i++)
        expect_same("returned weight", c, step->first_token + i / c->top_k, i % c->top_k, found[i],
                    expected[i]);
    free(found);
    free(expected);
}

// The steps in order: enqueued, or as one graph.
static inline void enqueue_steps(const EpSetting *s, const EpCase *c, Ep *ep, const EpStep *steps,
                                 void *const *matrices)
{
    for (int i = 0; i < STEPS; i++)
        enqueue_step(s, c, ep, &steps[i], matrices);
}

// The steps share the Ep's buffers but nothing else, so a rank that runs ahead and stores too early
// is seen.
static inline void check_steps(const EpSetting *s, const EpCase *c, const EpMode *mode)
{
    ArenaMark mark = arena_mark(s->arena);
    Ep *ep = case_create(s, c, mode);
    void *matrices[] = {expert_matrices(s, c, ep_rows(ep), 1),
                        expert_matrices(s, c, ep_rows(ep), 2)};
    EpStep steps[STEPS];
    for (int i = 0; i < STEPS; i++) {
        steps[i] = case_allocate(s, c, ep);
        case_fill(s, c, &steps[i], s->seed + (uint64_t)i);
    }
    enqueue_step(s, c, ep, &steps[0], matrices); // libraries connect and load outside the capture
    stream_wait(s->stream);
    check_step(s, c, mode, &steps[0], s->seed);

    Graph graph = {0};
    bool replayed = graph_supported(s->stream.device);
    if (replayed) {
        graph_begin(s->stream);
        enqueue_steps(s, c, ep, steps, matrices);
        graph = graph_end(s->stream);
    }
    for (int replay = 0; replay < (replayed ? GRAPH_REPLAYS : REPEATS); replay++) {
        uint64_t seed = s->seed + 1000 * (uint64_t)(replay + 1);
        for (int i = 0; i < STEPS; i++)
            case_fill(s, c, &steps[i], seed + (uint64_t)i);
        if (replay % 2 == s->comm.rank)
            usleep(20000); // let the other ranks run ahead
        if (replayed)
            graph_launch(&graph, s->stream);
        else
            enqueue_steps(s, c, ep, steps, matrices);
        stream_wait(s->stream);
        for (int i = 0; i < STEPS; i++)
            check_step(s, c, mode, &steps[i], seed + (uint64_t)i);
        check_dispatch(s, c, ep, seed + STEPS - 1, false);
        check_dispatch(s, c, ep, seed + STEPS - 1, true);
        check_traffic(s, c, mode, ep, seed + STEPS - 1);
    }
    if (replayed)
        graph_destroy(&graph);
    ep_destroy(ep);
    arena_release(s->arena, mark);
}

static inline void test_enqueued_steps(void **state)
{
    static const EpCase cases[] = {
        {"enqueued", 12, 3, 64, DTYPE_BF16, 8, {150, 97}, false},
        {"enqueued, crowded", 10, 4, 128, DTYPE_BF16, 1, {33, 260}, true},
    };
    EpSetting s = *(EpSetting *)*state;
    bool cuda = s.stream.device == DEVICE_CUDA;
    EpTransport first = cuda ? EP_WINDOW : EP_MPI, last = cuda ? EP_NCCL : EP_MPI;
    for (s.transport = first; s.transport <= last; s.transport++)
        for (size_t i = 0; i < COUNT_OF(cases); i++)
            for (int exact = 0; exact < 2; exact++) {
                int experts_per_rank = (int)shard_size(cases[i].experts, s.comm.ranks);
                bool grouped = !exact && s.comm.ranks > 1;
                EpMode mode = {.exact = exact, .group_size = grouped ? experts_per_rank : 0};
                check_steps(&s, &cases[i], &mode);
            }
}

// What the tests begin with.
static inline EpSetting ep_setting(const TestJob *job)
{
    return (EpSetting){.comm = job->comm,
                       .stream = job->stream,
                       .arena = job->arena,
                       .seed = job->seed,
                       .transport = EP_AUTO};
}
