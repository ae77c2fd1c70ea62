// torch_log_code.c -- an "Output code:" block: the Python module that Inductor generated
// (torch/_inductor/codegen/wrapper.py), line by line.
//
// At its top level stand imports, kernels as strings behind async_compile.<language>(, each with
// comments in front, and functions. Of these, call() (in a class Runner since 2.9, maybe divided
// into partition_N()) runs the kernels, and get_args() or benchmark_compiled_module() names the
// dtypes of the arguments.
#include "results/graph/torch_log_parser.h"

#include <string.h>

static LogModule *open_module(TorchLog *log, const Stream *stream)
{
    return &log->modules.items[stream->module];
}

void code_block_begin(TorchLog *log, Stream *stream, const LogLine *line)
{
    LogModule *module = GROW(log->modules);
    module->aot_id = "";
    module->compile_id = stream->compile_id;
    module->path = stream->next_path;
    module->id = module->graph = -1;
    module->rank = stream->rank;
    module->file = (int)log->files.count - 1;
    module->line = line->number;
    module->pool = log->brief ? pool_create() : log->pool;
    stream->next_path = "";
    stream->module = (int)log->modules.count - 1;
    stream->state = CODE_TOP;
    stream->kernel = -1;
    pending_clear(&stream->pending);
}

void code_block_end(TorchLog *log, Stream *stream)
{
    if (stream->kernel >= 0)
        kernel_end(log, stream);
    pending_clear(&stream->pending);
    module_end(log, stream->module);
}

// # AOT ID: ['0_forward']
static void aot_id_comment(TorchLog *log, Stream *stream, Slice text)
{
    static const struct {
        const char *word;
        GraphKind kind;
    } kinds[] = {
        {"forward", GRAPH_FORWARD}, {"backward", GRAPH_BACKWARD}, {"inference", GRAPH_INFERENCE}};
    LogModule *module = open_module(log, stream);
    Slice id = slice_after(text, slice_find_char(text, '\'') + 1);
    id = slice_until(id, slice_find_char(id, '\''));
    module->aot_id = keep(log, id);
    if (!slice_take_number(&id, &module->id))
        return;
    for (size_t i = 0; i < COUNT_OF(kinds); i++)
        if (slice_ends(id, kinds[i].word))
            module->kind = kinds[i].kind;
}

// The stem of a path: "/tmp/x/2l/c2l5.py" gives "c2l5".
static Slice stem_of(Slice path)
{
    size_t slash = path.bytes;
    while (slash > 0 && path.at[slash - 1] != '/' && path.at[slash - 1] != '\\')
        slash--;
    Slice name = slice_after(path, slash);
    return slice_until(name, slice_find_char(name, '.'));
}

//   %mul : Tensor "f32[4][1]cuda:0"[num_users=1] = call_function[target=...](args = ...)
static void fragment_comment(TorchLog *log, PendingComments *pending, Slice text)
{
    Slice rest = slice_after(text, 1);
    Slice name = slice_take_name(&rest);
    bool operation = slice_find(rest, "= call_") < rest.bytes; // function, module, method
    if (operation && name.bytes)
        *GROW(pending->fragment) = keep(log, name);
}

static void clear_names(PendingComments *pending)
{
    pending->source_nodes.count = pending->original_aten.count = pending->fragment.count = 0;
}

// # Topologically Sorted Source Nodes: [y, z], Original ATen: [aten.mul]
static void nodes_comment(TorchLog *log, PendingComments *pending, Slice text)
{
    if (!slice_take(&text, "Topologically Sorted Source Nodes:") &&
        !slice_take(&text, "Source Nodes:"))
        return;
    size_t aten = slice_find(text, "Original ATen:");
    clear_names(pending);
    names_add(log, &pending->source_nodes, slice_inside(slice_until(text, aten), '['));
    names_add(log, &pending->original_aten, slice_inside(slice_after(text, aten), '['));
}

void call_comment(TorchLog *log, Stream *stream, Slice text)
{
    slice_take(&text, "#");
    if (!log->brief) // which has no use for the names of a call
        nodes_comment(log, &stream->pending, slice_trim(text));
}

static void comment_line(TorchLog *log, Stream *stream, Slice text)
{
    PendingComments *pending = &stream->pending;
    Slice rest = text;
    slice_take(&rest, "#");
    rest = slice_trim(rest);
    if (slice_take(&rest, "AOT ID:")) {
        aot_id_comment(log, stream, rest);
    } else if (slice_take(&rest, "kernel path:")) {
        clear_names(pending);
        pending->hash = keep(log, stem_of(slice_trim(rest)));
    } else if (slice_take(&rest, "Original path:")) {
        rest = slice_trim(rest);
        size_t colon = rest.bytes;
        while (colon > 0 && rest.at[colon - 1] != ':')
            colon--;
        Slice number = slice_after(rest, colon);
        bool numbered = colon > 0 && slice_take_number(&number, &pending->user_line);
        pending->user_file = keep(log, numbered ? slice_until(rest, colon - 1) : rest);
    } else if (rest.bytes && rest.at[0] == '%') {
        fragment_comment(log, pending, rest);
    } else {
        nodes_comment(log, pending, rest);
    }
}

// Does a string begin in this line and not end? Gives the quotes that will end it.
static const char *opens_string(Slice text)
{
    static const char *const quotes[] = {"'''", "\"\"\""};
    for (size_t i = 0; i < COUNT_OF(quotes); i++) {
        if (slice_find_char(text, quotes[i][0]) == text.bytes)
            continue;
        size_t at = slice_find(text, quotes[i]);
        Slice rest = slice_after(text, at + 3);
        if (at < text.bytes && slice_find(rest, quotes[i]) == rest.bytes)
            return quotes[i];
    }
    return NULL;
}

static bool opens_bracket(Slice text)
{
    return slice_ends(text, "(") || slice_ends(text, "[") || slice_ends(text, "{");
}

// NAME = async_compile.triton('triton_poi_fused_add_0', '''
static bool kernel_statement(TorchLog *log, Stream *stream, Slice text, int64_t line)
{
    Slice rest = text, language, device_name = {"", 0};
    Slice name = slice_take_name(&rest);
    if (name.bytes == 0 || !slice_take(&rest, " = async_compile."))
        return false;
    language = slice_take_name(&rest);
    if (language.bytes == 0 || slice_is(language, "wait"))
        return false;
    if (slice_take(&rest, "('"))
        device_name = slice_until(rest, slice_find_char(rest, '\''));
    kernel_begin(log, stream, name, language, device_name, line);
    stream->quote = opens_string(text);
    if (stream->quote)
        stream->state = CODE_KERNEL;
    else
        kernel_end(log, stream);
    if (!stream->quote && opens_bracket(slice_trim(text)))
        stream->state = CODE_MULTILINE;
    return true;
}

static int indent_of(Slice line)
{
    int indent = 0;
    while ((size_t)indent < line.bytes && line.at[indent] == ' ')
        indent++;
    return indent;
}

// def call(args):   def call(self, args):   def partition_0(args):   def true_graph_0(args):
// Functions run kernels, but those that only measure or pass on.
static bool function_line(Stream *stream, Slice line)
{
    static const char *const others[] = {"__init__(", "recursively_apply_fns(", "get_args(",
                                         "benchmark_compiled_module("};
    Slice text = slice_trim(line);
    if (!slice_take(&text, "def "))
        return false;
    stream->state = CODE_CALL;
    stream->def_indent = indent_of(line);
    for (size_t i = 0; i < COUNT_OF(others); i++)
        if (slice_starts(text, others[i]))
            stream->state = CODE_OTHER;
    return true;
}

static bool is_module_text(Slice text)
{
    static const char *const starts[] = {
        "from ", "import ",        "def ",  "class ", "if ",    "@",     ")", "]", "}",
        "del ",  "async_compile.", "with ", "try:",   "except", "else:", "#", "'", "\""};
    for (size_t i = 0; i < COUNT_OF(starts); i++)
        if (text.at[0] == starts[i][0] && slice_starts(text, starts[i]))
            return true;
    Slice rest = text;
    bool named = slice_take_name(&rest).bytes > 0;
    while (named && slice_take(&rest, "."))
        slice_take_name(&rest);
    return named && (slice_starts(rest, " = ") || slice_starts(rest, "("));
}

// What the program or another thread printed in the middle of a short message.
static bool is_printed_between(const LogLine *line)
{
    Slice text = line->text;
    return line->form == LINE_BARE && text.bytes > 0 && text.at[0] != ' ' && text.at[0] != '\t' &&
           !is_module_text(text);
}

// @triton_heuristics.pointwise( in the module itself: the kernel follows without a string.
static bool jit_line(TorchLog *log, Stream *stream, Slice text, int64_t line)
{
    Slice rest = text;
    if (slice_take(&rest, "@triton_heuristics.")) {
        stream->pending.kind = keep(log, slice_take_name(&rest));
        stream->state = CODE_MULTILINE;
        return true;
    }
    if (!stream->pending.kind[0] || !slice_take(&rest, "def "))
        return false;
    Slice name = slice_take_name(&rest);
    const char *kind = stream->pending.kind;
    kernel_begin(log, stream, name, slice_of("triton"), name, line);
    log->kernels.items[stream->kernel].kind = kind;
    kernel_line(log, stream, text);
    stream->state = CODE_JIT;
    return true;
}

static LineFate top_line(TorchLog *log, Stream *stream, const LogLine *line)
{
    Slice text = line->text;
    if (text.bytes == 0)
        return LINE_UNDERSTOOD;
    if (text.at[0] == ' ' || text.at[0] == '\t') {
        function_line(stream, text); // of a class
        return LINE_UNDERSTOOD;
    }
    if (is_printed_between(line))
        return outside_line(log, text);
    if (text.at[0] == '#') {
        comment_line(log, stream, text);
    } else if (!kernel_statement(log, stream, text, line->number) &&
               !jit_line(log, stream, text, line->number) && !function_line(stream, text)) {
        stream->quote = opens_string(text);
        if (stream->quote)
            stream->state = CODE_STRING;
        else if (opens_bracket(slice_trim(text)))
            stream->state = CODE_MULTILINE;
        else if (slice_starts(text, "class ") || slice_starts(text, "if ")) {
            stream->state = CODE_OTHER;
            stream->def_indent = 0;
        }
    }
    return LINE_UNDERSTOOD;
}

static void string_line(TorchLog *log, Stream *stream, Slice text)
{
    size_t end = slice_find(text, stream->quote);
    bool kernel = stream->state == CODE_KERNEL;
    if (kernel && end > 0)
        kernel_line(log, stream, slice_until(text, end));
    else if (kernel && text.bytes == 0)
        kernel_line(log, stream, text);
    if (end == text.bytes)
        return;
    if (kernel)
        kernel_end(log, stream);
    stream->state = CODE_TOP;
}

// In a function: a line further left ends it; a method of a class is a function of its own.
static bool leaves_function(Stream *stream, Slice text)
{
    if (slice_trim(text).bytes == 0 || indent_of(text) > stream->def_indent)
        return false;
    stream->state = CODE_TOP;
    pending_clear(&stream->pending);
    return true;
}

LineFate code_block_line(TorchLog *log, Stream *stream, const LogLine *line)
{
    Slice text = line->text;
    switch (stream->state) {
    case CODE_KERNEL:
    case CODE_STRING:
        string_line(log, stream, text);
        return LINE_UNDERSTOOD;
    case CODE_MULTILINE:
        stream->quote = opens_string(text);
        if (stream->quote)
            stream->state = CODE_STRING;
        else if (text.bytes && memchr(")]}", text.at[0], 3))
            stream->state = CODE_TOP;
        return LINE_UNDERSTOOD;
    case CODE_JIT:
        if (text.bytes == 0 || text.at[0] == ' ') {
            kernel_line(log, stream, text);
            return LINE_UNDERSTOOD;
        }
        kernel_end(log, stream);
        stream->state = CODE_TOP;
        return top_line(log, stream, line);
    case CODE_CALL:
    case CODE_OTHER:
        if (is_printed_between(line))
            return outside_line(log, text);
        if (leaves_function(stream, text))
            return top_line(log, stream, line);
        if (stream->state == CODE_CALL)
            call_line(log, stream, slice_trim(text), line->number);
        else if (!function_line(stream, text))
            benchmark_line(log, stream, slice_trim(text));
        return LINE_UNDERSTOOD;
    case CODE_TOP:
        break;
    }
    return top_line(log, stream, line);
}
