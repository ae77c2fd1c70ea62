// Any bytes are a trace: an error or a count, never a crash. The trace is a file in memory, as the
// reader wants a path. Run by program_fuzz.sh.
#include "results/graph/trace_merge.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const char log_text[] =
    "DEBUG:torch.x.__output_code:Output code:\n# AOT ID: ['0_forward']\n"
    "# kernel path: /c/h.py\n"
    "triton_k_0 = async_compile.triton('triton_k_0', '''\ndef triton_k_0(in_ptr0, out_ptr0):\n"
    "''')\ndef call(args):\n    triton_k_0.run(a, b)\n    extern_kernels.mm(a, b, out=c)\n"
    "DEBUG:torch.x.__output_code:Output code:\n# AOT ID: ['0_backward']\n"
    "triton_k_0 = async_compile.triton('triton_k_0', '''\n''')\n";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    char path[64];
    int file = memfd_create("trace", 0);
    if (file < 0 || write(file, data, bytes) != (ssize_t)bytes)
        abort();
    snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
    TorchLog *log = torch_log_create();
    torch_log_begin_file(log, "log", 0);
    torch_log_feed(log, log_text, strlen(log_text));
    torch_log_end_file(log);
    torch_log_finish(log);
    TraceCounts counts = {.pool = NULL};
    Error error = {0};
    bool good = trace_merge(&(TraceMerge){.trace = path, .log = log}, &counts, &error);
    if (good ? counts.merged + counts.unmatched != counts.kernel_events
             : error.exit_code != EXIT_CODE_DATA)
        abort();
    trace_counts_destroy(&counts);
    torch_log_destroy(log);
    close(file);
    return 0;
}
