// How rows get across, one table row per transport, and the memory each of them needs.
//
// Addresses are settled once, at set-up: `to[region]` holds one pointer per rank, and the kernels
// store through it without knowing whether it leads over NVLink into another rank's memory or into
// a staging buffer of this one.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/ep_link.h"

static const uint64_t REGION_ALIGN_BYTES = 256;
static const uint64_t NO_BYTES = 0;

// How the length of what a rank sends to (or receives from) another is found: units of the region
// times a word of a count record. Data on its way home is counted by the record that came with the
// rows.
typedef struct RegionRow {
    bool homeward;
    int count_word; // when rows travel as one per (token, rank)
} RegionRow;
static const RegionRow region_rows[EP_REGIONS] = {
    [EP_HEADERS] = {false, MOE_COUNT_ROWS},  [EP_X] = {false, MOE_COUNT_ROWS},
    [EP_DY] = {false, MOE_COUNT_ROWS},       [EP_RETURNED] = {true, MOE_COUNT_ROWS},
    [EP_DWEIGHTS] = {true, MOE_COUNT_SLOTS},
};

static int count_word(const Ep *ep, EpRegion region)
{
    bool by_slot = region == EP_RETURNED && ep->settings.exact;
    return by_slot ? MOE_COUNT_SLOTS : region_rows[region].count_word;
}

static uint64_t unit_bytes(const Ep *ep, EpRegion region)
{
    const uint64_t bytes[EP_REGIONS] = {
        [EP_COUNTS] = (uint64_t)ep->rows.shape.count_words * sizeof(int32_t),
        [EP_HEADERS] = (uint64_t)ep->rows.shape.header_words * sizeof(int32_t),
        [EP_X] = ep->row_bytes,
        [EP_DY] = ep->row_bytes,
        [EP_RETURNED] = ep->row_bytes,
        [EP_DWEIGHTS] = sizeof(float),
    };
    return bytes[region];
}

// One round of the barrier of peer memory: what was stored has arrived, and nobody reads what it
// replaces.
static void meet(Ep *ep, Stream stream)
{
    peer_barrier(ep->peer, 0, stream);
}

static void exchange_peer(Ep *ep, const EpRegion *regions, int count, Stream stream)
{
    (void)regions;
    (void)count;
    meet(ep, stream);
}

// Fixed sizes: no rank needs to know another's counts, so nothing waits for the host, and all
// regions go in one launch. Messages of a pair arrive in the order in which they are enqueued.
static void exchange_nccl(Ep *ep, const EpRegion *regions, int count, Stream stream)
{
    comm_group_begin(ep->settings.comm, stream);
    for (int i = 0; i < count; i++)
        comm_all_to_all(ep->settings.comm, ep->out[regions[i]], ep->in[regions[i]],
                        ep->segment_bytes[regions[i]], stream);
    comm_group_end(ep->settings.comm, stream);
}

// Debug builds: a row that is read without having arrived is a NaN, not what the last step left
// there.
static void poison_segment(Ep *ep, EpRegion region, int rank)
{
#ifndef NDEBUG
    uint64_t bytes = ep->segment_bytes[region];
    memset((char *)ep->in[region] + (uint64_t)rank * bytes, 0xFF, bytes);
#else
    (void)ep, (void)region, (void)rank;
#endif
}

// Real sizes, from the count records, which travel first. Own rows were stored where they are read.
static void exchange_mpi(Ep *ep, const EpRegion *regions, int count, Stream stream)
{
    Comm comm = ep->settings.comm;
    int words = ep->rows.shape.count_words;
    uint64_t *send_bytes = ep->exchange_bytes, *send_offsets = send_bytes + comm.ranks;
    uint64_t *receive_bytes = send_offsets + comm.ranks;
    uint64_t *receive_offsets = receive_bytes + comm.ranks;
    for (int i = 0; i < count; i++) {
        EpRegion region = regions[i];
        if (region == EP_COUNTS) {
            comm_all_to_all(comm, ep->plan.counts, ep->in[region], ep->segment_bytes[region],
                            stream);
            continue;
        }
        const int32_t *outward = ep->plan.counts, *inward = (const int32_t *)ep->in[EP_COUNTS];
        bool homeward = region_rows[region].homeward;
        const int32_t *sent = homeward ? inward : outward;
        const int32_t *received = homeward ? outward : inward;
        uint64_t unit = unit_bytes(ep, region);
        for (int rank = 0; rank < comm.ranks; rank++) {
            int word = rank * words + count_word(ep, region);
            bool own = rank == comm.rank;
            if (!own)
                poison_segment(ep, region, rank);
            send_bytes[rank] = own ? NO_BYTES : (uint64_t)sent[word] * unit;
            receive_bytes[rank] = own ? NO_BYTES : (uint64_t)received[word] * unit;
            send_offsets[rank] = (uint64_t)rank * ep->segment_bytes[region];
            receive_offsets[rank] = send_offsets[rank];
        }
        const CommSplit split = {send_bytes, send_offsets, receive_bytes, receive_offsets};
        comm_all_to_all_v(comm, &split, ep->out[region], ep->in[region], stream);
    }
}

static const EpTransportRow transport_rows[EP_TRANSPORTS] = {
    [EP_AUTO] = {.name = "auto", .any_device = true},
    [EP_WINDOW] = {.name = "window",
                   .device = DEVICE_CUDA,
                   .compact = true,
                   .begin = meet,
                   .exchange = exchange_peer},
    [EP_IPC] = {.name = "ipc",
                .device = DEVICE_CUDA,
                .compact = true,
                .begin = meet,
                .exchange = exchange_peer},
    [EP_NCCL] = {.name = "nccl", .device = DEVICE_CUDA, .staged = true, .exchange = exchange_nccl},
    [EP_MPI] = {.name = "mpi", .device = DEVICE_CPU, .staged = true, .exchange = exchange_mpi},
    [EP_LOCAL] = {.name = "local", .any_device = true, .compact = true},
};

const EpTransportRow *ep_transport_row(EpTransport transport)
{
    CHECK_RULE(transport >= 0 && transport < EP_TRANSPORTS);
    return &transport_rows[transport];
}

const char *ep_transport_name(EpTransport transport)
{
    return ep_transport_row(transport)->name;
}

// Fills segment_bytes and region_bytes.
static void size_regions(Ep *ep)
{
    const MoeShape *shape = &ep->rows.shape;
    uint64_t ranks = (uint64_t)shape->ranks, tokens = (uint64_t)shape->tokens_max;
    uint64_t slots = (uint64_t)shape->slots_max, top_k = (uint64_t)shape->top_k;
    bool exact = ep->settings.exact;
    const uint64_t units[EP_REGIONS] = {
        [EP_COUNTS] = 1,
        [EP_HEADERS] = tokens,
        [EP_X] = tokens,
        [EP_DY] = tokens,
        [EP_RETURNED] = tokens * (exact ? slots : 1),
        [EP_DWEIGHTS] = tokens * slots,
    };
    for (EpRegion region = 0; region < EP_REGIONS; region++) {
        ep->segment_bytes[region] = units[region] * unit_bytes(ep, region);
        ep->region_bytes[region] = ranks * ep->segment_bytes[region];
    }
    if (!ep->row->compact)
        return;
    uint64_t rows_of_token = exact || top_k < ranks ? top_k : ranks;
    ep->region_bytes[EP_RETURNED] = tokens * rows_of_token * ep->row_bytes;
    ep->region_bytes[EP_DWEIGHTS] = tokens * top_k * sizeof(float);
}

static uint64_t region_offset(const Ep *ep, EpRegion region)
{
    uint64_t offset = 0;
    for (EpRegion before = 0; before < region; before++)
        offset += (ep->region_bytes[before] + REGION_ALIGN_BYTES - 1) / REGION_ALIGN_BYTES *
                  REGION_ALIGN_BYTES;
    return offset;
}

static bool open_peer(Ep *ep, EpTransport transport, char *why, size_t why_bytes)
{
    ep->row = &transport_rows[transport];
    size_regions(ep);
    PeerKind kind = transport == EP_WINDOW ? PEER_WINDOW : PEER_IPC;
    uint64_t bytes = region_offset(ep, EP_REGIONS);
    ep->peer = peer_create(ep->settings.comm, kind, bytes, why, why_bytes);
    return ep->peer != NULL;
}

// One message for the group: its first rank speaks and ends the job, the others wait for that.
static void stop_group(const Ep *ep, const char *why)
{
    CHECK(ep->settings.comm.rank > 0, EXIT_CODE_HARDWARE,
          "use --transport auto, which takes what works", "--transport %s does not work here: %s",
          ep_transport_name(ep->settings.transport), why);
    comm_maximum(ep->settings.comm, 0);
}

// Tries the asked-for transport, or with EP_AUTO those of the device in the order of the table.
static void choose_transport(Ep *ep)
{
    EpTransport asked = ep->settings.transport;
    DeviceKind device = ep->settings.device;
    char why[EP_NOTE_BYTES / 2] = "";
    if (ep->settings.comm.ranks == 1) {
        ep->transport = EP_LOCAL;
        if (asked != EP_AUTO && asked != EP_LOCAL)
            snprintf(ep->note, sizeof(ep->note), "%s was asked for, but one rank sends nothing",
                     ep_transport_name(asked));
    } else if (asked != EP_AUTO) {
        bool fits = transport_rows[asked].device == device && asked != EP_LOCAL;
        snprintf(why, sizeof(why), "it is not for %d ranks on %s", ep->settings.comm.ranks,
                 device_kind_name(device));
        if (fits && (asked == EP_WINDOW || asked == EP_IPC))
            fits = open_peer(ep, asked, why, sizeof(why));
        if (!fits)
            stop_group(ep, why);
        ep->transport = asked;
    } else if (device == DEVICE_CPU) {
        ep->transport = EP_MPI;
    } else {
        ep->transport = EP_NCCL;
        for (EpTransport peer = EP_WINDOW; peer <= EP_IPC && ep->transport == EP_NCCL; peer++) {
            if (open_peer(ep, peer, why, sizeof(why))) {
                ep->transport = peer;
                continue;
            }
            size_t used = strlen(ep->note);
            snprintf(ep->note + used, sizeof(ep->note) - used, "%sno %s: %s", used ? "; " : "",
                     ep_transport_name(peer), why);
        }
    }
    ep->row = &transport_rows[ep->transport];
    size_regions(ep);
}

static void place_peer_regions(Ep *ep)
{
    char *local = peer_local(ep->peer);
    for (EpRegion region = 0; region < EP_REGIONS; region++)
        ep->in[region] = local + region_offset(ep, region);
#ifndef NDEBUG
    // Poison: a row that is read before it was stored is NaN. No rank stores before `begin` of the
    // first step, which comes after this on every rank.
    Stream stream = stream_create(ep->settings.device);
    device_fill(local, 0xFF, region_offset(ep, EP_REGIONS), stream);
    stream_wait(stream);
    stream_destroy(stream);
#endif
}

// Return regions and their staging are one block, [2 * ranks] segments, so that `to` can point into
// it: see address_of.
static void place_staged_regions(Ep *ep)
{
    for (EpRegion region = 0; region < EP_REGIONS; region++) {
        uint64_t bytes = ep->region_bytes[region];
        if (region_rows[region].homeward) {
            ep->in[region] = arena_push(ep->settings.arena, 2 * bytes, MEMORY_COMMUNICATION);
            ep->out[region] = ep->in[region] + bytes;
            continue;
        }
        ep->in[region] = arena_push(ep->settings.arena, bytes, MEMORY_COMMUNICATION);
        ep->out[region] = region == EP_DY
                              ? ep->out[EP_X] // x has left before dy is stored
                              : arena_push(ep->settings.arena, bytes, MEMORY_COMMUNICATION);
    }
}

static void place_local_regions(Ep *ep)
{
    for (EpRegion region = EP_COUNTS; region <= EP_HEADERS; region++)
        ep->in[region] =
            arena_push(ep->settings.arena, ep->region_bytes[region], MEMORY_COMMUNICATION);
}

// Where kernels of this rank store what goes to `rank`.
//
// Results for home `rank` are stored at places that `rank` gave out. With staging these lie in its
// segment number own, so the pointer is set back by that many segments: to + own segments = out +
// rank segments. Receive region and staging are one block for this, so that the pointer stays
// inside it whatever the ranks.
static char *address_of(const Ep *ep, EpRegion region, int rank)
{
    int own = ep->settings.comm.rank, ranks = ep->settings.comm.ranks;
    uint64_t segment = ep->segment_bytes[region];
    bool homeward = region_rows[region].homeward;
    if (!ep->in[region])
        return NULL;
    if (ep->peer) {
        char *base = (char *)peer_bases(ep->peer)[rank] + region_offset(ep, region);
        return homeward ? base : base + (uint64_t)own * segment;
    }
    // Over MPI own rows need no exchange, nor in a group of one.
    if (rank == own && ep->transport != EP_NCCL)
        return homeward ? ep->in[region] : ep->in[region] + (uint64_t)own * segment;
    if (homeward)
        return ep->in[region] + (uint64_t)(ranks + rank - own) * segment;
    return ep->out[region] + (uint64_t)rank * segment;
}

void ep_transport_create(Ep *ep)
{
    choose_transport(ep);
    if (ep->peer)
        place_peer_regions(ep);
    else if (ep->row->staged)
        place_staged_regions(ep);
    else
        place_local_regions(ep);

    int ranks = ep->settings.comm.ranks;
    void **addresses = calloc((size_t)ranks, sizeof(*addresses));
    CHECK_RULE(addresses != NULL);
    Stream stream = stream_create(ep->settings.device);
    for (EpRegion region = 0; region < EP_REGIONS; region++) {
        if (!ep->in[region])
            continue; // local: nothing of this kind travels, and the kernels are given NULL
        uint64_t bytes = (uint64_t)ranks * sizeof(*addresses);
        void **table = arena_push(ep->settings.arena, bytes, MEMORY_COMMUNICATION);
        for (int rank = 0; rank < ranks; rank++)
            addresses[rank] = address_of(ep, region, rank);
        device_copy(table, addresses, bytes, stream);
        stream_wait(stream);
        ep->to[region] = table;
    }
    stream_destroy(stream);
    free(addresses);
}
