// peer_kernels.h -- the device side of peer.h: what peer.cu and peer_window_nccl.cu offer to
// peer.c.
#pragma once

#include "harness/device.h"

DECLARATIONS_BEGIN

// One round of a barrier between the ranks' streams. Flag words [channels][ranks] live in every
// rank's peer buffer; word (c, s) of rank r is written by s alone and only grows: "s has come to
// round n of channel c".
typedef struct PeerSignal {
    uint64_t *const *flags_of_rank; // device [ranks]: the flag words of every rank
    uint64_t *sequence;             // device [channels]: rounds this rank has begun
    int channel, rank, ranks;
    uint64_t timeout_ns;
} PeerSignal;
OPTIONAL_SYMBOL void peer_signal_cuda(const PeerSignal *args, Stream stream); // Enqueues(stream)

// Enqueues(stream). to[p][rank] = value + p for every rank p: the probe that set-up reads back.
OPTIONAL_SYMBOL void peer_put_cuda(uint64_t *const *to, int rank, int ranks, uint64_t value,
                                   Stream stream);

// Enqueues(stream). Every rank's address in an NCCL window, and at [ranks] this rank's own by the
// other way of asking.
OPTIONAL_SYMBOL void peer_window_addresses_cuda(void *window, int ranks, void **addresses,
                                                Stream stream);

DECLARATIONS_END
