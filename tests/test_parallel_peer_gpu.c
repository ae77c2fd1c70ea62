// Peer memory, both kinds: what one rank stores arrives in the other's buffer once the barrier has
// returned there, round after round, on several channels, in replayed graphs, when a rank is late.
// ranks: 2
// labels: gpu2
#include <unistd.h>

#include "kernels/reduce.h"
#include "parallel/peer.h"
#include "tests/parallel_job.h"

enum { BLOCK_FLOATS = 50000, ROUNDS = 10 };
static const uint64_t block_bytes = BLOCK_FLOATS * sizeof(float);

static float float_of(const TestJob *s, int source, int round, int64_t i)
{
    return random_normal(s->seed, (uint32_t)(source * 1000 + round), (uint64_t)i);
}

static float *floats(const TestJob *s, int source, int round)
{
    float *host = host_memory(block_bytes);
    for (int64_t i = 0; i < BLOCK_FLOATS; i++)
        host[i] = float_of(s, source, round, i);
    return host;
}

static Peer *open_peer(const TestJob *s, PeerKind kind)
{
    char why[512] = "";
    Peer *peer =
        peer_create(s->comm, kind, block_bytes * (uint64_t)s->comm.ranks, why, sizeof(why));
    if (!peer)
        fail_msg("peer memory of kind %d: %s", (int)kind, why);
    assert_string_equal(why, "");
    assert_ptr_equal(peer_bases(peer)[s->comm.rank], peer_local(peer));
    return peer;
}

// Stores this rank's block into every rank's buffer (a kernel: the sum of one part is a copy),
// meets, keeps what arrived, and meets again so that the next round does not overwrite what is
// still being kept.
static void enqueue_round(const TestJob *s, Peer *peer, const float *block, char *kept, int channel)
{
    for (int rank = 0; rank < s->comm.ranks; rank++) {
        SumParts copy = {.parts = 1,
                         .count = BLOCK_FLOATS,
                         .part_stride = BLOCK_FLOATS,
                         .part = block,
                         .out_dtype = DTYPE_F32,
                         .out =
                             (char *)peer_bases(peer)[rank] + (uint64_t)s->comm.rank * block_bytes};
        sum_parts(&copy, s->stream);
    }
    peer_barrier(peer, channel, s->stream);
    device_copy(kept, peer_local(peer), block_bytes * (uint64_t)s->comm.ranks, s->stream);
    peer_barrier(peer, channel, s->stream);
}

static void check_kept(const TestJob *s, const char *kept, int round)
{
    uint64_t bytes = block_bytes * (uint64_t)s->comm.ranks;
    float *found = host_copy(kept, bytes, s->stream);
    for (int rank = 0; rank < s->comm.ranks; rank++)
        for (int64_t i = 0; i < BLOCK_FLOATS; i++) {
            float expected = float_of(s, rank, round, i);
            float got = found[rank * BLOCK_FLOATS + i];
            if (got != expected)
                fail_msg("round %d, value %lld from rank %d: found %.9g, expected %.9g", round,
                         (long long)i, rank, (double)got, (double)expected);
        }
    free(found);
}

// All rounds are enqueued before any is looked at; one rank is late now and then.
static void check_rounds(const TestJob *s, PeerKind kind)
{
    Peer *peer = open_peer(s, kind);
    ArenaMark mark = arena_mark(s->arena);
    uint64_t bytes = block_bytes * (uint64_t)s->comm.ranks;
    float *blocks = arena_push(s->arena, ROUNDS * block_bytes, MEMORY_COMMUNICATION);
    char *kept = arena_push(s->arena, ROUNDS * bytes, MEMORY_COMMUNICATION);
    for (int round = 0; round < ROUNDS; round++) {
        float *host = floats(s, s->comm.rank, round);
        put_and_free(blocks + round * BLOCK_FLOATS, host, block_bytes, s->stream);
    }
    for (int round = 0; round < ROUNDS; round++) {
        if (round % 3 == s->comm.rank)
            usleep(20000);
        enqueue_round(s, peer, blocks + round * BLOCK_FLOATS, kept + (uint64_t)round * bytes,
                      round % PEER_CHANNELS);
    }
    for (int round = 0; round < ROUNDS; round++)
        check_kept(s, kept + (uint64_t)round * bytes, round);
    arena_release(s->arena, mark);
    peer_destroy(peer);
}

// The same graph again and again: its barriers must take new sequence numbers each time.
static void check_replays(const TestJob *s, PeerKind kind)
{
    Peer *peer = open_peer(s, kind);
    ArenaMark mark = arena_mark(s->arena);
    float *block = arena_push(s->arena, block_bytes, MEMORY_COMMUNICATION);
    char *kept = arena_push(s->arena, block_bytes * (uint64_t)s->comm.ranks, MEMORY_COMMUNICATION);
    graph_begin(s->stream);
    enqueue_round(s, peer, block, kept, 0);
    Graph graph = graph_end(s->stream);
    for (int round = 0; round < ROUNDS; round++) {
        float *host = floats(s, s->comm.rank, round);
        device_copy(block, host, block_bytes, s->stream);
        if (round % 2 == s->comm.rank)
            usleep(5000);
        graph_launch(&graph, s->stream);
        if (round % 4 ==
            3) // barriers outside the graph in between take numbers from the same counter
            peer_barrier(peer, 0, s->stream);
        stream_wait(s->stream);
        free(host);
        check_kept(s, kept, round);
    }
    graph_destroy(&graph);
    arena_release(s->arena, mark);
    peer_destroy(peer);
}

static void test_window(void **state)
{
    check_rounds(*state, PEER_WINDOW);
    check_replays(*state, PEER_WINDOW);
}

static void test_ipc(void **state)
{
    check_rounds(*state, PEER_IPC);
    check_replays(*state, PEER_IPC);
}

int main(int argc, char **argv)
{
    TestJob job = test_job_begin(argc, argv, DEVICE_CUDA);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_window, &job),
        cmocka_unit_test_prestate(test_ipc, &job),
    };
    return test_job_end(&job, cmocka_run_group_tests(tests, NULL, NULL));
}
