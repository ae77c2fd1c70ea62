// ledger_thread.c -- the side thread of every rank.
//
// One round: wait for a socket, the main thread or the next pulse; hear what there is; then the
// hub's turn, or a look at whether the hub is still there.
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "harness/clock.h"
#include "parallel/ledger_state.h"

static const double BUSY_PAUSE_S = 0.02; // while something is being found out
static const double CONNECT_S = 2;       // to one address
enum { BUSY_NS = 1000000, ENTRIES_OF_ALL = 1 << 16 };

// ---- what this rank is at ----

void ledger_own_state(Ledger *ledger, LedgerState *state)
{
    CallsState calls;
    calls_state(ledger->calls, &calls);
    *state = (LedgerState){.last = ledger_call_of(&calls.last),
                           .waiting = ledger_call_of(&calls.waiting),
                           .reached = calls.reached,
                           .done = ledger->done,
                           .groups = calls.groups};
    for (int i = 0; i < calls.groups; i++) {
        const CallGroup *group = &calls.group[i];
        LedgerGroup *told = &state->group[i];
        *told = (LedgerGroup){.id = group->id,
                              .rank = group->rank,
                              .ranks = group->ranks,
                              .arrived = calls.arrived[i]};
        memcpy(told->name, group->name, sizeof(told->name));
        memcpy(told->point, group->point, sizeof(told->point));
    }
    if (calls.waiting.sequence != ledger->waiting_sequence) {
        ledger->waiting_sequence = calls.waiting.sequence;
        ledger->waiting_since_s = ledger->now_s;
    }
    struct timespec used;
    clock_gettime(ledger->main_clock, &used);
    int64_t used_ns = (int64_t)used.tv_sec * 1000000000 + used.tv_nsec;
    if (used_ns - ledger->main_ns >= BUSY_NS) {
        ledger->main_ns = used_ns;
        ledger->idle_since_s = ledger->now_s;
    }
    state->waiting_s = calls.waiting.sequence ? ledger->now_s - ledger->waiting_since_s : 0;
    state->idle_s = ledger->now_s - ledger->idle_since_s;
}

int ledger_own_entries(Ledger *ledger, LedgerCall *calls)
{
    int most = ENTRIES_OF_ALL / ledger->ranks;
    most = most < LEDGER_ENTRIES_MIN ? LEDGER_ENTRIES_MIN : most;
    most = most > LEDGER_ENTRIES_MAX ? LEDGER_ENTRIES_MAX : most;
    int count = calls_copy(ledger->calls, ledger->entries, most);
    for (int i = 0; i < count; i++)
        calls[i] = ledger_call_of(&ledger->entries[i]);
    return count;
}

static void send_state(Ledger *ledger, LedgerLink *link)
{
    LedgerState state;
    ledger_own_state(ledger, &state);
    ledger_link_send(link, LEDGER_STATE, &state, ledger_state_bytes(&state));
}

static void send_entries(Ledger *ledger, LedgerLink *link)
{
    LedgerCall *calls = malloc(LEDGER_ENTRIES_MAX * sizeof(*calls));
    if (!calls)
        return;
    int count = ledger_own_entries(ledger, calls);
    ledger_link_send(link, LEDGER_ENTRIES, calls, (size_t)count * sizeof(*calls));
    free(calls);
}

void ledger_send_all(Ledger *ledger, LedgerKind kind, const void *payload, size_t bytes)
{
    for (int i = 0; i < ledger->links_max; i++)
        if (ledger->links[i].rank >= 0)
            ledger_link_send(&ledger->links[i], kind, payload, bytes);
}

// What was printed comes out first; a thread that is in the middle of printing is not waited for.
void ledger_leave(const LedgerLeave *leave)
{
    nanosleep(&(struct timespec){.tv_sec = leave->wait_s}, NULL);
    if (ftrylockfile(stdout) == 0)
        fflush(stdout);
    _exit(leave->exit_code);
}

void ledger_answer(Ledger *ledger, const LedgerSpeak *answer)
{
    pthread_mutex_lock(&ledger->mutex);
    if (answer)
        ledger->answer = *answer;
    ledger->answered = true;
    pthread_cond_broadcast(&ledger->changed);
    pthread_mutex_unlock(&ledger->mutex);
}

static void tell_ready(Ledger *ledger)
{
    pthread_mutex_lock(&ledger->mutex);
    ledger->ready = true;
    pthread_cond_broadcast(&ledger->changed);
    pthread_mutex_unlock(&ledger->mutex);
}

// ---- the way to the hub ----

static LedgerLink *link_of(Ledger *ledger, int rank)
{
    for (int i = 0; i < ledger->links_max; i++)
        if (ledger->links[i].fd >= 0 && ledger->links[i].rank == rank)
            return &ledger->links[i];
    return NULL;
}

static LedgerLink *free_link(Ledger *ledger)
{
    for (int i = 0; i < ledger->links_max; i++)
        if (ledger->links[i].fd < 0)
            return &ledger->links[i];
    return NULL;
}

// Goes on to the next address of the hub, or to the next rank; at last this rank is the hub itself.
static void find_hub(Ledger *ledger)
{
    while (ledger->hub < ledger->rank && !link_of(ledger, ledger->hub)) {
        const LedgerAddress *to = &ledger->address[ledger->hub];
        bool same_host = to->host_index == ledger->address[ledger->rank].host_index;
        LedgerLink *link = free_link(ledger);
        if (link && ledger_link_connect(link, to, ledger->hub, same_host, ledger->choice++)) {
            LedgerHello hello = {.rank = ledger->rank};
            memcpy(hello.token, ledger->token, sizeof(hello.token));
            ledger_link_send(link, LEDGER_HELLO, &hello, sizeof(hello));
            ledger->connecting_s = ledger->now_s;
        } else if (!link || ledger->choice >= LEDGER_ADDRESSES_MAX) {
            ledger->hub++;
            ledger->choice = 0;
        }
    }
    if (ledger->hub == ledger->rank)
        ledger_hub_begin(ledger);
}

static void leave_hub(Ledger *ledger)
{
    ledger->hub++;
    ledger->choice = 0;
    ledger->connecting_s = ledger->now_s;
    find_hub(ledger);
}

static void follow_hub(Ledger *ledger)
{
    LedgerLink *link = link_of(ledger, ledger->hub);
    double begun_s =
        ledger->pulse_s > ledger->connecting_s ? ledger->pulse_s : ledger->connecting_s;
    if (link && link->connecting && ledger->now_s - ledger->connecting_s > CONNECT_S) {
        ledger_link_close(link);
        find_hub(ledger);
    } else if (!link) {
        find_hub(ledger);
    } else if (ledger->now_s - begun_s > ledger->silent_s) {
        leave_hub(ledger); // silent; its connection stays, should it come back
    }
}

// ---- messages ----

static void on_hello(Ledger *ledger, LedgerLink *link, const void *payload, size_t bytes)
{
    LedgerHello hello;
    bool good = bytes == sizeof(hello);
    if (good)
        memcpy(&hello, payload, sizeof(hello));
    good = good && memcmp(hello.token, ledger->token, sizeof(hello.token)) == 0 &&
           hello.rank >= 0 && hello.rank < ledger->ranks && hello.rank != ledger->rank;
    if (!good) {
        link->ended = true;
        return;
    }
    link->rank = hello.rank;
    int known = 0;
    for (int i = 0; i < ledger->links_max; i++)
        known += ledger->links[i].rank >= 0;
    if (ledger->rank == 0 && known == ledger->ranks - 1) {
        tell_ready(ledger);
        ledger->next_pulse_s = ledger->now_s; // for which they all wait
    }
}

// Only a hub sends pulses. One that was thought silent is followed again.
static void on_pulse(Ledger *ledger, LedgerLink *link, const void *payload, size_t bytes)
{
    (void)payload, (void)bytes;
    if (link->rank <= ledger->hub) {
        ledger->hub = link->rank;
        ledger->pulse_s = ledger->now_s;
        tell_ready(ledger);
    }
    send_state(ledger, link);
}

static void on_state(Ledger *ledger, LedgerLink *link, const void *payload, size_t bytes)
{
    ledger_hub_state(ledger, link->rank, payload, bytes);
}

static void on_show(Ledger *ledger, LedgerLink *link, const void *payload, size_t bytes)
{
    (void)payload, (void)bytes;
    send_entries(ledger, link);
}

static void on_entries(Ledger *ledger, LedgerLink *link, const void *payload, size_t bytes)
{
    ledger_hub_entries(ledger, link->rank, payload, bytes);
}

static void on_ask(Ledger *ledger, LedgerLink *link, const void *payload, size_t bytes)
{
    (void)payload, (void)bytes;
    ledger_hub_asked(ledger, link->rank);
}

static void on_speak(Ledger *ledger, LedgerLink *link, const void *payload, size_t bytes)
{
    (void)link;
    LedgerSpeak answer;
    if (bytes != sizeof(answer))
        return;
    memcpy(&answer, payload, sizeof(answer));
    answer.others[sizeof(answer.others) - 1] = '\0';
    ledger_answer(ledger, &answer);
    ledger->quiet = true; // the job has its message
}

static void on_quiet(Ledger *ledger, LedgerLink *link, const void *payload, size_t bytes)
{
    (void)link, (void)payload, (void)bytes;
    if (ledger->hub == ledger->rank)
        ledger_send_all(ledger, LEDGER_QUIET, NULL, 0);
    ledger->quiet = true;
}

static void on_leave(Ledger *ledger, LedgerLink *link, const void *payload, size_t bytes)
{
    (void)ledger, (void)link;
    LedgerLeave leave = {.exit_code = EXIT_CODE_HANG};
    if (bytes == sizeof(leave))
        memcpy(&leave, payload, sizeof(leave));
    ledger_leave(&leave);
}

typedef void Handler(Ledger *ledger, LedgerLink *link, const void *payload, size_t bytes);
static Handler *const handlers[LEDGER_KINDS] = {
    [LEDGER_HELLO] = on_hello, [LEDGER_PULSE] = on_pulse,     [LEDGER_STATE] = on_state,
    [LEDGER_SHOW] = on_show,   [LEDGER_ENTRIES] = on_entries, [LEDGER_ASK] = on_ask,
    [LEDGER_SPEAK] = on_speak, [LEDGER_QUIET] = on_quiet,     [LEDGER_LEAVE] = on_leave,
};

static void read_link(Ledger *ledger, LedgerLink *link)
{
    void *payload;
    size_t bytes;
    ledger_link_receive(link);
    for (int kind; (kind = ledger_link_next(link, &payload, &bytes)) >= 0;) {
        if (link->rank >= 0)
            ledger_hub_heard(ledger, link->rank);
        handlers[kind](ledger, link, payload, bytes);
    }
    if (!link->ended)
        return;
    int rank = link->rank;
    bool connecting = link->connecting;
    ledger_link_close(link);
    if (rank < 0 || ledger->quiet)
        return;
    if (rank == ledger->hub && !connecting)
        leave_hub(ledger); // gone, not silent
    ledger_hub_lost(ledger, rank);
}

static void end_connecting(LedgerLink *link)
{
    int code = 0;
    socklen_t length = sizeof(code);
    getsockopt(link->fd, SOL_SOCKET, SO_ERROR, &code, &length);
    if (code != 0)
        link->ended = true;
    else
        link->connecting = false;
    ledger_link_flush(link);
}

static void accept_links(Ledger *ledger)
{
    for (int fd; (fd = accept4(ledger->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        LedgerLink *link = free_link(ledger);
        if (link)
            ledger_link_open(link, fd, -1);
        else
            close(fd);
    }
}

// ---- the thread ----

static void take_request(Ledger *ledger)
{
    char bytes[16];
    while (read(ledger->wake[0], bytes, sizeof(bytes)) > 0)
        ;
    pthread_mutex_lock(&ledger->mutex);
    LedgerRequest request = ledger->request;
    ledger->request = LEDGER_REQUEST_NONE;
    pthread_mutex_unlock(&ledger->mutex);
    bool is_hub = ledger->hub == ledger->rank;
    LedgerLink *hub = is_hub ? NULL : link_of(ledger, ledger->hub);
    if (request == LEDGER_REQUEST_FINISH) {
        ledger->done = true;
        if (hub)
            send_state(ledger, hub);
        else if (is_hub)
            ledger->next_pulse_s = ledger->now_s;
    } else if (request == LEDGER_REQUEST_QUIET) {
        ledger_send_all(ledger, LEDGER_QUIET, NULL, 0);
        ledger->quiet = true;
    } else if (request == LEDGER_REQUEST_ASK && is_hub) {
        ledger_hub_asked(ledger, ledger->rank);
    } else if (request == LEDGER_REQUEST_ASK && hub) {
        ledger_link_send(hub, LEDGER_ASK, NULL, 0);
    }
}

static void *poll_device(void *argument)
{
    Ledger *ledger = argument;
    while (!atomic_load(&ledger->stop_polling)) {
        calls_poll_device(ledger->calls);
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    }
    return NULL;
}

static void start_polling(Ledger *ledger)
{
    if (!ledger->polling && calls_on_device(ledger->calls))
        ledger->polling = pthread_create(&ledger->poller, NULL, poll_device, ledger) == 0;
}

static void wait_for_events(Ledger *ledger)
{
    struct pollfd *polls = ledger->polls;
    polls[0] = (struct pollfd){.fd = ledger->wake[0], .events = POLLIN};
    polls[1] = (struct pollfd){.fd = ledger->listener, .events = POLLIN};
    for (int i = 0; i < ledger->links_max; i++) {
        const LedgerLink *link = &ledger->links[i];
        bool write = link->connecting || link->out.bytes > 0;
        polls[2 + i] = (struct pollfd){.fd = link->fd, .events = POLLIN | (write ? POLLOUT : 0)};
    }
    double pause_s = ledger->tick_s / 2;
    if (ledger->hub == ledger->rank)
        pause_s = ledger->next_pulse_s - ledger->now_s;
    if (ledger_hub_is_busy(ledger) && pause_s > BUSY_PAUSE_S)
        pause_s = BUSY_PAUSE_S;
    poll(polls, (nfds_t)ledger->links_max + 2, pause_s > 0 ? 1 + (int)(1000 * pause_s) : 0);
    double real_s = clock_s(), passed_s = real_s - ledger->real_s;
    ledger->real_s = real_s;
    ledger->now_s += passed_s < 4 * ledger->tick_s ? passed_s : 4 * ledger->tick_s;
}

void *ledger_watch(void *argument)
{
    Ledger *ledger = argument;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    ledger->real_s = clock_s();
    find_hub(ledger);
    while (!ledger->quiet) {
        wait_for_events(ledger);
        if (ledger->polls[0].revents)
            take_request(ledger);
        if (ledger->polls[1].revents)
            accept_links(ledger);
        for (int i = 0; i < ledger->links_max && !ledger->quiet; i++) {
            LedgerLink *link = &ledger->links[i];
            bool polled = link->fd >= 0 && link->fd == ledger->polls[2 + i].fd;
            if (!polled || !ledger->polls[2 + i].revents)
                continue;
            if (link->connecting)
                end_connecting(link);
            else
                ledger_link_flush(link);
            read_link(ledger, link);
        }
        start_polling(ledger);
        if (ledger->quiet)
            break;
        if (ledger->hub == ledger->rank)
            ledger_hub_turn(ledger);
        else
            follow_hub(ledger);
    }
    for (int i = 0; i < ledger->links_max; i++)
        ledger_link_flush(&ledger->links[i]);
    pthread_mutex_lock(&ledger->mutex);
    ledger->ended = true;
    pthread_cond_broadcast(&ledger->changed);
    pthread_mutex_unlock(&ledger->mutex);
    return NULL;
}
