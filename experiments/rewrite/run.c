// run.c -- every rank makes its share of every file, in place.
//
// The threads of a rank take its units (units.h) one by one, each with its own slice, so that one
// reads or writes while another computes; on a GPU each has a stream and staging memory, and two
// threads more wait for theirs.
// The system reads units to come ahead and writes finished ones behind (MADV_WILLNEED,
// sync_file_range); pages of the source are let go after use, so that memory stays that of the
// units at hand. Between units the threads of a lone rank take steps of the digest; when a shard's
// bytes are all there, a thread ends its digest and waits for the disk, while the next is made.
#include "experiments/rewrite/rewrite.h"

#include "experiments/rewrite/chase.h"
#include "experiments/rewrite/torch.h"
#include "experiments/rewrite/units.h"
#include "experiments/rewrite/values.h"
#include "harness/clock.h"
#include "harness/progress.h"
#include "quant/digest.h"

#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { PATH_BYTES = CHECKPOINT_PATH_BYTES + 512 };
static const uint64_t ahead_bytes = 64 << 20;
// At a time. Others write to the same file and wait for its lock meanwhile; and Linux takes one
// large page for one large write, which on a virtual machine may be far slower than many small.
static const uint64_t write_bytes = 512 << 10;

// A thread of the rank.
typedef struct Worker {
    RewriteValues values;
    uint64_t read, written;
    Error error;
} Worker;

// The end of a shard, beside the making of the next one.
typedef struct Finish {
    pthread_t thread;
    bool running;
    struct Job *job;
    int shard, descriptor;
    RewriteChase *chase; // NULL: the digest is made now, or by another rank
    Error error;
} Finish;

typedef struct Job {
    const Run *run;
    Rewrite *rewrite;
    RewriteFolder folder;
    int workers;
    Worker *worker;
    bool failed; // a worker has an error
    int descriptor;
    RewriteChase *chase; // of the file at hand
    RewriteUnits units;
    uint64_t read, total;
    Progress progress;
    Finish finish;
    char (*digest)[DIGEST_TEXT_BYTES]; // [shards]
    Error error;
} Job;

// ---- writing ----

static bool write_failed(const Job *job, int code, Error *error)
{
    const char *staging = job->folder.staging;
    if (code != ENOSPC && code != EDQUOT)
        return error_set(error, EXIT_CODE_IO, "check the disk and the file system",
                         "cannot write in %.200s: %s", staging, strerror(code));
    return error_set(error, EXIT_CODE_IO, "make room there (see df -h), or write to another disk",
                     "the disk is full: %llu bytes are needed for %.200s; what was written is "
                     "removed, the source is as it was",
                     (unsigned long long)job->rewrite->bytes, job->rewrite->request->out);
}

static bool write_at(const Job *job, const void *data, uint64_t bytes, uint64_t place, Error *error)
{
    for (uint64_t done = 0; done < bytes;) {
        uint64_t left = bytes - done;
        ssize_t count = pwrite(job->descriptor, (const char *)data + done,
                               left < write_bytes ? left : write_bytes, (off_t)(place + done));
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return write_failed(job, count < 0 ? errno : ENOSPC, error);
        done += (uint64_t)count;
    }
    sync_file_range(job->descriptor, (off_t)place, (off_t)bytes, SYNC_FILE_RANGE_WRITE);
    return true;
}

static bool work_write(const Job *job, Worker *worker, const void *data, uint64_t bytes,
                       uint64_t place)
{
    worker->written += bytes;
    return write_at(job, data, bytes, place, &worker->error);
}

static bool do_quantised(const Job *job, Worker *worker, const RewriteUnit *unit)
{
    const RewriteTensor *tensor = &job->rewrite->tensor[unit->tensor];
    StoredSlice slice;
    StoredRange ranges[STORED_ROLES];
    ArenaMark mark = arena_mark(worker->values.host);
    stored_slice_push(&tensor->stored, unit->rows, worker->values.host, &slice);
    slice.pick = unit->pick;
    if (tensor->action == REWRITE_MOVE)
        rewrite_move_rows(&worker->values, tensor, unit->matrix, unit->first, &slice);
    else
        rewrite_quantise_rows(&worker->values, unit->tensor, unit->matrix, unit->first, &slice.q);
    int count = stored_slice_ranges(&tensor->stored, unit->matrix, unit->first, &slice, ranges);
    bool good = true;
    for (int i = 0; good && i < count; i++)
        good = work_write(job, worker, ranges[i].data, ranges[i].bytes,
                          tensor->place[ranges[i].role] + ranges[i].offset);
    arena_release(worker->values.host, mark);
    return good;
}

static bool do_plain(const Job *job, Worker *worker, const RewriteUnit *unit)
{
    const RewriteTensor *tensor = &job->rewrite->tensor[unit->tensor];
    uint64_t row_bytes = dtype_bytes(tensor->tensor.dtype, (uint64_t)rewrite_columns(tensor));
    uint64_t place = tensor->place[STORED_CODES] + (uint64_t)unit->first * row_bytes;
    if (dtype_row(tensor->tensor.dtype)->bits < 8)
        return work_write(job, worker, tensor->segment[0].weight->tensor.data,
                          tensor_bytes(&tensor->tensor), place);
    if (tensor->action != REWRITE_COPY || tensor->segment[0].turned) {
        const void *values = rewrite_read_rows(&worker->values, tensor, unit->first, unit->rows);
        return work_write(job, worker, values, (uint64_t)unit->rows * row_bytes, place);
    }
    int64_t row = unit->first, end = unit->first + unit->rows;
    while (row < end) {
        int64_t rows = end - row;
        const char *data = rewrite_source_rows(tensor, row, &rows);
        if (!work_write(job, worker, data, (uint64_t)rows * row_bytes, place))
            return false;
        place += (uint64_t)rows * row_bytes;
        row += rows;
    }
    return true;
}

// The unit's first row among all rows of its tensor.
static int64_t row_of(const RewriteTensor *tensor, const RewriteUnit *unit)
{
    int64_t matrix_rows = rewrite_is_quantised(tensor) ? tensor->stored.q.rows : 0;
    return unit->matrix * matrix_rows + unit->first;
}

static bool do_unit(const Job *job, Worker *worker, const RewriteUnit *unit)
{
    const RewriteTensor *tensor = &job->rewrite->tensor[unit->tensor];
    bool good = rewrite_is_quantised(tensor) ? do_quantised(job, worker, unit)
                                             : do_plain(job, worker, unit);
    rewrite_release_rows(&worker->values, tensor, unit->pick, row_of(tensor, unit), unit->rows);
    worker->read += unit->bytes;
    return good;
}

// ---- one shard ----

static void path_in(const Job *job, const char *name, const char *tail, char path[PATH_BYTES])
{
    snprintf(path, PATH_BYTES, "%s/%s%s", job->folder.staging, name, tail);
}

static bool open_shard(Job *job, const RewriteShard *shard, bool create)
{
    char path[PATH_BYTES];
    path_in(job, shard->name, ".tmp", path);
    job->descriptor = open(path,
                           create ? O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW
                                  : O_RDWR | O_CLOEXEC | O_NOFOLLOW,
                           0666);
    if (job->descriptor < 0)
        return error_set(&job->error, EXIT_CODE_CANT_CREATE,
                         "choose a folder that you may write and that has room",
                         "cannot create %.300s: %s", path, strerror(errno));
    if (!create)
        return true;
    int code = posix_fallocate(job->descriptor, 0, (off_t)shard->bytes);
    if (code == EOPNOTSUPP || code == EINVAL)
        code = ftruncate(job->descriptor, (off_t)shard->bytes) == 0 ? 0 : errno;
    if (code != 0)
        return write_failed(job, code, &job->error);
    bool good =
        shard->pieces > 0 || write_at(job, shard->header, shard->header_bytes, 0, &job->error);
    for (int i = 0; good && i < shard->pieces; i++)
        good = write_at(job, shard->header + shard->piece[i].offset, shard->piece[i].bytes,
                        shard->piece[i].place, &job->error);
    return good;
}

// All ranks learn whether one of them failed; then everything temporary goes, and the job stops.
static void agree(Job *job)
{
    if (run_maximum(job->run, job->error.exit_code != 0) == 0)
        return;
    if (job->descriptor >= 0)
        close(job->descriptor);
    if (job->finish.running)
        pthread_join(job->finish.thread, NULL);
    char ignored[DIGEST_TEXT_BYTES];
    Error also = {0};
    if (job->chase)
        rewrite_chase_end(job->chase, ignored, &also);
    run_barrier(job->run);
    if (job->run->rank == 0)
        rewrite_folder_remove(&job->folder);
    run_agree(job->run, &job->error);
}

// ---- units by threads ----

static void read_ahead(const Job *job, Worker *worker, int64_t index)
{
    const RewriteUnit *unit = &job->units.unit[index];
    const RewriteTensor *tensor = &job->rewrite->tensor[unit->tensor];
    rewrite_read_ahead(&worker->values, tensor, unit->pick, row_of(tensor, unit), unit->rows);
}

// Units [first, last), and those that are wanted from the disk meanwhile.
typedef struct Share {
    int64_t next, asked, last;
    int64_t done;         // all before it are
    uint64_t bytes_ahead; // of units asked for and not yet taken
} Share;

// Takes the next unit; -1 when there is none. Wishes to the disk are made by who takes it.
static int64_t take_unit(const Job *job, Worker *worker, Share *share)
{
    int64_t mine = -1, from = 0, to = 0;
#pragma omp critical(rewrite_take_unit)
    if (share->next < share->last) {
        mine = share->next++;
        share->bytes_ahead -= mine < share->asked ? job->units.unit[mine].bytes : 0;
        share->asked = share->asked > mine ? share->asked : mine + 1;
        from = share->asked;
        while (share->asked < share->last && share->bytes_ahead < ahead_bytes)
            share->bytes_ahead += job->units.unit[share->asked++].bytes;
        to = share->asked;
    }
    for (; from < to; from++)
        read_ahead(job, worker, from);
    return mine;
}

static void mark_done(Job *job, Share *share, int64_t index)
{
    uint64_t there = 0;
#pragma omp critical(rewrite_mark_done)
    {
        job->units.unit[index].done = true;
        while (share->done < share->last && job->units.unit[share->done].done)
            share->done++;
        there = share->done < share->last ? job->units.unit[share->done].ahead : UINT64_MAX;
    }
    if (job->chase && there != UINT64_MAX)
        rewrite_chase_advance(job->chase, there);
}

static bool has_failed(const Job *job)
{
    bool failed;
#pragma omp atomic read
    failed = job->failed;
    return failed;
}

static bool has_units(Share *share)
{
    bool has;
#pragma omp critical(rewrite_take_unit)
    has = share->next < share->last;
    return has;
}

// The digest goes first: it alone cannot be divided among threads.
static void work(Job *job, Worker *worker, Share *share, bool shows)
{
    device_select(worker->values.device, worker->values.device_index);
    for (int64_t i; !has_failed(job);) {
        while (job->chase && has_units(share) && rewrite_chase_step(job->chase))
            continue;
        if ((i = take_unit(job, worker, share)) < 0)
            break;
        if (!do_unit(job, worker, &job->units.unit[i])) {
#pragma omp atomic write
            job->failed = true;
        } else {
            mark_done(job, share, i);
        }
        if (shows)
            progress_update(&job->progress,
                            (int64_t)((job->total + worker->read * (uint64_t)job->workers *
                                                        (uint64_t)job->run->ranks) >>
                                      20));
    }
}

static void do_units(Job *job, const RewriteShard *shard)
{
    Share share = {0};
    rewrite_units_make(job->rewrite, shard, job->worker[0].values.device, &job->units);
    rewrite_units_share(&job->units, job->run->rank, job->run->ranks, &share.next, &share.last);
    share.asked = share.done = share.next;
    for (int i = 0; i < job->workers; i++)
        job->worker[i].read = 0;
#pragma omp parallel num_threads(job->workers)
    work(job, &job->worker[omp_get_thread_num()], &share, omp_get_thread_num() == 0);
    for (int i = 0; i < job->workers; i++) {
        job->read += job->worker[i].read;
        if (job->error.exit_code == 0)
            job->error = job->worker[i].error;
    }
}

// ---- the end of a shard ----

static int owner_of(const Job *job, int shard)
{
    return job->rewrite->request->layout == LAYOUT_TORCHAO_BIN ? 0 : shard % job->run->ranks;
}

// While the digest is made, the disk goes on with what sync_file_range gave it.
static void *finish_shard(void *context)
{
    Finish *finish = context;
    const Job *job = finish->job;
    const Rewrite *rewrite = job->rewrite;
    const RewriteShard *shard = &rewrite->shard[finish->shard];
    char path[PATH_BYTES];
    path_in(job, shard->name, ".tmp", path);
    bool good = true;
    if (owner_of(job, finish->shard) == job->run->rank) {
        if (rewrite->request->layout == LAYOUT_TORCHAO_BIN)
            good = rewrite_torch_finish(shard, path, &finish->error);
        char *digest = job->digest[finish->shard];
        if (finish->chase)
            good = rewrite_chase_end(finish->chase, digest, &finish->error);
        else if (good && rewrite->request->hash)
            good = digest_file(path, digest, &finish->error);
    }
    if (good && fdatasync(finish->descriptor) != 0)
        write_failed(job, errno, &finish->error);
    close(finish->descriptor);
    return NULL;
}

static void begin_finish(Job *job, int shard)
{
    job->finish =
        (Finish){.job = job, .shard = shard, .descriptor = job->descriptor, .chase = job->chase};
    job->descriptor = -1;
    if (job->chase)
        rewrite_chase_advance(job->chase, job->rewrite->shard[shard].bytes);
    job->chase = NULL;
    CHECK(pthread_create(&job->finish.thread, NULL, finish_shard, &job->finish) == 0,
          EXIT_CODE_HARDWARE, "raise the limit of processes (ulimit -u)",
          "a thread cannot be started");
    job->finish.running = true;
}

// The shard that is being finished, if any, gets its name.
static void end_finish(Job *job)
{
    char from[PATH_BYTES], to[PATH_BYTES];
    if (!job->finish.running)
        return;
    pthread_join(job->finish.thread, NULL);
    job->finish.running = false;
    job->error = job->finish.error;
    agree(job);
    const char *name = job->rewrite->shard[job->finish.shard].name;
    path_in(job, name, ".tmp", from);
    path_in(job, name, "", to);
    if (job->run->rank == 0)
        file_publish(from, to, &job->error);
    agree(job);
}

static void do_shard(Job *job, int index)
{
    const RewriteShard *shard = &job->rewrite->shard[index];
    if (job->run->rank == 0)
        open_shard(job, shard, true);
    agree(job);
    if (job->run->rank != 0)
        open_shard(job, shard, false);
    agree(job);
    // Alone one knows which bytes are there; an archive's check sums come last.
    bool torch = job->rewrite->request->layout == LAYOUT_TORCHAO_BIN;
    if (job->rewrite->request->hash && job->run->ranks == 1 && !torch)
        job->chase = rewrite_chase_begin(job->descriptor);
    do_units(job, shard);
    agree(job);
    end_finish(job);
    begin_finish(job, index);
    job->total += shard->bytes;
}

// ---- digests: made by the owners, of shards of an earlier run only now ----

static void make_digests(Job *job)
{
    const Rewrite *rewrite = job->rewrite;
    if (!rewrite->request->hash)
        return;
    for (int i = 0; i < rewrite->shards && job->error.exit_code == 0; i++) {
        char path[PATH_BYTES];
        path_in(job, rewrite->shard[i].name, "", path);
        if (owner_of(job, i) == job->run->rank && !job->digest[i][0])
            digest_file(path, job->digest[i], &job->error);
    }
    agree(job);
    char(*all)[DIGEST_TEXT_BYTES] = calloc((size_t)job->run->ranks, sizeof(*all));
    CHECK(all, EXIT_CODE_HARDWARE, "free host memory", "no host memory for digests");
    for (int i = 0; i < rewrite->shards; i++) {
        run_gather(job->run, job->digest[i], sizeof(*all), all);
        if (job->run->rank == 0)
            memcpy(job->digest[i], all[owner_of(job, i)], sizeof(*all));
    }
    free(all);
}

// Room for what is still to be written, before anything is.
static void check_room(Job *job)
{
    struct statvfs space;
    uint64_t needed = 0;
    for (int i = 0; i < job->rewrite->shards; i++)
        if (!rewrite_folder_has(&job->folder, &job->rewrite->shard[i]))
            needed += job->rewrite->shard[i].bytes;
    if (statvfs(job->folder.staging, &space) == 0 &&
        (uint64_t)space.f_bavail * space.f_frsize < needed)
        write_failed(job, ENOSPC, &job->error);
}

int rewrite_workers(const Run *run, DeviceKind device)
{
    return device == DEVICE_CPU ? run->threads : run->threads + 2;
}

static void make_workers(Job *job)
{
    RewriteValues first;
    rewrite_values_create(job->run, job->rewrite, &first);
    job->workers = rewrite_workers(job->run, first.device);
    job->worker = calloc((size_t)job->workers, sizeof(*job->worker));
    CHECK(job->worker, EXIT_CODE_HARDWARE, "free host memory", "no host memory for threads");
    job->worker[0].values = first;
    for (int i = 1; i < job->workers; i++)
        rewrite_values_create_beside(&first, &job->worker[i].values);
}

static RewriteReport end_workers(Job *job)
{
    RewriteReport report = {.bytes_read = job->read};
    for (int i = job->workers - 1; i >= 0; i--) {
        report.bytes_written += job->worker[i].written;
        rewrite_values_destroy(&job->worker[i].values);
    }
    free(job->worker);
    return report;
}

RewriteReport rewrite_run(const Run *run, Rewrite *rewrite)
{
    double start = clock_s();
    Job job = {.run = run, .rewrite = rewrite, .descriptor = -1};
    Error refused = {0};
    if (run->rank == 0)
        rewrite_folder_begin(rewrite, &job.folder, &refused);
    run_agree(run, &refused);
    run_broadcast(run, &job.folder, sizeof(job.folder));
    if (run->rank == 0)
        check_room(&job);
    agree(&job);
    make_workers(&job);
    job.digest = calloc((size_t)rewrite->shards + 1, sizeof(*job.digest));
    CHECK(job.digest, EXIT_CODE_HARDWARE, "free host memory", "no host memory for digests");
    job.progress = progress_begin(run, "MiB", (int64_t)(rewrite->bytes >> 20));
    for (int i = 0; i < rewrite->shards; i++) {
        bool done = run->rank == 0 && rewrite_folder_has(&job.folder, &rewrite->shard[i]);
        if (run_maximum(run, done) == 0)
            do_shard(&job, i);
        if (run_stop_requested(run)) {
            end_finish(&job);
            progress_end(&job.progress);
            CHECK_ALL(false, EXIT_CODE_RESUMABLE, "run the same command with --resume",
                      "stopped after %d of %d files, which are kept in %s", i + 1, rewrite->shards,
                      job.folder.staging);
        }
    }
    end_finish(&job);
    progress_end(&job.progress);
    make_digests(&job);
    if (run->rank == 0)
        rewrite_folder_finish(rewrite, &job.folder, (const char(*)[65])job.digest, &job.error);
    run_agree(run, &job.error);
    RewriteReport report = end_workers(&job);
    rewrite_units_release(&job.units);
    free(job.digest);
    report.seconds = clock_s() - start;
    return report;
}
