// Peer memory by CUDA IPC: every rank allocates with cudaMalloc, hands out a handle over MPI, and
// maps the handles of the others (CUDA Runtime API, "Interprocess communication").
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>

#include "parallel/peer_link.h"

// Local. True on success; else the reason, and CUDA's remembered error is cleared so that nobody
// trips over it later.
static bool went_well(cudaError_t code, const char *what, char *why, size_t why_bytes)
{
    if (code == cudaSuccess)
        return true;
    cudaGetLastError();
    snprintf(why, why_bytes, "CUDA IPC: %s: %s", what, cudaGetErrorString(code));
    return false;
}

// Unmaps what was mapped, and frees the own buffer only when nobody has it mapped any more.
static void close_all(Peer *peer)
{
    CHECK_CUDA(cudaDeviceSynchronize());
    peer_meet(peer);
    for (int rank = 0; rank < peer->comm.ranks; rank++)
        if (rank != peer->comm.rank && peer->bases[rank])
            CHECK_CUDA(cudaIpcCloseMemHandle(peer->bases[rank]));
    peer_meet(peer);
    if (peer->local)
        CHECK_CUDA(cudaFree(peer->local));
}

static bool open_all(Peer *peer, char *why, size_t why_bytes)
{
    int own = peer->comm.rank;
    cudaIpcMemHandle_t mine = {0};
    bool good =
        went_well(cudaMalloc(&peer->local, peer->total_bytes), "cudaMalloc", why, why_bytes);
    good = good && went_well(cudaIpcGetMemHandle(&mine, peer->local), "cudaIpcGetMemHandle", why,
                             why_bytes);
    if (!peer_agree(peer, good, why, why_bytes)) {
        close_all(peer);
        return false;
    }
    cudaIpcMemHandle_t *handles = calloc((size_t)peer->comm.ranks, sizeof(*handles));
    CHECK_RULE(handles != NULL);
    comm_gather_host(peer->comm, &mine, handles, sizeof(mine));
    for (int rank = 0; rank < peer->comm.ranks && good; rank++)
        if (rank != own)
            good = went_well(cudaIpcOpenMemHandle(&peer->bases[rank], handles[rank],
                                                  cudaIpcMemLazyEnablePeerAccess),
                             "cudaIpcOpenMemHandle", why, why_bytes);
    free(handles);
    peer->bases[own] = peer->local;
    if (peer_agree(peer, good, why, why_bytes))
        return true;
    close_all(peer);
    return false;
}

const PeerRow peer_row_ipc = {.name = "CUDA IPC", .open = open_all, .close = close_all};
