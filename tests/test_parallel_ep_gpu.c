// Expert parallelism on GPUs: the cases of parallel_ep_cases.h over every transport, then four
// whole steps in one CUDA graph, replayed with different routing, with no wait on the host between.
// ranks: 2
// labels: gpu2
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/grouped_gemm.h"
#include "parallel_ep_cases.h"

enum { GRAPH_STEPS = 4, REPLAYS = 6 };

static void check_transport(const EpSetting *setting, EpTransport transport)
{
    EpSetting s = *setting;
    s.transport = transport;
    run_cases(&s);
}

static void test_window(void **state)
{
    check_transport(*state, EP_WINDOW);
}

static void test_ipc(void **state)
{
    check_transport(*state, EP_IPC);
}

static void test_nccl(void **state)
{
    check_transport(*state, EP_NCCL);
}

static void test_local(void **state)
{
    EpSetting alone = *(EpSetting *)*state;
    alone.comm = (Comm){.rank = 0, .ranks = 1};
    run_cases(&alone);
    for (size_t i = 0; i < COUNT_OF(ep_cases); i++) {
        EpMode mode = {.group_size = (int)shard_size(ep_cases[i].experts, 2)};
        run_case(&alone, &ep_cases[i], &mode, 2);
    }
}

static void test_auto_is_the_first_that_works(void **state)
{
    const EpSetting *s = *state;
    const EpMode mode = {.exact = true};
    ArenaMark mark = arena_mark(s->arena);
    Ep *ep = case_create(s, &ep_cases[1], &mode);
    assert_int_equal(ep_transport(ep), EP_WINDOW);
    assert_string_equal(ep_transport_note(ep), "");
    ep_destroy(ep);
    arena_release(s->arena, mark);
}

// The experts of the cases as matrices: row n of expert e has scale(e) in column (n + turns * e) %
// hidden.
static void *expert_matrices(const EpSetting *s, const EpCase *c, const EpRows *rows, int turns)
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

static void enqueue_experts(const EpSetting *s, const EpCase *c, const EpRows *rows,
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
static void enqueue_step(const EpSetting *s, const EpCase *c, Ep *ep, const EpStep *step,
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

static void check_step(const EpSetting *s, const EpCase *c, const EpMode *mode, const EpStep *step,
                       uint64_t seed)
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

// Steps of one graph share the Ep's buffers but nothing else, so a rank that runs ahead and stores
// too early is seen.
static void check_graph(const EpSetting *s, const EpCase *c, const EpMode *mode)
{
    ArenaMark mark = arena_mark(s->arena);
    Ep *ep = case_create(s, c, mode);
    void *matrices[] = {expert_matrices(s, c, ep_rows(ep), 1),
                        expert_matrices(s, c, ep_rows(ep), 2)};
    EpStep steps[GRAPH_STEPS];
    for (int i = 0; i < GRAPH_STEPS; i++) {
        steps[i] = case_allocate(s, c, ep);
        case_fill(s, c, &steps[i], s->seed + (uint64_t)i);
    }
    enqueue_step(s, c, ep, &steps[0], matrices); // libraries connect and load outside the capture
    stream_wait(s->stream);
    check_step(s, c, mode, &steps[0], s->seed);

    graph_begin(s->stream);
    for (int i = 0; i < GRAPH_STEPS; i++)
        enqueue_step(s, c, ep, &steps[i], matrices);
    Graph graph = graph_end(s->stream);
    for (int replay = 0; replay < REPLAYS; replay++) {
        uint64_t seed = s->seed + 1000 * (uint64_t)(replay + 1);
        for (int i = 0; i < GRAPH_STEPS; i++)
            case_fill(s, c, &steps[i], seed + (uint64_t)i);
        if (replay % 2 == s->comm.rank)
            usleep(20000); // let the other rank run ahead
        graph_launch(&graph, s->stream);
        stream_wait(s->stream);
        for (int i = 0; i < GRAPH_STEPS; i++)
            check_step(s, c, mode, &steps[i], seed + (uint64_t)i);
        check_dispatch(s, c, ep, seed + GRAPH_STEPS - 1, false);
        check_dispatch(s, c, ep, seed + GRAPH_STEPS - 1, true);
        check_traffic(s, c, mode, ep, seed + GRAPH_STEPS - 1);
    }
    graph_destroy(&graph);
    ep_destroy(ep);
    arena_release(s->arena, mark);
}

static void test_graph(void **state)
{
    static const EpCase cases[] = {
        {"graph", 12, 3, 64, DTYPE_BF16, 8, {150, 97}, false},
        {"graph, crowded", 10, 4, 128, DTYPE_BF16, 1, {33, 260}, true},
    };
    EpSetting s = *(EpSetting *)*state;
    for (EpTransport transport = EP_WINDOW; transport <= EP_NCCL; transport++)
        for (size_t i = 0; i < COUNT_OF(cases); i++)
            for (int exact = 0; exact < 2; exact++) {
                s.transport = transport;
                EpMode mode = {.exact = exact,
                               .group_size =
                                   exact ? 0 : (int)shard_size(cases[i].experts, s.comm.ranks)};
                check_graph(&s, &cases[i], &mode);
            }
}

int main(int argc, char **argv)
{
    // A rank that fails an assertion takes the job down instead of leaving the others waiting for
    // it.
    setenv("CMOCKA_TEST_ABORT", "1", 1);
    Run *run = run_create(argc, argv, "test_parallel_ep_gpu", true);
    char why[DEVICE_TEXT_BYTES] = "";
    if (device_count(DEVICE_CUDA, why, sizeof(why)) < run->local_ranks) {
        if (run->rank == 0)
            fprintf(stderr, "skipped: fewer GPUs than ranks on this host %s\n", why);
        run_destroy(run);
        return EXIT_CODE_SKIPPED;
    }
    device_select(DEVICE_CUDA, run->local_rank);
    EpSetting setting = {.comm = comm_create_world(run, DEVICE_CUDA, run->local_rank),
                         .stream = stream_create(DEVICE_CUDA),
                         .arena = arena_create(MEMORY_DEVICE, DEVICE_CUDA),
                         .transport = EP_AUTO};
    setting.seed = (uint64_t)comm_maximum(setting.comm, time(NULL));
    if (run->rank == 0)
        fprintf(stderr, "seed %llu\n", (unsigned long long)setting.seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_local, &setting),
        cmocka_unit_test_prestate(test_auto_is_the_first_that_works, &setting),
        cmocka_unit_test_prestate(test_window, &setting),
        cmocka_unit_test_prestate(test_ipc, &setting),
        cmocka_unit_test_prestate(test_nccl, &setting),
        cmocka_unit_test_prestate(test_graph, &setting),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_destroy(setting.arena);
    stream_destroy(setting.stream);
    comm_destroy(&setting.comm);
    run_destroy(run);
    return failed;
}
