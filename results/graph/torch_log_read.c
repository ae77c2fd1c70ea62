// torch_log_read.c -- a whole file into a TorchLog.
#include "results/graph/source.h"
#include "results/graph/torch_log.h"

#include <stdlib.h>
#include <string.h>

enum { PIECE_BYTES = 1 << 18 };

static bool feed_all(TorchLog *log, Source *source, Error *error)
{
    char *piece = malloc(PIECE_BYTES);
    CHECK(piece, EXIT_CODE_HARDWARE, "free memory", "no memory to read a log");
    int64_t got;
    while ((got = source_read(source, piece, PIECE_BYTES, error)) > 0)
        torch_log_feed(log, piece, (size_t)got);
    free(piece);
    return got == 0;
}

bool torch_log_read(TorchLog *log, const char *path, int rank, Error *error)
{
    Source *source = source_open(path, error);
    if (!source)
        return false;
    int64_t graphs = log->graphs.count, kernels = log->kernels.count;
    int64_t calls = torch_log_extern_calls(log);
    torch_log_begin_file(log, strcmp(path, "-") == 0 ? "standard input" : path, rank);
    bool good = feed_all(log, source, error);
    torch_log_end_file(log);
    LogFile *file = &log->files.items[log->files.count - 1];
    file->gzip_truncated = source_is_truncated(source);
    source_close(source);
    bool found = log->graphs.count > graphs || log->kernels.count > kernels ||
                 torch_log_extern_calls(log) > calls;
    if (good && !found)
        return error_set(error, EXIT_CODE_DATA,
                         "run the program with TORCH_LOGS=aot_joint_graph,aot_graphs,output_code "
                         "and keep its standard error",
                         "%.300s holds no graph and no kernel: its %lld lines end at line %lld",
                         file->name, (long long)file->lines, (long long)file->lines);
    return good;
}
