// torch_log.h -- what PyTorch printed under TORCH_LOGS=aot_joint_graph,aot_graphs,output_code, as
// values: the traced graphs, the generated modules with their kernels and calls, and who made what.
//
// Logs come from strangers and from every release, so the parser goes by content and never by
// version; nothing in a log is an error. Every physical line is counted exactly once as understood,
// noise (known and of no use here) or unknown; unknown ones are shown. The parser keeps copies of
// what it needs: text may be fed in pieces of any size and thrown away. A rank is the one that the
// line names ("[rank3]:", "[1,3]<stderr>:", "3: " under srun --label), else the one given with the
// file.
#pragma once

#include "harness/check.h"
#include "results/graph/slice.h"

enum { TORCH_LOG_UNKNOWN_SHOWN = 8, TORCH_LOG_EXCERPT_BYTES = 160 };

typedef enum GraphKind { GRAPH_JOINT, GRAPH_FORWARD, GRAPH_BACKWARD, GRAPH_INFERENCE } GraphKind;
typedef enum NodeKind { NODE_PLACEHOLDER, NODE_OPERATION, NODE_OUTPUT } NodeKind;

// A range of indices into an array of the same owner.
typedef struct Span {
    int64_t first, count;
} Span;
typedef struct IntList {
    int *items;
    int64_t count, capacity;
} IntList;
typedef struct NameList {
    const char **items;
    int64_t count, capacity;
} NameList;

typedef struct SourcePlace { // "# File: model.py:12 in forward, code: y = x @ w"
    const char *file, *function, *code;
    int64_t line;
} SourcePlace;

typedef struct GraphNode {
    const char *name;
    NodeKind kind;
    const char *hint;      // "f32[8, 4][4, 1]cuda:0", "" when the log has none
    const char *target;    // "torch.ops.aten.mm.default", "var_mean[0]"
    const char *arguments; // as written
    const char *note;      // comment behind it: the role of a parameter; "" usually
    int place;             // index into the graph's places, -1
    Span inputs;           // into the graph's inputs: indices of nodes
    int64_t line;          // of its log file, from 1
} GraphNode;

typedef struct TracedGraph {
    const char *title;      // as printed, "Forward graph 0"
    const char *compile_id; // "0/0", "" when the log has none
    GraphKind kind;
    int64_t id;
    int rank, file;
    int parent;       // the graph whose sub-graph this is, -1: a TRACED GRAPH block itself
    int module;       // the generated module of the same rank and AOT id, -1
    bool has_outputs; // false: the log ends, or goes on with something else, before its return
    int64_t line;
    int64_t placeholders, operations, outputs;
    struct {
        GraphNode *items;
        int64_t count, capacity;
    } nodes;
    struct {
        SourcePlace *items;
        int64_t count, capacity;
    } places;
    IntList inputs;
    NameMap node_of_name;
    int alike; // the graph before with the same kind, id, file and rank, -1
} TracedGraph;

typedef struct KernelParameter {
    const char *name;
    bool reads, writes; // neither: a size or a constant
    int element_bytes;  // of a pointer, 0 = not known
} KernelParameter;

typedef struct LogKernel {
    const char *name;        // variable of the module, which its calls use
    const char *device_name; // what a profiler shows: the name of the function
    const char *kind; // pointwise, reduction, persistent_reduction, template, user_defined, cpp ...
    const char *language; // "triton", "cpp", what stands behind async_compile.
    const char *hash;     // file stem of "# kernel path:", "" if the log has none
    const char *code;
    const char *user_file; // of a user-defined kernel: "# Original path:", ""
    int64_t user_line;
    NameList source_nodes, original_aten, fragment; // fragment: names of graph nodes
    struct {
        KernelParameter *items;
        int64_t count, capacity;
    } parameters;
    IntList nodes;      // of graph torch_log.graphs[module.graph], in graph order
    bool nodes_guessed; // by the operations in the kernel's name, as the log has no fragment
    int module;
    int64_t calls, line;
    double read_bytes, written_bytes; // of its first call; NaN when a shape is not known
} LogKernel;

typedef struct LogBuffer {
    const char *name;
    const char *sizes;  // "64, 256"
    int64_t elements;   // in memory: broadcast dimensions count once; -1 = not known
    int element_bytes;  // 0 = not known
    const char *dtype;  // "float32", "" = not known
    const char *reuses; // the buffer whose memory it took over, ""
    int64_t line;
} LogBuffer;

typedef struct LogCall {
    const char *name;      // the kernel's, or "extern_kernels.mm", "torch.ops.aten.sort.default"
    const char *arguments; // as written
    const char *result;    // variable that takes what it returns, ""
    int kernel;            // -1: extern
    NameList source_nodes, original_aten;
    IntList nodes;
    double read_bytes, written_bytes; // from the shapes; NaN when one of them is not known
    int64_t line;
} LogCall;

typedef struct LogModule {
    const char *aot_id; // "0_forward", "" when the log has none
    const char *compile_id;
    const char *path; // "Output code written to:", ""
    int64_t id;       // -1 when aot_id has none
    GraphKind kind;
    int rank, file;
    int graph; // the traced graph it was made from, -1
    int64_t line;
    int64_t extern_calls;
    IntList kernels; // indices into log.kernels
    struct {
        LogBuffer *items;
        int64_t count, capacity;
    } buffers;
    struct {
        LogCall *items;
        int64_t count, capacity;
    } calls;
    NameMap buffer_of_name, kernel_of_name;
    Pool *pool; // of what its buffers and calls say: the log's; its own while a brief log reads it
} LogModule;

typedef struct LogFile {
    const char *name;
    int rank; // of lines that name none
    int64_t lines;
    bool gzip_truncated;
} LogFile;

typedef struct LineCounts {
    int64_t read, understood, noise, unknown;
} LineCounts;

typedef struct UnknownLine {
    int file;
    int64_t line;
    const char *text; // its beginning
} UnknownLine;

typedef struct TorchLog {
    struct {
        LogFile *items;
        int64_t count, capacity;
    } files;
    struct {
        TracedGraph *items;
        int64_t count, capacity;
    } graphs;
    struct {
        LogModule *items;
        int64_t count, capacity;
    } modules;
    struct {
        LogKernel *items;
        int64_t count, capacity;
    } kernels;
    LineCounts lines;
    UnknownLine unknown[TORCH_LOG_UNKNOWN_SHOWN];
    int unknown_count; // of those shown
    bool brief; // set before the first line: only counts and kernels stay, without code and nodes
    Pool *pool;
    struct TorchLogParser *parser;
} TorchLog;

// Local. Owner: the caller.
TorchLog *torch_log_create(void);
void torch_log_destroy(TorchLog *log);
// Local. The lines that are fed from here on belong to a new file; `rank` counts where they name
// none. A last line without a line end is taken when the file ends.
void torch_log_begin_file(TorchLog *log, const char *name, int rank);
void torch_log_feed(TorchLog *log, const char *text, size_t bytes);
void torch_log_end_file(TorchLog *log);
// Local. After the last file: joins what is not yet joined.
void torch_log_finish(TorchLog *log);
// Local. Reads a whole file ("-": standard input, gzip by content) into the log. Error 66 when it
// is not there or is a folder, 65 when it holds no graph and no kernel, 74.
bool torch_log_read(TorchLog *log, const char *path, int rank, Error *error);

const char *graph_kind_name(GraphKind kind); // "joint", "forward" ...
int64_t torch_log_extern_calls(const TorchLog *log);
// Local. "1234 lines read, 1200 understood, 30 known noise, 4 not understood".
void torch_log_coverage(const TorchLog *log, char *text, size_t bytes);
// Local. The operation a node calls, without namespace and overload: "torch.ops.aten.mm.default"
// gives "mm"; so for "aten.mm" and "extern_kernels.mm".
Slice operation_name(const char *target);
