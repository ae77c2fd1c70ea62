// rewrite_run.c -- every rank makes its share of every file, in place.
//
// A shard is cut into units: runs of rows of one tensor, each of which is one run of bytes in every
// part. Units are dealt to ranks in the order of the file, by bytes. While a unit is quantised the
// system reads the next one ahead and writes the last one behind (MADV_WILLNEED,
// sync_file_range), so disk and cores work at the same time; pages of the source are let go after
// use, so that memory stays that of the unit at hand.
#include "experiments/rewrite/rewrite.h"

#include "experiments/rewrite/rewrite_torch.h"
#include "experiments/rewrite/rewrite_values.h"
#include "harness/progress.h"
#include "quant/digest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

static const uint64_t usual_unit_bytes = 32 << 20;

typedef struct Unit {
    int tensor;
    int64_t matrix, first, rows;
    uint64_t bytes; // of the source
} Unit;

typedef struct Job {
    const Run *run;
    Rewrite *rewrite;
    RewriteFolder folder;
    RewriteValues values;
    int descriptor;
    Unit *unit;
    int64_t units, capacity;
    uint64_t read, written, total;
    Progress progress;
    char (*digest)[DIGEST_TEXT_BYTES]; // [shards]
    Error error;
} Job;

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

// ---- units ----

static void add_unit(Job *job, Unit unit)
{
    if (job->units == job->capacity) {
        job->capacity = job->capacity ? 2 * job->capacity : 1024;
        job->unit = realloc(job->unit, (size_t)job->capacity * sizeof(*job->unit));
        CHECK(job->unit, EXIT_CODE_HARDWARE, "free host memory", "no host memory for units");
    }
    job->unit[job->units++] = unit;
}

static void add_units(Job *job, int index)
{
    const RewriteTensor *tensor = &job->rewrite->tensor[index];
    bool quantised = rewrite_is_quantised(tensor);
    int64_t columns = rewrite_columns(tensor);
    int64_t matrices = quantised ? tensor->stored.q.matrices : 1;
    int64_t rows = quantised ? tensor->stored.q.rows : rewrite_rows(tensor);
    int64_t step = quantised ? stored_row_step(&tensor->stored) : 1;
    uint64_t row_bytes = dtype_bytes(tensor->tensor.dtype, (uint64_t)columns);
    if (rows == 0 || columns == 0)
        return;
    uint64_t unit_bytes = job->rewrite->request->unit_bytes;
    unit_bytes = unit_bytes > 0 ? unit_bytes : usual_unit_bytes;
    int64_t most = (int64_t)(unit_bytes / (row_bytes > 0 ? row_bytes : 1));
    int64_t least = step > 0 ? step : rows;
    int64_t each = most < least ? least : most / least * least;
    if (dtype_row(tensor->tensor.dtype)->bits < 8) // rows may end inside a byte
        each = rows;
    for (int64_t matrix = 0; matrix < matrices; matrix++)
        for (int64_t first = 0; first < rows; first += each) {
            int64_t count = first + each < rows ? each : rows - first;
            add_unit(job, (Unit){index, matrix, first, count, (uint64_t)count * row_bytes});
        }
}

static void make_units(Job *job, const RewriteShard *shard)
{
    job->units = 0;
    for (int i = shard->first; i < shard->first + shard->count; i++)
        add_units(job, i);
}

// The units of this rank: those whose middle lies in its share of the bytes.
static void my_units(const Job *job, int64_t *first, int64_t *last)
{
    uint64_t total = 0, before = 0;
    for (int64_t i = 0; i < job->units; i++)
        total += job->unit[i].bytes;
    *first = *last = job->units;
    for (int64_t i = 0; i < job->units; i++) {
        double middle = (double)before + (double)job->unit[i].bytes / 2;
        int rank = (int)(middle * job->run->ranks / (double)(total > 0 ? total : 1));
        rank = rank < job->run->ranks ? rank : job->run->ranks - 1;
        before += job->unit[i].bytes;
        if (rank != job->run->rank)
            continue;
        *first = *first == job->units ? i : *first;
        *last = i + 1;
    }
}

// ---- writing ----

static bool write_failed(Job *job, int code)
{
    const char *staging = job->folder.staging;
    if (code != ENOSPC && code != EDQUOT)
        return error_set(&job->error, EXIT_CODE_IO, "check the disk and the file system",
                         "cannot write in %.200s: %s", staging, strerror(code));
    return error_set(&job->error, EXIT_CODE_IO,
                     "make room there (see df -h), or write to another disk",
                     "the disk is full: %llu bytes are needed for %.200s; what was written is "
                     "removed, the source is as it was",
                     (unsigned long long)job->rewrite->bytes, job->rewrite->request->out);
}

static bool write_at(Job *job, const void *data, uint64_t bytes, uint64_t place)
{
    for (uint64_t done = 0; done < bytes;) {
        uint64_t left = bytes - done;
        ssize_t count = pwrite(job->descriptor, (const char *)data + done,
                               left < 1u << 30 ? left : 1u << 30, (off_t)(place + done));
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return write_failed(job, count < 0 ? errno : ENOSPC);
        done += (uint64_t)count;
    }
    sync_file_range(job->descriptor, (off_t)place, (off_t)bytes, SYNC_FILE_RANGE_WRITE);
    job->written += bytes;
    return true;
}

static bool do_quantised(Job *job, const Unit *unit)
{
    const RewriteTensor *tensor = &job->rewrite->tensor[unit->tensor];
    StoredSlice slice;
    StoredRange ranges[STORED_ROLES];
    stored_slice_create(&tensor->stored, unit->rows, &slice);
    if (tensor->action == REWRITE_MOVE)
        rewrite_move_rows(tensor, unit->matrix, unit->first, &slice.q);
    else
        rewrite_quantise_rows(&job->values, unit->tensor, unit->matrix, unit->first, &slice.q);
    int count = stored_slice_ranges(&tensor->stored, unit->matrix, unit->first, &slice, ranges);
    bool good = true;
    for (int i = 0; good && i < count; i++)
        good = write_at(job, ranges[i].data, ranges[i].bytes,
                        tensor->place[ranges[i].role] + ranges[i].offset);
    stored_slice_destroy(&slice);
    return good;
}

static bool do_plain(Job *job, const Unit *unit)
{
    const RewriteTensor *tensor = &job->rewrite->tensor[unit->tensor];
    uint64_t row_bytes = dtype_bytes(tensor->tensor.dtype, (uint64_t)rewrite_columns(tensor));
    uint64_t place = tensor->place[STORED_CODES] + (uint64_t)unit->first * row_bytes;
    if (dtype_row(tensor->tensor.dtype)->bits < 8)
        return write_at(job, tensor->segment[0].weight->tensor.data, tensor_bytes(&tensor->tensor),
                        place);
    if (tensor->action != REWRITE_COPY) {
        const void *values = rewrite_read_rows(&job->values, tensor, unit->first, unit->rows);
        return write_at(job, values, (uint64_t)unit->rows * row_bytes, place);
    }
    int64_t row = unit->first, end = unit->first + unit->rows;
    while (row < end) {
        int64_t rows = end - row;
        const char *data = rewrite_source_rows(tensor, row, &rows);
        if (!write_at(job, data, (uint64_t)rows * row_bytes, place))
            return false;
        place += (uint64_t)rows * row_bytes;
        row += rows;
    }
    return true;
}

static bool do_unit(Job *job, const Unit *unit)
{
    const RewriteTensor *tensor = &job->rewrite->tensor[unit->tensor];
    bool good = rewrite_is_quantised(tensor) ? do_quantised(job, unit) : do_plain(job, unit);
    int64_t row = unit->first;
    if (rewrite_is_quantised(tensor))
        row += unit->matrix * tensor->stored.q.rows;
    rewrite_release_rows(&job->values, tensor, row, unit->rows);
    job->read += unit->bytes;
    return good;
}

// ---- one shard ----

static bool open_shard(Job *job, const RewriteShard *shard, bool create)
{
    char path[CHECKPOINT_PATH_BYTES + 256];
    snprintf(path, sizeof(path), "%s/%s.tmp", job->folder.staging, shard->name);
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
        return write_failed(job, code);
    bool good = shard->pieces > 0 || write_at(job, shard->header, shard->header_bytes, 0);
    for (int i = 0; good && i < shard->pieces; i++)
        good = write_at(job, shard->header + shard->piece[i].offset, shard->piece[i].bytes,
                        shard->piece[i].place);
    return good;
}

// All ranks learn whether one of them failed; then everything temporary goes, and the job stops.
static void agree(Job *job)
{
    if (run_maximum(job->run, job->error.exit_code != 0) == 0)
        return;
    if (job->descriptor >= 0)
        close(job->descriptor);
    run_barrier(job->run);
    if (job->run->rank == 0)
        rewrite_folder_remove(&job->folder);
    run_agree(job->run, &job->error);
}

static bool publish_shard(Job *job, const RewriteShard *shard)
{
    char from[CHECKPOINT_PATH_BYTES + 256], to[CHECKPOINT_PATH_BYTES + 256];
    snprintf(from, sizeof(from), "%s/%s.tmp", job->folder.staging, shard->name);
    snprintf(to, sizeof(to), "%s/%s", job->folder.staging, shard->name);
    if (job->rewrite->request->layout == LAYOUT_TORCHAO_BIN &&
        !rewrite_torch_finish(shard, from, &job->error))
        return false;
    return file_publish(from, to, &job->error);
}

static void do_shard(Job *job, const RewriteShard *shard)
{
    if (job->run->rank == 0)
        open_shard(job, shard, true);
    agree(job);
    if (job->run->rank != 0)
        open_shard(job, shard, false);
    agree(job);
    make_units(job, shard);
    int64_t first, last;
    my_units(job, &first, &last);
    uint64_t before = job->read;
    for (int64_t i = first; i < last && job->error.exit_code == 0; i++) {
        if (i + 1 < last) {
            const Unit *next = &job->unit[i + 1];
            const RewriteTensor *tensor = &job->rewrite->tensor[next->tensor];
            int64_t matrix_rows = rewrite_is_quantised(tensor) ? tensor->stored.q.rows : 0;
            rewrite_read_ahead(&job->values, tensor, next->matrix * matrix_rows + next->first,
                               next->rows);
        }
        do_unit(job, &job->unit[i]);
        progress_update(
            &job->progress,
            (int64_t)((job->total + (job->read - before) * (uint64_t)job->run->ranks) >> 20));
    }
    if (job->error.exit_code == 0 && fdatasync(job->descriptor) != 0)
        write_failed(job, errno);
    agree(job);
    close(job->descriptor);
    job->descriptor = -1;
    if (job->run->rank == 0)
        publish_shard(job, shard);
    agree(job);
    job->total += shard->bytes;
}

// ---- digests: shards are dealt to ranks ----

static void make_digests(Job *job)
{
    const Rewrite *rewrite = job->rewrite;
    if (!rewrite->request->hash)
        return;
    for (int i = 0; i < rewrite->shards && job->error.exit_code == 0; i++) {
        char path[CHECKPOINT_PATH_BYTES + 256];
        if (i % job->run->ranks != job->run->rank)
            continue;
        snprintf(path, sizeof(path), "%s/%s", job->folder.staging, rewrite->shard[i].name);
        digest_file(path, job->digest[i], &job->error);
    }
    agree(job);
    char(*all)[DIGEST_TEXT_BYTES] = calloc((size_t)job->run->ranks, sizeof(*all));
    CHECK(all, EXIT_CODE_HARDWARE, "free host memory", "no host memory for digests");
    for (int i = 0; i < rewrite->shards; i++) {
        run_gather(job->run, job->digest[i], sizeof(*all), all);
        if (job->run->rank == 0)
            memcpy(job->digest[i], all[i % job->run->ranks], sizeof(*all));
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
        write_failed(job, ENOSPC);
}

RewriteReport rewrite_run(const Run *run, Rewrite *rewrite)
{
    double start = now_s();
    Job job = {.run = run, .rewrite = rewrite, .descriptor = -1};
    Error refused = {0};
    if (run->rank == 0)
        rewrite_folder_begin(rewrite, &job.folder, &refused);
    run_agree(run, &refused);
    run_broadcast(run, &job.folder, sizeof(job.folder));
    if (run->rank == 0)
        check_room(&job);
    agree(&job);
    rewrite_values_create(run, rewrite, &job.values);
    job.digest = calloc((size_t)rewrite->shards + 1, sizeof(*job.digest));
    CHECK(job.digest, EXIT_CODE_HARDWARE, "free host memory", "no host memory for digests");
    job.progress = progress_begin(run, "MiB", (int64_t)(rewrite->bytes >> 20));
    for (int i = 0; i < rewrite->shards; i++) {
        bool done = run->rank == 0 && rewrite_folder_has(&job.folder, &rewrite->shard[i]);
        if (run_maximum(run, done) == 0)
            do_shard(&job, &rewrite->shard[i]);
        if (run_stop_requested(run)) {
            progress_end(&job.progress);
            CHECK_ALL(false, EXIT_CODE_RESUMABLE, "run the same command with --resume",
                      "stopped after %d of %d files, which are kept in %s", i + 1, rewrite->shards,
                      job.folder.staging);
        }
    }
    progress_end(&job.progress);
    make_digests(&job);
    if (run->rank == 0)
        rewrite_folder_finish(rewrite, &job.folder, (const char(*)[65])job.digest, &job.error);
    run_agree(run, &job.error);
    rewrite_values_destroy(&job.values);
    free(job.unit);
    free(job.digest);
    return (RewriteReport){now_s() - start, job.read, job.written};
}
