// Peer memory: set-up, proof that it works, and the barrier. How memory is shared is a row of a
// table (peer_ipc_cuda.c, peer_window_nccl.c); the device side is in peer.cu. Builds without CUDA
// have neither, and peer_create says so.
//
// Registration can succeed and yet not take effect, so set-up ends with a probe: every rank stores
// a number into every other rank's buffer, at its first and its last words, from a kernel, and
// reads back what it got.
#include "parallel/peer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "parallel/comm_link.h"
#include "parallel/peer_kernels.h"
#include "parallel/peer_link.h"

enum { HOST_TEXT_BYTES = 128, WHY_BYTES = 256 };
static const uint64_t REGION_ALIGN_BYTES = 256;
// CUDA IPC shares whole 2 MiB pages: a smaller allocation would share its neighbours too.
static const uint64_t PAGE_BYTES = (uint64_t)2 << 20;

static uint64_t round_up(uint64_t value, uint64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

bool peer_agree(const Peer *peer, bool good, char *why, size_t why_bytes)
{
    int first_bad = peer->comm.ranks -
                    (int)comm_maximum(peer->comm, good ? 0 : peer->comm.ranks - peer->comm.rank);
    if (first_bad == peer->comm.ranks)
        return true;
    char mine[WHY_BYTES] = "";
    if (!good)
        snprintf(mine, sizeof(mine), "%s", why);
    char *all = calloc((size_t)peer->comm.ranks, WHY_BYTES);
    CHECK_RULE(all != NULL);
    comm_gather_host(peer->comm, mine, all, WHY_BYTES);
    snprintf(why, why_bytes, "%s (rank %d of the group)", all + (size_t)first_bad * WHY_BYTES,
             first_bad);
    free(all);
    return false;
}

void peer_meet(const Peer *peer)
{
    comm_maximum(peer->comm, 0);
}

// The kernel's boot id tells machines apart even when containers give all of them one host name.
static void name_machine(char *text)
{
    memset(text, 0, HOST_TEXT_BYTES);
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
    bool known = file && fgets(text, HOST_TEXT_BYTES, file);
    if (file)
        fclose(file);
    if (!known)
        gethostname(text, HOST_TEXT_BYTES - 1);
}

static bool share_machine(Comm comm, char *why, size_t why_bytes)
{
    char mine[HOST_TEXT_BYTES];
    name_machine(mine);
    char *all = calloc((size_t)comm.ranks, HOST_TEXT_BYTES);
    CHECK_RULE(all != NULL);
    comm_gather_host(comm, mine, all, HOST_TEXT_BYTES);
    int stranger = 0;
    for (int rank = 1; rank < comm.ranks && stranger == 0; rank++)
        if (memcmp(all, all + (size_t)rank * HOST_TEXT_BYTES, HOST_TEXT_BYTES) != 0)
            stranger = rank;
    free(all);
    if (stranger > 0)
        snprintf(why, why_bytes, "ranks 0 and %d of the group are on different hosts", stranger);
    return stranger == 0;
}

// What rank `source` stores for rank `target`; `where` 0 = first words, 1 = flag words.
static uint64_t probe_value(int source, int target, int where)
{
    return 0x9E3779B97F4A7C15u * (uint64_t)(source + 1) + ((uint64_t)where << 32) +
           (uint64_t)target;
}

static bool probe(Peer *peer, Stream stream, char *why, size_t why_bytes)
{
    int rank = peer->comm.rank, ranks = peer->comm.ranks;
    device_fill(peer->local, 0, peer->total_bytes, stream);
    stream_wait(stream);
    peer_meet(peer);
    for (int where = 0; where < 2; where++)
        peer_put_cuda((uint64_t *const *)(peer->device_bases + where * ranks), rank, ranks,
                      probe_value(rank, 0, where), stream);
    stream_wait(stream);
    peer_meet(peer);

    uint64_t *found = calloc(2 * (size_t)ranks, sizeof(*found));
    CHECK_RULE(found != NULL);
    uint64_t words_bytes = (uint64_t)ranks * sizeof(*found);
    device_copy(found, peer->local, words_bytes, stream);
    device_copy(found + ranks, (char *)peer->local + peer->flags_offset, words_bytes, stream);
    stream_wait(stream);
    bool good = true;
    for (int source = 0; source < ranks && good; source++)
        for (int where = 0; where < 2 && good; where++) {
            uint64_t got = found[where * ranks + source];
            uint64_t expected = probe_value(source, rank, where);
            good = got == expected;
            if (!good)
                snprintf(why, why_bytes,
                         "%s memory is mapped but a probe from rank %d did not arrive: found %llx, "
                         "expected %llx",
                         peer->row->name, source, (unsigned long long)got,
                         (unsigned long long)expected);
        }
    free(found);
    // Clean flags before anybody may signal: a late fill would wipe out a neighbour's first signal.
    device_fill(peer->local, 0, peer->total_bytes, stream);
    stream_wait(stream);
    return peer_agree(peer, good, why, why_bytes);
}

static void make_device_bases(Peer *peer, Stream stream)
{
    int ranks = peer->comm.ranks;
    void **addresses = calloc(2 * (size_t)ranks, sizeof(*addresses));
    CHECK_RULE(addresses != NULL);
    for (int rank = 0; rank < ranks; rank++) {
        addresses[rank] = peer->bases[rank];
        addresses[ranks + rank] = (char *)peer->bases[rank] + peer->flags_offset;
    }
    uint64_t bytes = 2 * (uint64_t)ranks * sizeof(*addresses);
    peer->device_bases = device_allocate(DEVICE_CUDA, bytes);
    device_copy(peer->device_bases, addresses, bytes, stream);
    stream_wait(stream);
    free(addresses);
}

static void release(Peer *peer)
{
    if (peer->device_bases)
        device_free(DEVICE_CUDA, peer->device_bases);
    free(peer->bases);
    free(peer);
}

Peer *peer_create(Comm comm, PeerKind kind, uint64_t bytes, char *why, size_t why_bytes)
{
    const PeerRow *const rows[PEER_KINDS] = {
        [PEER_WINDOW] = &peer_row_window, [PEER_IPC] = &peer_row_ipc};
    static const char *const absent[PEER_KINDS] = {
        [PEER_WINDOW] = "this build has no CUDA or no NCCL, which NCCL windows need",
        [PEER_IPC] = "this build has no CUDA"};
    CHECK_RULE(why_bytes > 0);
    why[0] = 0;
    if (!rows[kind]) {
        snprintf(why, why_bytes, "%s", absent[kind]);
        return NULL;
    }
    if (!share_machine(comm, why, why_bytes))
        return NULL;
    Peer *peer = calloc(1, sizeof(*peer));
    CHECK_RULE(peer != NULL);
    uint64_t words = (uint64_t)comm.ranks * sizeof(uint64_t);
    peer->comm = comm;
    peer->row = rows[kind];
    peer->bases = calloc((size_t)comm.ranks, sizeof(*peer->bases));
    CHECK_RULE(peer->bases != NULL);
    peer->flags_offset = round_up(bytes > words ? bytes : words, REGION_ALIGN_BYTES);
    peer->total_bytes =
        round_up(peer->flags_offset + PEER_CHANNELS * (words + sizeof(uint64_t)), PAGE_BYTES);
    if (!peer->row->open(peer, why, why_bytes)) {
        release(peer);
        return NULL;
    }
    Stream stream = stream_create(DEVICE_CUDA);
    make_device_bases(peer, stream);
    bool good = probe(peer, stream, why, why_bytes);
    stream_destroy(stream);
    if (!good) {
        peer->row->close(peer);
        release(peer);
        return NULL;
    }
    return peer;
}

void peer_destroy(Peer *peer)
{
    if (!peer)
        return;
    peer->row->close(peer);
    release(peer);
}

void *peer_local(const Peer *peer)
{
    return peer->local;
}

void *const *peer_bases(const Peer *peer)
{
    return peer->bases;
}

void peer_barrier(Peer *peer, int channel, Stream stream)
{
    CHECK_RULE(channel >= 0 && channel < PEER_CHANNELS && stream.device == DEVICE_CUDA);
    Call call = {.op = CALL_PEER_BARRIER, .count = (uint64_t)channel};
    if (!comm_begin(peer->comm, &call, 0, stream))
        return;
    uint64_t *flags = (uint64_t *)((char *)peer->local + peer->flags_offset);
    PeerSignal signal = {
        .flags_of_rank = (uint64_t *const *)(peer->device_bases + peer->comm.ranks),
        .sequence = flags + (uint64_t)PEER_CHANNELS * (uint64_t)peer->comm.ranks,
        .channel = channel,
        .rank = peer->comm.rank,
        .ranks = peer->comm.ranks,
        .timeout_ns =
            peer->comm.link ? (uint64_t)(1e9 * peer->comm.link->stream_wait_s) : UINT64_MAX,
    };
    peer_signal_cuda(&signal, stream);
    comm_end(peer->comm, stream);
}
