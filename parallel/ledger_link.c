// ledger_link.c -- sockets that never wait, and messages: a kind and a length, then the payload.
#include "parallel/ledger_link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct Header {
    uint32_t kind, bytes;
} Header;

enum { PAYLOAD_MAX = LEDGER_ENTRIES_MAX * sizeof(LedgerCall), READ_BYTES = 1 << 13 };

// ---- payloads ----

LedgerCall ledger_call_of(const CallEntry *entry)
{
    LedgerCall call = {.sequence = entry->sequence,
                       .group_id = entry->group_id,
                       .number = entry->number,
                       .count = entry->count,
                       .pieces = entry->pieces,
                       .op = entry->op,
                       .dtype = entry->dtype,
                       .detail = entry->detail};
    snprintf(call.phase, sizeof(call.phase), "%s", entry->phase ? entry->phase : "");
    memcpy(call.span, entry->span, sizeof(call.span));
    return call;
}

static bool end_texts(LedgerCall *call)
{
    call->phase[sizeof(call->phase) - 1] = '\0';
    call->span[sizeof(call->span) - 1] = '\0';
    return call->op < CALL_OPS && call->dtype < DTYPES;
}

size_t ledger_state_bytes(const LedgerState *state)
{
    return offsetof(LedgerState, group) + (size_t)state->groups * sizeof(LedgerGroup);
}

bool ledger_state_read(const void *payload, size_t bytes, LedgerState *state)
{
    if (bytes < offsetof(LedgerState, group) || bytes > sizeof(*state))
        return false;
    memcpy(state, payload, bytes);
    if (state->groups < 0 || state->groups > CALL_GROUPS_MAX || ledger_state_bytes(state) != bytes)
        return false;
    for (int i = 0; i < state->groups; i++)
        state->group[i].name[CALL_NAME_BYTES - 1] = '\0';
    return end_texts(&state->last) && end_texts(&state->waiting);
}

bool ledger_calls_read(LedgerCall *calls, size_t bytes, int *count)
{
    *count = (int)(bytes / sizeof(LedgerCall));
    bool good = bytes % sizeof(LedgerCall) == 0;
    for (int i = 0; i < *count; i++)
        good = end_texts(&calls[i]) && good;
    return good;
}

// ---- addresses ----

static void list_interfaces(LedgerAddress *address)
{
    struct ifaddrs *all = NULL;
    int count = 0;
    if (getifaddrs(&all) != 0)
        return;
    for (const struct ifaddrs *one = all; one && count < LEDGER_ADDRESSES_MAX;
         one = one->ifa_next) {
        bool usable = one->ifa_addr && one->ifa_addr->sa_family == AF_INET &&
                      (one->ifa_flags & IFF_UP) && !(one->ifa_flags & IFF_LOOPBACK);
        if (usable)
            address->ipv4[count++] = ((struct sockaddr_in *)one->ifa_addr)->sin_addr.s_addr;
    }
    freeifaddrs(all);
}

int ledger_listen(bool one_host, LedgerAddress *address)
{
    struct sockaddr_in here = {.sin_family = AF_INET};
    here.sin_addr.s_addr = htonl(one_host ? INADDR_LOOPBACK : INADDR_ANY);
    socklen_t length = sizeof(here);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    bool good = fd >= 0 && bind(fd, (struct sockaddr *)&here, sizeof(here)) == 0 &&
                listen(fd, SOMAXCONN) == 0 &&
                getsockname(fd, (struct sockaddr *)&here, &length) == 0;
    if (!good) {
        if (fd >= 0)
            close(fd);
        return -1;
    }
    address->port = here.sin_port;
    list_interfaces(address);
    return fd;
}

// ---- connections ----

void ledger_link_open(LedgerLink *link, int fd, int rank)
{
    *link = (LedgerLink){.fd = fd, .rank = rank};
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
}

void ledger_link_close(LedgerLink *link)
{
    if (link->fd >= 0)
        close(link->fd);
    free(link->in.data);
    free(link->out.data);
    *link = (LedgerLink){.fd = -1, .rank = -1};
}

bool ledger_link_connect(LedgerLink *link, const LedgerAddress *to, int rank, bool same_host,
                         int choice)
{
    bool there = same_host ? choice == 0 : choice < LEDGER_ADDRESSES_MAX && to->ipv4[choice];
    if (!there || to->port == 0)
        return false;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = to->port};
    address.sin_addr.s_addr = same_host ? htonl(INADDR_LOOPBACK) : to->ipv4[choice];
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return false;
    ledger_link_open(link, fd, rank);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
        return true;
    link->connecting = errno == EINPROGRESS;
    if (!link->connecting)
        ledger_link_close(link);
    return link->fd >= 0;
}

static char *make_room(struct LedgerBuffer *buffer, size_t bytes)
{
    if (buffer->bytes + bytes > buffer->room) {
        size_t room = 2 * (buffer->bytes + bytes);
        char *data = realloc(buffer->data, room);
        if (!data)
            return NULL;
        buffer->data = data;
        buffer->room = room;
    }
    return buffer->data + buffer->bytes;
}

static void drop_front(struct LedgerBuffer *buffer, size_t bytes)
{
    buffer->bytes -= bytes;
    memmove(buffer->data, buffer->data + bytes, buffer->bytes);
}

void ledger_link_flush(LedgerLink *link)
{
    while (link->out.bytes > 0 && !link->connecting && !link->ended) {
        ssize_t sent = send(link->fd, link->out.data, link->out.bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0)
            drop_front(&link->out, (size_t)sent);
        else if (errno != EINTR)
            return; // full, or gone: reading tells which
    }
}

// Who does not read for long is told no more: nobody's memory grows for a stopped rank.
void ledger_link_send(LedgerLink *link, LedgerKind kind, const void *payload, size_t bytes)
{
    const Header header = {(uint32_t)kind, (uint32_t)bytes};
    bool open = link->fd >= 0 && link->out.bytes <= 2 * (size_t)PAYLOAD_MAX;
    char *to = open ? make_room(&link->out, sizeof(header) + bytes) : NULL;
    if (!to)
        return;
    memcpy(to, &header, sizeof(header));
    if (bytes > 0)
        memcpy(to + sizeof(header), payload, bytes);
    link->out.bytes += sizeof(header) + bytes;
    ledger_link_flush(link);
}

void ledger_link_receive(LedgerLink *link)
{
    while (!link->ended && link->in.bytes <= PAYLOAD_MAX) {
        char *to = make_room(&link->in, READ_BYTES);
        ssize_t got = to ? recv(link->fd, to, READ_BYTES, MSG_DONTWAIT) : 0;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            link->ended = true;
        else
            link->in.bytes += (size_t)got;
    }
}

int ledger_link_next(LedgerLink *link, void **payload, size_t *bytes)
{
    Header header;
    if (link->taken > 0)
        drop_front(&link->in, link->taken);
    link->taken = 0;
    if (link->in.bytes < sizeof(header))
        return -1;
    memcpy(&header, link->in.data, sizeof(header));
    bool known = link->rank >= 0 || (header.kind == LEDGER_HELLO && header.bytes <= 64);
    if (!known || header.kind >= LEDGER_KINDS || header.bytes > PAYLOAD_MAX) {
        link->ended = true; // a stranger
        link->in.bytes = 0;
        return -1;
    }
    if (link->in.bytes < sizeof(header) + header.bytes)
        return -1;
    link->taken = sizeof(header) + header.bytes;
    *payload = link->in.data + sizeof(header);
    *bytes = header.bytes;
    return (int)header.kind;
}
