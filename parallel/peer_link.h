// peer_link.h -- what stands behind a Peer, and the rows of peer.c's table. Only parallel/ looks in
// here.
#pragma once

#include "parallel/peer.h"

struct Peer {
    Comm comm;
    const struct PeerRow *row;
    uint64_t flags_offset; // flag words begin here, after the data
    uint64_t total_bytes;  // as allocated: data, flags, sequence counters
    void *local;           // this rank's buffer
    void **bases;          // host [ranks]: every rank's buffer as seen from here; own = local
    void *window;          // ncclWindow_t, window row only
    void **device_bases;   // device [2, ranks]: bases, then the flag words of every rank
};

// One way of sharing memory. Both functions are Collective(comm); a failure is agreed on before
// they return.
typedef struct PeerRow {
    const char *name;
    // Allocates peer->total_bytes and fills local and bases. False, with the reason, leaves nothing
    // behind.
    bool (*open)(Peer *peer, char *why, size_t why_bytes);
    void (*close)(Peer *peer);
} PeerRow;
OPTIONAL_SYMBOL extern const PeerRow peer_row_window; // builds with CUDA and NCCL
OPTIONAL_SYMBOL extern const PeerRow peer_row_ipc;    // builds with CUDA

// Collective(peer->comm). True when it went well on every rank; else the first failing rank's
// reason goes to all.
bool peer_agree(const Peer *peer, bool good, char *why, size_t why_bytes);
// Collective(peer->comm), Waits. All ranks have come here.
void peer_meet(const Peer *peer);
