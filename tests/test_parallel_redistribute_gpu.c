// Redistribute on device memory over NCCL: the random requests of parallel_redistribute_cases.h,
// bit for bit against plain arithmetic on the host, and one request of every kind inside a replayed
// graph.
// ranks: 2
// labels: gpu2
#include "tests/parallel_redistribute_cases.h"

enum { TRIALS = 3000, REPLAYS = 4 };

static void test_random_requests(void **state)
{
    run_random_cases(*state, TRIALS);
}

static Case case_of(Setting *setting, uint32_t trial, const char *from, const char *to, DType dtype)
{
    Case c = {.seed = setting->job.seed,
              .trial = trial,
              .mesh = find_mesh(setting, "x0=*"),
              .whole = {.dtype = dtype, .rank = 3, .shape = {11, 13, 5}}};
    Error error = {0};
    if (!placement_parse(from, "from", c.mesh, c.from, &error) ||
        !placement_parse(to, "to", c.mesh, c.to, &error))
        fail_msg("%s -> %s: %s", from, to, error.what);
    describe(&c, "x0=*");
    return c;
}

// A replay works on what is in the buffers then, not on what was there at capture; the planned
// bytes are counted once, when captured.
static void graph_case(const Setting *setting, Case *c)
{
    ArenaMark mark = arena_mark(setting->job.arena);
    Redistribute *plan = plan_case(setting, c);
    uint64_t in_bytes = tensor_bytes(&redistribute_from(plan)->local);
    uint64_t out_bytes = tensor_bytes(&redistribute_to(plan)->local);
    char *in = make_part(setting, c, in_bytes), *out = calloc(out_bytes + 1, 1);
    void *in_there = upload(setting, in, in_bytes), *out_there = upload(setting, out, out_bytes);
    free(in);
    redistribute_run(plan, in_there, out_there, setting->job.stream); // NCCL connects outside
    stream_wait(setting->job.stream);
    take_sent(c->mesh);
    graph_begin(setting->job.stream);
    redistribute_run(plan, in_there, out_there, setting->job.stream);
    Graph graph = graph_end(setting->job.stream);
    for (int replay = 0; replay < REPLAYS; replay++) {
        c->trial += 1000; // other values, the same request
        in = make_part(setting, c, in_bytes);
        if (in_bytes > 0)
            device_copy(in_there, in, in_bytes, setting->job.stream);
        device_fill(out_there, 0xA5, out_bytes, setting->job.stream);
        graph_launch(&graph, setting->job.stream);
        download(setting, c, out_there, out, out_bytes);
        check_part(c, setting, in, in_bytes, out);
        free(in);
    }
    uint64_t sent = take_sent(c->mesh);
    if (sent != redistribute_wire_bytes(plan))
        fail_msg("%s: %llu bytes planned, %llu counted at capture", c->text,
                 (unsigned long long)redistribute_wire_bytes(plan), (unsigned long long)sent);
    graph_destroy(&graph);
    free(out);
    redistribute_destroy(plan);
    arena_release(setting->job.arena, mark);
}

static void test_graphs(void **state)
{
    static const char *const changes[][2] = {
        {"S0", "R"}, {"S1", "R"},         {"S0", "S1"}, {"S1", "S2"},    {"S0", "S0x2"},
        {"P", "R"},  {"P(avg)", "S0"},    {"P", "S1"},  {"P(max)", "R"}, {"R", "S1"},
        {"R", "P"},  {"R", "P(product)"}, {"S1", "P"},  {"P", "P(min)"}, {"P", "P"},
    };
    static const DType dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_F64};
    Setting *setting = *state;
    for (size_t i = 0; i < COUNT_OF(changes); i++)
        for (size_t d = 0; d < COUNT_OF(dtypes); d++) {
            Case c = case_of(setting, (uint32_t)(100000 + 10 * i + d), changes[i][0], changes[i][1],
                             dtypes[d]);
            graph_case(setting, &c);
        }
}

int main(int argc, char **argv)
{
    Setting setting = {.job = test_job_begin(argc, argv, DEVICE_CUDA)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_random_requests, &setting),
        cmocka_unit_test_prestate(test_graphs, &setting),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    setting_destroy(&setting);
    return test_job_end(&setting.job, failed);
}
