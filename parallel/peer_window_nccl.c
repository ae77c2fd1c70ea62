// Peer memory by an NCCL window: memory from ncclMemAlloc, registered as symmetric, whose addresses
// on every rank a kernel reads from the window (NCCL device API, 2.28 and later). No multicast is
// asked for.
#include <cuda_runtime.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>

#include "parallel/comm_link.h"
#include "parallel/peer_kernels.h"
#include "parallel/peer_link.h"

#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 0)

static bool went_well(ncclResult_t code, const char *what, char *why, size_t why_bytes)
{
    if (code != ncclSuccess)
        snprintf(why, why_bytes, "NCCL window: %s: %s", what, ncclGetErrorString(code));
    return code == ncclSuccess;
}

static const Stream HOST = {.device = DEVICE_CPU};

// Collective(group).
static ncclResult_t register_window(Peer *peer)
{
    ncclWindow_t window = NULL;
    Call call = {.op = CALL_WINDOW, .count = peer->total_bytes};
    comm_begin(peer->comm, &call, 0, HOST);
    ncclResult_t code = ncclCommWindowRegister(peer->comm.link->nccl, peer->local,
                                               peer->total_bytes, &window, NCCL_WIN_COLL_SYMMETRIC);
    comm_end(peer->comm, HOST);
    peer->window = window;
    return code;
}

static void deregister_window(Peer *peer)
{
    Call call = {.op = CALL_WINDOW};
    comm_begin(peer->comm, &call, 0, HOST);
    CHECK_NCCL(ncclCommWindowDeregister(peer->comm.link->nccl, peer->window));
    comm_end(peer->comm, HOST);
}

static void close_all(Peer *peer)
{
    CHECK_CUDA(cudaDeviceSynchronize());
    peer_meet(peer);
    if (peer->window)
        deregister_window(peer);
    peer_meet(peer);
    if (peer->local)
        CHECK_NCCL(ncclMemFree(peer->local));
}

// Reads the addresses. All ranks are within reach of each other's loads and stores exactly when
// each one's own address is found under its rank in the group: smaller teams would number their
// ranks from 0 again.
static bool read_addresses(Peer *peer, char *why, size_t why_bytes)
{
    int ranks = peer->comm.ranks, own = peer->comm.rank;
    uint64_t bytes = (uint64_t)(ranks + 1) * sizeof(void *);
    void **found = calloc((size_t)ranks + 1, sizeof(*found));
    CHECK_RULE(found != NULL);
    void **on_device = device_allocate(DEVICE_CUDA, bytes);
    Stream stream = stream_create(DEVICE_CUDA);
    peer_window_addresses_cuda(peer->window, ranks, on_device, stream);
    device_copy(found, on_device, bytes, stream);
    stream_wait(stream);
    stream_destroy(stream);
    device_free(DEVICE_CUDA, on_device);
    for (int rank = 0; rank < ranks; rank++)
        peer->bases[rank] = rank == own ? peer->local : found[rank];
    bool good = found[own] && found[own] == found[ranks];
    free(found);
    if (!good)
        snprintf(why, why_bytes, "NCCL window: not all ranks can reach each other's memory");
    return good;
}

static bool open_all(Peer *peer, char *why, size_t why_bytes)
{
    void *nccl = peer->comm.link ? peer->comm.link->nccl : NULL;
    bool good = nccl && peer_window_addresses_cuda;
    if (!good)
        snprintf(why, why_bytes, "NCCL window: this group has no NCCL communicator");
    good = good &&
           went_well(ncclMemAlloc(&peer->local, peer->total_bytes), "ncclMemAlloc", why, why_bytes);
    if (peer_agree(peer, good, why, why_bytes)) {
        good = went_well(register_window(peer), "ncclCommWindowRegister", why, why_bytes);
        if (good && !peer->window) {
            good = false;
            snprintf(why, why_bytes,
                     "NCCL window: registration took no effect (no peer access between these GPUs, "
                     "or NCCL_WIN_ENABLE=0)");
        }
        if (peer_agree(peer, good, why, why_bytes)) {
            CHECK_CUDA(cudaDeviceSynchronize());
            good = read_addresses(peer, why, why_bytes);
            if (peer_agree(peer, good, why, why_bytes))
                return true;
        }
    }
    close_all(peer);
    return false;
}

#else

static void close_all(Peer *peer)
{
    (void)peer;
}

static bool open_all(Peer *peer, char *why, size_t why_bytes)
{
    (void)peer;
    snprintf(why, why_bytes, "NCCL window: built with NCCL %d.%d, 2.28 or later is needed",
             NCCL_MAJOR, NCCL_MINOR);
    return false;
}

#endif

const PeerRow peer_row_window = {.name = "NCCL window", .open = open_all, .close = close_all};
