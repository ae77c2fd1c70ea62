// The device side of peer memory: the barrier that publishes data, and the probe of set-up.
//
// Why data pushed by EARLIER kernels of the stream is visible to a peer once the barrier has
// returned there: (1) the barrier kernel starts after those kernels have ended, so their stores
// happen before it; (2) the system-wide fence and the release store order them before the flag for
// every observer; (3) the peer's thread reads the flag with acquire at system scope, so all that
// was released before it is visible to that thread; (4) its kernel ends, and the kernels that
// follow on the peer's stream start after it, with first-level caches that hold nothing older. The
// same chain, read from the other end, protects a buffer from being overwritten while it is read: a
// rank signals only after its earlier kernels, the readers, have ended.
//
// Flags are sequence numbers that only grow, from a counter in device memory that the kernel itself
// advances: a replayed graph takes the next numbers, and a flag left over from an earlier round
// never satisfies a later one. A rank can be at most one round ahead of another, which the >=
// allows for.
//
// One block; thread p signals rank p and waits for rank p. Limit: one NVLink round trip, about a
// microsecond.
#include <cstdio>

#include "parallel/peer_kernels.h"

static __device__ __forceinline__ void store_release(uint64_t *to, uint64_t value)
{
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}

static __device__ __forceinline__ uint64_t load_acquire(const uint64_t *from)
{
    uint64_t value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
    return value;
}

static __device__ __forceinline__ uint64_t now_ns()
{
    uint64_t value;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(value));
    return value;
}

static __global__ void signal_and_wait(PeerSignal args)
{
    __shared__ uint64_t round;
    if (threadIdx.x == 0) {
        round = args.sequence[args.channel] + 1;
        args.sequence[args.channel] = round;
    }
    __syncthreads();
    int peer = threadIdx.x;
    size_t channel_words = (size_t)args.channel * args.ranks;
    __threadfence_system();
    store_release(args.flags_of_rank[peer] + channel_words + args.rank, round);
    const uint64_t *flag = args.flags_of_rank[args.rank] + channel_words + peer;
    uint64_t begin = now_ns(), seen = load_acquire(flag);
    while (seen < round) {
        if (now_ns() - begin > args.timeout_ns) {
            printf(
                "meshwork: error: rank %d of the group waited %llu s for rank %d at a barrier of "
                "peer memory (channel %d, round %llu; it has come to round %llu)\n",
                args.rank, (unsigned long long)(args.timeout_ns / 1000000000), peer, args.channel,
                (unsigned long long)round, (unsigned long long)seen);
            __trap();
        }
        __nanosleep(32);
        seen = load_acquire(flag);
    }
    __threadfence_system();
}

static __global__ void put(uint64_t *const *to, int rank, uint64_t value)
{
    store_release(to[threadIdx.x] + rank, value + threadIdx.x);
}

static void check_launch(const char *what)
{
    cudaError_t code = cudaGetLastError();
    CHECK(code == cudaSuccess, EXIT_CODE_HARDWARE, "run `meshwork doctor`", "%s failed: %s", what,
          cudaGetErrorString(code));
}

void peer_signal_cuda(const PeerSignal *args, Stream stream)
{
    signal_and_wait<<<1, args->ranks, 0, (cudaStream_t)stream.handle>>>(*args);
    check_launch("the barrier of peer memory");
}

void peer_put_cuda(uint64_t *const *to, int rank, int ranks, uint64_t value, Stream stream)
{
    put<<<1, ranks, 0, (cudaStream_t)stream.handle>>>(to, rank, value);
    check_launch("the probe of peer memory");
}
