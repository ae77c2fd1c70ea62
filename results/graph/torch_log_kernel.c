// torch_log_kernel.c -- the text of one kernel: what kind it is, which of its parameters it reads
// and writes, and of which type they are.
//
// Triton names the roles (in_ptr0, in_out_ptr0, out_ptr0; templates: arg_A) and their types in the
// decorator: 'signature': {'in_ptr0': '*bf16', 'xnumel': 'i32'}. C++ says `const float* in_ptr0`.
#include "results/graph/torch_log_parser.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static LogKernel *open_kernel(TorchLog *log, const Stream *stream)
{
    return &log->kernels.items[stream->kernel];
}

void kernel_begin(TorchLog *log, Stream *stream, Slice name, Slice language, Slice device_name,
                  int64_t line)
{
    PendingComments *pending = &stream->pending;
    LogModule *module = &log->modules.items[stream->module];
    LogKernel *kernel = GROW(log->kernels);
    stream->kernel = (int)log->kernels.count - 1;
    bool cpp = slice_starts(language, "cpp");
    *kernel = (LogKernel){.name = keep(log, name),
                          .device_name = keep(log, device_name.bytes ? device_name : name),
                          .language = cpp ? "cpp" : keep(log, language),
                          .kind = "",
                          .hash = pending->hash,
                          .code = "",
                          .user_file = pending->user_file,
                          .user_line = pending->user_line,
                          .source_nodes = pending->source_nodes,
                          .original_aten = pending->original_aten,
                          .fragment = pending->fragment,
                          .module = stream->module,
                          .line = line,
                          .read_bytes = (double)NAN,
                          .written_bytes = (double)NAN};
    if (!slice_is(language, "triton"))
        kernel->kind = kernel->language;
    *pending = (PendingComments){.hash = "", .user_file = "", .kind = ""};
    *GROW(module->kernels) = stream->kernel;
    name_map_put(&module->kernel_of_name, kernel->name, stream->kernel);
    stream->code.count = 0;
    stream->in_parameters = false;
}

// ---- types ----

int element_bytes_of(Slice type)
{
    static const struct {
        const char *name;
        int bytes;
    } types[] = {
        {"float8", 1},   {"fp8", 1},       {"f8", 1},      {"float64", 8}, {"fp64", 8},
        {"f64", 8},      {"double", 8},    {"float16", 2}, {"fp16", 2},    {"f16", 2},
        {"bfloat16", 2}, {"bf16", 2},      {"half", 2},    {"float32", 4}, {"fp32", 4},
        {"f32", 4},      {"float4", 1},    {"f4", 1},      {"float", 4},   {"complex128", 16},
        {"c128", 16},    {"complex64", 8}, {"c64", 8},     {"c32", 4},     {"uint64", 8},
        {"int64", 8},    {"u64", 8},       {"i64", 8},     {"uint32", 4},  {"int32", 4},
        {"u32", 4},      {"i32", 4},       {"uint16", 2},  {"int16", 2},   {"u16", 2},
        {"i16", 2},      {"uint8", 1},     {"int8", 1},    {"u8", 1},      {"i8", 1},
        {"bool", 1},     {"b8", 1},        {"i1", 1},      {"bits8", 1},   {"long", 8},
        {"e8m0", 1},     {"u1", 1},
    };
    static const char *const before[] = {
        "const ", "*", "torch.", "at::", "c10::", "Tensor ", "Parameter "};
    type = slice_trim(type);
    for (size_t i = 0; i < COUNT_OF(before); i++)
        slice_take(&type, before[i]);
    char lower[16] = "";
    for (size_t i = 0; i < type.bytes && i < sizeof(lower) - 1; i++)
        lower[i] = type.at[i] >= 'A' && type.at[i] <= 'Z' ? (char)(type.at[i] + 32) : type.at[i];
    for (size_t i = 0; i < COUNT_OF(types); i++)
        if (types[i].name[0] == lower[0] && slice_starts(slice_of(lower), types[i].name))
            return types[i].bytes;
    return 0;
}

// ---- parameters ----

static KernelParameter *add_parameter(TorchLog *log, LogKernel *kernel, Slice name)
{
    KernelParameter *parameter = GROW(kernel->parameters);
    parameter->name = pool_keep(log->modules.items[kernel->module].pool, name);
    bool pointer = slice_find(name, "_ptr") < name.bytes || slice_starts(name, "arg_");
    bool both = slice_starts(name, "in_out_ptr") || slice_starts(name, "ws_ptr");
    bool output = slice_starts(name, "out_ptr");
    parameter->reads = pointer && !output;
    parameter->writes = both || output;
    return parameter;
}

// in_ptr0, out_ptr0, xnumel, XBLOCK : tl.constexpr
static void triton_parameters(TorchLog *log, LogKernel *kernel, Slice list)
{
    Slice item;
    while (slice_take_item(&list, &item)) {
        Slice name = slice_take_name(&item);
        if (name.bytes && slice_find(item, "constexpr") == item.bytes)
            add_parameter(log, kernel, name);
    }
}

// const float* in_ptr0, float* in_out_ptr0, const int64_t ks0
static void cpp_parameters(TorchLog *log, LogKernel *kernel, Slice list)
{
    Slice item;
    while (slice_take_item(&list, &item)) {
        size_t name_at = item.bytes;
        while (name_at > 0 && item.at[name_at - 1] != ' ' && item.at[name_at - 1] != '*')
            name_at--;
        Slice type = slice_until(item, name_at), name = slice_after(item, name_at);
        size_t star = slice_find_char(type, '*');
        KernelParameter *parameter = add_parameter(log, kernel, name);
        bool constant = slice_starts(type, "const ");
        parameter->reads = star < type.bytes && (constant || slice_starts(name, "in_out_ptr"));
        parameter->writes = star < type.bytes && !constant;
        parameter->element_bytes = element_bytes_of(slice_until(type, star));
    }
}

// {'in_ptr0': '*bf16', 'xnumel': 'i32'}, before 2.6 {0: '*bf16', 1: 'i32'}. It stands before the
// parameters themselves, so it is looked up when these are complete.
static void signature_types(LogKernel *kernel, Slice code)
{
    Slice item;
    Slice at = slice_after(code, slice_find(code, "'signature': {"));
    Slice list = slice_inside(slice_until(at, slice_find_char(at, '\n')), '{');
    while (slice_take_item(&list, &item)) {
        size_t colon = slice_find(item, ": ");
        Slice key = slice_until(item, colon), type = slice_trim(slice_after(item, colon + 1));
        int64_t index = -1;
        bool pointer = slice_take(&type, "'*");
        slice_take(&key, "'");
        key = slice_until(key, slice_find_char(key, '\''));
        if (!slice_take_number(&key, &index))
            for (int64_t i = 0; index < 0 && i < kernel->parameters.count; i++)
                if (slice_is(key, kernel->parameters.items[i].name))
                    index = i;
        if (index < 0 || index >= kernel->parameters.count)
            continue;
        KernelParameter *parameter = &kernel->parameters.items[index];
        if (pointer)
            parameter->element_bytes = element_bytes_of(type);
        if (pointer && !parameter->reads && !parameter->writes)
            parameter->reads = true; // a user's own kernel: names say nothing
    }
}

static void mutated_parameters(LogKernel *kernel, Slice code)
{
    Slice item;
    Slice at = slice_after(code, slice_find(code, "'mutated_arg_names': ["));
    Slice list = slice_inside(slice_until(at, slice_find_char(at, '\n')), '[');
    while (slice_take_item(&list, &item)) {
        Slice name = item.bytes >= 2 ? (Slice){item.at + 1, item.bytes - 2} : item;
        for (int64_t i = 0; i < kernel->parameters.count; i++)
            if (slice_is(name, kernel->parameters.items[i].name))
                kernel->parameters.items[i].writes = true;
    }
}

// The list between the brackets of the kernel's function, wherever its lines break.
static Slice parameter_list(const LogKernel *kernel, Slice code)
{
    bool cpp = strcmp(kernel->language, "cpp") == 0;
    size_t at = slice_find(code, cpp ? "kernel(" : "\ndef ");
    Slice rest = slice_after(code, at);
    if (!cpp && slice_starts(code, "def "))
        rest = code;
    return slice_inside(rest, '(');
}

void kernel_line(TorchLog *log, Stream *stream, Slice text)
{
    LogKernel *kernel = open_kernel(log, stream);
    Slice rest = text;
    if (slice_take(&rest, "@triton_heuristics."))
        kernel->kind = keep(log, slice_take_name(&rest));
    buffer_append(&stream->code, text);
    buffer_append(&stream->code, slice_of("\n"));
}

void kernel_end(TorchLog *log, Stream *stream)
{
    LogKernel *kernel = open_kernel(log, stream);
    Slice code = {stream->code.items, (size_t)stream->code.count};
    while (code.bytes && code.at[0] == '\n')
        code = slice_after(code, 1);
    if (!log->brief)
        kernel->code = keep(log, code);
    if (strcmp(kernel->language, "cpp") == 0) {
        cpp_parameters(log, kernel, parameter_list(kernel, code));
    } else {
        triton_parameters(log, kernel, parameter_list(kernel, code));
        signature_types(kernel, code);
        mutated_parameters(kernel, code);
    }
    if (kernel->user_file[0] || strcmp(kernel->kind, "user_autotune") == 0)
        kernel->kind = "user_defined";
    if (!kernel->kind[0])
        kernel->kind = kernel->language;
    stream->kernel = -1;
}
