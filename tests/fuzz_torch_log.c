// Any bytes are a log: no crash, every line counted once, the same whatever the pieces it comes in
// and whether or not it is read briefly, and a report that is valid JSON. The first byte chooses.
// Run by program_fuzz.sh.
#include "results/graph/torch_log_show.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static TorchLog *parse(const char *text, size_t bytes, size_t piece, bool brief)
{
    TorchLog *log = torch_log_create();
    log->brief = brief;
    torch_log_begin_file(log, "fuzz", 0);
    for (size_t at = 0; at < bytes; at += piece)
        torch_log_feed(log, text + at, bytes - at < piece ? bytes - at : piece);
    torch_log_end_file(log);
    torch_log_finish(log);
    return log;
}

static void require(bool condition)
{
    if (!condition)
        abort();
}

// What the page walks over must lie within its arrays.
static void require_sound(const TorchLog *log)
{
    const LineCounts *lines = &log->lines;
    require(lines->read == lines->understood + lines->noise + lines->unknown);
    for (int64_t g = 0; g < log->graphs.count; g++) {
        const TracedGraph *graph = &log->graphs.items[g];
        require(graph->parent < log->graphs.count && graph->module < log->modules.count);
        for (int64_t n = 0; n < graph->nodes.count; n++) {
            const GraphNode *node = &graph->nodes.items[n];
            require(node->place < graph->places.count);
            require(node->inputs.first + node->inputs.count <= graph->inputs.count);
            for (int64_t i = 0; i < node->inputs.count; i++)
                require(graph->inputs.items[node->inputs.first + i] < n);
        }
    }
    for (int64_t k = 0; k < log->kernels.count; k++) {
        const LogKernel *kernel = &log->kernels.items[k];
        const LogModule *module = &log->modules.items[kernel->module];
        for (int64_t i = 0; i < kernel->nodes.count; i++)
            require(kernel->nodes.items[i] < log->graphs.items[module->graph].nodes.count);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    size_t piece = bytes ? 1 + data[0] * 16u : 1;
    TorchLog *whole = parse((const char *)data, bytes, bytes ? bytes : 1, false);
    require_sound(whole);
    if (bytes && data[0] % 4 == 0) { // the dearer half of the checks on a part of the inputs
        Json *report = torch_log_json(whole);
        TorchLog *pieces = parse((const char *)data, bytes, piece, data[0] % 8 == 0);
        Json *other = torch_log_json(pieces);
        char *a = json_print(report, false), *b = json_print(other, false);
        Error error = {0};
        Json *back = json_parse(a, strlen(a), &error);
        require(strcmp(a, b) == 0 && back != NULL);
        json_destroy(back);
        json_destroy(other);
        torch_log_destroy(pieces);
        json_destroy(report);
        free(a);
        free(b);
    }
    torch_log_destroy(whole);
    return 0;
}
