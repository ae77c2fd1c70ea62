// Groups of ranks and their collectives. Host memory goes through MPI here; device memory through
// the table of NCCL operations in comm_nccl.c, which only builds with NCCL have. A group of one
// rank has no link and copies.
//
// MPI-3 counts are int, so anything longer than message_bytes_max travels in rounds, with derived
// datatypes whose extent is the distance between two ranks' blocks (MPI 3.1 section 4.1.7).
#include "parallel/comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness/device_operations.h"
#include "parallel/comm_link.h"
#include "parallel/ledger.h"

static const char *const BUG_FIX = "this is a bug of meshwork: please report it";
static const double STREAM_WAIT_S = 60;
static const int TAG = 1; // own communicator, messages in order: one tag is enough

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static const Stream HOST = {.device = DEVICE_CPU};

// Whether a call of this moment gets marks on its stream.
static bool marks(const CommLink *link, Stream stream)
{
    return stream.device != DEVICE_CPU && link->groups_open == 0 &&
           !device_operations(stream.device)->stream_is_capturing(stream);
}

// The call that a planted fault makes in place of another.
static void make_other_call(Comm comm, CallOp op, Stream stream)
{
    if (op == CALL_BARRIER)
        comm_maximum(comm, 0);
    else
        comm_barrier(comm, stream);
}

bool comm_begin(Comm comm, Call *call, uint64_t wire_bytes, Stream stream)
{
    CommLink *link = comm.link;
    if (!link)
        return true;
    if (!calls_enter(link->group, call)) {
        if (call->fault == CALL_FAULT_OTHER)
            make_other_call(comm, call->op, stream);
        return false;
    }
    link->wire_bytes += wire_bytes;
    if (call->fault == CALL_FAULT_TRAP && stream.device == DEVICE_CUDA && comm_trap_cuda)
        comm_trap_cuda(stream);
    link->grouped = link->groups_open > 0;
    if (marks(link, stream))
        calls_mark_begin(link->group, stream);
    return true;
}

void comm_end(Comm comm, Stream stream)
{
    if (!comm.link)
        return;
    if (marks(comm.link, stream))
        calls_mark_end(comm.link->group, stream);
    calls_leave(comm.link->group);
}

// The operations for a stream's device; NULL means MPI.
static const CommNccl *nccl_for(Comm comm, Stream stream)
{
    if (stream.device != DEVICE_CUDA)
        return NULL;
    CHECK(&comm_nccl != NULL && comm.link->nccl, EXIT_CODE_INTERNAL, BUG_FIX,
          "a CUDA stream in a group of %d ranks that was made for the CPU", comm.ranks);
    return &comm_nccl;
}

// A block of `bytes` bytes whose successor begins `stride` bytes further.
static MPI_Datatype block_type(uint64_t bytes, uint64_t stride)
{
    MPI_Datatype plain, block;
    CHECK_MPI(MPI_Type_contiguous((int)bytes, MPI_BYTE, &plain));
    CHECK_MPI(MPI_Type_create_resized(plain, 0, (MPI_Aint)stride, &block));
    CHECK_MPI(MPI_Type_commit(&block));
    CHECK_MPI(MPI_Type_free(&plain));
    return block;
}

bool comm_check_places(const CommPlace *places, int ranks, Error *error)
{
    for (int rank = 0; rank < ranks; rank++) {
        const CommPlace *place = &places[rank];
        int on_host = 0, twin = -1;
        for (int other = 0; other < ranks; other++) {
            if (strcmp(places[other].host, place->host) != 0)
                continue;
            on_host++;
            if (other > rank && twin < 0 && place->uuid[0] &&
                strcmp(places[other].uuid, place->uuid) == 0)
                twin = other;
        }
        if (place->visible == 0)
            return error_set(
                error, EXIT_CODE_HARDWARE,
                "give the job a GPU per rank (srun --gpus-per-node), or use --device cpu",
                "rank %d on host %s sees no GPU", rank, place->host);
        if (on_host > place->visible && (place->visible > 1 || place->device_index >= 1))
            return error_set(error, EXIT_CODE_HARDWARE,
                             "start at most as many ranks per host as it has GPUs, or use --device "
                             "cpu",
                             "host %s runs %d ranks, but rank %d sees only %d GPU%s", place->host,
                             on_host, rank, place->visible, place->visible == 1 ? "" : "s");
        if (twin >= 0)
            return error_set(error, EXIT_CODE_HARDWARE,
                             "give each rank its own GPU (do not set CUDA_VISIBLE_DEVICES to one "
                             "GPU for all), or use --device cpu",
                             "ranks %d and %d on host %s share one GPU (%s): %d ranks there, %d "
                             "visible GPU%s",
                             rank, twin, place->host, place->uuid, on_host, place->visible,
                             place->visible == 1 ? "" : "s");
    }
    return true;
}

static CommLink *link_create(MPI_Comm mpi, int ranks, CallGroup *group, double stream_wait_s)
{
    CommLink *link = calloc(1, sizeof(*link));
    CHECK_RULE(link != NULL);
    link->requests = calloc(2 * (size_t)ranks, sizeof(MPI_Request));
    CHECK_RULE(link->requests != NULL);
    link->mpi = mpi;
    link->group = group;
    link->stream_wait_s = stream_wait_s;
    link->message_bytes_max = (uint64_t)1 << 30;
    // Errors come back as codes, so that they leave with our message and exit code instead of
    // MPI's.
    CHECK_MPI(MPI_Comm_set_errhandler(mpi, MPI_ERRORS_RETURN));
    return link;
}

static void start_nccl(Comm comm, const Run *run, int device_index)
{
    CHECK_ALL(&comm_nccl != NULL, EXIT_CODE_HARDWARE,
              "install NCCL and build again, or use --device cpu",
              "%d ranks on GPUs need NCCL, and this build has none", comm.ranks);
    CommPlace mine = {.device_index = device_index, .visible = device_count(DEVICE_CUDA, NULL, 0)};
    memcpy(mine.host, run->host, sizeof(mine.host));
    if (device_index < mine.visible)
        memcpy(mine.uuid, device_info(DEVICE_CUDA, device_index).uuid, sizeof(mine.uuid));
    CommPlace *places = calloc((size_t)comm.ranks, sizeof(*places));
    CHECK_RULE(places != NULL);
    comm_gather_host(comm, &mine, places, sizeof(mine));
    Error error = {0};
    comm_check_places(places, comm.ranks, &error);
    CHECK_ALL(error.exit_code == 0, error.exit_code, error.fix, "%s", error.what);
    free(places);

    device_select(DEVICE_CUDA, device_index);
    char id[COMM_NCCL_ID_BYTES] = {0};
    if (comm.rank == 0)
        comm_nccl.make_id(id);
    comm_broadcast(comm, id, COMM_NCCL_ID_BYTES, 0, HOST);
    Call call = {.op = CALL_SPLIT};
    comm_begin(comm, &call, 0, HOST);
    comm.link->nccl = comm_nccl.create(id, comm.rank, comm.ranks);
    comm_end(comm, HOST);
    comm.link->nccl_token = device_allocate(DEVICE_CUDA, sizeof(int32_t));
    calls_use_device(comm.link->group, DEVICE_CUDA, device_index);
}

Comm comm_create_world(const Run *run, DeviceKind kind, int device_index)
{
    Comm comm = {.rank = run->rank, .ranks = run->ranks};
    if (comm.ranks == 1)
        return comm;
    MPI_Comm mpi;
    Call call = {.op = CALL_SPLIT};
    calls_enter(run->job, &call);
    CHECK_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &mpi));
    calls_leave(run->job);
    // The watchdog sees more than a kernel that waits, so it is given the time to speak first.
    double stream_wait_s =
        run->job ? LEDGER_PATIENCE * run->options.watchdog_s + STREAM_WAIT_S : STREAM_WAIT_S;
    CallGroup *group = calls_split(run->job, 0, comm.rank, comm.ranks);
    comm.link = link_create(mpi, comm.ranks, group, stream_wait_s);
    comm_name(comm, "world");
    if (kind == DEVICE_CUDA)
        start_nccl(comm, run, device_index);
    return comm;
}

Comm comm_split(Comm parent, int colour, int key)
{
    CHECK_RULE(colour >= 0);
    if (!parent.link)
        return parent;
    MPI_Comm mpi;
    Call call = {.op = CALL_SPLIT};
    comm_begin(parent, &call, 0, HOST);
    CHECK_MPI(MPI_Comm_split(parent.link->mpi, colour, key, &mpi));
    Comm comm = {0};
    CHECK_MPI(MPI_Comm_rank(mpi, &comm.rank));
    CHECK_MPI(MPI_Comm_size(mpi, &comm.ranks));
    void *nccl = NULL;
    if (parent.link->nccl)
        nccl = comm_nccl.split(parent.link->nccl, comm.ranks == 1 ? -1 : colour, key);
    comm_end(parent, HOST);
    CallGroup *group = calls_split(parent.link->group, colour, comm.rank, comm.ranks);
    if (comm.ranks == 1) {
        CHECK_MPI(MPI_Comm_free(&mpi));
        return comm;
    }
    comm.link = link_create(mpi, comm.ranks, group, parent.link->stream_wait_s);
    comm.link->nccl = nccl;
    if (nccl)
        comm.link->nccl_token = device_allocate(DEVICE_CUDA, sizeof(int32_t));
    return comm;
}

void comm_name(Comm comm, const char *name)
{
    if (comm.link)
        calls_name(comm.link->group, name);
}

void comm_destroy(Comm *comm)
{
    CommLink *link = comm->link;
    Call call = {.op = CALL_CLOSE};
    if (!link)
        return;
    comm_begin(*comm, &call, 0, HOST);
    if (link->nccl) {
        comm_nccl.destroy(link->nccl);
        device_free(DEVICE_CUDA, link->nccl_token);
    }
    CHECK_MPI(MPI_Comm_free(&link->mpi));
    comm_end(*comm, HOST);
    comm->link = NULL;
    calls_close(link->group);
    free(link->requests);
    free(link);
}

void comm_versions(char *text, size_t bytes)
{
    char library[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length = 0;
    MPI_Get_library_version(library, &length);
    library[strcspn(library, ",\n")] = 0;
    char nccl[64] = "none";
    if (&comm_nccl != NULL)
        comm_nccl.version(nccl, sizeof(nccl));
    snprintf(text, bytes, "MPI %s, NCCL %s", library, nccl);
}

uint64_t comm_take_wire_bytes(Comm comm)
{
    if (!comm.link)
        return 0;
    uint64_t bytes = comm.link->wire_bytes;
    comm.link->wire_bytes = 0;
    return bytes;
}

static void copy_unless_same(void *to, const void *from, uint64_t bytes, Stream stream)
{
    if (to != from && bytes > 0)
        device_copy(to, from, bytes, stream);
}

static void mpi_all_gather(Comm comm, const char *mine, char *all, uint64_t bytes)
{
    CommLink *link = comm.link;
    bool in_place = mine == all + (uint64_t)comm.rank * bytes;
    for (uint64_t done = 0; done < bytes;) {
        uint64_t now = smaller(bytes - done, link->message_bytes_max);
        MPI_Datatype block = block_type(now, bytes);
        const void *send = in_place ? MPI_IN_PLACE : mine + done;
        CHECK_MPI(MPI_Allgather(send, (int)now, MPI_BYTE, all + done, 1, block, link->mpi));
        CHECK_MPI(MPI_Type_free(&block));
        done += now;
    }
}

void comm_all_gather(Comm comm, const void *mine, void *all, uint64_t bytes, Stream stream)
{
    if (!comm.link) {
        copy_unless_same(all, mine, bytes, stream);
        return;
    }
    Call call = {.op = CALL_ALL_GATHER, .dtype = DTYPE_U8, .count = bytes};
    if (!comm_begin(comm, &call, bytes * (uint64_t)(comm.ranks - 1), stream))
        return;
    const CommNccl *nccl = nccl_for(comm, stream);
    if (nccl)
        nccl->all_gather(comm.link->nccl, mine, all, call.count, stream);
    else
        mpi_all_gather(comm, mine, all, call.count);
    comm_end(comm, stream);
}

void comm_gather_host(Comm comm, const void *mine, void *all, uint64_t bytes)
{
    if (!comm.link) {
        memcpy(all, mine, bytes);
        return;
    }
    Call call = {.op = CALL_ALL_GATHER, .dtype = DTYPE_U8, .count = bytes};
    if (!comm_begin(comm, &call, bytes * (uint64_t)(comm.ranks - 1), HOST))
        return;
    mpi_all_gather(comm, mine, all, call.count);
    comm_end(comm, HOST);
}

static void mpi_all_to_all(CommLink *link, const char *send, char *receive, uint64_t bytes)
{
    for (uint64_t done = 0; done < bytes;) {
        uint64_t now = smaller(bytes - done, link->message_bytes_max);
        MPI_Datatype block = block_type(now, bytes);
        CHECK_MPI(MPI_Alltoall(send + done, 1, block, receive + done, 1, block, link->mpi));
        CHECK_MPI(MPI_Type_free(&block));
        done += now;
    }
}

void comm_all_to_all(Comm comm, const void *send, void *receive, uint64_t bytes, Stream stream)
{
    if (!comm.link) {
        copy_unless_same(receive, send, bytes, stream);
        return;
    }
    Call call = {.op = CALL_ALL_TO_ALL, .dtype = DTYPE_U8, .count = bytes};
    if (!comm_begin(comm, &call, bytes * (uint64_t)(comm.ranks - 1), stream))
        return;
    const CommNccl *nccl = nccl_for(comm, stream);
    if (nccl)
        nccl->all_to_all(comm.link->nccl, comm, send, receive, call.count, stream);
    else
        mpi_all_to_all(comm.link, send, receive, call.count);
    comm_end(comm, stream);
}

void comm_group_begin(Comm comm, Stream stream)
{
    const CommNccl *nccl = comm.link ? nccl_for(comm, stream) : NULL;
    if (!nccl)
        return;
    comm.link->groups_open++;
    nccl->group_begin();
}

// Nothing of the group is launched before its outermost end, so there stands the mark, which is
// that of the last call.
void comm_group_end(Comm comm, Stream stream)
{
    const CommNccl *nccl = comm.link ? nccl_for(comm, stream) : NULL;
    if (!nccl)
        return;
    CommLink *link = comm.link;
    bool marked = --link->groups_open == 0 && link->grouped && marks(link, stream);
    if (marked)
        calls_mark_begin(link->group, stream);
    nccl->group_end();
    if (marked)
        calls_mark_end(link->group, stream);
    if (link->groups_open == 0)
        link->grouped = false;
}

// Pairwise messages instead of MPI_Alltoallv, whose displacements are int: worst-case buffers put a
// segment far beyond 2^31 bytes even when little travels. Both sides of a pair know its size, so
// both count the same rounds.
static void mpi_all_to_all_v(Comm comm, const CommSplit *split, const char *from, char *to,
                             uint64_t longest)
{
    CommLink *link = comm.link;
    const uint64_t *send_bytes = split->send_bytes, *receive_bytes = split->receive_bytes;
    for (uint64_t done = 0; done < longest; done += link->message_bytes_max) {
        int open = 0;
        // Starting with the next rank spreads the first messages over all pairs.
        for (int step = 1; step < comm.ranks; step++) {
            int source = (comm.rank - step + comm.ranks) % comm.ranks;
            int target = (comm.rank + step) % comm.ranks;
            if (done < receive_bytes[source])
                CHECK_MPI(
                    MPI_Irecv(to + split->receive_offsets[source] + done,
                              (int)smaller(receive_bytes[source] - done, link->message_bytes_max),
                              MPI_BYTE, source, TAG, link->mpi, &link->requests[open++]));
            if (done < send_bytes[target])
                CHECK_MPI(
                    MPI_Isend(from + split->send_offsets[target] + done,
                              (int)smaller(send_bytes[target] - done, link->message_bytes_max),
                              MPI_BYTE, target, TAG, link->mpi, &link->requests[open++]));
        }
        CHECK_MPI(MPI_Waitall(open, link->requests, MPI_STATUSES_IGNORE));
    }
}

// For a planted fault.
static uint64_t *halve(const uint64_t *bytes, int ranks)
{
    uint64_t *halves = malloc((size_t)ranks * sizeof(*halves));
    CHECK_RULE(halves != NULL);
    for (int rank = 0; rank < ranks; rank++)
        halves[rank] = bytes[rank] / 2;
    return halves;
}

void comm_all_to_all_v(Comm comm, const CommSplit *split, const void *send, void *receive,
                       Stream stream)
{
    int self = comm.rank;
    const uint64_t *send_bytes = split->send_bytes, *receive_bytes = split->receive_bytes;
    CHECK_RULE(send_bytes[self] == receive_bytes[self]);
    if (send_bytes[self] > 0)
        device_copy((char *)receive + split->receive_offsets[self],
                    (const char *)send + split->send_offsets[self], send_bytes[self], stream);
    if (!comm.link)
        return;
    Call call = {.op = CALL_ALL_TO_ALL_V, .dtype = DTYPE_U8};
    uint64_t longest = 0, sent = 0;
    for (int rank = 0; rank < comm.ranks; rank++) {
        if (rank == self)
            continue;
        call_piece(&call, self, rank, send_bytes[rank], receive_bytes[rank]);
        sent += send_bytes[rank];
        longest = send_bytes[rank] > longest ? send_bytes[rank] : longest;
        longest = receive_bytes[rank] > longest ? receive_bytes[rank] : longest;
    }
    if (!comm_begin(comm, &call, sent, stream))
        return;
    CommSplit used = *split;
    uint64_t *halves = call.fault == CALL_FAULT_COUNT ? halve(send_bytes, comm.ranks) : NULL;
    if (halves)
        used.send_bytes = halves;
    const CommNccl *nccl = nccl_for(comm, stream);
    if (nccl)
        nccl->all_to_all_v(comm.link->nccl, comm, &used, send, receive, stream);
    else
        mpi_all_to_all_v(comm, &used, send, receive, longest);
    free(halves);
    comm_end(comm, stream);
}

static MPI_Datatype mpi_type_of(DType dtype)
{
    const struct {
        DType dtype;
        MPI_Datatype type;
    } rows[] = {{DTYPE_F32, MPI_FLOAT},
                {DTYPE_F64, MPI_DOUBLE},
                {DTYPE_I32, MPI_INT32_T},
                {DTYPE_I64, MPI_INT64_T}};
    for (size_t row = 0; row < COUNT_OF(rows); row++)
        if (rows[row].dtype == dtype)
            return rows[row].type;
    return MPI_DATATYPE_NULL;
}

static void divide(void *values, int64_t count, DType dtype, int divisor)
{
    for (int64_t i = 0; i < count; i++) {
        if (dtype == DTYPE_F32)
            ((float *)values)[i] /= (float)divisor;
        else
            ((double *)values)[i] /= (double)divisor;
    }
}

static void mpi_all_reduce(Comm comm, const char *in, char *out, int64_t count, DType dtype,
                           CommOp op)
{
    const MPI_Op mpi_op[] = {[COMM_SUM] = MPI_SUM,
                             [COMM_AVG] = MPI_SUM,
                             [COMM_PRODUCT] = MPI_PROD,
                             [COMM_MAX] = MPI_MAX,
                             [COMM_MIN] = MPI_MIN};
    CommLink *link = comm.link;
    MPI_Datatype type = mpi_type_of(dtype);
    uint64_t size = dtype_bytes(dtype, 1), bytes = size * (uint64_t)count;
    uint64_t step = link->message_bytes_max / size * size;
    for (uint64_t done = 0; done < bytes; done += step) {
        int now = (int)(smaller(bytes - done, step) / size);
        const void *source = in == out ? MPI_IN_PLACE : in + done;
        CHECK_MPI(MPI_Allreduce(source, out + done, now, type, mpi_op[op], link->mpi));
    }
    if (op == COMM_AVG)
        divide(out, count, dtype, comm.ranks);
}

void comm_all_reduce(Comm comm, const void *in, void *out, int64_t count, DType dtype, CommOp op,
                     Stream stream)
{
    bool on_cuda = stream.device == DEVICE_CUDA;
    bool is_integer = dtype == DTYPE_I32 || dtype == DTYPE_I64;
    CHECK(mpi_type_of(dtype) != MPI_DATATYPE_NULL || (on_cuda && dtype == DTYPE_BF16),
          EXIT_CODE_INTERNAL, BUG_FIX, "no all-reduce of %s on %s", dtype_row(dtype)->name,
          device_kind_name(stream.device));
    CHECK(op != COMM_AVG || !is_integer, EXIT_CODE_INTERNAL, BUG_FIX, "no average of %s",
          dtype_row(dtype)->name);
    uint64_t bytes = dtype_bytes(dtype, (uint64_t)count);
    if (!comm.link) {
        copy_unless_same(out, in, bytes, stream);
        return;
    }
    // A ring sends every byte but its own share twice.
    Call call = {
        .op = CALL_ALL_REDUCE, .dtype = dtype, .count = (uint64_t)count, .detail = (uint8_t)op};
    uint64_t wire_bytes = 2 * bytes / (uint64_t)comm.ranks * (uint64_t)(comm.ranks - 1);
    if (!comm_begin(comm, &call, wire_bytes, stream))
        return;
    const CommNccl *nccl = nccl_for(comm, stream);
    if (nccl)
        nccl->all_reduce(comm.link->nccl, in, out, (int64_t)call.count, call.dtype, op, stream);
    else
        mpi_all_reduce(comm, in, out, (int64_t)call.count, call.dtype, op);
    comm_end(comm, stream);
}

static void mpi_broadcast(CommLink *link, char *data, uint64_t bytes, int root)
{
    for (uint64_t done = 0; done < bytes; done += link->message_bytes_max)
        CHECK_MPI(MPI_Bcast(data + done, (int)smaller(bytes - done, link->message_bytes_max),
                            MPI_BYTE, root, link->mpi));
}

void comm_broadcast(Comm comm, void *data, uint64_t bytes, int root, Stream stream)
{
    CHECK_RULE(root >= 0 && root < comm.ranks);
    if (!comm.link)
        return;
    Call call = {.op = CALL_BROADCAST, .dtype = DTYPE_U8, .count = bytes, .detail = (uint8_t)root};
    uint64_t wire_bytes = comm.rank == root ? bytes * (uint64_t)(comm.ranks - 1) : 0;
    if (!comm_begin(comm, &call, wire_bytes, stream))
        return;
    const CommNccl *nccl = nccl_for(comm, stream);
    if (nccl)
        nccl->broadcast(comm.link->nccl, data, call.count, root, stream);
    else
        mpi_broadcast(comm.link, data, call.count, root);
    comm_end(comm, stream);
}

void comm_barrier(Comm comm, Stream stream)
{
    Call call = {.op = CALL_BARRIER};
    if (!comm.link || !comm_begin(comm, &call, 0, stream))
        return;
    CommLink *link = comm.link;
    const CommNccl *nccl = nccl_for(comm, stream);
    if (nccl)
        nccl->all_reduce(link->nccl, link->nccl_token, link->nccl_token, 1, DTYPE_I32, COMM_MAX,
                         stream);
    else
        CHECK_MPI(MPI_Barrier(link->mpi));
    comm_end(comm, stream);
}

void comm_replay(Comm comm, const Graph *graph, Stream stream)
{
    Call call = {.op = CALL_REPLAY};
    if (!comm_begin(comm, &call, 0, stream))
        return;
    graph_launch(graph, stream);
    comm_end(comm, stream);
}

int64_t comm_maximum(Comm comm, int64_t value)
{
    Call call = {.op = CALL_MAXIMUM, .dtype = DTYPE_I64, .count = 1};
    if (!comm.link || !comm_begin(comm, &call, 2 * sizeof(value), HOST))
        return value;
    CHECK_MPI(
        MPI_Allreduce(MPI_IN_PLACE, &value, (int)call.count, MPI_INT64_T, MPI_MAX, comm.link->mpi));
    comm_end(comm, HOST);
    return value;
}
