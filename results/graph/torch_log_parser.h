// torch_log_parser.h -- inside the log parser: one physical line taken apart, and what each process
// is in the middle of printing.
//
// torch_log_line.c takes a line apart, torch_log.c hands it to the block that its process has open,
// torch_log_graph.c and torch_log_code.c (with torch_log_kernel.c and torch_log_call.c) read the
// blocks, torch_log_link.c joins what they found.
#pragma once

#include "results/graph/torch_log.h"

typedef enum LineForm {
    LINE_BARE,   // no header: a further line of a short message, or somebody else's
    LINE_SHORT,  // "DEBUG:torch._inductor.graph.__output_code:text", first line of a message
    LINE_PREFIX, // "V1206 15:18:15.925000 1500233 torch/_inductor/graph.py:2045] [0/0] text", as
                 // every line of its message; and the form before it, "[2024-02-13 19:34:50,591]
                 // [0/0] ..."
} LineForm;

typedef struct LogLine {
    LineForm form;
    int rank;         // -1: the line names none
    int64_t process;  // process or thread id, 0 unless LINE_PREFIX names one
    uint64_t message; // LINE_PREFIX: the same for all lines of a message (logger and place)
    Slice compile_id; // "0/0", empty
    Slice text;
    int64_t number; // in its file, from 1
} LogLine;

typedef enum LineFate { LINE_UNDERSTOOD, LINE_NOISE, LINE_UNKNOWN } LineFate;

typedef enum BlockKind {
    BLOCK_NONE,
    BLOCK_TITLE, // TRACED GRAPH was seen, its title not yet
    BLOCK_GRAPH,
    BLOCK_CODE,
    BLOCK_SKIPPED, // of a kind that is of no use here: post-grad graphs, guards, other loggers
} BlockKind;

typedef enum CodeState {
    CODE_TOP,
    CODE_KERNEL,    // in the string of a kernel
    CODE_STRING,    // in a string that holds none
    CODE_JIT,       // in a kernel that stands in the module itself
    CODE_MULTILINE, // in the brackets of a statement
    CODE_CALL,      // in call(), partition_N()
    CODE_OTHER,     // in another function or class
} CodeState;

// What comments in front of a kernel or a call said about it.
typedef struct PendingComments {
    NameList source_nodes, original_aten, fragment;
    const char *hash, *user_file, *kind;
    int64_t user_line;
    bool in_fragment;
} PendingComments;

typedef struct Buffer {
    char *items;
    int64_t count, capacity;
} Buffer;

// What one process of one rank is in the middle of.
typedef struct Stream {
    int rank;
    int64_t process;
    BlockKind block;
    uint64_t message;
    const char *compile_id;
    int graph;     // open one (maybe a sub-graph), -1
    int top_graph; // the TRACED GRAPH block it belongs to
    bool in_signature;
    int place;            // last "# File:" comment, -1
    NameMap hint_of_name; // joint graphs name their inputs before they unpack them
    NameList hints;
    int module;            // last one, -1
    const char *next_path; // of a module that is not there yet: old releases print it first
    CodeState state;
    int kernel; // whose text is being read, -1
    int def_indent;
    bool in_parameters;
    const char *quote; // that closes the string
    PendingComments pending;
    Buffer code;
} Stream;

struct TorchLogParser {
    struct {
        Stream *items;
        int64_t count, capacity;
    } streams;
    int64_t last_stream;
    Buffer partial; // a line whose end has not been fed yet
    Buffer plain;   // a line without its colours
    bool labelled;  // srun --label was seen in this file
    int dashes;     // rules of a profiler table seen: rows stand between them
    bool after_warning;
    NameMap graph_of_key; // the last graph that has no module yet
};

// Local. Takes a line apart; colours and launchers' labels are taken off.
LogLine log_line_parse(struct TorchLogParser *parser, Slice line);

// Local. A line that belongs to no block.
LineFate outside_line(TorchLog *log, Slice text);
// Local. Each takes a line of its block and says what became of it.
LineFate graph_block_title(TorchLog *log, Stream *stream, const LogLine *line);
LineFate graph_block_line(TorchLog *log, Stream *stream, const LogLine *line);
void code_block_begin(TorchLog *log, Stream *stream, const LogLine *line);
LineFate code_block_line(TorchLog *log, Stream *stream, const LogLine *line);
void code_block_end(TorchLog *log, Stream *stream);
// Local. Parts of a code block.
void kernel_begin(TorchLog *log, Stream *stream, Slice name, Slice language, Slice device_name,
                  int64_t line);
void kernel_line(TorchLog *log, Stream *stream, Slice text);
void kernel_end(TorchLog *log, Stream *stream);
void call_line(TorchLog *log, Stream *stream, Slice text, int64_t line);
void benchmark_line(TorchLog *log, Stream *stream, Slice text);
void call_comment(TorchLog *log, Stream *stream, Slice text);
void pending_clear(PendingComments *pending);

// Local. Who belongs to whom: a graph waits for its module from its title on.
void graph_awaits_module(TorchLog *log, int graph);
void module_end(TorchLog *log, int module);
void module_forget_calls(LogModule *module);
void graph_forget_nodes(TracedGraph *graph);

// Local. Text keeping for all of them.
const char *keep(TorchLog *log, Slice slice);
void names_add(TorchLog *log, NameList *names, Slice list); // comma-separated
void buffer_append(Buffer *buffer, Slice text);

// Local. Bytes of an element: of "bf16", "torch.bfloat16", "*bf16", "const at::BFloat16*"; 0 =
// never seen.
int element_bytes_of(Slice type);
