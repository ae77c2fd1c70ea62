// peer.h -- memory that the ranks of a group can write into each other: NCCL windows or CUDA IPC.
//
// A peer buffer has the same size on every rank. After peer_create, peer_bases has one
// pointer per rank through which a kernel can store into that rank's buffer over NVLink. Data
// is followed by a signal: the sender's last store, with release semantics at system scope, of a
// sequence number that only grows; the receiver waits for it on the device with acquire semantics.
// Nothing here waits on the host after set-up, and all of it can be captured in a graph. No NVLink
// multicast is used.
#pragma once

#include "parallel/comm.h"

typedef enum PeerKind { PEER_WINDOW, PEER_IPC, PEER_KINDS } PeerKind;

typedef struct Peer Peer;

// Collective(comm). NULL (with the reason in why) when this kind of sharing does not work between
// these ranks: the caller falls back and says so. `bytes` is the same on every rank. Owner: the
// caller.
Peer *peer_create(Comm comm, PeerKind kind, uint64_t bytes, char *why, size_t why_bytes);
void peer_destroy(Peer *peer);             // Collective(comm)
void *peer_local(const Peer *peer);        // this rank's buffer, device memory
void *const *peer_bases(const Peer *peer); // host array [ranks]: all buffers as seen from here
// Enqueues(stream). Tells every rank of the group that what this stream wrote before is complete,
// then waits (on the device) until every rank has told us the same: one round of a barrier that
// also publishes data. `channel` 0 .. PEER_CHANNELS - 1 keeps independent rounds apart. A rank that
// never comes trips a device-side timeout and a trap, after the watchdog had its time (60 s without
// one).
enum { PEER_CHANNELS = 8 };
void peer_barrier(Peer *peer, int channel, Stream stream);
