// Reads the ranks' addresses out of an NCCL window; only device code can (nccl_device.h, NCCL 2.28
// and later).
#include <nccl.h>

#include "parallel/peer_kernels.h"

#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 0)

#include <nccl_device.h>

// Thread r asks for rank r; the last one for this rank's own address by the call that needs no
// rank.
static __global__ void read_addresses(ncclWindow_t window, int ranks, void **addresses)
{
    int rank = threadIdx.x;
    addresses[rank] =
        rank < ranks ? ncclGetLsaPointer(window, 0, rank) : ncclGetLocalPointer(window, 0);
}

void peer_window_addresses_cuda(void *window, int ranks, void **addresses, Stream stream)
{
    read_addresses<<<1, ranks + 1, 0, (cudaStream_t)stream.handle>>>((ncclWindow_t)window, ranks,
                                                                     addresses);
    cudaError_t code = cudaGetLastError();
    CHECK(code == cudaSuccess, EXIT_CODE_HARDWARE, "run `meshwork doctor`",
          "reading the addresses of an NCCL window failed: %s", cudaGetErrorString(code));
}

#endif
