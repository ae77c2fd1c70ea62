// ep.h -- expert parallelism: tokens travel to the ranks that hold their experts, results travel
// home.
//
// Device-first: counts, offsets and row maps live in device memory, buffers are sized for the worst
// case when the Ep is created, and neither dispatch nor combine waits on the host, so a whole step
// can be captured in a CUDA graph. Dropless. A token travels once per destination rank. On the CPU
// the same kernels run and MPI carries the rows.
//
// Transports, one table row each:
//   local   a group of one rank: nothing travels, expert rows are gathered from x itself
//   window  rows are stored straight into the peer's NCCL window
//   ipc     the same through CUDA IPC handles
//   nccl    packed locally, then a fixed-size exchange: the path between hosts
//   mpi     packed locally, then exchanged with the real counts (comm_all_to_all_v): the CPU
#pragma once

#include "kernels/moe_combine.h"
#include "kernels/moe_plan.h"
#include "parallel/comm.h"

typedef enum EpTransport {
    EP_AUTO, // CUDA: window, else ipc, else nccl; CPU: mpi
    EP_WINDOW,
    EP_IPC,
    EP_NCCL,
    EP_MPI,
    EP_LOCAL,
    EP_TRANSPORTS,
} EpTransport;

typedef struct EpSettings {
    Comm comm; // the ranks over which the experts are divided
    int experts, top_k;
    int64_t hidden, tokens; // tokens of this rank; may differ between ranks, may be 0
    DType dtype;
    int align;  // rows per expert padded to a multiple
    bool exact; // one row per slot comes home; else one per (token, rank)
    EpTransport transport;
    Arena *arena; // device memory for everything but peer buffers
    DeviceKind device;
} EpSettings;

typedef struct Ep Ep;

// What the experts of this rank work on. Pointers stay the same from ep_create to ep_destroy; the
// values behind them are those of the last dispatch.
typedef struct EpRows {
    MoeShape shape;
    int experts_local;                       // this rank's experts, may be 0
    int first_expert;                        // global index of the first
    int64_t expert_rows_max;                 // worst case, padding included
    const int32_t *group_first, *group_rows; // [experts_local]
    const int32_t *rows_total;               // [1]
    // [expert_rows_max]: index into x_rows and dy_rows, -1 = padding; routing weight
    const int32_t *row_of_expert_row;
    const float *weight_of_expert_row;
    // Rows received by the forward and the backward dispatch, [*, hidden]. Local transport: what
    // the last ep_dispatch and ep_dispatch_back were given, read in place.
    const void *x_rows, *dy_rows;
} EpRows;

// Collective(comm). Falls back along the transport table when a kind of peer memory is not to be
// had (EP_AUTO only; otherwise 69) and remembers why. Owner: the caller.
Ep *ep_create(const EpSettings *settings);
void ep_destroy(Ep *ep);                // Collective(comm)
EpTransport ep_transport(const Ep *ep); // Local. What is really used
const char *ep_transport_name(EpTransport transport);
// Local. Why not an earlier row of the table; "" if it is the first.
const char *ep_transport_note(const Ep *ep);

// All: Collective(comm), Enqueues(stream). In this order per step: plan, dispatch, return, sum,
// then for the backward dispatch_back, return, sum. On one stream.

// Sender's addressing from the router's slots, [tokens, top_k] each; both must stay until the last
// ep_sum of the step.
void ep_plan(Ep *ep, const int32_t *expert_of_slot, const float *weight_of_slot, Stream stream);
// Sends x [tokens, hidden]; afterwards ep_rows() describes the expert rows here.
void ep_dispatch(Ep *ep, const void *x, Stream stream);
// Sends dy along the same plan, into dy_rows.
void ep_dispatch_back(Ep *ep, const void *dy, Stream stream);
const EpRows *ep_rows(const Ep *ep); // Local

// The way home has two halves, because the backward needs the returned weight gradients before it
// can make the dense part of dx that the sum adds: ep_return brings rows (and weight gradients)
// home, ep_sum adds them up.
typedef struct EpReturn {
    const void *expert_rows; // [expert_rows_max, hidden]: the experts' results here; must stay
                             // until ep_sum is done
    bool weighted; // the routing weights multiply on the way: forward with the score after the
                   // experts, backward with the score before. exact: applied by ep_sum; fast:
                   // before the partial sum
    const float *dweight_of_expert_row; // backward: gradient of the routing weights, or NULL
    float *dweight_of_slot;             // backward: the same at home, out [tokens, top_k]
} EpReturn;
void ep_return(Ep *ep, const EpReturn *what, Stream stream);

typedef struct EpSum {
    const void *expert_rows; // as in ep_return (the local transport reads them in place)
    bool weighted;           // as in ep_return
    const float *addend;     // see MoeSum
    const float *addend_weight;
    int group_size; // see MoeSum; local transport only
    void *out;      // [tokens, hidden]
} EpSum;
void ep_sum(Ep *ep, const EpSum *what, Stream stream);

// Bytes of the last plan, from this rank: what left it over a link in the forward dispatch (rows
// and headers) and in the combine, and what one row per (token, expert) would have been.
// Waits(stream).
typedef struct EpTraffic {
    uint64_t dispatch_wire_bytes, combine_wire_bytes, dispatch_logical_bytes, combine_logical_bytes;
    int64_t expert_rows; // real rows of this rank's experts
} EpTraffic;
EpTraffic ep_traffic(const Ep *ep, Stream stream);
