// torch_log.c -- lines in, one fate each: the block that their process has open takes them, or they
// are known noise, or they are unknown and shown.
#include "results/graph/torch_log_parser.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_PATH_BYTES = 200 };

TorchLog *torch_log_create(void)
{
    TorchLog *log = calloc(1, sizeof(*log));
    struct TorchLogParser *parser = calloc(1, sizeof(*parser));
    CHECK(log && parser, EXIT_CODE_HARDWARE, "free memory", "no memory for a log");
    log->pool = pool_create();
    log->parser = parser;
    return log;
}

void pending_clear(PendingComments *pending)
{
    free(pending->source_nodes.items);
    free(pending->original_aten.items);
    free(pending->fragment.items);
    *pending = (PendingComments){.hash = "", .user_file = "", .kind = ""};
}

static void destroy_parser(struct TorchLogParser *parser)
{
    if (!parser)
        return;
    for (int64_t i = 0; i < parser->streams.count; i++) {
        Stream *stream = &parser->streams.items[i];
        pending_clear(&stream->pending);
        name_map_destroy(&stream->hint_of_name);
        free(stream->hints.items);
        free(stream->code.items);
    }
    free(parser->streams.items);
    name_map_destroy(&parser->graph_of_key);
    free(parser->partial.items);
    free(parser->plain.items);
    free(parser);
}

static void destroy_module(LogModule *module)
{
    module_forget_calls(module);
    free(module->kernels.items);
    name_map_destroy(&module->kernel_of_name);
}

void graph_forget_nodes(TracedGraph *graph)
{
    free(graph->nodes.items);
    free(graph->places.items);
    free(graph->inputs.items);
    graph->nodes.items = NULL;
    graph->nodes.count = graph->nodes.capacity = 0;
    graph->places.items = NULL;
    graph->places.count = graph->places.capacity = 0;
    graph->inputs = (IntList){NULL, 0, 0};
    name_map_destroy(&graph->node_of_name);
}

void torch_log_destroy(TorchLog *log)
{
    if (!log)
        return;
    destroy_parser(log->parser);
    for (int64_t i = 0; i < log->graphs.count; i++)
        graph_forget_nodes(&log->graphs.items[i]);
    for (int64_t i = 0; i < log->modules.count; i++)
        destroy_module(&log->modules.items[i]);
    for (int64_t i = 0; i < log->kernels.count; i++) {
        LogKernel *kernel = &log->kernels.items[i];
        free(kernel->source_nodes.items);
        free(kernel->original_aten.items);
        free(kernel->fragment.items);
        free(kernel->parameters.items);
        free(kernel->nodes.items);
    }
    free(log->graphs.items);
    free(log->modules.items);
    free(log->kernels.items);
    free(log->files.items);
    pool_destroy(log->pool);
    free(log);
}

const char *keep(TorchLog *log, Slice slice)
{
    return slice.bytes ? pool_keep(log->pool, slice) : "";
}

void names_add(TorchLog *log, NameList *names, Slice list)
{
    Slice item;
    while (slice_take_item(&list, &item))
        if (item.bytes)
            *GROW(*names) = keep(log, item);
}

void buffer_append(Buffer *buffer, Slice text)
{
    if (buffer->count + (int64_t)text.bytes > buffer->capacity) {
        buffer->capacity = 2 * (buffer->count + (int64_t)text.bytes);
        buffer->items = realloc(buffer->items, (size_t)buffer->capacity);
        CHECK(buffer->items, EXIT_CODE_HARDWARE, "free memory, or give a smaller log",
              "no memory for %lld bytes of a log", (long long)buffer->capacity);
    }
    if (text.bytes)
        memcpy(buffer->items + buffer->count, text.at, text.bytes);
    buffer->count += (int64_t)text.bytes;
}

// ---- blocks ----

static Stream *stream_of(TorchLog *log, const LogLine *line)
{
    struct TorchLogParser *parser = log->parser;
    int rank = line->rank >= 0 ? line->rank : log->files.items[log->files.count - 1].rank;
    for (int64_t i = 0; i < parser->streams.count; i++) {
        int64_t at = (parser->last_stream + i) % parser->streams.count;
        Stream *stream = &parser->streams.items[at];
        if (stream->rank == rank && stream->process == line->process) {
            parser->last_stream = at;
            return stream;
        }
    }
    parser->last_stream = parser->streams.count;
    Stream *stream = GROW(parser->streams);
    stream->rank = rank;
    stream->process = line->process;
    stream->graph = stream->top_graph = stream->module = stream->kernel = stream->place = -1;
    stream->compile_id = stream->next_path = "";
    pending_clear(&stream->pending);
    return stream;
}

static void close_block(TorchLog *log, Stream *stream)
{
    if (stream->block == BLOCK_CODE)
        code_block_end(log, stream);
    stream->block = BLOCK_NONE;
    stream->graph = -1;
}

static LineFate take_code_path(TorchLog *log, Stream *stream, Slice path)
{
    const char *kept = keep(log, slice_trim(path));
    LogModule *module = stream->module < 0 ? NULL : &log->modules.items[stream->module];
    if (module && (!module->path[0] || strcmp(module->path, kept) == 0))
        module->path = kept;
    else
        stream->next_path = kept; // printed before its code, as old releases do
    return LINE_UNDERSTOOD;
}

// What a message is about, from its first line; closes what the process had open before.
static LineFate begin_message(TorchLog *log, Stream *stream, const LogLine *line)
{
    Slice text = slice_trim(line->text), rest = text;
    close_block(log, stream);
    stream->message = line->message;
    if (!slice_is(line->compile_id, stream->compile_id))
        stream->compile_id = keep(log, line->compile_id);
    if (slice_take(&rest, "Output code written to:"))
        return take_code_path(log, stream, rest);
    if (slice_is(text, "Output code:")) {
        stream->block = BLOCK_CODE;
        code_block_begin(log, stream, line);
        return LINE_UNDERSTOOD;
    }
    if (slice_is(text, "TRACED GRAPH")) {
        stream->block = BLOCK_TITLE;
        return LINE_UNDERSTOOD;
    }
    bool one_line = slice_starts(text, "aot_config id:");
    stream->block = one_line ? BLOCK_NONE : BLOCK_SKIPPED;
    return LINE_NOISE;
}

// A message that a logging format of the user's own introduces: what it says stands at the end.
static bool begins_custom(Slice text)
{
    Slice line = slice_trim(text);
    return slice_ends(line, "TRACED GRAPH") || slice_ends(line, "Output code:") ||
           (slice_ends(line, ".py") && slice_find(line, "Output code written to: ") < line.bytes);
}

static LogLine custom_line(const LogLine *line)
{
    LogLine inner = *line;
    size_t path = slice_find(line->text, "Output code written to: ");
    Slice text = slice_trim(line->text);
    if (path < line->text.bytes)
        inner.text = slice_after(line->text, path);
    else
        inner.text = slice_of(slice_ends(text, "TRACED GRAPH") ? "TRACED GRAPH" : "Output code:");
    return inner;
}

// ---- what stands between the messages ----

// "/site-packages/x.py:12: UserWarning: text", "x.py:12: FutureWarning: ..."
static bool is_warning(Slice text)
{
    Slice head = slice_until(text, FIRST_PATH_BYTES);
    if (head.bytes == 0 || head.at[0] == ' ' || head.at[0] == '#')
        return false;
    size_t at = slice_find(head, "Warning: ");
    if (at == head.bytes)
        return false;
    Slice place = slice_until(head, at);
    size_t colon = slice_find(place, ".py:");
    return colon < place.bytes;
}

// The line of code that warned stands behind the warning: two spaces and its text. Graphs and
// generated functions are indented by four or more.
static bool is_warning_code(Slice text)
{
    return text.bytes > 2 && slice_starts(text, "  ") && text.at[2] != ' ';
}

// The profiler's C++ part: "ERROR:2026-11-23 12:35:44 32479:32479 DeviceProperties.cpp:48] ..."
static bool is_by_kineto(Slice text)
{
    static const char *const levels[] = {"VERBOSE:", "INFO:", "WARNING:", "ERROR:", "STAGE:"};
    int64_t number;
    for (size_t i = 0; i < COUNT_OF(levels); i++) {
        Slice rest = text;
        if (slice_take(&rest, levels[i]))
            return slice_take_number(&rest, &number) && slice_starts(rest, "-");
    }
    return false;
}

static bool is_known_noise(Slice text)
{
    static const char *const starts[] = {
        "Self CPU time total:",
        "Self CUDA time total:",
        "AUTOTUNE ",
        "SingleProcess AUTOTUNE",
        "*****",
        "Setting OMP_NUM_THREADS",
        "srun: ",
        "slurmstepd: ",
        "skipping cudagraphs",
        "  triton_",
        "  extern_kernels.",
    };
    static const char *const parts[] = {" NCCL INFO ", " NCCL WARN ", "it/s]", "s/it]", "%|"};
    for (size_t i = 0; i < COUNT_OF(starts); i++)
        if (slice_starts(text, starts[i]))
            return true;
    Slice head = slice_until(text, FIRST_PATH_BYTES);
    bool by_glog = head.bytes > 2 && head.at[0] == '[' && memchr("IWEF", head.at[1], 4) &&
                   head.at[2] >= '0' && head.at[2] <= '9';
    if (by_glog || is_by_kineto(text)) // C++ parts: "[W1123 02:53:40.684 Module.cpp:12] ..."
        return true;
    for (size_t i = 0; i < COUNT_OF(parts); i++)
        if (slice_find(head, parts[i]) < head.bytes)
            return true;
    return false;
}

static bool is_rule(Slice text) // "-----  ------  -----", around the rows of a profiler table
{
    if (!slice_starts(text, "----------") || slice_find(text, "-  -") == text.bytes)
        return false;
    for (size_t i = 0; i < text.bytes; i++)
        if (text.at[i] != '-' && text.at[i] != ' ')
            return false;
    return true;
}

LineFate outside_line(TorchLog *log, Slice text)
{
    enum { TABLE_RULES = 3 };
    struct TorchLogParser *parser = log->parser;
    bool after_warning = parser->after_warning;
    parser->after_warning = false;
    if (is_rule(text)) {
        parser->dashes = (parser->dashes + 1) % TABLE_RULES;
        return LINE_NOISE;
    }
    if (slice_trim(text).bytes == 0 || parser->dashes > 0)
        return LINE_NOISE;
    if (after_warning && is_warning_code(text))
        return LINE_NOISE;
    if (is_warning(text)) {
        parser->after_warning = true;
        return LINE_NOISE;
    }
    return is_known_noise(text) ? LINE_NOISE : LINE_UNKNOWN;
}

// Somebody else's line in the middle of a message: what a program or another thread printed stands
// at the left edge, where no line of a graph does.
static bool is_foreign(const Stream *stream, Slice text)
{
    if (is_warning(text))
        return true;
    if (text.bytes == 0 || text.at[0] == ' ' || text.at[0] == '\t')
        return false;
    return stream->block != BLOCK_CODE && stream->block != BLOCK_SKIPPED;
}

static LineFate skipped_line(TorchLog *log, Slice text)
{
    bool continues = text.bytes == 0 || memchr(" \t+-|#", text.at[0], 6);
    return continues ? LINE_NOISE : outside_line(log, text);
}

static LineFate block_line(TorchLog *log, Stream *stream, const LogLine *line)
{
    switch (stream->block) {
    case BLOCK_TITLE:
        return graph_block_title(log, stream, line);
    case BLOCK_GRAPH:
        return graph_block_line(log, stream, line);
    case BLOCK_CODE:
        return code_block_line(log, stream, line);
    case BLOCK_SKIPPED:
        return line->form == LINE_PREFIX ? LINE_NOISE : skipped_line(log, line->text);
    case BLOCK_NONE:
        break;
    }
    return line->form == LINE_PREFIX ? LINE_NOISE : outside_line(log, line->text);
}

static bool begins_here(const Stream *stream, const LogLine *line)
{
    if (line->form == LINE_SHORT)
        return true;
    if (line->form == LINE_BARE)
        return false;
    Slice text = line->text;
    return stream->block == BLOCK_NONE || stream->message != line->message ||
           slice_starts(text, "TRACED GRAPH") || slice_starts(text, "Output code:") ||
           slice_starts(text, "Output code written to:") || slice_starts(text, "aot_config id:");
}

static LineFate take_line(TorchLog *log, const LogLine *line)
{
    Stream *stream = stream_of(log, line);
    if (begins_here(stream, line))
        return begin_message(log, stream, line);
    if (line->form != LINE_BARE)
        return block_line(log, stream, line);
    bool within_code = stream->block == BLOCK_CODE && stream->state != CODE_TOP;
    bool within_string =
        within_code && (stream->state == CODE_KERNEL || stream->state == CODE_STRING);
    if (!within_code && begins_custom(line->text)) {
        LogLine inner = custom_line(line);
        return begin_message(log, stream, &inner);
    }
    if (is_foreign(stream, line->text))
        return outside_line(log, line->text);
    if (log->parser->after_warning && is_warning_code(line->text) && !within_string)
        return outside_line(log, line->text);
    log->parser->after_warning = false;
    return block_line(log, stream, line);
}

static void count_line(TorchLog *log, Slice text)
{
    LogFile *file = &log->files.items[log->files.count - 1];
    LogLine line = log_line_parse(log->parser, text);
    line.number = ++file->lines;
    log->lines.read++;
    LineFate fate = take_line(log, &line);
    log->lines.understood += fate == LINE_UNDERSTOOD;
    log->lines.noise += fate == LINE_NOISE;
    log->lines.unknown += fate == LINE_UNKNOWN;
    if (fate == LINE_UNKNOWN && log->unknown_count < TORCH_LOG_UNKNOWN_SHOWN)
        log->unknown[log->unknown_count++] =
            (UnknownLine){.file = (int)log->files.count - 1,
                          .line = line.number,
                          .text = keep(log, slice_until(text, TORCH_LOG_EXCERPT_BYTES))};
}

void torch_log_begin_file(TorchLog *log, const char *name, int rank)
{
    LogFile *file = GROW(log->files);
    file->name = keep(log, slice_of(name));
    file->rank = rank;
    log->parser->labelled = log->parser->after_warning = false;
    log->parser->dashes = 0;
}

void torch_log_feed(TorchLog *log, const char *text, size_t bytes)
{
    Buffer *partial = &log->parser->partial;
    Slice rest = {text, bytes};
    while (rest.bytes) {
        size_t end = slice_find_char(rest, '\n');
        Slice line = slice_until(rest, end);
        if (end == rest.bytes || partial->count) {
            buffer_append(partial, line);
            if (end == rest.bytes)
                return;
            line = (Slice){partial->items, (size_t)partial->count};
        }
        count_line(log, line);
        partial->count = 0;
        rest = slice_after(rest, end + 1);
    }
}

void torch_log_end_file(TorchLog *log)
{
    struct TorchLogParser *parser = log->parser;
    if (parser->partial.count)
        count_line(log, (Slice){parser->partial.items, (size_t)parser->partial.count});
    parser->partial.count = 0;
    for (int64_t i = 0; i < parser->streams.count; i++) {
        Stream *stream = &parser->streams.items[i];
        close_block(log, stream);
        stream->module = -1; // a path in the next file belongs to that file's code
        stream->next_path = "";
    }
}
