// The NCCL operations behind comm.h, for device memory. All are enqueued on the caller's stream and
// can be captured.
//
// NCCL's environment (NCCL_NVLS_ENABLE, NCCL_DEBUG ...) is the user's: nothing is set here, and
// nothing here asks for multicast. Blocking communicators: set-up calls return when done.
#include <cuda_runtime.h>
#include <nccl.h>
#include <stdio.h>
#include <string.h>

#include "parallel/comm_link.h"

_Static_assert(sizeof(ncclUniqueId) == COMM_NCCL_ID_BYTES, "size of NCCL's id");

static void make_id(void *id)
{
    ncclUniqueId value;
    CHECK_NCCL(ncclGetUniqueId(&value));
    memcpy(id, &value, sizeof(value));
}

static void *create(const void *id, int rank, int ranks)
{
    ncclUniqueId value;
    memcpy(&value, id, sizeof(value));
    ncclComm_t comm = NULL;
    CHECK_NCCL(ncclCommInitRank(&comm, ranks, value, rank));
    return comm;
}

static void *split(void *nccl, int colour, int key)
{
    ncclComm_t comm = NULL;
    CHECK_NCCL(ncclCommSplit(nccl, colour < 0 ? NCCL_SPLIT_NOCOLOR : colour, key, &comm, NULL));
    return comm;
}

static void destroy(void *nccl)
{
    CHECK_NCCL(ncclCommFinalize(nccl));
    CHECK_NCCL(ncclCommDestroy(nccl));
}

static void version(char *text, size_t bytes)
{
    int code = 0;
    CHECK_NCCL(ncclGetVersion(&code));
    snprintf(text, bytes, "%d.%d.%d", code / 10000, code / 100 % 100, code % 100);
}

static void group_begin(void)
{
    CHECK_NCCL(ncclGroupStart());
}

static void group_end(void)
{
    CHECK_NCCL(ncclGroupEnd());
}

static void all_gather(void *nccl, const void *mine, void *all, uint64_t bytes, Stream stream)
{
    CHECK_NCCL(ncclAllGather(mine, all, bytes, ncclInt8, nccl, stream.handle));
}

// One message to a rank and one from another, within a group. Where nothing travels both sides know
// it, and neither calls.
static void exchange_pair(void *nccl, const char *from, uint64_t send_bytes, int target, char *to,
                          uint64_t receive_bytes, int source, Stream stream)
{
    if (send_bytes > 0)
        CHECK_NCCL(ncclSend(from, send_bytes, ncclInt8, target, nccl, stream.handle));
    if (receive_bytes > 0)
        CHECK_NCCL(ncclRecv(to, receive_bytes, ncclInt8, source, nccl, stream.handle));
}

// Own block by a plain copy: it needs no link.
static void all_to_all(void *nccl, Comm comm, const void *send, void *receive, uint64_t bytes,
                       Stream stream)
{
    if (bytes == 0)
        return;
    const char *from = send;
    char *to = receive;
    uint64_t own = (uint64_t)comm.rank * bytes;
    device_copy(to + own, from + own, bytes, stream);
    group_begin();
    for (int step = 1; step < comm.ranks; step++) {
        int target = (comm.rank + step) % comm.ranks;
        int source = (comm.rank - step + comm.ranks) % comm.ranks;
        exchange_pair(nccl, from + (uint64_t)target * bytes, bytes, target,
                      to + (uint64_t)source * bytes, bytes, source, stream);
    }
    group_end();
}

static void all_to_all_v(void *nccl, Comm comm, const CommSplit *split, const void *send,
                         void *receive, Stream stream)
{
    const char *from = send;
    char *to = receive;
    group_begin();
    for (int step = 1; step < comm.ranks; step++) {
        int target = (comm.rank + step) % comm.ranks;
        int source = (comm.rank - step + comm.ranks) % comm.ranks;
        exchange_pair(nccl, from + split->send_offsets[target], split->send_bytes[target], target,
                      to + split->receive_offsets[source], split->receive_bytes[source], source,
                      stream);
    }
    group_end();
}

static ncclDataType_t nccl_type_of(DType dtype)
{
    static const struct {
        DType dtype;
        ncclDataType_t type;
    } rows[] = {{DTYPE_F32, ncclFloat32},
                {DTYPE_BF16, ncclBfloat16},
                {DTYPE_F64, ncclFloat64},
                {DTYPE_I32, ncclInt32},
                {DTYPE_I64, ncclInt64}};
    size_t row = 0;
    while (row < COUNT_OF(rows) && rows[row].dtype != dtype)
        row++;
    CHECK(row < COUNT_OF(rows), EXIT_CODE_INTERNAL, "this is a bug of meshwork: please report it",
          "no NCCL type for %s", dtype_row(dtype)->name);
    return rows[row].type;
}

static void all_reduce(void *nccl, const void *in, void *out, int64_t count, DType dtype, CommOp op,
                       Stream stream)
{
    const ncclRedOp_t nccl_op[] = {[COMM_SUM] = ncclSum,
                                   [COMM_AVG] = ncclAvg,
                                   [COMM_PRODUCT] = ncclProd,
                                   [COMM_MAX] = ncclMax,
                                   [COMM_MIN] = ncclMin};
    CHECK_NCCL(ncclAllReduce(in, out, (size_t)count, nccl_type_of(dtype), nccl_op[op], nccl,
                             stream.handle));
}

static void broadcast(void *nccl, void *data, uint64_t bytes, int root, Stream stream)
{
    CHECK_NCCL(ncclBroadcast(data, data, bytes, ncclInt8, root, nccl, stream.handle));
}

const CommNccl comm_nccl = {
    .make_id = make_id,
    .create = create,
    .split = split,
    .destroy = destroy,
    .version = version,
    .group_begin = group_begin,
    .group_end = group_end,
    .all_gather = all_gather,
    .all_to_all = all_to_all,
    .all_to_all_v = all_to_all_v,
    .all_reduce = all_reduce,
    .broadcast = broadcast,
};
