// ep_link.h -- what stands behind an Ep, shared by ep.c (the steps) and ep_transport.c (how bytes
// get across).
//
// Six kinds of data travel; each has a region of receive memory on every rank. The first four go
// from a token's home to the ranks of its experts, [source][segment]; the last two come back, into
// "places" that the plan gave out at home.
//
//   peer memory  (window, ipc) kernels store into the receive regions of other ranks; return
//                places are packed
//   staged       (nccl, mpi) kernels store into `out`, one segment per rank, and that is exchanged;
//                return places for rank p lie in segment p, so that a segment is sent as it stands
//   local        only counts and headers, written where they are read
#pragma once

#include "parallel/ep.h"
#include "parallel/peer.h"

typedef enum EpRegion {
    EP_COUNTS,   // count records
    EP_HEADERS,  // row headers
    EP_X,        // rows of the forward dispatch
    EP_DY,       // rows of the backward dispatch
    EP_RETURNED, // rows that come home; forward and backward take turns
    EP_DWEIGHTS, // gradients of the routing weights that come home
    EP_REGIONS,
} EpRegion;

enum { EP_NOTE_BYTES = 512 };

struct Ep {
    EpSettings settings;
    EpTransport transport;
    const struct EpTransportRow *row;
    char note[EP_NOTE_BYTES];
    EpRows rows;
    MoePlan plan;
    MoeMaps maps;
    const float *weight_of_slot; // [tokens, top_k] of the last plan
    uint64_t row_bytes;
    uint64_t segment_bytes[EP_REGIONS]; // room for one other rank
    uint64_t region_bytes[EP_REGIONS];  // this rank's receive region
    Peer *peer;                         // window and ipc
    char *in[EP_REGIONS];               // receive regions
    char *out[EP_REGIONS];              // staged: [ranks][segment] to send
    void *const *to[EP_REGIONS]; // device [ranks]: where kernels store what goes to each rank
    int32_t *host_counts;        // [2, ranks, count_words]: sent, received; for ep_traffic
    uint64_t *exchange_bytes;    // [4, ranks]: the arguments of one comm_all_to_all_v
};

// How bytes get across. All Collective(comm), Enqueues(stream).
typedef struct EpTransportRow {
    const char *name;
    DeviceKind device;
    bool any_device; // local
    bool compact;    // return places packed (moe_plan.h)
    bool staged;
    // Before rows are stored in a new step: waits until nobody reads the last step's any more.
    // NULL: nothing to wait for.
    void (*begin)(Ep *ep, Stream stream);
    // After kernels stored these regions: on return, in stream order, every rank has what was sent
    // to it.
    void (*exchange)(Ep *ep, const EpRegion *regions, int count, Stream stream);
} EpTransportRow;

const EpTransportRow *ep_transport_row(EpTransport transport); // Local
// Collective(comm). Settles transport and note, and makes the receive memory, the staging and the
// address tables.
void ep_transport_create(Ep *ep);
