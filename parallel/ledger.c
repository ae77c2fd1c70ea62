// ledger.c -- the watchdog's start and end, and the few things that the main thread asks of its
// side thread in between.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "parallel/ledger_state.h"

static const double LIMIT_SHARE = 0.8;  // of watchdog_s: the rest is for finding out and leaving
static const double SILENT_SHARE = 0.3; // of watchdog_s: then another rank becomes the hub
static const double TICK_S = 0.25;      // between pulses, on up to RANKS_PER_TICK ranks
static const double START_S = 10, ASK_S = 5, QUIET_S = 1;
enum { RANKS_PER_TICK = 64, SPARE_LINKS = 8 };

// False: the thread did not answer in time, or has ended.
static bool request(Ledger *ledger, LedgerRequest what, double timeout_s)
{
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    int64_t end_ns = end.tv_nsec + (int64_t)(1e9 * timeout_s);
    end.tv_sec += end_ns / 1000000000;
    end.tv_nsec = end_ns % 1000000000;
    pthread_mutex_lock(&ledger->mutex);
    ledger->request = what;
    ledger->answered = false;
    bool in_time = write(ledger->wake[1], "", 1) == 1;
    while (in_time && !ledger->answered && !ledger->ended)
        in_time = pthread_cond_timedwait(&ledger->changed, &ledger->mutex, &end) == 0;
    bool answered = ledger->answered;
    pthread_mutex_unlock(&ledger->mutex);
    return answered;
}

static bool has_ended(Ledger *ledger)
{
    pthread_mutex_lock(&ledger->mutex);
    bool ended = ledger->ended;
    pthread_mutex_unlock(&ledger->mutex);
    return ended;
}

static bool may_speak(const Run *run, char *others, size_t bytes)
{
    Ledger *ledger = run->ledger;
    bool asked = ledger->threaded && !pthread_equal(pthread_self(), ledger->thread) &&
                 request(ledger, LEDGER_REQUEST_ASK, ASK_S);
    if (!asked)
        return !ledger->threaded || !has_ended(ledger); // ended: somebody else has spoken
    snprintf(others, bytes, "%s", ledger->answer.others);
    return ledger->answer.may;
}

static void leave(const Run *run)
{
    if (run->ledger->threaded)
        request(run->ledger, LEDGER_REQUEST_QUIET, QUIET_S);
}

static Ledger *create(const Run *run, Calls *calls)
{
    double watchdog_s = run->options.watchdog_s;
    double share = run->ranks > RANKS_PER_TICK ? (double)run->ranks / RANKS_PER_TICK : 1;
    Ledger *ledger = calloc(1, sizeof(*ledger));
    CHECK_RULE(ledger != NULL);
    *ledger =
        (Ledger){.rank = run->rank,
                 .ranks = run->ranks,
                 .calls = calls,
                 .where = *check_context(),
                 .limit_s = LIMIT_SHARE * watchdog_s,
                 .patience_s = LEDGER_PATIENCE * watchdog_s,
                 .silent_s = SILENT_SHARE * watchdog_s,
                 .tick_s = TICK_S * share < watchdog_s / 10 ? TICK_S * share : watchdog_s / 10,
                 .listener = -1,
                 .links_max = run->ranks + SPARE_LINKS};
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&ledger->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&ledger->mutex, NULL);
    ledger->links = calloc((size_t)ledger->links_max, sizeof(*ledger->links));
    ledger->polls = calloc((size_t)ledger->links_max + 2, sizeof(*ledger->polls));
    ledger->address = calloc((size_t)run->ranks, sizeof(*ledger->address));
    ledger->entries = calloc(LEDGER_ENTRIES_MAX, sizeof(*ledger->entries));
    CHECK_RULE(ledger->links && ledger->polls && ledger->address && ledger->entries);
    for (int i = 0; i < ledger->links_max; i++)
        ledger->links[i].fd = ledger->links[i].rank = -1;
    return ledger;
}

static void destroy(Ledger *ledger)
{
    for (int i = 0; i < ledger->links_max; i++)
        ledger_link_close(&ledger->links[i]);
    for (int rank = 0; ledger->views && rank < ledger->ranks; rank++)
        free(ledger->views[rank].entries);
    const int fds[] = {ledger->listener, ledger->wake[0], ledger->wake[1]};
    for (size_t i = 0; i < COUNT_OF(fds); i++)
        if (fds[i] > 0)
            close(fds[i]);
    pthread_cond_destroy(&ledger->changed);
    pthread_mutex_destroy(&ledger->mutex);
    free(ledger->views);
    free(ledger->watched);
    free(ledger->entries);
    free(ledger->address);
    free(ledger->polls);
    free(ledger->links);
    calls_destroy(ledger->calls);
    free(ledger);
}

// Collective(all ranks). Tells everybody's address and the token to everybody.
static void exchange_addresses(const Run *run, Ledger *ledger)
{
    LedgerAddress own = {.host_index = run->host_index};
    snprintf(own.host, sizeof(own.host), "%s", run->host);
    ledger->listener = ledger_listen(run->hosts == 1, &own);
    run_gather(run, &own, sizeof(own), ledger->address);
    run_broadcast(run, ledger->address, (uint64_t)run->ranks * sizeof(own));
    ssize_t drawn = getrandom(ledger->token, sizeof(ledger->token), 0);
    CHECK(drawn == (ssize_t)sizeof(ledger->token), EXIT_CODE_HARDWARE,
          "the kernel must offer getrandom(2)", "no random bytes: %s", strerror(errno));
    run_broadcast(run, ledger->token, sizeof(ledger->token));
}

// Collective(all ranks). True when every rank has a thread that has met the hub's.
static bool start_thread(const Run *run, Ledger *ledger)
{
    exchange_addresses(run, ledger);
    bool good = ledger->listener >= 0 && pipe2(ledger->wake, O_NONBLOCK | O_CLOEXEC) == 0 &&
                pthread_getcpuclockid(pthread_self(), &ledger->main_clock) == 0;
    good = good && pthread_create(&ledger->thread, NULL, ledger_watch, ledger) == 0;
    ledger->threaded = good;
    if (good)
        pthread_setname_np(ledger->thread, "watchdog");
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += (time_t)START_S;
    pthread_mutex_lock(&ledger->mutex);
    while (good && !ledger->ready)
        good = pthread_cond_timedwait(&ledger->changed, &ledger->mutex, &end) == 0;
    pthread_mutex_unlock(&ledger->mutex);
    return run_maximum(run, good ? 0 : 1) == 0;
}

// False: a thread does not end, so what it uses must stay.
static bool end_threads(Ledger *ledger)
{
    if (!ledger->threaded)
        return true;
    if (!has_ended(ledger))
        return false;
    pthread_join(ledger->thread, NULL);
    ledger->threaded = false;
    atomic_store(&ledger->stop_polling, true);
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += (time_t)QUIET_S;
    return !ledger->polling || pthread_timedjoin_np(ledger->poller, NULL, &end) == 0;
}

static void start(Run *run)
{
    Error error = {0};
    bool watched = run->options.watchdog_s > 0 && run->ranks > 1;
    if (!watched && !run->options.fault)
        return;
    Calls *calls = calls_create(run->rank, run->ranks, run->options.fault, &error);
    run_agree(run, &error);
    CallGroup *job = calls_job(calls);
    Ledger *ledger = create(run, calls);
    bool good = !watched || start_thread(run, ledger);
    if (!good) {
        if (run->rank == 0)
            check_warn("the ranks' threads cannot reach each other by TCP: nobody watches for "
                       "ranks that hang");
        if (ledger->threaded)
            request(ledger, LEDGER_REQUEST_QUIET, QUIET_S);
        if (end_threads(ledger))
            destroy(ledger);
        return;
    }
    run->ledger = ledger;
    run->job = job;
}

static void stop(Run *run)
{
    run_barrier(run);
    Ledger *ledger = run->ledger;
    run->ledger = NULL;
    run->job = NULL;
    if (ledger->threaded)
        request(ledger, LEDGER_REQUEST_FINISH, START_S);
    if (end_threads(ledger))
        destroy(ledger);
}

const RunWatch run_watch = {.start = start, .stop = stop, .leave = leave, .may_speak = may_speak};
