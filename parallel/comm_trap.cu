// A kernel that ends in a trap, for tests of the watchdog (--fault trap@RANK:WHERE).
#include "parallel/comm_link.h"

static __global__ void trap()
{
    __trap();
}

void comm_trap_cuda(Stream stream)
{
    trap<<<1, 1, 0, (cudaStream_t)stream.handle>>>();
}
