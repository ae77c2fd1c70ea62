// Expert parallelism over MPI: dispatch, return and sum, forward and backward, bit for bit against
// sums made from the definition on one process, which are the same for any number of ranks; bytes
// on the wire against a hand count.
// ranks: 1 2 3 4 8
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>

#include "parallel_ep_cases.h"

static void test_cases(void **state)
{
    run_cases(*state);
}

// One rank that groups its sums as 2 .. 8 ranks would gives what those ranks give in fast mode:
// both are compared with the same reference, so they equal each other.
static void test_one_rank_stands_for_many(void **state)
{
    EpSetting alone = *(EpSetting *)*state;
    alone.comm = (Comm){.rank = 0, .ranks = 1};
    for (size_t i = 0; i < COUNT_OF(ep_cases); i++)
        for (int ranks = 2; ranks <= 8; ranks += 3) {
            const EpCase *c = &ep_cases[i];
            EpMode mode = {.group_size = (int)shard_size(c->experts, ranks)};
            run_case(&alone, c, &mode, 1);
        }
}

// y of all tokens, gathered, must be the same bytes on every mesh: here the world against this rank
// alone.
static void test_world_equals_one(void **state)
{
    const EpSetting *world = *state;
    static const EpCase c = {"world", 12, 3, 32, DTYPE_F32, 1, {4, 4, 4, 4, 4, 4, 4, 4}, false};
    const EpMode mode = {.exact = true};
    uint64_t bytes = 4 * 32 * sizeof(float);
    char *gathered = host_memory(bytes * (uint64_t)world->comm.ranks);
    char *whole = host_memory(bytes * (uint64_t)world->comm.ranks);

    ArenaMark mark = arena_mark(world->arena);
    Ep *ep = case_create(world, &c, &mode);
    EpStep step = case_allocate(world, &c, ep);
    run_step(world, &c, &mode, ep, &step, world->seed, false);
    comm_gather_host(world->comm, step.dx, gathered, bytes);
    ep_destroy(ep);
    arena_release(world->arena, mark);

    EpSetting alone = *world;
    alone.comm = (Comm){.rank = 0, .ranks = 1};
    EpCase all = c;
    all.tokens[0] = 4 * world->comm.ranks;
    ep = case_create(&alone, &all, &mode);
    step = case_allocate(&alone, &all, ep);
    run_step(&alone, &all, &mode, ep, &step, world->seed, false);
    memcpy(whole, step.dx, bytes * (uint64_t)world->comm.ranks);
    ep_destroy(ep);
    arena_release(world->arena, mark);
    assert_memory_equal(gathered, whole, bytes * (uint64_t)world->comm.ranks);
    free(gathered);
    free(whole);
}

static void test_transport_names(void **state)
{
    const EpSetting *s = *state;
    static const char *const names[EP_TRANSPORTS] = {"auto", "window", "ipc",
                                                     "nccl", "mpi",    "local"};
    for (EpTransport transport = EP_AUTO; transport < EP_TRANSPORTS; transport++)
        assert_string_equal(ep_transport_name(transport), names[transport]);
    const EpMode mode = {.exact = true};
    ArenaMark mark = arena_mark(s->arena);
    Ep *ep = case_create(s, &ep_cases[0], &mode);
    assert_int_equal(ep_transport(ep), s->comm.ranks == 1 ? EP_LOCAL : EP_MPI);
    assert_string_equal(ep_transport_note(ep), "");
    ep_destroy(ep);
    EpSetting alone = *s;
    alone.comm = (Comm){.rank = 0, .ranks = 1};
    alone.transport = EP_NCCL;
    ep = case_create(&alone, &ep_cases[0], &mode);
    assert_int_equal(ep_transport(ep), EP_LOCAL);
    assert_string_equal(ep_transport_note(ep), "nccl was asked for, but one rank sends nothing");
    ep_destroy(ep);
    arena_release(s->arena, mark);
}

int main(int argc, char **argv)
{
    // A rank that fails an assertion takes the job down instead of leaving the others waiting for
    // it.
    setenv("CMOCKA_TEST_ABORT", "1", 1);
    Run *run = run_create(argc, argv, "test_parallel_ep", true);
    EpSetting setting = {.comm = comm_create_world(run, DEVICE_CPU, 0),
                         .stream = stream_create(DEVICE_CPU),
                         .arena = arena_create(MEMORY_DEVICE, DEVICE_CPU),
                         .transport = EP_AUTO};
    setting.seed = (uint64_t)comm_maximum(setting.comm, time(NULL));
    if (run->rank == 0)
        fprintf(stderr, "seed %llu\n", (unsigned long long)setting.seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_cases, &setting),
        cmocka_unit_test_prestate(test_one_rank_stands_for_many, &setting),
        cmocka_unit_test_prestate(test_world_equals_one, &setting),
        cmocka_unit_test_prestate(test_transport_names, &setting),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_destroy(setting.arena);
    stream_destroy(setting.stream);
    comm_destroy(&setting.comm);
    run_destroy(run);
    return failed;
}
